"""Models of Keras, converted: equal to what Keras computed; other layers and hostile files are refused by name."""

import io
import json
import shutil
import zipfile

import h5py
import pytest
from peer_fixtures import PEERS, assert_equals_peer, expected
from transformers import AutoTokenizer

from hfseq.convert import check_conversion, convert_keras
from hfseq.convert.command import main
from hfseq.convert.reading import read_lines
from hfseq.errors import InputError

CASES = {
    "classifier_bigru/model.keras": "GruForSequenceClassification",
    "classifier_lstm_compiled/model.h5": "LstmForSequenceClassification",
    "lm_gru/model.h5": "GruForCausalLM",
    "lm_lstm_functional/model.keras": "LstmForCausalLM",
    "tagger_bilstm/model.keras": "LstmForTokenClassification",
    "tagger_rnn/model.h5": "RnnForTokenClassification",
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_keras(name):
    case = PEERS / "keras" / name
    found = convert_keras(case, vocab=case.parent / "vocab.txt")
    activation = expected(f"keras/{case.parent.name}")[1]["activation"]
    # The odds of one output are those of the second of two classes.
    columns = slice(1, None) if activation == "sigmoid" else slice(None)
    assert_equals_peer(found, f"keras/{case.parent.name}", normalized=activation == "softmax", columns=columns)
    assert type(found.model).__name__ == CASES[name]
    words = read_lines(case.parent / "vocab.txt")
    assert found.tokenizer(f"{words[5]} unheard {words[2]}").input_ids == [5, 1, 2]
    assert (found.tokenizer.pad_token_id, found.model.config.pad_token_id) == (0, 0)
    assert found.model.config.dropout == (0.5 if "bigru" in name else 0.1)


def test_both_directions_in_the_older_format(tmp_path):
    """The arrays of a `.keras` file under the names that `.h5` files have, as `tagger_rnn` and `lm_gru` show them."""
    source, path = PEERS / "keras" / "tagger_bilstm" / "model.keras", tmp_path / "model.h5"
    with zipfile.ZipFile(source) as archive:
        config, data = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
    names = [layer["config"]["name"] for layer in config["config"]["layers"][1:]]
    paths = {"layers/embedding/vars/0": f"{names[0]}/top/{names[0]}/embeddings"}
    for way in ("forward", "backward"):
        for number, weight in enumerate(("kernel", "recurrent_kernel", "bias")):
            theirs = f"layers/bidirectional/{way}_layer/cell/vars/{number}"
            paths[theirs] = f"{names[1]}/top/{names[1]}/{way}_lstm/lstm_cell/{weight}:0"
    for number, weight in enumerate(("kernel", "bias")):
        paths[f"layers/time_distributed/layer/vars/{number}"] = f"{names[2]}/top/{names[2]}/dense/{weight}"
    with h5py.File(io.BytesIO(data)) as arrays, h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        for theirs, ours in paths.items():
            file[f"model_weights/{ours}"] = arrays[theirs][()]
    assert_equals_peer(convert_keras(path), "keras/tagger_bilstm")


def changed(source, path, *, layers=None, weights=None):
    """Copy of a `.keras` file with changed descriptions of layers, or changed weights."""
    with zipfile.ZipFile(source) as archive:
        config, data = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
    if layers is not None:
        layers(config["config"]["layers"])
    path.write_bytes(b"")
    inner = path.with_suffix(".weights.h5")
    inner.write_bytes(data)
    if weights is not None:
        with h5py.File(inner, "r+") as file:
            weights(file)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.write(inner, "model.weights.h5")
    return path


def test_cells_without_biases_and_other_outputs(tmp_path):
    source, path = PEERS / "keras" / "classifier_bigru" / "model.keras", tmp_path / "model.keras"

    def outputs(count, activation):
        def change(layers):
            layers[-1]["config"]["activation"] = activation
            for layer in layers[2:4]:
                layer["config"]["layer"]["config"]["use_bias"] = False

        def change_weights(file):
            for cell in ("bidirectional", "bidirectional_1"):
                for way in ("forward_layer", "backward_layer"):
                    del file[f"layers/{cell}/{way}/cell/vars/2"]
            dense = file["layers/dense/vars"]
            kernel, bias = dense["0"][:, :count], dense["1"][:count]
            del dense["0"], dense["1"]
            dense["0"], dense["1"] = kernel, bias

        return changed(source, path, layers=change, weights=change_weights)

    for count, activation, problem, labels in (
        (1, "sigmoid", None, 2),
        (3, "sigmoid", "multi_label_classification", 3),
        (1, "linear", "regression", 1),
        (2, "softmax", "single_label_classification", 2),
    ):
        found = convert_keras(outputs(count, activation))
        config = found.model.config
        assert (config.problem_type, config.num_labels, config.pooling) == (problem, labels, "last")
        assert check_conversion(found.model, found.reference).passed
    # A pooling over all steps.
    pool = {"class_name": "GlobalMaxPooling1D", "config": {"name": "pool"}}

    def pooled(layers):
        layers[3]["config"]["layer"]["config"]["return_sequences"] = True
        layers.insert(4, pool)

    for kind, pooling in (("GlobalMaxPooling1D", "max"), ("GlobalAveragePooling1D", "mean")):
        pool["class_name"] = kind
        (tmp_path / "labels.txt").write_text("bad\ngood\nneutral\n")
        found = convert_keras(changed(source, path, layers=pooled), labels=tmp_path / "labels.txt")
        assert found.model.config.pooling == pooling and found.model.config.id2label[2] == "neutral"
        assert check_conversion(found.model, found.reference).passed


def test_what_hfseq_lacks_is_refused_by_layer_and_setting(tmp_path):
    source, path = PEERS / "keras" / "classifier_bigru" / "model.keras", tmp_path / "model.keras"

    def refused(message, change=None, weights=None, **options):
        with pytest.raises(InputError, match=message) as error:
            convert_keras(changed(source, path, layers=change, weights=weights), **options)
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    def inner(name, value):
        return lambda layers: layers[2]["config"]["layer"]["config"].update({name: value})

    refused(r"bidirectional \(Bidirectional\): reset_after=False; hfseq's GRU has True", inner("reset_after", False))
    refused("recurrent_activation='hard_sigmoid'", inner("recurrent_activation", "hard_sigmoid"))
    refused("activation='relu'; hfseq's GRU has 'tanh'", inner("activation", "relu"))
    refused("return_sequences=False below another", inner("return_sequences", False))
    refused("concatenates two directions", lambda layers: layers[2]["config"].update(merge_mode="sum"))
    lambda_layer = {"class_name": "Lambda", "config": {"name": "code", "function": "gA=="}}
    refused(r"layer code \(Lambda\): after the recurrent", lambda layers: layers.insert(4, lambda_layer))
    refused(r"layer code \(Lambda\): after the embedding", lambda layers: layers.insert(2, lambda_layer))
    refused(
        r"no Embedding at the beginning of .*give its vocabulary by --vocab",
        lambda layers: layers.insert(1, {"class_name": "TextVectorization", "config": {"name": "words"}}),
    )
    refused("a softmax or sigmoid at most", lambda layers: layers.append(lambda_layer))
    refused("a softmax or sigmoid at most", lambda layers: layers[-1]["config"].update(activation="relu"))
    refused("a description of layers that Keras does not write", lambda layers: layers.append({"class_name": 3}))
    refused(
        "weights of bidirectional_1 .* are not all there",
        weights=lambda file: file["layers/bidirectional_1/backward_layer/cell/vars"].pop("1"),
    )
    refused(
        r"no place for layers/norm/vars/0 \[2\]", weights=lambda file: file.update({"layers/norm/vars/0": [1.0, 2.0]})
    )
    refused("--task lm, but the layers are those of a classifier", task="lm")

    # Nothing outside the file, and nothing larger than it.
    def link(kind):
        def change(file):
            del file["layers/dense/vars/0"]
            file["layers/dense/vars/0"] = kind

        return change

    refused("refused: layers/dense/vars/0 is a link", weights=link(h5py.ExternalLink("/etc/hostname", "/")))
    refused("refused: layers/dense/vars/0 is a link", weights=link(h5py.SoftLink("/layers")))
    refused(
        "refused: layers/x is not in the file itself",
        weights=lambda file: file.create_dataset("layers/x", (4,), "u1", external=[("/etc/hostname", 0, 4)]),
    )
    refused(
        "refused: layers/x is not in the file itself",
        weights=lambda file: file.create_dataset("layers/x", (10**12,), "f4", chunks=True),
    )

    for data, message in ((b"", "not a model that Keras saved"), (b"PK\x05\x06" + bytes(18), "it has no config.json")):
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            convert_keras(path)
    path = tmp_path / "model.h5"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a file of Keras, or damaged"):
        convert_keras(path)
    shutil.copy(PEERS / "keras" / "lm_gru" / "model.h5", path)
    with h5py.File(path, "r+") as file:
        del file.attrs["model_config"]
    with pytest.raises(InputError, match="weights without layers; save the whole model"):
        convert_keras(path)


def test_the_command_and_the_vocabularies_of_keras(tmp_path, capsys):
    case, output = PEERS / "keras" / "classifier_bigru", tmp_path / "out"
    words = read_lines(case / "vocab.txt")
    index = {word: number for number, word in enumerate(["<unk>", *words[2:], "rare", "rarer"], start=1)}
    config = {"word_index": json.dumps(index), "lower": True, "char_level": False, "split": " ", "filters": "!.[]\n"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"class_name": "Tokenizer", "config": config}))
    main(
        ["keras", str(case / "model.keras"), "--vocab", str(tmp_path / "tokenizer.json"), "--output_dir", str(output)]
    )
    assert "of Keras (GRU)" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer(f"{words[3].upper()}!{words[4]} [rare]").input_ids == [3, 4, 1]
    found = convert_keras(case / "model.keras", vocab=case / "vocab.txt", standardize="lower_and_strip_punctuation")
    assert found.tokenizer(f"{words[3].upper()}, ({words[4]})").input_ids == [3, 4]
    for change, message in (
        ({"char_level": True}, "a Tokenizer of characters"),
        ({"word_index": "{"}, "not a Tokenizer of Keras"),
        ({"word_index": '{"a": 1}'}, "2 tokens, but the embeddings"),
    ):
        (tmp_path / "t.json").write_text(json.dumps({"class_name": "Tokenizer", "config": config | change}))
        with pytest.raises(InputError, match=message):
            convert_keras(case / "model.keras", vocab=tmp_path / "t.json")

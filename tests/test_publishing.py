"""Publishing: the folder, the card, and the real client of the Hub against a small one on this machine."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
import recipe_runs
import torch
from huggingface_hub import ModelCard
from processes import ELSEWHERE, Python
from recipe_runs import ROOT, load, results, write_reviews
from safetensors.torch import load_file
from token_classes import MODEL_CLASSES
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    EncoderDecoderModel,
)

import hfseq
from hfseq.errors import InputError
from hfseq.tokenization import train_tokenizer
from hfseq.training.reporting import save_run

CONFIG = """\
model_type: hfseq_gru
config_overrides: {hidden_size: 16, embedding_size: 12, dropout: 0.0, pooling: max}
tokenizer_model: word
num_train_epochs: 2
learning_rate: 1e-2
logging_steps: 5
per_device_train_batch_size: 8
use_cpu: true
disable_tqdm: true
license: apache-2.0
"""
NO_HFSEQ = """\
import sys
class NoHfseq:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hfseq":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoHfseq())
"""


def environment(url, home, token):
    """That of a user who is online, whose Hub is at `url`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTEST"))}
    own = {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return kept | own | ({} if token is None else {"HF_TOKEN": token})


def online(url, home, *command, token="hf_writer"):
    """Runs a new Python there."""
    command = [sys.executable, *map(str, command)]
    environ = environment(url, home, token)
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=240, cwd=home)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    root = tmp_path_factory.mktemp("rows")
    write_reviews(root)
    (root / "config.yaml").write_text(CONFIG, encoding="utf-8")
    return root


def arguments(rows, output_dir, **flags):
    files = {"train_file": rows / "train.csv", "validation_file": rows / "val.csv", "test_file": rows / "test.csv"}
    return recipe_runs.arguments(rows / "config.yaml", **(files | {"output_dir": output_dir} | flags))


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "tiny-gru"
    recipe_runs.start(load("sentiment"), arguments(rows, output))
    return output


@pytest.fixture(scope="module")
def hub():
    with hub_server.running() as server:
        yield server


@pytest.fixture(scope="module")
def user(hub, tmp_path_factory):
    """Runs programs there that import hfseq, in processes of their own."""
    home = tmp_path_factory.mktemp("user")
    python = Python(environment(hub[1], home, None))

    def run(*command, token="hf_writer"):
        return python.run(*command, environment={} if token is None else {"HF_TOKEN": token}, cwd=home)

    yield run
    python.close()


@pytest.fixture(scope="module")
def stranger(hub, tmp_path_factory):
    """Runs code there in processes that cannot import hfseq."""
    home = tmp_path_factory.mktemp("stranger")
    python = Python(environment(hub[1], home, "hf_writer"), ELSEWHERE)
    yield lambda code, *argv: python.run("-c", NO_HFSEQ + code, *argv, environment={}, cwd=home)
    python.close()


def card_of(folder):
    return ModelCard.load(Path(folder) / "README.md")


# The folder and the card.


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    target = tmp_path_factory.mktemp("dry") / "folder"
    assert hfseq.publish(trained, "ann/tiny-gru", dry_run=target) == str(target)
    return target


def test_a_dry_run_writes_and_shows_what_would_go_up(trained, tmp_path, capsys):
    target = tmp_path / "folder"
    hfseq.publish(trained, "ann/tiny-gru", dry_run=target)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "would be pushed to ann/tiny-gru:"
    names = {path.name for path in target.iterdir()}
    assert {line.split()[0] for line in lines[1:]} == names
    assert f"  model.safetensors  {(target / 'model.safetensors').stat().st_size:,} bytes" in lines
    code = {"modeling_gru.py", "heads_causal.py", "configuration_recurrent.py"}
    needed = {"README.md", "config.json", "tokenizer.json", "tokenizer_config.json", "learning_curve.png"}
    assert names >= code | needed | {"confusion_matrix.png"}
    # Nothing of the run's own.
    assert not names & {"training_args.bin", "run.json", "all_results.json", "predictions.txt", "samples.txt"}
    # Never over other files, a model or an earlier folder among them; `True` has a place of its own.
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, target, trained):
        before = sorted(path.name for path in place.iterdir())
        with pytest.raises(InputError, match="has other files"):
            hfseq.publish(trained, "ann/tiny-gru", dry_run=place)
        assert sorted(path.name for path in place.iterdir()) == before
    for _ in range(2):
        assert hfseq.publish(trained, "ann/tiny-gru", dry_run=True) == str(trained / "hub")
    shutil.rmtree(trained / "hub")


def test_the_weights_are_the_same(trained, folder):
    one, other = load_file(trained / "model.safetensors"), load_file(folder / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads((folder / "config.json").read_text())["auto_map"].keys() >= {
        "AutoConfig",
        "AutoModel",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
    }


def test_the_card_says_what_was_measured(trained, folder):
    data, found = card_of(folder).data, results(trained)
    assert (data.pipeline_tag, data.library_name, data.license) == (
        "text-classification",
        "transformers",
        "apache-2.0",
    )
    assert data.tags == ["hfseq", "hfseq_gru"]
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    assert values == {
        "accuracy": round(found["test_accuracy"], 4),
        "macro F1": round(found["test_f1"], 4),
    }
    assert {result.dataset_name for result in data.eval_results} == {"test.csv"}
    text = card_of(folder).text
    accuracy = f"| accuracy | {found['test_accuracy']:.2f} | {found['test_majority_accuracy']:.2f} |"
    assert "| | model | majority |" in text and accuracy in text
    for said in ("![Loss and score during training](learning_curve.png)", "Rows: 40 train, 10 validation, 10 test."):
        assert said in text
    assert (
        "learning_rate: 0.01" in text
        and "train_file: 'train.csv'" in text
        and "Licence of the weights: apache-2.0" in text
    )
    assert "trained with hfseq" in text and "on train.csv." in text
    assert f"hfseq {hfseq.__version__}" in text and "transformers 5" in text and "torch 2" in text
    # Nothing of this machine.
    assert str(trained.parent) not in text and str(Path.home()) not in text.replace("/rootless", "")


def test_a_translator_has_languages_a_signature_and_an_alignment(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "config_overrides: {hidden_size: 12, embedding_size: 8}\ntokenizer_model: character\nmax_steps: 2\n"
        "max_source_length: 12\nmax_target_length: 12\nper_device_train_batch_size: 4\nuse_cpu: true\n"
    )
    (tmp_path / "pairs.csv").write_text("de,en\n" + "ja,yes\nnein,no\ngut,good\n" * 4)
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), tmp_path / "pairs.csv")
    given = files | {"source_lang": "de", "target_lang": "en", "output_dir": tmp_path / "run"}
    recipe_runs.start(load("translation"), recipe_runs.arguments(config, **given))
    hfseq.publish(tmp_path / "run", "de-en", dry_run=True, license="mit")
    card = card_of(tmp_path / "run" / "hub")
    assert (
        card.data.language == ["de", "en"] and card.data.pipeline_tag == "translation" and card.data.license == "mit"
    )
    (bleu,) = (result for result in card.data.eval_results if result.metric_name == "BLEU")
    assert bleu.metric_args["signature"].startswith("nrefs:1|case:mixed")
    assert "![Attention weights over the source words](alignment.png)" in card.text
    assert "| | model | copy |" in card.text and "that translates de to en" in card.text
    assert json.loads((tmp_path / "run" / "hub" / "generation_config.json").read_text())["num_beams"] == 5


def test_a_card_without_a_run_file_claims_nothing(tmp_path):
    tokenizer = train_tokenizer(["a b"], model="word", vocab_size=20)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    hfseq.publish(tmp_path / "bert", "bert", dry_run=tmp_path / "out")
    card = card_of(tmp_path / "out")
    assert (
        card.data.eval_results is None
        and "## Scores" not in card.text
        and "No evaluation results are reported." in card.text
    )
    assert "trust_remote_code" not in card.text and "import hfseq" not in card.text
    assert "trained with hfseq" not in card.text
    assert not list((tmp_path / "out").glob("*.py"))


def test_what_a_card_must_not_stumble_over(trained, tmp_path):
    copy = broken(trained, tmp_path, lambda folder: None)
    run = json.loads((copy / "run.json").read_text())
    more = {"example": "use {name} here, {} and ```", "languages": ["english", "de"]}
    (copy / "run.json").write_text(json.dumps(run | more))
    (copy / "all_results.json").write_text('{"test_accuracy": NaN, "test_f1": 50, "test_note": "x"}')
    hfseq.publish(copy, "x", dry_run=tmp_path / "out")
    card = card_of(tmp_path / "out")
    assert "use {name} here, {} and" in card.text and card.data.language == ["de"]
    assert [result.metric_name for result in card.data.eval_results] == ["macro F1"]
    # A long text without spaces, and what is null.
    nulls = dict.fromkeys(("languages", "rows", "signatures", "versions", "arguments"))
    (copy / "run.json").write_text(json.dumps(run | nulls | {"example": "長い文" * 100}))
    hfseq.publish(copy, "x", dry_run=tmp_path / "nulls")
    card = card_of(tmp_path / "nulls")
    assert f"{'長い文' * 66}長…" in card.text and "trained with hfseq" not in card.text
    for name in ("run.json", "all_results.json"):
        for text in ("{", "[]"):
            (copy / name).write_text(text)
            with pytest.raises(InputError, match=name):
                hfseq.publish(copy, "x", dry_run=tmp_path / "again")
        (copy / name).write_text("{}")


def test_a_model_that_is_ours_in_part_says_what_it_needs(tmp_path):
    tokenizer = train_tokenizer(["a b"], model="word", vocab_size=20)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    encoder = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))
    decoder = hfseq.GruForCausalLM(hfseq.GruConfig(vocab_size=len(tokenizer), hidden_size=8, add_cross_attention=True))
    EncoderDecoderModel(encoder=encoder, decoder=decoder).save_pretrained(tmp_path / "both")
    tokenizer.save_pretrained(tmp_path / "both")
    hfseq.publish(tmp_path / "both", "both", dry_run=tmp_path / "out")
    card = card_of(tmp_path / "out")
    assert card.text.count("import hfseq") == card.text.count("```python") == 1
    assert "trust_remote_code" not in card.text and "With transformers:" not in card.text


def test_where_a_dry_run_may_write(trained, tmp_path):
    with pytest.raises(InputError, match="dry_run='' names no folder"):
        hfseq.publish(trained, "x", dry_run="")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is a file; name a folder"):
        hfseq.publish(trained, "x", dry_run=tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    hfseq.publish(trained, "x", dry_run=tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "README.md").is_file()


def test_a_run_file_says_nothing_of_this_machine(tmp_path, rows):
    argv = arguments(rows, tmp_path / "run")
    vectors = json.dumps({"hidden_size": 16, "note": str(tmp_path / "secret")})
    kinds = load("sentiment").ARGUMENTS
    save_run(
        str(tmp_path),
        kinds,
        [*argv, "--config_overrides", vectors],
        {"train": [1], "validation": [1, 2]},
        task="text-classification",
        split="validation",
        embedded="nothing",
        example="x",
    )
    text = (tmp_path / "run.json").read_text()
    run = json.loads(text)
    assert str(tmp_path) not in text and str(rows) not in text
    assert run["tested_on"] == "val.csv" and run["data"] == "train.csv"
    assert run["arguments"]["config_overrides"]["note"] == "secret" and run["rows"] == {"train": 1, "validation": 2}


# What is broken.


def broken(trained, tmp_path, change):
    copy = tmp_path / "broken"
    copy.mkdir()
    for path in trained.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    change(copy)
    return copy


def only_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def less_weights(folder):
    from safetensors.torch import save_file

    kept = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in kept.items() if "classifier" not in name}, folder / "model.safetensors")


def weights_elsewhere(folder, name):
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder.parent / "trained.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def a_plot_elsewhere(folder):
    """A link in the folder of a model that somebody else has packed."""
    (folder / "alignment.png").symlink_to(folder.parent / "secret")
    (folder.parent / "secret").write_text("mine")


def edit(folder, name, old, new):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json, so there is no model"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json|JSON"),
        (lambda folder: edit(folder, "config.json", '"hidden_size": 16', '"hidden_size": "wide"'), "hidden_size"),
        (lambda folder: edit(folder, "config.json", "GruForSequenceClassification", "Gone"), "unknown class under"),
        (
            lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
            "no tokenizer; save it there",
        ),
        (only_pickle, "safetensors"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:-99]
            ),
            "broken: ",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "broken: "),
        (
            lambda folder: weights_elsewhere(folder, "../trained.safetensors"),
            "'../trained.safetensors' is not the plain",
        ),
        (lambda folder: weights_elsewhere(folder, 5), "index.json: 5 is not the plain name"),
        (less_weights, "the weights lack classifier.bias, classifier.weight"),
        (a_plot_elsewhere, "alignment.png: is a link that leads out of its folder"),
    ],
)
def test_what_is_broken_is_not_published(change, message, trained, tmp_path):
    copy = broken(trained, tmp_path, change)
    with pytest.raises(InputError, match=message) as caught:
        hfseq.publish(copy, "ann/broken", dry_run=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize("name", ["two/many/parts", "sp ace", "-dash", ""])
def test_a_name_that_is_none(name, trained, tmp_path):
    with pytest.raises(InputError, match="is not a valid repository name"):
        hfseq.publish(trained, name, dry_run=tmp_path / "out")


# The Hub.


@pytest.fixture(scope="module")
def pushed(user, rows, tmp_path_factory):
    """What a recipe with --push_to_hub left, on the Hub as ann/from-recipe and on the disk."""
    output = tmp_path_factory.mktemp("home") / "from-recipe"
    argv = [*arguments(rows, output, hub_token="hf_writer"), "--push_to_hub"]
    done = user(ROOT / "recipes" / "sentiment.py", *argv, token=None)
    assert done.returncode == 0, done.stderr
    return output, done


def test_a_recipe_publishes_what_publish_does(hub, pushed, tmp_path):
    state, url = hub
    output, done = pushed
    assert f"published: {url}/ann/from-recipe" in done.stdout
    hfseq.publish(output, "ann/from-recipe", dry_run=tmp_path / "dry")
    there = dict(state.files("ann/from-recipe"))
    here = {path.name: path.read_bytes() for path in (tmp_path / "dry").iterdir()}
    assert there.keys() == here.keys()
    assert {name for name in here if here[name] != there[name]} <= {"config.json"}  # which knows where it was loaded
    assert json.loads(there["config.json"]) == json.loads(here["config.json"])


def test_the_token_is_written_nowhere(hub, pushed):
    output, done = pushed
    files = [path for path in output.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    assert not [path for path in files if b"hf_writer" in path.read_bytes()]
    assert "hf_writer" not in done.stdout + done.stderr
    assert not [name for name, content in hub[0].files("ann/from-recipe").items() if b"hf_writer" in content]


def test_an_explicit_loop_publishes_too(hub, user, rows, tmp_path):
    argv = [
        *arguments(rows, tmp_path / "loop", hub_model_id="ann/from-loop", hub_private_repo="true"),
        "--push_to_hub",
    ]
    done = user(ROOT / "recipes" / "sentiment_accelerate.py", *argv)
    assert done.returncode == 0, done.stderr
    assert hub[0].private["ann/from-loop"] and "README.md" in hub[0].files("ann/from-loop")


LOAD = """\
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
name = sys.argv[1]
model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
logits = model(**tokenizer("the plot is fine", return_tensors="pt")).logits
classify = pipeline("text-classification", model=name, trust_remote_code=True, device="cpu")
print(json.dumps({"logits": logits.tolist(), "label": classify("the plot is fine")[0]["label"]}))
"""


def test_it_loads_by_its_name_in_a_process_without_hfseq(hub, pushed, tmp_path):
    """A new one, in which nothing has been imported."""
    done = online(hub[1], tmp_path, "-c", NO_HFSEQ + LOAD, "ann/from-recipe")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    model = AutoModelForSequenceClassification.from_pretrained(pushed[0])
    logits = model(**AutoTokenizer.from_pretrained(pushed[0])("the plot is fine", return_tensors="pt")).logits
    torch.testing.assert_close(torch.tensor(found["logits"]), logits)
    assert found["label"] == model.config.id2label[int(logits.argmax())]


def test_the_code_on_the_card_works_when_pasted(hub, user, stranger, pushed):
    card = hub[0].files("ann/from-recipe")["README.md"].decode()
    with_hfseq, without = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert "import hfseq" in with_hfseq and "trust_remote_code=True" in without
    for done in (user("-c", with_hfseq), stranger(without)):
        assert done.returncode == 0, done.stderr
        assert "'label'" in done.stdout


PUSH = "import sys, hfseq; print(hfseq.publish(*sys.argv[1:]))"


def test_pushing_again_updates_and_a_push_cut_off_leaves_what_was(hub, user, trained, tmp_path):
    state, url = hub
    done = user("-c", PUSH, trained, "again")
    assert done.returncode == 0 and done.stdout.strip() == f"{url}/ann/again"
    own = {"notes.md": b"kept", "handler.py": b"kept", "onnx/model.safetensors": b"kept"}
    stale = dict.fromkeys(("model-00001-of-00002.safetensors", "modeling_rnn.py", "chat_template.jinja"), b"x")
    state.repos["ann/again"][-1] |= stale | own
    first = dict(state.files("ann/again"))
    # New weights, and a connection that breaks while they go up, or before the commit.
    changed = broken(trained, tmp_path, lambda folder: None)
    model = AutoModelForSequenceClassification.from_pretrained(changed)
    model.classifier.bias.data += 1.0
    model.save_pretrained(changed)
    state.fail = "/commit/"
    cut = user("-c", PUSH, changed, "again")
    state.fail = None
    assert cut.returncode != 0 and "cannot be reached" in cut.stderr
    assert state.files("ann/again") == first
    done = user("-c", PUSH, changed, "again")
    assert done.returncode == 0, done.stderr
    now = state.files("ann/again")
    assert now["model.safetensors"] != first["model.safetensors"]
    assert not stale.keys() & now.keys()
    assert own.items() <= now.items()
    # What is broken makes no repository.
    (changed / "model.safetensors").write_bytes(b"broken")
    done = user("-c", PUSH, changed, "never")
    assert done.returncode != 0 and "ann/never" not in state.repos


ERRORS = """\
import sys, hfseq
from hfseq.errors import InputError
for name, token in (("ann/x", "hf_wrong"), ("ann/x", "hf_reader"), ("bob/x", "hf_writer"), ("ann/a b", "hf_writer")):
    try:
        hfseq.publish(sys.argv[1], name, token=token)
        print("published")
    except InputError as error:
        print(error)
"""


def test_what_the_hub_refuses_is_one_line_each(hub, user, trained):
    done = user("-c", ERRORS, trained, token=None)
    assert done.returncode == 0, done.stderr
    unknown, reader, taken, bad = done.stdout.splitlines()
    assert unknown.startswith("ann/x: invalid token")
    assert reader.startswith("ann/x: no write access")
    assert taken.startswith("bob/x: no write access: the token is read-only, or the namespace is not yours")
    assert bad.startswith("'ann/a b' is not a valid repository name")
    assert not {"ann/x", "bob/x"} & hub[0].repos.keys()
    assert "hf_wrong" not in done.stdout + done.stderr


NOWHERE = """\
import runpy, sys
from huggingface_hub import constants
constants.ENDPOINT = "http://127.0.0.1:9"
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_bad_token_and_no_network_stop_a_recipe_before_it_trains(user, rows, tmp_path):
    command = [ROOT / "recipes" / "sentiment.py", *arguments(rows, tmp_path / "run"), "--push_to_hub"]
    for done, said in (
        (user(*command, token="hf_wrong"), "error: run: invalid token"),
        (user("-c", NOWHERE, *command), "error: run: http://127.0.0.1:9 cannot be reached"),
    ):
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(said)
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "run" / "model.safetensors").exists()


def test_offline_and_nothing_to_publish(trained, rows, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        hfseq.publish(trained, "ann/x")
    comparison = [*arguments(rows, tmp_path / "c"), "--push_to_hub"]
    with pytest.raises(InputError, match="a comparison trains `models`"):
        recipe_runs.start(load("comparison"), comparison[0:1] + comparison[1:])
    with pytest.raises(InputError, match="--license 'Apache 2.0' is not a Hub licence identifier"):
        recipe_runs.start(load("sentiment"), arguments(rows, tmp_path / "s", license="Apache 2.0"))
    for more in (["--hp_search", "2"], ["--do_predict", "--model_name_or_path", str(trained)]):
        with pytest.raises(InputError, match="--push_to_hub requires a training run"):
            recipe_runs.start(load("sentiment"), [*arguments(rows, tmp_path / "s"), "--push_to_hub", *more])


PUSH_ALL = """\
import sys, hfseq
from pathlib import Path
for directory in sorted(Path(sys.argv[1]).iterdir()):
    hfseq.publish(directory, directory.name)
"""
LOAD_ALL = """\
import json, sys
import torch, transformers
inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
found = {}
for name, auto_class in json.loads(sys.argv[1]).items():
    model = getattr(transformers, auto_class).from_pretrained(f"ann/{name}", trust_remote_code=True)
    more = {"decoder_input_ids": torch.tensor([[1, 5]])} if model.config.is_encoder_decoder else {}
    found[name] = model(**inputs, **more)[0].tolist()
print(json.dumps(found))
"""


def test_classes_go_there_and_back(user, stranger, tmp_path):
    tokenizer = train_tokenizer(["a b c d e f"], model="word", vocab_size=20)
    expected, classes = {}, {}
    # Each head, of one family after the other: a head and a family have files of their own.
    for auto_class, config_class in zip(MODEL_CLASSES[hfseq.RnnConfig], itertools.cycle(MODEL_CLASSES), strict=False):
        model_class = MODEL_CLASSES[config_class][auto_class]
        torch.manual_seed(0)
        sizes = {"hidden_size": 12, "embedding_size": 8, "num_hidden_layers": 2}
        model = model_class(config_class(vocab_size=len(tokenizer), **sizes)).eval()
        name = model_class.__name__
        for saved in (model, tokenizer):
            saved.save_pretrained(tmp_path / "models" / name)
        more = {"decoder_input_ids": torch.tensor([[1, 5]])} if model.config.is_encoder_decoder else {}
        expected[name] = model(input_ids=torch.tensor([[5, 6, 7]]), **more)[0]
        classes[name] = auto_class
    assert len(classes) >= len(MODEL_CLASSES)
    done = user("-c", PUSH_ALL, tmp_path / "models")
    assert done.returncode == 0, done.stderr
    done = stranger(LOAD_ALL, json.dumps(classes))
    assert done.returncode == 0, done.stderr
    for name, values in json.loads(done.stdout.splitlines()[-1]).items():
        torch.testing.assert_close(torch.tensor(values), expected[name])

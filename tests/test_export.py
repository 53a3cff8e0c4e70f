"""ONNX: graphs equal to the models at any length, the runners' `generate()` and pipelines, and int8."""

import json
import logging
import math
import re
import shutil
import warnings
from collections import Counter
from itertools import product

import numpy as np
import onnx
import onnxruntime.quantization
import pytest
import torch
from token_classes import MODEL_CLASSES
from transformers import BertConfig, BertModel, GenerationConfig, pipeline
from transformers.generation import GenerationMixin

import hfseq
from hfseq import GruConfig
from hfseq.errors import InputError
from hfseq.onnx import export
from hfseq.onnx import quantize as quantization
from hfseq.onnx.export import export_onnx, graphs_of
from hfseq.onnx.quantize import quantize_onnx
from hfseq.onnx.runtime import load_onnx
from hfseq.tokenization import train_tokenizer

CLASSES = [
    model
    for config, heads in MODEL_CLASSES.items()
    for auto, model in heads.items()
    # The heads are the same for all cells; each family has its stacks.
    if config.family in ("Lstm", "Cnn") or auto in ("AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
]
VARIANTS = [
    (hfseq.LstmForTokenClassification, {"crf": True}),
    (hfseq.LstmForTokenClassification, {"input_filters": 5, "input_kernel_size": 3}),
    (hfseq.LstmForTokenClassification, {"char_encoder": "lstm", "char_vocab_size": 12}),
    (hfseq.RnnForSequenceClassification, {"char_encoder": "cnn", "char_vocab_size": 12, "pooling": "concat"}),
    (hfseq.GruForSequenceClassification, {"pooling": "attention", "layer_norm": True}),
    (hfseq.LstmForSequenceClassification, {"pooling": "mean", "bidirectional": False}),
    (hfseq.LstmForCausalLM, {"adaptive_softmax_cutoffs": [5, 8], "lm_head_bias": True}),
    (hfseq.GruForCausalLM, {"num_negatives": 4, "layer_sizes": [40, 32]}),
    (
        hfseq.GruForCausalLM,
        {"adaptive_softmax_cutoffs": [5, 8], "adaptive_softmax_div_value": 2, "tie_word_embeddings": False},
    ),
    (hfseq.CnnForCausalLM, {"architecture": "residual"}),
    (
        hfseq.CnnForCausalLM,
        {"architecture": "convs2s", "conv_layers": [[24, 3], [32, 4]], "output_size": 7, "tie_word_embeddings": False},
    ),
    (hfseq.CnnForCausalLM, {"architecture": "parallel"}),
    (
        hfseq.CnnForConditionalGeneration,
        {"architecture": "gated", "attention_position": "before_residual", "decoder_conv_layers": [[24, 2], [32, 3]]},
    ),
    (hfseq.LstmForConditionalGeneration, {"attention_type": "additive", "input_feeding": True, "coverage": True}),
    (hfseq.GruForConditionalGeneration, {"attention_type": "dot", "encoder_layers": 1, "decoder_layers": 3}),
    (hfseq.QrnnForConditionalGeneration, {"bridge": "copy", "residual_blocks": True}),
    (hfseq.GruForConditionalGeneration, {"bridge": "last", "attention_type": "none", "decoder_layers": 3}),
    (
        hfseq.LstmForConditionalGeneration,
        {"bridge": "linear", "decoder_hidden_size": 20, "attention_bias": True, "attention_activation": "none"},
    ),
    (
        hfseq.RnnForConditionalGeneration,
        {"tie_word_embeddings": False, "share_encoder_decoder_embeddings": False, "lm_head_bias": True},
    ),
]


@pytest.fixture(scope="module")
def tokenizers():
    texts = ["a b c d e f g h"] * 2
    return {
        characters: train_tokenizer(texts, model="word", vocab_size=20, characters=characters)
        for characters in (False, True)
    }


def saved(model_class, directory, tokenizers, **fields):
    """A model with random weights, large enough to tell its outputs apart, and its tokenizer, in a directory."""
    torch.manual_seed(0)
    tokenizer = tokenizers["char_encoder" in fields]
    sizes = {"hidden_size": 32, "embedding_size": 12, "num_hidden_layers": 2, "num_labels": 3}
    config = model_class.config_class(vocab_size=len(tokenizer), initializer_range=1.0, **(sizes | fields))
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        if name == "lm_head.bias":
            torch.nn.init.normal_(parameter)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model, tokenizer


@pytest.fixture(scope="module")
def exported(tokenizers, tmp_path_factory):
    """Puts a model and its graphs into `model` and `onnx` of a folder; each is made once."""
    made = {}

    def put(model_class, folder, **fields):
        key = model_class, repr(fields)
        if key not in made:
            root = tmp_path_factory.mktemp("export")
            pair = saved(model_class, root / "model", tokenizers, **fields)
            export_onnx(root / "model", root / "onnx")
            made[key] = root, pair
        root, pair = made[key]
        shutil.copytree(root, folder, dirs_exist_ok=True)
        return pair

    return put


def batches(model):
    """Inputs of several shapes, padded on both sides and inside."""
    rng = torch.Generator().manual_seed(1)
    for batch, length in ((1, 1), (2, 5), (3, 13), (4, 2)):
        ids = torch.randint(4, model.config.vocab_size, (batch, length), generator=rng)
        mask = (torch.rand(batch, length, generator=rng) > 0.3).long()
        mask[:, length // 2] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if model.config.char_encoder is not None:
            inputs["char_ids"] = torch.randint(0, 12, (batch, length, 1 + length % 4), generator=rng)
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.randint(4, model.config.vocab_size, (batch, 3), generator=rng)
        yield inputs


@pytest.mark.parametrize(
    ("model_class", "fields"),
    [*((model_class, {}) for model_class in CLASSES), *VARIANTS],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value) or "plain",
)
@torch.no_grad()
def test_a_graph_equals_its_model_at_any_length(model_class, fields, exported, tmp_path):
    model, _ = exported(model_class, tmp_path, **fields)
    runner, _ = load_onnx(tmp_path / "onnx", threads=1)
    for inputs in batches(model):
        expected, found = model(**inputs)[0], runner(**inputs)[0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 1e-3


@pytest.mark.parametrize(
    ("model_class", "beams"),
    [*product([model for model in CLASSES if model.__name__.endswith(("CausalLM", "Generation"))], (1, 3))],
)
def test_generate_gives_what_the_model_does(model_class, beams, exported, tmp_path):
    model, tokenizer = exported(model_class, tmp_path)
    runner, loaded = load_onnx(tmp_path / "onnx", threads=1)
    inputs = loaded(["a b c", "d e f g h a"], padding=True, padding_side="left", return_tensors="pt")
    options = {"min_new_tokens": 8, "max_new_tokens": 8, "num_beams": beams, "num_return_sequences": beams}
    options |= {"return_dict_in_generate": True, "output_scores": True, "do_sample": False}
    expected, found = model.generate(**inputs, **options), runner.generate(**inputs, **options)
    assert torch.equal(expected.sequences, found.sequences)
    for one, other in zip(expected.scores, found.scores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    # In the loop of hfseq.
    options["return_dict_in_generate"] = False
    assert runner.generate(**inputs, **options).tolist() == expected.sequences.tolist()


@pytest.mark.parametrize(("name", "sources"), [("sequences", 2), ("batch", 6)], ids=["now", "earlier"])
def test_beams_share_the_source_if_the_graph_lets_them(name, sources, exported, tmp_path, monkeypatch):
    """In earlier exports all inputs of the decoder had one batch."""
    exported(hfseq.LstmForConditionalGeneration, tmp_path)
    path = tmp_path / "onnx" / "decoder.onnx"
    graph = onnx.load(path)
    for one in graph.graph.input:
        axis = one.type.tensor_type.shape.dim[0]
        axis.dim_param = name if axis.dim_param == "sequences" else axis.dim_param
    onnx.save(graph, path)
    runner, loaded = load_onnx(tmp_path / "onnx", threads=1)
    rows, run = set(), runner.run

    def record(graph, inputs):
        rows.add((graph, len(inputs["attention_mask"]), len(inputs.get("decoder_input_ids", ()))))
        return run(graph, inputs)

    inputs = loaded(["a b c", "d e f g h a"], padding=True, return_tensors="pt")
    options = {"min_new_tokens": 4, "max_new_tokens": 4, "num_beams": 3}
    expected = GenerationMixin.generate(runner, **inputs, **options)
    monkeypatch.setattr(runner, "run", record)
    assert runner.generate(**inputs, **options).tolist() == expected.tolist()
    assert rows == {("encoder", 2, 0), ("start", 2, 0), ("decoder", 2, 2), ("decoder", sources, 6)}


def test_a_cached_state_goes_on(exported, tmp_path):
    model, _ = exported(hfseq.GruForCausalLM, tmp_path)
    runner, _ = load_onnx(tmp_path / "onnx", threads=1)
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    whole = runner(ids).logits
    first = runner(ids[:, :2], use_cache=True)
    rest = runner(ids[:, 2:], cache=first.cache)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], dim=1), whole)
    with pytest.raises(ValueError, match="belongs to another model"):
        model(ids, cache=first.cache, use_cache=True)


@pytest.mark.parametrize(
    ("model_class", "task", "options"),
    [
        (hfseq.LstmForSequenceClassification, "text-classification", {"top_k": None}),
        (hfseq.GruForTokenClassification, "token-classification", {}),
        (hfseq.LstmForConditionalGeneration, "translation", {"num_beams": 3, "max_new_tokens": 6}),
        (hfseq.CnnForConditionalGeneration, "summarization", {"max_new_tokens": 6}),
        (hfseq.RnnForCausalLM, "text-generation", {"max_new_tokens": 6, "do_sample": False}),
    ],
)
def test_pipelines_take_a_runner(model_class, task, options, exported, tmp_path):
    model, tokenizer = exported(model_class, tmp_path)
    runner, loaded = load_onnx(tmp_path / "onnx", threads=1)
    expected = pipeline(task, model=model, tokenizer=tokenizer, device="cpu")("a b c", **options)
    found = pipeline(task, model=runner, tokenizer=loaded, device="cpu")("a b c", **options)
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key] == (pytest.approx(value, abs=1e-4) if key == "score" else value)


# What cannot be, and what is broken.


@pytest.mark.parametrize(
    ("model_class", "fields", "message"),
    [
        (hfseq.LstmForConditionalGeneration, {"pointer_generator": True, "unk_token_id": 3}, "a pointer-generator"),
        (hfseq.GruForCausalLM, {"add_cross_attention": True}, "a decoder alone"),
    ],
)
def test_what_has_no_graph(model_class, fields, message, tokenizers, tmp_path):
    saved(model_class, tmp_path / "model", tokenizers, **fields)
    with pytest.raises(InputError, match=message):
        export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_transformer_is_for_others(tokenizers):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    with pytest.raises(InputError, match="BertModel is not a model of hfseq"):
        graphs_of(BertModel(BertConfig(vocab_size=9, **sizes)))


def test_a_graph_that_differs_is_not_kept(exported, tmp_path, monkeypatch):
    exported(hfseq.GruModel, tmp_path)
    before = (tmp_path / "onnx" / "model.onnx").read_bytes()
    real = export.run_session

    def wrong(session, inputs):
        return {name: value + np.float32(1e-3) for name, value in real(session, inputs).items()}

    monkeypatch.setattr(export, "run_session", wrong)
    with pytest.raises(RuntimeError, match="the graph model differs from the model by 0.001"):
        export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert (tmp_path / "onnx" / "model.onnx").read_bytes() == before


def test_a_graph_without_numbers_is_not_kept(tokenizers, tmp_path):
    model, _ = saved(hfseq.GruForSequenceClassification, tmp_path / "model", tokenizers)
    model.classifier.bias.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(RuntimeError, match="differs from the model by nan"):
        export_onnx(tmp_path / "model", tmp_path / "onnx")


def test_large_values_may_differ_by_a_share(tokenizers, tmp_path):
    model, _ = saved(hfseq.LstmForSequenceClassification, tmp_path / "model", tokenizers, num_labels=1)
    model.classifier.weight.data.mul_(1e5)
    model.save_pretrained(tmp_path / "model")
    export_onnx(tmp_path / "model", tmp_path / "onnx")
    runner, _ = load_onnx(tmp_path / "onnx", threads=1)
    inputs = next(batches(model))
    torch.testing.assert_close(runner(**inputs).logits, model(**inputs).logits, atol=0, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_exported_and_quantized_in_float32(dtype, tokenizers, tmp_path):
    model, tokenizer = saved(hfseq.LstmForCausalLM, tmp_path / "model", tokenizers)
    model.to(dtype).save_pretrained(tmp_path / "model")
    export_onnx(tmp_path / "model", tmp_path / "onnx")
    runner, _ = load_onnx(tmp_path / "onnx", threads=1)
    inputs = tokenizer("a b c", return_tensors="pt")
    expected = model.float()(**inputs).logits
    torch.testing.assert_close(runner(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    quantize_onnx(tmp_path / "onnx", tmp_path / "int8")
    runner, _ = load_onnx(tmp_path / "int8", threads=1)
    assert (runner(**inputs).logits - expected).norm() < 0.15 * expected.norm()


def test_runners_refuse_what_models_refuse(tokenizers, tmp_path):
    ids = torch.tensor([[4, 5, 6, 7]])
    for model_class in (hfseq.GruForCausalLM, hfseq.GruForSequenceClassification, hfseq.GruForConditionalGeneration):
        saved(model_class, tmp_path / "model", tokenizers)
        export_onnx(tmp_path / "model", tmp_path / model_class.__name__)
        runner, _ = load_onnx(tmp_path / model_class.__name__, threads=1)
        more = {"decoder_input_ids": ids} if runner.config.is_encoder_decoder else {}
        assert torch.equal(runner(ids.int(), **more).logits, runner(ids, **more).logits)
        for wrong, message in (
            ({"input_ids": ids, "attention_mask": torch.ones(1, 2)}, "attention_mask has shape"),
            ({"input_ids": ids - 5}, "the vocabulary has 0 to"),
            ({"input_ids": ids + 50}, "the vocabulary has 0 to"),
            ({"input_ids": ids[:, :0]}, "with at least one step"),
            ({"input_ids": ids, "labels": ids}, "take no labels"),
        ):
            with pytest.raises(ValueError, match=message):
                runner(**(more | wrong))
    # Even where something else is missing, too.
    with pytest.raises(ValueError, match="take no labels"):
        runner(ids, labels=ids)
    padded = {"decoder_input_ids": ids, "decoder_attention_mask": torch.tensor([[0, 1, 1, 1]])}
    with pytest.raises(ValueError, match="do not support padding"):
        runner(ids, **padded)
    whole = runner(ids, decoder_input_ids=ids).logits
    encoded = (runner.get_encoder()(ids)["last_hidden_state"],)
    assert torch.equal(runner(encoder_outputs=encoded, decoder_input_ids=ids).logits, whole)


def test_folders(tokenizers, tmp_path):
    saved(hfseq.GruModel, tmp_path / "model", tokenizers)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(InputError, match="has other files"):
        export_onnx(tmp_path / "model", tmp_path / "mine")
    for function in (load_onnx, lambda folder: quantize_onnx(folder, tmp_path / "new")):
        with pytest.raises(InputError, match="has no onnx.json"):
            function(tmp_path / "model")
    with pytest.raises(InputError, match="notes is a file"):
        export_onnx(tmp_path / "model", tmp_path / "mine" / "notes")
    with pytest.raises(InputError, match="has other files"):
        export_onnx(tmp_path / "model", tmp_path / "model")
    export_onnx(tmp_path / "model", tmp_path / "onnx")
    quantize_onnx(tmp_path / "onnx", tmp_path / "onnx")
    export_onnx(tmp_path / "model", tmp_path / "onnx")
    with pytest.raises(InputError, match="has other files"):
        quantize_onnx(tmp_path / "onnx", tmp_path / "mine")
    (tmp_path / "onnx" / "notes").write_text("mine")
    with pytest.raises(InputError, match="has other files: notes"):
        export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert (tmp_path / "mine" / "notes").read_text() == "mine"
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="model.onnx is damaged"):
        load_onnx(tmp_path / "onnx")


def test_what_is_broken_is_one_line(tokenizers, tmp_path):
    saved(hfseq.GruModel, tmp_path / "model", tokenizers)
    with pytest.raises(InputError, match="opset=9: the graphs need operators of version 13 or newer"):
        export_onnx(tmp_path / "model", tmp_path / "onnx", opset=9)
    export_onnx(tmp_path / "model", tmp_path / "onnx", opset=13)
    load_onnx(tmp_path / "onnx")
    functions = (load_onnx, lambda folder: quantize_onnx(folder, tmp_path / "new"))

    def check(change, message, functions=functions):
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
        shutil.copytree(tmp_path / "onnx", tmp_path / "broken")
        change(tmp_path / "broken")
        for function in functions:
            with pytest.raises(InputError, match=message):
                function(tmp_path / "broken")

    over = [*functions, lambda folder: export_onnx(tmp_path / "model", folder)]
    check(lambda folder: (folder / "onnx.json").write_text("{"), "onnx.json: not JSON", over)
    check(lambda folder: (folder / "onnx.json").write_text("{}"), "onnx.json: 'graphs' is missing")
    check(lambda folder: (folder / "model.onnx").unlink(), "model.onnx is missing")
    check(lambda folder: (folder / "config.json").write_text("{"), "broken", [load_onnx])
    check(lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "broken", [load_onnx])


def test_a_runner_is_not_trained_or_saved(exported, tmp_path):
    exported(hfseq.GruForTokenClassification, tmp_path, char_encoder="cnn", char_vocab_size=12)
    runner, _ = load_onnx(tmp_path / "onnx", threads=1)
    ids = torch.tensor([[4, 5]])
    with pytest.raises(ValueError, match="take no labels"):
        runner(ids, char_ids=torch.ones(1, 2, 3).long(), labels=ids)
    with pytest.raises(ValueError, match="needs char_ids"):
        runner(ids)
    with pytest.raises(ValueError, match="copy its folder"):
        runner.save_pretrained(tmp_path / "again")


# int8


def products(path):
    """Each product of a graph whose weights are integers: the weights `[..., K, N]`, their zero points and scales."""
    model = onnx.load(path)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DynamicQuantizeLSTM":
            for weight, scale, zero in ((1, 8, 9), (2, 10, 11)):
                yield tuple(tensors[node.input[number]] for number in (weight, zero, scale))
        elif "Integer" in node.op_type or node.op_type.startswith(("DynamicQuantize", "QLinear")):
            if node.op_type != "DynamicQuantizeLinear":
                assert node.op_type == "MatMulInteger"
                weight, zero = node.input[1], node.input[3]
                yield tensors[weight], tensors[zero], tensors[weight.removesuffix("_quantized") + "_scale"]


def check_seven_bits(folder):
    """No product of a graph saturates on a CPU that adds pairs of products in 16 bits; returns how many there are."""
    count = 0
    for path in folder.glob("*.onnx"):
        for tensor in onnx.load(path).graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.ndim > 1 and values.dtype == np.int8:
                assert -64 <= values.min() and values.max() <= 64, (path.name, tensor.name)
            elif values.ndim > 1 and values.dtype == np.uint8:
                assert values.max() <= 127, (path.name, tensor.name)
        for weights, zeros, scales in products(path):
            assert weights.dtype == np.int8 and not zeros.any()
            assert scales.size == weights.shape[-1] == scales.shape[-1]
            assert abs(weights.astype(int)).max(axis=-2).min() == 64  # each output has its own scale
            pairs = abs(weights.astype(int))
            pairs = pairs[..., : weights.shape[-2] // 2 * 2, :].reshape(*weights.shape[:-2], -1, 2, weights.shape[-1])
            assert (255 * pairs.sum(axis=-2) < 2**15).all()
            count += 1
    return count


# Operators with weights: those of each cell in both stacks of a translator, of LSTM in every head, and of the variants
# that multiply by matrices of their own.
MULTIPLYING = {"char_encoder", "adaptive_softmax_cutoffs", "conv_layers", "decoder_conv_layers", "coverage"}
QUANTIZED = [
    *((model, {}) for model in CLASSES if model.__name__.startswith("Lstm") or model.__name__.endswith("Generation")),
    (hfseq.CnnForSequenceClassification, {}),
    *((model, fields) for model, fields in VARIANTS if not MULTIPLYING.isdisjoint(fields)),
]


@pytest.mark.parametrize(
    ("model_class", "fields"),
    QUANTIZED,
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value) or "plain",
)
@torch.no_grad()
def test_int8_is_near_and_says_what_it_covers(model_class, fields, exported, tmp_path):
    model, _ = exported(model_class, tmp_path, **fields)
    report = quantize_onnx(tmp_path / "onnx", tmp_path / "int8")
    runner, _ = load_onnx(tmp_path / "int8", threads=1)
    for inputs in batches(model):
        expected, valid = model(**inputs)[0], inputs["attention_mask"].bool()
        if model.config.is_encoder_decoder or expected.dim() == 2:
            valid = slice(None)
        difference = (runner(**inputs)[0] - expected)[valid]
        assert difference.norm() < 0.15 * expected[valid].norm()
    about = json.loads((tmp_path / "int8" / "onnx.json").read_text())
    assert about["int8"] == report
    last = report[about["graphs"][-1]]
    assert 0 < last["median difference"] <= quantization.TOLERANCE
    assert last["median difference"] <= last["largest difference"]
    counts = Counter()
    for graph in report.values():
        counts.update({kind: count for kind, count in graph.items() if not kind.endswith("difference")})
    assert counts["int8 embedding"]
    family = model.config.family
    if family in ("Gru", "Rnn"):
        assert counts[f"fp32 {family.upper()}"]
    if family == "Lstm":
        # A language model's weights have a column for padding, which is computed and would not fit in 8 bits.
        assert counts["fp32 LSTM" if model_class.__name__.endswith("CausalLM") else "int8 LSTM"]
    assert check_seven_bits(tmp_path / "int8") == 2 * counts["int8 LSTM"] + counts["int8 MatMul"]
    sizes = [sum(path.stat().st_size for path in (tmp_path / name).glob("*.onnx")) for name in ("onnx", "int8")]
    assert sizes[1] < sizes[0] or counts["fp32 LSTM"] or family != "Lstm"


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def spoil(monkeypatch, change):
    """Has `change` made to each graph, by its name, after it was quantized."""
    real = onnxruntime.quantization.quantize_dynamic

    def quantize(model, path, **options):
        real(model, path, **options)
        model = onnx.load(path)
        change(path.stem, model)
        onnx.save(model, path)

    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", quantize)


@pytest.mark.parametrize(
    ("model_class", "graph"),
    [
        (hfseq.LstmModel, "model"),
        (hfseq.LstmForSequenceClassification, "model"),
        (hfseq.LstmForTokenClassification, "model"),
        (hfseq.GruForCausalLM, "decoder"),
        *((hfseq.LstmForConditionalGeneration, graph) for graph in ("encoder", "start", "decoder")),
    ],
)
def test_int8_that_is_far_off_is_refused(model_class, graph, exported, tmp_path, monkeypatch):
    exported(model_class, tmp_path)
    before = everything(tmp_path / "onnx")

    def doubled(name, model):
        for tensor in model.graph.initializer:
            if name == graph and tensor.name.endswith("_scale"):
                tensor.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(tensor), tensor.name))

    spoil(monkeypatch, doubled)
    for out in ("onnx", "new"):
        with pytest.raises(
            InputError, match="onnx: the outputs in int8 have a median .* more than 0.1; use the float32 graphs"
        ):
            quantize_onnx(tmp_path / "onnx", tmp_path / out)
    assert everything(tmp_path / "onnx") == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("model_class", [model for model in CLASSES if model.__name__.startswith("Lstm")])
def test_int8_is_compared_with_padding(model_class, exported, tmp_path, monkeypatch):
    exported(model_class, tmp_path)
    plain, unmasked = (load_onnx(tmp_path / "onnx", threads=1)[0] for _ in range(2))
    assert quantization.relative_differences(plain, unmasked) == (0.0, 0.0)
    run = unmasked.run

    def blind(graph, inputs):
        return run(graph, {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])})

    monkeypatch.setattr(unmasked, "run", blind)
    assert quantization.relative_differences(plain, unmasked)[0] > quantization.TOLERANCE


def test_a_decoder_is_compared_after_its_own_states(tokenizers, tmp_path, monkeypatch):
    for model_class in (hfseq.GruForCausalLM, hfseq.GruForConditionalGeneration):
        saved(model_class, tmp_path / "model", tokenizers)
        export_onnx(tmp_path / "model", tmp_path / model_class.__name__)
        plain, stuck = (load_onnx(tmp_path / model_class.__name__, threads=1)[0] for _ in range(2))
        run = stuck.run

        def forgetful(graph, inputs, run=run):
            outputs = run(graph, inputs)
            kept = {f"new_{name}": inputs[name] for name in inputs if name.startswith("state_")}
            return outputs | (kept if graph == "decoder" else {})

        monkeypatch.setattr(stuck, "run", forgetful)
        assert quantization.relative_differences(plain, stuck)[0] > quantization.TOLERANCE


def test_relative_differences_by_hand():
    class Fixed:
        config = GruConfig(vocab_size=9)

        def __init__(self, logits):
            self.logits = logits

        def can_generate(self):
            return False

        def __call__(self, input_ids, attention_mask):
            return (self.logits,)

    right = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    found = torch.tensor([[3.0, 4.5], [0.0, 2.1], [1.0, 3.0]])  # off by 0.1, 0.05 and 3 of their size
    differences = quantization.relative_differences(Fixed(right), Fixed(found))
    assert differences == (pytest.approx(0.1), pytest.approx(3.0))
    found[1, 0] = float("nan")
    assert all(map(math.isnan, quantization.relative_differences(Fixed(right), Fixed(found))))


def test_int8_is_made_of_float32_and_of_the_export_alone(exported, tmp_path):
    exported(hfseq.LstmForTokenClassification, tmp_path)
    names = {path.name for path in (tmp_path / "onnx").iterdir()}
    (tmp_path / "onnx" / "notes.txt").write_text("mine")
    quantize_onnx(tmp_path / "onnx", tmp_path / "int8")
    assert {path.name for path in (tmp_path / "int8").iterdir()} == names
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == names | {"notes.txt"}
    before = everything(tmp_path / "int8")
    with pytest.raises(InputError, match="int8/model.onnx is quantized to int8 already"):
        quantize_onnx(tmp_path / "int8", tmp_path / "int8")
    assert everything(tmp_path / "int8") == before


@pytest.mark.parametrize("model_class", [hfseq.LstmModel, hfseq.GruForCausalLM])
def test_int8_of_8_bits_is_reported(model_class, exported, tmp_path, caplog):
    """`quantize_onnx` once wrote such graphs, without a report in onnx.json."""
    exported(model_class, tmp_path)
    quantize_onnx(tmp_path / "onnx", tmp_path / "int8")
    for folder in ("onnx", "int8"):
        load_onnx(tmp_path / folder)
    assert not caplog.records
    about = json.loads((tmp_path / "int8" / "onnx.json").read_text())
    (tmp_path / "int8" / "onnx.json").write_text(json.dumps({key: about[key] for key in about if key != "int8"}))
    for graph in about["graphs"]:
        onnxruntime.quantization.quantize_dynamic(
            tmp_path / "onnx" / f"{graph}.onnx",
            tmp_path / "int8" / f"{graph}.onnx",
            op_types_to_quantize=["LSTM", "MatMul", "Gather"],
            weight_type=onnxruntime.quantization.QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    caplog.clear()
    load_onnx(tmp_path / "int8")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{tmp_path / 'int8'}: 8-bit weights") and said.endswith(
        "quantize the float32 export again"
    )


@pytest.mark.parametrize("model_class", [hfseq.GruForCausalLM, hfseq.LstmForConditionalGeneration])
def test_caches_of_attention_are_refused_as_by_the_model(model_class, exported, tmp_path):
    model, tokenizer = exported(model_class, tmp_path)
    runner, _ = load_onnx(tmp_path / "onnx", threads=1)
    inputs = tokenizer(["a b"], return_tensors="pt")
    config = GenerationConfig(cache_implementation="static", max_new_tokens=2)
    for one in (model, runner):
        for asked in ({"cache_implementation": "static"}, {"cache_implementation": "quantized"}):
            with pytest.raises(ValueError, match="has one size, however long the text"):
                one.generate(**inputs, max_new_tokens=2, **asked)
        with pytest.raises(ValueError, match="has one size, however long the text"):
            one.generate(**inputs, generation_config=config)
    assert torch.equal(
        runner.generate(**inputs, max_new_tokens=2, cache_implementation="dynamic"),
        model.generate(**inputs, max_new_tokens=2),
    )


def test_the_advice_of_onnxruntime_alone_is_kept_back(exported, tmp_path, monkeypatch, caplog):
    exported(hfseq.GruModel, tmp_path)
    spoil(monkeypatch, lambda name, model: logging.warning("something else"))
    quantize_onnx(tmp_path / "onnx", tmp_path / "int8")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_warnings_of_the_exporter_alone_are_kept_back(tokenizers, tmp_path, monkeypatch):
    saved(hfseq.LstmForSequenceClassification, tmp_path / "model", tokenizers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(tmp_path / "model", tmp_path / "onnx")
    real = torch.onnx.export

    def warn(*args, **kwargs):
        warnings.warn("of the model", UserWarning, stacklevel=1)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", warn)
    with pytest.warns(UserWarning, match="of the model"):
        export_onnx(tmp_path / "model", tmp_path / "onnx")


# Names in onnx.json: none leads out of the folder.

BAD_NAMES = [
    "../victim.json",
    "..",
    "",
    "sub/victim.json",
    "C:victim.json",
    "..\\victim.json",
    "a\0.json",
    "a\n.json",
    5,
]
BAD_NAMES += [None, ["x.json"], "thesis.docx", "link.json"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_files_of_an_export_are_its_own(name, exported, tmp_path):
    exported(hfseq.GruModel, tmp_path)
    folder = tmp_path / "onnx"
    shutil.copytree(folder, tmp_path / "other")
    (folder / "sub").mkdir()
    victims = [tmp_path / "victim.json", folder / "sub" / "victim.json", folder / "thesis.docx"]
    for victim in victims:
        victim.write_text("mine")
    (folder / "link.json").symlink_to(victims[0])
    about = json.loads((folder / "onnx.json").read_text())
    for more in ([name], [name, str(tmp_path / "victim.json")]):
        (folder / "onnx.json").write_text(json.dumps(about | {"files": about["files"] + more}))
        for function in (
            lambda: export_onnx(tmp_path / "model", folder),
            lambda: quantize_onnx(folder, folder),
            lambda: quantize_onnx(tmp_path / "other", folder),
            lambda: quantize_onnx(folder, tmp_path / "new"),
        ):
            with pytest.raises(InputError, match=re.escape(f"onnx.json: {name!r} ")):
                function()
    assert all(victim.read_text() == "mine" for victim in victims)
    assert (folder / "model.onnx").is_file() and (folder / "link.json").is_symlink()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["../other/model", "sub/model", "C:model", "link", 5, None, ["model"]], ids=repr)
def test_graphs_of_an_export_are_its_own(name, exported, tmp_path):
    exported(hfseq.GruModel, tmp_path)
    shutil.copytree(tmp_path / "onnx", tmp_path / "other")
    (tmp_path / "onnx" / "link.onnx").symlink_to(tmp_path / "other" / "model.onnx")
    about = json.loads((tmp_path / "onnx" / "onnx.json").read_text())
    (tmp_path / "onnx" / "onnx.json").write_text(json.dumps(about | {"graphs": [name]}))
    shown = f"{name}.onnx" if isinstance(name, str) else name
    for function in (load_onnx, lambda folder: quantize_onnx(folder, tmp_path / "new")):
        with pytest.raises(InputError, match=re.escape(f"onnx.json: {shown!r} ")):
            function(tmp_path / "onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"model.onnx": 1}}, "'files' is a dict, not a list"),
        ({"files": "model.onnx"}, "'files' is a str, not a list"),
        ({"graphs": {"model": 1}}, "'graphs' is a dict, not a list"),
        ({"graphs": 1}, "'graphs' is a int, not a list"),
        ({"head": ["Model"]}, "'head' is a list, not a str"),
        ({"states": []}, "'states' is a list, not a dict"),
        ({"states": {"state_0": {"shape": "x", "dtype": "float32"}}}, "the state 'state_0' is {'shape': 'x'"),
        ({"states": {"state_0": {"shape": [2.5], "dtype": "float32"}}}, "not a shape and type"),
        ({"states": {"state_0": {"shape": [2], "dtype": []}}}, "not a shape and type"),
        ({"memories": None}, "'memories' is a NoneType, not a list"),
    ],
    ids=str,
)
def test_other_types_in_onnx_json_are_one_line(change, message, exported, tmp_path):
    exported(hfseq.GruForCausalLM, tmp_path)
    about = json.loads((tmp_path / "onnx" / "onnx.json").read_text())
    (tmp_path / "onnx" / "onnx.json").write_text(json.dumps(about | change))
    functions = [lambda: quantize_onnx(tmp_path / "onnx", tmp_path / "new")]
    if "files" in change:
        functions.append(lambda: export_onnx(tmp_path / "model", tmp_path / "onnx"))
    else:
        functions.append(lambda: load_onnx(tmp_path / "onnx"))
    for function in functions:
        with pytest.raises(InputError, match=re.escape(message)) as error:
            function()
        assert "\n" not in str(error.value)


def test_a_link_or_folder_in_the_place_of_a_file_is_not_written_through(exported, tmp_path):
    exported(hfseq.GruModel, tmp_path)
    (tmp_path / "onnx" / "config.json").unlink()
    (tmp_path / "onnx" / "config.json").symlink_to("gone.json")
    export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert not (tmp_path / "onnx" / "config.json").is_symlink() and not (tmp_path / "onnx" / "gone.json").exists()
    (tmp_path / "onnx" / "config.json").unlink()
    (tmp_path / "onnx" / "config.json").symlink_to(tmp_path / "victim.json")
    with pytest.raises(InputError, match="'config.json' is a link that leads out of its folder"):
        export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert not (tmp_path / "victim.json").exists()
    (tmp_path / "onnx" / "config.json").unlink()
    (tmp_path / "onnx" / "config.json").mkdir()
    with pytest.raises(InputError, match="has other files: config.json"):
        export_onnx(tmp_path / "model", tmp_path / "onnx")


def test_what_an_export_writes(exported, tmp_path):
    exported(hfseq.LstmForConditionalGeneration, tmp_path)
    names = {path.name for path in (tmp_path / "onnx").iterdir()}
    graphs = {"encoder.onnx", "start.onnx", "decoder.onnx"}
    assert names >= graphs | {"onnx.json", "config.json", "generation_config.json", "tokenizer.json"}
    about = json.loads((tmp_path / "onnx" / "onnx.json").read_text())
    assert about["graphs"] == ["encoder", "start", "decoder"] and len(about["states"]) == 4

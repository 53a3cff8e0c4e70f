"""Fuzzing of configurations, recipe arguments (both work or are rejected) and tokenizers, which accept any text.

See `test_fuzzing.py`.
"""

import contextlib
import dataclasses
import json
import os
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from fuzzing import fuzz, texts
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st
from recipe_runs import ROOT, load
from test_tokenization import normalised
from token_classes import MODEL_CLASSES
from transformers import AutoConfig, AutoTokenizer

from hfseq.errors import InputError
from hfseq.tokenization import MODELS, NORMALIZATIONS, train_tokenizer
from hfseq.training.cli import explicit_values, parse_config

# Configurations

SMALL = st.integers(1, 12)
SHARE = st.sampled_from([0, 0.0, 0.3, 0.99])
FLAG = st.booleans()
TOKEN = st.none() | st.integers(0, 12)
CONV_LAYERS = st.lists(
    st.tuples(st.sampled_from([3, 4, 6]), st.integers(1, 3), st.integers(0, 2)).map(list), min_size=1, max_size=3
)
FIELDS = {
    **dict.fromkeys(
        ["vocab_size", "hidden_size", "char_vocab_size", "char_embedding_size", "char_hidden_size"], SMALL
    ),
    **dict.fromkeys(["embedding_size", "cross_attention_hidden_size", "input_filters"], st.none() | SMALL),
    "num_hidden_layers": st.integers(1, 3),
    **dict.fromkeys(["encoder_layers", "decoder_layers"], st.none() | st.integers(1, 3)),
    **dict.fromkeys(["char_kernel_size", "kernel_size", "input_kernel_size", "dilation_base"], st.integers(1, 4)),
    **dict.fromkeys(["dropout", "embedding_dropout", "weight_dropout"], SHARE),
    "classifier_dropout": st.none() | SHARE,
    **dict.fromkeys(["activation_regularization", "temporal_activation_regularization"], st.sampled_from([0, 2.0])),
    "coverage_loss_weight": st.sampled_from([0, 1.0]),
    **dict.fromkeys(["variational_dropout", "crf", "add_cross_attention", "tie_word_embeddings", "use_cache"], FLAG),
    **dict.fromkeys(["share_encoder_decoder_embeddings", "input_feeding", "layer_norm", "pointer_generator"], FLAG),
    **dict.fromkeys(["conv_layers", "decoder_conv_layers"], st.none() | CONV_LAYERS),
    "output_size": st.none() | SMALL,
    "input_projection": FLAG,
    "attention_position": st.sampled_from(["after_residual", "before_residual"]),
    **dict.fromkeys(["coverage", "lm_head_bias", "is_encoder_decoder", "output_hidden_states"], FLAG),
    "bidirectional": st.none() | FLAG,
    "pooling": st.sampled_from(["last", "middle", "mean", "max", "concat", "attention"]),
    "char_encoder": st.sampled_from([None, "cnn", "lstm"]),
    "attention_type": st.sampled_from(["additive", "dot", "general"]),
    "hidden_act": st.sampled_from(["tanh", "relu"]),
    "architecture": st.sampled_from([None, "parallel", "residual", "gated", "convs2s"]),
    "kernel_sizes": st.lists(st.integers(1, 5), min_size=1, max_size=3),
    "adaptive_softmax_cutoffs": st.none() | st.lists(st.integers(1, 11), min_size=1, max_size=3),
    "adaptive_softmax_div_value": st.sampled_from([1, 2, 3.5]),
    "num_negatives": st.none() | st.integers(0, 5),
    "in_batch_negatives": FLAG,
    "negative_sampling_alpha": st.sampled_from([0, 0.75, 1]),
    "sampled_loss": st.sampled_from(["sampled_softmax", "cross_entropy", "bpr_max"]),
    "score_regularization": st.sampled_from([0, 1.0]),
    "layer_sizes": st.none() | st.lists(st.sampled_from([3, 4, 6, 12]), min_size=1, max_size=2),
    "max_position_embeddings": SMALL,
    "max_norm": st.sampled_from([None, 3, 0.5]),
    "initializer_range": st.sampled_from([0.0, 0.05, 1.0]),
    **dict.fromkeys(["pad_token_id", "bos_token_id", "decoder_start_token_id", "unk_token_id"], TOKEN),
    "eos_token_id": TOKEN | st.lists(st.integers(0, 12), max_size=2),
    "num_labels": st.integers(1, 4),
    "problem_type": st.sampled_from([None, "regression", "single_label_classification", "multi_label_classification"]),
}
ODD_VALUES = st.one_of(
    st.sampled_from(
        [None, True, 0, -1, 10**9, 2**70, 0.5, 1.0, -0.5, 1e-300, 1e300, "", "last", "1", [], {}, [0], [1.5]]
    ),
    st.sampled_from([float("nan"), float("inf"), [-1], [2, 1], ["a"], {"a": 1}, [None], (1, 2), b"1", 1j]),
    texts(2),
)
# What is not allocated here.
LARGEST = 32


@st.composite
def configurations(draw, config_class):
    """Arguments of a configuration, most of them possible."""
    known = {field.name for field in dataclasses.fields(config_class)} | {"num_labels"}
    possible = {name: values for name, values in FIELDS.items() if name in known}
    sizes = {"vocab_size": st.integers(3, 12), "hidden_size": st.sampled_from([3, 4, 6, 12])}
    arguments = draw(
        st.fixed_dictionaries(sizes, optional={name: possible[name] for name in possible if name not in sizes})
    )
    # transformers checks its own fields hardly.
    own = {
        name for kind in config_class.__mro__ if kind.__module__.startswith("hfseq") for name in kind.__annotations__
    }
    odd = st.lists(st.sampled_from(sorted(own & FIELDS.keys())), max_size=draw(st.sampled_from([0, 0, 1, 2])))
    return arguments | {name: draw(ODD_VALUES) for name in draw(odd)}


def numbers_of(values):
    for value in values:
        if isinstance(value, list | tuple):
            yield from numbers_of(value)
        elif isinstance(value, int | float):
            yield value


@pytest.mark.parametrize("config_class", MODEL_CLASSES, ids=lambda kind: kind.__name__)
def test_a_configuration_works_or_is_refused(config_class, tmp_path):
    @fuzz(60)
    @given(configurations(config_class), st.sampled_from(list(MODEL_CLASSES[config_class])))
    def check(arguments, auto_class):
        try:
            config = config_class(**arguments)
        except (ValueError, TypeError, StrictDataclassError) as error:
            assert any(name in str(error) for name in FIELDS), error
            return
        assert config_class.from_dict(config.to_dict()).to_dict() == config.to_dict()
        config.save_pretrained(tmp_path)
        json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)
        assert AutoConfig.from_pretrained(tmp_path).to_dict() | {"_name_or_path": ""} == config.to_dict()
        if any(not 1e-9 < abs(number) <= LARGEST for number in numbers_of(arguments.values()) if number):
            return
        try:
            model = MODEL_CLASSES[config_class][auto_class](config)
        except ValueError as error:
            assert any(name in str(error) for name in FIELDS), error
            return
        assert type(config).from_dict(model.config.to_dict()).to_dict() == model.config.to_dict()
        check_model(model)

    check()


def check_model(model):
    """Finite values, forward and backward, of a batch with padding on both sides."""
    config = model.config
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 0]])
    inputs = {"input_ids": torch.randint(0, config.vocab_size, mask.shape), "attention_mask": mask}
    if config.char_encoder:
        inputs["char_ids"] = torch.randint(0, config.char_vocab_size, (*mask.shape, 3))
    if config.add_cross_attention:
        width = config.cross_attention_hidden_size or config.hidden_size
        inputs |= {"encoder_hidden_states": torch.randn(3, 5, width), "encoder_attention_mask": torch.ones(3, 5)}
    head = type(model).__name__.partition("For")[2]
    if head in ("CausalLM", "ConditionalGeneration"):
        inputs["labels"] = torch.randint(0, config.vocab_size, mask.shape)
    if head == "CTC":
        inputs["labels"] = torch.full((3, 1), (config.pad_token_id + 1) % config.vocab_size)
    if head == "ConditionalGeneration" and None in (config.decoder_start_token_id, config.pad_token_id):
        inputs["decoder_input_ids"] = inputs["labels"]
    if head == "TokenClassification":
        inputs["labels"] = torch.randint(0, config.num_labels, mask.shape)
        specials = np.hstack([config.pad_token_id, config.bos_token_id, config.eos_token_id])
        if config.crf and np.isin(inputs["input_ids"][mask != 0], specials).all():
            return  # no step has a label
    if head == "SequenceClassification":
        floats = (config.problem_type or "").startswith(("multi", "reg")) or config.num_labels == 1
        shape = (3, config.num_labels) if floats else (3,)
        inputs["labels"] = torch.randint(0, config.num_labels, shape).to(torch.float if floats else torch.long)
    output = model(**inputs)
    value = output.last_hidden_state.sum() if head == "" else output.loss
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


# Arguments of the recipes

RECIPES = ["translation", "sentiment", "language_modeling", "tagging"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts(2), st.sampled_from(["no", "auto", "1e-3"])
)
YAML_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(1), inner, max_size=2)
)
# Those that start something outside of this process, or say which devices there are.
NOT_TRIED = {"deepspeed", "fsdp", "fsdp_config", "local_rank", "use_cpu", "parallelism_config", "accelerator_config"}


@pytest.mark.parametrize("name", RECIPES)
def test_arguments_are_taken_or_refused(name, tmp_path):
    kinds = load(name).ARGUMENTS
    known = [field.name for kind in kinds for field in dataclasses.fields(kind) if field.name not in NOT_TRIED]
    fields = st.dictionaries(st.sampled_from(known) | texts(1), YAML_VALUES, max_size=3)
    (config,) = (ROOT / "recipes" / "configs").glob(f"{name}_demo.yaml")
    base = yaml.safe_load(config.read_text(encoding="utf-8")) | {"output_dir": str(tmp_path), "use_cpu": True}
    flags = st.lists(st.sampled_from(known).map("--{}".format) | texts(2), max_size=3)
    path = tmp_path / "config.yaml"

    @fuzz(20)
    @given(fields, flags, st.booleans(), texts() | st.just(""))
    def check(values, argv, is_whole, more):
        text = yaml.safe_dump(base | values if is_whole else values, allow_unicode=True)
        path.write_bytes(f"{text}{more}".encode())
        with mock.patch.dict(os.environ), contextlib.suppress(InputError):
            parse_config(kinds, [str(path), *argv])
        with mock.patch.dict(os.environ), contextlib.suppress(InputError):
            explicit_values(kinds, [str(path), *argv])

    check()


# Tokenizers


@pytest.mark.parametrize("model", MODELS)
def test_a_tokenizer_takes_any_text(model, tmp_path):
    @fuzz(25)
    @given(
        st.lists(texts(20), max_size=4),
        st.lists(texts(20), max_size=2),
        st.sampled_from([0, 5, 12, 30, 100, 400]),
        st.sampled_from(NORMALIZATIONS),
        st.booleans(),
        st.booleans(),
    )
    def check(seen, unseen, vocab_size, normalization, lowercase, characters):
        options = {"normalization": normalization, "lowercase": lowercase, "characters": characters}
        try:
            tokenizer = train_tokenizer(seen, model=model, vocab_size=vocab_size, **options)
        except InputError:
            return
        assert len(tokenizer) <= vocab_size
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        for text in [*seen, *unseen]:
            encoding = tokenizer(text)
            ids = encoding.input_ids
            assert loaded(text).input_ids == ids and ids[-1] == 2 and {0, 1, 2}.isdisjoint(ids[:-1])
            if characters:
                assert len(encoding.char_ids) == len(ids) and encoding.char_ids == loaded(text).char_ids
                assert all(0 < one < tokenizer.char_vocab_size for word in encoding.char_ids for one in word)
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            if 3 not in ids and not lowercase:
                form = None if normalization == "none" else normalization.upper()
                assert decoded == normalised(text.replace("▁", " "), form)
        if seen or unseen:
            batch = tokenizer([*seen, *unseen], padding=True, return_tensors="pt")
            assert batch.input_ids.shape == batch.attention_mask.shape

    check()

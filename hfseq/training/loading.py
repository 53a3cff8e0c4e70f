"""Models and tokenizers selected by a recipe's flags: a checkpoint, an ensemble, or a new model of a family."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hfseq.errors import InputError
from hfseq.inference.ensembles import load_ensemble
from hfseq.inference.loading import (
    check_characters,
    check_fields,
    check_overrides,
    head_kind,
    load_checkpoint,
    load_trained,
)
from hfseq.models import FAMILIES, is_hfseq
from hfseq.models.configuration_frames import FrameFields
from hfseq.models.configuration_prediction import DEFAULTS as PREDICTION_FIELDS
from hfseq.models.tokenization_pairs import SourceTargetTokenizer
from hfseq.processing import tokenizer_of
from hfseq.tokenization import pair_tokenizers, target_tokenizer, train_tokenizer
from hfseq.training.arguments import ModelArguments

FRAME_FIELDS = tuple(FrameFields.__annotations__)
"""Config fields of models that read frames of pixels."""
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_OF_THE_TOKENIZER = {
    *(*_TOKEN_IDS, "decoder_start_token_id", "unk_token_id"),
    *("vocab_size", "decoder_vocab_size", "char_vocab_size"),
}
"""Config fields of a new model that its tokenizer determines."""


def load_model(
    auto_class: Any,
    args: ModelArguments,
    texts: Iterable[str] | None,
    *,
    default_type: str,
    tokenizer: Any = None,
    overrides: Mapping[str, Any] | None = None,
    features: bool = False,
    target_texts: Iterable[str] | None = None,
    **fields: Any,
) -> tuple[PreTrainedModel, Any, set[str]]:
    """Load a checkpoint and its processing class, or create a new model of a family and train a tokenizer.

    Args:
        auto_class: `AutoModelForSeq2SeqLM` or another Auto class with a head.
        args: Model arguments.
        texts: Texts to train a tokenizer on; may be None for a checkpoint.
        default_type: Family of a new model without `--model_type`.
        tokenizer: Tokenizer of a new model, instead of training one on `texts`; with `features` its processing class,
            or None if it has none. Of a checkpoint, one that replaces its own, with new embeddings.
        overrides: Config fields in addition to those of `args`.
        features: Whether the task has features or audio, and not text; `fields` of a new model then have
            `input_size`.
        target_texts: Texts for the target's vocabulary, if it is one of its own; `texts` are then those of the source.
        fields: Config fields determined by the data, such as `id2label`. A checkpoint whose output layer has another
            size gets a new one.

    Returns:
        The model, the tokenizer or other processing class, and the names of the parameters missing from the
        checkpoint, such as those of a new head; empty for a new model.

    Raises:
        InputError: The family is unknown or lacks the head, the checkpoint cannot be loaded or has another
            architecture, or a config field is unknown or invalid.
    """
    overrides = {**(args.config_overrides or {}), **(overrides or {})}
    mapping, kind = head_kind(auto_class)
    if fields and (taken := sorted(overrides.keys() & {*fields, "num_labels", "label2id"})):
        raise InputError(f"--config_overrides: {taken[0]} is determined by the data")
    if args.model_name_or_path is not None:
        if target_texts is not None:
            raise InputError("--separate_vocabs is for a new model: a checkpoint keeps its vocabularies; leave it out")
        found = load_checkpoint(auto_class, args.model_name_or_path, overrides, features=features, **fields)
        # A search passes on the tokenizer of the checkpoint itself.
        if tokenizer is None or features or _vocabularies(tokenizer) == _vocabularies(found[1]):
            return found
        return found[0], tokenizer, found[2] | replace_vocabulary(found[0], tokenizer)
    check_overrides(overrides, features)
    model_type = args.model_type or default_type
    ours = ", ".join(sorted(family.model_type for family in FAMILIES))
    if model_type not in CONFIG_MAPPING:
        raise InputError(f"unknown --model_type {model_type!r}; hfseq has {ours}")
    if CONFIG_MAPPING[model_type] not in mapping:
        raise InputError(f"--model_type {model_type} has no {kind}; hfseq has {ours}")
    if taken := sorted(overrides.keys() & _OF_THE_TOKENIZER):
        raise InputError(f"--config_overrides: {taken[0]} is determined by the tokenizer; see --vocab_size")
    try:
        # Built once before training the tokenizer, so that invalid fields fail early.
        usual = AutoConfig.for_model(model_type)
        more = [*(PREDICTION_FIELDS if kind == "forecaster" else ()), *(FRAME_FIELDS if features else ())]
        check_fields(usual, overrides, more)
        AutoConfig.for_model(model_type, vocab_size=args.vocab_size, **fields, **overrides)
        if tokenizer is None and not features:
            if texts is None:
                raise InputError("a new model needs training data; use --model_name_or_path for a trained one")
            options: dict[str, Any] = {"vocab_size": args.vocab_size, "normalization": args.normalization}
            options |= {"lowercase": args.lowercase, "characters": overrides.get("char_encoder") is not None}
            tokenizer = train_tokenizer(texts, model=args.tokenizer_model, **options)
            if target_texts is not None:
                target = train_tokenizer(target_texts, model=args.tokenizer_model, **options)
                tokenizer = pair_tokenizers(tokenizer, target)
        ids: dict[str, Any] = {}
        if (its_tokenizer := tokenizer_of(tokenizer)) is not None:
            check_characters(overrides.get("char_encoder"), its_tokenizer)
            ids = {"vocab_size": len(its_tokenizer), "decoder_start_token_id": its_tokenizer.bos_token_id}
            if "unk_token_id" in usual.to_dict():
                ids["unk_token_id"] = its_tokenizer.unk_token_id
            if overrides.get("char_encoder") is not None:
                ids["char_vocab_size"] = its_tokenizer.char_vocab_size
            ids |= {name: getattr(its_tokenizer, name) for name in _TOKEN_IDS}
            if isinstance(its_tokenizer, SourceTargetTokenizer):
                ids["decoder_vocab_size"] = its_tokenizer.target_vocab_size
                overrides = {"share_encoder_decoder_embeddings": False} | overrides
        config = AutoConfig.for_model(model_type, **ids, **fields, **overrides)
        return auto_class.from_config(config), tokenizer, set()
    except InputError:
        raise
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise InputError(f"--config_overrides: {shorten(str(error), 300)}") from error


def _vocabularies(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, int]]:
    """Tokens and their ids, of sources and of targets."""
    return [one.get_vocab() for one in (tokenizer, target_tokenizer(tokenizer))]


def replace_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Give a model new embeddings, drawn at random, for another vocabulary.

    Args:
        model: Model, modified in place; all its other weights stay.
        tokenizer: Tokenizer of the vocabulary.

    Returns:
        Names of the new parameters.
    """
    if isinstance(tokenizer, SourceTargetTokenizer) or is_hfseq(model.config) and model.config.decoder_vocab_size:
        raise InputError("a tokenizer or checkpoint has two vocabularies, which are not replaced; train a new model")
    try:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    except ValueError as error:
        raise InputError(f"{type(model).__name__}: {error}") from error
    modules: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    adaptive: Any = getattr(model, "adaptive_softmax", None)
    if adaptive is not None and adaptive.tails:
        modules = [modules[0], model.lm_head, *(tail[1] for tail in adaptive.tails)]
    new = {id(one.weight): one.weight for one in modules if one is not None}
    for weight in new.values():
        torch.nn.init.normal_(weight, std=getattr(model.config, "initializer_range", 0.02))
    biases = [bias for one in modules if (bias := getattr(one, "bias", None)) is not None]
    for bias in biases:
        torch.nn.init.zeros_(bias)
    new |= {id(bias): bias for bias in biases}
    for config in filter(None, (model.config, model.generation_config)):
        for name in _TOKEN_IDS:
            setattr(config, name, getattr(tokenizer, name))
    return {name for name, weight in model.named_parameters() if id(weight) in new}


def load_predictor(auto_class: Any, args: ModelArguments, *, features: bool = False) -> tuple[PreTrainedModel, Any]:
    """Load the trained model or ensemble given by the flags, and its processing class.

    Args:
        auto_class: `AutoModelForSeq2SeqLM` or `AutoModelForSequenceClassification`.
        args: Model arguments.
        features: Whether the task has features or audio, and not text.

    Raises:
        InputError: No model is given, or it cannot be loaded.
    """
    check_model(args, train=False)
    if args.ensemble:
        return load_ensemble([str(args.model_name_or_path), *args.ensemble], auto_class, features=features)
    return load_trained(auto_class, str(args.model_name_or_path), features=features)


def check_model(args: ModelArguments, *, train: bool) -> None:
    """Reject training an ensemble, prediction without a trained model, and a new model combined with a checkpoint.

    Raises:
        InputError: The flags request one of these.
    """
    if args.model_name_or_path is not None and args.model_type is not None:
        raise InputError("--model_type is for a new model; leave it out with --model_name_or_path")
    if args.word_vectors is not None:
        if args.model_name_or_path is not None:
            raise InputError("--word_vectors is for a new model; leave it out with --model_name_or_path")
        if not Path(args.word_vectors).is_file():
            raise InputError(f"--word_vectors: there is no file {args.word_vectors}")
    if train and args.ensemble:
        raise InputError("--ensemble is for prediction: use --do_predict alone, or train the members one by one")
    if not train and args.model_name_or_path is None:
        raise InputError("--do_predict without --do_train requires a trained model: give --model_name_or_path")

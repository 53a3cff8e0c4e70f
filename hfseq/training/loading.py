"""Models and tokenizers as a recipe's flags name them: a checkpoint, or a new model of a family."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hfseq.errors import InputError
from hfseq.heads import HEADS
from hfseq.models import FAMILIES, MAPPINGS
from hfseq.tokenization import train_tokenizer
from hfseq.training.arguments import ModelArguments

_HEADS: dict[Any, tuple[Any, str]] = {
    getattr(transformers, head.auto_class): (MAPPINGS[head.auto_class], head.kind) for head in HEADS
}

_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def load_model(
    auto_class: Any, args: ModelArguments, texts: Iterable[str] | None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of `load_with_new`, which takes the same."""
    return load_with_new(auto_class, args, texts, **options)[:2]


def load_trained(
    auto_class: Any, args: ModelArguments, **fields: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint to predict with, all of whose weights are trained, and its tokenizer.

    Args:
        auto_class: As for `load_with_new`.
        args: Which, by `model_name_or_path`.
        fields: Config fields that the data decide.

    Raises:
        InputError: If it lacks weights, those of the head included, or is of another kind or size; as
            `load_with_new`.
    """
    model, tokenizer, new = load_with_new(auto_class, args, None, default_type="", **fields)
    trained = model.config.architectures or []
    # A tagger and a classifier may have parameters of the same names.
    classifies = auto_class in (AutoModelForSequenceClassification, AutoModelForTokenClassification)
    if new or (classifies and type(model).__name__ not in trained):
        lost = f": it has no {shorten(', '.join(sorted(new)), 200)}" if new else ""
        raise InputError(
            f"--model_name_or_path {args.model_name_or_path}: {', '.join(trained) or 'this model'} was not trained as "
            f"a {_HEADS[auto_class][1]}{lost}"
        )
    return model, tokenizer


def load_with_new(
    auto_class: Any,
    args: ModelArguments,
    texts: Iterable[str] | None,
    *,
    default_type: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overrides: Mapping[str, Any] | None = None,
    **fields: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, set[str]]:
    """Load a checkpoint and its tokenizer, or make a new model of a family and train a tokenizer.

    Args:
        auto_class: `AutoModelForSeq2SeqLM` or another Auto class of a head.
        args: Which.
        texts: Texts to train the tokenizer on; None will do for a checkpoint.
        default_type: Family if nothing is said.
        tokenizer: Of a new model, in place of one trained on `texts`.
        overrides: Config fields beyond those of `args`.
        fields: Config fields that the data decide, such as `id2label`. A checkpoint whose output layer has another
            size gets a new one.

    Returns:
        The model, the tokenizer, and the names of the parameters that the checkpoint has not trained, such as those of
        a new head; of a new model none is named.

    Raises:
        InputError: If both or an unknown family are named, the checkpoint cannot be loaded or is of another kind, or
            a config field is unknown or impossible.
    """
    overrides = {**(args.config_overrides or {}), **(overrides or {})}
    mapping, kind = _HEADS[auto_class]
    decided = {*fields, "num_labels", "label2id"} if fields else set()
    if taken := sorted(overrides.keys() & decided):
        raise InputError(f"--config_overrides: {taken[0]} comes from the data")
    if args.model_name_or_path is not None:
        if args.model_type is not None:
            raise InputError("--model_type is for a new model; leave it out with --model_name_or_path")
        return _load_checkpoint(auto_class, args.model_name_or_path, overrides, fields)
    model_type = args.model_type or default_type
    ours = ", ".join(sorted(family.model_type for family in FAMILIES))
    if model_type not in CONFIG_MAPPING:
        raise InputError(f"unknown --model_type {model_type!r}; hfseq has {ours}")
    if CONFIG_MAPPING[model_type] not in mapping:
        raise InputError(f"--model_type {model_type} has no {kind}; hfseq has {ours}")
    if taken := sorted(overrides.keys() & {"vocab_size", "char_vocab_size", "unk_token_id", *_TOKEN_IDS}):
        raise InputError(f"--config_overrides: {taken[0]} comes from the tokenizer; --vocab_size sets its size")
    try:
        # Made once before the tokenizer, so that an impossible size does not wait for its training.
        _check_fields(AutoConfig.for_model(model_type), overrides)
        AutoConfig.for_model(model_type, vocab_size=args.vocab_size, **fields, **overrides)
        if tokenizer is None:
            if texts is None:
                raise InputError("a new model needs training data; --model_name_or_path names a trained one")
            tokenizer = train_tokenizer(
                texts,
                model=args.tokenizer_model,
                vocab_size=args.vocab_size,
                normalization=args.normalization,
                lowercase=args.lowercase,
                characters=overrides.get("char_encoder") is not None,
            )
        _check_characters(overrides.get("char_encoder"), tokenizer)
        ids = {name: getattr(tokenizer, name) for name in _TOKEN_IDS[:-1]}
        if "unk_token_id" in AutoConfig.for_model(model_type).to_dict():
            ids["unk_token_id"] = tokenizer.unk_token_id
        ids["decoder_start_token_id"] = tokenizer.bos_token_id
        if overrides.get("char_encoder") is not None:
            ids["char_vocab_size"] = tokenizer.char_vocab_size
        config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **ids, **fields, **overrides)
        return auto_class.from_config(config), tokenizer, set()
    except InputError:
        raise
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise InputError(f"--config_overrides: {shorten(str(error), 300)}") from error


def _load_checkpoint(
    auto_class: Any, name: str, overrides: dict[str, Any], fields: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, set[str]]:
    flag = f"--model_name_or_path {name}"
    mapping, kind = _HEADS[auto_class]
    try:
        config = AutoConfig.from_pretrained(name)
        _check_fields(config, overrides)
        wrong_side = auto_class is AutoModelForSeq2SeqLM and not config.is_encoder_decoder
        if wrong_side or type(config) not in mapping:
            found = ", ".join(config.architectures or [config.model_type])
            note = " (an encoder and a decoder)" if auto_class is AutoModelForSeq2SeqLM else ""
            raise InputError(f"{flag}: {found} is not a {kind}{note}")
        if (
            auto_class is AutoModelForCausalLM
            and type(config) in MODEL_FOR_MASKED_LM_MAPPING
            and not config.is_decoder
        ):
            raise InputError(
                f"{flag}: {config.model_type} reads in both directions, so it is no causal language model"
            )
        tokenizer = AutoTokenizer.from_pretrained(name)
        config = AutoConfig.from_pretrained(name, **fields, **overrides)
        options = {"ignore_mismatched_sizes": bool(fields), "output_loading_info": True}
        model, info = auto_class.from_pretrained(name, config=config, **options)
        resized = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
        if lost := sorted(key for key in resized if key.startswith(f"{model.base_model_prefix}.")):
            raise InputError(f"--config_overrides: the checkpoint's {lost[0]} has another size; it would start anew")
        _check_characters(getattr(config, "char_encoder", None), tokenizer)
        _ensure_padding(flag, model, tokenizer)
        return model, tokenizer, set(info["missing_keys"]) | resized
    except InputError:
        raise
    except (OSError, TypeError, ValueError, RuntimeError, StrictDataclassError, SafetensorError) as error:
        raise _not_loaded(name, error) from error


def _ensure_padding(flag: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a pad token, such as GPT-2's or Llama's, its end mark for one: batches need it.

    No loss counts padding and masks hide it, so that which token it is does not matter, except to classifiers that
    read the last token that is not padding (`GPT2ForSequenceClassification`): they know it by the model's config.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{flag}: its tokenizer has neither a pad token nor an end mark (eos_token) to pad with")
        tokenizer.pad_token = tokenizer.eos_token
        # What the config may say is no token that this tokenizer pads with.
        model.config.pad_token_id = None
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _check_characters(encoder: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise an `InputError` if a model reads characters that its tokenizer does not give, or the other way round."""
    if encoder is not None and not hasattr(tokenizer, "char_vocab_size"):
        raise InputError(f"--config_overrides: char_encoder={encoder!r} needs a tokenizer that gives characters")
    if encoder is None and hasattr(tokenizer, "char_vocab_size"):
        raise InputError("--config_overrides: the tokenizer gives characters, which need a char_encoder")


def _not_loaded(name: str, error: Exception) -> InputError:
    there = "" if Path(name).is_dir() else "no such directory, nor a model that the Hub or its cache gives: "
    return InputError(f"--model_name_or_path {name}: {there}{shorten(str(error), 300)}")


def _check_fields(config: PreTrainedConfig, overrides: dict[str, Any]) -> None:
    """A config takes any name, so a misspelt one would be forgotten in silence."""
    known = {*config.to_dict(), *config.attribute_map}
    for name in overrides:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
            raise InputError(f"--config_overrides: {type(config).__name__} has no field {name!r}; {hint}")


def checkpoint_classes(args: ModelArguments) -> list[str] | None:
    """The class names that a checkpoint was trained with; None for a new model, and for one that has no names.

    Raises:
        InputError: If the checkpoint cannot be loaded.
    """
    if args.model_name_or_path is None:
        return None
    try:
        config = AutoConfig.from_pretrained(args.model_name_or_path)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise _not_loaded(args.model_name_or_path, error) from error
    names = [config.id2label[index] for index in range(config.num_labels)]
    trained = any(name.endswith("Classification") for name in config.architectures or ())
    return None if not trained or names == [f"LABEL_{index}" for index in range(len(names))] else names

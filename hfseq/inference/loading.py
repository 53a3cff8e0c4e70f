"""Loading checkpoints to predict with, or to train on from, with one line for whatever is wrong."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, cast

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

from hfseq.errors import InputError
from hfseq.heads import HEADS
from hfseq.models import MAPPINGS


def head_kind(auto_class: Any) -> tuple[Any, str]:
    """Configs that have the head of an Auto class, and what such a model is called."""
    name = auto_class.__name__
    return MAPPINGS[name], next(head.kind for head in HEADS if head.auto_class == name)


def load_trained(auto_class: Any, name: str, **fields: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint to predict with, none of whose weights is new, and its tokenizer.

    Args:
        auto_class: The Auto class of the task's head.
        name: A directory or Hub name.
        fields: Config fields that the data decide.

    Raises:
        InputError: If it lacks weights, those of the head included; or as `load_checkpoint`.
    """
    model, tokenizer, new = load_checkpoint(auto_class, name, **fields)
    trained = model.config.architectures or []
    # A tagger and a classifier may have parameters of the same names.
    classifies = auto_class in (AutoModelForSequenceClassification, AutoModelForTokenClassification)
    if new or (classifies and type(model).__name__ not in trained):
        lost = f": it has no {shorten(', '.join(sorted(new)), 200)}" if new else ""
        raise InputError(
            f"--model_name_or_path {name}: {', '.join(trained) or 'this model'} was not trained as a "
            f"{head_kind(auto_class)[1]}{lost}"
        )
    return model, tokenizer


def load_checkpoint(
    auto_class: Any, name: str, overrides: Mapping[str, Any] | None = None, **fields: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, set[str]]:
    """Load a checkpoint for a task, and its tokenizer.

    Args:
        auto_class: The Auto class of the task's head.
        name: A directory or Hub name.
        overrides: Config fields to change.
        fields: Config fields that the data decide, such as `id2label`; an output layer of another size is new then.

    Returns:
        The model, the tokenizer, and the names of the parameters that the checkpoint does not have, such as those of
        a new head.

    Raises:
        InputError: It cannot be loaded, is of another kind, or a field is unknown or impossible.
    """
    flag, overrides = f"--model_name_or_path {name}", dict(overrides or {})
    mapping, kind = head_kind(auto_class)
    try:
        config = AutoConfig.from_pretrained(name)
        check_fields(config, overrides)
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
        check_characters(getattr(config, "char_encoder", None), tokenizer)
        _ensure_padding(flag, model, tokenizer)
        return model, tokenizer, set(info["missing_keys"]) | resized
    except InputError:
        raise
    except (OSError, TypeError, ValueError, RuntimeError, StrictDataclassError, SafetensorError) as error:
        raise _not_loaded(name, error) from error


def load_config(name: str) -> PreTrainedConfig:
    """Load a checkpoint's configuration.

    Raises:
        InputError: If there is none.
    """
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise _not_loaded(name, error) from error


def checkpoint_classes(name: str | None) -> list[str] | None:
    """Class names that a checkpoint was trained with; None for a new model and for one without names.

    Raises:
        InputError: If the checkpoint cannot be loaded.
    """
    if name is None:
        return None
    config = load_config(name)
    id2label = cast(dict[int, str], config.id2label)
    names = [id2label[index] for index in range(len(id2label))]
    trained = any(one.endswith("Classification") for one in config.architectures or ())
    return None if not trained or names == [f"LABEL_{index}" for index in range(len(names))] else names


def problem_of(config: PreTrainedConfig) -> Any:
    """A classifier's `problem_type`; where it is not said, one label is a regression, several exclude each other."""
    return config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")


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


def check_characters(encoder: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise an `InputError` if a model reads characters that its tokenizer does not give, or the other way round."""
    if encoder is not None and not hasattr(tokenizer, "char_vocab_size"):
        raise InputError(f"--config_overrides: char_encoder={encoder!r} needs a tokenizer that gives characters")
    if encoder is None and hasattr(tokenizer, "char_vocab_size"):
        raise InputError("--config_overrides: the tokenizer gives characters, which need a char_encoder")


def _not_loaded(name: str, error: Exception) -> InputError:
    there = "" if Path(name).is_dir() else "no such directory, nor a model that the Hub or its cache gives: "
    return InputError(f"--model_name_or_path {name}: {there}{shorten(str(error), 300)}")


def check_fields(config: PreTrainedConfig, overrides: dict[str, Any]) -> None:
    """A config takes any name, so a misspelt one would be forgotten in silence."""
    known = {*config.to_dict(), *config.attribute_map}
    for name in overrides:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
            raise InputError(f"--config_overrides: {type(config).__name__} has no field {name!r}; {hint}")

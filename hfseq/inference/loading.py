"""Loading of checkpoints for prediction or further training; failures become one-line errors."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import shorten
from typing import Any, cast

from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hfseq.errors import InputError, blaming, did_you_mean
from hfseq.heads import HEADS, will_read_text
from hfseq.models import MAPPINGS, is_hfseq
from hfseq.processing import load_processing_class, tokenizer_of

_CLASSIFYING = (AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForAudioClassification)


def head_kind(auto_class: Any) -> tuple[Any, str]:
    """Return the mapping from configs to models of an Auto class, and the name of such a model in messages."""
    name = auto_class.__name__
    return MAPPINGS[name], next(head.kind for head in HEADS if name in head.auto_classes)


def load_trained(auto_class: Any, name: str, *, features: bool = False, **fields: Any) -> tuple[PreTrainedModel, Any]:
    """Load a fully trained checkpoint, without newly initialized weights, and its processing class.

    Args:
        auto_class: Auto class of the task's head.
        name: Directory or Hub name.
        features: As for `load_checkpoint`.
        fields: Config fields determined by the data.

    Raises:
        InputError: The checkpoint cannot be loaded, or lacks weights of the model or its head.
    """
    model, processing_class, new = load_checkpoint(auto_class, name, features=features, **fields)
    trained = model.config.architectures or []
    # The parameters of a tagger and a sequence classifier may have the same names.
    classifies = auto_class in _CLASSIFYING
    if new or (classifies and type(model).__name__ not in trained):
        lost = f": it has no {shorten(', '.join(sorted(new)), 200)}" if new else ""
        raise InputError(
            f"--model_name_or_path {name}: {', '.join(trained) or 'this model'} was not trained as a "
            f"{head_kind(auto_class)[1]}{lost}"
        )
    return model, processing_class


def load_checkpoint(
    auto_class: Any,
    name: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    features: bool = False,
    **fields: Any,
) -> tuple[PreTrainedModel, Any, set[str]]:
    """Load a checkpoint for a task, and its processing class.

    Args:
        auto_class: Auto class of the task's head.
        name: Directory or Hub name.
        overrides: Config fields to change.
        features: Whether the task has features or audio, and not text.
        fields: Config fields determined by the data, such as `id2label`; an output layer of a different size is then
            reinitialized.

    Returns:
        The model, its tokenizer (or, with `features`, its feature extractor, a processor with both, or None if it has
        neither), and the names of the newly initialized parameters, such as those of a new head.

    Raises:
        InputError: The checkpoint cannot be loaded, is of a different kind or reads something else, or a config field
            is unknown or invalid.
    """
    flag, overrides = f"--model_name_or_path {name}", dict(overrides or {})
    check_overrides(overrides, features)
    mapping, kind = head_kind(auto_class)
    with _loading(name):
        config = AutoConfig.from_pretrained(name)
        check_fields(config, overrides)
        writes = auto_class in (AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq)
        wrong_side = writes and not config.is_encoder_decoder
        if wrong_side or type(config) not in mapping:
            found = ", ".join(config.architectures or [config.model_type])
            raise InputError(f"{flag}: {found} is not a {kind}{' (encoder-decoder)' if writes else ''}")
        if will_read_text(mapping[type(config)], config) is features:
            found, data = (config.architectures or [config.model_type])[0], "features" if features else "text"
            reads = _what_it_reads(mapping[type(config)], config)
            raise InputError(f"{flag}: {found} reads {reads}, but the data are {data}")
        two_sided = auto_class is AutoModelForCausalLM and type(config) in MODEL_FOR_MASKED_LM_MAPPING
        if two_sided and not config.is_decoder:
            raise InputError(f"{flag}: {config.model_type} is bidirectional, not a causal language model")
        processing_class = load_processing_class(name) if features else AutoTokenizer.from_pretrained(name)
        config = AutoConfig.from_pretrained(name, **fields, **overrides)
        options = {"ignore_mismatched_sizes": bool(fields), "output_loading_info": True}
        model, info = auto_class.from_pretrained(name, config=config, **options)
    resized = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    if lost := sorted(key for key in resized if key.startswith(f"{model.base_model_prefix}.")):
        raise InputError(
            f"--config_overrides: {lost[0]} has a different size in the checkpoint and would be reinitialized"
        )
    if (tokenizer := tokenizer_of(processing_class)) is not None:
        check_characters(getattr(config, "char_encoder", None), tokenizer)
        _ensure_padding(flag, model, tokenizer)
    return model, processing_class, set(info["missing_keys"]) | resized


def _what_it_reads(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> str:
    if will_read_text(model_class, config):
        return "text"
    own: Any = config
    return f"features (input_size={own.input_size})" if is_hfseq(config) else model_class.main_input_name


def check_overrides(overrides: Mapping[str, Any], features: bool) -> None:
    """Check that config fields do not change what a model reads.

    Raises:
        InputError: `input_size` or `frame_shape` is set where the data are text.
    """
    for name in ("input_size", "frame_shape"):
        if overrides.get(name) is not None and not features:
            raise InputError(f"--config_overrides: {name} is for models that read features, but the data are text")


def load_config(name: str) -> PreTrainedConfig:
    """Load the configuration of a checkpoint.

    Raises:
        InputError: It cannot be loaded.
    """
    with _loading(name):
        return AutoConfig.from_pretrained(name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        InputError: It cannot be loaded.
    """
    with _loading(name):
        return AutoTokenizer.from_pretrained(name)


def _loading(name: str) -> AbstractContextManager[None]:
    """Convert errors of loading a checkpoint to an `InputError` of one line."""
    there = "" if Path(name).is_dir() else ": no such directory, and not found on the Hub or in its cache"
    return blaming(f"--model_name_or_path {name}{there}")


def class_names(config: PreTrainedConfig) -> list[str]:
    """Class names of a classifier or tagger in order of their ids."""
    id2label = cast(dict[int, str], config.id2label or {})
    return [id2label[index] for index in range(len(id2label))]


def checkpoint_classes(name: str | None) -> list[str] | None:
    """Class names of a trained classifier or tagger; None for a new model and for default names (`LABEL_0`).

    Raises:
        InputError: The checkpoint cannot be loaded.
    """
    if name is None:
        return None
    config = load_config(name)
    names = class_names(config)
    trained = any(one.endswith("Classification") for one in config.architectures or ())
    return names if trained and names != [f"LABEL_{index}" for index in range(len(names))] else None


def problem_of(config: PreTrainedConfig) -> Any:
    """`problem_type` of a classifier; if unset, regression for one label and single-label classification otherwise."""
    return config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")


def _ensure_padding(flag: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Use the EOS token as padding token if the tokenizer has none (GPT-2, Llama): batches need one.

    The choice of token does not matter, since padding is masked and ignored by the loss. The exception is classifiers
    that pool at the last token that is not padding (`GPT2ForSequenceClassification`), which they find by the
    `pad_token_id` of the model's config.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{flag}: the tokenizer has neither a padding token nor an EOS token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
        # Replaced below: a `pad_token_id` in the config is not what this tokenizer pads with.
        model.config.pad_token_id = None
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def check_characters(encoder: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that model and tokenizer agree on the use of characters.

    Raises:
        InputError: Only one of them uses `char_ids`.
    """
    if encoder is not None and not hasattr(tokenizer, "char_vocab_size"):
        raise InputError(f"--config_overrides: char_encoder={encoder!r} needs a tokenizer that returns char_ids")
    if encoder is None and hasattr(tokenizer, "char_vocab_size"):
        raise InputError("--config_overrides: the tokenizer returns char_ids, which need a char_encoder")


def check_fields(config: PreTrainedConfig, overrides: dict[str, Any], more: Collection[str] = ()) -> None:
    """Check the names of config fields, since a config accepts and ignores misspelt ones.

    Args:
        config: Config without the overrides.
        overrides: Fields to set.
        more: Names of fields that the config shows only in a model that has them.

    Raises:
        InputError: The config has no field of that name.
    """
    known = {*config.to_dict(), *config.attribute_map, *more}
    for name in overrides:
        if name not in known:
            hint = did_you_mean(name, known)
            raise InputError(f"--config_overrides: {type(config).__name__} has no field {name!r}{hint}")

"""Processing classes, which the Trainer takes as one: tokenizers, feature extractors, and processors with both."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    ImageProcessingMixin,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SequenceFeatureExtractor,
    Wav2Vec2Processor,
)
from transformers.utils import FEATURE_EXTRACTOR_NAME, PROCESSOR_NAME
from transformers.utils.hub import has_file


def has_tokenizer(name: str | Path) -> bool:
    """Return True if a directory, or a repository of the Hub, has a tokenizer."""
    return any(has_file(name, file) for file in ("tokenizer.json", "tokenizer_config.json"))


def load_processing_class(name: str | Path) -> Any:
    """Load the processing class of a model, whatever it is.

    Args:
        name: Directory or Hub name.

    Returns:
        A tokenizer, a feature extractor, a processor with both, also where they were saved one by one, an image
        processor, or None if there is none of them.

    Raises:
        OSError: A file is missing or damaged.
        ValueError: A class is unknown.
    """
    if has_file(name, PROCESSOR_NAME):
        return AutoProcessor.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name) if has_tokenizer(name) else None
    if not has_file(name, FEATURE_EXTRACTOR_NAME):
        return tokenizer
    if "image_processor_type" in ImageProcessingMixin.get_image_processor_dict(name)[0]:
        return AutoImageProcessor.from_pretrained(name)
    if tokenizer is None:
        return AutoFeatureExtractor.from_pretrained(name)
    # Extractors of earlier versions of transformers name a processor, else this loads the tokenizer alone.
    found = AutoProcessor.from_pretrained(name)
    if isinstance(found, ProcessorMixin):
        return found
    return Wav2Vec2Processor(AutoFeatureExtractor.from_pretrained(name), tokenizer)


def tokenizer_of(processing_class: Any) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a processing class, or None if it has none."""
    found = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    return found if isinstance(found, PreTrainedTokenizerBase) else None


def image_processor_of(processing_class: Any) -> Any:
    """Return a processing class if it is an image processor, else None."""
    return processing_class if isinstance(processing_class, ImageProcessingMixin) else None


def extractor_of(processing_class: Any) -> SequenceFeatureExtractor | None:
    """Return the extractor of features from audio of a processing class, or None if it has none."""
    found = processing_class
    if isinstance(processing_class, ProcessorMixin):
        found = getattr(processing_class, "feature_extractor", None)
    return found if isinstance(found, SequenceFeatureExtractor) else None

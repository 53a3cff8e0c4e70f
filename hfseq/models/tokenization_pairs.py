"""Tokenizer with one vocabulary for sources and another for targets."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

_SHARED = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
)
"""Arguments that both sides have, beside the special tokens."""


class SourceTargetTokenizer(PreTrainedTokenizerFast):
    """Fast tokenizer of a model with two vocabularies, as `MarianTokenizer(separate_vocabs=True)` is.

    A text is encoded by the source's vocabulary, a `text_target` by the target's. Ids are decoded by the target's,
    since they are what a model generates, or with `use_source_tokenizer=True` by the source's. Everything else, such
    as `len`, `get_vocab` and `convert_ids_to_tokens`, refers to the source; `target` is the tokenizer of the target.

    It takes the arguments of `PreTrainedTokenizerFast` for the source, and one more:

    Args:
        args: Arguments of `PreTrainedTokenizerFast`.
        target_tokenizer: Tokenizer of the target.
        target_tokenizer_file: File of it, in its place, as `save_pretrained` writes one.
        kwargs: Arguments of `PreTrainedTokenizerFast`.

    Raises:
        ValueError: If there is no tokenizer of the target, or a special token has another id in it.
    """

    vocab_files_names = {
        **PreTrainedTokenizerFast.vocab_files_names,
        "target_tokenizer_file": "target_tokenizer.json",
    }

    def __init__(
        self,
        *args: Any,
        target_tokenizer: PreTrainedTokenizerFast | None = None,
        target_tokenizer_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if target_tokenizer is None:
            if target_tokenizer_file is None:
                raise ValueError("a SourceTargetTokenizer needs a target_tokenizer, or its file target_tokenizer.json")
            shared = {name: getattr(self, name) for name in _SHARED} | self.special_tokens_map
            target_tokenizer = PreTrainedTokenizerFast(tokenizer_file=target_tokenizer_file, **shared)
        self.target = target_tokenizer
        self._source = self._tokenizer
        for token in self.all_special_tokens:
            own, other = self.convert_tokens_to_ids(token), self.target.get_vocab().get(token)
            if own != other:
                raise ValueError(
                    f"the special token {token!r} is {own} for sources and {other} for targets: both vocabularies "
                    "must have the special tokens, with the same ids"
                )

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments as they are: the parent would rebuild the source's tokenizer from parts of its file."""
        return kwargs

    @property
    def source(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the source alone."""
        shared = {name: getattr(self, name) for name in _SHARED} | self.special_tokens_map
        return PreTrainedTokenizerFast(tokenizer_object=self._source, **shared)

    @property
    def target_vocab_size(self) -> int:
        """Number of tokens of the target's vocabulary, added ones included."""
        return len(self.target)

    # transformers calls these around `text_target`.

    def _switch_to_input_mode(self) -> None:
        self._tokenizer = self._source

    def _switch_to_target_mode(self) -> None:
        self._tokenizer = self.target.backend_tokenizer

    def _decode(self, token_ids: Any, *args: Any, use_source_tokenizer: bool = False, **kwargs: Any) -> str:
        if use_source_tokenizer:
            return super()._decode(token_ids, *args, **kwargs)
        return self.target._decode(token_ids, *args, **kwargs)

    def _save_pretrained(
        self,
        save_directory: Any,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        saved = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        name = self.vocab_files_names["target_tokenizer_file"]
        path = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        backend = self.target.backend_tokenizer
        # Of the last call, not of the vocabulary.
        backend.no_truncation()
        backend.no_padding()
        backend.save(str(path))
        return *saved, str(path)

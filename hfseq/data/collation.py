"""Checks of the values in a batch while it is on the CPU; a model's `forward` checks only shapes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hfseq.errors import InputError
from hfseq.heads import reads_text
from hfseq.models import is_hfseq

_IDS = ("input_ids", "char_ids", "copy_ids", "labels", "decoder_input_ids")
_MASKS = ("attention_mask", "decoder_attention_mask")
_NUMBERS = ("input_features", "input_values")


def check_batch(
    batch: Mapping[str, Any],
    vocab_size: int | None,
    num_labels: int | None = None,
    decoder_vocab_size: int | None = None,
    char_vocab_size: int | None = None,
    positions: int | None = None,
    input_size: int | None = None,
    frame_shape: Sequence[int] | None = None,
) -> None:
    """Raise an error for a batch that would fail deep inside a model, or silently train it on nonsense.

    Args:
        batch: Output of a collator or tokenizer, tensors or arrays on the CPU: `input_ids` `[B, T]`, or
            `input_features` `[B, T, F]`, and `decoder_input_ids` `[B, U]` with their masks `[B, T]` and `[B, U]`,
            `labels` of any shape. Each may be missing; other names are ignored. `copy_ids` of the shape of
            `input_ids` are the ids that a pointer-generator copies, up to the vocabulary size + T - 1; labels may
            contain those of their row. Of `input_features` of other layouts, and of `input_values`, which models of
            transformers read, only the values are checked.
        vocab_size: Number of embeddings of `input_ids`; None if the model reads none.
        num_labels: Number of classes of integer `labels`; None if they are tokens of the decoder. With one class, or
            if labels are floats, they are regression or multi-label targets of any value.
        decoder_vocab_size: Number of embeddings of `decoder_input_ids`; None for `vocab_size`.
        char_vocab_size: Number of embeddings of `char_ids` `[B, T, L]`; None if the model reads none.
        positions: Number of position embeddings, the maximum of T and U; None for no limit.
        input_size: Number F of features of a frame; None if the model does not read `input_features` `[B, T, F]`.
        frame_shape: Channels, height and width of frames that may also come as pixels `[B, T, C, H, W]`, or None.

    Raises:
        InputError: An id or a label is out of range (the ignored label -100 is valid), a mask differs in shape from
            its ids or frames, a row is all padding or too long, a decoder's labels are padded on the left, a label is
            a copy id that its row does not have, or a label or a feature is not finite, frames have another width, or
            the model reads no such inputs. The message names the argument, the row and the value.
    """
    wanted = (*_IDS, *_MASKS, *_NUMBERS)
    batch = {name: torch.as_tensor(batch[name]) for name in wanted if batch.get(name) is not None}
    labels = batch.get("labels")
    for name in ("input_ids", "labels", "decoder_input_ids"):
        shape = tuple(batch[name].shape) if name in batch else ()
        # Multi-label targets have as many columns as there are classes.
        if positions is not None and len(shape) == 2 and shape[1] > positions and (name != "labels" or not num_labels):
            raise InputError(
                f"{name} of shape {shape}: the model has {positions} positions; truncate to that many tokens "
                "(--max_length, or --max_source_length and --max_target_length)"
            )
    if "input_ids" in batch and vocab_size is None:
        size = "" if input_size is None else f" (input_size={input_size})"
        raise InputError(f"input_ids of shape {tuple(batch['input_ids'].shape)}: the model reads no tokens{size}")
    decoder_vocab_size = vocab_size if decoder_vocab_size is None else decoder_vocab_size
    _check_ids(batch, "input_ids", vocab_size)
    _check_mask(batch, "attention_mask", "input_ids")
    if frame_shape is not None and "input_features" in batch:
        frames = batch["input_features"]
        if frames.shape[2:] == tuple(frame_shape):
            batch["input_features"] = frames.flatten(2)
    _check_numbers(batch, input_size)
    if char_vocab_size is not None:
        _check_ids(batch, "char_ids", char_vocab_size, "the characters")
    if "copy_ids" in batch:
        _check_shape(batch, "copy_ids", "input_ids")
        size = decoder_vocab_size + batch["copy_ids"].shape[-1]
        _check_ids(batch, "copy_ids", size, "the vocabulary and what is copied")
    # Before decoder_input_ids, which collators derive from them.
    if labels is not None:
        _check_labels(labels, decoder_vocab_size, num_labels, batch.get("copy_ids"))
    _check_ids(batch, "decoder_input_ids", decoder_vocab_size)
    _check_mask(batch, "decoder_attention_mask", "decoder_input_ids")
    if labels is not None and "decoder_input_ids" in batch:
        late = (labels[:, 0] == -100) & (labels != -100).any(dim=1)
        why = "padded on the left, which a decoder reads as tokens; set tokenizer.padding_side = 'right'"
        _check_values("labels", labels, late, why)


def _check_ids(batch: Mapping[str, torch.Tensor], name: str, size: int | None, known: str = "the vocabulary") -> None:
    if name in batch and size is not None:
        bad = (batch[name] < 0) | (batch[name] >= size)
        _check_values(name, batch[name], bad, f"outside {known}, 0 to {size - 1}")


def _check_mask(batch: Mapping[str, torch.Tensor], name: str, ids_name: str) -> None:
    if name in batch and ids_name in batch:
        _check_shape(batch, name, ids_name)
        _check_values(name, batch[name], (batch[name] == 0).all(dim=-1), "all padding")


def _check_numbers(batch: Mapping[str, torch.Tensor], input_size: int | None) -> None:
    """Check features and waveforms: their width if it is known, and their values at what is valid."""
    for name in _NUMBERS:
        if name not in batch:
            continue
        values, mask = batch[name], batch.get("attention_mask")
        bad = ~values.isfinite()
        if name == "input_features" and input_size is not None:
            if values.dim() != 3 or values.shape[2] != input_size:
                raise InputError(
                    f"{name} has shape {tuple(values.shape)}; the model reads (rows, frames, {input_size}), since its "
                    f"input_size is {input_size}"
                )
            if values.shape[1] == 0:
                raise InputError(f"{name} of shape {tuple(values.shape)}: there are no frames")
            if mask is not None:
                if mask.shape != values.shape[:2]:
                    raise InputError(
                        f"attention_mask has shape {tuple(mask.shape)}, but {name} has {tuple(values.shape)}: it must "
                        "be of rows and frames"
                    )
                _check_values("attention_mask", mask, (mask == 0).all(dim=1), "all padding")
                # Padding may hold anything: a model ignores it.
                bad &= mask.unsqueeze(2) != 0
        if bad.any():
            row, *rest = bad.nonzero()[0].tolist()
            names = ("frame", "feature") if input_size is not None else ("position",)
            place = ", ".join(f"{title} {index}" for title, index in zip(names, rest, strict=False))
            raise InputError(
                f"{name} of shape {tuple(values.shape)}: row {row}, {place} is {values[bad][0].item()}, not a finite "
                "number"
            )


def _check_labels(
    labels: torch.Tensor, vocab_size: int | None, num_labels: int | None, copied: torch.Tensor | None
) -> None:
    if labels.is_floating_point():
        _check_values("labels", labels, ~labels.isfinite(), "not a finite number")
        return
    kind, size = ("vocabulary", vocab_size) if num_labels is None else ("classes", num_labels)
    if num_labels == 1 or size is None:
        return  # integers are regression targets, too
    bad = ((labels < 0) | (labels >= size)) & (labels != -100)
    why = f"outside the {kind}, 0 to {size - 1}, and not -100"
    if copied is not None:
        bad &= ~(labels.unsqueeze(-1) == copied.unsqueeze(-2)).any(dim=-1)
        why += " or in the row's copy_ids"
    _check_values("labels", labels, bad, why)


def _check_shape(batch: Mapping[str, torch.Tensor], name: str, other: str) -> None:
    if batch[name].shape != batch[other].shape:
        shapes = f"{name} has shape {tuple(batch[name].shape)}, but {other} has {tuple(batch[other].shape)}"
        raise InputError(f"{shapes}; they must be the same")


def _check_values(name: str, values: torch.Tensor, bad: torch.Tensor, why: str) -> None:
    """Raise an `InputError` for the first bad value, or for the first bad row if `bad` is `[rows]`."""
    if bad.any():
        row, *rest = bad.nonzero()[0].tolist()
        column = f", column {', '.join(map(str, rest))}" if rest else ""
        value = f"{values[bad][0].item()}, " if bad.shape == values.shape else ""
        raise InputError(f"{name} of shape {tuple(values.shape)}: row {row}{column} is {value}{why}")


class CheckedCollator:
    """Collator that passes each batch of another collator through `check_batch`.

    Args:
        collator: Collator that turns a list of rows into a batch.
        model: Model that determines the valid ids and labels: tokens if it has an output layer over a vocabulary, else
            the classes of its config. The sizes are read now; resize embeddings before.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], model: PreTrainedModel) -> None:
        self.collator = collator
        self.sizes, self.positions = vocabulary_sizes(model), position_limit(model)

    def __call__(self, features: list[Any]) -> Any:
        """Collate rows and check the batch, with the errors of `check_batch`."""
        batch = self.collator(features)
        check_batch(batch, **self.sizes, positions=self.positions)
        return batch


def vocabulary_sizes(model: PreTrainedModel) -> dict[str, Any]:
    """Return the sizes for `check_batch`, from the model's own `vocabulary_sizes` or from its token embeddings.

    Of a model that reads features or waveforms, `vocab_size` is None, and `decoder_vocab_size` that of what it writes.
    Of one that reads pixels there is a `frame_shape`, too.
    """
    own: Any = getattr(model, "vocabulary_sizes", None)
    if own is not None:
        return own()
    config: Any = model.config
    output: Any = model.get_output_embeddings()
    sizes: dict[str, Any] = {"vocab_size": None}
    if reads_text(model):
        embeddings: Any = model.get_input_embeddings()
        sizes["vocab_size"] = embeddings.weight.shape[0]
    elif is_hfseq(config):
        sizes["input_size"] = config.input_size
        if config.frame_shape is not None:
            sizes["frame_shape"] = config.frame_shape
    if getattr(config, "char_encoder", None) is not None:
        sizes["char_vocab_size"] = config.char_vocab_size
    if output is not None:
        return sizes | {"decoder_vocab_size": output.weight.shape[0]}
    # A causal model without an output layer has clusters of different widths in its place.
    if type(model).__name__.endswith(("ForCTC", "ForCausalLM")):
        return sizes | {"decoder_vocab_size": config.vocab_size}
    return sizes | {"num_labels": config.num_labels}


def position_limit(model: PreTrainedModel) -> int | None:
    """Return the number of position embeddings of a model; None if it reads rows of any length."""
    return min(_positions(model), default=None)


def _positions(module: nn.Module) -> Iterator[int]:
    if isinstance(module, PreTrainedModel) and is_hfseq(module.config):
        return  # all steps beyond the last position share its embedding
    for name, child in module.named_children():
        if isinstance(child, nn.Embedding) and ("position" in name or name == "wpe"):
            # Positions begin at row 2 in BART, and after the row of the padding token in RoBERTa.
            first = getattr(child, "offset", 0 if child.padding_idx is None else child.padding_idx + 1)
            yield child.weight.shape[0] - first
        yield from _positions(child)

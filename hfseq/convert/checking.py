"""Self-check of a conversion: the model against its source, in plain torch, on random rows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfseq.convert.base import Reference

TOLERANCE = 1e-4
"""Largest admissible difference of logits, in their standard deviations."""
_LENGTHS = (7, 1, 10, 4)
_STEPS = 3
"""Steps that are run one by one at the end of the check with a cache."""


@dataclass(frozen=True)
class Check:
    """Result of a self-check.

    Attributes:
        difference: Largest absolute difference of logits.
        deviation: Standard deviation of the logits of the source.
    """

    difference: float
    deviation: float

    @property
    def passed(self) -> bool:
        """True if the difference is within `TOLERANCE`; False for logits that are all the same, or not finite."""
        return self.deviation > 0 and self.difference <= TOLERANCE * self.deviation

    def __str__(self) -> str:
        return f"largest difference of logits: {self.difference:.1e} (their standard deviation: {self.deviation:.2g})"


@torch.no_grad()
def check_conversion(model: PreTrainedModel, reference: Reference, seed: int = 0) -> Check:
    """Compare a model with its source on random ids: each row alone, padded on the right and on the left, and cached.

    Sequence-to-sequence models are compared with teacher forcing.

    Args:
        model: The converted model.
        reference: What its source computes.
        seed: Seed of the ids.
    """
    model.eval()
    draw = _Rows(model, torch.Generator().manual_seed(seed))
    if model.config.is_encoder_decoder:
        found, expected = _check_seq2seq(model, reference, draw)
    else:
        found, expected = _check_one_stack(model, reference, draw)
    pairs = [(ours[..., : theirs.shape[-1]], theirs) for ours, theirs in zip(found, expected, strict=True)]
    difference = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    values = torch.cat([theirs.flatten() for _, theirs in pairs])
    # The maximum of Python forgets NaN.
    finite = all(bool(ours.isfinite().all()) for ours, _ in pairs)
    return Check(difference if finite else float("inf"), float(values.std()))


class _Rows:
    """Random rows of token ids, and batches of them."""

    def __init__(self, model: PreTrainedModel, generator: torch.Generator) -> None:
        config: Any = model.config
        self.generator, self.pad = generator, config.pad_token_id

    def draw(self, size: int) -> list[Tensor]:
        """Rows `[1, T]` of different lengths."""
        known = torch.tensor([token for token in range(size) if token != self.pad])
        return [known[torch.randint(len(known), (1, length), generator=self.generator)] for length in _LENGTHS]

    def batch(self, rows: list[Tensor], left: bool) -> tuple[Tensor, Tensor]:
        """Ids and mask `[B, T]` of padded rows."""
        width = max(row.shape[1] for row in rows)
        sides = [(width - row.shape[1], 0) if left else (0, width - row.shape[1]) for row in rows]
        padded = [nn.functional.pad(row, side, value=self.pad or 0) for row, side in zip(rows, sides, strict=True)]
        masks = [nn.functional.pad(torch.ones_like(row), side) for row, side in zip(rows, sides, strict=True)]
        return torch.cat(padded), torch.cat(masks)


def _check_one_stack(model: Any, reference: Reference, draw: _Rows) -> tuple[list[Tensor], list[Tensor]]:
    rows = draw.draw(_source_size(model))
    wanted = [reference(row) for row in rows]
    found, expected = [model(input_ids=row).logits for row in rows], list(wanted)
    for left in (False, True):
        ids, mask = draw.batch(rows, left)
        logits = model(input_ids=ids, attention_mask=mask).logits
        found += _without_padding(logits, mask)
        expected += wanted
    if model.can_generate():
        ids, mask = draw.batch(rows, left=True)
        split, parts, cache = ids.shape[1] - _STEPS, [], None
        for start, end in [(0, split), *((step, step + 1) for step in range(split, ids.shape[1]))]:
            outputs = model(input_ids=ids[:, start:end], attention_mask=mask[:, :end], cache=cache, use_cache=True)
            parts.append(outputs.logits)
            cache = outputs.cache
        found += _without_padding(torch.cat(parts, dim=1), mask)
        expected += wanted
    return found, expected


def _check_seq2seq(model: Any, reference: Reference, draw: _Rows) -> tuple[list[Tensor], list[Tensor]]:
    config = model.config
    sources = draw.draw(_source_size(model))
    targets = draw.draw(getattr(config, "decoder_vocab_size", None) or config.vocab_size)[::-1]
    wanted = [reference(source, target) for source, target in zip(sources, targets, strict=True)]
    found, expected = [], []
    for source, target in zip(sources, targets, strict=True):
        found.append(model(input_ids=source, decoder_input_ids=target).logits)
    expected += wanted
    for left in (False, True):
        ids, mask = draw.batch(sources, left)
        decoder_ids, decoder_mask = draw.batch(targets, left=False)
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
        found += _without_padding(logits, decoder_mask)
        encoded = model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)
        parts, cache = [], None
        for step in range(decoder_ids.shape[1]):
            outputs = model(
                encoder_outputs=encoded,
                attention_mask=mask,
                decoder_input_ids=decoder_ids[:, step : step + 1],
                cache=cache,
                use_cache=True,
            )
            parts.append(outputs.logits)
            cache = outputs.cache
        found += _without_padding(torch.cat(parts, dim=1), decoder_mask)
        expected += wanted * 2
    return found, expected


def _source_size(model: Any) -> int:
    return model.get_input_embeddings().num_embeddings


def _without_padding(logits: Tensor, mask: Tensor) -> list[Tensor]:
    """Logits of each row, `[1, T, V]` at its valid steps, or `[1, N]` of a classifier."""
    if logits.dim() == 2:
        return list(logits.split(1))
    return [one[valid != 0].unsqueeze(0) for one, valid in zip(logits, mask, strict=True)]

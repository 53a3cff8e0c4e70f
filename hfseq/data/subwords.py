"""Subword regularization (Kudo 2018): random segmentations of words by a unigram tokenizer."""

from __future__ import annotations

import json
import math
import random
from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from hfseq.errors import InputError
from hfseq.lazy import datasets
from hfseq.tokenization import target_tokenizer

# Marks a space inside a token, as in SentencePiece.
_SPACE = "▁"
# Lattices kept for words that come again. Without spaces a whole clause is a word, and takes 20 kB.
_KEPT = 2**14


def resample(
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    limits: Mapping[str, int],
    *,
    samples: int,
    alpha: float,
    seed: int,
) -> datasets.Dataset:
    """Training rows with random segmentations, all rows as many times as there are samples of each.

    A text that would become longer than its limit keeps its segmentation.

    Args:
        rows: Encoded rows with `input_ids`, `attention_mask` and `labels`.
        tokenizer: Fast tokenizer with a unigram model, which encoded them.
        limits: Columns to segment, and the maximum length of each.
        samples: Segmentations of each row.
        alpha: Smoothing parameter; see `SegmentationSampler`.
        seed: Random seed, which alone determines the result.

    Raises:
        InputError: The tokenizer has another model, or the rows have other columns.
    """
    if others := sorted({*rows.column_names} - {"input_ids", "attention_mask", "labels"}):
        raise InputError(f"--subword_samples is not supported for a model that reads {others[0]}; omit it")
    tokenizers = {"input_ids": tokenizer, "labels": target_tokenizer(tokenizer)}
    samplers = {name: SegmentationSampler(tokenizers[name], alpha) for name in limits}

    def segment(batch: dict[str, list[Any]], numbers: list[int], sample: int) -> dict[str, list[Any]]:
        rng = random.Random(f"{seed} {sample} {numbers[0]}")
        columns = {}
        for name, limit in limits.items():
            texts = [(ids, samplers[name](ids, rng)) for ids in batch[name]]
            columns[name] = [found if len(found) <= limit else ids for ids, found in texts]
        columns["attention_mask"] = [[1] * len(ids) for ids in columns["input_ids"]]
        return columns

    options: dict[str, Any] = {"batched": True, "with_indices": True, "keep_in_memory": True}
    return datasets.concatenate_datasets(
        [
            rows.map(segment, fn_kwargs={"sample": sample}, desc=f"Segmentation {sample + 1}", **options)
            for sample in range(samples)
        ]
    )


class _Ends(NamedTuple):
    """Pieces that end at one place of a word.

    Attributes:
        starts: Where each begins.
        ids: Its token id.
        shares: Cumulative probabilities of the pieces, given that a piece ends here.
    """

    starts: list[int]
    ids: list[int]
    shares: list[float]


class SegmentationSampler:
    r"""Samples segmentations of texts that a unigram tokenizer has encoded.

    A word is segmented into the pieces x with the probability $P(x)^\alpha / \sum_{x'} P(x')^\alpha$ among all of its
    segmentations (Kudo 2018, section 3.2, with l = ∞), by forward filtering and backward sampling. Special, added and
    unknown tokens stay as they are.

    Args:
        tokenizer: Fast tokenizer with a unigram model.
        alpha: Smoothing parameter; 0 makes all segmentations equally likely, 1 follows the model.

    Raises:
        InputError: The tokenizer has another model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, alpha: float) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        model: Any = json.loads(backend.to_str())["model"] if backend is not None else {"type": None}
        if model["type"] != "Unigram":
            raise InputError("--subword_samples needs a unigram tokenizer, whose segmentations have probabilities")
        fixed = {*tokenizer.added_tokens_decoder, model["unk_id"]}
        self.pieces = {
            number: piece
            for number, (piece, _) in enumerate(model["vocab"])
            if number not in fixed and not (model["byte_fallback"] and _is_byte(piece))
        }
        self.known = {piece: (number, alpha * model["vocab"][number][1]) for number, piece in self.pieces.items()}
        self.longest = max(map(len, self.known), default=0)
        self.lattices: dict[str, list[_Ends]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """State without lattices: `Dataset.map` pickles a function to tell it from others."""
        return {**vars(self), "lattices": {}}

    def __call__(self, ids: Sequence[int], rng: random.Random) -> list[int]:
        """Segment a text anew.

        Args:
            ids: Token ids of the text.
            rng: Source of randomness.
        """
        found: list[int] = []
        word = ""
        for number in ids:
            piece = self.pieces.get(number)
            if word and (piece is None or piece.startswith(_SPACE)):
                found += self._sample(word, rng)
                word = ""
            if piece is None:
                found.append(number)
            else:
                word += piece
        return found + self._sample(word, rng)

    def _sample(self, word: str, rng: random.Random) -> list[int]:
        ends = self.lattices.get(word)
        if ends is None:
            if len(self.lattices) == _KEPT:
                self.lattices.clear()
            ends = self.lattices[word] = self._lattice(word)
        found, at = [], len(word)
        while at:
            starts, ids, shares = ends[at]
            # Rounding may leave the last of the cumulative probabilities a little below 1.
            chosen = min(bisect(shares, rng.random()), len(ids) - 1)
            found.append(ids[chosen])
            at = starts[chosen]
        return found[::-1]

    def _lattice(self, word: str) -> list[_Ends]:
        """Pieces that end at each place of a word, with their probabilities by the forward algorithm."""
        reached = [0.0]  # log of the summed weights of all segmentations up to each place
        ends = [_Ends([], [], [])]
        for end in range(1, len(word) + 1):
            starts, ids, weights = [], [], []
            for start in range(max(0, end - self.longest), end):
                number, score = self.known.get(word[start:end], (None, 0.0))
                if number is not None and reached[start] > -math.inf:
                    starts.append(start)
                    ids.append(number)
                    weights.append(reached[start] + score)
            top = max(weights, default=-math.inf)
            shares = [math.exp(weight - top) for weight in weights]
            total = sum(shares)
            reached.append(top + math.log(total) if total else -math.inf)
            ends.append(_Ends(starts, ids, [share / total for share in accumulate(shares)]))
        return ends


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")

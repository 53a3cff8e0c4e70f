"""Genes drawn from a hidden Markov model, with the exon, intron or intergenic tag of each base; synthetic.

The model is a small version of those that find genes (Burge and Karlin 1997): intergenic bases, then a gene that
begins with ATG and ends with a stop codon, its codons interrupted by introns between two of them. Exons differ from
introns by the composition of their three codon positions and by having no stop codon inside; introns begin with a
donor site (GT, and what usually stands after it) and end with a stretch of pyrimidines and AG. Only the forward strand
has genes, and all lengths are geometric. No number is estimated from a genome.

Since the process is known, so is the best that any model can do: `posterior_tags` gives the most probable tag of each
base by the forward-backward algorithm (Rabiner 1989, section III).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hfseq.errors import InputError
from hfseq.lazy import datasets, pa

BASES = "ACGT"
TAGS = ("exon", "intron", "intergenic")
# Seeds of the splits, so that the rows of one do not depend on the sizes of the others.
_SEEDS = {"train": 1, "validation": 2, "test": 3}
# Chances of A, C, G and T at each position of a codon, and elsewhere.
_CODON = ((0.29, 0.20, 0.40, 0.11), (0.35, 0.21, 0.13, 0.31), (0.08, 0.40, 0.38, 0.14))
_INTERGENIC_BASES = (0.29, 0.21, 0.20, 0.30)
# Introns are rich in T, as those of plants are.
_INTRON_BASES = (0.26, 0.15, 0.18, 0.41)
_PYRIMIDINES = (0.08, 0.38, 0.08, 0.46)
_DONOR = ((0, 0, 1, 0), (0, 0, 0, 1), (0.55, 0.03, 0.40, 0.02), (0.71, 0.08, 0.11, 0.10), (0.07, 0.05, 0.83, 0.05))
_ACCEPTOR = ((0.06, 0.65, 0.01, 0.28), (1, 0, 0, 0), (0, 0, 1, 0))
_STOPS = ("TAA", "TAG", "TGA")
# Mean lengths: intergenic bases, codons of an exon, bases in the middle of an intron.
_INTERGENIC, _CODONS, _INTRON = 150, 40, 100
# Chance that an exon ends with the gene.
_LAST = 0.3


class _Process(NamedTuple):
    """States of the process.

    Attributes:
        tags: Index in `TAGS` of each state.
        moves: Probabilities of the next state, `[S, S]`.
        emissions: Probabilities of a base after the two before it, `[S, 4, 4, 4]`.
        start: Stationary distribution of the states, `[S]`.
    """

    tags: NDArray[np.int64]
    moves: NDArray[np.float64]
    emissions: NDArray[np.float64]
    start: NDArray[np.float64]


def gene_rows(
    *, train_size: int = 15000, validation_size: int = 200, test_size: int = 200, length: int = 400
) -> datasets.DatasetDict:
    """Rows of stretches of a genome with `sequence` and `labels`, the tag of each base.

    The same sizes give the same rows; a split does not depend on the sizes of the others.

    Args:
        train_size: Number of training rows.
        validation_size: Number of validation rows.
        test_size: Number of test rows.
        length: Bases of a row.

    Raises:
        InputError: A number is less than 1.
    """
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    for name, size in {**sizes, "length": length}.items():
        if size < 1:
            raise InputError(f"{name}: {size} is less than 1")
    return datasets.DatasetDict({split: _rows(split, size, length) for split, size in sizes.items()})


def splice_sites(
    *, train_size: int = 4000, validation_size: int = 600, test_size: int = 600, width: int = 60
) -> datasets.DatasetDict:
    """Rows of windows with `sequence` and `label`: `donor`, `acceptor` or `neither`.

    A quarter of the windows have a donor site in their middle (exon, then intron), a quarter an acceptor site (intron,
    then exon), and the others are cut at random, without a site in their middle.

    Args:
        train_size: Number of training rows.
        validation_size: Number of validation rows.
        test_size: Number of test rows.
        width: Bases of a window, an even number.

    Raises:
        InputError: A number is less than 1, or `width` is odd.
    """
    if width % 2:
        raise InputError(f"width: {width} is odd, so that no site is in the middle")
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    # A stretch of 400 bases has about one site of each kind.
    genes = gene_rows(**{f"{split}_size": 1 + size for split, size in sizes.items()})
    return datasets.DatasetDict({split: _windows(genes[split], sizes[split], width, split) for split in sizes})


def _windows(genes: datasets.Dataset, size: int, width: int, split: str) -> datasets.Dataset:
    rng, half = np.random.default_rng(100 + _SEEDS[split]), width // 2
    sites = {("exon", "intron"): "donor", ("intron", "exon"): "acceptor"}
    found: dict[str, list[str]] = {"donor": [], "acceptor": [], "neither": []}
    for sequence, tags in zip(genes["sequence"], genes["labels"], strict=True):
        at_site = {
            at: sites.get((tags[at - 1], tags[at])) for at in range(half, len(tags) - half + 1) if at < len(tags)
        }
        for at, label in at_site.items():
            if label:
                found[label].append(sequence[at - half : at + half])
        for at in rng.permutation([at for at, label in at_site.items() if not label])[:4]:
            found["neither"].append(sequence[at - half : at + half])
    counts = {"donor": size // 4, "acceptor": size // 4, "neither": size - 2 * (size // 4)}
    rows = [(text, label) for label, count in counts.items() for text in found[label][:count]]
    rows = [rows[at] for at in rng.permutation(len(rows))]
    return datasets.Dataset.from_dict({"sequence": [text for text, _ in rows], "label": [label for _, label in rows]})


def posterior_tags(sequences: list[str]) -> list[list[str]]:
    """Most probable tag of each base under the process itself: no model has a higher expected accuracy.

    Args:
        sequences: Sequences of A, C, G and T.
    """
    process = _process()
    return [_posterior(process, np.array([BASES.index(base) for base in sequence])) for sequence in sequences]


def _process() -> _Process:
    tags: list[int] = []
    emissions: list[NDArray[np.float64]] = []
    links: list[tuple[int, int, float]] = []

    def state(tag: str, composition: object) -> int:
        tags.append(TAGS.index(tag))
        emissions.append(np.broadcast_to(np.asarray(composition, dtype=np.float64), (4, 4, 4)))
        return len(tags) - 1

    def chain(tag: str, compositions: object) -> list[int]:
        numbers = [state(tag, one) for one in compositions]  # type: ignore[attr-defined]
        links.extend((one, after, 1.0) for one, after in zip(numbers, numbers[1:], strict=False))
        return numbers

    outside = state("intergenic", _INTERGENIC_BASES)
    begin = chain("exon", np.eye(4)[[0, 3, 2]])
    codon = chain("exon", (_CODON[0], _CODON[1], _without_stops()))
    end = chain("exon", ((0, 0, 0, 1), (0.6, 0, 0.4, 0), _last_of_a_stop()))
    donor = chain("intron", _DONOR)
    middle = state("intron", _INTRON_BASES)
    acceptor = chain("intron", [*[_PYRIMIDINES] * 12, *_ACCEPTOR])
    stay = 1 - 1 / _INTERGENIC
    links += [(outside, outside, stay), (outside, begin[0], 1 - stay), (begin[-1], codon[0], 1.0)]
    stay = 1 - 1 / _CODONS
    links += [(codon[-1], codon[0], stay), (codon[-1], donor[0], (1 - stay) * (1 - _LAST))]
    links += [(codon[-1], end[0], (1 - stay) * _LAST), (end[-1], outside, 1.0)]
    stay = 1 - 1 / _INTRON
    links += [(donor[-1], middle, 1.0), (middle, middle, stay), (middle, acceptor[0], 1 - stay)]
    links += [(acceptor[-1], codon[0], 1.0)]
    moves = np.zeros((len(tags), len(tags)))
    for one, after, chance in links:
        moves[one, after] = chance
    values, vectors = np.linalg.eig(moves.T)
    start = np.abs(np.real(vectors[:, np.argmax(np.real(values))]))
    return _Process(np.array(tags), moves, np.stack(emissions), start / start.sum())


def _without_stops() -> NDArray[np.float64]:
    """Third bases of codons after the first two, `[4, 4, 4]`, none of which completes a stop codon."""
    chances = np.broadcast_to(np.array(_CODON[2]), (4, 4, 4)).copy()
    for stop in _STOPS:
        chances[tuple(BASES.index(base) for base in stop)] = 0
    return chances / chances.sum(axis=2, keepdims=True)


def _last_of_a_stop() -> NDArray[np.float64]:
    """Third bases of stop codons after the first two, `[4, 4, 4]`: A or G after TA, A after TG."""
    chances = np.zeros((4, 4, 4))
    chances[:, BASES.index("A")] = (0.6, 0, 0.4, 0)
    chances[:, BASES.index("G")] = (1, 0, 0, 0)
    chances[:, [BASES.index("C"), BASES.index("T")]] = 0.25  # never used
    return chances


def _rows(split: str, size: int, length: int) -> datasets.Dataset:
    process, rng = _process(), np.random.default_rng(_SEEDS[split])
    moves, emissions = process.moves.cumsum(axis=1), process.emissions.cumsum(axis=3)
    states = np.empty((length, size), dtype=np.int64)
    bases = np.empty((length + 2, size), dtype=np.int64)
    bases[:2] = rng.integers(4, size=(2, size))
    now = _draw(np.broadcast_to(process.start.cumsum(), (size, len(process.start))), rng)
    for step in range(length):
        if step:
            now = _draw(moves[now], rng)
        states[step] = now
        bases[step + 2] = _draw(emissions[now, bases[step], bases[step + 1]], rng)
    letters = np.ascontiguousarray(np.array(list(BASES))[bases[2:].T])
    # Arrow's own array of tags: to make one from a Python string for each base would take as long as the rest.
    tags = pa.DictionaryArray.from_arrays(process.tags[states.T].ravel(), pa.array(TAGS)).dictionary_decode()
    labels = pa.ListArray.from_arrays(np.arange(0, size * length + 1, length, dtype=np.int32), tags)
    return datasets.Dataset.from_dict({"sequence": letters.view(f"U{length}")[:, 0].tolist(), "labels": labels})


def _draw(ends: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw an index in each row of cumulative probabilities `[N, K]`."""
    drawn: NDArray[np.int64] = (rng.random((len(ends), 1)) * ends[:, -1:] >= ends).sum(axis=1)
    return drawn


def _posterior(process: _Process, bases: NDArray[np.int64]) -> list[str]:
    # Bases before the sequence are unknown, and equally likely.
    seen = process.emissions.mean(axis=(1, 2))[:, bases].T.copy()  # [T, S]
    if len(bases) > 1:
        seen[1] = process.emissions.mean(axis=1)[:, bases[0], bases[1]]
    seen[2:] = process.emissions[:, bases[:-2], bases[1:-1], bases[2:]].T
    forward = np.empty_like(seen)
    for step, likelihood in enumerate(seen):
        prior = process.start if step == 0 else forward[step - 1] @ process.moves
        forward[step] = prior * likelihood
        forward[step] /= forward[step].sum()
    backward = np.ones_like(seen)
    for step in range(len(seen) - 2, -1, -1):
        backward[step] = process.moves @ (seen[step + 1] * backward[step + 1])
        backward[step] /= backward[step].sum()
    chances = np.stack([(forward * backward)[:, process.tags == tag].sum(axis=1) for tag in range(len(TAGS))], axis=1)
    return [TAGS[number] for number in chances.argmax(axis=1)]

"""Genes of a hidden Markov model: what the rows look like, and the best tags against all paths."""

import itertools
from math import prod

import numpy as np
import pytest

from hfseq.data.embedded import genes
from hfseq.data.embedded.genes import BASES, TAGS, gene_rows, posterior_tags, splice_sites
from hfseq.errors import InputError


@pytest.fixture(scope="module")
def rows():
    return gene_rows(train_size=40, validation_size=2, test_size=5, length=900)


def test_rows_do_not_depend_on_other_splits(rows):
    again = gene_rows(train_size=1, validation_size=2, test_size=5, length=900)
    assert again["test"].to_list() == rows["test"].to_list()
    assert rows["train"][0] not in again["test"].to_list()
    assert {len(text) for text in rows["train"]["sequence"]} == {900}
    with pytest.raises(InputError, match="length: 0"):
        gene_rows(length=0)


def test_genes_follow_the_rules(rows):
    """Introns begin with GT and end with AG; exons have whole codons, of which only the last may be a stop."""
    seen = 0
    for text, tags in zip(rows["train"]["sequence"], rows["train"]["labels"], strict=True):
        runs = [(tag, list(run)) for tag, run in itertools.groupby(range(900), tags.__getitem__)]
        for (before, _), (tag, places), (after, _) in zip(runs, runs[1:], runs[2:], strict=False):
            part = text[places[0] : places[-1] + 1]
            if tag == "intron":
                assert part[:2] == "GT" and part[-2:] == "AG"
            if tag == "exon":
                assert len(part) % 3 == 0
                codons = [part[at : at + 3] for at in range(0, len(part), 3)]
                assert not set(codons[:-1]) & {"TAA", "TAG", "TGA"}
                assert (codons[-1] in ("TAA", "TAG", "TGA")) == (after == "intergenic")
                assert codons[0] == "ATG" or before == "intron"
                seen += 1
    assert seen > 50


def test_the_best_tags_are_those_of_all_paths():
    process = genes._process()
    np.testing.assert_allclose(process.moves.sum(axis=1), 1)
    np.testing.assert_allclose(process.emissions.sum(axis=3), 1)
    np.testing.assert_allclose(process.start @ process.moves, process.start, atol=1e-12)
    for text in ("ATGGT", "CAGGTAAG", "TTTCAGAT", "TAGTATAA"):
        bases = [BASES.index(base) for base in text]
        weights = np.zeros((len(text), len(TAGS)))
        paths = [[state] for state in range(len(process.start))]
        for _ in bases[1:]:
            paths = [[*path, after] for path in paths for after in np.flatnonzero(process.moves[path[-1]])]
        for path in paths:
            chances = [process.start[path[0]], *(process.moves[one, after] for one, after in itertools.pairwise(path))]
            for at, state in enumerate(path):
                known = (*[slice(None)] * (2 - min(at, 2)), *bases[max(at - 2, 0) : at])
                chances.append(process.emissions[state][known][..., bases[at]].mean())
            for at, state in enumerate(path):
                weights[at, process.tags[state]] += prod(chances)
        assert posterior_tags([text]) == [[TAGS[number] for number in weights.argmax(axis=1)]]


def test_the_process_knows_its_genes_better_than_the_most_frequent_tag(rows):
    found, right = posterior_tags(rows["test"]["sequence"]), rows["test"]["labels"]
    assert np.mean(np.array(found) == np.array(right)) > 0.85


def test_splice_sites_are_in_the_middle():
    sites = splice_sites(train_size=80, validation_size=8, test_size=8)
    labels = sites["train"]["label"]
    assert [labels.count(name) for name in ("donor", "acceptor", "neither")] == [20, 20, 40]
    for text, label in zip(sites["train"]["sequence"], labels, strict=True):
        assert len(text) == 60
        assert label != "donor" or text[30:32] == "GT"
        assert label != "acceptor" or text[28:30] == "AG"
    with pytest.raises(InputError, match="width: 7 is odd"):
        splice_sites(width=7)

"""CTC prefix beam search and alignment, against all alignments one by one and against a search over dictionaries."""

import itertools
import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config

import hfseq
from hfseq import CnnConfig, GruConfig, LstmConfig, RnnConfig
from hfseq.errors import InputError
from hfseq.inference.ctc import CtcHypothesis

BLANK = 0
SIZES = {"hidden_size": 8, "embedding_size": 6, "num_hidden_layers": 2, "dropout": 0.0, "initializer_range": 1.0}
MODELS = {
    "rnn": RnnConfig(vocab_size=7, **SIZES),
    "lstm": LstmConfig(vocab_size=7, **SIZES),
    "gru": GruConfig(vocab_size=7, **SIZES),
    "cnn": CnnConfig(vocab_size=7, architecture="gated", **SIZES),
    "convs2s": CnnConfig(vocab_size=7, architecture="convs2s", **SIZES),
    "adaptive softmax": LstmConfig(vocab_size=7, adaptive_softmax_cutoffs=[4], **SIZES),
    "transformer": GPT2Config(
        vocab_size=7, n_embd=8, n_layer=2, n_head=2, initializer_range=0.5, bos_token_id=1, eos_token_id=2
    ),
}


def make_lm(name="lstm", **fields):
    torch.manual_seed(5)
    config = type(MODELS[name])(
        **MODELS[name].to_dict() | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | fields
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        # Far from uniform, so that the language model matters.
        parameter.data.mul_(1.5)
    return model


def make_logits(rows, frames, tokens, seed=0, scale=2.0):
    return scale * torch.randn(rows, frames, tokens, generator=torch.Generator().manual_seed(seed))


def text_of(path):
    """Text of an alignment: repeats are one token, blanks none."""
    return tuple(token for token, _ in itertools.groupby(path) if token != BLANK)


def all_texts(frames):
    """Log-probability of each text, from log-probabilities `[T, V]`: the sum over all its alignments."""
    alignments = defaultdict(list)
    for path in itertools.product(range(frames.shape[1]), repeat=frames.shape[0]):
        alignments[text_of(path)].append(sum(frames[step, token].item() for step, token in enumerate(path)))
    return {text: torch.tensor(found, dtype=torch.float64).logsumexp(0).item() for text, found in alignments.items()}


class Scores:
    """Scores of texts under a language model by plain forward passes, without a cache."""

    def __init__(self, model, ids=None, start=2, ends=(2,)):
        self.model, self.ids, self.start, self.ends, self.known = model, ids, start, ends, {}

    def after(self, text):
        """Log-probabilities of all tokens after a text."""
        if text not in self.known:
            read = [self.start, *(text if self.ids is None else [int(self.ids[token]) for token in text])]
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([read]), use_cache=False).logits[0, -1]
            self.known[text] = logits.double().log_softmax(dim=-1)
        return self.known[text]

    def prefix(self, text):
        read = text if self.ids is None else [int(self.ids[token]) for token in text]
        return sum(self.after(text[:step])[token].item() for step, token in enumerate(read))

    def text(self, text):
        ends = list(self.ends)
        return self.prefix(text) + (self.after(text)[ends].logsumexp(0).item() if ends else 0.0)


class NoScores:
    def prefix(self, text):
        return 0.0

    text = prefix


def add(one, other):
    high, low = max(one, other), min(one, other)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def naive_search(frames, beams, scores, weight, bonus):
    """Algorithm 1 of Hannun et al. (2014) over dictionaries.

    Returns:
        Hypotheses, best first; the number of new prefixes, and how many of them a text in the beam begins with.
    """
    beam, new, back = {(): (0.0, -math.inf)}, 0, 0
    for frame in frames.tolist():
        found = defaultdict(lambda: (-math.inf, -math.inf))
        for text, (blank, token) in beam.items():
            both = add(blank, token)
            before = found[text]
            repeated = token + frame[text[-1]] if text else -math.inf
            found[text] = (add(before[0], both + frame[BLANK]), add(before[1], repeated))
            for one in range(len(frame)):
                if one == BLANK:
                    continue
                longer, reached = (*text, one), blank if text and text[-1] == one else both
                before = found[longer]
                found[longer] = (before[0], add(before[1], reached + frame[one]))
        ranks = {text: add(*sums) + weight * scores.prefix(text) + bonus * len(text) for text, sums in found.items()}
        kept = sorted((text for text in found if add(*found[text]) > -math.inf), key=ranks.get, reverse=True)[:beams]
        fresh = set(kept) - set(beam)
        new += len(fresh)
        back += sum(any(text[: len(one)] == one for text in beam) for one in fresh)
        beam = {text: found[text] for text in kept}
    hypotheses = [
        CtcHypothesis(list(text), ctc + weight * scores.text(text) + bonus * len(text), ctc, scores.text(text))
        for text, ctc in ((text, add(*sums)) for text, sums in beam.items())
    ]
    return sorted(hypotheses, key=lambda one: one.score, reverse=True), new, back


def check_same(found, right, tolerance=1e-4):
    assert [one.token_ids for one in found] == [one.token_ids for one in right]
    for one, other in zip(found, right, strict=True):
        assert one[1:4] == pytest.approx(other[1:4], abs=tolerance, rel=1e-6)


@pytest.mark.parametrize(("weight", "bonus"), [(0.7, 0.0), (1.5, 0.9)])
@pytest.mark.parametrize("name", [None, *MODELS])
def test_with_enough_beams_it_is_the_sum_over_all_alignments(name, weight, bonus):
    """Every possible text comes back, in order, with its exact scores; rows of different lengths."""
    lengths = [5, 3, 1]
    logits = make_logits(3, 5, 3)
    mask = torch.arange(5) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.tensor([-7, 5, 3])
    model = None if name is None else make_lm(name)
    options = {} if model is None else {"language_model": model, "lm_token_ids": ids, "lm_weight": weight}
    options |= {"num_beams": 64, "num_return_sequences": 64, "length_bonus": bonus}
    found = hfseq.ctc_beam_search(logits, mask, blank_token_id=BLANK, **options)
    scores = NoScores() if model is None else Scores(model, ids)
    for row, length in enumerate(lengths):
        texts = all_texts(logits[row, :length].double().log_softmax(-1))
        right = [
            CtcHypothesis(list(text), ctc + weight * scores.text(text) + bonus * len(text), ctc, scores.text(text))
            for text, ctc in texts.items()
        ]
        check_same(found[row], sorted(right, key=lambda one: one.score, reverse=True))
        assert sum(math.exp(one.ctc_log_prob) for one in found[row]) == pytest.approx(1.0, abs=1e-5)


def test_the_most_probable_text_is_not_that_of_the_best_path():
    logits = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    (found,) = hfseq.ctc_beam_search(logits, blank_token_id=0, num_beams=3, num_return_sequences=3)
    assert [one.token_ids for one in found] == [[1], []]
    assert [one.ctc_log_prob for one in found] == pytest.approx([math.log(0.64), math.log(0.36)])


@pytest.mark.parametrize("name", [None, "lstm", "convs2s", "transformer"])
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_with_few_beams_it_is_the_search_over_dictionaries(beams, name):
    """Prefixes are dropped and come back, while texts that begin with them have stayed."""
    # Few tokens and many frames, so that texts come back; fewer where each is scored by a language model.
    logits = make_logits(*((100, 20, 3) if name is None else (12, 14, 4)), seed=beams, scale=1.0)
    logits[::3] *= 3
    model = None if name is None else make_lm(name, vocab_size=4)
    options = {} if model is None else {"language_model": model, "lm_weight": 0.4}
    options |= {"num_beams": beams, "num_return_sequences": beams, "length_bonus": 0.3}
    found = hfseq.ctc_beam_search(logits, blank_token_id=BLANK, **options)
    scores, all_back = NoScores() if model is None else Scores(model), 0
    for row, frames in zip(found, logits.double().log_softmax(-1), strict=True):
        right, _, back = naive_search(frames, beams, scores, 0.4, 0.3)
        check_same(row, right)
        all_back += back
    assert all_back > 30 or beams < 3 or name is not None


MASKS = st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=4)


def take(logits, mask, row):
    return logits[row : row + 1, torch.as_tensor(mask)[row]]


@given(masks=MASKS, seed=st.integers(0, 99), name=st.sampled_from([None, "gru", "convs2s", "transformer"]))
@settings(max_examples=40, deadline=None)
def test_padding_anywhere_and_other_rows_change_nothing(masks, seed, name):
    """A row's valid frames alone, and the whole batch with padding at both ends."""
    mask, logits = torch.tensor(masks), make_logits(len(masks), 7, 4, seed)
    logits[~mask] = torch.tensor([math.nan, 9.0, 9.0, -math.inf])
    options = {"blank_token_id": BLANK, "num_beams": 4, "num_return_sequences": 4, "output_offsets": True}
    if name is not None:
        options["language_model"] = make_lm(name, vocab_size=4)
    found = hfseq.ctc_beam_search(logits, mask.long(), **options)
    wide = hfseq.ctc_beam_search(
        torch.nn.functional.pad(logits, (0, 0, 2, 3)), torch.nn.functional.pad(mask, (2, 3)), **options
    )
    for row, steps in enumerate(mask):
        if steps.any():
            (alone,) = hfseq.ctc_beam_search(take(logits, mask, row), **options)
        else:
            (alone,) = hfseq.ctc_beam_search(torch.zeros(1, 1, 4), torch.zeros(1, 1), **options)
            assert [one.token_ids for one in alone] == [[]] and alone[0].ctc_log_prob == 0.0
        check_same(found[row], alone, 1e-5)
        if name is None:
            assert [one[:4] for one in found[row]] == [one[:4] for one in alone]
        check_same(wide[row], alone, 1e-5)
        places = steps.nonzero().flatten().tolist()
        for one, same, moved in zip(found[row], alone, wide[row], strict=True):
            assert one.start_offsets == [places[frame] for frame in same.start_offsets]
            assert one.end_offsets == [places[frame - 1] + 1 for frame in same.end_offsets]
            assert moved.start_offsets == [frame + 2 for frame in one.start_offsets]
            assert moved.end_offsets == [frame + 2 for frame in one.end_offsets]


def test_ties_do_not_depend_on_the_batch():
    """All texts of one length are equally probable here."""
    options = {"blank_token_id": BLANK, "num_beams": 5, "num_return_sequences": 5}
    mask = torch.arange(12) < torch.tensor([[3], [12], [6]])
    found = hfseq.ctc_beam_search(torch.zeros(3, 12, 6), mask, **options)
    for row, length in enumerate((3, 12, 6)):
        assert found[row] == hfseq.ctc_beam_search(torch.zeros(1, length, 6), **options)[0]


def test_a_gap_does_not_separate_equal_tokens():
    """Skipped frames are no blanks."""
    logits = torch.tensor([[[0.0, 9.0], [9.0, 0.0], [0.0, 9.0]]])
    for mask, text in (([1, 1, 1], [1, 1]), ([1, 0, 1], [1])):
        ((best,),) = hfseq.ctc_beam_search(logits, torch.tensor([mask]), blank_token_id=0)
        assert best.token_ids == text


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_the_language_model_reads_new_prefixes_alone_and_all_rows_at_once(name):
    model, read = make_lm(name, vocab_size=4), []
    model.register_forward_pre_hook(lambda *call: read.append(len(call[2]["input_ids"])), with_kwargs=True)
    logits = make_logits(5, 8, 4)
    hfseq.ctc_beam_search(logits, blank_token_id=BLANK, num_beams=6, language_model=model, lm_weight=0.5)
    calls, seen = len(read), sum(read)
    scores = Scores(model)
    right = [naive_search(frames, 6, scores, 0.5, 0.0)[1] for frames in logits.double().log_softmax(-1)]
    # The empty prefix is the same for all.
    assert seen == 1 + sum(right) and calls <= 1 + 8 and max(read) <= 5 * 6


def test_it_computes_in_float32_or_more():
    logits = make_logits(2, 9, 4)
    options = {"blank_token_id": BLANK, "num_beams": 3, "num_return_sequences": 3}
    for dtype in (torch.bfloat16, torch.float16):
        low = logits.to(dtype)
        assert hfseq.ctc_beam_search(low, **options) == hfseq.ctc_beam_search(low.float(), **options)
        labels = [[1, 2], [3]]
        aligned = [hfseq.ctc_alignment(one, labels, blank_token_id=BLANK) for one in (low, low.float())]
        assert aligned[0] == aligned[1]
    for row, frames in zip(hfseq.ctc_beam_search(logits.double(), **options), logits.double(), strict=True):
        check_same(row, naive_search(frames.log_softmax(-1), 3, NoScores(), 0.0, 0.0)[0], 1e-12)


def test_log_probabilities_are_logits():
    logits = make_logits(2, 9, 4)
    found, same = (hfseq.ctc_beam_search(one, blank_token_id=BLANK) for one in (logits, logits.log_softmax(-1)))
    for row, other in zip(found, same, strict=True):
        check_same(row, other, 1e-5)


def test_float32_is_enough_for_a_long_recording():
    """Plain sums of thousands would lose the digits by which texts differ."""
    logits = make_logits(2, 800, 64, scale=1.0)
    model = make_lm("gru", vocab_size=64)
    options = {"blank_token_id": BLANK, "num_beams": 4, "language_model": model, "length_bonus": 0.5}
    found = hfseq.ctc_beam_search(logits, output_offsets=True, **options)
    for row, right in zip(found, hfseq.ctc_beam_search(logits.double(), output_offsets=True, **options), strict=True):
        assert row[0].token_ids == right[0].token_ids and len(row[0].token_ids) > 400
        assert row[0].start_offsets == right[0].start_offsets
        assert row[0].ctc_log_prob == pytest.approx(right[0].ctc_log_prob, abs=1e-4)
        assert row[0].lm_log_prob == pytest.approx(right[0].lm_log_prob, abs=1e-4)


def test_one_beam_is_the_best_path_where_one_symbol_prevails():
    """The bound of the docstring, on frames that are just above it, with all of the rest on one other symbol."""
    generator = torch.Generator().manual_seed(0)
    for probability in (0.7072, 0.8, 0.99):
        best, other = torch.randint(0, 3, (2, 400, 12), generator=generator)
        rest = torch.where(best == other, (other + 1) % 3, other)
        frames = torch.full((400, 12, 3), 1e-9)
        frames.scatter_(2, best.unsqueeze(2), probability).scatter_(2, rest.unsqueeze(2), 1 - probability)
        found = hfseq.ctc_beam_search(frames.log(), blank_token_id=BLANK, num_beams=1)
        assert [tuple(row[0].token_ids) for row in found] == [text_of(path) for path in best.tolist()]
    # A little below it, both may differ.
    frames = torch.tensor([[[0.1, 0.9], [0.69, 0.31], [0.31, 0.69]]])
    ((found,),) = hfseq.ctc_beam_search(frames.log(), blank_token_id=BLANK, num_beams=1)
    assert found.token_ids == [1] and text_of(frames[0].argmax(-1).tolist()) == (1, 1)


@pytest.mark.parametrize(
    ("fields", "start", "ends"),
    [
        ({}, None, (2,)),
        ({"eos_token_id": None}, 1, ()),
        ({"eos_token_id": [3, 2]}, None, (3, 2)),
        ({}, 1, (2,)),
    ],
    ids=["EOS", "no EOS", "two EOS", "BOS first"],
)
@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_where_a_text_begins_and_ends_for_the_language_model(name, fields, start, ends):
    model, logits = make_lm(name, vocab_size=5, **fields), make_logits(2, 6, 5)
    options = {"num_beams": 4, "num_return_sequences": 4, "language_model": model, "lm_start_token_id": start}
    found = hfseq.ctc_beam_search(logits, blank_token_id=4, **options)
    scores = Scores(model, start=ends[0] if start is None else start, ends=ends)
    for row in found:
        for one in row:
            assert one.lm_log_prob == pytest.approx(scores.text(tuple(one.token_ids)), abs=1e-4)
            assert one.score == pytest.approx(one.ctc_log_prob + 0.5 * one.lm_log_prob, abs=1e-4)


def test_a_weight_of_0_only_reports_the_score_of_the_language_model():
    model, logits = make_lm(vocab_size=4), make_logits(3, 8, 4)
    options = {"blank_token_id": BLANK, "num_beams": 4, "num_return_sequences": 4}
    plain = hfseq.ctc_beam_search(logits, **options)
    found = hfseq.ctc_beam_search(logits, language_model=model, lm_weight=0.0, **options)
    for row, other in zip(found, plain, strict=True):
        check_same([one._replace(lm_log_prob=0.0) for one in row], other, 1e-5)
        assert all(one.lm_log_prob < 0 for one in row)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_token_that_the_language_model_forbids(weight):
    model, logits = make_lm(vocab_size=4), make_logits(1, 5, 4)
    logits[:, :, 2:] -= 9

    def forbid(module, call, output):
        output.logits[:, :, 1] = -math.inf

    model.register_forward_hook(forbid)
    options = {"num_beams": 200, "num_return_sequences": 200, "language_model": model, "lm_weight": weight}
    (found,) = hfseq.ctc_beam_search(logits, blank_token_id=BLANK, **options)
    (free,) = hfseq.ctc_beam_search(logits, blank_token_id=BLANK, num_beams=200, num_return_sequences=200)
    assert {tuple(one.token_ids) for one in found} == {tuple(one.token_ids) for one in free}
    for one in found:
        assert (one.lm_log_prob == -math.inf) == (1 in one.token_ids)
    assert (1 in found[0].token_ids) == (weight == 0.0)


def test_tokens_of_probability_0_are_never_emitted():
    logits = make_logits(2, 5, 4)
    logits[0, :, 1], logits[1, :, BLANK] = -math.inf, -math.inf
    found = hfseq.ctc_beam_search(logits, blank_token_id=BLANK, num_beams=300, num_return_sequences=300)
    for row, frames in zip(found, logits.double().log_softmax(-1), strict=True):
        texts = {text: value for text, value in all_texts(frames).items() if value > -math.inf}
        right = [CtcHypothesis(list(text), value, value, 0.0) for text, value in texts.items()]
        check_same(row, sorted(right, key=lambda one: one.score, reverse=True))
    blank_alone = hfseq.ctc_beam_search(torch.zeros(1, 3, 1), blank_token_id=0)
    assert [one.token_ids for one in blank_alone[0]] == [[]]


def test_the_model_does_not_drop_out():
    model, logits = make_lm(dropout=0.5, vocab_size=4), make_logits(2, 8, 4)
    found = hfseq.ctc_beam_search(logits, blank_token_id=BLANK, language_model=model)
    assert hfseq.ctc_beam_search(logits, blank_token_id=BLANK, language_model=model.train()) == found


def best_alignments(frames, text):
    """All alignments of a text with their log-probabilities, the best first."""
    found = [
        (sum(frames[step, token].item() for step, token in enumerate(path)), path)
        for path in itertools.product(range(frames.shape[1]), repeat=frames.shape[0])
        if text_of(path) == text
    ]
    return sorted(found, reverse=True)


@given(masks=MASKS, seed=st.integers(0, 99), texts=st.lists(st.lists(st.integers(1, 2), max_size=4), min_size=4))
@settings(max_examples=40, deadline=None)
def test_the_alignment_is_the_best_of_all(masks, seed, texts):
    mask, logits = torch.tensor(masks), make_logits(len(masks), 7, 3, seed)
    for row, steps in enumerate(mask):
        while len(texts[row]) + sum(a == b for a, b in itertools.pairwise(texts[row])) > steps.sum():
            texts[row].pop()
    labels = torch.full((len(masks), 6), -100)
    for row, text in enumerate(texts[: len(masks)]):
        labels[row, 1 : 1 + len(text)] = torch.tensor(text, dtype=torch.long)
    logits[~mask] = math.nan
    found = hfseq.ctc_alignment(logits, labels, mask, blank_token_id=BLANK)
    assert found == hfseq.ctc_alignment(logits, texts[: len(masks)], mask.long(), blank_token_id=BLANK)
    for row, steps in enumerate(mask):
        places, text = steps.nonzero().flatten().tolist(), texts[row]
        total, path = best_alignments(take(logits, mask, row)[0].double().log_softmax(-1), tuple(text))[0]
        assert found[row].log_prob == pytest.approx(total, abs=1e-4)
        runs, step = [], 0
        for token, frames in itertools.groupby(path):
            length = len(list(frames))
            if token != BLANK:
                runs.append((places[step], places[step + length - 1] + 1))
            step += length
        assert list(zip(found[row].start_offsets, found[row].end_offsets, strict=True)) == runs


def test_offsets_of_hypotheses_are_those_of_their_alignments():
    logits = make_logits(3, 9, 4)
    options = {"blank_token_id": BLANK, "num_beams": 4, "num_return_sequences": 3}
    plain = hfseq.ctc_beam_search(logits, **options)
    for row, (found, same) in enumerate(
        zip(hfseq.ctc_beam_search(logits, output_offsets=True, **options), plain, strict=True)
    ):
        aligned = hfseq.ctc_alignment(logits[[row] * 3], [one.token_ids for one in found], blank_token_id=BLANK)
        assert [one[:4] for one in found] == [one[:4] for one in same]
        assert [one[4:] for one in found] == [(one.start_offsets, one.end_offsets) for one in aligned]
        assert all(one.start_offsets is None and one.end_offsets is None for one in same)


NAN, ALL_IMPOSSIBLE = torch.zeros(2, 5, 4), torch.zeros(2, 5, 4)
NAN[1, 3, 2] = math.nan
ALL_IMPOSSIBLE[0, 4] = -math.inf


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        (
            torch.zeros(5, 4),
            {},
            "logits: expected numbers of shape (batch, frames, vocabulary), each at least 1, got ",
        ),
        (torch.zeros(2, 0, 4), {}, "got float32 of shape (2, 0, 4)"),
        (torch.zeros(0, 5, 4), {}, "got float32 of shape (0, 5, 4)"),
        (torch.zeros(2, 5, 4).long(), {}, "got int64 of shape (2, 5, 4)"),
        (NAN, {}, "logits: row 1, frame 3 has NaN or infinite values"),
        (ALL_IMPOSSIBLE, {}, "logits: row 0, frame 4 has NaN or infinite values"),
        (None, {"blank_token_id": 4}, "blank_token_id: 4 is not a token of the logits, which have 4"),
        (None, {"blank_token_id": -1}, "blank_token_id: -1 is not a token"),
        (None, {"attention_mask": torch.ones(2, 10)}, "attention_mask has shape (2, 10), the logits have frames of"),
        (None, {"num_beams": 0}, "num_beams: 0 is too few, at least 1 is needed"),
        (
            None,
            {"num_beams": 2, "num_return_sequences": 3},
            "num_return_sequences: 3 is not between 1 and num_beams, 2",
        ),
        (None, {"num_return_sequences": 0}, "num_return_sequences: 0 is not between 1 and"),
        (None, {"lm_weight": -0.5}, "lm_weight: -0.5 is not a number of at least 0"),
        (None, {"lm_weight": math.nan}, "lm_weight: nan is not a number of at least 0"),
        (None, {"length_bonus": math.inf}, "length_bonus: inf is not a finite number"),
        (None, {"lm_token_ids": torch.arange(4)}, "lm_token_ids and lm_start_token_id need a language_model"),
        (None, {"lm_start_token_id": 1}, "lm_token_ids and lm_start_token_id need a language_model"),
    ],
)
def test_what_is_refused(logits, options, message):
    with pytest.raises(InputError) as caught:
        hfseq.ctc_beam_search(torch.zeros(2, 5, 4) if logits is None else logits, **{"blank_token_id": 0} | options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "language_model has a vocabulary of 7 tokens, the logits have 4: lm_token_ids must map these to those"),
        ({"lm_token_ids": torch.arange(3)}, "lm_token_ids: expected token ids of shape (4,), one for each token of"),
        ({"lm_token_ids": torch.arange(4.0)}, "got float32 of shape (4,)"),
        ({"lm_token_ids": torch.tensor([0, 1, 7, 2])}, "lm_token_ids: token 2 is mapped to 7, which is not between 0"),
        ({"lm_token_ids": torch.tensor([0, -1, 5, 2])}, "token 1 is mapped to -1, which is not between 0 and 6"),
        ({"lm_start_token_id": 7}, "lm_start_token_id: 7 is not between 0 and 6"),
        ({"lm_start_token_id": -1}, "lm_start_token_id: -1 is not between 0 and 6"),
        (
            {"language_model": make_lm(eos_token_id=None)},
            "lm_start_token_id is needed, since the language model has no",
        ),
        (
            {"language_model": hfseq.LstmForConditionalGeneration(LstmConfig(vocab_size=7, **SIZES))},
            "language_model: LstmForConditionalGeneration is not a causal language model, …ForCausalLM",
        ),
        ({"language_model": hfseq.LstmModel(LstmConfig(vocab_size=7, **SIZES))}, "LstmModel is not a causal language"),
    ],
)
def test_language_models_that_are_refused(options, message):
    options = (
        {"language_model": make_lm()}
        | ({} if "vocabulary" in message else {"lm_token_ids": torch.arange(4)})
        | options
    )
    with pytest.raises(InputError) as caught:
        hfseq.ctc_beam_search(torch.zeros(2, 5, 4), blank_token_id=0, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_language_model():
    model = make_lm(vocab_size=4)
    model.lm_head.weight.data[:] = math.nan
    with pytest.raises(InputError, match="language_model: its logits are NaN"):
        hfseq.ctc_beam_search(torch.zeros(2, 5, 4), blank_token_id=0, language_model=model, lm_weight=0.0)


IMPOSSIBLE = torch.zeros(2, 5, 4)
IMPOSSIBLE[1, :, 3] = -math.inf


@pytest.mark.parametrize(
    ("labels", "logits", "message"),
    [
        ([[1]], None, "labels: 1 rows for 2 rows of logits"),
        ([[1], [2, 0]], None, "labels: row 1 has the token 0, which is the blank"),
        ([[1], [4]], None, "labels: row 1 has the token 4, which is not between 0 and 3"),
        ([[-1], [2]], None, "labels: row 0 has the token -1, which is not between 0 and 3"),
        ([[1, 2, 3, 1, 2, 3], [1]], None, "row 0 has 5 frames, too few for 6 labels"),
        (
            torch.tensor([[1, 2, 3, 1, 2], [1, 1, -100, 1, 1]]),
            None,
            "row 1 has 5 frames, too few for 4 labels, of which 3 repeat the one before and need a blank between",
        ),
        ([[1], [3]], IMPOSSIBLE, "row 1: the logits give its labels a probability of 0"),
        ([[1], [3]], NAN, "logits: row 1, frame 3 has NaN or infinite values"),
    ],
)
def test_labels_that_cannot_be_aligned(labels, logits, message):
    with pytest.raises(InputError) as caught:
        hfseq.ctc_alignment(torch.zeros(2, 5, 4) if logits is None else logits, labels, blank_token_id=0)
    assert message in str(caught.value) and "\n" not in str(caught.value)

"""Beam search: what the loop of transformers finds, with finished sentences out of the batch."""

import pytest
import served_models
import torch
from token_classes import MODEL_CLASSES
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    StoppingCriteria,
    StoppingCriteriaList,
    pipeline,
)
from transformers.generation import GenerationMixin, MaxLengthCriteria

import hfseq
from hfseq.models import beam_search, generation

OPTIONS = {
    "plain": {},
    "early": {"early_stopping": True, "num_return_sequences": 3},
    "never": {"early_stopping": "never", "length_penalty": 0.5, "num_return_sequences": 2},
    "long": {"length_penalty": 2.0, "min_new_tokens": 3},
    "short": {"length_penalty": -1.0, "no_repeat_ngram_size": 2},
    "of_the_row": {"repetition_penalty": 1.3, "early_stopping": True},
    "two_ends": {"eos_token_id": [2, 4], "pad_token_id": 1, "num_return_sequences": 4},
    "endless": {"eos_token_id": None, "max_new_tokens": 5},
    "one_token": {"max_new_tokens": 1, "num_return_sequences": 4},
}


@pytest.fixture
def sizes(monkeypatch):
    """Numbers of sentences in each batch of the decoder after the first."""
    found = []

    def search(model, *args, **kwargs):
        made = model.make_decode_step

        def make(cache, **more):
            step = made(cache, **more)
            return lambda ids: (found.append(len(ids) // 4), step(ids))[1]

        model.make_decode_step = make
        return beam_search.beam_search(model, *args, **kwargs)

    monkeypatch.setattr(generation, "beam_search", search)
    return found


def make(config_class, auto_class, **fields):
    torch.manual_seed(1)
    fields = {"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 2, "initializer_range": 1.0} | fields
    model = auto_class.from_config(config_class(**fields)).eval()
    ids = torch.randint(3, fields["vocab_size"], (18, 6))
    mask = (torch.arange(6) >= torch.arange(18).unsqueeze(1) % 5).long()
    return model, {"input_ids": ids * mask, "attention_mask": mask, "num_beams": 4, "max_new_tokens": 12}


@pytest.mark.parametrize("config_class", MODEL_CLASSES)
@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, AutoModelForSeq2SeqLM])
@pytest.mark.parametrize("options", OPTIONS)
def test_finds_what_transformers_finds(config_class, auto_class, options, sizes):
    model, inputs = make(config_class, auto_class)
    inputs |= OPTIONS[options]
    expected = GenerationMixin.generate(model, **inputs)
    assert model.generate(**inputs).tolist() == expected.tolist()
    assert sizes or inputs["max_new_tokens"] == 1


@pytest.mark.parametrize(
    ("config_class", "fields"),
    [
        (hfseq.GruConfig, {"attention_type": "additive", "coverage": True, "input_feeding": True}),
        (hfseq.LstmConfig, {"attention_type": "additive", "bridge": "relu"}),
        (hfseq.RnnConfig, {"attention_type": "none", "bridge": "copy", "bidirectional": False}),
        (hfseq.CnnConfig, {"architecture": "gated"}),
    ],
)
def test_beams_of_a_sentence_share_its_source(config_class, fields, sizes):
    model, inputs = make(config_class, AutoModelForSeq2SeqLM, **fields)
    inputs |= {"early_stopping": True, "eos_token_id": [2, 4]}
    expected = GenerationMixin.generate(model, **inputs)
    rows, read = [], model.decoder.read_source
    model.decoder.read_source = lambda batch, *args, **kwargs: (rows.append(batch), read(batch, *args, **kwargs))[1]
    assert model.generate(**inputs).tolist() == expected.tolist()
    assert max(rows) == 18 and sizes[-1] < 18


@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, AutoModelForSeq2SeqLM])
def test_finished_sentences_leave(auto_class, sizes):
    model, inputs = make(hfseq.GruConfig, auto_class, num_hidden_layers=1, initializer_range=1.5)
    inputs |= {"early_stopping": True, "max_new_tokens": 20}
    expected = GenerationMixin.generate(model, **inputs)
    assert model.generate(**inputs).tolist() == expected.tolist()
    assert sizes[0] == 18 and sizes[-1] < 14 and sizes == sorted(sizes, reverse=True)
    sizes.clear()
    # Its processor may have a row for each sentence.
    model.generate(**inputs, repetition_penalty=1.3)
    assert {*sizes} == {18}


@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, AutoModelForSeq2SeqLM])
def test_stopping_criteria_see_the_candidates(auto_class, sizes):
    class Twice(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -1] == input_ids[:, -2]

    model, inputs = make(hfseq.GruConfig, auto_class)
    inputs |= {"max_time": 100.0}
    plain = model.generate(**inputs).tolist()
    expected = GenerationMixin.generate(model, **inputs, stopping_criteria=StoppingCriteriaList([Twice()]))
    found = model.generate(**inputs, stopping_criteria=StoppingCriteriaList([Twice()]))
    assert found.tolist() == expected.tolist() != plain
    assert sizes


@pytest.mark.parametrize("size", [3, 10, 63, 512, 1280, 1999])
def test_best_continuations(size):
    generator = torch.Generator().manual_seed(0)
    values, scores = torch.randn(5, 4, size, generator=generator), torch.randn(5, 4, generator=generator)
    values[0].sort()
    values[1, :, -3:] += 10
    values[2, 1] = -torch.inf
    best, parents, tokens = beam_search.best_continuations(values, scores, 10)
    totals = (values + scores.unsqueeze(-1)).flatten(1)
    at = parents * size + tokens
    assert torch.equal(best, totals.topk(10).values) and torch.equal(best, totals.gather(1, at))
    assert all(len({*row}) == 10 for row in at.tolist())


def test_what_it_does_not_honour_is_left_to_transformers(sizes):
    model, inputs = make(hfseq.LstmConfig, AutoModelForCausalLM)
    for options in ({"do_sample": True}, {"return_dict_in_generate": True}, {"use_cache": False}):
        model.generate(**inputs, **options)
    assert not sizes


@pytest.mark.parametrize("task", ["text-generation", "translation"])
@pytest.mark.parametrize(("beams", "name"), [(1, "decode"), (3, "beam_search")])
def test_pipelines_use_the_loops_of_the_models(task, beams, name, tmp_path, monkeypatch):
    """They fill the generation config with values that do nothing."""
    makers = {"text-generation": served_models.language_model} | served_models.MAKERS
    pipe = pipeline(task, model=str(makers[task](tmp_path / "model")), device="cpu")
    calls, loop = [], getattr(generation, name)
    monkeypatch.setattr(generation, name, lambda *args, **kwargs: (calls.append(1), loop(*args, **kwargs))[1])
    pipe(["a b", "c"], num_beams=beams, max_new_tokens=3, do_sample=False, batch_size=2)
    assert len(calls) == 1


class OfTheRow(StoppingCriteria):
    """Ends the candidates of each sentence at a length of its own."""

    def __init__(self):
        self.rows = torch.arange(18)

    def __call__(self, input_ids, scores, **kwargs):
        candidates = len(input_ids) // len(self.rows)
        assert len(input_ids) == len(self.rows) * candidates
        return input_ids.shape[1] >= 3 + self.rows.repeat_interleave(candidates) % 6


class Following(OfTheRow, beam_search.SentenceCriteria):
    def select(self, rows):
        self.rows = self.rows[rows]


@pytest.mark.parametrize("criterion", [OfTheRow(), Following(), MaxLengthCriteria(4)])
def test_criteria_of_rows_and_of_the_length(criterion, sizes):
    model, inputs = make(hfseq.GruConfig, AutoModelForSeq2SeqLM)
    inputs |= {"stopping_criteria": StoppingCriteriaList([criterion])}
    expected = GenerationMixin.generate(model, **inputs)
    assert model.generate(**inputs).tolist() == expected.tolist() and sizes
    assert (sizes[-1] < 18) == isinstance(criterion, Following)

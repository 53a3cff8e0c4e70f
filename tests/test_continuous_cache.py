"""The continuous cache against the paper's equations, word by word."""

import math

import pytest
import torch
from recipe_runs import results, start
from test_language_modeling import RECIPE, data, trained  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfseq import LstmConfig, LstmForCausalLM
from hfseq.data.running_text import TokenWindows, encode_text
from hfseq.errors import InputError
from hfseq.inference.continuous_cache import FLATNESS, cached_scores, token_scores
from hfseq.inference.mixtures import MixtureScores


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = LstmForCausalLM(LstmConfig(vocab_size=6, hidden_size=4, num_hidden_layers=2))
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -2, 2)
    return model.eval()


IDS = [3, 5, 3, 4, 5, 3, 3, 4, 1, 5, 3, 4]


@torch.no_grad()
def by_hand(model, size, flatness):
    """Probabilities of all words at each step, by the model and by the cache."""
    outputs = model(torch.tensor([IDS]), output_hidden_states=True)
    states, rows = outputs.hidden_states[-1][0], []
    for step in range(len(IDS) - 1):
        row = torch.zeros(6)
        for earlier in range(max(step - size, 0), step):
            row[IDS[earlier + 1]] += math.exp(flatness * float(states[step] @ states[earlier]))
        rows.append(row / row.sum() if step else outputs.logits[0, 0].softmax(dim=-1))
    return outputs.logits[0, :-1].softmax(dim=-1), torch.stack(rows)


@pytest.mark.parametrize("length", [1, 4, 50])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_probabilities_are_the_papers(model, size, length):
    found = cached_scores(model, TokenWindows(IDS, length, 1), size, [0.3, 1.1], carry=True)
    targets = torch.tensor(IDS[1:])[:, None]
    for index, flatness in enumerate((0.3, 1.1)):
        by_model, by_cache = by_hand(model, size, flatness)
        torch.testing.assert_close(by_cache.sum(dim=1), torch.ones(len(IDS) - 1))
        torch.testing.assert_close(found.model.exp(), by_model.gather(1, targets).squeeze(1))
        torch.testing.assert_close(found.cache[index], by_cache.gather(1, targets).squeeze(1))
    assert torch.equal(token_scores(model, TokenWindows(IDS, length, 1), carry=True), found.model)


def test_each_window_on_its_own(model):
    windows = TokenWindows(IDS, 4, 1)
    found = cached_scores(model, windows, 5, [0.5], carry=False)
    with torch.no_grad():
        expected = [model(window["input_ids"]).logits[0].log_softmax(dim=-1) for window in windows]
    torch.testing.assert_close(found.model, torch.cat(expected).gather(1, torch.tensor(IDS[1:])[:, None]).squeeze(1))


def test_a_text_at_several_places_is_refused(model):
    with pytest.raises(InputError, match="needs a batch size of 1"):
        cached_scores(model, TokenWindows(IDS, 4, 2), 5, [0.5], carry=True)


def test_the_recipe_scores_with_a_cache(data, trained, tmp_path, capsys):  # noqa: F811
    flags = ["--do_predict", "--model_name_or_path", trained, "--test_file", data / "test.txt", "--use_cpu"]
    flags += ["--output_dir", tmp_path / "scored", "--cache_size", "30"]
    with pytest.raises(InputError, match="--cache_size requires a validation text"):
        start(RECIPE, flags)
    start(RECIPE, [*flags, "--validation_file", data / "val.txt"])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)

    def read(name):
        ids = encode_text((data / name).read_text().removesuffix("\n").split("\n"), tokenizer).ids
        scores, cache = cached_scores(model, TokenWindows(ids, 10, 1), 30, FLATNESS, carry=True)
        return MixtureScores(scores, {"cache": cache})

    shares = read("val.txt").best("cache")
    index, weight = shares["cache"]
    found = read("test.txt")
    scores = results(tmp_path / "scored")
    assert scores["test_cache_loss"] == pytest.approx(found.total(shares) / len(found.model), rel=1e-5)
    assert scores["test_loss"] == pytest.approx(-found.model.mean().item(), rel=1e-5)
    printed = capsys.readouterr().out
    assert f"cache of 30 tokens (flatness {FLATNESS[index]}, weight {weight}), tuned on validation" in printed

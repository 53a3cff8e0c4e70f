"""The CRF against all label sequences, one by one."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForTokenClassification

from hfseq import CnnConfig, GruConfig, LstmConfig, RnnConfig
from hfseq.models.crf import LinearChainCrf


def crf(labels, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    layer = LinearChainCrf(labels).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def score(layer, emissions, path):
    total = layer.start[path[0]] + layer.end[path[-1]]
    total = total + sum(emissions[step, label] for step, label in enumerate(path))
    return total + sum(layer.transitions[one, other] for one, other in itertools.pairwise(path))


def all_scores(layer, emissions):
    paths = list(itertools.product(range(emissions.shape[1]), repeat=emissions.shape[0]))
    return paths, torch.stack([score(layer, emissions, path) for path in paths])


@given(
    masks=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4), seed=st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_it_is_brute_force_wherever_the_padding_is(masks, seed):
    layer, mask = crf(3, seed), torch.tensor(masks)
    emissions, labels = torch.randn(len(masks), 5, 3), torch.randint(0, 3, (len(masks), 5))
    labels[~mask] = -100
    found = layer.log_likelihood(emissions, labels, mask)
    marginals, decoded = layer.max_marginals(emissions, mask), layer.decode(emissions, mask)
    for row, steps in enumerate(mask):
        if not steps.any():
            assert found[row] == 0 and not marginals[row].any()
            continue
        paths, scores = all_scores(layer, emissions[row, steps])
        right = labels[row, steps].tolist()
        torch.testing.assert_close(found[row], scores[paths.index(tuple(right))] - scores.logsumexp(0))
        assert decoded[row, steps].tolist() == list(paths[scores.argmax()])
        for step, number in enumerate(steps.nonzero().flatten()):
            for label in range(3):
                through = scores[torch.tensor([path[step] == label for path in paths])].max()
                torch.testing.assert_close(marginals[row, number, label], through)
        assert not marginals[row, ~steps].any()


def test_probabilities_of_all_sequences_sum_to_one():
    layer, emissions = crf(3), torch.randn(1, 4, 3)
    paths = torch.tensor(list(itertools.product(range(3), repeat=4)))
    total = layer.log_likelihood(emissions.expand(len(paths), -1, -1), paths, torch.ones_like(paths, dtype=torch.bool))
    torch.testing.assert_close(total.exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("mask", [[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]])
def test_gradients(mask):
    layer, mask = crf(3), torch.tensor([mask, [1, 1, 0, 0]]).bool()
    emissions, labels = torch.randn(2, 4, 3, requires_grad=True), torch.randint(0, 3, (2, 4))
    layer.log_likelihood(emissions, labels, mask).sum().backward()
    assert torch.equal(emissions.grad.abs().sum(-1) > 0, mask)
    # The gradient of a log-likelihood is what was seen less what is expected, so it sums to zero at each step.
    torch.testing.assert_close(emissions.grad.sum(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in layer.parameters())


@pytest.mark.parametrize("config", [RnnConfig, LstmConfig, GruConfig, CnnConfig])
def test_a_tagger_with_it(config, tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 8, "embedding_size": 6, "dropout": 0.0, "num_labels": 3, "crf": True}
    model = AutoModelForTokenClassification.from_config(config(**sizes))
    for parameter in model.crf.parameters():
        torch.nn.init.normal_(parameter)
    ids, labels = torch.randint(4, 30, (2, 6)), torch.randint(0, 3, (2, 6))
    ids[0, 4], ids[1, 5] = 2, 2  # the ends of the texts
    mask = torch.ones_like(ids)
    ids[0, 5] = mask[0, 5] = 0
    labels[0, 4:], labels[1, 5] = -100, -100
    emissions = model.train()(ids, attention_mask=mask).logits
    training = model(ids, attention_mask=mask, labels=labels)
    outputs = model.eval()(ids, attention_mask=mask, labels=labels)
    total = 0.0
    for row, length in enumerate((4, 5)):
        paths, scores = all_scores(model.crf, emissions[row, :length])
        total += scores.logsumexp(0) - scores[paths.index(tuple(labels[row, :length].tolist()))]
        assert outputs.logits[row, :length].argmax(-1).tolist() == list(paths[scores.argmax()])
        assert outputs.logits[row, :length].amax(-1).tolist() == pytest.approx(
            [scores.max().item()] * length, rel=1e-5
        )
    for loss in (training.loss, outputs.loss):
        torch.testing.assert_close(loss, total / 9)
    torch.testing.assert_close(model(ids, attention_mask=mask, labels=labels, num_items_in_batch=3).loss, total / 3)
    # Padding in front changes nothing.
    front = torch.zeros(2, 2, dtype=torch.long)
    moved = model(torch.cat([front, ids], 1), attention_mask=torch.cat([front, mask], 1)).logits
    torch.testing.assert_close(moved[:, 2:][mask == 1], outputs.logits[mask == 1])
    training.loss.backward()
    assert all(parameter.grad.any() for parameter in model.crf.parameters())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded(ids, attention_mask=mask).logits, outputs.logits)


def test_labels_beside_the_chain_are_as_if_they_were_not_there():
    sizes = {"vocab_size": 30, "hidden_size": 8, "dropout": 0.0, "num_labels": 3, "crf": True, "bidirectional": False}
    model = AutoModelForTokenClassification.from_config(LstmConfig(**sizes)).eval()
    ids, labels = torch.randint(4, 30, (1, 5)), torch.tensor([[0, 1, -100, 2, -100]])
    emissions = model.train()(ids).logits
    loss = model(ids, labels=labels).loss
    keep = labels[0] != -100
    by_hand = -model.crf.log_likelihood(emissions[:, keep], labels[:, keep], torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(loss, by_hand.sum() / 3)
    embeds = model.model.embed_tokens(ids)
    torch.testing.assert_close(model(inputs_embeds=embeds, labels=labels).loss, loss)

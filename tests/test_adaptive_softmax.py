import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from hfseq import CnnConfig, GruConfig, LstmConfig, RnnConfig
from hfseq.data.running_text import TokenWindows
from hfseq.models.adaptive_softmax import AdaptiveSoftmax
from hfseq.tasks.language_modeling import text_loss

CUTOFFS = [5, 9, 10]
SIZES = {"vocab_size": 20, "hidden_size": 8, "embedding_size": 6, "dropout": 0.0, "adaptive_softmax_cutoffs": CUTOFFS}
FAMILIES = [RnnConfig, LstmConfig, GruConfig, CnnConfig]


def naive(hidden, layer, weight):
    """Grave et al. 2017, section 4, word by word: p(w | h) = p(cluster | h) p(w | cluster, h)."""
    edges = [0, *CUTOFFS, len(weight)]
    scores, entries = hidden @ weight.T, hidden @ layer.clusters.weight.T
    head = torch.cat([scores[: edges[1]], entries]).exp()
    result = []
    for word in range(len(weight)):
        cluster = sum(word >= edge for edge in edges[1:-1])
        if cluster == 0:
            result.append(head[word] / head.sum())
            continue
        inside = scores[edges[cluster] : edges[cluster + 1]].exp()
        result.append(head[edges[1] + cluster - 1] / head.sum() * scores[word].exp() / inside.sum())
    return torch.stack(result)


def test_probabilities_are_those_of_the_paper_and_the_loss_is_theirs():
    torch.manual_seed(0)
    layer = AdaptiveSoftmax(6, 20, CUTOFFS).double()
    weight = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    found = layer(hidden, weight)
    expected = torch.stack([torch.stack([naive(step, layer, weight) for step in row]) for row in hidden])
    # In float32, as every loss.
    torch.testing.assert_close(found.exp().double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 7))
    targets = torch.randint(0, 20, (2, 7))
    targets[0, :3] = torch.tensor([-100, 4, 5])
    parameters = [hidden, weight, layer.clusters.weight]
    by_words = cross_entropy(layer(hidden, weight).flatten(0, 1), targets.flatten(), reduction="sum")
    loss = layer.loss(hidden, weight, targets)
    torch.testing.assert_close(loss, by_words)
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(by_words, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    nothing = layer.loss(hidden, weight, torch.full((2, 7), -100))
    assert nothing.item() == 0 and torch.autograd.grad(nothing, hidden)[0].abs().max() == 0


@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_learns_by_it_what_it_says_without_labels(config, tied, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SIZES, tie_word_embeddings=tied))
    ids = torch.randint(4, 20, (3, 9))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    training = model.train()(input_ids=ids, attention_mask=mask, labels=labels)
    assert training.logits is None
    evaluated = model.eval()(input_ids=ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(training.loss, evaluated.loss)
    torch.testing.assert_close(evaluated.logits.exp().sum(-1), torch.ones(3, 9))
    alone = model(input_ids=ids, attention_mask=mask, labels=labels, skip_logits=True)
    assert alone.logits is None
    torch.testing.assert_close(alone.loss, evaluated.loss)
    assert torch.equal(model(input_ids=ids, attention_mask=mask, skip_logits=True).logits, evaluated.logits)
    # As running text is evaluated, without the logits.
    seen = []
    hook = model.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.logits))
    windows = TokenWindows(ids.flatten(), 5, 2)
    total, count = text_loss(model, windows, carry=False)
    hook.remove()
    assert seen == [None] * len(windows)
    by_words = [
        cross_entropy(model(one["input_ids"]).logits.flatten(0, 1), one["labels"].flatten(), reduction="sum")
        for one in windows
    ]
    assert (total, count) == (pytest.approx(sum(by_words).item(), rel=1e-5), ids.numel() - 1)
    training.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    # With a divisor, as a Trainer gives it.
    total = model.train()(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=1).loss
    torch.testing.assert_close(total, training.loss * ((labels[:, 1:] != -100) & (mask[:, 1:] == 1)).sum())

    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    assert torch.equal(loaded.generate(ids, **options), model.generate(ids, **options))
    # Its stack can start a classifier, without a word about what is left over.
    AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("cutoffs", [[], [0, 5], [5, 5], [9, 5], [20], [-1]])
def test_impossible_cutoffs(cutoffs):
    with pytest.raises(ValueError, match="adaptive_softmax_cutoffs"):
        LstmConfig(**SIZES | {"adaptive_softmax_cutoffs": cutoffs})


NARROW = SIZES | {"hidden_size": 32, "tie_word_embeddings": False, "adaptive_softmax_div_value": 2.5}


@pytest.mark.parametrize(("config", "bias"), [(LstmConfig, True), (CnnConfig, False)])
def test_narrower_clusters_are_those_of_torch(config, bias, tmp_path):
    """With no bias in the clusters, which torch does not have."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**NARROW, lm_head_bias=bias)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    layer, tails = model.adaptive_softmax, model.adaptive_softmax.tails
    assert [tail[0].out_features for tail in tails] == [12, 5, 2]
    state = {"head.weight": torch.cat([model.lm_head.weight, layer.clusters.weight])}
    if bias:
        state["head.bias"] = torch.cat([model.lm_head.bias, layer.clusters.bias])
    for place, tail in enumerate(tails):
        state |= {f"tail.{place}.{part}.weight": tail[part].weight for part in (0, 1)}
        if bias:
            torch.nn.init.zeros_(tail[1].bias)
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(32, 20, CUTOFFS, div_value=2.5, head_bias=bias).double()
    theirs.load_state_dict(state)
    ids = torch.randint(4, 20, (3, 9))
    hidden = model.eval().model(ids).last_hidden_state.flatten(0, 1)
    found = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(found.logits.flatten(0, 1), theirs.log_prob(hidden).float())
    loss = model.train()(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(loss, found.loss)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded(ids).logits, found.logits)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(ids, **options), loaded.generate(ids, **options, use_cache=False))
    # The last cluster takes the words of a larger vocabulary.
    loaded.resize_token_embeddings(23)
    torch.testing.assert_close(loaded(ids).logits[..., :10], found.logits[..., :10])
    assert loaded(ids).logits.shape[-1] == 23
    assert torch.equal(loaded.adaptive_softmax.tails[2][1].weight[:10], tails[2][1].weight)
    loaded.resize_token_embeddings(20)
    torch.testing.assert_close(loaded(ids).logits, found.logits)
    with pytest.raises(ValueError, match="new_num_tokens=10 is impossible, the last of the adaptive_softmax_cutoffs"):
        loaded.resize_token_embeddings(10)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tie_word_embeddings": True}, "set tie_word_embeddings=False"),
        ({"adaptive_softmax_cutoffs": None}, "set adaptive_softmax_cutoffs"),
        ({"adaptive_softmax_div_value": 0.5}, "it must be finite and at least 1"),
        ({"adaptive_softmax_div_value": 4}, "the last of 3 clusters would have no width, from one of 32"),
    ],
)
def test_impossible_narrower_clusters(fields, reason):
    with pytest.raises(ValueError, match=f"adaptive_softmax_div_value=.* is impossible, .*{reason}"):
        LstmConfig(**NARROW | fields)
    config = LstmConfig(**NARROW)
    config.tie_word_embeddings = True
    with pytest.raises(ValueError, match="set tie_word_embeddings=False"):
        AutoModelForCausalLM.from_config(config)


def test_a_translator_has_none():
    with pytest.raises(ValueError, match="adaptive_softmax_cutoffs"):
        AutoModelForSeq2SeqLM.from_config(LstmConfig(**SIZES))

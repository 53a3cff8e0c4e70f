"""The bias of the output layer of models that generate."""

import pytest
import torch
from token_classes import MODEL_CLASSES
from torch.nn.functional import cross_entropy

from hfseq import GruForCausalLM, LstmConfig, LstmForCausalLM, LstmForConditionalGeneration
from hfseq.errors import InputError
from hfseq.tokenization import train_tokenizer
from hfseq.training.loading import replace_vocabulary

CAUSAL, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
TINY = {"vocab_size": 13, "hidden_size": 8, "embedding_size": 6, "num_hidden_layers": 2, "dropout": 0.0}
RARE, RAREST = slice(5, 9), slice(9, None)
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


def make(model_class, **fields):
    """A model in float64 with large weights."""
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**TINY | fields)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.8, 0.8)
    return model


def make_inputs(model):
    ids = torch.randint(3, 13, MASK.shape, generator=torch.Generator().manual_seed(2))
    target = {"decoder_input_ids": ids.flip(0)} if model.config.is_encoder_decoder else {}
    return {"input_ids": ids, "attention_mask": MASK} | target


@pytest.mark.parametrize("auto", [CAUSAL, SEQ2SEQ])
@pytest.mark.parametrize("config_class", MODEL_CLASSES, ids=lambda kind: kind.__name__)
def test_logits_are_those_without_a_bias_plus_the_bias(config_class, auto, tmp_path):
    model_class = MODEL_CLASSES[config_class][auto]
    model = make(model_class, lm_head_bias=True)
    inputs, bias = make_inputs(model), model.lm_head.bias.detach().clone()
    tables = model.model if auto == CAUSAL else model.decoder
    assert model.lm_head.weight is tables.embed_tokens.weight and len(bias) == 13
    found = model(**inputs).logits
    with torch.no_grad():
        model.lm_head.bias.zero_()
    torch.testing.assert_close(found, model(**inputs).logits + bias)
    with torch.no_grad():
        model.lm_head.bias.copy_(bias)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    assert not any(info.values()) and loaded.config.lm_head_bias
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded(**inputs).logits, found)
    prompt = {name: value for name, value in inputs.items() if not name.startswith("decoder")}
    for options in ({}, {"num_beams": 3}):
        options |= {"max_new_tokens": 4, "output_scores": True, "return_dict_in_generate": True}
        cached, uncached = (loaded.generate(**prompt, **options, use_cache=one) for one in (True, False))
        assert torch.equal(cached.sequences, uncached.sequences)
        torch.testing.assert_close(cached.scores, uncached.scores)


def test_without_it_there_is_none_and_a_new_one_is_zero():
    assert LstmForCausalLM(LstmConfig(**TINY)).lm_head.bias is None
    assert not LstmForConditionalGeneration(LstmConfig(**TINY, lm_head_bias=True)).lm_head.bias.any()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_class", [LstmForCausalLM, LstmForConditionalGeneration])
def test_another_vocabulary_keeps_the_bias_of_its_words(model_class, tied):
    model = make(model_class, lm_head_bias=True, tie_word_embeddings=tied)
    inputs, bias = make_inputs(model), model.lm_head.bias.detach().clone()
    before = model(**inputs).logits
    model.resize_token_embeddings(16, mean_resizing=False)
    assert torch.equal(model.lm_head.bias[:13], bias) and not model.lm_head.bias[13:].any()
    torch.testing.assert_close(model(**inputs).logits[..., :13], before)
    model.resize_token_embeddings(20)
    # transformers extends that of a tied output layer by zeros.
    new = torch.zeros(()).double() if tied else model.lm_head.bias[:16].mean()
    torch.testing.assert_close(model.lm_head.bias[16:], new.expand(4), rtol=0, atol=1e-6)
    model.resize_token_embeddings(13)
    torch.testing.assert_close(model(**inputs).logits, before)


def test_a_replaced_vocabulary_starts_without_one():
    tokenizer = train_tokenizer(["a b c d e"] * 2, model="word", vocab_size=20)
    model = make(LstmForCausalLM, lm_head_bias=True, vocab_size=len(tokenizer))
    assert replace_vocabulary(model, tokenizer) == {"model.embed_tokens.weight", "lm_head.bias"}
    assert not model.lm_head.bias.any()
    fields = {"adaptive_softmax_cutoffs": [4], "adaptive_softmax_div_value": 2, "tie_word_embeddings": False}
    model = make(LstmForCausalLM, lm_head_bias=True, **fields)
    rows = [f"{name}.{kind}" for name in ("lm_head", "adaptive_softmax.tails.0.1") for kind in ("weight", "bias")]
    assert replace_vocabulary(model, tokenizer) == {"model.embed_tokens.weight", *rows}
    assert not model.adaptive_softmax.tails[0][1].bias.any()
    with pytest.raises(InputError, match="the last of the adaptive_softmax_cutoffs is 11"):
        replace_vocabulary(make(LstmForCausalLM, adaptive_softmax_cutoffs=[11]), tokenizer)


def test_an_adaptive_softmax_splits_it_by_cluster():
    """With no bias in the clusters it is that of `torch.nn.AdaptiveLogSoftmaxWithLoss(head_bias=True)`."""
    cutoffs = [5, 9]
    model = make(GruForCausalLM, lm_head_bias=True, adaptive_softmax_cutoffs=cutoffs)
    inputs = make_inputs(model)
    hidden = model.output(model.model(**inputs).last_hidden_state)[0].flatten(0, 1)
    weight, offsets = model.lm_head.weight, model.lm_head.bias
    scores, entries = hidden @ weight.T + offsets, model.adaptive_softmax.clusters(hidden)
    head = torch.cat([scores[:, :5], entries], dim=-1).softmax(dim=-1)
    inside = [head[:, [5 + place]] * scores[:, words].softmax(-1) for place, words in enumerate((RARE, RAREST))]
    expected = torch.cat([head[:, :5], *inside], dim=-1)
    found = model(**inputs).logits.flatten(0, 1)
    torch.testing.assert_close(found.exp().double(), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        offsets[5:] = 0
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(6, 13, cutoffs, div_value=1, head_bias=True).double()
    state = {
        "head.weight": torch.cat([weight[:5], model.adaptive_softmax.clusters.weight]),
        "head.bias": torch.cat([offsets[:5], model.adaptive_softmax.clusters.bias]),
    }
    for place, rows in enumerate((weight[RARE], weight[RAREST])):
        state |= {f"tail.{place}.0.weight": torch.eye(6), f"tail.{place}.1.weight": rows}
    theirs.load_state_dict(state)
    found = model(**inputs).logits.flatten(0, 1).double()
    torch.testing.assert_close(found, theirs.log_prob(hidden), rtol=0, atol=1e-5)
    check_training(model, inputs)


def check_training(model, inputs):
    """The loss of training is that of the logits, and every weight has its gradient."""
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    loss = model.train()(**inputs, labels=labels).loss
    logits = model.eval()(**inputs).logits[:, :-1].flatten(0, 1).double()
    targets = labels[:, 1:].masked_fill(inputs["attention_mask"][:, :-1] == 0, -100).flatten()
    expected = cross_entropy(logits, targets)
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-5)
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(found, torch.autograd.grad(expected, parameters), rtol=0, atol=1e-5)


def test_sampled_negatives_have_their_bias(monkeypatch):
    """With all items as negatives it is the full softmax; otherwise a bias is a feature more, whose input is 1."""
    model = make(GruForCausalLM, lm_head_bias=True, num_negatives=13)
    layer = model.sampled_softmax
    # Drawn uniformly as often as there are items, each is expected once.
    monkeypatch.setattr(layer, "draw", lambda weights: torch.arange(13))
    inputs = make_inputs(model)
    check_training(model, inputs)
    layer.in_batch, layer.kind = True, "bpr_max"
    hidden = model.output(model.model(**inputs).last_hidden_state)[0]
    weight, bias, targets = model.lm_head.weight, model.lm_head.bias, inputs["input_ids"]
    wider = torch.cat([hidden, hidden.new_ones(2, 4, 1)], dim=-1)
    expected = layer.loss(wider, torch.cat([weight, bias[:, None]], dim=1), targets)
    torch.testing.assert_close(layer.loss(hidden, weight, targets, bias), expected)

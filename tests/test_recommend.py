import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hfseq import (
    CnnConfig,
    CnnForCausalLM,
    GruConfig,
    GruForCausalLM,
    LstmConfig,
    LstmForCausalLM,
    RnnConfig,
    RnnForCausalLM,
    save_state,
)
from hfseq.errors import InputError
from hfseq.inference.recommend import UserState, recommend, recommend_all
from hfseq.recommenders import item_ids, top_items

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
SIZES = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2}
MODELS = {
    "rnn": (RnnForCausalLM, RnnConfig(**SIZES)),
    "lstm": (LstmForCausalLM, LstmConfig(**SIZES, num_negatives=5)),
    "gru": (GruForCausalLM, GruConfig(**SIZES, adaptive_softmax_cutoffs=[9])),
    "gated": (CnnForCausalLM, CnnConfig(**SIZES, architecture="gated")),
    "residual": (CnnForCausalLM, CnnConfig(**SIZES, architecture="residual", dilation_base=2)),
    "convs2s": (CnnForCausalLM, CnnConfig(**SIZES, architecture="convs2s", max_position_embeddings=5)),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=30, n_embd=8, n_head=2, n_layer=2, n_positions=6, bos_token_id=1, eos_token_id=2),
    ),
}
HISTORY = ["item 3", "item 5", "item 3", "nothing", "item 7", "item 11", "item 0", "item 7", "item 2"]


def make_tokenizer(bos="<s>", unk="<unk>"):
    """A tokenizer of items whose names have spaces."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    vocabulary |= {f"item {number}": number + 4 for number in range(20)}
    model = models.WordLevel(vocabulary, unk_token="<unk>") if unk else models.WordLevel(vocabulary)
    special = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": bos, "unk_token": unk}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    model_class, config = MODELS[request.param]
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.8, 0.8)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@torch.no_grad()
def expected_scores(model, ids):
    """Item to logit after all ids, read at once; those of the tokenizer only."""
    limit = getattr(model.config, "n_positions", len(ids))
    logits = model.eval()(input_ids=torch.tensor([ids[-limit:]])).logits[0, -1]
    return {f"item {number}": logits[number + 4].item() for number in range(20)}


def check(items, scores, top_k=5, without=()):
    ranked = sorted((item for item in scores if item not in without), key=scores.get, reverse=True)[:top_k]
    assert [item.item for item in items] == ranked
    assert [item.score for item in items] == pytest.approx([scores[item] for item in ranked], abs=1e-5)


@pytest.mark.parametrize("filter_seen", [False, True])
def test_after_each_click_it_is_as_if_the_whole_history_had_been_read(model, tokenizer, filter_seen, tmp_path):
    known = [event for event in HISTORY if event != "nothing"]
    state = recommend(model.train(), tokenizer).state  # a user without a history
    options = {"top_k": 5, "filter_seen": filter_seen}
    for step, event in enumerate(HISTORY):
        before = state
        items, state = recommend(model, tokenizer, [event], state=before, **options)
        ids = item_ids(tokenizer, known[: step + (step < 3)])
        scores = expected_scores(model, [1, *ids])
        seen = HISTORY[: step + 1] if filter_seen else ()
        check(items, scores, without=seen)
        # The earlier state is as it was, and so is a state without a new event.
        again = recommend(model, tokenizer, [event], state=before, **options)
        assert again.items == items and again.state.ids == state.ids
        check(recommend(model, tokenizer, state=state, **options).items, scores, without=seen)
        if step == 3 and model.config.model_type != "gpt2":
            state.save(tmp_path / "user", model)
            state = UserState.load(tmp_path / "user", model)
    # Several events at once, from a state in the middle and from the beginning.
    middle = recommend(model, tokenizer, HISTORY[:3], **options).state
    for found in (
        recommend(model, tokenizer, HISTORY[3:], state=middle, **options).items,
        recommend(model, tokenizer, HISTORY, **options).items,
    ):
        check(found, scores, without=seen)


def test_only_the_new_events_are_read(tokenizer):
    torch.manual_seed(0)
    model = GruForCausalLM(GruConfig(**SIZES))
    state = recommend(model, tokenizer, HISTORY).state
    steps = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: steps.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    recommend(model, tokenizer, ["item 4"], state=state)
    handle.remove()
    assert steps == [1, 1]  # the last event of before, and the new one


def test_many_users_get_what_each_gets_alone(model, tokenizer):
    histories = [HISTORY, HISTORY[:2], [], ["nothing", "item 7"], HISTORY[1:8], ["item 9"], ["item 1"]]
    options = {"top_k": 4, "filter_seen": True}
    found = recommend_all(model, tokenizer, histories, batch_size=3, **options)
    for history, items in zip(histories, found, strict=True):
        alone = recommend(model, tokenizer, history, **options).items
        assert [one.item for one in items] == [one.item for one in alone]
        assert [one.score for one in items] == pytest.approx([one.score for one in alone], abs=1e-5)
    # The last items are read, those before are still left out.
    cut = recommend_all(model, tokenizer, histories, max_length=3, **options)
    check(cut[0], expected_scores(model, item_ids(tokenizer, HISTORY[-3:])), top_k=4, without=HISTORY)
    without = recommend(
        model, tokenizer, ["item 7"], **options
    ).items  # the history of the fourth without what is unknown
    assert [one.item for one in found[3]] == [one.item for one in without]


def test_best_items():
    tokenizer = make_tokenizer()
    logits = torch.arange(30.0).repeat(2, 1)  # special tokens, items, and ids of no token
    found = top_items(logits, tokenizer, 3, [[23, 21], []])
    assert [[item.item for item in row] for row in found] == [
        ["item 18", "item 16", "item 15"],
        ["item 19", "item 18", "item 17"],
    ]
    # No more than there are.
    (row,) = top_items(torch.zeros(1, 30), tokenizer, 100, [range(8)])
    assert sorted(item.item for item in row) == sorted(f"item {number}" for number in range(4, 20))


def test_bad_input(tokenizer, tmp_path):
    torch.manual_seed(0)
    gru, other = GruForCausalLM(GruConfig(**SIZES)), GruForCausalLM(GruConfig(**SIZES))
    wide = GruForCausalLM(GruConfig(**SIZES | {"hidden_size": 12}))
    with pytest.raises(InputError, match="the history is empty, and the tokenizer has no BOS token"):
        recommend(gru, make_tokenizer(bos=None))
    with pytest.raises(InputError, match="the history is empty"):
        recommend_all(gru, make_tokenizer(bos=None), [["item 3"], []])
    assert recommend(gru, make_tokenizer(unk=None), HISTORY).state.ids == recommend(gru, tokenizer, HISTORY).state.ids
    with pytest.raises(InputError, match="the history is empty"):
        recommend(gru, make_tokenizer(bos=None), ["nothing", "</s>"])
    with pytest.raises(InputError, match="item 'nothing' is unknown, and the tokenizer has no unknown token"):
        item_ids(make_tokenizer(unk=None), HISTORY)
    with pytest.raises(InputError, match="top_k=0: it must be at least 1"):
        recommend(gru, tokenizer, HISTORY, top_k=0)
    state = recommend(gru, tokenizer, HISTORY).state
    with pytest.raises(InputError, match="the state belongs to another model"):
        recommend(wide, tokenizer, state=state)
    with pytest.raises(InputError, match="the history is empty, so there is no state"):
        UserState().save(tmp_path / "user", gru)
    with pytest.raises(InputError, match="the state cannot be written"):
        state.save(tmp_path / "nowhere" / "user", gru)
    state.save(tmp_path / "user", gru)
    with pytest.raises(InputError, match="the state belongs to another model, or to other weights"):
        UserState.load(tmp_path / "user", other)
    cache = DynamicCache()
    gru.eval()(input_ids=torch.tensor([[5]]), cache=cache)
    save_state(cache, tmp_path / "state")
    with pytest.raises(InputError, match="a state, but not of a user"):
        UserState.load(tmp_path / "state", gru)
    with pytest.raises(InputError, match="no state that save_state wrote"):
        UserState.load(__file__, gru)
    gpt2 = GPT2LMHeadModel(MODELS["gpt2"][1])
    with pytest.raises(InputError, match="holds no state of an hfseq language model"):
        recommend(gpt2, tokenizer, HISTORY[:2]).state.save(tmp_path / "user", gpt2)

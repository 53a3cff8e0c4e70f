"""The recipe for recommendation: ranks, windows, filters, batches, reports, and models of hfseq and transformers."""

import csv
import json
import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import datasets
import numpy as np
import pytest
import recipe_runs
import torch
from recipe_runs import load
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
)

import hfseq
from hfseq import CnnForCausalLM, GruForCausalLM, metrics
from hfseq.errors import InputError
from hfseq.onnx.runtime import load_onnx
from hfseq.tasks.arguments import RecommendationArguments
from hfseq.tasks.recommendation import Recommendation, ranked, step_logits
from hfseq.tasks.recommendation_baselines import Markov, Popularity
from hfseq.tokenization import is_item_tokenizer, item_tokenizer, train_tokenizer
from hfseq.training.arguments import RecipeArguments

RECIPE = load("recommendation")
CONFIG = """\
num_train_epochs: 4
learning_rate: 2e-2
per_device_train_batch_size: 16
use_cpu: true
disable_tqdm: true
"""
OVERRIDES = '{"hidden_size": 24, "dropout": 0.0}'
NUM_ITEMS = 30


def walk(rng, length):
    """Items of which each follows from the last one, but for one in five."""
    item = rng.randrange(NUM_ITEMS)
    for _ in range(length):
        yield f"item {item}"
        item = (7 * item + 3) % NUM_ITEMS if rng.random() < 0.8 else rng.randrange(NUM_ITEMS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("interactions")
    rng = random.Random(0)
    lines = [f"u{user}\t{item}\t{at}" for user in range(160) for at, item in enumerate(walk(rng, rng.randint(2, 14)))]
    lines += ["last\titem 1\t1", "last\titem 2\t2", "last\titem 3\t3", "last\tnew\t4"]
    rng.shuffle(lines)
    (root / "all.txt").write_text("\n".join(lines) + "\n")
    (root / "config.yaml").write_text(CONFIG)
    return root


def run(data, output_dir, **flags):
    given = {"train_file": data / "all.txt", "output_dir": output_dir, "do_train": True, "do_predict": True, **flags}
    recipe_runs.start(RECIPE, recipe_runs.arguments(data / "config.yaml", **given))
    return json.loads((Path(output_dir) / "all_results.json").read_text())


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("trained") / "run"
    return output_dir, run(data, output_dir, model_type="hfseq_gru", config_overrides=OVERRIDES)


def sessions_of(path):
    found = defaultdict(list)
    for line in path.read_text().splitlines():
        user, item, at = line.split("\t")
        found[user].append((int(at), item))
    return {user: [item for _, item in sorted(events)] for user, events in found.items()}


def training_counts(data):
    """Number of interactions of each item, without the last two of each user with three or more."""
    sessions = sessions_of(data / "all.txt").values()
    return Counter(item for items in sessions for item in (items[:-2] if len(items) > 2 else items))


def test_scores_are_those_of_a_naive_evaluation(data, trained):
    output_dir, scores = trained
    users = [items for items in sessions_of(data / "all.txt").values() if len(items) >= 3]
    counts = training_counts(data)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output_dir), AutoTokenizer.from_pretrained(output_dir)
    ranks = []
    for items in users:
        history, target = [item for item in items[:-1] if item in counts], items[-1]
        with torch.no_grad():
            logits = model(**tokenizer("\n".join(history), return_tensors="pt")).logits[0, -1].tolist()
        by_item = {item: logits[number] for item, number in tokenizer.get_vocab().items() if item in counts}
        ranks.append(sum(score >= by_item[target] for score in by_item.values()) if target in counts else math.inf)
    assert "new" not in counts and math.inf in ranks
    for k in (1, 5, 10, 20):
        assert scores[f"test_hr@{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / len(ranks))
        assert scores[f"test_mrr@{k}"] == pytest.approx(sum(1 / rank for rank in ranks if rank <= k) / len(ranks))
        gains = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= k)
        assert scores[f"test_ndcg@{k}"] == pytest.approx(gains / len(ranks))
    assert scores["test_ndcg@10"] > 0.5 > 0.2 > scores["test_popularity_ndcg@10"]
    assert scores["test_markov_ndcg@10"] > 0.5
    groups = {row["group"]: row for row in csv.DictReader((output_dir / "popularity.csv").open())}
    assert set(groups) == {"head", "mid", "tail", "new"} and float(groups["new"]["hr@20"]) == 0
    assert sum(int(row["items"]) for row in groups.values()) == len(users)
    hits = sum(int(row["items"]) * float(row["hr@10"]) for row in groups.values())
    assert hits / len(users) == pytest.approx(scores["test_hr@10"], rel=1e-4)
    assert scores["test_hr@10_head"] == pytest.approx(float(groups["head"]["hr@10"]), rel=1e-4)
    lines = (output_dir / "predictions.txt").read_text().splitlines()
    assert len(lines) == len(users) and all(len(set(line.split(" | "))) == 10 for line in lines)


def test_a_pipeline_a_file_and_the_onnx_export_recommend_the_same(data, trained, tmp_path):
    output_dir, _ = trained
    histories = {"u": ["item 1", "item 10", "unheard of"], "v": ["item 5"], "w": ["unheard of"]}
    recommend = pipeline("next-item-recommendation", str(output_dir))
    alone = [recommend(history, top_k=4) for history in histories.values()]
    assert [len(found) for found in alone] == [4, 4, 4]
    assert recommend(list(histories.values()), top_k=4, batch_size=3) == [
        [{"item": one["item"], "score": pytest.approx(one["score"], abs=1e-5)} for one in found] for found in alone
    ]
    assert alone[2] == recommend([], top_k=4)
    seen = recommend(histories["u"], top_k=NUM_ITEMS, filter_seen=True)
    assert {"item 1", "item 10"}.isdisjoint(one["item"] for one in seen)
    assert len(seen) == NUM_ITEMS - 2
    assert recommend(histories["u"], top_k=4, max_length=1) != alone[0]

    lines = [json.dumps({"user": user, "items": items}) for user, items in histories.items()]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    flags = {"test_file": tmp_path / "own.jsonl", "output_file": tmp_path / "top.tsv", "top_k": 4, "do_predict": True}
    arguments = recipe_runs.arguments("--model_name_or_path", **flags, use_cpu=True)
    recipe_runs.start(RECIPE, [arguments[0], output_dir, *arguments[1:]])
    rows = list(csv.DictReader((tmp_path / "top.tsv").open(), delimiter="\t"))
    assert [(row["user"], row["item"]) for row in rows] == [
        (user, one["item"]) for user, found in zip(histories, alone, strict=True) for one in found
    ]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"] * 3

    hfseq.export_onnx(output_dir, tmp_path / "onnx")
    runner, tokenizer = load_onnx(tmp_path / "onnx", threads=1)
    exported = pipeline("next-item-recommendation", runner, tokenizer=tokenizer)
    for history, found in zip(histories.values(), alone, strict=True):
        again = exported(history, top_k=4)
        assert [one["item"] for one in again] == [one["item"] for one in found]
        assert [one["score"] for one in again] == pytest.approx([one["score"] for one in found], abs=1e-4)


def test_the_card_shows_how_to_recommend(trained):
    from hfseq.hub.model_card import make_card

    output_dir, _ = trained
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output_dir), AutoTokenizer.from_pretrained(output_dir)
    card = make_card(output_dir, model, tokenizer, "me/recommender")
    assert card.data.pipeline_tag is None and "recommendation" in card.data.tags
    code = card.text.split("```python\n")[1].split("```")[0].replace("me/recommender", str(output_dir))
    exec(code, {})
    assert "NDCG@10" in card.text and "markov" in card.text and 'pipeline("next-item-recommendation"' in code
    without = card.text.split("```python\n")[2].split("```")[0]
    exec(without.replace("me/recommender", str(output_dir)), {})
    assert "pipeline" not in without


def test_inputs_of_the_pipeline(trained):
    output_dir, _ = trained
    recommend = pipeline("next-item-recommendation", str(output_dir))
    for inputs, message in (
        ("item 1", "a history is a list of the names of items, not str"),
        ([["item 1"], "item 2"], "history 2: 'item 2' is not a list"),
        ([["item 1", 2]], "history 1: "),
    ):
        with pytest.raises(ValueError, match=message):
            recommend(inputs)
    with pytest.raises(TypeError, match="has no argument 'k'"):
        recommend(["item 1"], k=3)
    with pytest.raises(InputError, match="top_k=0"):
        recommend(["item 1"], top_k=0)
    text = train_tokenizer(["a b c"], model="word")
    with pytest.raises(ValueError, match="the tokens of this model are no items"):
        pipeline("next-item-recommendation", recommend.model, tokenizer=text)


def task_of(rows, train=None, **flags):
    """A task with test rows, and as its training rows all items alone, or `train`."""
    task = Recommendation(RecommendationArguments(**flags), RecipeArguments(output_dir="unused", use_cpu=True))
    train = train or [[f"item {number}" for number in range(NUM_ITEMS)]]
    splits = {}
    for name, some, begins in (("train", train, None), ("validation", train, None), ("test", *rows)):
        columns = {"user": list(map(str, range(len(some)))), "items": some, "begin": begins or [1] * len(some)}
        splits[name] = datasets.Dataset.from_dict(columns)
    return task.use(splits)


def encoded(task, model_class=GruForCausalLM, **fields):
    torch.manual_seed(0)
    tokenizer = item_tokenizer(task.counts)
    config = model_class.config_class(vocab_size=len(tokenizer), hidden_size=12, dropout=0.0, **fields)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    task.encode(model, tokenizer, print)
    return model, tokenizer


def naive_ranks(task, model, tokenizer, rows, begins, filter_seen=False, limit=None):
    """Rank of each item to be predicted, one forward pass each."""
    ids = {item: number for item, number in tokenizer.get_vocab().items() if item in task.counts}
    for items, begin in zip(rows, begins, strict=True):
        for at in range(begin, len(items)):
            history = [1, *(ids[item] for item in items[:at] if item in ids)]
            with torch.no_grad():
                logits = model(torch.tensor([history[-limit:] if limit else history])).logits[0, -1].tolist()
            allowed = set(ids.values()) - (set(history) if filter_seen else set())
            target = ids.get(items[at])
            yield sum(logits[one] >= logits[target] for one in allowed) if target in allowed else 0


@pytest.mark.parametrize("filter_seen", [False, True])
@pytest.mark.parametrize("model_class", [GruForCausalLM, CnnForCausalLM])
def test_ranks_of_each_item_of_a_session(model_class, filter_seen, monkeypatch):
    rng = random.Random(1)
    rows = [list(walk(rng, length)) for length in (2, 9, 5, 3)]
    rows[1][3] = rows[2][1] = rows[2][4] = "new"
    begins = [1, 1, 2, 2]
    task = task_of((rows, begins), filter_seen=filter_seen, top_k=3)
    model, tokenizer = encoded(task, model_class)
    naive = list(naive_ranks(task, model, tokenizer, rows, begins, filter_seen))
    losses = []
    # Chunks of a whole batch, of five items to be predicted, which cut rows, and of one.
    for batch_size, chunk in ((1, None), (4, None), (4, 5 * len(tokenizer)), (4, 1)):
        task.args.per_device_eval_batch_size = batch_size
        if chunk is not None:
            monkeypatch.setattr("hfseq.tasks.recommendation._CHUNK", chunk)
        raw, loss = task.predict(model, "test")
        found = task.decode("test", raw)
        losses.append(loss)
        assert [one.rank for one in found] == naive
    assert losses == pytest.approx([losses[0]] * 4)
    assert len(naive) == len(task.references["test"]) == 1 + 8 + 3 + 1
    if filter_seen:
        assert set(rows[1][:-1]).isdisjoint(found[8].items)


@pytest.mark.parametrize("begin", [1, 22, 30])
def test_long_sessions_are_read_in_windows(begin):
    rng = random.Random(2)
    rows = [list(walk(rng, 31)), list(walk(rng, 6))]
    task = task_of((rows, [begin, 1]), max_length=8)
    model, tokenizer = encoded(task)
    found = task.decode("test", task.predict(model, "test")[0])
    naive = list(naive_ranks(task, model, tokenizer, rows, [begin, 1], limit=8))
    windows = task.encoded["test"]
    assert len(found) == len(task.references["test"]) == len(naive)
    if begin == 30:
        # The last eight items before the one that is predicted.
        assert [one.rank for one in found] == naive
    ids = tokenizer.get_vocab()
    expected = []
    for items, first in zip(rows, (begin, 1), strict=True):
        expected += [(ids[items[at - 1]], ids[items[at]]) for at in range(first, len(items))]
    events = []
    for window in windows:
        assert len(window["input_ids"]) <= 8
        if window["input_ids"][0] != 1:
            assert min(window["places"]) >= 4
        pairs = zip(window["places"], window["targets"], strict=True)
        events += [(window["input_ids"][place], target) for place, target in pairs]
    assert events == expected


def test_training_sessions_are_cut_so_that_each_item_is_learnt_once():
    rows = [[f"item {number}" for number in range(12)], ["item 3"], ["item 4", "item 5"]]
    task = task_of(([["item 1", "item 2"]], [1]), train=rows, max_length=5)
    _, tokenizer = encoded(task)
    learnt = [label for labels in task.encoded["train"]["labels"] for label in labels if label != -100]
    assert tokenizer.convert_ids_to_tokens(learnt) == [item for row in rows for item in row]
    assert max(map(len, task.encoded["train"]["input_ids"])) == 5


def test_labels_and_losses():
    rows = [["item 1", "new", "item 2", "item 3"], ["item 4", "item 5"]]
    task = task_of((rows, [1, 1]))
    model, _ = encoded(task)
    batch = task.collator([task.encoded["test"][number] for number in range(2)])
    assert batch["labels"].tolist()[0][:2] == [-100, -100]
    loss, raw = task.predict_batch(model, batch)
    whole = task.loss(model(batch["input_ids"]), batch["labels"])
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    steps = task.loss_inputs(model.train(), batch["labels"])["logits_to_keep"]
    kept = task.loss(model(batch["input_ids"], logits_to_keep=steps), batch["labels"])
    assert kept.item() == pytest.approx(whole.item(), rel=1e-5)
    assert raw.shape == (2, 3, 11) and raw[0, 0, 0] == 0 and (raw[1, 1:] == -100).all()


def test_ties_are_counted_against_the_model():
    scores = torch.tensor([[1.0, 1.0, 1.0, 0.0], [3.0, 2.0, 2.0, 1.0], [-torch.inf, 1.0, 0.0, -1.0], [torch.nan] * 4])
    found = ranked(scores, torch.tensor([0, 1, 0, 2]), 2)
    assert found[:, 0].tolist() == [3, 3, 0, 0]
    assert ranked(scores[:1], torch.tensor([-1]), 2)[0, 0] == 0
    assert ranked(scores[2:3], torch.tensor([1]), 4).tolist() == [[1, 1, 2, 3, -1]]


def test_popularity_and_markov():
    rows = [[0, 1, 2], [0, 1], [0, 2], [3, 0], []]
    assert Popularity(rows, 5).scores([2]).tolist() == [4, 2, 2, 1, 0]
    markov = Markov(rows, 5)
    followers = Counter(pair for row in rows for pair in zip(row, row[1:], strict=False))

    def naive(last):
        return sorted(range(5), key=lambda item: (-followers[last, item], -markov.counts[item]))

    for last in (0, 1, 3):
        assert np.argsort(-markov.scores([4, last]), kind="stable").tolist() == naive(last)
    # 2 and 4 have no followers.
    for history in ([], [2], [4]):
        assert np.argsort(-markov.scores(history), kind="stable").tolist() == [0, 1, 2, 3, 4]
    assert markov.scores([0])[[1, 2]].tolist() == pytest.approx([2 + 2 / 10, 1 + 2 / 10])


@pytest.mark.parametrize("name", ["hit_rate", "ndcg", "mrr"])
def test_metrics_of_ranks(name):
    rng = random.Random(0)
    ranks = [rng.randint(0, 30) for _ in range(50)]
    for k in (1, 3, 10, 50):
        gains = {
            "hit_rate": lambda rank: 1,
            "ndcg": lambda rank: 1 / math.log2(rank + 1),
            "mrr": lambda rank: 1 / rank,
        }
        naive = sum(gains[name](rank) for rank in ranks if 0 < rank <= k) / len(ranks)
        found = getattr(metrics, name)(ranks, k)
        assert found[name] == found["score"] == pytest.approx(naive)
    for wrong, message in (([], "at least one"), ([1.5], "whole numbers"), ([-1], "whole numbers")):
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            getattr(metrics, name)(wrong)
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        getattr(metrics, name)([1], 0)


def test_items_are_tokens():
    items = ["The Legend, of Zelda", "b c", " d ", "$", "<b>"]
    tokenizer = item_tokenizer(items)
    ids = tokenizer("\n".join([*items, "unheard of"]))["input_ids"]
    assert ids == [1, 4, 5, 6, 7, 8, 3]
    assert tokenizer.decode(ids[:-1], skip_special_tokens=True).split("\n") == items
    assert is_item_tokenizer(tokenizer) and not is_item_tokenizer(train_tokenizer(["a b"], model="word"))
    assert not is_item_tokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())))
    for wrong, message in (
        (["<pad>"], "special token"),
        (["a", "a"], "twice"),
        (["a\nb"], "several lines"),
        ([""], "empty"),
    ):
        with pytest.raises(InputError, match=message):
            item_tokenizer(wrong)


def transformer(tmp_path, kind):
    torch.manual_seed(0)
    sizes = {"gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16))}
    llama = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model_class, config = (sizes | {"llama": (LlamaForCausalLM, llama)})[kind]
    model_class(config).save_pretrained(tmp_path / kind)
    train_tokenizer(["a text of words"], model="word").save_pretrained(tmp_path / kind)
    return tmp_path / kind


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_transformer_of_text_becomes_one_of_items(data, kind, tmp_path):
    scores = run(
        data,
        tmp_path / "run",
        model_name_or_path=transformer(tmp_path, kind),
        num_train_epochs=8,
        split="time",
    )
    assert scores["test_ndcg@10"] > 2 * scores["test_popularity_ndcg@10"]
    recommend = pipeline("next-item-recommendation", str(tmp_path / "run"))
    histories = [["item 1"], ["item 2", "item 3", "item 4"]]
    assert [[one["item"] for one in found] for found in recommend(histories, batch_size=2)] == [
        [one["item"] for one in recommend(history)] for history in histories
    ]


def test_padding_changes_no_logits_of_a_transformer():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16)).eval()
    ids = torch.randint(4, 20, (3, 7))
    steps = torch.zeros_like(ids, dtype=torch.bool)
    steps[0, 2] = steps[1, 6] = steps[2, [1, 3]] = True
    mask = torch.arange(7) < torch.tensor([[3], [7], [4]])
    with torch.no_grad():
        found = step_logits(model, {"input_ids": ids.where(mask, 0), "attention_mask": mask.long()}, steps)
        alone = [model(ids[row : row + 1, : step + 1]).logits[0, -1] for row, step in steps.nonzero().tolist()]
    torch.testing.assert_close(found, torch.stack(alone))


def test_sampled_negatives_know_the_popularity_of_items(data, tmp_path):
    overrides = '{"hidden_size": 16, "num_negatives": 20}'
    run(
        data,
        tmp_path / "run",
        model_type="hfseq_cnn",
        config_overrides=overrides,
        num_train_epochs=1,
        filter_seen=True,
    )
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "run"),
        AutoTokenizer.from_pretrained(tmp_path / "run"),
    )
    counts = training_counts(data)
    found = dict(
        zip(
            tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))),
            model.sampled_softmax.item_counts.tolist(),
            strict=True,
        )
    )
    assert {item: count for item, count in found.items() if count} == counts


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"label_smoothing_factor": 0.1, "config_overrides": '{"num_negatives": 9}'}, "not supported for an adaptive"),
        ({"item_column": "what"}, "has no header; name its columns"),
        ({"metric_for_best_model": "recall"}, "unknown --metric_for_best_model 'recall'"),
        ({"config_overrides": '{"vocab_size": 9}'}, "vocab_size is determined by the tokenizer"),
    ],
)
def test_bad_flags(data, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run(data, tmp_path / "run", model_type="hfseq_gru", **flags)
    assert not (tmp_path / "run").exists()


def test_bad_models_and_rows(trained, tmp_path):
    (tmp_path / "one.txt").write_text("u a\nu a\nu a\nu a\n")
    with pytest.raises(InputError, match="there is only one item"):
        recipe_runs.start(RECIPE, ["--train_file", tmp_path / "one.txt", "--output_dir", tmp_path / "run"])
    path = transformer(tmp_path, "gpt2")
    flags = ["--do_predict", "--test_file", tmp_path / "one.txt", "--model_name_or_path", path, "--use_cpu"]
    with pytest.raises(InputError, match="the tokens of this model are no items"):
        recipe_runs.start(RECIPE, [*flags, "--output_dir", tmp_path / "run"])
    with pytest.raises(InputError, match="the tokens of this model are no items"):
        recipe_runs.start(RECIPE, [*flags, "--output_file", tmp_path / "top.tsv"])
    (tmp_path / "single.jsonl").write_text('{"items": ["a"]}\n')
    flags = ["--do_predict", "--test_file", tmp_path / "single.jsonl", "--model_name_or_path", trained[0], "--use_cpu"]
    with pytest.raises(InputError, match="test: nothing to predict"):
        recipe_runs.start(RECIPE, [*flags, "--output_dir", tmp_path / "run"])


def test_items_that_a_checkpoint_does_not_know(data, trained, tmp_path, capsys):
    strange = tmp_path / "strange.txt"
    strange.write_text("".join(f"u{user} strange_{item}\n" for user in "ab" for item in range(4)))
    flags = {"model_name_or_path": trained[0], "train_file": strange}
    for more in ({}, {"do_train": False, "train_file": None, "test_file": strange}):
        with pytest.raises(InputError, match="(train|test): the checkpoint knows none of the items of .*strange.txt"):
            run(data, tmp_path / "run", **flags | more)
        assert not (tmp_path / "run").exists()
    some = tmp_path / "some.jsonl"
    some.write_text(json.dumps({"items": ["item 1", "item 2", "strange"]}))
    histories = {
        "do_train": False,
        "train_file": None,
        "output_file": tmp_path / "top.tsv",
        "overwrite_output_file": 1,
    }
    with pytest.raises(InputError, match="--test_file .*strange.txt: the model knows none of its items"):
        run(data, trained[0], **flags | histories | {"test_file": strange})
    capsys.readouterr()
    run(data, tmp_path / "run", **flags | {"do_train": False, "train_file": None, "test_file": some})
    assert "test: 1 of 3 interactions are with items that the model does not know" in capsys.readouterr().out


def test_a_file_of_more_items_than_there_are(trained, tmp_path, capsys):
    (tmp_path / "own.jsonl").write_text('{"items": ["item 1", "item 2"]}\n{"items": ["item 1"]}\n')
    flags = {"model_name_or_path": trained[0], "test_file": tmp_path / "own.jsonl", "use_cpu": True, "top_k": 500}
    for seen, number in ((False, NUM_ITEMS), (True, f"{NUM_ITEMS - 2} to {NUM_ITEMS - 1}")):
        more = {"output_file": tmp_path / f"{seen}.tsv", "filter_seen": seen}
        recipe_runs.start(RECIPE, recipe_runs.arguments("--do_predict", **flags, **more))
        assert f"{seen}.tsv: {number} items for 2 histories" in capsys.readouterr().out
    with pytest.raises(InputError, match="top.txt holds one text per line; for --top_k 500 use a .tsv or .jsonl file"):
        recipe_runs.start(RECIPE, recipe_runs.arguments("--do_predict", **flags, output_file=tmp_path / "top.txt"))


def test_training_sessions_of_one_item(data, tmp_path):
    """They are learnt from BOS, although they cannot be scored."""
    (tmp_path / "three.txt").write_text(
        "".join(f"u{user} i{(user + at) % 5}\n" for user in range(5) for at in (0, 1, 2))
    )
    flags = {"train_file": tmp_path / "three.txt", "num_train_epochs": 1, "config_overrides": OVERRIDES}
    assert run(data, tmp_path / "run", model_type="hfseq_gru", **flags)["train_loss"] > 0


def witten_bell(rows, history, item, base, size=3):
    """Probability of an item after a history by interpolated n-grams (Witten and Bell 1991), by its definition."""
    if size == 0:
        return base[item]
    lower, context = witten_bell(rows, history, item, base, size - 1), [None, *history][-size:]
    starts = ((row, at) for row in ([None, *row] for row in rows) for at in range(size, len(row)))
    after = [row[at] for row, at in starts if row[at - size : at] == context]
    return (after.count(item) + len(set(after)) * lower) / (len(after) + len(set(after))) if after else lower


@pytest.mark.parametrize("names", [["markov"], ["cache"], ["ngram"], ["markov", "ngram", "cache"]])
def test_a_mixture_has_the_rankings_of_the_interpolated_probabilities(names):
    rng = random.Random(3)
    rows = [["new", *walk(rng, 3)], list(walk(rng, 6)), [*walk(rng, 3), "new"], 3 * list(walk(rng, 3))]
    train = [list(walk(rng, 12)) for _ in range(6)] + [[f"item {number}" for number in range(NUM_ITEMS)]]
    task = task_of((rows, [1] * len(rows)), train=train, mix=names)
    model, tokenizer = encoded(task)
    said = []
    found = task.predict_mixed(model, "test", said.append)
    weights = {name: float(said[0].split(f"{name} ")[1].split(",")[0].split(":")[0]) for name in names}
    ids, followers = tokenizer.get_vocab(), Counter(pair for row in train for pair in zip(row, row[1:], strict=False))
    expected = []
    for items in rows:
        for at in range(1, len(items)):
            history = [item for item in items[:at] if item != "new"]
            with torch.no_grad():
                logits = model(torch.tensor([[1, *(ids[item] for item in history)]])).logits[0, -1]
            logits[:4] = -torch.inf
            own = dict(zip(ids, logits.softmax(dim=0)[list(ids.values())].tolist(), strict=True))
            popularity = {item: sum(row.count(item) for row in train) / sum(map(len, train)) for item in own}
            ngrams = {item: witten_bell(train, history, item, popularity) for item in own}
            parts = {"markov": own, "cache": own, "ngram": ngrams}
            if history:
                total = sum(count for (first, _), count in followers.items() if first == history[-1])
                parts["markov"] = {item: followers[history[-1], item] / total for item in own}
                ages = [(item, 0.9**age) for age, item in enumerate(reversed(history))]
                total = sum(weight for _, weight in ages)
                recent = {item: sum(w for one, w in ages if one == item) / total for item in own}
                parts["cache"] = {item: witten_bell([history], history, item, recent) for item in own}
            mixed = {item: (1 - sum(weights.values())) * own[item] for item in task.counts}
            for name, weight in weights.items():
                mixed = {item: value + weight * parts[name][item] for item, value in mixed.items()}
            expected.append(sum(value >= mixed[items[at]] for value in mixed.values()) if items[at] in mixed else 0)
    assert [one.rank for one in found] == expected
    assert sum(weights.values()) > 0


def test_a_mixture_needs_training_rows(trained, data, tmp_path):
    flags = ["--do_predict", "--test_file", data / "all.txt", "--model_name_or_path", trained[0], "--use_cpu"]
    with pytest.raises(InputError, match="--mix needs training and validation rows"):
        recipe_runs.start(RECIPE, [*flags, "--output_dir", tmp_path / "run", "--mix", "markov"])

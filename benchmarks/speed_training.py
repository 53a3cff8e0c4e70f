"""Training: the recipe beside a bare loop, ours beside JoeyNMT, batches by tokens, the input pipeline."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import training_throughput
from beside_joeynmt import HOW_TO, JoeyNMT
from samples import SOURCE, TARGET, Samples, make_optimizer, real_tokens, train_step
from timing import Row, clock, in_turns
from transformers import PreTrainedModel

from hfseq.data.encoding import encode_texts
from hfseq.data.token_budget import TokenBudgetBatchSampler, row_lengths
from hfseq.tasks.seq2seq import make_collator


def recipe_beside_bare(samples: Samples, threads: int) -> Row:
    """The recipe's Trainer beside a bare loop: same model, optimizer, batches and order, each run in its own process.

    The Trainer also logs, watches the loss and keeps its state; the loop does nothing beside.
    """
    sizes = samples.sizes
    steps = (4 if samples.device == "cpu" else 40) * sizes.batches  # those of a GPU are short
    command = ["--steps", str(steps + training_throughput.WARM_UP), "--pairs", str(sizes.rounds)]
    command += ["--source_lang", SOURCE, "--target_lang", TARGET, "--threads", str(threads)]
    command += ["--device", samples.device]
    command += ["--hidden_size", str(sizes.hidden), "--embedding_size", str(sizes.embedding)]
    command += ["--vocab_size", str(sizes.vocabulary), "--max_tokens", str(sizes.max_tokens)]
    if samples.folder is not None:
        command += ["--train_file", str(samples.folder / "train")]
    found = training_throughput.compare(training_throughput.parse(command))
    row = Row("training, seq2seq LSTM: the recipe", "bare PyTorch loop over the same modules", 0.95)
    row.ratios = [recipe["tokens_per_second"] / bare["tokens_per_second"] for bare, recipe in found]
    row.figures = {
        "tokens/s": [recipe["tokens_per_second"] for _, recipe in found],
        "tokens/s beside": [bare["tokens_per_second"] for bare, _ in found],
    }
    return row


def compare_speeds(row: Row, times: Mapping[str, Sequence[float]], tokens: Mapping[str, int]) -> None:
    """Fill a row with real target tokens a second of two sides, ours first, and their ratios.

    Args:
        row: Of the table.
        times: Seconds of each side in each round.
        tokens: Of each side in a round.
    """
    ours, theirs = ([count / seconds for seconds in times[name]] for name, count in tokens.items())
    row.figures = {"tokens/s": ours, "tokens/s beside": theirs}
    row.ratios = [own / other for own, other in zip(ours, theirs, strict=True)]


def training_beside_joeynmt(samples: Samples, threads: int, python: str | None) -> list[Row]:
    """A training step beside JoeyNMT's RNN: same widths and padded batches, smoothing, clipping, AdamW.

    Both have a bidirectional encoder, Luong's `general` attention without input feeding, one table of embeddings and
    an output layer of its own. JoeyNMT has a smaller bridge and one bias more; it also counts the right tokens in
    every step, as its trainer does. Making the batches is in neither. Once in float32, and once under bfloat16
    autocast, which both have a flag for; and once each with its own batches of at most so many tokens, as a recipe
    and JoeyNMT's `batch_type: token` make them.
    """
    beside = "JoeyNMT 2.3, RNN of the same size, likewise"
    rows = [
        Row(f"training, seq2seq LSTM, the same batches, {number}", beside, 3.0) for number in ("float32", "bfloat16")
    ]
    own = Row("training, seq2seq LSTM, each with its own batches by tokens, float32", beside, 3.0)
    if python is None:
        for row in (*rows, own):
            row.note = HOW_TO
        return [*rows, own]
    model, sizes = samples.translator().train(), samples.sizes
    optimizer = make_optimizer(model)
    batches = [samples.collate(model, chosen) for chosen in samples.budget_batches(sizes.batches)]
    tokens = sum(real_tokens(batch) for batch in batches)
    numbers = list(range(len(batches)))
    with JoeyNMT(python, samples, {"train": batches, "test": []}, threads) as joey:
        for row, bf16 in zip(rows, (False, True), strict=True):
            sides = {
                "hfseq": clock(lambda bf16=bf16: [train_step(model, optimizer, batch, bf16) for batch in batches]),
                "joeynmt": lambda bf16=bf16: joey.train(numbers, bf16),
            }
            row.note = f"parameters {model.num_parameters():,} and {joey.parameters:,}"
            compare_speeds(row, in_turns(sides, sizes.rounds), {"hfseq": tokens, "joeynmt": tokens})
        batches = [samples.collate(model, chosen) for chosen in samples.budget_batches(4 * sizes.batches)]
        numbers, their_tokens = joey.plan(samples.encoded["train"], sizes.max_tokens, 4 * sizes.batches)
        sides = {
            "hfseq": clock(lambda: [train_step(model, optimizer, batch) for batch in batches]),
            "joeynmt": lambda: joey.train(numbers, False),
        }
        tokens = sum(real_tokens(batch) for batch in batches)
        compare_speeds(own, in_turns(sides, max(sizes.rounds // 2, 2)), {"hfseq": tokens, "joeynmt": their_tokens})
        own.note = f"{tokens / len(batches):.0f} and {their_tokens / len(numbers):.0f} target tokens a batch"
    return [*rows, own]


def budget_beside_fixed(samples: Samples) -> Row:
    """Batches by tokens beside batches of one size in random order, in real target tokens a second of training.

    The size is that with which a batch has as many real tokens on average, so that an epoch has as many steps. Each
    side trains a model of its own; making the batches is in neither.
    """
    sizes = samples.sizes
    count = 4 * sizes.batches
    budget = samples.budget_batches(count)
    whole = TokenBudgetBatchSampler(row_lengths(samples.encoded["train"]), sizes.max_tokens, seed=0)
    size = max(round(len(samples.encoded["train"]) / len(whole)), 1)
    fixed = samples.fixed_batches(count, size)
    sides, tokens = {}, {}
    for name, chosen in (("budget", budget), ("fixed", fixed)):
        model = samples.translator().train()
        optimizer = make_optimizer(model)
        batches = [samples.collate(model, rows) for rows in chosen]
        tokens[name] = sum(real_tokens(batch) for batch in batches)
        sides[name] = clock(
            lambda model=model, optimizer=optimizer, batches=batches: [
                train_step(model, optimizer, batch) for batch in batches
            ]
        )
    times = in_turns(sides, sizes.rounds)
    row = Row("token budget batches, mixed lengths", f"batches of {size} rows in random order", 1.5)
    compare_speeds(row, times, tokens)
    return row


class Prepared(torch.utils.data.Dataset):
    """Batches made of texts when they are asked for: tokenised and padded.

    Args:
        samples: Whose texts and tokenizer they are made with.
        model: Model that the batches are for.
        chosen: Numbers of the training rows of each.
    """

    def __init__(self, samples: Samples, model: PreTrainedModel, chosen: Sequence[Sequence[int]]) -> None:
        self.tokenizer, self.collator = samples.tokenizer, make_collator(model, samples.tokenizer)
        self.texts = [samples.rows["train"].select(rows)[:] for rows in chosen]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        texts = self.texts[number]
        encoded, _ = encode_texts(self.tokenizer, texts[SOURCE], 100)
        labels, _ = encode_texts(self.tokenizer, texts[TARGET], 100, target=True)
        columns = {**encoded, "labels": labels["input_ids"]}
        rows = zip(*columns.values(), strict=True)
        return dict(self.collator([dict(zip(columns, row, strict=True)) for row in rows]))


def input_pipeline(samples: Samples) -> Row:
    """Waiting for batches that are tokenised and padded, as a share of the time of training steps with it.

    On a CPU one process does both in turn; beside a GPU four others make the batches, as with
    `--dataloader_num_workers 4`.
    """
    sizes = samples.sizes
    on_cpu = samples.device == "cpu"
    model = samples.translator().train()
    optimizer = make_optimizer(model)
    chosen = samples.budget_batches((1 if on_cpu else 16) * sizes.batches)
    workers: dict[str, Any] = {} if on_cpu else {"num_workers": 4, "persistent_workers": True, "pin_memory": True}
    loader = torch.utils.data.DataLoader(Prepared(samples, model, chosen), batch_size=None, **workers)
    row = Row("input pipeline (tokenise, batch)", "the training step: share of both together", 0.05, at_most=True)
    row.note = "" if on_cpu else "batches are made by four processes"
    row.figures = {"input, ms": [], "steps, ms": []}
    for turn in range(1 + sizes.rounds):
        waited, begin = 0.0, time.perf_counter()
        batches = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            train_step(model, optimizer, {name: values.to(samples.device) for name, values in batch.items()})
        whole = time.perf_counter() - begin
        if turn:  # the first one warms up
            row.ratios.append(waited / whole)
            row.figures["input, ms"].append(1000 * waited / len(chosen))
            row.figures["steps, ms"].append(1000 * (whole - waited) / len(chosen))
    return row

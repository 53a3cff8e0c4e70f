"""Training: the recipe beside a bare loop, ours beside JoeyNMT, batches by tokens, the input pipeline."""

from collections.abc import Mapping, Sequence

import training_throughput
from beside_joeynmt import HOW_TO, JoeyNMT
from samples import SOURCE, TARGET, Samples, make_optimizer, real_tokens, train_step
from timing import Row, clock, in_turns

from hfseq.data.encoding import encode_texts
from hfseq.data.sampler import TokenBudgetBatchSampler, row_lengths
from hfseq.training.seq2seq import make_collator


def recipe_beside_bare(samples: Samples, threads: int) -> Row:
    """The recipe's Trainer beside a bare loop: same model, optimizer, batches and order, each run in its own process.

    The Trainer also logs, watches the loss and keeps its state; the loop does nothing beside.
    """
    sizes = samples.sizes
    command = ["--steps", str(4 * sizes.batches + training_throughput.WARM_UP), "--pairs", str(sizes.rounds)]
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


def input_pipeline(samples: Samples) -> Row:
    """Tokenising and batching the rows of some steps, as a share of that and of the steps themselves."""
    sizes = samples.sizes
    model = samples.translator().train()
    optimizer, collator = make_optimizer(model), make_collator(model, samples.tokenizer)
    chosen = samples.budget_batches(sizes.batches)
    texts = samples.rows["train"].select([row for rows in chosen for row in rows])
    sources, targets = list(texts[SOURCE]), list(texts[TARGET])
    batches = [samples.collate(model, rows) for rows in chosen]

    def prepare() -> None:
        encode_texts(samples.tokenizer, sources, 100)
        encode_texts(samples.tokenizer, targets, 100, target=True)
        for rows in chosen:
            collator([samples.encoded["train"][row] for row in rows])

    sides = {
        "input": clock(prepare),
        "steps": clock(lambda: [train_step(model, optimizer, batch) for batch in batches]),
    }
    times = in_turns(sides, sizes.rounds)
    row = Row("input pipeline (tokenise, batch)", "the training step: share of both together", 0.05, at_most=True)
    row.ratios = [own / (own + step) for own, step in zip(times["input"], times["steps"], strict=True)]
    row.figures = {f"{name}, ms": [1000 * one / len(chosen) for one in seconds] for name, seconds in times.items()}
    return row

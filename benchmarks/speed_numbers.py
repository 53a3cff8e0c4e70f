"""Training on sequences of numbers beside bare loops: transcription by CTC, and forecasting with missing values."""

import itertools
import tempfile
import time
from collections.abc import Callable

import torch
from samples import Sizes, make_optimizer
from speed_encoder import LAYERS, plain_lstm
from timing import Row, clock, in_turns, speedups, synchronize
from torch import Tensor, nn
from torch.distributions import StudentT
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import TrainerCallback, set_seed

import hfseq
from hfseq.data.features import FeatureCollator
from hfseq.data.token_budget import TokenBudgetBatchSampler, row_lengths
from hfseq.training.arguments import GenerationArguments
from hfseq.training.trainer import SequenceTrainer

# The recogniser of Morse code: width of a frame, frames of a step, symbols, and frames of a recording.
FEATURES, FACTOR, SYMBOLS, FRAMES = 12, 4, 50, (200, 800)
MAX_TOKENS, WARM_UP = 4000, 3
# Series of a batch of the forecaster, steps before the horizon and in it, and lags.
SERIES, STEPS, HORIZON, LAGS = 64, 120, 24, [1, 2, 24]


def recordings(count: int) -> list[dict]:
    """Rows of random frames, with a label for every 40 of them."""
    random = torch.Generator().manual_seed(0)
    rows = []
    for length in torch.randint(*FRAMES, (count,), generator=random).tolist():
        labels = torch.randint(1, SYMBOLS, (length // 40,), generator=random).tolist()
        rows.append({"input_features": torch.randn(length, FEATURES, generator=random).numpy(), "labels": labels})
    return rows


def recogniser(width: int, device: str) -> hfseq.LstmForCTC:
    """A fresh recogniser, of two bidirectional layers of a width."""
    set_seed(0)
    config = hfseq.LstmConfig(
        vocab_size=SYMBOLS,
        input_size=FEATURES,
        subsampling_factor=FACTOR,
        hidden_size=width,
        num_hidden_layers=LAYERS,
        dropout=0.0,
    )
    return hfseq.LstmForCTC(config).to(device).train()


class Clock(TrainerCallback):
    """Notes the time after the steps between which it is taken.

    Args:
        steps: Number of the last step.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.times = (WARM_UP, steps), []

    def tick(self, step: int) -> None:
        """Note the time if it is one of the steps."""
        if step in self.steps:
            synchronize()
            self.times.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Note the time."""
        self.tick(state.global_step)

    def seconds(self) -> float:
        """Seconds between the two."""
        return self.times[1] - self.times[0]


def ctc_recipe_beside_bare(sizes: Sizes, width: int, device: str) -> Row:
    """The recipe's Trainer beside a bare loop: same model of a width, optimizer, batches and order."""
    steps = WARM_UP + 4 * sizes.batches
    rows = recordings(40 * sizes.batches)
    collator = FeatureCollator(recogniser(width, device))

    def bare() -> float:
        model, watch = recogniser(width, device), Clock(steps)
        optimizer = make_optimizer(model)
        sampler = TokenBudgetBatchSampler(row_lengths(rows), MAX_TOKENS, seed=0)
        loader = torch.utils.data.DataLoader(rows, batch_sampler=sampler, collate_fn=collator)
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for step in range(1, steps + 1):
            model(**next(batches).to(device)).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            watch.tick(step)
        return watch.seconds()

    def recipe() -> float:
        watch = Clock(steps)
        with tempfile.TemporaryDirectory() as folder:
            arguments = GenerationArguments(
                output_dir=folder,
                max_steps=steps,
                use_cpu=device == "cpu",
                seed=0,
                disable_tqdm=True,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
            )
            SequenceTrainer(
                model=recogniser(width, device),
                args=arguments,
                train_dataset=rows,
                data_collator=collator,
                callbacks=[watch],
                max_tokens=MAX_TOKENS,
            ).train()
        return watch.seconds()

    times = in_turns({"ours": recipe, "bare": bare}, 3 * sizes.rounds)
    measure = f"training, CTC of a bidirectional LSTM of {width}: the recipe"
    row = Row(measure, "bare PyTorch loop over the same modules", 0.95)
    row.ratios = speedups(times, "ours", "bare")
    row.note = "the Trainer and Accelerate take milliseconds of Python a step, which count beside a small model"
    row.figures = {"ms": milliseconds(times["ours"], steps - WARM_UP)}
    row.figures |= {"ms beside": milliseconds(times["bare"], steps - WARM_UP)}
    return row


def milliseconds(seconds: list[float], steps: int) -> list[float]:
    """Milliseconds of a step in rounds of so many."""
    return [1000 * one / steps for one in seconds]


def training(modules: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A training step on a loss: gradients, their norm, the update."""
    optimizer = make_optimizer(modules)  # type: ignore[arg-type]

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps_beside(
    measure: str, sides: dict[str, Callable[[], Tensor]], modules: list[nn.Module], targets: list[float], sizes: Sizes
) -> list[Row]:
    """Training steps on the first loss beside steps on the others, which are equal.

    Args:
        measure: Name of the measure.
        sides: Name to the loss; the first is ours.
        modules: What each of them trains.
        targets: Ratio to reach beside each of the others.
        sizes: With the numbers of steps and rounds.

    Raises:
        RuntimeError: The losses differ.
    """
    ours, *others = sides
    losses = [loss().item() for loss in sides.values()]
    if max(losses) - min(losses) > 1e-3 * abs(losses[0]):
        raise RuntimeError(f"{measure}: losses differ: {losses}")
    steps = {name: training(own, loss) for (name, loss), own in zip(sides.items(), modules, strict=True)}
    clocks = {name: clock(lambda step=step: [step() for _ in range(sizes.batches)]) for name, step in steps.items()}
    times = in_turns(clocks, 3 * sizes.rounds, warm_up=2)
    rows = []
    for name, target in zip(others, targets, strict=True):
        row = Row(measure, name, target)
        row.ratios = speedups(times, ours, name)
        row.figures = {"ms": milliseconds(times[ours], sizes.batches)}
        row.figures |= {"ms beside": milliseconds(times[name], sizes.batches)}
        rows.append(row)
    return rows


def ctc_step(sizes: Sizes, device: str) -> list[Row]:
    """A training step of the recogniser beside one of `nn.LSTM` on packed frames, with the same weights and result."""
    model = recogniser(sizes.hidden // 4, device)
    batch = FeatureCollator(model)(recordings(8)).to(device)
    lengths = batch["attention_mask"].sum(dim=1)
    steps, labels = (lengths + FACTOR - 1).div(FACTOR, rounding_mode="floor"), batch["labels"]
    counts, targets = (labels != -100).sum(dim=1), labels[labels != -100]
    lstm = plain_lstm(model.model.stack, FACTOR * FEATURES)
    linear = nn.Linear(sizes.hidden // 4, SYMBOLS)
    linear.load_state_dict(model.ctc_head.state_dict())
    bare = nn.ModuleList([lstm, linear]).to(device)

    def loss() -> Tensor:
        frames = nn.functional.pad(batch["input_features"], (0, 0, 0, -batch["input_features"].shape[1] % FACTOR))
        stacked = frames.unflatten(1, (-1, FACTOR)).flatten(2)
        packed = pack_padded_sequence(stacked, steps.cpu(), batch_first=True, enforce_sorted=False)
        logits = linear(pad_packed_sequence(lstm(packed)[0], batch_first=True)[0])
        scores = logits.log_softmax(dim=-1).transpose(0, 1)
        with torch.backends.cudnn.flags(enabled=False):
            return nn.functional.ctc_loss(scores, targets, steps, counts, reduction="sum") / len(targets)

    sides = {"hfseq": lambda: model(**batch).loss, "bare loop over `nn.LSTM` on packed frames": loss}
    return steps_beside("training step, CTC of a bidirectional LSTM", sides, [model, bare], [0.95], sizes)


def forecaster_step(sizes: Sizes, device: str) -> list[Row]:
    """A training step of a forecaster beside the same computation by hand; a tenth of the values are missing.

    Both read lags with a mask of what was observed, scale each series by its mean magnitude, and have a Student's t.
    """
    set_seed(0)
    hidden = sizes.hidden // 8
    model = hfseq.LstmForPrediction(
        hfseq.LstmConfig(hidden_size=hidden, num_hidden_layers=LAYERS, lags_sequence=LAGS, dropout=0.0)
    )
    model.to(device).train()
    values = torch.randn(SERIES, STEPS + HORIZON).cumsum(dim=1) + 20
    # All begin with an observed value: earlier steps would be padding.
    missing = torch.rand_like(values).lt(0.1).index_fill(1, torch.tensor([0]), False)
    values = values.masked_fill(missing, torch.nan).to(device)
    layers = model.model.stack.forward_layers
    lstm = nn.LSTM(layers[0].input_size, hidden, LAYERS, batch_first=True)
    weights = {
        f"{name.removesuffix('0')}{number}": weight
        for number, layer in enumerate(layers)
        for name, weight in layer.named_parameters()
    }
    lstm.load_state_dict(weights)
    linear = nn.Linear(hidden, 3)
    linear.load_state_dict(model.parameter_projection.state_dict())
    bare = nn.ModuleList([lstm, linear]).to(device)

    def squareplus(raw: Tensor) -> Tensor:
        return (raw + torch.sqrt(raw.square() + 4.0)) / 2.0

    def loss() -> Tensor:
        observed = ~values.isnan()
        known = values.masked_fill(~observed, 0.0)
        counts = observed[:, :STEPS].sum(dim=1, keepdim=True).clamp(min=1)
        scale = known[:, :STEPS].abs().sum(dim=1, keepdim=True) / counts
        scale = torch.where(scale > 0, scale, 1.0)
        scaled = known / scale
        read = nn.functional.pad(torch.stack([scaled, observed.to(scaled.dtype)], dim=2), (0, 0, max(LAGS), 0))
        length, logarithm = values.shape[1], scale.log()
        parts = [read[:, max(LAGS) - lag : max(LAGS) - lag + length] for lag in LAGS]
        inputs = torch.cat([*parts, logarithm.unsqueeze(1).expand(-1, length, -1)], dim=2)
        freedom, center, width = linear(lstm(inputs)[0]).unbind(dim=2)
        width = squareplus(width).clamp_min(torch.finfo(width.dtype).eps)
        scores = StudentT(2 + squareplus(freedom), center, width, validate_args=False).log_prob(scaled) - logarithm
        return -scores.masked_fill(~observed, 0.0).sum() / observed.sum()

    past, future = values[:, :STEPS], values[:, STEPS:]
    sides = {"hfseq": lambda: model(past_values=past, future_values=future).loss, "the same computation by hand": loss}
    measure = "training step, LSTM forecaster, a tenth of the values missing"
    return steps_beside(measure, sides, [model, bare], [0.95], sizes)

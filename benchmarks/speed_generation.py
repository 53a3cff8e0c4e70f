"""Generation: greedy beside a hand-written loop, beams beside JoeyNMT, a language model beside GPT-2."""

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from beside_joeynmt import HOW_TO, JoeyNMT, freeze_bridge
from cache_memory import read, stored_bytes
from samples import Samples, Sizes, make_optimizer, train_step
from timing import Row, clock, in_turns, speedups
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel, set_seed
from transformers.generation import BaseStreamer

import hfseq
from hfseq.onnx.quantize import quantize_onnx
from hfseq.onnx.runtime import load_onnx

BEAMS, LONGEST, STEPS = 5, 60, 30


def hand_written(model: PreTrainedModel, batch: dict[str, Tensor], steps: int) -> Tensor:
    """Greedy ids `[B, 1 + steps]` of a translator by a loop over its own modules, with nothing around them."""
    mask = batch["attention_mask"] != 0
    memory = model.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    decoder = model.decoder
    attention, layer = decoder.attention, decoder.stack.forward_layers[0]
    keys, state = attention.keys(memory), decoder.bridge(memory, mask)[0]
    token = torch.full((len(memory), 1), model.config.decoder_start_token_id, device=memory.device)
    found = [token]
    for _ in range(steps):
        output, *state = layer(decoder.embed_tokens(token), None, None, *state)
        vector, _ = attention(output, memory, keys, mask)
        token = model.lm_head(vector).argmax(dim=-1)
        found.append(token)
    return torch.cat(found, dim=1)


def forwards(model: PreTrainedModel, batch: dict[str, Tensor], steps: int) -> None:
    """The calls of `forward` that `generate()` makes, without `generate()`: what is between the two is its own."""
    encoded = model.get_encoder()(**batch)
    token = torch.full((len(batch["input_ids"]), 1), model.config.decoder_start_token_id, device=model.device)
    cache = None
    for _ in range(steps):
        outputs = model(
            encoder_outputs=encoded,
            attention_mask=batch["attention_mask"],
            decoder_input_ids=token,
            cache=cache,
            use_cache=True,
        )
        cache, token = outputs.cache, outputs.logits[:, -1:].argmax(dim=-1)


@torch.inference_mode()
def greedy_beside_hand(samples: Samples) -> list[Row]:
    """`generate()` beside a loop over the same modules, one sentence and 32, a fixed number of steps.

    Both write the same ids, which is checked. No sentence ends early, so that both do all steps; `generate()` also
    looks for the end, keeps its inputs up to date and can do everything else.

    Raises:
        RuntimeError: The ids differ.
    """
    model = samples.translator().eval()
    rows = []
    for size in (1, 32):
        batch = samples.collate(model, range(size), "test")
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
        options = {"max_new_tokens": STEPS, "do_sample": False, "num_beams": 1, "eos_token_id": None}
        runs = {
            "generate": lambda batch=batch, options=options: model.generate(**batch, **options),
            "hand": lambda batch=batch: hand_written(model, batch, STEPS),
            "forwards": lambda batch=batch: forwards(model, batch, STEPS),
        }
        if not torch.equal(runs["generate"](), runs["hand"]()):
            raise RuntimeError("generate() and the loop write different ids")
        times = in_turns({name: clock(run) for name, run in runs.items()}, 3 * samples.sizes.rounds)
        row = Row(f"`generate()` greedy, batch {size}", "hand-written loop over the same cells", 0.85)
        row.ratios = speedups(times, "generate", "hand")
        row.figures = {
            "ms a step": [1000 * one / STEPS for one in times["generate"]],
            "ms a step beside": [1000 * one / STEPS for one in times["hand"]],
            "ms a step of forward() alone": [1000 * one / STEPS for one in times["forwards"]],
        }
        rows.append(row)
    return rows


def trained_translator(samples: Samples) -> PreTrainedModel:
    """A translator that has learned where sentences end; its decoder starts from zeros, see `freeze_bridge`.

    After an epoch it had not: its sentences were as long as they were let.
    """
    model = samples.translator()
    freeze_bridge(model)
    model.train()
    optimizer = make_optimizer(model)
    for rows in samples.budget_batches(samples.sizes.translator_steps):
        train_step(model, optimizer, samples.collate(model, rows), bf16=True)
    return model.eval()


def beams_beside_joeynmt(samples: Samples, threads: int, python: str | None) -> list[Row]:
    """Beams of 5 over test sentences, in batches of one length, with the same weights on all sides.

    In float32 with PyTorch, and in int8 with onnxruntime. The share of equal translations is in the note: the two
    toolkits normalise scores by length in different ways.
    """
    measure, beside = f"`generate()` beam {BEAMS}, {samples.name} test", "JoeyNMT 2.3, the same weights"
    rows = {
        "float32": Row(measure, beside, 2.0),
        "int8": Row(f"{measure}, ONNX int8", f"{beside} in float32", 4.0),
    }
    if python is None:
        for row in rows.values():
            row.note = HOW_TO
        return [*rows.values()]
    model, sizes = trained_translator(samples), samples.sizes
    lengths = [len(ids) for ids in samples.encoded["test"]["input_ids"]]
    order = sorted(range(min(sizes.test_sentences, len(lengths))), key=lengths.__getitem__)
    groups = [order[start : start + sizes.sentences] for start in range(0, len(order), sizes.sentences)]
    batches = [samples.collate(model, group, "test") for group in groups]
    with (
        tempfile.TemporaryDirectory() as folder,
        JoeyNMT(python, samples, {"train": [], "test": batches}, threads) as joey,
    ):
        joey.load(model)
        models = {"float32": model, "int8": quantized(model, samples, Path(folder), threads)}
        found: dict[str, dict[int, list[list[int]]]] = {name: {} for name in (*models, "joeynmt")}
        for number, batch in enumerate(batches):

            def theirs(number: int = number) -> float:
                seconds, found["joeynmt"][number] = joey.translate([number], BEAMS, LONGEST)
                return seconds

            def ours(name: str, number: int = number, batch: dict[str, Tensor] = batch) -> None:
                found[name][number] = translate(models[name], batch)

            sides = {name: clock(partial(ours, name)) for name in models} | {"joeynmt": theirs}
            times = in_turns(sides, 1, warm_up=int(number == 0))
            for name, row in rows.items():
                row.ratios += speedups(times, name, "joeynmt")
                for side, key in ((name, "sentences/s"), ("joeynmt", "sentences/s beside")):
                    row.figures.setdefault(key, []).append(len(groups[number]) / times[side][0])
    for name, row in rows.items():
        pairs = zip(*(chain.from_iterable(found[side].values()) for side in (name, "joeynmt")), strict=True)
        equal = sum(own == other for own, other in pairs) / len(order)
        row.note = f"{len(order)} sentences; {equal:.0%} of the translations are the same on both sides"
    return [*rows.values()]


def quantized(model: PreTrainedModel, samples: Samples, folder: Path, threads: int) -> Any:
    """The translator in int8 on onnxruntime."""
    model.save_pretrained(folder / "model")
    samples.tokenizer.save_pretrained(folder / "model")
    hfseq.export_onnx(folder / "model", folder / "float32")
    quantize_onnx(folder / "float32", folder / "int8")
    return load_onnx(folder / "int8", threads=threads)[0]


@torch.inference_mode()
def translate(model: Any, batch: dict[str, Tensor]) -> list[list[int]]:
    """Ids of the translations of a batch, without those of the beginning, the end and the padding."""
    output = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        num_beams=BEAMS,
        max_new_tokens=LONGEST,
        do_sample=False,
        early_stopping=True,  # as the recipes set it
    )
    config = model.config
    special = (config.pad_token_id, config.eos_token_id)
    return [[token for token in row if token not in special] for row in output[:, 1:].tolist()]


class Clock(BaseStreamer):
    """Keeps the time at which each token came; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """A token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def language_models(sizes: Sizes) -> dict[str, PreTrainedModel]:
    """An LSTM and a GPT-2 of about as many parameters; the latter has as many positions as are asked for."""
    set_seed(0)
    lstm = hfseq.LstmConfig(vocab_size=sizes.vocabulary, hidden_size=sizes.hidden, num_hidden_layers=2)
    width = sizes.hidden // 2
    gpt2 = GPT2Config(
        vocab_size=sizes.vocabulary,
        n_positions=sizes.new_tokens + 1,
        n_embd=width,
        n_layer=7,
        n_head=max(width // 64, 1),
        bos_token_id=1,
        eos_token_id=2,
    )
    return {name: AutoModelForCausalLM.from_config(one).eval() for name, one in (("LSTM", lstm), ("GPT-2", gpt2))}


@torch.inference_mode()
def language_model_beside_gpt2(sizes: Sizes, device: str) -> tuple[list[Row], dict[str, Any]]:
    """Greedy text of one row through `generate()` with a cache, no end: time and memory by length.

    Returns:
        The rows, and what is plotted: the token counts, and per model milliseconds a token and bytes of the cache.
    """
    models = {name: model.to(device) for name, model in language_models(sizes).items()}
    parts = 8
    bounds = [sizes.new_tokens * part // parts for part in range(parts + 1)]
    segments: dict[str, list[list[float]]] = {name: [] for name in models}

    def write(name: str) -> float:
        streamer = Clock()
        prompt = torch.ones(1, 1, dtype=torch.long, device=device)
        models[name].generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=sizes.new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            streamer=streamer,
        )
        segments[name].append(
            [1000 * (streamer.times[end] - streamer.times[start]) / (end - start) for start, end in pairwise(bounds)]
        )
        return streamer.times[-1] - streamer.times[0]

    rounds = max(sizes.rounds // 2, 2)
    times = in_turns({name: lambda name=name: write(name) for name in models}, rounds, warm_up=0)
    counts = bounds[1:]
    memory = {
        name: [stored_bytes(read(model, count, chunk=counts[0])) for count in counts] for name, model in models.items()
    }
    parameters = ", ".join(f"{name} {model.num_parameters():,}" for name, model in models.items())
    speed = Row(f"language model, {sizes.new_tokens} new tokens", "GPT-2 of the same size through `generate()`", 2.0)
    speed.ratios, speed.note = speedups(times, "LSTM", "GPT-2"), f"parameters: {parameters}"
    speed.figures = {
        "ms a token": [1000 * one / sizes.new_tokens for one in times["LSTM"]],
        "ms a token beside": [1000 * one / sizes.new_tokens for one in times["GPT-2"]],
    }
    flat = Row("the same: time of a token", "last eighth of the text over the second", 1.1, at_most=True)
    flat.ratios = [part[-1] / part[1] for part in segments["LSTM"]]
    flat.note = f"GPT-2: {_mean([part[-1] / part[1] for part in segments['GPT-2']]):.2f}"
    growth = Row("the same: memory of the cache", "last eighth of the text over the first", 1.0, at_most=True)
    growth.ratios = [memory["LSTM"][-1] / memory["LSTM"][0]]
    growth.note = f"GPT-2: {memory['GPT-2'][-1] / memory['GPT-2'][0]:.2f}"
    curves = {
        "tokens": counts,
        "ms": {name: [_mean(part) for part in zip(*found, strict=True)] for name, found in segments.items()},
        "bytes": memory,
    }
    return [speed, flat, growth], curves


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

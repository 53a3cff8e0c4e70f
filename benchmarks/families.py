"""The families side by side, as language models of characters: size, speed and ONNX.

    python benchmarks/families.py

All models have the same width. They have two layers, the linear recurrences as cells alone and as residual
blocks; the CNN has four gated layers with kernels of five. Figures:

- training: processor time of a step (loss, gradients, clipping, AdamW) on 16 rows of 128 characters, in turns;
- generation: processor time of a new token in `generate()`, one row, greedy, in PyTorch and by the exported graph on
  onnxruntime, in turns;
- ONNX: the largest difference between the logits of the graph and of the model, and the operators that stand for the
  layers in the graph.

Tokens are random. One thread; processor time, which other programs on the machine change less than the time on a
clock. Figures go into `benchmarks/families.json`, from which `make results` renders the tables.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from exactness import write
from family_tables import FAMILIES, side_by_side
from samples import make_optimizer
from timing import in_turns, machine, speedups
from torch import Tensor
from transformers import PreTrainedModel, set_seed

import hfseq
from hfseq.models import MODEL_CLASSES
from hfseq.models.configuration_base import SequenceConfig
from hfseq.models.configuration_linear import LinearRecurrentConfig
from hfseq.onnx.runtime import load_onnx
from hfseq.tokenization import letter_tokenizer

WIDTH, ROWS, LENGTH, CHARACTERS, NEW_TOKENS = 256, 16, 128, 128, 64
RECURRENT_OPERATORS = ("RNN", "LSTM", "GRU", "Loop", "Conv")


def configs() -> dict[str, SequenceConfig]:
    """Name of each model to its configuration; that of a family comes first, then its residual blocks."""
    sizes = {"vocab_size": CHARACTERS, "hidden_size": WIDTH, "dropout": 0.0}
    found: dict[str, SequenceConfig] = {}
    for config_class in MODEL_CLASSES:
        fields = {"num_hidden_layers": 4, "kernel_size": 5} if config_class is hfseq.CnnConfig else {}
        found[config_class.family] = config_class(**({"num_hidden_layers": 2} | sizes | fields))
        if issubclass(config_class, LinearRecurrentConfig):
            blocks = config_class(num_hidden_layers=2, residual_blocks=True, **sizes)
            found[f"{config_class.family}, blocks"] = blocks
    return found


def make_model(config: SequenceConfig) -> PreTrainedModel:
    """A fresh language model."""
    set_seed(0)
    return MODEL_CLASSES[type(config)]["AutoModelForCausalLM"](config)


def clock(work: Callable[[], Any], count: int) -> Callable[[], float]:
    """A side that takes the processor time of one of `count` calls."""

    def side() -> float:
        begin = time.process_time()
        for _ in range(count):
            work()
        return (time.process_time() - begin) / count

    return side


def train_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    """Train on one batch of characters `[B, T]`."""
    model(ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def trained(config: SequenceConfig) -> Callable[[], float]:
    """A side that trains a model."""
    model = make_model(config).train()
    optimizer = make_optimizer(model)
    ids = torch.randint(3, CHARACTERS, (ROWS, LENGTH))
    return clock(lambda: train_step(model, optimizer, ids), 1)


def generated(model: PreTrainedModel) -> Callable[[], float]:
    """A side that generates, which takes the time of a token."""
    ids = torch.randint(3, CHARACTERS, (1, 4))
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
    side = clock(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options), 1)
    return lambda: side() / NEW_TOKENS


def export(model: PreTrainedModel, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A runner of the exported model, and the figures of its graph."""
    model.save_pretrained(folder / "model")
    letter_tokenizer("abc").save_pretrained(folder / "model")
    hfseq.export_onnx(folder / "model", folder / "onnx")
    runner, _ = load_onnx(folder / "onnx", threads=1)
    ids = torch.randint(3, CHARACTERS, (2, 40))
    with torch.no_grad():
        difference = (runner(ids).logits - model(ids).logits).abs().max().item()
    nodes = {node.op_type for node in onnx.load(folder / "onnx" / "decoder.onnx").graph.node}
    return runner, {"difference": difference, "operators": [name for name in RECURRENT_OPERATORS if name in nodes]}


def main() -> None:
    """Measure, write the JSON, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="times that each side is run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sides = configs()
    models = {name: make_model(config).eval() for name, config in sides.items()}
    training = in_turns({name: trained(config) for name, config in sides.items()}, args.rounds)
    graphs, runners = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            runners[name], graphs[name] = export(model, Path(folder) / name)
        steps = in_turns({name: generated(model) for name, model in models.items()}, args.rounds)
        onnx_steps = in_turns({name: generated(runner) for name, runner in runners.items()}, args.rounds)
    rows = []
    for name, config in sides.items():
        row = {"model": name, "model_type": config.model_type, "parameters": models[name].num_parameters()}
        row["training"] = speedups(training, name, "Lstm")
        row["generation"] = speedups(steps, name, "Lstm")
        row["ms"] = {"training": training[name], "generation": steps[name], "onnx": onnx_steps[name]}
        row["ms"] = {kind: [1000 * one for one in seconds] for kind, seconds in row["ms"].items()}
        row["onnx"] = graphs[name]
        rows.append(row)
    sizes = {"width": WIDTH, "rows": ROWS, "length": LENGTH, "new_tokens": NEW_TOKENS}
    about = machine(1, "cpu") | {"command": "python benchmarks/families.py"}
    write(FAMILIES, {"about": about, "sizes": sizes, "rows": rows})
    print("\n".join(side_by_side(json.loads(FAMILIES.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()

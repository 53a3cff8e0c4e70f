"""JoeyNMT 2.3 in a process of its own, with the sizes, batches and weights of a translator of ours."""

import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from samples import Samples
from torch import Tensor
from transformers import PreTrainedModel

HOW_TO = (
    "JoeyNMT wants older packages than hfseq's, so it has an environment of its own: `python -m venv joeynmt && "
    "joeynmt/bin/pip install -r benchmarks/peers/requirements/joeynmt.txt`, then `make bench "
    "JOEYNMT=joeynmt/bin/python`"
)
# Special tokens have other ids there: where pad, bos, eos and unk of ours go.
_IDS = (1, 2, 3, 0)


class JoeyNMT:
    """The process. It works while it is asked and waits otherwise, so that it can take turns with this one.

    Use it as a context manager: the process ends with the block.

    Args:
        python: JoeyNMT's interpreter.
        samples: Whose sizes, vocabulary and device it has.
        batches: `train` and `test` batches of ours, as tensors.
        threads: That it may use.
    """

    def __init__(
        self,
        python: str,
        samples: Samples,
        batches: dict[str, list[dict[str, Tensor]]],
        threads: int,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        setup = {
            "vocabulary": len(samples.tokenizer),
            "embedding": samples.sizes.embedding,
            "hidden": samples.sizes.hidden,
            "threads": threads,
            "device": samples.device,
        }
        torch.save(setup, folder / "setup.pt")
        pairs = {
            "train": [(their_ids(batch["input_ids"]), targets(batch["labels"])) for batch in batches["train"]],
            "test": [(their_ids(batch["input_ids"]), None) for batch in batches["test"]],
        }
        torch.save(pairs, folder / "batches.pt")
        command = [python, str(Path(__file__).with_name("joeynmt_worker.py")), str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.parameters: int = self._answer()["parameters"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("READY "):
                return json.loads(line.removeprefix("READY "))
        raise RuntimeError(f"JoeyNMT's process ended with status {self._process.wait()}; its error stands above")

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def train(self, numbers: Sequence[int], bf16: bool) -> float:
        """Seconds of a training step on each of these batches."""
        return self._ask(train=list(numbers), bf16=bf16)["seconds"]

    def plan(self, rows: Iterable[Mapping[str, list[int]]], max_tokens: int, count: int) -> tuple[list[int], int]:
        """Have it make training batches of encoded rows as it does itself.

        Args:
            rows: With `input_ids` and `labels`, all of them.
            max_tokens: Budget of a batch.
            count: How many batches are made.

        Returns:
            Their numbers, and how many target tokens they hold.
        """
        pairs = [[their_ids(torch.tensor(row[name])).tolist() for name in ("input_ids", "labels")] for row in rows]
        answer = self._ask(plan=pairs, max_tokens=max_tokens, count=count)
        return answer["numbers"], answer["tokens"]

    def load(self, model: PreTrainedModel) -> None:
        """Take over the weights of ours."""
        torch.save(their_weights(model), Path(self._folder.name) / "weights.pt")
        self._ask(load=True)

    def translate(self, numbers: Sequence[int], beams: int, max_length: int) -> tuple[float, list[list[int]]]:
        """Seconds for these test batches, and the translations in ids of ours, without that of the end."""
        answer = self._ask(translate=list(numbers), beams=beams, max_length=max_length)
        ours = {theirs: own for own, theirs in enumerate(_IDS)}
        return answer["seconds"], [[ours.get(token, token) for token in row] for row in answer["output"]]


def their_ids(ids: Tensor) -> Tensor:
    """Ids of ours `[B, T]` in JoeyNMT's order."""
    special = torch.tensor(_IDS, device=ids.device)
    return torch.where(ids < len(_IDS), special[ids.clamp(max=len(_IDS) - 1)], ids)


def targets(labels: Tensor) -> Tensor:
    """Labels `[B, T]` as JoeyNMT takes them: `[B, 1 + T]`, with the mark of the beginning."""
    padded = their_ids(labels.masked_fill(labels == -100, 0))
    return torch.cat([padded.new_full((len(padded), 1), _IDS[1]), padded], dim=1)


def their_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a translator that `freeze_bridge` was called on, by JoeyNMT's names."""
    ours = {name: weight.cpu() for name, weight in model.state_dict().items()}
    order = torch.arange(model.config.vocab_size)
    order[list(_IDS)] = torch.arange(len(_IDS))
    embeddings = ours["model.embed_tokens.weight"][order]
    states = model.config.hidden_size
    combine = ours["decoder.attention.combine.weight"]  # [H, M + H], the context first
    weights = {
        "src_embed.lut.weight": embeddings,
        "trg_embed.lut.weight": embeddings,
        "decoder.output_layer.weight": ours["lm_head.weight"][order],
        "decoder.att_vector_layer.weight": torch.cat([combine[:, -states:], combine[:, :-states]], dim=1),
        "decoder.att_vector_layer.bias": torch.zeros(states),
        "decoder.attention.key_layer.weight": ours["decoder.attention.query.weight"].t().contiguous(),
        "decoder.bridge_layer.weight": torch.zeros(states, states),
        "decoder.bridge_layer.bias": torch.zeros(states),
    }
    for part in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        weights[f"encoder.rnn.{part}"] = ours[f"model.stack.forward_layers.0.{part}"]
        weights[f"encoder.rnn.{part}_reverse"] = ours[f"model.stack.backward_layers.0.{part}"]
        weights[f"decoder.rnn.{part}"] = ours[f"decoder.stack.forward_layers.0.{part}"]
    return weights


def freeze_bridge(model: PreTrainedModel) -> None:
    """Let the decoder start from zeros: JoeyNMT's bridge reads other states, so that no other start is equal."""
    for weight in model.decoder.bridge.parameters():
        weight.requires_grad_(False).zero_()

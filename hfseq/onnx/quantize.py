"""Dynamic quantisation of exported graphs to int8, right on every CPU."""

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfseq.errors import InputError, require
from hfseq.onnx.export import check_target, exported_files, read_export, replace_export
from hfseq.onnx.runtime import OnnxRunner, load_onnx

TOLERANCE = 0.1
"""Largest median of the relative differences between int8 and float32 that is accepted.

Trained models had 0.005 and 0.02, models of random weights up to 0.06. With 8-bit weights, on a CPU where their
products saturate, most of the latter had 0.11 to 0.6.
"""
_LENGTHS = (24, 20, 16, 12, 8, 5, 3, 1)
"""Of the rows that are compared."""
_STEPS = 4
"""Of a decoder, one token each."""


def quantize_onnx(directory: str | Path, out: str | Path) -> dict[str, dict[str, float]]:
    """Make the weights of exported graphs int8, their inputs quantized as they come (dynamic quantisation).

    onnxruntime does that for LSTMs, matrix products and embeddings. Recurrent layers of GRUs and simple RNNs, and
    convolutions, stay in float32: it has no such kernels, or slower ones.

    Weights have 7 bits: -64 to 64 with a scale for each output, those of embeddings 0 to 127 with one scale. A CPU
    without VNNI adds pairs of products in 16 bits, at most 2 · 255 · 64 = 32640; 8-bit weights would saturate there,
    silently. So the graphs are as good on such a CPU as on the one that wrote them.

    Args:
        directory: What `export_onnx` wrote.
        out: Folder for the new graphs; it must be empty or of an earlier export. What is there is replaced only when
            the new graphs are as they should be.

    Returns:
        Graph to the number of its operators with weights in int8 (`int8 LSTM`) and in float32 (`fp32 GRU`), and of the
        last graph, from which the outputs come, the `median difference` and the `largest difference` from those in
        float32, as `relative_differences` defines them. `onnx.json` has the same under `int8`.

    Raises:
        InputError: If there is no such folder, it is in int8 already, the other one has other files, the median
            difference is more than 0.1, or `onnx` is not installed.
    """
    require("onnx", "onnxruntime", extra="onnx", use="quantisation")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = Path(directory)
    about = read_export(source)
    check_target(out)
    plain, _ = load_onnx(source)
    report: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="hfseq-") as temporary:
        folder = Path(temporary)
        for path in exported_files(source):
            shutil.copyfile(path, folder / path.name)
        for name in about["graphs"]:
            path = folder / f"{name}.onnx"
            model = onnx.load(source / path.name)
            if any(tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8) for tensor in _weights(model)):
                raise InputError(f"{source / path.name} is in int8 already; quantise an export in float32")
            overrides = {weight: [{"reduce_range": True}] for weight in _embeddings(model)}
            with _without_advice():
                quantize_dynamic(
                    model,
                    path,
                    op_types_to_quantize=["LSTM", "MatMul", "Gather"],
                    per_channel=True,
                    reduce_range=True,  # of LSTMs and products; of embeddings it has to be said apart
                    weight_type=QuantType.QInt8,
                    extra_options={
                        "DefaultTensorType": onnx.TensorProto.FLOAT,
                        "TensorQuantOverrides": overrides,
                    },
                )
            model = onnx.load(path)
            # Shapes that were inferred for the quantisation; they would be a third of a small file.
            del model.graph.value_info[:]
            onnx.save(model, path)
            report[name] = _operators(model)
        median, largest = relative_differences(plain, load_onnx(folder)[0])
        if not median <= TOLERANCE:
            raise InputError(
                f"{source}: in int8 the outputs differ by {median:.2g} of their size, more than {TOLERANCE}; use the "
                "graphs in float32"
            )
        report[about["graphs"][-1]] |= {
            "median difference": float(f"{median:.3g}"),
            "largest difference": float(f"{largest:.3g}"),
        }
        replace_export(folder, out, about | {"int8": report})
    return report


@torch.no_grad()
def relative_differences(plain: OnnxRunner, quantized: OnnxRunner) -> tuple[float, float]:
    """Median and largest relative difference between the outputs of a model in int8 and in float32.

    It is ‖q − f‖ / ‖f‖, the norms being Euclidean, of what a run of the last graph gives for a row: logits, or states
    of an encoder, of all steps but padding. A few rows may be far off where attention or a maximum falls elsewhere, so
    that it is the median that tells whether the graphs are right.

    The rows are random tokens of different lengths, a batch padded on the right and one on the left. A language model
    goes on from there for some steps, one token each, and a translator decodes some, all after states of its own. The
    median is that of a batch, and of a language model's steps apart; the largest of these counts.

    Args:
        plain: Runner of an export in float32.
        quantized: Runner of the same in int8.

    Returns:
        Both; they are NaN if an output is.
    """
    medians, largest = [], []
    for inputs in _batches(plain.config):
        for right, found in zip(*(_outputs(runner, *inputs) for runner in (plain, quantized)), strict=True):
            differences = (found - right).norm(dim=-1) / right.norm(dim=-1).clamp(min=1e-12)
            medians.append(differences.median())
            largest.append(differences.max())
    return float(torch.stack(medians).max()), float(torch.stack(largest).max())


def _batches(config: Any) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Random inputs `[B, T]`, padded on the right, then on the left, and tokens `[B, N]` for steps of a decoder."""
    rng = np.random.default_rng(0)
    lengths, places = np.array(_LENGTHS)[:, None], np.arange(max(_LENGTHS))
    for valid in (places < lengths, places >= len(places) - lengths):
        inputs = {
            "input_ids": rng.integers(config.vocab_size, size=valid.shape) * valid,
            "attention_mask": valid.astype(np.int64),
        }
        if getattr(config, "char_encoder", None) is not None:
            letters = rng.integers(config.char_vocab_size, size=(*valid.shape, 6))
            spelt = np.arange(6) < rng.integers(1, 7, size=(*valid.shape, 1))
            inputs["char_ids"] = letters * spelt * valid[:, :, None]
        steps = rng.integers(config.vocab_size, size=(len(valid), _STEPS))
        yield {name: torch.from_numpy(values) for name, values in inputs.items()}, torch.from_numpy(steps)


def _outputs(runner: OnnxRunner, inputs: dict[str, Tensor], steps: Tensor) -> list[Tensor]:
    """The outputs that `relative_differences` compares, `[N, K]` each, zeros at padding."""
    padding = inputs["attention_mask"] == 0

    def rows(output: Tensor) -> Tensor:
        # [B, K], or [B, T, K]
        return output if output.dim() == 2 else output.masked_fill(padding[:, :, None], 0.0).flatten(1)

    if not runner.can_generate():
        return [rows(runner(**inputs)[0])]
    if runner.config.is_encoder_decoder:
        return [runner(**inputs, decoder_input_ids=steps).logits.flatten(0, 1)]
    outputs = runner(**inputs, use_cache=True)
    prompt, found = rows(outputs.logits), []
    for token in steps.split(1, dim=1):
        outputs = runner(token, cache=outputs.cache)
        found.append(outputs.logits[:, 0])
    return [prompt, torch.cat(found)]


def _weights(model: Any) -> list[Any]:
    """The tensors of a graph that are no vectors or scalars."""
    return [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1]


def _embeddings(model: Any) -> set[str]:
    """Names of the weights that a graph looks rows up in."""
    return {tensor.name for tensor in _weights(model)} & {
        node.input[0] for node in model.graph.node if node.op_type == "Gather"
    }


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keeps back onnxruntime's advice to prepare a graph, which changes nothing in these."""

    def other(record: logging.LogRecord) -> bool:
        return "run pre-processing before quantization" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


def _operators(model: Any) -> dict[str, float]:
    """How many operators with weights a graph has, by precision and kind."""
    weights = {tensor.name for tensor in _weights(model)}
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type in ("DynamicQuantizeLSTM", "MatMulInteger", "DynamicQuantizeMatMul"):
            counts[f"int8 {'LSTM' if 'LSTM' in node.op_type else 'MatMul'}"] += 1
        elif node.op_type == "DequantizeLinear":
            counts["int8 embedding"] += 1
        elif node.op_type in ("LSTM", "GRU", "RNN", "Conv", "MatMul", "Gemm") and weights & {*node.input}:
            counts[f"fp32 {node.op_type}"] += 1
    return dict(counts)

"""Dynamic quantization of exported graphs to int8 with 7-bit weights, accurate on every CPU."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from hfseq.errors import InputError, require
from hfseq.models.inputs import mask_of_steps
from hfseq.models.time_series import with_mask
from hfseq.onnx.export import GRAPHS_FILE, check_target, exported_files, read_export, replace_export
from hfseq.onnx.runtime import OnnxForPrediction, OnnxRunner, is_quantized, load_onnx

TOLERANCE = 0.1
"""Maximum median of the relative differences between int8 and float32.

Measured: 0.005 and 0.02 for trained models, up to 0.06 for random weights; with 8-bit weights, on a CPU where their
products saturate, 0.11 to 0.6 for most of the latter.
"""
_LENGTHS = (24, 20, 16, 12, 8, 5, 3, 1)
"""Lengths of the compared rows."""
_STEPS = 4
"""Number of compared decoder steps."""
_OPERATORS = {
    "DynamicQuantizeLSTM": "int8 LSTM",
    "MatMulInteger": "int8 MatMul",
    "DynamicQuantizeMatMul": "int8 MatMul",
    **{name: f"fp32 {name}" for name in ("LSTM", "GRU", "RNN", "Conv", "MatMul", "Gemm")},
}
"""Operators with weights, as the report names them."""


def quantize_onnx(directory: str | Path, out: str | Path) -> dict[str, dict[str, float]]:
    """Quantize the weights of exported graphs to int8, and activations at run time (dynamic quantization).

    onnxruntime supports LSTMs, matrix products and embeddings. Recurrent layers of GRUs and simple RNNs, and
    convolutions, stay in float32: it has no int8 kernels for them, or slower ones.

    Weights have 7 bits: -64 to 64 with one scale per output channel, those of embeddings 0 to 127 with a single scale.
    A CPU without VNNI adds pairs of products in 16 bits, at most 2 · 255 · 64 = 32640; 8-bit weights would saturate
    silently. The graphs are therefore equally accurate on every CPU.

    Args:
        directory: Folder that `export_onnx` wrote.
        out: Folder for the quantized graphs; it must be empty or hold an earlier export, which is replaced only after
            the new graphs have been verified.

    Returns:
        For each graph the number of operators with int8 weights (`int8 LSTM`) and with float32 weights (`fp32 GRU`),
        and for the last graph, which computes the outputs, the `median difference` and the `largest difference` from
        float32, as defined by `relative_differences`. `onnx.json` has the same under `int8`.

    Raises:
        InputError: If there is no such export or it is quantized already, `out` has other files, the median difference
            exceeds `TOLERANCE`, or `onnx` or `onnxruntime` is not installed.
    """
    require("onnx", "onnxruntime", extra="onnx", use="quantization")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = Path(directory)
    about = read_export(source)
    check_target(out)
    plain, _ = load_onnx(source)
    report: dict[str, dict[str, float]] = {}
    statistics: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory(prefix="hfseq-") as temporary:
        folder = Path(temporary)
        for path in exported_files(source):
            shutil.copyfile(path, folder / path.name)
        for name in about["graphs"]:
            path = folder / f"{name}.onnx"
            if is_quantized(source / path.name):
                raise InputError(f"{source / path.name} is quantized to int8 already; quantize a float32 export")
            model = onnx.load(source / path.name)
            statistics |= _feature_statistics(model)
            # onnxruntime advises to pre-process graphs without this mark, which makes no difference here.
            onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
            looked_up = {node.input[0] for node in model.graph.node if node.op_type == "Gather"} & _weights(model)
            overrides = {name: [{"reduce_range": True}] for name in looked_up}
            quantize_dynamic(
                model,
                path,
                op_types_to_quantize=["LSTM", "MatMul", "Gather"],
                per_channel=True,
                reduce_range=True,  # of LSTMs and products; for embeddings see `overrides`
                weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "TensorQuantOverrides": overrides},
            )
            model = onnx.load(path)
            # Inferred shapes, up to a third of a small file.
            del model.graph.value_info[:]
            onnx.save(model, path)
            report[name] = _operators(model)
        (folder / GRAPHS_FILE).write_text(json.dumps(about | {"int8": report}))
        median, largest = relative_differences(plain, load_onnx(folder)[0], **statistics)
        if not median <= TOLERANCE:
            raise InputError(
                f"{source}: the outputs in int8 have a median relative difference of {median:.2g}, more than "
                f"{TOLERANCE}; use the float32 graphs"
            )
        report[about["graphs"][-1]] |= {
            "median difference": float(f"{median:.3g}"),
            "largest difference": float(f"{largest:.3g}"),
        }
        replace_export(folder, out, about | {"int8": report})
    return report


@torch.no_grad()
def relative_differences(
    plain: OnnxRunner,
    quantized: OnnxRunner,
    *,
    feature_mean: np.ndarray | float = 0.0,
    feature_scale: np.ndarray | float = 1.0,
) -> tuple[float, float]:
    """Median and largest relative difference between the outputs of a model in int8 and in float32.

    The relative difference ‖q − f‖ / ‖f‖ (Euclidean norms) is computed per row from one run of the last graph: logits,
    or states of an encoder, of all steps but padding. Single rows may differ much, where attention or a maximum
    selects another step, so the median is the criterion.

    The rows are random tokens, or frames of normally distributed features, of different lengths, in one batch padded
    on the right and one on the left. Language models continue them for some steps of one token, and
    sequence-to-sequence models decode some steps, each from its own states. A forecaster's rows are random walks with
    missing values at either end, and its outputs the parameters of the distributions of the steps of the context and
    of some after it, whose values are given. Medians are taken per batch, and separately for the steps of a language
    model; the largest is returned.

    Args:
        plain: Runner of a float32 export.
        quantized: Runner of the same export in int8.
        feature_mean: Mean of each feature, `[F]`, of a model that reads those.
        feature_scale: Standard deviation of each feature, `[F]`.

    Returns:
        Median and largest difference; NaN if an output is.
    """
    medians, largest = [], []
    if isinstance(plain, OnnxForPrediction):
        batches = _batches_of_series(plain.config)
    else:
        batches = _batches(plain.config, feature_mean, feature_scale)
    for inputs in batches:
        for right, found in zip(*(_outputs(runner, *inputs) for runner in (plain, quantized)), strict=True):
            differences = (found - right).norm(dim=-1) / right.norm(dim=-1).clamp(min=1e-12)
            medians.append(differences.median())
            largest.append(differences.max())
    return float(torch.stack(medians).max()), float(torch.stack(largest).max())


def _batches(
    config: Any, feature_mean: np.ndarray | float, feature_scale: np.ndarray | float
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Random inputs, padded on the right, then on the left, and tokens `[B, N]` for steps of a decoder."""
    rng = np.random.default_rng(0)
    features = getattr(config, "input_size", None)
    written = config.target_vocab_size() if config.is_encoder_decoder else config.vocab_size
    lengths = np.array(_LENGTHS) * (1 if features is None else config.subsampling_factor)
    padded_right = np.arange(max(lengths)) < lengths[:, None]
    for valid in (padded_right, padded_right[:, ::-1]):
        inputs: dict[str, np.ndarray] = {"attention_mask": valid.astype(np.int64)}
        if features is None:
            inputs["input_ids"] = rng.integers(config.vocab_size, size=valid.shape) * valid
        else:
            values = rng.normal(size=(*valid.shape, features)) * feature_scale + feature_mean
            inputs["input_features"] = values.astype(np.float32)
        if getattr(config, "char_encoder", None) is not None:
            letters = rng.integers(config.char_vocab_size, size=(*valid.shape, 6))
            spelt = np.arange(6) < rng.integers(1, 7, size=(*valid.shape, 1))
            inputs["char_ids"] = letters * spelt * valid[:, :, None]
        steps = rng.integers(written, size=(len(valid), _STEPS))
        yield {name: torch.from_numpy(values) for name, values in inputs.items()}, torch.from_numpy(steps)


def _outputs(runner: OnnxRunner, inputs: dict[str, Tensor], steps: Tensor) -> list[Tensor]:
    """The outputs that `relative_differences` compares, each `[N, K]`, zero at padding."""

    def rows(output: Tensor) -> Tensor:
        if output.dim() == 2:  # [B, K]
            return output
        mask: Any = inputs["attention_mask"]
        if "input_features" in inputs:
            mask = mask_of_steps(mask, output.shape[1], runner.config.subsampling_factor)  # [B, S]
        return output.masked_fill(mask[:, :, None] == 0, 0.0).flatten(1)

    if isinstance(runner, OnnxForPrediction):
        return _parameters(runner, inputs, steps)
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


def _batches_of_series(config: Any) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Inputs of a forecaster, with missing values at the end, then at the start; and scaled values `[B, N, C]`."""
    rng = np.random.default_rng(0)
    size, batch, shortest = config.input_size, len(_LENGTHS), max(config.lags_sequence)
    length = max(_LENGTHS) + shortest
    features = config.num_time_features + config.num_dynamic_real_features
    observed = np.arange(length) < np.array(_LENGTHS)[:, None] + shortest
    for mask in (observed, observed[:, ::-1].copy()):
        values = rng.normal(size=(batch, length, size)).cumsum(axis=1)
        if config.distribution_output == "negative_binomial" and config.loss == "nll":
            values = np.abs(values).round()
        arrays: dict[str, np.ndarray] = {"past_values": values, "past_observed_mask": mask}
        steps = rng.normal(size=(batch, _STEPS, size))
        if features:
            arrays["past_time_features"] = rng.uniform(-0.5, 0.5, size=(batch, length, features))
        if config.num_static_categorical_features:
            sizes = np.array(config.cardinality)
            arrays["static_categorical_features"] = rng.integers(sizes, size=(batch, len(sizes)))
        if config.num_static_real_features:
            arrays["static_real_features"] = rng.normal(size=(batch, config.num_static_real_features))
        yield {name: torch.from_numpy(array) for name, array in arrays.items()}, torch.from_numpy(steps)


def _parameters(runner: OnnxForPrediction, inputs: dict[str, Tensor], steps: Tensor) -> list[Tensor]:
    """Parameters of the context of each row, and of each step after it, `[N, K]` each."""
    values, observed = runner.read_past(inputs["past_values"], inputs["past_observed_mask"])
    statics = (inputs.get("static_categorical_features"), inputs.get("static_real_features"))
    past, cache = runner.read_start(values, observed, *statics), DynamicCache()
    time = inputs.get("past_time_features")
    if time is not None:
        time = torch.cat([time, time[:, -1:]], dim=1)
    params = torch.cat(runner.run_steps(past.series, time, past.row.static, past.valid, cache), dim=-1)
    whole, found = params.masked_fill(~past.valid[:, :, None], 0.0).flatten(1), []
    series = torch.cat([past.series, with_mask(steps, torch.ones_like(steps))], dim=1)
    for step in range(steps.shape[1]):
        end = past.series.shape[1] + step + 1
        now = None if time is None else time[:, -1:]
        params = torch.cat(
            runner.run_steps(series[:, end - runner.reach : end], now, past.row.static, None, cache), dim=-1
        )
        found.append(params[:, 0])
    return [whole, torch.cat(found)]


def _weights(model: Any) -> set[str]:
    """Names of the weight tensors of a graph, those with at least two dimensions."""
    return {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}


def _feature_statistics(model: Any) -> dict[str, np.ndarray]:
    """The statistics by which a graph normalises features, named like the model's buffers; none of other graphs."""
    from onnx import numpy_helper

    found = ((tensor.name.rpartition(".")[2], tensor) for tensor in model.graph.initializer)
    names = ("feature_mean", "feature_scale")
    return {name: numpy_helper.to_array(tensor) for name, tensor in found if name in names}


def _operators(model: Any) -> dict[str, float]:
    """Number of operators with weights, by precision and type."""
    weights = _weights(model)
    tables = {tensor.name for tensor in model.graph.initializer if tensor.name in weights and _is_quantized(tensor)}
    nodes = [(_OPERATORS.get(node.op_type, ""), node) for node in model.graph.node]
    counts = Counter(kind for kind, node in nodes if kind.startswith("int8") or (kind and weights & {*node.input}))
    counts["int8 embedding"] = sum(node.op_type == "Gather" and node.input[0] in tables for _, node in nodes)
    return dict(+counts)


def _is_quantized(tensor: Any) -> bool:
    """True for weights of 8 bits."""
    from onnx import TensorProto

    return tensor.data_type in (TensorProto.INT8, TensorProto.UINT8)

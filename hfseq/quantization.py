"""Dynamic quantisation to int8: of exported graphs, and of models in PyTorch."""

import copy
import logging
import shutil
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .data.errors import require
from .export import check_target, read_export, replace_export
from .models.alignment import Alignment
from .models.convolution import Convolution
from .models.recurrent import RecurrentLayer


def quantize_onnx(directory: str | Path, out: str | Path) -> dict[str, dict[str, int]]:
    """Make the weights of exported graphs int8, their inputs quantized as they come (dynamic quantisation).

    onnxruntime does that for LSTMs, matrix products and embeddings. Recurrent layers of GRUs and simple RNNs, and
    convolutions, stay in float32: it has no such kernels, or slower ones.

    Args:
        directory: What `export_onnx` wrote.
        out: Folder for the new graphs; it must be empty or of an earlier export.

    Returns:
        Graph to the number of its operators with weights in int8 (`int8 LSTM`) and in float32 (`fp32 GRU`).

    Raises:
        InputError: If there is no such folder, or the other one has other files, or `onnx` is not installed.
    """
    require("onnx", "onnxruntime", extra="onnx", use="quantisation")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = Path(directory)
    about = read_export(source)
    check_target(out)
    report = {}
    with tempfile.TemporaryDirectory(prefix="hfseq-") as temporary:
        folder = Path(temporary) / "out"
        shutil.copytree(source, folder)
        for name in about["graphs"]:
            path = folder / f"{name}.onnx"
            logging.disable(logging.WARNING)  # that the graph might be prepared, which changes nothing here
            try:
                quantize_dynamic(
                    str(source / path.name),
                    str(path),
                    op_types_to_quantize=["LSTM", "MatMul", "Gather"],
                    weight_type=QuantType.QInt8,
                    extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
                )
            finally:
                logging.disable(logging.NOTSET)
            report[name] = _operators(onnx.load(path))
        replace_export(folder, out)
    return report


def _operators(model: Any) -> dict[str, int]:
    """How many operators with weights a graph has, by precision and kind."""
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type in ("DynamicQuantizeLSTM", "MatMulInteger", "DynamicQuantizeMatMul"):
            counts[f"int8 {'LSTM' if 'LSTM' in node.op_type else 'MatMul'}"] += 1
        elif node.op_type == "DequantizeLinear":
            counts["int8 embedding"] += 1
        elif node.op_type in ("LSTM", "GRU", "RNN", "Conv", "MatMul", "Gemm") and weights & {*node.input}:
            counts[f"fp32 {node.op_type}"] += 1
    return dict(counts)


class QuantizedLayer(nn.Module):
    """A recurrent layer whose weights are int8, in place of a `RecurrentLayer` in inference.

    Args:
        layer: An LSTM or GRU layer.
    """

    def __init__(self, layer: RecurrentLayer) -> None:
        super().__init__()
        self.mode, self.hidden_size = layer.mode, layer.hidden_size
        kind = nn.LSTM if layer.mode == "LSTM" else nn.GRU
        plain = kind(layer.input_size, layer.hidden_size, batch_first=True)
        for name, parameter in plain.named_parameters():
            parameter.data.copy_(getattr(layer, name))
        self.layer = _quantized(nn.Sequential(plain), {kind})[0]

    def forward(
        self, values: Tensor, hold: Alignment | None = None, weight: Tensor | None = None, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """As `RecurrentLayer.forward`.

        Raises:
            ValueError: If other weights are given, which are for training.
        """
        if weight is not None:
            raise ValueError("an int8 layer has its own weights; it is not for training")
        count = 2 if self.mode == "LSTM" else 1
        if not state:
            state = (values.new_zeros(values.shape[0], self.hidden_size),) * count
        if hold is None:
            return self._run(values, state)
        # The state after each row's last valid step: a step at a time, since the kernel returns that of the last.
        outputs = []
        for step in range(values.shape[1]):
            output, *new = self._run(values[:, step : step + 1], state)
            valid = hold.valid[:, step : step + 1]
            state = tuple(torch.where(valid, part, old) for part, old in zip(new, state, strict=True))
            outputs.append(output)
        return torch.cat(outputs, dim=1), *state

    def _run(self, values: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        initial = tuple(part.unsqueeze(0).contiguous() for part in state)
        output, last = self.layer(values, initial if self.mode == "LSTM" else initial[0])
        return output, *(part.squeeze(0) for part in (last if self.mode == "LSTM" else (last,)))


def quantize_torch(model: PreTrainedModel) -> tuple[PreTrainedModel, dict[str, int]]:
    """A copy of a model of hfseq for inference on the CPU with int8 weights (dynamic quantisation).

    PyTorch does that for LSTM and GRU layers and linear layers; embeddings, simple RNNs and convolutions stay in
    float32, and so does an output layer that shares the embeddings' matrix, and the CPU's kernels are for that alone.

    Args:
        model: The model, in any precision; it stays as it is.

    Returns:
        The copy, which cannot be saved and whose layers in int8 cannot be trained, and the number of layers by
        precision and kind.
    """
    copied = copy.deepcopy(model).float().eval()
    counts: Counter[str] = Counter()
    shared = {id(module.weight) for module in copied.modules() if isinstance(module, nn.Embedding)}
    # An adaptive softmax reads the rows of the output layer itself.
    adaptive = getattr(copied, "adaptive_softmax", None) is not None
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RecurrentLayer):
                quantizes = child.mode in ("LSTM", "GRU")
                counts[f"{'int8' if quantizes else 'fp32'} {child.mode}"] += 1
                if quantizes:
                    setattr(parent, name, QuantizedLayer(child))
            elif isinstance(child, nn.Linear):
                plain = type(child) is nn.Linear and id(child.weight) not in shared
                plain = plain and not (adaptive and name == "lm_head")
                counts[f"{'int8' if plain else 'fp32'} Linear"] += 1
                if plain:
                    setattr(parent, name, _quantized(nn.Sequential(child), {nn.Linear})[0])
            elif isinstance(child, nn.Embedding):
                counts["fp32 Embedding"] += 1
            elif isinstance(child, Convolution):
                counts["fp32 Convolution"] += 1
    return copied, dict(counts)


def _quantized(module: nn.Module, kinds: set[type[nn.Module]]) -> Any:
    with warnings.catch_warnings():
        # That its successor is another package.
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(module, kinds, dtype=torch.qint8)

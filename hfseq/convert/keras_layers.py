"""Layers of a model of Keras: their description and weights in a file, and those that hfseq has."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hfseq.convert.hdf5 import open_hdf5, read_arrays, read_member
from hfseq.convert.reading import existing_file
from hfseq.errors import InputError, one_line

CELLS = ("LSTM", "GRU", "SimpleRNN")
"""Classes of the recurrent layers."""
_POOLINGS = {"GlobalMaxPooling1D": "max", "GlobalAveragePooling1D": "mean"}
_DROPOUTS = ("Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout")
"""Layers that do nothing but in training."""


@dataclass(frozen=True)
class Layer:
    """Layer of a model of Keras.

    Attributes:
        name: Its name.
        kind: Its class.
        config: Its settings.
        weights: Path of its weights in the file, which ends in `/`.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    weights: str


@dataclass
class Chain:
    """Layers of a model that hfseq has, too.

    Attributes:
        embedding: Path of the embeddings, `[V, E]`.
        cell: Class of the recurrent layers.
        recurrent: Paths of their cells, left to right and right to left; one path each if they read forward.
        activation: `tanh` or `relu` of the cell.
        kernels: Names of a cell's weights at these paths: kernel, recurrent kernel and bias, if any.
        pooling: Pooling before the dense layer; None if it reads each step.
        dense: Names of its kernel and bias, if any.
        output: Activation of the output.
        dropouts: Rates of dropout.
        masks: Whether the embedding masks id 0.
    """

    embedding: str
    cell: str
    recurrent: list[list[str]]
    activation: str
    kernels: Sequence[str]
    pooling: str | None
    dense: list[str]
    output: str
    dropouts: list[float]
    masks: bool


def read_layers(path: Path) -> tuple[list[Layer], dict[str, Tensor]]:
    """Read the layers of a model in their order, without inputs, and its weights by their paths in the file.

    Raises:
        InputError: If it is not a file that `model.save` wrote, or the layers are not in a row.
    """
    if existing_file(path).suffix == ".keras":
        text: Any = read_member(path, "config.json")
        try:
            config = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: its config.json is not JSON") from error
        with open_hdf5(path, "model.weights.h5") as file:
            arrays = read_arrays(path, file)
        root = next((one for one in ("layers/", "_layer_checkpoint_dependencies/") if _any(arrays, one)), "layers/")
        return _layers(path, config, root), arrays
    with open_hdf5(path) as file:
        if "model_config" not in file.attrs:
            raise InputError(f"{path}: weights without layers; save the whole model by model.save")
        text = file.attrs["model_config"]
        arrays = read_arrays(path, file["model_weights"])
    try:
        config = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: its model_config is not JSON") from error
    return _layers(path, config, None), {name.removesuffix(":0"): weight for name, weight in arrays.items()}


def _any(names: Mapping[str, Any], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _layers(path: Path, config: Any, root: str | None) -> list[Layer]:
    """Layers in a row, with the paths of their weights: by class and number below `root`, or by name without it."""
    try:
        kind, found = config["class_name"], config["config"]["layers"]
        if kind not in ("Sequential", "Functional", "Model"):
            raise InputError(f"{path}: a model of the class {kind}; hfseq reads Sequential and Functional ones")
        layers: list[Layer] = []
        counts: dict[str, int] = {}
        for entry in found:
            name, own = entry["config"]["name"], entry["class_name"]
            snake = re.sub(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", own).lower()
            number = counts[snake] = counts.get(snake, -1) + 1
            if own == "NotEqual":  # the mask of a functional model
                continue
            if kind != "Sequential" and layers and _inputs(entry) != [layers[-1].name]:
                raise InputError(f"{path}: {name} reads {_inputs(entry)}; hfseq's models are layers in a row")
            weights = f"{name}/" if root is None else f"{root}{snake}{f'_{number}' if number else ''}/"
            layers.append(Layer(name, own, entry["config"], weights))
    except (AttributeError, LookupError, TypeError) as error:
        raise InputError(f"{path}: a description of layers that Keras does not write ({one_line(error)})") from error
    return [layer for layer in layers if layer.kind != "InputLayer"]


def _inputs(entry: Mapping[str, Any]) -> list[str]:
    """Names of the layers whose outputs a layer of a functional model reads, masks apart."""
    nodes = entry["inbound_nodes"]
    if nodes and isinstance(nodes[0], list):  # Keras 2: [name, node, tensor, arguments]
        return [one[0] for one in nodes[0]]
    return [tensor["config"]["keras_history"][0] for node in nodes for tensor in _tensors(node["args"])]


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        return [value]
    return [one for item in value for one in _tensors(item)] if isinstance(value, list) else []


def find_chain(path: Path, layers: Sequence[Layer], arrays: Mapping[str, Tensor]) -> Chain:
    """Check that layers are such as hfseq has, in its order.

    Raises:
        InputError: If one is not, or has a setting that hfseq's does not have.
    """
    todo = list(layers)
    dropouts: list[float] = []

    def refuse(layer: Layer, reason: str) -> InputError:
        return InputError(f"{path}: layer {layer.name} ({layer.kind}): {reason}")

    def take(kinds: Sequence[str]) -> Layer | None:
        while todo and todo[0].kind in _DROPOUTS:
            dropouts.append(float(todo.pop(0).config.get("rate", 0.0)))
        return todo.pop(0) if todo and todo[0].kind in kinds else None

    embedding = take(["Embedding"])
    if embedding is None:
        shown = ", ".join(f"{layer.name} ({layer.kind})" for layer in layers)
        hint = "; save the model behind it, and give its vocabulary by --vocab" if "TextVectorization" in shown else ""
        raise InputError(f"{path}: no Embedding at the beginning of {shown or 'nothing'}{hint}")
    (table,) = _weights(path, embedding, arrays, [["0", "embeddings"]])
    cells: list[Layer] = []
    recurrent: list[list[str]] = []
    kernels: list[str] = []
    while (layer := take([*CELLS, "Bidirectional"])) is not None:
        inner = layer
        if layer.kind == "Bidirectional":
            wrapped = layer.config.get("layer", {})
            inner = Layer(layer.name, wrapped.get("class_name", "?"), wrapped.get("config", {}), layer.weights)
            if inner.kind not in CELLS or layer.config.get("merge_mode") != "concat":
                raise refuse(layer, f"hfseq concatenates two directions of {', '.join(CELLS)}")
        if reason := _unlike(inner):
            raise refuse(layer, reason)
        if cells and not cells[-1].config.get("return_sequences"):
            raise refuse(cells[-1], "return_sequences=False below another recurrent layer")
        places, kernels = _cells(path, layer, inner, arrays)
        cells.append(inner)
        recurrent.append(places)
        dropouts += [float(inner.config.get("dropout", 0.0))] * bool(inner.config.get("dropout"))
    if not cells:
        where = todo[0] if todo else embedding
        raise refuse(where, f"after the embedding hfseq has {', '.join(CELLS)}, or Bidirectional ones")
    alike = {
        (one.kind, one.config.get("activation"), len(places)) for one, places in zip(cells, recurrent, strict=True)
    }
    if len(alike) > 1:
        raise InputError(f"{path}: recurrent layers of several kinds: {', '.join(one.name for one in cells)}")
    pooling: str | None = None if cells[-1].config.get("return_sequences") else "last"
    if (layer := take([*_POOLINGS])) is not None:
        if pooling is not None:
            raise refuse(layer, "there are no steps left to pool")
        pooling = _POOLINGS[layer.kind]
    dense = take(["Dense", "TimeDistributed"])
    if dense is None:
        where = todo[0] if todo else cells[-1]
        raise refuse(where, "after the recurrent layers hfseq has pooling and one Dense layer")
    inner_config = dense.config
    if dense.kind == "TimeDistributed":
        wrapped = dense.config.get("layer", {})
        if wrapped.get("class_name") != "Dense":
            raise refuse(dense, "hfseq has a Dense layer at each step")
        inner_config = wrapped["config"]
    names = [["0", "kernel"], *([["1", "bias"]] if inner_config.get("use_bias", True) else [])]
    weights = _weights(path, dense, arrays, names)
    output = inner_config.get("activation", "linear")
    if (layer := take(["Activation", "Softmax"])) is not None and output == "linear":
        output = layer.config.get("activation", "softmax")
    if todo or output not in ("linear", "softmax", "sigmoid"):
        raise refuse(todo[0] if todo else dense, "behind its one Dense layer hfseq has a softmax or sigmoid at most")
    first, masks = cells[0], bool(embedding.config.get("mask_zero"))
    activation = first.config["activation"]
    return Chain(table, first.kind, recurrent, activation, kernels, pooling, weights, output, dropouts, masks)


def _unlike(layer: Layer) -> str | None:
    """First setting of a recurrent layer that hfseq's does not have."""
    wanted: dict[str, tuple[Any, ...]] = {
        "activation": ("tanh", "relu") if layer.kind == "SimpleRNN" else ("tanh",),
        "recurrent_activation": ("sigmoid", None),
        "go_backwards": (False, None),
        "return_state": (False, None),
        "reset_after": (True, None),
        "implementation": (0, 1, 2, None),
    }
    for name, values in wanted.items():
        if layer.config.get(name) not in values:
            return f"{name}={layer.config.get(name)!r}; hfseq's {layer.kind} has {values[0]!r}"
    # Versions that did not have the setting multiplied in the other order.
    if layer.kind == "GRU" and "reset_after" not in layer.config:
        return "no reset_after; hfseq's GRU has reset_after=True"
    return None


def _cells(path: Path, layer: Layer, inner: Layer, arrays: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Paths of the cells of a layer, left to right first, and the names of their weights."""
    parents = sorted({name.rpartition("/")[0] for name in arrays if name.startswith(layer.weights)})
    both = layer.kind == "Bidirectional"
    if both:
        ways = [[one for one in parents if f"/{way}_" in f"/{one}"] for way in ("forward", "backward")]
        parents = [one for way in ways for one in way]
    count = 3 if inner.config.get("use_bias", True) else 2
    new = all(f"{parent}/0" in arrays for parent in parents)
    names = ["0", "1", "2"] if new else ["kernel", "recurrent_kernel", "bias"]
    places = [f"{parent}/" for parent in parents]
    complete = all(place + name in arrays for place in places for name in names[:count])
    if not complete or len(places) != (2 if both else 1):
        raise InputError(f"{path}: the weights of {layer.name} ({layer.kind}) are not all there")
    return places, names[:count]


def _weights(path: Path, layer: Layer, arrays: Mapping[str, Tensor], names: Sequence[Sequence[str]]) -> list[str]:
    """Paths of the weights of a layer without cells, each of which has one of several names."""
    found = []
    for choices in names:
        fits = [name for name in arrays if name.startswith(layer.weights) and name.rpartition("/")[2] in choices]
        if len(fits) != 1:
            raise InputError(f"{path}: the weights of {layer.name} ({layer.kind}) are not all there")
        found += fits
    return found

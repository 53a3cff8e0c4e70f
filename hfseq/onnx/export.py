"""Export to ONNX graphs with dynamic batch size and length, and with attention masks."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from hfseq.errors import InputError, require
from hfseq.heads import head_of
from hfseq.hub.publish import load_published
from hfseq.json_files import file_beside, read_object
from hfseq.models import is_hfseq
from hfseq.models.cache import RecurrentCacheLayer

GRAPHS_FILE = "onnx.json"
"""Description of the graphs in a folder."""
SUFFIXES = frozenset({".jinja", ".json", ".model", ".onnx", ".py", ".spm", ".txt"})
"""Suffixes of exported files: graphs, configuration with its code, tokenizer. Other files are never replaced."""
OLDEST_OPSET = 13
"""Oldest ONNX opset with which torch can export all graphs."""
_STATE_TYPES = ("float32", "int64")
"""Types of a decoder's states: values, and step counts."""
TOLERANCE = 1e-4
"""Maximum difference between outputs of graph and model, relative to their largest value where that is above 1."""


class Graph(NamedTuple):
    """A graph to export.

    Attributes:
        module: Module from tensors to tensors.
        inputs: Example inputs by name, for a batch of 2 with different lengths.
        outputs: Names of the outputs.
        axes: Dynamic axes of inputs and outputs by name.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]
    axes: dict[str, dict[int, str]]


def export_onnx(model_dir: str | Path, out: str | Path, *, opset: int = 17) -> Path:
    """Export a trained model of hfseq to ONNX, and verify every graph against it.

    - An encoder (`…Model`), classifier or tagger becomes `model.onnx`: from `input_ids` and `attention_mask` `[B, T]`,
      and `char_ids` for models with characters, to `logits` or `last_hidden_state`.
    - A language model becomes `decoder.onnx`: from tokens `[B, T]`, mask and previous states to `logits` and new
      states. The initial states are zeros.
    - A sequence-to-sequence model becomes `encoder.onnx`, `start.onnx` (initial states of the decoder, and the keys
      and values of its attention) and `decoder.onnx`, one token per step.

    `hfseq.onnx.runtime.load_onnx` loads the result, with `generate()`. An earlier export in the folder is replaced
    only after the new graphs have been verified.

    Args:
        model_dir: Directory of a trained model with its tokenizer.
        out: Folder for graphs, configuration and tokenizer; it must be empty or hold an earlier export.
        opset: ONNX opset version.

    Returns:
        The folder.

    Raises:
        InputError: If the model cannot be loaded or exported, the folder has other files, or the packages `onnx` and
            `onnxruntime` are not installed.
        RuntimeError: If a graph differs from the model by more than `TOLERANCE`.
    """
    require("onnx", "onnxruntime", extra="onnx", use="export")
    import onnxruntime

    if opset < OLDEST_OPSET:
        raise InputError(f"opset={opset}: the graphs need operators of version {OLDEST_OPSET} or newer")
    check_target(out)
    model, tokenizer = load_published(Path(model_dir))
    # Graphs are float32, whatever the type of the saved weights.
    model.float().eval()
    model.config.dtype = torch.float32
    with tempfile.TemporaryDirectory(prefix="hfseq-") as temporary:
        folder = Path(temporary)
        graphs, about = graphs_of(model)
        for name, graph in graphs.items():
            path = folder / f"{name}.onnx"
            write_graph(graph, path, opset)
            check_graph(graph, onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]), name)
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        replace_export(folder, out, about)
    return Path(out)


def exported_files(folder: Path) -> list[Path]:
    """The files of an export that exist.

    Raises:
        InputError: If the list of files is malformed, or names a file that is not of the export.
    """
    about = folder / GRAPHS_FILE
    names = read_object(about).get("files", [])
    if not isinstance(names, list):
        raise InputError(f"{about}: 'files' is a {type(names).__name__}, not a list")
    paths = [file_beside(about, name, suffixes=SUFFIXES) for name in names]
    return [path for path in paths if path.is_file() or path.is_symlink()]


def check_target(out: str | Path) -> list[Path]:
    """The files of an earlier export in a folder, which a new export replaces.

    Raises:
        InputError: If there are other files, or as `exported_files`.
    """
    target = Path(out)
    if not target.exists():
        return []
    if not target.is_dir():
        raise InputError(f"{target} is a file; name a folder")
    known = exported_files(target)
    if others := sorted(path.name for path in target.iterdir() if path not in known):
        raise InputError(f"{target} has other files: {', '.join(others[:3])}; name an empty folder")
    return known


def read_export(folder: Path) -> dict[str, Any]:
    """Read and validate the description of an export.

    Raises:
        InputError: If it is missing or malformed, or a graph is missing.
    """
    file = folder / GRAPHS_FILE
    if not file.is_file():
        raise InputError(f"{folder} has no {GRAPHS_FILE}; hfseq.export_onnx(MODEL_DIR, {str(folder)!r}) makes one")
    about = read_object(file)
    for key, kind in {"graphs": list, "head": str, "states": dict, "memories": list}.items():
        if key not in about:
            raise InputError(f"{file}: {key!r} is missing")
        if not isinstance(about[key], kind):
            raise InputError(f"{file}: {key!r} is a {type(about[key]).__name__}, not a {kind.__name__}")
    for name in about["graphs"]:
        path = file_beside(file, f"{name}.onnx" if isinstance(name, str) else name)
        if not path.is_file():
            raise InputError(f"{path} is missing")
    for name, state in about["states"].items():
        if not _is_state(state):
            raise InputError(f"{file}: the state {name!r} is {state!r:.300}, not a shape and type")
    return about


def _is_state(state: Any) -> bool:
    if not isinstance(state, dict) or not isinstance(state.get("shape"), list):
        return False
    return all(type(size) is int and size >= 0 for size in state["shape"]) and state.get("dtype") in _STATE_TYPES


def replace_export(folder: Path, out: str | Path, about: Mapping[str, Any]) -> None:
    """Move an export to its target folder, in place of an earlier one.

    Args:
        folder: Temporary folder of the export.
        out: Target folder.
        about: Content of `onnx.json` without the list of files.

    Raises:
        InputError: As `check_target`.
    """
    files = sorted({GRAPHS_FILE, *(path.name for path in folder.iterdir())})
    (folder / GRAPHS_FILE).write_text(json.dumps({**about, "files": files}, indent=4) + "\n", encoding="utf-8")
    for path in check_target(out):
        path.unlink()
    shutil.copytree(folder, out, dirs_exist_ok=True)


def graphs_of(model: PreTrainedModel) -> tuple[dict[str, Graph], dict[str, Any]]:
    """The graphs of a model, and what `load_onnx` needs to know about them.

    Raises:
        InputError: If there are none for this kind of model.
    """
    kind, config = type(model).__name__, model.config
    if not is_hfseq(config):
        raise InputError(f"{kind} is not a model of hfseq; optimum exports those of transformers")
    if getattr(config, "pointer_generator", False):
        raise InputError("a pointer-generator cannot be exported: its vocabulary grows with each source")
    head = head_of(kind).suffix
    if head == "ForConditionalGeneration":
        graphs = _translator_graphs(model)
    elif head == "ForCausalLM":
        if config.add_cross_attention:
            raise InputError("a decoder alone, with add_cross_attention, cannot be exported")
        graphs = {"decoder": _language_model_graph(model)}
    else:
        output = "last_hidden_state" if head == "Model" else "logits"
        graphs = {"model": _whole_graph(model, output)}
    inputs = graphs["decoder"].inputs if "decoder" in graphs else {}
    states = {
        name: {"shape": list(tensor.shape[1:]), "dtype": str(tensor.numpy().dtype)}
        for name, tensor in inputs.items()
        if name.startswith("state_")
    }
    memories = [name for name in inputs if name.startswith("memory_")]
    return graphs, {"head": head, "graphs": list(graphs), "states": states, "memories": memories}


def write_graph(graph: Graph, path: str | Path, opset: int) -> None:
    """Trace a graph into a file."""
    with warnings.catch_warnings():
        # The tracer warns of shape checks, which are not part of the graph, and of its deprecation, but the newer
        # exporter fixes the length of an RNN; the writer warns of graphs that `check_graph` verifies.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\b|hfseq\.onnx\.export$")
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx\b")
        torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            str(path),
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            dynamic_axes=graph.axes,
            opset_version=opset,
            dynamo=False,
        )


@torch.no_grad()
def check_graph(graph: Graph, session: Any, name: str) -> float:
    """Compare a graph with the model on the example, on its first row, and on longer rows.

    Returns:
        The largest difference of an output, relative to its largest value where that is above 1.

    Raises:
        RuntimeError: If it exceeds `TOLERANCE` or is NaN, or a shape differs.
    """
    worst = 0.0
    for inputs in _variants(graph):
        expected = graph.module(*inputs.values())
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = run_session(session, {key: value.numpy() for key, value in inputs.items()})
        for output, tensor in zip(graph.outputs, expected, strict=True):
            right = tensor.numpy().astype(np.float64)
            if found[output].shape != right.shape:
                raise RuntimeError(
                    f"the graph {name} gives {output} of shape {found[output].shape}, not {right.shape}"
                )
            difference = np.abs(found[output] - right).max(initial=0.0) / max(1.0, np.abs(right).max(initial=0.0))
            if not difference <= TOLERANCE:
                raise RuntimeError(
                    f"the graph {name} differs from the model by {difference:.2g}, more than {TOLERANCE}"
                )
            worst = max(worst, float(difference))
    return worst


def run_session(session: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of an onnxruntime session by name; inputs that the graph does not have are dropped."""
    names = [output.name for output in session.get_outputs()]
    given = {needed.name: np.ascontiguousarray(inputs[needed.name]) for needed in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def _variants(graph: Graph) -> list[dict[str, Tensor]]:
    """The example, its first row, and the example repeated along every dynamic axis but the batch."""

    def doubled(name: str, tensor: Tensor) -> Tensor:
        for axis in graph.axes.get(name, {}):
            if axis:
                tensor = torch.cat([tensor, tensor], dim=axis)
        return tensor

    rows = {name: tensor[:1] for name, tensor in graph.inputs.items()}
    return [graph.inputs, rows, {name: doubled(name, tensor) for name, tensor in graph.inputs.items()}]


class _Traced(nn.Module):
    """A function of tensors that calls a model, as a module for the tracer."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def _example(model: PreTrainedModel, length: int = 5) -> dict[str, Tensor]:
    """Two rows of tokens, the second padded on both sides and in the middle."""
    size = model.config.vocab_size
    ids = torch.arange(2 * length).view(2, length) % size
    mask = torch.ones_like(ids)
    mask[1, 0] = mask[1, -1] = mask[1, length // 2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _batch(*names: str) -> dict[str, dict[int, str]]:
    return {name: {0: "batch", 1: "length"} for name in names}


def _whole_graph(model: PreTrainedModel, output: str) -> Graph:
    inputs = _example(model)
    axes = _batch("input_ids", "attention_mask", output)
    if output == "logits" and not type(model).__name__.endswith("TokenClassification"):
        axes[output] = {0: "batch"}
    if model.config.char_encoder is not None:
        ids = torch.arange(2 * 5 * 3).view(2, 5, 3) % model.config.char_vocab_size
        ids[:, :, 2] = 0
        inputs["char_ids"] = ids
        axes["char_ids"] = {0: "batch", 1: "length", 2: "characters"}

    def run(*tensors: Tensor) -> Tensor:
        return model(**dict(zip(inputs, tensors, strict=True)), use_cache=False, return_dict=True)[output]

    return Graph(_Traced(model, run), inputs, [output], axes)


def _fill_cache(model: Any, states: Sequence[Tensor], counts: Sequence[int], memory: Any = None) -> DynamicCache:
    """A cache that holds states, `counts` of them per layer, as after some token."""
    cache = DynamicCache()
    for end, count in zip(np.cumsum(counts).tolist(), counts, strict=True):
        layer = RecurrentCacheLayer()
        layer.update(tuple(states[end - count : end]), 1)
        layer.model_type, layer.memory = model.config.model_type, memory
        cache.layers.append(layer)
    return cache


def _flat(cache: DynamicCache) -> list[Tensor]:
    return [state for layer in cache.layers for state in layer.states]  # type: ignore[union-attr]


@torch.no_grad()
def _language_model_graph(model: PreTrainedModel) -> Graph:
    inputs = _example(model)
    cache = model(**inputs, use_cache=True, return_dict=True).cache
    counts = [len(layer.states) for layer in cache.layers]
    states = {f"state_{number}": state for number, state in enumerate(_flat(cache))}
    outputs = ["logits", *(f"new_{name}" for name in states)]
    axes = _batch("input_ids", "attention_mask", "logits")
    axes |= {name: {0: "batch"} for name in [*states, *outputs[1:]]}

    def step(input_ids: Tensor, attention_mask: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        cache = _fill_cache(model, states, counts)
        outputs = model(
            input_ids=input_ids, attention_mask=attention_mask, cache=cache, use_cache=True, return_dict=True
        )
        return outputs.logits, *_flat(outputs.cache)

    return Graph(_Traced(model, step), inputs | states, outputs, axes)


@torch.no_grad()
def _translator_graphs(model: Any) -> dict[str, Graph]:
    encoder, decoder = model.get_encoder(), model.decoder

    def encode(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        outputs = encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        # The input embeddings, of a CNN.
        embeddings = outputs.get("input_embeddings")
        return (outputs.last_hidden_state,) if embeddings is None else (outputs.last_hidden_state, embeddings)

    def start(encoder_hidden_states: Tensor, attention_mask: Tensor, *embeddings: Tensor) -> tuple[Tensor, ...]:
        states, memory = decoder.first_states(encoder_hidden_states, attention_mask, *embeddings)
        return *(state for layer in states for state in layer), *memory

    def step(
        decoder_input_ids: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        outputs = decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=attention_mask,
            cache=_fill_cache(decoder, tensors, counts, memory=tuple(tensors[sum(counts) :])),
            use_cache=True,
            return_dict=True,
        )
        return model.lm_head(model.output(outputs.last_hidden_state)[0]), *_flat(outputs.cache)

    inputs = _example(model)
    encoded = dict(zip(("encoder_hidden_states", "encoder_embeddings"), encode(*inputs.values()), strict=False))
    hidden, mask = encoded["encoder_hidden_states"], inputs["attention_mask"]
    given = {"encoder_hidden_states": hidden, "attention_mask": mask, **encoded}
    layers, memory = decoder.first_states(*given.values())
    counts = [len(layer) for layer in layers]
    states = {f"state_{number}": state for number, state in enumerate(state for layer in layers for state in layer)}
    memories = {f"memory_{number}": tensor for number, tensor in enumerate(memory)}
    dynamic = {name: {0: "batch"} for name in states}
    if model.config.to_dict().get("coverage"):
        # The last state is as long as the source.
        dynamic[list(states)[-1]] = {0: "batch", 1: "length"}
    dynamic |= _batch(*memories)
    new = {f"new_{name}": axes for name, axes in dynamic.items() if name in states}
    token = {"decoder_input_ids": torch.tensor([[1], [2]]) % model.config.vocab_size}
    one = {"decoder_input_ids": {0: "batch"}, "logits": {0: "batch"}}
    stepped = token | {"encoder_hidden_states": hidden, "attention_mask": mask} | states | memories
    source = _batch("encoder_hidden_states", "attention_mask")
    return {
        "encoder": Graph(
            _Traced(encoder, encode), inputs, list(encoded), _batch("input_ids", "attention_mask", *encoded)
        ),
        "start": Graph(_Traced(decoder, start), given, [*states, *memories], _batch(*given) | dynamic),
        "decoder": Graph(_Traced(model, step), stepped, ["logits", *new], one | source | dynamic | new),
    }

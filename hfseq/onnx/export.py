"""Export to ONNX: graphs that run without PyTorch, with any batch and length, masks honoured."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from hfseq.errors import InputError, require
from hfseq.hub.publish import load_published
from hfseq.json_files import file_beside, read_object
from hfseq.models.cache import RecurrentCacheLayer

GRAPHS_FILE = "onnx.json"
"""What the graphs of a folder are, beside them."""
SUFFIXES = frozenset({".jinja", ".json", ".model", ".onnx", ".py", ".spm", ".txt"})
"""Of the files of an export: graphs, configuration with its code, tokenizer. A new export replaces no others."""
OLDEST_OPSET = 13
"""Of ONNX's operators; with older ones torch cannot write some of the graphs."""
_STATE_TYPES = ("float32", "int64")
"""Of a decoder's states: values, and numbers of steps."""
TOLERANCE = 1e-4
"""Largest difference between a graph and the model, of any output, or of its largest value where that is above 1."""


class Graph(NamedTuple):
    """A graph to export.

    Attributes:
        module: Takes tensors, gives tensors.
        inputs: Name to an example; those of a batch of 2, and of different lengths.
        outputs: Their names.
        axes: Name of an input or output to its dynamic axes.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]
    axes: dict[str, dict[int, str]]


def export_onnx(model_dir: str | Path, out: str | Path, *, opset: int = 17) -> Path:
    """Export a trained model of hfseq to ONNX, and compare every graph with it.

    - An encoder (`…Model`), classifier or tagger becomes `model.onnx`: `input_ids` and `attention_mask` `[B, T]`, and
      `char_ids` where the model reads them, to `logits` or `last_hidden_state`.
    - A language model becomes `decoder.onnx`: tokens `[B, T]`, mask and the states before them, to `logits` and the
      states after them. The states before the first token are zeros.
    - A sequence-to-sequence model becomes `encoder.onnx`, `start.onnx` (the decoder's first states, and what its
      attention reads) and `decoder.onnx`, one token a step.

    `hfseq.onnx.runtime.load_onnx` runs what is written, `generate()` included. What was there before is replaced only
    when the new graphs are as they should be.

    Args:
        model_dir: A trained model with its tokenizer.
        out: Folder for the graphs, the configuration and the tokenizer; it must be empty or of an earlier export.
        opset: Version of ONNX's operators.

    Returns:
        The folder.

    Raises:
        InputError: If there is no such model, the kind cannot be exported, the folder has other files, or the packages
            `onnx` and `onnxruntime` are not installed.
        RuntimeError: If a graph differs from the model by more than 1e-4, of large values by that share of them.
    """
    require("onnx", "onnxruntime", extra="onnx", use="export")
    import onnxruntime

    if opset < OLDEST_OPSET:
        raise InputError(f"opset={opset}: the graphs need operators of version {OLDEST_OPSET} or newer")
    check_target(out)
    model, tokenizer = load_published(Path(model_dir))
    # Graphs have float32, whatever the weights were saved in.
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
    """The files of an export that are in its folder.

    Raises:
        InputError: If the export's list of them is none, or has something else than names of its own files.
    """
    about = folder / GRAPHS_FILE
    names = read_object(about).get("files", [])
    if not isinstance(names, list):
        raise InputError(f"{about}: 'files' is a {type(names).__name__}, not a list")
    paths = [file_beside(about, name, suffixes=SUFFIXES) for name in names]
    return [path for path in paths if path.is_file() or path.is_symlink()]


def check_target(out: str | Path) -> list[Path]:
    """The files of an earlier export in a folder, which a new one may replace.

    Raises:
        InputError: If there are other files, too, or as `exported_files`.
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
    """What an export says about its graphs.

    Raises:
        InputError: If the folder has none, or does not say it as `export_onnx` does.
    """
    file = folder / GRAPHS_FILE
    if not file.is_file():
        raise InputError(f"{folder} has no {GRAPHS_FILE}; hfseq.export_onnx(MODEL_DIR, {str(folder)!r}) makes one")
    about = read_object(file)
    for key, kind in {"graphs": list, "head": str, "states": dict, "memories": list}.items():
        if key not in about:
            raise InputError(f"{file}: it does not say {key!r}")
        if not isinstance(about[key], kind):
            raise InputError(f"{file}: {key!r} is a {type(about[key]).__name__}, not a {kind.__name__}")
    for name in about["graphs"]:
        path = file_beside(file, f"{name}.onnx" if isinstance(name, str) else name)
        if not path.is_file():
            raise InputError(f"{path} is missing")
    for name, state in about["states"].items():
        if not _is_state(state):
            raise InputError(f"{file}: the state {name!r} is {state!r:.300}, which is no shape and type")
    return about


def _is_state(state: Any) -> bool:
    if not isinstance(state, dict) or not isinstance(state.get("shape"), list):
        return False
    return all(type(size) is int and size >= 0 for size in state["shape"]) and state.get("dtype") in _STATE_TYPES


def replace_export(folder: Path, out: str | Path, about: Mapping[str, Any]) -> None:
    """Put what was exported into its place, where an earlier export may be.

    Args:
        folder: What was exported.
        out: Its place.
        about: What `onnx.json` is to say, but for the names of the files.

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
    if not config.model_type.startswith("hfseq_"):
        raise InputError(f"{kind} is not a model of hfseq; optimum exports those of transformers")
    if getattr(config, "pointer_generator", False):
        raise InputError("a pointer-generator cannot be exported: its vocabulary grows with each source")
    head = kind.removeprefix(next(family for family in ("Rnn", "Lstm", "Gru", "Cnn") if kind.startswith(family)))
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
        # Of the tracer, about checks of shapes, which are not part of the graph; of its age: the newer exporter fixes
        # the length of a simple recurrent network; and of the writer, about graphs that `check_graph` compares.
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
    """Compare a graph with the model: on the example, on its first row, and on longer rows.

    Returns:
        The largest difference of an output, divided by its largest value where that is above 1.

    Raises:
        RuntimeError: If it is more than 1e-4, or no number.
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
    """Outputs of an onnxruntime session by their names; inputs that its graph has no use for are left out."""
    names = [output.name for output in session.get_outputs()]
    given = {needed.name: np.ascontiguousarray(inputs[needed.name]) for needed in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def _variants(graph: Graph) -> list[dict[str, Tensor]]:
    """The example, one row of it, and one twice as long along every dynamic axis but the batch."""

    def doubled(name: str, tensor: Tensor) -> Tensor:
        for axis in graph.axes.get(name, {}):
            if axis:
                tensor = torch.cat([tensor, tensor], dim=axis)
        return tensor

    rows = {name: tensor[:1] for name, tensor in graph.inputs.items()}
    return [graph.inputs, rows, {name: doubled(name, tensor) for name, tensor in graph.inputs.items()}]


class _Whole(nn.Module):
    """A model as a function of tensors."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str], output: str) -> None:
        super().__init__()
        self.model, self.names, self.output = model, names, output

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True)), use_cache=False, return_dict=True)[
            self.output
        ]


def _example(model: PreTrainedModel, length: int = 5) -> dict[str, Tensor]:
    """Two rows of tokens, one of them shorter and with a gap."""
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
    return Graph(_Whole(model, list(inputs), output), inputs, [output], axes)


def _fill_cache(
    states: Sequence[Sequence[Tensor]], memory: tuple[Tensor, ...] | None, model_type: str
) -> DynamicCache:
    """A cache that holds states, as after some token."""
    cache = DynamicCache()
    for layer_states in states:
        layer = RecurrentCacheLayer()
        layer.update(tuple(layer_states), 1)
        layer.model_type, layer.memory = model_type, memory
        cache.layers.append(layer)
    return cache


class _LanguageModelStep(nn.Module):
    """Logits and new states of tokens, after states."""

    def __init__(self, model: PreTrainedModel, counts: Sequence[int]) -> None:
        super().__init__()
        self.model, self.counts = model, counts

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        cache = _fill_cache(_grouped(states, self.counts), None, self.model.config.model_type)
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, cache=cache, use_cache=True, return_dict=True
        )
        return outputs.logits, *_flat(outputs.cache)


def _grouped(states: Sequence[Tensor], counts: Sequence[int]) -> list[Sequence[Tensor]]:
    ends = np.cumsum(counts).tolist()
    return [states[end - count : end] for end, count in zip(ends, counts, strict=True)]


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
    return Graph(_LanguageModelStep(model, counts), inputs | states, outputs, axes)


class _Encoder(nn.Module):
    """The encoder's states and, of a CNN, its input embeddings."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.encoder: Any = model.get_encoder()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        embeddings = outputs.get("input_embeddings")
        return (outputs.last_hidden_state,) if embeddings is None else (outputs.last_hidden_state, embeddings)


class _Start(nn.Module):
    """What a decoder's cache holds before the first token."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.decoder: Any = model.decoder

    def forward(
        self, encoder_hidden_states: Tensor, attention_mask: Tensor, *embeddings: Tensor
    ) -> tuple[Tensor, ...]:
        states, memory = self.decoder.first_states(encoder_hidden_states, attention_mask, *embeddings)
        return *(state for layer in states for state in layer), *memory


class _TranslatorStep(nn.Module):
    """Logits and new states of one token."""

    def __init__(self, model: PreTrainedModel, counts: Sequence[int]) -> None:
        super().__init__()
        self.model: Any = model
        self.counts = counts

    def forward(
        self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        count = sum(self.counts)
        model_type = self.model.decoder.config.model_type
        cache = _fill_cache(_grouped(tensors[:count], self.counts), tuple(tensors[count:]), model_type)
        outputs = self.model.decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=attention_mask,
            cache=cache,
            use_cache=True,
            return_dict=True,
        )
        logits = self.model.lm_head(self.model.output(outputs.last_hidden_state)[0])
        return logits, *_flat(outputs.cache)


@torch.no_grad()
def _translator_graphs(model: PreTrainedModel) -> dict[str, Graph]:
    inputs = _example(model)
    encoder = _Encoder(model).eval()
    encoded = dict(zip(("encoder_hidden_states", "encoder_embeddings"), encoder(**inputs), strict=False))
    graphs = {
        "encoder": Graph(encoder, inputs, list(encoded), _batch("input_ids", "attention_mask", *encoded)),
    }
    hidden, mask = encoded["encoder_hidden_states"], inputs["attention_mask"]
    given = {"encoder_hidden_states": hidden, "attention_mask": mask, **encoded}
    start = _Start(model).eval()
    decoder: Any = model.decoder
    layers, memory = decoder.first_states(*given.values())
    states = {f"state_{number}": state for number, state in enumerate(state for layer in layers for state in layer)}
    memories = {f"memory_{number}": tensor for number, tensor in enumerate(memory)}
    counts = [len(layer) for layer in layers]
    dynamic = {name: {0: "batch"} for name in states}
    if model.config.to_dict().get("coverage"):
        # The last state, as long as the source.
        dynamic[list(states)[-1]] = {0: "batch", 1: "length"}
    dynamic |= _batch(*memories)
    axes = _batch(*given)
    graphs["start"] = Graph(start, given, [*states, *memories], axes | dynamic)
    step = _TranslatorStep(model, counts).eval()
    token = {"decoder_input_ids": torch.tensor([[1], [2]]) % model.config.vocab_size}
    outputs = ["logits", *(f"new_{name}" for name in states)]
    new = {f"new_{name}": found for name, found in dynamic.items() if name in states}
    one = {"decoder_input_ids": {0: "batch"}, "logits": {0: "batch"}}
    stepped = token | {"encoder_hidden_states": hidden, "attention_mask": mask} | states | memories
    graphs["decoder"] = Graph(
        step, stepped, outputs, one | _batch("encoder_hidden_states", "attention_mask") | dynamic | new
    )
    return graphs

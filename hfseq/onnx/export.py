"""Export to ONNX graphs with dynamic batch size and length, and with attention masks."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

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
_EXAMPLES = ((2, 5), (1, 5), (2, 10))
"""Batch sizes and lengths of the examples that a graph is compared on; the first is traced."""
_AXES = {0: ("batch", "sequences"), 2: ("characters", "characters")}
"""Names of the axes that may be dynamic, if as large as in the mask, else; the second one has the name of its size."""
TOLERANCE = 1e-4
"""Maximum difference between outputs of graph and model, relative to their largest value where that is above 1."""


def export_onnx(model_dir: str | Path, out: str | Path, *, opset: int = 17) -> Path:
    """Export a trained model of hfseq to ONNX, and verify every graph against it.

    - An encoder (`…Model`), classifier, tagger or CTC model becomes `model.onnx`: from `input_ids` and
      `attention_mask` `[B, T]`, and `char_ids` for models with characters, to `logits` or `last_hidden_state`. Models
      that read features have `input_features` `[B, T, F]` in place of the ids; the graph normalises and stacks them.
    - A language model becomes `decoder.onnx`: from tokens `[B, T]`, mask and previous states to `logits` and new
      states. The initial states are zeros.
    - A forecaster becomes `start.onnx`, which reads a past of at least the longest lag: from `past_values`,
      `past_observed_mask` `[B, T, C]` and static features to `loc` and `scale` `[B, 1, C]`, `static_features`
      `[B, D]`, the scaled `series` with its mask, `[B, max lag + context, 2 C]`, and `attention_mask`
      `[B, context + 1]`; with `differencing` also to `level` and `known`, the last observed values and where there is
      one. And `decoder.onnx`: from the series up to the step before the last, `[B, max lag + steps - 1, 2 C]`, mask
      `[B, steps]`, time features, static features and previous states to the parameters of the distribution of the
      scaled values at all steps, such as `param_df`, and new states. The initial states are zeros.
    - A sequence-to-sequence model becomes `encoder.onnx`, `start.onnx` (initial states of the decoder, and the keys
      and values of its attention) and `decoder.onnx`, one token per step. Tokens and states of the decoder have
      B * N rows for N sequences of each source, side by side, such as its beams.

    `hfseq.onnx.runtime.load_onnx` loads the result, with `generate()`. An earlier export in the folder is replaced
    only after the new graphs have been verified.

    Args:
        model_dir: Directory of a trained model with its tokenizer, or feature extractor or processor.
        out: Folder for graphs, configuration and those; it must be empty or hold an earlier export.
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
    model, processing_class = load_published(Path(model_dir))
    # Graphs are float32, whatever the type of the saved weights.
    model.float().eval()
    model.config.dtype = torch.float32
    with tempfile.TemporaryDirectory(prefix="hfseq-") as temporary:
        folder = Path(temporary)
        graphs, about = graphs_of(model)
        for name, examples in graphs.items():
            path = folder / f"{name}.onnx"
            write_graph(examples, path, opset)
            check_graph(examples, onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]), name)
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        if processing_class is not None:
            processing_class.save_pretrained(folder)
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


def graphs_of(model: PreTrainedModel) -> tuple[dict[str, list["Graph"]], dict[str, Any]]:
    """The graphs of a model, each for all examples, and what `load_onnx` needs to know about them.

    Raises:
        InputError: If there are none for this kind of model.
    """
    kind, config = type(model).__name__, model.config
    if not is_hfseq(config):
        raise InputError(f"{kind} is not a model of hfseq; optimum exports those of transformers")
    if getattr(config, "pointer_generator", False):
        raise InputError("a pointer-generator cannot be exported: its vocabulary grows with each source")
    head = head_of(kind).suffix
    if head == "ForCausalLM" and config.add_cross_attention:
        raise InputError("a decoder alone, with add_cross_attention, cannot be exported")
    make = {
        "ForConditionalGeneration": _translator,
        "ForCausalLM": _language_model,
        "ForPrediction": _forecaster,
    }.get(head, _whole)
    with torch.no_grad():
        examples = [make(model, *sizes) for sizes in _EXAMPLES]
    graphs = {name: [example[name] for example in examples] for name in examples[0]}
    inputs = graphs["decoder"][0].inputs if "decoder" in graphs else {}
    states = {
        name: {"shape": list(tensor.shape[1:]), "dtype": str(tensor.numpy().dtype)}
        for name, tensor in inputs.items()
        if name.startswith("state_")
    }
    memories = [name for name in inputs if name.startswith("memory_")]
    return graphs, {"head": head, "graphs": list(graphs), "states": states, "memories": memories}


class Graph(nn.Module):
    """A graph to export: a function of tensors that calls a model.

    Args:
        model: The model, or the part of it that the function calls.
        function: Function from the input tensors to a tuple of output tensors.
        inputs: Example inputs by name, in the order of the arguments.
        outputs: Names of the outputs.

    Attributes:
        inputs: The example inputs.
        results: Outputs of the function for the example, by name.
    """

    def __init__(
        self, model: nn.Module, function: Callable[..., Any], inputs: dict[str, Tensor], outputs: Iterable[str]
    ) -> None:
        super().__init__()
        self.model, self.function, self.inputs = model, function, inputs
        self.results = dict(zip(outputs, function(*inputs.values()), strict=True))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the function."""
        return self.function(*tensors)


def write_graph(examples: Sequence[Graph], path: str | Path, opset: int) -> None:
    """Trace the first example of a graph into a file; axes whose size differs between the examples are dynamic."""
    graph = examples[0]
    tensors = [example.inputs | example.results for example in examples]
    # onnxruntime may take axes of one name for equally long.
    rows, lengths = (tuple(found["attention_mask"].shape[axis] for found in tensors) for axis in (0, 1))
    titles = {lengths: "length"}
    axes: dict[str, dict[int, str]] = {}
    for name in tensors[0]:
        sizes = zip(*(found[name].shape for found in tensors), strict=False)
        dynamic = {axis: found for axis, found in enumerate(sizes) if len({*found}) > 1}
        axes[name] = {
            axis: titles.setdefault(found, f"{name}_length") if axis == 1 else _AXES[axis][found != rows]
            for axis, found in dynamic.items()
        }
    with warnings.catch_warnings():
        # The tracer warns of shape checks, which are not part of the graph, and of its deprecation, but the newer
        # exporter fixes the length of an RNN; the writer warns of graphs that `check_graph` verifies.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\b|hfseq\.onnx\.export$")
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx\b")
        torch.onnx.export(
            graph.eval(),
            tuple(graph.inputs.values()),
            str(path),
            input_names=list(graph.inputs),
            output_names=list(graph.results),
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )


def check_graph(examples: Sequence[Graph], session: Any, name: str) -> None:
    """Compare a graph with the model on all examples.

    Raises:
        RuntimeError: If an output differs by more than `TOLERANCE`, relative to its largest value where that is above
            1, or is NaN, or its shape differs.
    """
    for graph in examples:
        found = run_session(session, {key: value.numpy() for key, value in graph.inputs.items()})
        for output, tensor in graph.results.items():
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


def run_session(session: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of an onnxruntime session by name; inputs that the graph does not have are dropped."""
    names = [output.name for output in session.get_outputs()]
    given = {needed.name: np.ascontiguousarray(inputs[needed.name]) for needed in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def _example(model: PreTrainedModel, batch: int, length: int) -> dict[str, Tensor]:
    """Rows of tokens or frames, all but the first padded on both sides and in the middle."""
    config: Any = model.config
    if config.input_size is not None:
        # As many steps as there are tokens, the last one of some frames less.
        length = length * config.subsampling_factor - config.subsampling_factor // 2
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1:, [0, length // 2, -1]] = 0
    ids = torch.arange(batch * length).view(batch, length)
    if config.input_size is None:
        return {"input_ids": ids % config.vocab_size, "attention_mask": mask}
    inputs: Any = model.base_model
    noise = torch.sin(torch.arange(batch * length * config.input_size)).view(batch, length, -1)
    features = noise * inputs.feature_scale + inputs.feature_mean
    return {"input_features": features, "attention_mask": mask}


def _whole(model: PreTrainedModel, batch: int, length: int) -> dict[str, Graph]:
    inputs = _example(model, batch, length)
    output = "last_hidden_state" if head_of(type(model).__name__).suffix == "Model" else "logits"
    if model.config.char_encoder is not None:
        ids = torch.arange(batch * length * (length // 2)).view(batch, length, -1) % model.config.char_vocab_size
        inputs["char_ids"] = nn.functional.pad(ids, (0, 1))

    def run(*tensors: Tensor) -> tuple[Tensor]:
        return (model(**dict(zip(inputs, tensors, strict=True)), use_cache=False, return_dict=True)[output],)

    return {"model": Graph(model, run, inputs, [output])}


def _numbered(kind: str, tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    return {f"{kind}_{number}": tensor for number, tensor in enumerate(tensors)}


def _fill_cache(model: Any, layers: Sequence[Sequence[Tensor]], tensors: Sequence[Tensor]) -> DynamicCache:
    """A cache as after some token: as many states for each layer as in `layers`; the tensors after them are memory."""
    cache, rest = DynamicCache(), iter(tensors)
    for states in layers:
        layer = RecurrentCacheLayer()
        layer.update(tuple(islice(rest, len(states))), 1)
        layer.model_type = model.config.model_type
        cache.layers.append(layer)
    cache.layers[0].memory = tuple(rest)  # type: ignore[union-attr]
    return cache


def _flat(cache: DynamicCache) -> list[Tensor]:
    return [state for layer in cache.layers for state in layer.states]  # type: ignore[union-attr]


def _language_model(model: PreTrainedModel, batch: int, length: int) -> dict[str, Graph]:
    inputs = _example(model, batch, length)
    cache = model(**inputs, use_cache=True, return_dict=True).cache
    layers, states = [layer.states for layer in cache.layers], _numbered("state", _flat(cache))

    def step(input_ids: Tensor, attention_mask: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        cache = _fill_cache(model, layers, states)
        outputs = model(
            input_ids=input_ids, attention_mask=attention_mask, cache=cache, use_cache=True, return_dict=True
        )
        return outputs.logits, *_flat(outputs.cache)

    return {"decoder": Graph(model, step, inputs | states, ["logits", *(f"new_{name}" for name in states)])}


def _translator(model: Any, batch: int, length: int) -> dict[str, Graph]:
    inputs = _example(model, batch, length)
    encoder, decoder = model.get_encoder(), model.decoder

    def encode(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = encoder(**dict(zip(inputs, tensors, strict=True)), return_dict=True)
        return tuple(model.encoder_kwargs(outputs).values())

    def start(encoder_hidden_states: Tensor, attention_mask: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        others = dict(zip(names[1:], more, strict=True))
        states, memory = decoder.first_states(encoder_hidden_states, attention_mask, **others)
        return *chain(*states), *memory

    def step(
        decoder_input_ids: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        cache = _fill_cache(decoder, layers, tensors)
        run = decoder.make_decode_step(
            cache, encoder_hidden_states=encoder_hidden_states, encoder_attention_mask=attention_mask
        )
        return model.lm_head(model.output(run(decoder_input_ids))[0]), *_flat(cache)

    # The hidden states, of a CNN the embeddings, and what a bridge reads.
    names = list(model.encoder_kwargs(encoder(**inputs, return_dict=True)))
    encoded = dict(zip(names, encode(*inputs.values()), strict=True))
    hidden = encoded["encoder_hidden_states"]
    # Of stacked frames, the decoder's graphs get the mask of the steps.
    mask = encoder.mask_of_steps(inputs["attention_mask"], hidden.shape[1])
    source = {"encoder_hidden_states": hidden, "attention_mask": mask.long()}
    given = source | encoded
    layers, memory = decoder.first_states(hidden, mask, **{name: encoded[name] for name in names[1:]})
    states, memories = _numbered("state", chain(*layers)), _numbered("memory", memory)
    # The beams of a sentence share its source: several sequences of each in all examples but the one of batch 1.
    repeats = batch + length // 10
    repeated = {name: state.repeat_interleave(repeats, dim=0) for name, state in states.items()}
    ids = torch.arange(1, 1 + len(hidden) * repeats).unsqueeze(1) % model.config.target_vocab_size()
    given_step = {"decoder_input_ids": ids} | source | repeated | memories
    return {
        "encoder": Graph(encoder, encode, inputs, encoded),
        "start": Graph(decoder, start, given, states | memories),
        "decoder": Graph(model, step, given_step, ["logits", *(f"new_{name}" for name in states)]),
    }


def _forecaster(model: Any, batch: int, length: int) -> dict[str, Graph]:
    config, reach, size = model.config, model.reach, model.config.input_size
    # The shortest past, which may be shorter than the context, and a longer one, which is traced.
    steps = reach if length > _EXAMPLES[0][1] else max(reach, config.context_length or 0) + length
    wave = 3 * torch.sin(torch.arange(batch * steps * size) * 0.7).view(batch, steps, size) + 5
    observed = torch.ones(batch, steps, size, dtype=torch.long)
    observed[1:, 0] = observed[:, steps // 2, -1] = 0
    inputs = {"past_values": wave.round() if model.counts else wave, "past_observed_mask": observed}
    if config.num_static_categorical_features:
        sizes = torch.tensor(config.cardinality)
        inputs["static_categorical_features"] = (torch.arange(batch * len(sizes)).view(batch, -1) + 1) % sizes
    if config.num_static_real_features:
        count = batch * config.num_static_real_features
        inputs["static_real_features"] = torch.cos(torch.arange(count)).view(batch, -1)
    given = ("past_values", "past_observed_mask", "static_categorical_features", "static_real_features")

    def start(*tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(inputs, tensors, strict=True))
        values, mask, *features = (named.get(name) for name in given)
        row, series, valid, level, known = model.read_start(*model.read_past(values, mask), *features)
        last = () if level is None else (level, known.long())
        return *row, series, valid.long(), *last

    names = ["loc", "scale", "static_features", "series", "attention_mask"]
    begin = Graph(model, start, inputs, names + (["level", "known"] if config.differencing else []))
    # Any number of steps: the context, then one at a time.
    count = config.num_time_features + config.num_dynamic_real_features
    series = torch.sin(torch.arange(batch * (reach + length - 1) * 2 * size) * 1.3).view(batch, -1, 2 * size)
    series[:, :, size:] = (series[:, :, size:] > 0).float()
    series[:, :, :size] *= series[:, :, size:]
    valid = torch.ones(batch, length, dtype=torch.long)
    valid[1:, 0] = 0
    given_steps = {"series": series, "attention_mask": valid}
    if count:
        given_steps["time_features"] = torch.cos(torch.arange(batch * length * count) * 0.9).view(batch, length, -1)
    given_steps["static_features"] = begin.results["static_features"]
    cache: Any = DynamicCache()
    model.run_steps(series, given_steps.get("time_features"), given_steps["static_features"], valid, cache)
    layers, states = [layer.states for layer in cache.layers], _numbered("state", _flat(cache))

    def step(*tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(given_steps, tensors, strict=False))
        cache = _fill_cache(model, layers, tensors[len(given_steps) :])
        params = model.run_steps(
            named["series"], named.get("time_features"), named["static_features"], named["attention_mask"], cache
        )
        return *params, *_flat(cache)

    outputs = [f"param_{name}" for name in model.parameter_names]
    return {
        "start": begin,
        "decoder": Graph(model, step, given_steps | states, [*outputs, *(f"new_{name}" for name in states)]),
    }

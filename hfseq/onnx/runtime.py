"""Exported models on onnxruntime, with the interface of transformers' models, including pipelines and `generate()`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    CausalLMOutputWithCrossAttentions,
    ModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqTSPredictionOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from hfseq.errors import blaming, require
from hfseq.models.cache import RecurrentCacheLayer, cache_layers, takes_past_key_values
from hfseq.models.forecasting import ForecastingMixin, Params, Past, Row
from hfseq.models.generation import SequenceGenerationMixin, Step
from hfseq.models.inputs import flat_frames, mask_of_steps
from hfseq.models.output_layer import steps_to_keep
from hfseq.models.padding import valid_steps
from hfseq.models.shapes import for_each
from hfseq.models.time_series import with_variates
from hfseq.onnx.export import read_export, run_session
from hfseq.processing import load_processing_class

logger = logging.getLogger(__name__)


def load_onnx(
    directory: str | Path,
    *,
    threads: int | None = None,
    spinning: bool = True,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> tuple["OnnxRunner", Any]:
    """Load a model that `export_onnx` or `quantize_onnx` wrote, and its tokenizer or other processing class.

    Args:
        directory: Folder of the export.
        threads: Number of threads per operator; None for one per core.
        spinning: Whether threads wait for work in a loop, which is quicker where nothing else runs, and takes the
            cores away from whatever does.
        providers: Execution providers of onnxruntime in order of preference.

    Returns:
        An `OnnxModel`, `OnnxForSequenceClassification`, `OnnxForTokenClassification`, `OnnxForCTC`, `OnnxForCausalLM`,
        `OnnxForConditionalGeneration` or `OnnxForPrediction`, which can be passed to pipelines, and the tokenizer; if
        the model reads features or series, what `load_processing_class` finds.

    Raises:
        InputError: If the export is missing, incomplete or damaged, or onnxruntime is not installed.
    """
    require("onnxruntime", extra="onnx")
    import onnxruntime

    folder = Path(directory)
    about = read_export(folder)
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = {}
    for name in about["graphs"]:
        path = folder / f"{name}.onnx"
        with blaming(f"{path} is damaged"):
            sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    # The report came with 7-bit weights: without it int8 graphs have 8 bits.
    if "int8" not in about and any(is_quantized(folder / f"{name}.onnx") for name in about["graphs"]):
        logger.warning("%s: 8-bit weights, which saturate on some CPUs; quantize the float32 export again", folder)
    with blaming(str(folder)):
        runner = _RUNNERS[about["head"]](AutoConfig.from_pretrained(folder), sessions, about)
        if runner.can_generate():
            runner.generation_config = GenerationConfig.from_pretrained(folder)
        return runner, load_processing_class(folder) if runner.reads_features else AutoTokenizer.from_pretrained(
            folder
        )


def is_quantized(path: Path) -> bool:
    """Return True if a graph has int8 operators."""
    content = path.read_bytes()
    return any(operator in content for operator in (b"DequantizeLinear", b"DynamicQuantizeLSTM", b"MatMulInteger"))


class OnnxRunner(PreTrainedModel):
    """Base of the runners. Inputs and outputs are on the CPU; there is no training.

    Args:
        config: Configuration of the exported model.
        sessions: onnxruntime sessions by graph name.
        about: Content of `onnx.json`.
    """

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig, sessions: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        # No `post_init`: there are no weights to initialise.
        super().__init__(config)
        self.sessions, self.about = dict(sessions), dict(about)
        if self.reads_features and type(self).main_input_name == "input_ids":
            self.main_input_name = "input_features"
        self.eval()

    @property
    def reads_features(self) -> bool:
        """True if the model reads features, False if it reads tokens."""
        config: Any = self.config
        return config.input_size is not None

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the outputs."""
        return torch.float32

    def vocabulary_sizes(self) -> dict[str, Any]:
        """Sizes for `hfseq.data.collation.vocabulary_sizes`, which reads them from the weights of other models."""
        config: Any = self.config
        sizes: dict[str, Any] = {"vocab_size": None if self.reads_features else config.vocab_size}
        if self.reads_features:
            sizes["input_size"] = config.input_size
            if config.frame_shape is not None:
                sizes["frame_shape"] = config.frame_shape
        if getattr(config, "char_encoder", None) is not None:
            sizes["char_vocab_size"] = config.char_vocab_size
        if self.can_generate():
            return sizes | {"decoder_vocab_size": config.target_vocab_size()}
        if isinstance(self, OnnxForCTC):
            return sizes | {"decoder_vocab_size": config.vocab_size}
        return sizes | {"num_labels": config.num_labels}

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Not supported: the graphs are files already.

        Raises:
            ValueError: Always.
        """
        raise ValueError("an exported model is not saved; copy its folder")

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run a graph; return its outputs by name."""
        found = run_session(self.sessions[graph], {name: tensor.cpu().numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in found.items()}

    def _layer(self, cache: Cache) -> RecurrentCacheLayer:
        """Layer of a cache that holds the states of the graph, the only one."""
        return cache_layers(cache, 1, self.cache_owner)[0]

    @property
    def cache_owner(self) -> str:
        """Name that the layer is marked with."""
        return f"onnx of {self.config.model_type}"

    def _first_states(self, batch: int) -> tuple[Tensor, ...]:
        """Zeros, from which a graph that has no `start` for its states begins."""
        return tuple(
            torch.zeros(batch, *state["shape"], dtype=getattr(torch, state["dtype"]))
            for state in self.about["states"].values()
        )

    def _decode(self, layer: RecurrentCacheLayer, inputs: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """Outputs of `count` steps by name, which update the states."""
        states = dict(zip(self.about["states"], layer.states or (), strict=True))
        outputs = self.run("decoder", {**inputs, **states})
        layer.update(tuple(outputs.pop(f"new_{name}") for name in states), count)
        return outputs

    def refuse_labels(self, arguments: Mapping[str, Any]) -> None:
        """Raise a `ValueError` if the other arguments of `forward` have labels."""
        if arguments.get("labels") is not None:
            raise ValueError("exported models cannot be trained and take no labels")

    def check_inputs(
        self, ids: Tensor, mask: Tensor | None, others: Mapping[str, Any], name: str = "input_ids", past: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask `[B, T]` as int64; the mask is that of the current steps, all ones by default.

        Args:
            ids: Token ids `[B, T]`.
            mask: 1 at valid steps, `[B, T]` or `[B, past + T]`, or None.
            others: Other arguments of `forward`.
            name: Name of the ids.
            past: Number of previous steps.

        Raises:
            ValueError: If there are labels, shapes do not match, there is no step, or an id is outside the vocabulary.
        """
        self.refuse_labels(others)
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"{name} has shape {tuple(ids.shape)}, expected (batch, length) with at least one step")
        config: Any = self.config
        size = config.vocab_size if name == "input_ids" else config.target_vocab_size()
        least, most, last = int(ids.min()), int(ids.max()), size - 1
        if least < 0 or most > last:
            raise ValueError(f"{name} has ids {least} to {most}; the vocabulary has 0 to {last}")
        return ids.long(), _steps(ids, mask, past)

    def check_source(
        self,
        input_ids: Tensor | None,
        input_features: Tensor | None,
        mask: Tensor | None,
        others: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Inputs of a graph that reads tokens or frames, with their mask.

        Args:
            input_ids: Token ids `[B, T]`.
            input_features: Frames of features `[B, T, F]`, or of pixels, `[B, T, C, H, W]`.
            mask: 1 at what is valid, `[B, T]`, or None.
            others: Other arguments of `forward`.

        Raises:
            ValueError: As `check_inputs`, or if not exactly the inputs that the model reads are given.
        """
        own, other = "input_ids", "input_features"
        given = {own: input_ids, other: input_features}
        size = self.config.input_size
        if self.reads_features:
            own, other = other, own
        if given[other] is not None or given[own] is None:
            raise ValueError(f"the model reads {own}, since its input_size is {size}")
        if input_features is None:
            assert input_ids is not None
            ids, mask = self.check_inputs(input_ids, mask, others)
            return {"input_ids": ids, "attention_mask": mask}
        self.refuse_labels(others)
        input_features = flat_frames("input_features", input_features, size, self.config.pixels(size))
        return {"input_features": input_features.float(), "attention_mask": _steps(input_features, mask)}


class _Whole(OnnxRunner):
    """A single graph from tokens or frames to one output."""

    output_class: ClassVar[type[ModelOutput]]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        char_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Run the graph.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 at valid steps or frames, `[B, T]`; None if all are valid.
            char_ids: Characters of each token `[B, T, L]`, for models with a character encoder.
            input_features: Frames of features `[B, T, F]`, or of pixels, `[B, T, C, H, W]`, for models that read
                those.
            kwargs: Ignored.

        Returns:
            `logits`, or `last_hidden_state` of an encoder.

        Raises:
            ValueError: If labels are given, shapes do not match, an id is outside the vocabulary, or inputs are
                missing or not those of the model.
        """
        inputs = self.check_source(input_ids, input_features, attention_mask, kwargs)
        if (char_ids is None) != (getattr(self.config, "char_encoder", None) is None):
            problem = "needs char_ids from its tokenizer"
            if char_ids is not None:
                problem = "has no char_encoder and takes no char_ids"
            raise ValueError(f"this model {problem}")
        if char_ids is not None:
            shape = inputs["input_ids"].shape
            if char_ids.dim() != 3 or char_ids.shape[:2] != shape:
                raise ValueError(f"char_ids has shape {tuple(char_ids.shape)}, expected {(*shape, 'characters')}")
            inputs["char_ids"] = char_ids.long()
        return self.output_class(**self.run("model", inputs))


class OnnxModel(_Whole):
    """An exported encoder."""

    output_class = BaseModelOutput


class OnnxForSequenceClassification(_Whole):
    """An exported sequence classifier."""

    output_class = SequenceClassifierOutput


class OnnxForTokenClassification(_Whole):
    """An exported tagger; with a CRF the graph includes Viterbi decoding."""

    output_class = TokenClassifierOutput


class OnnxForCTC(_Whole):
    """An exported CTC model; at padding its most likely symbol is the blank."""

    output_class = CausalLMOutput


class _Generates(OnnxRunner, SequenceGenerationMixin):
    """Base of generative models, whose states are kept in a cache with a single layer."""

    # A recurrent state cannot be rolled back.
    _is_stateful = True
    prepare_inputs_for_generation = GenerationMixin.prepare_inputs_for_generation

    def supports_decode_step(self) -> bool:
        """Return True: a step is a run of the graph."""
        return True


class OnnxForCausalLM(_Generates):
    """An exported language model."""

    def make_decode_step(self, cache: Cache, **kwargs: Any) -> Step:
        """Step from the newest ids `[B, 1]` to logits `[B, V]`; see `SequenceGenerationMixin`."""
        layer = self._layer(cache)
        return lambda ids: self._decode(layer, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 1)[
            "logits"
        ][:, -1]

    @takes_past_key_values
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Predict the next token at every step.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 at valid steps, `[B, T]` or `[B, past + T]`.
            cache: State after the previous tokens; updated in place.
            use_cache: Return the state.
            logits_to_keep: Number of last steps to return logits for, 0 for all, or the indices of steps.
            kwargs: Ignored.

        Returns:
            `logits` `[B, T, vocab_size]`, and the cache if `use_cache` is set or one was passed.

        Raises:
            ValueError: If the cache belongs to another model, labels are given, shapes do not match, or an id is
                outside the vocabulary.
        """
        returns = cache is not None or use_cache
        cache = DynamicCache() if cache is None else cache
        layer = self._layer(cache)
        ids, mask = self.check_inputs(input_ids, attention_mask, kwargs, past=layer.seen)
        if layer.states is None:
            layer.states = self._first_states(len(ids))
        outputs = self._decode(layer, {"input_ids": ids, "attention_mask": mask}, ids.shape[1])
        kept = steps_to_keep(outputs["logits"], logits_to_keep)
        return CausalLMOutputWithCrossAttentions(logits=kept, cache=cache if returns else None)


class OnnxEncoder(nn.Module):
    """The encoder of an exported sequence-to-sequence model.

    Args:
        runner: Runner of the model.
    """

    def __init__(self, runner: OnnxRunner) -> None:
        super().__init__()
        # Not registered as a submodule: it is part of the runner.
        self.__dict__["runner"] = runner
        self.main_input_name = runner.main_input_name

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Return encoder states `[B, S, M]`, for a CNN its input embeddings, and the final states for a bridge."""
        runner: Any = self.runner
        inputs = runner.check_source(input_ids, input_features, attention_mask, kwargs)
        found = runner.run("encoder", inputs)
        return ModelOutput({"last_hidden_state": found.pop("encoder_hidden_states"), **found})


class OnnxForConditionalGeneration(_Generates):
    """An exported sequence-to-sequence model."""

    def get_encoder(self, modality: str | None = None) -> OnnxEncoder:
        """The encoder."""
        return OnnxEncoder(self)

    def make_decode_step(self, cache: Cache, **kwargs: Any) -> Step:
        """Step from the newest ids `[B, 1]` to logits `[B, V]`; see `SequenceGenerationMixin`."""
        layer = self._layer(cache)
        given = self._source(kwargs["encoder_outputs"]["last_hidden_state"], kwargs.get("attention_mask"))
        given |= dict(zip(self.about["memories"], layer.memory or (), strict=True))
        batches = {one.name: one.shape[0] for one in self.sessions["decoder"].get_inputs()}

        def step(ids: Tensor) -> Tensor:
            nonlocal given
            if batches["decoder_input_ids"] == batches.get("attention_mask"):
                # A graph of an earlier version, which has a source for each row: beams of a sentence do not share it.
                given = {name: for_each(value, ids) for name, value in given.items()}
            return self._decode(layer, given | {"decoder_input_ids": ids}, 1)["logits"][:, -1]

        return step

    def _source(self, hidden: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
        """Encoder states `[B, S, M]` and their mask, as the decoder's graphs take them."""
        mask = mask_of_steps(attention_mask, hidden.shape[1], self.config.subsampling_factor)
        return {"encoder_hidden_states": hidden, "attention_mask": _steps(hidden, mask)}

    @takes_past_key_values
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: ModelOutput | tuple[Tensor, ...] | None = None,
        cache: Cache | None = None,
        decoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        input_features: Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Predict the next target token at every step.

        Args:
            input_ids: Source ids `[B, S]`.
            attention_mask: 1 at valid source positions, `[B, S]`; of frames also where they are stacked.
            decoder_input_ids: Target ids `[B, T]`; the graph runs once per token.
            encoder_outputs: Encoder outputs, in place of the source.
            cache: Decoder state after the previous tokens; updated in place.
            decoder_attention_mask: Must be all ones: padding of the target is not supported.
            use_cache: Return the state.
            input_features: Frames of features `[B, S, F]`, or of pixels, `[B, S, C, H, W]`, in place of `input_ids`
                for models that read those.
            kwargs: Ignored.

        Returns:
            `logits` `[B, T, vocab_size]`, and the cache if `use_cache` is set or one was passed.

        Raises:
            ValueError: If source or target is missing, the target has padding, labels are given, shapes do not match,
                an id is outside the vocabulary, or the cache belongs to another model.
        """
        self.refuse_labels(kwargs)
        if decoder_attention_mask is not None and not bool(decoder_attention_mask.all()):
            raise ValueError("exported sequence-to-sequence models do not support padding in decoder_input_ids")
        source = input_features if self.reads_features else input_ids
        if decoder_input_ids is None or (source is None and encoder_outputs is None):
            raise ValueError(f"decoder_input_ids, and {self.main_input_name} or encoder_outputs, are required")
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(input_ids, attention_mask, input_features)
        _, *others = (output.name for output in self.sessions["encoder"].get_outputs())
        if not isinstance(encoder_outputs, ModelOutput):
            names = ("last_hidden_state", *others)
            encoder_outputs = ModelOutput(zip(names, encoder_outputs or (), strict=False))
        hidden = encoder_outputs["last_hidden_state"]
        tokens, _ = self.check_inputs(decoder_input_ids, None, kwargs, "decoder_input_ids")
        given = self._source(hidden, attention_mask)
        returns = cache is not None or use_cache
        if cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        layer = self._layer(cache)
        if layer.states is None:
            more = {name: encoder_outputs[name] for name in others if name in encoder_outputs}
            start = self.run("start", given | more)
            layer.states = tuple(start[name] for name in self.about["states"])
            layer.memory = tuple(start[name] for name in self.about["memories"])
        given |= dict(zip(self.about["memories"], layer.memory or (), strict=True))
        steps = [
            self._decode(layer, given | {"decoder_input_ids": token}, 1)["logits"] for token in tokens.split(1, dim=1)
        ]
        return Seq2SeqLMOutput(
            logits=torch.cat(steps, dim=1),
            cache=cache if returns else None,  # type: ignore[arg-type]
            encoder_last_hidden_state=hidden,
        )


class OnnxForPrediction(ForecastingMixin, OnnxRunner):
    """An exported forecaster, in float32, with `generate()` and `log_likelihood()`.

    Samples come from torch's global generator; after the same seed they are those of the model, up to rounding.
    """

    main_input_name = "past_values"

    def __init__(self, config: PreTrainedConfig, sessions: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        super().__init__(config, sessions, about)
        self._set_distribution(config)

    def forward(
        self,
        past_values: Tensor,
        past_time_features: Tensor | None = None,
        past_observed_mask: Tensor | None = None,
        static_categorical_features: Tensor | None = None,
        static_real_features: Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqTSPredictionOutput:
        """Predict each step of the context from the observed ones before it.

        Args:
            past_values: Values `[B, T]`, or `[B, T, C]` for C variates, or frames of pixels.
            past_time_features: Time features, then other covariates, `[B, T, F]`.
            past_observed_mask: 1 at observed values, in the shape of the values or `[B, T]`. None: all but NaN.
            static_categorical_features: Class ids of each row, `[B, num_static_categorical_features]`.
            static_real_features: `[B, num_static_real_features]`.
            kwargs: Ignored.

        Returns:
            `params`, the parameters of the distributions of scaled values at each step of the context, each `[B, T]`
            or `[B, T, C]`; `loc` and `scale`, `[B, 1]` or `[B, 1, C]`; and `static_features` `[B, D]`.

        Raises:
            ValueError: If there are values of the horizon, a shape is wrong, time or static features are missing, a
                class id is out of range, the past is shorter than the longest lag, or counts are no counts.
        """
        if kwargs.get("future_values") is not None:
            raise ValueError("exported models cannot be trained and take no future_values; generate() forecasts")
        past, observed = self.read_past(past_values, past_observed_mask)
        time = self._time_features("past", past_time_features, *past.shape[:2])
        row, series, valid, *_ = self.read_start(past, observed, static_categorical_features, static_real_features)
        params = self.run_steps(series[:, :-1], time, row.static, valid[:, :-1], DynamicCache())
        variates = past_values.shape[2:]
        return Seq2SeqTSPredictionOutput(
            params=tuple(with_variates(one, variates) for one in params),
            loc=with_variates(row.loc, variates),
            scale=with_variates(row.scale, variates),
            static_features=row.static,
        )

    @property
    def _owner(self) -> tuple[int, str]:
        return 1, self.cache_owner

    def read_start(self, past: Tensor, observed: Tensor, categories: Tensor | None, reals: Tensor | None) -> Past:
        """Run the graph `start`; see `ForecastingMixin`.

        Raises:
            ValueError: If static features are missing or of another shape, or a class id is out of range.
        """
        self._check_static(len(past), categories, reals)
        inputs = {"past_values": past.float(), "past_observed_mask": observed.long()}
        if categories is not None:
            for number, (ids, size) in enumerate(
                zip(categories.unbind(1), self.config.cardinality or (), strict=True)
            ):
                wrong = ids[(ids < 0) | (ids >= size)]
                if wrong.numel():
                    raise ValueError(
                        f"static_categorical_features has the class id {int(wrong[0])} in column {number}; the model "
                        f"has 0 to {size - 1}"
                    )
            inputs["static_categorical_features"] = categories.long()
        if reals is not None:
            inputs["static_real_features"] = reals.float()
        found = self.run("start", inputs)
        row = Row(found["loc"], found["scale"], found["static_features"])
        level, known = found.get("level"), found.get("known")
        return Past(row, found["series"], found["attention_mask"] > 0, level, None if known is None else known > 0)

    def _embed_categories(self, categories: Tensor) -> Tensor:
        # They stand before the other static features, whatever the values are.
        config, batch = self.config, len(categories)
        values = torch.zeros(batch, self.reach, config.input_size)
        reals = torch.zeros(batch, config.num_static_real_features) if config.num_static_real_features else None
        row = self.read_start(values, values > 0, categories, reals).row
        return row.static[:, : sum(config.embedding_dimension)]

    def run_steps(
        self, series: Tensor, time: Tensor | None, static: Tensor, valid: Tensor | None, cache: Cache
    ) -> Params:
        """Run the graph `decoder`; see `ForecastingMixin`."""
        layer, batch, steps = self._layer(cache), len(series), series.shape[1] - self.reach + 1
        if layer.states is None:
            layer.states = self._first_states(batch)
        mask = torch.ones(batch, steps, dtype=torch.long) if valid is None else valid.long()
        inputs = {"series": series.float(), "attention_mask": mask, "static_features": static.float()}
        if time is not None:
            inputs["time_features"] = time[:, -steps:].float()
        outputs = self._decode(layer, inputs, steps)
        return tuple(outputs[f"param_{name}"] for name in self.parameter_names)


_RUNNERS: dict[str, type[OnnxRunner]] = {
    runner.__name__.removeprefix("Onnx"): runner
    for runner in (*_Whole.__subclasses__(), *_Generates.__subclasses__(), OnnxForPrediction)
}


def _steps(like: Tensor, mask: Tensor | None, past: int = 0) -> Tensor:
    valid = valid_steps(mask, like.shape[0], like.shape[1], past, "attention_mask")
    return torch.ones(like.shape[:2], dtype=torch.long) if valid is None else valid.long()

"""Exported models on onnxruntime: the forward passes of transformers' models, pipelines and `generate()` included."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutputWithCrossAttentions,
    ModelOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from hfseq.errors import InputError, one_line, require
from hfseq.heads import head_of
from hfseq.models.cache import RecurrentCacheLayer, cache_layers, takes_past_key_values
from hfseq.models.output_layer import steps_to_keep
from hfseq.models.padding import valid_steps
from hfseq.onnx.export import read_export, run_session


def load_onnx(
    directory: str | Path, *, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> tuple["OnnxRunner", Any]:
    """The model that `export_onnx` or `quantize_onnx` wrote, and its tokenizer.

    Args:
        directory: Theirs.
        threads: Of onnxruntime, for one operator; None for one a core.
        providers: Its execution providers, the first that there is first.

    Returns:
        An `OnnxModel`, `OnnxForSequenceClassification`, `OnnxForTokenClassification`, `OnnxForCausalLM` or
        `OnnxForConditionalGeneration`, which pipelines take, and the tokenizer.

    Raises:
        InputError: If there is no such folder, it is not whole, or onnxruntime is not installed.
    """
    require("onnxruntime", extra="onnx")
    import onnxruntime

    folder = Path(directory)
    about = read_export(folder)
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    sessions = {}
    for name in about["graphs"]:
        path = folder / f"{name}.onnx"
        try:
            sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # onnxruntime's own have no base class
            raise InputError(f"{path} is broken: {one_line(error)}") from error
    try:
        runner = _RUNNERS[about["head"]](AutoConfig.from_pretrained(folder), sessions, about)
        if runner.can_generate():
            runner.generation_config = GenerationConfig.from_pretrained(folder)
        return runner, AutoTokenizer.from_pretrained(folder)
    except (KeyError, OSError, ValueError) as error:
        raise InputError(f"{folder}: {one_line(error)}") from error


class OnnxRunner(PreTrainedModel):
    """What the runners share. Tensors come and go on the CPU; nothing is trained.

    Args:
        config: Of the exported model.
        sessions: Name of a graph to its onnxruntime session.
        about: What the export said.
    """

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig, sessions: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        # Without `post_init`: there are no weights to initialise.
        super().__init__(config)
        self.sessions, self.about = dict(sessions), dict(about)
        self.eval()

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the outputs."""
        return torch.float32

    def vocabulary_sizes(self) -> dict[str, int]:
        """As `hfseq.data.collation.vocabulary_sizes` reads them off another model."""
        config: Any = self.config
        sizes = {"vocab_size": config.vocab_size}
        if getattr(config, "char_encoder", None) is not None:
            sizes["char_vocab_size"] = config.char_vocab_size
        return sizes | ({} if self.can_generate() else {"num_labels": config.num_labels})

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the graphs are files already.

        Raises:
            ValueError: Always.
        """
        raise ValueError("an exported model is not saved; copy its folder")

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of a graph, by their names."""
        found = run_session(self.sessions[graph], {name: tensor.cpu().numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in found.items()}


class _Whole(OnnxRunner):
    """One graph from tokens to an output."""

    output_class: ClassVar[type[ModelOutput]]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        char_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Run the graph.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 at valid steps, `[B, T]`; None if all are.
            char_ids: Characters of each token `[B, T, L]`, if the model reads them.
            kwargs: Ignored.

        Returns:
            `logits`, or `last_hidden_state` of an encoder.

        Raises:
            ValueError: If labels are given, shapes do not fit, an id is outside the vocabulary, or characters are
                missing or not read.
        """
        _no_labels(kwargs)
        ids, mask = _checked(self.config, input_ids, attention_mask)
        inputs = {"input_ids": ids, "attention_mask": mask}
        reads = getattr(self.config, "char_encoder", None) is not None
        if reads and char_ids is None:
            raise ValueError("this model needs char_ids, which its tokenizer gives")
        if not reads and char_ids is not None:
            raise ValueError("char_ids were passed to a model without char_encoder")
        if char_ids is not None:
            if char_ids.dim() != 3 or char_ids.shape[:2] != ids.shape:
                raise ValueError(f"char_ids has shape {tuple(char_ids.shape)}, expected {(*ids.shape, 'characters')}")
            inputs["char_ids"] = char_ids.long()
        return self.output_class(**self.run("model", inputs))


class OnnxModel(_Whole):
    """An exported encoder."""

    output_class = BaseModelOutput


class OnnxForSequenceClassification(_Whole):
    """An exported classifier of sequences."""

    output_class = SequenceClassifierOutput


class OnnxForTokenClassification(_Whole):
    """An exported tagger; with a CRF, Viterbi is in the graph."""

    output_class = TokenClassifierOutput


class _Generates(OnnxRunner, GenerationMixin):
    """A graph that takes states and gives states, in a cache with one layer for all of them."""

    # A recurrent state cannot go back.
    _is_stateful = True

    def _layer(self, cache: Cache) -> RecurrentCacheLayer:
        return cache_layers(cache, 1, f"onnx of {self.config.model_type}")[0]

    def _states(self, layer: RecurrentCacheLayer) -> dict[str, Tensor]:
        return dict(zip(self.about["states"], layer.states or (), strict=True))

    def _update(self, layer: RecurrentCacheLayer, outputs: Mapping[str, Tensor], count: int) -> None:
        layer.update(tuple(outputs[f"new_{name}"] for name in self.about["states"]), count)


class OnnxForCausalLM(_Generates):
    """An exported language model."""

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
            cache: State after the earlier tokens; updated in place.
            use_cache: Whether to return the state.
            logits_to_keep: Number of last steps whose logits are wanted, 0 for all, or their indices.
            kwargs: Ignored.

        Returns:
            `logits` `[B, T, vocab_size]`, and the state if it is wanted.

        Raises:
            ValueError: If the cache is another model's, labels are given, shapes do not fit, or an id is outside the
                vocabulary.
        """
        _no_labels(kwargs)
        returns = cache is not None or use_cache
        cache = DynamicCache() if cache is None else cache
        layer = self._layer(cache)
        ids, mask = _checked(self.config, input_ids, attention_mask, past=layer.seen)
        batch, length = ids.shape
        if layer.states is None:
            shapes = self.about["states"].values()
            zeros = (np.zeros((batch, *found["shape"]), dtype=found["dtype"]) for found in shapes)
            layer.states = tuple(map(torch.from_numpy, zeros))
        outputs = self.run("decoder", {"input_ids": ids, "attention_mask": mask, **self._states(layer)})
        self._update(layer, outputs, length)
        logits = steps_to_keep(outputs["logits"], logits_to_keep)
        return CausalLMOutputWithCrossAttentions(logits=logits, cache=cache if returns else None)


class OnnxEncoder(nn.Module):
    """The encoder of an exported translator.

    Args:
        runner: It.
    """

    main_input_name = "input_ids"

    def __init__(self, runner: OnnxRunner) -> None:
        super().__init__()
        # Not a submodule, which the runner would be its own.
        self.__dict__["runner"] = runner

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> ModelOutput:
        """Encoder states `[B, S, M]`, and of a CNN its embeddings."""
        runner: Any = self.runner
        ids, mask = _checked(runner.config, input_ids, attention_mask)
        found = runner.run("encoder", {"input_ids": ids, "attention_mask": mask})
        return ModelOutput({"last_hidden_state": found.pop("encoder_hidden_states"), **found})


class OnnxForConditionalGeneration(_Generates):
    """An exported sequence-to-sequence model."""

    def get_encoder(self, modality: str | None = None) -> OnnxEncoder:
        """The encoder."""
        return OnnxEncoder(self)

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
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Predict the next target token at every step.

        Args:
            input_ids: Source ids `[B, S]`.
            attention_mask: 1 at valid source positions, `[B, S]`.
            decoder_input_ids: Target ids `[B, T]`; each token is a step of the graph.
            encoder_outputs: The encoder's, in place of the source.
            cache: Decoder state after the earlier tokens; updated in place.
            decoder_attention_mask: Ones: the graph takes a token a step, and no padding.
            use_cache: Whether to return the state.
            kwargs: Ignored.

        Returns:
            `logits` `[B, T, vocab_size]`, and the state if it is wanted.

        Raises:
            ValueError: If there is no source, no target or one with padding, labels are given, shapes do not fit, an
                id is outside the vocabulary, or the cache is another model's.
        """
        _no_labels(kwargs)
        if decoder_attention_mask is not None and not bool(decoder_attention_mask.all()):
            raise ValueError("an exported translator takes no padding among decoder_input_ids")
        if decoder_input_ids is None or (input_ids is None and encoder_outputs is None):
            raise ValueError("an exported translator needs decoder_input_ids, and input_ids or encoder_outputs")
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(input_ids, attention_mask)
        if not isinstance(encoder_outputs, ModelOutput):
            names = ("last_hidden_state", "encoder_embeddings")
            encoder_outputs = ModelOutput(zip(names, encoder_outputs or (), strict=False))
        hidden = encoder_outputs["last_hidden_state"]
        tokens, _ = _checked(self.config, decoder_input_ids, None, "decoder_input_ids")
        given = {"encoder_hidden_states": hidden, "attention_mask": _steps(hidden, attention_mask)}
        returns = cache is not None or use_cache
        if cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        layer = self._layer(cache)
        if layer.states is None:
            embeddings = {name: encoder_outputs[name] for name in ("encoder_embeddings",) if name in encoder_outputs}
            start = self.run("start", given | embeddings)
            layer.states = tuple(start[name] for name in self.about["states"])
            layer.memory = tuple(start[name] for name in self.about["memories"])
        given |= dict(zip(self.about["memories"], layer.memory or (), strict=True))
        logits = []
        for token in tokens.split(1, dim=1):
            outputs = self.run("decoder", given | {"decoder_input_ids": token, **self._states(layer)})
            self._update(layer, outputs, 1)
            logits.append(outputs["logits"])
        return Seq2SeqLMOutput(
            logits=torch.cat(logits, dim=1),
            cache=cache if returns else None,  # type: ignore[arg-type]
            encoder_last_hidden_state=hidden,
        )


_RUNNERS: dict[str, type[OnnxRunner]] = {
    head_of(runner.__name__).suffix: runner
    for runner in (
        OnnxModel,
        OnnxForSequenceClassification,
        OnnxForTokenClassification,
        OnnxForCausalLM,
        OnnxForConditionalGeneration,
    )
}


def _checked(
    config: Any, ids: Tensor, mask: Tensor | None, name: str = "input_ids", past: int = 0
) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, T]` as integers, the mask of the current steps alone, all ones where there is none.

    Raises:
        ValueError: If shapes do not fit, there is no step, or an id is outside the vocabulary.
    """
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}, expected (batch, length) with a step at least")
    if int(ids.min()) < 0 or int(ids.max()) >= config.vocab_size:
        raise ValueError(
            f"{name} has {int(ids.min())} to {int(ids.max())}, the vocabulary 0 to {config.vocab_size - 1}"
        )
    return ids.long(), _steps(ids, mask, past)


def _steps(like: Tensor, mask: Tensor | None, past: int = 0) -> Tensor:
    valid = valid_steps(mask, like.shape[0], like.shape[1], past, "attention_mask")
    return torch.ones(like.shape[:2], dtype=torch.long) if valid is None else valid.long()


def _no_labels(arguments: Mapping[str, Any]) -> None:
    if arguments.get("labels") is not None:
        raise ValueError("an exported model is not trained, so it takes no labels")

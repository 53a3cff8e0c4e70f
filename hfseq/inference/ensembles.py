"""Ensembles of checkpoints with the same vocabulary, which average the predicted probabilities.

>>> model, tokenizer = load_ensemble(["outputs/lstm", "outputs/gru", "outputs/t5"], AutoModelForSeq2SeqLM)
>>> translate = pipeline("translation", model=model, tokenizer=tokenizer, num_beams=5)
"""

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.configuration_utils import strict
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import ModelOutput, Seq2SeqLMOutput, SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from hfseq.data.collation import vocabulary_sizes
from hfseq.errors import InputError, one_line
from hfseq.heads import head_of
from hfseq.inference.loading import load_trained, problem_of
from hfseq.models import NAMES
from hfseq.models.cache import StateCacheLayer, takes_past_key_values
from hfseq.models.tokenization_pairs import SourceTargetTokenizer
from hfseq.processing import extractor_of, tokenizer_of

# Special tokens of generation, equal for all members.
_GENERATION_IDS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


@strict
class EnsembleConfig(PreTrainedConfig):
    """Configuration of an ensemble, with the fields that `generate()` and the pipelines read.

    Args:
        vocab_size: Size of the decoder vocabulary; None for classifiers.
        num_hidden_layers: Number of members, each of which is one layer of the cache.
        task_specific_params: `task_specific_params` of the first member.
        pointer_generator: The members are pointer-generators, which copy words of the source.
        unk_token_id: Token id fed to the decoder for a copied out-of-vocabulary word; None without copying.
    """

    model_type = "hfseq_ensemble"

    vocab_size: int | None = None
    num_hidden_layers: int = 1
    task_specific_params: dict[str, Any] | None = None
    pointer_generator: bool = False
    unk_token_id: int | None = None


class MemberCacheLayer(StateCacheLayer):
    """The entire cache of one member, wrapped as a single layer of the ensemble's cache.

    Args:
        config: Configuration of the member.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        decoder = config.get_text_config(decoder=True)
        self.cache = EncoderDecoderCache(DynamicCache(config=decoder), DynamicCache(config=decoder))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Not supported: the member updates its own cache.

        Raises:
            ValueError: Always.
        """
        raise ValueError("this cache belongs to an ensemble, whose members update it")

    def get_seq_length(self) -> int:
        """Return the number of cached tokens."""
        return self.cache.get_seq_length()

    def reset(self) -> None:
        """Clear the cache."""
        self.cache.reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens.

        Raises:
            ValueError: The member is recurrent, so that its earlier state is lost.
        """
        self.cache.crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder the rows by `beam_idx` `[B]`."""
        self.cache.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self.cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        self.cache.batch_select_indices(indices)


def member_caches(cache: Cache, members: Sequence[PreTrainedModel]) -> list[EncoderDecoderCache]:
    """Return the caches of the members, which replace the layers of an empty cache created by `generate()`.

    Raises:
        ValueError: The cache belongs to another model: it has a filled layer of another type, or too many layers.
    """
    layers: list[Any] = (cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache).layers
    foreign = [layer for layer in layers if not isinstance(layer, MemberCacheLayer)]
    if filled := [type(layer).__name__ for layer in foreign if layer.get_seq_length()]:
        raise ValueError(f"cache: a layer is a filled {filled[0]}, so this cache belongs to another model")
    if foreign or not layers:
        layers[:] = [MemberCacheLayer(member.config) for member in members]
    if len(layers) != len(members):
        raise ValueError(f"a cache of {len(layers)} layers does not fit an ensemble of {len(members)} models")
    return [layer.cache for layer in layers]


class _Ensemble(PreTrainedModel):
    """Common base of the ensembles."""

    config_class = EnsembleConfig

    def __init__(self, models: Sequence[PreTrainedModel], config: EnsembleConfig) -> None:
        super().__init__(config)
        # No `post_init`, which would reinitialize the members' weights.
        self.members = nn.ModuleList(models)
        self.main_input_name = models[0].main_input_name
        self.eval()

    def get_input_embeddings(self) -> nn.Module:
        """Return the input embeddings of the first member."""
        return self.members[0].get_input_embeddings()  # type: ignore[operator]

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output embeddings of the first member; None for classifiers."""
        return self.members[0].get_output_embeddings()  # type: ignore[operator]

    def vocabulary_sizes(self) -> dict[str, Any]:
        """Sizes of the first member, for `hfseq.data.collation.vocabulary_sizes`."""
        return vocabulary_sizes(self.members[0])  # type: ignore[arg-type]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Not supported: the members are already saved.

        Raises:
            ValueError: Always.
        """
        raise ValueError("an ensemble cannot be saved; load_ensemble builds it from its members' directories")


class EnsembleEncoder(nn.Module):
    """Encoders of all members as one module.

    Args:
        encoders: Encoder of each member.
    """

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.main_input_name = encoders[0].main_input_name

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput:
        """Run every encoder.

        Args:
            input_ids: Token ids `[B, S]`.
            attention_mask: 1 for tokens or frames, 0 for padding, `[B, S]`.
            input_features: Frames of features `[B, S, F]`, for members that read those.
            output_attentions: Ignored.
            output_hidden_states: Ignored.
            return_dict: Ignored.

        Returns:
            The tensors of member i's output as `i.<name>`, since `generate()` expands only top-level tensors for
            beams; and the classes of the outputs as `classes`.
        """
        fields: dict[str, Any] = {"classes": ()}
        source = _given(input_ids=input_ids, input_features=input_features)
        for index, encoder in enumerate(self.encoders):
            output = encoder(**source, attention_mask=attention_mask, return_dict=True)
            fields |= {f"{index}.{name}": value for name, value in output.items() if isinstance(value, Tensor)}
            fields["classes"] += (type(output),)
        return ModelOutput(fields)


class EnsembleForConditionalGeneration(_Ensemble, GenerationMixin):
    """Ensemble of sequence-to-sequence models that averages the next-token probabilities.

    The members may be of different families and sizes, but share vocabulary and special tokens. `generate()` is
    inherited from transformers and uses the first member's `generation_config`. Logits are log-probabilities, in
    float32.

    Args:
        models: Members.
        names: Names of the members in error messages.

    Raises:
        InputError: There are no members, or two are incompatible.
    """

    # A recurrent member cannot be rolled back to an earlier state.
    _is_stateful = True

    def __init__(self, models: Sequence[PreTrainedModel], names: Sequence[str] | None = None) -> None:
        check_members(models, names)
        first = models[0]
        config = EnsembleConfig(
            vocab_size=vocabulary_sizes(first)["decoder_vocab_size"],
            num_hidden_layers=len(models),
            is_encoder_decoder=True,
            # Task prefix and beam size of T5; not all configs have this field.
            task_specific_params=getattr(first.config, "task_specific_params", None),
            **_copying(first),
        )
        super().__init__(models, config)
        self.generation_config = copy.deepcopy(first.generation_config)

    def get_encoder(self, modality: str | None = None) -> EnsembleEncoder:
        """Return the members' encoders as one module."""
        return EnsembleEncoder([member.get_encoder() for member in self.members])  # type: ignore[operator]

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Return decoder inputs `[B, T]` for teacher forcing, created by the first member."""
        return self.members[0].prepare_decoder_input_ids_from_labels(labels)  # type: ignore[operator]

    @takes_past_key_values
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: ModelOutput | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        copy_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        input_features: Tensor | None = None,
    ) -> Seq2SeqLMOutput:
        """Average the members' next-token probabilities at every step.

        Args:
            input_ids: Source ids `[B, S]`.
            attention_mask: 1 for source tokens, 0 for padding, `[B, S]`.
            decoder_input_ids: Target ids `[B, T]`; with a cache, only those that are not cached.
            decoder_attention_mask: 1 for target tokens, 0 for padding, `[B, T]`.
            encoder_outputs: Output of the module returned by `get_encoder`, instead of `input_ids`.
            cache: Cache of the previous tokens; updated in place.
            labels: Target ids `[B, T]`, not shifted; -100 is ignored.
            copy_ids: Ids produced by copying each source position, `[B, S]`, for pointer-generators; see `Pointer`.
            use_cache: Return the cache.
            output_attentions: Return the attention weights.
            output_hidden_states: Ignored.
            input_features: Frames of features `[B, S, F]`, in place of `input_ids`, for members that read those.

        Returns:
            `logits` `[B, T, vocab_size]`, or `[B, T, vocab_size + S]` with `copy_ids`; `loss` if `labels` are given;
            `cross_attentions`, a tuple of one tensor `[B, 1, T, S]`, averaged over the members and over the heads of
            their last layers.

        Raises:
            ValueError: `encoder_outputs`, `cache` or `copy_ids` do not fit this ensemble.
        """
        if copy_ids is not None and not self.config.pointer_generator:
            raise ValueError("copy_ids need an ensemble of pointer-generators")
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(input_ids, attention_mask, input_features)
        if labels is not None and decoder_input_ids is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if cache is None and use_cache:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        caches: Sequence[Cache | None] = [None] * len(self.members)
        if cache is not None:
            caches = member_caches(cache, self.members)  # type: ignore[arg-type]
        shared = {
            "attention_mask": attention_mask,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "use_cache": cache is not None,
            "output_attentions": output_attentions,
            **({} if copy_ids is None else {"copy_ids": copy_ids}),
        }
        outputs = [
            member(**shared, encoder_outputs=encoded, cache=own, return_dict=True)
            for member, encoded, own in zip(self.members, self._split(encoder_outputs), caches, strict=True)
        ]
        logits = log_mean(torch.stack([output.logits.log_softmax(-1, dtype=torch.float32) for output in outputs]))
        attention = None
        if output_attentions:
            if not all(output.cross_attentions for output in outputs):
                raise ValueError("output_attentions needs eager attention: set_attn_implementation('eager')")
            weights = [output.cross_attentions[-1].float().mean(dim=1, keepdim=True) for output in outputs]
            attention = (torch.stack(weights).mean(dim=0),)
        return Seq2SeqLMOutput(
            loss=None if labels is None else cross_entropy(logits.flatten(0, 1), labels.flatten()),
            logits=logits,
            cache=cache,  # type: ignore[arg-type]
            cross_attentions=attention,
        )

    def _split(self, outputs: ModelOutput) -> list[ModelOutput]:
        """Encoder output of each member, extracted from that of `EnsembleEncoder`."""
        if not isinstance(outputs, ModelOutput) or len(outputs.get("classes", ())) != len(self.members):
            raise ValueError("encoder_outputs must be the output of this ensemble's get_encoder()")
        fields: list[dict[str, Tensor]] = [{} for _ in self.members]
        for name in outputs.keys() - {"classes"}:
            index, field = name.split(".", 1)
            fields[int(index)][field] = outputs[name]
        return [kind(**values) for kind, values in zip(outputs["classes"], fields, strict=True)]


class EnsembleForSequenceClassification(_Ensemble):
    """Ensemble of classifiers that averages the probabilities, or the values of a regression.

    Args:
        models: Members.
        names: Names of the members in error messages.

    Raises:
        InputError: There are no members, or two are incompatible.
    """

    def __init__(self, models: Sequence[PreTrainedModel], names: Sequence[str] | None = None) -> None:
        check_members(models, names)
        first = models[0].config
        super().__init__(models, EnsembleConfig(id2label=first.id2label, problem_type=problem_of(first)))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Average the members' predictions.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 for tokens or frames, 0 for padding, `[B, T]`.
            labels: Class ids `[B]`, or floats `[B, num_labels]`.
            kwargs: Further inputs of the members, such as `token_type_ids`, or `input_features` in place of the ids.

        Returns:
            `logits` `[B, num_labels]`: their softmax (single-label), sigmoid (multi-label) or value (regression) is
            the mean of the members'; `loss` if `labels` are given.
        """
        inputs = {**_given(input_ids=input_ids), "attention_mask": attention_mask, "return_dict": True, **kwargs}
        logits = torch.stack([member(**inputs).logits.float() for member in self.members])  # [M, B, num_labels]
        if self.config.problem_type == "regression":
            mean = logits.mean(dim=0)
        elif self.config.problem_type == "single_label_classification":
            mean = log_mean(log_softmax(logits, dim=-1))
        else:
            # Logit of the mean probability p: log p - log(1 - p), where 1 - p is the mean of the complements.
            mean = log_mean(logsigmoid(logits)) - log_mean(logsigmoid(-logits))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=mean, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=mean)


def _given(**inputs: Tensor | None) -> dict[str, Tensor]:
    """The inputs that are not None: a model may have no argument of the name of the others."""
    return {name: tensor for name, tensor in inputs.items() if tensor is not None}


def log_mean(log_probabilities: Tensor) -> Tensor:
    """Log of the mean probability over the M members, from log-probabilities `[M, ...]`."""
    return log_probabilities.logsumexp(dim=0) - math.log(len(log_probabilities))


def _copying(model: PreTrainedModel) -> dict[str, Any]:
    """Config fields of an ensemble that describe copying: `pointer_generator` and its `unk_token_id`."""
    if not getattr(model.config, "pointer_generator", False):
        return {"pointer_generator": False}
    return {"pointer_generator": True, "unk_token_id": model.config.unk_token_id}


def check_members(models: Sequence[PreTrainedModel], names: Sequence[str] | None = None) -> None:
    """Check that models are compatible with the first.

    Args:
        models: Sequence-to-sequence models, or classifiers.
        names: Names of the models in error messages.

    Raises:
        InputError: There are no models, or one differs from the first in vocabulary sizes, special tokens, classes or
            problem type. The message names both models and the difference.
    """
    if not models:
        raise InputError("an ensemble needs at least one model")
    if names is None:
        names = [f"model {index} ({type(model).__name__})" for index, model in enumerate(models)]
    _check_equal(names, [_model_traits(model) for model in models])


def check_tokenizers(tokenizers: Sequence[Any], names: Sequence[str]) -> None:
    """Check that all tokenizers, or other processing classes, make the same of their inputs as the first.

    Args:
        tokenizers: Processing class of each member; None for one without.
        names: Names of the members in error messages.

    Raises:
        InputError: One differs from the first. The message names both members and the token or the component that
            differs.
    """
    _check_equal(names, [_processing_traits(processing_class) for processing_class in tokenizers])


def _model_traits(model: PreTrainedModel) -> dict[str, Any]:
    """Properties that must be equal for all members of an ensemble."""
    sizes: dict[str, Any] = {"the name of the inputs": model.main_input_name, **vocabulary_sizes(model)}
    if "num_labels" in sizes:
        return sizes | {"id2label": model.config.id2label, "problem_type": problem_of(model.config)}
    ids = {name: getattr(model.generation_config, name) for name in _GENERATION_IDS}
    # A list of one EOS token is equivalent to that token.
    ids = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in ids.items()}
    return sizes | ids | _copying(model)


def _processing_traits(processing_class: Any) -> dict[str, Any]:
    """Properties of a tokenizer, an extractor, or of both, that determine what they make of their inputs."""
    tokenizer, extractor = tokenizer_of(processing_class), extractor_of(processing_class)
    traits = {} if tokenizer is None else _tokenizer_traits(tokenizer)
    if extractor is not None:
        traits |= {f"the extractor's {name}": value for name, value in extractor.to_dict().items()}
    return traits


def _tokenizer_traits(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Token ids, and the other components of a tokenizer that determine the encoding, such as the normalizer."""
    if isinstance(tokenizer, SourceTargetTokenizer):
        sides = {"source": tokenizer.source, "target": tokenizer.target}
        found = {side: _tokenizer_traits(one) for side, one in sides.items()}
        return {f"{name} ({side})": value for side, traits in found.items() for name, value in traits.items()}
    # In order of the ids, so that the first difference is always the same.
    ids = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    traits: dict[str, Any] = {f"the id of token {token!r}": number for token, number in ids}
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        # These only reflect the last call.
        del parts["padding"], parts["truncation"]
        traits |= {f"the tokenizer's {name}": part for name, part in parts.items()}
    return traits


def _check_equal(names: Sequence[str], traits: Sequence[dict[str, Any]]) -> None:
    """Check that all have the traits of the first."""
    for name, other in zip(names[1:], traits[1:], strict=True):
        for trait in traits[0] | other:
            one, two = traits[0].get(trait), other.get(trait)
            if one != two:
                raise InputError(
                    f"{names[0]} and {name} cannot predict together: {trait} is {one_line(repr(one), 100)} in the "
                    f"first, {one_line(repr(two), 100)} in the second"
                )


def load_ensemble(names: Sequence[str], auto_class: Any, *, features: bool = False) -> tuple[PreTrainedModel, Any]:
    """Load checkpoints as an ensemble.

    Args:
        names: Directories or Hub names of the members.
        auto_class: `AutoModelForSeq2SeqLM`, `AutoModelForSequenceClassification`, or the like for audio.
        features: Whether the members read features or audio, and not text.

    Returns:
        The ensemble, and the members' tokenizer or other processing class.

    Raises:
        InputError: There are no members, one cannot be loaded or is of a different kind, or two differ in vocabulary,
            special tokens or classes, or in the features that they read.
    """
    if auto_class.__name__ not in _CLASSES:
        raise InputError(f"--ensemble does not support models of {auto_class.__name__}")
    loaded = [load_trained(auto_class, name, features=features) for name in names]
    ensemble = _CLASSES[auto_class.__name__]([model for model, _ in loaded], names)
    found = [processing_class for _, processing_class in loaded]
    check_tokenizers(found, names)
    return ensemble, found[0]


_CLASSES: dict[str, Any] = {
    auto_class: ensemble
    for ensemble in (EnsembleForConditionalGeneration, EnsembleForSequenceClassification)
    for auto_class in head_of(ensemble.__name__).auto_classes
}

for _auto_class, _ensemble_class in _CLASSES.items():
    # Pipelines look up the supported models of their task here.
    NAMES[_auto_class][EnsembleConfig.model_type] = _ensemble_class.__name__

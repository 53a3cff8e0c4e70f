"""Ensembles: checkpoints of one vocabulary that predict together, by the mean of their probabilities.

>>> model, tokenizer = load_ensemble(["outputs/lstm", "outputs/gru", "outputs/t5"], AutoModelForSeq2SeqLM)
>>> translate = pipeline("translation", model=model, tokenizer=tokenizer, num_beams=5)
"""

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.configuration_utils import strict
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import ModelOutput, Seq2SeqLMOutput, SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from hfseq.data.collation import vocabulary_sizes
from hfseq.errors import InputError
from hfseq.heads import head_of
from hfseq.inference.loading import load_trained, problem_of
from hfseq.models import NAMES
from hfseq.models.cache import StateCacheLayer, takes_past_key_values

# What all members' decoders are started with, ended by and padded with.
_GENERATION_IDS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


@strict
class EnsembleConfig(PreTrainedConfig):
    """What `generate()` and the pipelines ask of an ensemble.

    Args:
        vocab_size: Number of tokens that the members predict; None for classifiers.
        num_hidden_layers: Number of members: each is one layer of the cache.
        task_specific_params: The first member's.
        pointer_generator: Whether the members copy words of the source, too.
        unk_token_id: What a word beyond the vocabulary is to a decoder that has copied it; None where it copies none.
    """

    model_type = "hfseq_ensemble"

    vocab_size: int | None = None
    num_hidden_layers: int = 1
    task_specific_params: dict[str, Any] | None = None
    pointer_generator: bool = False
    unk_token_id: int | None = None


class MemberCacheLayer(StateCacheLayer):
    """The whole cache of one member, as one layer of the ensemble's.

    Args:
        config: The member's.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        decoder = config.get_text_config(decoder=True)
        self.cache = EncoderDecoderCache(DynamicCache(config=decoder), DynamicCache(config=decoder))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refuse: the member fills its cache.

        Raises:
            ValueError: Always.
        """
        raise ValueError("this cache belongs to an ensemble")

    def get_seq_length(self) -> int:
        """Number of tokens seen."""
        return self.cache.get_seq_length()

    def reset(self) -> None:
        """Forget everything."""
        self.cache.reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, or refuse where the member cannot."""
        self.cache.crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Select rows, `beam_idx` `[B]`."""
        self.cache.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self.cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        self.cache.batch_select_indices(indices)


def member_caches(cache: Cache, members: Sequence[PreTrainedModel]) -> list[EncoderDecoderCache]:
    """The members' caches, put into the cache that `generate()` made where they are not there yet.

    Raises:
        ValueError: If a layer is filled by something else, so that the cache belongs to another model.
    """
    layers = (cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache).layers
    if len(layers) > len(members):
        raise ValueError(f"a cache of {len(layers)} layers is not that of an ensemble of {len(members)}")
    caches = []
    for index, member in enumerate(members):
        if index == len(layers):
            layers.append(MemberCacheLayer(member.config))
        layer = layers[index]
        if not isinstance(layer, MemberCacheLayer):
            if cache.get_seq_length(index):
                raise ValueError(
                    f"cache: layer {index} is a filled {type(layer).__name__}, so this cache belongs to another model"
                )
            layers[index] = layer = MemberCacheLayer(member.config)
        caches.append(layer.cache)
    return caches


class _Ensemble(PreTrainedModel):
    """What the two kinds of ensembles share."""

    config_class = EnsembleConfig

    def __init__(self, models: Sequence[PreTrainedModel], config: EnsembleConfig) -> None:
        super().__init__(config)
        # Without `post_init`, which would initialise the members' weights anew.
        self.members = nn.ModuleList(models)
        self.eval()

    def get_input_embeddings(self) -> nn.Module:
        """The first member's."""
        return self.members[0].get_input_embeddings()  # type: ignore[operator]

    def get_output_embeddings(self) -> nn.Module | None:
        """The first member's; None for classifiers."""
        return self.members[0].get_output_embeddings()  # type: ignore[operator]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the members are saved already.

        Raises:
            ValueError: Always.
        """
        raise ValueError("an ensemble is not saved itself; load_ensemble makes it from its members' directories")


class EnsembleEncoder(nn.Module):
    """The members' encoders.

    Args:
        encoders: One of each member.
    """

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput:
        """Run each encoder once.

        Args:
            input_ids: Token ids `[B, S]`.
            attention_mask: 1 at valid steps, `[B, S]`.
            output_attentions: Ignored.
            output_hidden_states: Ignored.
            return_dict: Ignored.

        Returns:
            The tensors of member i's output as `i.<name>`: `generate()` repeats tensors for beams where it finds them
            under a name of their own. `classes` are the classes of those outputs.
        """
        outputs = [
            encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True) for encoder in self.encoders
        ]
        tensors = {
            f"{index}.{name}": value
            for index, output in enumerate(outputs)
            for name, value in output.items()
            if isinstance(value, Tensor)
        }
        return ModelOutput(tensors | {"classes": tuple(type(output) for output in outputs)})


class EnsembleForConditionalGeneration(_Ensemble, GenerationMixin):
    """Sequence-to-sequence models that generate together: the next token's probability is the mean of theirs.

    They may be of different families and sizes; tokens and special tokens are the same. `generate()` is transformers'
    own, with the first member's `generation_config`. Logits are log-probabilities, in float32.

    Args:
        models: The members.
        names: What to call them in an error message.

    Raises:
        InputError: If there is no member, or if two cannot predict together.
    """

    # A recurrent member cannot go back to an earlier state.
    _is_stateful = True

    def __init__(self, models: Sequence[PreTrainedModel], names: Sequence[str] | None = None) -> None:
        check_members(models, names)
        first = models[0]
        config = EnsembleConfig(
            vocab_size=vocabulary_sizes(first)["decoder_vocab_size"],
            num_hidden_layers=len(models),
            is_encoder_decoder=True,
            # T5's prefix and beams; not every config has them.
            task_specific_params=getattr(first.config, "task_specific_params", None),
            **_copying(first),
        )
        super().__init__(models, config)
        self.generation_config = copy.deepcopy(first.generation_config)

    def get_encoder(self, modality: str | None = None) -> EnsembleEncoder:
        """The members' encoders as one module."""
        return EnsembleEncoder([member.get_encoder() for member in self.members])  # type: ignore[operator]

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Decoder inputs for teacher forcing `[B, T]`, as the first member makes them."""
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
    ) -> Seq2SeqLMOutput:
        """Average the members' probabilities of the next token at every step.

        Args:
            input_ids: Source ids `[B, S]`.
            attention_mask: 1 at valid source steps, `[B, S]`.
            decoder_input_ids: Target ids so far `[B, T]`; those after the cached ones with a cache.
            decoder_attention_mask: 1 at valid target steps, `[B, T]`.
            encoder_outputs: What the module of `get_encoder` returned, in place of `input_ids`.
            cache: State after the earlier tokens; updated in place.
            labels: Target ids `[B, T]`, not shifted; -100 is ignored.
            copy_ids: What copying each source position produces, `[B, S]`, for pointer-generators; see `Pointer`.
            use_cache: Whether to return the state.
            output_attentions: Whether to return the attention weights.
            output_hidden_states: Ignored.

        Returns:
            `logits` `[B, T, vocab_size]`, with `copy_ids` `[B, T, vocab_size + S]`; `loss` if there are labels;
            `cross_attentions` a tuple of one tensor `[B, 1, T, S]`, the mean over members and heads of the last
            layers.

        Raises:
            ValueError: If `encoder_outputs`, `cache` or `copy_ids` do not fit.
        """
        if copy_ids is not None and not self.config.pointer_generator:
            raise ValueError("copy_ids are for ensembles of pointer-generators")
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(input_ids, attention_mask)
        if labels is not None and decoder_input_ids is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if cache is None and use_cache:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        caches: Sequence[Cache | None] = [None] * len(self.members)
        if cache is not None:
            caches = member_caches(cache, self.members)  # type: ignore[arg-type]
        outputs = [
            member(
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                encoder_outputs=self._encoded(encoder_outputs, index),
                cache=own,
                use_cache=own is not None,
                output_attentions=output_attentions,
                return_dict=True,
                **({} if copy_ids is None else {"copy_ids": copy_ids}),
            )
            for index, (member, own) in enumerate(zip(self.members, caches, strict=True))
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

    def _encoded(self, outputs: ModelOutput, index: int) -> ModelOutput:
        """Member `index`'s part of what `EnsembleEncoder` returned, beams included."""
        if not isinstance(outputs, ModelOutput) or len(outputs.get("classes", ())) != len(self.members):
            raise ValueError("encoder_outputs must be what the module of this ensemble's get_encoder() returned")
        prefix = f"{index}."
        fields = {name.removeprefix(prefix): value for name, value in outputs.items() if name.startswith(prefix)}
        return outputs["classes"][index](**fields)


class EnsembleForSequenceClassification(_Ensemble):
    """Classifiers that decide together: the mean of their probabilities, or of their values in a regression.

    Args:
        models: The members.
        names: What to call them in an error message.

    Raises:
        InputError: If there is no member, or if two cannot predict together.
    """

    def __init__(self, models: Sequence[PreTrainedModel], names: Sequence[str] | None = None) -> None:
        check_members(models, names)
        first = models[0].config
        problem = problem_of(first)
        super().__init__(models, EnsembleConfig(id2label=first.id2label, problem_type=problem))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Average what the members say of each label.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 at valid steps, `[B, T]`.
            labels: Class ids `[B]`, or floats `[B, num_labels]`.
            kwargs: Passed on, such as `token_type_ids`.

        Returns:
            `logits` `[B, num_labels]` of which softmax, sigmoid or nothing, as `problem_type` says, gives the mean;
            `loss` if there are labels.
        """
        logits = torch.stack(
            [
                member(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs).logits.float()
                for member in self.members
            ]
        )  # [M, B, num_labels]
        if self.config.problem_type == "regression":
            mean = logits.mean(dim=0)
        elif self.config.problem_type == "single_label_classification":
            mean = log_mean(log_softmax(logits, dim=-1))
        else:
            # The logit of a mean p of probabilities: log p - log(1 - p), with 1 - p the mean of the opposite ones.
            mean = log_mean(logsigmoid(logits)) - log_mean(logsigmoid(-logits))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=mean, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=mean)


def log_mean(log_probabilities: Tensor) -> Tensor:
    """Log of the mean over the members of probabilities given as logs `[M, ...]`."""
    return log_probabilities.logsumexp(dim=0) - math.log(len(log_probabilities))


def _copying(model: PreTrainedModel) -> dict[str, Any]:
    """Whether a model is a pointer-generator, and of which unknown token."""
    if not getattr(model.config, "pointer_generator", False):
        return {"pointer_generator": False}
    return {"pointer_generator": True, "unk_token_id": model.config.unk_token_id}


def check_members(models: Sequence[PreTrainedModel], names: Sequence[str] | None = None) -> None:
    """Refuse models that cannot predict together.

    Args:
        models: Sequence-to-sequence models, or classifiers.
        names: What to call them.

    Raises:
        InputError: If there is none, or if one has other sizes, special tokens, classes or kinds of outputs than the
            first. It names both and what differs.
    """
    if not models:
        raise InputError("an ensemble needs at least one model")
    if names is None:
        names = [f"model {index} ({type(model).__name__})" for index, model in enumerate(models)]
    traits = [_traits(model) for model in models]
    for name, other in zip(names[1:], traits[1:], strict=True):
        _check_equal(names[0], name, traits[0], other)


def _traits(model: PreTrainedModel) -> dict[str, Any]:
    """What the members of an ensemble have in common."""
    sizes: dict[str, Any] = vocabulary_sizes(model)
    if "num_labels" in sizes:
        return sizes | {"id2label": model.config.id2label, "problem_type": problem_of(model.config)}
    ids = {name: getattr(model.generation_config, name) for name in _GENERATION_IDS}
    # A list of one end is that end.
    ids = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in ids.items()}
    return sizes | ids | _copying(model)


def _check_equal(name: str, other_name: str, traits: dict[str, Any], other: dict[str, Any]) -> None:
    for trait in traits | other:
        if traits.get(trait) != other.get(trait):
            raise InputError(
                f"{name} and {other_name} cannot predict together: {trait} is {_short(traits.get(trait))} in the "
                f"first, {_short(other.get(trait))} in the second"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def check_tokenizers(tokenizers: Sequence[PreTrainedTokenizerBase], names: Sequence[str]) -> None:
    """Refuse tokenizers of which one gives a text other ids than the first.

    Args:
        tokenizers: One of each member.
        names: What to call them.

    Raises:
        InputError: It names two and what differs: a token, or the part of the tokenizer.
    """
    first = tokenizers[0]
    for name, other in zip(names[1:], tokenizers[1:], strict=True):
        one, two = first.get_vocab(), other.get_vocab()
        # The first difference by id, so that the message is the same in every run.
        for token in sorted(one.keys() | two.keys(), key=lambda token: (one.get(token, two.get(token)), token)):
            if one.get(token) != two.get(token):
                trait = f"the id of token {token!r}"
                _check_equal(names[0], name, {trait: one.get(token)}, {trait: two.get(token)})
        _check_equal(names[0], name, _parts(first), _parts(other))


def _parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides the ids of a text beside the vocabulary: normaliser, pre-tokenizer, model and others."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return {}
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    # How the last call padded and truncated.
    return {f"the tokenizer's {name}": part for name, part in parts.items() if name not in ("padding", "truncation")}


def load_ensemble(names: Sequence[str], auto_class: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load checkpoints that predict together.

    Args:
        names: Directories or Hub names.
        auto_class: `AutoModelForSeq2SeqLM` or `AutoModelForSequenceClassification`.

    Returns:
        The ensemble and the tokenizer of its members.

    Raises:
        InputError: If there is none, one cannot be loaded or is of another kind, or two differ in their vocabulary,
            special tokens or classes.
    """
    if auto_class not in _CLASSES:
        raise InputError(f"--ensemble: models of {auto_class.__name__} do not predict together")
    ensemble_class = _CLASSES[auto_class]
    loaded = [load_trained(auto_class, name) for name in names]
    models = [model for model, _ in loaded]
    tokenizers = [tokenizer for _, tokenizer in loaded]
    check_members(models, names)
    check_tokenizers(tokenizers, names)
    return ensemble_class(models, names), tokenizers[0]


_CLASSES: dict[Any, Any] = {
    getattr(transformers, head_of(ensemble.__name__).auto_class): ensemble
    for ensemble in (EnsembleForConditionalGeneration, EnsembleForSequenceClassification)
}

for _auto_class, _ensemble_class in _CLASSES.items():
    # Pipelines look here whether a model is one of their task.
    NAMES[_auto_class.__name__][EnsembleConfig.model_type] = _ensemble_class.__name__

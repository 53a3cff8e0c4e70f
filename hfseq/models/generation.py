"""Low-overhead greedy search and sampling: for small models, Python overhead between steps dominates.

`generate()` of transformers still prepares everything (configuration, processors, stopping criteria, the cache); only
its loop is replaced, and only if all options that are set are known to work in the loop here.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.cache_utils import Cache
from transformers.generation import (
    EosTokenCriteria,
    GenerationMixin,
    GenerationMode,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from .beam_search import beam_search

Step = Callable[[Tensor], Tensor]
"""From the newest ids `[B, 1]` to the logits of the next token `[B, V]`, or to hidden states `[B, 1, H]`."""

# Options of `generate()` that `decode` honours: `generate()` turns them into logits processors, stopping criteria, or
# inputs of the model; some matter only to beam search, assisted generation or a returned dictionary. With any other
# option that is set, transformers' own loop runs.
_HONOURED = frozenset(
    """
    max_length max_new_tokens min_length min_new_tokens max_time num_return_sequences
    do_sample temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff renormalize_logits
    repetition_penalty encoder_repetition_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    sequence_bias suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty watermarking_config early_stopping length_penalty
    pad_token_id bos_token_id eos_token_id decoder_start_token_id use_cache cache_implementation
    output_attentions output_hidden_states output_scores output_logits
    streamer logits_processor stopping_criteria input_ids input_features attention_mask
    decoder_input_ids decoder_attention_mask encoder_outputs encoder_hidden_states encoder_attention_mask
    num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind
    target_lookbehind transformers_version
    """.split()
)
# Values with which other options do nothing; pipelines set them.
_NEUTRAL = {"num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0}
# "hybrid" is what transformers itself assumes by default.
_CACHES = (None, "dynamic", "offloaded", "hybrid")


def check_cache(implementation: str | None, kwargs: Mapping[str, Any]) -> None:
    """Reject caches for the keys and values of attention: the size of a state does not depend on the length.

    Args:
        implementation: Value of `cache_implementation`.
        kwargs: Keyword arguments of `generate`, one of which may be a cache.

    Raises:
        ValueError: If the cache is static, quantized or a sliding window.
    """
    static = any(isinstance(one, Cache) and one.is_compileable for one in kwargs.values())
    if static or implementation not in _CACHES:
        asked = "a static cache" if static else f"cache_implementation={implementation!r}"
        raise ValueError(f"{asked}: the cache of this model has one size, however long the text; leave it out")


class SequenceGenerationMixin(GenerationMixin):
    """`generate()` with less overhead between steps."""

    # Argument of `forward` that takes the ids generated so far.
    generated_ids: ClassVar[str] = "input_ids"

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *more: Any,
        **kwargs: Any,
    ) -> Any:
        """Generate as `GenerationMixin` does, by `decode` where the model and all options that are set allow it.

        Raises:
            ValueError: For a cache that `check_cache` rejects.
        """
        own: Any = self
        settings: dict[str, Any] = {}
        for options in (own.generation_config, generation_config):
            if options is not None:
                settings |= {name: value for name, value in vars(options).items() if value is not None}
        settings |= {name: value for name, value in kwargs.items() if value is not None}
        if settings.get("use_cache", True):
            check_cache(settings.get("cache_implementation"), kwargs)
            if not more and self.supports_decode_step():
                if _honours_beams(settings):
                    kwargs["custom_generate"] = beam_search
                elif _honours(settings):
                    kwargs["custom_generate"] = partial(decode, streamer=kwargs.get("streamer"))
        return super().generate(inputs, generation_config, *more, **kwargs)

    def supports_decode_step(self) -> bool:
        """Return True if `make_decode_step` computes what `forward` does; not by default."""
        return False

    def make_decode_step(self, cache: Cache, **kwargs: Any) -> Step:
        """Step from the newest ids `[B, 1]` to logits `[B, V]`, continuing from the cache that `forward` filled.

        Args:
            cache: Updated by each step.
            kwargs: Other arguments that `generate` passes to `forward`.
        """
        raise NotImplementedError

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare as `GenerationMixin` does, but after the first step with a cache only replace the newest ids.

        The parent copies them, looks for positions, masks and token types that these models do not have, and inspects
        the signature of `forward`, which takes longer than some layers.
        """
        own: Any = self
        # The device of one weight: `own.device` iterates over the modules.
        here = input_ids.device == own.lm_head.weight.device
        if is_first_iteration or not next_sequence_length or cache is None or not here:
            return super().prepare_inputs_for_generation(
                input_ids,
                next_sequence_length=next_sequence_length,
                cache=cache,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                is_first_iteration=is_first_iteration,
                **kwargs,
            )
        kwargs.pop("labels", None)
        if attention_mask is not None:
            kwargs["attention_mask"] = attention_mask
        return kwargs | {self.generated_ids: input_ids[:, -next_sequence_length:], "cache": cache}


def _honours(settings: Mapping[str, Any]) -> bool:
    """Return True if `decode` honours all options that are set."""
    others = {name for name, value in settings.items() if value is not False and value != _NEUTRAL.get(name)}
    # Private fields of a configuration are not options.
    return all(name in _HONOURED or name.startswith("_") for name in others)


def _honours_beams(settings: Mapping[str, Any]) -> bool:
    """Return True if `beam_search` honours all options that are set, and one of them asks for beams."""
    beams = (settings.get("num_beams") or 1) > 1 and not settings.get("do_sample")
    return beams and settings.get("streamer") is None and _honours(settings | {"num_beams": 1})


def is_bare(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Return True if calling a module does no more than this `forward` of its class, so that it can be bypassed.

    That is not so if hooks are registered, on the module or globally, if it was compiled or wrapped, or if a subclass
    overrides `forward`.
    """
    # torch has no public way to ask for any of these.
    wrapped = "forward" in vars(module) or module._compiled_call_impl is not None
    hooked = module._forward_hooks or module._forward_pre_hooks or nn.modules.module._has_any_global_hook()
    return type(module).forward is forward and not wrapped and not hooked


def most_likely(scores: Tensor) -> Tensor:
    """Tokens `[B]` with the highest scores `[B, V]`, the first of equal ones."""
    if scores.device.type == "cpu":
        # numpy's argmax uses vector instructions, torch's does not.
        return torch.from_numpy(scores.numpy().argmax(axis=-1))
    return scores.argmax(dim=-1)


def decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer: Any = None,
    **model_kwargs: Any,
) -> Tensor:
    """Greedy search or sampling as a `custom_generate` function, with the same tokens as the loop of transformers.

    Args:
        model: Model whose `supports_decode_step` is True.
        input_ids: Prompt of the decoder, `[B, T]`.
        logits_processor: Processors of the scores.
        stopping_criteria: Criteria that end rows.
        generation_config: The prepared configuration.
        streamer: Receives each token, or None.
        model_kwargs: Other arguments of `forward`.

    Returns:
        Ids `[B, T + steps]`.
    """
    sampled = generation_config.get_generation_mode() == GenerationMode.SAMPLE
    ends = [one.eos_token_id.to(input_ids.device) for one in stopping_criteria if isinstance(one, EosTokenCriteria)]
    known = all(isinstance(one, EosTokenCriteria | MaxLengthCriteria) for one in stopping_criteria)
    longest = stopping_criteria.max_length or math.inf
    padding = generation_config.pad_token_id
    if padding is None and ends:  # as transformers replaces it
        padding = int(ends[0][0])
    finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    outputs = model(**inputs, return_dict=True)
    logits = outputs.logits[:, -1]
    step = model.make_decode_step(**model_kwargs | {"cache": outputs.cache})
    here = logits.device
    del outputs  # the logits of a long prompt
    while True:
        scores = logits_processor(input_ids, logits.to(device=input_ids.device, dtype=torch.float32))
        if sampled:
            tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = most_likely(scores)
        if ends:
            tokens = tokens.masked_fill(finished, padding)
        input_ids = torch.cat([input_ids, tokens.unsqueeze(1)], dim=1)
        if streamer is not None:
            streamer.put(tokens.cpu())
        if not known:
            finished |= stopping_criteria(input_ids, None)
        for end in ends:
            finished |= torch.isin(tokens, end)
        # Rows are checked only if one may have ended, since on a GPU that synchronises.
        if input_ids.shape[1] >= longest or ((ends or not known) and finished.all()):
            break
        logits = step(tokens.unsqueeze(1).to(here))
    if streamer is not None:
        streamer.end()
    return input_ids

"""Generation of one token after the other, with little around a step: these are short enough for it to show."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

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

Step = Callable[[Tensor], Tensor]
"""From the newest ids `[B, 1]` to logits of what comes next `[B, V]`, or to hidden states `[B, 1, H]` below them."""

# What `generate` does not tell a function like `decode`, and what only its own loops can.
_SPECIAL = (
    "assistant_model",
    "cache",
    "cache_implementation",
    "cache_params",
    "custom_generate",
    "dola_layers",
    "inputs_embeds",
    "past_key_values",
    "penalty_alpha",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "return_dict_in_generate",
    "stop_strings",
    "synced_gpus",
)


# "hybrid" is what transformers itself takes for nothing said.
_CACHES = (None, "dynamic", "offloaded", "hybrid")


def check_cache(implementation: str | None, kwargs: Mapping[str, Any]) -> None:
    """Refuse a cache for attention's keys alone: a state has one size, however long the text.

    Args:
        implementation: Kind that `generate` is to make.
        kwargs: Its keyword arguments, of which one may be a cache.

    Raises:
        ValueError: It is static, quantized or of sliding windows.
    """
    static = any(isinstance(one, Cache) and one.is_compileable for one in kwargs.values())
    if static or implementation not in _CACHES:
        asked = "a static cache" if static else f"cache_implementation={implementation!r}"
        raise ValueError(f"{asked}: the cache of this model has one size, however long the text; leave it out")


class SequenceGenerationMixin(GenerationMixin):
    """`generate()` with less between two steps."""

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *more: Any,
        **kwargs: Any,
    ) -> Any:
        """See `GenerationMixin`. Greedy search and sampling are done by `decode` where `can_step` says that it can.

        Raises:
            ValueError: As `check_cache`.
        """
        own: Any = self
        settings = [kwargs, *(vars(one) for one in (generation_config, own.generation_config) if one is not None)]

        def setting(name: str, default: Any) -> Any:
            return next((one[name] for one in settings if one.get(name) is not None), default)

        cached = setting("use_cache", True)
        if cached:
            check_cache(setting("cache_implementation", None), kwargs)
        usual = setting("num_beams", 1) == 1 and cached and not more
        if usual and not any(setting(name, False) is not False for name in _SPECIAL) and self.can_step():
            kwargs["custom_generate"] = partial(decode, streamer=kwargs.get("streamer"))
        return super().generate(inputs, generation_config, *more, **kwargs)

    def can_step(self) -> bool:
        """Whether `stepper` has a step that does what `forward` does; not unless a head says otherwise."""
        return False

    def stepper(self, cache: Cache, **kwargs: Any) -> Step:
        """A step to logits that goes on from what `forward` left in a cache; see `can_step`.

        Args:
            cache: Brought up to date by each step.
            kwargs: What else `generate` gives to `forward`.
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
        """See `GenerationMixin`; after the first step, with a cache, only the newest ids change.

        The parent copies them, looks for positions, masks and kinds of tokens that these models do not have, and reads
        the signature of `forward`, which takes longer than some of a step's layers.
        """
        own: Any = self
        # Of one weight: `own.device` goes through the modules.
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
        ids = "decoder_input_ids" if own.config.is_encoder_decoder else "input_ids"
        kwargs.pop("labels", None)
        if attention_mask is not None:
            kwargs["attention_mask"] = attention_mask
        return kwargs | {ids: input_ids[:, -next_sequence_length:], "cache": cache}


def is_bare(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether calling a module is no more than this `forward` of its class, so that a step may go around it.

    It is not where hooks hang on the module, it was compiled or wrapped, or a subclass has a `forward` of its own.
    """
    wrapped = "forward" in vars(module) or module._compiled_call_impl is not None
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module).forward is forward and not wrapped and not hooked


def decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer: Any = None,
    **model_kwargs: Any,
) -> Tensor:
    """Greedy search or sampling, as `generate(custom_generate=…)` takes it: what its own loop does, token for token.

    Args:
        model: Whose `can_step` is True.
        input_ids: What the decoder begins with, `[B, T]`.
        logits_processor: See `GenerationMixin`, as for all other arguments.
        stopping_criteria: See there.
        generation_config: See there.
        streamer: See there.
        model_kwargs: What else `forward` is given.

    Returns:
        `[B, T + steps]`.
    """
    sampled = generation_config.get_generation_mode() == GenerationMode.SAMPLE
    ends = [one.eos_token_id.to(input_ids.device) for one in stopping_criteria if isinstance(one, EosTokenCriteria)]
    known = all(isinstance(one, EosTokenCriteria | MaxLengthCriteria) for one in stopping_criteria)
    longest = stopping_criteria.max_length or math.inf
    finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    outputs = model(**inputs, return_dict=True)
    logits = outputs.logits[:, -1]
    step = model.stepper(**model_kwargs | {"cache": outputs.cache})
    here = logits.device
    del outputs  # the logits of a long prompt
    while True:
        scores = logits_processor(input_ids, logits.to(device=input_ids.device, dtype=torch.float32))
        if sampled:
            tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = scores.argmax(dim=-1)
        if ends:
            tokens = tokens.masked_fill(finished, generation_config._pad_token_tensor)
        input_ids = torch.cat([input_ids, tokens.unsqueeze(1)], dim=1)
        if streamer is not None:
            streamer.put(tokens.cpu())
        if not known:
            finished |= stopping_criteria(input_ids, None)
        for end in ends:
            finished |= torch.isin(tokens, end)
        # Only a row that may have ended is looked at: on a GPU that waits for it.
        if input_ids.shape[1] >= longest or ((ends or not known) and finished.all()):
            break
        logits = step(tokens.unsqueeze(1).to(here))
    if streamer is not None:
        streamer.end()
    return input_ids

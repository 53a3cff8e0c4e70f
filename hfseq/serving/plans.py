"""Plans of requests: the processors, criteria and settings that `model.generate` would use."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import EosTokenCriteria, GenerationMode, MaxLengthCriteria

from hfseq.serving.generation import GenerationRequest, RequestError

# Processors that depend on the scores only, so that rows with the same settings can share one call.
_SHAREABLE = (
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class PresenceFrequencyPenalty(LogitsProcessor):
    """OpenAI's penalties: subtract from the logit of a token by whether, and how often, it has been generated.

    Args:
        prompt_length: Number of tokens before the first generated one, padding included.
        presence: Subtracted once from tokens that have been generated.
        frequency: Subtracted for each time.
    """

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self._prompt_length, self._presence, self._frequency = prompt_length, presence, frequency

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Penalise scores `[B, V]` after ids `[B, T]`."""
        generated = input_ids[:, self._prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, generated, torch.ones_like(generated, dtype=scores.dtype))
        return scores - self._frequency * counts - self._presence * (counts > 0)


@dataclass
class Plan:
    """The way in which `model.generate` would answer a request.

    Attributes:
        asked: The settings of the request.
        config: Those with the model's defaults.
        per_request: Logits processors that read the ids so far.
        shared: The processors after them, which depend on the scores only.
        settings: Settings of `shared`; rows with equal ones share a call.
        ends: EOS tokens.
        criteria: Other criteria than EOS and length.
        stop: Stop strings of the request and the model.
    """

    asked: GenerationConfig
    config: GenerationConfig
    per_request: LogitsProcessorList
    shared: LogitsProcessorList
    settings: str
    ends: frozenset[int]
    criteria: StoppingCriteriaList
    stop: tuple[str, ...]

    @property
    def num_beams(self) -> int:
        """Number of beams, 1 without beam search."""
        return self.config.num_beams or 1


class Planner:
    """Makes plans for the requests to a model.

    Args:
        model: The model.

    Attributes:
        model: A copy that shares the weights, and has no stop strings in its `generation_config`: `generate` would
            add them to the settings of a request, and look for them by the vocabulary, which not all tokenizers allow.
    """

    def __init__(self, model: Any) -> None:
        self.model = copy.copy(model)
        self.model.generation_config = copy.deepcopy(model.generation_config)
        stop = model.generation_config.stop_strings or ()
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        self.model.generation_config.stop_strings = None
        self._last: tuple[str, Plan] | None = None

    def __call__(self, request: GenerationRequest, vocab_size: int) -> Plan:
        """Check a request and plan its generation.

        Raises:
            RequestError: If the prompt or a setting is invalid, or the decoding method is not supported.
        """
        if not request.prompt:
            raise RequestError("the prompt has no tokens")
        if min(request.prompt) < 0 or max(request.prompt) >= vocab_size:
            raise RequestError(f"the prompt has a token id outside the vocabulary of {vocab_size}")
        # Preparing a plan takes as long as some models take for a token.
        key = repr((sorted(request.options.items()), request.max_new_tokens, request.stop))
        penalised = bool(request.presence_penalty or request.frequency_penalty)
        last = self._last
        if last is not None and last[0] == key and not penalised:
            return last[1]
        plan = self._prepare(request, penalised)
        if not plan.per_request and not plan.criteria:
            self._last = key, plan  # it depends on nothing else
        return plan

    def _prepare(self, request: GenerationRequest, penalised: bool) -> Plan:
        prompt = torch.tensor(request.prompt, device=self.model.device)
        penalty = PresenceFrequencyPenalty(len(prompt), request.presence_penalty, request.frequency_penalty)
        try:
            asked = GenerationConfig(**request.options, max_new_tokens=max(1, request.max_new_tokens))
            processors, criteria, config = self.model.generate(
                prompt.unsqueeze(0),
                attention_mask=torch.ones_like(prompt).unsqueeze(0),
                generation_config=asked,
                logits_processor=LogitsProcessorList([penalty] if penalised else []),
                custom_generate=_prepared,
            )
        except ValueError as error:
            raise RequestError(str(error).splitlines()[0]) from error
        mode = config.get_generation_mode()
        if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.BEAM_SEARCH):
            raise RequestError(f"{mode.value} is not served")
        split = max((i + 1 for i, one in enumerate(processors) if not isinstance(one, _SHAREABLE)), default=0)
        shared = LogitsProcessorList(processors[split:])
        ends = [token for one in criteria if isinstance(one, EosTokenCriteria) for token in one.eos_token_id.tolist()]
        # These two criteria are evaluated without tensors.
        others = [one for one in criteria if not isinstance(one, EosTokenCriteria | MaxLengthCriteria)]
        return Plan(
            asked=asked,
            config=config,
            per_request=LogitsProcessorList(processors[:split]),
            shared=shared,
            settings=_settings(shared),
            ends=frozenset(ends),
            criteria=StoppingCriteriaList(others),
            stop=(*request.stop, *self._stop),
        )


def _prepared(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """Return what `model.generate` has prepared, as its `custom_generate`."""
    return logits_processor, stopping_criteria, generation_config


def _settings(processors: LogitsProcessorList) -> str:
    values = [
        (name, value.tolist() if isinstance(value, Tensor) else value)
        for one in processors
        for name, value in [("", type(one).__name__), *sorted(vars(one).items())]
    ]
    return repr(values)

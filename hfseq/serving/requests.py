"""Request state in a batch, and selection of the next token of every row."""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import EosTokenCriteria, GenerationMode, MaxLengthCriteria

from hfseq.models.heads_causal import ForCausalLM

# Processors that depend on the scores only, so that rows with the same settings can share one call.
_SHAREABLE = (
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class Cancelled(StoppingCriteria):
    """Stops `model.generate` once `event` is set, for example because the client has disconnected."""

    def __init__(self) -> None:
        self.event = Event()

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return the state of the event for all rows."""
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class RequestError(ValueError):
    """An invalid request; the message is one line for the client."""


NO_CANDIDATES = "the sampling settings leave no token with nonzero probability"


class NotBatched(ValueError):
    """A request for a decoding method that is not batched, such as beam search, and needs `model.generate`."""


class Streamer(Protocol):
    """Receiver of tokens as they are generated, such as the streamers of transformers."""

    def put(self, value: Tensor) -> None:
        """Receive the prompt `[1, T]`, then each token `[1]`."""

    def end(self) -> None:
        """Signal the end of the sequence."""


class Row:
    """One request: its settings, and its tokens so far.

    Attributes:
        future: Future that `Batcher.submit` returns. Once it is done, for any reason, the row leaves the batch.
        per_request: Logits processors that read the row's tokens.
        shared: The processors after them, which depend on the scores only.
        ids: Prompt and tokens so far, `[1, T]`; None if no processor or criterion reads them.
        settings: Settings of `shared`; rows with equal ones share a call.
        generator: Random number generator; None for greedy decoding.
    """

    def __init__(
        self,
        model: ForCausalLM,
        input_ids: Tensor | Sequence[int],
        config: GenerationConfig | None,
        tokenizer: PreTrainedTokenizerBase | None,
        streamer: Streamer | None,
        seed: int | None,
    ) -> None:
        self.prompt = torch.as_tensor(input_ids, dtype=torch.long, device=model.device)
        if self.prompt.dim() != 1 or len(self.prompt) == 0:
            raise RequestError(f"the prompt has shape {tuple(self.prompt.shape)}, expected (T,) with T at least 1")
        check_ids(self.prompt, model.config.vocab_size)
        processors, criteria, config = _prepare(model, self.prompt.unsqueeze(0), config, tokenizer)
        split = max((i + 1 for i, one in enumerate(processors) if not isinstance(one, _SHAREABLE)), default=0)
        self.per_request = LogitsProcessorList(processors[:split])
        self.shared = LogitsProcessorList(processors[split:])
        self.settings = _settings(self.shared)
        # These two criteria are evaluated without tensors.
        self._max_new_tokens = config.max_length - len(self.prompt)
        self._ends = {
            token for one in criteria if isinstance(one, EosTokenCriteria) for token in one.eos_token_id.tolist()
        }
        self._criteria = StoppingCriteriaList(
            one for one in criteria if not isinstance(one, EosTokenCriteria | MaxLengthCriteria)
        )
        self.ids: Any = self.prompt.unsqueeze(0) if self.per_request or self._criteria else None
        self.generator: torch.Generator | None = None
        if config.do_sample:
            seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
            self.generator = torch.Generator().manual_seed(seed)
        self.tokens: list[int] = []
        self.future: Future[list[int]] = Future()
        self._streamer = streamer

    def append(self, token: int) -> None:
        """Add a token, and finish the request if it is the last."""
        self.tokens.append(token)
        if self._streamer is not None:
            self._streamer.put(torch.tensor([token]))
        ends = token in self._ends or len(self.tokens) >= self._max_new_tokens
        if self.ids is not None:
            self.ids = torch.cat([self.ids, self.ids.new_tensor([[token]])], dim=1)
            ends = ends or bool(self._criteria(self.ids, None))
        if ends:
            if self._streamer is not None:
                self._streamer.end()
            self.future.set_result(self.tokens)

    def fail(self, error: Exception) -> None:
        """Finish with an error, unless the request has been cancelled."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Turn exceptions of the block into an error of this row only."""
        try:
            yield
        except Exception as error:
            self.fail(error)


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """Check that the token ids of a prompt are in the vocabulary.

    Raises:
        RequestError: If one is not.
    """
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        raise RequestError(f"the prompt has a token id outside the vocabulary of {vocab_size}")


def choose(rows: Sequence[Row], scores: Tensor) -> list[int]:
    """Select the next token of each row from its logits `[B, V]`, which are modified."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.per_request:
            with row.failing():
                scores[index] = row.per_request(row.ids, scores[index : index + 1])[0]
        if row.shared:
            groups.setdefault(row.settings, []).append(index)
    for indices in groups.values():
        shared: Any = rows[indices[0]].shared
        scores[indices] = shared(None, scores[indices])
    tokens = scores.argmax(dim=-1)
    drawn = [index for index, row in enumerate(rows) if row.generator is not None]
    if drawn:
        tokens[drawn] = _draw([rows[index] for index in drawn], scores[drawn].softmax(dim=-1))
    return tokens.tolist()


def _draw(rows: Sequence[Row], probabilities: Tensor) -> Tensor:
    """Sample a token for each row from probabilities `[B, V]` by inverse transform sampling.

    It needs one random number per row, `torch.multinomial` one per vocabulary entry.
    """
    sums = probabilities.double().cumsum(dim=-1)
    totals = sums[:, -1:]
    for row, total in zip(rows, totals.flatten().tolist(), strict=True):
        if not total > 0:
            row.fail(RequestError(NO_CANDIDATES))
    points = torch.stack([torch.rand((1,), generator=row.generator, dtype=torch.double) for row in rows])
    chosen = torch.searchsorted(sums, points.to(sums.device) * totals, right=True)
    return chosen.squeeze(1).clamp(max=sums.shape[1] - 1)


def deliver(rows: Sequence[Row], tokens: Sequence[int]) -> None:
    """Append its token to each row."""
    for row, token in zip(rows, tokens, strict=True):
        if not row.future.done():
            with row.failing():
                row.append(token)


def _settings(processors: LogitsProcessorList) -> str:
    values = [
        (name, value.tolist() if isinstance(value, Tensor) else value)
        for one in processors
        for name, value in [("", type(one).__name__), *sorted(vars(one).items())]
    ]
    return repr(values)


def stop_criteria(tokenizer: PreTrainedTokenizerBase | None, config: GenerationConfig) -> StoppingCriteriaList:
    """The stopping criterion for the stop strings of a config; an empty list if it has none.

    Raises:
        ValueError: If there is no tokenizer.
        RequestError: If the tokenizer does not support them.
    """
    if not config.stop_strings:
        return StoppingCriteriaList()
    if tokenizer is None:
        raise ValueError("stop strings need the tokenizer")
    try:
        return StoppingCriteriaList([StopStringCriteria(tokenizer, config.stop_strings)])
    except ValueError as error:
        # The criterion probes the tokenizer with a word, which word-level tokenizers do not know.
        raise RequestError("stop strings do not work with this tokenizer") from error


def _prepare(
    model: Any, input_ids: Tensor, config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[LogitsProcessorList, StoppingCriteriaList, GenerationConfig]:
    """The processors, criteria and settings that `model.generate` would use for a prompt `[1, T]`."""
    own = model.generation_config
    config = copy.deepcopy(own if config is None else config)
    # `generate` does not pass the tokenizer on to `custom_generate`, and rejects stop strings without one.
    if own.stop_strings is not None:
        raise NotBatched("stop strings of the model's own generation config are not batched")
    criteria = stop_criteria(tokenizer, config)
    config.stop_strings = None

    def prepared(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return logits_processor, stopping_criteria, generation_config

    processors, criteria, config = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        generation_config=config,
        stopping_criteria=criteria,
        custom_generate=prepared,
    )
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE) or config.num_return_sequences != 1:
        raise NotBatched(f"{mode.value} with num_return_sequences={config.num_return_sequences} is not batched")
    return processors, criteria, config

"""Rows of a batch: what each request asks for, and how all of them get their next token."""

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

# What these make of scores depends on nothing else, so that rows with the same settings go through them together.
_OF_SCORES_ALONE = (
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class Unread(StoppingCriteria):
    """Ends a generation by `model.generate` once nobody waits for it."""

    def __init__(self) -> None:
        self.event = Event()

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """The same for all rows."""
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class RequestError(ValueError):
    """A request that cannot be answered; the message is a line for whoever made it."""


class NotBatched(ValueError):
    """A request for what is not done in a batch, such as beams; `model.generate` does it."""


class Streamer(Protocol):
    """Where tokens go as they come; the streamers of transformers are of this kind."""

    def put(self, value: Tensor) -> None:
        """Take the prompt `[1, T]`, then each token `[1]`."""

    def end(self) -> None:
        """There are no more."""


class Row:
    """One request: its settings, and the tokens that it has got.

    Attributes:
        future: See `Batcher.submit`. Once it is done, for whatever reason, the row leaves the batch.
        own: Logits processors that read the row's tokens.
        shared: Those after them, which read scores alone.
        settings: Of `shared`, equal for rows that go through them together.
        generator: Of random numbers; None if the row takes the best token.
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
        size = model.config.vocab_size
        if self.prompt.dim() != 1 or len(self.prompt) == 0:
            raise RequestError(f"the prompt has shape {tuple(self.prompt.shape)}, expected one token at least, (T,)")
        if int(self.prompt.min()) < 0 or int(self.prompt.max()) >= size:
            raise RequestError(f"the prompt has a token that is not one of the model's {size}")
        processors, criteria, config = _prepare(model, self.prompt.unsqueeze(0), config, tokenizer)
        split = max((i + 1 for i, one in enumerate(processors) if not isinstance(one, _OF_SCORES_ALONE)), default=0)
        self.own = LogitsProcessorList(processors[:split])
        self.shared = LogitsProcessorList(processors[split:])
        self.settings = _settings(self.shared)
        # What these two kinds do needs no tensor.
        self._max_new_tokens = config.max_length - len(self.prompt)
        self._ends = {
            token for one in criteria if isinstance(one, EosTokenCriteria) for token in one.eos_token_id.tolist()
        }
        self._criteria = StoppingCriteriaList(
            one for one in criteria if not isinstance(one, EosTokenCriteria | MaxLengthCriteria)
        )
        # All tokens so far, `[1, T]`, where something reads them.
        self._ids: Any = self.prompt.unsqueeze(0) if self.own or self._criteria else None
        self.generator: torch.Generator | None = None
        if config.do_sample:
            seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
            self.generator = torch.Generator().manual_seed(seed)
        self.tokens: list[int] = []
        self.future: Future[list[int]] = Future()
        self._streamer = streamer

    def process(self, scores: Tensor) -> Tensor:
        """Scores `[1, V]` as the row's own processors make them."""
        return self.own(self._ids, scores)

    def take(self, token: int) -> None:
        """Go on by a token, or end with it."""
        self.tokens.append(token)
        if self._streamer is not None:
            self._streamer.put(torch.tensor([token]))
        ends = token in self._ends or len(self.tokens) >= self._max_new_tokens
        if self._ids is not None:
            self._ids = torch.cat([self._ids, self._ids.new_tensor([[token]])], dim=1)
            ends = ends or bool(self._criteria(self._ids, None))
        if ends:
            if self._streamer is not None:
                self._streamer.end()
            self.future.set_result(self.tokens)

    def fail(self, error: Exception) -> None:
        """End with an error, unless the request was cancelled meanwhile."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What goes wrong inside is an error of this row alone."""
        try:
            yield
        except Exception as error:
            self.fail(error)


def choose(rows: Sequence[Row], scores: Tensor) -> list[int]:
    """The next token of each row from its logits `[B, V]`, which are changed."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.own:
            with row.failing():
                scores[index] = row.process(scores[index : index + 1])[0]
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
    """A token for each row from probabilities `[B, V]`, by the inverse of their cumulated sum.

    One random number a row makes the choice, where `torch.multinomial` needs one for each word of the vocabulary.
    """
    sums = probabilities.double().cumsum(dim=-1)
    totals = sums[:, -1:]
    for row, total in zip(rows, totals.flatten().tolist(), strict=True):
        if not total > 0:
            row.fail(RequestError("the settings leave no token with a probability"))
    points = torch.stack([torch.rand((1,), generator=row.generator, dtype=torch.double) for row in rows])
    chosen = torch.searchsorted(sums, points.to(sums.device) * totals, right=True)
    return chosen.squeeze(1).clamp(max=sums.shape[1] - 1)


def deliver(rows: Sequence[Row], tokens: Sequence[int]) -> None:
    """Give each row its token."""
    for row, token in zip(rows, tokens, strict=True):
        if not row.future.done():
            with row.failing():
                row.take(token)


def _settings(processors: LogitsProcessorList) -> str:
    values = [
        (name, value.tolist() if isinstance(value, Tensor) else value)
        for one in processors
        for name, value in [("", type(one).__name__), *sorted(vars(one).items())]
    ]
    return repr(values)


def stop_criteria(tokenizer: PreTrainedTokenizerBase | None, config: GenerationConfig) -> StoppingCriteriaList:
    """The criterion of a config's stop strings; none for an empty list.

    Raises:
        ValueError: If there is no tokenizer.
        RequestError: If the tokenizer is not one that allows them.
    """
    if not config.stop_strings:
        return StoppingCriteriaList()
    if tokenizer is None:
        raise ValueError("stop strings need the tokenizer")
    try:
        return StoppingCriteriaList([StopStringCriteria(tokenizer, config.stop_strings)])
    except ValueError as error:
        # It looks for the letters of a word of its own in what the tokenizer makes of it, and finds none if words are
        # tokens.
        raise RequestError("stop strings do not work with this tokenizer") from error


def _prepare(
    model: Any, input_ids: Tensor, config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[LogitsProcessorList, StoppingCriteriaList, GenerationConfig]:
    """The processors, criteria and settings that `model.generate` would have for a prompt `[1, T]`."""
    own = model.generation_config
    config = copy.deepcopy(own if config is None else config)
    # `generate` does not tell a function of ours the tokenizer, which makes it refuse stop strings.
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

"""Rows of a batch: the state of a sequence being generated, and the selection of its next token."""

import random
import secrets
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from hfseq.models.generation import most_likely
from hfseq.serving.generation import Completion, GenerationRequest, Piece, RequestError, TokenLogprob
from hfseq.serving.plans import Plan
from hfseq.serving.texts import StopStrings, TextStream, continuation

NO_CANDIDATES = "the sampling settings leave no token with nonzero probability"


class Row:
    """A sequence that is being generated.

    Args:
        request: The request.
        plan: Its plan.
        tokenizer: Tokenizer of the model.
        number: Number of the sequence among those of the request.
        device: Device of the model.

    Attributes:
        future: Future of the sequence. Once it is done, for any reason, the row leaves the batch.
        ids: Prompt and tokens so far, `[1, T]`; None if no processor or criterion reads them.
        generator: Random number generator; None for greedy decoding.
        prompt_logprobs: Log-probabilities of the prompt, once they are known.
    """

    def __init__(
        self, request: GenerationRequest, plan: Plan, tokenizer: Any, number: int, device: torch.device
    ) -> None:
        self.request, self.plan, self.number = request, plan, number
        self.prompt = torch.as_tensor(request.prompt, dtype=torch.long, device=device)
        self.ids: Any = self.prompt.unsqueeze(0) if plan.per_request or plan.criteria else None
        self.generator: torch.Generator | None = None
        if plan.config.do_sample:
            self.generator = torch.Generator().manual_seed(_seed(request.seed, number))
        self.tokens: list[int] = []
        self.future: Future[Completion] = Future()
        self.scores_prompt = request.prompt_logprobs and number == 0
        self.prompt_logprobs: list[TokenLogprob] = []
        self._text = RowText(request, plan.stop, tokenizer)

    def append(self, token: int, logprob: TokenLogprob | None) -> None:
        """Add a token, and finish the sequence if it is the last."""
        self.tokens.append(token)
        ends = token in self.plan.ends
        piece = self._text.put(token, logprob, ends)
        stops = ends or self._text.stopped
        if self.ids is not None:
            self.ids = torch.cat([self.ids, self.ids.new_tensor([[token]])], dim=1)
            stops = stops or bool(self.plan.criteria(self.ids, None))
        if stops or len(self.tokens) >= self.request.max_new_tokens:
            self.finish("stop" if stops else "length", piece)
        else:
            self._pass_on(piece)

    def finish(self, reason: str, piece: Piece | None = None) -> None:
        """Finish the sequence.

        Args:
            reason: The `finish_reason`.
            piece: The last piece, if there is a token.
        """
        rest = self._text.end()
        reason = "stop" if self._text.stopped else reason
        text, logprobs = ("", ()) if piece is None else (piece.text, piece.logprobs)
        self._pass_on(Piece(text + rest.text, [*logprobs, *rest.logprobs], reason))
        with suppress(InvalidStateError):
            self.future.set_result(Completion(self.tokens, self._text.text, reason, self._text.logprobs))

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

    def _pass_on(self, piece: Piece) -> None:
        if self.request.on_piece is not None:
            self.request.on_piece(self.number, piece)


class RowText:
    """The text of a sequence so far, with the log-probabilities of its tokens.

    It is decoded token by token if there are stop strings, if it is streamed or if tokens need their places in it,
    otherwise at the end.

    Args:
        request: The request.
        stop: Stop strings.
        tokenizer: Tokenizer of the model.

    Attributes:
        logprobs: Log-probabilities of the tokens that are part of the answer.
    """

    def __init__(self, request: GenerationRequest, stop: Sequence[str], tokenizer: Any) -> None:
        self._context = request.prompt if request.continues else ()
        self._tokenizer = tokenizer
        self._stream: TextStream | None = None
        if stop or request.on_piece is not None or request.logprobs is not None:
            self._stream = TextStream(tokenizer, self._context)
        self._stop = StopStrings(stop)
        # Characters that have been decoded, and those that are certain to be part of the answer.
        self._decoded = self._length = 0
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self._waiting: list[TokenLogprob] = []

    @property
    def stopped(self) -> bool:
        """True if there is a stop string."""
        return self._stop.found

    def put(self, token: int, logprob: TokenLogprob | None, ends: bool) -> Piece:
        """Add a token; return the text and the tokens that are certain to be part of the answer.

        Args:
            token: The token.
            logprob: Its log-probability, if needed.
            ends: Whether it is an EOS, which is not part of the text.
        """
        if logprob is not None:
            self._waiting.append(logprob._replace(offset=self._decoded))
        if self._stream is None:
            if not ends:
                self._tokens.append(token)
            return self._certain("")
        if ends:
            return Piece("")
        text = self._stream.put(token)
        self._decoded += len(text)
        return self._certain(self._stop.put(text))

    def end(self) -> Piece:
        """Return what has been held back."""
        if self._stream is None:
            self._pieces = [continuation(self._tokenizer, self._context, self._tokens)]
            return self._certain("", last=True)
        text = ""
        if not self.stopped:
            text = self._stop.put(self._stream.end())
            text += self._stop.end()
        return self._certain(text, last=True)

    @property
    def text(self) -> str:
        """Text of the finished sequence."""
        return "".join(self._pieces)

    def _certain(self, text: str, last: bool = False) -> Piece:
        """A piece with the tokens whose text begins before its end, or all of them at the end of the sequence."""
        self._pieces.append(text)
        self._length += len(text)
        everything = last and not self.stopped
        logprobs = [one for one in self._waiting if everything or one.offset < self._length]
        self._waiting = [] if last else self._waiting[len(logprobs) :]
        self.logprobs += logprobs
        return Piece(text, logprobs)


def _seed(seed: int | None, number: int) -> int:
    """Seed of a sequence of a request: its own seed for the first, unrelated ones for the others."""
    if seed is None:
        # Not from torch's global generator, from which another model may be sampling with a seed.
        return secrets.randbits(63)
    return seed if number == 0 else random.Random(f"{seed} {number}").getrandbits(63)


def choose(rows: Sequence[Row], scores: Tensor) -> list[tuple[int, TokenLogprob | None]]:
    """Select the next token of each row from its logits `[B, V]`, which are modified.

    Returns:
        The token of each row, with its log-probability if the row needs it.
    """
    scored = [index for index, row in enumerate(rows) if row.request.scored]
    logprobs = scores[scored].log_softmax(dim=-1) if scored else None
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.plan.per_request:
            with row.failing():
                scores[index] = row.plan.per_request(row.ids, scores[index : index + 1])[0]
        if row.plan.shared:
            groups.setdefault(row.plan.settings, []).append(index)
    for indices in groups.values():
        shared: Any = rows[indices[0]].plan.shared
        scores[indices] = shared(None, scores[indices])
    chosen = most_likely(scores)
    drawn = [index for index, row in enumerate(rows) if row.generator is not None]
    if drawn:
        chosen[drawn] = _draw([rows[index] for index in drawn], scores[drawn].softmax(dim=-1))
    tokens = chosen.tolist()
    found: list[TokenLogprob | None] = [None] * len(rows)
    if logprobs is not None:
        counts = [rows[index].request.logprobs or 0 for index in scored]
        for index, one in zip(scored, with_top(logprobs, chosen[scored], counts), strict=True):
            found[index] = one
    return list(zip(tokens, found, strict=True))


def with_top(logprobs: Tensor, tokens: Tensor, counts: Sequence[int]) -> list[TokenLogprob]:
    """Log-probabilities of tokens `[N]` and of the most likely ones.

    Args:
        logprobs: Log-probabilities `[N, V]`.
        tokens: The tokens, `[N]`.
        counts: Number of most likely tokens to return with each.
    """
    own = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
    best = logprobs.topk(min(max(counts), logprobs.shape[1]), dim=1)
    ids, values = best.indices.tolist(), best.values.tolist()
    return [
        TokenLogprob(token, value, tuple(zip(ids[index][:count], values[index][:count], strict=True)))
        for index, (token, value, count) in enumerate(zip(tokens.tolist(), own, counts, strict=True))
    ]


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


def deliver(rows: Sequence[Row], chosen: Sequence[tuple[int, TokenLogprob | None]]) -> None:
    """Append its token to each row."""
    for row, (token, logprob) in zip(rows, chosen, strict=True):
        if not row.future.done():
            with row.failing():
                row.append(token, logprob)


def prompt_logprobs(
    prompts: Sequence[Tensor], counts: Sequence[int], steps: Iterable[tuple[int, Tensor]]
) -> list[list[TokenLogprob]]:
    """Log-probabilities of the tokens of prompts.

    Args:
        prompts: Token ids `[T]` of each.
        counts: Number of most likely tokens to return with each token.
        steps: Logits `[B, C, V]` of left-padded prompts in pieces, each after the number of its first step.
    """
    longest = max(len(prompt) for prompt in prompts)
    found = [[TokenLogprob(int(prompt[0]), None)] for prompt in prompts]
    for first, logits in steps:
        for row, prompt in enumerate(prompts):
            skipped = longest - len(prompt)
            # The logits of step t are for the token of step t + 1.
            start, stop = max(first, skipped), min(first + logits.shape[1], longest - 1)
            if start < stop:
                logprobs = logits[row, start - first : stop - first].log_softmax(dim=-1)
                targets = prompt[start + 1 - skipped : stop + 1 - skipped]
                found[row] += with_top(logprobs, targets, [counts[row]] * len(targets))
    return found

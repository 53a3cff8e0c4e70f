"""Requests to a language model, and what they are answered."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hfseq.errors import InputError


class RequestError(InputError):
    """An invalid request; the message is one line for the client."""


class TokenLogprob(NamedTuple):
    """Log-probability of a token under the model, before temperature, penalties and other settings.

    Attributes:
        token: Id of the token.
        logprob: Its log-probability; None for the first token of a prompt.
        top: The most likely tokens and their log-probabilities, in descending order.
        offset: Where the text of the token begins, in characters of the generated text; 0 in a prompt.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    offset: int = 0


class Piece(NamedTuple):
    """A part of a completion, of which there is one for each token.

    Attributes:
        text: Text that the token completes, which may be empty.
        logprobs: Log-probabilities of the tokens whose text begins in it.
        finish_reason: Of the last piece, that of the completion.
    """

    text: str
    logprobs: Sequence[TokenLogprob] = ()
    finish_reason: str | None = None


class Completion(NamedTuple):
    """A generated sequence.

    Attributes:
        tokens: Tokens, with the EOS or those of the stop string, if there is one.
        text: Text up to the EOS or the stop string.
        finish_reason: `stop` if there was an EOS or a stop string, otherwise `length`.
        logprobs: Log-probabilities of the tokens, without those of the stop string; empty if not requested.
    """

    tokens: Sequence[int]
    text: str
    finish_reason: str
    logprobs: Sequence[TokenLogprob] = ()


class Generation(NamedTuple):
    """Answer to a request.

    Attributes:
        completions: `n` sequences; the best first where `best_of` or beams rank them.
        prompt_logprobs: Log-probabilities of the tokens of the prompt; empty if not requested.
        generated: Number of tokens generated, those of rejected samples included.
    """

    completions: Sequence[Completion]
    prompt_logprobs: Sequence[TokenLogprob]
    generated: int


@dataclass(frozen=True)
class GenerationRequest:
    """Request for continuations of one prompt.

    Attributes:
        prompt: Token ids.
        max_new_tokens: Maximum number of new tokens; with 0 only the prompt is scored.
        options: Fields of a `GenerationConfig`, which override those of the model; `num_beams` selects beam search.
        n: Number of sequences.
        best_of: Number of sequences to generate, of which those with the highest mean log-probability are returned.
        seed: Seed for sampling; None for a random one.
        stop: Stop strings, searched for in the generated text.
        presence_penalty: Subtracted from the logits of tokens that have been generated.
        frequency_penalty: Subtracted from the logits of tokens for each time that they have been generated.
        logprobs: Number of most likely tokens to return with each token; None for no log-probabilities.
        prompt_logprobs: Whether to return log-probabilities of the prompt, too.
        continues: Whether the text continues that of the prompt, so that it begins with the space between them;
            otherwise it stands on its own, as a reply does.
        on_piece: Called with the number of the sequence and each piece of it, from the model's thread.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    options: Mapping[str, Any] = field(default_factory=dict)
    n: int = 1
    best_of: int | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    prompt_logprobs: bool = False
    continues: bool = True
    on_piece: Callable[[int, Piece], None] | None = None

    @property
    def samples(self) -> int:
        """Number of sequences to generate."""
        return max(self.n, self.best_of or self.n)

    @property
    def scored(self) -> bool:
        """True if log-probabilities of the new tokens are needed."""
        return self.logprobs is not None or self.samples > self.n

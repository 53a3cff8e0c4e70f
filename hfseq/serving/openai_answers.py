"""Bodies of OpenAI's responses."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hfseq.serving.generation import Completion, Generation, Piece, TokenLogprob
from hfseq.serving.language_model import LanguageModel
from hfseq.serving.texts import TextStream

Json = dict[str, Any]


class Prompt(NamedTuple):
    """A tokenized prompt.

    Attributes:
        ids: Token ids.
        text: Its text as given, or decoded if it was given as token ids; empty if nothing needs it.
        offsets: Where each token begins in the text; empty if nothing needs it.
    """

    ids: Sequence[int]
    text: str = ""
    offsets: Sequence[int] = ()


def read_prompt(tokenizer: Any, given: str | Sequence[int], echo: bool) -> Prompt:
    """Tokenize a prompt, if it is a text.

    Args:
        tokenizer: The tokenizer.
        given: A text, or ids of the vocabulary.
        echo: Whether the answer begins with the prompt, so that its text and offsets are needed.
    """
    if isinstance(given, str) and not echo:
        return Prompt(tokenizer(given)["input_ids"], given)
    if isinstance(given, str) and tokenizer.is_fast:
        encoding = tokenizer(given, return_offsets_mapping=True)
        return Prompt(encoding["input_ids"], given, [start for start, _ in encoding["offset_mapping"]])
    ids = tokenizer(given)["input_ids"] if isinstance(given, str) else given
    if not echo:
        return Prompt(ids)
    stream, offsets, text = TextStream(tokenizer), [], ""
    for token in ids:
        offsets.append(len(text))
        text += stream.put(token)
    text += stream.end()
    if isinstance(given, str):
        return Prompt(ids, given, [min(offset, len(given)) for offset in offsets])
    return Prompt(ids, text, offsets)


class Answers:
    """Builds the bodies for one request.

    Args:
        kind: Value of `object` of a whole answer.
        prefix: Prefix of the ids.
        name: Name of the model.
        model: The model.
        include_usage: Whether a stream ends with the usage.
    """

    def __init__(self, kind: str, prefix: str, name: str, model: LanguageModel, include_usage: bool) -> None:
        self._kind, self._model, self.include_usage = kind, model, include_usage
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}

    def whole(self, prompts: Sequence[Prompt], generations: Sequence[Generation]) -> Json:
        """Body of an answer to some prompts, each of which has a generation."""
        choices = [
            self.choice(prompt, generation, completion)
            for prompt, generation in zip(prompts, generations, strict=True)
            for completion in generation.completions
        ]
        numbered = [{"index": index, **choice} for index, choice in enumerate(choices)]
        usage = usage_of(prompts, generations)
        return {**self._head, "object": self._kind, "choices": numbered, "usage": usage}

    def chunk(self, choices: Sequence[Json], usage: Json | None = None) -> Json:
        """Body of a part of a stream."""
        body = {**self._head, "object": self._kind, "choices": choices}
        return body | {"usage": usage} if self.include_usage else body

    def choice(self, prompt: Prompt, generation: Generation, completion: Completion) -> Json:
        """A completion of a whole answer, without its index."""
        raise NotImplementedError

    def first(self, index: int, prompt: Prompt) -> Json | None:
        """The choice that a stream begins with, if there is one."""
        raise NotImplementedError

    def delta(self, index: int, prompt: Prompt, piece: Piece) -> Json:
        """A piece of a completion as a choice of a stream."""
        raise NotImplementedError

    def token(self, token: int) -> str:
        """Text of a token."""
        return self._model.token_texts.text(token)


class CompletionAnswers(Answers):
    """Bodies of `/v1/completions`.

    Args:
        name: Name of the model.
        model: The model.
        echo: Whether the text begins with the prompt.
        logprobs: Whether log-probabilities are returned.
        include_usage: Whether a stream ends with the usage.
    """

    def __init__(self, name: str, model: LanguageModel, echo: bool, logprobs: bool, include_usage: bool) -> None:
        super().__init__("text_completion", "cmpl", name, model, include_usage)
        self._echo, self._logprobs = echo, logprobs

    def choice(self, prompt: Prompt, generation: Generation, completion: Completion) -> Json:
        """A completion, with the prompt if it is echoed."""
        tokens = list(zip(generation.prompt_logprobs, prompt.offsets, strict=False)) if self._echo else []
        tokens += self._placed(prompt, completion.logprobs)
        return {
            "text": prompt.text + completion.text if self._echo else completion.text,
            "logprobs": self._logprobs_of(tokens),
            "finish_reason": completion.finish_reason,
        }

    def first(self, index: int, prompt: Prompt) -> Json | None:
        """The prompt, if it is echoed."""
        return self._delta(index, prompt.text, None, None) if self._echo else None

    def delta(self, index: int, prompt: Prompt, piece: Piece) -> Json:
        """A piece of a completion."""
        logprobs = self._logprobs_of(self._placed(prompt, piece.logprobs))
        return self._delta(index, piece.text, logprobs, piece.finish_reason)

    def _delta(self, index: int, text: str, logprobs: Json | None, reason: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _placed(self, prompt: Prompt, tokens: Sequence[TokenLogprob]) -> list[tuple[TokenLogprob, int]]:
        """Tokens of a completion with their places in the text that is returned."""
        before = len(prompt.text) if self._echo else 0
        return [(one, before + one.offset) for one in tokens]

    def _logprobs_of(self, tokens: Sequence[tuple[TokenLogprob, int]]) -> Json | None:
        if not self._logprobs:
            return None
        return {
            "tokens": [self.token(one.token) for one, _ in tokens],
            "token_logprobs": [one.logprob for one, _ in tokens],
            "top_logprobs": [None if one.logprob is None else self._top(one) for one, _ in tokens],
            "text_offset": [offset for _, offset in tokens],
        }

    def _top(self, token: TokenLogprob) -> Mapping[str, float | None]:
        """Log-probabilities of the most likely tokens and the token itself; of equal texts the most likely one."""
        found: dict[str, float | None] = {}
        for one, logprob in (*token.top, (token.token, token.logprob)):
            found.setdefault(self.token(one), logprob)
        return found


class ChatAnswers(Answers):
    """Bodies of `/v1/chat/completions`.

    Args:
        name: Name of the model.
        model: The model.
        logprobs: Whether log-probabilities are returned.
        include_usage: Whether a stream ends with the usage.
        stream: Whether the answer is streamed.
    """

    def __init__(self, name: str, model: LanguageModel, logprobs: bool, include_usage: bool, stream: bool) -> None:
        super().__init__(
            "chat.completion.chunk" if stream else "chat.completion", "chatcmpl", name, model, include_usage
        )
        self._logprobs = logprobs

    def choice(self, prompt: Prompt, generation: Generation, completion: Completion) -> Json:
        """A reply."""
        return {
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": self._logprobs_of(completion.logprobs),
            "finish_reason": completion.finish_reason,
        }

    def first(self, index: int, prompt: Prompt) -> Json | None:
        """The role."""
        return self._delta(index, {"role": "assistant", "content": ""}, None, None)

    def delta(self, index: int, prompt: Prompt, piece: Piece) -> Json:
        """A piece of a reply."""
        content = {"content": piece.text} if piece.text else {}
        return self._delta(index, content, self._logprobs_of(piece.logprobs), piece.finish_reason)

    def _delta(self, index: int, delta: Json, logprobs: Json | None, reason: str | None) -> Json:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs_of(self, tokens: Sequence[TokenLogprob]) -> Json | None:
        if not self._logprobs:
            return None
        content = [
            self._entry(one.token, one.logprob) | {"top_logprobs": [self._entry(*pair) for pair in one.top]}
            for one in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> Json:
        text = self.token(token)
        # A token that is a part of a character has no text of its own.
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def usage_of(prompts: Sequence[Prompt], generations: Sequence[Generation]) -> Json:
    """Numbers of tokens."""
    read = sum(len(prompt.ids) for prompt in prompts)
    generated = sum(generation.generated for generation in generations)
    return {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}

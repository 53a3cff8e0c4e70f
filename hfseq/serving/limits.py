"""Limits of the requests to a served model."""

import sys
from typing import NamedTuple

from hfseq.serving.http_json import Refusal

MAX_BEAMS = 20
"""Maximum number of beams."""
MAX_STOPS = 4
"""Maximum number of stop strings, as in OpenAI's API."""
LONGEST_STOP = 100
"""Maximum length of a stop string in characters."""


class Limits(NamedTuple):
    """Limits of a model's requests.

    Attributes:
        max_batch_size: Maximum number of inputs processed together.
        max_queue: Maximum number of waiting inputs; further ones are rejected with status 503.
        max_input_tokens: Maximum length of an input in tokens (of a series in values, of a history in items).
        max_new_tokens: Maximum number of generated tokens, and the default of requests that set none.
        positions: Maximum length of prompt and answer together, for models with position embeddings.
    """

    max_batch_size: int = 32
    max_queue: int = 1024
    max_input_tokens: int = 2048
    max_new_tokens: int = 1024
    positions: int = sys.maxsize

    def new_tokens(self, prompt: int, asked: int | None) -> int:
        """Number of tokens to generate after a prompt, by default all that there is room for.

        Args:
            prompt: Number of tokens of the prompt.
            asked: Number that the request asks for, or None.

        Raises:
            Refusal: If the prompt is empty, or prompt or answer exceed the limits.
        """
        code = "context_length_exceeded"
        if prompt == 0:
            raise Refusal(400, "the prompt has no tokens")
        longest = min(self.max_input_tokens, self.positions - (asked != 0))
        if prompt > longest:
            raise Refusal(400, f"the prompt has {prompt} tokens; the maximum is {longest}", code=code)
        room = min(self.max_new_tokens, self.positions - prompt)
        if asked is not None and asked > room:
            message = f"{asked} new tokens were requested; the maximum after this prompt is {room}"
            raise Refusal(400, message, param="max_tokens", code=code)
        return room if asked is None else asked

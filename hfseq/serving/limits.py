"""Limits of the requests to a served model."""

import sys
from typing import NamedTuple


class Limits(NamedTuple):
    """Limits of a model's requests.

    Attributes:
        max_batch_size: Maximum number of inputs processed together.
        max_queue: Maximum number of waiting inputs; further ones are rejected with status 503.
        max_input_tokens: Maximum length of an input in tokens (of a series in values, of a history in items).
        max_new_tokens: Maximum number of generated tokens, and the default of requests that set none.
        timeout: Seconds after which a request is given up with status 504.
        positions: Maximum length of prompt and answer together, for models with position embeddings.
    """

    max_batch_size: int = 32
    max_queue: int = 1024
    max_input_tokens: int = 2048
    max_new_tokens: int = 1024
    timeout: float = 60.0
    positions: int = sys.maxsize

"""The thread that checks and tokenizes the requests to a model."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hfseq.serving.dynamic import Closed


class Reader:
    """Runs functions in one thread, off the event loop: long texts and recordings take long.

    There is one thread for a tokenizer, since tokenizers cannot be used by several at a time.

    Args:
        name: Name of the model, for the thread.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, f"hfseq-read-{name}")

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Result of a function, which is not begun any more once this is cancelled.

        Raises:
            Closed: If the reader is closed.
            Exception: What the function raises.
        """
        try:
            future = self._thread.submit(function, *args)
        except RuntimeError as error:
            raise Closed("the server is shutting down") from error
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread once it has done what it was given."""
        self._thread.shutdown(wait=False)

"""The parts of transformers' server that batch, and the server made of them.

transformers starts its server in `transformers.cli.serve.Serve`, which makes all of its parts itself. They are public
classes, though, and `build_server` takes whatever parts it is given: these here are subclasses, and nothing of
transformers is replaced. One private name is needed, `_StreamError`: the handlers know an error in a stream by it.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from fastapi import FastAPI, HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import BaseHandler, DirectStreamer, GenerateManager, GenerationState, _StreamError

from hfseq.batch_rows import NotBatched, Unread
from hfseq.batching import Batcher, BatcherClosed, BatcherFull
from hfseq.data.texts import encodable
from hfseq.models.modeling_heads import ForCausalLM


def make_app(model_dir: str, *, device: str, max_batch_size: int) -> FastAPI:
    """Transformers' application for a model, whose requests are batched if it is a language model of hfseq.

    Args:
        model_dir: See `hfseq.serve.make_server`, as for all arguments.
        device: See there.
        max_batch_size: See there.

    Raises:
        OSError: If the model cannot be read.
        ValueError: If it does not load.
    """
    state = BatchingState(max_batch_size)
    models = BatchedModels(state, device=device, force_model=model_dir)
    # All that the server asks of these is to handle requests.
    kinds = (ChatCompletionHandler, CompletionHandler, ResponseHandler)
    cleaned: list[Any] = [Cleaned(kind(models, state)) for kind in kinds]
    chat, completion, response = cleaned
    app = build_server(
        models,
        chat,
        completion_handler=completion,
        response_handler=response,
        transcription_handler=TranscriptionHandler(models, state),
        systemone_handler=SystemOneHandler(models, state),
        generation_state=state,
    )
    app.add_middleware(CancelledByClient)
    return app


class BatchedModels(ModelManager):
    """The server's models; when they are unloaded, at its end or by a request, what batches for them ends, too."""

    def __init__(self, state: "BatchingState", **options: Any) -> None:
        self._state = state
        super().__init__(**options)

    def shutdown(self) -> None:
        """Unload all models."""
        self._state.shutdown()
        super().shutdown()


class BatchingState(GenerationState):
    """Gives each model a `BatchingManager`."""

    def __init__(self, max_batch_size: int) -> None:
        super().__init__()
        self._max_batch_size = max_batch_size
        self._managers: dict[str, BatchingManager] = {}

    def get_manager(self, model_id: str, use_cb: bool = False) -> "BatchingManager":
        """The manager of a model; `use_cb`, transformers' own batching by paged attention, is never asked for."""
        if model_id not in self._managers:
            self._managers[model_id] = BatchingManager(self._max_batch_size)
        return self._managers[model_id]

    def shutdown(self) -> None:
        """Stop all managers."""
        super().shutdown()
        for manager in self._managers.values():
            manager.stop()


class Cleaned:
    """Hands requests on to a handler, without what would make it fail.

    Half a character, which JSON can hold and no tokenizer takes, becomes a question mark; an empty list of stop
    strings is none.
    """

    def __init__(self, handler: BaseHandler) -> None:
        self._handler: Any = handler

    async def handle_request(self, body: dict, request_id: str) -> Any:
        """The handler's response."""
        body = clean(body)
        if body.get("stop") == []:
            del body["stop"]
        return await self._handler.handle_request(body, request_id)


def clean(value: Any) -> Any:
    """A value of JSON whose strings can be encoded."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list):
        return [clean(one) for one in value]
    if isinstance(value, dict):
        return {clean(key): clean(one) for key, one in value.items()}
    return value


class BatchingManager(GenerateManager):
    """Generates in a batch what can be, and all else as the server does: other models, beams.

    Methods and arguments are those of `GenerateManager`. They are called in the thread of the server's event loop.

    Args:
        max_batch_size: Number of requests that run at once.
    """

    def __init__(self, max_batch_size: int) -> None:
        super().__init__()
        self._max_batch_size = max_batch_size
        self._batcher: Batcher | None = None

    def generate_streaming(
        self,
        model: PreTrainedModel,
        processor: Any,
        inputs: dict,
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue, DirectStreamer]:
        """Start, and return a queue of pieces of text and the streamer that fills it."""
        if is_batched(model):
            with suppress(NotBatched):
                return self._stream(model, processor, inputs, gen_config, response_parser)
        queue, streamer = super().generate_streaming(model, processor, inputs, gen_config, request_id, response_parser)
        at_end_of_request(streamer.cancel)
        return queue, streamer

    async def generate_non_streaming(
        self,
        model: PreTrainedModel,
        processor: Any,
        inputs: dict,
        gen_config: GenerationConfig,
        request_id: str,
    ) -> tuple[str, int, Any]:
        """Text, number of tokens of the prompt, and the new tokens."""
        if is_batched(model):
            with suppress(NotBatched):
                future = self._submit(model, processor, inputs, gen_config)
                with refusals():
                    tokens = await asyncio.wrap_future(future)
                return processor.decode(tokens, skip_special_tokens=True), inputs["input_ids"].shape[-1], tokens
        unread = Unread()
        # All of these are handed on to `model.generate`.
        inputs = {**inputs, "stopping_criteria": StoppingCriteriaList([unread])}
        try:
            # Shielded, since the thread that generates fails to tell a cancelled task its result.
            return await asyncio.shield(
                super().generate_non_streaming(model, processor, inputs, gen_config, request_id)
            )
        finally:
            unread.event.set()

    def stop(self) -> None:
        """End the batch, and with it what is not finished."""
        if self._batcher is not None:
            self._batcher.close()
            self._batcher = None

    def _stream(
        self, model: Any, tokenizer: Any, inputs: dict, gen_config: GenerationConfig, response_parser: Any
    ) -> tuple[asyncio.Queue, DirectStreamer]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue = asyncio.Queue()
        streamer = DirectStreamer(tokenizer._tokenizer, loop, queue, response_parser=response_parser)
        future = self._submit(model, tokenizer, inputs, gen_config, streamer)
        at_end_of_request(future.cancel)

        def report(future: Future) -> None:
            if not future.cancelled() and (error := future.exception()) is not None:
                # The handlers put it between quotation marks as it is.
                escaped = json.dumps(str(error))[1:-1]
                loop.call_soon_threadsafe(queue.put_nowait, _StreamError(escaped))

        future.add_done_callback(report)
        return queue, streamer

    def _submit(
        self,
        model: Any,
        tokenizer: Any,
        inputs: dict,
        gen_config: GenerationConfig,
        streamer: DirectStreamer | None = None,
    ) -> Future[list[int]]:
        """See `Batcher.submit`. A request's seed has just seeded torch's global generator, which gives the row's."""
        if self._batcher is None or self._batcher.model is not model:
            self.stop()
            self._batcher = Batcher(model, max_batch_size=self._max_batch_size)
        with refusals():
            return self._batcher.submit(inputs["input_ids"][0], gen_config, tokenizer=tokenizer, streamer=streamer)


def is_batched(model: PreTrainedModel) -> bool:
    """Whether a model is a language model of hfseq."""
    return isinstance(model, ForCausalLM) and not model.config.add_cross_attention


def at_end_of_request(do: Callable[[], object]) -> None:
    """Have something done once the request that is being handled is over, whether it was answered or left.

    The handlers cancel a stream that is left, but of one that is left before they read its first piece they hear
    nothing.
    """
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(lambda _: do())


@contextmanager
def refusals() -> Iterator[None]:
    """Turns what is wrong with a request, or with its time, into the right status.

    Raises:
        HTTPException: 400 in place of a `ValueError`, 503 if there is no place.
    """
    try:
        yield
    except NotBatched:
        raise
    except (BatcherClosed, BatcherFull) as error:
        raise HTTPException(status_code=503, detail=str(error)) from error
    except ValueError as error:
        raise HTTPException(status_code=400, detail=str(error)) from error


class CancelledByClient:
    """ASGI middleware that cancels a request whose client has gone; without it the answer is finished for nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and watch for the disconnection meanwhile."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: asyncio.Queue = asyncio.Queue()
        answering = asyncio.ensure_future(self._app(scope, messages.get, send))

        async def listen() -> None:
            message: Any = {"type": ""}
            while message["type"] != "http.disconnect":
                message = await receive()
                messages.put_nowait(message)
            answering.cancel()

        listening = asyncio.ensure_future(listen())
        try:
            await answering
        except asyncio.CancelledError:
            # Otherwise it is the server that cancels this.
            if not listening.done():
                raise
        finally:
            listening.cancel()

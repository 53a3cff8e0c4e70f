"""The server: routes of its own, in front of the parts of transformers' server that answer, and those that batch.

transformers' application has routes that load any model, unload it and list what the machine holds. Here there are
four, which serve one model that is loaded before. What answers completions and chats are transformers' handlers; they
take whatever parts they are given: these here are subclasses, and nothing of transformers is replaced. One private
name is needed, `_StreamError`: the handlers know an error in a stream by it.

A client is told what is wrong with its request, in OpenAI's format, and never what failed inside, which is logged.
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import DirectStreamer, GenerateManager, GenerationState, _StreamError

from hfseq.data.collation import position_limit, vocabulary_sizes
from hfseq.hub.model_card import is_ours
from hfseq.models.heads_causal import ForCausalLM
from hfseq.serving.batcher import Batcher, BatcherClosed, BatcherFull
from hfseq.serving.http_json import Refusal
from hfseq.serving.requests import NotBatched, RequestError, Unread, stop_criteria
from hfseq.serving.validation import ChatRequest, CompletionRequest, read_request

MAX_WAITING = 1024
"""Requests that wait for a place at most; more are refused with 503."""
_SMALL_BODY = 2**20
_BYTES_OF_TOKEN = 64
_FAILED = "the server failed to answer; its log says why"
_log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """The most that one request gets.

    Attributes:
        max_batch_size: Number of requests that are generated at once.
        max_prompt_tokens: Tokens of a prompt.
        max_new_tokens: Tokens of an answer; as many as a request gets that names no number.
        positions: Tokens of both together; None for any number.
    """

    max_batch_size: int
    max_prompt_tokens: int
    max_new_tokens: int
    positions: int | None = None

    @property
    def body(self) -> int:
        """Bytes of a request's body."""
        return max(_SMALL_BODY, _BYTES_OF_TOKEN * self.max_prompt_tokens)

    def apply(self, prompt: int, config: GenerationConfig) -> None:
        """Set the number of new tokens after a prompt of `prompt` tokens, if the request does not name it.

        Raises:
            Refusal: If prompt or answer are too long.
        """
        code = "context_length_exceeded"
        if prompt == 0:
            raise Refusal(400, "the prompt has no tokens")
        longest = self.max_prompt_tokens if self.positions is None else min(self.max_prompt_tokens, self.positions - 1)
        if prompt > longest:
            raise Refusal(400, f"the prompt has {prompt} tokens, and may have {longest}", code=code)
        room = self.max_new_tokens if self.positions is None else min(self.max_new_tokens, self.positions - prompt)
        if config.max_new_tokens is None:
            config.max_new_tokens = room
        elif config.max_new_tokens > room:
            said = f"{config.max_new_tokens} new tokens are asked for, and after this prompt {room} may be"
            raise Refusal(400, said, param="max_tokens", code=code)


def positions_of(model: PreTrainedModel) -> int | None:
    """Tokens that a model has positions for; None if it reads texts of any length."""
    own = None if is_ours(model) else getattr(model.config, "max_position_embeddings", None)
    return min((one for one in (position_limit(model), own) if one is not None and one > 0), default=None)


def make_app(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, limits: Limits) -> Starlette:
    """The application for a model, whose requests are batched if it is a language model of hfseq.

    Args:
        model: The language model, in evaluation.
        tokenizer: Its tokenizer.
        name: Public name of the model; a request names this one or none.
        limits: The most that one request gets.
    """
    state = BatchingState(BatchingManager(limits))
    models = OneModel(model, tokenizer, name)
    completion, chat = CompletionHandler(models, state), ChatCompletionHandler(models, state)
    vocab_size = vocabulary_sizes(model)["vocab_size"]
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "local"}

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def complete(request: Request) -> Response:
        asked = await read_request(request, CompletionRequest, limits.body)
        check_name(asked.model, name)
        return await completion.handle_request(asked.for_handler(name, vocab_size), f"cmpl-{uuid.uuid4().hex}")

    async def reply(request: Request) -> Response:
        asked = await read_request(request, ChatRequest, limits.body)
        check_name(asked.model, name)
        body = asked.for_handler(name, vocab_size)
        check_chat(tokenizer, body["messages"])
        return await chat.handle_request(body, f"chatcmpl-{uuid.uuid4().hex}")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        state.shutdown()

    app = Starlette(
        routes=[
            Route("/v1/models", list_models, methods=["GET"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/chat/completions", reply, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ],
        middleware=[Middleware(CancelledByClient)],
        exception_handlers={HTTPException: report_refusal, Exception: report_failure},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def check_name(asked: str | None, name: str) -> None:
    """Refuse a request for another model.

    Raises:
        Refusal: 404 in OpenAI's words.
    """
    if asked is not None and asked != name:
        said = f"the model {asked[:100]!r} does not exist; this server has {name!r}"
        raise Refusal(404, said, param="model", code="model_not_found")


def check_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> None:
    """Refuse messages that the tokenizer makes no prompt of.

    Raises:
        Refusal: If there is no template, or it does not take them.
    """
    if tokenizer.chat_template is None:
        raise Refusal(400, "the model has no chat template; use /v1/completions")
    try:
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    # A template can raise what it likes.
    except Exception as error:
        _log.info("the chat template failed", exc_info=error)
        raise Refusal(400, "the model's chat template does not take these messages", param="messages") from error


async def report_refusal(request: Request, error: Any) -> Response:
    """The response to a refused request, in OpenAI's format."""
    return report(error.status_code, error.detail, getattr(error, "param", None), getattr(error, "code", None))


async def report_failure(request: Request, error: Exception) -> Response:
    """Nothing of an error inside; Starlette raises it again, for the log."""
    return report(500, _FAILED)


def report(status: int, message: str, param: str | None = None, code: str | None = None) -> Response:
    """An error in OpenAI's format."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)


class OneModel(ModelManager):
    """The one model that is served; no other is ever loaded, and this one never unloaded.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        name: Its public name.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        super().__init__()
        self._loaded: Any = (model, tokenizer)
        # The handlers refuse other names by it; given to the constructor, it would be loaded.
        self.force_model = name

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The name as it is, without a revision."""
        return model_id

    def load_model_and_processor(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> Any:
        """The model and its tokenizer, whatever is asked for."""
        return self._loaded


class BatchingState(GenerationState):
    """Gives the model its manager."""

    def __init__(self, manager: "BatchingManager") -> None:
        super().__init__()
        self._manager = manager

    def get_manager(self, model_id: str, use_cb: bool = False) -> "BatchingManager":
        """The manager; `use_cb`, transformers' own batching by paged attention, is never asked for."""
        return self._manager

    def shutdown(self) -> None:
        """Stop the manager."""
        super().shutdown()
        self._manager.stop()


class BatchingManager(GenerateManager):
    """Generates in a batch what can be, and all else by `model.generate`, one after the other: other models, beams.

    Methods and arguments are those of `GenerateManager`. They are called in the thread of the server's event loop.

    Args:
        limits: The most that one request gets.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._batcher: Batcher | None = None
        self._alone: set[Future] = set()

    def generate_streaming(
        self,
        model: PreTrainedModel,
        processor: Any,
        inputs: dict,
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue, DirectStreamer]:
        """Start, and return a queue of pieces of text and the streamer that fills it.

        Raises:
            Refusal: If the request is impossible, or there is no place.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue = asyncio.Queue()
        streamer = DirectStreamer(processor._tokenizer, loop, queue, response_parser=response_parser)
        future = self._submit(model, processor, inputs, gen_config, streamer)
        at_end_of_request(future.cancel)

        def report(future: Future) -> None:
            if not future.cancelled() and (error := future.exception()) is not None:
                # The handlers put it between quotation marks as it is.
                escaped = json.dumps(refusal_of(error).detail)[1:-1]
                loop.call_soon_threadsafe(queue.put_nowait, _StreamError(escaped))

        future.add_done_callback(report)
        return queue, streamer

    async def generate_non_streaming(
        self,
        model: PreTrainedModel,
        processor: Any,
        inputs: dict,
        gen_config: GenerationConfig,
        request_id: str,
    ) -> tuple[str, int, Any]:
        """Text, number of tokens of the prompt, and the new tokens.

        Raises:
            Refusal: If the request is impossible, there is no place, or generating fails.
        """
        future = self._submit(model, processor, inputs, gen_config)
        try:
            tokens = await asyncio.wrap_future(future)
        except Exception as error:
            raise refusal_of(error) from error
        return processor.decode(tokens, skip_special_tokens=True), inputs["input_ids"].shape[-1], tokens

    def stop(self) -> None:
        """End the batch, and with it what is not finished."""
        for future in list(self._alone):
            future.cancel()
        if self._batcher is not None:
            self._batcher.close()
            self._batcher = None

    def _submit(
        self,
        model: Any,
        tokenizer: Any,
        inputs: dict,
        gen_config: GenerationConfig,
        streamer: DirectStreamer | None = None,
    ) -> Future[list[int]]:
        """See `Batcher.submit`. A request's seed has just seeded torch's global generator, which gives the row's."""
        self._limits.apply(inputs["input_ids"].shape[-1], gen_config)
        try:
            if is_batched(model):
                if self._batcher is None:
                    size = self._limits.max_batch_size
                    self._batcher = Batcher(model, max_batch_size=size, max_waiting=MAX_WAITING)
                with suppress(NotBatched):
                    ids = inputs["input_ids"][0]
                    return self._batcher.submit(ids, gen_config, tokenizer=tokenizer, streamer=streamer)
            return self._generate(model, tokenizer, inputs, gen_config, streamer)
        except (BatcherClosed, BatcherFull, RequestError) as error:
            raise refusal_of(error) from error

    def _generate(
        self, model: Any, tokenizer: Any, inputs: dict, config: GenerationConfig, streamer: DirectStreamer | None
    ) -> Future[list[int]]:
        """Have `model.generate` do it, in the thread that is for this; cancelling ends it."""
        self._alone = {future for future in self._alone if not future.done()}
        # One of them is generated.
        if len(self._alone) > MAX_WAITING:
            raise BatcherFull(f"{len(self._alone) - 1} requests wait already; try again later")
        ids = inputs["input_ids"]
        if int(ids.max()) >= vocabulary_sizes(model)["vocab_size"]:
            raise RequestError("the prompt has a token that is not one of the model's")
        left = Unread()
        criteria = StoppingCriteriaList([left, *stop_criteria(tokenizer, config)])
        config.stop_strings = None
        future: Future[list[int]] = Future()
        future.add_done_callback(lambda _: left.event.set())
        self._alone.add(future)

        def generate() -> None:
            if future.done():
                return
            try:
                sequences = model.generate(
                    **{name: inputs[name] for name in ("input_ids", "attention_mask")},
                    generation_config=config,
                    # `generate` takes the stop strings of a model's own config, too.
                    tokenizer=tokenizer,
                    stopping_criteria=criteria,
                    logits_processor=LogitsProcessorList([SomeToken()] if (config.num_beams or 1) == 1 else []),
                    **({} if streamer is None else {"streamer": streamer}),
                )
                with suppress(InvalidStateError):
                    future.set_result(sequences[0, ids.shape[-1] :].tolist())
            except Exception as error:
                with suppress(InvalidStateError):
                    future.set_exception(error)

        self.submit(generate)
        return future


class SomeToken(LogitsProcessor):
    """Refuses scores that leave no token to draw, of which torch says something less helpful."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The scores as they are."""
        if not bool((scores > -torch.inf).any()):
            raise RequestError("the settings leave no token with a probability")
        return scores


def refusal_of(error: BaseException) -> Refusal:
    """The message that a client gets of an error; errors that are not its own fault go to the log."""
    if isinstance(error, RequestError):
        return Refusal(400, str(error))
    if isinstance(error, BatcherClosed | BatcherFull):
        return Refusal(503, str(error))
    _log.error("a request failed", exc_info=error)
    return Refusal(500, _FAILED)


def is_batched(model: PreTrainedModel) -> bool:
    """Whether a model is a language model of hfseq."""
    return isinstance(model, ForCausalLM)


def at_end_of_request(do: Callable[[], object]) -> None:
    """Have something done once the request that is being handled is over, whether it was answered or left.

    The handlers cancel a stream that is left, but of one that is left before they read its first piece they hear
    nothing.
    """
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(lambda _: do())


class CancelledByClient:
    """ASGI middleware that cancels a request whose client has gone; without it the answer is finished for nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and watch for the disconnection meanwhile."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # No more of a body is taken in than is read.
        messages: asyncio.Queue = asyncio.Queue(maxsize=1)
        answering = asyncio.ensure_future(self._app(scope, messages.get, send))

        async def listen() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                await messages.put(message)
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

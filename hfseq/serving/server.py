"""The HTTP application: own routes, the request handlers of transformers' server, continuous batching.

transformers' application has routes that load any model, unload it, and list the models on the machine. This one has
four routes, for one model that is loaded beforehand. Completions and chats are answered by transformers' handlers,
which are given subclasses of its managers; nothing of transformers is replaced. `transformers.cli.serving` is not a
public interface: all that hfseq uses of it is in this module, including one private name, `_StreamError`, by which the
handlers recognise an error in a stream. A test lists these parts.

Clients get the errors in their requests, in OpenAI's format, but no details of internal failures, which are logged.
"""

import asyncio
import json
import logging
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, cast

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
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
from transformers.cli.serving.utils import DirectStreamer, GenerateManager, GenerationState, Modality, _StreamError

from hfseq.data.collation import position_limit, vocabulary_sizes
from hfseq.models import is_hfseq
from hfseq.models.heads_causal import ForCausalLM
from hfseq.serving.batcher import Batcher, BatcherClosed, BatcherFull
from hfseq.serving.http_json import Refusal
from hfseq.serving.requests import NO_CANDIDATES, Cancelled, NotBatched, RequestError, check_ids, stop_criteria
from hfseq.serving.validation import ChatRequest, CompletionRequest, read_request

MAX_WAITING = 1024
"""Maximum number of waiting requests; further ones are rejected with 503."""
_MIN_BODY = 2**20
_BYTES_PER_TOKEN = 64
_FAILED = "internal server error; see the server's log"
_log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """Limits of a request.

    Attributes:
        max_batch_size: Maximum number of requests generated concurrently.
        max_prompt_tokens: Maximum length of a prompt in tokens.
        max_new_tokens: Maximum number of generated tokens, and the default of requests that set none.
        positions: Maximum length of both together.
    """

    max_batch_size: int
    max_prompt_tokens: int
    max_new_tokens: int
    positions: int = sys.maxsize

    @property
    def body(self) -> int:
        """Maximum size of a request body in bytes."""
        return max(_MIN_BODY, _BYTES_PER_TOKEN * self.max_prompt_tokens)

    def apply(self, prompt: int, config: GenerationConfig) -> None:
        """Set the number of new tokens after a prompt of `prompt` tokens, if the request does not.

        Raises:
            Refusal: If the prompt is empty, or prompt or answer exceed the limits.
        """
        code = "context_length_exceeded"
        if prompt == 0:
            raise Refusal(400, "the prompt has no tokens")
        longest = min(self.max_prompt_tokens, self.positions - 1)
        if prompt > longest:
            raise Refusal(400, f"the prompt has {prompt} tokens; the maximum is {longest}", code=code)
        room = min(self.max_new_tokens, self.positions - prompt)
        if config.max_new_tokens is None:
            config.max_new_tokens = room
        elif config.max_new_tokens > room:
            message = f"{config.max_new_tokens} new tokens were requested; the maximum after this prompt is {room}"
            raise Refusal(400, message, param="max_tokens", code=code)


def positions_of(model: PreTrainedModel) -> int:
    """Number of positions that a model supports; `sys.maxsize` if it is unlimited."""
    own = None if is_hfseq(model.config) else getattr(model.config, "max_position_embeddings", None)
    return min((one for one in (position_limit(model), own) if one is not None and one > 0), default=sys.maxsize)


def make_app(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, limits: Limits) -> Starlette:
    """Create the application for a model; requests to a language model of hfseq are batched.

    Args:
        model: The language model, in evaluation mode.
        tokenizer: Tokenizer of the model.
        name: Public name of the model; requests may name no other.
        limits: Limits of a request.
    """
    manager = BatchingManager(limits)
    state = BatchingState(manager)
    models = OneModel(model, tokenizer, name)
    vocab_size = vocabulary_sizes(model)["vocab_size"]
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "local"}

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    def answer(schema: Any, handler: CompletionHandler | ChatCompletionHandler, prefix: str) -> Callable:
        async def endpoint(request: Request) -> Response:
            asked = await read_request(request, schema, limits.body)
            if asked.model not in (None, name):
                message = f"the model {asked.model[:100]!r} does not exist; this server has {name!r}"
                raise Refusal(404, message, param="model", code="model_not_found")
            body = asked.for_handler(name, vocab_size)
            if "messages" in body:
                check_chat(tokenizer, body["messages"])
            answering = handler.handle_request(body, f"{prefix}-{uuid.uuid4().hex}")
            try:
                # A response that streams listens for the disconnection itself.
                return await (answering if body["stream"] else unless_disconnected(request, answering))
            except HTTPException:
                raise
            except Exception as error:
                raise refusal_of(error) from error

        return endpoint

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        manager.stop()

    complete = answer(CompletionRequest, CompletionHandler(models, state), "cmpl")
    reply = answer(ChatRequest, ChatCompletionHandler(models, state), "chatcmpl")
    app = Starlette(
        routes=[
            Route("/v1/models", list_models, methods=["GET"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/chat/completions", reply, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ],
        # Starlette raises an internal error again after the response, for the log.
        exception_handlers={HTTPException: report, ClientDisconnect: report, Exception: report},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def check_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> None:
    """Check that the chat template of a tokenizer accepts messages.

    Raises:
        Refusal: If it does not, or there is none.
    """
    if tokenizer.chat_template is None:
        raise Refusal(400, "the model has no chat template; use /v1/completions")
    try:
        texts = ChatCompletionHandler.get_processor_inputs_from_messages(messages, Modality.LLM)
        tokenizer.apply_chat_template(texts, add_generation_prompt=True, tokenize=False)
    # Templates can raise any exception.
    except Exception as error:
        _log.info("the chat template failed", exc_info=error)
        raise Refusal(400, "the model's chat template rejects these messages", param="messages") from error


async def report(request: Request, error: Any) -> Response:
    """The response to a rejected or failed request, in OpenAI's format."""
    status, message = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, _FAILED)
    kind = "invalid_request_error" if status < 500 else "server_error"
    details = {"message": message, "type": kind, "param": None, "code": None}
    if isinstance(error, Refusal):
        details |= {"param": error.param, "code": error.code}
    return JSONResponse({"error": details}, status)


class OneModel(ModelManager):
    """The served model; no other is ever loaded, and this one is never unloaded.

    Args:
        model: The model.
        tokenizer: Tokenizer of the model.
        name: Public name of the model.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        super().__init__()
        self._loaded: Any = (model, tokenizer)
        # The handlers reject other names by it; as an argument of the constructor it would be loaded.
        self.force_model = name

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """Return the name as it is, without a revision."""
        return model_id

    def load_model_and_processor(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> Any:
        """Return the model and its tokenizer."""
        return self._loaded


class BatchingState(GenerationState):
    """Provides the manager of the model to the handlers."""

    def __init__(self, manager: "BatchingManager") -> None:
        super().__init__()
        self._manager = manager

    def get_manager(self, model_id: str, use_cb: bool = False) -> "BatchingManager":
        """Return the manager; `use_cb`, transformers' own batching with paged attention, is never requested."""
        return self._manager


class BatchingManager(GenerateManager):
    """Batches requests where possible; other models and beam search go to `model.generate`, one request at a time.

    The interface is that of `GenerateManager`. Methods are called in the thread of the server's event loop.

    Args:
        limits: Limits of a request.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._batcher: Batcher | None = None
        self._unbatched: set[Future] = set()

    def generate_streaming(
        self, model: Any, processor: Any, inputs: dict, gen_config: Any, request_id: str, response_parser: Any = None
    ) -> tuple[asyncio.Queue, DirectStreamer]:
        """Start generation; return a queue of text chunks and the streamer that fills it.

        Raises:
            Refusal: If prompt or answer exceed the limits.
            RequestError: If the request is invalid otherwise.
            BatcherFull: If the queue of requests is full.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        queue: asyncio.Queue = asyncio.Queue()
        streamer = CancellingStreamer(processor.backend_tokenizer, loop, queue, response_parser=response_parser)
        future = streamer.future = self._submit(model, processor, inputs, gen_config, streamer)
        # The handlers do not cancel a stream whose client disconnects before the first chunk is read.
        assert task is not None
        task.add_done_callback(lambda _: future.cancel())

        def report_error(future: Future) -> None:
            if not future.cancelled() and (error := future.exception()) is not None:
                # The handlers put the message between quotation marks without escaping it.
                escaped = json.dumps(refusal_of(error).detail)[1:-1]
                loop.call_soon_threadsafe(queue.put_nowait, _StreamError(escaped))

        future.add_done_callback(report_error)
        return queue, streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: dict, gen_config: Any, request_id: str
    ) -> tuple[str, int, Any]:
        """Return the text, the number of prompt tokens, and the new tokens.

        Raises:
            Exception: As for `generate_streaming`, and whatever generation raises.
        """
        tokens = await asyncio.wrap_future(self._submit(model, processor, inputs, gen_config))
        return processor.decode(tokens, skip_special_tokens=True), inputs["input_ids"].shape[-1], tokens

    def stop(self) -> None:
        """Stop generation; unfinished requests are cancelled."""
        for future in list(self._unbatched):
            future.cancel()
        if self._batcher is not None:
            self._batcher.close()
            self._batcher = None

    def _submit(
        self,
        model: Any,
        tokenizer: Any,
        inputs: dict,
        config: GenerationConfig,
        streamer: DirectStreamer | None = None,
    ) -> Future[list[int]]:
        """Future of the new tokens.

        The handler has just seeded torch's global generator with the seed of the request, if it has one, and the
        batcher draws the seed of the row from it.
        """
        self._limits.apply(inputs["input_ids"].shape[-1], config)
        if is_batched(model):
            if self._batcher is None:
                self._batcher = Batcher(model, max_batch_size=self._limits.max_batch_size, max_waiting=MAX_WAITING)
            with suppress(NotBatched):
                return self._batcher.submit(inputs["input_ids"][0], config, tokenizer=tokenizer, streamer=streamer)
        return self._generate(model, tokenizer, inputs, config, streamer)

    def _generate(
        self, model: Any, tokenizer: Any, inputs: dict, config: GenerationConfig, streamer: DirectStreamer | None
    ) -> Future[list[int]]:
        """Run `model.generate` in the inference thread; cancelling the future stops it."""
        self._unbatched = {future for future in self._unbatched if not future.done()}
        # One of them is running.
        if len(self._unbatched) > MAX_WAITING:
            raise BatcherFull(f"{len(self._unbatched) - 1} requests are waiting already; try again later")
        ids = inputs["input_ids"]
        check_ids(ids, cast(int, vocabulary_sizes(model)["vocab_size"]))
        cancelled = Cancelled()
        criteria = StoppingCriteriaList([cancelled, *stop_criteria(tokenizer, config)])
        config.stop_strings = None
        processors = [HasCandidates()] if (config.num_beams or 1) == 1 else []
        future: Future[list[int]] = Future()
        future.add_done_callback(lambda _: cancelled.event.set())
        self._unbatched.add(future)

        def generate() -> None:
            if future.done():
                return
            # The request may be cancelled at any time.
            with suppress(InvalidStateError):
                try:
                    sequences = model.generate(
                        ids,
                        attention_mask=inputs["attention_mask"],
                        generation_config=config,
                        # For stop strings of the model's own config.
                        tokenizer=tokenizer,
                        stopping_criteria=criteria,
                        logits_processor=LogitsProcessorList(processors),
                        streamer=streamer,
                    )
                except Exception as error:
                    future.set_exception(error)
                else:
                    future.set_result(sequences[0, ids.shape[-1] :].tolist())

        self.submit(generate)
        return future


class CancellingStreamer(DirectStreamer):
    """Cancels the request whose tokens it takes.

    transformers' own only raises an exception at the next token, which would be taken for a failure of the request.
    """

    future: Future[list[int]]

    def cancel(self) -> None:
        """Stop generation."""
        self.future.cancel()
        super().cancel()


class HasCandidates(LogitsProcessor):
    """Raises a clear error, before torch raises an obscure one, if no token has a nonzero probability."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return the scores unchanged."""
        if not bool((scores > -torch.inf).any()):
            raise RequestError(NO_CANDIDATES)
        return scores


def refusal_of(error: BaseException) -> Refusal:
    """The response to an error; errors that the client did not cause are logged."""
    if isinstance(error, RequestError):
        return Refusal(400, str(error))
    if isinstance(error, BatcherClosed | BatcherFull):
        return Refusal(503, str(error))
    _log.error("a request failed", exc_info=error)
    return Refusal(500, _FAILED)


def is_batched(model: PreTrainedModel) -> bool:
    """Return True for a language model of hfseq."""
    return isinstance(model, ForCausalLM)


async def unless_disconnected(request: Request, answering: Coroutine[Any, Any, Response]) -> Response:
    """The response to a request whose body has been read, cancelled once the client disconnects."""
    tasks = asyncio.ensure_future(answering), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return await tasks[0] if tasks[0].done() else Response(status_code=499)
    finally:
        for task in tasks:
            task.cancel()

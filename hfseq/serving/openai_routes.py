"""OpenAI's API for language models: `/v1/completions` and `/v1/chat/completions`."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hfseq.serving.generation import Generation, GenerationRequest, Piece
from hfseq.serving.http_json import Refusal, arriving, choose_model, timed_out, unless_disconnected
from hfseq.serving.language_model import LanguageModel
from hfseq.serving.openai_answers import Answers, ChatAnswers, CompletionAnswers, Prompt, read_prompt, usage_of
from hfseq.serving.openai_schemas import ChatRequest, CompletionRequest, body_schema, read_request
from hfseq.serving.refusals import details_of, refusal_of

_log = logging.getLogger(__name__)


class Answered(NamedTuple):
    """A request that has been answered.

    Attributes:
        request: The request.
        model: Name of the model.
        inputs: Its prompts or messages, one for each generation.
        parameters: The other fields of its body.
        generations: Answers to the inputs.
        prompt_tokens: Number of tokens of the inputs.
    """

    request: Request
    model: str
    inputs: Sequence[Any]
    parameters: Mapping[str, Any]
    generations: Sequence[Generation]
    prompt_tokens: int


class HttpSettings(Protocol):
    """Settings of the application that matter here."""

    @property
    def timeout(self) -> float:
        """Seconds after which a request is given up."""

    @property
    def max_body(self) -> int:
        """Maximum size of a request body in bytes."""


def openai_router(
    models: Mapping[str, LanguageModel],
    settings: HttpSettings,
    answered: Callable[[Answered], None] | None = None,
) -> APIRouter:
    """Create the routes.

    Errors are raised as `Refusal`, for a handler of the application; in a stream they are its last event. The name of
    the model is left in `request.state.model`.

    Args:
        models: Language models by their public names.
        settings: Settings of the application.
        answered: Called with each request that has been answered.
    """
    router = APIRouter()

    def route(path: str, schema: Any, plan: Callable[[Any, str, LanguageModel], "Job"], summary: str) -> None:
        async def endpoint(request: Request) -> Response:
            async with arriving(settings.timeout):
                asked = await read_request(request, schema, settings.max_body)
            name = choose_model(models, asked.model, "language model")
            model = models[name]
            request.state.model = name

            def finish(job: Job, generations: Sequence[Generation]) -> None:
                if answered is not None:
                    parameters = asked.model_dump(exclude={"prompt", "messages", "model"}, exclude_none=True)
                    tokens = sum(len(prompt.ids) for prompt in job.prompts)
                    answered(Answered(request, name, job.inputs, parameters, generations, tokens))

            try:
                # Long texts take long to tokenize.
                job = await model.reader.run(plan, asked, name, model)
                running = Running(model, job, bool(asked.stream), settings.timeout, finish)
                return await (running.stream() if asked.stream else running.answer(request))
            except (ClientDisconnect, Refusal):
                raise
            except Exception as error:
                raise refusal_of(error) from error

        router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            summary=summary,
            response_class=JSONResponse,
            response_model=None,
            openapi_extra={
                "requestBody": {"required": True, "content": {"application/json": {"schema": body_schema(schema)}}}
            },
        )

    route("/v1/completions", CompletionRequest, completion_job, "Continue prompts")
    route("/v1/chat/completions", ChatRequest, chat_job, "Reply to messages")
    return router


class Job(NamedTuple):
    """A request, ready to be generated.

    Attributes:
        inputs: Prompts or messages as given, one for each prompt.
        prompts: Tokenized prompts.
        requests: A request to the model for each prompt.
        answers: Builds the response.
    """

    inputs: Sequence[Any]
    prompts: Sequence[Prompt]
    requests: Sequence[GenerationRequest]
    answers: Answers


def completion_job(asked: CompletionRequest, name: str, model: LanguageModel) -> Job:
    """Prepare a completion.

    Raises:
        Refusal: If a prompt exceeds the limits, or a field is invalid.
    """
    echo = bool(asked.echo)
    if echo and asked.stream and asked.logprobs is not None:
        raise Refusal(400, "logprobs: not in a stream with echo=true", param="logprobs")
    for ids in asked.prompt:
        if not isinstance(ids, str):
            # Before they are decoded.
            model.limits.new_tokens(len(ids), asked.max_tokens)
            if min(ids) < 0 or max(ids) >= model.vocab_size:
                message = f"prompt: a token id is outside the vocabulary of {model.vocab_size}"
                raise Refusal(400, message, param="prompt")
    prompts = [read_prompt(model.tokenizer, prompt, echo) for prompt in asked.prompt]
    more = {"best_of": asked.best_of, "logprobs": asked.logprobs}
    more["prompt_logprobs"] = echo and asked.logprobs is not None
    requests = [_request(asked, model, prompt, "max_tokens", **more) for prompt in prompts]
    answers = CompletionAnswers(name, model, echo, asked.logprobs is not None, asked.include_usage)
    return Job(asked.prompt, prompts, requests, answers)


def chat_job(asked: ChatRequest, name: str, model: LanguageModel) -> Job:
    """Prepare a reply.

    Raises:
        Refusal: If the model has no chat template or it rejects the messages, or as `completion_job`.
    """
    if model.tokenizer.chat_template is None:
        raise Refusal(400, "the model has no chat template; use /v1/completions", param="messages")
    messages = [{"role": one.role, "content": " ".join(part.text for part in one.content)} for one in asked.messages]
    try:
        encoding = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    # Templates can raise any exception.
    except Exception as error:
        # It may quote the messages.
        _log.debug("the chat template failed", exc_info=error)
        raise Refusal(400, "the model's chat template rejects these messages", param="messages") from error
    prompt = Prompt(encoding["input_ids"])
    field = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    requests = [_request(asked, model, prompt, field, logprobs=logprobs, continues=False)]
    answers = ChatAnswers(name, model, bool(asked.logprobs), asked.include_usage, bool(asked.stream))
    return Job([messages], [prompt], requests, answers)


def _request(asked: Any, model: LanguageModel, prompt: Prompt, field: str, **more: Any) -> GenerationRequest:
    """Request to the model for a prompt; `field` is the one that limits the answer."""
    try:
        new = model.limits.new_tokens(len(prompt.ids), getattr(asked, field))
    except Refusal as error:
        error.param = field if error.param == "max_tokens" else error.param
        raise
    if (asked.min_tokens or 0) > new:
        raise Refusal(400, f"min_tokens: at most {field}={new}", param="min_tokens")
    return GenerationRequest(
        prompt=prompt.ids,
        max_new_tokens=new,
        options=asked.options(model.vocab_size, model.model.generation_config),
        n=asked.n or 1,
        seed=asked.seed,
        stop=asked.stop or (),
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        **more,
    )


class Running:
    """A request that is being generated.

    Args:
        model: The model.
        job: The request.
        streams: Whether the answer is streamed.
        timeout: Seconds after which the request is given up.
        finish: Called with the job and the answers.

    Raises:
        Exception: As `LanguageModel.submit`.
    """

    def __init__(
        self,
        model: LanguageModel,
        job: Job,
        streams: bool,
        timeout: float,
        finish: Callable[[Job, Sequence[Generation]], None],
    ) -> None:
        self._job, self._finish, self._timeout = job, finish, timeout
        self._loop = asyncio.get_running_loop()
        # Bounded by the number of new tokens; a slow reader keeps no one waiting.
        self._queue: asyncio.Queue[tuple[int, int, Piece] | Exception | None] = asyncio.Queue()
        self._futures: list[Future[Generation]] = []
        try:
            for place, request in enumerate(job.requests):
                on_piece = self._receiver(place) if streams else None
                self._futures.append(model.submit(replace(request, on_piece=on_piece)))
        except Exception:
            self.cancel()
            raise

    def cancel(self) -> None:
        """End the generation."""
        for future in self._futures:
            future.cancel()

    async def answer(self, request: Request) -> Response:
        """Return the whole answer.

        Raises:
            ClientDisconnect: If the client disconnects before.
            Refusal: If the request takes too long.
            Exception: What generation raises.
        """
        try:
            async with asyncio.timeout(self._timeout):
                answering = asyncio.gather(*map(asyncio.wrap_future, self._futures))
                generations = await unless_disconnected(request, answering)
        except TimeoutError:
            raise timed_out(self._timeout) from None
        finally:
            self.cancel()
        self._finish(self._job, generations)
        return JSONResponse(self._job.answers.whole(self._job.prompts, generations))

    async def stream(self) -> Response:
        """Return the answer as a stream of events."""
        for future in self._futures:
            future.add_done_callback(self._note_end)
        timer = self._loop.call_later(self._timeout, self._queue.put_nowait, timed_out(self._timeout))

        def end() -> None:
            timer.cancel()
            self.cancel()

        return EventStream(self._events(), end)

    async def _events(self) -> AsyncIterator[bytes]:
        job, answers = self._job, self._job.answers
        for place, request in enumerate(job.requests):
            for number in range(request.n):
                index = place * request.n + number
                if (choice := answers.first(index, job.prompts[place])) is not None:
                    yield _event(answers.chunk([choice]))
        left = len(self._futures)
        while left:
            found = await self._queue.get()
            if isinstance(found, Exception):
                yield _event({"error": details_of(refusal_of(found))})
                return
            if found is None:
                left -= 1
                continue
            place, number, piece = found
            if piece.text or piece.logprobs or piece.finish_reason:
                index = place * job.requests[place].n + number
                yield _event(answers.chunk([answers.delta(index, job.prompts[place], piece)]))
        generations = [future.result() for future in self._futures]
        self._finish(job, generations)
        if answers.include_usage:
            yield _event(answers.chunk([], usage_of(job.prompts, generations)))
        yield b"data: [DONE]\n\n"

    def _receiver(self, place: int) -> Callable[[int, Piece], None]:
        """Put pieces of a prompt's sequences, which come from another thread, into the queue."""
        return lambda number, piece: self._put((place, number, piece))

    def _note_end(self, future: Future[Generation]) -> None:
        if not future.cancelled():
            self._put(future.exception())  # type: ignore[arg-type]

    def _put(self, item: tuple[int, int, Piece] | Exception | None) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, item)


class EventStream(StreamingResponse):
    """Server-sent events.

    Args:
        events: The events.
        end: Called once the stream has ended for any reason, even before its first event.
    """

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

"""Text generation behind `/predict`, by the same model that answers OpenAI's requests."""

from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from hfseq.errors import InputError
from hfseq.serving.dynamic import Item
from hfseq.serving.generation import Generation, GenerationRequest
from hfseq.serving.http_json import Refusal
from hfseq.serving.language_model import LanguageModel
from hfseq.serving.limits import LONGEST_STOP, MAX_STOPS
from hfseq.serving.parameters import GenerationParameters
from hfseq.serving.prediction import Predictor, type_name

# The pipeline samples unless the request or the model's settings say otherwise.
_DEFAULTS = {"do_sample": True, "temperature": 0.7}
# Settings of the request that are not fields of a `GenerationConfig`.
_OWN = {"max_new_tokens", "num_return_sequences", "seed", "return_full_text", "stop"}


class TextGenerationParameters(GenerationParameters):
    """Settings of text generation."""

    return_full_text: bool | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]] | None, Field(max_length=MAX_STOPS)
    ] = None


class Prompted(NamedTuple):
    """A prompt, and the request to the model for it."""

    text: str
    request: GenerationRequest
    full_text: bool


class TextGeneration(Predictor):
    """Continuations of texts: for each a list of texts, which begin with it unless `return_full_text` is false.

    Other than the pipeline's they have the space between the text and its continuation.

    Args:
        model: The served model.
    """

    parameters = TextGenerationParameters

    def __init__(self, model: LanguageModel) -> None:
        self.task, self.limits, self._model = "text-generation", model.limits, model
        own = model.model.generation_config
        self._defaults = {name: value for name, value in _DEFAULTS.items() if getattr(own, name) is None}

    def check(self, options: Any) -> Any:
        """Check settings that depend on each other."""
        given = self._defaults | options.given()
        beams, wanted = given.get("num_beams", 1), given.get("num_return_sequences", 1)
        if beams > 1 and options.do_sample:
            raise InputError("num_beams: beam search does not sample")
        longest = options.max_new_tokens or self.limits.max_new_tokens
        if (options.min_new_tokens or 0) > longest:
            raise InputError(f"min_new_tokens: {options.min_new_tokens} is more than the maximum of new tokens")
        if beams > 1 and wanted > beams:
            raise InputError(f"num_return_sequences: {wanted}, but there are {beams} beams")
        return options

    def read(self, value: Any, place: str, options: Any) -> tuple[Prompted, int]:
        """Check a text and make the request for it."""
        if not isinstance(value, str):
            raise InputError(f"{place}: {type_name(value)} in place of a text")
        ids = self._model.tokenizer(value)["input_ids"]
        try:
            new = self.limits.new_tokens(len(ids), options.max_new_tokens)
        except Refusal as error:
            about = "max_new_tokens" if error.param else place
            raise InputError(f"{about}: {error.detail}") from error
        given = {name: value for name, value in options.given().items() if name not in _OWN}
        if given.get("num_beams", 1) > 1:
            given["do_sample"] = False
        request = GenerationRequest(
            prompt=ids,
            max_new_tokens=new,
            options=self._defaults | given,
            n=options.num_return_sequences or 1,
            seed=options.seed,
            stop=tuple(options.stop or ()),
        )
        return Prompted(value, request, options.return_full_text is not False), len(ids)

    def summarize(self, value: Prompted) -> str:
        """The text, for the log of the traffic."""
        return value.text


class TextGenerationQueue:
    """Hands the inputs of `/predict` to a language model.

    Args:
        model: The served model.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    @property
    def waiting(self) -> int:
        """Number of waiting sequences, those of OpenAI's requests included."""
        return self._model.statistics().waiting

    @property
    def alive(self) -> bool:
        """True if inputs are being processed."""
        return self._model.alive

    def submit(self, items: Sequence[Item]) -> None:
        """Queue the inputs of a request, all or none.

        Raises:
            Exception: As `LanguageModel.submit`.
        """
        futures: list[Future[Generation]] = []
        try:
            for item in items:
                futures.append(self._model.submit(item.value.request))
        except Exception:
            for future in futures:
                future.cancel()
            raise
        for item, future in zip(items, futures, strict=True):
            _link(item, future)

    def close(self, timeout: float | None = None) -> None:
        """Answer what there is, for so many seconds at most, then stop."""
        self._model.close(timeout)


def _link(item: Item, future: Future[Generation]) -> None:
    """Pass an answer on to an input, and the input's cancellation on to the model."""

    def finish(_: Future) -> None:
        with suppress(InvalidStateError):
            if future.cancelled():
                item.future.cancel()
            elif (error := future.exception()) is not None:
                item.future.set_exception(error)
            else:
                before = item.value.text if item.value.full_text else ""
                completions = future.result().completions
                item.future.set_result([{"generated_text": before + one.text} for one in completions])

    item.future.add_done_callback(lambda _: future.cancel())
    future.add_done_callback(finish)

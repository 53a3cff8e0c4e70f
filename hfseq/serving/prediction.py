"""The interface of a pipeline task behind `/predict`.

A predictor checks a request before it is queued, so that most errors are found without the model, and runs batches of
inputs through the pipeline of its task. It answers as that pipeline does, in JSON.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, ClassVar, cast

import torch
from transformers import PreTrainedModel, pipeline

from hfseq.errors import InputError
from hfseq.processing import extractor_of, tokenizer_of
from hfseq.serving.direct import without_loader
from hfseq.serving.dynamic import Item
from hfseq.serving.limits import Limits
from hfseq.serving.parameters import Parameters
from hfseq.serving.schemas import MAX_INPUTS

# Sampling draws from torch's global generator, which requests with a seed have to themselves.
_SAMPLING = Lock()


@contextmanager
def _unwarned() -> Iterator[None]:
    """Create a pipeline without the list of all classes that it supports, which ONNX exports are not in."""
    logger = logging.getLogger("transformers.pipelines.base")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class Predictor:
    """A task's inputs, settings and results; see the subclasses.

    Args:
        model: The model, or the runner of its ONNX export.
        processing_class: Its tokenizer, feature extractor or processor.
        task: Name of the pipeline's task.
        limits: Limits of a request.
        options: Arguments of the pipeline, such as `prefix`.
    """

    parameters: ClassVar[type[Parameters]] = Parameters

    def __init__(
        self, model: PreTrainedModel, processing_class: Any, task: str, limits: Limits, **options: Any
    ) -> None:
        self.task = task
        self.limits = limits
        # Copies: tokenizers change while they encode. One counts tokens, another is the pipeline's, in its thread.
        tokenizer, extractor = copy.deepcopy(tokenizer_of(processing_class)), extractor_of(processing_class)
        if tokenizer is not None:
            tokenizer.model_max_length = min(tokenizer.model_max_length, limits.max_input_tokens, limits.positions)
            options["tokenizer"] = copy.deepcopy(tokenizer)
        if extractor is not None:
            options["feature_extractor"] = extractor
        self.tokenizer, self.extractor = tokenizer, extractor
        with _unwarned():
            pipe = pipeline(cast(Any, task), model=model, device=model.device, **options)
        self.pipe: Any = without_loader(pipe)

    def items(self, inputs: Any, parameters: Mapping[str, Any]) -> tuple[list[Item], bool]:
        """Check a request.

        Args:
            inputs: One input, or a list of them.
            parameters: Settings of the request.

        Returns:
            The inputs to queue, and whether the request has one input that is not in a list.

        Raises:
            pydantic.ValidationError: If a setting is invalid.
            InputError: If a setting is unknown, or an input is invalid.
        """
        options = self.check(self.parameters.read(parameters))
        single = self.is_single(inputs)
        values = [inputs] if single else inputs
        most = min(MAX_INPUTS, self.limits.max_queue)
        if len(values) > most:
            raise InputError(f"inputs: {len(values)} of them; the maximum is {most}")
        found = []
        for number, value in enumerate(values):
            value, length = self.read(value, "inputs" if single else f"inputs[{number}]", options)
            found.append(Item(value, options, length))
        return found, single

    def check(self, options: Any) -> Any:
        """Settings as they are used, once checked against the limits."""
        return options

    def is_single(self, inputs: Any) -> bool:
        """Return True for one input, False for a list of inputs."""
        return not isinstance(inputs, list)

    def read(self, value: Any, place: str, options: Any) -> tuple[Any, int]:
        """Check an input of the request at `place`; return it as the pipeline takes it, and its length."""
        raise NotImplementedError

    def run(self, items: Sequence[Item]) -> list[Any]:
        """Results of inputs with equal settings."""
        options = cast(Parameters, items[0].options).given()
        seed = options.pop("seed", None)
        if seed is None:
            return self.call([item.value for item in items], options | self.stops(items))
        results: list[Any] = []
        with _SAMPLING, torch.random.fork_rng():
            for item in items:
                # One by one: what is drawn for an input must not depend on the others of its batch.
                torch.manual_seed(seed)
                given_up = item.future.cancelled()
                results += [None] if given_up else self.call([item.value], options | self.stops([item]))
        return results

    def stops(self, items: Sequence[Item]) -> dict[str, Any]:
        """Options that end a call once nobody waits for any of its inputs."""
        return {}

    def call(self, values: list[Any], options: dict[str, Any]) -> list[Any]:
        """Results of the pipeline for inputs."""
        return jsonable(list(self.pipe(values, batch_size=len(values), **options)))

    def respond(self, results: list[Any], single: bool) -> Any:
        """The response to a request, from the results of its inputs."""
        return results[0] if single else results

    def summarize(self, value: Any) -> Any:
        """An input as it is written to the log of the traffic."""
        return value


def type_name(value: Any) -> str:
    """Name of a JSON value's type, for messages."""
    names: Mapping[type, str] = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
        bytes: "a file",
    }
    return names.get(type(value), "null")


def jsonable(value: Any) -> Any:
    """A result in JSON's types; numbers of numpy and torch become Python's, NaN and infinite ones None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    convert: Callable[[], Any] | None = getattr(value, "tolist", None)
    return value if convert is None else jsonable(convert())

"""Batches of a pipeline without a `DataLoader`.

A `DataLoader` takes longer to set up than some models to run. It also draws a seed from torch's global generator,
which would change what a model in another thread samples.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from types import MethodType
from typing import Any

from transformers.pipelines.base import ChunkPipeline, Pipeline, no_collate_fn, pad_collate_fn
from transformers.pipelines.pt_utils import PipelineChunkIterator, PipelineIterator, PipelinePackIterator


def without_loader(pipe: Any) -> Any:
    """Let a pipeline make the batches of a list itself; return it."""
    # Some pipelines have a `__call__` of their own and none.
    if isinstance(pipe, Pipeline):
        pipe.get_iterator = MethodType(iterate, pipe)  # type: ignore[method-assign]
    return pipe


def iterate(
    pipe: Any,
    inputs: Sequence[Any],
    num_workers: int,
    batch_size: int,
    preprocess_params: dict[str, Any],
    forward_params: dict[str, Any],
    postprocess_params: dict[str, Any],
) -> Iterator[Any]:
    """The results of a list of inputs, in place of `Pipeline.get_iterator`; there are no workers."""
    chunked = isinstance(pipe, ChunkPipeline)
    preprocess = PipelineChunkIterator if chunked else PipelineIterator
    # A generator: `iter()` of the pipelines' iterators starts them again.
    pieces = (one for one in preprocess(inputs, pipe.preprocess, preprocess_params))
    collate = no_collate_fn if batch_size == 1 else pad_collate_fn(pipe.tokenizer, pipe.feature_extractor)
    batches = map(collate, iter(lambda: list(islice(pieces, batch_size)), []))
    unpack = PipelinePackIterator if chunked else PipelineIterator
    outputs = unpack(batches, pipe.forward, forward_params, loader_batch_size=batch_size)
    return iter(PipelineIterator(outputs, pipe.postprocess, postprocess_params))

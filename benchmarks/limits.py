"""Lower bound on the time of a training step: its matrix products at the speed of this machine.

The step is that of `samples.Samples.translator` on a batch by tokens. Its products are written down by shape, each is
timed alone with `torch.mm` in turns with the step, and their sum is the time that no program of the same products goes
below. Embeddings, gates, softmax and the update come on top; they are bound by memory, whose speed is measured by a
copy.
"""

import statistics
from dataclasses import dataclass
from typing import NamedTuple

import torch
from samples import Samples, make_optimizer, real_tokens, train_step
from timing import Side, clock, in_turns


class Product(NamedTuple):
    """`[m, k]` times `[k, n]`, `count` times in a step's forward pass.

    Attributes:
        name: Part of the model.
        m: Rows.
        k: Size of the dimension that is summed over.
        n: Columns.
        count: Number of such products in a step.
    """

    name: str
    m: int
    k: int
    n: int
    count: int


@dataclass
class Limit:
    """Time of a training step and of its matrix products alone.

    Attributes:
        numbers: `float32` or `bfloat16`.
        products: Each product, its share of the operations, and its speed in GFLOP/s, forward and backward.
        gflop: Operations of all products of a step, forward and backward, in 10^9.
        best_ms: Time of the products alone.
        step_ms: Time of the step.
        bandwidth: Of a copy larger than the caches, read and written, in GB/s.
    """

    numbers: str
    products: list[tuple[Product, float, float]]
    gflop: float
    best_ms: float
    step_ms: float
    bandwidth: float

    @property
    def share(self) -> float:
        """Of the step that the products take at their best."""
        return self.best_ms / self.step_ms


def products_of(
    rows: int, source: int, target: int, labelled: int, embedding: int, hidden: int, vocabulary: int
) -> list[Product]:
    """The forward products of a translator's step on `[rows, source]` and `[rows, target]` ids, padding counted.

    The output layer has only the steps that have a label.
    """
    half = hidden // 2
    return [
        Product("encoder, inputs of all steps", rows * source, embedding, 4 * half, 2),
        Product("encoder, a step", rows, half, 4 * half, 2 * source),
        Product("bridge", rows, 2 * hidden, 2 * hidden, 1),
        Product("decoder, inputs of all steps", rows * target, embedding, 4 * hidden, 1),
        Product("decoder, a step", rows, hidden, 4 * hidden, target),
        Product("attention, queries", rows * target, hidden, hidden, 1),
        Product("attention, scores", target, hidden, source, rows),
        Product("attention, contexts", target, source, hidden, rows),
        Product("attention, combination", rows * target, 2 * hidden, hidden, 1),
        Product("output layer", labelled, hidden, vocabulary, 1),
    ]


def side_of(product: Product, dtype: torch.dtype) -> Side:
    """Times the product, and the two of its shape that its gradients take, once each."""
    left, right = torch.randn(product.m, product.k, dtype=dtype), torch.randn(product.k, product.n, dtype=dtype)
    gradient = torch.randn(product.m, product.n, dtype=dtype)

    def work() -> None:
        torch.mm(left, right)
        torch.mm(gradient, right.t())
        torch.mm(left.t(), gradient)

    return clock(work)


def bandwidth(megabytes: int) -> float:
    """GB/s of a copy of so many, those read and those written."""
    source = torch.ones(megabytes * 2**18)
    target = torch.empty_like(source)
    times = in_turns({"copy": clock(lambda: target.copy_(source))}, 5)["copy"]
    return 2 * source.numel() * 4 / statistics.median(times) / 1e9


def training_limit(samples: Samples, bf16: bool) -> Limit:
    """Measure the products of one training step, and the step."""
    sizes = samples.sizes
    model = samples.translator().train()
    optimizer = make_optimizer(model)
    batch = samples.collate(model, samples.budget_batches(1)[0])
    rows, source = batch["input_ids"].shape
    target = batch["labels"].shape[1]
    vocabulary = len(samples.tokenizer)
    products = products_of(rows, source, target, real_tokens(batch), sizes.embedding, sizes.hidden, vocabulary)
    dtype = torch.bfloat16 if bf16 else torch.float32
    sides = {"step": clock(lambda: train_step(model, optimizer, batch, bf16))}
    sides |= {product.name: side_of(product, dtype) for product in products}
    times = {name: statistics.median(values) for name, values in in_turns(sides, 2 * sizes.rounds).items()}
    seconds = [times[product.name] for product in products]
    flop = [6 * product.m * product.k * product.n for product in products]
    counts = [product.count for product in products]
    total = sum(one * count for one, count in zip(flop, counts, strict=True))
    return Limit(
        numbers="bfloat16" if bf16 else "float32",
        products=[
            (product, one * product.count / total, one / spent / 1e9)
            for product, one, spent in zip(products, flop, seconds, strict=True)
        ],
        gflop=total / 1e9,
        best_ms=1000 * sum(one * count for one, count in zip(seconds, counts, strict=True)),
        step_ms=1000 * times["step"],
        bandwidth=bandwidth(256 if sizes.hidden > 100 else 8),
    )

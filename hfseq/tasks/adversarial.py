"""Adversarial training: embeddings moved a little in the direction in which the loss grows fastest."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def source_embeddings(model: Any) -> nn.Module:
    """Module that embeds the source of a model, or its only text.

    In the encoders of BART and T5 it is another module than `get_input_embeddings` returns, which nothing calls.

    Args:
        model: Model, not wrapped.
    """
    encoder = model.get_encoder()
    embeddings: nn.Module = (encoder if isinstance(encoder, PreTrainedModel) else model).get_input_embeddings()
    return embeddings


def adversarial_loss(compute: Callable[[], Tensor], embeddings: nn.Module, epsilon: float) -> Tensor:
    r"""Mean of the loss of a batch and that of the same batch moved against the model (Miyato et al. 2017, section 3).

    The embeddings e `[T, E]` of a row become $e + \epsilon \lVert e \rVert g / \lVert g \rVert$, where g is the
    gradient of the loss with respect to them (eq. 5). The size of the step is relative to the norm of the
    embeddings, which could otherwise outgrow it; Miyato et al. normalise the embeddings instead. Padding, which has no
    gradient, does not count towards that norm.

    Of a model that embeds both its source and its target with one module, only the source is moved.

    Args:
        compute: Runs the model and returns its loss, with new dropout masks each time.
        embeddings: Module of the token embeddings.
        epsilon: Size of the step as a share of the norm of a row's embeddings.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        # Embeddings may be frozen, as with LoRA.
        seen.append(output.requires_grad_())

    handle = embeddings.register_forward_hook(keep)
    try:
        loss = compute()
    finally:
        handle.remove()
    read = seen[0]
    (slope,) = torch.autograd.grad(loss, read, retain_graph=True)
    rows = tuple(range(1, read.dim()))
    tiny = torch.finfo(slope.dtype).tiny
    reached = read.detach() * (slope != 0).any(dim=-1, keepdim=True)
    sizes = (torch.linalg.vector_norm(values, dim=rows, keepdim=True) for values in (reached, slope))
    step = epsilon * next(sizes) / next(sizes).clamp(min=tiny) * slope
    steps = [step]

    def move(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + steps.pop() if steps else output

    handle = embeddings.register_forward_hook(move)
    try:
        return (loss + compute()) / 2
    finally:
        handle.remove()

"""Convolutions that padding cannot change, and the positions and attention of Gehring et al. (2017)."""

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .padding import masked_softmax
from .shapes import by_sequence, by_source

ROOT_HALF = math.sqrt(0.5)


def in_bfloat16(values: Tensor) -> bool:
    """Return True if products with `values` run in bfloat16 on a CPU, natively or under autocast."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else values.dtype
    return values.device.type == "cpu" and dtype == torch.bfloat16


def convolve_by_products(channels: Tensor, filters: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """`conv1d` as one matrix product over all taps of each step.

    On CPUs with bfloat16 matrix units its backward pass takes a third of the time, at the price of memory for all
    taps. In float32 and on a GPU neither is always faster.

    Args:
        channels: `[B, I, (k - 1) d + T]`.
        filters: `[O, I, k]`.
        bias: `[O]`.
        dilation: Distance of two taps d.

    Returns:
        `[B, O, T]`.
    """
    taps, steps = filters.shape[2], channels.transpose(1, 2)
    length = steps.shape[1] - (taps - 1) * dilation
    seen = torch.cat([steps[:, tap * dilation : tap * dilation + length] for tap in range(taps)], dim=-1)
    return nn.functional.linear(seen, filters.transpose(1, 2).flatten(1), bias).transpose(1, 2)


class Convolution(nn.Module):
    r"""Convolution from `[B, T, in_size]` to `[B, T, out_size]`, with zeros around the steps.

    With weight normalisation the filter of an output channel is $w = g v / \lVert v \rVert$ (Salimans & Kingma 2016,
    eq. 2), with $v$ as `direction` and $g$ as `magnitude`. They are plain parameters, since transformers renames
    those of torch's weight norm on loading.

    Args:
        in_size: Width of the inputs.
        out_size: Width of the outputs.
        kernel_size: Number of taps k.
        dilation: Distance of two taps d.
        causal: Whether all taps but the last lie before the step. Otherwise they are centred on it, with one more
            after than before it if their number is even.
        weight_norm: Whether to use weight normalisation.
        gain: Variance of the initial weights times the fan-in.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        kernel_size: int,
        dilation: int = 1,
        causal: bool = False,
        weight_norm: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.in_size = in_size
        self.dilation = dilation
        self.causal = causal
        self.weight_norm = weight_norm
        self.reach = (kernel_size - 1) * dilation
        before = self.reach if causal else (kernel_size - 1) // 2 * dilation
        self.padding = (before, self.reach - before)
        self.std = math.sqrt(gain / (in_size * kernel_size))
        filters = nn.Parameter(torch.empty(out_size, in_size, kernel_size))
        if weight_norm:
            self.direction, self.magnitude = filters, nn.Parameter(torch.empty(out_size))
        else:
            self.weight = filters
        self.bias = nn.Parameter(torch.empty(out_size))
        self.init_parameters()

    @torch.no_grad()
    def init_parameters(self) -> None:
        """Normal filters of variance gain / fan-in, magnitudes that leave them unchanged, biases of 0."""
        if self.weight_norm:
            init.normal_(self.direction, std=self.std)
            init.copy_(self.magnitude, self._norms())
        else:
            init.normal_(self.weight, std=self.std)
        init.zeros_(self.bias)

    def _norms(self) -> Tensor:
        """Length of each filter's direction, `[out_size]`."""
        return torch.linalg.vector_norm(self.direction.flatten(1), dim=1)

    def forward(
        self, values: Tensor, valid: Tensor | None = None, window: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Convolve.

        Args:
            values: `[B, T, in_size]`, each row's valid steps first.
            valid: True at valid steps, `[B, T]`; None if all are.
            window: The last `(k - 1) d` valid inputs before the first step, `[B, (k - 1) d, in_size]`, for a causal
                convolution; None stands for zeros.

        Returns:
            `[B, T, out_size]`, arbitrary at padding, and the window after each row's last valid step if one was
            given. A row without a valid step keeps its window.
        """
        if window is not None and values.shape[1] == 1:
            return self._step(values, valid, window)
        if valid is not None and not self.causal:
            # Causal convolutions at valid steps do not reach the padding, which comes after them.
            values = values.masked_fill(~valid.unsqueeze(-1), 0.0)
        channels = values.transpose(1, 2)
        if window is None:
            channels = nn.functional.pad(channels, self.padding)
        else:
            channels = torch.cat([window.transpose(1, 2), channels], dim=2)
        filters = self.direction * (self.magnitude / self._norms()).view(-1, 1, 1) if self.weight_norm else self.weight
        convolve = convolve_by_products if in_bfloat16(values) else nn.functional.conv1d
        output = convolve(channels, filters, self.bias, dilation=self.dilation).transpose(1, 2)
        if window is None:
            return output, None
        if valid is None:
            last = channels[:, :, values.shape[1] :]
        else:
            index = valid.sum(dim=1, keepdim=True) + torch.arange(self.reach, device=values.device)  # [B, reach]
            last = channels.gather(2, index.unsqueeze(1).expand(-1, self.in_size, -1))
        # A copy, so that the cache does not keep all steps alive.
        return output, last.transpose(1, 2).clone(memory_format=torch.contiguous_format)

    def _step(self, values: Tensor, valid: Tensor | None, window: Tensor) -> tuple[Tensor, Tensor]:
        """One step as one matrix product. It normalises the outputs, which are fewer than the filters."""
        steps = torch.cat([window, values], dim=1)  # [B, (k - 1) d + 1, in_size]
        taps = steps[:, :: self.dilation].transpose(1, 2).flatten(1)  # [B, in_size k]
        if self.weight_norm:
            scale = self.magnitude / self._norms()
            output = nn.functional.linear(taps, self.direction.flatten(1)) * scale + self.bias
        else:
            output = nn.functional.linear(taps, self.weight.flatten(1), self.bias)
        moved = steps[:, 1:]
        window = moved.clone() if valid is None else torch.where(valid.unsqueeze(-1), moved, window)
        return output.unsqueeze(1), window


class PositionEmbedding(nn.Module):
    """Learned absolute positions (Gehring et al. 2017, section 3.1), counted along each row's valid steps.

    Args:
        max_positions: Number of positions; all later steps share the last one.
        embedding_size: Width of the embeddings.
    """

    def __init__(self, max_positions: int, embedding_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_positions, embedding_size)

    def forward(
        self, embedded: Tensor, mask: Tensor | None = None, seen: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Add positions.

        Args:
            embedded: Word embeddings `[B, T, E]`.
            mask: True at valid steps, `[B, T]`, wherever the padding is; None if all are.
            seen: Number of valid steps before the first one, `[B]`; None stands for 0.

        Returns:
            `[B, T, E]`, and the number of valid steps including these, or None if `seen` is.
        """
        if mask is None:
            position = torch.arange(embedded.shape[1], device=embedded.device)
        else:
            position = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        after = None
        if seen is not None:
            position = position + seen.unsqueeze(1)
            after = seen + (embedded.shape[1] if mask is None else mask.sum(dim=1))
        return embedded + self.table(position.clamp(max=self.table.weight.shape[0] - 1)), after


class SourceMemory(nn.Module):
    """Keys and values of a source for all layers of a decoder, computed once so that they can be cached.

    The encoder's outputs are projected to the width of the embeddings here instead of in the encoder, so that any
    encoder will do. Their gradient is divided by the number of layers that attend, that of the input embeddings is
    not (Gehring et al. 2017, section 3.5).

    Args:
        encoder_size: Width M of the encoder states.
        embedding_size: Width E of keys and values.
        num_layers: Number of layers that attend.
    """

    def __init__(self, encoder_size: int, embedding_size: int, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.project = nn.Linear(encoder_size, embedding_size)

    def forward(self, encoder_hidden_states: Tensor, embedded: Tensor | None = None) -> tuple[Tensor, ...]:
        """Compute keys and values.

        Args:
            encoder_hidden_states: `[B, S, M]`.
            embedded: The encoder's input embeddings `[B, S, E]`, or None.

        Returns:
            Keys and values `[B, S, E]`, or without embeddings one tensor that is both.
        """
        if encoder_hidden_states.requires_grad and torch.is_grad_enabled():
            encoder_hidden_states = encoder_hidden_states.view_as(encoder_hidden_states)
            encoder_hidden_states.register_hook(lambda gradient: gradient / self.num_layers)
        keys = self.project(encoder_hidden_states)
        return (keys,) if embedded is None else (keys, (keys + embedded) * ROOT_HALF)


class StepAttention(nn.Module):
    r"""Attention of one decoder layer (Gehring et al. 2017, section 3.3).

    The query of step i is $d_i = W_d h_i + b_d + g_i$ (eq. 1) with the target embedding $g_i$ of its input, the
    weights are $a_{ij} \propto \exp(d_i \cdot z_j)$ and the context is $c_i = \sum_j a_{ij} (z_j + e_j)$ (eq. 2).
    Projected to the width of the states it is added to them. Sums of two are multiplied by $\sqrt{0.5}$ and the
    context by $\sqrt m$ for m source states (section 3.4). The linear maps have no weight normalisation, unlike the
    convolutions.

    Args:
        hidden_size: Width H of the decoder states.
        embedding_size: Width E of the target embeddings, keys and values.
    """

    def __init__(self, hidden_size: int, embedding_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, embedding_size)
        self.output = nn.Linear(embedding_size, hidden_size)

    def forward(
        self, states: Tensor, target: Tensor, mask: Tensor | None, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend from each step.

        Args:
            states: Decoder states h `[B, T, H]`, or `[B * N, T, H]` for N sequences of each source, side by side.
            target: Target embeddings g `[B, T, E]`, or `[B * N, T, E]`.
            mask: True at valid source states, `[B, S]`. A row without one gets a context of zeros.
            keys: z, `[B, S, E]`.
            values: (z + e) times the root of 1/2, or z, `[B, S, E]`.

        Returns:
            The states with the context added `[B, T, H]`, and weights `[B, T, S]`, or `[B * N, T, ...]`.
        """
        batch, length, _ = states.shape
        query = by_source((self.query(states) + target) * ROOT_HALF, keys)
        scores = query @ keys.transpose(1, 2)
        weights = masked_softmax(scores, None if mask is None else mask.unsqueeze(1))
        if mask is None:
            context = (weights @ values) * math.sqrt(keys.shape[1])
        else:
            context = (weights @ values) * mask.sum(dim=1).to(scores.dtype).sqrt().view(-1, 1, 1)
        output = by_sequence(self.output(context), batch, length)
        return (states + output) * ROOT_HALF, by_sequence(weights, batch, length)

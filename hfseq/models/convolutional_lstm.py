"""LSTM whose products are convolutions: states are maps."""

import torch
from torch import Size, Tensor, nn
from transformers import initialization as init

from .recurrent import RecurrentLayer


class ConvolutionalLstmLayer(RecurrentLayer):
    r"""ConvLSTM (Shi et al. 2015, eq. 3) without its peepholes, the products of the cell state with the gates.

    With maps $X_t$, $H_t$ and $C_t$ and the convolution $*$, zeros around the maps:

    $$i_t = \sigma(W_{xi} * X_t + W_{hi} * H_{t-1} + b_i), \quad f_t = \sigma(W_{xf} * X_t + W_{hf} * H_{t-1} + b_f)$$
    $$C_t = f_t \circ C_{t-1} + i_t \circ \tanh(W_{xc} * X_t + W_{hc} * H_{t-1} + b_c)$$
    $$o_t = \sigma(W_{xo} * X_t + W_{ho} * H_{t-1} + b_o), \quad H_t = o_t \circ \tanh(C_t)$$

    A stack sees the maps flattened, channels first, so that two directions side by side are channels side by side.

    Args:
        input_size: Width of the inputs, channels * height * width.
        hidden_size: Width of the output, channels * height * width.
        height: Height of the maps.
        width: Width of the maps.
        kernel_size: Height and width of the filters, an odd number.
    """

    # Steps are run one by one, so that a row can keep its state at padding.
    needs_gather = False

    def __init__(self, input_size: int, hidden_size: int, height: int, width: int, kernel_size: int) -> None:
        super().__init__()
        self.hidden_size, self.height, self.width, self.padding = hidden_size, height, width, kernel_size // 2
        channels = hidden_size // (height * width)
        # Gates in the order input, forget, cell, output, as torch's LSTM has them.
        self.weight_ih = nn.Parameter(torch.empty(4 * channels, input_size // (height * width), *[kernel_size] * 2))
        self.weight_hh = nn.Parameter(torch.empty(4 * channels, channels, *[kernel_size] * 2))
        self.bias = nn.Parameter(torch.empty(4 * channels))
        self.init_parameters()

    @property
    def recurrent_weight(self) -> Tensor:  # type: ignore[override]
        """The hidden-to-hidden filters `[4 * channels, channels, k, k]`."""
        return self.weight_hh

    def state_shapes(self, batch: int) -> list[Size]:
        """Shape of the hidden state, and of the cell state."""
        return [Size((batch, self.hidden_size))] * 2

    @torch.no_grad()
    def init_parameters(self) -> None:
        """Xavier filters gate by gate, biases of 0, but 1 of the forget gate (Jozefowicz et al. 2015)."""
        for weight in (self.weight_ih, self.weight_hh):
            # The chunks are views, which do not carry the mark of a loaded parameter.
            if not getattr(weight, "_is_hf_initialized", False):
                for gate in weight.chunk(4):
                    init.xavier_uniform_(gate)
        if not getattr(self.bias, "_is_hf_initialized", False):
            init.zeros_(self.bias)
            init.ones_(self.bias.chunk(4)[1])

    def forward(
        self, values: Tensor, valid: Tensor | None = None, weight: Tensor | None = None, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """Run all steps; see `RecurrentLayer.forward`."""
        batch, length, _ = values.shape
        if not state:
            state = tuple(values.new_zeros(shape) for shape in self.state_shapes(batch))
        size = (-1, self.height, self.width)
        # The products with the inputs of all steps are one convolution.
        maps = values.reshape(batch * length, *size)
        from_inputs = nn.functional.conv2d(maps, self.weight_ih, self.bias, padding=self.padding)
        from_inputs = from_inputs.reshape(batch, length, *size)
        if valid is None:
            valid = torch.ones(batch, length, dtype=torch.bool, device=values.device)
        recurrent = self.weight_hh if weight is None else weight
        hidden, cell = (part.reshape(batch, *size) for part in state)
        output, hidden, cell = run_maps(from_inputs, valid, recurrent, hidden, cell, self.padding)
        # A graph does not know the rank of what a loop returns, which `flatten` would need.
        hidden, cell = hidden.reshape(batch, self.hidden_size), cell.reshape(batch, self.hidden_size)
        return output.reshape(batch, length, self.hidden_size), hidden, cell


# Tracing would unroll the loop, and the graph would serve one length alone.
@torch.jit.script_if_tracing
def run_maps(
    from_inputs: Tensor, valid: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps of a ConvLSTM.

    Args:
        from_inputs: What the inputs add to the gates, `[B, T, 4 * C, H, W]`.
        valid: True at valid steps, `[B, T]`; at the others a row keeps its state.
        weight: Hidden-to-hidden filters `[4 * C, C, k, k]`.
        hidden: Hidden state before the first step, `[B, C, H, W]`.
        cell: Cell state before the first step, `[B, C, H, W]`.
        padding: Number of zeros around the maps.

    Returns:
        Hidden states `[B, T, C, H, W]`, and hidden and cell state after the last step.
    """
    outputs: list[Tensor] = []
    # Indexing would make the backward pass quadratic in the number of steps.
    for step, from_input in enumerate(from_inputs.split(1, dim=1)):
        gates = from_input.squeeze(1) + torch.nn.functional.conv2d(hidden, weight, padding=padding)
        write, keep, new, show = gates.chunk(4, dim=1)
        moves = valid[:, step].view(-1, 1, 1, 1)
        cell = torch.where(moves, keep.sigmoid() * cell + write.sigmoid() * new.tanh(), cell)
        hidden = torch.where(moves, show.sigmoid() * cell.tanh(), hidden)
        outputs.append(hidden.unsqueeze(1))
    return torch.cat(outputs, dim=1), hidden, cell

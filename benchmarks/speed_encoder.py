"""An encoder that padding cannot change, beside torch's on the padded batch and on the packed one."""

from functools import partial

import torch
from samples import Sizes
from timing import Row, clock, in_turns, speedups
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hfseq.models.recurrent import KernelLayer, RecurrentStack

LAYERS, BATCH, SHORTEST, LONGEST = 2, 64, 8, 40


def plain_lstm(stack: RecurrentStack, width: int) -> nn.LSTM:
    """An `nn.LSTM` with the weights of a stack."""
    lstm = nn.LSTM(width, stack.forward_layers[0].hidden_size, LAYERS, bidirectional=True, batch_first=True)
    sides = (("", stack.forward_layers), ("_reverse", stack.backward_layers))
    weights = {
        f"{name.removesuffix('0')}{layer}{suffix}": weight
        for suffix, layers in sides
        for layer, module in enumerate(layers)
        for name, weight in module.named_parameters()
    }
    lstm.load_state_dict(weights)
    return lstm


def encoders(sizes: Sizes, device: str) -> list[Row]:
    """Forward and backward of a bidirectional LSTM of two layers, 64 rows of 8 to 40 steps, right padding.

    All three have the same weights and inputs. Without a mask the padded rows come out wrong; packed and masked
    outputs are compared before the times are taken.

    Raises:
        RuntimeError: The outputs differ.
    """
    torch.manual_seed(0)
    width = sizes.hidden // 2
    stack = RecurrentStack(partial(KernelLayer, "LSTM"), width, width, LAYERS, bidirectional=True)
    lstm = plain_lstm(stack, width).to(device)
    stack.to(device)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (BATCH,))
    lengths[0] = LONGEST
    mask = (torch.arange(LONGEST) < lengths.unsqueeze(1)).to(device)
    inputs = torch.randn(BATCH, LONGEST, width, device=device, requires_grad=True)

    def exact() -> Tensor:
        return stack(inputs, mask)[0][-1]

    def packed() -> Tensor:
        rows = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(lstm(rows)[0], batch_first=True)[0]

    difference = (exact() - packed()).abs().max().item()
    if difference > (1e-5 if device == "cpu" else 1e-3):  # TF32
        raise RuntimeError(f"exact and packed encoders differ by {difference}")
    runs = {"exact": exact, "no mask": lambda: lstm(inputs)[0], "packed": packed}
    sides = {name: clock(lambda run=run: run().sum().backward()) for name, run in runs.items()}
    times = in_turns(sides, 3 * sizes.rounds, warm_up=2)
    rows = []
    for other, target, beside in (
        ("no mask", 0.9, "`nn.LSTM` on the padded batch, no mask"),
        ("packed", 1.1, "`pack_padded_sequence`"),
    ):
        row = Row("encoder with exact masks, forward and backward", beside, target)
        row.ratios = speedups(times, "exact", other)
        row.figures = {"ms": [1000 * one for one in times["exact"]], "ms beside": [1000 * one for one in times[other]]}
        rows.append(row)
    return rows

"""Naive, unrolled versions of the convolutional layers: one row, one step, one tap of a filter at a time."""

import math

import torch


def filters_of(convolution):
    """Filters [out, in, k], normalised one by one."""
    if not convolution.weight_norm:
        return convolution.weight
    rows = []
    for direction, magnitude in zip(convolution.direction, convolution.magnitude, strict=True):
        length = math.sqrt(sum(value * value for value in direction.flatten().tolist()))
        if torch.is_grad_enabled():
            length = sum(value * value for value in direction.flatten()).sqrt()
        rows.append(direction * magnitude / length)
    return torch.stack(rows)


def convolve_row(convolution, inputs, before=None):
    """Outputs [T, out] of the inputs [T, in] of one row; `before` [W, in] are the inputs before them, else zeros."""
    filters = filters_of(convolution)
    taps, dilation = filters.shape[2], convolution.dilation
    left = taps - 1 if convolution.causal else (taps - 1) // 2
    outputs = []
    for step in range(len(inputs)):
        output = convolution.bias
        for tap in range(taps):
            position = step + (tap - left) * dilation
            if 0 <= position < len(inputs):
                output = output + filters[:, :, tap] @ inputs[position]
            elif position < 0 and before is not None:
                output = output + filters[:, :, tap] @ before[position]
        outputs.append(output)
    return torch.stack(outputs)


def attend_step(attention, state, target, keys, values):
    """New state [H] and weights of one decoder state [H] over one row's valid source states [S, E]."""
    query = (attention.query.weight @ state + attention.query.bias + target) * math.sqrt(0.5)
    exponentials = [torch.exp(sum(a * b for a, b in zip(query, key, strict=True))) for key in keys]
    weights = [value / sum(exponentials) for value in exponentials]
    context = sum(weight * value for weight, value in zip(weights, values, strict=True)) * math.sqrt(len(keys))
    projected = attention.output.weight @ context + attention.output.bias
    return (state + projected) * math.sqrt(0.5), torch.stack(weights)


def layer_row(architecture, layer, inputs, windows, target, source, shortcut=None):
    """One layer over one row: outputs [T, H], attention weights [T, S] or None, the inputs of each convolution.

    A gated layer adds `shortcut` [T, H'], if there is one.
    """
    read = []

    def convolve(index, values):
        read.append(values)
        return convolve_row(layer.convolutions[index], values, windows[index] if windows else None)

    if architecture == "parallel":
        features = [convolve(index, inputs).clamp(min=0) for index in range(len(layer.convolutions))]
        return torch.cat(features, dim=1), None, read
    if architecture == "residual":
        hidden = convolve(1, convolve(0, inputs).clamp(min=0)).clamp(min=0)
        return (inputs + hidden).clamp(min=0), None, read
    both, weights = convolve(0, inputs), None
    width = both.shape[1] // 2
    outputs = both[:, :width] * torch.sigmoid(both[:, width:])
    order = ["attend", "add"] if layer.attends_first else ["add", "attend"]
    for operation in order:
        if operation == "add" and shortcut is not None:
            if shortcut.shape[1] != width:
                shortcut = shortcut @ layer.shortcut.weight.T + layer.shortcut.bias
            outputs = (shortcut + outputs) * (math.sqrt(0.5) if architecture == "convs2s" else 1)
        if operation == "attend" and layer.attention is not None:
            steps = [attend_step(layer.attention, *step, *source) for step in zip(outputs, target, strict=True)]
            outputs, weights = (torch.stack(part) for part in zip(*steps, strict=True))
    return outputs, weights, read


def stack_row(architecture, stack, inputs, windows=None, source=None):
    """A whole stack over one row [T, I] without padding, from the windows of each layer, if there are any.

    Returns the outputs [T, H] and attention weights of each layer, and its windows after the last step.
    """
    values = inputs
    if hasattr(stack.project, "weight"):
        values = inputs @ stack.project.weight.T + stack.project.bias
    outputs, alignments, after = [], [], []
    entered = [values]
    for index, layer in enumerate(stack.layers):
        begin = windows[index] if windows else None
        back = stack.residuals[index]
        shortcut = entered[len(entered) - back] if back else None
        values, weights, read = layer_row(architecture, layer, values, begin, inputs, source, shortcut)
        outputs.append(values)
        entered.append(values)
        alignments.append(weights)
        ends = []
        for number, convolution in enumerate(layer.convolutions):
            size = (convolution.weight if architecture == "parallel" else convolution.direction).shape[2]
            reach = (size - 1) * convolution.dilation
            before = begin[number] if begin else inputs.new_zeros(reach, convolution.in_size)
            seen = [*before, *read[number]]
            ends.append(torch.stack(seen[len(seen) - reach :]) if reach else before)
        after.append(tuple(ends))
    return outputs, alignments, after


def embed_row(model, ids):
    """Embeddings [T, E] of a `CnnModel` for one row of ids [T]."""
    rows = []
    for position, token in enumerate(ids.tolist()):
        row = model.embed_tokens.weight[token]
        if model.positions is not None:
            table = model.positions.table.weight
            row = row + table[min(position, len(table) - 1)]
        rows.append(row)
    return torch.stack(rows)


def model_row(model, ids, memory=None, memory_embeddings=None):
    """What a `CnnModel` makes of one row of ids [T]: embeddings, outputs and weights of each layer.

    A decoder takes the row's valid encoder states [S, M] and their input embeddings [S, E] or None.
    """
    embedded = embed_row(model, ids)
    source = None
    if memory is not None:
        keys = memory @ model.source.project.weight.T + model.source.project.bias
        values = keys if memory_embeddings is None else (keys + memory_embeddings) * math.sqrt(0.5)
        source = (keys, values)
    outputs, alignments, _ = stack_row(model.config.architecture, model.stack, embedded, source=source)
    return embedded, outputs, alignments

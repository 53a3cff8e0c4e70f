"""Naive, unrolled versions of the layers: one row, one step, one equation at a time."""

import math

import torch


def cell_step(kind, layer, value, state, nonlinearity="tanh"):
    """One step of one row: `value` [I] and a state to the output [H] and the new state.

    Torch's cells have the equations of its documentation.
    """
    if kind not in ("rnn", "lstm", "gru"):
        return linear_step(kind, layer, value, state)
    w_i, w_h, b_i, b_h = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
    from_input, from_state = w_i @ value + b_i, w_h @ state[0] + b_h
    if kind == "rnn":
        act = torch.tanh if nonlinearity == "tanh" else torch.relu
        hidden = act(from_input + from_state)
        return hidden, (hidden,)
    if kind == "gru":
        reset_i, update_i, new_i = from_input.chunk(3)
        reset_h, update_h, new_h = from_state.chunk(3)
        reset, update = torch.sigmoid(reset_i + reset_h), torch.sigmoid(update_i + update_h)
        new = torch.tanh(new_i + reset * new_h)
        hidden = (1 - update) * new + update * state[0]
        return hidden, (hidden,)
    write, keep, new, show = (from_input + from_state).chunk(4)
    cell = torch.sigmoid(keep) * state[1] + torch.sigmoid(write) * torch.tanh(new)
    hidden = torch.sigmoid(show) * torch.tanh(cell)
    return hidden, (hidden, cell)


def linear_step(kind, layer, value, state):
    """One step of a linear recurrence: the state is [H] and the earlier inputs that its convolutions see, [R, I]."""
    hidden, *windows = state
    after = []
    if layer.convolution is not None:
        steps = torch.cat([windows.pop(0), value.unsqueeze(0)])
        taps = [filters * step for filters, step in zip(layer.convolution.weight.T, steps, strict=True)]
        value = value + layer.convolution.bias + sum(taps)
        after.append(steps[1:])
    if layer.window > 1:
        steps = torch.cat([windows.pop(0), value.unsqueeze(0)])
        value = steps.flatten()
        after.append(steps[1:])
    projected = layer.project.weight @ value
    if kind != "ssru":
        projected = projected + layer.project.bias
    parts = projected.chunk(len(projected) // layer.hidden_size)
    if kind == "mingru":
        update = torch.sigmoid(parts[0])
        hidden = (1 - update) * hidden + update * candidate_of(parts[1], layer.candidate)
        return hidden, (hidden, *after)
    if kind == "minlstm":
        forget, write = torch.sigmoid(parts[0]), torch.sigmoid(parts[1])
        new = candidate_of(parts[2], layer.candidate)
        hidden = forget / (forget + write) * hidden + write / (forget + write) * new
        return hidden, (hidden, *after)
    if kind == "qrnn":
        forget = torch.sigmoid(parts[1])
        update = (1 - forget) * (1 - layer.zoneout)  # as it is on average in training
        hidden = (1 - update) * hidden + update * torch.tanh(parts[0])
        return torch.sigmoid(parts[2]) * hidden, (hidden, *after)
    assert kind == "ssru", f"no oracle for {kind!r}"
    forget = torch.sigmoid(parts[0] + layer.forget_bias)
    hidden = forget * hidden + (1 - forget) * parts[1]
    return hidden.clamp(min=0), (hidden, *after)


def candidate_of(values, kind):
    """Feng et al. (2024), appendix B, or one of the other two."""
    if kind == "g":
        return torch.where(values >= 0, values + 0.5, torch.sigmoid(values))
    return torch.tanh(values) if kind == "tanh" else values


def normalise(norm, values):
    """Layer normalisation of [..., H] (Ba et al. 2016, eq. 4)."""
    centred = values - values.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def apply(linear, values):
    """A linear layer on [..., I]."""
    return values @ linear.weight.T + linear.bias


def block_inputs(stack, index, values):
    """The residual stream of a block [T, H] from the outputs of the last one or the embeddings; the cells' inputs."""
    if not index and hasattr(stack.project, "weight"):
        values = apply(stack.project, values)
    return values, normalise(stack.norms[index], values)


def block_output(stack, index, stream, mixed):
    """Output [T, H] of a residual block, from its stream and its cells' outputs."""
    stream = stream + apply(stack.merge[index], mixed)
    mlp = stack.feed_forward[index]
    hidden = apply(mlp.up, normalise(mlp.norm, stream))
    stream = stream + apply(mlp.down, hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)
    return normalise(stack.last_norm, stream) if index == stack.num_layers - 1 else stream


def zero_state(layer, like):
    """State of a row before its first step."""
    return tuple(like.new_zeros(shape[1:]) for shape in layer.state_shapes(1))


def stack_step(kind, stack, value, states, nonlinearity="tanh"):
    """One step of one row through a left-to-right stack: the output [H] of each layer, and the new states."""
    outputs, new_states = [], []
    for index, layer in enumerate(stack.forward_layers):
        stream = value
        if hasattr(stack, "merge"):
            stream, value = block_inputs(stack, index, value)
        value, state = cell_step(kind, layer, value, states[index], nonlinearity)
        if hasattr(stack, "merge"):
            value = block_output(stack, index, stream, value)
        outputs.append(value)
        new_states.append(state)
    return outputs, new_states


def run_row(kind, layers, backward_layers, values, states=None, nonlinearity="tanh", blocks=None):
    """A whole stack over one row without padding: `values` [T, I]. Returns outputs [T, H] of each layer, states.

    The states of both directions are side by side. `blocks` is the stack if its layers stand in residual blocks.
    """
    outputs, last_states = [], []
    for index, layer in enumerate(layers):
        stream = values
        if blocks is not None:
            stream, values = block_inputs(blocks, index, values)
        state = states[index] if states else zero_state(layer, values)
        forward = []
        for value in values:
            output, state = cell_step(kind, layer, value, state, nonlinearity)
            forward.append(output)
        last_states.append(state)
        output = torch.stack(forward)
        if backward_layers:
            back_layer = backward_layers[index]
            state = zero_state(back_layer, values)
            back = []
            for value in values.flip(0):
                one, state = cell_step(kind, back_layer, value, state, nonlinearity)
                back.insert(0, one)
            output = torch.cat([output, torch.stack(back)], dim=-1)
            last_states[-1] = tuple(torch.cat(pair, dim=-1) for pair in zip(last_states[-1], state, strict=True))
        if blocks is not None:
            output = block_output(blocks, index, stream, output)
        outputs.append(output)
        values = output
    return outputs, last_states


def run_stack(kind, stack, values, nonlinearity="tanh"):
    """`run_row` of a stack, of residual blocks or not, from zero states."""
    blocks = stack if hasattr(stack, "merge") else None
    return run_row(kind, stack.forward_layers, stack.backward_layers, values, None, nonlinearity, blocks)


def attend_row(attention, state, memory, coverage=None):
    """Attentional vector and weights of one decoder state [H] over one row's valid encoder states [S, M].

    With coverage [S] as in See et al. (2017), eq. 11.
    """
    scores = []
    for position, encoded in enumerate(memory):
        if attention.attention_type == "dot":
            scores.append(sum(a * b for a, b in zip(state, encoded, strict=True)))
        elif attention.attention_type == "general":
            scores.append(encoded @ (attention.query.weight @ state))
        else:
            inner = attention.query.weight @ state + attention.query.bias + attention.key.weight @ encoded
            if coverage is not None:
                inner = inner + attention.coverage.weight[:, 0] * coverage[position]
            scores.append(attention.energy.weight[0] @ torch.tanh(inner))
    exponentials = [torch.exp(score) for score in scores]
    weights = torch.stack([value / sum(exponentials) for value in exponentials])
    context = sum(weight * encoded for weight, encoded in zip(weights, memory, strict=True))
    vector = attention.combine.weight @ torch.cat([context, state])
    if attention.combine.bias is not None:
        vector = vector + attention.combine.bias
    return torch.tanh(vector) if attention.activates else vector, weights


def bridge_row(decoder, memory, final_states):
    """Initial states of each layer from one row's valid encoder states [S, M] and its encoder's final states."""
    shapes = [[shape[1:] for shape in layer.state_shapes(1)] for layer in decoder.stack.forward_layers]
    bridge, kind = decoder.bridge, decoder.config.bridge
    if kind == "zeros":
        return [tuple(memory.new_zeros(shape) for shape in layer) for layer in shapes]
    if kind == "project":
        project = bridge.project
        initial = torch.tanh(project.weight @ torch.cat([memory[0], memory[-1]]) + project.bias)
        parts = iter(initial.split([shape.numel() for layer in shapes for shape in layer]))
        return [tuple(next(parts).view(shape) for shape in layer) for layer in shapes]
    states = []
    for index, layer in enumerate(shapes):
        state = []
        for part, shape in enumerate(layer):
            if len(shape) > 1:  # earlier inputs
                state.append(memory.new_zeros(shape))
            elif kind == "copy":
                state.append(final_states[index][part])
            elif kind == "last":
                state.append(final_states[-1][0][: shape[0]])
            elif kind == "linear":
                state.append(apply([bridge.hidden, bridge.cell][part], final_states[index][part]))
            else:
                every = torch.cat([one[part] for one in final_states])
                mapped = apply([bridge.hidden, bridge.cell][part], every).clamp(min=0)
                state.append(mapped.view(len(shapes), -1)[index])
        states.append(tuple(state))
    return states


def decode_row(kind, decoder, ids, memory, final_states=None):
    """What `RecurrentModel` as a decoder makes of one row: `ids` [T], valid encoder states [S, M] or None.

    `final_states` are those of the encoder's layers, for a bridge that reads them.

    Returns its outputs [T, H], alignments [T, S], None without attention, and the hidden states [T, H] of each layer.
    """
    stack = decoder.stack
    nonlinearity = getattr(decoder.config, "hidden_act", "tanh")
    embedded = decoder.embed_tokens.weight[ids]
    if memory is None:
        hidden, _ = run_stack(kind, stack, embedded, nonlinearity)
        return hidden[-1], None, hidden
    states = bridge_row(decoder, memory, final_states)
    feed = memory.new_zeros(decoder.config.hidden_size)
    coverage = memory.new_zeros(len(memory)) if decoder.config.coverage else None
    vectors, alignments, hidden = [], [], [[] for _ in states]
    for value in embedded:
        if decoder.config.input_feeding:
            value = torch.cat([value, feed])
        outputs, states = stack_step(kind, stack, value, states, nonlinearity)
        for layer, output in zip(hidden, outputs, strict=True):
            layer.append(output)
        feed, weights = outputs[-1], None
        if decoder.config.attention_type != "none":
            feed, weights = attend_row(decoder.attention, outputs[-1], memory, coverage)
        coverage = None if coverage is None else coverage + weights
        vectors.append(feed)
        alignments.append(weights)
    alignments = None if alignments[0] is None else torch.stack(alignments)
    return torch.stack(vectors), alignments, [torch.stack(layer) for layer in hidden]


def logits_row(model, hidden):
    """Logits [T, V] of the outputs [T, H] of one row: a projection if the tied embedding is of another width."""
    config = model.config
    width = getattr(config, "decoder_hidden_size", None) or config.hidden_size
    if config.tie_word_embeddings and config.embedding_size != width:
        hidden = hidden @ model.output.project.weight.T
    logits = hidden @ model.lm_head.weight.T
    return logits if model.lm_head.bias is None else logits + model.lm_head.bias


def encode_row(kind, encoder, ids):
    """What `RecurrentModel` as an encoder makes of one row without padding: `ids` [S] to [S, M]."""
    nonlinearity = getattr(encoder.config, "hidden_act", "tanh")
    return run_stack(kind, encoder.stack, encoder.embed_tokens.weight[ids], nonlinearity)[0][-1]


def point_row(model, source, target, copy_ids, size):
    """A pointer-generator on one row without padding (See et al. 2017, eq. 8, 9 and 12).

    `source` and `copy_ids` are lists of ids, `target` one of decoder inputs, which may be beyond the vocabulary.
    Returns for each step the probabilities of all `size` words, and the coverage loss.
    """
    kind, vocab_size = model.config.family.lower(), model.config.vocab_size
    memory = encode_row(kind, model.model, source)
    known = [model.config.unk_token_id if token >= vocab_size else token for token in target]
    vectors, alignments, hidden = decode_row(kind, model.decoder, known, memory)
    gate, (bias,) = model.pointer.gate.weight[0], model.pointer.gate.bias
    coverage, steps, losses = [0.0] * len(source), [], []
    for step, token in enumerate(known):
        weights = alignments[step]
        context = sum(weight * encoded for weight, encoded in zip(weights, memory, strict=True))
        inputs = torch.cat([context, hidden[-1][step], model.decoder.embed_tokens.weight[token]])
        write = 1 / (1 + torch.exp(-(gate @ inputs + bias)))
        exponentials = torch.exp(logits_row(model, vectors[step]))
        probabilities = [write * value / exponentials.sum() for value in exponentials]
        probabilities += [torch.zeros(()).to(write)] * (size - vocab_size)
        for weight, word in zip(weights, copy_ids, strict=True):
            probabilities[word] = probabilities[word] + (1 - write) * weight
        steps.append(torch.stack(probabilities))
        losses.append(sum(torch.minimum(a, c + 0 * a) for a, c in zip(weights, coverage, strict=True)))
        coverage = [before + weight for before, weight in zip(coverage, weights, strict=True)]
    return torch.stack(steps), torch.stack(losses)


def search_row(probabilities_after, start, length, beams):
    """The best of `length` words after `start`, keeping `beams` hypotheses: the words and the sum of the logarithms.

    `probabilities_after` gives those of all next words after a list of words; a word of probability 0 is never taken.
    """
    hypotheses = [(0.0, [start])]
    for _ in range(length):
        longer = []
        for score, words in hypotheses:
            for word, probability in enumerate(probabilities_after(words).tolist()):
                if probability > 0:
                    longer.append((score + math.log(probability), [*words, word]))
        hypotheses = sorted(longer, reverse=True)[:beams]
    return hypotheses[0]


def convolve_frame(filters, bias, maps, stride=1):
    """One frame `[C, H, W]`, one output at a time: the filter centred on every stride-th pixel, zeros around."""
    size, (_, height, width) = filters.shape[2], maps.shape
    padded = torch.nn.functional.pad(maps, [size // 2] * 4)
    pixels = []
    for y in range(0, height, stride):
        for x in range(0, width, stride):
            pixels.append((filters * padded[:, y : y + size, x : x + size]).sum(dim=(1, 2, 3)) + bias)
    return torch.stack(pixels, dim=1).view(len(filters), -(-height // stride), -(-width // stride))


def convolutional_lstm_step(layer, maps, state):
    """One step of one row of a ConvLSTM (Shi et al. 2015, eq. 3): maps [I, H, W], `state` a tuple of [C, H, W]."""
    from_input = convolve_frame(layer.weight_ih, layer.bias, maps)
    from_state = convolve_frame(layer.weight_hh, torch.zeros_like(layer.bias), state[0])
    write, keep, new, show = (from_input + from_state).chunk(4)
    cell = torch.sigmoid(keep) * state[1] + torch.sigmoid(write) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(cell), cell

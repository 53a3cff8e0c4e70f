"""Naive, unrolled versions of the layers: one row, one step, one equation at a time."""

import math

import torch


def cell_step(kind, layer, value, state, nonlinearity="tanh"):
    """One step of one row: `value` [I], `state` a tuple of [H]; the equations as torch's documentation has them."""
    w_i, w_h, b_i, b_h = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
    from_input, from_state = w_i @ value + b_i, w_h @ state[0] + b_h
    if kind == "rnn":
        act = torch.tanh if nonlinearity == "tanh" else torch.relu
        return (act(from_input + from_state),)
    if kind == "gru":
        reset_i, update_i, new_i = from_input.chunk(3)
        reset_h, update_h, new_h = from_state.chunk(3)
        reset, update = torch.sigmoid(reset_i + reset_h), torch.sigmoid(update_i + update_h)
        new = torch.tanh(new_i + reset * new_h)
        return ((1 - update) * new + update * state[0],)
    assert kind == "lstm", f"no oracle for {kind!r}"
    write, keep, new, show = (from_input + from_state).chunk(4)
    cell = torch.sigmoid(keep) * state[1] + torch.sigmoid(write) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(cell), cell


def run_row(kind, layers, backward_layers, values, states=None, nonlinearity="tanh"):
    """A whole stack over one row without padding: `values` [T, I]. Returns outputs [T, H] of each layer, states."""
    count = 2 if kind == "lstm" else 1
    outputs, last_states = [], []
    for index, layer in enumerate(layers):
        state = states[index] if states else (values.new_zeros(layer.hidden_size),) * count
        forward = []
        for value in values:
            state = cell_step(kind, layer, value, state, nonlinearity)
            forward.append(state[0])
        last_states.append(state)
        output = torch.stack(forward)
        if backward_layers:
            back_layer = backward_layers[index]
            state = (values.new_zeros(layer.hidden_size),) * count
            back = []
            for value in values.flip(0):
                state = cell_step(kind, back_layer, value, state, nonlinearity)
                back.insert(0, state[0])
            output = torch.cat([output, torch.stack(back)], dim=-1)
        outputs.append(output)
        values = output
    return outputs, last_states


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
    return torch.tanh(attention.combine.weight @ torch.cat([context, state])), weights


def decode_row(kind, decoder, ids, memory):
    """What `RecurrentModel` as a decoder makes of one row: `ids` [T], valid encoder states [S, M] or None.

    Returns its outputs [T, H], alignments [T, S] or None, and the hidden states [T, H] of each layer.
    """
    layers = list(decoder.stack.forward_layers)
    nonlinearity = getattr(decoder.config, "hidden_act", "tanh")
    embedded = decoder.embed_tokens.weight[ids]
    if memory is None:
        hidden, _ = run_row(kind, layers, [], embedded, nonlinearity=nonlinearity)
        return hidden[-1], None, hidden
    count, width = (2 if kind == "lstm" else 1), decoder.config.hidden_size
    project = decoder.bridge.project
    initial = torch.tanh(project.weight @ torch.cat([memory[0], memory[-1]]) + project.bias)
    states = [tuple(layer) for layer in initial.view(len(layers), count, width)]
    feed = initial.new_zeros(width)
    coverage = initial.new_zeros(len(memory)) if decoder.config.coverage else None
    vectors, alignments, hidden = [], [], [[] for _ in layers]
    for value in embedded:
        if decoder.config.input_feeding:
            value = torch.cat([value, feed])
        for index, layer in enumerate(layers):
            states[index] = cell_step(kind, layer, value, states[index], nonlinearity)
            value = states[index][0]
            hidden[index].append(value)
        feed, weights = attend_row(decoder.attention, value, memory, coverage)
        coverage = None if coverage is None else coverage + weights
        vectors.append(feed)
        alignments.append(weights)
    return torch.stack(vectors), torch.stack(alignments), [torch.stack(layer) for layer in hidden]


def logits_row(model, hidden):
    """Logits [T, V] of the outputs [T, H] of one row: a projection if the tied embedding is of another width."""
    config = model.config
    if config.tie_word_embeddings and config.embedding_size != config.hidden_size:
        hidden = hidden @ model.output.project.weight.T
    return hidden @ model.lm_head.weight.T


def encode_row(kind, encoder, ids):
    """What `RecurrentModel` as an encoder makes of one row without padding: `ids` [S] to [S, M]."""
    layers = (encoder.stack.forward_layers, encoder.stack.backward_layers)
    nonlinearity = getattr(encoder.config, "hidden_act", "tanh")
    return run_row(kind, *layers, encoder.embed_tokens.weight[ids], nonlinearity=nonlinearity)[0][-1]


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

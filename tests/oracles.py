"""Naive, unrolled versions of the layers: one row, one step, one equation at a time."""

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


def attend_row(attention, state, memory):
    """Attentional vector and weights of one decoder state [H] over one row's valid encoder states [S, M]."""
    scores = []
    for encoded in memory:
        if attention.attention_type == "dot":
            scores.append(sum(a * b for a, b in zip(state, encoded, strict=True)))
        elif attention.attention_type == "general":
            scores.append(encoded @ (attention.query.weight @ state))
        else:
            inner = attention.query.weight @ state + attention.query.bias + attention.key.weight @ encoded
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
    vectors, alignments, hidden = [], [], [[] for _ in layers]
    for value in embedded:
        if decoder.config.input_feeding:
            value = torch.cat([value, feed])
        for index, layer in enumerate(layers):
            states[index] = cell_step(kind, layer, value, states[index], nonlinearity)
            value = states[index][0]
            hidden[index].append(value)
        feed, weights = attend_row(decoder.attention, value, memory)
        vectors.append(feed)
        alignments.append(weights)
    return torch.stack(vectors), torch.stack(alignments), [torch.stack(layer) for layer in hidden]


def logits_row(model, hidden):
    """Logits [T, V] of the outputs [T, H] of one row: a projection if the tied embedding is of another width."""
    config = model.config
    if config.tie_word_embeddings and config.embedding_size != config.hidden_size:
        hidden = hidden @ model.output.project.weight.T
    return hidden @ model.lm_head.weight.T

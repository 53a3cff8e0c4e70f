"""Convolutional models of fairseq: ConvS2S translators (Gehring et al. 2017) and language models."""

import ast
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, glu, linear, pad

from hfseq.convert.base import Converted, Reference
from hfseq.convert.fairseq_files import IDS, FairseqCheckpoint, make_tokenizer
from hfseq.convert.fairseq_lstm import (
    UNKNOWN,
    UNUSED,
    adaptive_table,
    language_tokenizers,
    run_adaptive,
    set_search,
)
from hfseq.convert.names import Made, add_pieces, fill, same_weight, translate
from hfseq.convert.translators import check_weights, piece_note, vocabulary_fields
from hfseq.errors import InputError
from hfseq.models import CnnConfig
from hfseq.models.modeling_cnn import CnnForCausalLM, CnnForConditionalGeneration

_FIRST_POSITION = 2
"""Row of the first position: positions are counted from the id of the padding on."""
_MOST_LAYERS = 1000


def convert_fconv(found: FairseqCheckpoint, dict_dir: str | Path | None, codes: Sequence[str | Path]) -> Converted:
    """Convert a translator, `fconv`.

    Args:
        found: The checkpoint.
        dict_dir: Folder of the dictionaries; None for no tokenizer.
        codes: File of BPE codes for both languages, one for each, or none.

    Raises:
        InputError: If it has an option that hfseq does not have, or the dictionaries or the codes do not fit.
    """
    weights, path = found.weights, found.path
    names = [f"{side}.embed_{kind}.weight" for side in ("encoder", "decoder") for kind in ("tokens", "positions")]
    check_weights(path, weights, *names, "decoder.fc2.weight_v")
    layers = {side: _layers(found, side) for side in ("encoder", "decoder")}
    if any(kernel % 2 == 0 for _, kernel, _ in layers["encoder"]):
        raise InputError(f"{path}: --encoder-layers: hfseq's encoders have kernels of odd widths")
    if any(f"decoder.attention.{index}.in_projection.bias" not in weights for index in range(len(layers["decoder"]))):
        raise InputError(f"{path}: --decoder-attention: each of the layers of hfseq's decoder attends")
    tables = [weights[f"{side}.embed_tokens.weight"] for side in ("encoder", "decoder")]
    shared = same_weight(*tables)
    source, target = (len(table) for table in tables)
    tokenizer, more, more_targets = language_tokenizers(found, dict_dir, codes, shared, source, target)
    positions = {side: weights[f"{side}.embed_positions.weight"][_FIRST_POSITION:] for side in layers}
    longest = max(map(len, positions.values()))
    fields: dict[str, Any]
    fields, ignored = found.dropout("dropout")
    config_class: Any = CnnConfig
    config = config_class(
        architecture="convs2s",
        embedding_size=tables[0].shape[1],
        hidden_size=layers["encoder"][-1][0],
        decoder_hidden_size=layers["decoder"][-1][0],
        encoder_layers=len(layers["encoder"]),
        decoder_layers=len(layers["decoder"]),
        num_hidden_layers=len(layers["encoder"]),
        conv_layers=layers["encoder"],
        decoder_conv_layers=layers["decoder"],
        input_projection=True,
        attention_position="before_residual",
        max_position_embeddings=longest,
        output_size=len(weights["decoder.fc2.weight_v"]),
        tie_word_embeddings="decoder.fc3.weight_v" not in weights,
        lm_head_bias=True,
        is_encoder_decoder=True,
        decoder_start_token_id=IDS["eos_token_id"],
        **(fields | IDS),
        **vocabulary_fields((source + len(more), target + len(more_targets)), shared, shared),
    )
    model: Any = CnnForConditionalGeneration(config)
    table = _table(found, "encoder", "model.") | _table(found, "decoder", "decoder.") | _output(found)
    for side, ours in (("encoder", "model"), ("decoder", "decoder")):
        # All further positions are as the last one, which fairseq does not reach.
        table[f"{ours}.positions.table.weight"] = Made(
            [f"{side}.embed_positions.weight"],
            lambda rows: torch.cat(
                [rows[_FIRST_POSITION:], rows[-1:].expand(longest + _FIRST_POSITION - len(rows), -1)]
            ),
        )
    table |= _linear("encoder.fc2", "decoder.source.project")
    for index in range(len(layers["decoder"])):
        for ours, theirs in (("query", "in_projection"), ("output", "out_projection")):
            table |= _linear(f"decoder.attention.{index}.{theirs}", f"decoder.stack.layers.{index}.attention.{ours}")
    translated = translate(path, weights, table, UNUSED)
    inputs = {"model.embed_tokens.weight": len(more), "decoder.embed_tokens.weight": len(more_targets)}
    add_pieces(translated, inputs, len(more_targets), config.tie_word_embeddings, UNKNOWN)
    fill(model, translated, path)
    return Converted(
        model,
        tokenizer,
        _reference(weights, layers),
        f"fairseq ({found.arch})",
        [*found.parts, *ignored],
        [*set_search(model), *piece_note(more, more_targets)],
    )


def convert_fconv_lm(found: FairseqCheckpoint, dict_dir: str | Path | None, codes: Sequence[str | Path]) -> Converted:
    """Convert a language model, `fconv_lm`.

    Args:
        found: The checkpoint.
        dict_dir: Folder of the dictionary, or the dictionary; None for no tokenizer.
        codes: File of BPE codes, or none.

    Raises:
        InputError: If it has an option that hfseq does not have, or the dictionary or the codes do not fit.
    """
    weights, path = found.weights, found.path
    adaptive = "decoder.adaptive_softmax.head.weight" in weights
    check_weights(path, weights, "decoder.embed_tokens.weight", *([] if adaptive else ["decoder.fc2.weight_v"]))
    layers = _layers(found, "decoder")
    if any(name.startswith("decoder.attention.") for name in weights):
        raise InputError(f"{path}: --decoder-attention: hfseq's language models do not attend")
    size, width = weights["decoder.embed_tokens.weight"].shape
    tokenizer, more = make_tokenizer(dict_dir, codes[0] if codes else None, None, size, start=["</s>"])
    if adaptive and more:
        raise InputError(f"{path}: --bpe_codes: an adaptive softmax has no room for the pieces that they add")
    dropout, ignored = found.dropout("dropout")
    fields: dict[str, Any]
    fields, output = adaptive_table(found) if adaptive else ({}, _output(found))
    if not adaptive:
        fields = {
            "output_size": len(weights["decoder.fc2.weight_v"]),
            "tie_word_embeddings": "decoder.fc3.weight_v" not in weights,
            "lm_head_bias": True,
        }
    config_class: Any = CnnConfig
    config = config_class(
        architecture="convs2s",
        vocab_size=size + len(more),
        embedding_size=width,
        hidden_size=layers[-1][0],
        num_hidden_layers=len(layers),
        conv_layers=layers,
        input_projection=True,
        bidirectional=False,
        max_position_embeddings=1,
        decoder_start_token_id=IDS["eos_token_id"],
        **(fields | IDS | dropout),
    )
    model: Any = CnnForCausalLM(config)
    table = _table(found, "decoder", "model.") | output
    # It has no positions: all steps share one of zeros.
    embeddings = "decoder.embed_tokens.weight"
    table["model.positions.table.weight"] = Made([embeddings], lambda rows: rows.new_zeros(1, rows.shape[1]))
    translated = translate(path, weights, table, UNUSED)
    add_pieces(translated, {"model.embed_tokens.weight": len(more)}, len(more), config.tie_word_embeddings, UNKNOWN)
    fill(model, translated, path)
    notes = [] if tokenizer is None else ["The tokenizer begins a text with `</s>`, as fairseq does."]

    def reference(ids: Tensor) -> Tensor:
        return _run_output(weights, _run_decoder(weights, ids, layers, None))

    return Converted(
        model,
        tokenizer,
        reference,
        f"fairseq ({found.arch})",
        [*found.parts, *ignored],
        notes + piece_note(more),
    )


def read_layers(text: str) -> list[list[int]]:
    """Layers of an option such as `[(512, 3)] * 9 + [(1024, 3, 2)] * 4`: channels, kernel size and residual.

    Raises:
        ValueError: If the text is no such expression; nothing else in it is evaluated.
    """
    layers = _evaluate(ast.parse(text, mode="eval").body)
    if not isinstance(layers, list):
        raise ValueError("not a list of layers")
    complete = [[*layer, 1][:3] if isinstance(layer, tuple) else [] for layer in layers]
    if not all(len(layer) == 3 and all(isinstance(number, int) for number in layer) for layer in complete):
        raise ValueError("a layer is not of two or three numbers")
    return complete


def _evaluate(node: ast.expr) -> Any:
    """Value of an expression of numbers, lists, tuples, `+` and `*`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Tuple):
        return tuple(map(_evaluate, node.elts))
    if isinstance(node, ast.List):
        return [*map(_evaluate, node.elts)]
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left), _evaluate(node.right)
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
        if isinstance(node.op, ast.Mult) and isinstance(left, list) and isinstance(right, int):
            if len(left) * right <= _MOST_LAYERS:
                return left * right
    raise ValueError("not a list of layers")


def _layers(found: FairseqCheckpoint, side: str) -> list[list[int]]:
    """Channels, kernel size and residual of each layer; the option tells only the residuals."""
    weights, path, option = found.weights, found.path, f"--{side}-layers"
    shapes: list[list[int]] = []
    while (filters := weights.get(f"{side}.convolutions.{len(shapes)}.weight_v")) is not None:
        shapes.append([filters.shape[2] // 2, filters.shape[0]])
    text = found.options.get(f"{side}_layers")
    if text is None:
        return [[*shape, 1] for shape in shapes]
    try:
        layers = read_layers(str(text))
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: {option} {text!r:.60} is not a list of layers") from error
    if [layer[:2] for layer in layers] != shapes:
        raise InputError(f"{path}: {option} {text!r:.60} does not describe its weights")
    return layers


def _normalized(direction: Tensor, length: Tensor) -> Tensor:
    """Weight of a direction and a length along the dimensions that the length has."""
    over = [dim for dim, size in enumerate(length.shape) if size == 1]
    return direction * (length / torch.linalg.vector_norm(direction, dim=over, keepdim=True))


def _linear(theirs: str, ours: str) -> dict[str, str | Made]:
    """Names of a linear layer with weight normalisation, which ours has not."""
    return {
        f"{ours}.weight": Made([f"{theirs}.weight_v", f"{theirs}.weight_g"], _normalized),
        f"{ours}.bias": f"{theirs}.bias",
    }


def _table(found: FairseqCheckpoint, side: str, ours: str) -> dict[str, str | Made]:
    """Our names of the embeddings and the layers of a side, with theirs."""
    weights = found.weights
    table: dict[str, str | Made] = {f"{ours}embed_tokens.weight": f"{side}.embed_tokens.weight"}
    table |= _linear(f"{side}.fc1", f"{ours}stack.project")
    index = 0
    while f"{side}.convolutions.{index}.bias" in weights:
        layer, theirs = f"{ours}stack.layers.{index}.", f"{side}.convolutions.{index}."
        names = [f"{theirs}weight_v", f"{theirs}weight_g"]
        if weights[names[1]].shape[-1] > 1:
            table[f"{layer}convolutions.0.direction"] = Made(names[:1], lambda filters: filters.permute(2, 1, 0))
            table[f"{layer}convolutions.0.magnitude"] = Made(names[1:], torch.flatten)
        else:
            # Before version 2 of the decoder the norms were those of taps.
            table[f"{layer}convolutions.0.direction"] = Made(
                names, lambda filters, length: _normalized(filters, length).permute(2, 1, 0)
            )
            table[f"{layer}convolutions.0.magnitude"] = Made(
                names, lambda filters, length: torch.linalg.vector_norm(_normalized(filters, length), dim=(0, 1))
            )
        table[f"{layer}convolutions.0.bias"] = f"{theirs}bias"
        if f"{side}.projections.{index}.bias" in weights:
            table |= _linear(f"{side}.projections.{index}", f"{layer}shortcut")
        index += 1
    return table


def _output(found: FairseqCheckpoint) -> dict[str, str | Made]:
    """Our names of the two maps to words, of which the second may have the target embeddings."""
    table = _linear("decoder.fc2", "output.project") | _linear("decoder.fc3", "lm_head")
    if "decoder.fc3.weight_v" not in found.weights:
        table["lm_head.weight"] = "decoder.fc3.weight"
    return table


def _matrix(weights: dict[str, Tensor], name: str) -> Tensor:
    """Weight of a layer, with or without weight normalisation."""
    plain = weights.get(f"{name}.weight")
    return _normalized(weights[f"{name}.weight_v"], weights[f"{name}.weight_g"]) if plain is None else plain


def _map(weights: dict[str, Tensor], name: str, values: Tensor) -> Tensor:
    return linear(values, _matrix(weights, name), weights[f"{name}.bias"])


def _embed(weights: dict[str, Tensor], side: str, ids: Tensor) -> Tensor:
    """Embeddings `[T, E]` of `[T]`, with positions if there are any; pieces beyond the dictionary are `<unk>`."""
    table, positions = (weights.get(f"{side}.embed_{kind}.weight") for kind in ("tokens", "positions"))
    assert table is not None
    embedded = table[ids.where(ids < len(table), UNKNOWN)]
    return embedded if positions is None else embedded + positions[_FIRST_POSITION:][: len(ids)]


def _convolve(weights: dict[str, Tensor], name: str, values: Tensor, before: int, after: int) -> Tensor:
    """Gated output `[T, H]` of a convolution of `[T, I]`."""
    filters = _matrix(weights, name).permute(2, 1, 0)
    convolved = conv1d(pad(values.T, (before, after)).unsqueeze(0), filters, weights[f"{name}.bias"])
    return glu(convolved[0].T, dim=-1)


def _shortcut(weights: dict[str, Tensor], name: str, entered: list[Tensor], residual: int) -> Tensor | None:
    """Earlier output that a layer adds to its own, perhaps projected; None for none."""
    if residual == 0:
        return None
    return _map(weights, name, entered[-residual]) if f"{name}.bias" in weights else entered[-residual]


def _run_encoder(weights: dict[str, Tensor], ids: Tensor, layers: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Keys and values `[S, E]` of `[1, S]`."""
    embedded = _embed(weights, "encoder", ids[0])
    values = _map(weights, "encoder.fc1", embedded)
    entered = [values]
    for index, (_, kernel, residual) in enumerate(layers):
        added = _shortcut(weights, f"encoder.projections.{index}", entered, residual)
        values = _convolve(weights, f"encoder.convolutions.{index}", values, kernel // 2, kernel // 2)
        values = values if added is None else (values + added) * math.sqrt(0.5)
        entered.append(values)
    keys = _map(weights, "encoder.fc2", values)
    return keys, (keys + embedded) * math.sqrt(0.5)


def _run_decoder(
    weights: dict[str, Tensor], ids: Tensor, layers: list[list[int]], encoded: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Hidden states `[1, T, H]` of `[1, T]`; the attention comes before the sum."""
    embedded = _embed(weights, "decoder", ids[0])
    values = _map(weights, "decoder.fc1", embedded)
    entered = [values]
    for index, (_, kernel, residual) in enumerate(layers):
        added = _shortcut(weights, f"decoder.projections.{index}", entered, residual)
        values = _convolve(weights, f"decoder.convolutions.{index}", values, kernel - 1, 0)
        if encoded is not None:
            name = f"decoder.attention.{index}"
            query = (_map(weights, f"{name}.in_projection", values) + embedded) * math.sqrt(0.5)
            context = (query @ encoded[0].T).softmax(dim=-1) @ encoded[1] * math.sqrt(len(encoded[1]))
            values = (_map(weights, f"{name}.out_projection", context) + values) * math.sqrt(0.5)
        values = values if added is None else (values + added) * math.sqrt(0.5)
        entered.append(values)
    return values.unsqueeze(0)


def _run_output(weights: dict[str, Tensor], values: Tensor) -> Tensor:
    """Logits, or log-probabilities of an adaptive softmax."""
    if "decoder.adaptive_softmax.head.weight" in weights:
        return run_adaptive(weights, values)
    return _map(weights, "decoder.fc3", _map(weights, "decoder.fc2", values))


def _reference(weights: dict[str, Tensor], layers: dict[str, list[list[int]]]) -> Reference:
    """The translator, layer by layer."""

    def reference(source: Tensor, ids: Tensor) -> Tensor:
        encoded = _run_encoder(weights, source, layers["encoder"])
        return _run_output(weights, _run_decoder(weights, ids, layers["decoder"], encoded))

    return reference

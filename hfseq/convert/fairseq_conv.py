"""Convolutional models of fairseq (Gehring et al. 2017; Dauphin et al. 2017): language models and translators."""

import ast
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import conv1d, glu, linear, pad

from hfseq.convert.base import Converted
from hfseq.convert.fairseq_files import IDS, FairseqCheckpoint, make_tokenizer
from hfseq.convert.fairseq_lstm import make_pair, piece_notes
from hfseq.convert.names import Made, add_pieces, fill, same_weight, translate
from hfseq.errors import InputError, one_line
from hfseq.models import CnnConfig
from hfseq.models.modeling_cnn import CnnForCausalLM, CnnForConditionalGeneration

_UNUSED = ("*.version", "*._float_tensor")
_UNKNOWN = 3
_HALF = math.sqrt(0.5)
Layer = tuple[int, int, int]
"""Channels, kernel size, and the number of layers back whose input is added, or 0."""


def convert_fconv(found: FairseqCheckpoint, dict_dir: str | Path | None, codes: Sequence[str | Path]) -> Converted:
    """Convert a translator, `fconv`, or a language model, `fconv_lm`.

    Args:
        found: The checkpoint.
        dict_dir: Folder of the dictionaries; None for no tokenizer.
        codes: File of BPE codes for both languages, one for each, or none.

    Raises:
        InputError: If it has an option that hfseq does not have, or the dictionaries or the codes do not fit.
    """
    path, weights = found.path, _without_norms(found.weights)
    translates = "encoder.embed_tokens.weight" in weights
    sides = ("encoder", "decoder") if translates else ("decoder",)
    layers = {side: _layers(found, side) for side in sides}
    if "decoder.fc3.weight" not in weights:
        raise InputError(f"{path}: --criterion adaptive_loss: hfseq's adaptive softmax reads no further linear layer")
    attends = [f"decoder.attention.{index}.in_projection.weight" in weights for index in range(len(layers["decoder"]))]
    if any(attends) != all(attends) or all(attends) != translates:
        raise InputError(f"{path}: --decoder-attention: hfseq's translators attend in all layers of the decoder")
    if translates and any(kernel % 2 == 0 for _, kernel, _ in layers["encoder"]):
        raise InputError(f"{path}: --encoder-layers {found.options.get('encoder_layers')}: kernel sizes must be odd")
    target, size = weights["decoder.embed_tokens.weight"].shape
    source = len(weights["encoder.embed_tokens.weight"]) if translates else target
    shared = translates and same_weight(weights["encoder.embed_tokens.weight"], weights["decoder.embed_tokens.weight"])
    if translates:
        tokenizer, more, more_targets = make_pair(found, dict_dir, codes, shared, source, target)
    else:
        tokenizer, more = make_tokenizer(dict_dir, codes[0] if codes else None, None, target, start=["</s>"])
        more_targets = more
    tied = same_weight(weights["decoder.fc3.weight"], weights["decoder.embed_tokens.weight"])
    positions = {side: weights.get(f"{side}.embed_positions.weight") for side in sides}
    counts = {len(rows) - 2 for rows in positions.values() if rows is not None}
    if len(counts) > 1:
        raise InputError(f"{path}: --max-source-positions and --max-target-positions differ; hfseq has one number")
    fields: dict[str, Any] = {
        "vocab_size": source + len(more),
        "architecture": "convs2s",
        "embedding_size": size,
        "hidden_size": layers[sides[0]][-1][0],
        "num_hidden_layers": len(layers[sides[0]]),
        "conv_layers": [list(layer) for layer in layers[sides[0]]],
        "input_projection": True,
        "output_size": weights["decoder.fc2.weight"].shape[0],
        "attention_position": "before_residual",
        # A language model has no positions: one of zeros, which all steps share.
        "max_position_embeddings": counts.pop() if counts else 1,
        "tie_word_embeddings": tied,
        "lm_head_bias": True,
        "decoder_start_token_id": IDS["eos_token_id"],
        **IDS,
        "dropout": float(found.options.get("dropout", 0.1)),
    }
    if translates:
        last = layers["decoder"][-1][0]
        fields |= {
            "decoder_vocab_size": None if shared else target + len(more_targets),
            "share_encoder_decoder_embeddings": shared,
            "decoder_conv_layers": [list(layer) for layer in layers["decoder"]],
            "encoder_layers": len(layers["encoder"]),
            "decoder_layers": len(layers["decoder"]),
            "decoder_hidden_size": None if last == fields["hidden_size"] else last,
            "is_encoder_decoder": True,
        }
    model: Any = (CnnForConditionalGeneration if translates else CnnForCausalLM)(CnnConfig(**fields))
    table: dict[str, str | Made] = {}
    for side, ours in (("encoder", "model"), ("decoder", "decoder" if translates else "model")):
        table |= _table(weights, side, ours, len(layers[side])) if side in layers else {}
    for ours, theirs in (("output.project", "decoder.fc2"), ("lm_head", "decoder.fc3")):
        table |= {f"{ours}.{name}": f"{theirs}.{name}" for name in ("weight", "bias")}
    if translates:
        table |= {f"decoder.source.project.{name}": f"encoder.fc2.{name}" for name in ("weight", "bias")}
    translated = translate(path, weights, table, _UNUSED)
    inputs = {"model.embed_tokens.weight": len(more)}
    inputs |= {"decoder.embed_tokens.weight": len(more_targets)} if translates else {}
    add_pieces(translated, inputs, len(more_targets), tied, _UNKNOWN)
    fill(model, translated, path)
    notes = ["fairseq-generate searches with 5 beams and divides by lengths (--lenpen 1)."] if translates else []
    if tokenizer is not None:
        notes.insert(0, f"A {'target' if translates else 'text'} begins with </s>, as in fairseq.")

    def reference(*ids: Tensor) -> Tensor:
        encoded = _encode(weights, ids[0], layers["encoder"]) if translates else None
        return _decode(weights, ids[-1], layers["decoder"], encoded)

    notes += piece_notes([*more, *(more_targets if translates else [])])
    return Converted(model, tokenizer, reference, f"fairseq ({found.arch})", found.parts, notes)


def _layers(found: FairseqCheckpoint, side: str) -> list[Layer]:
    """Layers of a side: sizes by its weights, and what is added by its options."""
    text = str(found.options.get(f"{side}_layers"))
    try:
        named = _evaluate(ast.parse(text, mode="eval").body)
        shapes = [(*layer, 1)[:3] for layer in named]
    except (SyntaxError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{found.path}: --{side}-layers {text!r:.60}: {one_line(error, 100)}") from error
    kernels = [found.weights.get(f"{side}.convolutions.{index}.weight_v") for index in range(len(shapes))]
    sizes = [None if kernel is None else (kernel.shape[2] // 2, kernel.shape[0]) for kernel in kernels]
    if not shapes or sizes != [shape[:2] for shape in shapes]:
        raise InputError(f"{found.path}: --{side}-layers {text!r:.60} is not what the weights have: {sizes}")
    return [(int(channels), int(kernel), int(residual)) for channels, kernel, residual in shapes]


def _evaluate(node: ast.expr) -> Any:
    """Value of an expression of lists, tuples, integers, `+` and `*`, such as `[(512, 3)] * 20`."""
    if isinstance(node, ast.List | ast.Tuple):
        values = [_evaluate(one) for one in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left, right = _evaluate(node.left), _evaluate(node.right)
        if isinstance(node.op, ast.Mult) and isinstance(right, int) and 0 <= right <= 1000 and isinstance(left, list):
            return left * right
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
    raise ValueError("not a list of layers, such as [(512, 3)] * 20")


def _without_norms(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and filters in place of their directions and lengths, whichever dimensions these have."""
    folded = dict(weights)
    for name in [name for name in weights if name.endswith(".weight_v")]:
        stem = name.removesuffix("_v")
        direction, length = folded.pop(name), folded.pop(f"{stem}_g")
        dims = [dim for dim, size in enumerate(length.shape) if size == 1]
        folded[stem] = direction * length / direction.norm(dim=dims, keepdim=True)
    return folded


def _table(weights: dict[str, Tensor], side: str, ours: str, layers: int) -> dict[str, str | Made]:
    table: dict[str, str | Made] = {f"{ours}.embed_tokens.weight": f"{side}.embed_tokens.weight"}
    table |= {f"{ours}.stack.project.{name}": f"{side}.fc1.{name}" for name in ("weight", "bias")}
    positions, rows = f"{side}.embed_positions.weight", f"{ours}.positions.table.weight"
    if positions in weights:
        # The first position is behind the row of padding.
        table[rows] = Made([positions], lambda one: one[2:])
    else:
        table[rows] = Made([f"{side}.embed_tokens.weight"], lambda one: one.new_zeros(1, one.shape[1]))
    for index in range(layers):
        own, theirs = f"{ours}.stack.layers.{index}", f"{side}.convolutions.{index}"
        # Our norm is over the inputs of each filter, so that a filter is its own direction.
        table[f"{own}.convolutions.0.direction"] = Made([f"{theirs}.weight"], lambda one: one.permute(2, 1, 0))
        table[f"{own}.convolutions.0.magnitude"] = Made([f"{theirs}.weight"], lambda one: one.norm(dim=(0, 1)))
        table[f"{own}.convolutions.0.bias"] = f"{theirs}.bias"
        parts = {"shortcut": f"{side}.projections.{index}"}
        parts |= {"attention.query": f"{side}.attention.{index}.in_projection"}
        parts |= {"attention.output": f"{side}.attention.{index}.out_projection"}
        for part, name in parts.items():
            if f"{name}.weight" in weights:
                table |= {f"{own}.{part}.{kind}": f"{name}.{kind}" for kind in ("weight", "bias")}
    return table


def _map(weights: dict[str, Tensor], name: str, values: Tensor) -> Tensor:
    return linear(values, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _enter(weights: dict[str, Tensor], side: str, ids: Tensor) -> Tensor:
    """Embeddings `[T, E]`, with positions, which fairseq counts from 2."""
    rows = weights[f"{side}.embed_tokens.weight"]
    values = rows[ids[0].where(ids[0] < len(rows), _UNKNOWN)]
    positions = weights.get(f"{side}.embed_positions.weight")
    return values if positions is None else values + positions[2 : 2 + len(values)]


def _convolve(weights: dict[str, Tensor], name: str, values: Tensor, before: int, after: int) -> Tensor:
    filters = weights[f"{name}.weight"].permute(2, 1, 0)
    padded = pad(values.t().unsqueeze(0), (before, after))
    return glu(conv1d(padded, filters, weights[f"{name}.bias"]), dim=1)[0].t()


def _add(weights: dict[str, Tensor], side: str, index: int, values: Tensor, inputs: list[Tensor], back: int) -> Tensor:
    """Scaled sum of a layer's output and an earlier input, through a map where widths differ."""
    if not back:
        return values
    residual, name = inputs[-back], f"{side}.projections.{index}"
    residual = _map(weights, name, residual) if f"{name}.weight" in weights else residual
    return (values + residual) * _HALF


def _encode(weights: dict[str, Tensor], ids: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, Tensor]:
    """Keys and values `[S, E]`."""
    embedded = _enter(weights, "encoder", ids)
    inputs = [_map(weights, "encoder.fc1", embedded)]
    for index, (_, kernel, back) in enumerate(layers):
        values = _convolve(weights, f"encoder.convolutions.{index}", inputs[-1], kernel // 2, kernel // 2)
        inputs.append(_add(weights, "encoder", index, values, inputs, back))
    keys = _map(weights, "encoder.fc2", inputs[-1])
    return keys, (keys + embedded) * _HALF


def _decode(
    weights: dict[str, Tensor], ids: Tensor, layers: Sequence[Layer], encoded: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Logits `[1, T, V]`."""
    embedded = _enter(weights, "decoder", ids)
    inputs = [_map(weights, "decoder.fc1", embedded)]
    for index, (_, kernel, back) in enumerate(layers):
        values = _convolve(weights, f"decoder.convolutions.{index}", inputs[-1], kernel - 1, 0)
        if encoded is not None:
            keys, memory = encoded
            query = (_map(weights, f"decoder.attention.{index}.in_projection", values) + embedded) * _HALF
            context = (query @ keys.t()).softmax(dim=-1) @ memory * math.sqrt(len(keys))
            values = (_map(weights, f"decoder.attention.{index}.out_projection", context) + values) * _HALF
        inputs.append(_add(weights, "decoder", index, values, inputs, back))
    return _map(weights, "decoder.fc3", _map(weights, "decoder.fc2", inputs[-1])).unsqueeze(0)

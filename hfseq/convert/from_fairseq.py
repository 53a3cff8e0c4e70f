"""Recurrent models of fairseq."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from hfseq.convert.base import Converted, Format, Reference
from hfseq.convert.fairseq_files import IDS, FairseqCheckpoint, make_tokenizer, read_fairseq
from hfseq.convert.names import Made, add_pieces, fill, translate
from hfseq.errors import InputError
from hfseq.models import LstmConfig
from hfseq.models.modeling_lstm import LstmForCausalLM

_UNUSED = ("*.version", "*._float_tensor")
"""Weights that only say how a checkpoint is to be read."""
_FACTOR = 4
"""Factor by which each cluster of fairseq's adaptive softmax is narrower than the one before it."""
_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""Weights of an `nn.LSTMCell`."""


def convert_fairseq(
    checkpoint: str | Path, *, dict_dir: str | Path | None = None, bpe_codes: str | Path | None = None
) -> Converted:
    """Convert a model that `fairseq-train` wrote: `lstm_lm`.

    Widths and depths are those of the weights; of the options only those count that the weights do not tell.

    Args:
        checkpoint: `checkpoint_best.pt` or another one.
        dict_dir: Folder with the dictionary, `dict.txt`, as `fairseq-preprocess` wrote it, or the file; None for no
            tokenizer.
        bpe_codes: BPE codes of subword-nmt or fastBPE, if the texts were split by them; None for a tokenizer of texts
            that are split already.

    Raises:
        InputError: If the checkpoint cannot be read safely, is of another architecture, or has an option that hfseq
            does not have; or if the dictionary or the codes do not fit.
    """
    found = read_fairseq(checkpoint)
    names = found.weights
    if "decoder.layers.0.weight_ih" in names and not any(name.startswith("encoder.") for name in names):
        return _convert_lstm_lm(found, dict_dir, bpe_codes)
    raise InputError(f"{found.path}: --arch {found.arch} is none of those that hfseq converts: lstm_lm")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of this format."""
    parser.add_argument("--dict_dir", help="folder with the dictionary, dict.txt, or the dictionary itself")
    parser.add_argument("--bpe_codes", help="BPE codes of subword-nmt or fastBPE")


FORMAT = Format(convert_fairseq, add_arguments, "recurrent models of fairseq: lstm_lm")


def _convert_lstm_lm(found: FairseqCheckpoint, dict_dir: Any, bpe_codes: Any) -> Converted:
    weights, options, path = found.weights, found.options, found.path
    if options.get("residuals") is True:
        raise InputError(f"{path}: --residuals: hfseq's LSTM has no sums of a layer's output and its last state")
    layers = sum(name.startswith("decoder.layers.") and name.endswith(".weight_hh") for name in weights)
    size, embedding_size = weights["decoder.embed_tokens.weight"].shape
    tokenizer, more = make_tokenizer(dict_dir, bpe_codes, None, size, start=["</s>"])
    table: dict[str, str | Made] = {"model.embed_tokens.weight": "decoder.embed_tokens.weight"}
    for layer in range(layers):
        for name in _CELL:
            table[f"model.stack.forward_layers.{layer}.{name}_l0"] = f"decoder.layers.{layer}.{name}"
    fields, head, unused = _output(found, "decoder.", "", biased=bool(more))
    dropout, ignored = found.dropout("decoder_dropout_in", "decoder_dropout_out")
    fields |= IDS | dropout
    config = LstmConfig(
        vocab_size=size,
        embedding_size=embedding_size,
        hidden_size=weights["decoder.layers.0.weight_hh"].shape[1],
        num_hidden_layers=layers,
        bidirectional=False,
        decoder_start_token_id=IDS["eos_token_id"],
        **fields,
    )
    model: Any = LstmForCausalLM(config)
    fill(model, translate(path, weights, table | head, [*_UNUSED, *unused]), path)
    notes = [] if tokenizer is None else ["The tokenizer begins a text with </s>, as fairseq does."]
    if more:
        add_pieces(model, len(more), unknown=3)
        notes.append(f"{len(more):,} pieces of the BPE codes that the dictionary lacks are read as <unk>.")
    ignored = [*(f"{part} of the checkpoint" for part in found.parts), *ignored]
    return Converted(model, tokenizer, _reference_lm(weights, layers), f"fairseq ({found.arch})", ignored, notes)


def _output(
    found: FairseqCheckpoint, prefix: str, ours: str, biased: bool
) -> tuple[dict[str, Any], dict[str, str | Made], list[str]]:
    """Output layer of a decoder: the vocabulary directly, behind a further linear layer, tied, or an adaptive softmax.

    Args:
        found: The checkpoint.
        prefix: Prefix of the decoder's weights.
        ours: Prefix of the output layer here.
        biased: Whether it has to have a bias, even if fairseq's has none.

    Returns:
        Config fields; our names with fairseq's; and names of weights that fairseq does not use.
    """
    weights = found.weights
    embedding, output = f"{prefix}embed_tokens.weight", f"{prefix}fc_out.weight"
    extra = [f"{prefix}additional_fc.{name}" for name in ("weight", "bias")]
    if f"{prefix}adaptive_softmax.head.weight" in weights:
        if biased:
            raise InputError(
                f"{found.path}: --bpe_codes: an adaptive softmax has no room for the pieces that they add"
            )
        return *_adaptive(found, f"{prefix}adaptive_softmax."), extra
    further = extra[0] in weights
    if output in weights:
        table: dict[str, str | Made] = {f"{ours}lm_head.weight": output, f"{ours}lm_head.bias": f"{prefix}fc_out.bias"}
        if further:  # two linear layers without an activation in between are one
            table[f"{ours}lm_head.weight"] = Made([output, extra[0]], torch.matmul)
            table[f"{ours}lm_head.bias"] = Made([extra[1], output, f"{prefix}fc_out.bias"], linear)
        return {"tie_word_embeddings": False, "lm_head_bias": True}, table, []
    table = {f"{ours}lm_head.weight": embedding}
    if further:
        table[f"{ours}output.project.weight"] = extra[0]
        table[f"{ours}lm_head.bias"] = Made([extra[1], embedding], linear)
    elif biased:
        table[f"{ours}lm_head.bias"] = Made([embedding], lambda rows: rows.new_zeros(len(rows)))
    return {"tie_word_embeddings": True, "lm_head_bias": further or biased}, table, []


def _adaptive(found: FairseqCheckpoint, prefix: str) -> tuple[dict[str, Any], dict[str, str | Made]]:
    """Config fields and names of an adaptive softmax (Grave et al. 2017)."""
    weights = found.weights
    head = weights[f"{prefix}head.weight"]
    tails = sum(name.startswith(f"{prefix}tail.") and name.endswith(".2.weight") for name in weights)
    sizes = [len(weights[f"{prefix}tail.{index}.2.weight"]) for index in range(tails)]
    first = len(head) - tails
    table: dict[str, str | Made] = {
        "lm_head.weight": Made([f"{prefix}head.weight"], lambda rows: rows[:first]),
        "adaptive_softmax.clusters.weight": Made([f"{prefix}head.weight"], lambda rows: rows[first:]),
    }
    for index in range(tails):
        for ours, theirs in ((0, 0), (1, 2)):  # a dropout is in between
            table[f"adaptive_softmax.tails.{index}.{ours}.weight"] = f"{prefix}tail.{index}.{theirs}.weight"
    fields = {
        "tie_word_embeddings": False,
        "adaptive_softmax_cutoffs": [first + sum(sizes[:index]) for index in range(tails)],
        "adaptive_softmax_div_value": _FACTOR,
    }
    return fields, table


def _reference_lm(weights: dict[str, Tensor], layers: int) -> Reference:
    """LSTMCells and fairseq's output layers, by loops."""

    def reference(ids: Tensor) -> Tensor:
        states = [(torch.zeros(1, weights["decoder.layers.0.weight_hh"].shape[1]),) * 2 for _ in range(layers)]
        outputs = []
        for token in ids[0]:
            values = weights["decoder.embed_tokens.weight"][token].unsqueeze(0)
            for layer in range(layers):
                cell = [weights[f"decoder.layers.{layer}.{name}"] for name in _CELL]
                states[layer] = torch.lstm_cell(values, states[layer], *cell)
                values = states[layer][0]
            outputs.append(values)
        return _reference_output(weights, "decoder.", torch.stack(outputs, dim=1))

    return reference


def _reference_output(weights: dict[str, Tensor], prefix: str, values: Tensor) -> Tensor:
    """Logits, or log-probabilities of an adaptive softmax."""

    def weight(name: str) -> Tensor | None:
        return weights.get(f"{prefix}{name}")

    head = weight("adaptive_softmax.head.weight")
    if head is not None:
        tails = 0
        while weight(f"adaptive_softmax.tail.{tails}.0.weight") is not None:
            tails += 1
        scores = linear(values, head).log_softmax(dim=-1)
        words, clusters = scores.split([len(head) - tails, tails], dim=-1)
        parts = [words]
        for index in range(tails):
            narrow, rows = (weight(f"adaptive_softmax.tail.{index}.{layer}.weight") for layer in (0, 2))
            assert narrow is not None and rows is not None
            inside = linear(linear(values, narrow), rows).log_softmax(dim=-1)
            parts.append(inside + clusters[..., index : index + 1])
        return torch.cat(parts, dim=-1)
    further, output = weight("additional_fc.weight"), weight("fc_out.weight")
    if further is not None:
        values = linear(values, further, weight("additional_fc.bias"))
    if output is not None:
        return linear(values, output, weight("fc_out.bias"))
    return linear(values, weights[f"{prefix}embed_tokens.weight"])

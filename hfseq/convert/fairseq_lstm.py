"""LSTMs of fairseq: language models and translators."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedTokenizerFast

from hfseq.convert.base import Converted, Reference
from hfseq.convert.fairseq_files import IDS, FairseqCheckpoint, language_pair, make_tokenizer
from hfseq.convert.names import Made, add_pieces, fill, recurrent_table, same_weight, translate
from hfseq.convert.translators import attend, cell_names, cell_table, piece_note, run_cells, vocabulary_fields
from hfseq.errors import InputError
from hfseq.models import LstmConfig
from hfseq.models.modeling_lstm import LstmForCausalLM, LstmForConditionalGeneration
from hfseq.tokenization import pair_tokenizers

UNUSED = ("*.version", "*._float_tensor")
"""Weights that only say how a checkpoint is to be read."""
_FACTOR = 4
"""Factor by which each cluster of fairseq's adaptive softmax is narrower than the one before it."""
UNKNOWN = 3
"""Id of `<unk>`."""
_EMBEDDINGS = "decoder.embed_tokens.weight"


def convert_lstm_lm(found: FairseqCheckpoint, dict_dir: str | Path | None, codes: Sequence[str | Path]) -> Converted:
    """Convert a language model, `lstm_lm`.

    Args:
        found: The checkpoint.
        dict_dir: Folder of the dictionary, or the dictionary; None for no tokenizer.
        codes: File of BPE codes, or none.

    Raises:
        InputError: If it has an option that hfseq does not have, or the dictionary or the codes do not fit.
    """
    weights, path = found.weights, found.path
    if found.options.get("residuals") is True:
        raise InputError(f"{path}: --residuals: hfseq's LSTM has no sums of a layer's output and its last state")
    layers, table = _cells(found, "model.")
    size, embedding_size = weights[_EMBEDDINGS].shape
    tokenizer, more = make_tokenizer(dict_dir, codes[0] if codes else None, None, size, start=["</s>"])
    fields, head, unused = _output(found, biased=bool(more))
    dropout, ignored = found.dropout("decoder_dropout_in", "decoder_dropout_out")
    fields |= IDS | dropout
    config = LstmConfig(
        vocab_size=size + len(more),
        embedding_size=embedding_size,
        hidden_size=weights["decoder.layers.0.weight_hh"].shape[1],
        num_hidden_layers=layers,
        bidirectional=False,
        decoder_start_token_id=IDS["eos_token_id"],
        **fields,
    )
    model: Any = LstmForCausalLM(config)
    table |= {"model.embed_tokens.weight": _EMBEDDINGS} | head
    ours = translate(path, weights, table, [*UNUSED, *unused])
    add_pieces(ours, {"model.embed_tokens.weight": len(more)}, len(more), config.tie_word_embeddings, UNKNOWN)
    fill(model, ours, path)
    notes = [] if tokenizer is None else ["The tokenizer begins a text with `</s>`, as fairseq does."]

    def reference(ids: Tensor) -> Tensor:
        values = _run_decoder(weights, ids, layers, None)
        return _run_output(weights, values)

    ignored = [*found.parts, *ignored]
    return Converted(model, tokenizer, reference, f"fairseq ({found.arch})", ignored, notes + piece_note(more))


def convert_lstm(found: FairseqCheckpoint, dict_dir: str | Path | None, codes: Sequence[str | Path]) -> Converted:
    """Convert a translator, `lstm`.

    Args:
        found: The checkpoint.
        dict_dir: Folder of the dictionaries; None for no tokenizer.
        codes: File of BPE codes for both languages, one for each, or none.

    Raises:
        InputError: If it has an option that hfseq does not have, or the dictionaries or the codes do not fit.
    """
    weights, path = found.weights, found.path
    source, embedding_size = weights["encoder.embed_tokens.weight"].shape
    target, decoder_embedding_size = weights[_EMBEDDINGS].shape
    if embedding_size != decoder_embedding_size:
        raise InputError(
            f"{path}: --encoder-embed-dim {embedding_size}, --decoder-embed-dim {decoder_embedding_size}: hfseq's "
            "embeddings have one width"
        )
    depth = sum(name.startswith("encoder.lstm.weight_hh_l") and "reverse" not in name for name in weights)
    layers, table = _cells(found, "decoder.")
    if layers != depth:
        raise InputError(
            f"{path}: --encoder-layers {depth}, --decoder-layers {layers}: hfseq starts from equally many"
        )
    bidirectional = "encoder.lstm.weight_hh_l0_reverse" in weights
    if "decoder.adaptive_softmax.head.weight" in weights:
        raise InputError(f"{path}: --criterion adaptive_loss: hfseq's translators have no adaptive softmax")
    shared = same_weight(weights["encoder.embed_tokens.weight"], weights[_EMBEDDINGS])
    tokenizer, more, more_targets = language_tokenizers(found, dict_dir, codes, shared, source, target)
    fields, head, unused = _output(found, biased=bool(more_targets))
    dropouts = [f"{side}_dropout_{place}" for side in ("encoder", "decoder") for place in ("in", "out")]
    dropout, ignored = found.dropout(*dropouts)
    fields |= IDS | dropout | vocabulary_fields((source + len(more), target + len(more_targets)), shared, shared)
    width = weights["encoder.lstm.weight_hh_l0"].shape[1]
    attends = "decoder.attention.input_proj.weight" in weights
    linear_bridge = "decoder.encoder_hidden_proj.weight" in weights
    config = LstmConfig(
        embedding_size=embedding_size,
        hidden_size=width * (2 if bidirectional else 1),
        decoder_hidden_size=weights["decoder.layers.0.weight_hh"].shape[1],
        encoder_layers=depth,
        decoder_layers=layers,
        bidirectional=bidirectional,
        attention_type="general" if attends else "none",
        input_feeding=True,
        bridge="linear" if linear_bridge else "copy",
        is_encoder_decoder=True,
        decoder_start_token_id=IDS["eos_token_id"],
        **fields,
    )
    model: Any = LstmForConditionalGeneration(config)
    table |= recurrent_table("encoder.lstm.", "model.stack.", depth, bidirectional=bidirectional) | head
    table |= {"model.embed_tokens.weight": "encoder.embed_tokens.weight", "decoder.embed_tokens.weight": _EMBEDDINGS}
    if attends:
        table["decoder.attention.query.weight"] = "decoder.attention.input_proj.weight"
        table["decoder.attention.combine.weight"] = "decoder.attention.output_proj.weight"
    if linear_bridge:
        for ours, theirs in (("hidden", "encoder_hidden_proj"), ("cell", "encoder_cell_proj")):
            table |= {f"decoder.bridge.{ours}.{name}": f"decoder.{theirs}.{name}" for name in ("weight", "bias")}
    translated = translate(path, weights, table, [*UNUSED, *unused])
    inputs = {"model.embed_tokens.weight": len(more), "decoder.embed_tokens.weight": len(more_targets)}
    add_pieces(translated, inputs, len(more_targets), config.tie_word_embeddings, UNKNOWN)
    fill(model, translated, path)
    ignored = [*found.parts, *ignored]
    notes = set_search(model)
    reference = _reference(weights, depth, bidirectional)
    notes += piece_note(more, more_targets)
    return Converted(model, tokenizer, reference, f"fairseq ({found.arch})", ignored, notes)


def language_tokenizers(
    found: FairseqCheckpoint,
    dict_dir: str | Path | None,
    codes: Sequence[str | Path],
    shared: bool,
    source: int,
    target: int,
) -> tuple[PreTrainedTokenizerFast | None, list[str], list[str]]:
    """Tokenizer of both languages, and the pieces that each side has beyond its dictionary.

    Args:
        found: The checkpoint, whose options name the languages.
        dict_dir: Folder of the dictionaries; None for no tokenizer.
        codes: File of BPE codes for both languages, one for each, or none.
        shared: Whether both have one dictionary.
        source: Number of tokens of the source.
        target: Number of tokens of the target.

    Raises:
        InputError: If there is no dictionary, or one does not fit.
    """
    languages = language_pair(found.options)
    if dict_dir is not None and None in languages:
        raise InputError(f"{found.path}: no --source-lang and --target-lang in its options, which name dictionaries")
    first, last = (codes[0], codes[-1]) if codes else (None, None)
    ours, more = make_tokenizer(dict_dir, first, languages[0], source, end=["</s>"])
    if shared or ours is None:
        return ours, more, more
    theirs, more_targets = make_tokenizer(dict_dir, last, languages[1], target, end=["</s>"])
    assert theirs is not None
    return pair_tokenizers(ours, theirs), more, more_targets


def _cells(found: FairseqCheckpoint, ours: str) -> tuple[int, dict[str, str | Made]]:
    """Number of the decoder's layers, and names of their weights."""
    names = [name for name in found.weights if name.startswith("decoder.layers.")]
    layers = sum(name.endswith(".weight_hh") for name in names)
    return layers, cell_table(_names(layers), f"{ours}stack.")


def _names(layers: int) -> list[list[str]]:
    """Names of the weights of each layer of the decoder, `LSTMCell`s."""
    return cell_names("decoder.layers.", layers, separator="")


def _output(found: FairseqCheckpoint, biased: bool) -> tuple[dict[str, Any], dict[str, str | Made], list[str]]:
    """Output layer of a decoder: the vocabulary directly, behind a further linear layer, tied, or an adaptive softmax.

    Args:
        found: The checkpoint.
        biased: Whether it has to have a bias, even if fairseq's has none.

    Returns:
        Config fields; our names with fairseq's; and names of weights that fairseq does not use.
    """
    weights = found.weights
    embedding, output = _EMBEDDINGS, "decoder.fc_out.weight"
    extra = [f"decoder.additional_fc.{name}" for name in ("weight", "bias")]
    if "decoder.adaptive_softmax.head.weight" in weights:
        if biased:
            raise InputError(
                f"{found.path}: --bpe_codes: an adaptive softmax has no room for the pieces that they add"
            )
        return *adaptive_table(found), extra
    further = extra[0] in weights
    if output in weights:
        table: dict[str, str | Made] = {"lm_head.weight": output, "lm_head.bias": "decoder.fc_out.bias"}
        if further:  # two linear layers without an activation in between are one
            table["lm_head.weight"] = Made([output, extra[0]], torch.matmul)
            table["lm_head.bias"] = Made([extra[1], output, "decoder.fc_out.bias"], linear)
        return {"tie_word_embeddings": False, "lm_head_bias": True}, table, []
    table = {"lm_head.weight": embedding}
    if further:
        table["output.project.weight"] = extra[0]
        table["lm_head.bias"] = Made([extra[1], embedding], linear)
    elif biased:
        table["lm_head.bias"] = Made([embedding], lambda rows: rows.new_zeros(len(rows)))
    return {"tie_word_embeddings": True, "lm_head_bias": further or biased}, table, []


def adaptive_table(found: FairseqCheckpoint) -> tuple[dict[str, Any], dict[str, str | Made]]:
    """Config fields and names of an adaptive softmax (Grave et al. 2017)."""
    weights, prefix = found.weights, "decoder.adaptive_softmax."
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


def _run_decoder(weights: dict[str, Tensor], ids: Tensor, layers: int, encoded: list[Tensor] | None) -> Tensor:
    """Hidden or attentional states `[1, T, H]` of the decoder, by LSTMCells and loops.

    Args:
        weights: By fairseq's names.
        ids: `[1, T]`.
        layers: Number of layers.
        encoded: The encoder's outputs `[S, M]`, and final hidden and cell states, `[layers, M]`; None without one.
    """
    width = weights["decoder.layers.0.weight_hh"].shape[1]
    hidden = cells = torch.zeros(layers, width)
    if encoded is not None:
        hidden, cells = encoded[1:]
        if "decoder.encoder_hidden_proj.weight" in weights:
            hidden, cells = (
                linear(one, *(weights[f"decoder.encoder_{name}_proj.{part}"] for part in ("weight", "bias")))
                for one, name in ((hidden, "hidden"), (cells, "cell"))
            )
    names = _names(layers)
    states: list[tuple[Tensor, ...]] = [(hidden[layer, None], cells[layer, None]) for layer in range(layers)]
    feed, outputs = torch.zeros(1, width), []
    for token in ids[0]:
        values = _embed(weights[_EMBEDDINGS], token.view(1))
        if encoded is not None:
            values = torch.cat([values, feed], dim=1)
        values = run_cells(weights, names, values, states)
        if encoded is not None and "decoder.attention.input_proj.weight" in weights:
            scores = encoded[0] @ linear(values[0], weights["decoder.attention.input_proj.weight"])
            both = torch.cat([attend(scores, encoded[0]), values], dim=1)
            values = linear(both, weights["decoder.attention.output_proj.weight"]).tanh()
        feed = values
        outputs.append(values)
    return torch.stack(outputs, dim=1)


def _embed(rows: Tensor, ids: Tensor) -> Tensor:
    """Embeddings of ids `[T]`; pieces beyond the dictionary are unknown."""
    return rows[ids.where(ids < len(rows), UNKNOWN)]


def _reference(weights: dict[str, Tensor], layers: int, bidirectional: bool) -> Reference:
    """The translator: an `nn.LSTM`, and the decoder by loops."""
    width, entering = weights["encoder.lstm.weight_hh_l0"].shape[1], weights["encoder.lstm.weight_ih_l0"].shape[1]
    module = nn.LSTM(entering, width, layers, bidirectional=bidirectional)
    module.load_state_dict({name: weights[f"encoder.lstm.{name}"] for name in module.state_dict()})

    def reference(source: Tensor, ids: Tensor) -> Tensor:
        outputs, states = module(_embed(weights["encoder.embed_tokens.weight"], source[0]))
        # Both directions of a layer are side by side.
        hidden, cells = (one.view(layers, -1) for one in states)
        return _run_output(weights, _run_decoder(weights, ids, layers, [outputs, hidden, cells]))

    return reference


def _run_output(weights: dict[str, Tensor], values: Tensor) -> Tensor:
    """Logits, or log-probabilities of an adaptive softmax."""

    def weight(name: str) -> Tensor | None:
        return weights.get(f"decoder.{name}")

    if weight("adaptive_softmax.head.weight") is not None:
        return run_adaptive(weights, values)
    further, output = weight("additional_fc.weight"), weight("fc_out.weight")
    if further is not None:
        values = linear(values, further, weight("additional_fc.bias"))
    if output is not None:
        return linear(values, output, weight("fc_out.bias"))
    return linear(values, weights[_EMBEDDINGS])


def run_adaptive(weights: dict[str, Tensor], values: Tensor) -> Tensor:
    """Log-probabilities `[1, T, V]` of fairseq's adaptive softmax of `[1, T, H]`, cluster by cluster."""
    prefix, tails = "decoder.adaptive_softmax.", 0
    head = weights[f"{prefix}head.weight"]
    while f"{prefix}tail.{tails}.0.weight" in weights:
        tails += 1
    scores = linear(values, head).log_softmax(dim=-1)
    words, clusters = scores.split([len(head) - tails, tails], dim=-1)
    parts = [words]
    for index in range(tails):
        narrow, rows = (weights[f"{prefix}tail.{index}.{layer}.weight"] for layer in (0, 2))
        inside = linear(linear(values, narrow), rows).log_softmax(dim=-1)
        parts.append(inside + clusters[..., index : index + 1])
    return torch.cat(parts, dim=-1)


def set_search(model: Any) -> list[str]:
    """Give a translator the search of `fairseq-generate` by default, and say it in a sentence."""
    generation = model.generation_config
    generation.num_beams, generation.length_penalty, generation.max_new_tokens = 5, 1.0, 200
    return [
        "A target begins with `</s>`; `fairseq-generate` searches with 5 beams and divides by lengths (`--lenpen 1`), "
        "as set here."
    ]

"""Recurrent translators of OpenNMT-py 3 and of Eole."""

import re
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hfseq.convert.base import Converted, Format, Reference
from hfseq.convert.names import (
    Made,
    add_pieces,
    as_float32,
    fill,
    other_parts,
    recurrent_table,
    same_weight,
    translate,
)
from hfseq.convert.reading import COMMON, PickledNames, StandIn, read_checkpoint, read_folder, read_json
from hfseq.convert.vocabularies import bpe_tokenizer, check_tokens, pair_tokenizer, reads_pieces, word_tokenizer
from hfseq.errors import InputError
from hfseq.models import GruConfig, LstmConfig
from hfseq.models.modeling_gru import GruForConditionalGeneration
from hfseq.models.modeling_lstm import LstmForConditionalGeneration

NAMES = COMMON | PickledNames(classes=("torchtext.*", "onmt.*"), functions=("functools.partial",))
"""Names in checkpoints: options, and the vocabularies of versions before 3, which are not read."""
_ROLES = {"unk_token": "<unk>", "pad_token": "<blank>", "bos_token": "<s>", "eos_token": "</s>"}
_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_CLASSES: dict[str, tuple[Any, Any]] = {
    "LSTM": (LstmConfig, LstmForConditionalGeneration),
    "GRU": (GruConfig, GruForConditionalGeneration),
}
_LACKING = {
    "coverage_attn": "hfseq's coverage is that of See et al. (2017), on the attention's scores",
    "copy_attn": "hfseq's pointer-generator is that of See et al. (2017), with one attention",
    "context_gate": "hfseq has no context gate",
}
"""Options that hfseq does not have, with the reason."""


def convert_opennmt(checkpoint: str | Path, *, bpe_codes: Sequence[str | Path] = ()) -> Converted:
    """Convert a recurrent translator of OpenNMT-py 3 or Eole.

    Args:
        checkpoint: `model_step_N.pt` of OpenNMT-py, with a `.safetensors` beside it if the weights are there; or a
            folder of Eole with `config.json`, `vocab.json` and safetensors.
        bpe_codes: File of BPE codes, or one for each language; none for a tokenizer of texts that are split already.

    Raises:
        InputError: If a file is missing, cannot be read safely, or has an option that hfseq does not have.
    """
    path = Path(checkpoint)
    options, vocabularies, weights, ignored = _read_eole(path) if path.is_dir() else _read_opennmt(path)
    _check(path, options)
    cell = str(options.get("rnn_type", "LSTM"))
    source, target = (len(weights[f"{side}.embeddings.weight"]) for side in ("encoder", "decoder"))
    (_, size), (_, target_size) = (weights[f"{side}.embeddings.weight"].shape for side in ("encoder", "decoder"))
    if size != target_size:
        raise InputError(f"{path}: embeddings of the widths {size} and {target_size}; hfseq's have one width")
    depth = sum(re.fullmatch(r"encoder\.rnn\.weight_hh_l\d+", name) is not None for name in weights)
    layers = sum(name.startswith("decoder.rnn.") and name.endswith("weight_hh") for name in weights)
    if depth != layers:
        raise InputError(f"{path}: {depth} layers of the encoder, {layers} of the decoder; hfseq has equally many")
    both = "encoder.rnn.weight_hh_l0_reverse" in weights
    width = weights["encoder.rnn.weight_hh_l0"].shape[1] * (2 if both else 1)
    shared = vocabularies[0] == vocabularies[1] and same_weight(
        weights["encoder.embeddings.weight"], weights["decoder.embeddings.weight"]
    )
    attention = _attention(weights)
    for name, tokens, count in zip(("source", "target"), vocabularies, (source, target), strict=True):
        check_tokens(f"{path}, {name} vocabulary", tokens, count)
    tokenizer, more = _tokenizer(vocabularies, bpe_codes)
    ids = {f"{role}_id": vocabularies[1].index(token) for role, token in _ROLES.items()}
    start = str(options.get("decoder_start_token") or "<s>")
    tied = same_weight(weights["generator.weight"], weights["decoder.embeddings.weight"])
    rates = options.get("dropout", 0.0)
    dropout = rates[-1] if isinstance(rates, list) and rates else rates
    config_class, model_class = _CLASSES[cell]
    config = config_class(
        vocab_size=source + len(more[0]),
        decoder_vocab_size=None if shared else target + len(more[1]),
        share_encoder_decoder_embeddings=shared,
        tie_word_embeddings=tied,
        lm_head_bias=True,
        embedding_size=size,
        hidden_size=width,
        encoder_layers=depth,
        decoder_layers=layers,
        bidirectional=both,
        attention_type={"mlp": "additive"}.get(attention, attention),
        attention_bias=attention == "mlp",
        attention_activation="none" if attention == "mlp" else "tanh",
        input_feeding=weights["decoder.rnn.layers.0.weight_ih"].shape[1] > size,
        bridge="relu" if "encoder.bridge.0.weight" in weights else "copy",
        is_encoder_decoder=True,
        decoder_start_token_id=vocabularies[1].index(start) if start in vocabularies[1] else ids["bos_token_id"],
        dropout=float(dropout),
        **ids,
    )
    model: Any = model_class(config)
    ours = translate(path, weights, _table(weights, attention, depth, both))
    counts = {"model.embed_tokens.weight": len(more[0]), "decoder.embed_tokens.weight": len(more[1])}
    add_pieces(ours, counts, len(more[1]), tied, ids["unk_token_id"])
    fill(model, ours, path)
    notes = [
        "A source has no </s>, and a target begins with <s>. OpenNMT searches with 5 beams, without "
        "dividing scores by lengths (length_penalty=0.0)."
    ]
    if not bpe_codes and any(map(reads_pieces, vocabularies)):
        notes.append("The vocabulary is of pieces of words, and does not tell how to split words: split the texts.")
    reference = _reference(weights, attention, depth, both, config.input_feeding, cell, ids["unk_token_id"])
    toolkit = f"{'Eole' if path.is_dir() else 'OpenNMT-py'} ({cell})"
    return Converted(model, tokenizer, reference, toolkit, ignored, notes)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of this format."""
    parser.add_argument("--bpe_codes", nargs="+", default=[], help="BPE codes, perhaps for each language")


FORMAT = Format(convert_opennmt, add_arguments, "recurrent translators of OpenNMT-py 3 and Eole")
Read = tuple[dict[str, Any], tuple[list[str], list[str]], dict[str, Tensor], list[str]]
"""Options, vocabularies of source and target, weights, and clauses on what is ignored."""


def _read_opennmt(path: Path) -> Read:
    found = read_checkpoint(path, NAMES)
    if not isinstance(found, dict) or not isinstance(found.get("opt"), StandIn):
        raise InputError(f"{path}: not a checkpoint of OpenNMT-py, which has its options under 'opt'")
    state, generator = found.get("model"), found.get("generator")
    if isinstance(state, dict):
        own = generator if isinstance(generator, dict) else {}
        state = state | {f"generator.{name}": weight for name, weight in own.items()}
    else:
        state = read_checkpoint(path.with_suffix(".safetensors"))
    vocabularies = _vocabularies(path, found.get("vocab"))
    ignored = other_parts(found, "model", "generator", "vocab", "opt")
    return dict(vars(found["opt"])), vocabularies, _renamed(path, state), ignored


def _read_eole(folder: Path) -> Read:
    config, vocabulary = read_json(folder / "config.json"), read_json(folder / "vocab.json")
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        raise InputError(f"{folder / 'config.json'}: no settings of a model of Eole")
    options = dict(model)
    for side in ("encoder", "decoder"):
        own = model.get(side)
        options |= own if isinstance(own, dict) else {}
    training = config.get("training")
    options["dropout"] = training.get("dropout", 0.0) if isinstance(training, dict) else 0.0
    options["decoder_start_token"] = vocabulary.get("decoder_start_token", config.get("decoder_start_token"))
    return options, _vocabularies(folder / "vocab.json", vocabulary), _renamed(folder, read_folder(folder)), []


def _vocabularies(path: Path, found: Any) -> tuple[list[str], list[str]]:
    sides: list[Any] = [found.get(side) if isinstance(found, dict) else None for side in ("src", "tgt")]
    for side in sides:
        if not isinstance(side, list) or not all(isinstance(token, str) for token in side):
            raise InputError(f"{path}: no lists of tokens; of OpenNMT-py 2, tools/convertv2_v3.py makes some")
    for token in _ROLES.values():
        if token not in sides[1]:
            raise InputError(f"{path}: the target vocabulary has no {token}")
    return sides[0], sides[1]


def _renamed(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights by one set of names for both toolkits, and for decoders with and without input feeding."""
    weights = {}
    for name, weight in state.items():
        if not isinstance(weight, Tensor):
            raise InputError(f"{path}: {name} is no weight")
        name = name.replace("generator.0.", "generator.")
        for theirs, ours in (("encoder", "src"), ("decoder", "tgt")):
            name = name.replace(f"{theirs}.embeddings.make_embedding.emb_luts.0.", f"{theirs}.embeddings.")
            name = name.replace(f"{ours}_emb.embeddings.", f"{theirs}.embeddings.")
        name = re.sub(r"^decoder\.rnn\.((?:weight|bias)_[ih]h)_l(\d+)$", r"decoder.rnn.layers.\2.\1", name)
        weights[name] = as_float32(weight)
    wanted = ("encoder.embeddings.weight", "encoder.rnn.weight_hh_l0", "decoder.rnn.layers.0.weight_hh")
    if lost := [name for name in (*wanted, "decoder.embeddings.weight", "generator.weight") if name not in weights]:
        raise InputError(f"{path}: no recurrent translator: it has no {lost[0]}")
    return weights


def _check(path: Path, options: Mapping[str, Any]) -> None:
    """Raise an `InputError` for an option that hfseq does not have."""
    for name, reason in _LACKING.items():
        if options.get(name):
            raise InputError(f"{path}: --{name}: {reason}")
    known = {
        "rnn_type": ("LSTM", "GRU"),
        "encoder_type": ("rnn", "brnn"),
        "decoder_type": ("rnn",),
        "global_attention": ("general", "dot", "mlp"),
        "global_attention_function": ("softmax",),
        "generator_function": ("softmax",),
    }
    for name, values in known.items():
        if options.get(name, values[0]) not in values:
            raise InputError(f"{path}: --{name} {options[name]}; hfseq has {' or '.join(values)}")


def _attention(weights: Mapping[str, Tensor]) -> str:
    if "decoder.attn.v.weight" in weights:
        return "mlp"
    return "general" if "decoder.attn.linear_in.weight" in weights else "dot"


def _tokenizer(
    vocabularies: tuple[list[str], list[str]], codes: Sequence[str | Path]
) -> tuple[Any, tuple[list[str], list[str]]]:
    """Tokenizer of both languages, and the pieces that each has beyond its vocabulary."""
    sides, more = [], []
    for number, tokens in enumerate(vocabularies):
        end = ["</s>"] * number
        pieces: list[str] = []
        if codes:
            side, pieces = bpe_tokenizer(tokens, codes[min(number, len(codes) - 1)], end=end, roles=_ROLES)
        else:
            side = word_tokenizer(tokens, end=end, roles=_ROLES)
        sides.append(side)
        more.append(pieces)
    # Of one vocabulary there are two tokenizers, too: a source has no end.
    return pair_tokenizer(*sides), (more[0], more[1])


def _table(weights: Mapping[str, Tensor], attention: str, layers: int, both: bool) -> dict[str, str | Made]:
    table = recurrent_table("encoder.rnn.", "model.stack.", layers, bidirectional=both)
    table |= {f"{ours}.embed_tokens.weight": f"{theirs}.embeddings.weight" for ours, theirs in _SIDES}
    table |= {f"lm_head.{name}": f"generator.{name}" for name in ("weight", "bias")}
    for layer in range(layers):
        for name in _CELL:
            table[f"decoder.stack.forward_layers.{layer}.{name}_l0"] = f"decoder.rnn.layers.{layer}.{name}"
    table["decoder.attention.combine.weight"] = "decoder.attn.linear_out.weight"
    if attention == "general":
        table["decoder.attention.query.weight"] = "decoder.attn.linear_in.weight"
    elif attention == "mlp":
        table["decoder.attention.combine.bias"] = "decoder.attn.linear_out.bias"
        table |= {
            f"decoder.attention.query.{name}": f"decoder.attn.linear_query.{name}" for name in ("weight", "bias")
        }
        table["decoder.attention.key.weight"] = "decoder.attn.linear_context.weight"
        table["decoder.attention.energy.weight"] = "decoder.attn.v.weight"
    # Both halves of the states, which OpenNMT takes one after the other, go through the same map.
    copies = 2 if both else 1
    for index, ours in enumerate(("hidden", "cell")):
        theirs = f"encoder.bridge.{index}"
        if f"{theirs}.weight" in weights:
            blocks = Made([f"{theirs}.weight"], lambda one: torch.block_diag(*[one] * copies))
            table[f"decoder.bridge.{ours}.weight"] = blocks
            table[f"decoder.bridge.{ours}.bias"] = Made([f"{theirs}.bias"], lambda one: one.repeat(copies))
    return table


_SIDES = (("model", "encoder"), ("decoder", "decoder"))


def _reference(
    weights: Mapping[str, Tensor], attention: str, layers: int, both: bool, feeds: bool, cell: str, unknown: int
) -> Reference:
    """OpenNMT's decoder by loops over cells, behind torch's recurrent module."""
    width, entering = (weights[f"encoder.rnn.weight_{one}_l0"].shape[1] for one in ("hh", "ih"))
    module = (nn.LSTM if cell == "LSTM" else nn.GRU)(entering, width, layers, bidirectional=both)
    module.load_state_dict({name: weights[f"encoder.rnn.{name}"] for name in module.state_dict()})

    def embed(side: str, ids: Tensor) -> Tensor:
        rows = weights[f"{side}.embeddings.weight"]
        return rows[ids.where(ids < len(rows), unknown)]

    def start(states: Tensor, index: int) -> Tensor:
        """States of the decoder's layers, `[layers, H]`, of those of the encoder `[layers * directions, H / d]`."""
        name = f"encoder.bridge.{index}"
        if f"{name}.weight" in weights:
            rows = states.reshape(-1, weights[f"{name}.weight"].shape[1])
            states = linear(rows, weights[f"{name}.weight"], weights[f"{name}.bias"]).relu()
        return states.reshape(layers, -1)

    def attend(query: Tensor, values: Tensor) -> Tensor:
        if attention == "mlp":
            keys = linear(values, weights["decoder.attn.linear_context.weight"])
            asked = linear(query, *(weights[f"decoder.attn.linear_query.{one}"] for one in ("weight", "bias")))
            scores = linear((keys + asked).tanh(), weights["decoder.attn.v.weight"]).squeeze(-1)
        else:
            general = attention == "general"
            scores = values @ (linear(query, weights["decoder.attn.linear_in.weight"]) if general else query)
        both_parts = torch.cat([scores.softmax(dim=0) @ values, query])
        vector = linear(
            both_parts, weights["decoder.attn.linear_out.weight"], weights.get("decoder.attn.linear_out.bias")
        )
        return vector if attention == "mlp" else vector.tanh()

    def reference(source: Tensor, ids: Tensor) -> Tensor:
        values, states = module(embed("encoder", source[0]))
        parts = [start(one, index) for index, one in enumerate(states if isinstance(states, tuple) else (states,))]
        hidden = [tuple(part[layer, None] for part in parts) for layer in range(layers)]
        feed, vectors = torch.zeros(1, parts[0].shape[1]), []
        for step in range(ids.shape[1]):
            inputs = embed("decoder", ids[:, step])
            inputs = torch.cat([inputs, feed], dim=1) if feeds else inputs
            for layer in range(layers):
                own = [weights[f"decoder.rnn.layers.{layer}.{name}"] for name in _CELL]
                if cell == "LSTM":
                    hidden[layer] = torch.lstm_cell(inputs, hidden[layer], *own)
                else:
                    hidden[layer] = (torch.gru_cell(inputs, hidden[layer][0], *own),)
                inputs = hidden[layer][0]
            feed = attend(inputs[0], values).unsqueeze(0)
            vectors.append(feed)
        return linear(torch.stack(vectors, dim=1), weights["generator.weight"], weights["generator.bias"])

    return reference

"""Recurrent translators of JoeyNMT 2 (Kreutzer et al. 2019)."""

import math
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, normalizers
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedTokenizerFast

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
from hfseq.convert.parts import Recurrent, recurrent_modules
from hfseq.convert.reading import COMMON, existing_file, read_checkpoint, read_lines, read_yaml
from hfseq.convert.sentencepiece import sentencepiece_tokenizer
from hfseq.convert.translators import (
    attend,
    cell_names,
    check_weights,
    dropout_fields,
    mlp_scores,
    piece_note,
    run_cells,
    translator_tokenizer,
    vocabulary_fields,
    zeros_like_rows,
)
from hfseq.convert.vocabularies import bpe_tokenizer, check_tokens, word_tokenizer
from hfseq.errors import InputError
from hfseq.models import GruConfig, LstmConfig
from hfseq.models.modeling_gru import GruForConditionalGeneration
from hfseq.models.modeling_lstm import LstmForConditionalGeneration

_SPECIAL = {"unk": ("<unk>", 0), "pad": ("<pad>", 1), "bos": ("<s>", 2), "eos": ("</s>", 3)}
"""Special tokens and their ids, unless the configuration has others."""
_SLOPE = 0.8
"""Exponent of a length whose logarithm grows at 20 tokens as that of GNMT's (5 + length) / 6 does: 20 / (5 + 20)."""


def convert_joeynmt(checkpoint: str | Path) -> Converted:
    """Convert a recurrent translator with its vocabularies and its tokenizers.

    Args:
        checkpoint: Folder of the model: `best.ckpt` or another checkpoint, `config.yaml`, `src_vocab.txt`,
            `trg_vocab.txt`, and the BPE codes or models of SentencePiece that the configuration names; or a checkpoint
            in such a folder.

    Raises:
        InputError: If a file is missing, cannot be read safely or does not fit the others; or if the model or its
            tokenizers cannot be expressed here.
    """
    path = _find_checkpoint(Path(checkpoint))
    found = read_checkpoint(path, COMMON)
    state = found.get("model_state") if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(isinstance(weight, Tensor) for weight in state.values()):
        raise InputError(f"{path}: not a checkpoint of JoeyNMT, which has its weights under 'model_state'")
    weights = {name: as_float32(weight) for name, weight in state.items()}
    config_path = path.parent / "config.yaml"
    settings = _Settings(config_path, read_yaml(config_path))
    encoder, decoder = _recurrent(path, weights, settings)
    tokens, special = _vocabularies(path.parent, weights, settings)
    sides = [_tokenizer(path.parent, settings, side, tokens[side], special) for side in ("src", "trg")]
    (_, added), (_, added_targets) = sides
    source, target = weights["src_embed.lut.weight"], weights["trg_embed.lut.weight"]
    if source.shape[1] != target.shape[1]:
        raise InputError(
            f"{config_path}: embedding_dim {source.shape[1]} of the encoder and {target.shape[1]} of the decoder: "
            "hfseq's embeddings have one width"
        )
    scales = [settings.flag("model", side, "embeddings", "scale") for side in ("encoder", "decoder")]
    same = tokens["src"] == tokens["trg"] and added == added_targets
    shared = same and same_weight(source, target) and scales[0] == scales[1]
    tied = same_weight(target, weights["decoder.output_layer.weight"]) and not scales[1]
    feeds = decoder.input_size == target.shape[1] + decoder.hidden_size
    attention = "additive" if "decoder.attention.query_layer.weight" in weights else "general"
    bridge = settings.bridge(weights)
    dropout, ignored = dropout_fields(settings.dropouts())
    config_class: Any = LstmConfig if encoder.cell == "LSTM" else GruConfig
    fields = vocabulary_fields((len(source) + len(added), len(target) + len(added_targets)), same, shared)
    model_config = config_class(
        embedding_size=source.shape[1],
        hidden_size=encoder.width,
        decoder_hidden_size=decoder.hidden_size,
        encoder_layers=encoder.layers,
        decoder_layers=decoder.layers,
        bidirectional=True,
        attention_type=attention,
        attention_bias=True,
        input_feeding=feeds,
        bridge=bridge,
        tie_word_embeddings=tied,
        lm_head_bias=bool(added_targets),
        is_encoder_decoder=True,
        decoder_start_token_id=special["bos"][1],
        **{f"{role}_token_id": special[role][1] for role in ("pad", "bos", "eos")},
        **fields,
        **dropout,
    )
    model: Any = LstmForConditionalGeneration if encoder.cell == "LSTM" else GruForConditionalGeneration
    model = model(model_config)
    ours = translate(path, weights, _table(weights, encoder, decoder, attention, scales, bool(added_targets)))
    inputs = {"model.embed_tokens.weight": len(added), "decoder.embed_tokens.weight": len(added_targets)}
    add_pieces(ours, inputs, len(added_targets), tied, special["unk"][1])
    fill(model, ours, path)
    notes = settings.decode(model, special)
    kind = "Luong" if attention == "general" else "Bahdanau"
    ignored = [*other_parts(found, "model_state"), *ignored]
    return Converted(
        model,
        translator_tokenizer(*sides),
        _reference(weights, encoder, decoder, bridge, scales, special["unk"][1]),
        f"JoeyNMT ({encoder.cell}, {kind} attention)",
        ignored,
        notes + piece_note(added, added_targets),
    )


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of this format, which needs none: the folder tells all."""


FORMAT = Format(convert_joeynmt, add_arguments, "recurrent translators of JoeyNMT 2, given by their folders")


class _Settings:
    """Configuration of a model, `config.yaml`."""

    def __init__(self, path: Path, config: Any) -> None:
        self.path, self.config = path, config
        if not all(isinstance(self.section(name), dict) and self.section(name) for name in ("model", "data")):
            raise InputError(f"{path}: not a configuration of JoeyNMT, which has the sections model and data")

    def section(self, *names: str) -> dict[str, Any]:
        """The dictionary at the end of a path of names; empty if there is none."""
        found = self.config
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def flag(self, *names: str) -> bool:
        """A setting that is true or false."""
        return self.section(*names[:-1]).get(names[-1]) is True

    def bridge(self, weights: Mapping[str, Tensor]) -> str:
        """Initial states of the decoder, as `bridge` of hfseq names them."""
        if "decoder.bridge_layer.weight" in weights:
            return "project"
        return "last" if self.section("model", "decoder").get("init_hidden", "bridge") == "last" else "zeros"

    def dropouts(self) -> dict[str, Any]:
        """All dropouts of the model, by their names."""
        decoder = self.section("model", "decoder")
        found = {"decoder.hidden_dropout": decoder.get("hidden_dropout")}
        for side in ("encoder", "decoder"):
            own = self.section("model", side)
            found[f"{side}.embeddings.dropout"] = self.section("model", side, "embeddings").get(
                "dropout", own.get("dropout")
            )
            if own.get("num_layers", 1) != 1:
                found[f"{side}.dropout"] = own.get("dropout")
        return found

    def decode(self, model: Any, special: Mapping[str, tuple[str, int]]) -> list[str]:
        """Give a model the search of `testing`, as far as `generate()` has it, and say in sentences what differs."""
        testing, generation = self.section("testing"), model.generation_config
        unwritten = [special[role][1] for role in ("bos", "pad", "sep") if role in special]
        beams, alpha, longest = (testing.get(name) for name in ("beam_size", "beam_alpha", "max_output_length"))
        alpha = alpha if isinstance(alpha, int | float) else testing.get("alpha")
        notes = [f"A source ends with `{special['eos'][0]}`, and a target begins with `{special['bos'][0]}`."]
        if any(
            self.section("data", side, "tokenizer_cfg").get("pretokenizer", "none") != "none"
            for side in ("src", "trg")
        ):
            notes.append("Texts have to go through Moses before, and its detokenizer afterwards: sacremoses has both.")
        if testing.get("generate_unk") is False:
            unwritten.append(special["unk"][1])
        else:
            notes.append(f"`{special['unk'][0]}` may be written; texts are decoded without it.")
        generation.suppress_tokens = sorted(unwritten)
        generation.min_new_tokens = max(1, _integer(testing.get("min_output_length"), 1))
        if isinstance(longest, int) and longest > 0:
            generation.max_new_tokens = longest
        if isinstance(beams, int) and beams > 1:
            generation.num_beams = beams
            generation.length_penalty = 0.0
            if isinstance(alpha, int | float) and alpha > 0:
                generation.length_penalty = _SLOPE * alpha
                notes.append(
                    f"JoeyNMT divides the score of a hypothesis by ((5 + length) / 6)^{alpha:g}; here it is divided "
                    f"by length^{_SLOPE * alpha:g}, which weighs lengths around 20 alike."
                )
        return notes


def _integer(value: Any, default: int) -> int:
    """An integer setting, or the default."""
    return value if isinstance(value, int) else default


def _find_checkpoint(path: Path) -> Path:
    """The checkpoint of a folder: the best one, or the last."""
    if not path.is_dir():
        return existing_file(path)
    if (path / "best.ckpt").is_file():
        return path / "best.ckpt"
    numbered = [one for one in path.glob("*.ckpt") if one.stem.isdigit()]
    if not numbered:
        raise InputError(f"{path}: neither best.ckpt nor the numbered checkpoints of JoeyNMT in it")
    return max(numbered, key=lambda one: int(one.stem))


def _recurrent(path: Path, weights: Mapping[str, Tensor], settings: _Settings) -> tuple[Recurrent, Recurrent]:
    """Encoder and decoder, or an error that names the setting that hfseq lacks."""
    check_weights(path, weights, "src_embed.lut.weight", "trg_embed.lut.weight", "decoder.output_layer.weight")
    found = recurrent_modules(path, weights)
    for side in ("encoder", "decoder"):
        if f"{side}.rnn" not in found:
            raise InputError(f"{path}: model.{side}.type is not recurrent; transformers convert Transformers")
    encoder, decoder = found["encoder.rnn"], found["decoder.rnn"]
    if encoder.cell != decoder.cell or encoder.cell not in ("LSTM", "GRU"):
        raise InputError(f"{path}: rnn_type {encoder.cell} and {decoder.cell}: hfseq has one cell on both sides")
    if not encoder.bidirectional:
        raise InputError(f"{path}: model.encoder.bidirectional: JoeyNMT cannot run an encoder of one direction")
    activation = settings.section("model", "decoder").get("activation", "tanh")
    if activation != "tanh":
        raise InputError(f"{settings.path}: model.decoder.activation {activation}: hfseq has tanh")
    return encoder, decoder


def _vocabularies(
    folder: Path, weights: Mapping[str, Tensor], settings: _Settings
) -> tuple[dict[str, list[str]], dict[str, tuple[str, int]]]:
    """Tokens of both sides by ids, and special tokens by their roles."""
    own = settings.section("data", "special_symbols")
    special = {
        role: (str(own.get(f"{role}_token", token)), _integer(own.get(f"{role}_id"), number))
        for role, (token, number) in _SPECIAL.items()
    }
    if own.get("sep_token") is not None:
        special["sep"] = (str(own["sep_token"]), _integer(own.get("sep_id"), len(special)))
    tokens = {}
    for side in ("src", "trg"):
        path = folder / f"{side}_vocab.txt"
        tokens[side] = read_lines(path)
        check_tokens(path, tokens[side], len(weights[f"{side}_embed.lut.weight"]))
        for token, number in special.values():
            if tokens[side][number : number + 1] != [token]:
                raise InputError(f"{path}, line {number + 1}: not {token!r}, as special_symbols of config.yaml say")
    return tokens, special


def _tokenizer(
    folder: Path, settings: _Settings, side: str, tokens: list[str], special: Mapping[str, tuple[str, int]]
) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """Tokenizer of a side, and the pieces that it has beyond its vocabulary."""
    own = settings.section("data", side)
    options = settings.section("data", side, "tokenizer_cfg")
    end, roles = [special["eos"][0]], {f"{role}_token": special[role][0] for role in _SPECIAL}
    normalizer = _normalizer(settings.flag("data", side, "lowercase"), settings.flag("data", side, "normalize"))
    level = own.get("level", "word")
    if level != "bpe":
        return word_tokenizer(tokens, end=end, normalizer=normalizer, roles=roles), []
    kind = own.get("tokenizer_type", own.get("bpe_type", "sentencepiece"))
    name = options.get("codes" if kind == "subword-nmt" else "model_file")
    if kind not in ("subword-nmt", "sentencepiece") or not isinstance(name, str):
        raise InputError(f"{settings.path}: data.{side}.tokenizer_type {kind}: neither with codes nor a model_file")
    file = folder / Path(name).name
    if kind == "sentencepiece":
        return sentencepiece_tokenizer(file, tokens, roles, end=end, normalizer=normalizer, splits_unknown=True)
    if options.get("separator", "@@") != "@@":
        raise InputError(f"{settings.path}: data.{side}.tokenizer_cfg.separator: pieces are read that end in @@")
    return bpe_tokenizer(tokens, file, end=end, normalizer=normalizer, roles=roles, splits_unknown=True)


def _normalizer(lowercase: bool, normalize: bool) -> normalizers.Normalizer | None:
    """Normalisation of texts as JoeyNMT's: quotation marks, and spaces before punctuation."""
    steps: list[normalizers.Normalizer] = []
    if normalize:
        spaces: Any = Regex("[ \u3000]+")
        steps.append(normalizers.NFKC())
        steps += [normalizers.Replace(*pair) for pair in (("’", "'"), ("“", '"'), ("”", '"'), ("\u200b", ""))]
        steps.append(normalizers.Replace(spaces, " "))
        steps += [normalizers.Replace(f" {mark}", mark) for mark in "?!,.:"]
        steps.append(normalizers.Strip())
    steps += [normalizers.Lowercase()] if lowercase else []
    return normalizers.Sequence(steps) if steps else None


def _table(
    weights: Mapping[str, Tensor],
    encoder: Recurrent,
    decoder: Recurrent,
    attention: str,
    scales: list[bool],
    biased: bool,
) -> dict[str, str | Made]:
    """Our names, with those of JoeyNMT."""
    table = recurrent_table("encoder.rnn.", "model.stack.", encoder.layers, bidirectional=True)
    table |= recurrent_table("decoder.rnn.", "decoder.stack.", decoder.layers)
    for ours, theirs, scaled in (("model", "src_embed", scales[0]), ("decoder", "trg_embed", scales[1])):
        name = f"{theirs}.lut.weight"
        table[f"{ours}.embed_tokens.weight"] = Made([name], _scaled) if scaled else name
    width, half, theirs = decoder.hidden_size, encoder.hidden_size, "decoder.attention."
    if attention == "additive":
        for ours in ("query", "key", "energy"):
            table[f"{theirs}{ours}.weight"] = f"{theirs}{ours}_layer.weight"
        table[f"{theirs}query.bias"] = Made([f"{theirs}query_layer.weight"], zeros_like_rows)
    else:
        table[f"{theirs}query.weight"] = Made([f"{theirs}key_layer.weight"], lambda key: key.T)
    # JoeyNMT's vector is of the state and the context, in this order.
    table[f"{theirs}combine.weight"] = Made(
        ["decoder.att_vector_layer.weight"], lambda both: both.roll(-width, dims=1)
    )
    table[f"{theirs}combine.bias"] = "decoder.att_vector_layer.bias"
    table["lm_head.weight"] = "decoder.output_layer.weight"
    if biased:
        table["lm_head.bias"] = Made(["decoder.output_layer.weight"], zeros_like_rows)
    if "decoder.bridge_layer.weight" in weights:
        # It reads the final states of both directions: the last output of one and the first of the other.
        def project(both: Tensor) -> Tensor:
            forward, backward = both.split(half, dim=1)
            empty = torch.zeros_like(forward)
            return torch.cat([empty, backward, forward, empty], dim=1).repeat(states, 1)

        states = decoder.layers * (2 if decoder.cell == "LSTM" else 1)
        table["decoder.bridge.project.weight"] = Made(["decoder.bridge_layer.weight"], project)
        table["decoder.bridge.project.bias"] = Made(["decoder.bridge_layer.bias"], lambda bias: bias.repeat(states))
    return table


def _scaled(rows: Tensor) -> Tensor:
    return rows * math.sqrt(rows.shape[1])


def _reference(
    weights: Mapping[str, Tensor],
    encoder: Recurrent,
    decoder: Recurrent,
    bridge: str,
    scales: list[bool],
    unknown: int,
) -> Reference:
    """JoeyNMT's encoder, and its decoder step by step."""
    module = encoder.module(weights, None)
    names = cell_names("decoder.rnn.", decoder.layers)
    width = decoder.hidden_size

    def embed(side: str, ids: Tensor, scaled: bool) -> Tensor:
        rows = weights[f"{side}_embed.lut.weight"]
        known = ids.where(ids < len(rows), unknown)
        return rows[known] * (math.sqrt(rows.shape[1]) if scaled else 1.0)

    def reference(source: Tensor, ids: Tensor) -> Tensor:
        outputs, final = module(embed("src", source, scales[0]))
        hidden = final[0] if encoder.cell == "LSTM" else final
        encoded, last = outputs[0], torch.cat([hidden[-2], hidden[-1]], dim=1)
        if bridge == "project":
            last = linear(last, weights["decoder.bridge_layer.weight"], weights["decoder.bridge_layer.bias"]).tanh()
        elif bridge == "last":
            last = last[:, :width]
        else:
            last = last.new_zeros(1, width)
        states: list[tuple[Tensor, ...]] = [(last,) * (2 if decoder.cell == "LSTM" else 1)] * decoder.layers
        keys = linear(encoded, weights["decoder.attention.key_layer.weight"])
        embedded, feed, steps = embed("trg", ids, scales[1])[0], last.new_zeros(1, width), []
        for one in embedded.split(1):
            feeds = decoder.input_size > one.shape[1]
            query = run_cells(weights, names, torch.cat([one, feed], dim=1) if feeds else one, states)
            if "decoder.attention.query_layer.weight" in weights:
                projected = linear(query, weights["decoder.attention.query_layer.weight"])
                scores = mlp_scores(projected, keys, weights["decoder.attention.energy_layer.weight"])
            else:
                scores = keys @ query[0]
            both = torch.cat([query, attend(scores, encoded)], dim=1)
            vector = [weights[f"decoder.att_vector_layer.{name}"] for name in ("weight", "bias")]
            feed = linear(both, *vector).tanh()
            steps.append(feed)
        return linear(torch.stack(steps, dim=1), weights["decoder.output_layer.weight"])

    return reference

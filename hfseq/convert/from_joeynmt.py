"""Recurrent translators of JoeyNMT 2 (Kreutzer et al. 2019)."""

import math
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
from hfseq.convert.reading import read_checkpoint, read_lines, read_yaml
from hfseq.convert.vocabularies import bpe_tokenizer, check_tokens, pair_tokenizer, reads_pieces, word_tokenizer
from hfseq.errors import InputError
from hfseq.models import GruConfig, LstmConfig
from hfseq.models.modeling_gru import GruForConditionalGeneration
from hfseq.models.modeling_lstm import LstmForConditionalGeneration

_SYMBOLS = {"unk": "<unk>", "pad": "<pad>", "bos": "<s>", "eos": "</s>"}
"""Special tokens by their roles, unless the configuration has others."""
_BRIDGES = {"bridge": "project", "last": "last", "zero": "zeros"}
"""Initial states by JoeyNMT's names, and by ours."""


def convert_joeynmt(checkpoint: str | Path, *, bpe_codes: Sequence[str | Path] = ()) -> Converted:
    """Convert a recurrent translator.

    Args:
        checkpoint: Folder of a model, with `config.yaml`, `src_vocab.txt`, `trg_vocab.txt` and `best.ckpt`; or one of
            its checkpoints.
        bpe_codes: File of BPE codes, or one for each language; none for those that the configuration names, if they
            are in the folder, else a tokenizer of texts that are split already.

    Raises:
        InputError: If a file is missing, cannot be read safely, or has a setting that hfseq does not have.
    """
    path = _checkpoint(Path(checkpoint))
    folder = path.parent
    found = read_checkpoint(path)
    config = read_yaml(folder / "config.yaml")
    state = found.get("model_state") if isinstance(found, dict) else None
    if not isinstance(state, dict) or not isinstance(config, dict):
        raise InputError(f"{path}: not a checkpoint of JoeyNMT, which has its weights under 'model_state'")
    weights = {name: as_float32(weight) for name, weight in state.items()}
    settings = _Settings(folder / "config.yaml", config)
    fields = settings.fields(weights)
    source, target = (len(weights[f"{side}_embed.lut.weight"]) for side in ("src", "trg"))
    tokenizer, more, notes = _tokenizer(folder, settings, bpe_codes, (source, target), settings.shared)
    tied = fields["tie_word_embeddings"]
    rnn_config, model_class = _CLASSES[settings.cell]
    model_config = rnn_config(
        vocab_size=source + len(more[0]),
        decoder_vocab_size=None if settings.shared else target + len(more[1]),
        lm_head_bias=bool(more[1]),
        is_encoder_decoder=True,
        **settings.ids(folder),
        **fields,
    )
    model: Any = model_class(model_config)
    table = settings.table(weights, tied)
    if more[1]:
        table["lm_head.bias"] = Made(["decoder.output_layer.weight"], lambda rows: rows.new_zeros(len(rows)))
    ours = translate(path, weights, table)
    counts = {"model.embed_tokens.weight": len(more[0]), "decoder.embed_tokens.weight": len(more[1])}
    add_pieces(ours, counts, len(more[1]), tied, settings.ids(folder)["unk_token_id"])
    fill(model, ours, path)
    ids, testing = settings.ids(folder), config.get("testing") or {}
    # As in JoeyNMT's own searches.
    model.generation_config.suppress_tokens = [ids["pad_token_id"], ids["bos_token_id"]]
    model.generation_config.min_new_tokens = int(testing.get("min_output_length", 1))
    beam, alpha = testing.get("beam_size", 1), testing.get("beam_alpha", -1)
    notes.append(
        f"A target begins with {settings.symbol('bos')}. JoeyNMT searched with beam_size {beam} and "
        f"beam_alpha {alpha}: scores divided by ((5 + length) / 6)^alpha, "
        "which generate() does not have; length_penalty divides by a power of the length itself."
    )
    ignored = other_parts(found, "model_state")
    reference = _reference(weights, settings, settings.ids(folder)["unk_token_id"])
    toolkit = f"JoeyNMT {config.get('joeynmt_version', 2)} ({settings.cell.upper()})"
    return Converted(model, tokenizer, reference, toolkit, [*ignored, *settings.dropouts()], notes)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of this format."""
    parser.add_argument(
        "--bpe_codes", nargs="+", default=[], help="BPE codes, perhaps for each language, if not in the folder"
    )


FORMAT = Format(convert_joeynmt, add_arguments, "recurrent translators of JoeyNMT 2")
_CLASSES: dict[str, tuple[Any, Any]] = {
    "lstm": (LstmConfig, LstmForConditionalGeneration),
    "gru": (GruConfig, GruForConditionalGeneration),
}


class _Settings:
    """Settings of a model, which hfseq has, too.

    Args:
        path: The configuration, for messages.
        config: Its contents.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        model, self.data, self.path = config.get("model") or {}, config.get("data") or {}, path
        self.encoder, self.decoder = model.get("encoder") or {}, model.get("decoder") or {}
        self.tied, self.shared = bool(model.get("tied_softmax")), bool(model.get("tied_embeddings"))
        for side, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            self._require(f"model.{side}.type", part.get("type", "recurrent"), ["recurrent"])
            self._require(f"model.{side}.rnn_type", part.get("rnn_type", "gru"), ["gru", "lstm"])
        self.cell = str(self.encoder.get("rnn_type", "gru"))
        self._require("model.decoder.rnn_type", self.decoder.get("rnn_type", "gru"), [self.cell])
        self._require("model.encoder.bidirectional", self.encoder.get("bidirectional", True), [True])
        self.attention = str(self.decoder.get("attention", "bahdanau"))
        self._require("model.decoder.attention", self.attention, ["bahdanau", "luong"])
        self.start = str(self.decoder.get("init_hidden", "bridge"))
        self._require("model.decoder.init_hidden", self.start, [*_BRIDGES])
        for side, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            self._require(f"model.{side}.activation", part.get("activation", "tanh"), ["tanh"])
        self.feeds = bool(self.decoder.get("input_feeding", True))
        self.layers = int(self.encoder.get("num_layers", 1)), int(self.decoder.get("num_layers", 1))

    def _require(self, name: str, value: Any, known: Sequence[Any]) -> None:
        if value not in known:
            raise InputError(f"{self.path}: {name}: {value}; hfseq has {' or '.join(map(str, known))}")

    def fields(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Config fields."""
        (_, size), (_, target_size) = (weights[f"{side}_embed.lut.weight"].shape for side in ("src", "trg"))
        if size != target_size:
            raise InputError(f"{self.path}: embeddings of the widths {size} and {target_size}; hfseq's have one width")
        rates = {float(part.get(name, 0.0)) for part in (self.encoder, self.decoder) for name in ("dropout",)}
        output = weights["decoder.output_layer.weight"]
        same = same_weight(output, weights["trg_embed.lut.weight"])
        return {
            "embedding_size": size,
            "hidden_size": 2 * weights["encoder.rnn.weight_hh_l0"].shape[1],
            "decoder_hidden_size": weights["decoder.rnn.weight_hh_l0"].shape[1],
            "encoder_layers": self.layers[0],
            "decoder_layers": self.layers[1],
            "bidirectional": True,
            "attention_type": "additive" if self.attention == "bahdanau" else "general",
            "attention_bias": True,
            "bridge": _BRIDGES[self.start],
            "input_feeding": self.feeds,
            "share_encoder_decoder_embeddings": self.shared,
            # Scaled embeddings are not the rows of the output layer any more.
            "tie_word_embeddings": self.tied and same and self.scale("decoder") == 1,
            **({"dropout": rates.pop()} if len(rates) == 1 else {}),
        }

    def dropouts(self) -> list[str]:
        """Clause on the dropouts."""
        names = ("dropout", "hidden_dropout")
        shown = [
            f"{side}.{name} {part[name]}"
            for side, part in (("encoder", self.encoder), ("decoder", self.decoder))
            for name in names
            if name in part
        ]
        return [f"{', '.join(shown)}: hfseq has one dropout"] if shown else []

    def scale(self, side: str) -> float:
        """Factor of the embeddings of `encoder` or `decoder`."""
        embeddings = getattr(self, side).get("embeddings") or {}
        return math.sqrt(embeddings["embedding_dim"]) if embeddings.get("scale") else 1.0

    def symbol(self, role: str) -> str:
        """Special token of a role."""
        symbols = self.data.get("special_symbols") or {}
        return str(symbols.get(f"{role}_token", _SYMBOLS[role]))

    def ids(self, folder: Path) -> dict[str, int]:
        """Config fields for the ids of special tokens."""
        tokens = read_lines(folder / "trg_vocab.txt")
        lost = [role for role in _SYMBOLS if self.symbol(role) not in tokens]
        if lost:
            raise InputError(f"{folder / 'trg_vocab.txt'}: no {self.symbol(lost[0])}")
        ids = {f"{role}_token_id": tokens.index(self.symbol(role)) for role in _SYMBOLS}
        return ids | {"decoder_start_token_id": ids["bos_token_id"]}

    def table(self, weights: Mapping[str, Tensor], tied: bool) -> dict[str, str | Made]:
        """Our names and JoeyNMT's."""
        width = weights["decoder.rnn.weight_hh_l0"].shape[1]
        table = recurrent_table("encoder.rnn.", "model.stack.", self.layers[0], bidirectional=True)
        table |= recurrent_table("decoder.rnn.", "decoder.stack.", self.layers[1])
        for ours, theirs, side in (("model", "src", "encoder"), ("decoder", "trg", "decoder")):
            factor = self.scale(side)
            table[f"{ours}.embed_tokens.weight"] = Made([f"{theirs}_embed.lut.weight"], _times(factor))
        table["lm_head.weight"] = "decoder.output_layer.weight"
        # JoeyNMT has the state before the context.
        table["decoder.attention.combine.weight"] = Made(
            ["decoder.att_vector_layer.weight"], lambda one: torch.cat([one[:, width:], one[:, :width]], dim=1)
        )
        table["decoder.attention.combine.bias"] = "decoder.att_vector_layer.bias"
        keys = "decoder.attention.key_layer.weight"
        if self.attention == "luong":
            table["decoder.attention.query.weight"] = Made([keys], lambda one: one.t().contiguous())
        else:
            query = "decoder.attention.query_layer.weight"
            table |= {"decoder.attention.key.weight": keys, "decoder.attention.query.weight": query}
            table["decoder.attention.query.bias"] = Made([query], lambda one: one.new_zeros(len(one)))
            table["decoder.attention.energy.weight"] = "decoder.attention.energy_layer.weight"
        if self.start == "bridge":
            copies = self.layers[1] * (2 if self.cell == "lstm" else 1)
            table["decoder.bridge.project.weight"] = Made(["decoder.bridge_layer.weight"], _bridge(copies))
            table["decoder.bridge.project.bias"] = Made(["decoder.bridge_layer.bias"], lambda one: one.repeat(copies))
        return table


def _times(factor: float) -> Any:
    return lambda one: one * factor


def _bridge(copies: int) -> Any:
    """Map of the first and last output from that of the final states of both directions, for all states alike."""

    def make(weight: Tensor) -> Tensor:
        forward, backward = weight.chunk(2, dim=1)
        nothing = torch.zeros_like(forward)
        return torch.cat([nothing, backward, forward, nothing], dim=1).repeat(copies, 1)

    return make


def _checkpoint(path: Path) -> Path:
    """The checkpoint of a folder: the best, else the latest one."""
    if not path.is_dir():
        return path
    for name in ("best.ckpt", "latest.ckpt"):
        if (path / name).is_file():
            return path / name
    raise InputError(f"{path}: no best.ckpt and no latest.ckpt; name the checkpoint itself")


def _tokenizer(
    folder: Path, settings: _Settings, codes: Sequence[str | Path], sizes: tuple[int, int], shared: bool
) -> tuple[PreTrainedTokenizerFast, tuple[list[str], list[str]], list[str]]:
    """Tokenizer of both languages, the pieces that each has beyond its vocabulary, and notes."""
    roles = {f"{role}_token": settings.symbol(role) for role in _SYMBOLS}
    sides: list[PreTrainedTokenizerFast] = []
    more: list[list[str]] = []
    notes: list[str] = []
    for number, (side, size) in enumerate(zip(("src", "trg"), sizes, strict=True)):
        path = folder / f"{side}_vocab.txt"
        tokens = read_lines(path)
        check_tokens(path, tokens, size)
        own = settings.data.get(side) or {}
        options = own.get("tokenizer_cfg") or {}
        named = folder / Path(str(options.get("codes", "codes"))).name
        file = codes[min(number, len(codes) - 1)] if codes else named if named.is_file() else None
        end = [roles["eos_token"]]
        if file is not None:
            tokenizer, pieces = bpe_tokenizer(tokens, file, end=end, roles=roles)
        else:
            tokenizer = word_tokenizer(tokens, end=end, lowercase=bool(own.get("lowercase")), roles=roles)
            pieces = []
            if reads_pieces(tokens):
                notes.append(f"{side}: texts must be split into pieces already; their model is not in the folder.")
        sides.append(tokenizer)
        more.append(pieces)
    pair = sides[0] if shared else pair_tokenizer(*sides)
    return pair, (more[0], more[0] if shared else more[1]), notes


def _reference(weights: Mapping[str, Tensor], settings: _Settings, unknown: int) -> Reference:
    """JoeyNMT's decoder by loops, around torch's recurrent modules."""
    modules = {}
    for side, layers in zip(("encoder", "decoder"), settings.layers, strict=True):
        width, entering = (weights[f"{side}.rnn.weight_{one}_l0"].shape[1] for one in ("hh", "ih"))
        kind = nn.LSTM if settings.cell == "lstm" else nn.GRU
        module = kind(entering, width, layers, batch_first=True, bidirectional=side == "encoder")
        module.load_state_dict({name: weights[f"{side}.rnn.{name}"] for name in module.state_dict()})
        modules[side] = module

    def embed(side: str, ids: Tensor) -> Tensor:
        rows = weights[f"{'src' if side == 'encoder' else 'trg'}_embed.lut.weight"]
        return rows[ids.where(ids < len(rows), unknown)] * settings.scale(side)

    def start(states: Any) -> Any:
        final = states[0] if settings.cell == "lstm" else states
        final = torch.cat([final[-2], final[-1]], dim=-1)  # [1, M]
        width = weights["decoder.rnn.weight_hh_l0"].shape[1]
        if settings.start == "bridge":
            final = linear(final, *(weights[f"decoder.bridge_layer.{one}"] for one in ("weight", "bias"))).tanh()
        elif settings.start == "last":
            final = final[:, :width]
        else:
            final = torch.zeros(1, width)
        hidden = final.repeat(settings.layers[1], 1, 1)
        return (hidden, hidden) if settings.cell == "lstm" else hidden

    def scores(query: Tensor, values: Tensor) -> Tensor:
        keys = linear(values, weights["decoder.attention.key_layer.weight"])  # [S, A]
        if settings.attention == "luong":
            return keys @ query
        both = (keys + linear(query, weights["decoder.attention.query_layer.weight"])).tanh()
        return linear(both, weights["decoder.attention.energy_layer.weight"]).squeeze(-1)

    def reference(source: Tensor, ids: Tensor) -> Tensor:
        encoded, states = modules["encoder"](embed("encoder", source))
        states = start(states)
        vector = torch.zeros(1, weights["decoder.rnn.weight_hh_l0"].shape[1])
        vectors = []
        for step in range(ids.shape[1]):
            values = embed("decoder", ids[:, step])
            values = torch.cat([values, vector], dim=1) if settings.feeds else values
            output, states = modules["decoder"](values.unsqueeze(1), states)
            query = output[0, 0]
            context = scores(query, encoded[0]).softmax(dim=0) @ encoded[0]
            combined = torch.cat([query, context])
            layer = (weights[f"decoder.att_vector_layer.{one}"] for one in ("weight", "bias"))
            vector = linear(combined, *layer).tanh().unsqueeze(0)
            vectors.append(vector)
        return linear(torch.stack(vectors, dim=1), weights["decoder.output_layer.weight"])

    return reference

"""Recurrent translators of OpenNMT-py 3 (Klein et al. 2017) and of Eole, which followed it."""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
from hfseq.convert.reading import COMMON, StandIn, read_checkpoint, read_folder, read_json
from hfseq.convert.sentencepiece import sentencepiece_tokenizer
from hfseq.convert.translators import (
    attend,
    cell_names,
    cell_table,
    check_weights,
    dropout_fields,
    mlp_scores,
    piece_note,
    run_cells,
    translator_tokenizer,
    vocabulary_fields,
)
from hfseq.convert.vocabularies import bpe_tokenizer, check_tokens, reads_pieces, token_list, word_tokenizer
from hfseq.errors import InputError
from hfseq.models import GruConfig, LstmConfig
from hfseq.models.modeling_gru import GruForConditionalGeneration
from hfseq.models.modeling_lstm import LstmForConditionalGeneration

_ROLES = {"unk_token": "<unk>", "pad_token": "<blank>", "bos_token": "<s>", "eos_token": "</s>"}
"""Special tokens, unless the checkpoint has others."""
_REFUSED = {
    "encoder_type": ({"rnn", "brnn"}, "hfseq's encoder has layers of nn.LSTM or nn.GRU"),
    "decoder_type": ({"rnn"}, "hfseq's decoder has layers of nn.LSTM or nn.GRU"),
    "rnn_type": ({"LSTM", "GRU"}, "hfseq has LSTM and GRU"),
    "global_attention": ({"general", "dot", "mlp", "none"}, "hfseq has general, dot, mlp and none"),
    "global_attention_function": ({"softmax"}, "hfseq's attention has a softmax"),
    "generator_function": ({"softmax"}, "hfseq's output layer has a softmax"),
    "context_gate": ({"none"}, "hfseq's decoder has no gate of its context"),
    "coverage_attn": ({"none"}, "it is not the coverage of See et al. (2017) that hfseq has"),
    "copy_attn": ({"none"}, "hfseq's pointer-generator has another gate"),
    "position_encoding": ({"none"}, "hfseq's recurrent models have no positions"),
    "n_src_feats": ({"none"}, "hfseq's embeddings are of words alone"),
    "model_task": ({"seq2seq", "none"}, "hfseq converts translators"),
}
"""Options to the values that can be expressed here, and what is said of others."""
_SETTING = dict(num_beams=5, length_penalty=1.0, max_new_tokens=250)
"""Search of `onmt_translate` and `eole predict` by default: scores are divided by lengths."""


def convert_opennmt(checkpoint: str | Path, *, subwords: Sequence[str | Path] = ()) -> Converted:
    """Convert a recurrent translator with its vocabularies.

    Args:
        checkpoint: `model_step_1000.pt` of OpenNMT-py, whose weights may be beside it in a safetensors file of the
            same name; or a folder of Eole, with `config.json`, `vocab.json` and safetensors files.
        subwords: Files that split words as in training, one for both languages or one for each: models of
            SentencePiece, whose names end in `.model`, or BPE codes of subword-nmt; none for a tokenizer of texts that
            are split already.

    Raises:
        InputError: If the checkpoint cannot be read safely, or has an option that hfseq does not have; or if the files
            for subwords do not fit.
    """
    if len(subwords) > 2:
        raise InputError("--subwords: one file for both languages, or one for each")
    path = Path(checkpoint)
    found = _read_eole(path) if path.is_dir() else _read_opennmt(path)
    found.check()
    weights = found.weights
    encoder, decoder = found.encoder(), found.decoder()
    sides = found.tokenizers(subwords)
    (_, added), (_, added_targets) = sides
    source, target = weights[found.source], weights[found.target]
    same = found.vocabularies[0] == found.vocabularies[1] and added == added_targets
    shared = same and same_weight(source, target)
    tied = same_weight(target, weights[found.output])
    attention = found.attention()
    roles = sides[0][0]
    dropout, ignored = dropout_fields({"dropout": found.dropout()})
    unknown = found.vocabularies[0].index(found.special["unk_token"])
    config_class: Any = LstmConfig if decoder.cell == "LSTM" else GruConfig
    fields = vocabulary_fields((len(source) + len(added), len(target) + len(added_targets)), same, shared)
    config = config_class(
        embedding_size=source.shape[1],
        hidden_size=encoder.width,
        encoder_layers=encoder.layers,
        decoder_layers=decoder.layers,
        bidirectional=encoder.bidirectional,
        attention_type=attention,
        attention_bias=attention == "additive",
        attention_activation="none" if attention == "additive" else "tanh",
        input_feeding=decoder.feeds,
        bridge="relu" if found.has("encoder.bridge.0.weight") else "copy",
        tie_word_embeddings=tied,
        lm_head_bias=True,
        is_encoder_decoder=True,
        decoder_start_token_id=sides[1][0].convert_tokens_to_ids(found.start),
        **{f"{role}_id": roles.convert_tokens_to_ids(getattr(roles, role)) for role in _ROLES if role != "unk_token"},
        **fields,
        **dropout,
    )
    model_class: Any = LstmForConditionalGeneration if decoder.cell == "LSTM" else GruForConditionalGeneration
    model = model_class(config)
    ours = translate(path, weights, found.table(encoder, decoder, attention))
    inputs = {"model.embed_tokens.weight": len(added), "decoder.embed_tokens.weight": len(added_targets)}
    add_pieces(ours, inputs, len(added_targets), tied, unknown)
    fill(model, ours, path)
    for name, value in _SETTING.items():
        setattr(model.generation_config, name, value)
    notes = [
        f"A source has no end token; a target begins with `{found.start}` and ends with `{roles.eos_token}`.",
        f"{found.name} searches with 5 beams and divides by lengths (`length_penalty: avg`, `alpha: 1`), as set here.",
    ]
    if not subwords and any(map(reads_pieces, found.vocabularies)):
        notes.append(
            "The tokenizer reads texts that are split into pieces already; --subwords takes what splits them."
        )
    return Converted(
        model,
        translator_tokenizer(*sides),
        _reference(found, encoder, decoder, attention, unknown),
        f"{found.name} ({decoder.cell}, {found.options.get('global_attention', 'general')} attention)",
        [*found.parts, *ignored],
        notes + piece_note(added, added_targets),
    )


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of this format."""
    parser.add_argument(
        "--subwords",
        nargs="+",
        default=[],
        metavar="FILE",
        help="models of SentencePiece (*.model), or BPE codes of subword-nmt, perhaps for each language",
    )


FORMAT = Format(convert_opennmt, add_arguments, "recurrent translators of OpenNMT-py 3, or folders of Eole")


@dataclass(frozen=True)
class _Decoder:
    """Layers of a decoder.

    Attributes:
        cell: `LSTM` or `GRU`.
        names: Names of each layer's weights.
        hidden_size: Its width.
        feeds: Whether it has input feeding.
    """

    cell: str
    names: list[list[str]]
    hidden_size: int
    feeds: bool

    @property
    def layers(self) -> int:
        return len(self.names)


@dataclass
class _Checkpoint:
    """Checkpoint of either toolkit.

    Attributes:
        path: The file or folder.
        name: Name of the toolkit.
        options: Options of the model.
        weights: Weights by the toolkit's names, those of the output layer as `generator.weight` and `generator.bias`.
        vocabularies: Tokens of source and target by ids.
        start: First token of a target.
        special: Special tokens by their roles.
        source: Name of the source embeddings.
        target: Name of the target embeddings.
        parts: Clauses on its other parts.
    """

    path: Path
    name: str
    options: dict[str, Any]
    weights: dict[str, Tensor]
    vocabularies: tuple[list[str], list[str]]
    start: str
    special: dict[str, str]
    source: str
    target: str
    parts: list[str]

    output = "generator.weight"

    def has(self, name: str) -> bool:
        """Return True if there is a weight of this name."""
        return name in self.weights

    def check(self) -> None:
        """Raise an `InputError` that names an option that hfseq does not have, or weights that are missing."""
        for option, (values, reason) in _REFUSED.items():
            value = self.options.get(option)
            value = "none" if value in (None, False, 0, "") else str(value)
            if value not in values and option in self.options:
                raise InputError(f"{self.path}: {option} {value}: {reason}")
        for option, name, other in (
            ("share_embeddings", self.target, self.source),
            ("share_decoder_embeddings", self.output, self.target),
        ):
            # Safetensors files have a shared weight once.
            if self.options.get(option) is True and not self.has(name) and self.has(other):
                self.weights[name] = self.weights[other]
        check_weights(self.path, self.weights, self.source, self.target, self.output)
        for name, tokens in zip((self.source, self.target), self.vocabularies, strict=True):
            check_tokens(self.path, tokens, len(self.weights[name]))
        widths = [self.weights[name].shape[1] for name in (self.source, self.target)]
        if widths[0] != widths[1]:
            raise InputError(
                f"{self.path}: src_word_vec_size {widths[0]}, tgt_word_vec_size {widths[1]}: hfseq's embeddings have "
                "one width"
            )
        layers = self.encoder().layers, self.decoder().layers
        if layers[0] != layers[1]:
            raise InputError(
                f"{self.path}: enc_layers {layers[0]}, dec_layers {layers[1]}: a decoder that starts from the states "
                "of the encoder's layers has as many"
            )

    def encoder(self) -> Recurrent:
        """The encoder's module."""
        found = recurrent_modules(self.path, {n: one for n, one in self.weights.items() if n.startswith("encoder.")})
        if "encoder.rnn" not in found:
            raise InputError(f"{self.path}: no encoder of nn.LSTM or nn.GRU in it")
        return found["encoder.rnn"]

    def decoder(self) -> _Decoder:
        """The decoder's layers, an `nn.LSTM` or `nn.GRU`, or cells with input feeding."""
        feeds = self.has("decoder.rnn.layers.0.weight_hh")
        first = "decoder.rnn.layers.0.weight_hh" if feeds else "decoder.rnn.weight_hh_l0"
        if not self.has(first):
            raise InputError(f"{self.path}: no decoder of nn.LSTM or nn.GRU in it")
        rows, width = self.weights[first].shape
        count = sum(".weight_hh" in name and name.startswith("decoder.rnn.") for name in self.weights)
        names = cell_names("decoder.rnn.layers.", count, "") if feeds else cell_names("decoder.rnn.", count)
        return _Decoder("LSTM" if rows == 4 * width else "GRU", names, width, feeds)

    def attention(self) -> str:
        """Score of the attention, as `attention_type` of hfseq names it."""
        if self.has("decoder.attn.linear_query.weight"):
            return "additive"
        if self.has("decoder.attn.linear_in.weight"):
            return "general"
        return "dot" if self.has("decoder.attn.linear_out.weight") else "none"

    def dropout(self) -> Any:
        """Dropout at the end of the training, which may have changed it."""
        found = self.options.get("dropout")
        return found[-1] if isinstance(found, list) and found else found

    def tokenizers(self, subwords: Sequence[str | Path]) -> list[tuple[PreTrainedTokenizerFast, list[str]]]:
        """Tokenizers of both sides, and the pieces that each has beyond its vocabulary."""
        made: list[tuple[PreTrainedTokenizerFast, list[str]]] = []
        files = [subwords[0], subwords[-1]] if subwords else [None, None]
        for tokens, file, end in zip(self.vocabularies, files, ([], [self.special["eos_token"]]), strict=True):
            for token in {*self.special.values(), self.start} - {*tokens}:
                raise InputError(f"{self.path}: the special token {token!r:.60} is not in both vocabularies")
            if file is None:
                made.append((word_tokenizer(tokens, end=end, roles=self.special), []))
            elif Path(file).suffix == ".model":
                made.append(sentencepiece_tokenizer(file, tokens, self.special, end=end, splits_unknown=False))
            else:
                made.append(bpe_tokenizer(tokens, file, end=end, roles=self.special))
        return made

    def table(self, encoder: Recurrent, decoder: _Decoder, attention: str) -> dict[str, str | Made]:
        """Our names, with theirs."""
        table = recurrent_table(
            "encoder.rnn.", "model.stack.", encoder.layers, bidirectional=encoder.bidirectional, bias=encoder.bias
        )
        table |= cell_table(decoder.names, "decoder.stack.")
        table |= {"model.embed_tokens.weight": self.source, "decoder.embed_tokens.weight": self.target}
        table |= {"lm_head.weight": self.output, "lm_head.bias": "generator.bias"}
        names = {"general": {"query.weight": "linear_in.weight"}, "dot": {}, "none": {}}
        names["additive"] = {
            "query.weight": "linear_query.weight",
            "query.bias": "linear_query.bias",
            "key.weight": "linear_context.weight",
            "energy.weight": "v.weight",
            "combine.bias": "linear_out.bias",
        }
        own = names[attention] | ({} if attention == "none" else {"combine.weight": "linear_out.weight"})
        table |= {f"decoder.attention.{ours}": f"decoder.attn.{theirs}" for ours, theirs in own.items()}
        if self.has("encoder.bridge.0.weight"):
            # One map for the states of each direction.
            blocks = 2 if encoder.bidirectional else 1
            for number, ours in enumerate(["hidden", "cell"][: 2 if decoder.cell == "LSTM" else 1]):
                theirs = f"encoder.bridge.{number}."
                table[f"decoder.bridge.{ours}.weight"] = Made(
                    [f"{theirs}weight"], lambda weight: torch.block_diag(*[weight] * blocks)
                )
                table[f"decoder.bridge.{ours}.bias"] = Made([f"{theirs}bias"], lambda bias: bias.repeat(blocks))
        return table


def _read_opennmt(path: Path) -> _Checkpoint:
    try:
        found = read_checkpoint(path, COMMON)
    except InputError as error:
        if "torchtext" not in str(error):
            raise
        raise InputError(
            f"{path}: it has vocabularies of torchtext, as OpenNMT-py wrote them before version 3, whose "
            "tools/convertv2_v3.py renews them"
        ) from error
    vocabularies = found.get("vocab") if isinstance(found, dict) else None
    options = found.get("opt") if isinstance(found, dict) else None
    if not isinstance(vocabularies, dict) or not isinstance(options, StandIn):
        raise InputError(f"{path}: not a checkpoint of OpenNMT-py 3, which has a 'vocab' and the options 'opt'")
    beside = path.with_suffix(".safetensors")
    weights = dict(found["model"]) if isinstance(found.get("model"), dict) else {}
    if not weights and beside.is_file():
        weights = read_checkpoint(beside)
    generator = found.get("generator")
    weights |= {f"generator.{name}": one for name, one in generator.items()} if isinstance(generator, dict) else {}
    if not weights or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise InputError(f"{path}: no weights in it, nor in {beside.name} beside it")
    prefix = "make_embedding.emb_luts.0.weight"
    parts = other_parts(found, "model", "generator", "vocab", "opt")
    return _Checkpoint(
        path,
        "OpenNMT-py",
        vars(options),
        {name: as_float32(weight) for name, weight in weights.items()},
        _tokens(path, vocabularies),
        vocabularies.get("decoder_start_token") or _ROLES["bos_token"],
        dict(_ROLES),
        f"encoder.embeddings.{prefix}",
        f"decoder.embeddings.{prefix}",
        parts,
    )


def _read_eole(path: Path) -> _Checkpoint:
    config, vocabularies = (read_json(path / name) for name in ("config.json", "vocab.json"))
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not isinstance(vocabularies, dict):
        raise InputError(f"{path}: not a folder of Eole, whose config.json has the section model")
    options = {name: value for name, value in model.items() if not isinstance(value, dict)}
    training = config.get("training")
    for section in (model.get("encoder"), model.get("decoder"), model.get("embeddings"), training):
        options |= section if isinstance(section, dict) else {}
    if options.get("position_encoding_type") is not None:
        options["position_encoding"] = options["position_encoding_type"]
    special = vocabularies.get("specials")
    return _Checkpoint(
        path,
        "Eole",
        options,
        {name: as_float32(weight) for name, weight in read_folder(path).items()},
        _tokens(path / "vocab.json", vocabularies),
        vocabularies.get("decoder_start_token") or _ROLES["bos_token"],
        _ROLES | ({role: str(token) for role, token in special.items() if role in _ROLES} if special else {}),
        "src_emb.embeddings.weight",
        "tgt_emb.embeddings.weight",
        [],
    )


def _tokens(path: Path, vocabularies: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Tokens of source and target by ids."""
    source, target = (token_list(vocabularies.get(side)) for side in ("src", "tgt"))
    if source is None or target is None:
        raise InputError(f"{path}: its vocabularies, src and tgt, are not lists of tokens")
    return source, target


def _reference(found: _Checkpoint, encoder: Recurrent, decoder: _Decoder, attention: str, unknown: int) -> Reference:
    """The encoder, its bridge, and the decoder step by step."""
    weights, module = found.weights, encoder.module(found.weights, None)

    def embed(name: str, ids: Tensor) -> Tensor:
        return weights[name][ids[0].where(ids[0] < len(weights[name]), unknown)]

    def part(name: str) -> Tensor:
        return weights[f"decoder.attn.{name}"]

    def reference(source: Tensor, ids: Tensor) -> Tensor:
        outputs, final = module(embed(found.source, source).unsqueeze(0))
        encoded = outputs[0]
        parts = []
        for number, state in enumerate(final if encoder.cell == "LSTM" else (final,)):
            # [layers times directions, 1, H] -> [layers, directions times H]
            if found.has(f"encoder.bridge.{number}.weight"):
                bridge = [weights[f"encoder.bridge.{number}.{name}"] for name in ("weight", "bias")]
                state = linear(state.reshape(-1, bridge[1].shape[0]), *bridge).relu()
            parts.append(state.reshape(encoder.layers, -1))
        states = [tuple(state[layer, None] for state in parts) for layer in range(decoder.layers)]
        feed, steps = encoded.new_zeros(1, decoder.hidden_size), []
        for one in embed(found.target, ids).split(1):
            query = run_cells(weights, decoder.names, torch.cat([one, feed], dim=1) if decoder.feeds else one, states)
            feed = query
            if attention != "none":
                if attention == "additive":
                    projected = linear(query, part("linear_query.weight"), part("linear_query.bias"))
                    keys = linear(encoded, part("linear_context.weight"))
                    scores = mlp_scores(projected, keys, part("v.weight"))
                else:
                    scores = encoded @ (query if attention == "dot" else linear(query, part("linear_in.weight")))[0]
                both = torch.cat([attend(scores, encoded), query], dim=1)
                feed = linear(both, part("linear_out.weight"))
                feed = feed + part("linear_out.bias") if attention == "additive" else feed.tanh()
            steps.append(feed)
        return linear(torch.stack(steps, dim=1), weights[found.output], weights["generator.bias"])

    return reference

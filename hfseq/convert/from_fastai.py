"""AWD-LSTM language models of fastai and of Salesforce's awd-lstm-lm (Merity et al. 2018)."""

import re
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedTokenizerFast

from hfseq.convert.base import Converted, Format, Reference
from hfseq.convert.names import Made, as_float32, fill, same_weight, translate
from hfseq.convert.reading import COMMON, MODULES, PickledNames, StandIn, module_weights, read_checkpoint, submodules
from hfseq.convert.vocabularies import read_vocabulary, role_ids, word_tokenizer
from hfseq.errors import InputError
from hfseq.models import GruConfig, LstmConfig
from hfseq.models.modeling_gru import GruForCausalLM
from hfseq.models.modeling_lstm import LstmForCausalLM

NAMES = (
    MODULES
    | COMMON
    | PickledNames(
        classes=(
            "model.RNNModel",
            "weight_drop.WeightDrop",
            "locked_dropout.LockedDropout",
            "splitcross.SplitCrossEntropyLoss",
            "torchqrnn.*",
            "fastcore.foundation.L",
        )
    )
)
"""Names in checkpoints of awd-lstm-lm, which are whole modules, and of the state of an optimizer of fastai."""
_RNN = re.compile(r"(?P<start>|0\.)rnns\.(?P<layer>\d+)\.(?P<rest>.*)")
_DROPOUTS = {"dropout": 0.15, "weight_dropout": 0.2, "embedding_dropout": 0.02}
"""Dropouts of fastai's language models, that of the hidden layers for all three kinds that are one here."""
_CAPITALIZED = r"\s(?=\p{Lu}[^\p{Lu}\s]+(?:\s|\z))"
_CAPITALS = r"\s(?=\p{Lu}{2,}(?:[\s\p{P}]|\z))"
"""Spaces before a capitalized word, and before one in capitals."""
_UNITS = r"n['’]t\b|['’](?:s|re|ve|ll|d|m)\b|[^\w\s]"
"""Ends of contractions, and signs, which spaCy makes tokens of their own."""


def convert_fastai(checkpoint: str | Path, *, vocab: str | Path | None = None) -> Converted:
    """Convert an AWD-LSTM language model, as a start of the ULMFiT recipe (Howard & Ruder 2018), for example.

    Args:
        checkpoint: What `learn.save` of fastai wrote, with or without the optimizer, or `main.py` of awd-lstm-lm,
            which pickles the model, its loss and the optimizer.
        vocab: File of the vocabulary: `itos`, a pickled or JSON list of tokens, or another one, see
            `hfseq.convert.vocabularies`; None for no tokenizer.

    Raises:
        InputError: If the checkpoint cannot be read safely, or is not of a language model of LSTMs or GRUs; or if the
            vocabulary does not fit it.
    """
    path = Path(checkpoint)
    found = read_checkpoint(path, NAMES)
    modules = [one for one in found if isinstance(one, StandIn)] if isinstance(found, list | tuple) else []
    if modules:
        return _convert_salesforce(path, modules, vocab)
    state = found.get("model", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(isinstance(weight, Tensor) for weight in state.values()):
        raise InputError(
            f"{path}: neither a state dict of fastai nor a model of awd-lstm-lm; of a Learner that was exported, save "
            "the language model by learn.save"
        )
    if not {"0.encoder.weight", "1.decoder.weight"} <= state.keys():
        kind = "a text classifier" if any("layers." in name for name in state) else "an encoder without a decoder"
        raise InputError(
            f"{path}: {kind}; hfseq converts language models, which have 0.encoder.weight and 1.decoder.weight"
        )
    state = {name: as_float32(weight) for name, weight in state.items()}
    tokenizer = None if vocab is None else fastai_tokenizer(vocab, len(state["0.encoder.weight"]))
    notes = []
    if tokenizer is not None:
        notes.append(
            "A text begins with xxbos, as in fastai; one ends where the next begins, so that xxbos is EOS, too."
        )
        notes.append("Words are split nearly as by fastai's rules with spaCy, whose exceptions are not reproduced.")
    ignored = ["opt of the checkpoint"] if state is not found and "opt" in found else []
    ignored.append("dropouts of fastai's learner: the model has those of its defaults, with 0.15 between all layers")
    return _convert(path, state, "fastai (AWD_LSTM)", tokenizer, _DROPOUTS, ignored, notes)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of this format."""
    parser.add_argument("--vocab", help="tokens by ids: itos.pkl, JSON, or a line each")


FORMAT = Format(convert_fastai, add_arguments, "AWD-LSTM language models of fastai and awd-lstm-lm")


def fastai_tokenizer(vocab: str | Path, size: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer of a vocabulary of fastai, with `xxmaj` and `xxup` before words that had capitals.

    Args:
        vocab: File of the vocabulary.
        size: Number of its tokens.

    Raises:
        InputError: If it cannot be read or has another number of tokens.
    """
    tokens = read_vocabulary(vocab, size, filler="xxfake")
    known = tokens if isinstance(tokens, list) else tokens.get_vocab()
    start = ["xxbos"] if "xxbos" in known else []
    roles = {"eos_token": "xxbos"} if start else {}
    # A space that another one replaces, since an empty string cannot be replaced; the first word needs one, too.
    steps: list[Any] = [normalizers.Prepend(" ")]
    for mark, words in (("xxmaj", _CAPITALIZED), ("xxup", _CAPITALS)):
        pattern: Any = Regex(words)
        steps += [normalizers.Replace(pattern, f" {mark} ")] if mark in known else []
    if not isinstance(tokens, list):
        return word_tokenizer(tokens, start=start, roles=roles)
    normalizer = normalizers.Sequence([*steps, normalizers.Lowercase()])
    tokenizer = word_tokenizer(tokens, start=start, normalizer=normalizer, roles=roles)
    units: Any = Regex(_UNITS)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(units, "isolated")]
    )
    return tokenizer


def _convert_salesforce(path: Path, modules: Sequence[StandIn], vocab: str | Path | None) -> Converted:
    model, *others = modules
    settings = vars(model)
    if settings.get("rnn_type") not in ("LSTM", "GRU", None):
        raise InputError(f"{path}: a model of {settings['rnn_type']} layers; hfseq converts those of LSTM and GRU")
    state = {name: as_float32(weight) for name, weight in module_weights(model).items()}
    if not {"encoder.weight", "decoder.weight", "decoder.bias"} <= state.keys():
        raise InputError(f"{path}: no model of awd-lstm-lm: it has no encoder.weight, decoder.weight and decoder.bias")
    fields: dict[str, Any] = {}
    losses = [one for one in others if one.pickled_class == "splitcross.SplitCrossEntropyLoss"]
    splits = vars(losses[0]).get("splits") if losses else None
    if isinstance(splits, list) and len(splits) > 2:
        # Its words behind the first split share a probability, as in an adaptive softmax without narrower clusters.
        fields["adaptive_softmax_cutoffs"] = [int(one) for one in splits[1:-1]]
        state |= {f"criterion.{name}": as_float32(one) for name, one in module_weights(losses[0]).items()}
    rate = settings.get("dropoute")
    dropouts = {"embedding_dropout": float(rate)} if isinstance(rate, int | float) and 0 <= rate < 1 else {}
    drops = [
        vars(one).get("dropout") for one in submodules(model).values() if one.pickled_class.endswith("WeightDrop")
    ]
    if drops and isinstance(drops[0], int | float) and 0 <= drops[0] < 1:
        dropouts["weight_dropout"] = float(drops[0])
    tokenizer = None
    if vocab is not None:
        tokens = read_vocabulary(vocab, len(state["encoder.weight"]))
        tokenizer = word_tokenizer(tokens)
        if tokenizer.eos_token is not None:
            tokenizer = word_tokenizer(tokens, start=[tokenizer.eos_token])
    shown = ", ".join(f"{name} {settings[name]}" for name in ("dropout", "dropouth", "dropouti") if name in settings)
    ignored = [f"{shown}: hfseq has one dropout, left at its default"] if shown else []
    notes = [] if tokenizer is None else ["A text begins with `<eos>`, after which one began in training."]
    toolkit = f"awd-lstm-lm ({settings.get('rnn_type', 'LSTM')})"
    return _convert(path, state, toolkit, tokenizer, fields | dropouts, ignored, notes)


def _convert(
    path: Path,
    state: Mapping[str, Tensor],
    toolkit: str,
    tokenizer: PreTrainedTokenizerFast | None,
    fields: Mapping[str, Any],
    ignored: list[str],
    notes: list[str],
) -> Converted:
    """Convert a state dict, of fastai if its names begin with `0.` and `1.`."""
    fastai = "0.encoder.weight" in state
    encoder, decoder = ("0.encoder.weight", "1.decoder") if fastai else ("encoder.weight", "decoder")
    layers = _layers(path, state)
    sizes = [state[layer["weight_hh"]].shape[1] for layer in layers]
    gates = state[layers[0]["weight_hh"]].shape[0] // sizes[0]
    tied = same_weight(state[encoder], state[f"{decoder}.weight"])
    config_class: Any = LstmConfig if gates == 4 else GruConfig
    cutoffs = fields.get("adaptive_softmax_cutoffs")
    config = config_class(
        vocab_size=len(state[encoder]),
        embedding_size=state[encoder].shape[1],
        hidden_size=sizes[-1],
        num_hidden_layers=len(layers),
        layer_sizes=sizes if len({*sizes}) > 1 else None,
        bidirectional=False,
        variational_dropout=True,
        tie_word_embeddings=tied,
        lm_head_bias=f"{decoder}.bias" in state,
        **role_ids(tokenizer),
        **fields,
    )
    model: Any = (LstmForCausalLM if gates == 4 else GruForCausalLM)(config)
    table: dict[str, str | Made] = {"model.embed_tokens.weight": encoder, "lm_head.weight": f"{decoder}.weight"}
    if config.lm_head_bias:
        table["lm_head.bias"] = f"{decoder}.bias"
    for number, layer in enumerate(layers):
        table |= {f"model.stack.forward_layers.{number}.{name}_l0": theirs for name, theirs in layer.items()}
    if cutoffs is not None:
        for name in ("weight", "bias"):  # the first cluster has the last of the rows
            theirs = f"criterion.tail_{'vectors' if name == 'weight' else name}"
            table[f"adaptive_softmax.clusters.{name}"] = Made([theirs], lambda rows: rows.flip(0))
    # The same embeddings behind fastai's dropout of words, and matrices that DropConnect made of the raw ones.
    copies = ["0.encoder_dp.emb.weight", "0.encoder_with_dropout.embed.weight"]
    different = [name for name in copies if name in state and not same_weight(state[name], state[encoder])]
    if different:
        raise InputError(f"{path}: {different[0]} and {encoder} are not the same")
    unused = [*copies, *(layer["weight_hh"].removesuffix("_raw") for layer in layers), "0.rnns.*.module.weight_hh_l0"]
    raw = {name for layer in layers for name in layer.values()}
    fill(model, translate(path, state, table, [name for name in unused if name not in raw]), path)
    return Converted(model, tokenizer, _reference(state, layers, encoder, decoder, cutoffs), toolkit, ignored, notes)


def _layers(path: Path, state: Mapping[str, Tensor]) -> list[dict[str, str]]:
    """Names of the weights of each layer, of the matrices before DropConnect."""
    places: dict[int, str] = {}
    for name in state:
        if (match := _RNN.fullmatch(name)) is not None:
            places[int(match["layer"])] = f"{match['start']}rnns.{match['layer']}."
    layers: list[dict[str, str]] = []
    for _, place in sorted(places.items()):
        if any(name.startswith(place) and name.endswith("_reverse") for name in state):
            raise InputError(f"{path}: {place}: both directions, but a language model reads forward")
        found = {}
        for ours in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            own = [f"{place}{inner}{ours}_l0" for inner in ("module.", "")]
            names = [*(f"{name}_raw" for name in own), *own] if ours == "weight_hh" else own
            fits = [name for name in names if name in state]
            if not fits:
                raise InputError(f"{path}: {place} has no {ours}_l0; hfseq converts layers of nn.LSTM and nn.GRU")
            found[ours] = fits[0]
        layers.append(found)
    if not layers:
        raise InputError(f"{path}: it has no recurrent layers, rnns.0 and so on")
    return layers


def _reference(
    state: Mapping[str, Tensor],
    layers: Sequence[Mapping[str, str]],
    encoder: str,
    decoder: str,
    cutoffs: Sequence[int] | None,
) -> Reference:
    """Layers of `nn.LSTM` or `nn.GRU`, the decoder, and SplitCrossEntropyLoss if it splits the vocabulary."""
    modules = []
    for layer in layers:
        gates, width = state[layer["weight_hh"]].shape
        kind = nn.LSTM if gates == 4 * width else nn.GRU
        module = kind(state[layer["weight_ih"]].shape[1], width, batch_first=True)
        module.load_state_dict({f"{name}_l0": state[theirs] for name, theirs in layer.items()})
        modules.append(module)
    weight, bias = state[f"{decoder}.weight"], state.get(f"{decoder}.bias")

    def reference(ids: Tensor) -> Tensor:
        values = state[encoder][ids]
        for module in modules:
            values, _ = module(values)
        if cutoffs is None:
            return linear(values, weight, bias)
        assert bias is not None
        ends = [0, *cutoffs, len(weight)]
        vectors, offsets = state["criterion.tail_vectors"], state["criterion.tail_bias"]
        head = torch.cat([weight[: ends[1]], vectors]), torch.cat([bias[: ends[1]], offsets])
        scores = linear(values, *head).log_softmax(dim=-1)
        parts = [scores[..., : ends[1]]]
        for split in range(1, len(ends) - 1):
            rows = slice(ends[split], ends[split + 1])
            inside = linear(values, weight[rows], bias[rows]).log_softmax(dim=-1)
            parts.append(scores[..., -split, None] + inside)
        return torch.cat(parts, dim=-1)

    return reference

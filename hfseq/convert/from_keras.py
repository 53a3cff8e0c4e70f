"""Models of Keras: an embedding, recurrent layers, perhaps pooling, and a dense layer, in a row."""

import json
import re
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, normalizers
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from hfseq.convert.base import Converted, Format, Reference
from hfseq.convert.keras_layers import Chain, find_chain, read_layers
from hfseq.convert.names import Made, as_float32, fill, translate
from hfseq.convert.reading import read_json, read_lines
from hfseq.convert.vocabularies import check_tokens, read_vocabulary, role_ids, word_tokenizer
from hfseq.errors import InputError, one_line
from hfseq.models import GruConfig, LstmConfig, RnnConfig

TASKS = {
    "lm": AutoModelForCausalLM,
    "classifier": AutoModelForSequenceClassification,
    "tagger": AutoModelForTokenClassification,
}
STANDARDIZATIONS = ("none", "lower", "strip_punctuation", "lower_and_strip_punctuation")
"""Values of `standardize` of a `TextVectorization`."""
_CONFIGS: dict[str, Any] = {"LSTM": LstmConfig, "GRU": GruConfig, "SimpleRNN": RnnConfig}
_PUNCTUATION = r"""[!"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~']"""


def convert_keras(
    checkpoint: str | Path,
    *,
    task: str | None = None,
    vocab: str | Path | None = None,
    labels: str | Path | None = None,
    standardize: str = "none",
) -> Converted:
    """Convert a language model, classifier or tagger that Keras saved as a whole, in `.keras` or `.h5`.

    The model is a row of layers: `Embedding`, `LSTM`, `GRU` or `SimpleRNN`, each also in `Bidirectional`, pooling, and
    one `Dense`. A model with as many outputs as tokens that reads forward is a language model, even if it predicts
    after the last step only; another one is a tagger if it has an output at each step, else a classifier. One output
    with a sigmoid becomes two classes, several become multi-label classification.

    Args:
        checkpoint: File written by `model.save`.
        task: `lm`, `classifier` or `tagger`; None to tell by the layers.
        vocab: File of the vocabulary: `get_vocabulary()` of a `TextVectorization`, a line each; `to_json()` of a
            `Tokenizer`; or another one, see `hfseq.convert.vocabularies`.
        labels: File with the names of classes or tags, a line each.
        standardize: Standardisation of texts before they are split at spaces, as in `TextVectorization`; a
            `Tokenizer` has its own.

    Raises:
        InputError: If the file cannot be read, or the model has a layer or a setting that hfseq does not have.
    """
    path = Path(checkpoint)
    layers, arrays = read_layers(path)
    chain = find_chain(path, layers, arrays)
    size, outputs = len(arrays[chain.embedding]), arrays[chain.dense[0]].shape[1]
    bidirectional = len(chain.recurrent[0]) == 2
    task = _task(path, task, chain, outputs == size and not bidirectional)
    tokens, normalizer = _vocabulary(vocab, size, standardize)
    tokenizer = None if tokens is None else word_tokenizer(tokens, normalizer=normalizer)
    binary = chain.output == "sigmoid" and outputs == 1
    fields: dict[str, Any] = role_ids(tokenizer) | {"pad_token_id": 0}
    if task != "lm":
        fields["num_labels"] = 2 if binary else outputs
        kinds = {"sigmoid": "multi_label_classification", "linear": "regression" if outputs == 1 else None}
        if task == "classifier":
            fields["problem_type"] = None if binary else kinds.get(chain.output, "single_label_classification")
            fields["pooling"] = chain.pooling
        if labels is not None:
            names = read_lines(labels)
            if len(names) != fields["num_labels"]:
                raise InputError(f"{labels}: {len(names)} names, but the model has {fields['num_labels']} outputs")
            fields |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    else:
        fields |= {"lm_head_bias": len(chain.dense) == 2}
    rates = {*chain.dropouts}
    if len(rates) == 1:
        (fields["dropout"],) = rates
    if chain.cell == "SimpleRNN":
        fields["hidden_act"] = chain.activation
    directions = 2 if bidirectional else 1
    sizes = [directions * arrays[places[0] + chain.kernels[1]].shape[0] for places in chain.recurrent]
    if len({*sizes}) > 1:
        fields["layer_sizes"] = sizes
    config = _CONFIGS[chain.cell](
        vocab_size=size,
        embedding_size=arrays[chain.embedding].shape[1],
        hidden_size=sizes[-1],
        num_hidden_layers=len(chain.recurrent),
        bidirectional=bidirectional,
        tie_word_embeddings=False,
        **fields,
    )
    model = TASKS[task].from_config(config)
    table = _table(chain, "lm_head" if task == "lm" else "classifier", binary, bias=task != "lm")
    fill(model, translate(path, arrays, table), path)
    notes = [] if chain.masks else ["The embedding has no mask: Keras read padding (0); attention_mask leaves it out."]
    if chain.output in ("softmax", "sigmoid"):
        notes.append(f"Logits are those before the {chain.output} of the last layer.")
    ignored = [f"dropout of several rates ({', '.join(map(str, sorted(rates)))})"] if len(rates) > 1 else []
    return Converted(
        model, tokenizer, _reference(chain, arrays, task, binary), f"Keras ({chain.cell})", ignored, notes
    )


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of this format."""
    parser.add_argument("--task", choices=[*TASKS], help="what the model does, if its layers do not tell")
    parser.add_argument("--vocab", help="get_vocabulary() of TextVectorization, a line each; Tokenizer.to_json()")
    parser.add_argument("--labels", help="names of the classes or tags by ids, a line each")
    parser.add_argument(
        "--standardize",
        choices=STANDARDIZATIONS,
        default="none",
        help="as in TextVectorization",
    )


FORMAT = Format(convert_keras, add_arguments, "models of Keras, .keras or .h5")


def _task(path: Path, task: str | None, chain: Chain, predicts_tokens: bool) -> str:
    if chain.pooling in ("max", "mean"):
        possible = ["classifier"]
    elif predicts_tokens:
        possible = ["lm", "tagger" if chain.pooling is None else "classifier"]
    else:
        possible = ["tagger"] if chain.pooling is None else ["classifier"]
    if task is not None and task not in possible:
        raise InputError(f"{path}: --task {task}, but the layers are those of a {' or '.join(possible)}")
    return task or possible[0]


def _vocabulary(vocab: str | Path | None, size: int, standardize: str) -> tuple[Any, normalizers.Normalizer | None]:
    """Tokens, and the normalisation of texts, of a `Tokenizer` or as asked for."""
    steps: list[normalizers.Normalizer] = []
    punctuation: Any = Regex(_PUNCTUATION)
    if standardize.startswith("lower"):
        steps.append(normalizers.Lowercase())
    if "strip" in standardize:
        steps.append(normalizers.Replace(punctuation, ""))
    normalizer = normalizers.Sequence(steps) if steps else None
    if vocab is None:
        return None, normalizer
    found = read_json(vocab) if Path(vocab).suffix == ".json" else None
    if not (isinstance(found, dict) and found.get("class_name") == "Tokenizer"):
        tokens = read_vocabulary(vocab, size)
        if isinstance(tokens, list) and tokens[0] == "":  # the name that Keras gives to padding
            tokens[0] = "<pad>"
        return tokens, normalizer
    try:
        config = found["config"]
        index = json.loads(config["word_index"])
        words = sorted(index, key=index.__getitem__)
        units = config["char_level"], config["split"]
        signs: Any = Regex(f"[{''.join(map(re.escape, config['filters']))}]")
        steps = [normalizers.Lowercase()] * bool(config["lower"])
        steps += [normalizers.Replace(signs, " ")] * bool(config["filters"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{vocab}: not a Tokenizer of Keras: {one_line(error, named=True)}") from error
    if units != (False, " "):
        raise InputError(f"{vocab}: a Tokenizer of characters, or with another separator than a space")
    # Words beyond the embedding were left out; ids begin at 1.
    tokens = ["<pad>", *words][:size]
    check_tokens(vocab, tokens, size)
    return tokens, normalizers.Sequence(steps) if steps else None


def _table(chain: Chain, head: str, binary: bool, *, bias: bool) -> dict[str, str | Made]:
    table: dict[str, str | Made] = {"model.embed_tokens.weight": chain.embedding}
    for number, places in enumerate(chain.recurrent):
        for place, ours in zip(places, ("forward_layers", "backward_layers"), strict=False):
            target = f"model.stack.{ours}.{number}."
            order = _torch_order(chain.cell)
            names = [place + name for name in chain.kernels]
            table[f"{target}weight_ih_l0"] = Made(names[:1], order)
            table[f"{target}weight_hh_l0"] = Made(names[1:2], order)
            for side, row in (("ih", 0), ("hh", 1)):
                table[f"{target}bias_{side}_l0"] = Made(names[1:], _bias(row, order))
    table[f"{head}.weight"] = Made(chain.dense[:1], _two_rows if binary else _transposed)
    if len(chain.dense) == 2:
        table[f"{head}.bias"] = Made(chain.dense[1:], _two_entries if binary else as_float32)
    elif bias:
        table[f"{head}.bias"] = Made(
            chain.dense[:1], lambda kernel: kernel.new_zeros(2 if binary else kernel.shape[1])
        )
    return table


def _torch_order(cell: str) -> Callable[[Tensor], Tensor]:
    """Transposes a kernel `[I, gates * H]`, and swaps update and reset gate of a GRU."""

    def order(kernel: Tensor) -> Tensor:
        if cell == "GRU":
            update, reset, new = kernel.chunk(3, dim=-1)
            kernel = torch.cat([reset, update, new], dim=-1)
        return kernel.t().contiguous() if kernel.dim() == 2 else kernel

    return order


def _bias(row: int, order: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """One of our two biases: the rows of a GRU's, or Keras' only one and zeros."""

    def make(recurrent: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is None or bias.dim() == 1 and row == 1:
            return recurrent.new_zeros(recurrent.shape[1])
        return order(bias if bias.dim() == 1 else bias[row])

    return make


def _transposed(kernel: Tensor) -> Tensor:
    return kernel.t().contiguous()


def _two_rows(kernel: Tensor) -> Tensor:
    """Weights of two classes whose softmax is the sigmoid of one output."""
    return pad(kernel.t(), (0, 0, 1, 0))


def _two_entries(bias: Tensor) -> Tensor:
    return pad(bias, (1, 0))


def _reference(chain: Chain, arrays: Mapping[str, Tensor], task: str, binary: bool) -> Reference:
    """The layers by the equations of Keras' cells, with its arrays."""
    step = _STEPS[chain.cell]
    cells = [
        [[arrays[place + name].float() for name in chain.kernels] for place in places] for places in chain.recurrent
    ]
    dense = [arrays[name].float() for name in chain.dense]
    nonlinear = torch.tanh if chain.activation == "tanh" else torch.relu

    def run(values: Tensor, cell: list[Tensor]) -> Tensor:
        kernel, recurrent, *bias = cell
        biases = bias[0] if bias else kernel.new_zeros(kernel.shape[1])
        state = (values.new_zeros(recurrent.shape[0]),) * 2
        outputs = []
        for inputs in values:
            state = step(inputs, state, kernel, recurrent, biases, nonlinear)
            outputs.append(state[0])
        return torch.stack(outputs)

    def reference(ids: Tensor) -> Tensor:
        values = arrays[chain.embedding].float()[ids[0]]  # [T, E]
        for forward, *backward in cells:
            ways = [run(values, forward)] + [run(values.flip(0), cell).flip(0) for cell in backward]
            ends = [ways[0][-1]] + [way[0] for way in ways[1:]]
            values = torch.cat(ways, dim=1)
        if task == "classifier":
            pooled = {"last": torch.cat(ends), "max": values.amax(dim=0), "mean": values.mean(dim=0)}
            values = pooled[str(chain.pooling)]
        logits = values @ dense[0] + (dense[1] if len(dense) == 2 else 0.0)
        return (pad(logits, (1, 0)) if binary else logits).unsqueeze(0)

    return reference


State = tuple[Tensor, Tensor]


def _lstm(x: Tensor, state: State, kernel: Tensor, recurrent: Tensor, bias: Tensor, nonlinear: Any) -> State:
    h, c = state
    i, f, g, o = (x @ kernel + h @ recurrent + bias).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, state: State, kernel: Tensor, recurrent: Tensor, bias: Tensor, nonlinear: Any) -> State:
    h, _ = state
    entering, own = bias if bias.dim() == 2 else (bias, torch.zeros_like(bias))
    (xz, xr, xh), (hz, hr, hh) = (x @ kernel + entering).chunk(3), (h @ recurrent + own).chunk(3)
    z = (xz + hz).sigmoid()
    return z * h + (1 - z) * (xh + (xr + hr).sigmoid() * hh).tanh(), h


def _rnn(x: Tensor, state: State, kernel: Tensor, recurrent: Tensor, bias: Tensor, nonlinear: Any) -> State:
    return nonlinear(x @ kernel + state[0] @ recurrent + bias), state[0]


_STEPS: dict[str, Callable[..., State]] = {"LSTM": _lstm, "GRU": _gru, "SimpleRNN": _rnn}
"""Step of each cell, from inputs, state `(h, c)` and weights to the new state."""

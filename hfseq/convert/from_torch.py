"""Models of plain PyTorch: an embedding, `nn.LSTM`, `nn.GRU` or `nn.RNN`, and a linear layer, under any names.

The parts are found by their shapes. Checkpoints of word_language_model of pytorch/examples, of the recurrent language
models of ESPnet and icefall, and taggers with pytorch-crf are among them.
"""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from hfseq.convert.base import Converted, Format, Reference
from hfseq.convert.names import Made, Table, as_float32, fill, recurrent_table, same_weight, translate
from hfseq.convert.parts import CRF, Parts, find_parts
from hfseq.convert.reading import (
    COMMON,
    MODULES,
    PickledNames,
    StandIn,
    module_weights,
    read_checkpoint,
    read_folder,
    read_lines,
    submodules,
)
from hfseq.convert.vocabularies import (
    check_tokens,
    corpus_vocabulary,
    read_vocabulary,
    reads_pieces,
    role_ids,
    token_list,
    word_tokenizer,
)
from hfseq.errors import InputError
from hfseq.models import GruConfig, LstmConfig, RnnConfig

TASKS = {
    "lm": AutoModelForCausalLM,
    "classifier": AutoModelForSequenceClassification,
    "tagger": AutoModelForTokenClassification,
}
POOLINGS = ("last", "mean", "max", "concat")
_NAMES = MODULES | COMMON | PickledNames(classes=("model.RNNModel", "__main__.*"))
_CONFIGS: dict[str, Any] = {"LSTM": LstmConfig, "GRU": GruConfig, "RNN": RnnConfig}


def convert_torch(
    checkpoint: str | Path,
    *,
    task: str | None = None,
    weights: str | None = None,
    embedding: str | None = None,
    rnn: Sequence[str] | None = None,
    output: str | None = None,
    nonlinearity: str | None = None,
    pooling: str | None = None,
    problem_type: str | None = None,
    vocab: str | Path | None = None,
    corpus: Sequence[str | Path] | None = None,
    labels: str | Path | None = None,
    lowercase: bool = False,
    pickled_classes: Sequence[str] = (),
) -> Converted:
    """Convert a language model, classifier or tagger of plain PyTorch.

    The parts are found by their shapes: an embedding, the recurrent modules whose width enters, a linear layer that
    reads their outputs, and the three parameters of pytorch-crf. Where that leaves a choice, the keyword arguments
    decide.

    Args:
        checkpoint: File with a state dict, alone or in a dictionary, or a whole pickled model; or a folder of
            safetensors.
        task: `lm`, `classifier` or `tagger`; None to tell by the shapes, as for a language model, whose output is as
            large as its vocabulary, and a CRF.
        weights: Key of the state dict in the checkpoint, if it has several, with dots between nested keys.
        embedding: Name of the embedding module or weight.
        rnn: Names of the recurrent modules from the bottom up.
        output: Name of the output layer or its weight.
        nonlinearity: `tanh` or `relu` of an `nn.RNN`, which a state dict does not tell.
        pooling: Pooling of a classifier; see `hfseq.models.pooling.Pooling`. `last` is `h_n` of the last layer.
        problem_type: Problem type of a classifier with one output: `regression`, or `single_label_classification` if
            it is the logit of the second of two classes. With more outputs also `multi_label_classification`.
        vocab: File of the vocabulary; see `hfseq.convert.vocabularies`. None for that in the checkpoint, if any.
        corpus: In place of it, the training, validation and test texts of word_language_model, whose words are
            numbered in the order in which they occur.
        labels: File with the names of classes or tags, a line each; None for those in the checkpoint, if any.
        lowercase: Whether the tokenizer lowercases texts.
        pickled_classes: Further classes of a whole pickled model, with their modules: `nets.Tagger`. They are read
            as data, and need not be importable.

    Raises:
        InputError: If the checkpoint cannot be read safely, is not such a model, leaves a choice, or has weights that
            have no place in hfseq's model; or if the vocabulary does not fit it.
    """
    path = Path(checkpoint)
    found: Any = (
        read_folder(path) if path.is_dir() else read_checkpoint(path, _NAMES | PickledNames(classes=pickled_classes))
    )
    key, state, module = _select(path, found, weights)
    parts = find_parts(path, state, module, embedding, rnn, output, nonlinearity)
    size, outputs = len(state[parts.embedding]), len(state[parts.output])
    task = _task(path, task, parts, size, outputs)
    pooling = _pooling(path, pooling, parts, state) if task == "classifier" else None
    kind = _problem_type(path, problem_type, outputs) if task == "classifier" else None
    tokens = _vocabulary(path, found, key, size, vocab, corpus)
    tokenizer = None
    if tokens is not None:
        tokenizer = word_tokenizer(tokens, lowercase=lowercase)
        begin = tokenizer.bos_token or tokenizer.eos_token
        if task == "lm" and begin is not None:
            tokenizer = word_tokenizer(tokens, start=[begin], lowercase=lowercase)
    binary = outputs == 1 and kind == "single_label_classification"
    fields: dict[str, Any] = role_ids(tokenizer)
    if parts.crf is not None:
        # Its chain would leave out BOS and EOS, over which that of pytorch-crf runs.
        fields |= {"bos_token_id": None, "eos_token_id": None}
    if task != "lm":
        fields["num_labels"] = 2 if binary else outputs
        names = _labels(path, found, key, fields["num_labels"], labels)
        if names is not None:
            fields |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    dropout = _dropout(module)
    if dropout is not None:
        fields["dropout"] = dropout
    config = _config(parts, state, task, size, fields | {"pooling": pooling, "problem_type": kind})
    model = TASKS[task].from_config(config)
    table = _table(parts, task, config.tie_word_embeddings, binary)
    fill(model, translate(path, state, table), path)
    return Converted(
        model,
        tokenizer,
        _reference(parts, state, task, pooling, binary),
        f"PyTorch (nn.{parts.recurrent[0].cell})",
        _ignored(found, key, dropout),
        _notes(task, tokenizer, tokens, pooling),
    )


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of this format."""
    parser.add_argument("--task", choices=[*TASKS], help="what the model does, if shapes do not tell")
    parser.add_argument("--weights", help="key of the state dict in the checkpoint, if it has several")
    parser.add_argument("--embedding", help="name of the embedding module")
    parser.add_argument("--rnn", nargs="+", help="names of the recurrent modules, from the bottom up")
    parser.add_argument("--output", help="name of the output layer")
    parser.add_argument("--nonlinearity", choices=["tanh", "relu"], help="that of an nn.RNN")
    parser.add_argument("--pooling", choices=POOLINGS, help="what a classifier reads; last: h_n of the last layer")
    parser.add_argument(
        "--problem_type",
        choices=["regression", "single_label_classification", "multi_label_classification"],
        help="that of a classifier; with one output, single_label_classification means a logit of two classes",
    )
    parser.add_argument("--vocab", help="tokens by ids: a line each, JSON, or a tokenizer.json")
    parser.add_argument(
        "--corpus", nargs="+", help="in place of it, the training, validation and test texts of word_language_model"
    )
    parser.add_argument("--labels", help="names of the classes or tags by ids, a line each")
    parser.add_argument("--lowercase", action="store_true", help="the tokenizer lowercases texts")
    parser.add_argument(
        "--pickled_classes", nargs="+", default=[], help="classes of a whole pickled model, which are read as data"
    )


FORMAT = Format(convert_torch, add_arguments, "models of plain PyTorch: nn.LSTM, nn.GRU, nn.RNN")


def _select(path: Path, found: Any, wanted: str | None) -> tuple[str, Mapping[str, Tensor], StandIn | None]:
    """Key, state dict and pickled module, if it is one, of the weights in a checkpoint."""
    candidates: dict[str, tuple[Mapping[str, Tensor], StandIn | None]] = {}
    todo = [("", found)]
    while todo:
        key, value = todo.pop(0)
        if isinstance(value, StandIn) and "_modules" in vars(value):
            candidates[key] = (module_weights(value), value)
        elif isinstance(value, dict) and value and all(isinstance(one, Tensor) for one in value.values()):
            candidates[key] = (value, None)
        elif isinstance(value, dict | list | tuple) and key.count(".") < 2:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            todo += [(f"{key}.{name}".lstrip("."), one) for name, one in items]
    recurrent = {key: one for key, one in candidates.items() if any("weight_hh_l0" in str(name) for name in one[0])}
    if wanted is not None:
        if wanted not in recurrent:
            raise InputError(
                f"{path}: --weights {wanted}: no such weights; there are {', '.join(recurrent) or 'none'}"
            )
        recurrent = {wanted: recurrent[wanted]}
    if not recurrent:
        names = [str(name) for weights, _ in candidates.values() for name in weights]
        known = names or ([str(key) for key in found] if isinstance(found, dict) else [type(found).__name__])
        shown = ", ".join(known[:8]) + (" …" if len(known) > 8 else "")
        cells = (
            " (nn.LSTMCell and the like are not found by shape)" if any("weight_hh" in one for one in names) else ""
        )
        raise InputError(f"{path}: no nn.LSTM, nn.GRU or nn.RNN in it; it has {shown or 'nothing'}{cells}")
    if len(recurrent) > 1:
        raise InputError(f"{path}: weights of several models: {', '.join(recurrent)}; choose by --weights")
    ((key, (state, module)),) = recurrent.items()
    for prefix in ("_orig_mod.", "module."):  # of torch.compile and nn.DataParallel
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): weight for name, weight in state.items()}
    return key, state, module


def _task(path: Path, task: str | None, parts: Parts, size: int, outputs: int) -> str:
    directions = parts.recurrent[0].bidirectional
    if parts.crf is not None and task not in (None, "tagger"):
        raise InputError(f"{path}: --task {task}, but {parts.crf}transitions is of a tagger with a CRF")
    if task == "lm" and (outputs != size or directions):
        reason = "it reads in both directions" if directions else f"{outputs:,} outputs for {size:,} tokens"
        raise InputError(f"{path}: --task lm: {reason}")
    if task is not None:
        return task
    if parts.crf is not None:
        return "tagger"
    if outputs == size and not directions:
        return "lm"
    raise InputError(f"{path}: {parts.output} has {outputs} outputs: --task classifier or --task tagger?")


def _pooling(path: Path, pooling: str | None, parts: Parts, state: Mapping[str, Tensor]) -> str:
    entering = state[parts.output].shape[1]
    if (entering == parts.width) == (pooling == "concat") and not (pooling is None and entering != parts.width):
        raise InputError(
            f"{path}: --pooling {pooling}, but {parts.output} reads {entering} features of outputs {parts.width} wide"
        )
    if pooling is None and entering == parts.width:
        raise InputError(f"{path}: a classifier of what: --pooling last (h_n of the last layer), mean or max?")
    return pooling or "concat"


def _problem_type(path: Path, kind: str | None, outputs: int) -> str | None:
    if outputs == 1 and kind not in ("regression", "single_label_classification"):
        raise InputError(
            f"{path}: a classifier with one output: --problem_type regression, or single_label_classification for the "
            "logit of the second of two classes?"
        )
    return kind


def _vocabulary(
    path: Path, found: Any, key: str, size: int, vocab: str | Path | None, corpus: Sequence[str | Path] | None
) -> list[str] | Tokenizer | None:
    """Tokens of the given file or texts, else those in the checkpoint, else None."""
    if vocab is not None and corpus is not None:
        raise InputError("--corpus numbers words in place of --vocab; give one of them")
    if vocab is not None:
        return read_vocabulary(vocab, size)
    if corpus is not None:
        tokens = corpus_vocabulary(corpus)
        check_tokens("--corpus", tokens, size)
        return tokens
    lists = _lists(found, key, size)
    if len(lists) > 1:
        raise InputError(f"{path}: several vocabularies of {size:,} tokens: {', '.join(lists)}; give one by --vocab")
    return next(iter(lists.values()), None)


def _labels(path: Path, found: Any, key: str, count: int, labels: str | Path | None) -> list[str] | None:
    """Names of the given file, else those in the checkpoint, else None."""
    if labels is not None:
        names = read_lines(labels)
        if len(names) != count or len({*names}) != count:
            raise InputError(f"{labels}: {len({*names})} names of classes, but the model has {count}")
        return names
    lists = _lists(found, key, count)
    return next(iter(lists.values())) if len(lists) == 1 else None


def _lists(found: Any, key: str, size: int) -> dict[str, list[str]]:
    """Lists of strings, and numberings of strings, of a given size that a checkpoint has beside its weights."""
    entries = found if isinstance(found, dict) else {}
    entries = {str(name): one for name, one in entries.items() if str(name) != key.partition(".")[0]}
    for name, one in list(entries.items()):
        # Vocabularies are often objects with both directions.
        inner = vars(one) if isinstance(one, StandIn) else one if isinstance(one, dict) else {}
        entries |= {f"{name}.{attribute}": value for attribute, value in inner.items()}
    lists = {name: token_list(one) for name, one in entries.items()}
    by_value = {tuple(one): name for name, one in reversed(lists.items()) if one is not None and len(one) == size}
    return {name: list(one) for one, name in reversed(by_value.items())}


def _config(parts: Parts, state: Mapping[str, Tensor], task: str, size: int, fields: Mapping[str, Any]) -> Any:
    first = parts.recurrent[0]
    own: dict[str, Any] = {
        "vocab_size": size,
        "embedding_size": state[parts.embedding].shape[1],
        "hidden_size": parts.width,
        "num_hidden_layers": sum(one.layers for one in parts.recurrent),
        "bidirectional": first.bidirectional,
        "tie_word_embeddings": False,
    }
    sizes = [one.width for one in parts.recurrent for _ in range(one.layers)]
    if len({*sizes}) > 1:
        own["layer_sizes"] = sizes
    if parts.nonlinearity is not None:
        own["hidden_act"] = parts.nonlinearity
    if task == "lm":
        own["tie_word_embeddings"] = same_weight(state[parts.embedding], state[parts.output])
        own["lm_head_bias"] = parts.bias is not None
    if task == "tagger":
        own["crf"] = parts.crf is not None
    given = {name: value for name, value in fields.items() if value is not None or name.endswith("_token_id")}
    return _CONFIGS[first.cell](**own, **given)


def _table(parts: Parts, task: str, tied: bool, binary: bool) -> Table:
    table: dict[str, str | Made] = {"model.embed_tokens.weight": parts.embedding}
    layers = 0
    for one in parts.recurrent:
        table |= recurrent_table(
            one.prefix,
            "model.stack.",
            one.layers,
            bidirectional=one.bidirectional,
            bias=one.bias,
            first=layers,
        )
        layers += one.layers
    head = "lm_head" if task == "lm" else "classifier"
    # A weight that is tied is stored under both names; the second one is ours, too.
    table[f"{head}.weight"] = Made([parts.output], _second_row) if binary else parts.output
    if parts.bias is not None:
        table[f"{head}.bias"] = Made([parts.bias], _second_row) if binary else parts.bias
    elif task != "lm":
        make = (lambda weight: weight.new_zeros(2)) if binary else (lambda weight: weight.new_zeros(len(weight)))
        table[f"{head}.bias"] = Made([parts.output], make)
    if parts.crf is not None:
        table |= {"crf.transitions": f"{parts.crf}{CRF[0]}", "crf.start": f"{parts.crf}{CRF[1]}"}
        table["crf.end"] = f"{parts.crf}{CRF[2]}"
    return table


def _second_row(weight: Tensor) -> Tensor:
    """Weights of two classes whose softmax is the sigmoid of one output."""
    return torch.cat([torch.zeros_like(weight), weight])


def _reference(parts: Parts, state: Mapping[str, Tensor], task: str, pooling: str | None, binary: bool) -> Reference:
    """The model by torch's own modules, under the names of the checkpoint."""
    modules = [one.module(state, parts.nonlinearity) for one in parts.recurrent]
    table, output = as_float32(state[parts.embedding]), as_float32(state[parts.output])
    bias = None if parts.bias is None else as_float32(state[parts.bias])
    chain = None if parts.crf is None else [as_float32(state[f"{parts.crf}{name}"]) for name in CRF]

    def reference(ids: Tensor) -> Tensor:
        values = table[ids]
        states: Any = None
        for module in modules:
            values, states = module(values)
        if task == "classifier":
            hidden = states[0] if isinstance(states, tuple) else states
            last = torch.cat([hidden[-2], hidden[-1]], dim=1) if modules[-1].bidirectional else hidden[-1]
            pooled = {"last": last, "max": values.amax(dim=1), "mean": values.mean(dim=1)}
            values = torch.cat([*pooled.values()], dim=1) if pooling == "concat" else pooled[str(pooling)]
        logits = nn.functional.linear(values, output, bias)
        if binary:
            return nn.functional.pad(logits, (1, 0))
        return logits if chain is None else max_marginals(logits, *chain)

    return reference


def max_marginals(emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Scores `[1, T, K]` of the best label sequence through each label, with the CRF of pytorch-crf, by loops.

    Args:
        emissions: `[1, T, K]`.
        transitions: From one label to the next, `[K, K]`.
        start: `[K]`.
        end: `[K]`.
    """
    (rows,) = emissions
    before, after = [start + rows[0]], [end]
    for row in rows[1:]:
        before.append((before[-1][:, None] + transitions).amax(dim=0) + row)
    for row in rows[1:].flip(0):
        after.append((transitions + row + after[-1]).amax(dim=1))
    return (torch.stack(before) + torch.stack(after[::-1])).unsqueeze(0)


def _dropout(module: StandIn | None) -> float | None:
    """Dropout of a pickled model; None if it has none, or several."""
    if module is None:
        return None
    rates = {
        vars(one).get("p") for one in submodules(module).values() if one.pickled_class.endswith(".dropout.Dropout")
    }
    rates |= {vars(one).get("dropout") for one in submodules(module).values() if "mode" in vars(one)}
    (rate,) = rates if len(rates) == 1 else (None,)
    return float(rate) if isinstance(rate, int | float) and 0 <= rate < 1 else None


def _ignored(found: Any, key: str, dropout: float | None) -> list[str]:
    others = [str(name) for name in found] if isinstance(found, dict) and key else []
    notes = [f"{name} of the checkpoint" for name in others if name != key.partition(".")[0]]
    if dropout is None:
        return [*notes, "dropout, which weights do not tell: the model has the default of its config"]
    return notes


def _notes(task: str, tokenizer: Any, tokens: Any, pooling: str | None) -> list[str]:
    notes = []
    if (
        task == "lm"
        and tokenizer is not None
        and tokenizer.bos_token_id is None
        and tokenizer.eos_token_id is not None
    ):
        notes.append(f"The tokenizer begins a text with {tokenizer.eos_token}, after which one began in training.")
    elif task == "lm" and tokenizer is not None and tokenizer.bos_token_id is not None:
        notes.append(f"The tokenizer begins a text with {tokenizer.bos_token}.")
    if tokenizer is not None and tokenizer.unk_token is None:
        notes.append("The vocabulary has no unknown token: a text with other tokens cannot be encoded.")
    if reads_pieces(tokens):
        notes.append(
            "The vocabulary is of pieces of words, and does not tell how to split words: texts must be split."
        )
    if task == "classifier":
        notes.append(f"A text is pooled by {pooling!r} over its own tokens.")
    notes.append("Padding is never read; a source model that ran over padding gives the same logits for single rows.")
    return notes

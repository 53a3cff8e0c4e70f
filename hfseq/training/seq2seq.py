"""What the sequence-to-sequence recipes share: encoding pairs, scoring, and the files that a run leaves."""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy
from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hfseq import metrics
from hfseq.data.collation import check_batch, vocabulary_sizes
from hfseq.data.errors import InputError
from hfseq.tokenization import train_tokenizer
from hfseq.training.arguments import METRICS, ModelArguments
from hfseq.training.reports import plot_alignment, plot_learning_curve, write_samples

_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def load_model(
    args: ModelArguments, train: datasets.Dataset | None, columns: Sequence[str], default_type: str = "hfseq_lstm"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint and its tokenizer, or make a new model of a family and train a joint tokenizer.

    Args:
        args: Which.
        train: Rows to train the tokenizer on; None will do for a checkpoint.
        columns: Columns with their texts.
        default_type: Family if nothing is said.

    Raises:
        InputError: If both or an unknown family are named, the checkpoint cannot be loaded or is of another kind, or
            a config field is unknown or impossible.
    """
    overrides = dict(args.config_overrides or {})
    if args.model_name_or_path is not None:
        if args.model_type is not None:
            raise InputError("--model_type is for a new model; leave it out with --model_name_or_path")
        return _load_checkpoint(args.model_name_or_path, overrides)
    model_type = args.model_type or default_type
    ours = ", ".join(sorted(name for name in CONFIG_MAPPING.keys() if name.startswith("hfseq_")))
    if model_type not in CONFIG_MAPPING:
        raise InputError(f"unknown --model_type {model_type!r}; hfseq has {ours}")
    if CONFIG_MAPPING[model_type] not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        raise InputError(f"--model_type {model_type} has no sequence-to-sequence model; hfseq has {ours}")
    if taken := sorted(overrides.keys() & {"vocab_size", *_TOKEN_IDS}):
        raise InputError(f"--config_overrides: {taken[0]} comes from the tokenizer; --vocab_size sets its size")
    try:
        # Made once before the tokenizer, so that an impossible size does not wait for its training.
        _check_fields(AutoConfig.for_model(model_type), overrides)
        AutoConfig.for_model(model_type, **overrides)
        if train is None:
            raise InputError("a new model needs training data; --model_name_or_path names a trained one")
        tokenizer = train_tokenizer(
            (text for column in columns for text in train[column]),
            model=args.tokenizer_model,
            vocab_size=args.vocab_size,
            normalization=args.normalization,
            lowercase=args.lowercase,
        )
        ids = {name: getattr(tokenizer, name) for name in _TOKEN_IDS[:-1]}
        ids["decoder_start_token_id"] = tokenizer.bos_token_id
        config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **ids, **overrides)
        return AutoModelForSeq2SeqLM.from_config(config), tokenizer
    except InputError:
        raise
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise InputError(f"--config_overrides: {shorten(str(error), 300)}") from error


def _load_checkpoint(name: str, overrides: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    flag = f"--model_name_or_path {name}"
    try:
        config = AutoConfig.from_pretrained(name)
        _check_fields(config, overrides)
        if not config.is_encoder_decoder or type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
            kind = ", ".join(config.architectures or [config.model_type])
            raise InputError(f"{flag}: {kind} is not a sequence-to-sequence model (an encoder and a decoder)")
        tokenizer = AutoTokenizer.from_pretrained(name)
        config = AutoConfig.from_pretrained(name, **overrides)
        return AutoModelForSeq2SeqLM.from_pretrained(name, config=config), tokenizer
    except InputError:
        raise
    except (OSError, TypeError, ValueError, RuntimeError, StrictDataclassError, SafetensorError) as error:
        there = "" if Path(name).is_dir() else "no such directory, nor a model that the Hub or its cache gives: "
        raise InputError(f"{flag}: {there}{shorten(str(error), 300)}") from error


def _check_fields(config: PreTrainedConfig, overrides: dict[str, Any]) -> None:
    """A config takes any name, so a misspelt one would be forgotten in silence."""
    known = {*config.to_dict(), *config.attribute_map}
    for name in overrides:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
            raise InputError(f"--config_overrides: {type(config).__name__} has no field {name!r}; {hint}")


def encode_pairs(
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    target: str,
    *,
    max_source_length: int,
    max_target_length: int,
    prefix: str = "",
) -> tuple[datasets.Dataset, int]:
    """Encode pairs of texts for a sequence-to-sequence model.

    Args:
        rows: With text columns `source` and `target`.
        tokenizer: Of the model.
        source: Name of the source column.
        target: Name of the target column.
        max_source_length: Tokens of a source, the end mark counted; the rest of the text is cut off.
        max_target_length: The same for a target.
        prefix: Text before every source.

    Returns:
        Columns `input_ids`, `attention_mask`, `labels` in the order of `rows`, and how many rows were cut.
    """

    def encode(batch: dict[str, list[str]]) -> dict[str, list]:
        texts = [prefix + text for text in batch[source]]
        encoded = tokenizer(texts, max_length=max_source_length, truncation=True)
        labels = tokenizer(text_target=batch[target], max_length=max_target_length, truncation=True)["input_ids"]
        cut = [
            len(ids) == max_source_length or len(label) == max_target_length
            for ids, label in zip(encoded["input_ids"], labels, strict=True)
        ]
        # A row that just fits is told from one that was cut by its length without truncation.
        for index in [index for index, full in enumerate(cut) if full]:
            long_source = len(tokenizer(texts[index])["input_ids"]) > max_source_length
            cut[index] = (
                long_source or len(tokenizer(text_target=batch[target][index])["input_ids"]) > max_target_length
            )
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": labels,
            "cut": cut,
        }

    encoded = rows.map(encode, batched=True, remove_columns=rows.column_names, keep_in_memory=True, desc="Encoding")
    return encoded.remove_columns("cut"), sum(encoded["cut"])


def decode_ids(tokenizer: PreTrainedTokenizerBase, ids: Any) -> list[str]:
    """Texts of rows of token ids, in which -100 stands for padding."""
    rows = [
        [token if token >= 0 else tokenizer.pad_token_id for token in row] for row in torch.as_tensor(ids).tolist()
    ]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def score(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU (cased, 13a), chrF and exact match, all from 0 to 100."""
    return {
        name: metrics.load(metric).compute(predictions=predictions, references=references)["score"]
        for name, metric in METRICS.items()
    }


def summarize_scores(
    sources: Sequence[str], references: Sequence[str], predictions: Sequence[str], kinds: Sequence[str] | None
) -> tuple[dict[str, float], str]:
    """Scores of predictions beside those of the sources copied, and a table of them and some examples to print.

    Args:
        sources: Source texts.
        references: Right translations.
        predictions: Translations.
        kinds: What kind of pair each is, for a row of exact match per kind; None for no such rows.

    Returns:
        `bleu`, `chrf`, `exact_match`, each also with `copy_` before it and, per kind, `exact_match_<kind>`; the table.
    """
    ours, copied = score(predictions, references), score(sources, references)
    bleu = metrics.load("sacrebleu").compute(predictions=predictions, references=references)
    lines = [f"{'':24}{'model':>8}{'copied':>8}"]
    lines += [f"{name:24}{ours[name]:8.2f}{copied[name]:8.2f}" for name in METRICS]
    results = ours | {f"copy_{name}": value for name, value in copied.items()}
    if kinds is not None:
        exact = metrics.load("exact_match")
        by_kind = metrics.scores_by_group(exact, predictions, references, kinds)
        copied_by_kind = metrics.scores_by_group(exact, sources, references, kinds)
        lines.append("exact match by kind of pair")
        for kind in sorted(by_kind):
            label = f"  {kind} ({sum(other == kind for other in kinds)})"
            lines.append(f"{label:24}{by_kind[kind]:8.2f}{copied_by_kind[kind]:8.2f}")
            results[f"exact_match_{kind}"] = by_kind[kind]
    lines += [f"sacreBLEU signature: {bleu['signature']}", "", "examples"]
    # One of each kind where there are kinds, the first three else.
    shown = range(min(3, len(sources))) if kinds is None else sorted(list(kinds).index(kind) for kind in set(kinds))
    lines += [f"  {sources[row]}  →  {predictions[row]}" for row in shown]
    return results, "\n".join(lines)


def write_reports(
    output_dir: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    log_history: list[dict[str, Any]],
    texts: tuple[Sequence[str], Sequence[str], Sequence[str]],
    prefix: str = "",
) -> None:
    """Write `samples.txt`, `predictions.txt`, `learning_curve.png` and `alignment.png` into `output_dir`.

    Args:
        output_dir: The directory.
        model: The model, for the alignment of the first prediction of a middling length.
        tokenizer: Its tokenizer.
        log_history: As the Trainer keeps it; empty for no learning curve.
        texts: Sources, references and predictions.
        prefix: Text before every source.
    """
    root = Path(output_dir)
    sources, references, predictions = texts
    write_samples(root / "samples.txt", sources, references, predictions)
    (root / "predictions.txt").write_text("".join(f"{line}\n" for line in predictions), encoding="utf-8")
    if log_history:
        plot_learning_curve(log_history, root / "learning_curve.png", metric="bleu")
    row = next((i for i, text in enumerate(predictions) if 20 <= len(text) <= 80), 0)
    weights, source_tokens, target_tokens = align_texts(model, tokenizer, prefix + sources[row], predictions[row])
    plot_alignment(weights, source_tokens, target_tokens, root / "alignment.png")


@torch.no_grad()
def align_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, target: str
) -> tuple[Any, list[str], list[str]]:
    """Attention of each target token over the source tokens, the mean over heads of the last layer.

    Returns:
        Weights `[target, source]` as an array, and both lists of tokens.
    """
    # Only eager attention of a Transformer returns its weights; a recurrent model always can.
    model.set_attn_implementation("eager")
    model.eval()
    encoded = tokenizer(source, return_tensors="pt").to(model.device)
    labels = tokenizer(text_target=target, return_tensors="pt")["input_ids"].to(model.device)
    outputs = model(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        labels=labels,
        output_attentions=True,
    )
    weights = outputs.cross_attentions[-1][0].mean(dim=0)  # [T, S]
    tokens = [list(tokenizer.convert_ids_to_tokens(ids[0].tolist())) for ids in (encoded["input_ids"], labels)]
    return weights.float().cpu().numpy(), tokens[0], tokens[1]


def summed_loss(model: torch.nn.Module, batch: Mapping[str, torch.Tensor], label_smoothing: float) -> torch.Tensor:
    """Cross-entropy (Szegedy et al. 2016, section 7, if smoothed) summed over the target tokens of a batch.

    Args:
        model: A sequence-to-sequence model, wrapped or not.
        batch: From `DataCollatorForSeq2Seq`: its inputs, decoder inputs and `labels` with -100 for padding.
        label_smoothing: Share of the probability that all tokens get alike.

    Returns:
        A scalar; divide it by the number of labels that are not -100.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits  # [B, T, V]
    labels = batch["labels"].flatten()
    return cross_entropy(logits.flatten(0, 1).float(), labels, label_smoothing=label_smoothing, reduction="sum")


@torch.no_grad()
def validation_loss(
    model: PreTrainedModel,
    encoded: datasets.Dataset,
    collator: Callable[[list[dict[str, Any]]], Any],
    *,
    batch_size: int,
    label_smoothing: float,
) -> float:
    """Mean loss of a target token of `encoded`, on all processes together; see `summed_loss`."""
    model.eval()
    state = PartialState()
    total = torch.zeros(2, device=model.device)
    for start in range(state.process_index * batch_size, len(encoded), state.num_processes * batch_size):
        rows = encoded.select(range(start, min(start + batch_size, len(encoded))))
        batch = collator(list(rows)).to(model.device)
        total += torch.stack([summed_loss(model, batch, label_smoothing), (batch["labels"] != -100).sum()])
    loss, tokens = reduce(total, "sum")
    return (loss / tokens).item()


@torch.no_grad()
def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: datasets.Dataset,
    *,
    batch_size: int,
    **generate_kwargs: Any,
) -> list[str]:
    """Generate a text for each row, on all processes together.

    Args:
        model: The model, on its device.
        tokenizer: Its tokenizer.
        encoded: Rows with `input_ids`.
        batch_size: Rows generated at once; rows of one length go together.
        generate_kwargs: Passed on to `generate`.

    Returns:
        Texts in the order of `encoded`, the same on every process.

    Raises:
        InputError: If a row is empty, or has an id that the model has not.
    """
    model.eval()
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    state = PartialState()
    sources = encoded["input_ids"]
    by_length = sorted(range(len(sources)), key=lambda row: len(sources[row]))
    groups = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    texts: dict[int, str] = {}
    for rows in groups[state.process_index :: state.num_processes]:
        batch = tokenizer.pad({"input_ids": [sources[row] for row in rows]}, return_tensors="pt")
        check_batch(batch, **vocabulary_sizes(model))
        generated = generate(**batch.to(model.device), **generate_kwargs)
        texts.update(zip(rows, decode_ids(tokenizer, generated), strict=True))
    merged = dict(gather_object(list(texts.items())))
    return [merged[row] for row in range(len(sources))]


def set_generation(model: PreTrainedModel, num_beams: int, max_length: int) -> None:
    """Make `num_beams` and `max_length` (in tokens) what the saved model does when it is not told otherwise."""
    model.generation_config.num_beams = num_beams
    model.generation_config.max_length = max_length
    model.generation_config.early_stopping = True if num_beams > 1 else None


def save_results(output_dir: str, results: dict[str, Any]) -> None:
    """Add results to `all_results.json`."""
    path = Path(output_dir) / "all_results.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | results, indent=4, sort_keys=True) + "\n", encoding="utf-8")

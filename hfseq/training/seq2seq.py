"""What the sequence-to-sequence recipes share: encoding pairs, scoring, and the files that a run leaves."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase

from hfseq import metrics
from hfseq.data.collation import CheckedCollator
from hfseq.data.copying import CopyCollator, copy_sources, copy_targets, decode_copies
from hfseq.data.encoding import EncodedSplits, Limit, encode_splits, encode_texts
from hfseq.errors import InputError
from hfseq.inference.parallel import run_by_length
from hfseq.models.heads_seq2seq import ForConditionalGeneration
from hfseq.training.cross_entropy import summed_cross_entropy
from hfseq.training.reports import plot_alignment, plot_learning_curve, write_lines, write_samples


def encode_pairs(
    splits: Mapping[str, datasets.Dataset],
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    target: str,
    *,
    max_source_length: int,
    max_target_length: int,
    prefix: str = "",
    copy_vocabulary: int | None = None,
) -> EncodedSplits:
    """Encode pairs of texts for a sequence-to-sequence model.

    Args:
        splits: Rows with text columns `source` and `target`, by the name of their split.
        tokenizer: Of the model.
        source: Name of the source column.
        target: Name of the target column.
        max_source_length: Tokens of a source, the end mark counted; the rest of the text is cut off.
        max_target_length: The same for a target.
        prefix: Text before every source.
        copy_vocabulary: The vocabulary's size of a model that copies unknown words; None for any other.

    Returns:
        Columns `input_ids`, `attention_mask`, `labels` and, for a model that copies, `copy_ids`, in the order of the
        rows.
    """

    def encode(batch: dict[str, list[str]]) -> dict[str, list]:
        texts = [prefix + text for text in batch[source]]
        encoded, lengths = encode_texts(tokenizer, texts, max_source_length)
        labels, target_lengths = encode_texts(tokenizer, batch[target], max_target_length, target=True)
        columns = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        columns |= {"labels": labels["input_ids"], "length": lengths, "target_length": target_lengths}
        if copy_vocabulary is not None:
            columns["copy_ids"], words = copy_sources(tokenizer, texts, encoded, copy_vocabulary)
            columns["labels"] = copy_targets(tokenizer, batch[target], labels, words, copy_vocabulary)
        return columns

    limits = {
        "length": Limit("sources", "--max_source_length", max_source_length),
        "target_length": Limit("targets", "--max_target_length", max_target_length),
    }
    return encode_splits(splits, encode, limits)


def decode_ids(tokenizer: PreTrainedTokenizerBase, ids: Any) -> list[str]:
    """Texts of rows of token ids, of any lengths, in which -100 stands for padding."""
    rows = ids.tolist() if hasattr(ids, "tolist") else ids
    rows = [[token if token >= 0 else tokenizer.pad_token_id for token in row] for row in rows]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def score_translations(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`bleu` (cased, 13a), `chrf` and `exact_match`, all from 0 to 100."""
    names = {"bleu": "sacrebleu", "chrf": "chrf", "exact_match": "exact_match"}
    return {
        name: metrics.load(metric).compute(predictions=predictions, references=references)["score"]
        for name, metric in names.items()
    }


def score_summaries(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`rouge1`, `rouge2`, `rougeL`, `rougeLsum`, F1 from 0 to 100, each with the best of a row's references."""
    scores = metrics.load("rouge").compute(predictions=predictions, references=references)
    return {name: scores[name] for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")}


def split_references(splits: Mapping[str, Any], target: str) -> tuple[dict[str, Any], dict[str, list[list[str]]]]:
    """Rows with one target each, of rows that may have several.

    Args:
        splits: Rows in which `target` holds a text, or a list of texts; `train` may be a stream, whose errors come
            when its rows do.
        target: That column.

    Returns:
        The splits with one text a row: of `train` a row for each target, of the others the first one. And all targets
        of each row of the others.

    Raises:
        InputError: A row has no target that is more than spaces.
    """
    rows_of, references = {}, {}
    for name, rows in splits.items():
        if isinstance(rows, datasets.IterableDataset):
            features = datasets.Features({**rows.features, target: datasets.Value("string")})
            rows_of[name] = rows.map(partial(_row_of_each, target=target), batched=True, features=features)
            continue
        several = [_targets(value) for value in rows[target]]
        if [] in several:
            raise InputError(f"{name}, row {several.index([]) + 1}: column {target!r} is an empty list; give a text")
        if name == "train":
            rows = rows.select([row for row, texts in enumerate(several) for _ in texts])
            first = [text for texts in several for text in texts]
        else:
            references[name] = several
            first = [texts[0] for texts in several]
        feature = datasets.Value("string")
        rows_of[name] = rows.remove_columns(target).add_column(target, first, feature=feature)
    return rows_of, references


def _targets(value: str | list[str]) -> list[str]:
    return [text for text in ([value] if isinstance(value, str) else value) if text and text.strip()]


def _row_of_each(batch: dict[str, list[Any]], target: str) -> dict[str, list[Any]]:
    """A row for each target of each row of a stream, of which no process knows all, so that numbers say nothing."""
    several = [_targets(value) for value in batch[target]]
    if [] in several:
        row = several.index([])
        texts = " ".join(repr(shorten(values[row], 60)) for name, values in batch.items() if name != target)
        raise InputError(f"train, the row of {texts}: column {target!r} is an empty list; give a text")
    columns = {
        name: [value for value, texts in zip(values, several, strict=True) for _ in texts]
        for name, values in batch.items()
    }
    return columns | {target: [text for texts in several for text in texts]}


def write_reports(
    output_dir: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    log_history: list[dict[str, Any]],
    texts: tuple[Sequence[str], Sequence[str], Sequence[str]],
    *,
    metric: str,
    limits: tuple[int, int],
    prefix: str = "",
) -> None:
    """Write `samples.txt`, `predictions.txt`, `learning_curve.png` and `alignment.png` into `output_dir`.

    A line of `predictions.txt` is one prediction: ends of lines in it become spaces.

    Args:
        output_dir: The directory.
        model: The model, for the alignment of the first prediction of a middling length.
        tokenizer: Its tokenizer.
        log_history: As the Trainer keeps it; empty for no learning curve.
        texts: Sources, references and predictions.
        metric: Drawn beside the losses.
        limits: Tokens after which a source and a target are cut; a Transformer may not read longer ones.
        prefix: Text before every source.
    """
    root = Path(output_dir)
    sources, references, predictions = texts
    write_samples(root / "samples.txt", sources, references, predictions)
    write_lines(root / "predictions.txt", predictions)
    if log_history:
        plot_learning_curve(log_history, root / "learning_curve.png", metric=metric)
    row = next((i for i, text in enumerate(predictions) if 20 <= len(text) <= 80), 0)
    pair = (prefix + sources[row], predictions[row])
    weights, source_tokens, target_tokens = align_texts(model, tokenizer, *pair, limits=limits)
    plot_alignment(weights, source_tokens, target_tokens, root / "alignment.png")


@torch.no_grad()
def align_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    target: str,
    limits: tuple[int | None, int | None] = (None, None),
) -> tuple[Any, list[str], list[str]]:
    """Attention of each target token over the source tokens, the mean over heads of the last layer.

    Args:
        model: A sequence-to-sequence model.
        tokenizer: Its tokenizer.
        source: A text.
        target: Its translation, say.
        limits: Tokens after which the two are cut; None for no such limit.

    Returns:
        Weights `[target, source]` as an array, and both lists of tokens.
    """
    # Only eager attention of a Transformer returns its weights; a recurrent model always can.
    model.set_attn_implementation("eager")
    model.eval()
    options = [{"max_length": limit, "truncation": limit is not None, "return_tensors": "pt"} for limit in limits]
    encoded = tokenizer(source, **options[0]).to(model.device)
    labels = tokenizer(text_target=target, **options[1])["input_ids"].to(model.device)
    outputs = model(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        labels=labels,
        output_attentions=True,
    )
    weights = outputs.cross_attentions[-1][0].mean(dim=0)  # [T, S]
    tokens = [list(tokenizer.convert_ids_to_tokens(ids[0].tolist())) for ids in (encoded["input_ids"], labels)]
    return weights.float().cpu().numpy(), tokens[0], tokens[1]


def token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    count: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy of target tokens (Szegedy et al. 2016, section 7, if smoothed).

    Args:
        logits: `[B, T, V]`, or `[N, V]` of the N steps with a label, row by row.
        labels: Token ids `[B, T]`, -100 for padding.
        label_smoothing: Share of the probability that all tokens get alike.
        count: What the sum is divided by, None for the number of tokens here: a batch in parts, or on several
            processes, is divided by the number of all its tokens.
    """
    if logits.dim() == 2:
        labels = labels[labels != -100]
    total = summed_cross_entropy(logits, labels, label_smoothing)
    return total / ((labels != -100).sum() if count is None else count)


def has_own_loss(model: PreTrainedModel, label_smoothing: float) -> bool:
    """Whether a model's loss in training is more than the cross-entropy of its logits: with coverage, not smoothed."""
    return getattr(model.config, "coverage", False) and not label_smoothing


def labelled_steps(model: torch.nn.Module, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What makes a model in training compute logits only where there is a label, among its inputs.

    Args:
        model: A sequence-to-sequence model, not wrapped; only hfseq's can, and a pointer-generator cannot.
        labels: `[B, T]`, -100 for padding.
    """
    can = model.training and isinstance(model, ForConditionalGeneration) and model.pointer is None
    return {"logits_to_keep": labels != -100} if can else {}


def trainer_loss(model: PreTrainedModel, label_smoothing: float) -> Callable[..., torch.Tensor] | None:
    """The Trainer's `compute_loss_func`, None for the model's own.

    T5, BART and others take the number of tokens of all accumulated batches and ignore it, so that their own losses
    would add up to too much.
    """
    if has_own_loss(model, label_smoothing):
        return None

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        return token_loss(outputs.logits, labels, label_smoothing=label_smoothing, count=num_items_in_batch)

    return loss


def batch_loss(
    model: torch.nn.Module,
    batch: Mapping[str, torch.Tensor],
    *,
    own: bool,
    label_smoothing: float,
    count: torch.Tensor | int,
) -> torch.Tensor:
    """Loss of a batch in an explicit loop.

    Args:
        model: A sequence-to-sequence model, wrapped or not.
        batch: From `make_collator`.
        own: Whether it is the model's own, as `has_own_loss` says.
        label_smoothing: See `token_loss`.
        count: See there.
    """
    if own:
        return model(**batch, num_items_in_batch=count).loss
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    inputs |= labelled_steps(getattr(model, "module", model), batch["labels"])
    return token_loss(model(**inputs).logits, batch["labels"], label_smoothing=label_smoothing, count=count)


@torch.no_grad()
def validation_loss(
    model: PreTrainedModel,
    encoded: datasets.Dataset,
    collator: Callable[[list[dict[str, Any]]], Any],
    *,
    batch_size: int,
    label_smoothing: float,
) -> float:
    """Mean loss of a target token of `encoded`, on all processes together; see `token_loss`."""
    model.eval()
    state = PartialState()
    total = torch.zeros(2, device=model.device)
    for start in range(state.process_index * batch_size, len(encoded), state.num_processes * batch_size):
        rows = encoded.select(range(start, min(start + batch_size, len(encoded))))
        batch = collator(list(rows)).to(model.device)
        tokens = (batch["labels"] != -100).sum()
        loss = batch_loss(model, batch, own=False, label_smoothing=label_smoothing, count=1)
        total += torch.stack([loss, tokens])
    total = reduce(total, "sum")
    return (total[0] / total[1]).item()


@torch.no_grad()
def generate_ids(
    model: PreTrainedModel,
    encoded: datasets.Dataset,
    collator: Callable[[list[dict[str, Any]]], Any],
    *,
    batch_size: int,
    **generate_kwargs: Any,
) -> list[list[int]]:
    """Generate a text for each row, on all processes together.

    Args:
        model: The model, on its device.
        encoded: Rows with `input_ids`.
        collator: Makes batches of them.
        batch_size: Rows generated at once; rows of one length go together.
        generate_kwargs: Passed on to `generate`.

    Returns:
        Token ids of each text in the order of `encoded`, the same on every process.

    Raises:
        InputError: If a row is empty, or has an id that the model has not.
    """
    model.eval()
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    sources = encoded.remove_columns([name for name in encoded.column_names if name == "labels"])

    def run(rows: list[int]) -> list[list[int]]:
        batch = collator(list(sources.select(rows))).to(model.device)
        return generate(**batch, **generate_kwargs).tolist()

    return run_by_length([len(ids) for ids in encoded["input_ids"]], batch_size, run)


def decode_outputs(
    tokenizer: PreTrainedTokenizerBase,
    ids: Any,
    sources: Sequence[str],
    *,
    max_source_length: int,
    copy_vocabulary: int | None,
) -> list[str]:
    """Texts of generated rows of token ids, with the words that were copied.

    Args:
        tokenizer: Of the model.
        ids: Rows of ids, in which -100 stands for padding.
        sources: What each was generated from, with its prefix.
        max_source_length: As of `encode_pairs`.
        copy_vocabulary: Likewise.
    """
    if copy_vocabulary is None:
        return decode_ids(tokenizer, ids)
    encoded, _ = encode_texts(tokenizer, sources, max_source_length)
    _, words = copy_sources(tokenizer, sources, encoded, copy_vocabulary)
    return [text.strip() for text in decode_copies(tokenizer, ids, words, copy_vocabulary)]


def copied_vocabulary(model: PreTrainedModel) -> int | None:
    """The vocabulary's size of a model that copies unknown words of its source; None for any other."""
    copies = getattr(model.config, "pointer_generator", False) and model.config.unk_token_id is not None
    return model.config.vocab_size if copies else None


def make_collator(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> CheckedCollator:
    """Collator of rows that `encode_pairs` made for this model."""
    collator: Any = DataCollatorForSeq2Seq(tokenizer, model=model)
    return CheckedCollator(collator if copied_vocabulary(model) is None else CopyCollator(collator), model)


def set_generation(
    model: PreTrainedModel,
    num_beams: int,
    max_length: int,
    *,
    length_penalty: float | None = None,
    unknown: int | None = None,
) -> None:
    """Make these what the saved model does when it is not told otherwise.

    Args:
        model: The model.
        num_beams: Beams.
        max_length: In tokens.
        length_penalty: Beams are ranked by their log-probability over their length to this power; None for the power
            that the model has.
        unknown: Id of the unknown token, which is never written, as no text has it: a model of words would begin many
            a summary with it, and decoding skips it. None, or the id of another special token, forbids nothing.
    """
    config = model.generation_config
    config.num_beams = num_beams
    config.max_length = max_length
    config.early_stopping = True if num_beams > 1 else None
    if num_beams == 1:
        config.length_penalty = None  # that of the model is of beams, too: beside one alone it is not saved
    elif length_penalty is not None:
        config.length_penalty = length_penalty
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    needed = (*ends, config.bos_token_id, config.pad_token_id, config.decoder_start_token_id)
    if unknown is not None and unknown not in needed:
        config.suppress_tokens = sorted({*(config.suppress_tokens or ()), unknown})

"""File-to-file prediction: `--do_predict --output_file` of the recipes."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import PartialState
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from hfseq.errors import InputError
from hfseq.inference.classify import classify_texts
from hfseq.inference.files import (
    check_output_file,
    read_columns,
    read_texts,
    write_decisions,
    write_predictions,
    write_scores,
)
from hfseq.inference.generate import decode_texts, generation_options, perplexity, score_texts
from hfseq.inference.loading import problem_of
from hfseq.training.loading import load_predictor
from hfseq.training.run import Run


def generate_file(run: Run, source: str, target: str) -> None:
    """Generate an output for each source in `--test_file`, or score its targets, and write `--output_file`.

    Args:
        run: The run, with flags for model, files and decoding.
        source: Source column.
        target: Target column, read only with `--score_targets`.

    Raises:
        InputError: A flag, a file or the model is invalid; nothing is written.
    """
    data, args = run.data, run.args
    test_file, output_file = _files(run, data.num_return_sequences)
    lengths: dict[str, Any] = {"max_source_length": data.max_source_length, "prefix": data.source_prefix}
    flags = ("num_beams", "length_penalty", "num_return_sequences", "do_sample", "temperature", "top_k", "top_p")
    options = generation_options(**{flag: getattr(data, flag) for flag in flags}, max_length=data.max_target_length)
    targets: list[str] | None = None
    if data.score_targets:
        pairs = read_columns(test_file, [source, target], column_names=data.file_columns)
        sources, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    else:
        sources = read_texts(test_file, source, column_names=data.file_columns)
    model, tokenizer = load_predictor(AutoModelForSeq2SeqLM, run.model)
    model.to(args.device)
    first, overwrite = PartialState().is_main_process, data.overwrite_output_file
    size = args.per_device_eval_batch_size
    if targets is not None:
        limit = data.max_target_length
        scores, counts = score_texts(
            model, tokenizer, sources, targets, batch_size=size, max_target_length=limit, **lengths
        )
        if first:
            write_scores(output_file, scores, overwrite=overwrite)
        summary = f"perplexity per token {perplexity(scores):.4g}" if scores else "no rows"
    else:
        lengths |= {"scores": output_file.lower().endswith((".tsv", ".jsonl")), "seed": args.seed}
        lengths |= {"replace_unknown": data.replace_unknown}
        nbest, counts = decode_texts(model, tokenizer, sources, batch_size=size, **lengths, **options)
        if first:
            write_predictions(output_file, nbest, overwrite=overwrite)
        summary = f"sampled with seed {args.seed}" if data.do_sample else f"beam {options['num_beams']}"
    run.log(_summary(output_file, len(sources), counts, summary))


def classify_file(run: Run, column: str) -> None:
    """Classify each text in `--test_file` and write `--output_file`.

    Args:
        run: The run, with flags for model and files.
        column: Text column.

    Raises:
        InputError: A flag, a file or the model is invalid; nothing is written.
    """
    data, args = run.data, run.args
    test_file, output_file = _files(run)
    if data.text_pair_column is None:
        texts: Sequence[Any] = read_texts(test_file, column, column_names=data.file_columns)
    else:
        texts = read_columns(test_file, [column, data.text_pair_column], column_names=data.file_columns)
    model, tokenizer = load_predictor(AutoModelForSequenceClassification, run.model)
    model.to(args.device)
    separator = ", " if data.label_separator is None else data.label_separator
    size, length = args.per_device_eval_batch_size, data.max_length
    decisions, counts = classify_texts(
        model, tokenizer, texts, batch_size=size, max_length=length, separator=separator
    )
    if PartialState().is_main_process:
        write_decisions(output_file, decisions, overwrite=data.overwrite_output_file)
    regression = problem_of(model.config) == "regression"
    kind = "numbers" if regression else f"{len(model.config.id2label or ())} classes"
    run.log(_summary(output_file, len(texts), counts, kind))


def predict_file(run: Run) -> None:
    """Predict a file for a fine-tuning task, with `classify_file` or `generate_file`.

    Raises:
        InputError: The task is not supported, or a flag, a file or the model is invalid.
    """
    data = run.data
    if data.task == "classification":
        return classify_file(run, data.text_column or "text")
    if data.task == "seq2seq":
        return generate_file(run, data.text_column or "document", data.label_column or "summary")
    raise InputError(f"--output_file does not support --task {data.task}; load the model in a pipeline")


def _files(run: Run, num_return_sequences: int = 1) -> tuple[str, str]:
    """Validate and return the input and output file names."""
    if run.args.do_train or not run.args.do_predict:
        raise InputError("--output_file requires --do_predict without --do_train")
    if run.data.test_file is None:
        raise InputError("--output_file requires --test_file, the texts to predict")
    name, overwrite = str(run.data.output_file), run.data.overwrite_output_file
    check_output_file(name, overwrite=overwrite, num_return_sequences=num_return_sequences)
    return run.data.test_file, name


def _summary(name: str, rows: int, counts: Mapping[str, int], summary: str) -> str:
    notes = {"empty": "empty (an empty line is written)", "cut": "longer than the limit and truncated"}
    counted = "".join(f"; {count} {notes[kind]}" for kind, count in counts.items())
    return f"{name}: {rows} texts, {summary}{counted}"

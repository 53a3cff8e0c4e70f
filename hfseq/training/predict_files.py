"""File-to-file prediction: `--do_predict --output_file` of the recipes."""

from collections.abc import Callable, Mapping
from typing import Any

from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from hfseq.errors import InputError
from hfseq.inference.classify import classify_texts
from hfseq.inference.files import (
    check_output_file,
    read_texts,
    write_decisions,
    write_predictions,
    write_recommendations,
    write_scores,
)
from hfseq.inference.generate import decode_texts, generation_options, perplexity, score_texts
from hfseq.inference.loading import problem_of
from hfseq.inference.recommend import recommend_all
from hfseq.recommenders import known_items
from hfseq.tokenization import require_items
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
    _check_files(run, data.num_return_sequences)
    flags = ("num_beams", "length_penalty", "num_return_sequences", "do_sample", "temperature", "top_k", "top_p")
    options = generation_options(**{flag: getattr(data, flag) for flag in flags}, max_length=data.max_target_length)
    second = target if data.score_targets else None
    rows = read_texts(data.test_file, source, second, column_names=data.file_columns)
    model, tokenizer = _load(run, AutoModelForSeq2SeqLM)
    limits: dict[str, Any] = {"max_source_length": data.max_source_length, "prefix": data.source_prefix}
    limits["batch_size"] = args.per_device_eval_batch_size
    if data.score_targets:
        sources, targets = [row[0] for row in rows], [row[1] for row in rows]
        limits["max_target_length"] = data.max_target_length
        scores, counts = score_texts(model, tokenizer, sources, targets, **limits)
        _write(
            run,
            write_scores,
            scores,
            counts,
            f"perplexity per token {perplexity(scores):.4g}" if scores else "no rows",
        )
    else:
        options |= {"scores": data.output_file.lower().endswith((".tsv", ".jsonl")), "seed": args.seed}
        options |= {"replace_unknown": data.replace_unknown}
        nbest, counts = decode_texts(model, tokenizer, rows, **limits, **options)
        how = f"sampled with seed {args.seed}" if data.do_sample else f"beam {options['num_beams']}"
        _write(run, write_predictions, nbest, counts, how)


def classify_file(run: Run, column: str) -> None:
    """Classify each text in `--test_file` and write `--output_file`.

    Args:
        run: The run, with flags for model and files.
        column: Text column.

    Raises:
        InputError: A flag, a file or the model is invalid; nothing is written.
    """
    data = run.data
    _check_files(run)
    texts = read_texts(data.test_file, column, data.text_pair_column, column_names=data.file_columns)
    model, tokenizer = _load(run, AutoModelForSequenceClassification)
    limits = {"batch_size": run.args.per_device_eval_batch_size, "max_length": data.max_length}
    separator = ", " if data.label_separator is None else data.label_separator
    decisions, counts = classify_texts(model, tokenizer, texts, separator=separator, **limits)
    regression = problem_of(model.config) == "regression"
    kind = "numbers" if regression else f"{len(model.config.id2label or ())} classes"
    _write(run, write_decisions, decisions, counts, kind)


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


def recommend_file(run: Run) -> None:
    """Recommend items after each history in `--test_file` and write `--output_file`.

    Raises:
        InputError: A flag, a file or the model is invalid; nothing is written.
    """
    data = run.data
    _check_files(run, data.top_k, "top_k")
    sessions = data.read_file(data.test_file, "--test_file")
    model, tokenizer = _load(run, AutoModelForCausalLM)
    require_items(tokenizer)
    histories, unknown = known_items(tokenizer, [session.items for session in sessions])
    if unknown and not any(histories):
        raise InputError(
            f"--test_file {data.test_file}: the model knows none of its items; give histories of items that it was "
            "trained on"
        )
    options = {"top_k": data.top_k, "filter_seen": data.filter_seen, "max_length": data.max_length}
    found = recommend_all(model, tokenizer, histories, batch_size=run.args.per_device_eval_batch_size, **options)
    users = [session.user for session in sessions]
    if PartialState().is_main_process:
        write_recommendations(data.output_file, users, found, overwrite=data.overwrite_output_file)
    notes = f"; {unknown} items that the model does not know left out of them" if unknown else ""
    seen = "without" if data.filter_seen else "including"
    # Fewer than --top_k where the model has fewer items, or has only so many that are not in the history.
    fewest, most = min(map(len, found)), max(map(len, found))
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    run.log(f"{data.output_file}: {number} items for {len(users)} histories, {seen} those of the history{notes}")


def _check_files(run: Run, num_return_sequences: int = 1, flag: str = "num_return_sequences") -> None:
    """Validate the names of the input and the output file; arguments as for `check_output_file`."""
    if run.args.do_train or not run.args.do_predict:
        raise InputError("--output_file requires --do_predict without --do_train")
    if run.data.test_file is None:
        raise InputError("--output_file requires --test_file, the texts to predict")
    overwrite = run.data.overwrite_output_file
    check_output_file(run.data.output_file, overwrite=overwrite, num_return_sequences=num_return_sequences, flag=flag)


def _load(run: Run, auto_class: Any) -> tuple[Any, Any]:
    """Return the model, on its device, and its tokenizer."""
    model, tokenizer = load_predictor(auto_class, run.model)
    return model.to(run.args.device), tokenizer


def _write(run: Run, write: Callable[..., None], outputs: list[Any], counts: Mapping[str, int], summary: str) -> None:
    """Write the output of each row on the main process, and log a summary."""
    name, overwrite = run.data.output_file, run.data.overwrite_output_file
    if PartialState().is_main_process:
        write(name, outputs, overwrite=overwrite)
    notes = {"empty": "empty (an empty line is written)", "cut": "longer than the limit and truncated"}
    counted = "".join(f"; {count} {notes[kind]}" for kind, count in counts.items())
    run.log(f"{name}: {len(outputs)} texts, {summary}{counted}")

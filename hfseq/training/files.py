"""Predicting from file to file: what `--do_predict --output_file` does in the recipes."""

from collections.abc import Callable, Mapping
from typing import Any

from accelerate import PartialState
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hfseq.errors import InputError
from hfseq.inference.ensembles import load_ensemble
from hfseq.inference.prediction import (
    check_output_file,
    classify_texts,
    decode_texts,
    generation_options,
    perplexity,
    read_texts,
    score_texts,
    write_decisions,
    write_predictions,
    write_scores,
)
from hfseq.training.arguments import (
    DataArguments,
    DecodingArguments,
    ModelArguments,
    RecipeArguments,
    TaskArguments,
)
from hfseq.training.loading import load_trained


def load_predictor(auto_class: Any, args: ModelArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the trained model, or the ensemble, that the flags name.

    Args:
        auto_class: `AutoModelForSeq2SeqLM` or `AutoModelForSequenceClassification`.
        args: The flags.

    Raises:
        InputError: If none is named, or as `load_trained` and `load_ensemble`.
    """
    check_model(args, train=False)
    if args.ensemble:
        return load_ensemble([str(args.model_name_or_path), *args.ensemble], auto_class)
    return load_trained(auto_class, args)


def check_model(args: ModelArguments, *, train: bool) -> None:
    """Refuse to train an ensemble, and to predict without a trained model.

    Raises:
        InputError: If that was asked for.
    """
    if train and args.ensemble:
        raise InputError("--ensemble is for prediction: give --do_predict alone, or train its members one by one")
    if not train and args.model_name_or_path is None:
        raise InputError("--do_predict without --do_train needs a trained model: give --model_name_or_path")


def generate_file(
    model_args: ModelArguments,
    data_args: DecodingArguments,
    args: RecipeArguments,
    source: str,
    target: str,
    say: Callable[..., Any],
) -> None:
    """Generate a text for each source of `--test_file`, or score its targets, into `--output_file`.

    Args:
        model_args: Which model, or ensemble.
        data_args: Which files, and how to decode.
        args: Where it runs, and how many rows at once.
        source: The column of the sources.
        target: That of the targets, read only to be scored.
        say: Prints, on the first process.

    Raises:
        InputError: If flags, files or models are not what is needed; nothing is written then.
    """
    test_file, output_file = _files(data_args, args, data_args.num_return_sequences)
    lengths: dict[str, Any] = {"max_source_length": data_args.max_source_length, "prefix": data_args.source_prefix}
    column_names = data_args.file_columns
    options = generation_options(
        num_beams=data_args.num_beams,
        length_penalty=data_args.length_penalty,
        num_return_sequences=data_args.num_return_sequences,
        do_sample=data_args.do_sample,
        temperature=data_args.temperature,
        top_k=data_args.top_k,
        top_p=data_args.top_p,
        max_length=data_args.max_target_length,
    )
    sources = read_texts(test_file, source, column_names=column_names)
    targets = read_texts(test_file, target, column_names=column_names) if data_args.score_targets else None
    model, tokenizer = load_predictor(AutoModelForSeq2SeqLM, model_args)
    model.to(args.device)  # type: ignore[arg-type]
    first, overwrite = PartialState().is_main_process, data_args.overwrite_output_file
    size = args.per_device_eval_batch_size
    if targets is not None:
        limit = data_args.max_target_length
        scores, counts = score_texts(
            model, tokenizer, sources, targets, batch_size=size, max_target_length=limit, **lengths
        )
        if first:
            write_scores(output_file, scores, overwrite=overwrite)
        summary = f"perplexity of a token {perplexity(scores):.4g}" if scores else "no rows"
    else:
        suffix = output_file.rpartition(".")[2].lower()
        nbest, counts = decode_texts(
            model,
            tokenizer,
            sources,
            batch_size=size,
            scores=suffix in ("tsv", "jsonl"),
            replace_unknown=data_args.replace_unknown,
            seed=args.seed,
            **lengths,
            **options,
        )
        if first:
            write_predictions(output_file, nbest, overwrite=overwrite)
        summary = f"beam {options['num_beams']}" if not data_args.do_sample else f"drawn with seed {args.seed}"
    say(_told(output_file, len(sources), counts, summary))


def classify_file(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: RecipeArguments,
    text: str,
    *,
    max_length: int,
    separator: str | None,
    say: Callable[..., Any],
) -> None:
    """Classify each text of `--test_file` into `--output_file`.

    Args:
        model_args: Which model, or ensemble.
        data_args: Which files.
        args: Where it runs, and how many rows at once.
        text: The column of the texts.
        max_length: Tokens of a text; the rest of it is cut off.
        separator: Between the classes of a text, where several may hold; None for a comma.
        say: Prints, on the first process.

    Raises:
        InputError: If flags, files or models are not what is needed; nothing is written then.
    """
    test_file, output_file = _files(data_args, args)
    texts = read_texts(test_file, text, column_names=data_args.file_columns)
    model, tokenizer = load_predictor(AutoModelForSequenceClassification, model_args)
    model.to(args.device)  # type: ignore[arg-type]
    decisions, counts = classify_texts(
        model,
        tokenizer,
        texts,
        batch_size=args.per_device_eval_batch_size,
        max_length=max_length,
        separator=", " if separator is None else separator,
    )
    if PartialState().is_main_process:
        write_decisions(output_file, decisions, overwrite=data_args.overwrite_output_file)
    say(_told(output_file, len(texts), counts, f"{len(model.config.id2label or ())} classes"))


def predict_file(
    model_args: ModelArguments, data_args: TaskArguments, args: RecipeArguments, say: Callable[..., Any]
) -> None:
    """What `--output_file` does for a task of fine-tuning: `classify_file` or `generate_file`.

    Raises:
        InputError: As they do, and for another task.
    """
    if data_args.task == "classification":
        column = data_args.text_column or "text"
        options: dict[str, Any] = {"max_length": data_args.max_length, "separator": data_args.label_separator}
        return classify_file(model_args, data_args, args, column, say=say, **options)
    if data_args.task == "seq2seq":
        columns = (data_args.text_column or "document", data_args.label_column or "summary")
        return generate_file(model_args, data_args, args, *columns, say)
    raise InputError(f"--output_file: --task {data_args.task} does not predict files; load the model in a pipeline")


def _files(data_args: DataArguments, args: RecipeArguments, num_return_sequences: int = 1) -> tuple[str, str]:
    """The names of the file to read and of the file to write."""
    if args.do_train or not args.do_predict:
        raise InputError("--output_file goes with --do_predict, without --do_train")
    if data_args.test_file is None:
        raise InputError("--output_file needs --test_file, whose texts are predicted")
    output_file = str(data_args.output_file)
    overwrite = data_args.overwrite_output_file
    check_output_file(output_file, overwrite=overwrite, num_return_sequences=num_return_sequences)
    return data_args.test_file, output_file


def _told(name: str, rows: int, counts: Mapping[str, int], summary: str) -> str:
    what = {"empty": "empty, with an empty line", "cut": "longer than the limit and cut"}
    notes = "".join(f"; {count} {what[kind]}" for kind, count in counts.items())
    return f"{name}: {rows} texts, {summary}{notes}"

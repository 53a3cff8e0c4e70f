"""Train a classifier of texts with the Trainer: from scratch (LSTM, GRU, RNN, CNN) or from any checkpoint.

    python recipes/sentiment.py

trains on the embedded reviews, which are synthetic (a grammar in which word order decides), as
configs/sentiment_demo.yaml says. Your own data, with every flag of transformers' TrainingArguments; a YAML file may
come first:

    python recipes/sentiment.py recipes/configs/sentiment_sst2.yaml --train_file data/train.tsv \
        --validation_file data/dev.tsv --test_file data/test.tsv --column_names text,label --output_dir outputs/sst2

Two classes or many; several at once where a row holds a list, or names with --label_separator between them. A trained
model, or several with --ensemble, classifies a file with --do_predict --test_file texts.txt --output_file classes.tsv;
--hp_search 20 searches the hp_space of the YAML file; --streaming reads data larger than memory.
"""

from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from hfseq.data.collation import CheckedCollator
from hfseq.data.embedded.reviews import review_rows
from hfseq.data.labels import encode_labels, row_classes
from hfseq.data.streaming import encode_stream_labels, tokenizer_texts
from hfseq.data.token_budget import check_budget
from hfseq.errors import InputError, require
from hfseq.training.arguments import DATA_FLAGS, ClassArguments, ClassificationArguments, ModelArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.classification import (
    class_names,
    class_weights,
    classification_loss,
    decide,
    encode_classified,
    first_output,
    label_array,
    majority,
    score_classes,
    write_class_reports,
)
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run, with_default_config
from hfseq.training.curves import CurveWarnings
from hfseq.training.files import check_model, classify_file, load_predictor
from hfseq.training.hub import publish_run
from hfseq.training.lengths import LengthScores, sample_split
from hfseq.training.loading import checkpoint_classes, load_model
from hfseq.training.results import compare, examples, save_results
from hfseq.training.search import parse_space, report_search, search
from hfseq.training.trainer import SequenceTrainer

DEMO = Path(__file__).parent / "configs" / "sentiment_demo.yaml"
KINDS = (ModelArguments, ClassArguments, ClassificationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--model_name_or_path", *DATA_FLAGS))
    model_args, data_args, args = parse_config(KINDS, argv)
    train, predict = args.do_train or not args.do_predict, args.do_predict or not args.do_train
    text, label, separator = data_args.text_column, data_args.label_column, data_args.label_separator
    say = partial(PartialState().print, flush=True)  # on the first process only
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    if data_args.output_file is not None:
        options = {"max_length": data_args.max_length, "separator": separator}
        return classify_file(model_args, data_args, args, text, say=say, **options)
    require("matplotlib", "sklearn", extra="train", use="this recipe")
    check_model(model_args, train=train)
    streaming = data_args.streaming and train
    if streaming:
        args.evaluate_by_steps()
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = None if args.hp_search else find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    set_seed(args.seed)

    # 2. Data: texts, and their classes as numbers.
    parts = args.world_size * max(1, args.dataloader_num_workers)
    reading = {"train": train, "seed": args.seed, "label_columns": (label,), "num_parts": parts}
    reading["classes"] = partial(row_classes, column=label, separator=separator)
    splits = data_args.read((text, label), review_rows, **reading)
    known = checkpoint_classes(model_args)
    encode = encode_stream_labels if streaming else encode_labels
    splits, names = encode(splits, label, names=known, replace_names=train, separator=separator)
    class_numbers = {name: label_array(rows) for name, rows in splits.items()}
    several = next(iter(class_numbers.values())).ndim == 2
    counts = ", ".join(f"{len(numbers)} {name}" for name, numbers in class_numbers.items())
    say(f"{counts} texts of {len(names)} classes: {shorten(', '.join(names), 300)}")
    weights = class_weights(data_args.class_weights, class_numbers["train"], names) if train else None
    if several and args.label_smoothing_factor:
        raise InputError("--label_smoothing_factor is for one class a row; these rows may have several")

    # 3. Model and tokenizer. What a checkpoint knows of other classes gives way to a new output layer.
    if known is not None and names != known:
        say(f"{model_args.model_name_or_path} knows other classes: {', '.join(known)}; its output layer is new")
    make_model = partial(
        load_model,
        AutoModelForSequenceClassification,
        model_args,
        tokenizer_texts(splits["train"], (text,)) if train else None,
        default_type="hfseq_lstm",
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        problem_type="multi_label_classification" if several else "single_label_classification",
    )
    model, tokenizer = make_model() if train else load_predictor(AutoModelForSequenceClassification, model_args)
    say(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    space = parse_space(args.hp_space, args, model.config, max_tokens=data_args.max_tokens) if args.hp_search else {}

    # 4. Encoding; some training rows are scored beside the validation rows, by their length.
    if train:
        splits["train_sample"] = sample_split(splits["train"], len(splits["validation"]), args.seed)
    encoded, lengths, notes = encode_classified(splits, tokenizer, text, max_length=data_args.max_length)
    for note in notes:
        say(note)
    if train:
        check_budget(encoded["train"], data_args.max_tokens, args.world_size)

    # 5. Training, or a search for the best way to train.
    prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    patience = data_args.early_stopping_patience

    def loss(output: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        smoothing = args.label_smoothing_factor
        return classification_loss(
            output.logits, labels, weights=weights, label_smoothing=smoothing, count=num_items_in_batch
        )

    def score(output: Any) -> dict[str, float]:
        return score_classes(decide(output.predictions, several=several), output.label_ids)

    trainer = SequenceTrainer(
        model=model,
        args=args,
        train_dataset=encoded.get("train"),
        eval_dataset=encoded.get("validation", encoded.get("test")),
        processing_class=tokenizer,
        data_collator=CheckedCollator(DataCollatorWithPadding(tokenizer), model),
        compute_loss_func=loss,
        compute_metrics=score,
        preprocess_logits_for_metrics=first_output,
        callbacks=[EarlyStoppingCallback(patience)] if patience else None,
        max_tokens=data_args.max_tokens,
    )
    if args.hp_search:
        new = partial(make_model, tokenizer=tokenizer)
        trials = search(
            trainer, lambda fields: new(overrides=fields)[0], space, n_trials=args.hp_search, resume=resume, say=say
        )
        return say(report_search(trials, args, KINDS, argv))
    if train:
        trainer.add_callback(CurveWarnings())
        by_length = {"score": lambda split, rows, output: score(output)["accuracy"], "say": say}
        trainer.add_callback(LengthScores(trainer, encoded["train_sample"], lengths, "accuracy", **by_length))
        say(trainer.describe_batches())
        trainer.train_and_save(checkpoint, args.average_checkpoints, say)
    if not predict:
        return

    # 6. The final test, beside the most frequent class.
    name = "test" if "test" in encoded else "validation"
    output = trainer.predict(encoded[name], metric_key_prefix=name)
    decisions = decide(output.predictions, several=several)
    rows = splits[name]
    kinds = rows["kind"] if "kind" in rows.column_names else None
    systems = {"model": decisions}
    if train:
        systems["majority"] = majority(class_numbers["train"], len(rows))
    results, table = compare(score_classes, systems, class_numbers[name], kinds=kinds, kind_metric="accuracy")

    # 7. Reports.
    if trainer.is_world_process_zero():
        save_results(args.output_dir, {f"{name}_{key}": value for key, value in results.items()})
        log = trainer.state.log_history
        write_class_reports(args.output_dir, log, rows[text], class_numbers[name], decisions, names)
        print(f"\n{name}: {len(rows)} texts\n{table}\n\n{examples(rows[text], class_names(decisions, names))}\n")
        print(f"model, scores, samples and plots are in {args.output_dir}")
        about = {"task": "text-classification", "embedded": "synthetic reviews", "example": rows[text][0]}
        publish_run(args, KINDS, argv, splits, split=name, **about)


if __name__ == "__main__":
    run(main)

"""Train a classifier of texts with the Trainer: from scratch (LSTM, GRU, RNN, CNN) or from any checkpoint.

    python recipes/sentiment.py

trains on the embedded reviews, which are synthetic (a grammar in which word order decides), as
configs/sentiment_demo.yaml says. Your own data, with every flag of transformers' TrainingArguments; a YAML file may
come first:

    python recipes/sentiment.py recipes/configs/sentiment_sst2.yaml --train_file data/train.tsv \
        --validation_file data/dev.tsv --test_file data/test.tsv --column_names text,label --output_dir outputs/sst2

Two classes or many; several at once where a row holds a list, or names with --label_separator between them.
"""

from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
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
from hfseq.data.errors import InputError
from hfseq.data.labels import encode_labels
from hfseq.data.reviews import review_rows
from hfseq.data.sampler import TokenBudgetBatchSampler, row_lengths
from hfseq.training.arguments import DATA_FLAGS, ClassArguments, ClassificationArguments, ModelArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.classification import (
    class_names,
    class_weights,
    classification_loss,
    decide,
    encode_classified,
    majority,
    score_classes,
    write_class_reports,
)
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run, with_default_config
from hfseq.training.models import checkpoint_classes, load_model
from hfseq.training.results import compare, examples, save_results
from hfseq.training.trainer import SequenceTrainer

DEMO = Path(__file__).parent / "configs" / "sentiment_demo.yaml"


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--model_name_or_path", *DATA_FLAGS))
    model_args, data_args, args = parse_config((ModelArguments, ClassArguments, ClassificationArguments), argv)
    train, predict = args.do_train or not args.do_predict, args.do_predict or not args.do_train
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    set_seed(args.seed)
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    say = PartialState().print  # on the first process only

    # 2. Data: texts, and their classes as numbers.
    text, label = data_args.text_column, data_args.label_column
    splits = data_args.read((text, label), review_rows, train=train, seed=args.seed, label_columns=(label,))
    known = checkpoint_classes(model_args)
    splits, names = encode_labels(splits, label, names=known, replace_names=train, separator=data_args.label_separator)
    class_numbers = {name: np.array(rows["labels"]) for name, rows in splits.items()}
    several = next(iter(class_numbers.values())).ndim == 2
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in splits.items())
    say(f"{counts} texts of {len(names)} classes: {shorten(', '.join(names), 300)}", flush=True)
    weights = class_weights(data_args.class_weights, class_numbers["train"], names) if train else None
    if several and args.label_smoothing_factor:
        raise InputError("--label_smoothing_factor is for one class a row; these rows may have several")

    # 3. Model and tokenizer. What a checkpoint knows of other classes gives way to a new output layer.
    if known is not None and names != known:
        say(f"{model_args.model_name_or_path} knows other classes: {', '.join(known)}; its output layer is new")
    model, tokenizer = load_model(
        AutoModelForSequenceClassification,
        model_args,
        splits["train"][text] if train else None,
        default_type="hfseq_lstm",
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        problem_type="multi_label_classification" if several else "single_label_classification",
    )
    say(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)

    # 4. Encoding.
    encoded, cut = encode_classified(splits, tokenizer, text, max_length=data_args.max_length)
    for name, count in cut.items():
        say(f"{name}: {count} texts are longer than --max_length and were cut")
    if train and data_args.max_tokens is not None:
        # The trainer makes its own; this one refuses a budget too small before anything is written.
        TokenBudgetBatchSampler(row_lengths(encoded["train"]), data_args.max_tokens, num_replicas=args.world_size)

    # 5. Training.
    prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    patience = data_args.early_stopping_patience

    def loss(output: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        smoothing = args.label_smoothing_factor
        return classification_loss(
            output.logits, labels, weights=weights, label_smoothing=smoothing, count=num_items_in_batch
        )

    trainer = SequenceTrainer(
        model=model,
        args=args,
        train_dataset=encoded.get("train"),
        eval_dataset=encoded.get("validation", encoded.get("test")),
        processing_class=tokenizer,
        data_collator=CheckedCollator(DataCollatorWithPadding(tokenizer), model),
        compute_loss_func=loss,
        compute_metrics=lambda output: score_classes(decide(output.predictions, several=several), output.label_ids),
        callbacks=[EarlyStoppingCallback(patience)] if patience else None,
        max_tokens=data_args.max_tokens,
    )
    if train:
        say(f"{args.world_size} process(es), {len(trainer.get_train_dataloader())} batches an epoch", flush=True)
        training = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_metrics("train", training.metrics)
        if args.push_to_hub:
            trainer.push_to_hub()
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


if __name__ == "__main__":
    run(main)

"""Train a classifier of texts with an explicit loop on Accelerate; data, model and results are those of sentiment.py.

    python recipes/sentiment_accelerate.py

takes the data and model flags of sentiment.py, and those of TrainingArguments that
hfseq.training.accelerate_loop.HONOURED names; any other is refused. Several CPU processes:

    torchrun --nproc_per_node 2 recipes/sentiment_accelerate.py --use_cpu
"""

from functools import partial
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding
from transformers.utils.logging import disable_progress_bar

from hfseq.data.collation import CheckedCollator
from hfseq.data.embedded.reviews import review_rows
from hfseq.data.labels import encode_labels, row_classes
from hfseq.data.streaming import encode_stream_labels, tokenizer_texts
from hfseq.data.token_budget import check_budget
from hfseq.errors import InputError, require
from hfseq.training.accelerate_loop import (
    Progress,
    describe_batches,
    make_loader,
    make_optimizer,
    make_schedule,
    refuse_other_fields,
    start_accelerator,
    stream_of,
)
from hfseq.training.arguments import DATA_FLAGS, ClassArguments, ClassificationArguments, ModelArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.classification import (
    class_names,
    class_weights,
    classification_loss,
    decide,
    encode_classified,
    label_array,
    majority,
    predict_logits,
    score_classes,
    write_class_reports,
)
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run, with_default_config
from hfseq.training.hub import publish_run
from hfseq.training.lengths import report_by_length, sample_split
from hfseq.training.loading import checkpoint_classes, load_model
from hfseq.training.results import compare, examples, save_results

DEMO = Path(__file__).parent / "configs" / "sentiment_demo.yaml"
KINDS = (ModelArguments, ClassArguments, ClassificationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--model_name_or_path", *DATA_FLAGS))
    model_args, data_args, args = parse_config(KINDS, argv)
    if data_args.streaming:
        args.evaluate_by_steps()
    refuse_other_fields(KINDS, argv, args, other_driver="sentiment.py", streaming=data_args.streaming)
    require("matplotlib", "sklearn", extra="train", use="this recipe")
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    accelerator = start_accelerator(args)
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    say = partial(accelerator.print, flush=True)  # on the first process only

    # 2. Data: texts, and their classes as numbers.
    text, label = data_args.text_column, data_args.label_column
    reading = {"train": True, "seed": args.seed, "label_columns": (label,), "num_parts": accelerator.num_processes}
    reading["classes"] = partial(row_classes, column=label, separator=data_args.label_separator)
    splits = data_args.read((text, label), review_rows, **reading)
    known = checkpoint_classes(model_args)
    encode = encode_stream_labels if data_args.streaming else encode_labels
    splits, names = encode(splits, label, names=known, replace_names=True, separator=data_args.label_separator)
    class_numbers = {name: label_array(rows) for name, rows in splits.items()}
    several = next(iter(class_numbers.values())).ndim == 2
    counts = ", ".join(f"{len(numbers)} {name}" for name, numbers in class_numbers.items())
    say(f"{counts} texts of {len(names)} classes: {shorten(', '.join(names), 300)}")
    weights = class_weights(data_args.class_weights, class_numbers["train"], names)
    if several and args.label_smoothing_factor:
        raise InputError("--label_smoothing_factor is for one class a row; these rows may have several")

    # 3. Model and tokenizer. What a checkpoint knows of other classes gives way to a new output layer.
    if known is not None and names != known:
        say(f"{model_args.model_name_or_path} knows other classes: {', '.join(known)}; its output layer is new")
    model, tokenizer = load_model(
        AutoModelForSequenceClassification,
        model_args,
        tokenizer_texts(splits["train"], (text,)),
        default_type="hfseq_lstm",
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        problem_type="multi_label_classification" if several else "single_label_classification",
    )
    say(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")

    # 4. Encoding and batches; some training rows are scored beside the validation rows, by their length.
    splits["train_sample"] = sample_split(splits["train"], len(splits["validation"]), args.seed)
    class_numbers["train_sample"] = label_array(splits["train_sample"])
    encoded, lengths, notes = encode_classified(splits, tokenizer, text, max_length=data_args.max_length)
    for note in notes:
        say(note)
    check_budget(encoded["train"], data_args.max_tokens, accelerator.num_processes)
    collator = CheckedCollator(DataCollatorWithPadding(tokenizer), model)
    loader = make_loader(accelerator, encoded["train"], collator, args, max_tokens=data_args.max_tokens)

    # 5. Optimizer and schedule: those of the Trainer.
    plain_model = model
    if args.activation_checkpointing:
        model.activation_checkpointing_enable()
    model, optimizer = accelerator.prepare(model, make_optimizer(model, args))
    scheduler, total_steps = make_schedule(accelerator, optimizer, args, loader)

    # 6. Training: an epoch, an evaluation, a checkpoint.
    if accelerator.is_main_process:
        prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    accelerator.wait_for_everyone()
    say(describe_batches(accelerator, loader))
    progress = Progress(accelerator, args, total_steps=total_steps, patience=data_args.early_stopping_patience)
    if checkpoint is not None:
        progress.resume(checkpoint, stream_of(loader))
    loss_options = {"weights": weights, "label_smoothing": args.label_smoothing_factor}

    def predict(name: str) -> np.ndarray:
        return predict_logits(plain_model, encoded[name], collator, batch_size=args.per_device_eval_batch_size)

    def evaluate() -> dict[str, float]:
        logits, labels = predict("validation"), class_numbers["validation"]
        decisions = decide(logits, several=several)
        train_sample = decide(predict("train_sample"), several=several)
        sides = (
            (lengths["train_sample"], train_sample, class_numbers["train_sample"]),
            (lengths["validation"], decisions, labels),
        )
        progress.say(report_by_length("accuracy", score_classes, *sides))
        loss = classification_loss(torch.tensor(logits), torch.tensor(labels), **loss_options)
        return score_classes(decisions, labels) | {"loss": loss.item()}

    while not progress.done:
        model.train()
        for batches in progress.steps(loader):
            # The loss is a mean over the labels of the whole step, on all processes.
            count = torch.tensor(sum(batch["labels"].numel() for batch in batches), device=accelerator.device)
            count = accelerator.reduce(count, "sum") / accelerator.num_processes
            for batch in batches:
                labels = batch.pop("labels")
                with accelerator.autocast():
                    logits = model(**batch).logits
                loss = classification_loss(logits, labels, count=count, **loss_options)
                accelerator.backward(loss)
                progress.observe(loss)
            if args.max_grad_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        progress.end_epoch(model, evaluate(), stream_of(loader))
    progress.load_result(model)
    if args.average_checkpoints:
        say(f"mean of the last {args.average_checkpoints} checkpoints: accuracy {evaluate()['accuracy']:.4g}")

    # 7. The final test, beside the most frequent class.
    name = "test" if "test" in encoded else "validation"
    decisions = decide(predict(name), several=several)
    rows, right = splits[name], class_numbers[name]
    kinds_of_texts = rows["kind"] if "kind" in rows.column_names else None
    systems = {"model": decisions, "majority": majority(class_numbers["train"], len(rows))}
    results, table = compare(score_classes, systems, right, kinds=kinds_of_texts, kind_metric="accuracy")

    # 8. Reports.
    if accelerator.is_main_process:
        plain_model.save_pretrained(args.output_dir)
        tokenizer.save_pretrained(args.output_dir)
        save_results(args.output_dir, {f"{name}_{key}": value for key, value in results.items()})
        write_class_reports(args.output_dir, progress.log, rows[text], right, decisions, names)
        print(f"\n{name}: {len(rows)} texts\n{table}\n\n{examples(rows[text], class_names(decisions, names))}\n")
        print(f"model, scores, samples and plots are in {args.output_dir}")
        about = {"task": "text-classification", "embedded": "synthetic reviews", "example": rows[text][0]}
        publish_run(args, KINDS, argv, splits, split=name, **about)
    accelerator.end_training()


if __name__ == "__main__":
    run(main)

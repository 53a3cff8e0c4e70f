"""Train a classifier of texts with an explicit loop on Accelerate; data, model and results are those of sentiment.py.

    python recipes/sentiment_accelerate.py

takes the data and model flags of sentiment.py and those of TrainingArguments that hfseq.training.loop.HONOURED names;
any other is refused. Several CPU processes:

    torchrun --nproc_per_node 2 recipes/sentiment_accelerate.py --use_cpu
"""

from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, set_seed
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
    predict_logits,
    score_classes,
    write_class_reports,
)
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run, with_default_config
from hfseq.training.loop import Progress, make_optimizer, make_schedule, refuse_other_fields
from hfseq.training.models import checkpoint_classes, load_model
from hfseq.training.results import compare, examples, save_results

DEMO = Path(__file__).parent / "configs" / "sentiment_demo.yaml"


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--model_name_or_path", *DATA_FLAGS))
    kinds = (ModelArguments, ClassArguments, ClassificationArguments)
    model_args, data_args, args = parse_config(kinds, argv)
    refuse_other_fields(kinds, argv, args, other_driver="sentiment.py")
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    accelerator = Accelerator(
        cpu=args.use_cpu,
        mixed_precision="bf16" if args.bf16 else "no",
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.data_seed),
    )
    set_seed(args.seed)
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    say = accelerator.print  # on the first process only

    # 2. Data: texts, and their classes as numbers.
    text, label = data_args.text_column, data_args.label_column
    splits = data_args.read((text, label), review_rows, train=True, seed=args.seed, label_columns=(label,))
    known = checkpoint_classes(model_args)
    splits, names = encode_labels(splits, label, names=known, replace_names=True, separator=data_args.label_separator)
    class_numbers = {name: np.array(rows["labels"]) for name, rows in splits.items()}
    several = next(iter(class_numbers.values())).ndim == 2
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in splits.items())
    say(f"{counts} texts of {len(names)} classes: {shorten(', '.join(names), 300)}", flush=True)
    weights = class_weights(data_args.class_weights, class_numbers["train"], names)
    if several and args.label_smoothing_factor:
        raise InputError("--label_smoothing_factor is for one class a row; these rows may have several")

    # 3. Model and tokenizer. What a checkpoint knows of other classes gives way to a new output layer.
    if known is not None and names != known:
        say(f"{model_args.model_name_or_path} knows other classes: {', '.join(known)}; its output layer is new")
    model, tokenizer = load_model(
        AutoModelForSequenceClassification,
        model_args,
        splits["train"][text],
        default_type="hfseq_lstm",
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        problem_type="multi_label_classification" if several else "single_label_classification",
    )
    say(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)

    # 4. Encoding and batches.
    encoded, cut = encode_classified(splits, tokenizer, text, max_length=data_args.max_length)
    for name, count in cut.items():
        say(f"{name}: {count} texts are longer than --max_length and were cut")
    collator = CheckedCollator(DataCollatorWithPadding(tokenizer), model)
    if data_args.max_tokens is None:
        batches = {"batch_size": args.per_device_train_batch_size, "shuffle": True}
    else:
        sampler = TokenBudgetBatchSampler(
            row_lengths(encoded["train"]),
            data_args.max_tokens,
            num_replicas=accelerator.num_processes,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )
        batches = {"batch_sampler": sampler}
    loader = DataLoader(encoded["train"], collate_fn=collator, **batches)

    # 5. Optimizer and schedule: those of the Trainer.
    plain_model = model
    model, optimizer, loader = accelerator.prepare(model, make_optimizer(model, args), loader)
    scheduler, total_steps = make_schedule(optimizer, args, len(loader))
    accelerator.register_for_checkpointing(scheduler)

    # 6. Training: an epoch, an evaluation, a checkpoint.
    if accelerator.is_main_process:
        prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    accelerator.wait_for_everyone()
    say(f"{accelerator.num_processes} process(es), {len(loader)} batches an epoch", flush=True)
    progress = Progress(accelerator, args, total_steps=total_steps, patience=data_args.early_stopping_patience)
    if checkpoint is not None:
        progress.resume(checkpoint)
    loss_options = {"weights": weights, "label_smoothing": args.label_smoothing_factor}
    predicting = {"collator": collator, "batch_size": args.per_device_eval_batch_size}
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
        logits = predict_logits(plain_model, encoded["validation"], **predicting)
        right = class_numbers["validation"]
        scores = score_classes(decide(logits, several=several), right)
        scores["loss"] = classification_loss(torch.tensor(logits), torch.tensor(right), **loss_options).item()
        progress.end_epoch(model, scores)
    progress.load_best()

    # 7. The final test, beside the most frequent class.
    name = "test" if "test" in encoded else "validation"
    decisions = decide(predict_logits(plain_model, encoded[name], **predicting), several=several)
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
    accelerator.end_training()


if __name__ == "__main__":
    run(main)

"""Train a summarizer with an explicit loop on Accelerate; data, model and results are those of summarization.py.

    python recipes/summarization_accelerate.py

takes the data and model flags of summarization.py and those of TrainingArguments that hfseq.training.loop.HONOURED
names; any other is refused. Several CPU processes:

    torchrun --nproc_per_node 2 recipes/summarization_accelerate.py --use_cpu
"""

from itertools import chain
from pathlib import Path
from textwrap import shorten

from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader
from transformers import AutoModelForSeq2SeqLM, set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.data.docstrings import docstring_rows
from hfseq.data.sampler import TokenBudgetBatchSampler, row_lengths
from hfseq.data.summaries import lead_n
from hfseq.training.arguments import DATA_FLAGS, ModelArguments, SummarizationArguments, SummaryArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run, with_default_config
from hfseq.training.loop import Progress, make_optimizer, make_schedule, refuse_other_fields
from hfseq.training.models import load_model
from hfseq.training.results import compare, examples, save_results
from hfseq.training.seq2seq import (
    batch_loss,
    copied_vocabulary,
    decode_outputs,
    encode_pairs,
    generate_ids,
    has_own_loss,
    make_collator,
    score_summaries,
    set_generation,
    split_references,
    validation_loss,
    write_reports,
)

DEMO = Path(__file__).parent / "configs" / "summarization_demo.yaml"


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--model_name_or_path", *DATA_FLAGS))
    kinds = (ModelArguments, SummaryArguments, SummarizationArguments)
    model_args, data_args, args = parse_config(kinds, argv)
    own = {"honoured": ("generation_num_beams", "generation_max_length"), "fixed": {"predict_with_generate": True}}
    refuse_other_fields(kinds, argv, args, other_driver="summarization.py", **own)
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

    # 2. Data: texts with one summary or several.
    source, target = data_args.text_column, data_args.summary_column
    splits = data_args.read((source, target), docstring_rows, train=True, seed=args.seed, label_columns=(target,))
    splits, references = split_references(splits, target)
    say(", ".join(f"{len(rows)} {name}" for name, rows in splits.items()), "texts with a summary", flush=True)

    # 3. Model and tokenizer.
    texts = chain(splits["train"][source], splits["train"][target])
    model, tokenizer = load_model(AutoModelForSeq2SeqLM, model_args, texts, default_type="hfseq_lstm")
    set_generation(model, data_args.num_beams, data_args.max_target_length)
    say(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)

    # 4. Encoding and batches.
    copied, prefix = copied_vocabulary(model), data_args.source_prefix
    encoded, cut = encode_pairs(
        splits,
        tokenizer,
        source,
        target,
        max_source_length=data_args.max_source_length,
        max_target_length=data_args.max_target_length,
        prefix=prefix,
        copy_vocabulary=copied,
    )
    for name, count in cut.items():
        say(f"{name}: {count} rows are longer than --max_source_length or --max_target_length and were cut")
    collator = make_collator(model, tokenizer)
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

    # 6. Training: an epoch, an evaluation by generation, a checkpoint.
    if accelerator.is_main_process:
        prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    accelerator.wait_for_everyone()
    say(f"{accelerator.num_processes} process(es), {len(loader)} batches an epoch", flush=True)
    progress = Progress(accelerator, args, total_steps=total_steps, patience=data_args.early_stopping_patience)
    if checkpoint is not None:
        progress.resume(checkpoint)
    smoothing = args.label_smoothing_factor
    loss_options = {"own": has_own_loss(plain_model, smoothing), "label_smoothing": smoothing}
    decoding = {
        "batch_size": args.per_device_eval_batch_size,
        "num_beams": args.generation_num_beams,
        "max_length": args.generation_max_length or data_args.max_target_length,
    }

    def summarize(name: str) -> list[str]:
        ids = generate_ids(plain_model, encoded[name], collator, **decoding)
        sources, limit = [prefix + text for text in splits[name][source]], data_args.max_source_length
        return decode_outputs(tokenizer, ids, sources, max_source_length=limit, copy_vocabulary=copied)

    while not progress.done:
        model.train()
        for batches in progress.steps(loader):
            # The loss is a mean over the target tokens of the whole step, on all processes.
            tokens = sum((batch["labels"] != -100).sum() for batch in batches)
            tokens = accelerator.reduce(tokens, "sum") / accelerator.num_processes
            for batch in batches:
                with accelerator.autocast():
                    loss = batch_loss(model, batch, count=tokens, **loss_options)
                accelerator.backward(loss)
                progress.observe(loss)
            if args.max_grad_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        scores = score_summaries(summarize("validation"), references["validation"])
        scores["loss"] = validation_loss(
            plain_model,
            encoded["validation"],
            collator,
            batch_size=args.per_device_eval_batch_size,
            label_smoothing=smoothing,
        )
        progress.end_epoch(model, scores)
    progress.load_best()

    # 7. The final test: with beams, beside the first sentences of each text.
    name = "test" if "test" in encoded else "validation"
    decoding["num_beams"] = data_args.num_beams
    predictions, rows = summarize(name), splits[name]
    kinds_of_texts = rows["kind"] if "kind" in rows.column_names else None
    systems = {"model": predictions, f"lead_{data_args.lead}": lead_n(rows[source], data_args.lead)}
    results, table = compare(score_summaries, systems, references[name], kinds=kinds_of_texts, kind_metric="rouge")

    # 8. Reports.
    if accelerator.is_main_process:
        plain_model.save_pretrained(args.output_dir)
        tokenizer.save_pretrained(args.output_dir)
        save_results(args.output_dir, {f"{name}_{key}": value for key, value in results.items()})
        texts = (rows[source], rows[target], predictions)
        write_reports(args.output_dir, plain_model, tokenizer, progress.log, texts, metric="rouge1", prefix=prefix)
        print(f"\n{name}: {len(rows)} texts, beam {data_args.num_beams}\n{table}\n")
        print(f"{examples([shorten(text, 200) for text in rows[source]], predictions)}\n")
        print(f"model, scores, samples and plots are in {args.output_dir}")
    accelerator.end_training()


if __name__ == "__main__":
    run(main)

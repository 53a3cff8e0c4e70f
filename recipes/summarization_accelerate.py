"""Train a summarizer with an explicit loop on Accelerate; data, model and results are those of summarization.py.

    python recipes/summarization_accelerate.py

takes the data and model flags of summarization.py, and those of TrainingArguments that
hfseq.training.accelerate_loop.HONOURED names; any other is refused. Several CPU processes:

    torchrun --nproc_per_node 2 recipes/summarization_accelerate.py --use_cpu
"""

from functools import partial
from pathlib import Path
from textwrap import shorten

from transformers import AutoModelForSeq2SeqLM
from transformers.utils.logging import disable_progress_bar

from hfseq.data.embedded.docstrings import docstring_rows
from hfseq.data.sentences import lead_n
from hfseq.data.streaming import count_rows, tokenizer_texts
from hfseq.data.token_budget import check_budget
from hfseq.errors import require
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
from hfseq.training.arguments import DATA_FLAGS, ModelArguments, SummarizationArguments, SummaryArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run, with_default_config
from hfseq.training.hub import publish_run
from hfseq.training.lengths import report_by_length, sample_split
from hfseq.training.loading import load_model
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
KINDS = (ModelArguments, SummaryArguments, SummarizationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--model_name_or_path", *DATA_FLAGS))
    model_args, data_args, args = parse_config(KINDS, argv)
    if data_args.streaming:
        args.evaluate_by_steps()
    own = {"honoured": ("generation_num_beams", "generation_max_length"), "fixed": {"predict_with_generate": True}}
    refuse_other_fields(KINDS, argv, args, other_driver="summarization.py", streaming=data_args.streaming, **own)
    require("matplotlib", "nltk", "rouge_score", extra="train", use="this recipe")
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    accelerator = start_accelerator(args)
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    say = partial(accelerator.print, flush=True)  # on the first process only

    # 2. Data: texts with one summary or several.
    source, target = data_args.text_column, data_args.summary_column
    reading = {"train": True, "seed": args.seed, "label_columns": (target,), "num_parts": accelerator.num_processes}
    splits = data_args.read((source, target), docstring_rows, **reading)
    splits, references = split_references(splits, target)
    say(f"{count_rows(splits)} texts with a summary")

    # 3. Model and tokenizer.
    texts = tokenizer_texts(splits["train"], (source, target))
    model, tokenizer = load_model(AutoModelForSeq2SeqLM, model_args, texts, default_type="hfseq_lstm")
    generation = {
        "num_beams": data_args.num_beams,
        "max_length": data_args.max_target_length,
        "length_penalty": data_args.length_penalty,
        "unknown": tokenizer.unk_token_id,  # never written: no text has it
    }
    set_generation(model, **generation)
    say(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")

    # 4. Encoding and batches; some training rows are scored beside the validation rows, by their length.
    splits["train_sample"] = sample_split(splits["train"], len(splits["validation"]), args.seed)
    references["train_sample"] = [[text] for text in splits["train_sample"][target]]
    copied, prefix = copied_vocabulary(model), data_args.source_prefix
    encoded, lengths, notes = encode_pairs(
        splits,
        tokenizer,
        source,
        target,
        max_source_length=data_args.max_source_length,
        max_target_length=data_args.max_target_length,
        prefix=prefix,
        copy_vocabulary=copied,
    )
    for note in notes:
        say(note)
    check_budget(encoded["train"], data_args.max_tokens, accelerator.num_processes)
    collator = make_collator(model, tokenizer)
    loader = make_loader(accelerator, encoded["train"], collator, args, max_tokens=data_args.max_tokens)

    # 5. Optimizer and schedule: those of the Trainer.
    plain_model = model
    if args.activation_checkpointing:
        model.activation_checkpointing_enable()
    model, optimizer = accelerator.prepare(model, make_optimizer(model, args))
    scheduler, total_steps = make_schedule(accelerator, optimizer, args, loader)

    # 6. Training: an epoch, an evaluation by generation, a checkpoint.
    if accelerator.is_main_process:
        prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    accelerator.wait_for_everyone()
    say(describe_batches(accelerator, loader))
    progress = Progress(accelerator, args, total_steps=total_steps, patience=data_args.early_stopping_patience)
    if checkpoint is not None:
        progress.resume(checkpoint, stream_of(loader))
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

    def evaluate() -> dict[str, float]:
        found = {name: summarize(name) for name in ("train_sample", "validation")}
        sides = [(lengths[name], texts, references[name]) for name, texts in found.items()]
        progress.say(report_by_length("rouge1", score_summaries, *sides))
        size = args.per_device_eval_batch_size
        loss = validation_loss(
            plain_model, encoded["validation"], collator, batch_size=size, label_smoothing=smoothing
        )
        return score_summaries(*sides[1][1:]) | {"loss": loss}

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
        progress.end_epoch(model, evaluate(), stream_of(loader))
    progress.load_result(model)
    if args.average_checkpoints:
        say(f"mean of the last {args.average_checkpoints} checkpoints: rouge1 {evaluate()['rouge1']:.4g}")

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
        log, texts = progress.log, (rows[source], rows[target], predictions)
        limits = (data_args.max_source_length, data_args.max_target_length)
        write_reports(
            args.output_dir, plain_model, tokenizer, log, texts, metric="rouge1", limits=limits, prefix=prefix
        )
        print(f"\n{name}: {len(rows)} texts, beam {data_args.num_beams}\n{table}\n")
        print(f"{examples([shorten(text, 200) for text in rows[source]], predictions)}\n")
        print(f"model, scores, samples and plots are in {args.output_dir}")
        about = {"task": "summarization", "embedded": "docstrings of Python packages", "example": rows[source][0]}
        publish_run(args, KINDS, argv, splits, split=name, **about)
    accelerator.end_training()


if __name__ == "__main__":
    run(main)

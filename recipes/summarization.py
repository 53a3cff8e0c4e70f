"""Train a summarizer with the Trainer: from scratch (LSTM, GRU, RNN, CNN) or from any sequence-to-sequence checkpoint.

    python recipes/summarization.py

trains a pointer-generator on docstrings of the installed Python packages, whose explanation becomes their first line,
as configs/summarization_demo.yaml says. Your own data, with every flag of transformers' TrainingArguments; a YAML
file may come first:

    python recipes/summarization.py recipes/configs/summarization_scitldr.yaml --train_file data/train.jsonl \
        --validation_file data/dev.jsonl --test_file data/test.jsonl --output_dir outputs/scitldr

A row may have several summaries, in a list: each is one to learn from, and the best of them counts in the scores.
"""

from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Any

from accelerate import PartialState
from transformers import AutoModelForSeq2SeqLM, EarlyStoppingCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.data.docstrings import docstring_rows
from hfseq.data.sampler import TokenBudgetBatchSampler, row_lengths
from hfseq.data.summaries import lead_n
from hfseq.training.arguments import DATA_FLAGS, ModelArguments, SummarizationArguments, SummaryArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run, with_default_config
from hfseq.training.models import load_model
from hfseq.training.results import compare, examples, save_results
from hfseq.training.seq2seq import (
    copied_vocabulary,
    decode_outputs,
    encode_pairs,
    make_collator,
    score_summaries,
    set_generation,
    split_references,
    trainer_loss,
    write_reports,
)
from hfseq.training.trainer import GenerationTrainer

DEMO = Path(__file__).parent / "configs" / "summarization_demo.yaml"


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--model_name_or_path", *DATA_FLAGS))
    model_args, data_args, args = parse_config((ModelArguments, SummaryArguments, SummarizationArguments), argv)
    train, predict = args.do_train or not args.do_predict, args.do_predict or not args.do_train
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    set_seed(args.seed)
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    say = PartialState().print  # on the first process only

    # 2. Data: texts with one summary or several.
    source, target = data_args.text_column, data_args.summary_column
    splits = data_args.read((source, target), docstring_rows, train=train, seed=args.seed, label_columns=(target,))
    splits, references = split_references(splits, target)
    say(", ".join(f"{len(rows)} {name}" for name, rows in splits.items()), "texts with a summary", flush=True)

    # 3. Model and tokenizer.
    texts = chain(splits["train"][source], splits["train"][target]) if train else None
    model, tokenizer = load_model(AutoModelForSeq2SeqLM, model_args, texts, default_type="hfseq_lstm")
    set_generation(model, data_args.num_beams, data_args.max_target_length)
    say(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)

    # 4. Encoding.
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
    if train and data_args.max_tokens is not None:
        # The trainer makes its own; this one refuses a budget too small before anything is written.
        TokenBudgetBatchSampler(row_lengths(encoded["train"]), data_args.max_tokens, num_replicas=args.world_size)
    sources = {name: [prefix + text for text in rows[source]] for name, rows in splits.items()}

    def decode(name: str, ids: Any) -> list[str]:
        limit = data_args.max_source_length
        return decode_outputs(tokenizer, ids, sources[name], max_source_length=limit, copy_vocabulary=copied)

    # 5. Training.
    prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    args.generation_max_length = args.generation_max_length or data_args.max_target_length
    patience = data_args.early_stopping_patience
    trainer = GenerationTrainer(
        model=model,
        args=args,
        train_dataset=encoded.get("train"),
        eval_dataset=encoded.get("validation", encoded.get("test")),
        processing_class=tokenizer,
        data_collator=make_collator(model, tokenizer),
        compute_loss_func=trainer_loss(model, args.label_smoothing_factor),
        compute_metrics=lambda output: score_summaries(
            decode("validation", output.predictions), references["validation"]
        ),
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

    # 6. The final test: with beams, beside the first sentences of each text.
    name = "test" if "test" in encoded else "validation"
    trainer.compute_metrics = None
    output = trainer.predict(encoded[name], metric_key_prefix=name, num_beams=data_args.num_beams)
    predictions = decode(name, output.predictions)
    rows, right = splits[name], references[name]
    kinds = rows["kind"] if "kind" in rows.column_names else None
    systems = {"model": predictions, f"lead_{data_args.lead}": lead_n(rows[source], data_args.lead)}
    results, table = compare(score_summaries, systems, right, kinds=kinds, kind_metric="rouge")

    # 7. Reports.
    if trainer.is_world_process_zero():
        save_results(args.output_dir, {f"{name}_{key}": value for key, value in results.items()})
        log, texts = trainer.state.log_history, (rows[source], rows[target], predictions)
        write_reports(args.output_dir, model, tokenizer, log, texts, metric="rouge1", prefix=prefix)
        print(f"\n{name}: {len(rows)} texts, beam {data_args.num_beams}\n{table}\n")
        print(f"{examples([shorten(text, 200) for text in rows[source]], predictions)}\n")
        print(f"model, scores, samples and plots are in {args.output_dir}")


if __name__ == "__main__":
    run(main)

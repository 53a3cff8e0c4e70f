"""Train a summarizer with the Trainer: from scratch (LSTM, GRU, RNN, CNN) or from any sequence-to-sequence checkpoint.

    python recipes/summarization.py

trains a pointer-generator on docstrings of the installed Python packages, whose explanation becomes their first line,
as configs/summarization_demo.yaml says. Your own data, with every flag of transformers' TrainingArguments; a YAML
file may come first:

    python recipes/summarization.py recipes/configs/summarization_scitldr.yaml --train_file data/train.jsonl \
        --validation_file data/dev.jsonl --test_file data/test.jsonl --output_dir outputs/scitldr

A row may have several summaries, in a list: each is one to learn from, and the best of them counts in the scores.
A trained model, or several with --ensemble, summarizes a file with --do_predict --test_file texts.txt --output_file
summaries.txt; --hp_search 20 searches the hp_space of the YAML file; --streaming reads data larger than memory.
"""

from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import datasets
from accelerate import PartialState
from transformers import AutoModelForSeq2SeqLM, EarlyStoppingCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.data.embedded.docstrings import docstring_rows
from hfseq.data.sentences import lead_n
from hfseq.data.streaming import count_rows, tokenizer_texts
from hfseq.data.token_budget import check_budget
from hfseq.errors import require
from hfseq.training.arguments import DATA_FLAGS, ModelArguments, SummarizationArguments, SummaryArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run, with_default_config
from hfseq.training.curves import CurveWarnings
from hfseq.training.files import check_model, generate_file, load_predictor
from hfseq.training.hub import publish_run
from hfseq.training.lengths import LengthScores, sample_split
from hfseq.training.loading import load_model
from hfseq.training.results import compare, examples, save_results
from hfseq.training.search import parse_space, report_search, search
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
KINDS = (ModelArguments, SummaryArguments, SummarizationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--model_name_or_path", *DATA_FLAGS))
    model_args, data_args, args = parse_config(KINDS, argv)
    train, predict = args.do_train or not args.do_predict, args.do_predict or not args.do_train
    source, target = data_args.text_column, data_args.summary_column
    say = partial(PartialState().print, flush=True)  # on the first process only
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    if data_args.output_file is not None:
        return generate_file(model_args, data_args, args, source, target, say)
    require("matplotlib", "nltk", "rouge_score", extra="train", use="this recipe")
    check_model(model_args, train=train)
    if data_args.streaming and train:
        args.evaluate_by_steps()
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = None if args.hp_search else find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    set_seed(args.seed)

    # 2. Data: texts with one summary or several.
    parts = args.world_size * max(1, args.dataloader_num_workers)
    reading = {"train": train, "seed": args.seed, "label_columns": (target,), "num_parts": parts}
    splits = data_args.read((source, target), docstring_rows, **reading)
    splits, references = split_references(splits, target)
    say(f"{count_rows(splits)} texts with a summary")

    # 3. Model and tokenizer.
    texts = tokenizer_texts(splits["train"], (source, target)) if train else None
    make_model = partial(load_model, AutoModelForSeq2SeqLM, model_args, texts, default_type="hfseq_lstm")
    model, tokenizer = make_model() if train else load_predictor(AutoModelForSeq2SeqLM, model_args)
    generation = {
        "num_beams": data_args.num_beams,
        "max_length": data_args.max_target_length,
        "length_penalty": data_args.length_penalty,
        "unknown": tokenizer.unk_token_id,  # never written: no text has it
    }
    set_generation(model, **generation)
    say(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    space = parse_space(args.hp_space, args, model.config, max_tokens=data_args.max_tokens) if args.hp_search else {}

    # 4. Encoding; some training rows are scored beside the validation rows, by their length.
    if train:
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
    if train:
        check_budget(encoded["train"], data_args.max_tokens, args.world_size)

    def decode(rows: datasets.Dataset, ids: Any) -> list[str]:
        texts, limit = [prefix + text for text in rows[source]], data_args.max_source_length
        return decode_outputs(tokenizer, ids, texts, max_source_length=limit, copy_vocabulary=copied)

    # 5. Training, or a search for the best way to train.
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
            decode(splits["validation"], output.predictions), references["validation"]
        ),
        callbacks=[EarlyStoppingCallback(patience)] if patience else None,
        max_tokens=data_args.max_tokens,
    )
    if args.hp_search:

        def new_model(overrides: dict[str, Any]) -> Any:
            new, _ = make_model(tokenizer=tokenizer, overrides=overrides)
            set_generation(new, **generation)
            trainer.compute_loss_func = trainer_loss(new, args.label_smoothing_factor)
            return new

        trials = search(trainer, new_model, space, n_trials=args.hp_search, resume=resume, say=say)
        return say(report_search(trials, args, KINDS, argv))
    if train:
        trainer.add_callback(CurveWarnings())

        def rouge(split: str, rows: list[int], output: Any) -> float:
            name = "train_sample" if split == "train" else split
            right = [references[name][row] for row in rows]
            return score_summaries(decode(splits[name].select(rows), output.predictions), right)["rouge1"]

        trainer.add_callback(LengthScores(trainer, encoded["train_sample"], lengths, "rouge1", rouge, say))
        say(trainer.describe_batches())
        trainer.train_and_save(checkpoint, args.average_checkpoints, say)
    if not predict:
        return

    # 6. The final test: with beams, beside the first sentences of each text.
    name = "test" if "test" in encoded else "validation"
    trainer.compute_metrics = None
    output = trainer.predict(encoded[name], metric_key_prefix=name, num_beams=data_args.num_beams)
    rows, right = splits[name], references[name]
    predictions = decode(rows, output.predictions)
    kinds = rows["kind"] if "kind" in rows.column_names else None
    systems = {"model": predictions, f"lead_{data_args.lead}": lead_n(rows[source], data_args.lead)}
    results, table = compare(score_summaries, systems, right, kinds=kinds, kind_metric="rouge")

    # 7. Reports.
    if trainer.is_world_process_zero():
        save_results(args.output_dir, {f"{name}_{key}": value for key, value in results.items()})
        log, texts = trainer.state.log_history, (rows[source], rows[target], predictions)
        limits = (data_args.max_source_length, data_args.max_target_length)
        write_reports(args.output_dir, model, tokenizer, log, texts, metric="rouge1", limits=limits, prefix=prefix)
        print(f"\n{name}: {len(rows)} texts, beam {data_args.num_beams}\n{table}\n")
        print(f"{examples([shorten(text, 200) for text in rows[source]], predictions)}\n")
        print(f"model, scores, samples and plots are in {args.output_dir}")
        about = {"task": "summarization", "embedded": "docstrings of Python packages", "example": rows[source][0]}
        publish_run(args, KINDS, argv, splits, split=name, **about)


if __name__ == "__main__":
    run(main)

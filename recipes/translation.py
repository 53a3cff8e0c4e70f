"""Train a translator with the Trainer: from scratch (LSTM, GRU, RNN) or from any sequence-to-sequence checkpoint.

    python recipes/translation.py

trains on the embedded pairs (dates, amounts, names … from Babel's localisation data), as configs/translation_demo.yaml
says. Your own data, with every flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/translation.py recipes/configs/translation_multi30k.yaml --train_file data/train \
        --validation_file data/val --test_file data/test --source_lang de --target_lang en --output_dir outputs/de-en
"""

from functools import partial
from pathlib import Path

from accelerate import PartialState
from transformers import DataCollatorForSeq2Seq, EarlyStoppingCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.data.cldr import cldr_pairs
from hfseq.data.collation import CheckedCollator
from hfseq.data.errors import InputError
from hfseq.data.reading import hold_out_validation, read_splits
from hfseq.data.sampler import TokenBudgetBatchSampler, row_lengths
from hfseq.training.arguments import ModelArguments, PairArguments, RecipeArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run, with_default_config
from hfseq.training.seq2seq import (
    decode_ids,
    encode_pairs,
    load_model,
    save_results,
    score,
    set_generation,
    summarize_scores,
    write_reports,
)
from hfseq.training.trainer import SequenceTrainer

DEMO = Path(__file__).parent / "configs" / "translation_demo.yaml"
DATA_FLAGS = ("--dataset_name", "--train_file", "--validation_file", "--test_file")


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--model_name_or_path", *DATA_FLAGS))
    model_args, data_args, args = parse_config((ModelArguments, PairArguments, RecipeArguments), argv)
    train, predict = args.do_train or not args.do_predict, args.do_predict or not args.do_train
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    set_seed(args.seed)
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    say = PartialState().print  # on the first process only

    # 2. Data: pairs of texts in the columns `source_lang` and `target_lang`.
    source, target = data_args.source_lang, data_args.target_lang
    if not any((data_args.dataset_name, data_args.train_file, data_args.validation_file, data_args.test_file)):
        splits = cldr_pairs(source, target)
    else:
        splits = read_splits(
            columns=(source, target),
            dataset_name=data_args.dataset_name,
            dataset_config_name=data_args.dataset_config_name,
            train_file=data_args.train_file,
            validation_file=data_args.validation_file,
            test_file=data_args.test_file,
            column_names=data_args.column_names.split(",") if data_args.column_names else None,
            moses=True,
        )
    if train:
        splits = hold_out_validation(splits, seed=args.seed)
    elif "test" in splits:
        splits = {"test": splits["test"]}
    else:
        raise InputError("--do_predict without --do_train needs --test_file, or a data set with a test split")
    say(", ".join(f"{len(rows)} {name}" for name, rows in splits.items()), f"pairs {source} → {target}", flush=True)

    # 3. Model and tokenizer.
    model, tokenizer = load_model(model_args, splits.get("train"), (source, target))
    set_generation(model, data_args.num_beams, data_args.max_target_length)
    say(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)

    # 4. Encoding.
    encoded = {}
    for name, rows in splits.items():
        encoded[name], cut = encode_pairs(
            rows,
            tokenizer,
            source,
            target,
            max_source_length=data_args.max_source_length,
            max_target_length=data_args.max_target_length,
            prefix=data_args.source_prefix,
        )
        if cut:
            say(f"{name}: {cut} pairs are longer than --max_source_length or --max_target_length and were cut")
    if train and data_args.max_tokens is not None:
        # The trainer makes its own; this one refuses a budget too small before anything is written.
        TokenBudgetBatchSampler(row_lengths(encoded["train"]), data_args.max_tokens, num_replicas=args.world_size)

    # 5. Training.
    prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    args.generation_max_length = args.generation_max_length or data_args.max_target_length
    patience = data_args.early_stopping_patience
    decode = partial(decode_ids, tokenizer)
    trainer = SequenceTrainer(
        model=model,
        args=args,
        train_dataset=encoded.get("train"),
        eval_dataset=encoded.get("validation", encoded.get("test")),
        processing_class=tokenizer,
        data_collator=CheckedCollator(DataCollatorForSeq2Seq(tokenizer, model=model), model),
        compute_metrics=lambda output: score(decode(output.predictions), decode(output.label_ids)),
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

    # 6. The final test: with beams, beside the source copied.
    name = "test" if "test" in encoded else "validation"
    output = trainer.predict(encoded[name], metric_key_prefix=name, num_beams=data_args.num_beams)
    predictions = decode(output.predictions)
    rows = splits[name]
    kinds = rows["kind"] if "kind" in rows.column_names else None
    results, table = summarize_scores(rows[source], rows[target], predictions, kinds)

    # 7. Reports.
    if trainer.is_world_process_zero():
        save_results(args.output_dir, {f"{name}_{key}": value for key, value in results.items()})
        texts = (rows[source], rows[target], predictions)
        write_reports(args.output_dir, model, tokenizer, trainer.state.log_history, texts, data_args.source_prefix)
        print(f"\n{name}: {len(rows)} pairs, beam {data_args.num_beams}\n{table}\n")
        print(f"model, scores, samples and plots are in {args.output_dir}")


if __name__ == "__main__":
    run(main)

"""Fine-tune any checkpoint, of hfseq or a pretrained Transformer, to another task or domain, with the Trainer.

    python recipes/finetuning.py

does on the embedded, synthetic reviews what Howard & Ruder 2018 (ULMFiT) do with an LSTM: first a language model that
reads them without their classes (configs/finetuning_demo_lm.yaml), then a classifier that starts from it and learns
from a few hundred of them, a layer more each epoch (configs/finetuning_demo.yaml). Your own model and data, with every
flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/finetuning.py --task classification --model_name_or_path bert-base-uncased --method lora \
        --learning_rate 5e-4 --train_file data/train.csv --test_file data/test.csv --output_dir outputs/tuned

Tasks: classification, tagging, language_modeling, seq2seq. Methods: all weights, the head alone, gradual unfreezing
with a learning rate for each layer, LoRA adapters. --model_type hfseq_lstm in place of --model_name_or_path trains
from scratch, to compare. A classifier or sequence-to-sequence model predicts a file with --do_predict --output_file.
"""

from functools import partial
from pathlib import Path
from textwrap import shorten

from accelerate import PartialState
from transformers import EarlyStoppingCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.data.token_budget import check_budget
from hfseq.errors import InputError, require
from hfseq.training.arguments import FinetuningArguments, ModelArguments, TaskArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run
from hfseq.training.curves import CurveWarnings
from hfseq.training.files import check_model, load_predictor, predict_file
from hfseq.training.finetuning import (
    GradualUnfreezing,
    apply_method,
    check_method,
    count_trainable,
    method_groups,
    method_schedule,
    runs_of,
)
from hfseq.training.hub import publish_run
from hfseq.training.lengths import LengthScores
from hfseq.training.loading import checkpoint_classes, load_with_new
from hfseq.training.results import compare, examples, save_results
from hfseq.training.search import parse_space, report_search, search
from hfseq.training.tasks import TASKS
from hfseq.training.trainer import GenerationTrainer

CONFIGS = Path(__file__).parent / "configs"
DEMO = (CONFIGS / "finetuning_demo_lm.yaml", CONFIGS / "finetuning_demo.yaml")
KINDS = (ModelArguments, TaskArguments, FinetuningArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process; without any, both demos."""
    for flags in runs_of(argv, DEMO, KINDS):
        tune(flags)


def tune(argv: list[str]) -> None:
    """Fine-tune once."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    model_args, data_args, args = parse_config(KINDS, argv)
    train, predict = args.do_train or not args.do_predict, args.do_predict or not args.do_train
    say = partial(PartialState().print, flush=True)  # on the first process only
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    if data_args.output_file is not None:
        return predict_file(model_args, data_args, args, say)
    check_model(model_args, train=train)
    check_method(data_args, args.average_checkpoints)
    args.choose_metric(data_args.task)
    require(*TASKS[data_args.task].packages, extra="train", use="this recipe")
    if train and data_args.streaming:
        args.evaluate_by_steps()
    if train and model_args.model_name_or_path is None and model_args.model_type is None:
        raise InputError("give --model_name_or_path, a checkpoint to fine-tune, or --model_type to train from scratch")
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = None if args.hp_search else find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    set_seed(args.seed)

    # 2. Data: the rows of the task.
    parts = args.world_size * max(1, args.dataloader_num_workers)
    known = checkpoint_classes(model_args)
    task = TASKS[data_args.task](data_args, args, known, train=train, num_parts=parts)
    say(task.describe())
    classes = list(task.fields.get("id2label", {}).values())
    if known is not None and classes and classes != known:
        say(f"{model_args.model_name_or_path} knows other classes: {', '.join(known)}; its output layer is new")

    # 3. Model and tokenizer, and what of the model trains.
    make_model = partial(
        load_with_new,
        task.auto_class,
        model_args,
        task.texts() if train else None,
        default_type="",
        **task.fields,
    )
    if train:
        model, tokenizer, new = make_model()
        task.encode(model, tokenizer, say)
        if args.hp_search:
            space = parse_space(args.hp_space, args, model.config, max_tokens=data_args.max_tokens)
        model = apply_method(model, data_args, new)
        check_budget(task.encoded["train"], data_args.max_tokens, args.world_size)
    else:
        model, tokenizer = load_predictor(task.auto_class, model_args)
        task.encode(model, tokenizer, say)
        new = set()
    trainable, total = count_trainable(model)
    say(f"{type(model).__name__}: {trainable:,} of {total:,} parameters train, {len(tokenizer)} tokens")

    # 4. Training, or a search for the best way to train.
    prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    args.predict_with_generate = task.generates
    args.generation_max_length = args.generation_max_length or data_args.max_target_length
    args.ddp_find_unused_parameters = args.ddp_find_unused_parameters or data_args.method == "gradual" or None
    patience = data_args.early_stopping_patience
    callbacks = [EarlyStoppingCallback(patience)] if patience else []
    if data_args.method == "gradual":
        callbacks.append(GradualUnfreezing(new))

    trainer = GenerationTrainer(
        model=model,
        args=args,
        train_dataset=task.encoded.get("train"),
        eval_dataset=task.encoded.get("validation", task.encoded.get("test")),
        processing_class=tokenizer,
        data_collator=task.collator,
        compute_loss_func=None if task.own_loss else task.loss,
        compute_metrics=lambda output: task.score_raw("validation", None, output.predictions),
        preprocess_logits_for_metrics=None if task.generates else task.reduce,
        callbacks=callbacks,
        max_tokens=data_args.max_tokens,
        parameter_groups=method_groups(data_args, args, new),
        schedule=method_schedule(data_args),
    )
    if args.hp_search:

        def new_model(fields: dict) -> object:
            return apply_method(make_model(tokenizer=tokenizer, overrides=fields)[0], data_args, new)

        trials = search(trainer, new_model, space, n_trials=args.hp_search, resume=resume, say=say)
        return say(report_search(trials, args, KINDS, argv))
    if train:
        metric = task.metric
        sides = {"train": "train_sample", "validation": "validation"}
        by_length = {
            "score": lambda split, rows, output: task.score_raw(sides[split], rows, output.predictions)[metric]
        }
        by_length |= {"lengths": task.lengths, "say": say}
        trainer.add_callback(CurveWarnings())
        trainer.add_callback(LengthScores(trainer, task.encoded["train_sample"], metric=metric, **by_length))
        say(trainer.describe_batches())
        merge = (lambda adapted: adapted.merge_and_unload()) if data_args.method == "lora" else None
        trainer.train_and_save(checkpoint, args.average_checkpoints, say, merge)
    if not predict:
        return

    # 5. The final test, beside a baseline.
    name = "test" if "test" in task.encoded else "validation"
    trainer.compute_metrics = None
    beams = {"num_beams": data_args.num_beams} if task.generates else {}
    output = trainer.predict(task.encoded[name], metric_key_prefix=name, **beams)
    decisions, systems = task.decide(name, output.predictions), {}
    if train:
        baseline, guesses = task.baseline(name)
        systems[baseline] = guesses
    results, table = compare(task.score, {"model": decisions, **systems}, task.references[name])

    # 6. Reports.
    if trainer.is_world_process_zero():
        save_results(args.output_dir, {f"{name}_{key}": value for key, value in results.items()})
        task.report(trainer.model, trainer.state.log_history, name, decisions)
        sources, shown = task.sources(name), task.show(decisions)
        print(f"\n{name}: {len(sources)} rows\n{table}\n")
        print(f"{examples([shorten(text, 200) for text in sources], shown)}\n")
        print(f"model, scores, samples and plots are in {args.output_dir}")
        about = {"task": task.hub_task, "embedded": task.embedded_name, "example": task.example(name)}
        about |= {"signatures": task.signatures}
        publish_run(args, KINDS, argv, task.splits, split=name, **about)


if __name__ == "__main__":
    run(main)

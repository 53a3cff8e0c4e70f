"""Fine-tune any checkpoint with an explicit loop on Accelerate; data, model and results are those of finetuning.py.

    python recipes/finetuning_accelerate.py

takes the data and model flags of finetuning.py, and those of TrainingArguments that
hfseq.training.accelerate_loop.HONOURED names; any other is refused. Several CPU processes:

    torchrun --nproc_per_node 2 recipes/finetuning_accelerate.py --use_cpu
"""

from functools import partial
from pathlib import Path
from textwrap import shorten

from transformers.utils.logging import disable_progress_bar

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
from hfseq.training.arguments import FinetuningArguments, ModelArguments, TaskArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run
from hfseq.training.finetuning import (
    apply_method,
    check_method,
    count_trainable,
    method_groups,
    method_schedule,
    runs_of,
    unfreeze,
)
from hfseq.training.hub import publish_run
from hfseq.training.layers import layer_groups
from hfseq.training.lengths import report_by_length
from hfseq.training.loading import checkpoint_classes, load_with_new
from hfseq.training.results import compare, examples, save_results
from hfseq.training.tasks import TASKS

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
    if data_args.streaming:
        args.evaluate_by_steps()
    own = {"honoured": ("generation_num_beams",), "streaming": data_args.streaming}
    refuse_other_fields(KINDS, argv, args, other_driver="finetuning.py", **own)
    check_method(data_args, args.average_checkpoints)
    args.choose_metric(data_args.task)
    require(*TASKS[data_args.task].packages, extra="train", use="this recipe")
    if model_args.model_name_or_path is None and model_args.model_type is None:
        raise InputError("give --model_name_or_path, a checkpoint to fine-tune, or --model_type to train from scratch")
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    gradual = data_args.method == "gradual"
    accelerator = start_accelerator(args, unused_parameters=gradual)
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    say = partial(accelerator.print, flush=True)  # on the first process only

    # 2. Data: the rows of the task.
    known = checkpoint_classes(model_args)
    task = TASKS[data_args.task](data_args, args, known, train=True, num_parts=accelerator.num_processes)
    say(task.describe())
    classes = list(task.fields.get("id2label", {}).values())
    if known is not None and classes and classes != known:
        say(f"{model_args.model_name_or_path} knows other classes: {', '.join(known)}; its output layer is new")

    # 3. Model and tokenizer, and what of the model trains.
    model, tokenizer, new = load_with_new(task.auto_class, model_args, task.texts(), default_type="", **task.fields)
    task.encode(model, tokenizer, say)
    check_budget(task.encoded["train"], data_args.max_tokens, accelerator.num_processes)
    if args.activation_checkpointing:
        model.activation_checkpointing_enable()
    model = plain_model = apply_method(model, data_args, new)
    trainable, total = count_trainable(model)
    say(f"{type(model).__name__}: {trainable:,} of {total:,} parameters train, {len(tokenizer)} tokens")

    # 4. Batches, optimizer and schedule: those of the Trainer.
    loader = make_loader(accelerator, task.encoded["train"], task.collator, args, max_tokens=data_args.max_tokens)
    layers = layer_groups(model, new) if gradual else []
    groups = method_groups(data_args, args, new)
    optimizer = make_optimizer(model, args, groups(model) if groups else None)
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler, total_steps = make_schedule(accelerator, optimizer, args, loader, method_schedule(data_args))

    # 5. Training: an epoch, an evaluation, a checkpoint.
    if accelerator.is_main_process:
        prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    accelerator.wait_for_everyone()
    say(describe_batches(accelerator, loader))
    progress = Progress(accelerator, args, total_steps=total_steps, patience=data_args.early_stopping_patience)
    if checkpoint is not None:
        progress.resume(checkpoint, stream_of(loader))

    def evaluate() -> dict[str, float]:
        sides, losses = [], {}
        for name in ("train_sample", "validation"):
            raw, losses[name] = task.predict(plain_model, name)
            sides.append((task.lengths[name], task.decide(name, raw), task.references[name]))
        progress.say(report_by_length(task.metric, task.score, *sides))
        _, decisions, right = sides[1]
        return task.score(decisions, right) | {"loss": losses["validation"]}

    while not progress.done:
        model.train()
        unfreeze(layers, progress.epoch + 1)
        for batches in progress.steps(loader):
            # The loss is a mean over the labels of the whole step, on all processes.
            count = sum(task.count(batch) for batch in batches)
            count = accelerator.reduce(count, "sum") / accelerator.num_processes
            for batch in batches:
                with accelerator.autocast():
                    loss = task.batch_loss(model, batch, count)
                accelerator.backward(loss)
                progress.observe(loss)
            if args.max_grad_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        progress.end_epoch(model, evaluate(), stream_of(loader))
    progress.load_result(model)
    unfreeze(layers, len(layers))
    if args.average_checkpoints:
        mean = evaluate()[task.metric]
        say(f"mean of the last {args.average_checkpoints} checkpoints: {task.metric} {mean:.4g}")

    # 6. The final test, beside a baseline.
    name = "test" if "test" in task.encoded else "validation"
    beams = {"num_beams": data_args.num_beams} if task.generates else {}
    decisions = task.decide(name, task.predict(plain_model, name, **beams)[0])
    baseline, guesses = task.baseline(name)
    results, table = compare(task.score, {"model": decisions, baseline: guesses}, task.references[name])

    # 7. Reports.
    if accelerator.is_main_process:
        if data_args.method == "lora":
            plain_model = plain_model.merge_and_unload()
        plain_model.save_pretrained(args.output_dir)
        tokenizer.save_pretrained(args.output_dir)
        save_results(args.output_dir, {f"{name}_{key}": value for key, value in results.items()})
        task.report(plain_model, progress.log, name, decisions)
        sources, shown = task.sources(name), task.show(decisions)
        print(f"\n{name}: {len(sources)} rows\n{table}\n")
        print(f"{examples([shorten(text, 200) for text in sources], shown)}\n")
        print(f"model, scores, samples and plots are in {args.output_dir}")
        about = {"task": task.hub_task, "embedded": task.embedded_name, "example": task.example(name)}
        about |= {"signatures": task.signatures}
        publish_run(args, KINDS, argv, task.splits, split=name, **about)
    accelerator.end_training()


if __name__ == "__main__":
    run(main)

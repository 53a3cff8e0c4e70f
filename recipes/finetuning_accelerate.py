"""Fine-tune any checkpoint with an explicit loop on Accelerate; data, model and results are those of finetuning.py.

    python recipes/finetuning_accelerate.py

takes the data and model flags of finetuning.py, and those of TrainingArguments that
hfseq.training.accelerate_loop.HONOURED names; any other is refused. Several CPU processes:

    torchrun --nproc_per_node 2 recipes/finetuning_accelerate.py --use_cpu
"""

from pathlib import Path

from hfseq.training import cli, finetuning
from hfseq.training.accelerate_loop import Loop, begin_loop
from hfseq.training.arguments import ModelArguments
from hfseq.training.finetuning import TASKS, FinetuningArguments, TaskArguments, unfreeze
from hfseq.training.layers import layer_groups
from hfseq.training.run import finish, new_model

DEMO = [Path(__file__).parent / "configs" / f"finetuning_{name}.yaml" for name in ("demo_lm", "demo")]
ARGUMENTS = (ModelArguments, TaskArguments, FinetuningArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process; the demo is two runs."""
    for flags in finetuning.runs_of(argv, DEMO, ARGUMENTS):
        run_loop(flags)


def run_loop(argv: list[str]) -> None:
    """Fine-tune once, in an explicit loop."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin_loop(ARGUMENTS, argv, TASKS, other_driver="finetuning.py")
    finetuning.check_method(run.model, run.data, run.args)
    accelerator, args = run.accelerator, run.args

    # 2. Data: the rows of the task.
    task = run.read(TASKS[run.data.task](run.data, args))

    # 3. Model and tokenizer, rows as tokens, and the method, which decides what of the model trains.
    pretrained, tokenizer, new = new_model(run, task, default_type="")
    task.encode(pretrained, tokenizer, run.log)
    tuned = finetuning.apply_method(pretrained, run.data, new)

    # 4. Batches, and an optimizer and schedule of the method.
    groups = layer_groups(tuned, new) if run.data.method == "gradual" else []
    loop = Loop(run, task, tuned, tokenizer, **finetuning.method_options(run.data, args, new))
    model, optimizer, scheduler = loop.model, loop.optimizer, loop.scheduler

    # 5. Training: an epoch, an evaluation, a checkpoint.
    while not loop.done:
        model.train()
        unfreeze(groups, loop.epoch + 1)
        for batches in loop.steps():
            # The loss is a mean over the labels of the whole step, on all processes.
            count = loop.total(task.count(batch) for batch in batches)
            for batch in batches:
                with accelerator.autocast():
                    loss = task.batch_loss(model, batch, count)
                accelerator.backward(loss)
                loop.observe(loss)
            if args.max_grad_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        loop.end_epoch()
    loop.load_result()
    unfreeze(groups, len(groups))

    # 6. The final test beside a baseline, and the reports.
    tuned = finetuning.merge_adapters(tuned, run.data)
    loop.save(tuned)
    split = task.test_split
    raw, _ = task.predict(tuned, split, **task.test_options())
    finish(run, task, split, raw, model=tuned, history=loop.log)
    accelerator.end_training()


if __name__ == "__main__":
    cli.run(main)

"""Train a text classifier with an explicit loop on Accelerate; data, model and results are those of sentiment.py.

    python recipes/sentiment_accelerate.py

takes the data and model flags of sentiment.py, and those of TrainingArguments that
hfseq.training.accelerate_loop.HONOURED names; any other is refused. Several CPU processes:

    torchrun --nproc_per_node 2 recipes/sentiment_accelerate.py --use_cpu
"""

from pathlib import Path

from hfseq.tasks.arguments import ClassArguments
from hfseq.tasks.classification import Classification
from hfseq.training import cli
from hfseq.training.accelerate_loop import Loop, begin_loop
from hfseq.training.arguments import ModelArguments, RecipeArguments
from hfseq.training.run import finish, new_model

DEMO = Path(__file__).parent / "configs" / "sentiment_demo.yaml"
ARGUMENTS = (ModelArguments, ClassArguments, RecipeArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin_loop(ARGUMENTS, argv, Classification, demo=DEMO, other_driver="sentiment.py")
    accelerator, args = run.accelerator, run.args

    # 2. Data: texts, and their classes as numbers.
    task = run.read(Classification(run.data, args))

    # 3. Model and tokenizer, and the texts as tokens.
    network, tokenizer, _ = new_model(run, task)
    task.encode(network, tokenizer, run.log)

    # 4. Batches, optimizer and schedule: those of the Trainer.
    loop = Loop(run, task, network, tokenizer)
    model, optimizer, scheduler = loop.model, loop.optimizer, loop.scheduler

    # 5. Training: an epoch, an evaluation, a checkpoint.
    while not loop.done:
        model.train()
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

    # 6. The final test beside the most frequent class, and the reports.
    loop.save(network)
    split = task.test_split
    logits, _ = task.predict(network, split)
    finish(run, task, split, logits, model=network, history=loop.log)
    accelerator.end_training()


if __name__ == "__main__":
    cli.run(main)

"""Train a summarizer with an explicit loop on Accelerate; data, model and results are those of summarization.py.

    python recipes/summarization_accelerate.py

takes the data and model flags of summarization.py, and those of TrainingArguments that
hfseq.training.accelerate_loop.HONOURED names; any other is refused. Several CPU processes:

    torchrun --nproc_per_node 2 recipes/summarization_accelerate.py --use_cpu
"""

from pathlib import Path

from hfseq.tasks.arguments import SummarizationArguments
from hfseq.tasks.seq2seq import Summarization
from hfseq.training import cli
from hfseq.training.accelerate_loop import Loop, begin_loop
from hfseq.training.arguments import GenerationArguments, ModelArguments
from hfseq.training.run import finish, new_model

DEMO = Path(__file__).parent / "configs" / "summarization_demo.yaml"
ARGUMENTS = (ModelArguments, SummarizationArguments, GenerationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin_loop(ARGUMENTS, argv, Summarization, demo=DEMO, other_driver="summarization.py")
    accelerator, args = run.accelerator, run.args

    # 2. Data: texts with one summary or several.
    task = run.read(Summarization(run.data, args))

    # 3. Model and tokenizer, and texts and summaries as tokens.
    summarizer, tokenizer, _ = new_model(run, task)
    task.encode(summarizer, tokenizer, run.log)

    # 4. Loader, optimizer and learning rates, the same as the Trainer's.
    loop = Loop(run, task, summarizer, tokenizer)
    model, optimizer, scheduler = loop.model, loop.optimizer, loop.scheduler

    # 5. Training: an epoch, an evaluation by generation, a checkpoint.
    while not loop.done:
        model.train()
        for batches in loop.steps():
            # The loss is a mean over the target tokens of the whole step, on all processes.
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

    # 6. The final test, with beam search, beside the first sentences of each text; and the reports.
    loop.save(summarizer)
    split = task.test_split
    ids, _ = task.predict(summarizer, split, num_beams=run.data.num_beams)
    finish(run, task, split, ids, model=summarizer, history=loop.log)
    accelerator.end_training()


if __name__ == "__main__":
    cli.run(main)

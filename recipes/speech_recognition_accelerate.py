"""Train a speech recogniser with an explicit loop on Accelerate; data and results are those of speech_recognition.py.

    python recipes/speech_recognition_accelerate.py

takes the data and model flags of speech_recognition.py, and those of TrainingArguments that
hfseq.training.accelerate_loop.HONOURED names; any other is refused. Several CPU processes:

    torchrun --nproc_per_node 2 recipes/speech_recognition_accelerate.py --use_cpu
"""

from pathlib import Path

from hfseq.tasks.arguments import SpeechArguments
from hfseq.tasks.speech import HEADS
from hfseq.training import cli
from hfseq.training.accelerate_loop import Loop, begin_loop
from hfseq.training.arguments import GenerationArguments, SpeechModelArguments
from hfseq.training.run import finish, new_model

DEMO = Path(__file__).parent / "configs" / "speech_recognition_demo.yaml"
ARGUMENTS = (SpeechModelArguments, SpeechArguments, GenerationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin_loop(ARGUMENTS, argv, HEADS, demo=DEMO, other_driver="speech_recognition.py")
    accelerator, args = run.accelerator, run.args

    # 2. Data: recordings with a transcript or a class each.
    task = run.read(HEADS[run.data.head](run.data, args))

    # 3. Feature extractor and tokenizer, the model, and the recordings as features, by whose mean and standard
    #    deviation a new model normalises them.
    network, processor, _ = new_model(run, task, tokenizer=task.new_processor(run.model))
    task.encode(network, processor, run.log)

    # 4. Batches, optimizer and schedule: those of the Trainer.
    loop = Loop(run, task, network, processor)
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

    # 6. The final test beside a baseline, and the reports.
    loop.save(network)
    split = task.test_split
    raw, _ = task.predict(network, split, **task.test_options())
    finish(run, task, split, raw, model=network, history=loop.log)
    accelerator.end_training()


if __name__ == "__main__":
    cli.run(main)

"""Train a forecaster with an explicit loop on Accelerate; data and results are those of forecasting.py.

    python recipes/forecasting_accelerate.py

takes the data and model flags of forecasting.py, and those of TrainingArguments that
hfseq.training.accelerate_loop.HONOURED names; any other is refused. Several CPU processes:

    torchrun --nproc_per_node 2 recipes/forecasting_accelerate.py --use_cpu
"""

from pathlib import Path

from hfseq.tasks.arguments import ForecastArguments
from hfseq.tasks.forecasting import Forecasting
from hfseq.training import cli
from hfseq.training.accelerate_loop import Loop, begin_loop
from hfseq.training.arguments import ForecastModelArguments, RecipeArguments
from hfseq.training.run import finish, new_model

DEMO = Path(__file__).parent / "configs" / "forecasting_demo.yaml"
ARGUMENTS = (ForecastModelArguments, ForecastArguments, RecipeArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin_loop(ARGUMENTS, argv, Forecasting, demo=DEMO, other_driver="forecasting.py")
    accelerator, args = run.accelerator, run.args

    # 2. Data: series, and the windows in which they are forecast.
    task = run.read(Forecasting(run.data, args))

    # 3. The model; data and flags determine the lags, time features and covariates that a new one reads.
    task.new_processor(run.model)
    network, _, _ = new_model(run, task)
    task.encode(network, None, run.log)

    # 4. Batches, optimizer and schedule: those of the Trainer.
    loop = Loop(run, task, network, None)
    model, optimizer, scheduler = loop.model, loop.optimizer, loop.scheduler

    # 5. Training: an epoch, an evaluation, a checkpoint.
    while not loop.done:
        model.train()
        for batches in loop.steps():
            # The loss is a mean over the observed values of the whole step, on all processes.
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

    # 6. The final test beside the baselines, and the reports.
    loop.save(network)
    split = task.test_split
    raw, _ = task.predict(network, split)
    finish(run, task, split, raw, model=network, history=loop.log)
    accelerator.end_training()


if __name__ == "__main__":
    cli.run(main)

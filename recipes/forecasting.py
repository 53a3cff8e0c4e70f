"""Train a forecaster of time series with the Trainer: from scratch or from any checkpoint.

    python recipes/forecasting.py

forecasts two years of the CO2 concentration at Mauna Loa and of the sea's temperature in the El Niño region, month by
month, as configs/forecasting_demo.yaml says. For your own series, with every flag of transformers' TrainingArguments;
a YAML file may come first:

    python recipes/forecasting.py --train_file sales.csv --prediction_length 28 --num_test_windows 4 \
        --covariate_columns price holiday --output_dir outputs/sales

A file is a wide CSV (time stamps, then a column for each series), a long one (unique_id,ds,y and covariates), or JSON
lines of GluonTS. The last windows are the test, those before them the validation; --test_start and --validation_start
set other origins. Scores stand beside those of a random walk, the seasonal naive forecast and exponential smoothing.
--config_overrides '{"loss": "mse"}' forecasts points; --hp_search 20 searches the hp_space of the YAML file.
"""

from functools import partial
from pathlib import Path

from hfseq.tasks.arguments import ForecastArguments
from hfseq.tasks.forecasting import Forecasting
from hfseq.training import cli
from hfseq.training.arguments import ForecastModelArguments, RecipeArguments
from hfseq.training.run import begin, finish, load, make_trainer, new_model, search

DEMO = Path(__file__).parent / "configs" / "forecasting_demo.yaml"
ARGUMENTS = (ForecastModelArguments, ForecastArguments, RecipeArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, Forecasting, demo=DEMO)

    # 2. Data: series, and the windows in which they are forecast.
    task = run.read(Forecasting(run.data, run.args))

    # 3. The model; data and flags determine the lags, time features and covariates that a new one reads.
    task.new_processor(run.model)
    model, _, _ = load(run, task)
    task.encode(model, None, run.log)

    # 4. Training, or a search for the hyperparameters.
    trainer = make_trainer(run, task, model, None)
    if run.args.hp_search:
        return search(run, task, trainer, partial(new_model, run, task))
    if run.train:
        trainer.train_and_save(run.checkpoint, run.args.average_checkpoints, run.log)

    # 5. The final test beside the baselines, and the reports.
    if run.predict:
        split = task.test_split
        raw, _ = task.predict(trainer.model, split)
        finish(run, task, split, raw, model=trainer.model, history=trainer.state.log_history)


if __name__ == "__main__":
    cli.run(main)

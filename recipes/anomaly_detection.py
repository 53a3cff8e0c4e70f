"""Find anomalies in series of numbers or logs of events by the likelihood of each step under a recurrent model.

    python recipes/anomaly_detection.py

trains a forecaster on embedded network flows of a small site, drawn by a program and counted every five minutes, and
finds port scans, floods, exfiltration and stalls, as configs/anomaly_detection_demo.yaml says. For your own series,
with every flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/anomaly_detection.py --train_file normal.csv --test_file new.csv --output_dir outputs/anomalies

A file is CSV, TSV or JSON lines with a column timestamp, columns of numbers and perhaps a column label. With --head
causal_lm a language model, a new one or any by --model_name_or_path, reads events (--event_columns service,state).
--nab_folder FOLDER runs the Numenta Anomaly Benchmark. The threshold is that of --false_alarms a day on held-out rows;
scores.csv and alarms.csv have what was found. A trained detector watches a stream, for days in constant memory:

    tail -F -n +1 new.csv | python recipes/anomaly_detection.py --watch --model_name_or_path outputs/anomalies \
        --state_file state.safetensors

which prints alarms as they come, and after a restart continues from the state as if it had not stopped.
"""

from functools import partial
from pathlib import Path

from accelerate import PartialState

from hfseq.tasks.anomaly_detection import HEADS
from hfseq.tasks.arguments import AnomalyArguments
from hfseq.training import cli
from hfseq.training.arguments import AnomalyModelArguments, RecipeArguments
from hfseq.training.run import begin, finish, load, make_trainer, new_model, search
from hfseq.training.watching import watch_stream

DEMO = Path(__file__).parent / "configs" / "anomaly_detection_demo.yaml"
ARGUMENTS = (AnomalyModelArguments, AnomalyArguments, RecipeArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, HEADS, demo=DEMO, unless=("--nab_folder", "--watch"))
    if run.data.inference_only:
        return watch_stream(run)

    # 2. Data: recordings to train on, held-out ones for the threshold, and those to find anomalies in.
    task = run.read(HEADS[run.data.head](run.data, run.args, run.model.model_name_or_path))

    # 3. Model, with a tokenizer for events, and windows of the recordings.
    model, processor, _ = load(run, task)
    task.encode(model, processor, run.log)

    # 4. Training, or a search for the hyperparameters.
    trainer = make_trainer(run, task, model, processor)
    if run.args.hp_search:
        return search(run, task, trainer, partial(new_model, run, task, tokenizer=processor))
    if run.train:
        trainer.train_and_save(run.checkpoint, run.args.average_checkpoints, run.log)

    # 5. Scores of all recordings, one step after the other, and the threshold.
    task.calibrate(trainer.model, run.log)
    if run.train and PartialState().is_main_process:
        task.settings.save(run.args.output_dir)

    # 6. The final test beside baselines, and the reports.
    if run.predict:
        split = task.test_split
        raw, _ = task.predict(trainer.model, split)
        finish(run, task, split, raw, model=trainer.model, history=trainer.state.log_history)


if __name__ == "__main__":
    cli.run(main)

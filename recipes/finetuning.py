"""Fine-tune any checkpoint, of hfseq or a pretrained Transformer, for another task or domain, with the Trainer.

    python recipes/finetuning.py

repeats on embedded, synthetic reviews what Howard & Ruder 2018 (ULMFiT) do with an LSTM: first a language model that
reads them without their classes (configs/finetuning_demo_lm.yaml), then a classifier that starts from it and learns
from a few hundred of them, unfreezing a layer each epoch (configs/finetuning_demo.yaml). For your own model and data,
with every flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/finetuning.py --task classification --model_name_or_path bert-base-uncased --method lora \
        --learning_rate 5e-4 --train_file data/train.csv --test_file data/test.csv --output_dir outputs/tuned

Tasks: classification, tagging, language_modeling, seq2seq. Methods: all weights, the head only, gradual unfreezing
with a learning rate for each layer, LoRA adapters. --model_type hfseq_lstm in place of --model_name_or_path trains
from scratch, for comparison. A classifier or sequence-to-sequence model predicts a file with --do_predict
--output_file.
"""

from pathlib import Path
from typing import Any

from hfseq.training import cli, finetuning
from hfseq.training.arguments import ModelArguments
from hfseq.training.finetuning import TASKS, FinetuningArguments, GradualUnfreezing, TaskArguments
from hfseq.training.predict_files import predict_file
from hfseq.training.run import begin, finish, load, make_trainer, new_model, search

CONFIGS = Path(__file__).parent / "configs"
DEMO = (CONFIGS / "finetuning_demo_lm.yaml", CONFIGS / "finetuning_demo.yaml")
ARGUMENTS = (ModelArguments, TaskArguments, FinetuningArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process; without any, both demos."""
    for flags in finetuning.runs_of(argv, DEMO, ARGUMENTS):
        tune(flags)


def tune(argv: list[str]) -> None:
    """Fine-tune once."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, TASKS)
    if run.data.inference_only:
        return predict_file(run)
    finetuning.check_method(run.model, run.data, run.args)

    # 2. Data: the rows of the task.
    task = run.read(TASKS[run.data.task](run.data, run.args))

    # 3. Model and tokenizer, rows as tokens, and the method, which decides what of the model trains.
    model, tokenizer, new = load(run, task, default_type="")
    task.encode(model, tokenizer, run.log)
    if run.train:
        model = finetuning.apply_method(model, run.data, new)

    # 4. Training, or a search for the hyperparameters.
    options = finetuning.method_options(run.data, run.args, new)
    gradual = [GradualUnfreezing(new)] if run.data.method == "gradual" else []
    trainer = make_trainer(run, task, model, tokenizer, callbacks=gradual, **options)
    if run.args.hp_search:

        def make_model(overrides: dict[str, Any]) -> Any:
            fresh, *_ = new_model(run, task, default_type="", tokenizer=tokenizer, overrides=overrides)
            return finetuning.apply_method(fresh, run.data, new), tokenizer

        return search(run, task, trainer, make_model)
    if run.train:
        average = run.args.average_checkpoints
        trainer.train_and_save(
            run.checkpoint, average, run.log, lambda tuned: finetuning.merge_adapters(tuned, run.data)
        )

    # 5. The final test beside a baseline, and the reports.
    if run.predict:
        split = task.test_split
        raw = trainer.predict_split(split, **task.test_options())
        finish(run, task, split, raw, model=trainer.model, history=trainer.state.log_history)


if __name__ == "__main__":
    cli.run(main)

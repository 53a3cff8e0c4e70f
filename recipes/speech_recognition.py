"""Train a speech recogniser, or a classifier of recordings, with the Trainer: from scratch or from any checkpoint.

    python recipes/speech_recognition.py

trains a CTC model on embedded Morse code, keyed by a program at random speed, pitch and unsteadiness and buried in
noise, as configs/speech_recognition_demo.yaml says. For your own recordings, with every flag of transformers'
TrainingArguments; a YAML file may come first:

    python recipes/speech_recognition.py --head ctc --train_file recordings/train --validation_file recordings/dev \
        --test_file recordings/test --text_column transcription --output_dir outputs/speech

A file is a folder of recordings with metadata.csv (file_name,transcription), or a CSV, TSV, JSON lines or Parquet file
that names or contains them; --dataset_name reads a data set of the Hub. --head seq2seq trains an encoder-decoder with
attention, --head classification a classifier (metadata.csv: file_name,label). --num_beams 16 --lm_model PATH decodes
CTC with a language model of characters; --hp_search 20 searches the hp_space of the YAML file.
"""

from functools import partial
from pathlib import Path

from hfseq.tasks.arguments import SpeechArguments
from hfseq.tasks.speech import HEADS
from hfseq.training import cli
from hfseq.training.arguments import GenerationArguments, SpeechModelArguments
from hfseq.training.run import begin, finish, load, make_trainer, new_model, search

DEMO = Path(__file__).parent / "configs" / "speech_recognition_demo.yaml"
ARGUMENTS = (SpeechModelArguments, SpeechArguments, GenerationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, HEADS, demo=DEMO)

    # 2. Data: recordings with a transcript or a class each.
    task = run.read(HEADS[run.data.head](run.data, run.args))

    # 3. Feature extractor and tokenizer, the model, and the recordings as features, by whose mean and standard
    #    deviation a new model normalises them.
    processor = task.new_processor(run.model) if run.train else None
    model, processor, _ = load(run, task, tokenizer=processor)
    task.encode(model, processor, run.log)

    # 4. Training, or a search for the hyperparameters.
    trainer = make_trainer(run, task, model, processor)
    if run.args.hp_search:
        return search(run, task, trainer, partial(new_model, run, task, tokenizer=processor))
    if run.train:
        trainer.train_and_save(run.checkpoint, run.args.average_checkpoints, run.log)

    # 5. The final test beside a baseline, and the reports.
    if run.predict:
        split = task.test_split
        raw, _ = task.predict(trainer.model, split, **task.test_options())
        finish(run, task, split, raw, model=trainer.model, history=trainer.state.log_history)


if __name__ == "__main__":
    cli.run(main)

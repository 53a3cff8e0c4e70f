"""Train a summarizer with the Trainer: from scratch (LSTM, GRU, RNN, CNN) or from any sequence-to-sequence checkpoint.

    python recipes/summarization.py

trains a pointer-generator on docstrings of the installed Python packages, whose first lines summarize the rest, as
configs/summarization_demo.yaml says. For your own data, with every flag of transformers' TrainingArguments; a YAML
file may come first:

    python recipes/summarization.py recipes/configs/summarization_scitldr.yaml --train_file data/train.jsonl \
        --validation_file data/dev.jsonl --test_file data/test.jsonl --output_dir outputs/scitldr

A row may have several summaries, in a list: the model learns from each, and the best of them counts in the scores.
A trained model, or an --ensemble of several, summarizes a file with --do_predict --test_file texts.txt --output_file
summaries.txt; --hp_search 20 searches the hp_space of the YAML file; --streaming reads data larger than memory.
"""

from functools import partial
from pathlib import Path

from hfseq.tasks.arguments import SummarizationArguments
from hfseq.tasks.seq2seq import Summarization
from hfseq.training import cli
from hfseq.training.arguments import GenerationArguments, ModelArguments
from hfseq.training.predict_files import generate_file
from hfseq.training.run import begin, finish, load, make_trainer, new_model, search

DEMO = Path(__file__).parent / "configs" / "summarization_demo.yaml"
ARGUMENTS = (ModelArguments, SummarizationArguments, GenerationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, Summarization, demo=DEMO)
    if run.data.inference_only:
        return generate_file(run, run.data.text_column, run.data.summary_column)

    # 2. Data: texts with one summary or several.
    summaries = run.read(Summarization(run.data, run.args))

    # 3. Model and tokenizer, and texts and summaries as tokens.
    model, tokenizer, _ = load(run, summaries)
    summaries.encode(model, tokenizer, run.log)

    # 4. Training, or a search for the hyperparameters.
    trainer = make_trainer(run, summaries, model, tokenizer)
    if run.args.hp_search:
        return search(run, summaries, trainer, partial(new_model, run, summaries, tokenizer=tokenizer))
    if run.train:
        trainer.train_and_save(run.checkpoint, run.args.average_checkpoints, run.log)

    # 5. The final test, with beam search, beside the first sentences of each text; and the reports.
    if run.predict:
        split = summaries.test_split
        ids = trainer.predict_split(split, num_beams=run.data.num_beams)
        finish(run, summaries, split, ids, model=model, history=trainer.state.log_history)


if __name__ == "__main__":
    cli.run(main)

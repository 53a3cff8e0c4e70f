"""Classify DNA and proteins, or tag each base or residue, with the Trainer: LSTM, GRU, RNN, CNN, or any checkpoint.

    python recipes/bioinformatics.py

finds the exons and introns of genes drawn from a hidden Markov model, as configs/bioinformatics_demo.yaml says, beside
the best that is possible: the most probable tags under that model itself. For your own sequences, in FASTA or FASTQ
with their labels, or in tables, with every flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/bioinformatics.py recipes/configs/bioinformatics_protein.yaml --train_file train.tsv \
        --validation_file val.tsv --test_file cb513.tsv --column_names id,sequence,labels,mask --output_dir outputs/q3

Labels of letters stand in NAME.labels.fasta beside NAME.fasta, or are the case of the letters; --task classification
reads classes from headers (>seq1 label=donor) or from NAME.tsv, averages both strands with --reverse_complement, reads
k-mers with --kmer_size 6, and draws a sequence logo of each class. Long sequences are tagged in windows.
"""

from functools import partial
from pathlib import Path

from hfseq.tasks.arguments import SequenceArguments
from hfseq.tasks.bioinformatics import TASKS
from hfseq.training import cli
from hfseq.training.arguments import ModelArguments, RecipeArguments
from hfseq.training.run import begin, finish, load, make_trainer, new_model, search

DEMO = Path(__file__).parent / "configs" / "bioinformatics_demo.yaml"
ARGUMENTS = (ModelArguments, SequenceArguments, RecipeArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, TASKS, demo=DEMO)

    # 2. Data: sequences, and a class for each, or a tag for each letter.
    task = run.read(TASKS[run.data.task](run.data, run.args))

    # 3. Model and tokenizer, whose tokens are letters or k-mers.
    model, tokenizer, _ = load(run, task, tokenizer=task.new_processor(run.model))
    task.encode(model, tokenizer, run.log)

    # 4. Training, or a search for the hyperparameters.
    trainer = make_trainer(run, task, model, tokenizer)
    if run.args.hp_search:
        return search(run, task, trainer, partial(new_model, run, task, tokenizer=tokenizer))
    if run.train:
        trainer.train_and_save(run.checkpoint, run.args.average_checkpoints, run.log)

    # 5. The final test beside the most frequent class or tag, and the reports.
    if run.predict:
        split = task.test_split
        raw = trainer.predict_split(split)
        finish(run, task, split, raw, model=trainer.model, history=trainer.state.log_history)


if __name__ == "__main__":
    cli.run(main)

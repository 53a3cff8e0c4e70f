"""Train a text classifier with the Trainer: from scratch (LSTM, GRU, RNN, CNN) or from any checkpoint.

    python recipes/sentiment.py

trains on embedded, synthetic reviews (from a grammar in which word order decides), as configs/sentiment_demo.yaml
says. For your own data, with every flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/sentiment.py recipes/configs/sentiment_sst2.yaml --train_file data/train.tsv \
        --validation_file data/dev.tsv --test_file data/test.tsv --column_names text,label --output_dir outputs/sst2

A text has one of two or more classes, or several (multi-label) if its row contains a list, or names separated by
--label_separator; labels that are numbers with a fraction train a regression. A trained model, or an --ensemble of
several, classifies a file with --do_predict --test_file texts.txt --output_file classes.tsv; --hp_search 20 searches
the hp_space of the YAML file; --streaming reads data larger than memory.
"""

from functools import partial
from pathlib import Path

from hfseq.tasks.arguments import ClassArguments
from hfseq.tasks.classification import Classification
from hfseq.training import cli
from hfseq.training.arguments import ModelArguments, RecipeArguments
from hfseq.training.predict_files import classify_file
from hfseq.training.run import begin, finish, load, make_trainer, new_model, search

DEMO = Path(__file__).parent / "configs" / "sentiment_demo.yaml"
ARGUMENTS = (ModelArguments, ClassArguments, RecipeArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, Classification, demo=DEMO)
    if run.data.inference_only:
        return classify_file(run, run.data.text_column)

    # 2. Data: texts, and their classes as numbers.
    task = run.read(Classification(run.data, run.args))

    # 3. Model and tokenizer, and the texts as tokens.
    model, tokenizer, _ = load(run, task)
    task.encode(model, tokenizer, run.log)

    # 4. Training, or a search for the hyperparameters.
    trainer = make_trainer(run, task, model, tokenizer)
    if run.args.hp_search:
        return search(run, task, trainer, partial(new_model, run, task, tokenizer=tokenizer))
    if run.train:
        trainer.train_and_save(run.checkpoint, run.args.average_checkpoints, run.log)

    # 5. The final test beside the most frequent class, and the reports.
    if run.predict:
        split = task.test_split
        logits = trainer.predict_split(split)
        finish(run, task, split, logits, model=trainer.model, history=trainer.state.log_history)


if __name__ == "__main__":
    cli.run(main)

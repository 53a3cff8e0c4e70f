"""Tag words with the Trainer: parts of speech or entities; an LSTM, GRU, RNN or CNN from scratch, or any checkpoint.

    python recipes/tagging.py

tags the tokens of Python sources by kind, as configs/tagging_demo.yaml says. For your own words, in CoNLL-U, CoNLL,
JSON lines or Parquet files, with every flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/tagging.py recipes/configs/tagging_ud_ewt.yaml --train_file en_ewt-ud-train.conllu \
        --validation_file en_ewt-ud-dev.conllu --test_file en_ewt-ud-test.conllu --output_dir outputs/ud

--config_overrides '{"char_encoder": "cnn", "crf": true}' adds character features from a convolution (Ma & Hovy 2016)
or an LSTM ("lstm"), for which --tokenizer_model whitespace keeps the words of the files; and a conditional random
field (Lample et al. 2016), decoded by Viterbi in pipeline("token-classification") as well. Entity tags may be in IOB1,
IOB2, IOE1, IOE2, IOBES or BILOU; the run says which, and scores as that scheme's scorer does.
"""

from functools import partial
from pathlib import Path

from hfseq.tasks.arguments import TaggingArguments
from hfseq.tasks.tagging import Tagging
from hfseq.training import cli
from hfseq.training.arguments import ModelArguments, RecipeArguments
from hfseq.training.run import begin, finish, load, make_trainer, new_model, search

DEMO = Path(__file__).parent / "configs" / "tagging_demo.yaml"
ARGUMENTS = (ModelArguments, TaggingArguments, RecipeArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, Tagging, demo=DEMO)

    # 2. Data: words, and a tag for each.
    tagging = run.read(Tagging(run.data, run.args))

    # 3. Model and tokenizer, and tokens, of which the first of a word has its tag.
    model, tokenizer, _ = load(run, tagging)
    tagging.encode(model, tokenizer, run.log)

    # 4. Training, or a search for the hyperparameters.
    trainer = make_trainer(run, tagging, model, tokenizer)
    if run.args.hp_search:
        return search(run, tagging, trainer, partial(new_model, run, tagging, tokenizer=tokenizer))
    if run.train:
        trainer.train_and_save(run.checkpoint, run.args.average_checkpoints, run.log)

    # 5. The final test beside the most frequent tag, and the most frequent tag of each word; and the reports.
    if run.predict:
        split = tagging.test_split
        tags = trainer.predict_split(split)
        finish(run, tagging, split, tags, model=trainer.model, history=trainer.state.log_history)


if __name__ == "__main__":
    cli.run(main)

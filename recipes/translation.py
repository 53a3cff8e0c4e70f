"""Train a translator with the Trainer: from scratch (LSTM, GRU, RNN, CNN) or from any sequence-to-sequence checkpoint.

    python recipes/translation.py

trains on the embedded pairs (dates, amounts, names … from Babel's localisation data), as configs/translation_demo.yaml
says. For your own data, with every flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/translation.py recipes/configs/translation_multi30k.yaml --train_file data/train \
        --validation_file data/val --test_file data/test --source_lang de --target_lang en --output_dir outputs/de-en

A trained model, or an --ensemble of several, translates a file with --do_predict --test_file texts.txt --output_file
translations.txt; --hp_search 20 searches the hp_space of the YAML file; --streaming reads data larger than memory.
"""

from functools import partial
from pathlib import Path

from hfseq.tasks.arguments import TranslationArguments
from hfseq.tasks.seq2seq import Translation
from hfseq.training import cli
from hfseq.training.arguments import GenerationArguments, ModelArguments
from hfseq.training.predict_files import generate_file
from hfseq.training.run import begin, finish, load, make_trainer, new_model, search

DEMO = Path(__file__).parent / "configs" / "translation_demo.yaml"
ARGUMENTS = (ModelArguments, TranslationArguments, GenerationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, Translation, demo=DEMO)
    if run.data.inference_only:
        return generate_file(run, run.data.source_lang, run.data.target_lang)

    # 2. Data: pairs of texts, in columns named by the languages.
    pairs = run.read(Translation(run.data, run.args))

    # 3. Model and tokenizer, and both sides as tokens.
    model, tokenizer, _ = load(run, pairs)
    pairs.encode(model, tokenizer, run.log)

    # 4. Training, or a search for the hyperparameters.
    trainer = make_trainer(run, pairs, model, tokenizer)
    if run.args.hp_search:
        return search(run, pairs, trainer, partial(new_model, run, pairs, tokenizer=tokenizer))
    if run.train:
        trainer.train_and_save(run.checkpoint, run.args.average_checkpoints, run.log)

    # 5. The final test, with beam search, beside a copy of the source; and the reports.
    if run.predict:
        split = pairs.test_split
        ids = trainer.predict_split(split, num_beams=run.data.num_beams)
        finish(run, pairs, split, ids, model=model, history=trainer.state.log_history)


if __name__ == "__main__":
    cli.run(main)

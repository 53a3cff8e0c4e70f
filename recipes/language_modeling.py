"""Train a language model with the Trainer: LSTM, GRU, RNN or CNN from scratch, or any causal checkpoint.

    python recipes/language_modeling.py

trains an LSTM on the documentation of Python's standard library, as configs/language_modeling_demo.yaml says. For your
own text, with every flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/language_modeling.py recipes/configs/language_modeling_wikitext2.yaml \
        --train_file wiki.train.tokens --validation_file wiki.valid.tokens --test_file wiki.test.tokens \
        --output_dir outputs/wikitext2

The text is read in --per_device_train_batch_size columns at once, in windows of --block_size tokens (truncated BPTT),
and the state of an hfseq model is carried from each window to the next. --tokenizer_model chooses words, subwords or
characters. With --cache_size the final test has a second score, with a continuous cache (Grave et al. 2017), and with
--ngram_order more: of Kneser-Ney n-grams, and of the model interpolated with them. A trained model continues a prompt,
and shows the most likely next words:

    python recipes/language_modeling.py --do_predict --model_name_or_path outputs/wikitext2 --prompt "The history of"
"""

from functools import partial
from pathlib import Path

from transformers import TextStreamer, set_seed

from hfseq.errors import InputError
from hfseq.inference import generate
from hfseq.tasks.arguments import RunningTextArguments
from hfseq.tasks.language_modeling import RunningTextModeling
from hfseq.tokenization import start_texts
from hfseq.training import cli
from hfseq.training.arguments import ModelArguments, RecipeArguments
from hfseq.training.run import Run, begin, finish, load, new_model, search

DEMO = Path(__file__).parent / "configs" / "language_modeling_demo.yaml"
ARGUMENTS = (ModelArguments, RunningTextArguments, RecipeArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, RunningTextModeling, demo=DEMO)
    if run.data.inference_only:
        return continue_prompt(run)

    # 2. Data: running text, whose empty lines are kept.
    text = RunningTextModeling(run.data, run.args)
    text.read(train=run.train)

    # 3. Model and tokenizer, and each text as one sequence of tokens.
    model, tokenizer, _ = load(run, text)
    if run.model.model_name_or_path is None:
        start_texts(tokenizer)
    text.configure(model, tokenizer)
    run.prepare()
    text.encode(model, tokenizer, run.log)

    # 4. Training on windows of the text, or a search for the hyperparameters.
    history = []
    if run.train:
        from hfseq.training.running_text import make_text_trainer  # not above: prediction does not need the Trainer

        trainer = make_text_trainer(run, text, model, tokenizer)
        if run.args.hp_search:
            return search(run, text, trainer, partial(new_model, run, text, tokenizer=tokenizer))
        trainer.train_and_save(run.checkpoint, run.args.average_checkpoints, run.log)
        model, history = trainer.accelerator.unwrap_model(trainer.model), trainer.state.log_history

    # 5. The final test: the whole text, perhaps with n-grams or a cache, beside token frequencies; the reports.
    if run.predict:
        split = text.test_split
        model.to(run.args.device)
        raw, _ = text.predict(model, split)
        mixtures = text.predict_mixtures(model, split, run.log)
        finish(run, text, split, raw, model=model, history=history, others=mixtures)


def continue_prompt(run: Run) -> None:
    """Show the most likely next words after a prompt, and generate its continuation."""
    data, args = run.data, run.args
    if args.do_train or not args.do_predict or run.model.model_name_or_path is None:
        raise InputError("--prompt goes with --do_predict and --model_name_or_path, a trained model")
    model, tokenizer, _ = load(run, RunningTextModeling(data, args))
    model.to(args.device)
    set_seed(args.seed)
    for word, probability in generate.next_words(model, tokenizer, data.prompt, data.next_words):
        print(f"{probability:8.2%}  {word}")
    options = {name: getattr(data, name) for name in ("temperature", "top_k", "top_p")}
    model.generate(
        generate.prompt_ids(tokenizer, data.prompt).to(args.device),
        max_new_tokens=data.max_new_tokens,
        do_sample=data.do_sample,
        streamer=TextStreamer(tokenizer, skip_special_tokens=True),
        **{name: value for name, value in options.items() if value is not None},
    )


if __name__ == "__main__":
    cli.run(main)

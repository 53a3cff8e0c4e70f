"""Train a language model with the Trainer: LSTM, GRU, RNN or CNN from scratch, or any causal checkpoint.

    python recipes/language_modeling.py

trains an LSTM on the documentation of Python's standard library, as configs/language_modeling_demo.yaml says. Your own
text, with every flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/language_modeling.py recipes/configs/language_modeling_wikitext2.yaml \
        --train_file wiki.train.tokens --validation_file wiki.valid.tokens --test_file wiki.test.tokens \
        --output_dir outputs/wikitext2

The text is read at --per_device_train_batch_size places at once, in windows of --block_size tokens, and an hfseq model
goes on from the state in which the window before left it. Words, pieces of words or characters are what
--tokenizer_model says. With --cache_size the final test has a second score, with a continuous cache (Grave et al.
2017). A trained model goes on with a text, and shows the likeliest next words:

    python recipes/language_modeling.py --do_predict --model_name_or_path outputs/wikitext2 --prompt "The history of"
"""

from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TextStreamer, set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.data.embedded.documentation import documentation_rows
from hfseq.data.running_text import TokenWindows, encode_text, lines_of
from hfseq.data.streaming import tokenizer_texts
from hfseq.errors import InputError, require
from hfseq.tokenization import start_texts
from hfseq.training.arguments import DATA_FLAGS, LanguageModelingArguments, ModelArguments, TextArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run, with_default_config
from hfseq.training.continuous_cache import FLATNESS, cached_scores
from hfseq.training.curves import CurveWarnings
from hfseq.training.files import check_model
from hfseq.training.hub import publish_run
from hfseq.training.language_modeling import (
    LanguageModelingTrainer,
    carries_state,
    next_words,
    perplexities,
    prompt_ids,
    smoothed_loss,
    text_loss,
    unigram_loss,
)
from hfseq.training.loading import load_model, load_trained
from hfseq.training.reports import plot_learning_curve
from hfseq.training.results import compare, save_results
from hfseq.training.search import parse_space, report_search, search

DEMO = Path(__file__).parent / "configs" / "language_modeling_demo.yaml"
KINDS = (ModelArguments, TextArguments, LanguageModelingArguments)
FINAL_WINDOW = 1000  # tokens that the final test reads at once


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--model_name_or_path", *DATA_FLAGS))
    model_args, data_args, args = parse_config(KINDS, argv)
    train, predict = args.do_train or not args.do_predict, args.do_predict or not args.do_train
    say = partial(PartialState().print, flush=True)  # on the first process only
    disable_progress_bar()  # of saving and loading models
    if data_args.prompt is not None:
        return go_on(model_args, data_args, args)
    if model_args.ensemble:
        raise InputError("--ensemble is not for language models; leave it out")
    check_model(model_args, train=train)
    require("matplotlib", extra="train", use="this recipe")
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = None if args.hp_search else find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    set_seed(args.seed)

    # 2. Data: running text, of which empty lines are a part.
    column = data_args.text_column
    reading: dict[str, Any] = {"train": train, "seed": args.seed, "moses": True, "running": True}
    reading["validation"] = data_args.cache_size is not None
    splits = data_args.read((column,), documentation_rows, **reading)

    if data_args.cache_size and predict and not {"validation", "test"} <= set(splits):
        raise InputError("--cache_size needs a validation text, to choose the cache's strength on, beside a test text")

    # 3. Model and tokenizer.
    texts = lines_of(tokenizer_texts(splits["train"], (column,))) if train else None
    make_model = partial(load_model, AutoModelForCausalLM, model_args, texts, default_type="hfseq_lstm")
    model, tokenizer = make_model() if train else load_trained(AutoModelForCausalLM, model_args)
    if model_args.model_name_or_path is None:
        start_texts(tokenizer)
    say(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    space = parse_space(args.hp_space, args, model.config, max_tokens=None) if args.hp_search else {}
    adaptive = getattr(model.config, "adaptive_softmax_cutoffs", None) is not None
    if adaptive and args.label_smoothing_factor:
        raise InputError("--label_smoothing_factor: an adaptive softmax has no probabilities of all words in training")
    # A state has read any number of tokens; a Transformer may have positions for so many.
    positions = None if carries_state(model) else getattr(model.config, "max_position_embeddings", None)
    if positions is not None and data_args.block_size > positions:
        raise InputError(f"--block_size {data_args.block_size}: the model reads at most {positions} tokens at once")

    # 4. Encoding: one sequence of tokens for each text, cut into windows.
    prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    PartialState().wait_for_everyone()  # the first process makes the folder, in which each may keep its tokens
    folders = {"train": args.output_dir} if data_args.streaming else {}  # for tokens that memory may not hold
    encoded = {name: encode_text(rows[column], tokenizer, folders.get(name)) for name, rows in splits.items()}
    say(", ".join(f"{name} {len(text.ids):,} tokens, {text.words:,} words" for name, text in encoded.items()))
    world, rank = args.world_size, args.process_index
    windows = partial(TokenWindows, length=data_args.block_size, pad_id=tokenizer.pad_token_id or 0)
    carry = data_args.carry_state and carries_state(model)
    in_one = partial(windows, columns=1, length=min(positions or FINAL_WINDOW, FINAL_WINDOW))

    # 5. Training, or a search for the best way to train.
    if train:
        columns = args.per_device_train_batch_size * world
        lengths = args.seed if data_args.vary_block_size else None
        eval_columns = -(-args.per_device_eval_batch_size // world) * world
        patience = data_args.early_stopping_patience
        trainer = LanguageModelingTrainer(
            model=model,
            args=args,
            train_dataset=windows(encoded["train"].ids, columns=columns, seed=lengths, rank=rank, num_replicas=world),
            eval_dataset=windows(encoded["validation"].ids, columns=eval_columns, rank=rank, num_replicas=world),
            processing_class=tokenizer,
            compute_loss_func=smoothed_loss(args.label_smoothing_factor) if args.label_smoothing_factor else None,
            callbacks=[EarlyStoppingCallback(patience)] if patience else None,
            carry=carry,
            words=encoded["validation"].words,
        )
        if args.hp_search:

            def new_model(fields: dict[str, Any]) -> Any:
                return make_model(tokenizer=tokenizer, overrides=fields)[0]

            trials = search(trainer, new_model, space, n_trials=args.hp_search, resume=resume, say=say)
            return say(report_search(trials, args, KINDS, argv))
        trainer.add_callback(CurveWarnings())
        say(f"{trainer.describe_batches()}, the state {'carried' if carry else 'not carried'} from each to the next")
        trainer.train_and_save(checkpoint, args.average_checkpoints, say)
        model, log = trainer.accelerator.unwrap_model(trainer.model), trainer.state.log_history
    if not predict:
        return

    # 6. The final test: the whole text from its first word to its last, beside the frequency of each token.
    name = "test" if "test" in encoded else "validation"
    text = encoded[name]
    model.to(args.device)
    total, count = text_loss(model, in_one(text.ids), carry=carry)
    systems = {"model": perplexities(total, count, text.words)}
    if data_args.cache_size:
        read = partial(cached_scores, model, size=data_args.cache_size, carry=carry)
        strongest, weight = read(in_one(encoded["validation"].ids), flatness=FLATNESS).best()
        chosen = FLATNESS[strongest]
        total = read(in_one(text.ids), flatness=[chosen]).total(0, weight)
        systems["cache"] = perplexities(total, count, text.words)
        say(f"continuous cache of {data_args.cache_size} tokens: flatness {chosen}, weight {weight} on validation")
    if train:
        loss = unigram_loss(encoded["train"].ids, text.ids, len(tokenizer))
        systems["unigram"] = perplexities(loss, count, text.words)
    results, table = compare(lambda scores, _: scores, systems, None)

    # 7. Reports.
    if PartialState().is_main_process:
        save_results(args.output_dir, {f"{name}_{key}": value for key, value in results.items()})
        if train:
            plot_learning_curve(log, Path(args.output_dir) / "learning_curve.png", metric="word_perplexity")
        print(f"\n{name}: {count:,} tokens, {text.words:,} words\n{table}\n")
        print(f"model, scores and plots are in {args.output_dir}")
        about = {"task": "text-generation", "embedded": "the documentation of Python's standard library"}
        first = next((line for line in splits[name][column] if line.strip()), "")
        publish_run(args, KINDS, argv, splits, split=name, example=" ".join(first.split()[:8]), **about)


def go_on(model_args: ModelArguments, data_args: TextArguments, args: LanguageModelingArguments) -> None:
    """Show the likeliest next words after a text, and go on with it."""
    if args.do_train or not args.do_predict or model_args.model_name_or_path is None:
        raise InputError("--prompt goes with --do_predict and --model_name_or_path, a trained model")
    model, tokenizer = load_trained(AutoModelForCausalLM, model_args)
    model.to(args.device)
    set_seed(args.seed)
    for word, probability in next_words(model, tokenizer, data_args.prompt, data_args.next_words):
        print(f"{probability:8.2%}  {word}")
    options = {name: getattr(data_args, name) for name in ("temperature", "top_k", "top_p")}
    options = {name: value for name, value in options.items() if value is not None}
    model.generate(
        prompt_ids(tokenizer, data_args.prompt).to(args.device),
        max_new_tokens=data_args.max_new_tokens,
        do_sample=data_args.do_sample,
        streamer=TextStreamer(tokenizer, skip_special_tokens=True),
        **options,
    )


if __name__ == "__main__":
    run(main)

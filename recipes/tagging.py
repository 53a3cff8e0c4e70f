"""Tag words with the Trainer: parts of speech, entities; an LSTM, GRU, RNN or CNN from scratch, or any checkpoint.

    python recipes/tagging.py

tags the tokens of Python sources with their kinds, as configs/tagging_demo.yaml says. Your own words, in CoNLL-U,
CoNLL, JSON lines or Parquet files, with every flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/tagging.py recipes/configs/tagging_ud_ewt.yaml --train_file en_ewt-ud-train.conllu \
        --validation_file en_ewt-ud-dev.conllu --test_file en_ewt-ud-test.conllu --output_dir outputs/ud

--config_overrides '{"char_encoder": "cnn", "crf": true}': a convolution (Ma & Hovy 2016), or an LSTM ("lstm"), reads
the characters of each word, and with --tokenizer_model whitespace a word is what the file separates; a conditional
random field on top (Lample et al. 2016) is decoded by Viterbi, in pipeline("token-classification"), too. Tags of
entities may be in IOB1, IOB2, IOE1, IOE2, IOBES or BILOU; the run says which, and counts as that scheme's scorer does.
"""

from collections import Counter, defaultdict
from functools import partial
from itertools import chain
from pathlib import Path
from textwrap import shorten

from accelerate import PartialState
from transformers import EarlyStoppingCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.data.token_budget import check_budget
from hfseq.errors import InputError, require
from hfseq.training.arguments import DATA_FLAGS, ModelArguments, TaggingArguments, TaggingTrainingArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run, with_default_config
from hfseq.training.curves import CurveWarnings
from hfseq.training.files import check_model
from hfseq.training.hub import publish_run
from hfseq.training.lengths import LengthScores
from hfseq.training.loading import checkpoint_classes, load_model, load_trained
from hfseq.training.results import compare, examples, save_results
from hfseq.training.search import parse_space, report_search, search
from hfseq.training.tasks import Tagging
from hfseq.training.trainer import SequenceTrainer

DEMO = Path(__file__).parent / "configs" / "tagging_demo.yaml"
KINDS = (ModelArguments, TaggingArguments, TaggingTrainingArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--model_name_or_path", *DATA_FLAGS))
    model_args, data_args, args = parse_config(KINDS, argv)
    train, predict = args.do_train or not args.do_predict, args.do_predict or not args.do_train
    say = partial(PartialState().print, flush=True)  # on the first process only
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    if model_args.ensemble:
        raise InputError("--ensemble is not for taggers; leave it out")
    check_model(model_args, train=train)
    args.choose_metric("tagging")
    require(*Tagging.packages, extra="train", use="this recipe")
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = None if args.hp_search else find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    set_seed(args.seed)

    # 2. Data: words and as many tags.
    known = checkpoint_classes(model_args)
    task = Tagging(data_args, args, known, train=train, num_parts=1)
    say(f"{task.describe()}, {len(task.classes)} tags: {shorten(', '.join(task.classes), 300)}")

    # 3. Model and tokenizer.
    if known is not None and known != task.classes:
        say(f"{model_args.model_name_or_path} knows other tags: {', '.join(known)}; its output layer is new")
    texts = task.texts() if train else None
    make_model = partial(load_model, task.auto_class, model_args, texts, default_type="hfseq_lstm", **task.fields)
    model, tokenizer = make_model() if train else load_trained(task.auto_class, model_args, **task.fields)
    say(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    space = parse_space(args.hp_space, args, model.config, max_tokens=data_args.max_tokens) if args.hp_search else {}

    # 4. Encoding: a word may become several tokens.
    task.encode(model, tokenizer, say)
    if train:
        check_budget(task.encoded["train"], data_args.max_tokens, args.world_size)

    # 5. Training, or a search for the best way to train.
    prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    patience = data_args.early_stopping_patience

    trainer = SequenceTrainer(
        model=model,
        args=args,
        train_dataset=task.encoded.get("train"),
        eval_dataset=task.encoded.get("validation", task.encoded.get("test")),
        processing_class=tokenizer,
        data_collator=task.collator,
        # A CRF's loss is its own.
        compute_loss_func=None if task.own_loss else task.loss,
        compute_metrics=lambda output: task.score_raw("validation", None, output.predictions),
        preprocess_logits_for_metrics=task.reduce,
        callbacks=[EarlyStoppingCallback(patience)] if patience else None,
        max_tokens=data_args.max_tokens,
    )
    if args.hp_search:
        new = partial(make_model, tokenizer=tokenizer)
        trials = search(
            trainer, lambda fields: new(overrides=fields)[0], space, n_trials=args.hp_search, resume=resume, say=say
        )
        return say(report_search(trials, args, KINDS, argv))
    if train:
        metric, sides = task.metric, {"train": "train_sample", "validation": "validation"}
        by_length = {
            "score": lambda split, rows, output: task.score_raw(sides[split], rows, output.predictions)[metric]
        }
        by_length |= {"lengths": task.lengths, "say": say}
        trainer.add_callback(CurveWarnings())
        trainer.add_callback(LengthScores(trainer, task.encoded["train_sample"], metric=metric, **by_length))
        say(trainer.describe_batches())
        trainer.train_and_save(checkpoint, args.average_checkpoints, say)
    if not predict:
        return

    # 6. The final test, beside the most frequent tag, and the most frequent tag of each word.
    name = "test" if "test" in task.encoded else "validation"
    trainer.compute_metrics = None
    output = trainer.predict(task.encoded[name], metric_key_prefix=name)
    decisions, systems = task.decide(name, output.predictions), {}
    if train:
        majority, guesses = task.baseline(name)
        systems = {majority: guesses, "by_word": most_frequent(task, name)}
    results, table = compare(task.score, {"model": decisions, **systems}, task.references[name])

    # 7. Reports.
    if trainer.is_world_process_zero():
        save_results(args.output_dir, {f"{name}_{key}": value for key, value in results.items()})
        task.report(trainer.model, trainer.state.log_history, name, decisions)
        sources, shown = task.sources(name), task.show(decisions)
        print(f"\n{name}: {len(sources)} rows, {sum(map(len, decisions))} words\n{table}\n")
        print(f"{examples([shorten(text, 200) for text in sources], shown)}\n")
        print(f"model, scores, samples and plots are in {args.output_dir}")
        about = {"task": task.hub_task, "embedded": task.embedded_name, "example": task.example(name)}
        about |= {"signatures": task.signatures}
        publish_run(args, KINDS, argv, task.splits, split=name, **about)


def most_frequent(task: Tagging, name: str) -> list[list[int]]:
    """For each word its most frequent tag in the training rows; for one that is not in them, that of all words."""
    tags: dict[str, Counter] = defaultdict(Counter)
    for words, row in zip(task.words("train"), task.references["train"], strict=True):
        for word, tag in zip(words, row, strict=False):
            tags[word][tag] += 1
    most = Counter(chain.from_iterable(task.references["train"])).most_common(1)[0][0]
    best = {word: counts.most_common(1)[0][0] for word, counts in tags.items()}
    pairs = zip(task.words(name), task.references[name], strict=True)
    return [[best.get(word, most) for word in words[: len(row)]] for words, row in pairs]


if __name__ == "__main__":
    run(main)

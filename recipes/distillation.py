"""Distil a classifier or translator: a fine-tuned Transformer, or any other, teaches an LSTM, GRU, RNN or CNN.

    python recipes/distillation.py

trains a small BERT on embedded, synthetic reviews, and has it teach an LSTM that sees the classes of a few hundred of
them alone, as configs/distillation_demo.yaml says. Your own teacher and data, with every flag of transformers'
TrainingArguments; a YAML file may come first:

    python recipes/distillation.py recipes/configs/distillation_sst2.yaml --teacher outputs/minilm_sst2 \
        --train_file data/train.tsv --validation_file data/dev.tsv --test_file data/test.tsv \
        --output_dir outputs/student

The teacher says what it thinks of the training texts and of variants of them, in which words are masked, others stand
in their place, or all but a few are missing; the student learns that (Tang et al. 2019). The same student trained on
the classes alone, and the teacher, stand beside it in one table: score, parameters, size of the file, time of one
text, texts a second.

A translator teaches with --task translation (Kim & Rush 2016): the student learns the teacher's translations of the
training texts in place of the ones that are there.

    python recipes/translation.py
    python recipes/distillation.py recipes/configs/distillation_cldr.yaml --teacher outputs/translation_demo
"""

import json
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import disable_progress_bars
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.data.embedded.cldr import cldr_pairs
from hfseq.data.embedded.reviews import review_rows
from hfseq.data.labels import encode_labels, row_classes
from hfseq.data.streaming import tokenizer_texts
from hfseq.errors import InputError, require
from hfseq.inference.benchmark import cost_table, measure_costs
from hfseq.inference.prediction import decode_texts
from hfseq.training.arguments import (
    DATA_FLAGS,
    ClassificationArguments,
    DistillationArguments,
    ModelArguments,
    TranslationArguments,
    TranslationDistillationArguments,
)
from hfseq.training.classification import label_array, majority, score_classes
from hfseq.training.classifiers import score_classifier, text_classifier, train_classifier
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dirs, run, value_of, with_default_config
from hfseq.training.distillation import augment, distillation_loss, fingerprint, student_rows, teacher_logits
from hfseq.training.hub import open_repository, publish_run
from hfseq.training.loading import checkpoint_classes, load_model, load_trained
from hfseq.training.results import save_results
from hfseq.training.seq2seq import score_translations
from hfseq.training.teacher_embeddings import Neighbours, start_from_teacher
from hfseq.training.translators import text_translator, train_translator

DEMO = Path(__file__).parent / "configs" / "distillation_demo.yaml"
KINDS = (ModelArguments, DistillationArguments, ClassificationArguments)
TRANSLATION_KINDS = (ModelArguments, TranslationDistillationArguments, TranslationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    argv = with_default_config(argv, DEMO, unless=("--teacher", "--task", *DATA_FLAGS))
    tasks = {"classification": distil_classifier, "translation": distil_translator}
    task = value_of(argv, "task", "classification")
    if task not in tasks:
        raise InputError(f"unknown --task {task!r}; there are {', '.join(tasks)}")
    disable_progress_bar()  # of saving and loading models, and of encoding, which comes often; that of training stays
    disable_progress_bars()
    tasks[task](argv)


def distil_classifier(argv: list[str]) -> None:
    """Distil a classifier (Tang et al. 2019)."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    model_args, data_args, args = parse_config(KINDS, argv)
    text, label = data_args.text_column, data_args.label_column
    say = partial(PartialState().print, flush=True)  # on the first process only
    if args.hp_search or args.do_predict:
        raise InputError("--hp_search and --do_predict: recipes/sentiment.py searches, and predicts with a student")
    if args.label_smoothing_factor:
        raise InputError("--label_smoothing_factor is not of distillation; leave it out")
    if data_args.teacher_tokenizer and model_args.model_name_or_path:
        raise InputError(
            "--teacher_tokenizer is for a new student; that of --model_name_or_path has its own tokenizer"
        )
    require("sklearn", extra="train", use="this recipe")
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    set_seed(args.seed)

    # 2. Data: texts with their classes, and texts whose classes the student does not see.
    reading: dict[str, Any] = {"train": True, "seed": args.seed, "label_columns": (label,)}
    reading["classes"] = partial(row_classes, column=label)
    splits = data_args.read((text, label), review_rows, **reading)
    teacher_args = ModelArguments(model_name_or_path=data_args.teacher)
    splits, names = encode_labels(splits, label, names=checkpoint_classes(teacher_args))
    if label_array(splits["validation"]).ndim == 2:
        raise InputError("distillation is of one class a text; these rows may have several")
    everything = splits["train"]
    if data_args.max_train_samples is not None:
        some = range(min(data_args.max_train_samples, len(everything)))
        everything = everything.shuffle(seed=args.seed)
        splits["train"] = everything.select(some)
    say(f"{len(splits['train'])} texts with their classes, {len(everything)} in all: {shorten(', '.join(names), 300)}")

    # 3. The teacher: a checkpoint, or a new model that learns all classes.
    open_repository(args)
    prepare_output_dirs(args.output_dir, ("teacher", "alone"), overwrite=args.overwrite_output_dir, resume=resume)
    fields = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }
    make = partial(load_model, AutoModelForSequenceClassification, default_type="hfseq_lstm", **fields)
    root, length, given = Path(args.output_dir), data_args.max_length, (args, data_args)
    if data_args.teacher is None:
        options = {"model_type": data_args.teacher_type, "config_overrides": data_args.teacher_overrides}
        new_args = ModelArguments(**options, tokenizer_model="word", vocab_size=model_args.vocab_size, lowercase=True)
        teacher, its_tokenizer = make(new_args, tokenizer_texts(everything, (text,)))
        say(f"teacher: a new {type(teacher).__name__}")
        its = {"learning_rate": data_args.teacher_learning_rate, "num_train_epochs": data_args.teacher_epochs}
        rows = {**splits, "train": everything}
        train_classifier(root / "teacher", teacher, its_tokenizer, *given, rows, say=say, **its)
        its_directory = root / "teacher"
    else:
        teacher, its_tokenizer = load_trained(AutoModelForSequenceClassification, teacher_args, **fields)
        its_directory = Path(data_args.teacher)
    teacher.to(args.device)

    # 4. What the teacher says, of texts and of variants of them.
    texts = list(everything[text])
    changes: dict[str, Any] = {"masked": data_args.mask_probability, "ngram": data_args.ngram_probability}
    if data_args.replace_probability:
        say("the teacher looks for words to put in place of others")
        near = Neighbours(teacher, its_tokenizer, texts)
        changes |= {"replaced": data_args.replace_probability, "neighbours": near}
    variants = list(augment(texts, data_args.augmentations, seed=args.seed, **changes))
    say(f"the teacher labels {len(texts)} texts and {len(variants)} variants of them")
    # What was kept of an interrupted run serves if it is of the same texts, and read the same way.
    read_as = {"max_length": length, "dtype": data_args.teacher_dtype}
    kept = root / f"teacher_logits_{fingerprint(texts, variants, str(its_directory), read_as)}.npy"
    if resume and kept.is_file():
        logits = np.load(kept)
    else:
        reading = {"batch_size": args.per_device_eval_batch_size, "progress": "Labelling"} | read_as
        logits = teacher_logits(teacher, its_tokenizer, texts, variants, **reading)
        if PartialState().is_main_process:
            np.save(root / "teacher_logits.partial.npy", logits)
            (root / "teacher_logits.partial.npy").replace(kept)

    # 5. The student twice, from the same start unless the teacher gives its own: by itself, and taught.
    make_student = partial(make, model_args, tokenizer_texts(everything, (text,)))
    set_seed(args.seed)
    student, tokenizer = make_student(tokenizer=its_tokenizer if data_args.teacher_tokenizer else None)
    say(f"student: {type(student).__name__}, {student.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train_classifier(root / "alone", student, tokenizer, *given, splits, say=say)
    alone = student
    set_seed(args.seed)
    student, _ = make_student(tokenizer=tokenizer)
    if data_args.teacher_embeddings:
        start_from_teacher(student, tokenizer, teacher, its_tokenizer)
    rows = student_rows(tokenizer, texts, splits["train"]["labels"], variants, logits, length)
    loss = {"kind": data_args.distillation_loss, "temperature": data_args.temperature}
    taught = partial(distillation_loss, hard_weight=data_args.hard_weight, **loss)
    taught_for = {"num_train_epochs": data_args.distillation_epochs}
    train_classifier(root, student, tokenizer, *given, splits, say=say, rows=rows, loss=taught, **taught_for)

    # 6. The final test: all three side by side.
    name = "test" if "test" in splits else "validation"
    models = {
        "teacher": (teacher, its_tokenizer, its_directory),
        "student": (student, tokenizer, root),
        "student alone": (alone, tokenizer, root / "alone"),
    }
    scores = {
        system: score_classifier(model.to(args.device), its, splits[name], data_args, args.per_device_eval_batch_size)
        for system, (model, its, _) in models.items()
    }
    guesses = majority(splits["train"]["labels"], len(splits[name]))
    scores["majority"] = score_classes(guesses, splits[name]["labels"])

    # 7. Reports, speed among them.
    if PartialState().is_main_process:
        runs = {
            system: (text_classifier(model, its, length), model, directory)
            for system, (model, its, directory) in models.items()
        }
        costs = measure_costs(runs, list(splits[name][text])[: data_args.speed_texts])
        titles = {"accuracy": "accuracy", "f1": "macro F1"}
        report(args.output_dir, f"{name}: {len(splits[name])} texts", name, scores, costs, titles)
        about = {"task": "text-classification", "embedded": "synthetic reviews", "example": splits[name][text][0]}
        publish_run(args, KINDS, argv, splits, split=name, **about)


def distil_translator(argv: list[str]) -> None:
    """Distil a translator, sequence by sequence (Kim & Rush 2016, section 3.2)."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    model_args, data_args, args = parse_config(TRANSLATION_KINDS, argv)
    source, target = data_args.source_lang, data_args.target_lang
    say = partial(PartialState().print, flush=True)  # on the first process only
    if args.hp_search or args.do_predict:
        raise InputError("--hp_search and --do_predict: recipes/translation.py searches, and predicts with a student")
    require("sacrebleu", extra="train", use="this recipe")
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    set_seed(args.seed)

    # 2. Data: pairs of texts in the columns `source_lang` and `target_lang`.
    pairs = partial(cldr_pairs, source, target)
    splits = data_args.read((source, target), pairs, train=True, seed=args.seed, moses=True)
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in splits.items())
    say(f"{counts} pairs {source} → {target}")

    # 3. The teacher.
    make = partial(load_model, AutoModelForSeq2SeqLM, default_type="hfseq_lstm")
    teacher, its_tokenizer = load_trained(AutoModelForSeq2SeqLM, ModelArguments(model_name_or_path=data_args.teacher))
    teacher.to(args.device)
    say(f"teacher: {type(teacher).__name__}, {teacher.num_parameters():,} parameters")

    # 4. What the teacher makes of the training texts; what is there after an interruption stays.
    open_repository(args)
    prepare_output_dirs(args.output_dir, ("teacher", "alone"), overwrite=args.overwrite_output_dir, resume=resume)
    root, train = Path(args.output_dir), splits["train"]
    reading = {
        "batch_size": args.per_device_eval_batch_size,
        "max_source_length": data_args.max_source_length,
        "prefix": data_args.source_prefix,
        "max_length": data_args.max_target_length,
    }
    kept = root / "teacher_translations.json"
    texts = json.loads(kept.read_text(encoding="utf-8")) if resume and kept.is_file() else []
    if len(texts) != len(train):
        beams = {"num_beams": data_args.teacher_num_beams, "progress": "Translating"}
        nbest, _ = decode_texts(teacher, its_tokenizer, list(train[source]), **reading, **beams)
        texts = [best[0].text for best in nbest]
        if PartialState().is_main_process:
            part = root / "teacher_translations.partial.json"
            part.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
            part.replace(kept)
    # A text that the teacher has no words for is no lesson.
    taught = train.select_columns(source).add_column(target, texts).filter(lambda row: bool(row[target].strip()))
    same = sum(one == other for one, other in zip(texts, train[target], strict=True))
    say(f"the teacher has translated {len(taught)} texts, {same} of them as they were")

    # 5. The student twice, from the same start: by itself, and taught.
    make_student = partial(make, model_args, [*tokenizer_texts(train, (source, target)), *texts])
    set_seed(args.seed)
    student, tokenizer = make_student()
    say(f"student: {type(student).__name__}, {student.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train_translator(root / "alone", student, tokenizer, args, data_args, splits, say=say)
    alone = student
    set_seed(args.seed)
    student, _ = make_student(tokenizer=tokenizer)
    train_translator(root, student, tokenizer, args, data_args, {**splits, "train": taught}, say=say)

    # 6. The final test: all three side by side, and the source copied; greedy, too, which distillation is good for.
    name = "test" if "test" in splits else "validation"
    models = {
        "teacher": (teacher, its_tokenizer, Path(data_args.teacher)),
        "student": (student, tokenizer, root),
        "student alone": (alone, tokenizer, root / "alone"),
    }
    sources, right = list(splits[name][source]), list(splits[name][target])
    scores = {}
    for system, (model, its, _) in models.items():
        model.to(args.device)
        found = {}
        for beams in {1, data_args.num_beams}:
            best, _ = decode_texts(model, its, sources, **reading, num_beams=beams)
            found[beams] = score_translations([row[0].text for row in best], right)
        scores[system] = found[data_args.num_beams] | {"bleu_greedy": found[1]["bleu"]}
    copied = score_translations(sources, right)
    scores["copy"] = copied | {"bleu_greedy": copied["bleu"]}

    # 7. Reports, speed among them.
    if PartialState().is_main_process:
        limits = {"num_beams": data_args.num_beams, "max_length": data_args.max_target_length}
        runs = {
            system: (text_translator(model, its, data_args.max_source_length, **limits), model, directory)
            for system, (model, its, directory) in models.items()
        }
        prefixed = [data_args.source_prefix + text for text in sources[: data_args.speed_texts]]
        costs = measure_costs(runs, prefixed, rounds=1)
        titles = {"bleu": "BLEU", "chrf": "chrF", "bleu_greedy": "greedy BLEU"}
        heading = f"{name}: {len(sources)} pairs, beam {data_args.num_beams}"
        report(args.output_dir, heading, name, scores, costs, titles)
        about = {"task": "translation", "languages": [source, target], "example": sources[0]}
        about |= {"embedded": "dates, amounts, names … of Babel's CLDR data"}
        publish_run(args, TRANSLATION_KINDS, argv, splits, split=name, **about)


def report(output_dir: str, heading: str, split: str, scores: dict, costs: dict, titles: dict[str, str]) -> None:
    """Print and save the table of all models, and how much faster than its teacher the student is."""
    results = {
        f"{split}_{system.replace(' ', '_')}_{key}": value
        for system, found in scores.items()
        for key, value in (found | costs.get(system, {})).items()
    }
    results |= {f"{split}_{key}": value for key, value in scores["student"].items()}
    lines = cost_table(scores, costs, titles)
    (Path(output_dir) / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_results(output_dir, results)
    print("\n".join([f"\n{heading}", *lines]))
    faster = costs["teacher"]["ms_a_text"] / costs["student"]["ms_a_text"]
    print(f"\nthe student is {faster:.1f} times as fast as the teacher for one text")
    print(f"model, scores and table are in {output_dir}")


if __name__ == "__main__":
    run(main)

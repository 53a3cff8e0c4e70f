"""Distil a classifier: a fine-tuned Transformer, or any other, teaches an LSTM, GRU, RNN or CNN (Tang et al. 2019).

    python recipes/distillation.py

trains a small BERT on embedded, synthetic reviews, and has it teach an LSTM that sees the classes of a few hundred of
them alone, as configs/distillation_demo.yaml says. Your own teacher and data, with every flag of transformers'
TrainingArguments; a YAML file may come first:

    python recipes/distillation.py recipes/configs/distillation_sst2.yaml --teacher outputs/minilm_sst2 \
        --train_file data/train.tsv --validation_file data/dev.tsv --test_file data/test.tsv \
        --output_dir outputs/student

The teacher says what it thinks of the training texts and of variants of them, in which words are masked or all but a
few are missing; the student learns that. The same student trained on the classes alone, and the teacher, stand beside
it in one table: score, parameters, size of the file, time of one text, texts a second.
"""

import copy
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from hfseq.data.collation import CheckedCollator
from hfseq.data.errors import InputError
from hfseq.data.labels import encode_labels
from hfseq.data.reviews import review_rows
from hfseq.data.sampler import check_budget
from hfseq.data.streaming import tokenizer_texts
from hfseq.training.arguments import DATA_FLAGS, ClassificationArguments, DistillationArguments, ModelArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.classification import (
    decide,
    encode_classified,
    first_output,
    label_array,
    majority,
    predict_logits,
    score_classes,
)
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run, with_default_config
from hfseq.training.curves import CurveWarnings
from hfseq.training.distillation import (
    augment,
    distillation_loss,
    file_size,
    seconds_a_text,
    student_rows,
    teacher_logits,
    text_classifier,
)
from hfseq.training.models import checkpoint_classes, load_model
from hfseq.training.results import save_results
from hfseq.training.trainer import SequenceTrainer

DEMO = Path(__file__).parent / "configs" / "distillation_demo.yaml"
KINDS = (ModelArguments, DistillationArguments, ClassificationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--teacher", *DATA_FLAGS))
    model_args, data_args, args = parse_config(KINDS, argv)
    text, label = data_args.text_column, data_args.label_column
    say = partial(PartialState().print, flush=True)  # on the first process only
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    if args.hp_search or args.do_predict:
        raise InputError("--hp_search and --do_predict: recipes/sentiment.py searches, and predicts with a student")
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    set_seed(args.seed)

    # 2. Data: texts with their classes, and texts whose classes the student does not see.
    splits = data_args.read((text, label), review_rows, train=True, seed=args.seed, label_columns=(label,))
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
    prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    fields = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }
    make = partial(load_model, AutoModelForSequenceClassification, default_type="hfseq_lstm", **fields)
    root, length = Path(args.output_dir), data_args.max_length
    if data_args.teacher is None:
        options = {"model_type": data_args.teacher_type, "config_overrides": data_args.teacher_overrides}
        new_args = ModelArguments(**options, tokenizer_model="word", vocab_size=model_args.vocab_size, lowercase=True)
        teacher, its_tokenizer = make(new_args, tokenizer_texts(everything, (text,)))
        say(f"teacher: a new {type(teacher).__name__}")
        learn(root / "teacher", teacher, its_tokenizer, args, data_args, {**splits, "train": everything}, say=say)
        its_directory = root / "teacher"
    else:
        teacher, its_tokenizer = make(teacher_args, None)
        its_directory = Path(data_args.teacher)
    teacher.to(args.device)

    # 4. What the teacher says, of texts and of variants of them.
    texts = list(everything[text])
    probabilities = {"masked": data_args.mask_probability, "ngram": data_args.ngram_probability}
    variants = list(augment(texts, data_args.augmentations, seed=args.seed, **probabilities))
    say(f"the teacher labels {len(texts)} texts and {len(variants)} variants of them")
    kept = root / "teacher_logits.npy"
    if resume and kept.is_file():
        logits = np.load(kept)
    else:
        reading = {"max_length": length, "batch_size": args.per_device_eval_batch_size}
        logits = teacher_logits(teacher, its_tokenizer, texts, variants, **reading)
        if PartialState().is_main_process:
            np.save(kept, logits)

    # 5. The student twice, from the same start: by itself, and taught.
    make_student = partial(make, model_args, tokenizer_texts(everything, (text,)))
    student, tokenizer = make_student()
    say(f"student: {type(student).__name__}, {student.num_parameters():,} parameters, {len(tokenizer)} tokens")
    learn(root / "alone", student, tokenizer, args, data_args, splits, say=say)
    alone = student
    set_seed(args.seed)
    student, _ = make_student(tokenizer=tokenizer)
    rows = student_rows(tokenizer, texts, splits["train"]["labels"], variants, logits, length)
    loss = {"kind": data_args.distillation_loss, "temperature": data_args.temperature}
    taught = partial(distillation_loss, hard_weight=data_args.hard_weight, **loss)
    epochs = data_args.distillation_epochs
    learn(root, student, tokenizer, args, data_args, splits, say=say, rows=rows, loss=taught, epochs=epochs)

    # 6. The final test: all three side by side.
    name = "test" if "test" in splits else "validation"
    models = {
        "teacher": (teacher, its_tokenizer, its_directory),
        "student": (student, tokenizer, root),
        "student alone": (alone, tokenizer, root / "alone"),
    }
    scores = {}
    for system, (model, its, _) in models.items():
        encoded, _, _ = encode_classified({name: splits[name]}, its, text, max_length=length)
        collator = CheckedCollator(DataCollatorWithPadding(its), model)
        found = predict_logits(model.to(args.device), encoded[name], collator, batch_size=64)
        scores[system] = score_classes(decide(found, several=False), label_array(splits[name]))
    guesses = majority(splits["train"]["labels"], len(splits[name]))
    scores["majority"] = score_classes(guesses, label_array(splits[name]))

    # 7. Reports, speed among them.
    if PartialState().is_main_process:
        some = list(splits[name][text])[: data_args.speed_texts]
        run_all = [text_classifier(model, its, length) for model, its, _ in models.values()]
        latency = seconds_a_text(run_all, some, batch_size=1)
        bulk = seconds_a_text(run_all, some, batch_size=min(32, len(some)))
        print(f"\n{name}: {len(splits[name])} texts")
        lines = ["| | accuracy | macro F1 | parameters | file, MB | ms a text | texts a second |", "|---" * 7 + "|"]
        results: dict[str, Any] = {}
        for number, (system, (model, _, directory)) in enumerate(models.items()):
            row = {
                **scores[system],
                "parameters": model.num_parameters(),
                "file_mb": file_size(directory),
                "ms_a_text": 1000 * latency[number],
                "texts_a_second": 1 / bulk[number],
            }
            lines.append(
                f"| {system} | {row['accuracy']:.2f} | {row['f1']:.2f} | {row['parameters']:,} | {row['file_mb']:.1f} "
                f"| {row['ms_a_text']:.2f} | {row['texts_a_second']:.0f} |"
            )
            results |= {f"{name}_{system.replace(' ', '_')}_{key}": value for key, value in row.items()}
        lines.append(f"| majority | {scores['majority']['accuracy']:.2f} | {scores['majority']['f1']:.2f} | | | | |")
        results |= {f"{name}_majority_{key}": value for key, value in scores["majority"].items()}
        (root / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        save_results(args.output_dir, results)
        print("\n".join(lines))
        print(f"\nthe student is {latency[0] / latency[1]:.1f} times as fast as the teacher for one text")
        print(f"model, scores and table are in {args.output_dir}")


def learn(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: ClassificationArguments,
    data_args: DistillationArguments,
    splits: dict[str, datasets.Dataset],
    *,
    say: Any,
    rows: datasets.Dataset | None = None,
    loss: Any = distillation_loss,
    epochs: float | None = None,
) -> None:
    """Train a classifier: on the classes, or on encoded rows with a loss of their own."""
    own = copy.copy(args)
    own.output_dir = str(directory)
    own.num_train_epochs = args.num_train_epochs if epochs is None else epochs
    encoded, _, notes = encode_classified(splits, tokenizer, data_args.text_column, max_length=data_args.max_length)
    for note in notes:
        say(note)
    rows = encoded["train"] if rows is None else rows
    check_budget(rows, data_args.max_tokens, args.world_size)
    patience = data_args.early_stopping_patience
    trainer = SequenceTrainer(
        model=model,
        args=own,
        train_dataset=rows,
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        data_collator=CheckedCollator(DataCollatorWithPadding(tokenizer), model),
        compute_loss_func=lambda output, labels, num_items_in_batch=None: loss(
            output.logits, labels, count=num_items_in_batch
        ),
        compute_metrics=lambda output: score_classes(decide(output.predictions, several=False), output.label_ids),
        preprocess_logits_for_metrics=first_output,
        callbacks=[EarlyStoppingCallback(patience)] if patience else None,
        max_tokens=data_args.max_tokens,
    )
    trainer.add_callback(CurveWarnings())
    say(f"{directory}: {trainer.describe_batches()}")
    checkpoint = find_checkpoint(str(directory), args.resume_from_checkpoint)
    trainer.train_and_save(checkpoint, args.average_checkpoints, say)


if __name__ == "__main__":
    run(main)

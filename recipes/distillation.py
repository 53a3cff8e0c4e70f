"""Distil a classifier or translator: a fine-tuned Transformer, or any other, teaches an LSTM, GRU, RNN or CNN.

    python recipes/distillation.py

trains a small BERT on embedded, synthetic reviews, which then teaches an LSTM that sees the classes of only a few
hundred of them, as configs/distillation_demo.yaml says. For your own teacher and data, with every flag of
transformers' TrainingArguments; a YAML file may come first:

    python recipes/distillation.py recipes/configs/distillation_sst2.yaml --teacher outputs/minilm_sst2 \
        --train_file data/train.tsv --validation_file data/dev.tsv --test_file data/test.tsv \
        --output_dir outputs/student

The teacher labels the training texts, and variants of them with words masked, replaced or dropped; the student learns
its logits (Tang et al. 2019). One table compares it with the same student trained on the classes only, and with the
teacher: scores, parameters, file size, latency, throughput. A translator teaches with --task translation (Kim & Rush
2016): the student learns the teacher's translations of the training texts instead of the references.

    python recipes/translation.py
    python recipes/distillation.py recipes/configs/distillation_cldr.yaml --teacher outputs/translation_demo
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from transformers import set_seed

from hfseq.errors import InputError
from hfseq.inference import benchmark, generate, loading
from hfseq.tasks import arguments
from hfseq.tasks.classification import Classification
from hfseq.tasks.seq2seq import Translation
from hfseq.training import cli, distillation
from hfseq.training.arguments import GenerationArguments, ModelArguments, RecipeArguments
from hfseq.training.run import begin, fit, new_model

DEMO = Path(__file__).parent / "configs" / "distillation_demo.yaml"


@dataclass
class DistillationArguments(arguments.SingleLabelArguments):
    """Texts and classes, the teacher, and the distillation."""

    task: str = field(default="classification", metadata={"help": "Task: classification or translation."})
    teacher: str | None = field(
        default=None, metadata={"help": "Teacher: a directory or Hub name; by default a new classifier."}
    )
    teacher_type: str = field(default="bert", metadata={"help": "Model family of a new teacher."})
    teacher_overrides: dict | None = field(default=None, metadata={"help": "Config fields of a new teacher."})
    teacher_learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate of a new teacher."})
    teacher_epochs: float = field(default=4.0, metadata={"help": "Epochs of a new teacher, on all classes."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Rows whose class the student sees; of the others it sees only the text."}
    )
    augmentations: int = field(default=20, metadata={"help": "Variants of each training text for the teacher."})
    mask_probability: float = field(default=0.1, metadata={"help": "Probability that a word of a variant is masked."})
    replace_probability: float = field(
        default=0.0, metadata={"help": "Probability that it is replaced by a neighbour in the teacher's embeddings."}
    )
    ngram_probability: float = field(
        default=0.25, metadata={"help": "Probability that a variant is cut to one to five words."}
    )
    distillation_loss: str = field(
        default="mse", metadata={"help": "mse of the logits (Tang et al. 2019), or kl (Hinton et al. 2015)."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of kl."})
    hard_weight: float = field(default=0.0, metadata={"help": "Weight of the true class beside the teacher's logits."})
    distillation_epochs: float = field(
        default=3.0, metadata={"help": "Epochs on texts and variants; --num_train_epochs is for texts only."}
    )
    teacher_embeddings: bool = field(
        default=False, metadata={"help": "Initialise the student's embeddings from the teacher's."}
    )
    teacher_tokenizer: bool = field(default=False, metadata={"help": "Use the teacher's tokenizer for a new student."})
    teacher_dtype: str = field(
        default="float32", metadata={"help": "Precision of the teacher's labelling: float32, or bfloat16."}
    )
    speed_texts: int = field(default=200, metadata={"help": "Test texts that speed is measured on."})
    class_weights: None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Check choices and probabilities."""
        super().__post_init__()
        for name, known in {"distillation_loss": ("mse", "kl"), "teacher_dtype": ("float32", "bfloat16")}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown --{name} {getattr(self, name)!r}; there are {', '.join(known)}")
        for name in ("mask_probability", "replace_probability", "ngram_probability", "hard_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} {getattr(self, name)} is not between 0 and 1")
        if self.temperature <= 0 or self.distillation_epochs <= 0:
            raise ValueError("--temperature and --distillation_epochs must be more than 0")


@dataclass
class TranslationDistillationArguments(arguments.TranslationArguments):
    """Pairs of texts, the teacher, and the distillation."""

    task: str = field(default="translation", metadata={"help": "Task: classification or translation."})
    teacher: str | None = field(default=None, metadata={"help": "Teacher, required: a directory or Hub name."})
    teacher_num_beams: int = field(default=5, metadata={"help": "Beams of the teacher's translations."})
    speed_texts: int = field(default=50, metadata={"help": "Test texts that speed is measured on."})
    streaming: bool = field(init=False, default=False)
    output_file: None = field(init=False, default=None)
    overwrite_output_file: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Refuse to distil without a teacher."""
        super().__post_init__()
        if self.teacher is None:
            raise ValueError("--task translation needs --teacher, such as what recipes/translation.py has trained")


ARGUMENTS = (ModelArguments, DistillationArguments, RecipeArguments)
TRANSLATION_ARGUMENTS = (ModelArguments, TranslationDistillationArguments, GenerationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    argv = cli.with_default_config(argv, DEMO, unless=("--teacher", "--task", *arguments.DATA_FLAGS))
    tasks = {"classification": distil_classifier, "translation": distil_translator}
    task = cli.value_of(argv, "task", "classification")
    if task not in tasks:
        raise InputError(f"unknown --task {task!r}; there are {', '.join(tasks)}")
    tasks[task](argv)


def begin_quietly(kinds: tuple[type, ...], argv: list[str], task: type) -> Any:
    """Check the arguments, and hide the progress bars of encoding, which comes often; that of training stays."""
    run = begin(kinds, argv, task)
    distillation.check_flags(run)
    from datasets import disable_progress_bars  # not above: `--help` needs none of that package

    disable_progress_bars()
    return run


def distil_classifier(argv: list[str]) -> None:
    """Distil a classifier (Tang et al. 2019)."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin_quietly(ARGUMENTS, argv, Classification)
    data, args, root = run.data, run.args, Path(run.args.output_dir)

    # 2. Data: texts with their classes, and texts whose classes the student does not see.
    known = loading.checkpoint_classes(data.teacher)
    task = Classification(data, args)
    task.max_train_samples = None  # all texts are read; see below
    task.read(known=known)
    if other := sorted({*task.classes} - {*(known or task.classes)}):
        raise InputError(f"--teacher {data.teacher} does not know class {other[0]!r}; it knows {', '.join(known)}")
    everything, texts = task, list(task.splits["train"][data.text_column])
    if data.max_train_samples is not None:
        rows = task.splits["train"].shuffle(seed=args.seed)
        texts = list(rows[data.text_column])
        everything = task.with_training_rows(rows)
        task = task.with_training_rows(rows.select(range(min(data.max_train_samples, len(rows)))))
    names = shorten(", ".join(task.classes), 300)
    run.log(f"{len(task.splits['train'])} texts with their classes, {len(texts)} in all: {names}")

    # 3. Student and teacher; a checkpoint teaches, or a new model that learns all classes.
    run.prepare(("teacher", "alone"))
    make_student = partial(new_model, run, everything)
    student, tokenizer, _ = (None, None, None) if data.teacher_tokenizer else make_student()
    set_seed(args.seed)
    teacher, its_tokenizer, its_directory = distillation.classification_teacher(run, everything)

    # 4. The teacher's logits of the texts and of variants of them.
    variants = list(distillation.augment_for(data, texts, teacher, its_tokenizer, seed=args.seed))
    run.log(f"the teacher labels {len(texts)} texts and {len(variants)} variants of them")
    # Logits of an interrupted run are kept if they are of the same texts, read in the same way.
    reading = {"max_length": data.max_length, "dtype": data.teacher_dtype}
    kept = root / f"teacher_logits_{distillation.fingerprint(texts, variants, str(its_directory), reading)}.npy"
    size = {"batch_size": args.per_device_eval_batch_size, "progress": "Labelling"}
    label = partial(distillation.teacher_logits, teacher, its_tokenizer, texts, variants, **reading, **size)
    count = len(texts) + len(variants)
    logits = distillation.kept_result(kept, np.load, label, np.save, count)

    # 5. The student twice, from the same start unless the teacher gives its own: by itself, and taught.
    if student is None:
        set_seed(args.seed)
        student, tokenizer, _ = make_student(tokenizer=its_tokenizer)
    fit(run, task, student, tokenizer, root / "alone")
    alone = student
    set_seed(args.seed)
    student, *_ = make_student(tokenizer=tokenizer)
    if data.teacher_embeddings:
        distillation.start_from_teacher(student, tokenizer, teacher, its_tokenizer)
    labels = task.splits["train"]["labels"]
    rows = distillation.student_rows(tokenizer, texts, labels, variants, logits, data.max_length)
    settings = {"kind": data.distillation_loss, "temperature": data.temperature, "hard_weight": data.hard_weight}
    loss = distillation.student_loss(**settings)
    fit(run, task, student, tokenizer, root, rows=rows, loss=loss, num_train_epochs=data.distillation_epochs)

    # 6. The final test of all three, speed included, and the reports.
    models = {
        "teacher": (teacher, its_tokenizer, its_directory),
        "student": (student, tokenizer, root),
        "student alone": (alone, tokenizer, root / "alone"),
    }
    classify = partial(benchmark.text_classifier, max_length=data.max_length)
    distillation.report(run, task, models, classify, {"accuracy": "accuracy", "f1": "macro F1"})


def distil_translator(argv: list[str]) -> None:
    """Distil a translator, sequence by sequence (Kim & Rush 2016, section 3.2)."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin_quietly(TRANSLATION_ARGUMENTS, argv, Translation)
    data, args, root = run.data, run.args, Path(run.args.output_dir)

    # 2. Data: pairs of texts in columns named by the languages; and the teacher.
    task = Translation(data, args).read()
    run.log(task.describe())
    teacher, its_tokenizer = loading.load_trained(task.auto_class, data.teacher)
    run.log(f"teacher: {type(teacher).__name__}, {teacher.num_parameters():,} parameters")

    # 3. The teacher's translations of the training texts; those of an interrupted run are kept.
    run.prepare(("teacher", "alone"))
    source, target = task.names
    limits: dict[str, Any] = {"max_source_length": data.max_source_length, "max_length": data.max_target_length}

    def translate() -> list[str]:
        options = limits | {"batch_size": args.per_device_eval_batch_size, "prefix": data.source_prefix}
        options |= {"num_beams": data.teacher_num_beams, "progress": "Translating"}
        sources = list(train[source])
        nbest, _ = generate.decode_texts(teacher.to(args.device), its_tokenizer, sources, **options)
        return [best[0].text for best in nbest]

    kept = root / "teacher_translations.json"
    train = task.splits["train"]
    files = {"load": distillation.load_texts, "save": distillation.save_texts}
    texts = distillation.kept_result(kept, make=translate, count=len(train), **files)
    # Rows whose translation is empty are dropped.
    taught = train.select_columns(source).add_column(target, texts).filter(lambda row: bool(row[target].strip()))
    same = sum(one == other for one, other in zip(texts, train[target], strict=True))
    run.log(f"the teacher has translated {len(taught)} texts, {same} of them like the reference")

    # 4. The student twice, from the same start: by itself, and taught.
    set_seed(args.seed)
    student, tokenizer, _ = new_model(run, task, more_texts=texts)
    fit(run, task, student, tokenizer, root / "alone")
    alone = student
    set_seed(args.seed)
    student, *_ = new_model(run, task, tokenizer=tokenizer)
    fit(run, task.with_training_rows(taught), student, tokenizer, root)

    # 5. The final test of all three, with beams and greedy, and the reports.
    models = {
        "teacher": (teacher, its_tokenizer, Path(data.teacher)),
        "student": (student, tokenizer, root),
        "student alone": (alone, tokenizer, root / "alone"),
    }
    options = {"num_beams": data.num_beams, "max_length": data.max_target_length}
    run_texts = partial(benchmark.text_translator, max_source_length=data.max_source_length, **options)
    titles = {"bleu": "BLEU", "chrf": "chrF", "bleu_greedy": "greedy BLEU"}
    distillation.report(run, task, models, run_texts, titles, greedy="bleu")


if __name__ == "__main__":
    cli.run(main)

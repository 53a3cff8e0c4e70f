"""Distillation: a classifier learns what a larger one says (Hinton et al. 2015; Tang et al. 2019)."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from torch.nn.functional import kl_div, log_softmax, mse_loss
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.collation import CheckedCollator
from hfseq.data.encoding import encode_texts
from hfseq.errors import InputError
from hfseq.inference.benchmark import cost_table, measure_costs
from hfseq.inference.classify import predict_logits
from hfseq.inference.loading import load_trained
from hfseq.tasks.base import Task
from hfseq.tasks.losses import classification_loss
from hfseq.training.arguments import ModelArguments
from hfseq.training.reporting import open_repository, save_results
from hfseq.training.run import Run, fit, new_model, publish_run, score_baseline, score_model, test_split
from hfseq.training.teacher_embeddings import Neighbours
from hfseq.training.teacher_embeddings import start_from_teacher as start_from_teacher

MASK = None
"""Stands for a masked word."""


def augment(
    texts: Sequence[str],
    count: int,
    *,
    masked: float = 0.1,
    replaced: float = 0.0,
    neighbours: Callable[[str], Sequence[str]] = lambda word: (),
    ngram: float = 0.25,
    seed: int = 42,
) -> Iterator[list[str | None]]:
    """Variants of texts, to be labelled by a teacher (Tang et al. 2019, section 3.2).

    Of each word, one is masked with probability `masked`, and one that has neighbours is replaced by any of them with
    probability `replaced`: of what is left, words that a teacher finds near (Jiao et al. 2020, section 4, algorithm 1)
    rather than words of the same part of speech, as in the first paper, so that no tagger is needed. Then, with
    probability `ngram`, all but a run of one to five words is dropped. A variant that was there before, a text itself
    among them, is left out.

    Args:
        texts: Texts with spaces between words.
        count: Variants made of each text, those left out counted.
        masked: A word's probability of being masked.
        replaced: That of a word that is not masked of being replaced.
        neighbours: Words that may stand in place of a word, such as `Neighbours` finds; none for one that stays.
        ngram: A text's probability of being cut to a run of words.
        seed: Of the choices.

    Yields:
        Words, `MASK` for a masked one.
    """
    rng = random.Random(seed)
    seen: set[tuple[str | None, ...]] = {tuple(text.split()) for text in texts}

    def vary(word: str) -> str | None:
        if rng.random() < masked:
            return MASK
        if replaced and rng.random() < replaced and (others := neighbours(word)):
            return rng.choice(others)
        return word

    for text in texts:
        for _ in range(count):
            words = [vary(word) for word in text.split()]
            if words and rng.random() < ngram:
                length = min(rng.randint(1, 5), len(words))
                start = rng.randint(0, len(words) - length)
                words = words[start : start + length]
            if tuple(words) not in seen and any(word is not MASK for word in words):
                seen.add(tuple(words))
                yield words


def write_words(words: Sequence[str | None], tokenizer: PreTrainedTokenizerBase) -> str:
    """Words as a text of a tokenizer, masked ones as its mask token or, where it has none, its unknown token."""
    mask = tokenizer.mask_token or tokenizer.unk_token or ""
    return " ".join(mask if word is MASK else word for word in words)


def encode_variants(
    variants: Sequence[Sequence[str | None]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> datasets.Dataset:
    """Variants as rows of a model's tokens, in order; special tokens in them are read as such."""
    texts = [write_words(words, tokenizer) for words in variants]
    columns: dict[str, list[Any]] = {}
    # Chunks, so that a text that a mask is missing from is not held as a whole beside its tokens.
    for start in range(0, len(texts), 10_000):
        encoded = tokenizer(
            texts[start : start + 10_000], truncation=True, max_length=max_length, split_special_tokens=False
        )
        for name, values in encoded.items():
            columns.setdefault(name, []).extend(values)
    return datasets.Dataset.from_dict(columns)


def teacher_logits(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    variants: Sequence[Sequence[str | None]],
    *,
    max_length: int,
    batch_size: int,
    dtype: str = "float32",
    progress: str | None = None,
) -> np.ndarray:
    """What a teacher says of texts and, after them, of variants, `[N, num_labels]`, on all processes together.

    Args:
        teacher: A sequence classifier, on its device.
        tokenizer: Its tokenizer.
        texts: Texts.
        variants: Words as `augment` makes them.
        max_length: Tokens of a text; the rest of it is cut off.
        batch_size: Texts at once.
        dtype: What it multiplies in: `float32`, or `bfloat16` by automatic mixed precision.
        progress: Title of a progress bar, if there is to be one.
    """
    plain, _ = encode_texts(tokenizer, texts, max_length)
    rows = [datasets.Dataset.from_dict(dict(plain))]
    if variants:
        rows.append(encode_variants(variants, tokenizer, max_length))
    collator = CheckedCollator(DataCollatorWithPadding(tokenizer), teacher)
    with torch.autocast(teacher.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        return predict_logits(
            teacher, datasets.concatenate_datasets(rows), collator, batch_size=batch_size, progress=progress
        )


def fingerprint(*values: Any) -> str:
    """A name for values that differs where they do: of what the logits that a run keeps depend on."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def student_rows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    labels: Sequence[int],
    variants: Sequence[Sequence[str | None]],
    logits: np.ndarray,
    max_length: int,
) -> datasets.Dataset:
    """Rows to train a student on, whose `labels` are the teacher's logits and, last, the right class.

    Args:
        tokenizer: The student's.
        texts: Texts.
        labels: Their class numbers, -1 where none is known; fewer than texts if the last ones have none.
        variants: More rows, whose classes nobody knows.
        logits: The teacher's, of texts and variants, `[N, num_labels]`.
        max_length: Tokens of a text; the rest of it is cut off.
    """
    plain, _ = encode_texts(tokenizer, texts, max_length)
    parts = [datasets.Dataset.from_dict(dict(plain))]
    if variants:
        parts.append(encode_variants(variants, tokenizer, max_length))
    rows = datasets.concatenate_datasets(parts)
    right = [*labels, *[-1] * (len(rows) - len(labels))]
    return rows.add_column("labels", [[*line, number] for line, number in zip(logits.tolist(), right, strict=True)])


def distillation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    kind: str = "mse",
    temperature: float = 1.0,
    hard_weight: float = 0.0,
    count: torch.Tensor | int | None = None,
) -> torch.Tensor:
    r"""Loss of a student: how far its logits are from the teacher's, and how wrong its class.

    $(1 - \alpha)\,L_{soft} + \alpha\,L_{hard}$ with the cross-entropy of the right class, where one is known, and

    - `mse`: $\|z^{(T)} - z^{(S)}\|^2_2$, a mean over the classes (Tang et al. 2019, section 3.1);
    - `kl`: $\tau^2\,KL(p^{(T)} \| p^{(S)})$ of the softmax at temperature $\tau$ (Hinton et al. 2015, section 2).

    Args:
        logits: The student's, `[B, K]`.
        labels: As `student_rows` makes them, `[B, K + 1]`; or class numbers `[B]`, whose cross-entropy is the loss.
        kind: `mse` or `kl`.
        temperature: Of `kl`.
        hard_weight: The weight alpha.
        count: Number of values in the labels of all the batches that are added up, on all processes, as a Trainer
            counts them; None for those here.
    """
    if not labels.is_floating_point():
        return classification_loss(logits, labels, count=count)
    teacher, right, logits = labels[:, :-1].float(), labels[:, -1].long(), logits.float()
    if kind == "mse":
        soft = mse_loss(logits, teacher, reduction="none").mean(dim=-1).sum()
    else:
        ours, theirs = (log_softmax(values / temperature, dim=-1) for values in (logits, teacher))
        soft = temperature**2 * kl_div(ours, theirs, reduction="sum", log_target=True)
    total = (1 - hard_weight) * soft
    if hard_weight:
        known = right >= 0
        total = total + hard_weight * classification_loss(logits[known], right[known], count=1)
    return total / (len(labels) if count is None else count / labels.shape[1])


def student_loss(**settings: Any) -> Callable[..., torch.Tensor]:
    """`distillation_loss` as a Trainer calls it; `settings` are its keyword arguments."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        return distillation_loss(outputs.logits, labels, count=num_items_in_batch, **settings)

    return loss


def check_flags(run: Run) -> None:
    """Refuse flags that would have no effect on a distillation.

    Raises:
        InputError: One was given.
    """
    recipe = f"recipes/{'sentiment' if run.data.task == 'classification' else 'translation'}.py"
    if run.args.hp_search or run.args.do_predict:
        raise InputError(f"--hp_search and --do_predict: {recipe} searches, and predicts with a student")
    if run.data.task == "classification" and run.args.label_smoothing_factor:
        raise InputError("--label_smoothing_factor would not reach the student's loss; leave it out")
    if getattr(run.data, "teacher_tokenizer", False) and run.model.model_name_or_path:
        raise InputError(
            "--teacher_tokenizer is for a new student; that of --model_name_or_path has its own tokenizer"
        )
    open_repository(run.args)


def classification_teacher(run: Run, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Path]:
    """The teacher on its device, its tokenizer and directory: a checkpoint, or a new model trained on all classes.

    Args:
        run: The run.
        task: The task with all training rows.

    Raises:
        InputError: As `load_trained` and `fit`.
    """
    data = run.data
    if data.teacher is not None:
        teacher, tokenizer = load_trained(task.auto_class, data.teacher, **task.fields)
        return teacher.to(run.args.device), tokenizer, Path(data.teacher)
    model = ModelArguments(
        model_type=data.teacher_type,
        config_overrides=data.teacher_overrides,
        tokenizer_model="word",
        vocab_size=run.model.vocab_size,
        lowercase=True,
    )
    teacher, tokenizer, _ = new_model(replace(run, model=model), task)
    run.log(f"teacher: a new {type(teacher).__name__}")
    directory = Path(run.args.output_dir) / "teacher"
    settings = {"learning_rate": data.teacher_learning_rate, "num_train_epochs": data.teacher_epochs}
    fit(run, task, teacher, tokenizer, directory, **settings)
    return teacher.to(run.args.device), tokenizer, directory


def augment_for(
    data: Any, texts: Sequence[str], teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Iterator[list[str | None]]:
    """Variants of texts as the flags say; see `augment`. The teacher's embeddings find neighbours of words."""
    options: dict[str, Any] = {"masked": data.mask_probability, "ngram": data.ngram_probability}
    if data.replace_probability:
        options |= {"replaced": data.replace_probability, "neighbours": Neighbours(teacher, tokenizer, texts)}
    return augment(texts, data.augmentations, seed=seed, **options)


def kept_result(
    path: Path, load: Callable[[Path], Any], make: Callable[[], Any], save: Callable[[Path, Any], Any], count: int
) -> Any:
    """A result that an interrupted run may have left: loaded if it is there, else made and saved.

    Args:
        path: Its file.
        load: Reads it.
        make: Makes it.
        save: Writes it, on the first process.
        count: Number of its rows; a file with another is not used.
    """
    if path.is_file() and len(kept := load(path)) == count:
        return kept
    result = make()
    if PartialState().is_main_process:
        partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        save(partial, result)
        partial.replace(path)
    return result


def load_texts(path: Path) -> list[str]:
    """A list of texts from a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def save_texts(path: Path, texts: Sequence[str]) -> None:
    """Write a list of texts to a JSON file."""
    path.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")


def report(
    run: Run,
    task: Task,
    models: Mapping[str, tuple[Any, PreTrainedTokenizerBase, Path]],
    make_function: Callable[[Any, PreTrainedTokenizerBase], Callable[[Sequence[str]], Any]],
    titles: Mapping[str, str],
    greedy: str | None = None,
) -> None:
    """Score and time all models on the test, print and save the table, and publish the student if that is wanted.

    Args:
        run: The run.
        task: The task.
        models: Name to model, tokenizer and directory; `teacher` and `student` among them.
        make_function: Makes of a model and its tokenizer the function from texts to outputs that is timed.
        titles: Score to the title of its column.
        greedy: Score that is also computed of greedy search, in the column `<score>_greedy`.

    Raises:
        InputError: As `publish`.
    """
    split, scores = test_split(task), {}
    for name, (model, tokenizer, _) in models.items():
        scores[name] = score_model(task, model, tokenizer, split, **task.test_options())
        if greedy is not None:
            searched = score_model(task, model, tokenizer, split, num_beams=1)
            scores[name][f"{greedy}_greedy"] = searched[greedy]
    for name, found in score_baseline(task, split).items():
        scores[name] = found | ({} if greedy is None else {f"{greedy}_greedy": found[greedy]})
    if not PartialState().is_main_process:
        return
    texts = [getattr(run.data, "source_prefix", "") + text for text in task.sources(split)[: run.data.speed_texts]]
    timed = {name: (make_function(model, its), model, place) for name, (model, its, place) in models.items()}
    costs = measure_costs(timed, texts, rounds=1 if task.generates else 5)
    output_dir, lines = str(run.args.output_dir), cost_table(scores, costs, titles)
    results = {
        f"{split}_{system.replace(' ', '_')}_{key}": value
        for system, found in scores.items()
        for key, value in (found | costs.get(system, {})).items()
    }
    save_results(output_dir, results | {f"{split}_{key}": value for key, value in scores["student"].items()})
    (Path(output_dir) / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join([f"\n{split}: {task.summary(split, task.references[split])}", *lines]))
    faster = costs["teacher"]["ms_a_text"] / costs["student"]["ms_a_text"]
    print(f"\nthe student is {faster:.1f} times as fast as the teacher for one text")
    print(f"model, scores and table are in {output_dir}")
    publish_run(run, task, split, **task.about(split, task.show(task.references[split])))

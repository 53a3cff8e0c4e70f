"""Knowledge distillation from a larger teacher model (Hinton et al. 2015; Tang et al. 2019)."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.nn.functional import kl_div, log_softmax, mse_loss
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.collation import CheckedCollator
from hfseq.data.encoding import encode_texts
from hfseq.errors import InputError
from hfseq.heads import require_text
from hfseq.inference.benchmark import cost_table, measure_costs
from hfseq.inference.classify import predict_logits
from hfseq.inference.loading import load_trained
from hfseq.lazy import datasets
from hfseq.tasks.base import Task
from hfseq.tasks.losses import classification_loss
from hfseq.training.arguments import ModelArguments
from hfseq.training.reporting import open_repository, save_results
from hfseq.training.run import Run, fit, new_model, publish_run, score_baseline
from hfseq.training.teacher_embeddings import Neighbours
from hfseq.training.teacher_embeddings import start_from_teacher as start_from_teacher

MASK = None
"""Placeholder of a masked word."""


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
    """Generate augmented variants of texts for a teacher to label (Tang et al. 2019, section 3.2).

    Each word is masked with probability `masked`; an unmasked word is replaced by one of its neighbours with
    probability `replaced`. Neighbours are words close in the teacher's space (Jiao et al. 2020, section 4, algorithm
    1), rather than words of the same part of speech as in Tang et al., so that no tagger is needed. Then, with
    probability `ngram`, only an n-gram of one to five words is kept. Duplicates, of other variants or of the texts
    themselves, are dropped.

    Args:
        texts: Whitespace-separated texts.
        count: Variants per text, before duplicates are dropped.
        masked: Probability of masking a word.
        replaced: Probability of replacing an unmasked word.
        neighbours: Returns the substitutes of a word, as `Neighbours` does; an empty list keeps the word.
        ngram: Probability of truncating a text to an n-gram.
        seed: Random seed.

    Yields:
        Words of a variant, with `MASK` in place of masked words.
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


def encode_variants(
    variants: Sequence[Sequence[str | None]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> datasets.Dataset:
    """Encode variants in order, with the tokenizer's mask token (or else its unknown token) for masked words.

    Special tokens in their text are parsed as such.
    """
    mask = tokenizer.mask_token or tokenizer.unk_token or ""
    texts = [" ".join(mask if word is MASK else word for word in words) for words in variants]
    rows = datasets.Dataset.from_dict({"text": texts})
    options = {"truncation": True, "max_length": max_length, "split_special_tokens": False}
    # In batches, to bound the memory of the tokenizer's output.
    return rows.map(lambda batch: dict(tokenizer(batch["text"], **options)), batched=True, remove_columns="text")


def encode_rows(
    texts: Sequence[str], variants: Sequence[Sequence[str | None]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> datasets.Dataset:
    """Encode texts, followed by variants of them."""
    plain, _ = encode_texts(tokenizer, texts, max_length)
    rows = datasets.Dataset.from_dict(dict(plain))
    if not variants:
        return rows
    return datasets.concatenate_datasets([rows, encode_variants(variants, tokenizer, max_length)])


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
    """Teacher logits `[N, num_labels]` of texts, followed by variants, computed jointly by all processes.

    Args:
        teacher: Sequence classifier, on its device.
        tokenizer: Tokenizer of the teacher.
        texts: Texts to classify.
        variants: Variants from `augment`.
        max_length: Maximum length in tokens; longer texts are truncated.
        batch_size: Batch size.
        dtype: `float32`, or `bfloat16` for automatic mixed precision.
        progress: Title of a progress bar; None for no bar.

    Raises:
        InputError: The teacher reads no text.
    """
    require_text(teacher, "distillation on texts")
    rows = encode_rows(texts, variants, tokenizer, max_length)
    collator = CheckedCollator(DataCollatorWithPadding(tokenizer), teacher)
    with torch.autocast(teacher.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        return predict_logits(teacher, rows, collator, batch_size=batch_size, progress=progress)


def fingerprint(*values: Any) -> str:
    """Hash of values, to name cached results by their inputs."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def student_rows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    labels: Sequence[int],
    variants: Sequence[Sequence[str | None]],
    logits: np.ndarray,
    max_length: int,
) -> datasets.Dataset:
    """Training rows for a student: `labels` are the teacher's logits followed by the gold class.

    Args:
        tokenizer: Tokenizer of the student.
        texts: Texts to train on.
        labels: Class ids of the texts, -1 where unknown; may be shorter than `texts` if the last ones are unlabelled.
        variants: Further, unlabelled rows from `augment`.
        logits: Teacher logits of texts and variants, `[N, num_labels]`.
        max_length: Maximum length in tokens; longer texts are truncated.
    """
    rows = encode_rows(texts, variants, tokenizer, max_length)
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
    r"""Distillation loss: distance to the teacher's logits, plus cross-entropy of the gold class.

    $(1 - \alpha)\,L_{soft} + \alpha\,L_{hard}$, where $L_{hard}$ is the cross-entropy of the labelled rows and
    $L_{soft}$ is

    - `mse`: $\|z^{(T)} - z^{(S)}\|^2_2$, averaged over classes (Tang et al. 2019, section 3.1);
    - `kl`: $\tau^2\,KL(p^{(T)} \| p^{(S)})$ of the softmax at temperature $\tau$ (Hinton et al. 2015, section 2).

    Args:
        logits: Student logits, `[B, K]`.
        labels: Labels from `student_rows`, `[B, K + 1]`; or class ids `[B]`, for plain cross-entropy.
        kind: Soft loss, `mse` or `kl`.
        temperature: Softmax temperature of `kl`.
        hard_weight: Weight alpha of the hard loss.
        count: Number of label values in all accumulated batches over all processes, the Trainer's
            `num_items_in_batch`; None for this batch alone.
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
    """Return `distillation_loss` as a `compute_loss_func`; `settings` are its keyword arguments."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        return distillation_loss(outputs.logits, labels, count=num_items_in_batch, **settings)

    return loss


def check_flags(run: Run) -> None:
    """Reject flags that have no effect on distillation.

    Raises:
        InputError: Such a flag was given.
    """
    recipe = f"recipes/{'sentiment' if run.data.task == 'classification' else 'translation'}.py"
    if run.args.hp_search or run.args.do_predict:
        raise InputError(f"--hp_search and --do_predict are not supported here; use {recipe}")
    if run.data.task == "classification" and run.args.label_smoothing_factor:
        raise InputError("--label_smoothing_factor has no effect on the student's loss; omit it")
    if getattr(run.data, "teacher_tokenizer", False) and run.model.model_name_or_path:
        raise InputError(
            "--teacher_tokenizer requires a new student; the --model_name_or_path checkpoint has its own tokenizer"
        )
    open_repository(run.args)


def classification_teacher(run: Run, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Path]:
    """Return the teacher on its device, its tokenizer and its directory: a checkpoint, or a new model trained here.

    Args:
        run: The run.
        task: Task with all labelled training rows.

    Raises:
        InputError: The checkpoint cannot be loaded, or a flag for training is invalid.
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
    """Augment texts according to the flags, with word neighbours in the teacher's space; see `augment`."""
    options: dict[str, Any] = {"masked": data.mask_probability, "ngram": data.ngram_probability}
    if data.replace_probability:
        options |= {"replaced": data.replace_probability, "neighbours": Neighbours(teacher, tokenizer, texts)}
    return augment(texts, data.augmentations, seed=seed, **options)


def kept_result(
    path: Path, load: Callable[[Path], Any], make: Callable[[], Any], save: Callable[[Path, Any], Any], count: int
) -> Any:
    """Load a cached result of an interrupted run, or compute and save it.

    Args:
        path: Cache file.
        load: Reads the result from a file.
        make: Computes the result.
        save: Writes the result to a file, on the main process.
        count: Expected number of rows; a file with another number is ignored.
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
    """Read a list of texts from a JSON file."""
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
    """Evaluate and benchmark all models on the test split, print and save the table, and publish if requested.

    Args:
        run: The run.
        task: Task with the test split.
        models: Model, tokenizer and directory by name, including `teacher` and `student`.
        make_function: Returns the benchmarked function, from texts to outputs, for a model and its tokenizer.
        titles: Column titles by score name.
        greedy: Score that is also reported for greedy search, in column `<score>_greedy`.

    Raises:
        InputError: Publishing fails.
    """
    split, scores = task.test_split, {}
    for name, (model, tokenizer, _) in models.items():
        tested = task.encoded_split(model.to(run.args.device), tokenizer, split)
        scores[name] = tested.evaluate(model, split, **task.test_options())
        if greedy is not None:
            scores[name][f"{greedy}_greedy"] = tested.evaluate(model, split, num_beams=1)[greedy]
    for name, found in score_baseline(task, split).items():
        scores[name] = found | ({} if greedy is None else {f"{greedy}_greedy": found[greedy]})
    if not PartialState().is_main_process:
        return
    texts = [getattr(run.data, "source_prefix", "") + text for text in task.sources(split)[: run.data.speed_texts]]
    timed = {name: (make_function(model, its), model, place) for name, (model, its, place) in models.items()}
    costs = measure_costs(timed, texts, rounds=1 if task.generates else 5)
    output_dir, lines = Path(run.args.output_dir), cost_table(scores, costs, titles)
    results = {
        f"{split}_{system.replace(' ', '_')}_{key}": value
        for system, found in scores.items()
        for key, value in (found | costs.get(system, {})).items()
    }
    save_results(str(output_dir), results | {f"{split}_{key}": value for key, value in scores["student"].items()})
    (output_dir / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join([f"\n{split}: {task.summary(split, task.references[split])}", *lines]))
    faster = costs["teacher"]["ms_a_text"] / costs["student"]["ms_a_text"]
    print(f"\nthe student is {faster:.1f} times as fast as the teacher for one text")
    print(f"model, scores and table are in {output_dir}")
    publish_run(run, task, split)

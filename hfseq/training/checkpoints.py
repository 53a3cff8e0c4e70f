"""Crash-safe checkpoints.

A checkpoint is a directory `checkpoint-<step>`. The last file written into it is a manifest of its files and their
sizes; a checkpoint without a manifest, or with a file that does not match it, counts as torn. Older checkpoints are
deleted only once the newest has its manifest, so that a process killed at any moment leaves a complete one behind, as
soon as there has been one.

The second half serves an explicit Accelerate loop: `save_checkpoint`, `load_checkpoint`, `epoch_batches`.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hfseq.data.streaming import BatchStream
from hfseq.errors import InputError
from hfseq.json_files import file_beside, read_object

MANIFEST = "complete.json"
LOOP_STATE = "loop_state.json"


def _sync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mark_complete(checkpoint: str | os.PathLike) -> None:
    """Write or renew the manifest of the files below `checkpoint`, all of them flushed to disk before it appears."""
    root = Path(checkpoint)
    partial = root / f"{MANIFEST}.partial"
    files = sorted(path for path in root.rglob("*") if path.is_file() and path not in (root / MANIFEST, partial))
    sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in files}
    partial.write_text(json.dumps({"files": sizes}, indent=1), encoding="utf-8")
    for path in (*files, partial):
        _sync(path)
    partial.replace(root / MANIFEST)
    _sync(root)
    _sync(root.parent)


def is_complete(checkpoint: str | os.PathLike) -> bool:
    """Return True if `checkpoint` has a manifest and every file listed there has the size listed.

    Raises:
        InputError: The manifest is malformed, or lists a file outside `checkpoint`.
    """
    manifest = Path(checkpoint) / MANIFEST
    if not manifest.is_file():
        return False
    sizes = read_object(manifest).get("files")
    if not isinstance(sizes, dict):
        raise InputError(f"{manifest}: no mapping of files to sizes")
    try:
        return all(file_beside(manifest, name, below=True).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, NotADirectoryError):
        return False


def list_checkpoints(output_dir: str | os.PathLike) -> list[tuple[int, Path]]:
    """Return `(step, directory)` of every `checkpoint-<step>`, complete or torn, sorted by step."""
    matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(output_dir).glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in matches if match and path.is_dir())


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """Return the complete checkpoint with the highest step in `output_dir`, or None."""
    return next((str(path) for _, path in reversed(list_checkpoints(output_dir)) if is_complete(path)), None)


def find_checkpoint(output_dir: str | os.PathLike, resume_from: str | None) -> str | None:
    """Resolve `--resume_from_checkpoint`: `last` for the newest complete checkpoint, or a directory.

    Returns:
        The directory, or None to start from scratch: not resuming, or the run was killed before its first checkpoint
        was complete.

    Raises:
        InputError: The directory is not a complete checkpoint.
    """
    if resume_from is None:
        return None
    if resume_from == "last":
        return last_complete_checkpoint(output_dir)
    if not is_complete(resume_from):
        raise InputError(
            f"--resume_from_checkpoint {resume_from}: not a complete checkpoint (no valid {MANIFEST}); "
            "'last' selects the newest complete one in --output_dir"
        )
    return resume_from


def remove_checkpoint(checkpoint: str | os.PathLike) -> None:
    """Delete a checkpoint, its manifest first, so that a half-deleted one does not count as complete.

    If it is a symbolic link, only the link is deleted.
    """
    root = Path(checkpoint)
    if root.is_symlink():
        root.unlink()
        return
    (root / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)


def best_checkpoint(checkpoint: str | os.PathLike, recorded: Any) -> Path:
    """Locate the best checkpoint of a resumed run.

    Args:
        checkpoint: Checkpoint to resume from; the best one may lie beside it, as a folder of checkpoints can be moved.
        recorded: Path of the best checkpoint as recorded in the state of `checkpoint`.

    Raises:
        InputError: It is in neither place, or `recorded` is not the path of a `checkpoint-<step>`.
    """
    name = Path(recorded).name if isinstance(recorded, str) else ""
    if re.fullmatch(r"checkpoint-\d+", name) is None:
        raise InputError(
            f"{checkpoint}: its state names {recorded!r:.300} as the best checkpoint of its run, which is "
            "not a checkpoint-STEP; resume from another checkpoint"
        )
    for path in (Path(checkpoint).parent / name, Path(recorded)):
        if is_complete(path):
            return path
    raise InputError(
        f"{checkpoint}: the best checkpoint of its run, {name}, is not beside it; copy it there, or "
        "resume from another checkpoint"
    )


def rotate_checkpoints(
    output_dir: str | os.PathLike, total_limit: int | None, *, newest: int, best: int | None = None
) -> None:
    """Delete torn checkpoints and the oldest complete ones, so that `total_limit` remain.

    The checkpoints of the steps `newest` (just completed) and `best` are always kept. No limit (None or 0) deletes
    nothing.
    """
    if not total_limit:
        return
    checkpoints = list_checkpoints(output_dir)
    kept = {newest, best}
    spare = total_limit - sum(step in kept for step, _ in checkpoints)
    for step, path in reversed(checkpoints):
        if step in kept:
            continue
        if spare > 0 and is_complete(path):
            spare -= 1
        else:
            remove_checkpoint(path)


def save_stream(stream: BatchStream, checkpoint: str | os.PathLike, rank: int, batches: int) -> None:
    """Save the position of a rank's stream after `batches` batches into a checkpoint that is not complete yet."""
    (Path(checkpoint) / f"stream_{rank}.json").write_text(json.dumps(stream.state_dict(batches)), encoding="utf-8")


def load_stream(stream: BatchStream, checkpoint: str | os.PathLike, rank: int) -> None:
    """Restore the position of a rank's stream that `save_stream` saved.

    Raises:
        InputError: The checkpoint is from a run without streaming, or with fewer processes.
    """
    path = Path(checkpoint) / f"stream_{rank}.json"
    if not path.is_file():
        raise InputError(
            f"{checkpoint} is not from a run with --streaming and as many processes; start from scratch instead"
        )
    stream.load_state_dict(read_object(path))


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | os.PathLike,
    step: int,
    state: dict[str, Any],
    *,
    total_limit: int | None = None,
    best_step: int | None = None,
    stream: BatchStream | None = None,
    batches: int = 0,
) -> Path:
    """Write `checkpoint-<step>` of a training loop, then delete checkpoints beyond `total_limit`.

    The states of model, optimizer, scheduler, scaler and random generators are Accelerate's (`save_state`). They are
    written to a temporary directory that is renamed when complete. Call it on all ranks, after the evaluation of the
    step.

    Args:
        accelerator: The one that prepared the model, the optimizer and the scheduler.
        output_dir: Parent directory of the checkpoints.
        step: Number of optimizer steps done.
        state: Further state of the loop, as JSON values: epoch, batches done in it, best metric, patience, log.
        total_limit: Number of checkpoints to keep.
        best_step: Step of the best checkpoint, which is always kept.
        stream: Stream that this rank reads its rows from, if any.
        batches: Number of its batches done so far.

    Returns:
        The checkpoint's directory.
    """
    target = Path(output_dir) / f"checkpoint-{step}"
    partial = target.with_name(f"{target.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    # Accelerate's safetensors drop one of two tied weights and warn of it at every save.
    accelerator.save_state(str(partial), safe_serialization=False)
    if stream is not None:
        save_stream(stream, partial, accelerator.process_index, batches)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / LOOP_STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        mark_complete(partial)
        remove_checkpoint(target)
        partial.rename(target)
        _sync(target.parent)
        for leftover in target.parent.glob("checkpoint-*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        rotate_checkpoints(output_dir, total_limit, newest=step, best=best_step)
    accelerator.wait_for_everyone()
    return target


def load_checkpoint(
    accelerator: Accelerator, checkpoint: str | os.PathLike, required: Sequence[str] = ()
) -> dict[str, Any]:
    """Restore the states that `save_checkpoint` saved; call it after `prepare`.

    Optimizer and random states are pickled: resume only from checkpoints that you trust.

    Args:
        accelerator: The one that prepared the model, the optimizer and the scheduler.
        checkpoint: Directory of the checkpoint.
        required: Values that the state of the loop must have.

    Returns:
        The `state` of the loop.

    Raises:
        InputError: The state is not a JSON object, or lacks a value.
    """
    accelerator.load_state(str(checkpoint))
    state = read_object(Path(checkpoint) / LOOP_STATE)
    if missing := [name for name in required if name not in state]:
        raise InputError(f"{checkpoint}: {LOOP_STATE} has no value for {missing[0]!r}")
    return state


def epoch_batches(accelerator: Accelerator, dataloader: Any, epoch: int, skip: int = 0) -> Iterator[Any]:
    """Iterate over the batches of an epoch, after skipping the first `skip` of this rank.

    A resumed run gets the batches, and the random numbers, of an uninterrupted one:

    - The epoch is set before skipping, because with several processes `set_epoch` does not reach a sampler behind
      `SkipBatchSampler` and `BatchSamplerShard`.
    - Starting an iterator, at the start of an epoch or on resuming, draws a seed for the workers from torch's global
      generator; the generator's state is restored.

    Args:
        accelerator: The one that prepared `dataloader`.
        dataloader: Over a `TokenBudgetBatchSampler`, or with `DataLoaderConfiguration(use_seedable_sampler=True)`.
        epoch: Number of the epoch, from 0.
        skip: Number of batches of this epoch already done on this rank.
    """
    dataloader.set_epoch(epoch)
    if skip:
        dataloader = accelerator.skip_first_batches(dataloader, skip)
    batches = iter(dataloader)
    with torch.random.fork_rng(devices=[]):
        first = next(batches, None)
    if first is not None:
        yield first
        yield from batches

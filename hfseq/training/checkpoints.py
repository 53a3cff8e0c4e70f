"""Checkpoints that are complete, or recognisably not.

A checkpoint is a directory `checkpoint-<step>`. The last thing written into it is a manifest of its files and their
sizes; without that, or with a file that does not match it, the checkpoint is taken for a torn one. Older checkpoints
go only after the manifest of the newest stands, so a process killed at any moment leaves a complete one behind, once
there has been one.

The second half serves an explicit Accelerate loop: `save_checkpoint`, `load_checkpoint`, `epoch_batches`.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
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
    """Wait until a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mark_complete(checkpoint: str | os.PathLike) -> None:
    """Write the manifest: the files below `checkpoint` with their sizes, all of them on the disk before it appears."""
    root = Path(checkpoint)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in files}
    partial = root / f"{MANIFEST}.partial"
    with open(partial, "w", encoding="utf-8") as stream:
        json.dump({"files": sizes}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, root / MANIFEST)
    _sync(root)
    _sync(root.parent)


def is_complete(checkpoint: str | os.PathLike) -> bool:
    """True if `checkpoint` has a manifest and every file in it has the size that stands there.

    Raises:
        InputError: The manifest is broken, or names a file outside `checkpoint`.
    """
    manifest = Path(checkpoint) / MANIFEST
    if not manifest.is_file():
        return False
    sizes = read_object(manifest).get("files")
    if not isinstance(sizes, dict):
        raise InputError(f"{manifest}: it has no files with their sizes")
    try:
        return all(file_beside(manifest, name, below=True).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _checkpoints(output_dir: str | os.PathLike) -> list[tuple[int, Path]]:
    """`(step, directory)` of every `checkpoint-<step>`, complete or not, by step."""
    matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(output_dir).glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in matches if match and path.is_dir())


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The complete checkpoint of the highest step in `output_dir`, or None."""
    return next((str(path) for _, path in reversed(_checkpoints(output_dir)) if is_complete(path)), None)


def find_checkpoint(output_dir: str | os.PathLike, resume_from: str | None) -> str | None:
    """What `--resume_from_checkpoint` means: `last` is the newest complete checkpoint, anything else a directory.

    Returns:
        The directory, or None to start from the beginning: nothing was asked for, or there is no complete checkpoint
        yet because the run was killed before its first.

    Raises:
        InputError: the directory is not a complete checkpoint.
    """
    if resume_from is None:
        return None
    if resume_from == "last":
        return last_complete_checkpoint(output_dir)
    if not is_complete(resume_from):
        raise InputError(
            f"--resume_from_checkpoint {resume_from}: not a complete checkpoint (it has no valid {MANIFEST}); "
            "'last' takes the newest complete one of --output_dir"
        )
    return resume_from


def remove_checkpoint(checkpoint: str | os.PathLike) -> None:
    """Delete a checkpoint, its manifest first: one that is deleted halfway is not taken for complete.

    Of a link to a checkpoint only the link goes.
    """
    root = Path(checkpoint)
    if root.is_symlink():
        root.unlink()
        return
    (root / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)


def best_checkpoint(checkpoint: str | os.PathLike, recorded: Any) -> Path:
    """The best checkpoint of a run that goes on from one of its checkpoints.

    Args:
        checkpoint: What it goes on from; the best one may lie beside it, since a folder of checkpoints may be moved.
        recorded: Where the best one was when `checkpoint` was written, as a state in it says.

    Raises:
        InputError: It is in neither place, or what was recorded is no path of a `checkpoint-<step>`.
    """
    name = Path(recorded).name if isinstance(recorded, str) else ""
    if re.fullmatch(r"checkpoint-\d+", name) is None:
        raise InputError(
            f"{checkpoint}: its state names {recorded!r:.300} as the best checkpoint of its run, which is no "
            "checkpoint-STEP; take another checkpoint to go on from"
        )
    places = [Path(checkpoint).parent / name, Path(recorded)]
    for path in places:
        if is_complete(path):
            return path
    raise InputError(
        f"{checkpoint}: the best checkpoint of its run, {name}, is not beside it; copy it there, or take "
        "another checkpoint to go on from"
    )


def rotate_checkpoints(
    output_dir: str | os.PathLike, total_limit: int | None, *, newest: int, best: int | None = None
) -> None:
    """Delete the oldest checkpoints, and torn ones, so that `total_limit` stay.

    The checkpoints of the steps `newest` (just written and complete) and `best` always stay. No limit (None or 0)
    deletes nothing.
    """
    if not total_limit:
        return
    checkpoints = _checkpoints(output_dir)
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
    """Write where a process's stream stood after `batches` batches, into a checkpoint that is not complete yet."""
    (Path(checkpoint) / f"stream_{rank}.json").write_text(json.dumps(stream.state_dict(batches)), encoding="utf-8")


def load_stream(stream: BatchStream, checkpoint: str | os.PathLike, rank: int) -> None:
    """Let a process's stream go on where `save_stream` says.

    Raises:
        InputError: The checkpoint is of a run without a stream, or of other processes.
    """
    path = Path(checkpoint) / f"stream_{rank}.json"
    if not path.is_file():
        raise InputError(f"{checkpoint} is not of a run with --streaming on as many processes; start afresh")
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
    """Write `checkpoint-<step>` of a loop on every rank, then delete what passes `total_limit`.

    Model, optimizer, scheduler, scaler and random states are Accelerate's (`save_state`). They are written beside
    their place and renamed into it when complete. Call it on all ranks, after the evaluation of the step.

    Args:
        accelerator: that prepared the model, the optimizer and the scheduler.
        output_dir: where checkpoints stand.
        step: optimizer steps done.
        state: what else the loop needs to go on, JSON values: epoch, batches done in it, best metric, patience, log.
        total_limit: how many checkpoints stay.
        best_step: the step of the best checkpoint, which always stays.
        stream: what this rank reads its rows from, if it is one.
        batches: of it, done so far.

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
        if target.exists():
            remove_checkpoint(target)
        partial.rename(target)
        _sync(target.parent)
        for leftover in target.parent.glob("checkpoint-*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        rotate_checkpoints(output_dir, total_limit, newest=step, best=best_step)
    accelerator.wait_for_everyone()
    return target


def load_checkpoint(accelerator: Accelerator, checkpoint: str | os.PathLike) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote, after `prepare`; returns its `state`.

    Raises:
        InputError: The state is not a JSON object.
    """
    accelerator.load_state(str(checkpoint))
    return read_object(Path(checkpoint) / LOOP_STATE)


def epoch_batches(accelerator: Accelerator, dataloader: Any, epoch: int, skip: int = 0) -> Iterator[Any]:
    """The batches of an epoch, from the one after the first `skip` of this rank.

    A resumed run gets the batches, and the random numbers, that it would have had without the interruption:

    - the epoch is set before the skipping, since on several processes it does not reach a sampler behind
      `SkipBatchSampler` and `BatchSamplerShard`;
    - starting an iterator draws a seed for the workers from torch's global generator, at the start of an epoch or at
      the point of resumption; the generator is put back.

    Args:
        accelerator: that prepared `dataloader`.
        dataloader: over a `TokenBudgetBatchSampler`, or with `DataLoaderConfiguration(use_seedable_sampler=True)`.
        epoch: from 0.
        skip: batches of this epoch already done on this rank.
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

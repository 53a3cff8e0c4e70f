"""Runs that are killed with SIGKILL and resumed, against runs that were never stopped."""

import itertools
import json
import os
import random
import re
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from processes import FORKS
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSeq2SeqLM,
    EarlyStoppingCallback,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    get_cosine_schedule_with_warmup,
)

from hfseq import LstmConfig
from hfseq.data.token_budget import TokenBudgetBatchSampler, row_lengths
from hfseq.errors import InputError
from hfseq.training.accelerate_loop import Loop
from hfseq.training.averaging import last_checkpoints
from hfseq.training.checkpoints import (
    MANIFEST,
    best_checkpoint,
    epoch_batches,
    find_checkpoint,
    is_complete,
    last_complete_checkpoint,
    load_checkpoint,
    mark_complete,
    rotate_checkpoints,
    save_checkpoint,
)
from hfseq.training.trainer import GenerationTrainer

BEST, LAST, EPOCHS, PATIENCE = 8, 14, 6, 3


def tiny_model():
    set_seed(0)
    config = LstmConfig(vocab_size=40, hidden_size=16, embedding_size=16, num_hidden_layers=1, dropout=0.2)
    return AutoModelForSeq2SeqLM.from_config(config)


def rows():
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, 40, rng.integers(2, 12)).tolist() for _ in range(40)]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": [row[::-1] for row in ids]})


def score(step):
    """A metric that is best at step BEST, so that patience runs out at step LAST, in the third epoch."""
    return -abs(step - BEST)


def collate(features):
    width = max(len(feature["input_ids"]) for feature in features)
    source, target = (
        torch.tensor([feature[key] + [fill] * (width - len(feature[key])) for feature in features])
        for key, fill in (("input_ids", 0), ("labels", -100))
    )
    return {"input_ids": source, "attention_mask": (source != 0).long(), "labels": target}


class Watch(TrainerCallback):
    """Notes the batches, and kills the process at the end of a step."""

    def __init__(self, kill_step):
        self.kill_step = kill_step
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.kill_step:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at_operation(directory, number):
    """Die at the `number`-th time that Python opens, renames or removes something below `directory`."""
    operations = itertools.count(1)
    events = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}

    def hook(event, arguments):
        inside = event in events and isinstance(arguments[0], str | os.PathLike)
        if inside and str(arguments[0]).startswith(str(directory)) and next(operations) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def leave_at_once_if_a_checkpoint_is_lost(directory):
    """At each such operation: what a kill right there would leave to resume from never goes backwards."""
    newest, looking = 0, False

    def hook(event, arguments):
        nonlocal newest, looking
        if looking or not event.startswith(("open", "os.", "shutil.")) or str(directory) not in str(arguments):
            return
        looking = True
        checkpoint = last_complete_checkpoint(directory)
        step = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
        looking = False
        if step < newest:
            os._exit(3)
        newest = step

    sys.addaudithook(hook)


def tear_at_save(number):
    """Die in the middle of the `number`-th file that torch writes: half of it is there."""
    calls, write = itertools.count(1), torch.save

    def save(value, path, *args, **kwargs):
        write(value, path, *args, **kwargs)
        if next(calls) == number:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save


def trainer_run(
    output_dir,
    epochs=EPOCHS,
    kill_step=None,
    operation=None,
    tear=None,
    guard=False,
    stop_early=True,
    random_batches=False,
    size=1,
):
    if guard:
        leave_at_once_if_a_checkpoint_is_lost(output_dir)
    if operation:
        kill_at_operation(output_dir, operation)
    if tear:
        tear_at_save(tear)
    arguments = Seq2SeqTrainingArguments(
        str(output_dir),
        num_train_epochs=epochs,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        warmup_steps=3,
        save_strategy="steps",
        eval_strategy="steps" if stop_early else "no",
        save_steps=2,
        eval_steps=2,
        logging_steps=2,
        save_total_limit=2,
        load_best_model_at_end=stop_early,
        metric_for_best_model="score" if stop_early else None,
        greater_is_better=True,
        per_device_train_batch_size=int(8 * size),
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        seed=1,
    )
    watch = Watch(kill_step)

    class Recording(GenerationTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            watch.seen.append(inputs["input_ids"].tolist())
            return super().training_step(model, inputs, *args, **kwargs)

    trainer = Recording(
        model=tiny_model(),
        args=arguments,
        train_dataset=rows(),
        eval_dataset=rows().select(range(4)),
        data_collator=collate,
        compute_metrics=lambda _: {"score": score(trainer.state.global_step)},
        callbacks=[watch, *([EarlyStoppingCallback(PATIENCE)] if stop_early else [])],
        max_tokens=None if random_batches else int(80 * size),
    )
    trainer.train(resume_from_checkpoint="last")
    trainer.save_model(str(Path(output_dir) / f"final-{arguments.process_index}"))
    (Path(output_dir) / f"seen-{arguments.process_index}.json").write_text(json.dumps(watch.seen))


def loop_run(
    output_dir,
    epochs=EPOCHS,
    kill_step=None,
    operation=None,
    tear=None,
    guard=False,
    stop_early=True,
    random_batches=False,
    size=1,
):
    if guard:
        leave_at_once_if_a_checkpoint_is_lost(output_dir)
    if operation:
        kill_at_operation(output_dir, operation)
    if tear:
        tear_at_save(tear)
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=5)
    )
    model, data = tiny_model(), rows()
    if random_batches:
        loader = DataLoader(data, shuffle=True, batch_size=int(8 * size), collate_fn=collate)
    else:
        sampler = TokenBudgetBatchSampler(row_lengths(data), int(80 * size), num_replicas=accelerator.num_processes)
        loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = get_cosine_schedule_with_warmup(optimizer, 3, 100)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    state = {"epoch": 0, "batch": 0, "step": 0, "best": None, "best_step": None, "patience": 0}
    if (checkpoint := find_checkpoint(output_dir, "last")) is not None:
        state = load_checkpoint(accelerator, checkpoint)
    seen = []
    for epoch in range(state["epoch"], epochs):
        for batch in epoch_batches(accelerator, loader, epoch, state["batch"]):
            if state["patience"] == PATIENCE:
                break
            seen.append(batch["input_ids"].tolist())
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            state = {**state, "epoch": epoch, "batch": state["batch"] + 1, "step": state["step"] + 1}
            if state["step"] == kill_step:
                os.kill(os.getpid(), signal.SIGKILL)
            if state["step"] % 2 == 0:
                if stop_early and (state["best"] is None or score(state["step"]) > state["best"]):
                    state |= {"best": score(state["step"]), "best_step": state["step"], "patience": 0}
                elif stop_early:
                    state["patience"] += 1
                save_checkpoint(
                    accelerator, output_dir, state["step"], state, total_limit=2, best_step=state["best_step"]
                )
        state = {**state, "epoch": epoch + 1, "batch": 0}
    final = Path(output_dir) / f"final-{accelerator.process_index}"
    accelerator.unwrap_model(model).save_pretrained(final)
    (Path(output_dir) / f"seen-{accelerator.process_index}.json").write_text(json.dumps(seen))
    (final / "state.json").write_text(json.dumps(state))


def on_rank(rank, port, run, output_dir, options):
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    if port:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    run(output_dir, **options)
    if port:
        assert torch.distributed.get_world_size() == 2


def start(run, output_dir, processes=1, **options):
    """Run to the end or to the kill; the exit codes of the processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1] if processes > 1 else None
    children = [
        FORKS.Process(target=on_rank, args=(rank, port, run, output_dir, options)) for rank in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def weights(directory):
    file = Path(directory) / "model.safetensors"
    return load_file(file) if file.exists() else torch.load(file.with_name("pytorch_model.bin"), weights_only=True)


def same(left, right):
    one, other = weights(left), weights(right)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module", params=[trainer_run, loop_run])
def unbroken(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("unbroken")
    assert start(request.param, directory, guard=True) == [0]
    return request.param, directory


def progress(run, directory, step):
    """Best step and patience in a checkpoint."""
    checkpoint = Path(directory) / f"checkpoint-{step}"
    if run is loop_run:
        state = json.loads((checkpoint / "loop_state.json").read_text())
        return state["best_step"], state["patience"]
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    attributes = state["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"]
    return state["best_global_step"], attributes["early_stopping_patience_counter"]


def check_same_end(run, directory, reference):
    names = sorted(path.name for path in directory.glob("checkpoint-*"))
    assert names == [f"checkpoint-{LAST}", f"checkpoint-{BEST}"]
    assert all(is_complete(directory / name) for name in names)
    for name in [*names, "final-0"]:
        assert same(directory / name, reference / name), name
    assert progress(run, directory, LAST) == progress(run, reference, LAST) == (BEST, PATIENCE)


def test_killed_again_and_again(unbroken, tmp_path):
    """Killed at file operations, the writing and deleting of checkpoints among them, until one run gets through."""
    run, reference = unbroken
    rng = random.Random(3)
    had_checkpoint = False
    for attempt in itertools.count():
        torn = {"tear": rng.randint(1, 9)} if attempt == 1 else {"operation": rng.randint(5, 60)}
        codes = start(run, tmp_path, **({} if attempt > 7 else torn))
        newest = last_complete_checkpoint(tmp_path)
        assert newest or not had_checkpoint
        had_checkpoint = newest is not None
        if codes == [0]:
            break
        assert codes == [-signal.SIGKILL]
    assert attempt > 3
    check_same_end(run, tmp_path, reference)


def test_a_finished_run_has_nothing_left_to_train(unbroken):
    run, directory = unbroken
    assert start(run, directory) == [0]
    assert json.loads((directory / "seen-0.json").read_text()) == []
    check_same_end(run, directory, directory)


@pytest.mark.parametrize("random_batches", [False, True])
@pytest.mark.parametrize("run", [trainer_run, loop_run])
def test_two_processes_resume_inside_the_second_epoch(run, random_batches, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"epochs": 2, "stop_early": False, "random_batches": random_batches, "size": 0.4}
    assert start(run, whole, 2, **options) == [0, 0]
    steps = len(json.loads((whole / "seen-0.json").read_text()))
    resumed_at = steps // 2 + 2 - steps // 2 % 2
    killed = resumed_at + 1
    assert steps // 2 < resumed_at < killed < steps
    assert start(run, broken, 2, kill_step=killed, **options) == [-signal.SIGKILL] * 2
    assert last_complete_checkpoint(broken) == str(broken / f"checkpoint-{resumed_at}")
    assert start(run, broken, 2, **options) == [0, 0]
    for rank in range(2):
        seen = [json.loads((directory / f"seen-{rank}.json").read_text()) for directory in (whole, broken)]
        assert seen[0][resumed_at:] == seen[1]
    assert same(whole / "final-0", broken / "final-0")


def fake(directory, step, complete=True):
    checkpoint = Path(directory) / f"checkpoint-{step}"
    (checkpoint / "sub").mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"12345")
    (checkpoint / "sub" / "more").write_bytes(b"1")
    if complete:
        mark_complete(checkpoint)
    return checkpoint


def test_complete_or_not(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path, "last") is None
    assert last_complete_checkpoint(tmp_path / "absent") is None
    nine, ten = fake(tmp_path, 9), fake(tmp_path, 10)
    fake(tmp_path, 11, complete=False)
    (tmp_path / "checkpoint-12.partial").mkdir()
    assert last_complete_checkpoint(tmp_path) == find_checkpoint(tmp_path, "last") == str(ten)
    (ten / "sub" / "more").write_bytes(b"")
    assert not is_complete(ten)
    (ten / "sub" / "more").unlink()
    assert last_complete_checkpoint(tmp_path) == str(nine)
    assert find_checkpoint(tmp_path, str(nine)) == str(nine)
    for bad in (ten, tmp_path / "checkpoint-12.partial", tmp_path / "absent", nine / MANIFEST):
        with pytest.raises(InputError, match="--resume_from_checkpoint .*last"):
            find_checkpoint(tmp_path, str(bad))


def test_marking_twice_renews_the_manifest(tmp_path):
    checkpoint = fake(tmp_path, 1)
    # A process killed while it writes the manifest leaves this.
    (checkpoint / f"{MANIFEST}.partial").write_text("{")
    (checkpoint / "sub" / "more").write_bytes(b"12")
    assert not is_complete(checkpoint)
    for _ in range(2):
        mark_complete(checkpoint)
        assert json.loads((checkpoint / MANIFEST).read_text()) == {"files": {"sub/more": 2, "weights": 5}}
        assert is_complete(checkpoint) and last_complete_checkpoint(tmp_path) == str(checkpoint)


@pytest.mark.parametrize("name", ["../victim", "/victim", "sub/../../victim", "link", "C:victim", ""], ids=repr)
def test_files_of_a_checkpoint_are_its_own(name, tmp_path):
    (tmp_path / "victim").write_bytes(b"1")
    name = str(tmp_path / "victim") if name == "/victim" else name
    one, two = fake(tmp_path, 1), fake(tmp_path, 2)
    (one / "link").symlink_to(tmp_path / "victim")
    (one / MANIFEST).write_text(json.dumps({"files": {"weights": 5, name: 1}}))
    for function in (
        lambda: is_complete(one),
        lambda: find_checkpoint(tmp_path, str(one)),
        lambda: last_checkpoints(tmp_path, 1),
        lambda: rotate_checkpoints(tmp_path, 2, newest=2),
        lambda: best_checkpoint(two, str(one)),
    ):
        with pytest.raises(InputError, match=re.escape(f"{MANIFEST}: {name!r} ")):
            function()
    assert (tmp_path / "victim").read_bytes() == b"1" and (one / "weights").is_file()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"files": 5}', '{"files": ["weights"]}', '{"files": null}'])
def test_a_manifest_of_another_kind_is_one_line(text, tmp_path):
    checkpoint = fake(tmp_path, 1)
    (checkpoint / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=f"{MANIFEST}: ") as error:
        is_complete(checkpoint)
    assert "\n" not in str(error.value)


def test_of_a_link_to_a_checkpoint_the_link_goes(tmp_path):
    kept = fake(tmp_path / "elsewhere", 1)
    fake(tmp_path, 2)
    (tmp_path / "checkpoint-1").symlink_to(kept, target_is_directory=True)
    rotate_checkpoints(tmp_path, 1, newest=2)
    assert is_complete(kept) and not (tmp_path / "checkpoint-1").is_symlink()


@pytest.mark.parametrize(
    "recorded", [5, None, ["checkpoint-1"], {}, "", "run/victim", "checkpoint-1/..", "checkpoint-"]
)
def test_the_best_checkpoint_is_a_checkpoint(recorded, tmp_path):
    one, two = fake(tmp_path, 1), fake(tmp_path, 2)
    (tmp_path / "victim").mkdir()
    mark_complete(tmp_path / "victim")
    assert best_checkpoint(two, "gone/checkpoint-1") == best_checkpoint(tmp_path / "moved" / "x", str(one)) == one
    with pytest.raises(InputError, match=re.escape(f"names {recorded!r} as the best checkpoint")):
        best_checkpoint(two, recorded)


def change(checkpoint, name, **fields):
    """Writes other fields into a state, and the manifest anew."""
    state = json.loads((checkpoint / name).read_text())
    (checkpoint / name).write_text(json.dumps(state | fields))
    (checkpoint / MANIFEST).unlink()
    mark_complete(checkpoint)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"best_model_checkpoint": 5}, "names 5 as the best checkpoint"),
        ({"best_model_checkpoint": "../victim"}, "names '../victim' as the best checkpoint"),
        ({"unheard_of": 1}, "trainer_state.json: not a valid Trainer state"),
    ],
)
def test_a_state_of_the_trainer_that_is_none(fields, message, tmp_path):
    arguments = {"max_steps": 2, "save_steps": 1, "eval_steps": 1, "eval_strategy": "steps", "save_strategy": "steps"}
    arguments |= {"load_best_model_at_end": True, "use_cpu": True, "disable_tqdm": True, "report_to": []}
    trainer = GenerationTrainer(
        model=tiny_model(),
        args=Seq2SeqTrainingArguments(str(tmp_path), **arguments),
        train_dataset=rows(),
        eval_dataset=rows().select(range(4)),
        data_collator=collate,
        max_tokens=80,
    )
    trainer.train()
    change(tmp_path / "checkpoint-1", "trainer_state.json", **fields)
    with pytest.raises(InputError, match=message) as error:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"best_step": "../victim"}, "names .*checkpoint-../victim' as the best checkpoint"),
        ({"best_step": 7, "best_folder": ["x"]}, "the best checkpoint of its run, checkpoint-7, is not beside it"),
        (None, "loop_state.json has no value for 'running'"),
        ({"args": "other"}, None),
    ],
)
def test_a_state_of_a_loop_that_is_none(fields, message, tmp_path):
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(tiny_model())
    args = SimpleNamespace(output_dir=str(tmp_path))
    # All that resuming needs; the rest of a loop is about batches and optimizers.
    loop = object.__new__(Loop)
    loop.accelerator, loop.args, loop.stream, loop.running = accelerator, args, None, torch.tensor(0.0)
    loop.bar = tqdm(disable=True)
    state = {"epoch": 1, "step": 3, "log": [], "best": 0.5, "best_step": None, "best_folder": "x", "worse": 0}
    given = {} if fields is None else state | {"running": 0.25} | fields
    checkpoint = save_checkpoint(accelerator, tmp_path, 3, given)
    if message is None:
        loop._resume(str(checkpoint))
        assert loop.step == 3 and loop.args is args  # nothing but what a loop has saved
    else:
        with pytest.raises(InputError, match=message):
            loop._resume(str(checkpoint))


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(None, None, [1, 2, 3, 4, 10]), (1, None, [10]), (2, None, [4, 10]), (1, 2, [2, 10]), (3, 2, [2, 4, 10])],
)
def test_rotation(tmp_path, limit, best, left):
    for step in (1, 2, 4, 10):
        fake(tmp_path, step)
    fake(tmp_path, 3, complete=False)
    rotate_checkpoints(tmp_path, limit, newest=10, best=best)
    assert sorted(int(path.name.rpartition("-")[2]) for path in tmp_path.iterdir()) == left


def test_no_checkpoint_of_weights_that_are_not_finite(tmp_path):
    """The loss is fine, the update is not: the checkpoint before stays the newest."""
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=4, save_steps=2, use_cpu=True, disable_tqdm=True, report_to=[], logging_steps=1
    )

    class Spoil(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model, **kwargs):
            if state.global_step == 3:
                with torch.no_grad():
                    next(model.parameters())[3] = float("inf")

    trainer = GenerationTrainer(
        model=tiny_model(),
        args=arguments,
        train_dataset=rows(),
        data_collator=collate,
        callbacks=[Spoil()],
        max_tokens=80,
    )
    with pytest.raises(InputError, match="step 4"):
        trainer.train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-4").exists()


def test_a_loss_that_is_nan_names_the_step(tmp_path):
    arguments = Seq2SeqTrainingArguments(str(tmp_path), max_steps=9, use_cpu=True, disable_tqdm=True, report_to=[])

    class Spoilt(GenerationTrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * (float("nan") if self.state.global_step == 2 else 1)

    trainer = Spoilt(model=tiny_model(), args=arguments, train_dataset=rows(), data_collator=collate, max_tokens=80)
    with pytest.raises(InputError, match="step 3"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))

"""What the tests of all recipes share: running one in this process or in its own, and comparing what it left."""

import importlib.util
import itertools
import json
import random
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import processes
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.distributed import TCPStore

from hfseq.training import accelerate_loop as loop
from hfseq.training.cli import value_of
from hfseq.training.trainer import SequenceTrainer

ROOT = Path(__file__).parents[1]
PNG = b"\x89PNG\r\n\x1a\n"


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kinds_of(recipe, argv):
    """Dataclasses of the arguments of a recipe, which may depend on its task."""
    kinds, task = recipe.ARGUMENTS, value_of(argv, "task", "")
    if task == "translation" and hasattr(recipe, "TRANSLATION_ARGUMENTS"):
        return recipe.TRANSLATION_ARGUMENTS
    return kinds.get(task, next(iter(kinds.values()))) if isinstance(kinds, dict) else kinds


def arguments(config, **flags):
    """A YAML file and flags; a flag that is None is left out."""
    given = [(f"--{name}", str(value)) for name, value in flags.items() if value is not None]
    return [str(config), *(part for pair in given for part in pair)]


FINGERPRINTS = map("{:016x}".format, itertools.count())
# What would take a third of a short run and changes nothing in it. Figures are made and not drawn; test_reports.py
# looks at drawn ones. Data sets are in memory, where nothing asks for their fingerprints. Files are not forced to the
# disk, and garbage waits for the next module of tests.
LEFT_OUT = {
    "matplotlib.figure.Figure.savefig": lambda figure, path, **kwargs: Path(path).write_bytes(PNG),
    "datasets.arrow_dataset.generate_fingerprint": lambda *args: next(FINGERPRINTS),
    "datasets.arrow_dataset.update_fingerprint": lambda *args: next(FINGERPRINTS),
    "datasets.fingerprint.update_fingerprint": lambda *args: next(FINGERPRINTS),
    "os.fsync": lambda file: None,
    "gc.collect": lambda *args: 0,
}


def start(recipe, argv):
    """Runs a recipe in this process; see `LEFT_OUT`."""
    # Accelerate keeps what its first call in a process said.
    AcceleratorState._reset_state(reset_partial_state=True)
    with ExitStack() as patches:
        for name, other in LEFT_OUT.items():
            patches.enter_context(patch(name, other))
        recipe.main([str(argument) for argument in argv])


def script(name):
    return str(ROOT / "recipes" / f"{name}.py")


def run(name, argv):
    """Runs a recipe in a process of its own."""
    return processes.run(script(name), *argv)


def run_two(name, argv):
    """Runs a recipe in two processes that are told what torchrun tells them; see test_several_machines.py for it."""
    return in_two_processes(script(name), *argv)


def in_two_processes(*command):
    """Runs a script, or code after `-c`, in two processes; see `processes.run`."""
    # Torchrun holds the store too, so that no other program takes its port.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return processes.run(*command, environments=ranks)


def weights(directory):
    return load_file(Path(directory) / "model.safetensors")


def results(directory):
    return json.loads((Path(directory) / "all_results.json").read_text(encoding="utf-8"))


WORDS = {"good": ("fine", "great", "superb"), "bad": ("poor", "awful", "dull")}


def reviews(count, seed):
    """Texts and their classes, `bad` and `good` in turns, which a word of each says."""
    rng = random.Random(seed)
    for row in range(count):
        name = ("bad", "good")[row % 2]
        words = " ".join(rng.choices(WORDS[name], k=row % 3 + 1))
        yield f"the {rng.choice(('plot', 'cast', 'song'))} is {words}", name


def write_reviews(root):
    """Writes train.csv (40 rows), val.csv and test.csv (10)."""
    for seed, (name, count) in enumerate((("train", 40), ("val", 10), ("test", 10))):
        rows = "".join(f"{text},{label}\n" for text, label in reviews(count, seed))
        (root / f"{name}.csv").write_text(f"text,label\n{rows}", encoding="utf-8")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def assert_close(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


class Killed(Exception):
    pass


def kill_after_checkpoint(monkeypatch, driver, number):
    """The run of a driver dies when its `number`-th checkpoint is written."""
    count = 0
    accelerate = driver.endswith("_accelerate")
    owner, name = (loop, "save_checkpoint") if accelerate else (SequenceTrainer, "_save_checkpoint")
    original = getattr(owner, name)

    def save(*args, **kwargs):
        nonlocal count
        result = original(*args, **kwargs)
        count += 1
        if count == number:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, save)

"""Times of things that are compared, taken in turns on one machine, and their ratios."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

import hfseq

Side = Callable[[], float]
"""Does its work once and returns the seconds that it took."""


@dataclass
class Row:
    """One line of the table.

    Attributes:
        measure: Name of the measurement.
        beside: The alternative that it is compared with.
        target: The ratio to reach.
        ratios: One for each round; empty if it was not measured.
        at_most: Whether the ratio is to stay below the target, as a cost, not above it.
        note: Remark on the figures, or how to get them.
        figures: Medians in plain units, by their name.
        about: Provenance: machine, versions, command, commit, date.
    """

    measure: str
    beside: str
    target: float
    ratios: list[float] = field(default_factory=list)
    at_most: bool = False
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    @property
    def median(self) -> float | None:
        """Of the ratios, None if there are none."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def verdict(self) -> str:
        """`reached`, `missed` or `not measured`."""
        if self.median is None:
            return "not measured"
        reached = self.median <= self.target if self.at_most else self.median >= self.target
        return "reached" if reached else "missed"


def synchronize() -> None:
    """Wait until a GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock(work: Callable[[], Any]) -> Side:
    """A side that times a call in this process."""

    def side() -> float:
        synchronize()
        begin = time.perf_counter()
        work()
        synchronize()
        return time.perf_counter() - begin

    return side


def in_turns(sides: Mapping[str, Side], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Run the sides one after the other, again and again; every other round backwards.

    A machine that slows down for a while then slows all of them, and none is always the one that comes first.

    Args:
        sides: Name to what is run.
        rounds: How many times each is timed.
        warm_up: Rounds before those, which do not count.

    Returns:
        Seconds of each side in each round.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warm_up, rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            seconds = sides[name]()
            if number >= 0:
                times[name].append(seconds)
    return times


def speedups(times: Mapping[str, Sequence[float]], ours: str, theirs: str) -> list[float]:
    """Speed of `ours` over that of `theirs` at the same work, in each round."""
    return [other / own for own, other in zip(times[ours], times[theirs], strict=True)]


def machine(threads: int, device: str) -> dict[str, str]:
    """Device, processor, memory, threads, versions, commit and date, on which figures depend."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = {} if device == "cpu" else {"device": torch.cuda.get_device_name()}
    return gpu | {
        "processor": f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "memory": f"{memory:.0f} GiB",
        "threads": str(threads),
        "versions": f"hfseq {hfseq.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "numbers": "float32",
        "commit": commit(),
        "date": date.today().isoformat(),
    }


def commit() -> str:
    """The checked-out commit, marked if what is measured differs from it."""

    def git(*arguments: str) -> str:
        root = Path(__file__).parents[1]
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout.strip()

    code = ("hfseq", "benchmarks/*.py", "recipes/*.py", "recipes/configs")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return f"{git('rev-parse', '--short', 'HEAD') or 'not recorded'}{' with changes' if changed else ''}"

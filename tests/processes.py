"""Processes that are forked from one that has imported everything and computed nothing: no import for each."""

import faulthandler
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

MODULES = ["hfseq", "hfseq.training.trainer", "hfseq.training.accelerate_loop"]
# What a recipe imports when it scores and draws.
MODULES += ["matplotlib.backends.backend_agg", "matplotlib.ticker", "rouge_score.rouge_scorer", "sacrebleu"]
MODULES += ["seqeval.metrics", "sklearn.metrics"]
# What users of published checkpoints import, who need not have hfseq.
ELSEWHERE = ["torch", "transformers.generation", "transformers.models.auto.modeling_auto", "transformers.pipelines"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(MODULES)


LONGEST = 480


def run(*command, environments=({},), cwd=None, context=FORKS):
    """Runs a script, a module after `-m`, or code after `-c`, at once for each of `environments`, which are added.

    Returns:
        `returncode`, of the first process in which it is not 0, and `stdout` and `stderr`, in the order of processes.
    """
    command, cwd = list(map(str, command)), str(cwd or Path.cwd())
    with tempfile.TemporaryDirectory() as folder:
        streams = [(Path(folder, f"out-{rank}"), Path(folder, f"err-{rank}")) for rank in range(len(environments))]
        processes = [
            context.Process(target=_program, args=(command, environment, cwd, files))
            for environment, files in zip(environments, streams, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(LONGEST)
            process.kill()
            process.join()
        stdout, stderr = ("".join(path.read_text("utf-8") for path in paths) for paths in zip(*streams, strict=True))
    returncode = next((process.exitcode for process in processes if process.exitcode), 0)
    return SimpleNamespace(returncode=returncode, stdout=stdout, stderr=stderr)


def start(function, *arguments, count=2):
    """Calls `function(rank, *arguments)` in `count` processes at once; an exception in one of them is raised here."""
    import torch

    torch.multiprocessing.start_processes(function, arguments, nprocs=count, start_method="forkserver")


def run_elsewhere(*command, environment=None, cwd=None):
    """What `run` does, in a process that has not imported hfseq; a script sees to it that it cannot.

    `PYTHONPATH` and `HF_MODULES_CACHE` in `environment` count as if they had been set from the start.
    """
    return _elsewhere().run(*command, environment=environment or {}, cwd=cwd or Path.cwd())


@cache
def _elsewhere():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return Python(environment | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}, ELSEWHERE)


def _program(command, environment, cwd, streams):
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    # A process that hangs says where.
    faulthandler.dump_traceback_later(LONGEST - 20)
    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    os.chdir(cwd)
    # What Python and transformers read when they start.
    for folder in reversed(environment.get("PYTHONPATH", "").split(os.pathsep)):
        if folder:
            sys.path.insert(0, folder)
    if "HF_MODULES_CACHE" in environment:
        import transformers.dynamic_module_utils

        transformers.dynamic_module_utils.HF_MODULES_CACHE = environment["HF_MODULES_CACHE"]
    if command[0] in ("-c", "-m"):
        sys.path.insert(0, cwd)
        sys.argv = [command[0], *command[2:]]
    else:
        sys.path.insert(0, str(Path(command[0]).resolve().parent))
        sys.argv = command
    if command[0] == "-c":
        exec(command[1], {"__name__": "__main__"})
    elif command[0] == "-m":
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(command[0], run_name="__main__")


class Python:
    """Another such process to fork from, in its own environment, which libraries read when they are imported."""

    def __init__(self, environment, modules=MODULES):
        command = [sys.executable, __file__, *modules]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def run(self, *command, environment, cwd):
        """What `run` does."""
        asked = [list(map(str, command)), environment, str(cwd)]
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return SimpleNamespace(**json.loads(self._process.stdout.readline()))

    def close(self):
        self._process.communicate()


if __name__ == "__main__":
    for module in sys.argv[1:]:
        __import__(module)
    sys.path.pop(0)  # the folder of this file
    for line in sys.stdin:
        command, environment, cwd = json.loads(line)
        context = multiprocessing.get_context("fork")
        done = run(*command, environments=[environment], cwd=cwd, context=context)
        print(json.dumps(vars(done)), flush=True)

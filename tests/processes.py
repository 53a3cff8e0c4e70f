"""Processes that are forked from one that has imported everything and computed nothing: no import for each."""

import faulthandler
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

MODULES = ["hfseq", "hfseq.training.trainer", "hfseq.training.accelerate_loop"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(MODULES)


LONGEST = 240


def run(*command, environments=({},), cwd=None, context=FORKS):
    """Runs a script, or code after `-c`, with its arguments, at once for each of `environments`, which are added.

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


def _program(command, environment, cwd, streams):
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    # A process that hangs says where.
    faulthandler.dump_traceback_later(LONGEST - 20)
    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["-c", *command[2:]] if command[0] == "-c" else command
    if command[0] == "-c":
        exec(command[1], {"__name__": "__main__"})
    else:
        runpy.run_path(command[0], run_name="__main__")


class Python:
    """Another such process to fork from, in its own environment, which libraries read when they are imported."""

    def __init__(self, environment):
        command = [sys.executable, __file__]
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
    for module in MODULES:
        __import__(module)
    sys.path.pop(0)  # the folder of this file
    for line in sys.stdin:
        command, environment, cwd = json.loads(line)
        context = multiprocessing.get_context("fork")
        done = run(*command, environments=[environment], cwd=cwd, context=context)
        print(json.dumps(vars(done)), flush=True)

"""Training on several machines: a launcher on each of two addresses of the loopback."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import recipe_runs
from recipe_runs import assert_close, reviews, script, weights
from torch.distributed import TCPStore


def two_machines(name, argv):
    """Runs a recipe as a user does on two machines, with one process on each; returns what each printed."""
    # A free port; the store that finds it is closed at once.
    port = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launcher += ["--master_addr", "127.0.0.2", "--master_port", str(port)]
    with ExitStack() as stack:
        processes = []
        for rank, address in enumerate(("127.0.0.2", "127.0.0.1")):
            command = [*launcher, "--node_rank", str(rank), "--local_addr", address, script(name), *map(str, argv)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            process = stack.enter_context(subprocess.Popen(command, env=environment, **pipes))
            stack.callback(process.kill)
            processes.append(process)
        printed = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    return printed


def test_same_model_as_one_process(tmp_path):
    """Two machines train what one process trains that accumulates the gradients of two batches."""
    for seed, (name, count) in enumerate((("train", 36), ("val", 6), ("test", 6))):
        rows = [f"{text},{label}\n" for text, label in reviews(count, seed)]
        (tmp_path / f"{name}.csv").write_text("".join(["text,label\n", *rows]))
    files = {f"{split}_file": tmp_path / f"{name}.csv" for split, name in (("train", "train"), ("validation", "val"))}
    flags = files | {"test_file": tmp_path / "test.csv", "model_type": "hfseq_gru", "num_train_epochs": 2}
    flags |= {"config_overrides": '{"hidden_size": 8, "dropout": 0.0}', "learning_rate": 0.01, "use_cpu": True}
    flags |= {"per_device_train_batch_size": 6, "report_to": "none"}

    def arguments(output, **more):
        pairs = {**flags, "output_dir": tmp_path / output, **more}.items()
        return [part for name, value in pairs for part in (f"--{name}", str(value))]

    printed = two_machines("sentiment", arguments("two"))
    assert [text.count("2 process(es), 3 batches per epoch") for text in printed] == [1, 1]
    recipe_runs.start(recipe_runs.load("sentiment"), arguments("one", gradient_accumulation_steps=2))
    assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"))
    written = [Path(tmp_path, output, "predictions.txt").read_bytes() for output in ("one", "two")]
    assert written[0] == written[1]

"""Latency and memory of a stream of anomaly detection over a million values, one at a time.

    python benchmarks/anomaly_stream.py --steps 1000000 --output benchmarks/anomaly_stream.json

A forecaster of the size of recipes/configs/anomaly_detection_demo.yaml, with its lags of a step and of a day, reads
values that a program draws, as `--watch` does: each is pushed, scored, and compared with the threshold. The JSON has,
for each part of the stream, percentiles of the time of a step, the resident memory and the size of the saved state.
"""

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import hfseq
from hfseq.inference.anomalies import Scale, Settings, Stream


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(steps: int, parts: int, columns: int, output: Path) -> None:
    """Push `steps` rows of `columns` values, and write what was measured after each part; see the module."""
    torch.manual_seed(0)
    fields = {"input_size": columns, "hidden_size": 32, "lags_sequence": [1, 288], "scaling": None}
    config = hfseq.GruConfig(**fields, distribution_output="normal")
    names = tuple(f"x{number}" for number in range(columns))
    scale = Scale((0.0,) * columns, (1.0,) * columns, 28.0)
    settings = Settings(columns=names, scales={"stream": scale}, short_window=3, threshold=8.0)
    stream = Stream(hfseq.GruForPrediction(config), settings, "stream")
    rng = np.random.default_rng(0)
    rows, alarms = [], 0
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder, "state.safetensors")
        for part in range(parts):
            length = steps // parts
            times = 300.0 * np.arange(part * length, (part + 1) * length)
            values = rng.normal(size=(length, columns))
            taken = np.empty(length)
            for step in range(length):
                begin = time.perf_counter()
                score = float(stream.push(values[step : step + 1], times[step : step + 1])[0])
                alarms += stream.raises_alarm(score, stream.last_time)
                taken[step] = time.perf_counter() - begin
            stream.save(state)
            gc.collect()
            quantiles = {f"p{q}_ms": round(1e3 * float(np.percentile(taken, q)), 4) for q in (50, 90, 99)}
            row = {"steps": stream.steps, **quantiles, "resident_mib": round(resident(), 1)}
            rows.append(row | {"state_bytes": state.stat().st_size})
            print(rows[-1], flush=True)
            found = {"columns": columns, "alarms": alarms, "processor": processor(), "torch": torch.__version__}
            text = json.dumps(found | {"hfseq": hfseq.__version__, "parts": rows}, indent=2)
            output.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, default=20)
    parser.add_argument("--columns", type=int, default=1)
    parser.add_argument("--output", default="anomaly_stream.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measure(args.steps, args.parts, args.columns, Path(args.output))


def processor() -> str:
    """Name of the processor."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()

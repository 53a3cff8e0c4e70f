"""Time of CTC prefix beam search, alone and fused with language models of several sizes.

    .venv/bin/python benchmarks/ctc_search.py

One thread searches a batch of made-up logits: mostly blanks, a token in three of ten frames, and noise on both.
Printed, as a Markdown table: the processor time of a batch, the least of `--rounds`, and that of the alignment of the
texts found; and the number of prefixes that the language model read.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import hfseq


def make_logits(rows: int, frames: int, tokens: int) -> Tensor:
    """Logits `[B, T, V]` like those of a trained model; the blank is token 0."""
    torch.manual_seed(0)
    spoken = torch.where(torch.rand(rows, frames) < 0.3, torch.randint(1, tokens, (rows, frames)), 0)
    return torch.randn(rows, frames, tokens) + 8 * one_hot(spoken, tokens)


def least(run: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Processor time of the fastest round in seconds, after one that does not count, and its result."""
    times = []
    for _ in range(rounds + 1):
        begin = time.process_time()
        result = run()
        times.append(time.process_time() - begin)
    return min(times[1:]), result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 32), ("frames", 200), ("tokens", 32), ("beams", 16), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logits = make_logits(args.rows, args.frames, args.tokens)
    print(f"{args.rows} rows, {args.frames} frames, {args.tokens} tokens, {args.beams} beams\n")
    print("| | ms | prefixes read |\n|---|--:|--:|")
    options = {"blank_token_id": 0, "num_beams": args.beams}
    seconds, found = least(partial(hfseq.ctc_beam_search, logits, **options), args.rounds)
    print(f"| no language model | {1000 * seconds:.0f} | |")
    for width in (128, 256, 512):
        config = hfseq.LstmConfig(vocab_size=args.tokens, hidden_size=width, embedding_size=64)
        model = hfseq.LstmForCausalLM(config)
        read: list[int] = []
        model.register_forward_pre_hook(lambda *call, to=read: to.append(len(call[2]["input_ids"])), with_kwargs=True)
        search = partial(hfseq.ctc_beam_search, logits, language_model=model, **options)
        seconds, _ = least(search, args.rounds)
        print(f"| LSTM of {width} | {1000 * seconds:.0f} | {sum(read) // (args.rounds + 1):,} |")
    texts = [row[0].token_ids for row in found]
    seconds, _ = least(partial(hfseq.ctc_alignment, logits, texts, blank_token_id=0), args.rounds)
    print(f"| alignment of the texts | {1000 * seconds:.0f} | |")


if __name__ == "__main__":
    main()

"""Memory of the cache after a short and a long text, for every hfseq family and for a GPT-2 of like size.

    .venv/bin/python benchmarks/cache_memory.py

Measured are the bytes of all storages that `cache` keeps alive after so many tokens of one row; they go into
`benchmarks/cache_memory.json`, from which `make results` renders the table. A storage counts in full even if only a
view of it is kept. The long text runs in chunks longer than the short one, so that a view of a chunk's activations
would show as growth. Sequence-to-sequence models also keep what their decoder computed of the source, which is as
long in both runs.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from exactness import CACHE, cache_table, write
from timing import machine
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Cache,
    DynamicCache,
    GPT2Config,
    PreTrainedModel,
    set_seed,
)

from hfseq.models import MODEL_CLASSES

VOCABULARY, HIDDEN, LAYERS = 1000, 256, 2
SOURCE_LENGTH = 32


def stored_bytes(cache: Cache) -> int:
    """Bytes of the distinct storages of all tensors that can be reached from a cache."""
    storages: dict[int, int] = {}
    visited: dict[int, Any] = {}  # by id, and kept alive so that no id is used twice

    def walk(value: Any) -> None:
        if id(value) in visited:
            return
        visited[id(value)] = value
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return
        if not isinstance(value, dict | list | tuple | set):
            value = getattr(value, "__dict__", {})
        for item in value.values() if isinstance(value, dict) else value:
            walk(item)

    walk(cache)
    return sum(storages.values())


def models(longest: int) -> Iterator[tuple[str, PreTrainedModel]]:
    """Name and model: both generating heads of every family, and GPT-2."""
    for config_class in MODEL_CLASSES:
        config = config_class(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS)
        for auto_class in (AutoModelForCausalLM, AutoModelForSeq2SeqLM):
            model = auto_class.from_config(config).eval()
            yield type(model).__name__, model
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=longest,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    yield "GPT2LMHeadModel", AutoModelForCausalLM.from_config(config).eval()


def read(model: PreTrainedModel, num_tokens: int, chunk: int) -> Cache:
    """The cache after `num_tokens` random tokens, `chunk` at a time."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCABULARY, (1, num_tokens), generator=generator).to(model.device)
    inputs: dict[str, Any] = {}
    name = "input_ids"
    cache: Cache | None = None
    if model.config.is_encoder_decoder:
        source = torch.randint(3, VOCABULARY, (1, SOURCE_LENGTH), generator=generator).to(model.device)
        inputs["encoder_outputs"] = model.get_encoder()(source)
        name = "decoder_input_ids"
    else:
        cache = DynamicCache()
    for part in tokens.split(chunk, dim=1):
        cache = model(**inputs, **{name: part}, cache=cache, use_cache=True).cache
    if cache.get_seq_length() != num_tokens:
        raise RuntimeError(f"the cache has seen {cache.get_seq_length()} tokens of {num_tokens}")
    return cache


@torch.no_grad()
def main() -> None:
    """Measure, write the figures and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=128)
    parser.add_argument("--long", type=int, default=8192)
    parser.add_argument("--chunk", type=int, default=512)
    args = parser.parse_args()
    set_seed(0)
    rows = [
        {
            "model": name,
            "parameters": model.num_parameters(),
            "bytes": [stored_bytes(read(model, length, args.chunk)) for length in (args.short, args.long)],
        }
        for name, model in models(args.long)
    ]
    about = machine(torch.get_num_threads(), "cpu") | {"command": "python benchmarks/cache_memory.py"}
    write(CACHE, {"about": about, "tokens": [args.short, args.long], "rows": rows})
    print("\n".join(cache_table()))


if __name__ == "__main__":
    main()

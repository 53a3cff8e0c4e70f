"""Padding error and beam search of hfseq's language models beside those of RWKV, xLSTM and Mamba in transformers.

    .venv/bin/python benchmarks/padding_and_beams.py

Every model is small, of random weights, and gets `attention_mask` in every call. The figures go into
`benchmarks/padding_and_beams.json`, from which `make results` renders the table:

- padding error: the largest difference, at valid positions, between the logits of a row in a padded batch and of the
  row alone, in standard deviations of the logits; for padding on the left, on the right, and gaps anywhere;
- greedy: how many rows of a batch continue as they do alone, for prompts of one length (no padding at all) and for
  left-padded prompts of uneven lengths, where every row has padding; a second figure, in brackets, is without a cache;
- beams: how many rows' beams are the same with and without a cache, or what is raised;
- padded beams: how many rows of the left-padded batch give the beams that they give alone; without a cache, and said
  so, where a cache raises.

Exceptions follow the table with their first line. Causes of the figures of transformers 5.24: RWKV and xLSTM take a
mask and drop it without a warning, and their caches have no `reorder_cache`. RWKV's step by one token adds states
`[B, H]` to inputs `[B, 1, H]`, which mixes the rows of a batch. Mamba zeroes its inputs at padding: that keeps a zero
state zero, but a state decays along a gap, whose zeros the convolution sees too.
"""

from collections.abc import Iterator

import torch
from exactness import PADDING, padding_table, write
from timing import machine
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedModel, RwkvConfig, set_seed, xLSTMConfig

from hfseq.models import MODEL_CLASSES

VOCABULARY, PAD = 500, 0
LENGTHS = (1, 3, 5, 8, 11, 14, 17, 20)
WIDTH = 24  # of a padded batch
NEW_TOKENS = 20
NUM_BEAMS = 4


def models() -> Iterator[PreTrainedModel]:
    """A causal language model of each kind."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 2, "tie_word_embeddings": False}
    # hidden_size / num_heads must divide evenly; the rest are the defaults of each.
    foreign = [RwkvConfig(**sizes), xLSTMConfig(**sizes, num_heads=4), MambaConfig(**sizes)]
    for config in (*foreign, *(config_class(**sizes) for config_class in MODEL_CLASSES)):
        set_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        # Fresh models hardly tell tokens apart (RWKV's embeddings are of the order 1e-3, xLSTM's gates are constant):
        # wider weights make each continuation depend on its prompt.
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=2 * module.in_features**-0.5)
        # Without an end of sequence all continuations have one length.
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD
        yield model


def pad(rows: list[Tensor], width: int, side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, width]` of a batch of rows."""
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    generator = torch.Generator().manual_seed(0)
    for index, row in enumerate(rows):
        if side == "gaps":
            positions = torch.randperm(width, generator=generator)[: len(row)].sort().values
        else:
            positions = torch.arange(len(row)) + (width - len(row) if side == "left" else 0)
        ids[index, positions] = row
        mask[index, positions] = 1
    return ids, mask


def padding_error(model: PreTrainedModel, rows: list[Tensor], side: str) -> float:
    """Largest difference of a row's logits in a padded batch and alone, in standard deviations of the latter."""
    alone = torch.cat([model(row[None], attention_mask=torch.ones_like(row[None])).logits[0] for row in rows])
    ids, mask = pad(rows, WIDTH, side)
    together = model(ids, attention_mask=mask).logits[mask == 1]
    return ((together - alone).abs().max() / alone.std()).item()


def generate(model: PreTrainedModel, rows: list[Tensor], width: int, **options: object) -> Tensor:
    """New tokens `[B, NEW_TOKENS]` after the left-padded rows."""
    ids, mask = pad(rows, width, "left")
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, **options)
    return generated[:, width:]


def attempt(model: PreTrainedModel, rows: list[Tensor], width: int | None, **options: object) -> Tensor | Exception:
    """Return or catch the result of `generate` for a batch, or for each row by itself if there is no width."""
    try:
        if width is None:
            return torch.cat([generate(model, [row], len(row), **options) for row in rows])
        return generate(model, rows, width, **options)
    except Exception as error:
        return error


def agreement(first: Tensor | Exception, second: Tensor | Exception) -> str:
    """Number of equal rows of two generated batches, or the exception raised instead of one."""
    for result in (first, second):
        if isinstance(result, Exception):
            return type(result).__name__
    return f"{(first == second).all(dim=1).sum()}/{len(first)}"


def measure(model: PreTrainedModel) -> tuple[list[str], set[str]]:
    """Cells of a model's row in the table, and the first lines of exceptions."""
    generator = torch.Generator().manual_seed(1)
    uneven = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in LENGTHS]
    even = list(torch.randint(3, VOCABULARY, (len(LENGTHS), WIDTH), generator=generator))
    cells = [f"{padding_error(model, uneven, side):.1g}" for side in ("left", "right", "gaps")]
    results = []
    for rows in (even, uneven):
        alone = attempt(model, rows, None)
        shares = []
        for use_cache in (True, False):
            results.append(attempt(model, rows, WIDTH, use_cache=use_cache))
            shares.append(agreement(results[-1], alone))
        cells.append("{} ({})".format(*shares))
    cached, uncached = (
        attempt(model, uneven, WIDTH, num_beams=NUM_BEAMS, use_cache=use_cache) for use_cache in (True, False)
    )
    cells.append(agreement(cached, uncached))
    raises = isinstance(cached, Exception)
    alone = attempt(model, uneven, None, num_beams=NUM_BEAMS, use_cache=not raises)
    cells.append(agreement(uncached if raises else cached, alone) + (" uncached" if raises else ""))
    errors = [result for result in (*results, cached, uncached, alone) if isinstance(result, Exception)]
    return cells, {f"{type(error).__name__}: {str(error).partition(chr(10))[0]}" for error in errors}


@torch.no_grad()
def main() -> None:
    """Measure, write the figures and print the table."""
    columns = ["left", "right", "gaps", "greedy, one length", "greedy, left-padded", "beams", "padded beams"]
    rows, raised = {}, {}
    for model in models():
        name = model.config.model_type
        rows[name], errors = measure(model)
        raised[name] = sorted(errors)
    about = machine(torch.get_num_threads(), "cpu") | {"command": "python benchmarks/padding_and_beams.py"}
    write(PADDING, {"about": about, "columns": columns, "rows": rows, "raised": raised})
    print("\n".join(padding_table()))


if __name__ == "__main__":
    main()

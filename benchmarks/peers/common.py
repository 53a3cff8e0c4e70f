"""Inputs, expected logits and the folder of a fixture: what the scripts of all peers share.

The scripts run in environments of their own, without hfseq.
"""

import argparse
import json
import platform
import random
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WORDS = (
    "a all and at away bird birds boat by child children day dog dogs evening every field fish garden green he her "
    "his house in is it lake light little long man morning near never night not of old on one over quiet rain red "
    "river road runs sea sees she sings sleeps slowly small snow some stands sun the their they to tree trees under "
    "village walks water when white wind with woman wood young"
).split()
"""Words of the toy texts, in the order of the alphabet."""


def arguments(description: str | None, *checkouts: str) -> argparse.Namespace:
    """Command line of a script: the folder to write to, and the checkouts of source that it reads.

    Args:
        description: The script's docstring.
        checkouts: Names of the further arguments, each the path of a repository.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder that gets <format>/<case>/")
    for name in checkouts:
        parser.add_argument(name, type=Path, help="path of a checkout")
    return parser.parse_args()


def sentences(count: int, seed: int, words: Sequence[str] = WORDS) -> list[str]:
    """Toy sentences of 3 to 8 words, the same on every machine."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(3, 8))) for _ in range(count)]


def translation_corpus(folder: Path) -> None:
    """A toy corpus: each word has a translation, and sentences are turned around; `{train,dev,test}.{src,trg}`."""
    source_words, target_words = WORDS[:20], WORDS[40:58]
    translation = dict(zip(source_words, [*target_words, *target_words], strict=False))
    for number, (name, count) in enumerate({"train": 80, "dev": 12, "test": 12}.items()):
        source = sentences(count, seed=number, words=source_words)
        target = [" ".join(translation[word] for word in reversed(text.split())) for text in source]
        write_lines(folder / f"{name}.src", source)
        write_lines(folder / f"{name}.trg", target)
    write_lines(folder / "vocabulary.txt", [*source_words, *target_words])


def rows(sizes: Sequence[int], vocabulary: int, first: int, seed: int) -> list[list[int]]:
    """Random ids of these lengths, from `first` to `vocabulary - 1`."""
    rng = random.Random(seed)
    return [[rng.randrange(first, vocabulary) for _ in range(size)] for size in sizes]


def pad(ids: Sequence[Sequence[int]], side: str, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Ids of several rows in one batch.

    Args:
        ids: Rows of unequal length.
        side: `right` or `left`, where the padding goes.
        padding: Id of the padding.

    Returns:
        `input_ids [B, T]` and `attention_mask [B, T]`.
    """
    longest = max(map(len, ids))
    gaps = [longest - len(row) for row in ids]
    filled = [
        [*row, *[padding] * gap] if side == "right" else [*[padding] * gap, *row]
        for row, gap in zip(ids, gaps, strict=True)
    ]
    masks = [
        [1] * len(row) + [0] * gap if side == "right" else [0] * gap + [1] * len(row)
        for row, gap in zip(ids, gaps, strict=True)
    ]
    return torch.tensor(filled), torch.tensor(masks)


class Case:
    """A folder of fixtures: the peer's files, and what the peer computes from a few batches.

    Tensors of `expected.safetensors` are named `<batch>.<tensor>`, where the batch is `right` or `left` (padded on
    that side) or `row0`, `row1`, … (one row alone, without padding), and the tensor `input_ids`, `attention_mask`,
    `decoder_input_ids`, `decoder_attention_mask` or `logits`. Its metadata have the versions, and facts about the
    case as JSON.

    Args:
        output: Root of the fixtures.
        name: `<format>/<case>`.
        packages: Distributions whose versions are recorded.
        **facts: Of the case, such as names of its options.
    """

    def __init__(self, output: Path, name: str, packages: Sequence[str], **facts: object) -> None:
        self.folder = output / name
        self.folder.mkdir(parents=True, exist_ok=True)
        versions = [f"Python {platform.python_version()}"]
        versions += [f"{package} {version(package)}" for package in ("torch", *packages)]
        self._metadata = {"versions": ", ".join(versions), "facts": json.dumps(facts)}
        self._tensors: dict[str, Tensor] = {}

    def add(self, batch: str, **tensors: Tensor) -> None:
        """Keep tensors of a batch."""
        for name, tensor in tensors.items():
            self._tensors[f"{batch}.{name}"] = tensor.detach().clone().contiguous()

    def forward(
        self, ids: Sequence[Sequence[int]], model: Callable[[Tensor, Tensor], Tensor], *sides: str, padding: int = 0
    ) -> None:
        """Keep what a model computes from rows, alone and padded on each of the sides.

        Args:
            ids: Rows of unequal length.
            model: From `input_ids [B, T]` and `attention_mask [B, T]` to logits.
            *sides: On which the peer can pad: `right`, `left`.
            padding: Id of the padding.
        """
        batches = {side: pad(ids, side, padding) for side in sides}
        batches |= {f"row{number}": pad([row], "right", padding) for number, row in enumerate(ids)}
        with torch.no_grad():
            for batch, (input_ids, mask) in batches.items():
                self.add(batch, input_ids=input_ids, attention_mask=mask, logits=model(input_ids, mask))

    def write(self) -> None:
        """Write `expected.safetensors`."""
        save_file(self._tensors, self.folder / "expected.safetensors", metadata=self._metadata)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a line for each string."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def save_legacy(value: object, path: Path) -> None:
    """Save as torch did before 1.6: no zip, and beside each pickled module its source, of which a line stands here."""
    found = torch.serialization.get_source_lines_and_file
    torch.serialization.get_source_lines_and_file = lambda module: (["# the source of the class"], 1, "model.py")
    try:
        torch.save(value, path, _use_new_zipfile_serialization=False)
    finally:
        torch.serialization.get_source_lines_and_file = found


def train_a_little(model: torch.nn.Module, loss: Callable[[], Tensor], rate: float = 0.5, steps: int = 3) -> None:
    """Take steps of plain SGD, which a rebuild repeats within rounding, as Adam would not."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def randomize(model: torch.nn.Module, seed: int, spread: float = 0.6) -> None:
    """Draw every parameter anew, biases too, so that one that a converter forgets shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-spread, spread, generator=generator)
    model.eval()

"""Handler of the page of recommenders."""

from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from hfseq.demo.handlers import paragraphs
from hfseq.demo.loading import DemoModel
from hfseq.recommenders import known_items

MAX_CHOICES = 500
"""Maximum number of items that the page offers; others can be typed."""


def recommend(demo: DemoModel, text: str, top_k: float, filter_seen: bool) -> tuple[list[list[Any]], str]:
    """Recommend items after a history.

    Args:
        demo: A recommender.
        text: Items of the history, oldest first, a line for each.
        top_k: Number of items.
        filter_seen: Leave out the items of the history.

    Returns:
        Rows of item and score, best first, and a note.
    """
    history = [item.strip() for item in text.split("\n") if item.strip()]
    found = demo.ask(history, top_k=int(top_k), filter_seen=filter_seen)
    with demo.adding:
        (kept,), _ = known_items(cast(PreTrainedTokenizerBase, demo.tokenizer), [history])
    unknown = list(dict.fromkeys(item.replace("`", "") for item in history if item not in {*kept}))
    shown = ", ".join(f"`{item}`" for item in unknown[:10])
    left_out = f"Not known, and left out: {shown}{' …' if len(unknown) > 10 else ''}" if shown else ""
    empty = "" if kept else "Of an empty history these are the first items."
    return [[one["item"], round(one["score"], 3)] for one in found], paragraphs(left_out, empty)


def choices(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The first items of a vocabulary."""
    special = {*tokenizer.all_special_ids}
    ids = [one for one in range(min(len(tokenizer), MAX_CHOICES + len(special))) if one not in special]
    return list(tokenizer.convert_ids_to_tokens(ids[:MAX_CHOICES]))

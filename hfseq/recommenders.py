"""Common ground of recommenders, causal language models over items: names and ids of items, and the best of them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from hfseq.errors import InputError


class Item(NamedTuple):
    """A recommended item.

    Attributes:
        item: Its name, a token of the tokenizer.
        score: Its logit; of an adaptive softmax its log-probability.
    """

    item: str
    score: float


def top_items(
    logits: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    top_k: int,
    excluded: Sequence[Sequence[int]] | None = None,
) -> list[list[Item]]:
    """Items with the highest logits, best first; never special tokens, nor ids that are no token.

    Args:
        logits: Logits `[B, V]`, changed in place.
        tokenizer: Tokenizer whose tokens are the items.
        top_k: Maximum number of items.
        excluded: Token ids to leave out in each row; None for none.

    Raises:
        InputError: `top_k` is less than 1.
    """
    if top_k < 1:
        raise InputError(f"top_k={top_k}: it must be at least 1")
    logits[:, tokenizer.all_special_ids] = -math.inf
    logits[:, len(tokenizer) :] = -math.inf
    for row, ids in enumerate(excluded or ()):
        logits[row, list(ids)] = -math.inf
    scores, best = logits.topk(min(top_k, logits.shape[1]))
    found = []
    for row_ids, row_scores in zip(best.tolist(), scores.tolist(), strict=True):
        names = tokenizer.convert_ids_to_tokens(row_ids)
        pairs = zip(names, row_scores, strict=True)
        found.append([Item(name, score) for name, score in pairs if score > -math.inf])
    return found


def item_ids(tokenizer: PreTrainedTokenizerBase, items: Sequence[str]) -> list[int]:
    """Token ids of items; that of the unknown token for items that the tokenizer does not know.

    Raises:
        InputError: An item is unknown and the tokenizer has no unknown token.
    """
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(items))  # type: ignore[assignment]
    for item, one in zip(items, ids, strict=True):
        if one is None:
            raise InputError(f"item {item!r} is unknown, and the tokenizer has no unknown token to read it as")
    return ids


def known_items(tokenizer: PreTrainedTokenizerBase, histories: Sequence[Sequence[str]]) -> tuple[list[list[str]], int]:
    """Leave out the items that a tokenizer does not know.

    Training has no unknown items either, so that the embedding of the unknown token means nothing.

    Args:
        tokenizer: Tokenizer whose tokens are the items.
        histories: Items of each user.

    Returns:
        The known items of each user, and the number of those left out.
    """
    # Not from the whole vocabulary, which takes a second to list if there are a million items.
    unknown = {None, *tokenizer.all_special_ids}
    kept = []
    for history in histories:
        ids: Any = tokenizer.convert_tokens_to_ids(list(history))
        kept.append([item for item, one in zip(history, ids, strict=True) if one not in unknown])
    return kept, sum(map(len, histories)) - sum(map(len, kept))


def history_start(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Token ids before the first item of a history: BOS, if the tokenizer has it."""
    bos: Any = tokenizer.bos_token_id
    return () if bos is None else (bos,)


def check_history(ids: Sequence[int]) -> None:
    """Raise an `InputError` for a history without any token."""
    if not ids:
        raise InputError("the history is empty, and the tokenizer has no BOS token to predict the first item from")


def last_logits(model: PreTrainedModel, rows: Sequence[Sequence[int]], cache: Cache | None = None) -> Tensor:
    """Logits `[B, V]` after rows of one length, in float32."""
    inputs = torch.tensor(rows, device=model.device)
    outputs: Any = model(input_ids=inputs, cache=cache, use_cache=cache is not None, logits_to_keep=1)
    return outputs.logits[:, -1].float()

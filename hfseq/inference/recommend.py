"""Recommendation of the next items after a history, with a state that spares reading the history again."""

import copy
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from hfseq.cache_io import load_state, save_state
from hfseq.data.collation import position_limit
from hfseq.errors import InputError, one_line
from hfseq.inference.parallel import run_by_length
from hfseq.models.cache import RecurrentCacheLayer
from hfseq.recommenders import Item, check_history, history_start, item_ids, known_items, last_logits, top_items

_STATE_TYPE = "recommendation"
# Values of each weight that tell models apart.
_SAMPLE = 256


@dataclass(frozen=True)
class UserState:
    """A user's history as a model remembers it; no function changes one.

    Attributes:
        ids: Token ids of the history, BOS included if the tokenizer has one.
        cache: State of the model after all of them but the last; None if none of them has been read, or if the history
            is longer than the positions of a Transformer, which then reads its last items again.
    """

    ids: tuple[int, ...] = ()
    cache: Cache | None = None

    def save(self, path: str | os.PathLike, model: PreTrainedModel) -> None:
        """Write the state to a file, by way of another, so that the file is complete at any time.

        Args:
            path: Path of the file.
            model: Model that made the state, one of hfseq.

        Raises:
            InputError: The history is empty, the model has no state of constant size, or the file cannot be written.
        """
        if not self.ids:
            raise InputError("the history is empty, so there is no state")
        own = RecurrentCacheLayer()
        own.model_type = _STATE_TYPE
        own.update((torch.tensor(self.ids), torch.tensor([_fingerprint(model)])), 0)
        cache = DynamicCache()
        cache.layers = [*([] if self.cache is None else self.cache.layers), own]
        try:
            save_state(cache, f"{os.fspath(path)}.part")
            os.replace(f"{os.fspath(path)}.part", path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{os.fspath(path)}: the state cannot be written ({one_line(error, 150)})") from None

    @classmethod
    def load(cls, path: str | os.PathLike, model: PreTrainedModel) -> "UserState":
        """Read a state that `save` wrote.

        Args:
            path: Path of the file.
            model: Model that made the state.

        Raises:
            InputError: The file cannot be read, or holds no state of a user of this model.
        """
        cache: Any = load_state(path, model.device)
        own = cache.layers.pop()
        if own.model_type != _STATE_TYPE:
            raise InputError(f"{os.fspath(path)}: a state, but not of a user, as UserState.save writes it")
        ids, owner = own.states
        if int(owner) != _fingerprint(model):
            raise InputError(
                f"{os.fspath(path)}: the state belongs to another model, or to other weights of this one; read the "
                "history again"
            )
        return cls(tuple(ids.tolist()), cache if cache.layers else None)


class Recommendation(NamedTuple):
    """Items recommended to a user.

    Attributes:
        items: The items, best first.
        state: State of the user, to be passed on with the next events.
    """

    items: list[Item]
    state: UserState


@torch.no_grad()
def recommend(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    events: Sequence[str] = (),
    *,
    state: UserState | None = None,
    top_k: int = 10,
    filter_seen: bool = False,
) -> Recommendation:
    """Recommend the next items to a user, who is new or has a state.

    With a state only the new events are read, and the result is that of reading the whole history. Of a history longer
    than the positions of a Transformer, the last items are read.

    Args:
        model: Causal language model over items, of hfseq or any other, on its device; it is put into evaluation mode.
        tokenizer: Tokenizer whose tokens are the items. A history starts with its BOS token, if it has one.
        events: Items of the user's history, or those since `state`, oldest first. Items that the tokenizer does not
            know are left out; see `known_items`.
        state: State of an earlier recommendation, which stays unchanged; None for a user without one.
        top_k: Maximum number of items.
        filter_seen: Leave out the items of the history.

    Raises:
        InputError: The history is empty and the tokenizer has no BOS token, `top_k` is less than 1, or the state
            belongs to another model.
    """
    model.eval()
    before = UserState() if state is None else state
    (known,), _ = known_items(tokenizer, [events])
    ids = (*(before.ids or history_start(tokenizer)), *item_ids(tokenizer, known))
    check_history(ids)
    limit = position_limit(model)
    cache: Cache | None = None
    if limit is not None and len(ids) > limit:
        logits = last_logits(model, [ids[-limit:]])
    else:
        # Copies, as some models update their cache in place.
        cache = copy.deepcopy(before.cache)
        unread = ids[:-1] if cache is None else ids[len(before.ids) - 1 : -1]
        try:
            if unread:
                backbone: Any = model.base_model  # without the logits of a large catalogue
                inputs = torch.tensor([unread], device=model.device)
                cache = backbone(input_ids=inputs, cache=cache, use_cache=True).cache
            logits = last_logits(model, [ids[-1:]], copy.deepcopy(cache))
        except ValueError as error:
            raise InputError(f"the state belongs to another model ({one_line(error)})") from None
    items = top_items(logits, tokenizer, top_k, [ids if filter_seen else ()])
    return Recommendation(items[0], UserState(ids, cache))


@torch.no_grad()
def recommend_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    histories: Sequence[Sequence[str]],
    *,
    top_k: int = 10,
    filter_seen: bool = False,
    batch_size: int = 64,
    max_length: int | None = None,
    progress: str | None = None,
) -> list[list[Item]]:
    """Recommend the next items to many users, distributed over all processes.

    Memory is bounded by the logits of one batch, `[batch_size, vocab_size]`: 256 MB for 64 users and 10^6 items.

    Args:
        model: As for `recommend`.
        tokenizer: As for `recommend`.
        histories: Items of each user, oldest first; unknown ones are left out.
        top_k: Maximum number of items.
        filter_seen: Leave out the items of each user's history.
        batch_size: Maximum batch size; the rows of a batch have one length, so that there is no padding.
        max_length: Read at most so many of a user's last items, as in training; None for no limit but the positions
            of a Transformer.
        progress: Title of a progress bar; None for no progress bar.

    Returns:
        The items of each user, best first, the same on every process.

    Raises:
        InputError: As for `recommend`.
    """
    model.eval()
    start = history_start(tokenizer)
    known, _ = known_items(tokenizer, histories)
    ids = [(*start, *item_ids(tokenizer, history)) for history in known]
    for row in ids:
        check_history(row)
    limits = [limit for limit in (position_limit(model), max_length) if limit is not None]
    longest = min(limits, default=None)
    read = [row if longest is None else row[-longest:] for row in ids]

    def run(rows: list[int]) -> list[list[Item]]:
        found: list[list[Item]] = []
        for _, same in groupby(rows, lambda row: len(read[row])):  # sorted by length
            group = list(same)
            logits = last_logits(model, [read[row] for row in group])
            found += top_items(logits, tokenizer, top_k, [ids[row] if filter_seen else () for row in group])
        return found

    return run_by_length([len(row) for row in read], batch_size, run, progress)


def _fingerprint(model: PreTrainedModel) -> int:
    """Checksum of a sample of each weight, without which a state means nothing."""
    found = 0
    for weights in model.state_dict().values():
        part = weights.flatten()[:_SAMPLE].cpu().contiguous()
        found = zlib.crc32(part.view(torch.uint8).numpy().data, found)
    return found

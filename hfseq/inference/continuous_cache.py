"""Continuous cache (Grave et al. 2017): raises the probability of words that followed similar hidden states."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfseq.data.running_text import TokenWindows
from hfseq.errors import InputError

FLATNESS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Candidate values of the flatness of the cache distribution, $\\theta$ in the paper."""


class CachedScores(NamedTuple):
    """Probabilities of the N tokens of a text that follow its first token.

    Attributes:
        model: Log-probabilities under the model, `[N]`.
        cache: Probabilities under the cache for each flatness, `[F, N]`. The cache is still empty at the first token,
            for which it has the probability under the model.
    """

    model: Tensor
    cache: Tensor


@torch.no_grad()
def cached_scores(
    model: PreTrainedModel, windows: TokenWindows, size: int, flatness: Sequence[float], *, carry: bool
) -> CachedScores:
    r"""Score a text with a cache of the hidden states before the last `size` tokens (Grave et al. 2017, section 3).

    The cache assigns token w the probability $p(w) \propto \sum_{i<t} 1[x_{i+1}=w] \exp(\theta\, h_t^\top h_i)$, where
    $h_i$ is the output of the last layer after token $x_i$. Nothing is trained.

    Args:
        model: Causal language model.
        windows: Windows of the text, with a batch size of 1.
        size: Cache size in tokens.
        flatness: Values of $\theta$.
        carry: Carry the model's state over from one window to the next.

    Raises:
        InputError: The batch size of the windows is not 1.
    """
    keys, words = None, None
    by_model, by_cache = [], []
    for log_p, hidden, targets in _steps(model, windows, carry):
        past = 0 if keys is None else len(keys)
        keys = hidden if keys is None else torch.cat([keys, hidden])
        words = targets if words is None else torch.cat([words, targets])
        by_model.append(log_p)
        by_cache.append(_of_the_cache(hidden, keys, words, past, size, flatness, log_p.exp()))
        keys, words = keys[-size:], words[-size:]
    return CachedScores(torch.cat(by_model), torch.cat(by_cache, dim=1))


@torch.no_grad()
def token_scores(model: PreTrainedModel, windows: TokenWindows, *, carry: bool) -> Tensor:
    """Log-probabilities `[N]` of the tokens after the first one; arguments and errors as for `cached_scores`."""
    return torch.cat([log_p for log_p, _, _ in _steps(model, windows, carry)])


def _steps(model: PreTrainedModel, windows: TokenWindows, carry: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Log-probability `[T]` of each token of a window, hidden states `[T, H]` before them, and the tokens `[T]`."""
    if len(windows.starts) != 1:
        raise InputError("the probability of each token needs a batch size of 1")
    model.eval()
    state = None
    for batch in windows:
        ids, targets = batch["input_ids"].to(model.device), batch["shift_labels"][0].to(model.device)
        options = {"cache": state, "use_cache": True} if carry else {"use_cache": False}
        outputs = model(input_ids=ids, output_hidden_states=True, **options)
        state = outputs.cache if carry else None
        log_p = outputs.logits[0].float().log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1)
        yield log_p, outputs.hidden_states[-1][0].float(), targets


def _of_the_cache(
    hidden: Tensor, keys: Tensor, words: Tensor, past: int, size: int, flatness: Sequence[float], empty: Tensor
) -> Tensor:
    """Cache probabilities of the last T words.

    Args:
        hidden: States before each of these words, `[T, H]`.
        keys: Cached states followed by `hidden`, `[past + T, H]`; a key is the state before its word, so each step
            sees only the keys before its own.
        words: Token id that follows each key, `[past + T]`.
        past: Number of keys before `hidden`.
        size: Cache size in tokens.
        flatness: Values of theta, F of them.
        empty: Probabilities `[T]` to return where the cache is empty.

    Returns:
        Probabilities `[F, T]`.
    """
    step = torch.arange(len(hidden), device=hidden.device)[:, None] + past  # position of its own key
    position = torch.arange(len(keys), device=hidden.device)
    known = (position < step) & (position >= step - size)
    scores = hidden @ keys.T
    same = words[None, :] == words[past:, None]
    found = []
    for value in flatness:
        weights = (value * scores).masked_fill(~known, -torch.inf).softmax(dim=-1)
        found.append(torch.where(known.any(dim=1), (weights * same).nan_to_num().sum(dim=1), empty))
    return torch.stack(found)

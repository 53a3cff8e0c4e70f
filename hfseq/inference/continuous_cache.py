"""A continuous cache (Grave et al. 2017): what a text has said in a similar state, it is likely to say again."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfseq.data.running_text import TokenWindows
from hfseq.errors import InputError

FLATNESS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0)
"""What is tried for how much more likely a similar state is than another, $\\theta$ in the paper."""
WEIGHTS = tuple(round(0.02 * step, 2) for step in range(26))
"""What is tried for the cache's share of the probability, $\\lambda$ in the paper; 0 where it does not help."""


class CachedScores(NamedTuple):
    r"""Probabilities of the tokens of a text, N of them, all but its first.

    Attributes:
        model: Log-probability of each by the model, `[N]`.
        cache: Probability of each by the cache, for each flatness, `[F, N]`. The cache is empty before the first one,
            which therefore has the model's.
    """

    model: Tensor
    cache: Tensor

    def total(self, index: int, weight: float) -> float:
        """Sum of the negative log-probabilities, in nats, of the mixture with the flatness of this index (eq. 3-5)."""
        return -torch.log((1 - weight) * self.model.exp() + weight * self.cache[index]).sum().item()

    def best(self) -> tuple[int, float]:
        """Index of the flatness and weight under which the text is the most probable."""
        choices = [(index, weight) for index in range(len(self.cache)) for weight in WEIGHTS]
        return min(choices, key=lambda choice: self.total(*choice))


@torch.no_grad()
def cached_scores(
    model: PreTrainedModel, windows: TokenWindows, size: int, flatness: Sequence[float], *, carry: bool
) -> CachedScores:
    r"""Read a text with a cache of the states before each of the last `size` tokens (Grave et al. 2017, section 3).

    The cache gives a token w the probability $p(w) \propto \sum_{i<t} 1[x_{i+1}=w] \exp(\theta\, h_t^\top h_i)$, where
    $h_i$ is the output of the last layer after token $x_i$. Nothing is trained.

    Args:
        model: A causal language model.
        windows: Of the text, in one column.
        size: Number of tokens that it remembers.
        flatness: Values of $\theta$.
        carry: Whether each window starts from the model's state after the one before.

    Raises:
        InputError: The text is read at several places at once.
    """
    if len(windows.starts) != 1:
        raise InputError("a continuous cache reads a text at one place")
    model.eval()
    state, keys, words = None, None, None
    by_model, by_cache = [], []
    for batch in windows:
        ids, targets = batch["input_ids"].to(model.device), batch["shift_labels"][0].to(model.device)
        options = {"cache": state, "use_cache": True} if carry else {"use_cache": False}
        outputs = model(input_ids=ids, output_hidden_states=True, **options)
        state = outputs.cache if carry else None
        log_p = outputs.logits[0].float().log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1)
        hidden = outputs.hidden_states[-1][0].float()
        past = 0 if keys is None else len(keys)
        keys = hidden if keys is None else torch.cat([keys, hidden])
        words = targets if words is None else torch.cat([words, targets])
        by_model.append(log_p)
        by_cache.append(_of_the_cache(hidden, keys, words, past, size, flatness, log_p.exp()))
        keys, words = keys[-size:], words[-size:]
    return CachedScores(torch.cat(by_model), torch.cat(by_cache, dim=1))


def _of_the_cache(
    hidden: Tensor, keys: Tensor, words: Tensor, past: int, size: int, flatness: Sequence[float], empty: Tensor
) -> Tensor:
    """Probabilities `[F, T]` of the last T words after the states `hidden` `[T, H]`, of which `keys` hold all.

    A key is the state before its word, so that each step knows the keys before its own. `empty` `[T]` is for steps
    that know none.
    """
    step = torch.arange(len(hidden), device=hidden.device)[:, None] + past  # where its own key stands
    position = torch.arange(len(keys), device=hidden.device)
    known = (position < step) & (position >= step - size)
    scores = hidden @ keys.T
    same = words[None, :] == words[past:, None]
    found = []
    for value in flatness:
        weights = (value * scores).masked_fill(~known, -torch.inf).softmax(dim=-1)
        found.append(torch.where(known.any(dim=1), (weights * same).nan_to_num().sum(dim=1), empty))
    return torch.stack(found)

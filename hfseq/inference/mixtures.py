"""Linear interpolation of a language model with an n-gram model and a continuous cache (Jelinek & Mercer 1980)."""

from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

from torch import Tensor

WEIGHTS = {
    "cache": tuple(round(0.02 * step, 2) for step in range(26)),
    "ngram": tuple(round(0.05 * step, 2) for step in range(21)),
}
"""Interpolation weights that are tried for each component; 0 disables it."""


class Share(NamedTuple):
    """Part of a component in a mixture.

    Attributes:
        variant: Index of the variant of the component, such as the flatness of a cache.
        weight: Interpolation weight.
    """

    variant: int
    weight: float


class MixtureScores(NamedTuple):
    """Probabilities of the N tokens of a text that follow its first token.

    Attributes:
        model: Log-probabilities under the model, `[N]`.
        components: For each component by name, `cache` or `ngram`, the probabilities under its K variants, `[K, N]`.
    """

    model: Tensor
    components: Mapping[str, Tensor]

    def total(self, shares: Mapping[str, Share]) -> float:
        """Negative log-likelihood of the text in nats under a mixture.

        Args:
            shares: Part of each component by name; the rest is the model's.
        """
        mixed = (1 - sum(share.weight for share in shares.values())) * self.model.exp()
        for name, (variant, weight) in shares.items():
            mixed = mixed.add(self.components[name][variant], alpha=weight)
        return -mixed.log().sum().item()

    def best(self, *names: str) -> dict[str, Share]:
        """Parts of the named components that maximize the likelihood of the text, of all that are tried."""
        choices = [
            [Share(*share) for share in product(range(len(self.components[name])), WEIGHTS[name])] for name in names
        ]
        mixtures = (dict(zip(names, shares, strict=True)) for shares in product(*choices))
        possible = (shares for shares in mixtures if sum(share.weight for share in shares.values()) <= 1)
        return min(possible, key=self.total)

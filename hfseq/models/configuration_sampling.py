"""Fields of the configuration for language models over large vocabularies that are trained with sampled negatives."""

from typing import Any, Literal

from transformers.configuration_utils import PreTrainedConfig, strict


@strict
class SamplingFields(PreTrainedConfig):
    """Fields of a causal language model with sampled negatives, which `SequenceConfig` inherits.

    `SampledSoftmax` has the losses.

    Args:
        num_negatives: Number of negatives that each training batch samples, instead of computing the logits of the
            whole vocabulary; 0 leaves those of `in_batch_negatives` alone. None: the loss is that of all logits.
        in_batch_negatives: Whether the targets of the other rows of a batch are negatives, too (Hidasi et al. 2016,
            section 3.1.2). Their number, and with it the memory, grows with the square of the steps of a batch.
        negative_sampling_alpha: Exponent of the counts that `set_item_counts` sets, to which the probabilities of
            negatives are proportional: 0 for uniform, 1 for popularity.
        sampled_loss: `sampled_softmax`, whose logits are corrected for the probability of being sampled (Bengio &
            Senécal 2008), an estimate of the full softmax; `cross_entropy`, without that correction; or `bpr_max`, a
            loss of ranks (both Hidasi & Karatzoglou 2018).
        score_regularization: Weight of the score regularization of `bpr_max`.

    Raises:
        ValueError: If a value is out of range, or if fields contradict each other.
    """

    num_negatives: int | None = None
    in_batch_negatives: bool = False
    negative_sampling_alpha: float | int = 0.75
    sampled_loss: Literal["sampled_softmax", "cross_entropy", "bpr_max"] = "sampled_softmax"
    score_regularization: float | int = 1.0


def check_sampling_fields(config: Any) -> None:
    """Validate the values."""
    numbers = ("num_negatives", "negative_sampling_alpha", "score_regularization")
    config.check_numbers(numbers, lambda value: 0 <= value < float("inf"), "it must be finite and not negative")
    if config.num_negatives is None:
        if config.in_batch_negatives:
            config.raise_invalid("in_batch_negatives", "set num_negatives, 0 for those of the batch alone")
        return
    if config.num_negatives == 0 and not config.in_batch_negatives:
        config.raise_invalid(
            "num_negatives", "without in_batch_negatives there would be no negatives; None samples none"
        )
    if config.adaptive_softmax_cutoffs is not None:
        config.raise_invalid("num_negatives", "an adaptive softmax needs no negatives; leave one of the two out")

"""Warnings of over- and underfitting from the learning curves of a run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

_RISE = 0.05
_RISE_OF_FIRST = 0.01
_FLAT_LOSS = 0.02
_FLAT_SCORE = 0.10


@dataclass(frozen=True)
class _Evaluation:
    step: int
    train_loss: float | None
    eval_loss: float
    score: float | None


def curve_warnings(
    log_history: Sequence[Mapping[str, Any]], metric: str | None = None, greater_is_better: bool = True
) -> list[str]:
    """Warnings about the learning curves of a run so far, one line with the figures each; usually none.

    Only trends are compared, never training loss with validation loss: dropout and label smoothing put them on
    different scales. The training loss of an evaluation is the mean of those logged since the previous one.

    - Overfitting: the last two evaluations both have a validation loss more than 5 % above the previous minimum,
      while the training loss is lower than at that minimum. 5 % is the generalization loss criterion GL_5 of
      Prechelt 1998 ("Early stopping - but when?"), and about three times the sampling error of a mean over a
      thousand rows; two in a row are required, as in UP_2 there, since one may be chance. The rise must also exceed
      1 % of the first validation loss, since near zero any change is relatively large.
    - Underfitting: after three or more evaluations, neither loss has fallen 2 % below its first value. A model that
      learns at all falls further in its first epoch, and the noise of a mean over fifty batches is smaller. A metric
      that improved by 10 % of its first value counts as learning.

    Args:
        log_history: Entries of `TrainerState.log_history`, with `step` and `loss`, or with `step` and `eval_…`.
        metric: Evaluation metric, with or without `eval_`; `loss` and None for the loss alone.
        greater_is_better: Whether higher values of the metric are better.

    Returns:
        Lines that begin with `overfitting:` or `underfitting:`.
    """
    found = _findings(log_history, metric, greater_is_better)
    return list(found[-1].values()) if found else []


def new_curve_warnings(
    log_history: Sequence[Mapping[str, Any]], metric: str | None = None, greater_is_better: bool = True
) -> list[str]:
    """Warnings of `curve_warnings` that the last evaluation raised for the first time.

    Explicit loops call it with their log after each evaluation. It is stateless, so a resumed run does not repeat
    warnings.
    """
    *earlier, now = _findings(log_history, metric, greater_is_better) or [{}]
    return [message for kind, message in now.items() if not any(kind in found for found in earlier)]


def log_new_warnings(log_history: Sequence[Mapping[str, Any]], args: TrainingArguments) -> None:
    """Log `new_curve_warnings` for the metric of the training arguments."""
    for message in new_curve_warnings(log_history, args.metric_for_best_model, bool(args.greater_is_better)):
        logger.warning(message)


class CurveWarnings(TrainerCallback):
    """Logs each warning of `curve_warnings` once, when first raised, on the main process."""

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the history, including the evaluation just done."""
        if state.is_world_process_zero:
            log_new_warnings(state.log_history, args)


def _findings(
    log_history: Sequence[Mapping[str, Any]], metric: str | None, greater_is_better: bool
) -> list[dict[str, str]]:
    """Return the messages at each evaluation by kind, given the history up to it."""
    name = (metric or "").removeprefix("eval_")
    first_loss = train_loss = None
    losses: list[float] = []
    evaluations: list[_Evaluation] = []
    found: list[dict[str, str]] = []
    for entry in log_history:
        if "loss" in entry:
            losses.append(entry["loss"])
            first_loss = entry["loss"] if first_loss is None else first_loss
        if "eval_loss" in entry:
            # Nothing logged since the previous evaluation: reuse its training loss.
            train_loss = sum(losses) / len(losses) if losses else train_loss
            losses = []
            if evaluations and evaluations[-1].step == entry["step"]:
                del evaluations[-1], found[-1]
            score = None if name == "loss" else entry.get(f"eval_{name}")
            evaluations.append(_Evaluation(entry["step"], train_loss, entry["eval_loss"], score))
            messages = {}
            if len(evaluations) >= 3 and first_loss is not None:
                messages["overfitting"] = _overfitting(evaluations, name)
                messages["underfitting"] = _underfitting(first_loss, evaluations, name, greater_is_better)
            found.append({kind: message for kind, message in messages.items() if message})
    return found


def _overfitting(evaluations: list[_Evaluation], name: str) -> str:
    first, now = evaluations[0], evaluations[-1]
    best = min(evaluations, key=lambda evaluation: evaluation.eval_loss)
    rise = max(_RISE * abs(best.eval_loss), _RISE_OF_FIRST * abs(first.eval_loss))
    risen = all(late.eval_loss > best.eval_loss + rise for late in evaluations[-2:])
    if not risen or best.train_loss is None or now.train_loss is None or now.train_loss >= best.train_loss:
        return ""
    return (
        f"overfitting: the validation loss was lowest at step {best.step} ({best.eval_loss:.4g}) and is "
        f"{now.eval_loss:.4g} at step {now.step}, while the training loss fell from {best.train_loss:.4g} to "
        f"{now.train_loss:.4g}{_scores(name, best, now)}; try more dropout, --weight_decay or data, a smaller "
        "model or fewer epochs"
    )


def _underfitting(first_loss: float, evaluations: list[_Evaluation], name: str, greater_is_better: bool) -> str:
    first, now = evaluations[0], evaluations[-1]
    if now.train_loss is None:
        return ""
    train_loss = min(each.train_loss for each in evaluations if each.train_loss is not None)
    eval_loss = min(each.eval_loss for each in evaluations)
    fallen = train_loss <= (1 - _FLAT_LOSS) * first_loss or eval_loss <= (1 - _FLAT_LOSS) * first.eval_loss
    scores = [each.score for each in evaluations if each.score is not None]
    gained = any((s - scores[0]) * (1 if greater_is_better else -1) > _FLAT_SCORE * abs(scores[0]) for s in scores)
    if fallen or gained:
        return ""
    return (
        f"underfitting: after {len(evaluations)} evaluations neither loss has fallen by {_FLAT_LOSS:.0%}: training "
        f"{first_loss:.4g} at first, {now.train_loss:.4g} at step {now.step}, validation {first.eval_loss:.4g} at "
        f"step {first.step}, {now.eval_loss:.4g} now{_scores(name, first, now)}; try another --learning_rate or a "
        "larger model, and check the data"
    )


def _scores(name: str, then: _Evaluation, now: _Evaluation) -> str:
    if then.score is None or now.score is None:
        return ""
    return f"; {name} {then.score:.4g} then, {now.score:.4g} now"

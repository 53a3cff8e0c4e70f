"""Error rates of transcripts, counted by jiwer."""

from collections.abc import Sequence
from typing import Any

from hfseq.metrics.inputs import check_pairs


def check_transcripts(
    metric: str, predictions: Sequence[str], references: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return predictions and references as lists of strings.

    Raises:
        InputError: A package that the metric needs is not installed.
        ValueError: The lengths differ, there is nothing to score, or something is not a string.
    """
    check_pairs(metric, predictions, references)
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        for name, text in (("prediction", prediction), ("reference", reference)):
            if not isinstance(text, str):
                raise ValueError(f"{metric}: {name} {index} is {text!r}, not a string")
    return list(predictions), list(references)


def wer(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Word error rate in percent, as computed by jiwer; lower is better.

    The edits of all rows together over the words of all references, so that long rows count for more, and inventions
    can bring the rate above 100. Words lie between spaces; case and punctuation count. An empty prediction is all
    deletions. An empty reference (silence) adds the words of its prediction as insertions.

    References are transcripts as they are in the data. If only label ids are at hand, decode them with
    `group_tokens=False`, since a CTC tokenizer otherwise merges double letters ("letter" → "leter").

    Args:
        predictions: Recognised texts.
        references: True transcripts, one for each prediction.

    Returns:
        `wer`, which is also `score`, the counts of `substitutions`, `deletions` and `insertions`, and `ref_len`, the
        number of words in the references.

    Raises:
        InputError: jiwer is not installed.
        ValueError: Invalid inputs, or all references are empty, so that there is no rate.
    """
    return _error_rate("wer", predictions, references)


def cer(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Character error rate in percent, as computed by jiwer; lower is better.

    As `wer`, of characters. Spaces between words count, those around a text do not.

    Args:
        predictions: Recognised texts.
        references: True transcripts, one for each prediction; see `wer` for those made of label ids.

    Returns:
        `cer`, which is also `score`, the counts of `substitutions`, `deletions` and `insertions`, and `ref_len`, the
        number of characters in the references.

    Raises:
        InputError: jiwer is not installed.
        ValueError: Invalid inputs, or all references are empty, so that there is no rate.
    """
    return _error_rate("cer", predictions, references)


def _error_rate(metric: str, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    hypotheses, transcripts = check_transcripts(metric, predictions, references)
    # jiwer would return the number of insertions instead of a rate.
    if not any(text.strip() for text in transcripts):
        raise ValueError(f"{metric}: all references are empty, so the rate is undefined; give transcripts with words")
    import jiwer

    count = jiwer.process_words if metric == "wer" else jiwer.process_characters
    result = count(transcripts, hypotheses)
    score = 100 * float(getattr(result, metric))
    return {
        "score": score,
        metric: score,
        **{name: getattr(result, name) for name in ("substitutions", "deletions", "insertions")},
        "ref_len": result.hits + result.substitutions + result.deletions,
    }

"""Metrics that compare generated text with reference text, as `evaluate` modules that need no network."""

from collections.abc import Sequence
from typing import Any

import datasets

from hfseq.metrics.base import Metric

References = Sequence[str] | Sequence[Sequence[str]]


class TextMetric(Metric):
    """Base of the metrics of texts: there may be several references for one prediction."""

    inputs_text = """
Args:
    predictions: list of strings.
    references: list of strings, one for each prediction, or list of lists of strings: `references[i]` are those of
        `predictions[i]`. There may be more for one prediction than for another, at least one for each.
"""
    formats = datasets.Features(
        {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
    )

    def _check(self, predictions: Sequence[str], references: References) -> tuple[list[str], list[list[str]]]:
        # Left to Arrow, None would pass as a missing string and a number or a list as the string of it.
        lists = [[own] if isinstance(own, str) else own for own in references]
        for index, (prediction, own) in enumerate(zip(predictions, lists, strict=True)):
            if not isinstance(prediction, str):
                raise ValueError(f"{self.metric_name}: prediction {index} is {prediction!r}, not a string")
            if not own or not all(isinstance(text, str) for text in own):
                raise ValueError(f"{self.metric_name}: reference {index} is {own!r}, not a string or a list of them")
        return list(predictions), [list(own) for own in lists]


def _streams(references: list[list[str]]) -> list[list[Any]]:
    """Turns a list of references for each prediction into sacrebleu's streams; None fills the shorter lists."""
    longest = max(map(len, references))
    return [[own[i] if i < len(own) else None for own in references] for i in range(longest)]


class SacreBleu(TextMetric):
    """Corpus BLEU as sacreBLEU computes it (Post 2018), cased and with the 13a tokenizer unless told otherwise.

    `compute` takes `tokenize` (sacreBLEU's tokenizers: "13a", "intl", "char", "zh", "none" …; "flores200" and other
    SentencePiece ones are downloaded by sacreBLEU itself) and `lowercase`. It returns `score` (0 to 100), `counts`
    and `totals` of matching and of all n-grams, `precisions` (percent) of the n-grams from 1 to 4, `bp` (brevity
    penalty), `sys_len` and `ref_len` (tokens) and `signature`, which makes the score comparable.
    """

    metric_name = "sacrebleu"
    description_text = "Corpus BLEU with sacreBLEU's tokenization and signature."
    citation_text = (
        "Matt Post. A Call for Clarity in Reporting BLEU Scores. WMT 2018. https://aclanthology.org/W18-6319"
    )
    homepage_url = "https://github.com/mjpost/sacrebleu"
    packages = ("sacrebleu",)

    def _compute(
        self, predictions: list[str], references: list[list[str]], tokenize: str = "13a", lowercase: bool = False
    ) -> dict[str, Any]:
        from sacrebleu.metrics.bleu import BLEU

        if tokenize not in BLEU.TOKENIZERS:
            raise ValueError(f"sacrebleu: no tokenizer {tokenize!r}; there are {', '.join(BLEU.TOKENIZERS)}")
        bleu = BLEU(tokenize=tokenize, lowercase=lowercase)
        result = bleu.corpus_score(predictions, _streams(references))
        return {
            "score": result.score,
            "counts": result.counts,
            "totals": result.totals,
            "precisions": result.precisions,
            "bp": result.bp,
            "sys_len": result.sys_len,
            "ref_len": result.ref_len,
            "signature": str(bleu.get_signature()),
        }


class ChrF(TextMetric):
    """Corpus chrF (Popović 2015) as sacreBLEU computes it: character n-grams up to 6, beta 2.

    `compute` takes `word_order` (0 is chrF, 2 is chrF++ of Popović 2017) and `lowercase`, and returns `score`
    (0 to 100) and `signature`.
    """

    metric_name = "chrf"
    description_text = "Corpus chrF, the F-score of character n-grams, with sacreBLEU's signature."
    citation_text = (
        "Maja Popović. chrF: character n-gram F-score for automatic MT evaluation. WMT 2015. "
        "https://aclanthology.org/W15-3049"
    )
    homepage_url = "https://github.com/mjpost/sacrebleu"
    packages = ("sacrebleu",)

    def _compute(
        self, predictions: list[str], references: list[list[str]], word_order: int = 0, lowercase: bool = False
    ) -> dict[str, Any]:
        from sacrebleu.metrics.chrf import CHRF

        chrf = CHRF(word_order=word_order, lowercase=lowercase)
        result = chrf.corpus_score(predictions, _streams(references))
        return {"score": result.score, "signature": str(chrf.get_signature())}


class ExactMatch(TextMetric):
    """Percentage (0 to 100) of the predictions that equal one of their references, character for character.

    Nothing is normalised: case, spaces and punctuation count. (The module of the same name on the Hub gives a
    fraction instead.)
    """

    metric_name = "exact_match"
    description_text = "Percentage of predictions that equal one of their references, character for character."

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        matches = sum(prediction in own for prediction, own in zip(predictions, references, strict=True))
        return {"score": 100 * matches / len(predictions)}

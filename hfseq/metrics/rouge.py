"""ROUGE, the usual score of summaries, as an `evaluate` module that needs no network."""

from functools import cache
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from hfseq.data.sentences import split_sentences
from hfseq.metrics.text import TextMetric

_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Rouge(TextMetric):
    """ROUGE (Lin 2004) as Google's rouge-score computes it: the mean over the rows of F1, 0 to 100.

    `compute` returns `rouge1` and `rouge2` (shared words and pairs of words), `rougeL` (longest common subsequence),
    `rougeLsum` (the same sentence by sentence, which `hfseq.data.sentences.split_sentences` finds) and `score`, which
    is `rouge1`. It takes `use_stemmer`, by default True: words are compared by their stems, as most papers do (the
    module of the same name on the Hub does not by default, and gives fractions).

    Of several references, each of the four takes the one where it is highest, as rouge-score's `score_multi` and
    `evaluate` do. The script of SciTLDR (Cachola et al. 2020) takes all from the reference with the highest ROUGE-1:
    its ROUGE-1 is the same, its ROUGE-2 and ROUGE-L are lower by some 0.8 and cannot be compared with these.

    Only ASCII letters and digits, in lower case, count as words: a text in another script scores 0.
    """

    metric_name = "rouge"
    description_text = "ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum, F1 in percent, as rouge-score computes them."
    citation_text = (
        "Chin-Yew Lin. ROUGE: A Package for Automatic Evaluation of Summaries. Text Summarization Branches Out 2004. "
        "https://aclanthology.org/W04-1013"
    )
    homepage_url = "https://github.com/google-research/google-research/tree/master/rouge"
    packages = ("nltk", "rouge_score")

    def _compute(
        self, predictions: list[str], references: list[list[str]], use_stemmer: bool = True
    ) -> dict[str, Any]:
        # They import nltk, which takes more than a second.
        from nltk.stem.porter import PorterStemmer
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenize import tokenize

        # Most words come many times, and every text is tokenized for several scores.
        stemmer = SimpleNamespace(stem=cache(PorterStemmer().stem)) if use_stemmer else None
        tokenizer = SimpleNamespace(tokenize=cache(lambda text: tokenize(text, stemmer)))
        scorer = RougeScorer(_TYPES, tokenizer=tokenizer)
        rows = [
            scorer.score_multi([_by_lines(text) for text in own], _by_lines(prediction))
            for prediction, own in zip(predictions, references, strict=True)
        ]
        scores = {name: 100 * fmean(row[name].fmeasure for row in rows) for name in _TYPES}
        return {"score": scores["rouge1"], **scores}


def _by_lines(text: str) -> str:
    """One sentence a line, as rouge-score wants them for ROUGE-Lsum."""
    return "\n".join(split_sentences(text))

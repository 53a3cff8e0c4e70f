"""Metrics of generated text against one or several reference texts."""

from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from hfseq.data.sentences import split_sentences
from hfseq.metrics.inputs import check_pairs

References = Sequence[str] | Sequence[Sequence[str]]
"""One reference, or a list of at least one, for each prediction; the lists may differ in length."""

_ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def check_texts(metric: str, predictions: Sequence[str], references: References) -> tuple[list[str], list[list[str]]]:
    """Return predictions, and a list of references for each.

    Raises:
        InputError: A package that the metric needs is not installed.
        ValueError: The lengths differ, there is nothing to score, or something is not a string.
    """
    check_pairs(metric, predictions, references)
    lists = [[own] if isinstance(own, str) else own for own in references]
    for index, (prediction, own) in enumerate(zip(predictions, lists, strict=True)):
        if not isinstance(prediction, str):
            raise ValueError(f"{metric}: prediction {index} is {prediction!r}, not a string")
        if not own or not all(isinstance(text, str) for text in own):
            raise ValueError(f"{metric}: reference {index} is {own!r}, not a string or a list of strings")
    return list(predictions), [list(own) for own in lists]


def bleu(
    predictions: Sequence[str], references: References, *, tokenize: str = "13a", lowercase: bool = False
) -> dict[str, Any]:
    """Corpus BLEU as computed by sacreBLEU (Post 2018, https://aclanthology.org/W18-6319).

    Args:
        predictions: Generated texts.
        references: One reference, or a list of references, for each prediction.
        tokenize: One of sacreBLEU's tokenizers: "13a", "intl", "char", "zh", "none" …; sacreBLEU downloads the
            SentencePiece models of "flores200" and the like.
        lowercase: Ignore case.

    Returns:
        `score` (0 to 100), `counts` and `totals` of matching and of all n-grams, `precisions` (percent) for n from
        1 to 4, `bp` (brevity penalty), `sys_len` and `ref_len` (tokens), and `signature`, which makes the score
        comparable.

    Raises:
        InputError: sacreBLEU is not installed.
        ValueError: Invalid inputs, or an unknown tokenizer.
    """
    hypotheses, streams = _streams(*check_texts("sacrebleu", predictions, references))
    from sacrebleu.metrics.bleu import BLEU

    if tokenize not in BLEU.TOKENIZERS:
        raise ValueError(f"sacrebleu: no tokenizer {tokenize!r}; there are {', '.join(BLEU.TOKENIZERS)}")
    metric = BLEU(tokenize=tokenize, lowercase=lowercase)
    result = metric.corpus_score(hypotheses, streams)
    fields = ("score", "counts", "totals", "precisions", "bp", "sys_len", "ref_len")
    return {name: getattr(result, name) for name in fields} | {"signature": str(metric.get_signature())}


def chrf(
    predictions: Sequence[str], references: References, *, word_order: int = 0, lowercase: bool = False
) -> dict[str, Any]:
    """Corpus chrF (Popović 2015, https://aclanthology.org/W15-3049) as computed by sacreBLEU.

    Character n-grams up to 6, beta 2.

    Args:
        predictions: Generated texts.
        references: One reference, or a list of references, for each prediction.
        word_order: 0 for chrF, 2 for chrF++ (Popović 2017).
        lowercase: Ignore case.

    Returns:
        `score` (0 to 100) and `signature`.

    Raises:
        InputError: sacreBLEU is not installed.
        ValueError: Invalid inputs.
    """
    hypotheses, streams = _streams(*check_texts("chrf", predictions, references))
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF(word_order=word_order, lowercase=lowercase)
    return {"score": metric.corpus_score(hypotheses, streams).score, "signature": str(metric.get_signature())}


def exact_match(predictions: Sequence[str], references: References) -> dict[str, Any]:
    """Percentage of predictions that equal one of their references, character for character.

    Nothing is normalized: case, spaces and punctuation count. (The metric of the same name on the Hub returns a
    fraction.)

    Raises:
        ValueError: Invalid inputs.
    """
    texts, lists = check_texts("exact_match", predictions, references)
    return {"score": 100 * sum(text in own for text, own in zip(texts, lists, strict=True)) / len(texts)}


def rouge(predictions: Sequence[str], references: References, *, use_stemmer: bool = True) -> dict[str, Any]:
    """ROUGE (Lin 2004, https://aclanthology.org/W04-1013) as computed by Google's rouge-score: mean F1, 0 to 100.

    With several references, each of the four variants takes its best one, as rouge-score's `score_multi` and
    `evaluate` do. The script of SciTLDR (Cachola et al. 2020) takes all variants from the reference with the highest
    ROUGE-1: its ROUGE-1 is the same, its ROUGE-2 and ROUGE-L are lower by some 0.8 and not comparable with these.
    Only ASCII letters and digits, lower-cased, count as words: text in another script scores 0.

    Args:
        predictions: Generated summaries.
        references: One reference, or a list of references, for each prediction.
        use_stemmer: Compare Porter stems, as most papers do. (The metric of the same name on the Hub does not by
            default, and returns fractions.)

    Returns:
        `rouge1` and `rouge2` (unigram and bigram overlap), `rougeL` (longest common subsequence), `rougeLsum` (the
        same, sentence by sentence, as split by `hfseq.data.sentences.split_sentences`) and `score`, which is `rouge1`.

    Raises:
        InputError: rouge-score is not installed.
        ValueError: Invalid inputs.
    """
    texts, lists = check_texts("rouge", predictions, references)
    # They import nltk, which takes more than a second.
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenize import tokenize

    # Most words occur many times, and every text is tokenized for several scores.
    stemmer = SimpleNamespace(stem=cache(PorterStemmer().stem)) if use_stemmer else None
    tokenizer = SimpleNamespace(tokenize=cache(lambda text: tokenize(text, stemmer)))
    scorer = RougeScorer(_ROUGE_TYPES, tokenizer=tokenizer)
    rows = [
        scorer.score_multi([_by_lines(reference) for reference in own], _by_lines(text))
        for text, own in zip(texts, lists, strict=True)
    ]
    scores = {name: 100 * fmean(row[name].fmeasure for row in rows) for name in _ROUGE_TYPES}
    return {"score": scores["rouge1"], **scores}


def _streams(texts: list[str], references: list[list[str]]) -> tuple[list[str], list[list[Any]]]:
    """Transpose a list of references for each text into sacreBLEU's streams; None fills the shorter lists."""
    return texts, [list(stream) for stream in zip_longest(*references)]


def _by_lines(text: str) -> str:
    """Put each sentence on its own line, as rouge-score expects for ROUGE-Lsum."""
    return "\n".join(split_sentences(text))

"""Metrics: sacrebleu's own numbers through `evaluate`, with no network."""

import os
import subprocess
import sys
import textwrap

import datasets
import evaluate
import pytest
from sacrebleu.metrics import BLEU, CHRF

from hfseq.metrics import ChrF, ExactMatch, SacreBleu, load, scores_by_group

PREDICTIONS = ["The cat sat on the mat.", "A dog barks loudly in the yard!", "Nothing to see here", ""]
REFERENCES = ["The cat is on the mat.", "a dog barks loudly in the garden!", "Nothing to see here", "Well."]
UNEVEN = [[REFERENCES[0], "There is a cat on the mat."], [REFERENCES[1]], REFERENCES[2:3] * 3, [REFERENCES[3]]]
STREAMS = [
    REFERENCES,
    ["There is a cat on the mat.", None, REFERENCES[2], None],
    [None, None, REFERENCES[2], None],
]


@pytest.mark.parametrize("references,streams", [(REFERENCES, [REFERENCES]), (UNEVEN, STREAMS)])
@pytest.mark.parametrize("options", [{}, {"lowercase": True}, {"tokenize": "char"}, {"tokenize": "intl"}])
def test_sacrebleu_equals_sacrebleu(references, streams, options):
    bleu = BLEU(**options)
    expected = bleu.corpus_score(PREDICTIONS, streams)
    result = SacreBleu().compute(predictions=PREDICTIONS, references=references, **options)
    assert 0 < expected.score < 100
    assert result == {
        "score": expected.score,
        "counts": expected.counts,
        "totals": expected.totals,
        "precisions": expected.precisions,
        "bp": expected.bp,
        "sys_len": expected.sys_len,
        "ref_len": expected.ref_len,
        "signature": str(bleu.get_signature()),
    }


def test_sacrebleu_by_hand():
    # 1-grams 5 of 6, 2-grams 3 of 5, 3-grams 1 of 4, 4-grams none of 3, which exponential smoothing counts as 1/2.
    result = load("sacrebleu").compute(predictions=["the cat sat on the mat"], references=["the cat is on the mat"])
    assert result["score"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 2 / 3) ** 0.25)
    assert "case:mixed" in result["signature"] and "tok:13a" in result["signature"]


def test_sacrebleu_is_cased():
    texts = ["ABC DEF GHI JKL"]
    assert SacreBleu().compute(predictions=texts, references=[texts[0].lower()])["score"] == 0
    result = SacreBleu().compute(predictions=texts, references=[texts[0].lower()], lowercase=True)
    assert result["score"] == pytest.approx(100)


@pytest.mark.parametrize("references,streams", [(REFERENCES, [REFERENCES]), (UNEVEN, STREAMS)])
@pytest.mark.parametrize("options", [{}, {"word_order": 2}, {"lowercase": True}])
def test_chrf_equals_sacrebleu(references, streams, options):
    chrf = CHRF(**options)
    expected = chrf.corpus_score(PREDICTIONS, streams)
    assert 0 < expected.score < 100
    result = ChrF().compute(predictions=PREDICTIONS, references=references, **options)
    assert result == {"score": expected.score, "signature": str(chrf.get_signature())}


def test_exact_match_is_a_percentage_of_equal_texts():
    assert ExactMatch().compute(predictions=PREDICTIONS, references=REFERENCES) == {"score": 25.0}
    assert ExactMatch().compute(predictions=["a", "b"], references=[["x", "a"], ["y"]]) == {"score": 50.0}
    # Case, spaces (a no-break space too) and punctuation count.
    for other in ("10 €", "10 € ", "10\u00a0€.", "10\u202f€"):
        assert ExactMatch().compute(predictions=["10\u00a0€"], references=[other]) == {"score": 0.0}


@pytest.mark.parametrize("keep_in_memory", [True, False])
@pytest.mark.parametrize("references", [REFERENCES, UNEVEN])
def test_adding_bit_by_bit(references, keep_in_memory, tmp_path):
    metric = SacreBleu(keep_in_memory=keep_in_memory, cache_dir=str(tmp_path))
    expected = SacreBleu().compute(predictions=PREDICTIONS, references=references)
    for _ in range(2):  # compute() forgets what it scored
        metric.add_batch(predictions=PREDICTIONS[:2], references=references[:2])
        metric.add_batch(predictions=[], references=[])
        metric.add(prediction=PREDICTIONS[2], reference=references[2])
        assert len(metric) == 3
        assert metric.compute(predictions=PREDICTIONS[3:], references=references[3:]) == expected
        assert len(metric) == 0


def test_one_batch_with_strings_and_one_with_lists():
    metric = ExactMatch()
    metric.add_batch(predictions=["a", "b"], references=["a", ["x", "b"]])
    metric.add_batch(predictions=["c"], references=[["c"]])
    assert metric.compute() == {"score": 100.0}


def test_nothing_is_left_on_disk(tmp_path):
    metric = SacreBleu(cache_dir=str(tmp_path))
    metric.add_batch(predictions=PREDICTIONS, references=REFERENCES)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_columns_of_a_dataset():
    rows = datasets.Dataset.from_dict({"said": PREDICTIONS, "right": REFERENCES})
    assert ExactMatch().compute(predictions=rows["said"], references=rows["right"]) == {"score": 25.0}


def test_combine():
    texts = {"predictions": PREDICTIONS, "references": UNEVEN}
    expected = {f"{name}_score": load(name).compute(**texts)["score"] for name in ("sacrebleu", "chrf", "exact_match")}
    combined = evaluate.combine([load("sacrebleu"), load("chrf"), load("exact_match")])
    result = combined.compute(**texts)
    assert expected.items() <= result.items()
    assert result["sacrebleu_signature"] != result["chrf_signature"]

    combined.add_batch(predictions=PREDICTIONS[:3], references=UNEVEN[:3])
    combined.add(PREDICTIONS[3], UNEVEN[3])
    assert combined.compute() == result


@pytest.mark.parametrize("metric", [SacreBleu, ChrF, ExactMatch])
@pytest.mark.parametrize(
    "predictions,references,message",
    [
        (["a"], ["b", "c"], "1 predictions but 2 references"),
        (["a", "b"], [["c"]], "2 predictions but 1 references"),
        ([], ["c"], "0 predictions but 1 references"),
        ([], [], "nothing to score"),
        (None, None, "nothing to score"),
        (["a"], None, "given together"),
        (None, ["a"], "given together"),
        (["a", None], ["a", "b"], "prediction 1 is None"),
        ([3], ["a"], "prediction 0 is 3"),
        (["a", "b"], ["a", None], "reference 1 is None"),
        (["a", "b"], [["a"], []], r"reference 1 is \[\]"),
        (["a"], [["a", None]], "reference 0 is"),
    ],
)
def test_bad_input(metric, predictions, references, message):
    metric = metric()
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)
    # Nothing of it stays behind.
    assert metric.compute(predictions=["abcdef"], references=["abcdef"])["score"] in (0.0, 100.0)


def test_bad_options():
    with pytest.raises(ValueError, match="no tokenizer 'klingon'.*13a"):
        SacreBleu().compute(predictions=["a"], references=["a"], tokenize="klingon")
    with pytest.raises(TypeError, match="lower_case"):
        ChrF().compute(predictions=["a"], references=["a"], lower_case=True)
    with pytest.raises(ValueError, match="'bleurt'.*sacrebleu, chrf, exact_match"):
        load("bleurt")


def test_scores_by_group():
    groups = ["date", "money", "date", "name"]
    assert scores_by_group(ExactMatch(), PREDICTIONS, REFERENCES, groups) == {"date": 50.0, "money": 0.0, "name": 0.0}
    scores = scores_by_group(ChrF(), PREDICTIONS, UNEVEN, groups)
    assert list(scores) == ["date", "money", "name"]
    dates = {"predictions": PREDICTIONS[::2], "references": UNEVEN[::2]}
    assert scores["date"] == ChrF().compute(**dates)["score"] < 100
    with pytest.raises(ValueError, match="4 predictions, 4 references and 2 groups"):
        scores_by_group(ExactMatch(), PREDICTIONS, REFERENCES, groups[:2])


def test_no_network_is_tried(tmp_path):
    """A connection or a name look-up, by Python code of any library, fails this; offline mode is not set."""
    code = """
        import os, sys

        attempts = []

        def guard(event, args):
            if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
                attempts.append((event, args))
                raise AssertionError(f"network: {event} {args}")

        sys.addaudithook(guard)
        import evaluate
        from hfseq.metrics import load, scores_by_group

        texts = {"predictions": ["a b c d e"], "references": [["a b c d e", "f"]]}
        for name in ("sacrebleu", "chrf", "exact_match"):
            metric = load(name)
            metric.add_batch(**texts)
            assert round(metric.compute()["score"], 6) == 100, name
            scores_by_group(metric, *texts.values(), ["kind"])
        evaluate.combine([load("sacrebleu"), load("chrf")]).compute(**texts)
        assert not attempts, attempts
    """
    offline = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE"}
    env = {key: value for key, value in os.environ.items() if key not in offline} | {"HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

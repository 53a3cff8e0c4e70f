"""Metrics: the libraries' own numbers through `evaluate`, with no network."""

import os
import subprocess
import sys
import textwrap

import datasets
import evaluate
import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from hfseq import metrics
from hfseq.errors import InputError
from hfseq.metrics import load, scores_by_group

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
    result = load("sacrebleu").compute(predictions=PREDICTIONS, references=references, **options)
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
    assert load("sacrebleu").compute(predictions=texts, references=[texts[0].lower()])["score"] == 0
    result = load("sacrebleu").compute(predictions=texts, references=[texts[0].lower()], lowercase=True)
    assert result["score"] == pytest.approx(100)


@pytest.mark.parametrize("references,streams", [(REFERENCES, [REFERENCES]), (UNEVEN, STREAMS)])
@pytest.mark.parametrize("options", [{}, {"word_order": 2}, {"lowercase": True}])
def test_chrf_equals_sacrebleu(references, streams, options):
    chrf = CHRF(**options)
    expected = chrf.corpus_score(PREDICTIONS, streams)
    assert 0 < expected.score < 100
    result = load("chrf").compute(predictions=PREDICTIONS, references=references, **options)
    assert result == {"score": expected.score, "signature": str(chrf.get_signature())}


def test_exact_match_is_a_percentage_of_equal_texts():
    assert load("exact_match").compute(predictions=PREDICTIONS, references=REFERENCES) == {"score": 25.0}
    assert load("exact_match").compute(predictions=["a", "b"], references=[["x", "a"], ["y"]]) == {"score": 50.0}
    # Case, spaces (a no-break space too) and punctuation count.
    for other in ("10 €", "10 € ", "10\u00a0€.", "10\u202f€"):
        assert load("exact_match").compute(predictions=["10\u00a0€"], references=[other]) == {"score": 0.0}


ROUGE_TYPES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
# One sentence a line, as rouge-score takes them.
SUMMARIES = ["Tests are running.\nWe ran them all.", "Nothing.", "", "A dog barked.\nThe cat sat."]
SUMMARY_REFERENCES = [
    ["We ran a test.", "All tests ran.\nThey were run by us."],
    ["Something."],
    ["Well.", "Well then."],
    ["The cat sat.\nA dog barked.", "A dog sat.", "Cats bark."],
]


@pytest.mark.parametrize("options", [{}, {"use_stemmer": False}])
def test_rouge_equals_rouge_score(options):
    scorer = RougeScorer(ROUGE_TYPES, use_stemmer=options.get("use_stemmer", True))
    expected = dict.fromkeys(ROUGE_TYPES, 0.0)
    for summary, own in zip(SUMMARIES, SUMMARY_REFERENCES, strict=True):
        rows = [scorer.score(reference, summary) for reference in own]
        for name in ROUGE_TYPES:
            expected[name] += max(row[name].fmeasure for row in rows) / len(SUMMARIES) * 100
    result = load("rouge").compute(
        predictions=[text.replace("\n", " ") for text in SUMMARIES],
        references=[[text.replace("\n", " ") for text in own] for own in SUMMARY_REFERENCES],
        **options,
    )
    assert result == pytest.approx(expected | {"score": expected["rouge1"]})
    assert 0 < result["rouge2"] < result["rougeL"] < result["rougeLsum"] < 100


def test_rouge_by_hand():
    def rouge(prediction, reference, **options):
        return load("rouge").compute(predictions=[prediction], references=[reference], **options)

    # 2 of 3 words of the one and of 4 of the other; 1 of 2 and of 3 pairs.
    result = rouge("the old dogs", "the old dog barked", use_stemmer=False)
    assert result == pytest.approx(
        {"rouge1": 400 / 7, "rouge2": 40, "rougeL": 400 / 7, "rougeLsum": 400 / 7, "score": 400 / 7}
    )
    assert rouge("the old dogs", "the old dog barked")["rouge1"] == pytest.approx(600 / 7)
    # Two sentences that changed places: in order one of them, each for itself both.
    result = rouge("A dog barked. The cat sat.", "The cat sat. A dog barked.")
    assert (result["rouge1"], result["rougeL"], result["rougeLsum"]) == pytest.approx((100, 50, 100))
    # Each type has its own best reference: the same words in another order, or two pairs of words.
    result = rouge("a b c d", ["d c b a", "a b x y c d"])
    assert (result["rouge1"], result["rouge2"]) == pytest.approx((100, 50))


def function_of(name):
    return getattr(metrics, {"sacrebleu": "bleu"}.get(name, name))


def refused_by_the_function(name, predictions, references, message):
    """Check that the function rejects what its metric rejects, with the same message; None is for the metric only."""
    if predictions is not None and references is not None:
        with pytest.raises(ValueError, match=message):
            function_of(name)(predictions, references)


SINGLE = ([0, 2, 1, 0, 2, 2], [0, 1, 1, 2, 2, 0])
SEVERAL = ([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], [[1, 0, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]])


def naive_counts(predictions, references):
    """True positives, predicted and references of each class that occurs, or of each column."""
    if isinstance(predictions[0], list):
        columns = range(len(predictions[0]))
        hits = {k: ([row[k] for row in predictions], [row[k] for row in references]) for k in columns}
    else:
        classes = sorted({*predictions, *references})
        hits = {k: ([row == k for row in predictions], [row == k for row in references]) for k in classes}
    return {k: (sum(map(min, given, right)), sum(given), sum(right)) for k, (given, right) in hits.items()}


def naive_f1(true, given, right):
    return 200 * true / (given + right) if given + right else 0.0


@pytest.mark.parametrize(
    ("predictions", "references"),
    [SINGLE, SEVERAL, ([1, 1, 0], [1, 0, 0]), ([5, 5], [5, 7]), ([[1], [0], [1]], [[1], [1], [1]])],
)
def test_classes(predictions, references):
    counts = naive_counts(predictions, references)
    f1 = {k: naive_f1(*three) for k, three in counts.items()}
    support = {k: right for k, (_, _, right) in counts.items()}
    result = load("f1").compute(predictions=predictions, references=references)
    assert {k: own["f1"] for k, own in result["by_class"].items()} == pytest.approx(f1)
    assert {k: own["support"] for k, own in result["by_class"].items()} == support
    for k, (true, given, right) in counts.items():
        assert result["by_class"][k]["precision"] == pytest.approx(100 * true / given if given else 0)
        assert result["by_class"][k]["recall"] == pytest.approx(100 * true / right if right else 0)
    assert result["score"] == result["f1"] == pytest.approx(sum(f1.values()) / len(f1))
    assert result["f1_micro"] == pytest.approx(naive_f1(*map(sum, zip(*counts.values(), strict=True))))
    weighted = sum(f1[k] * support[k] for k in counts) / sum(support.values())
    assert result["f1_weighted"] == pytest.approx(weighted)
    for name in ("precision", "recall"):
        assert result[name] == pytest.approx(np.mean([own[name] for own in result["by_class"].values()]))

    right = sum(given == own for given, own in zip(predictions, references, strict=True))
    accuracy = pytest.approx(100 * right / len(references))
    assert load("accuracy").compute(predictions=predictions, references=references) == {
        "score": accuracy,
        "accuracy": accuracy,
    }


@pytest.mark.parametrize("convert", [np.array, torch.tensor, lambda rows: [np.array(row) for row in rows]])
@pytest.mark.parametrize("rows", [SINGLE, SEVERAL])
def test_classes_in_arrays(convert, rows):
    predictions, references = map(convert, rows)
    expected = load("f1").compute(predictions=rows[0], references=rows[1])
    metric = load("f1")
    metric.add(prediction=rows[0][0], reference=rows[1][0])
    assert metric.compute(predictions=predictions[1:], references=references[1:]) == expected
    columns = datasets.Dataset.from_dict({"given": rows[0], "right": rows[1]})
    assert load("f1").compute(predictions=columns["given"], references=columns["right"]) == expected


def test_float_labels_as_the_data_has_them():
    references = np.array(SEVERAL[1], dtype=np.float32)
    assert load("accuracy").compute(predictions=np.array(SEVERAL[0]) > 0, references=references)["score"] == 50


TAGS = ([["B-X", "O"], ["B-Y"]], [["B-X", "I-X"], ["B-Y"]])
NUMBERS = ([2.5, 0.0, 2.0, 8.0], [3.0, -0.5, 2.0, 7.0])


@pytest.mark.parametrize(
    ("name", "rows", "options"),
    [
        ("sacrebleu", (PREDICTIONS, UNEVEN), {"tokenize": "char", "lowercase": True}),
        ("chrf", (PREDICTIONS, REFERENCES), {"word_order": 2}),
        ("exact_match", (PREDICTIONS, UNEVEN), {}),
        ("rouge", (PREDICTIONS, UNEVEN), {"use_stemmer": False}),
        ("accuracy", SINGLE, {}),
        ("f1", SEVERAL, {}),
        ("seqeval", TAGS, {"scheme": "IOB2"}),
        *((name, NUMBERS, {}) for name in ("pearson", "spearman", "rmse")),
        *((name, (PREDICTIONS, REFERENCES), {}) for name in ("wer", "cer")),
    ],
)
def test_functions_and_their_metrics(name, rows, options):
    expected = function_of(name)(*rows, **options)
    metric = load(name)
    metric.add(prediction=rows[0][0], reference=rows[1][0])
    found = metric.compute(predictions=rows[0][1:], references=rows[1][1:], **options)
    assert found == expected and found["score"] > 0
    assert metric.description.splitlines()[0] == function_of(name).__doc__.splitlines()[0]


def test_correlations_by_hand():
    # Deviations from the means, -1 0 1 and -2 1 1: 3 / sqrt(2 * 6).
    found = metrics.pearson([1, 2, 3], [0, 3, 3])
    assert found == {"score": pytest.approx(100 * 3 / 12**0.5), "pearson": found["score"]}
    # Ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * 2 / (4 * 15).
    found = metrics.spearman([0.1, 5, 6, 1e9], [-7, 2, 1, 3])
    assert found == {"score": pytest.approx(80), "spearman": found["score"]}
    # Ties get their mean: ranks 1 2 3 and 1 2.5 2.5, whose correlation is 1.5 / sqrt(2 * 1.5).
    assert metrics.spearman([1, 2, 3], [0, 9, 9])["score"] == pytest.approx(100 * 1.5 / 3**0.5)
    assert metrics.pearson([1, 2], [5, 4])["score"] == pytest.approx(-100)
    assert metrics.spearman(np.float32([1, 2, 9]), torch.tensor([0.5, 0.6, 7]))["score"] == pytest.approx(100)


def test_rmse_by_hand():
    assert metrics.rmse([1, 2, 3], [1, 4, 7]) == {"score": pytest.approx((20 / 3) ** 0.5)} | dict.fromkeys(
        ["rmse"], pytest.approx((20 / 3) ** 0.5)
    )
    assert metrics.rmse([2.0], [2.0])["score"] == 0


@pytest.mark.parametrize("name", ["pearson", "spearman", "rmse"])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([1.0], [1.0, 2.0], "1 predictions but 2 references"),
        ([], [], "nothing to score"),
        ([1.0, float("nan")], [1.0, 2.0], "prediction 1 is nan, not a finite number"),
        ([1.0, 2.0], [float("inf"), 2.0], "reference 0 is inf, not a finite number"),
        ([1.0, None], [1.0, 2.0], "prediction 1 is None, not"),
        (["1", 2.0], [1.0, 2.0], "prediction 0 is '1', not"),
        ([True, 2.0], [1.0, 2.0], "prediction 0 is True, not"),
        ([[1.0], [2.0]], [1.0, 2.0], r"prediction 0 is \[1.0\], not"),
    ],
)
def test_bad_numbers(name, predictions, references, message):
    refused_by_the_function(name, predictions, references, message)
    metric = load(name)
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)
    assert metric.compute(predictions=[1, 2], references=[1, 2])["score"] == pytest.approx(
        0 if name == "rmse" else 100
    )


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_constant_has_no_correlation(name):
    message = rf"{name}: the predictions are constant \(0.1\), so the correlation is undefined"
    refused_by_the_function(name, [0.1, 0.1, 0.1], [1, 2, 3], message)
    refused_by_the_function(name, [1, 2], [3, 3], "the references are constant")
    refused_by_the_function(name, [1], [3], "constant")


def test_metrics_of_classes_combine():
    combined = evaluate.combine([load("accuracy"), load("f1")])
    for prediction, reference in zip(*SINGLE, strict=True):
        combined.add(prediction, reference)
    result = combined.compute()
    assert (result["accuracy"], result["f1_micro"]) == pytest.approx((50, 50))
    assert {"accuracy_score", "f1_score"} <= set(result)


@pytest.mark.parametrize("name", ["accuracy", "f1"])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([1], [1, 2], "1 predictions but 2 references"),
        ([], [], "nothing to score"),
        (None, None, "nothing to score"),
        ([1], None, "given together"),
        (["positive"], [1], "prediction 0 is 'positive', not a class number"),
        ([1, 0], [1, -100], "reference 1 is -100, not a class number"),
        ([0.7], [1], "prediction 0 is 0.7, not"),
        ([None], [1], "prediction 0 is None, not"),
        ([[0, 2]], [[0, 1]], r"prediction 0 is \[0, 2\], not a class number or a list of 0 and 1"),
        ([[]], [[]], r"prediction 0 is \[\], not"),
        (["01"], ["01"], "prediction 0 is '01', not"),
        ([1, [0, 1]], [1, [0, 1]], "prediction 1 is .* and reference 1 is .*class numbers only, or only lists"),
        ([1], [[0, 1]], "prediction 0 is 1 and reference 0 is"),
        ([[0, 1]], [[0, 1, 0]], "of the same length"),
        ([[0, 1], [0]], [[0, 1], [0]], "different lengths"),
    ],
)
def test_bad_classes(name, predictions, references, message):
    metric = load(name)
    refused_by_the_function(name, predictions, references, message)
    with pytest.raises(ValueError, match=message) as caught:
        metric.compute(predictions=predictions, references=references)
    assert "\n" not in str(caught.value)
    assert metric.compute(predictions=[1], references=[1])["score"] == 100
    metric.add(prediction=[0, 1], reference=[0, 1])
    with pytest.raises(ValueError, match="not scored together"):
        metric.add(prediction=1, reference=1)
    assert metric.compute()["score"] > 0


def edit_distance(source, target):
    """Wagner and Fischer's table, from the definition."""
    table = {(i, 0): i for i in range(len(source) + 1)} | {(0, j): j for j in range(len(target) + 1)}
    for i, a in enumerate(source, 1):
        for j, b in enumerate(target, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
    return table[len(source), len(target)]


@pytest.mark.parametrize("seed", range(20))
def test_error_rates_equal_edit_distances(seed):
    rng = np.random.default_rng(seed)
    texts = [
        [" ".join("".join(rng.choice([*"ab"], rng.integers(1, 4))) for _ in range(rng.integers(0, 6))) for _ in "1234"]
        for _ in "pr"
    ]
    predictions, references = texts[0], ["a b", *texts[1][1:]]
    for name, units in (("wer", str.split), ("cer", list)):
        pairs = [(units(given), units(right)) for given, right in zip(predictions, references, strict=True)]
        distance = sum(edit_distance(*pair) for pair in pairs)
        length = sum(len(right) for _, right in pairs)
        result = load(name).compute(predictions=predictions, references=references)
        assert result["score"] == result[name] == pytest.approx(100 * distance / length)
        assert result["substitutions"] + result["deletions"] + result["insertions"] == distance
        assert result["ref_len"] == length


def test_error_rates_by_hand():
    # One word of five is wrong and one is missing; the rows are weighted by their lengths.
    found = metrics.wer(["the cat sit", "a"], ["the cat sat", "a dog"])
    counts = {"substitutions": 1, "deletions": 1, "insertions": 0, "ref_len": 5}
    assert found == {"score": 40.0, "wer": 40.0, **counts}
    # "i" for "a", and " dog" is missing: 5 of 11 + 5 characters.
    found = metrics.cer(["the cat sit", "a"], ["the cat sat", "a dog"])
    assert found == pytest.approx(
        {"score": 500 / 16, "cer": 500 / 16, "substitutions": 1, "deletions": 4, "insertions": 0, "ref_len": 16}
    )
    # Case and punctuation count, spaces around the text do not.
    assert metrics.wer([" The cat. "], ["the cat"])["score"] == 100
    assert metrics.cer([" The cat "], ["the cat"])["score"] == pytest.approx(100 / 7)
    assert metrics.wer(["a b c d"], ["b"])["score"] == 300


def test_error_rates_of_silence():
    assert metrics.wer(["", "a b"], ["a b", "a b"])["score"] == 50
    # Nothing was said in the first row.
    assert metrics.wer(["a b", "c"], ["", "c d e f"])["score"] == 125
    assert metrics.cer(["", "c"], [" ", "c"])["score"] == 0
    for name in ("wer", "cer"):
        for prediction in ("", "a"):
            message = f"^{name}: all references are empty, so the rate is undefined; give transcripts with words$"
            refused_by_the_function(name, [prediction] * 2, ["", "  "], message)
            with pytest.raises(ValueError, match=message):
                load(name).compute(predictions=[prediction] * 2, references=["", "  "])


@pytest.mark.parametrize("name", ["wer", "cer"])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], ["b", "c"], "1 predictions but 2 references"),
        ([], [], "nothing to score"),
        (["a", None], ["a", "b"], "prediction 1 is None, not a string"),
        (["a", "b"], ["a", ["b"]], r"reference 1 is \['b'\], not a string"),
        ([[3, 1]], ["a"], r"prediction 0 is \[3, 1\], not a string"),
    ],
)
def test_bad_transcripts(name, predictions, references, message):
    refused_by_the_function(name, predictions, references, message)
    metric = load(name)
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)
    assert metric.compute(predictions=["a b"], references=["a b"])["score"] == 0


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        *(("f1", "sklearn", "train"), ("seqeval", "seqeval", "train"), ("sacrebleu", "sacrebleu", "train")),
        *(("chrf", "sacrebleu", "train"), ("rouge", "nltk", "train"), ("pearson", "scipy", "train")),
        *(("spearman", "scipy", "train"), ("wer", "jiwer", "audio"), ("cer", "jiwer", "audio")),
    ],
)
def test_without_the_package_that_counts(name, package, extra, monkeypatch):
    monkeypatch.setattr("hfseq.errors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"the metric '{name}' needs {package}.*: pip install 'hfseq\[{extra}\]'$"):
        load(name)
    with pytest.raises(InputError, match=rf"needs {package}"):
        function_of(name)(["a"], ["a"])
    assert load("exact_match").name == "exact_match"


@pytest.mark.parametrize("keep_in_memory", [True, False])
@pytest.mark.parametrize("references", [REFERENCES, UNEVEN])
def test_adding_bit_by_bit(references, keep_in_memory, tmp_path):
    metric = load("sacrebleu", keep_in_memory=keep_in_memory, cache_dir=str(tmp_path))
    expected = load("sacrebleu").compute(predictions=PREDICTIONS, references=references)
    for _ in range(2):  # compute() forgets what it scored
        metric.add_batch(predictions=PREDICTIONS[:2], references=references[:2])
        metric.add_batch(predictions=[], references=[])
        metric.add(prediction=PREDICTIONS[2], reference=references[2])
        assert len(metric) == 3
        assert metric.compute(predictions=PREDICTIONS[3:], references=references[3:]) == expected
        assert len(metric) == 0


def test_one_batch_with_strings_and_one_with_lists():
    metric = load("exact_match")
    metric.add_batch(predictions=["a", "b"], references=["a", ["x", "b"]])
    metric.add_batch(predictions=["c"], references=[["c"]])
    assert metric.compute() == {"score": 100.0}


def test_nothing_is_left_on_disk(tmp_path):
    metric = load("sacrebleu", cache_dir=str(tmp_path))
    metric.add_batch(predictions=PREDICTIONS, references=REFERENCES)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_columns_of_a_dataset():
    rows = datasets.Dataset.from_dict({"said": PREDICTIONS, "right": REFERENCES})
    assert load("exact_match").compute(predictions=rows["said"], references=rows["right"]) == {"score": 25.0}


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


@pytest.mark.parametrize("name", ["sacrebleu", "chrf", "exact_match", "rouge"])
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
def test_bad_input(name, predictions, references, message):
    metric = load(name)
    refused_by_the_function(name, predictions, references, message)
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)
    # Nothing of it stays behind.
    assert metric.compute(predictions=["abcdef"], references=["abcdef"])["score"] in (0.0, 100.0)


def test_bad_options():
    with pytest.raises(ValueError, match="no tokenizer 'klingon'.*13a"):
        load("sacrebleu").compute(predictions=["a"], references=["a"], tokenize="klingon")
    with pytest.raises(TypeError, match="lower_case"):
        load("chrf").compute(predictions=["a"], references=["a"], lower_case=True)
    with pytest.raises(ValueError, match="'bleurt'.*sacrebleu, chrf, exact_match, rouge, accuracy, f1"):
        load("bleurt")


def test_scores_by_group():
    groups = ["date", "money", "date", "name"]
    assert scores_by_group(metrics.exact_match, PREDICTIONS, REFERENCES, groups) == {
        "date": 50.0,
        "money": 0.0,
        "name": 0.0,
    }
    scores = scores_by_group(metrics.chrf, PREDICTIONS, UNEVEN, groups)
    assert list(scores) == ["date", "money", "name"]
    dates = {"predictions": PREDICTIONS[::2], "references": UNEVEN[::2]}
    assert scores["date"] == load("chrf").compute(**dates)["score"] < 100
    assert scores_by_group(metrics.accuracy, [0, 1, 1, 0], np.array([0, 1, 0, 1]), groups) == {
        "date": 50.0,
        "money": 100.0,
        "name": 0.0,
    }
    several = scores_by_group(metrics.f1, *map(np.array, SEVERAL), groups)
    assert several == pytest.approx({"date": 100 / 3, "money": 100 / 3, "name": 0})
    with pytest.raises(ValueError, match="4 predictions, 4 references and 2 groups"):
        scores_by_group(metrics.exact_match, PREDICTIONS, REFERENCES, groups[:2])


def test_no_network_is_tried_and_importing_is_cheap(tmp_path):
    """A connection or a name look-up, by Python code of any library, fails this; offline mode is not set."""
    code = """
        import os, sys

        attempts = []

        def guard(event, args):
            if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
                attempts.append((event, args))
                raise AssertionError(f"network: {event} {args}")

        sys.addaudithook(guard)
        from hfseq import metrics
        from hfseq.metrics import load, rmse, scores_by_group

        rmse([1.0], [1.0])
        print({"evaluate", "datasets", "jiwer", "sacrebleu", "seqeval"} & {*sys.modules})
        load("f1")
        print({"sklearn", "nltk"} & {*sys.modules})
        import evaluate

        texts = {"predictions": ["a b c d e"], "references": [["a b c d e", "f"]]}
        for name in ("sacrebleu", "chrf", "exact_match", "rouge"):
            metric = load(name)
            metric.add_batch(**texts)
            assert round(metric.compute()["score"], 6) == 100, name
            scores_by_group(getattr(metrics, "bleu" if name == "sacrebleu" else name), *texts.values(), ["kind"])
        evaluate.combine([load("sacrebleu"), load("chrf")]).compute(**texts)
        assert load("f1").compute(predictions=[1, 0], references=[1, 0])["score"] == 100
        assert load("wer").compute(predictions=["a b"], references=["a c"])["score"] == 50
        assert not attempts, attempts
    """
    offline = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE"}
    env = {key: value for key, value in os.environ.items() if key not in offline} | {"HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # What takes seconds, or may not be installed, is imported where it scores.
    assert result.stdout == "set()\nset()\n"

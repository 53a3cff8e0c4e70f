"""Sequence and token classification: pooling, kinds of problems, starting from other heads' weights."""

import pytest
import torch
from test_models import CAUSAL, FAMILIES, MASK, SEQ2SEQ, SEQUENCE, TINY, TOKEN, check_padding, make, make_inputs
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, pipeline

from hfseq.models.pooling import Pooling
from hfseq.tokenization import train_tokenizer

POOLINGS = ["last", "mean", "max", "concat", "attention"]


def pool_row(pooling, values):
    """One row's valid steps [T, H], feature by feature and step by step."""
    if pooling.kind == "concat":
        parts = [Pooling(kind, values.shape[1], pooling.concatenates_directions) for kind in ("last", "max", "mean")]
        return torch.cat([pool_row(part, values) for part in parts])
    if pooling.kind == "max":
        return torch.stack([max(step[feature] for step in values) for feature in range(values.shape[1])])
    if pooling.kind == "mean":
        return sum(values) / len(values)
    if pooling.kind == "last":
        half = values.shape[1] // 2
        return torch.cat([values[-1][:half], values[0][half:]]) if pooling.concatenates_directions else values[-1]
    scores = [
        pooling.energy.weight[0] @ torch.tanh(pooling.hidden.weight @ step + pooling.hidden.bias) for step in values
    ]
    exponentials = [torch.exp(score) for score in scores]
    return sum(value * step for value, step in zip(exponentials, values, strict=True)) / sum(exponentials)


@pytest.mark.parametrize("concatenates_directions", [True, False])
@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_equals_the_unrolled_rows(kind, concatenates_directions):
    torch.manual_seed(0)
    pooling = Pooling(kind, 6, concatenates_directions).double()
    values = torch.randn(5, 5, 6).double() - 3.0  # so that a zero at padding would be the maximum
    pooled = pooling(values, MASK.bool())
    for row in range(5):
        torch.testing.assert_close(pooled[row], pool_row(pooling, values[row, MASK[row].bool()]))
    torch.testing.assert_close(pooling(values)[0], pool_row(pooling, values[0]))


@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_nothing_gives_zeros(kind):
    pooling = Pooling(kind, 4).double()
    values = torch.randn(2, 3, 4).double().requires_grad_()
    pooled = pooling(values, torch.tensor([[False] * 3, [True] * 3]))
    assert not pooled[0].any() and pooled[1].any()
    pooled.sum().backward()
    assert values.grad.isfinite().all() and not values.grad[0].any()


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("heads", FAMILIES)
def test_padding_changes_nothing_in_any_pooling(heads, kind, bidirectional):
    model = make(heads[SEQUENCE], pooling=kind, bidirectional=bidirectional, num_labels=3)
    check_padding(model, make_inputs(model))


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem_type"),
    [
        (3, torch.tensor([0, 2, 1, 1, 0]), "single_label_classification"),
        (3, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]]).double(), None),
        (1, torch.tensor([0.5, -1.0, 2.0, 0.0, 1.5]).double(), "regression"),
        (2, torch.arange(10.0).view(5, 2).double(), "regression"),
    ],
    ids=["single label", "multi label", "regression", "regression of two"],
)
@pytest.mark.parametrize("heads", FAMILIES)
def test_problem_types(heads, num_labels, labels, problem_type, tmp_path):
    """Given or, as in transformers, found out from the labels; saved once known."""
    model = make(heads[SEQUENCE], num_labels=num_labels, problem_type=problem_type)
    outputs = model(**make_inputs(model), labels=labels)
    logits = outputs.logits
    assert logits.shape == (5, num_labels)
    if problem_type == "regression":
        expected = (logits.view(labels.shape) - labels).pow(2).mean()
    elif problem_type is None:
        problem_type = "multi_label_classification"
        chance = torch.sigmoid(logits)
        expected = -(labels * chance.log() + (1 - labels) * (1 - chance).log()).mean()
    else:
        expected = -logits.log_softmax(-1)[torch.arange(5), labels].mean()
    torch.testing.assert_close(outputs.loss, expected)
    # What the Trainer adds up over two batches, divided by the labels of both, is the mean over both.
    doubled = model(**make_inputs(model), labels=labels, num_items_in_batch=2 * labels.numel()).loss
    torch.testing.assert_close(doubled, expected / 2)
    model.save_pretrained(tmp_path)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.problem_type == problem_type


@pytest.mark.parametrize("heads", FAMILIES)
def test_loss_of_a_tagger(heads):
    model = make(heads[TOKEN], num_labels=4)
    inputs = make_inputs(model)
    labels = (inputs["input_ids"] % 4).masked_fill(MASK == 0, -100)
    outputs = model(**inputs, labels=labels)
    assert outputs.logits.shape == (5, 5, 4)
    chances = outputs.logits.log_softmax(-1)
    picked = [-chances[row, step, labels[row, step]] for row, step in MASK.nonzero().tolist()]
    torch.testing.assert_close(outputs.loss, (sum(picked) / len(picked)).float())
    half = model(**inputs, labels=labels, num_items_in_batch=2 * len(picked)).loss
    torch.testing.assert_close(half, outputs.loss / 2)


@pytest.mark.parametrize("heads", FAMILIES)
def test_wrong_labels(heads):
    model = make(heads[SEQUENCE], num_labels=3)
    inputs = make_inputs(model)
    for shape in ((4,), (5, 3), (5, 1, 3)):
        with pytest.raises(ValueError, match=r"labels has shape .*, expected \(5,\) for single_label"):
            model(**inputs, labels=torch.zeros(shape).long())
    for kind in ("multi_label_classification", "regression"):
        several = make(heads[SEQUENCE], num_labels=3, problem_type=kind)
        for shape in ((5,), (5, 2), (3,)):
            with pytest.raises(ValueError, match=rf"labels has shape .*, expected \(5, 3\) for {kind}"):
                several(**inputs, labels=torch.zeros(shape))
    with pytest.raises(ValueError, match=r"labels has shape .*, expected \(5,\) or \(5, 1\) for regression"):
        make(heads[SEQUENCE], num_labels=1)(**inputs, labels=torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"labels has shape \(5,\), expected \(batch, length\)"):
        make(heads[SEQ2SEQ])(**inputs, labels=torch.zeros(5).long())
    for auto in (TOKEN, CAUSAL, SEQ2SEQ):
        model = make(heads[auto])
        with pytest.raises(ValueError, match=r"labels has shape \(5, 4\), expected \(5, 5\)"):
            model(**make_inputs(model), labels=torch.zeros(5, 4).long())


@pytest.mark.parametrize("start", [CAUSAL, SEQ2SEQ, SEQUENCE, TOKEN])
@pytest.mark.parametrize("heads", FAMILIES)
def test_only_the_head_is_new(heads, start, tmp_path):
    """A classifier or tagger starts from what any other head has learnt, and reads in the direction that one read."""
    original = make(heads[start], encoder_layers=2)
    original.save_pretrained(tmp_path)
    new = {"classifier.weight", "classifier.bias"}
    for auto_class in (AutoModelForSequenceClassification, AutoModelForTokenClassification):
        model, info = auto_class.from_pretrained(
            tmp_path, num_labels=5, output_loading_info=True, ignore_mismatched_sizes=True
        )
        found = info["missing_keys"] | {key for key, *_ in info["mismatched_keys"]}
        assert found == new, info
        assert not info["unexpected_keys"]
        assert model.config.bidirectional is (start != CAUSAL)
        torch.testing.assert_close(model.model.state_dict(), original.model.state_dict(), rtol=0, atol=0)
        model(**make_inputs(model)).logits.sum().backward()


@pytest.mark.parametrize("heads", FAMILIES)
def test_every_layer_is_found_again(heads, tmp_path):
    """Depths that a head does not use do not hide the layers that it has from the next one."""
    depths = {"num_hidden_layers": 2, "encoder_layers": 1, "decoder_layers": 3, "bidirectional": False}
    architecture = {"architecture": "gated"} if heads[SEQ2SEQ].config_class.family == "Cnn" else {}
    for start in (SEQ2SEQ, CAUSAL, TOKEN):
        original = make(heads[start], **depths, **architecture)
        original.save_pretrained(tmp_path / start)
        for auto in (CAUSAL, SEQ2SEQ, SEQUENCE):
            model, info = heads[auto].from_pretrained(tmp_path / start, output_loading_info=True)
            assert not [key for key in info["missing_keys"] if key.startswith("model.")], (start, auto, info)
            torch.testing.assert_close(model.model.state_dict(), original.model.state_dict(), rtol=0, atol=0)
            assert model.config.use_cache
            assert auto == SEQUENCE or model.generation_config.use_cache


@pytest.mark.parametrize("heads", FAMILIES)
def test_label_names_reach_the_pipeline(heads, tmp_path):
    tokenizer = train_tokenizer(["a good film", "a bad film"], model="word", vocab_size=20)
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    for auto in (SEQUENCE, TOKEN):
        model = make(heads[auto], vocab_size=len(tokenizer), **names).float()
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        if auto == SEQUENCE:
            classify = pipeline("text-classification", model=str(tmp_path), top_k=None)
            scores = classify(["a good film", "bad"], batch_size=2)
            assert {score["label"] for score in scores[0]} == {"bad", "good"}
            alone = model(**AutoTokenizer.from_pretrained(tmp_path)("bad", return_tensors="pt")).logits.softmax(-1)
            found = {score["label"]: score["score"] for score in scores[1]}
            assert [found["bad"], found["good"]] == pytest.approx(alone[0].tolist(), abs=1e-5)
        else:
            tags = pipeline("token-classification", model=str(tmp_path))("a good film")
            assert {tag["entity"] for tag in tags} <= {"bad", "good"} and len(tags) == 3


def test_classifier_dropout_stands_before_the_last_layer():
    from hfseq import LstmConfig, LstmForSequenceClassification, LstmForTokenClassification

    for model_class in (LstmForSequenceClassification, LstmForTokenClassification):
        assert model_class(LstmConfig(**TINY | {"dropout": 0.3})).dropout.p == 0.3
        assert model_class(LstmConfig(**TINY, classifier_dropout=0.5)).dropout.p == 0.5

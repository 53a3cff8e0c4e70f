"""Connectionist temporal classification: the loss by its definition, and what stands at padding."""

import json
from itertools import product

import pytest
import torch
from token_classes import MODEL_CLASSES
from transformers import AutoModelForCTC, Trainer, TrainingArguments

from hfseq import LstmConfig, LstmForCTC

pytestmark = pytest.mark.contract

FAMILIES = [heads["AutoModelForCTC"] for heads in MODEL_CLASSES.values()]
TINY = {"vocab_size": 4, "input_size": 2, "hidden_size": 8, "dropout": 0.0}
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0]])
LABELS = torch.tensor([[3, 3, 2], [1, -100, 2], [-100, 1, -100], [-100, -100, -100]])


def make(model_class, **fields):
    torch.manual_seed(0)
    return model_class(model_class.config_class(**TINY | fields)).eval()


def features(batch=4, length=5):
    return torch.randn(batch, length, 2, generator=torch.Generator().manual_seed(1))


def collapse(path, blank):
    """Labels of an alignment: repetitions merged, then blanks removed (Graves et al. 2006, section 3.1)."""
    merged = [symbol for index, symbol in enumerate(path) if index == 0 or path[index - 1] != symbol]
    return tuple(symbol for symbol in merged if symbol != blank)


def nll(logits, labels, blank=0):
    """Negative log-likelihood of labels, summed over all alignments of `[T, V]`."""
    steps = logits.double().log_softmax(dim=-1)
    paths = product(range(steps.shape[1]), repeat=len(steps))
    scores = [sum(steps[t, s] for t, s in enumerate(path)) for path in paths if collapse(path, blank) == labels]
    return -torch.stack(scores).logsumexp(dim=0)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("blank", [0, 3])
@pytest.mark.parametrize("model_class", FAMILIES)
def test_the_loss_is_the_sum_over_all_alignments(model_class, blank, factor):
    model = make(model_class, pad_token_id=blank, subsampling_factor=factor)
    labels = LABELS[:3].masked_fill(LABELS[:3] == blank, 1)
    if factor == 2:
        labels = labels[:, 2:].masked_fill(labels[:, 2:] == -100, 2)
    output = model(features()[:3], attention_mask=MASK[:3], labels=labels)
    total = 0.0
    for row, mask in enumerate(MASK[:3].bool()):
        logits = model(features()[row, mask].unsqueeze(0)).logits[0]
        total = total + nll(logits, tuple(label for label in labels[row].tolist() if label != -100), blank)
    torch.testing.assert_close(output.loss.double(), total / (labels != -100).sum(), rtol=1e-5, atol=1e-5)


def test_accumulated_losses_sum_up():
    """Divided by the number of labels of all batches, not of one."""
    model = make(LstmForCTC)
    whole = model(features(), attention_mask=MASK, labels=LABELS)
    count = (LABELS != -100).sum()
    halves = [
        model(features()[rows], attention_mask=MASK[rows], labels=LABELS[rows], num_items_in_batch=count).loss
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(halves), whole.loss)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(features(), attention_mask=MASK, labels=LABELS)
    assert low.loss.dtype == torch.float32
    torch.testing.assert_close(low.loss, whole.loss, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("steps", [1, 4])
def test_accumulation_by_the_trainer(steps, tmp_path):
    """The same update from one batch of four rows and from four batches of one row."""
    model = make(LstmForCTC)
    rows = [
        {"input_features": frames, "attention_mask": mask, "labels": labels}
        for frames, mask, labels in zip(features(), MASK, LABELS, strict=True)
    ]
    before = model.ctc_head.weight.detach().clone()
    expected = make(LstmForCTC)
    expected(features(), attention_mask=MASK, labels=LABELS).loss.backward()
    arguments = TrainingArguments(
        output_dir=tmp_path,
        per_device_train_batch_size=4 // steps,
        gradient_accumulation_steps=steps,
        max_steps=1,
        learning_rate=0.5,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=rows).train()
    change = (before - model.ctc_head.weight.detach()) / 0.5
    torch.testing.assert_close(change, expected.ctc_head.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("model_class", FAMILIES)
def test_the_blank_stands_at_padding(model_class, factor):
    model = make(model_class, pad_token_id=2, subsampling_factor=factor)
    logits = model(features(), attention_mask=MASK).logits
    padding = MASK == 0
    if factor == 2:
        padding = torch.arange(3) >= -(-MASK.sum(dim=1, keepdim=True) // 2)
    assert set(logits[padding].argmax(dim=-1).tolist()) == {2}
    assert (logits[padding].softmax(dim=-1)[:, 2] > 0.999).all()


def test_characters_in_place_of_features():
    model = make(LstmForCTC, input_size=None)
    assert model.main_input_name == "input_ids" and LstmForCTC.main_input_name == "input_features"
    ids = torch.tensor([[1, 2, 3, 1, 1]])
    loss = model(input_ids=ids, labels=LABELS[:1]).loss
    torch.testing.assert_close(loss.double() * 3, nll(model(input_ids=ids).logits[0], (3, 3, 2)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("model_class", FAMILIES)
def test_a_stream_equals_one_call(model_class, factor):
    model = make(model_class, bidirectional=False, subsampling_factor=factor)
    whole = model(features(2, 10))
    assert whole.cache is None
    first = model(features(2, 10)[:, :4], use_cache=True)
    second = model(features(2, 10)[:, 4:], cache=first.cache, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole.logits)


@pytest.mark.parametrize("zero_infinity", [True, False])
def test_a_row_that_is_too_short_for_its_labels(zero_infinity):
    model = make(LstmForCTC, ctc_zero_infinity=zero_infinity)
    labels = torch.tensor([[1, 2, 3], [1, 2, -100], [2, 2, -100], [1, -100, 1]])
    if zero_infinity:
        loss = model(features(), attention_mask=MASK, labels=labels).loss
        assert loss.isfinite() and loss > 0
    else:
        with pytest.raises(ValueError, match="row 3: 2 labels, 1 of them repeated, need 3 steps; there are 2"):
            model(features(), attention_mask=MASK, labels=labels)


def test_rows_without_labels_are_blanks():
    model = make(LstmForCTC)
    rows = torch.full((2, 3), -100)
    loss = model(features(2), labels=rows, num_items_in_batch=1).loss
    blanks = model(features(2)).logits.log_softmax(dim=-1)[..., 0].sum()
    torch.testing.assert_close(loss, -blanks)


def test_impossible_models():
    with pytest.raises(ValueError, match="is_encoder_decoder=True is impossible for CTC"):
        make(LstmForCTC, is_encoder_decoder=True)
    for blank in (None, 4, -1):
        with pytest.raises(ValueError, match=f"pad_token_id={blank} is impossible, it is the blank"):
            make(LstmForCTC, pad_token_id=blank)
    with pytest.raises(ValueError, match=r"row 1 has the label 0, which is the blank \(pad_token_id\)"):
        make(LstmForCTC)(features(), labels=LABELS.masked_fill(LABELS == 2, 0)[[3, 0, 1, 2]])
    with pytest.raises(ValueError, match="labels has shape"):
        make(LstmForCTC)(features(), labels=LABELS[:2])


def test_a_checkpoint_of_an_encoder_decoder_is_not_taken_for_one(tmp_path):
    make(MODEL_CLASSES[LstmConfig]["AutoModelForSeq2SeqLM"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is_encoder_decoder"):
        AutoModelForCTC.from_pretrained(tmp_path)
    assert "AutoModelForCTC" not in json.loads((tmp_path / "config.json").read_text())["auto_map"]

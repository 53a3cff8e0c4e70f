"""Warnings from histories made by hand, and from runs that really overfit or learn nothing."""

import datasets
import pytest
import torch
from transformers import AutoModelForSequenceClassification, TrainerControl, TrainerState, TrainingArguments, set_seed

from hfseq import LstmConfig
from hfseq.training.curves import CurveWarnings, curve_warnings, new_curve_warnings
from hfseq.training.trainer import SequenceTrainer


def history(train, validation, scores=None, every=10):
    """An evaluation each `every` steps; a training loss may be a list, of what was logged before the evaluation."""
    entries = []
    for number, (losses, eval_loss) in enumerate(zip(train, validation, strict=True), start=1):
        for loss in losses if isinstance(losses, list) else [losses]:
            entries.append({"step": number * every, "loss": loss, "learning_rate": 0.1})
        entry = {"step": number * every, "eval_loss": eval_loss, "eval_runtime": 1.0}
        entries.append(entry | ({} if scores is None else {"eval_bleu": scores[number - 1]}))
    return [*entries, {"step": len(train) * every, "train_loss": 0.5}]


HEALTHY = {
    "falling": history([3.0, 2.0, 1.5, 1.2], [2.5, 2.0, 1.8, 1.7]),
    "smoothed, so that training lies above": history([4.0, 3.5, 3.2, 3.1], [2.5, 2.0, 1.8, 1.7]),
    "noisy": history([3.0, 2.2, 2.3, 1.8, 1.9, 1.6], [2.5, 2.1, 2.18, 2.05, 2.14, 2.13]),
    "one bad evaluation": history([3.0, 2.0, 1.5, 1.2], [2.5, 2.0, 2.0, 2.8]),
    "back from a bad one": history([3.0, 2.0, 1.5, 1.2, 1.1], [2.5, 2.0, 2.8, 2.8, 2.09]),
    "both rise": history([1.0, 0.5, 2.0, 3.0], [1.0, 0.5, 2.0, 3.0]),
    "rise of next to nothing": history([3.0, 0.1, 0.02, 0.01], [3.0, 0.01, 0.02, 0.03]),
    "learnt in the first epoch": history([[5.0, 1.0], 1.0, 1.0], [1.0, 1.0, 1.0]),
    "only the training loss moves": history([1.0, 0.99, 0.97], [1.0, 1.0, 1.0]),
    "only the validation loss moves": history([1.0, 1.0, 1.0], [1.0, 0.99, 0.97]),
    "only the score moves": history([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 3.0]),
    "short": history([1.0, 1.0], [1.0, 1.0]),
    "no training loss": [{"step": n, "eval_loss": 1.0} for n in range(5)],
    "no evaluation": [{"step": n, "loss": 1.0} for n in range(5)],
    "empty": [],
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_warning(name):
    assert curve_warnings(HEALTHY[name], "bleu") == []


def test_overfitting_names_the_figures():
    log = history([[3.0, 2.0], 1.5, 1.2, [0.7, 0.5]], [2.5, 2.0, 2.11, 2.2], [10.0, 20.0, 22.0, 21.0])
    (message,) = curve_warnings(log, "eval_bleu")
    assert message.startswith(
        "overfitting: the validation loss was lowest at step 20 (2) and is 2.2 at step 40, while the training loss "
        "fell from 1.5 to 0.6; bleu 20 then, 21 now; "
    )
    # Of the last two evaluations, each has to lie 5 % above the lowest.
    assert curve_warnings(history([3.0, 1.5, 1.2, 0.6], [2.5, 2.0, 2.09, 2.2])) == []
    assert curve_warnings(history([3.0, 1.5, 1.2, 0.6], [2.5, 2.0, 2.2, 2.09])) == []
    assert curve_warnings(history([3.0, 1.5, 1.2, 1.5], [2.5, 2.0, 2.2, 2.2])) == []


@pytest.mark.parametrize(
    ("scores", "greater", "warned"),
    [
        (None, True, True),
        ([2.0, 2.1, 2.15], True, True),
        ([2.0, 2.3, 2.0], True, False),
        ([2.0, 1.7, 2.0], True, True),
        ([2.0, 1.7, 2.0], False, False),
        ([2.0, 2.3, 2.0], False, True),
    ],
)
def test_underfitting(scores, greater, warned):
    log = history([1.40, 1.41, 1.38], [1.39, 1.40, 1.37], scores)
    messages = curve_warnings(log, "bleu", greater)
    assert len(messages) == warned
    if warned:
        figures = "training 1.4 at first, 1.38 at step 30, validation 1.39 at step 10, 1.37 now"
        assert messages[0].startswith("underfitting: after 3 evaluations neither loss has fallen by 2%: " + figures)
        assert ("; bleu 2 then, " in messages[0]) == (scores is not None)


def test_a_warning_is_new_once():
    # Overfitting holds from the fourth evaluation, not at the sixth, and again from the eighth.
    validation = [2.5, 2.0, 2.2, 2.3, 2.4, 2.01, 2.3, 2.4]
    log = history([3.0, 1.5, 1.2, 1.0, 0.9, 0.8, 0.7, 0.6], validation)[:-1]
    held, new = [], []
    for row, entry in enumerate(log, start=1):
        if "eval_loss" in entry:
            held.append(len(curve_warnings(log[:row])))
            new.append(len(new_curve_warnings(log[:row])))
    assert held == [0, 0, 0, 1, 1, 0, 0, 1]
    assert new == [0, 0, 0, 1, 0, 0, 0, 0]
    # A second evaluation of one step, as after the training, is the same evaluation.
    assert curve_warnings([*log[:6], log[5]]) == curve_warnings(log[:6]) == []


@pytest.mark.parametrize(
    ("first_process", "greater", "warned"), [(True, True, 1), (True, False, 0), (True, None, 0), (False, True, 0)]
)
def test_the_callback_knows_its_process_and_metric(caplog, first_process, greater, warned):
    args = TrainingArguments(metric_for_best_model="bleu", greater_is_better=greater)
    args.greater_is_better = greater
    history_of_state = history([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [2.0, 1.0, 1.0])
    state = TrainerState(log_history=history_of_state, is_world_process_zero=first_process)
    CurveWarnings().on_evaluate(args, state, TrainerControl())
    assert len(caplog.messages) == warned


def run(tmp_path, caplog, **fields):
    """Train on 16 rows with labels by chance; the warnings, and the history."""
    set_seed(0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 20, (48, 6), generator=generator).tolist()
    labels = torch.randint(0, 2, (48,), generator=generator).tolist()
    rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})
    config = LstmConfig(vocab_size=20, hidden_size=8, num_labels=2, dropout=0.0)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=True,
        **fields,
    )
    trainer = SequenceTrainer(
        model=AutoModelForSequenceClassification.from_config(config),
        args=args,
        train_dataset=rows.select(range(16)),
        eval_dataset=rows.select(range(16, 48)),
        callbacks=[CurveWarnings()],
    )
    with caplog.at_level("WARNING", logger="hfseq"):
        trainer.train()
    return [message for message in caplog.messages if "fitting:" in message], trainer.state.log_history


def test_a_run_that_overfits(tmp_path, caplog):
    (message,), log = run(tmp_path, caplog, num_train_epochs=60, learning_rate=0.02)
    evaluations = [entry for entry in log if "eval_loss" in entry]
    best = min(evaluations, key=lambda entry: entry["eval_loss"])
    assert message.startswith(f"overfitting: the validation loss was lowest at step {best['step']} (")
    assert evaluations[-1]["eval_loss"] > 2 * best["eval_loss"]


def test_a_run_that_learns_nothing(tmp_path, caplog):
    (message,), _ = run(tmp_path, caplog, num_train_epochs=6, learning_rate=0.0)
    assert message.startswith("underfitting: after 3 evaluations ")

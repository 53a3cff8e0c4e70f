"""The Trainer's losses, and what it refuses."""

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from hfseq import LstmConfig, LstmForSequenceClassification
from hfseq.data.errors import InputError
from hfseq.training.trainer import SequenceTrainer, SmoothedCrossEntropy


@pytest.mark.parametrize("items", [None, 9, torch.tensor(9)], ids=["mean", "int", "tensor"])
@pytest.mark.parametrize("shift_labels", [False, True])
def test_smoothed_cross_entropy_is_that_of_transformers(shift_labels, items):
    torch.manual_seed(0)
    labels = torch.randint(0, 11, (3, 5))
    labels[1, 3:] = labels[2, 1:] = -100
    losses, gradients = [], []
    for smoother in (SmoothedCrossEntropy(epsilon=0.2), LabelSmoother(epsilon=0.2)):
        logits = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = smoother({"logits": logits}, labels.clone(), shift_labels=shift_labels, num_items_in_batch=items)
        losses.append(loss)
        gradients += torch.autograd.grad(loss, logits)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_smoothed_cross_entropy_by_hand():
    logits = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]])
    labels = torch.tensor([[0, -100]])
    log_p = torch.log_softmax(logits[0, 0], dim=-1)
    expected = -(0.7 * log_p[0] + 0.3 * log_p.mean())
    torch.testing.assert_close(SmoothedCrossEntropy(epsilon=0.3)((logits,), labels), expected)


def test_patience_needs_evaluations(tmp_path):
    model = LstmForSequenceClassification(LstmConfig(vocab_size=9, hidden_size=4))
    arguments = TrainingArguments(str(tmp_path), eval_strategy="no", use_cpu=True, report_to=[])
    SequenceTrainer(model=model, args=arguments)
    with pytest.raises(InputError, match="--early_stopping_patience needs evaluations, but --eval_strategy is no"):
        SequenceTrainer(model=model, args=arguments, callbacks=[EarlyStoppingCallback(2)])

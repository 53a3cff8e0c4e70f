"""The Trainer's losses, and what it refuses."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    EarlyStoppingCallback,
    EsmConfig,
    EsmForTokenClassification,
    Seq2SeqTrainingArguments,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LabelSmoother

from hfseq import LstmConfig, LstmForConditionalGeneration, LstmForSequenceClassification
from hfseq.errors import InputError
from hfseq.tasks.arguments import TranslationArguments
from hfseq.tasks.seq2seq import Translation
from hfseq.training.trainer import GenerationTrainer, SequenceTrainer, SmoothedCrossEntropy


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


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_training_computes_no_logits_of_padding(tmp_path, smoothing):
    torch.manual_seed(0)
    model = LstmForConditionalGeneration(LstmConfig(vocab_size=9, hidden_size=4, dropout=0.0))
    labels = torch.tensor([[5, 6, 2, -100, -100], [4, -100, -100, -100, -100], [3, 3, 7, 8, 2]])
    batch = {"input_ids": torch.randint(3, 9, (3, 6)), "labels": labels}
    batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[:-1].numel()))
    args = Seq2SeqTrainingArguments(str(tmp_path), label_smoothing_factor=smoothing, use_cpu=True, report_to=[])
    task = Translation(TranslationArguments(), args)
    trainer = GenerationTrainer(
        model=model,
        args=args,
        compute_loss_func=task.loss,
    )
    losses = [trainer.compute_loss(model.train(), dict(batch)), trainer.compute_loss(model.eval(), dict(batch))]
    losses += [task.batch_loss(model.train(), batch, 9), task.batch_loss(model.eval(), batch, 9)]
    assert rows == [9, 15, 9, 15]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])


def test_weights_that_are_saved_under_other_names_are_loaded(tmp_path):
    config = EsmConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    saved, model = (EsmForTokenClassification(config).apply(randomize) for _ in range(2))
    saved.save_pretrained(tmp_path)
    assert not set(load_file(tmp_path / "model.safetensors")) <= set(saved.state_dict())
    trainer = SequenceTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
    trainer.state.best_model_checkpoint = str(tmp_path)
    for load in (trainer._load_best_model, lambda: trainer._load_from_checkpoint(str(tmp_path))):
        model.apply(randomize)
        load()
        for name, weight in saved.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0)


def randomize(module):
    for parameter in module.parameters(recurse=False):
        torch.nn.init.uniform_(parameter)


def test_patience_needs_evaluations(tmp_path):
    model = LstmForSequenceClassification(LstmConfig(vocab_size=9, hidden_size=4))
    arguments = TrainingArguments(str(tmp_path), eval_strategy="no", use_cpu=True, report_to=[])
    SequenceTrainer(model=model, args=arguments)
    with pytest.raises(InputError, match="--early_stopping_patience requires evaluations, but --eval_strategy is no"):
        SequenceTrainer(model=model, args=arguments, callbacks=[EarlyStoppingCallback(2)])

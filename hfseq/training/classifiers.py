"""Training a classifier as one of several in a run, and using it on texts."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.collation import CheckedCollator
from hfseq.data.token_budget import check_budget
from hfseq.training.arguments import ClassArguments, RecipeArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.classification import (
    classification_loss,
    decide,
    encode_classified,
    first_output,
    predict_logits,
    score_classes,
)
from hfseq.training.curves import CurveWarnings
from hfseq.training.trainer import SequenceTrainer


def train_classifier(
    directory: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: RecipeArguments,
    data_args: ClassArguments,
    splits: Mapping[str, datasets.Dataset],
    *,
    say: Callable[[str], Any],
    rows: datasets.Dataset | None = None,
    loss: Callable[..., torch.Tensor] = classification_loss,
    **settings: Any,
) -> float:
    """Train a classifier of one class a text, evaluate it as the arguments say, and save it.

    Args:
        directory: Where it and its checkpoints go; a run that was interrupted goes on there if `args` say so.
        model: The model, trained in place.
        tokenizer: Its tokenizer.
        args: The training arguments.
        data_args: Text column, lengths, budget of batches, patience.
        splits: `train` and `validation` with texts and `labels`, as `encode_labels` makes them.
        say: Prints.
        rows: Encoded rows to train on in place of the texts of `train`.
        loss: Takes logits, labels and `count`.
        settings: Training arguments of this run alone.

    Returns:
        Seconds that the training took.
    """
    own = copy.copy(args)
    # What goes to the Hub is for the recipe to say.
    for name, value in {"output_dir": str(directory), "push_to_hub": False, **settings}.items():
        setattr(own, name, value)
    wanted = {name: splits[name] for name in ("train", "validation") if rows is None or name != "train"}
    encoded, _, notes = encode_classified(wanted, tokenizer, data_args.text_column, max_length=data_args.max_length)
    for note in notes:
        say(note)
    rows = encoded["train"] if rows is None else rows
    check_budget(rows, data_args.max_tokens, args.world_size)
    patience = data_args.early_stopping_patience
    trainer = SequenceTrainer(
        model=model,
        args=own,
        train_dataset=rows,
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        data_collator=CheckedCollator(DataCollatorWithPadding(tokenizer), model),
        compute_loss_func=lambda output, labels, num_items_in_batch=None: loss(
            output.logits, labels, count=num_items_in_batch
        ),
        compute_metrics=lambda output: score_classes(decide(output.predictions, several=False), output.label_ids),
        preprocess_logits_for_metrics=first_output,
        callbacks=[EarlyStoppingCallback(patience)] if patience else None,
        max_tokens=data_args.max_tokens,
    )
    trainer.add_callback(CurveWarnings())
    say(f"{directory}: {trainer.describe_batches()}")
    begin = time.perf_counter()
    trainer.train_and_save(find_checkpoint(str(directory), args.resume_from_checkpoint), args.average_checkpoints, say)
    return time.perf_counter() - begin


def score_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: datasets.Dataset,
    data_args: ClassArguments,
    batch_size: int,
) -> dict[str, float]:
    """Accuracy and macro F1 of a model, on its device, on texts with `labels`."""
    encoded, _, _ = encode_classified(
        {"test": rows}, tokenizer, data_args.text_column, max_length=data_args.max_length
    )
    collator = CheckedCollator(DataCollatorWithPadding(tokenizer), model)
    found = predict_logits(model, encoded["test"], collator, batch_size=batch_size)
    return score_classes(decide(found, several=False), rows["labels"])


def text_classifier(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Callable[[Sequence[str]], torch.Tensor]:
    """A function from texts to logits, tokenizing included."""
    model.eval()

    @torch.inference_mode()
    def classify(texts: Sequence[str]) -> torch.Tensor:
        inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        return model(**inputs.to(model.device)).logits.cpu()  # which waits for the device

    return classify

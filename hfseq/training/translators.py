"""Training a translator as one of several in a run, and using it on texts."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.token_budget import check_budget
from hfseq.training.arguments import GenerationArguments, PairArguments
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.curves import CurveWarnings
from hfseq.training.seq2seq import (
    copied_vocabulary,
    decode_outputs,
    encode_pairs,
    make_collator,
    score_translations,
    set_generation,
    trainer_loss,
)
from hfseq.training.trainer import GenerationTrainer


def train_translator(
    directory: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: GenerationArguments,
    data_args: PairArguments,
    splits: Mapping[str, datasets.Dataset],
    *,
    say: Callable[[str], Any],
) -> None:
    """Train a translator, evaluate it as the arguments say, and save it.

    Args:
        directory: Where it and its checkpoints go; a run that was interrupted goes on there if `args` say so.
        model: The model, trained in place.
        tokenizer: Its tokenizer.
        args: The training arguments.
        data_args: Languages, lengths, beams, budget of batches, patience.
        splits: `train` and `validation` with a column of each language.
        say: Prints.
    """
    own = copy.copy(args)
    own.output_dir, own.push_to_hub = str(directory), False  # what goes to the Hub is for the recipe to say
    own.generation_max_length = args.generation_max_length or data_args.max_target_length
    source, target, prefix = data_args.source_lang, data_args.target_lang, data_args.source_prefix
    set_generation(model, data_args.num_beams, data_args.max_target_length, length_penalty=data_args.length_penalty)
    limits = {"max_source_length": data_args.max_source_length, "max_target_length": data_args.max_target_length}
    copied = copied_vocabulary(model)
    wanted = {name: splits[name] for name in ("train", "validation")}
    encoded, _, notes = encode_pairs(
        wanted, tokenizer, source, target, **limits, prefix=prefix, copy_vocabulary=copied
    )
    for note in notes:
        say(note)
    check_budget(encoded["train"], data_args.max_tokens, args.world_size)
    sources, right = [prefix + text for text in wanted["validation"][source]], list(wanted["validation"][target])

    def score(output: Any) -> dict[str, float]:
        limit = data_args.max_source_length
        texts = decode_outputs(tokenizer, output.predictions, sources, max_source_length=limit, copy_vocabulary=copied)
        return score_translations(texts, right)

    patience = data_args.early_stopping_patience
    trainer = GenerationTrainer(
        model=model,
        args=own,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        data_collator=make_collator(model, tokenizer),
        compute_loss_func=trainer_loss(model, args.label_smoothing_factor),
        compute_metrics=score,
        callbacks=[EarlyStoppingCallback(patience)] if patience else None,
        max_tokens=data_args.max_tokens,
    )
    trainer.add_callback(CurveWarnings())
    say(f"{directory}: {trainer.describe_batches()}")
    trainer.train_and_save(find_checkpoint(str(directory), args.resume_from_checkpoint), args.average_checkpoints, say)


def text_translator(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_source_length: int, **options: Any
) -> Callable[[Sequence[str]], Any]:
    """A function from texts to what `generate` makes of them, tokenizing included; `options` are of `generate`."""
    model.eval()
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]

    @torch.inference_mode()
    def translate(texts: Sequence[str]) -> list[str]:
        limits = {"truncation": True, "max_length": max_source_length}
        inputs = tokenizer(list(texts), padding=True, **limits, return_tensors="pt")
        ids = generate(**inputs.to(model.device), **options)
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    return translate

"""Train a translator with an explicit loop on Accelerate; data, model and results are those of translation.py.

    python recipes/translation_accelerate.py

takes the data and model flags of translation.py and those of TrainingArguments that HONOURED names; any other is
refused. Several CPU processes:

    torchrun --nproc_per_node 2 recipes/translation_accelerate.py --use_cpu
"""

import math
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import DataCollatorForSeq2Seq, get_scheduler, set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.data.cldr import cldr_pairs
from hfseq.data.collation import CheckedCollator
from hfseq.data.errors import InputError
from hfseq.data.reading import hold_out_validation, read_splits
from hfseq.data.sampler import TokenBudgetBatchSampler, row_lengths
from hfseq.training.arguments import ModelArguments, PairArguments, RecipeArguments
from hfseq.training.callbacks import StopOnNaN, check_finite
from hfseq.training.checkpoints import epoch_batches, find_checkpoint, load_checkpoint, save_checkpoint
from hfseq.training.cli import (
    check_output_dir,
    explicit_fields,
    parse_config,
    prepare_output_dir,
    run,
    with_default_config,
)
from hfseq.training.seq2seq import (
    encode_pairs,
    generate_texts,
    load_model,
    save_results,
    score,
    set_generation,
    summarize_scores,
    summed_loss,
    validation_loss,
    write_reports,
)

DEMO = Path(__file__).parent / "configs" / "translation_demo.yaml"
DATA_FLAGS = ("--dataset_name", "--train_file", "--validation_file", "--test_file")
HONOURED = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "seed", "data_seed", "use_cpu", "bf16"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "label_smoothing_factor"),
    *("logging_steps", "save_total_limit", "metric_for_best_model", "greater_is_better", "generation_num_beams"),
    *("generation_max_length", "disable_tqdm"),
}
"""Fields of `RecipeArguments` that this loop obeys; it evaluates and saves once an epoch."""
FIXED = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "predict_with_generate": True,
}
"""Fields that may be said, so that one YAML file serves both drivers, but only so."""


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--model_name_or_path", *DATA_FLAGS))
    kinds = (ModelArguments, PairArguments, RecipeArguments)
    model_args, data_args, args = parse_config(kinds, argv)
    own = set(ModelArguments.__dataclass_fields__) | set(PairArguments.__dataclass_fields__)
    for name in sorted(explicit_fields(kinds, argv) - own - HONOURED):
        if name not in FIXED or getattr(args, name) != FIXED[name]:
            fixed = f"; here it is always {FIXED[name]}" if name in FIXED else "; use translation.py for it"
            raise InputError(f"--{name} is not honoured by the Accelerate loop{fixed}")
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    accelerator = Accelerator(
        cpu=args.use_cpu,
        mixed_precision="bf16" if args.bf16 else "no",
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.data_seed),
    )
    set_seed(args.seed)
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    say = accelerator.print  # on the first process only

    # 2. Data: pairs of texts in the columns `source_lang` and `target_lang`.
    source, target = data_args.source_lang, data_args.target_lang
    if not any((data_args.dataset_name, data_args.train_file, data_args.validation_file, data_args.test_file)):
        splits = cldr_pairs(source, target)
    else:
        splits = read_splits(
            columns=(source, target),
            dataset_name=data_args.dataset_name,
            dataset_config_name=data_args.dataset_config_name,
            train_file=data_args.train_file,
            validation_file=data_args.validation_file,
            test_file=data_args.test_file,
            column_names=data_args.column_names.split(",") if data_args.column_names else None,
            moses=True,
        )
    splits = hold_out_validation(splits, seed=args.seed)
    say(", ".join(f"{len(rows)} {name}" for name, rows in splits.items()), f"pairs {source} → {target}", flush=True)

    # 3. Model and tokenizer.
    model, tokenizer = load_model(model_args, splits["train"], (source, target))
    set_generation(model, data_args.num_beams, data_args.max_target_length)
    say(f"{type(model).__name__}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)

    # 4. Encoding and batches.
    encoded = {}
    for name, rows in splits.items():
        encoded[name], cut = encode_pairs(
            rows,
            tokenizer,
            source,
            target,
            max_source_length=data_args.max_source_length,
            max_target_length=data_args.max_target_length,
            prefix=data_args.source_prefix,
        )
        if cut:
            say(f"{name}: {cut} pairs are longer than --max_source_length or --max_target_length and were cut")
    collator = CheckedCollator(DataCollatorForSeq2Seq(tokenizer, model=model), model)
    if data_args.max_tokens is None:
        batches = {"batch_size": args.per_device_train_batch_size, "shuffle": True}
    else:
        sampler = TokenBudgetBatchSampler(
            row_lengths(encoded["train"]),
            data_args.max_tokens,
            num_replicas=accelerator.num_processes,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )
        batches = {"batch_sampler": sampler}
    loader = DataLoader(encoded["train"], collate_fn=collator, **batches)

    # 5. Optimizer and schedule: those of the Trainer, without decay of biases and norms.
    decay = {name: not ("bias" in name or "norm" in name.lower()) for name, _ in model.named_parameters()}
    decayed = [parameter for name, parameter in model.named_parameters() if decay[name]]
    plain = [parameter for name, parameter in model.named_parameters() if not decay[name]]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        fused=True,
    )
    plain_model = model
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    total_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(total_steps),
        num_training_steps=total_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    accelerator.register_for_checkpointing(scheduler)
    # Below 1 it is a share of all steps.
    log_every = args.logging_steps if args.logging_steps >= 1 else math.ceil(args.logging_steps * total_steps)

    # 6. Training: an epoch, an evaluation by generation, a checkpoint.
    if accelerator.is_main_process:
        prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)
    accelerator.wait_for_everyone()
    state = {"epoch": 0, "step": 0, "running": 0.0, "log": []}
    state |= {"best": None, "best_step": None, "worse": 0, "stopped": False}
    if checkpoint is not None:
        state = load_checkpoint(accelerator, checkpoint)
    say(f"{accelerator.num_processes} process(es), {len(loader)} batches an epoch", flush=True)
    bar = tqdm(total=total_steps, initial=state["step"], disable=args.disable_tqdm or not accelerator.is_main_process)
    running = torch.tensor(state["running"], device=accelerator.device)  # loss of the steps since the last log
    stop_on_nan = StopOnNaN()
    decoding = {
        "batch_size": args.per_device_eval_batch_size,
        "num_beams": args.generation_num_beams,
        "max_length": args.generation_max_length or data_args.max_target_length,
    }
    metric = args.metric_for_best_model.removeprefix("eval_")
    better = (lambda new, old: new < old) if args.greater_is_better is False else (lambda new, old: new > old)
    while state["step"] < total_steps and not state["stopped"]:
        model.train()
        batches = epoch_batches(accelerator, loader, state["epoch"])
        while state["step"] < total_steps and (micro := list(islice(batches, args.gradient_accumulation_steps))):
            # The loss is a mean over the target tokens of the whole step, on all processes.
            tokens = sum((batch["labels"] != -100).sum() for batch in micro)
            tokens = accelerator.reduce(tokens, "sum") / accelerator.num_processes
            for batch in micro:
                with accelerator.autocast():
                    loss = summed_loss(model, batch, args.label_smoothing_factor) / tokens
                accelerator.backward(loss)
                stop_on_nan.observe(loss, state["step"] + 1)
                running += loss.detach()
            if args.max_grad_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            state["step"] += 1
            bar.update()
            if state["step"] % log_every == 0:
                stop_on_nan.check()
                loss = accelerator.reduce(running, "mean").item() / log_every
                running.zero_()
                state["log"].append({"step": state["step"], "epoch": state["epoch"], "loss": loss})
                bar.set_postfix(loss=f"{loss:.3f}")
        state["epoch"] += 1
        state["running"] = accelerator.reduce(running, "mean").item()

        predictions = generate_texts(plain_model, tokenizer, encoded["validation"], **decoding)
        scores = score(predictions, splits["validation"][target])
        scores["loss"] = validation_loss(
            plain_model,
            encoded["validation"],
            collator,
            batch_size=args.per_device_eval_batch_size,
            label_smoothing=args.label_smoothing_factor,
        )
        state["log"].append(
            {"step": state["step"], "epoch": state["epoch"]} | {f"eval_{key}": value for key, value in scores.items()}
        )
        if accelerator.is_main_process:
            bar.write(", ".join(f"{key} {value:.4g}" for key, value in state["log"][-1].items()))
        check_finite(model, state["step"])
        if state["best"] is None or better(scores[metric], state["best"]):
            state |= {"best": scores[metric], "best_step": state["step"], "worse": 0}
        else:
            state["worse"] += 1
        patience = data_args.early_stopping_patience
        state["stopped"] = patience is not None and state["worse"] >= patience
        save_checkpoint(
            accelerator,
            args.output_dir,
            state["step"],
            state,
            total_limit=args.save_total_limit,
            best_step=state["best_step"],
        )
    bar.close()
    load_checkpoint(accelerator, Path(args.output_dir) / f"checkpoint-{state['best_step']}")

    # 7. The final test: with beams, beside the source copied.
    name = "test" if "test" in encoded else "validation"
    decoding["num_beams"] = data_args.num_beams
    predictions = generate_texts(plain_model, tokenizer, encoded[name], **decoding)
    rows = splits[name]
    kinds_of_pairs = rows["kind"] if "kind" in rows.column_names else None
    results, table = summarize_scores(rows[source], rows[target], predictions, kinds_of_pairs)

    # 8. Reports.
    if accelerator.is_main_process:
        plain_model.save_pretrained(args.output_dir)
        tokenizer.save_pretrained(args.output_dir)
        save_results(args.output_dir, {f"{name}_{key}": value for key, value in results.items()})
        texts = (rows[source], rows[target], predictions)
        write_reports(args.output_dir, plain_model, tokenizer, state["log"], texts, data_args.source_prefix)
        print(f"\n{name}: {len(rows)} pairs, beam {data_args.num_beams}\n{table}\n")
        print(f"model, scores, samples and plots are in {args.output_dir}")
    accelerator.end_training()


if __name__ == "__main__":
    run(main)

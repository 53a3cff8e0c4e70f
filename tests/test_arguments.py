"""Training arguments that nothing can be done with: one line each, before any data are read."""

import gc
import importlib.util
import sys
from functools import partial

import accelerate.accelerator
import datasets
import pytest
import torch
from recipe_runs import load
from transformers import SchedulerType
from transformers.integrations import integration_utils
from transformers.training_args import OptimizerNames

from hfseq.errors import InputError
from hfseq.tasks.arguments import DataArguments, RunningTextArguments, SummarizationArguments
from hfseq.training.accelerate_loop import start_accelerator
from hfseq.training.arguments import GenerationArguments, ModelArguments, RecipeArguments
from hfseq.training.cli import parse_config
from hfseq.training.finetuning import TaskArguments
from hfseq.training.trainer import SequenceTrainer

DRIVERS = ("sentiment", "summarization", "translation", "finetuning")
RECIPES = [*DRIVERS, *(f"{driver}_accelerate" for driver in DRIVERS)]
RECIPES += ["language_modeling", "tagging", "distillation", "comparison", "monitoring"]
# What a recipe would stumble over next: files that are not there.
FILES = {"train_file": "no.csv", "validation_file": "no.csv", "test_file": "no.csv"}
OWN = {
    "finetuning": {"model_type": "hfseq_lstm"},
    "comparison": {"models": '{"A": {"model_type": "hfseq_lstm"}}'},
    "monitoring": {"model_name_or_path": "no_model", "test_file": "no.csv", "fresh_file": "no.csv"},
}


def arguments(tmp_path, *flags):
    given = ["--output_dir", str(tmp_path / "out"), "--use_cpu", *flags]
    return parse_config((ModelArguments, RecipeArguments), given)[1]


def fails(tmp_path, *flags):
    with pytest.raises(InputError) as error:
        arguments(tmp_path, *flags)
    message = str(error.value)
    assert "\n" not in message and len(message) < 600 and not (tmp_path / "out").exists()
    return message


def run(recipe, tmp_path, *flags):
    own = OWN.get(recipe.removesuffix("_accelerate"), {})
    files = own if recipe == "monitoring" else FILES | own
    given = {"output_dir": tmp_path / "out"} | files
    argv = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    load(recipe).main([*argv, "--use_cpu", *flags])


@pytest.fixture
def bare(monkeypatch):
    """A machine without any optional package."""
    original = importlib.util.find_spec

    def find_spec(name, *args):
        known = ("torch", "torchvision", "accelerate", "tokenizers", "safetensors", "datasets", "numpy")
        return original(name, *args) if name.partition(".")[0] in known else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(integration_utils, "_is_comet_installed", False)
    monkeypatch.setattr(integration_utils, "_has_neptune", False)
    monkeypatch.delenv("KUBEFLOW_TRAINER_SERVER_URL", raising=False)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", [*integration_utils.INTEGRATION_TO_CALLBACK])
def test_a_tracker_without_its_package(name, bare, tmp_path):
    message = fails(tmp_path, "--report_to", name)
    gc.collect()  # what it left half made
    assert message.startswith("--report_to: ")
    # The one that is no package is there where a variable says so.
    assert ("requires KUBEFLOW" if name == "kubeflow" else "install") in message


def test_an_unknown_tracker(tmp_path):
    message = fails(tmp_path, "--report_to", "nothing")
    assert message.startswith("--report_to: nothing is not supported") and "tensorboard" in message


@pytest.mark.parametrize("recipe", RECIPES)
def test_trackers_are_looked_for_before_the_data(recipe, bare, tmp_path):
    with pytest.raises(InputError, match=r"^--report_to: .*pip install wandb"):
        run(recipe, tmp_path, "--report_to", "wandb")


def test_a_tracker_that_accelerate_would_leave_out(tmp_path, monkeypatch):
    args = arguments(tmp_path, "--report_to", "tensorboard")
    # This is how it says that a package is missing.
    monkeypatch.setattr(accelerate.accelerator, "filter_trackers", lambda *_: [])
    with pytest.raises(InputError, match="^--report_to tensorboard: accelerate does not find its package"):
        start_accelerator(args)
    monkeypatch.undo()
    args.report_to = ["dagshub"]  # known to transformers alone
    with pytest.raises(InputError, match="^the training arguments: Unsupported logging capability: dagshub"):
        start_accelerator(args)


NEEDED = {
    **{recipe: ["matplotlib", "sacrebleu"] for recipe in RECIPES if recipe.startswith("trans")},
    **{recipe: ["matplotlib", "nltk", "rouge_score"] for recipe in RECIPES if recipe.startswith("summ")},
    **{recipe: ["matplotlib"] for recipe in RECIPES if recipe.startswith("language")},
    **{recipe: ["matplotlib", "sklearn"] for recipe in RECIPES if recipe.startswith(("sent", "fine", "tag", "comp"))},
    **{"distillation": ["sklearn"], "monitoring": ["matplotlib", "scipy"]},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_packages_of_a_recipe_are_looked_for_before_the_data(recipe, tmp_path, monkeypatch):
    for package in NEEDED[recipe]:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=rf"^this recipe needs {package}: pip install 'hfseq\[train\]'$"):
                run(recipe, tmp_path)
    with pytest.raises(InputError, match="no.csv: no such file|no_model"):
        run(recipe, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "package", "extra"),
    [
        (["--hp_search", "2"], "optuna", "'hfseq[hpo]'"),
        (["--use_liger_kernel"], "liger_kernel", "liger_kernel"),
        (["--deepspeed", "{}"], "deepspeed", "deepspeed"),
    ],
)
def test_flags_that_need_a_package(flags, package, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert fails(tmp_path, *flags) == f"{flags[0]} needs {package}: pip install {extra}"


@pytest.mark.parametrize("driver", ["finetuning", "finetuning_accelerate"])
def test_adapters_need_peft(driver, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"^--method lora needs peft: pip install 'hfseq\[train\]'$"):
        run(driver, tmp_path, "--method", "lora")


@pytest.mark.parametrize("recipe", [*DRIVERS, "language_modeling", "tagging"])
def test_a_prediction_needs_a_model_before_data(recipe, tmp_path):
    with pytest.raises(
        InputError, match="^--do_predict without --do_train requires a trained model: give --model_name"
    ):
        run(recipe, tmp_path, "--do_predict")
    assert not (tmp_path / "out").exists()


# Those that torch has itself.
PLAIN = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
SPECIAL = {"cosine_with_min_lr": "min_lr", "cosine_warmup_with_min_lr": "min_lr", "warmup_stable_decay": "num_decay"}


@pytest.mark.parametrize("optim", [one.value for one in OptimizerNames])
def test_an_optimizer_works_or_its_package_is_named(optim, tmp_path):
    if optim in PLAIN:
        assert arguments(tmp_path, "--optim", optim).optim == optim
        return
    try:
        arguments(tmp_path, "--optim", optim)
    except InputError as error:
        # A machine may have some of the packages.
        assert str(error).startswith(f"--optim {optim}: ") and "\n" not in str(error)


@pytest.mark.parametrize("schedule", [one.value for one in SchedulerType])
def test_a_schedule_works_or_says_what_it_lacks(schedule, tmp_path):
    if schedule in SPECIAL:
        message = fails(tmp_path, "--lr_scheduler_type", schedule)
        assert message.startswith(f"--lr_scheduler_type {schedule} ") and SPECIAL[schedule] in message
    else:
        arguments(tmp_path, "--lr_scheduler_type", schedule)
    if not schedule.startswith("constant"):
        message = fails(tmp_path, "--lr_scheduler_type", schedule, "--lr_scheduler_kwargs", '{"nothing": 1}')
        assert message.startswith(f"--lr_scheduler_type {schedule} and its --lr_scheduler_kwargs: ")


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_schedules_that_follow_scores_are_the_trainers(driver, schedule, tmp_path):
    message = f"^--lr_scheduler_type {schedule} is not supported by the Accelerate loop; use {driver}.py$"
    with pytest.raises(InputError, match=message):
        run(f"{driver}_accelerate", tmp_path, "--lr_scheduler_type", schedule)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--adam_beta1", "1"], "--optim adamw_torch_fused: Invalid beta parameter at index 0: 1.0"),
        (["--learning_rate", "-1"], "--optim adamw_torch_fused: Invalid learning rate: -1.0"),
        (["--optim_args", "no"], "--optim adamw_torch_fused: "),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers -1: give 0 or more"),
        (["--dataloader_persistent_workers"], "--dataloader_…: persistent_workers option needs num_workers > 0"),
        (["--dataloader_prefetch_factor", "2"], "--dataloader_prefetch_factor can only be set when"),
        (["--torch_compile_backend", "no"], "--torch_compile_…: Invalid backend: 'no'"),
        (["--torch_compile_mode", "no"], "--torch_compile_…: Unrecognized mode=no"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size 0: give 1 or more"),
        (["--per_device_eval_batch_size", "-1"], "--per_device_eval_batch_size -1: give 1 or more"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps 0: give 1 or more"),
        (["--eval_accumulation_steps", "0"], "--eval_accumulation_steps 0: give 1 or more"),
        (["--seed", "-1"], "--seed -1: give 0 or more"),
        (["--seed", str(2**32)], "--seed 4294967296: give 4294967295 or less"),
        (["--label_smoothing_factor", "1.5"], "--label_smoothing_factor 1.5: give 1 or less"),
        (["--weight_decay", "-0.1"], "--weight_decay -0.1: give 0 or more"),
        (["--neftune_noise_alpha", "-1"], "--neftune_noise_alpha -1.0: give 0 or more"),
        (["--num_train_epochs", "nan"], "--num_train_epochs nan is not a finite number"),
        (["--warmup_steps", "inf"], "--warmup_steps inf is not a finite number"),
        (["--max_grad_norm", "nan"], "--max_grad_norm nan is not a finite number"),
        (["--prediction_loss_only"], "--prediction_loss_only: recipes score all rows"),
        (["--dataloader_drop_last"], "--dataloader_drop_last: recipes score all rows"),
        (["--eval_do_concat_batches", "false"], "--eval_do_concat_batches: recipes score all rows"),
        (["--batch_eval_metrics"], "--batch_eval_metrics: recipes score all rows"),
        (["--label_names", "tags"], "--label_names: recipes score all rows"),
        (["--accelerator_config", '{"no": 1}'], "TypeError: AcceleratorConfig.__init__() got an unexpected keyword"),
        (["--accelerator_config", "no.json"], "FileNotFoundError: [Errno 2] No such file or directory: 'no.json'"),
        (["--fsdp", "no"], "Unknown `fsdp` option: no"),
    ],
)
def test_values_that_nothing_can_be_done_with(flags, message, tmp_path):
    assert fails(tmp_path, *flags).startswith(message)


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        *(
            (TaskArguments, [f"--{name}", "0"], f"--{name} 0: give {least} or more")
            for name, least in {
                **dict.fromkeys(("early_stopping_patience", "max_tokens", "max_length", "max_source_length"), 1),
                **dict.fromkeys(("num_beams", "max_train_samples", "lora_r"), 1),
                "max_target_length": 2,
            }.items()
        ),
        (TaskArguments, ["--layer_decay", "nan"], "--layer_decay nan is not a finite number"),
        (TaskArguments, ["--label_separator", ""], "--label_separator is empty; give what stands between classes"),
        (SummarizationArguments, ["--lead", "0"], "--lead 0: give 1 or more"),
        (RunningTextArguments, ["--early_stopping_patience", "-1"], "--early_stopping_patience -1: give 1 or more"),
        (load("comparison").ARGUMENTS["classification"][1], ["--max_length", "-1"], "--max_length -1: give 1 or more"),
        (
            load("distillation").DistillationArguments,
            ["--max_train_samples", "0"],
            "--max_train_samples 0: give 1 or more",
        ),
        (
            GenerationArguments,
            ["--output_dir", "x", "--generation_num_beams", "0"],
            "--generation_num_beams 0: give 1",
        ),
    ],
)
def test_numbers_of_the_data(kind, flags, message):
    with pytest.raises(InputError, match=message):
        parse_config((kind,), flags)


def test_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(1)
    arguments(tmp_path)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert after == torch.rand(1)


def test_disable_tqdm_is_for_the_bars_of_data_too(tmp_path):
    datasets.enable_progress_bars()
    try:
        arguments(tmp_path)
        assert datasets.are_progress_bars_disabled() is False
        arguments(tmp_path, "--disable_tqdm", "true")
        assert datasets.are_progress_bars_disabled()
    finally:
        datasets.enable_progress_bars()


def test_values_at_the_edge(tmp_path):
    args = arguments(tmp_path, "--max_grad_norm", "inf", "--seed", str(2**32 - 1), "--label_smoothing_factor", "1")
    assert args.max_grad_norm == float("inf") and args.seed == 2**32 - 1


def trainer(tmp_path, *flags):
    model = torch.nn.Linear(2, 2)
    rows = [{"x": torch.zeros(2)}] * 4
    return SequenceTrainer(model=model, args=arguments(tmp_path, *flags), train_dataset=rows, eval_dataset=rows)


def test_what_a_trainer_refuses_is_one_line(tmp_path):
    with pytest.raises(InputError, match="^the training arguments: Using fsdp only works in distributed training"):
        trainer(tmp_path, "--fsdp", "full_shard")
    made = trainer(tmp_path)
    made.args.optim, made.args.lr_scheduler_type = OptimizerNames.ADAMW_TORCH_XLA, SchedulerType.COSINE_WITH_MIN_LR
    with pytest.raises(InputError, match="^--optim adamw_torch_xla: Trainer failed to import"):
        made.create_optimizer()
    made.optimizer = torch.optim.SGD(made.model.parameters())
    with pytest.raises(InputError, match="^--lr_scheduler_type cosine_with_min_lr: One of min_lr"):
        made.create_scheduler(10)


def test_a_compiler_that_fails_is_one_line(tmp_path, monkeypatch):
    def step(*args, **kwargs):
        raise torch._dynamo.exc.BackendCompilerFailed("inductor", ValueError("no\ncompiler"), None)

    made = trainer(tmp_path)
    monkeypatch.setattr("transformers.Trainer.training_step", step)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        made.training_step()
    made.args.torch_compile = True
    with pytest.raises(InputError, match="^--torch_compile: .*no compiler"):
        made.training_step()


def test_columns_that_the_embedded_data_do_not_have():
    rows = datasets.Dataset.from_dict({"text": ["a", "b"] * 30, "label": ["x", "y"] * 30})
    embedded = datasets.DatasetDict(train=rows, validation=rows)
    read = partial(DataArguments().read, embedded=lambda: embedded, train=True, seed=1)
    assert read(("text", "label")).keys() == embedded.keys()
    with pytest.raises(
        InputError, match="^no data are named, and the embedded ones have no column 'body'; .*text, lab"
    ):
        read(("body", "label"))
    with pytest.raises(InputError, match="must differ, got text, text"):
        read(("text", "text"))

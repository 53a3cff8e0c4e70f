"""Means of checkpoints, against means taken by hand."""

import json
import re

import datasets
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainingArguments

from hfseq import LstmConfig
from hfseq.errors import InputError
from hfseq.training.averaging import average_checkpoints, last_checkpoints, load_average
from hfseq.training.checkpoints import MANIFEST, save_checkpoint
from hfseq.training.trainer import SequenceTrainer


def tiny_model(seed=0, **fields):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(LstmConfig(**{"vocab_size": 20, "hidden_size": 8, **fields}))


def write(root, weights, names=("a", "b", "c", "d")):
    """One directory with `model.safetensors` for each dict of weights."""
    directories = [root / name for name, _ in zip(names, weights, strict=False)]
    for directory, tensors in zip(directories, weights, strict=True):
        directory.mkdir()
        save_file(tensors, directory / "model.safetensors")
    return directories


def test_mean_in_float64_and_counters_of_the_last(tmp_path):
    # In float32, or in the weights' own float16, these sums would lose the ones or overflow.
    values, halves = [2.0**26, 1.0, 1.0, -(2.0**26)], [60000.0, 60000.0, 0.0, 0.0]
    weights = [
        {
            "w": torch.tensor([value]),
            "h": torch.tensor([half], dtype=torch.float16),
            "steps": torch.tensor([number]),
            "flag": torch.tensor([number == 3]),
        }
        for number, (value, half) in enumerate(zip(values, halves, strict=True))
    ]
    mean = average_checkpoints(write(tmp_path, weights))
    assert {name: (tensor.item(), tensor.dtype) for name, tensor in mean.items()} == {
        "w": (0.5, torch.float32),
        "h": (30000.0, torch.float16),
        "steps": (3, torch.int64),
        "flag": (True, torch.bool),
    }


def test_one_checkpoint_is_itself(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    for name, tensor in average_checkpoints([tmp_path]).items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def trained(output_dir, model):
    rows = [{"input_ids": [3, 4, 5, n], "labels": [3, 4, 5, n]} for n in range(6, 12)]
    args = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=4,
        save_strategy="epoch",
        learning_rate=0.1,
        dataloader_pin_memory=False,
        report_to=[],
    )
    trainer = SequenceTrainer(model=model, args=args, train_dataset=datasets.Dataset.from_list(rows))
    trainer.train()
    return [output_dir / f"checkpoint-{step}" for step in (1, 2, 3, 4)]


@pytest.mark.parametrize("tied", [False, True])
def test_trainer_checkpoints(tmp_path, tied):
    checkpoints = trained(tmp_path / "run", tiny_model(tie_word_embeddings=tied))
    assert last_checkpoints(tmp_path / "run", 3) == [str(path) for path in checkpoints[1:]]

    model = tiny_model(seed=1, tie_word_embeddings=tied)
    load_average(model, checkpoints[1:])
    loaded = [load_file(path / "model.safetensors") for path in checkpoints[1:]]
    assert not torch.equal(*[weights[min(weights)] for weights in loaded[:2]])
    for name in loaded[0]:
        expected = torch.stack([weights[name].double() for weights in loaded]).mean(0).float()
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=0, atol=0, msg=name)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied

    # The same in shards.
    shards = []
    for path in checkpoints[1:]:
        shards.append(tmp_path / "shards" / path.name)
        reloaded = AutoModelForCausalLM.from_pretrained(path)
        reloaded.save_pretrained(shards[-1], max_shard_size="1KB")
    assert not (shards[0] / "model.safetensors").exists()
    mean = average_checkpoints(checkpoints[1:])
    sharded = average_checkpoints(shards)
    assert sharded.keys() == mean.keys()
    assert all(torch.equal(sharded[name], mean[name]) for name in mean)


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "several processes"])
def test_accelerate_checkpoints(tmp_path, safe, wrapped):
    model = tiny_model(tie_word_embeddings=True)
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    if wrapped:
        accelerator._models[0] = torch.nn.Sequential()
        accelerator._models[0].add_module("module", model)
    seen = []
    for step in (1, 2, 3):
        with torch.no_grad():
            for parameter in prepared.parameters():
                parameter += torch.randn(parameter.shape)
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        if safe:
            accelerator.save_state(str(tmp_path / f"checkpoint-{step}"))
        else:
            save_checkpoint(accelerator, tmp_path, step, {})
    paths = [tmp_path / f"checkpoint-{step}" for step in (2, 3)]
    if not safe:
        assert last_checkpoints(tmp_path, 2) == [str(path) for path in paths]

    other = tiny_model(seed=1, tie_word_embeddings=True)
    load_average(other, paths)
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, (seen[1][name] + seen[2][name]) / 2, msg=name)


def test_torn_checkpoints_do_not_count(tmp_path, caplog):
    checkpoints = trained(tmp_path, tiny_model())
    (checkpoints[2] / MANIFEST).unlink()
    assert last_checkpoints(tmp_path, 3) == [str(checkpoints[row]) for row in (0, 1, 3)]
    assert not caplog.text
    assert last_checkpoints(tmp_path, 4) == last_checkpoints(tmp_path, 3)
    assert "has only 3 complete checkpoints; averaging these, not 4" in caplog.text
    with pytest.raises(InputError, match="has no complete one"):
        last_checkpoints(tmp_path / "empty", 2)
    with pytest.raises(InputError, match="cannot average 0 checkpoints"):
        last_checkpoints(tmp_path, 0)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"w": torch.ones(2)}, "lacks weight 'v' of .*a"),
        ({"w": torch.ones(2), "v": torch.ones(1), "x": torch.ones(1)}, "has weight 'x' that .*a lacks"),
        ({"w": torch.ones(3), "v": torch.ones(1)}, r"b: w is \[3\] torch.float32, and \[2\] torch.float32 in .*a"),
        ({"w": torch.ones(2), "v": torch.ones(1).double()}, r"v is \[1\] torch.float64"),
    ],
)
def test_checkpoints_of_different_models(tmp_path, second, message):
    with pytest.raises(InputError, match=message):
        average_checkpoints(write(tmp_path, [{"w": torch.ones(2), "v": torch.ones(1)}, second]))


@pytest.mark.parametrize("torn", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_torn_weights(tmp_path, torn):
    for content in ("", "{}", '{"weight_map": {"w": "gone.safetensors"}}'):
        (tmp_path / torn).write_text(content)
        with pytest.raises(InputError, match="weights cannot be read"):
            average_checkpoints([tmp_path])


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize(
    "name", ["../victim.safetensors", "/victim.safetensors", "link.safetensors", 5, ["a"]], ids=repr
)
def test_shards_of_others_are_not_read(tmp_path, index, name):
    [directory] = write(tmp_path, [{"w": torch.ones(2)}])
    (directory / "model.safetensors").rename(tmp_path / "victim.safetensors")
    (directory / "link.safetensors").symlink_to(tmp_path / "victim.safetensors")
    name = str(tmp_path / name[1:]) if name == "/victim.safetensors" else name
    (directory / index).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(InputError, match=re.escape(f"weights cannot be read: {directory / index}: {name!r} ")):
        average_checkpoints([directory])
    (tmp_path / "victim.safetensors").rename(directory / "own.safetensors")
    (directory / index).write_text(json.dumps({"weight_map": {"w": "own.safetensors"}}))
    assert torch.equal(average_checkpoints([directory])["w"], torch.ones(2))


def test_no_weights(tmp_path):
    with pytest.raises(InputError, match="has no weights"):
        average_checkpoints([tmp_path])
    with pytest.raises(InputError, match="no checkpoints to average"):
        average_checkpoints([])


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 2}, {"hidden_size": 16}], ids=["names", "shapes"])
def test_checkpoints_of_another_model(tmp_path, fields):
    tiny_model(**fields).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=str(tmp_path)) as error:
        load_average(tiny_model(), [tmp_path])
    assert "\n" not in str(error.value)

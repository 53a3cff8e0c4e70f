"""What transformers, accelerate and peft do with any model: checkpointing, placement, types, compiling, adapters."""

import warnings

import pytest
import torch
from accelerate import infer_auto_device_map
from peft import LoraConfig, PeftModel, get_peft_model
from test_models import (
    CAUSAL,
    CLASSES,
    FAMILIES,
    MASK,
    MODEL,
    SEQ2SEQ,
    fields_of,
    gradients,
    make,
    make_inputs,
    valid_outputs,
    with_feeding,
)
from transformers import Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from hfseq import LstmForCausalLM

pytestmark = pytest.mark.contract

DROPOUTS = {"dropout": 0.3, "variational_dropout": True, "embedding_dropout": 0.2, "weight_dropout": 0.4}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("auto", "model_class", "input_feeding"), with_feeding(CLASSES))
def test_gradient_checkpointing_changes_nothing(auto, model_class, input_feeding, reentrant):
    """Not even with dropout, whose masks the second forward draws again; the bridge's states have gradients too."""
    model = make(model_class, **fields_of(model_class, DROPOUTS), input_feeding=input_feeding).train()
    inputs = make_inputs(model)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            assert model.is_activation_checkpointing
        torch.manual_seed(0)
        loss = sum(output.pow(3).sum() for output in valid_outputs(model, inputs))
        model.zero_grad()
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*results)


def test_gradient_checkpointing_runs_layers_twice(monkeypatch):
    model = make(LstmForCausalLM).train()
    calls = []
    kernel = torch.lstm
    monkeypatch.setattr(torch, "lstm", lambda *args: calls.append(1) or kernel(*args))
    for checkpointing, expected in ((False, 2), (True, 4)):
        if checkpointing:
            model.activation_checkpointing_enable()
        gradients(model, valid_outputs(model, make_inputs(model)))
        assert len(calls) == expected
        calls.clear()


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_bfloat16(auto, model_class, tmp_path):
    """Loaded with `dtype`, it runs, trains and generates, and comes close to what float32 gives."""
    model = make(model_class).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    model.save_pretrained(tmp_path)
    inputs = make_inputs(model)
    half = model_class.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    found, expected = valid_outputs(half, inputs), valid_outputs(model, inputs)
    assert found[0].dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.1, atol=0.1)
    sum(output.sum() for output in found).backward()
    if half.can_generate():
        ids = half.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], num_beams=2, max_new_tokens=3
        )
        assert len(ids) == 5


# A translator has all that the other stacks of its family have; heads are the same for all families, but for the
# parallel convolutions of a sequence classifier.
@pytest.mark.parametrize(
    ("auto", "model_class"),
    [one for one in CLASSES if one.id.startswith(("Lstm", "CnnForSequence")) or SEQ2SEQ in one.values],
)
def test_compiled(auto, model_class):
    """The whole model is traced, as one graph; the backend that runs what was traced as it is keeps this quick."""
    torch._dynamo.reset()
    model = make(model_class)
    inputs = make_inputs(model)
    outputs, expected = torch.compile(model, backend="eager", fullgraph=True)(**inputs)[0], model(**inputs)[0]
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(gradients(model, [outputs]), gradients(model, [expected]))


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_device_map(auto, model_class, tmp_path):
    """A map of accelerate's own making loads, as do parts that wait on disk until they are called."""
    # What is tied must lie in one place.
    model = make(model_class, tie_word_embeddings=False, share_encoder_decoder_embeddings=False).float()
    model.save_pretrained(tmp_path / "model")
    inputs = make_inputs(model)
    inferred = infer_auto_device_map(model, no_split_module_classes=model._no_split_modules)
    assert set(inferred.values()) <= {"cpu", 0}
    on_disk = {name: "cpu" for name, _ in model.named_children()} | {"stack" if auto == MODEL else "model": "disk"}
    for device_map in ("cpu", "auto", on_disk):
        loaded = model_class.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
        )
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs)[0], model(**inputs)[0])
            if device_map is on_disk and auto == CAUSAL:
                prompt = {"input_ids": inputs["input_ids"][:2], "attention_mask": torch.tensor([[0, 0, 1, 1, 1]] * 2)}
                found = loaded.generate(**prompt, max_new_tokens=4)
                assert found.tolist() == model.generate(**prompt, max_new_tokens=4).tolist()


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_lora(auto, model_class, tmp_path):
    """Adapters on every linear layer and on the embeddings train alone, save, load and merge."""
    fields = {"tie_word_embeddings": False, "share_encoder_decoder_embeddings": False, "num_labels": 3}
    model = make(model_class, **fields).float()
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    targets = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    inputs = make_inputs(model)
    before = model(**inputs)[0].detach()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    adapted(**inputs)[0].pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in adapted.parameters() if parameter.requires_grad)
    adapted.eval()
    after = adapted(**inputs)[0].detach()
    assert not torch.allclose(before, after)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make(model_class, **fields).float(), tmp_path)
    torch.testing.assert_close(loaded(**inputs)[0], after)
    torch.testing.assert_close(loaded.merge_and_unload()(**inputs)[0], after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("heads", FAMILIES)
def test_one_to_many(heads, num_beams):
    """A sequence from one vector, as of an image, or from one token; cached and not."""
    decoder = make(heads[CAUSAL], add_cross_attention=True, cross_attention_hidden_size=5)
    vector = torch.randn(4, 1, 5, generator=torch.Generator().manual_seed(0)).double()
    options = {"num_beams": num_beams, "max_new_tokens": 7, "do_sample": False}
    starts = {"input_ids": torch.full((4, 1), 1), "encoder_hidden_states": vector}
    cached = decoder.generate(**starts, **options)
    assert cached.tolist() == decoder.generate(**starts, **options, use_cache=False).tolist()
    assert len({tuple(row) for row in cached.tolist()}) > 1
    lm = make(heads[CAUSAL])
    assert lm.generate(torch.tensor([[1]]), **options).shape[0] == 1
    assert lm.generate(**options).tolist() == lm.generate(torch.tensor([[1]]), **options).tolist()


@pytest.mark.parametrize("auto", [CAUSAL, SEQ2SEQ])
@pytest.mark.parametrize("heads", FAMILIES)
def test_the_cache_under_its_earlier_name(heads, auto):
    """transformers 5.24 calls `past_key_values` `cache`, and warns of the old name."""
    model = make(heads[auto])
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    source = {"input_ids": ids} if auto == SEQ2SEQ else {}
    name = "decoder_input_ids" if auto == SEQ2SEQ else "input_ids"
    expected = model(**source | {name: ids}).logits[:, 2:]
    for old in (True, False):
        outputs = model(**source | {name: ids[:, :2]}, use_cache=True)
        cache = outputs.past_key_values if old else outputs.cache
        assert cache is outputs["past_key_values" if old else "cache"] and cache.get_seq_length() == 2
        given = source | {name: ids[:, 2:]}
        if old:
            with pytest.warns(FutureWarning, match="Use `cache` instead"):
                outputs = model(**given, past_key_values=cache)
        else:
            outputs = model(**given, cache=cache)
        torch.testing.assert_close(outputs.logits, expected)


@pytest.mark.parametrize("heads", FAMILIES)
def test_nothing_deprecated_in_generation_and_training(heads, tmp_path, caplog, monkeypatch):
    """Warnings as errors, and what transformers logs in place of a warning, on which a user has no hold."""
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    logging.warning_once.cache_clear()
    set_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for auto in (CAUSAL, SEQ2SEQ):
            model = make(heads[auto]).float()
            inputs = {name: value for name, value in make_inputs(model).items() if not name.startswith("decoder_")}
            for options in ({}, {"num_beams": 2}, {"do_sample": True}, {"use_cache": False}):
                model.generate(**inputs, max_new_tokens=3, **options)
            rows = [
                {"input_ids": row, "labels": row, "attention_mask": mask} for row, mask in zip(MASK, MASK, strict=True)
            ]
            arguments = TrainingArguments(
                str(tmp_path), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, per_device_eval_batch_size=2
            )
            trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
            trainer.train()
            trainer.evaluate()
    found = [record.getMessage() for record in caplog.records if "deprecated" in record.getMessage()]
    assert not found

"""Fine-tuning part by part, against an optimizer written by hand: groups, rates, schedule, unfreezing, LoRA."""

import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from test_checkpoints import start
from test_models import CAUSAL, CLASSES, CTC, MODEL, SEQ2SEQ, SEQUENCE, TOKEN
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    T5Config,
    TrainerCallback,
    TrainingArguments,
)

import hfseq
from hfseq import CnnConfig, CnnForCausalLM, LstmConfig, LstmForCausalLM, LstmForSequenceClassification
from hfseq.errors import InputError
from hfseq.training.finetuning import (
    GradualUnfreezing,
    describe_parameters,
    optimizer_groups,
    slanted_triangular,
    train_head_only,
    unfreeze,
)
from hfseq.training.layers import layer_groups, model_parts
from hfseq.training.lora import apply_lora
from hfseq.training.trainer import SequenceTrainer

SIZES = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2}
BERT = SIZES | {"num_attention_heads": 2, "intermediate_size": 8}
T5 = {"vocab_size": 30, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2}
GPT2 = {"vocab_size": 30, "n_embd": 8, "n_layer": 2, "n_head": 2}
DISTILBERT = {"vocab_size": 30, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 8}
BART = {"vocab_size": 30, "d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "pad_token_id": 0} | {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("ffn_dim", 8), ("attention_heads", 2))
}
OURS = SIZES | {"embedding_size": 6}


def build(name, **fields):
    """A tiny model by its class's name, in float64 and without dropout."""
    model_class = getattr(hfseq if name in hfseq.__all__ else transformers, name)
    sizes = {
        BertConfig: BERT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        GPT2Config: GPT2 | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        T5Config: T5 | {"dropout_rate": 0.0},
        BartConfig: BART | {"dropout": 0.0},
        DistilBertConfig: DISTILBERT | {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
        LlamaConfig: BERT,
    }.get(model_class.config_class, OURS | {"dropout": 0.0})
    set_seed(0)
    return model_class(model_class.config_class(**sizes | fields)).double()


def encoder_decoder():
    set_seed(0)
    decoder = LstmConfig(**OURS, add_cross_attention=True, cross_attention_hidden_size=8, tie_word_embeddings=False)
    return transformers.EncoderDecoderModel(
        encoder=build("BertModel", num_labels=2).float(), decoder=LstmForCausalLM(decoder)
    ).double()


# --- groups --------------------------------------------------------------------------------------------------------

LAYERS = {
    "BertForSequenceClassification": [
        r"classifier",
        r"bert\.(encoder\.layer\.1|pooler)",
        r"bert\.encoder\.layer\.0",
        r"bert\.embeddings",
    ],
    "BertForMaskedLM": [r"cls", r"bert\.encoder\.layer\.1", r"bert\.encoder\.layer\.0", r"bert\.embeddings"],
    "BertModel": [r"pooler", r"encoder\.layer\.1", r"encoder\.layer\.0", r"embeddings"],
    "DistilBertForSequenceClassification": [
        r"(pre_)?classifier",
        r"distilbert\.transformer\.layer\.1",
        r"distilbert\.transformer\.layer\.0",
        r"distilbert\.embeddings",
    ],
    "GPT2LMHeadModel": [r"transformer\.(h\.1|ln_f)", r"transformer\.h\.0", r"transformer\.w[tp]e"],
    "GPT2Model": [r"h\.1|ln_f", r"h\.0", r"w[tp]e"],
    "LlamaForCausalLM": [r"lm_head", r"model\.(layers\.1|norm)", r"model\.layers\.0", r"model\.embed_tokens"],
    "T5ForConditionalGeneration": [
        r"decoder\.(block\.1|final_layer_norm)",
        r"decoder\.block\.0",
        r"encoder\.(block\.1|final_layer_norm)",
        r"encoder\.block\.0",
        r"shared",
    ],
    "BartForSequenceClassification": [
        r"classification_head",
        *(rf"model\.{side}\.layers\.{index}" for side in ("decoder", "encoder") for index in (1, 0)),
        r"model\.(shared|(en|de)coder\.(embed_|layernorm_embedding))",
    ],
}


def expected_layers(auto, model_class):
    """What the groups of hfseq's models are."""
    layer = "stack.layers" if model_class.config_class is CnnConfig else "stack.(forward_layers|backward_layers)"
    # Kim's model has one layer, whatever is asked for.
    single = model_class.config_class is CnnConfig and auto == SEQUENCE
    head = {CAUSAL: "output", SEQ2SEQ: "output", SEQUENCE: "classifier", TOKEN: "classifier", CTC: "ctc_head"}
    backbone = "" if auto == MODEL else "model."
    encoder = [rf"{backbone}{layer}.{index}" for index in ((0,) if single else (1, 0))]
    decoder = [rf"decoder.({layer}.1|attention|bridge|source)", rf"decoder.{layer}.0"] if auto == SEQ2SEQ else []
    tables = rf"({backbone}|decoder\.)(embed_tokens|positions|stack.project)"
    return [*([head[auto]] if auto in head else []), *decoder, *encoder, tables]


CASES = [
    *(pytest.param(lambda name=name: build(name), patterns, id=name) for name, patterns in LAYERS.items()),
    *(pytest.param(lambda name=case.id: build(name), expected_layers(*case.values), id=case.id) for case in CLASSES),
    pytest.param(
        encoder_decoder,
        [
            r"decoder\.lm_head",
            r"decoder\.model\.(stack\.\w+\.1|attention|bridge)",
            r"decoder\.model\.stack\.\w+\.0",
            r"encoder\.(encoder\.layer\.1|pooler)",
            r"encoder\.encoder\.layer\.0",
            r"encoder\.embeddings|decoder\.model\.embed_tokens",
        ],
        id="EncoderDecoderModel",
    ),
]


@pytest.mark.parametrize(("make", "patterns"), CASES)
def test_groups(make, patterns):
    """Each trainable parameter is in one group, and the groups are the layers from the top to the bottom."""
    model = make()
    groups = layer_groups(model)
    named = dict(model.named_parameters())
    found = [name for group in groups for name, _ in group]
    assert sorted(found) == sorted(named)
    assert all(parameter is named[name] for group in groups for name, parameter in group)
    assert len(groups) == len(patterns)
    for pattern, group in zip(patterns, groups, strict=True):
        wanted = {name for name in named if re.match(rf"({pattern})[._]?", name)}
        assert {name for name, _ in group} == wanted, pattern
    frozen = found[0]
    named[frozen].requires_grad_(False)
    assert frozen not in [name for group in layer_groups(model) for name, _ in group]
    assert {name for name, _ in model_parts(model, new=[found[-1]]).head} >= {found[-1]}


def test_norms_and_directions_are_with_their_layers():
    groups = layer_groups(build("LstmForTokenClassification", layer_norm=True, num_hidden_layers=3))
    for depth, layer in ((1, 2), (2, 1), (3, 0)):
        owners = {name.rpartition(".")[0] for name, _ in groups[depth]}
        assert owners == {f"model.stack.{kind}.{layer}" for kind in ("forward_layers", "backward_layers", "norms")}


@pytest.mark.parametrize("shared", [True, False])
def test_tied_output_layers_are_with_the_embeddings(shared):
    fields = {"embedding_size": 8, "share_encoder_decoder_embeddings": shared}
    groups = layer_groups(build("LstmForConditionalGeneration", **fields))
    assert [name for name, _ in groups[-1]] == ["model.embed_tokens.weight", "decoder.embed_tokens.weight"][
        : 2 - shared
    ]
    assert len(groups) == 5
    biased = layer_groups(build("LstmForConditionalGeneration", **fields, lm_head_bias=True))
    assert [name for name, _ in biased[-1]][-1] == "lm_head.bias" and len(biased) == 5
    untied = layer_groups(build("LstmForConditionalGeneration", **fields, tie_word_embeddings=False))
    assert [name for name, _ in untied[0]] == ["lm_head.weight"] and len(untied) == 6


def test_what_is_new_is_in_the_head():
    """A pooler, if the checkpoint has none."""
    model = build("BertForSequenceClassification")
    new = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]
    assert {name for name, _ in layer_groups(model, new)[0]} == set(new)
    train_head_only(model, new)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(new)


def test_what_was_frozen_stays_so():
    model = build("LstmForSequenceClassification")
    model.classifier.weight.requires_grad_(False)
    train_head_only(model)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["classifier.bias"]


# --- rates and schedule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "LstmForSequenceClassification"])
def test_optimizer_groups(name, tmp_path):
    model = build(name, **({"layer_norm": True} if name.startswith("Lstm") else {}))
    layers = layer_groups(model)
    found = optimizer_groups(model, layers, learning_rate=0.3, weight_decay=0.1)
    settings = {id(one): (group["lr"], group["weight_decay"]) for group in found for one in group["params"]}
    assert sum(len(group["params"]) for group in found) == len(settings) == len(list(model.parameters()))
    norms = {
        id(weight) for module in model.modules() if isinstance(module, nn.LayerNorm) for weight in module.parameters()
    }
    assert norms
    for depth, layer in enumerate(layers):
        for parameter_name, parameter in layer:
            exempt = "bias" in parameter_name or id(parameter) in norms
            assert settings[id(parameter)] == pytest.approx((0.3 / 2.6**depth, 0.0 if exempt else 0.1))
    # The same are exempt as in the Trainer's own optimizer.
    trainer = SequenceTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, weight_decay=0.1))
    for group in trainer.create_optimizer().param_groups:
        assert {settings[id(parameter)][1] for parameter in group["params"]} == {group["weight_decay"]}


def test_one_rate_for_all_layers():
    model = build("LstmForSequenceClassification")
    groups = optimizer_groups(model, layer_groups(model), learning_rate=0.3, weight_decay=0.1, decay=1)
    assert {group["lr"] for group in groups} == {0.3}
    with pytest.raises(InputError, match="layer decay of 0"):
        optimizer_groups(model, layer_groups(model), learning_rate=0.3, weight_decay=0.1, decay=0)


def triangle(step, total, cut_frac=0.1, ratio=32):
    """Howard & Ruder 2018, eq. 3, with a peak of 1."""
    cut = math.floor(total * cut_frac)
    p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / cut_frac - 1))
    return (1 + p * (ratio - 1)) / ratio


def rates(total, **options):
    """Learning rates of two groups at every step."""
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [one], "lr": lr} for one, lr in zip(parameters, (1.0, 0.5), strict=True)])
    schedule = slanted_triangular(optimizer, total, **options)
    result = []
    for _ in range(total + 2):
        result.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return result


@pytest.mark.parametrize(("total", "options"), [(50, {}), (200, {}), (12, {"cut_frac": 0.25, "ratio": 8})])
def test_slanted_triangle(total, options):
    expected = [triangle(step, total, **options) for step in range(total + 1)]
    found = rates(total, **options)
    for step, one in enumerate(expected):
        assert found[step] == pytest.approx([one, one / 2])
    assert max(expected) == 1 and found[total + 1] == found[total]


@pytest.mark.parametrize("total", [1, 7, 19, 199])
def test_a_triangle_of_any_length_stays_between_its_ends(total):
    """As published it would divide by zero below 10 steps, and pass below zero at 19."""
    found = [one for one, _ in rates(total)]
    assert found[total // 10] == max(found) == 1
    assert found[total] == pytest.approx(min(found)) and min(found) == pytest.approx(1 / 32)
    assert found[total // 10 :] == sorted(found[total // 10 :], reverse=True)


@pytest.mark.parametrize("options", [{"cut_frac": 1.0}, {"cut_frac": -0.1}, {"ratio": 0.5}])
def test_no_triangle(options):
    with pytest.raises(ValueError, match=r"cut_frac=.* ratio="):
        rates(10, **options)


# --- whole runs ----------------------------------------------------------------------------------------------------

EPOCHS, STEPS, RATE, DECAY, CLIP, CUT = 4, 3, 0.02, 0.1, 0.3, 0.25
KINDS = {"bert": "BertForSequenceClassification", "lstm": "LstmForSequenceClassification"}


def rows():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 30, (24, 6), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids.sum(dim=1) % 3).tolist()})


def collate(features):
    return {name: torch.tensor([feature[name] for feature in features]) for name in ("input_ids", "labels")}


class Tuner(SequenceTrainer):
    """Notes batches and rates, and takes a schedule."""

    def __init__(self, *args, schedule=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.schedule, self.batches, self.rates = schedule, [], []

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.schedule is not None and self.lr_scheduler is None:
            self.lr_scheduler = self.schedule(self.optimizer if optimizer is None else optimizer, num_training_steps)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model, inputs, *args, **kwargs):
        self.batches.append({name: value.clone() for name, value in inputs.items()})
        self.rates.append([group["lr"] for group in self.optimizer.param_groups])
        return super().training_step(model, inputs, *args, **kwargs)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def tuner(
    output_dir, model, *, strategy="all", new=(), size=8, kill_step=None, callbacks=(), epochs=EPOCHS, **options
):
    """The Trainer with a strategy, as a recipe makes it."""
    args = TrainingArguments(
        str(output_dir),
        num_train_epochs=epochs,
        per_device_train_batch_size=size,
        learning_rate=RATE,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        # Else a loss that is BERT's own, a mean over the rows of a process, is multiplied by their number.
        average_tokens_across_devices=False,
        save_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        seed=1,
        **options,
    )
    groups = layer_groups(model, new)
    optimizer_class, settings = SequenceTrainer.get_optimizer_cls_and_kwargs(args, model)
    settings["params"] = optimizer_groups(model, groups, learning_rate=RATE, weight_decay=DECAY)
    return Tuner(
        model=model,
        args=args,
        train_dataset=rows(),
        eval_dataset=rows(),
        data_collator=collate,
        optimizer_cls_and_kwargs=None if strategy == "lora" else (optimizer_class, settings),
        schedule=partial(slanted_triangular, cut_frac=CUT),
        callbacks=[
            *([GradualUnfreezing(new)] if strategy == "gradual" else []),
            *([StopAt(kill_step)] if kill_step else []),
            *callbacks,
        ],
    )


def trainer_run(output_dir, kind, strategy="gradual", size=8, kill_step=None):
    model = build(KINDS[kind], num_labels=3)
    if strategy == "lora":
        model = apply_lora(model, "classification", r=2, alpha=4)
    elif strategy == "head":
        train_head_only(model)
    trainer = tuner(output_dir, model, strategy=strategy, size=size, kill_step=kill_step)
    trainer.train(resume_from_checkpoint="last")
    if strategy == "lora":
        trainer.model = trainer.model.merge_and_unload()
    torch.save(trainer.model.state_dict(), Path(output_dir) / f"final-{trainer.args.process_index}.pt")
    return trainer


def loop_run(output_dir, kind, strategy="gradual", size=8):
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    plain = build(KINDS[kind], num_labels=3)
    groups = layer_groups(plain)
    optimizer = torch.optim.AdamW(optimizer_groups(plain, groups, learning_rate=RATE, weight_decay=DECAY), fused=True)
    loader = DataLoader(rows(), batch_size=size, collate_fn=collate)
    model, optimizer, loader = accelerator.prepare(plain, optimizer, loader)
    schedule = slanted_triangular(optimizer, EPOCHS * len(loader), cut_frac=CUT)
    for epoch in range(EPOCHS):
        unfreeze(groups, epoch + 1)
        for batch in loader:
            accelerator.backward(model(**batch).loss)
            accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    torch.save(plain.state_dict(), Path(output_dir) / f"final-{accelerator.process_index}.pt")


def by_hand(kind, batches):
    """What gradual unfreezing gives: a loop over plain tensors that leaves frozen ones alone."""
    model = build(KINDS[kind], num_labels=3)
    groups = layer_groups(model)
    total = EPOCHS * STEPS
    moments = {}
    for step, batch in enumerate(batches):
        loss = model(**batch).loss
        names = [(depth, name, weight) for depth, group in enumerate(groups) for name, weight in group]
        active = [entry for entry in names if entry[0] <= step // STEPS]
        gradients = torch.autograd.grad(loss, [weight for _, _, weight in active], allow_unused=True)
        norm = torch.stack([one.norm() for one in gradients if one is not None]).norm()
        scale = min(1.0, CLIP / (norm.item() + 1e-6))
        for (depth, name, weight), gradient in zip(active, gradients, strict=True):
            if gradient is None:
                continue
            rate = RATE / 2.6**depth * triangle(step, total, CUT)
            first, second, count = moments.get(name, (0.0, 0.0, 0))
            gradient, count = gradient * scale, count + 1
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            moments[name] = first, second, count
            with torch.no_grad():
                if not re.search(r"bias|LayerNorm", name):
                    weight.mul_(1 - rate * DECAY)
                weight -= rate * first / (1 - 0.9**count) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
    return model.state_dict()


def weights(directory, rank=0):
    return torch.load(Path(directory) / f"final-{rank}.pt")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("driver", ["trainer", "loop"])
def test_gradual_unfreezing(driver, kind, tmp_path):
    """Gradients, clipping, momentum, decay, rates and schedule of the trained groups alone, as by hand."""
    if driver == "trainer":
        trainer = trainer_run(tmp_path, kind)
        batches = trainer.batches
    else:
        loop_run(tmp_path, kind)
        batches = [collate(list(rows().select(range(start, start + 8)))) for start in range(0, 24, 8)] * EPOCHS
    assert len(batches) == EPOCHS * STEPS
    torch.testing.assert_close(weights(tmp_path), by_hand(kind, batches), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("kind", "strategy"), [("bert", "gradual"), ("lstm", "gradual"), ("lstm", "lora")])
def test_a_run_stopped_inside_an_epoch_ends_the_same(kind, strategy, tmp_path):
    """At the fifth of twelve steps, with a checkpoint of the fourth."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    trainer_run(whole, kind, strategy)
    with pytest.raises(KeyboardInterrupt):
        trainer_run(broken, kind, strategy, kill_step=5)
    assert len(trainer_run(broken, kind, strategy).batches) == 8
    found, expected = weights(broken), weights(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("run", "kind", "strategy"),
    [
        (trainer_run, "bert", "gradual"),
        (trainer_run, "lstm", "gradual"),
        (loop_run, "lstm", "gradual"),
        (trainer_run, "lstm", "lora"),
    ],
)
def test_two_processes_are_one_of_twice_the_batch(run, kind, strategy, tmp_path):
    for processes in ("one", "two"):
        (tmp_path / processes).mkdir()
    run(tmp_path / "one", kind, strategy)
    assert start(run, tmp_path / "two", 2, kind=kind, strategy=strategy, size=4) == [0, 0]
    one, two, other = weights(tmp_path / "one"), weights(tmp_path / "two"), weights(tmp_path / "two", rank=1)
    assert all(torch.equal(two[name], other[name]) for name in two)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-9)


def test_all_groups_train_after_a_short_run(tmp_path):
    trainer = tuner(tmp_path, build("LstmForSequenceClassification", num_labels=3), strategy="gradual", epochs=2)
    trainer.train()
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_two_processes_must_look_for_frozen_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    for options, fine in (
        ({}, True),
        ({"activation_checkpointing": True}, False),
        ({"ddp_find_unused_parameters": False}, False),
        ({"activation_checkpointing": True, "ddp_find_unused_parameters": True}, True),
    ):
        args, model = TrainingArguments(str(tmp_path), **options), build(next(iter(KINDS.values())), num_labels=3)
        begin = partial(GradualUnfreezing().on_train_begin, args, None, None, model=model)
        if fine:
            begin()
        else:
            with pytest.raises(InputError, match="--ddp_find_unused_parameters true"):
                begin()


@pytest.mark.parametrize("kind", KINDS)
def test_head_only(kind, tmp_path):
    before = build(KINDS[kind], num_labels=3).state_dict()
    trainer = trainer_run(tmp_path, kind, "head")
    after = weights(tmp_path)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    sizes = [weight.numel() for name, weight in after.items()]
    assert describe_parameters(trainer.model) == f"{8 * 3 + 3:,} of {sum(sizes):,} parameters trainable"


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "T5ForConditionalGeneration", "LstmForCausalLM"])
def test_no_head_of_its_own(name):
    model = build(name, **({"embedding_size": 8} if name.startswith("Lstm") else {}))
    with pytest.raises(InputError, match=f"{name} has no separate output layer"):
        train_head_only(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


# --- ULMFiT --------------------------------------------------------------------------------------------------------


class Snapshots(TrainerCallback):
    def __init__(self, model):
        self.taken = [self.copy(model)]

    @staticmethod
    def copy(model):
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def on_epoch_end(self, args, state, control, model, **kwargs):
        self.taken.append(self.copy(model))


def test_three_steps_of_ulmfit(tmp_path):
    """A language model, the same on the task's texts, a classifier that begins with its weights."""

    def language_model(model, directory):
        before = Snapshots.copy(model)
        trainer = tuner(directory, model, epochs=1)
        trainer.train_dataset = rows().map(lambda row: {"labels": row["input_ids"]})
        trainer.train()
        assert all(not torch.equal(before[name], weight) for name, weight in model.named_parameters())
        model.save_pretrained(directory / "model")
        return trainer

    general, domain = tmp_path / "general", tmp_path / "domain"
    language_model(build("LstmForCausalLM"), general)
    model = LstmForCausalLM.from_pretrained(general / "model")
    saved = load_file(general / "model" / "model.safetensors")
    torch.testing.assert_close({name: model.state_dict()[name] for name in saved}, saved, rtol=0, atol=0)
    trainer = language_model(model, domain)
    # Output projection, two layers, embeddings; no bias of a layer decays.
    depths = [0, 1, 1, 2, 2, 3]
    for step, found in enumerate(trainer.rates):
        assert found == pytest.approx([RATE / 2.6**depth * triangle_short(step) for depth in depths])

    model, info = AutoModelForSequenceClassification.from_pretrained(
        domain / "model", num_labels=3, pooling="max", output_loading_info=True
    )
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"} and not model.config.bidirectional
    saved = load_file(domain / "model" / "model.safetensors")
    body = {name for name in model.state_dict() if name.startswith("model.")}
    assert len(body) == 9
    torch.testing.assert_close({name: model.state_dict()[name] for name in body}, {name: saved[name] for name in body})
    groups = layer_groups(model, info["missing_keys"])
    assert len(groups) == 4
    snapshots = Snapshots(model)
    trainer = tuner(tmp_path / "task", model, strategy="gradual", new=info["missing_keys"], callbacks=[snapshots])
    trainer.train()
    for epoch in range(EPOCHS):
        before, after = snapshots.taken[epoch : epoch + 2]
        for depth, group in enumerate(groups):
            assert all(torch.equal(before[name], after[name]) is (depth > epoch) for name, _ in group), (epoch, depth)
    for step, found in enumerate(trainer.rates):
        expected = [RATE / 2.6**depth * triangle(step, EPOCHS * STEPS, CUT) for depth in (0, 0, 1, 1, 2, 2, 3)]
        assert found == pytest.approx(expected)


def triangle_short(step):
    """Of one epoch: three steps, of which a quarter is none, so that it begins at the peak."""
    return (1 + (1 - step / STEPS) * 31) / 32


# --- LoRA ----------------------------------------------------------------------------------------------------------

TASKS = {SEQUENCE: "classification", TOKEN: "tagging", CAUSAL: "language_modeling", SEQ2SEQ: "seq2seq"}
ADAPTABLE = [
    ("BertForSequenceClassification", "classification", "attention.self.(query|value)"),
    ("BertForMaskedLM", "language_modeling", "attention.self.(query|value)"),
    ("DistilBertForSequenceClassification", "classification", "(_lin|lin.)"),
    ("DistilBertForTokenClassification", "tagging", "(_lin|lin.)"),
    ("GPT2LMHeadModel", "language_modeling", "c_attn"),
    ("T5ForConditionalGeneration", "seq2seq", "(SelfAttention|EncDecAttention).(q|v)"),
    *(
        (case.id, TASKS[auto], "(stack|attention|bridge|source|output|embed_tokens)")
        for case in CLASSES
        if (auto := case.values[0]) in TASKS
    ),
]


def inputs_of(model):
    ids = torch.tensor(rows()["input_ids"])
    mask = torch.ones_like(ids)
    mask[::2, 4:] = 0
    decoder = {"decoder_input_ids": ids[:, :3]} if model.config.is_encoder_decoder else {}
    return {"input_ids": ids, "attention_mask": mask, **decoder}


def adapt(model, task, **options):
    """Adapters, and a head, that are not what they were made as."""
    adapted = apply_lora(model, task, **{"r": 2, "alpha": 4} | options).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return adapted


@pytest.mark.parametrize(("name", "task", "targets"), ADAPTABLE, ids=[case[0] for case in ADAPTABLE])
def test_lora(name, task, targets, tmp_path):
    """Adapters change nothing at first, train alone, are low-rank, and merge into a model like the one before."""
    model = build(name).eval()
    inputs = inputs_of(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(**inputs).logits.detach()
    head = {key for key, _ in model_parts(model).head} if task in ("classification", "tagging") else set()
    adapted = apply_lora(model, task, r=2, alpha=4).eval()
    torch.testing.assert_close(adapted(**inputs).logits, expected)
    trained = {key for key, weight in adapted.named_parameters() if weight.requires_grad}
    assert all("lora_" in key or "modules_to_save" in key for key in trained)
    assert sum("modules_to_save" in key for key in trained) == len(head)
    count = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    total = sum(weight.numel() for key, weight in adapted.named_parameters() if "lora_" in key)
    total += sum(weight.numel() for weight in build(name).parameters())
    assert describe_parameters(adapted) == f"{count:,} of {total:,} parameters trainable"

    adapted = adapt(build(name), task)
    adapted(**inputs).logits.pow(2).sum().backward()
    assert all(weight.grad is not None for weight in adapted.parameters() if weight.requires_grad)
    after = adapted(**inputs).logits.detach()
    assert not torch.allclose(after, expected)
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(build(name), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(**inputs).logits, after)

    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, after, rtol=1e-9, atol=1e-9)
    changed = {key for key, value in merged.state_dict().items() if not torch.equal(value, before[key])}
    assert merged.state_dict().keys() == before.keys() and changed > head
    for key in changed - head:
        assert re.search(targets, key), key
        assert torch.linalg.matrix_rank(merged.state_dict()[key] - before[key]) <= 2
    merged.save_pretrained(tmp_path / "merged")
    loaded, info = type(merged).from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(loaded(**inputs).logits, after, rtol=1e-9, atol=1e-9)


def test_lora_of_recurrent_weights_is_hu_et_al():
    """Section 4.1: the weight is `W + alpha / r * B A`, that of each gate, layer and direction."""
    model = build("LstmForSequenceClassification")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = adapt(model, "classification", r=3, alpha=6)
    factors = [weight for key, weight in adapted.named_parameters() if "lora_" in key]
    products = [factors[i + 1] @ factors[i] * 2 for i in range(0, len(factors), 2)]
    recurrent = {key: value for key, value in before.items() if "weight" in key and "stack" in key}
    assert len(recurrent) == len(products) == 8
    merged = adapted.merge_and_unload().state_dict()
    for key, value in recurrent.items():
        difference = merged[key] - value
        assert any(one.shape == difference.shape and torch.allclose(one, difference) for one in products)


def test_adapted_recurrent_layers_generate():
    adapted = adapt(build("LstmForConditionalGeneration"), "seq2seq")
    ids = torch.tensor(rows()["input_ids"])
    options = {"input_ids": ids, "num_beams": 2, "max_new_tokens": 5}
    found = adapted.generate(**options)
    assert found.tolist() == adapted.merge_and_unload().generate(**options).tolist()


def test_targets_by_name():
    model = build("LstmForSequenceClassification")
    adapted = apply_lora(model, "classification", r=2, alpha=2, dropout=0.1, target_modules=["embed_tokens"])
    trained = {key for key, weight in adapted.named_parameters() if weight.requires_grad}
    assert sum("lora_" in key for key in trained) == 2 and all("embed" in k or "classifier" in k for k in trained)


def test_a_new_pooler_trains_whole():
    new = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]
    adapted = apply_lora(build("BertForSequenceClassification"), "classification", r=2, alpha=2, new=new)
    saved = {key for key, weight in adapted.named_parameters() if weight.requires_grad and "lora_" not in key}
    assert saved == {
        f"base_model.model.{module}.modules_to_save.default.{name}"
        for module, names in (("bert.pooler", ("dense.weight", "dense.bias")), ("classifier", ("weight", "bias")))
        for name in names
    }


def test_adapted_recurrent_layers_are_not_run_twice():
    """They would be without their adapters."""
    adapted = apply_lora(build("LstmForSequenceClassification"), "classification", r=2, alpha=2)
    with pytest.raises(ValueError, match="does not support"):
        adapted.base_model.model.activation_checkpointing_enable()


@pytest.mark.parametrize(
    ("make", "task", "options", "message"),
    [
        (lambda: build("BertModel"), "classification", {"r": 0}, "the rank must be at least 1"),
        (lambda: build("BertModel"), "classification", {"dropout": 1.0}, "the dropout in \\[0, 1\\)"),
        (lambda: build("LstmForCausalLM"), "language_modeling", {"dropout": 0.1}, "does not support dropout"),
        (lambda: build("LstmForCausalLM", weight_dropout=0.5), "language_modeling", {}, "weight_dropout to 0"),
        (
            lambda: CnnForCausalLM(CnnConfig(**OURS | {"embedding_size": 8})),
            "language_modeling",
            {},
            "nothing to adapt in CnnForCausalLM",
        ),
        (
            lambda: build("LstmForSequenceClassification"),
            "classification",
            {"target_modules": ["wrong"]},
            "cannot adapt 'wrong': LstmForSequenceClassification has no",
        ),
        (
            lambda: build("LstmForConditionalGeneration"),
            "seq2seq",
            {"new": ["decoder.stack.forward_layers.0.weight_ih_l0"]},
            "forward_layers.0.weight_ih_l0 is new",
        ),
        (
            lambda: build("BertForMaskedLM"),
            "language_modeling",
            {"new": ["cls.predictions.bias"]},
            "cannot train cls.predictions.bias",
        ),
        (
            lambda: build("LstmForSequenceClassification"),
            "classification",
            {"new": ["model.embed_tokens.weight"]},
            "embed_tokens.weight is new",
        ),
    ],
)
def test_no_lora(make, task, options, message):
    with pytest.raises(InputError, match=message):
        apply_lora(make(), task, **{"r": 2, "alpha": 2} | options)


def test_lora_leaves_torch_layers_alone():
    """An adapter of a plain `nn.LSTM` would be missed in silence."""
    model = build("BertForSequenceClassification")
    model.config.model_type = "another"
    model.bert.pooler.lstm = nn.LSTM(8, 8).double()
    adapted = apply_lora(model, "classification", r=2, alpha=2)
    names = [key for key, _ in adapted.named_parameters() if "lora_" in key]
    assert any("pooler.dense" in key for key in names) and not any("lstm" in key for key in names)


def test_lora_of_the_best_checkpoint(tmp_path):
    """The Trainer loads the adapters of the best evaluation; merged, they are an ordinary model."""
    adapted = apply_lora(
        LstmForSequenceClassification(LstmConfig(**OURS, num_labels=3)), "classification", r=2, alpha=4
    )
    trainer = tuner(
        tmp_path, adapted, strategy="lora", eval_strategy="steps", eval_steps=2, load_best_model_at_end=True
    )
    trainer.train()
    best = min((entry["eval_loss"], entry["step"]) for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best[0])
    trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best[0])
    trainer.save_model(str(tmp_path / "merged"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert type(loaded) is LstmForSequenceClassification
    batch = collate(list(rows()))
    assert loaded(**batch).loss.item() == pytest.approx(best[0], rel=1e-5)

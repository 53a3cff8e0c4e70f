"""A checkpoint to predict with has all weights of its task; random ones in their place would go unseen."""

import re

import pytest
import recipe_runs
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import hfseq
from hfseq.errors import InputError
from hfseq.inference.loading import load_trained
from hfseq.tokenization import train_tokenizer

HEADS = {
    "CausalLM": (AutoModelForCausalLM, "language model"),
    "ConditionalGeneration": (AutoModelForSeq2SeqLM, "sequence-to-sequence model"),
    "SequenceClassification": (AutoModelForSequenceClassification, "sequence classifier"),
    "TokenClassification": (AutoModelForTokenClassification, "token classifier"),
}
PREDICTING = {
    "finetuning": ("SequenceClassification", ("--task", "classification")),
    "language_modeling": ("CausalLM", ()),
    "monitoring": ("SequenceClassification", ("--fresh_file", "rows.jsonl")),
    "sentiment": ("SequenceClassification", ()),
    "summarization": ("ConditionalGeneration", ()),
    "tagging": ("TokenClassification", ()),
    "translation": ("ConditionalGeneration", ("--source_lang", "text", "--target_lang", "summary")),
}
ROW = '{"text": "a b", "label": "yes", "tokens": ["a"], "tags": ["yes"], "document": "a", "summary": "b"}\n'


def save(folder, head):
    tokenizer = train_tokenizer(["a b c d"], model="word", vocab_size=20)
    config = hfseq.GruConfig(vocab_size=len(tokenizer), hidden_size=8, tie_word_embeddings=False)
    config.id2label = {0: "no", 1: "yes"}
    for saved in (getattr(hfseq, f"GruFor{head}")(config), tokenizer):
        saved.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def lose(folder, weights, *names):
    kept = {name: tensor for name, tensor in weights.items() if name not in names}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("head", HEADS)
def test_each_weight_is_needed(head, tmp_path):
    auto_class, kind = HEADS[head]
    weights = save(tmp_path, head)
    assert type(load_trained(auto_class, str(tmp_path))[0]).__name__ == f"GruFor{head}"
    for name in weights:
        lose(tmp_path, weights, name)
        # What is tied to it is missing, too.
        message = f"path {tmp_path}: GruFor{head} was not trained as a {kind}: it has no .*{re.escape(name)}"
        with pytest.raises(InputError, match=message):
            load_trained(auto_class, str(tmp_path))


def test_a_tagger_does_not_classify_sequences(tmp_path):
    # Its parameters have the same names.
    save(tmp_path, "TokenClassification")
    with pytest.raises(InputError, match="GruForTokenClassification was not trained as a sequence classifier$"):
        load_trained(AutoModelForSequenceClassification, str(tmp_path))


@pytest.mark.parametrize("recipe", PREDICTING)
def test_no_recipe_predicts_with_random_weights(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head, flags = PREDICTING[recipe]
    weights = save(tmp_path / "model", head)
    (tmp_path / "rows.jsonl").write_text(ROW * 2, encoding="utf-8")
    (tmp_path / "rows.txt").write_text("a b\nc d\n", encoding="utf-8")
    lost = next(name for name in weights if name.endswith("weight_hh_l0"))
    lose(tmp_path / "model", weights, lost)
    rows = "rows.txt" if recipe == "language_modeling" else "rows.jsonl"
    predict = () if recipe == "monitoring" else ("--do_predict",)
    argv = ["--model_name_or_path", "model", "--test_file", rows, "--output_dir", "out", *predict, *flags]
    with pytest.raises(InputError, match=f"it has no {lost}"):
        recipe_runs.start(recipe_runs.load(recipe), argv)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["classification", "translation"])
def test_nobody_learns_from_random_weights(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = "ConditionalGeneration" if task == "translation" else "SequenceClassification"
    weights = save(tmp_path / "model", head)
    (tmp_path / "rows.jsonl").write_text((ROW + ROW.replace("yes", "no")) * 20, encoding="utf-8")
    lose(tmp_path / "model", weights, *(name for name in weights if name.endswith("weight_hh_l0")))
    flags = ("--source_lang", "text", "--target_lang", "summary") if task == "translation" else ()
    argv = ["--task", task, "--teacher", "model", "--train_file", "rows.jsonl", "--output_dir", "out", *flags]
    with pytest.raises(InputError, match="it has no .*weight_hh_l0"):
        recipe_runs.start(recipe_runs.load("distillation"), argv)


def test_a_prompt_is_not_continued_with_random_weights(tmp_path):
    weights = save(tmp_path, "CausalLM")
    lose(tmp_path, weights, "lm_head.weight")
    argv = ["--model_name_or_path", tmp_path, "--do_predict", "--prompt", "a b"]
    with pytest.raises(InputError, match="it has no lm_head.weight"):
        recipe_runs.start(recipe_runs.load("language_modeling"), argv)

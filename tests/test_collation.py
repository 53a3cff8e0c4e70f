"""Values of a batch are checked before it reaches a model, by collators, recipes and pipelines."""

import importlib.util
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    Seq2SeqTrainingArguments,
)

from hfseq import CnnConfig, CnnForCausalLM, LstmConfig, LstmForCausalLM, LstmForConditionalGeneration
from hfseq.data.collation import CheckedCollator, check_batch, position_limit, vocabulary_sizes
from hfseq.errors import InputError
from hfseq.inference.generate import decode_outputs
from hfseq.pipelines import TranslationPipeline
from hfseq.tasks.arguments import TranslationArguments
from hfseq.tasks.seq2seq import Translation, make_collator
from hfseq.tokenization import train_tokenizer

BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 12}
LSTM = {"hidden_size": 8, "vocab_size": 12}
MARIAN = {"d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_layers": 1, "decoder_layers": 1}
HEADS = {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
UNSHARED = {"decoder_vocab_size": 15, "share_encoder_decoder_embeddings": False, "tie_word_embeddings": False}


def batch(**changes):
    """A batch that is right, ids below 10 and classes below 10, with some of it changed."""
    right = {
        "input_ids": [[4, 9, 5], [0, 6, 2]],
        "attention_mask": [[1, 1, 1], [0, 1, 1]],
        "decoder_input_ids": [[1, 9], [1, 0]],
        "decoder_attention_mask": [[1, 1], [1, 0]],
        "labels": [[9, 2], [2, -100]],
    }
    return {name: torch.tensor(value) for name, value in (right | changes).items()}


def test_what_is_right_passes():
    right = batch()
    check_batch(right, 10)
    check_batch({name: value.numpy() for name, value in right.items()}, 10)
    check_batch(right, 10, num_labels=10)
    check_batch({"input_ids": right["input_ids"], "labels": None, "attention_mask": None}, 10)
    check_batch({"inputs_embeds": torch.ones(2, 3, 4), "token_type_ids": torch.tensor([[99]])}, 10)
    check_batch({"labels": torch.tensor([1.5, -7.0])}, 10, num_labels=1)
    check_batch({}, 10)


BAD = {
    "id above": (
        {"input_ids": [[4, 9, 5], [0, 10, 2]]},
        r"input_ids of shape \(2, 3\): row 1, column 1 is 10, .* 0 to 9",
    ),
    "id below": ({"input_ids": [[4, 9, -1], [0, 6, 2]]}, r"input_ids of shape \(2, 3\): row 0, column 2 is -1"),
    "ignored index in ids": (
        {"decoder_input_ids": [[1, 9], [1, -100]]},
        r"decoder_input_ids .*: row 1, column 1 is -100",
    ),
    "decoder id": (
        {"decoder_input_ids": [[1, 9], [11, 0]]},
        r"decoder_input_ids .*: row 1, column 0 is 11, .* 0 to 9",
    ),
    "label above": (
        {"labels": [[9, 2], [2, 10]]},
        r"labels of shape \(2, 2\): row 1, column 1 is 10, .*vocabulary, 0 to 9",
    ),
    "label below": ({"labels": [[-1, 2], [2, 1]]}, r"labels of shape \(2, 2\): row 0, column 0 is -1, .* not -100"),
    "padding": ({"attention_mask": [[1, 1, 1], [0, 0, 0]]}, r"attention_mask of shape \(2, 3\): row 1 is all padding"),
    "decoder padding": (
        {"decoder_attention_mask": [[0, 0], [1, 1]]},
        r"^decoder_attention_mask .*: row 0 is all padding",
    ),
    "short mask": (
        {"attention_mask": [[1, 1], [1, 1]]},
        r"^attention_mask has shape \(2, 2\), but input_ids has \(2, 3\)",
    ),
    "fewer rows": ({"attention_mask": [[1, 1, 1]]}, r"^attention_mask has shape \(1, 3\), but input_ids has \(2, 3\)"),
    "decoder mask": (
        {"decoder_attention_mask": [[1], [1]]},
        r"^decoder_attention_mask has shape \(2, 1\), but decoder_in",
    ),
    "labels padded on the left": (
        {"labels": [[9, 2], [-100, 2]]},
        r"labels of shape \(2, 2\): row 1 is padded on the",
    ),
    "nan": ({"labels": [0.5, float("nan")]}, r"labels of shape \(2,\): row 1 is nan, not a finite number"),
}


@pytest.mark.parametrize("as_type", [torch.as_tensor, np.asarray], ids=["torch", "numpy"])
@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case, as_type):
    changes, message = BAD[case]
    wrong = {name: as_type(value) for name, value in batch(**changes).items()}
    with pytest.raises(ValueError, match=message):
        check_batch(wrong, 10)


def test_classes():
    labels = {"labels": torch.tensor([0, 3, 2])}
    check_batch(labels, 10, num_labels=4)
    with pytest.raises(InputError, match=r"labels of shape \(3,\): row 1 is 3, outside the classes, 0 to 2"):
        check_batch(labels, 10, num_labels=3)
    check_batch(labels, 10, num_labels=1)  # whole numbers to regress to


def test_a_row_without_tokens():
    with pytest.raises(InputError, match="row 0 is all padding"):
        check_batch({"input_ids": torch.ones(2, 0).long(), "attention_mask": torch.ones(2, 0)}, 10)


def test_vocabularies_of_two_sides():
    two = batch(decoder_input_ids=[[1, 14], [1, 0]], labels=[[14, 2], [2, -100]])
    check_batch(two, 10, decoder_vocab_size=15)
    # Collators make decoder_input_ids of the labels, so those are named first.
    with pytest.raises(InputError, match="^labels .* is 14, outside the vocabulary, 0 to 13"):
        check_batch(two, 10, decoder_vocab_size=14)
    with pytest.raises(InputError, match="^decoder_input_ids .* is 14, outside the vocabulary, 0 to 13"):
        check_batch(two | {"labels": None}, 10, decoder_vocab_size=14)
    with pytest.raises(InputError, match="^labels .* is 14, outside the vocabulary, 0 to 9"):
        check_batch(two, 10)


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (lambda: LstmForCausalLM(LstmConfig(**LSTM)), {"vocab_size": 12, "decoder_vocab_size": 12}),
        (lambda: LstmForConditionalGeneration(LstmConfig(**LSTM)), {"vocab_size": 12, "decoder_vocab_size": 12}),
        (lambda: BertModel(BertConfig(**BERT)), {"vocab_size": 12, "num_labels": 2}),
        (lambda: BertForTokenClassification(BertConfig(**BERT, num_labels=5)), {"vocab_size": 12, "num_labels": 5}),
        (
            lambda: MarianMTModel(MarianConfig(vocab_size=12, **MARIAN, **HEADS, **UNSHARED)),
            {"vocab_size": 12, "decoder_vocab_size": 15},
        ),
        (
            lambda: EncoderDecoderModel(
                encoder=BertModel(BertConfig(**BERT)),
                decoder=LstmForCausalLM(LstmConfig(hidden_size=8, vocab_size=9, add_cross_attention=True)),
            ),
            {"vocab_size": 12, "decoder_vocab_size": 9},
        ),
    ],
    ids=["causal", "seq2seq", "encoder", "tagger", "marian", "bert to lstm"],
)
def test_sizes_of_models(make, sizes):
    assert vocabulary_sizes(make()) == sizes


def test_rows_longer_than_a_model_has_positions(tokenizer):
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    widths = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1}
    widths |= {"decoder_attention_heads": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    bart = BartForConditionalGeneration(BartConfig(max_position_embeddings=9, **widths, **sizes))
    roberta = RobertaForSequenceClassification(RobertaConfig(**BERT | sizes | {"max_position_embeddings": 11}))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_positions=9, n_embd=8, n_layer=1, n_head=1))
    assert position_limit(bart) == position_limit(gpt2) == 9
    assert position_limit(roberta) == 11 - (roberta.config.pad_token_id + 1)
    assert position_limit(LstmForConditionalGeneration(LstmConfig(**LSTM))) is None
    assert position_limit(CnnForCausalLM(CnnConfig(architecture="convs2s", **LSTM))) is None
    checked = CheckedCollator(DataCollatorForSeq2Seq(tokenizer, model=bart), bart)
    for source, target, name in (("a" * 9, "a", "input_ids"), ("a", "a" * 9, "labels")):
        assert checked([dict(tokenizer(source[:-2], text_target=target[:-2]))])
        with pytest.raises(InputError, match=rf"{name} of shape \(1, 11\): the model has 9 positions; truncate to"):
            checked([dict(tokenizer(source, text_target=target))])
    # It reads as many as that.
    ids = torch.ones(1, 9, dtype=torch.long)
    assert bart(input_ids=ids, decoder_input_ids=ids).logits.shape[1] == 9
    with pytest.raises(IndexError):
        bart(input_ids=torch.ones(1, 10, dtype=torch.long), decoder_input_ids=ids)


def test_resized_embeddings():
    model = LstmForConditionalGeneration(LstmConfig(**LSTM))
    model.resize_token_embeddings(20)
    assert vocabulary_sizes(model) == {"vocab_size": 20, "decoder_vocab_size": 20}


# Collators


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sees the dog", "abcdefgh"], model="character", vocab_size=40)


def test_collator_for_seq2seq(tokenizer):
    rows = [dict(tokenizer(text, text_target=text)) for text in ("the cat", "dog", "a")]
    model = LstmForConditionalGeneration(LstmConfig(hidden_size=8, vocab_size=len(tokenizer)))
    plain = DataCollatorForSeq2Seq(tokenizer, model=model)
    checked = CheckedCollator(plain, model)
    (got,) = DataLoader(rows, batch_size=3, collate_fn=checked)
    assert got.keys() == plain(rows).keys() == {"input_ids", "attention_mask", "labels", "decoder_input_ids"}
    assert all(torch.equal(value, plain(rows)[name]) for name, value in got.items())
    rows[1]["labels"] = [4, len(tokenizer), 2]
    with pytest.raises(InputError, match=rf"labels .*: row 1, column 1 is {len(tokenizer)}"):
        list(DataLoader(rows, batch_size=3, collate_fn=checked))


def test_collators_for_classes(tokenizer):
    sizes = BERT | {"vocab_size": len(tokenizer), "num_labels": 3}
    rows = [{**tokenizer(text), "label": label} for text, label in (("the cat", 0), ("dog", 2))]
    checked = CheckedCollator(DataCollatorWithPadding(tokenizer), BertForSequenceClassification(BertConfig(**sizes)))
    assert checked(rows)["labels"].tolist() == [0, 2]
    rows[1]["label"] = 3
    with pytest.raises(InputError, match=r"labels of shape \(2,\): row 1 is 3, outside the classes, 0 to 2"):
        checked(rows)
    tags = [{**tokenizer(text), "labels": [1] * len(tokenizer(text).input_ids)} for text in ("the cat", "dog")]
    tagger = BertForTokenClassification(BertConfig(**sizes))
    checked = CheckedCollator(DataCollatorForTokenClassification(tokenizer), tagger)
    assert (checked(tags)["labels"][1] == -100).sum() == 4
    tags[0]["labels"][1] = -1
    with pytest.raises(InputError, match="labels .*: row 0, column 1 is -1"):
        checked(tags)


def test_a_row_without_text(tokenizer):
    model = LstmForCausalLM(LstmConfig(hidden_size=8, vocab_size=len(tokenizer)))
    rows = [dict(tokenizer(text, add_special_tokens=False)) for text in ("the cat", "")]
    with pytest.raises(InputError, match="attention_mask .*: row 1 is all padding"):
        CheckedCollator(DataCollatorWithPadding(tokenizer), model)(rows)


# Where they are used


def test_pipeline_with_the_tokenizer_of_another_model(tokenizer):
    model = LstmForConditionalGeneration(LstmConfig(hidden_size=8, vocab_size=len(tokenizer) - 1))
    translate = TranslationPipeline(model, tokenizer, device="cpu", max_new_tokens=2)
    tokens = tokenizer.convert_ids_to_tokens([len(tokenizer) - 1, 5])
    assert len(translate([tokens[1]])) == 1
    with pytest.raises(ValueError, match=rf"input_ids of shape .* is {len(tokenizer) - 1}, outside the vocabulary"):
        translate(tokens[0])


def test_generated_texts(tokenizer, tmp_path):
    model = LstmForConditionalGeneration(LstmConfig(hidden_size=8, vocab_size=len(tokenizer)))

    args = Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True, per_device_eval_batch_size=2)
    task = Translation(TranslationArguments(max_target_length=4), args)
    task.collator = make_collator(model, tokenizer)

    def generate(*ids):
        task.encoded = {"test": datasets.Dataset.from_dict({"input_ids": ids, "labels": ids})}
        return task.predict(model, "test")[0]

    assert len(generate([4, 2], [5, 5, 2])) == 2
    # Batches end at different lengths.
    ids = [[1, 5, 6, 2, -100], [1, 5, 2]]
    texts = decode_outputs(tokenizer, ids, ["a", "b"], max_source_length=9, copy_vocabulary=None)
    assert texts == [tokenizer.decode([5, 6]), tokenizer.decode([5])]
    assert texts[:1] == decode_outputs(tokenizer, np.array(ids[:1]), ["a"], max_source_length=9, copy_vocabulary=None)
    with pytest.raises(InputError, match="input_ids .* row 1, column 1 is 99"):
        generate([4, 2], [5, 99])
    with pytest.raises(InputError, match="row 0 is all padding"):
        generate([4, 2], [])


@pytest.mark.parametrize("driver", ["translation", "translation_accelerate"])
def test_recipes(driver, tokenizer, tmp_path):
    """A checkpoint whose tokenizer is too large for it: one error, before a step is made."""
    spec = importlib.util.spec_from_file_location(driver, Path(__file__).parents[1] / "recipes" / f"{driver}.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    model = LstmForConditionalGeneration(LstmConfig(hidden_size=8, vocab_size=9))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for column in ("en", "de"):
        (tmp_path / f"train.{column}").write_text("the cat\n" * 4)
    AcceleratorState._reset_state(reset_partial_state=True)
    argv = ["--model_name_or_path", tmp_path / "model", "--train_file", tmp_path / "train", "--use_cpu", "true"]
    with pytest.raises(InputError, match=r"^input_ids of shape \(\d, \d+\): row \d, column \d+ is \d+, .*, 0 to 8"):
        recipe.main([*map(str, argv), "--output_dir", str(tmp_path / "out"), "--disable_tqdm", "true"])

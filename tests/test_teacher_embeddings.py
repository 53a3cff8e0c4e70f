"""Embeddings of a student from what its teacher says of each token."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import hfseq
from hfseq.errors import InputError
from hfseq.tokenization import train_tokenizer
from hfseq.training.teacher_embeddings import start_from_teacher, teacher_embeddings

TEXTS = ["the plot is fine", "the cast is dull and awful", "a song, a room and a house"]


@pytest.fixture(scope="module", params=["bert", "gru"])
def teacher(request):
    """A model and its tokenizer, which cuts words into pieces."""
    tokenizer = train_tokenizer(TEXTS, model="unigram", vocab_size=40)
    torch.manual_seed(0)
    if request.param == "gru":
        config = hfseq.GruConfig(vocab_size=len(tokenizer), hidden_size=8, embedding_size=8, initializer_range=0.5)
        return hfseq.GruForSequenceClassification(config), tokenizer
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, **sizes)
    ), tokenizer


def alone(teacher, text):
    """The mean state of a text's pieces; the end that the tokenizer adds is none."""
    model, tokenizer = teacher
    states = model.base_model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return states[:-1].mean(0)


@pytest.mark.parametrize("batch_size", [1, 5, 256])
def test_vectors_are_principal_components_of_what_the_teacher_says(teacher, batch_size):
    words = train_tokenizer(TEXTS, model="word", vocab_size=40)
    found = teacher_embeddings(*teacher, words, 8, batch_size=batch_size)
    known = [index for index in range(len(words)) if index not in words.all_special_ids]
    assert not found[words.all_special_ids].any()
    with torch.no_grad():
        states = torch.stack([alone(teacher, words.decode([index])) for index in known])
    states = states - states.mean(0)
    # All components together are a rotation.
    torch.testing.assert_close(found[known] @ found[known].T * states.var() / found[known].var(), states @ states.T)
    assert found[known].std().item() == pytest.approx(1)
    few = teacher_embeddings(*teacher, words, 3, batch_size=batch_size)[known]
    variances = torch.linalg.svdvals(states)[:3] ** 2
    torch.testing.assert_close((few**2).sum(0) / (few**2).sum(), variances / variances.sum())


def test_a_student_starts_there(teacher):
    words = train_tokenizer(TEXTS, model="word", vocab_size=40)
    config = hfseq.LstmConfig(vocab_size=len(words), hidden_size=6, embedding_size=4)
    student = hfseq.LstmForSequenceClassification(config)
    weight = student.get_input_embeddings().weight
    before = weight.detach().clone()
    start_from_teacher(student, words, *teacher)
    known = [index for index in range(len(words)) if index not in words.all_special_ids]
    torch.testing.assert_close(weight[words.all_special_ids], before[words.all_special_ids], rtol=0, atol=0)
    torch.testing.assert_close(weight[known] / before[known].std(), teacher_embeddings(*teacher, words, 4)[known])
    assert weight.requires_grad and weight.is_leaf


def test_a_teacher_too_narrow(teacher):
    with pytest.raises(InputError, match="hidden size 8 is smaller than the embedding size 9"):
        teacher_embeddings(*teacher, teacher[1], 9)

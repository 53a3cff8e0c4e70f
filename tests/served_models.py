"""Small models of every task that the server answers, with their tokenizers or feature extractors."""

import json

import torch
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2Processor

import hfseq
from hfseq.tokenization import item_tokenizer, start_texts, train_tokenizer

WORDS = "a b c d e f g h i j"
RATE = 8000
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "initializer_range": 1.0}


def save(folder, *parts):
    """Save a model and its processing class."""
    for part in parts:
        part.save_pretrained(folder)
    return folder


def words():
    """A tokenizer of ten words."""
    return train_tokenizer([WORDS], model="word", vocab_size=20)


def translator(folder, **fields):
    """A translator of random weights."""
    tokenizer = words()
    torch.manual_seed(0)
    config = hfseq.GruConfig(vocab_size=len(tokenizer), is_encoder_decoder=True, **TINY, **fields)
    model = hfseq.GruForConditionalGeneration(config)
    model.generation_config.max_length = 12
    return save(folder, model, tokenizer)


def classifier(folder, **fields):
    """A classifier of three classes."""
    tokenizer = words()
    torch.manual_seed(0)
    labels = dict(enumerate(("bad", "fair", "good")))
    config = hfseq.LstmConfig(vocab_size=len(tokenizer), id2label=labels, **TINY, **fields)
    return save(folder, hfseq.LstmForSequenceClassification(config), tokenizer)


def tagger(folder):
    """A tagger of entities."""
    tokenizer = words()
    torch.manual_seed(0)
    config = hfseq.RnnConfig(vocab_size=len(tokenizer), id2label=dict(enumerate(("O", "B-X", "I-X"))), **TINY)
    return save(folder, hfseq.RnnForTokenClassification(config), tokenizer)


def language_model(folder):
    """A language model with a chat template, which never ends by itself."""
    tokenizer = words()
    start_texts(tokenizer)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    torch.manual_seed(0)
    model = hfseq.LstmForCausalLM(hfseq.LstmConfig(vocab_size=len(tokenizer), **TINY))
    model.generation_config.suppress_tokens = [0, 1, 2, 3]
    return save(folder, model, tokenizer)


def recognizer(folder, **fields):
    """A recogniser of letters by CTC."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    extractor = hfseq.LogMelFeatureExtractor(feature_size=8, sampling_rate=RATE, hop_length=80)
    processor = Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(folder / "vocab.json")))
    torch.manual_seed(0)
    config = hfseq.GruConfig(
        vocab_size=len(names), input_size=8, subsampling_factor=2, inputs_to_logits_ratio=160, **TINY, **fields
    )
    model = hfseq.GruForCTC(config)
    model.base_model.set_feature_statistics(torch.full((8,), -8.0), torch.full((8,), 2.0))
    return save(folder, model, processor)


def forecaster(folder, **fields):
    """A forecaster of three steps."""
    torch.manual_seed(0)
    config = hfseq.LstmConfig(input_size=1, prediction_length=3, num_parallel_samples=5, **TINY, **fields)
    return save(folder, hfseq.LstmForPrediction(config))


def recommender(folder):
    """A recommender of ten items."""
    tokenizer = item_tokenizer(WORDS.split())
    torch.manual_seed(0)
    return save(folder, hfseq.GruForCausalLM(hfseq.GruConfig(vocab_size=len(tokenizer), **TINY)), tokenizer)


MAKERS = {
    "translation": translator,
    "text-classification": classifier,
    "token-classification": tagger,
    "automatic-speech-recognition": recognizer,
    "time-series-forecasting": forecaster,
    "next-item-recommendation": recommender,
}
"""Makers of the models by task."""

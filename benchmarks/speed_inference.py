"""One text at a time through a classifier."""

import torch
from samples import TARGET, Samples
from timing import Row, clock, in_turns, speedups
from transformers import AutoModelForSequenceClassification, DistilBertConfig, set_seed

import hfseq


@torch.inference_mode()
def classification_beside_distilbert(samples: Samples) -> Row:
    """A classifier of `recipes/configs/sentiment_sst2.yaml` beside a DistilBERT, each test sentence by itself.

    Both take the ids of the same tokenizer; making them is in neither. The ratio is that of the medians of a round's
    sentences.
    """
    set_seed(0)
    sizes = samples.sizes
    vocabulary = len(samples.tokenizer)
    ours = hfseq.LstmConfig(
        vocab_size=vocabulary, hidden_size=sizes.hidden // 2, embedding_size=sizes.hidden // 4, pooling="max"
    )
    theirs = DistilBertConfig(vocab_size=max(vocabulary, 30522))
    models = {
        name: AutoModelForSequenceClassification.from_config(config).eval().to(samples.device)
        for name, config in (("hfseq", ours), ("DistilBERT", theirs))
    }
    texts = samples.rows["test"][TARGET][: sizes.sentences]
    encoded = [samples.tokenizer(text, return_tensors="pt").to(samples.device) for text in texts]
    inputs = [{name: text[name] for name in ("input_ids", "attention_mask")} for text in encoded]

    def median(name: str) -> float:
        model, times = models[name], []
        for batch in inputs:
            times.append(clock(lambda batch=batch: model(**batch))())
        return sorted(times)[len(times) // 2]

    times = in_turns({name: lambda name=name: median(name) for name in models}, sizes.rounds)
    row = Row("classification at batch 1, p50", "Transformer of DistilBERT's size", 20.0)
    row.ratios = speedups(times, "hfseq", "DistilBERT")
    row.figures = {
        "ms": [1000 * one for one in times["hfseq"]],
        "ms beside": [1000 * one for one in times["DistilBERT"]],
    }
    row.note = ", ".join(f"{name} {model.num_parameters():,} parameters" for name, model in models.items())
    return row

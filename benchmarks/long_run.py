"""Errors and memory of many requests, odd ones among them, to models of all families and tasks in one process.

    .venv/bin/python benchmarks/long_run.py

A translator, a summarizer (with a pointer-generator, but for CNN), a classifier, a tagger (with a CRF) and a language
model of each family are made on the spot, tiny and of random weights, with a tokenizer of several languages. Each call
takes one of them at random, through `pipeline` or `generate`, with up to eight texts: of 0 to 2000 characters, in many
scripts, with emoji and control characters, empty ones, blank ones and very long words; and with options at random
(batch size, beams, sampling, several results for a text, no cache). A request is a text of such a call.

The resident memory, after glibc has given back what it can, is printed after every `--report` requests (on Linux). At
the end: the errors by their first line, each with a call that raised it, and the slope of a line fitted to the memory
after the first fifth of the requests. It exits with 1 if there was an error, or if memory grew by more than 10 MB in
10,000 requests; fewer than some 20,000 are too few to say so.

oneDNN, with which torch computes on a CPU, keeps what it compiled for each shape, of the last 1024 shapes unless
ONEDNN_PRIMITIVE_CACHE_CAPACITY says otherwise. That is some hundred MB, which fill slowly, request after request;
so that a leak would show beside it, here it keeps 64 unless the variable is set.
"""

import argparse
import ctypes
import gc
import math
import os
import platform
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from record import store, this_command
from transformers import Pipeline, pipeline, set_seed

import hfseq
from hfseq.models import MODEL_CLASSES
from hfseq.tokenization import start_texts, train_tokenizer

TASKS = {
    "translation": "AutoModelForSeq2SeqLM",
    "summarization": "AutoModelForSeq2SeqLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "text-generation": "AutoModelForCausalLM",
}
LONGEST = 2000
LIMIT_MB = 10.0
SENTENCES = """A man in an orange hat is staring at something. Two men are at the stove, preparing food!
Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt. Zwei Männer stehen am Herd und bereiten Essen zu.
Un homme avec un chapeau orange regarde quelque chose. Мужчина в оранжевой шляпе на что-то смотрит.
Ένας άνδρας με πορτοκαλί καπέλο κοιτάζει κάτι. 戴着橙色帽子的男人正盯着什么东西。 オレンジ色の帽子をかぶった男性。
رجل يرتدي قبعة برتقالية يحدق في شيء ما. नारंगी टोपी पहने एक आदमी कुछ घूर रहा है। ชายสวมหมวกสีส้มกำลังจ้องมอง""".split("\n")
# First and last code point of some scripts and blocks, known and unknown to the tokenizer.
BLOCKS = [
    *((0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F)),
    *((0xE00, 0xE7F), (0x1100, 0x11FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF)),
    *((0x0, 0x1F), (0x7F, 0x9F), (0x2000, 0x206F), (0x300, 0x36F), (0xE000, 0xE0FF), (0xFFF0, 0xFFFF)),
]
MARKS = ["</s>", "<unk>", "<pad>", "\u2581", "\r\n", "\u2028", "\ufeff", "\u200d", "...", "\U0001f469\u200d\U0001f680"]


def make_pipelines(families: list[str]) -> dict[tuple[str, str], Pipeline]:
    """A pipeline for each family and task."""
    texts = SENTENCES * 2
    tokenizers = {
        "text-generation": train_tokenizer(texts, model="bpe", vocab_size=600),
        "token-classification": train_tokenizer(texts, model="word", vocab_size=150, characters=True),
        "text-classification": train_tokenizer(texts, model="wordpiece", vocab_size=500),
        "translation": train_tokenizer(texts, vocab_size=500),
        # Of words, so that the pointer has unknown ones to copy.
        "summarization": train_tokenizer(texts, model="word", vocab_size=150),
    }
    start_texts(tokenizers["text-generation"])
    made = {}
    for config_class, classes in MODEL_CLASSES.items():
        if config_class.family.lower() not in families:
            continue
        for task, auto_class in TASKS.items():
            tokenizer = tokenizers[task]
            fields: dict[str, Any] = {"num_labels": 3, "crf": task == "token-classification"}
            if task == "token-classification":
                fields |= {"char_encoder": "cnn", "char_vocab_size": tokenizer.char_vocab_size}
            if task == "summarization" and config_class.family != "Cnn":
                fields |= {
                    "pointer_generator": True,
                    "coverage": True,
                    "attention_type": "additive",
                    "unk_token_id": 3,
                }
            set_seed(0)
            config = config_class(vocab_size=len(tokenizer), hidden_size=16, **fields)
            model = classes[auto_class](config).eval()
            made[config_class.family.lower(), task] = pipeline(task, model=model, tokenizer=tokenizer)
    return made


def random_text(rng: random.Random) -> str:
    """A text of 0 to `LONGEST` characters, the short ones more often."""
    kind = rng.randrange(8)
    length = int(math.exp(rng.uniform(0, math.log(LONGEST + 1)))) - 1
    if kind == 0:
        return rng.choice(["", " ", "\n", "\t \u3000", "\u200b", "\x00", "."])
    if kind == 1:
        return rng.choice("aßИ漢\U0001f642") * length
    if kind == 2:
        return "".join(chr(rng.randint(*rng.choice(BLOCKS))) for _ in range(length))
    if kind == 3:
        first, last = rng.choice(BLOCKS)
        words = ("".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 12))) for _ in range(length // 6))
        return " ".join(words)
    text = " ".join(rng.choices(SENTENCES, k=length // 60 + 1))[:length]
    if kind == 4:
        place = rng.randint(0, len(text))
        return text[:place] + rng.choice(MARKS) + text[place:]
    return text


def generation_options(rng: random.Random) -> dict[str, Any]:
    """Arguments of `generate` that go together."""
    options: dict[str, Any] = {"max_new_tokens": rng.randint(1, 10), "num_beams": rng.choice([1, 1, 2, 4])}
    sampled = rng.random() < 0.3
    if sampled:
        options |= {"do_sample": True, "temperature": rng.uniform(0.2, 3), "top_k": rng.choice([0, 5, 50])}
    if rng.random() < 0.3:
        most = 3 if sampled and options["num_beams"] == 1 else options["num_beams"]
        options["num_return_sequences"] = rng.randint(1, most)
    if rng.random() < 0.1:
        options["use_cache"] = False
    if rng.random() < 0.1:
        options |= {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    return options


def pipeline_options(task: str, rng: random.Random) -> dict[str, Any]:
    """Arguments of a call of a pipeline."""
    if task == "text-classification":
        return {"top_k": rng.choice([None, 1, 2]), "batch_size": rng.choice([1, 8])}
    if task == "token-classification":
        return {
            "aggregation_strategy": rng.choice(["none", "simple", "first", "max"]),
            "batch_size": rng.choice([1, 8]),
        }
    return generation_options(rng) | {"batch_size": rng.choice([1, 4])}


def call_pipeline(pipe: Pipeline, task: str, texts: list[str], options: dict[str, Any]) -> None:
    """Call a pipeline, and check that each text has a result, and that scores are numbers."""
    results = pipe(list(texts), **options)
    if len(results) != len(texts):
        raise AssertionError(f"{len(results)} results for {len(texts)} texts")
    for result in results:
        for one in result if isinstance(result, list) else [result]:
            if not math.isfinite(one.get("score", 0.0)):
                raise AssertionError(f"a score is {one['score']}")
            if task in ("translation", "summarization", "text-generation"):
                (text,) = one.values()
                text.encode()


def call_generate(pipe: Pipeline, task: str, texts: list[str], options: dict[str, Any]) -> None:
    """Generate from a padded batch, and check the shape and the ids."""
    model, tokenizer = pipe.model, pipe.tokenizer
    side = "left" if task == "text-generation" else "right"
    encoded = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    output = model.generate(**{name: encoded[name] for name in ("input_ids", "attention_mask")}, **options)
    rows = len(texts) * options.get("num_return_sequences", 1)
    start = encoded["input_ids"].shape[1] if task == "text-generation" else 1
    if len(output) != rows or not start < output.shape[1] <= start + options["max_new_tokens"]:
        raise AssertionError(f"sequences of shape {tuple(output.shape)} for {rows} rows of {start} and {options}")
    if output.min() < 0 or output.max() >= model.config.vocab_size:
        raise AssertionError("an id that is not in the vocabulary")


def resident_mb() -> float:
    """The resident memory of this process, without what it could give back at once."""
    gc.collect()
    # Freed blocks that glibc keeps are no leak, and how many there are goes up and down by a hundred MB.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def slope(requests: list[int], memory: list[float]) -> float:
    """MB in 10,000 requests, fitted to what was measured after the first fifth of them."""
    kept = [(number, size) for number, size in zip(requests, memory, strict=True) if number > requests[-1] / 5]
    return 1e4 * float(np.polyfit(*zip(*kept, strict=True), deg=1)[0]) if len(kept) > 1 else 0.0


def main() -> int:
    """Make the requests; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--report", type=int, default=1000, help="requests between two lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--models", nargs="+", choices=["rnn", "lstm", "gru", "cnn"], default=["rnn", "lstm", "gru", "cnn"]
    )
    parser.add_argument("--record", metavar="ID", help="entry of scores.json to store the figures in")
    args = parser.parse_args()
    # Read when the first kernel is made.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    transformers.logging.set_verbosity_error()
    print(
        f"hfseq {hfseq.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, float32 on CPU, {torch.get_num_threads()} threads\n"
    )
    pipelines = make_pipelines(args.models)
    rng = random.Random(args.seed)
    errors: Counter[str] = Counter()
    first: dict[str, str] = {}
    done = calls = 0
    numbers, memory = [], []
    begin = time.perf_counter()
    print("| requests | calls | errors | minutes | memory, MB |\n|--:|--:|--:|--:|--:|")
    while done < args.requests:
        (family, task), pipe = rng.choice(list(pipelines.items()))
        texts = [random_text(rng) for _ in range(rng.randint(1, 8))]
        generates = task not in ("text-classification", "token-classification")
        call, options = call_pipeline, pipeline_options(task, rng)
        if generates and rng.random() < 0.4:
            call, options = call_generate, generation_options(rng)
        try:
            call(pipe, task, texts, options)
        # Whatever it is, it is counted, and the run goes on.
        except Exception as error:
            name = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            errors[name] += 1
            first.setdefault(
                name, f"{call.__name__} of {family}, {task}, {options}, {[text[:40] for text in texts]!r}"
            )
        calls += 1
        before, done = done, done + len(texts)
        if before // args.report < done // args.report:
            numbers.append(done)
            memory.append(resident_mb())
            minutes = (time.perf_counter() - begin) / 60
            print(f"| {done} | {calls} | {errors.total()} | {minutes:.1f} | {memory[-1]:.0f} |", flush=True)
    for name, count in errors.most_common():
        print(f"\n{count} x {name}\n    first: {first[name]}")
    growth = slope(numbers, memory) if numbers else 0.0
    print(f"\n{errors.total()} errors; memory: {growth:+.2f} MB in 10,000 requests, after the first fifth of them")
    if args.record is not None:
        title = "growth of memory in 10 000 requests after the first fifth, MB"
        figures = {"requests": done, "errors": errors.total(), title: round(growth, 2)}
        store(args.record, figures, this_command(), minutes=round((time.perf_counter() - begin) / 60))
    return int(bool(errors) or growth > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())

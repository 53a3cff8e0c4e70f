"""Request handlers of the demo page, for batches of requests.

Answers do not depend on the other requests of a batch. Each has a note in Markdown, which tells if the text is empty,
was truncated, or has out-of-vocabulary words.
"""

import re
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from itertools import count
from threading import Lock
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList, TextIteratorStreamer

from hfseq.data.collation import check_batch, vocabulary_sizes
from hfseq.data.encoding import encode_words
from hfseq.data.tag_schemes import check_tags, to_iob2
from hfseq.inference.alignment import align_texts, has_attention, word_spans
from hfseq.inference.classify import classify_texts
from hfseq.inference.generate import generation_options
from hfseq.inference.importance import Importance, word_importance
from hfseq.inference.loading import problem_of
from hfseq.plots import plot_alignment
from hfseq.serving.whole import Cancelled

Spans = list[tuple[str, Any]]
"""Spans of a text with their tag or importance, or None."""
LONGEST_ALIGNMENT = 100
"""Maximum length of source and target, in tokens, for a plot of the alignment; larger plots are illegible."""
LONGEST_IMPORTANCE = 256
"""Maximum length of a text, in tokens, for word importance, whose cost is quadratic in the length."""
# The plot has 150 dpi and is shown at half size; a wide one scrolls.
_ALIGNMENT = (
    '<div style="overflow-x: auto"><img alt="heat map of attention weights" style="zoom: 0.5; max-width: none" '
    'src="data:image/png;base64,{}"></div>'
)
_EMPTY = "Enter a text first."


class DynamicBatcher:
    """Dynamic batching of a function: requests that arrive while it runs form the next batch.

    Args:
        function: Function of one list per argument that returns one list per output.
        max_batch_size: Maximum number of requests in a batch.
    """

    def __init__(self, function: Callable[..., Sequence[Sequence[Any]]], max_batch_size: int) -> None:
        self._function = function
        self._max_batch_size = max_batch_size
        self._waiting: deque[tuple[tuple[Any, ...], Future]] = deque()
        self._running = Lock()

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """Return the outputs of one request; errors of other requests do not affect it."""
        future = self.enter(arguments)
        with self._running:
            # Earlier requests go first; this one may have been answered while it waited for the lock.
            while not future.done():
                number = min(len(self._waiting), self._max_batch_size)
                self._answer([self._waiting.popleft() for _ in range(number)])
        return future.result()

    def enter(self, arguments: tuple[Any, ...]) -> Future:
        """Queue a request; return the future of its outputs."""
        future: Future = Future()
        self._waiting.append((arguments, future))
        return future

    def _answer(self, batch: list[tuple[tuple[Any, ...], Future]]) -> None:
        try:
            columns = self._function(*map(list, zip(*(arguments for arguments, _ in batch), strict=True)))
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            # One request may be the cause.
            for one in batch:
                self._answer([one])
            return
        for (_, future), outputs in zip(batch, zip(*columns, strict=True), strict=True):
            future.set_result(outputs)


def write_texts(pipe: Any, texts: Sequence[str], beams: Sequence[int]) -> tuple[list[str], list[str]]:
    """Summarize or translate texts with a sequence-to-sequence model.

    Args:
        pipe: A pipeline of `hfseq.pipelines`.
        texts: One text per request.
        beams: Number of beams of each request.

    Returns:
        A text, empty for an empty input, and a note for each request.
    """
    written = [""] * len(texts)
    for number in sorted(set(beams)):
        rows = [row for row, text in enumerate(texts) if text.strip() and beams[row] == number]
        sources, options = [texts[row] for row in rows], generation_options(num_beams=int(number))
        for row, result in zip(rows, pipe(sources, batch_size=len(rows), truncation=True, **options), strict=True):
            written[row] = result[f"{pipe.result_name}_text"].strip()
    return written, [note(pipe.tokenizer, text, pipe.source_prefix) for text in texts]


def translate(pipe: Any, texts: Sequence[str], beams: Sequence[int]) -> tuple[list[str], list[str], list[str]]:
    """Like `write_texts`, with the attention weights of each text, as an HTML image, between text and note."""
    written, notes = write_texts(pipe, texts, beams)
    pictures = [""] * len(texts)
    if not has_attention(pipe.model):
        return written, pictures, notes
    for row in [row for row, text in enumerate(written) if text]:
        source = pipe.source_prefix + texts[row]
        sides: list[dict[str, Any]] = [{"text": source}, {"text_target": written[row]}]
        lengths = [len(pipe.tokenizer(**side, truncation=True)["input_ids"]) for side in sides]
        if max(lengths) <= LONGEST_ALIGNMENT:
            picture = BytesIO()
            plot_alignment(*align_texts(pipe.model, pipe.tokenizer, source, written[row]), picture)
            pictures[row] = _ALIGNMENT.format(b64encode(picture.getvalue()).decode())
        else:
            remark = f"The alignment is only shown for texts of up to {LONGEST_ALIGNMENT} tokens."
            notes[row] = _paragraphs(notes[row], remark)
    return written, pictures, notes


def classify(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[list[dict[str, float] | str | None], list[Spans], list[str]]:
    """Classify texts, with the importance of each word.

    Returns:
        Class probabilities (for regression the value as a string, None for an empty text); spans of the text, words
        with their importance, scaled so that the largest is 1 or -1; and a note for each text.
    """
    limit = tokenizer.model_max_length
    decisions, _ = classify_texts(model, tokenizer, texts, batch_size=len(texts), max_length=limit)
    notes = [note(tokenizer, text) for text in texts]
    values = problem_of(model.config) == "regression"
    answers: list[dict[str, float] | str | None] = [one.label if values else one.scores or None for one in decisions]
    spans: list[Spans] = [[] for _ in texts]
    if tokenizer.is_fast:
        lengths = [len(tokenizer(text, truncation=True)["input_ids"]) for text in texts]
        short = [row for row, length in enumerate(lengths) if length <= LONGEST_IMPORTANCE]
        found = word_importance(model, tokenizer, [texts[row] for row in short], max_length=limit)
        for row, importance in zip(short, found, strict=True):
            spans[row] = _weighted(texts[row], importance)
        for row in set(range(len(texts))) - set(short):
            remark = f"Word importance is only shown for texts of up to {LONGEST_IMPORTANCE} tokens."
            notes[row] = _paragraphs(notes[row], remark)
    return answers, spans, notes


def _weighted(text: str, importance: Importance) -> Spans:
    """The spans of a text, words with their importance relative to the largest."""
    largest = max(map(abs, importance.values), default=0.0) or 1.0
    pieces: Spans = []
    place = 0
    for (begin, end), value in zip(importance.spans, importance.values, strict=True):
        pieces += [(text[place:begin], None)] if place < begin else []
        pieces.append((text[begin:end], value / largest))
        place = end
    return pieces + ([(text[place:], None)] if place < len(text) else [])


@torch.no_grad()
def tag(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[list[Spans], list[str]]:
    """Tag the words of texts, as the tagging recipe does.

    Words are separated by spaces, and get the tag of their first token. The words of an entity are merged; words
    outside entities have no tag.

    Returns:
        The spans of each text, words with their tags, and a note.
    """
    names = cast(dict[int, str], model.config.id2label)
    # Tags of the words of each text.
    tags: list[dict[int, str]] = [{} for _ in texts]
    rows = [row for row, text in enumerate(texts) if text.strip()]
    if rows:
        encoded, _ = encode_words(tokenizer, [texts[row].split() for row in rows])
        columns = {name: encoded[name] for name in ("input_ids", "char_ids") if name in encoded}
        batch = tokenizer.pad(columns, return_tensors="pt", padding_side="right")
        check_batch(batch, **vocabulary_sizes(model))
        best = model(**batch.to(model.device)).logits.argmax(dim=-1).tolist()
        for index, (row, labels) in enumerate(zip(rows, best, strict=True)):
            owners = encoded.word_ids(index)
            # Backwards, so that the first token of each word comes last.
            for word, label in reversed([*zip(owners, labels[: len(owners)], strict=True)]):
                if word is not None:
                    tags[row][word] = names[label]
    answers: list[Spans] = []
    for text, own in zip(texts, tags, strict=True):
        words = count()
        spans = re.findall(r"\s+|\S+", text)
        answers.append([(span, None if span.isspace() else own.get(next(words))) for span in spans])
    try:
        check_tags(names.values())
    except ValueError:
        pass  # Tags that are not entities, such as parts of speech.
    else:
        answers = list(map(_entities, answers))
    return answers, [note(tokenizer, text) for text in texts]


def _entities(pieces: Spans) -> Spans:
    """Merge the words of each entity into one span with its type; words outside entities have none."""
    tags = iter(to_iob2([tag or "O" for piece, tag in pieces if not piece.isspace()]))
    joined: Spans = []
    for piece, _ in pieces:
        tag = "O" if piece.isspace() else next(tags)
        if tag.startswith("I-"):
            # The span before it is the white space between two words.
            space, _ = joined.pop()
            joined[-1] = joined[-1][0] + space + piece, tag[2:]
        else:
            joined.append((piece, None if tag == "O" else tag[2:]))
    return joined


def continue_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    temperature: float,
    top_k: int,
    top_p: float,
    max_new_tokens: int,
) -> Iterator[tuple[str, str]]:
    """Stream the continuation of a prompt.

    Args:
        model: The language model.
        tokenizer: Tokenizer of the model.
        prompt: The prompt; an empty one is replaced by the BOS (or EOS) token.
        temperature: Sampling temperature; 0 for greedy decoding.
        top_k: Sample from the k most likely tokens; 0 for all.
        top_p: Nucleus sampling threshold.
        max_new_tokens: Maximum number of generated tokens.

    Yields:
        The text so far, without the prompt, and a note.
    """
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = tokenizer(prompt, verbose=False)["input_ids"] or [begin]
    room = max(1, tokenizer.model_max_length - int(max_new_tokens))
    cut = f"The prompt has {len(ids):,} tokens and was truncated to the last {room:,}." if len(ids) > room else ""
    remarks = _paragraphs(cut, unknown_words(tokenizer, prompt))
    inputs = torch.tensor([ids[-room:]])
    check_batch({"input_ids": inputs}, **vocabulary_sizes(model))
    options: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        options = {"do_sample": True, "temperature": float(temperature), "top_k": int(top_k), "top_p": float(top_p)}
    streamer: Any = TextIteratorStreamer(cast(Any, tokenizer), skip_prompt=True, skip_special_tokens=True)
    cancelled = Cancelled()
    text = ""
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(
            cast(Any, model).generate,
            inputs.to(model.device),
            attention_mask=torch.ones_like(inputs).to(model.device),
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([cancelled]),
            max_new_tokens=int(max_new_tokens),
            num_beams=1,
            **options,
        )
        # The loop waits for the end, even after an error.
        job.add_done_callback(lambda _: streamer.end())
        try:
            for part in streamer:
                text += part
                yield text.lstrip(), remarks
        finally:
            cancelled.event.set()
        job.result()
    if not text.strip():
        yield "", _paragraphs(remarks, "The model generated an empty text.")


def note(tokenizer: PreTrainedTokenizerBase, text: str, prefix: str = "") -> str:
    """Remarks on a text in Markdown: empty, truncated, out-of-vocabulary words.

    Args:
        tokenizer: Tokenizer of the model; texts are truncated to its `model_max_length`.
        text: The text.
        prefix: Prefix of the text.
    """
    if not text.strip():
        return _EMPTY
    length, limit = len(tokenizer(prefix + text, verbose=False)["input_ids"]), tokenizer.model_max_length
    cut = f"The text has {length:,} tokens and was truncated to the first {limit:,}." if length > limit else ""
    return _paragraphs(cut, unknown_words(tokenizer, text, prefix))


def unknown_words(tokenizer: PreTrainedTokenizerBase, text: str, prefix: str = "") -> str:
    """A line of Markdown that lists the out-of-vocabulary words of a text; empty if there are none."""
    if not tokenizer.is_fast or tokenizer.unk_token_id is None:
        return ""
    encoded = tokenizer(prefix + text, verbose=False)
    spans = word_spans(encoded, prefix + text, len(prefix))
    pairs = zip(encoded["input_ids"], spans, strict=True)
    places = [span for token, span in pairs if token == tokenizer.unk_token_id and span is not None]
    words = list(dict.fromkeys((prefix + text)[begin:end].replace("`", "") for begin, end in places))
    shown = ", ".join(f"`{word}`" for word in words[:10] if word)
    return f"Not in the vocabulary: {shown}{' …' if len(words) > 10 else ''}" if shown else ""


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)

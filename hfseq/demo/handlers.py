"""Request handlers of the pages of texts.

The answer is that of the serving application; the page adds pictures and a note in Markdown, which tells if the text
is empty, was truncated, or has out-of-vocabulary words.
"""

import re
from base64 import b64encode
from collections import deque
from collections.abc import Iterator
from io import BytesIO
from queue import SimpleQueue
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from hfseq.data.tag_schemes import check_tags, to_iob2
from hfseq.demo.loading import DemoModel
from hfseq.errors import InputError
from hfseq.inference.alignment import align_texts, has_attention, word_spans
from hfseq.inference.generate import generation_options
from hfseq.inference.importance import Importance, word_importance
from hfseq.inference.loading import class_names, problem_of
from hfseq.plots import plot_alignment
from hfseq.serving.generation import GenerationRequest
from hfseq.serving.language_model import LanguageModel

Spans = list[tuple[str, Any]]
"""Spans of a text with their tag or importance, or None."""
LONGEST_ALIGNMENT = 100
"""Maximum length of source and target, in tokens, for a plot of the alignment; larger plots are illegible."""
LONGEST_IMPORTANCE = 256
"""Maximum length of a text, in tokens, for word importance, whose cost is quadratic in the length."""
EMPTY = "Enter a text first."
"""Note on an empty text."""
_PICTURE = '<div style="overflow-x: auto"><img alt="{}" style="{}" src="data:image/png;base64,{}"></div>'


def write_text(demo: DemoModel, text: str, beams: float) -> tuple[str, str]:
    """Summarize or translate a text.

    Args:
        demo: A sequence-to-sequence model.
        text: The text.
        beams: Number of beams.

    Returns:
        The text that the model writes, empty for an empty input, and a note.
    """
    if not text.strip():
        return "", EMPTY
    (result,) = demo.ask(text, truncation=True, **generation_options(num_beams=int(beams)))
    with demo.adding:
        return result[f"{demo.predictor.pipe.result_name}_text"].strip(), note(demo, text)


def translate(demo: DemoModel, text: str, beams: float) -> tuple[str, str, str]:
    """Like `write_text`, with the attention weights, as an HTML image, between text and note."""
    written, remarks = write_text(demo, text, beams)
    if not written or not demo.explained or not has_attention(demo.model):
        return written, "", remarks
    source, tokenizer = demo.predictor.pipe.source_prefix + text, cast(PreTrainedTokenizerBase, demo.tokenizer)
    sides: list[dict[str, Any]] = [{"text": source}, {"text_target": written}]
    with demo.adding:
        if max(len(tokenizer(**side, truncation=True)["input_ids"]) for side in sides) > LONGEST_ALIGNMENT:
            remark = f"The alignment is only shown for texts of up to {LONGEST_ALIGNMENT} tokens."
            return written, "", paragraphs(remarks, remark)
        picture = BytesIO()
        plot_alignment(*align_texts(demo.model, tokenizer, source, written), picture)
    return written, show_picture(picture, "heat map of attention weights"), remarks


def show_picture(picture: BytesIO, description: str, style: str = "zoom: 0.5; max-width: none") -> str:
    """An HTML image of a PNG, by default of 150 dpi at half size; a wide one scrolls."""
    return _PICTURE.format(description, style, b64encode(picture.getvalue()).decode())


def classify(demo: DemoModel, text: str) -> tuple[dict[str, float] | str | None, Spans, str]:
    """Classify a text, with the importance of each word.

    Returns:
        Class probabilities (for regression the value as a string, None for an empty text); spans of the text, words
        with their importance, scaled so that the largest is 1 or -1; and a note.
    """
    if not text.strip():
        return None, [], EMPTY
    problem = problem_of(demo.model.config)
    # The pipeline knows a regression by the config alone.
    raw = {"function_to_apply": "none"} if problem == "regression" else {}
    scores: dict[str, float] = {}
    for one in demo.ask(text, truncation=True, **raw):
        # Classes of one name are one; probabilities of mutually exclusive ones add up.
        label, before = one["label"], scores.get(one["label"], 0.0)
        exclusive = problem == "single_label_classification"
        scores[label] = one["score"] + before if exclusive or label not in scores else max(one["score"], before)
    answer: dict[str, float] | str = scores
    if problem == "regression":
        answer = ", ".join(f"{scores[name]:.6g}" for name in class_names(demo.model.config))
    tokenizer = cast(PreTrainedTokenizerBase, demo.tokenizer)
    spans: Spans = []
    with demo.adding:
        remarks = note(demo, text)
        if tokenizer.is_fast and demo.explained:
            if len(tokenizer(text, truncation=True)["input_ids"]) <= LONGEST_IMPORTANCE:
                limit = tokenizer.model_max_length
                (importance,) = word_importance(demo.model, tokenizer, [text], max_length=limit)
                spans = _weighted(text, importance)
            else:
                remark = f"Word importance is only shown for texts of up to {LONGEST_IMPORTANCE} tokens."
                remarks = paragraphs(remarks, remark)
    return answer, spans, remarks


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


def tag(demo: DemoModel, text: str) -> tuple[Spans, str]:
    """Tag the words of a text.

    Words are separated by spaces, and get the tag of their first token. The words of an entity are merged; words
    outside entities have no tag.

    Returns:
        The spans of the text, words with their tags, and a note.
    """
    if not text.strip():
        return [], EMPTY
    with demo.adding:
        read, remarks = _beginning(cast(PreTrainedTokenizerBase, demo.tokenizer), text), note(demo, text)
    tokens = deque(demo.ask(read, aggregation_strategy="none", ignore_labels=[]))
    pieces: Spans = []
    for piece in re.finditer(r"\s+|\S+", text):
        while tokens and tokens[0]["end"] <= piece.start():
            tokens.popleft()
        tagged = tokens and tokens[0]["start"] < piece.end() and not piece.group().isspace()
        pieces.append((piece.group(), tokens[0]["entity"] if tagged else None))
    try:
        check_tags(cast(dict[int, str], demo.model.config.id2label).values())
    except ValueError:
        return pieces, remarks  # Tags that are not entities, such as parts of speech.
    return _entities(pieces), remarks


def _beginning(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The beginning of a text that a model reads.

    Raises:
        InputError: If the tokenizer does not say where its tokens are.
    """
    if not tokenizer.is_fast:
        raise InputError(f"the page needs a fast tokenizer to show tags, not {type(tokenizer).__name__}")
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    length = tokenizer.model_max_length
    if len(encoded["input_ids"]) <= length:
        return text
    cut = tokenizer(text, truncation=True, return_offsets_mapping=True)
    return text[: max(end for _, end in cut["offset_mapping"])]


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
    demo: DemoModel, prompt: str, temperature: float, top_k: float, top_p: float, max_new_tokens: float
) -> Iterator[tuple[str, str]]:
    """Stream the continuation of a prompt.

    Args:
        demo: A language model.
        prompt: The prompt; an empty one is replaced by the BOS (or EOS) token.
        temperature: Sampling temperature; 0 for greedy decoding.
        top_k: Sample from the k most likely tokens; 0 for all.
        top_p: Nucleus sampling threshold.
        max_new_tokens: Maximum number of generated tokens.

    Yields:
        The text so far, without the prompt, and a note.
    """
    model, tokenizer = cast(LanguageModel, demo.served.language_model), cast(PreTrainedTokenizerBase, demo.tokenizer)
    begin: Any = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    room = max(1, tokenizer.model_max_length - int(max_new_tokens))
    with demo.adding:
        ids = tokenizer(prompt, verbose=False)["input_ids"] or [begin]
        unknown = unknown_words(tokenizer, prompt)
    cut = f"The prompt has {len(ids):,} tokens and was truncated to the last {room:,}." if len(ids) > room else ""
    remarks = paragraphs(cut, unknown)
    options: dict[str, Any] = {"num_beams": 1, "do_sample": temperature > 0}
    if temperature > 0:
        options |= {"temperature": float(temperature), "top_k": int(top_k), "top_p": float(top_p)}
    # None ends them.
    pieces: SimpleQueue[str | None] = SimpleQueue()
    request = GenerationRequest(
        ids[-room:], int(max_new_tokens), options, on_piece=lambda _, piece: pieces.put(piece.text)
    )
    future = model.submit(request)
    future.add_done_callback(lambda _: pieces.put(None))
    text = ""
    try:
        for piece in iter(pieces.get, None):
            text += piece
            yield text.lstrip(), remarks
    finally:
        # If nobody reads on; else it has an answer already.
        future.cancel()
    future.result()
    if not text.strip():
        yield "", paragraphs(remarks, "The model generated an empty text.")


def note(demo: DemoModel, text: str) -> str:
    """Remarks on a text in Markdown: truncated, out-of-vocabulary words."""
    tokenizer = cast(PreTrainedTokenizerBase, demo.tokenizer)
    prefix = getattr(demo.predictor.pipe, "source_prefix", "")
    length, limit = len(tokenizer(prefix + text, verbose=False)["input_ids"]), tokenizer.model_max_length
    cut = f"The text has {length:,} tokens and was truncated to the first {limit:,}." if length > limit else ""
    return paragraphs(cut, unknown_words(tokenizer, text, prefix))


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


def paragraphs(*parts: str) -> str:
    """Paragraphs of Markdown, without the empty ones."""
    return "\n\n".join(part for part in parts if part)

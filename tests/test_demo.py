"""The demo page: its answers are those of the pipelines, requests go in batches, and a browser shows it."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from base64 import b64decode
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    T5Config,
    pipeline,
)

from hfseq import CnnConfig, GruConfig, LstmConfig, export_onnx
from hfseq.demo import layouts
from hfseq.demo import page as demo
from hfseq.demo.handlers import EMPTY, classify, continue_text, note, tag, translate, write_text
from hfseq.demo.loading import load_demo_model
from hfseq.demo.page import main
from hfseq.errors import InputError
from hfseq.hub.publish import load_published
from hfseq.inference.alignment import align_texts
from hfseq.plots import plot_alignment
from hfseq.serving.dynamic import DynamicBatcher
from hfseq.serving.predictors import TextToText
from hfseq.tokenization import start_texts, train_tokenizer

TEXTS = ["the cat sat on the mat", "a dog", "", "where is the house of the cat?", "yes, Zoë 🙂\nwe met Ann Lee ."]
ASKED = "we met Ann Lee ."
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
START = IDS | {"decoder_start_token_id": 1}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32}
BART = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "forced_eos_token_id": None,
}
# A picture wider than its place, scrolled to the right.
REACHES_ITS_END = """image => {
    const place = image.parentElement
    place.scrollLeft = 1e6
    const right = image.getBoundingClientRect().right
    return place.scrollLeft > 0 && right <= place.getBoundingClientRect().right + 1
}"""
TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG"]
NAMES = {"id2label": dict(enumerate(TAGS)), "label2id": {name: index for index, name in enumerate(TAGS)}}
CLASSES = {"id2label": {0: "bad", 1: "good", 2: "mixed"}, "label2id": {"bad": 0, "good": 1, "mixed": 2}}
MULTI = CLASSES | {"problem_type": "multi_label_classification"}
# Name of a model: Auto class, its config for a size of the vocabulary, what its run says.
MODELS = {
    "translation": (
        AutoModelForSeq2SeqLM,
        lambda size: GruConfig(vocab_size=size, **SMALL),
        {"task": "translation", "languages": ["en", "de"], "example": TEXTS[0]},
    ),
    "prefixed": (
        AutoModelForSeq2SeqLM,
        lambda size: CnnConfig(vocab_size=size, **SMALL),
        {
            "task": "translation",
            "arguments": {"source_prefix": "we: "},
            "example": f"we: {TEXTS[1]}",
            "max_length": 20,
        },
    ),
    "summarization": (
        AutoModelForSeq2SeqLM,
        lambda size: LstmConfig(vocab_size=size, pointer_generator=True, unk_token_id=3, **SMALL),
        {"task": "summarization", "example": TEXTS[3]},
    ),
    "t5": (
        AutoModelForSeq2SeqLM,
        lambda size: T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, **START),
        None,
    ),
    "bart": (
        AutoModelForSeq2SeqLM,
        lambda size: BartConfig(vocab_size=size, task_specific_params={"summarization": {}}, **BART, **START),
        None,
    ),
    "sentiment": (
        AutoModelForSequenceClassification,
        lambda size: LstmConfig(vocab_size=size, **SMALL, **CLASSES),
        {"task": "text-classification", "example": TEXTS[1]},
    ),
    "several": (
        AutoModelForSequenceClassification,
        lambda size: BertConfig(vocab_size=size, **SMALL, **HEADS, **MULTI),
        None,
    ),
    "value": (
        AutoModelForSequenceClassification,
        lambda size: CnnConfig(vocab_size=size, num_labels=1, **SMALL),
        None,
    ),
    "tagging": (
        AutoModelForTokenClassification,
        lambda size: LstmConfig(vocab_size=size, crf=True, **SMALL, **NAMES),
        {"task": "token-classification", "example": ASKED},
    ),
    "bert_tagging": (
        AutoModelForTokenClassification,
        lambda size: BertConfig(vocab_size=size, **SMALL, **HEADS, **NAMES),
        None,
    ),
    "generation": (AutoModelForCausalLM, lambda size: LstmConfig(vocab_size=size, **SMALL), None),
    "gpt2": (
        AutoModelForCausalLM,
        lambda size: GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=32, **IDS),
        None,
    ),
}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """The models, as recipes and `save_pretrained` leave them."""
    root = tmp_path_factory.mktemp("models")
    for name, (auto_class, config, run) in MODELS.items():
        # Without the letters of the last text, so that some are unknown.
        tokenizer = train_tokenizer([*TEXTS[:4], ASKED], model="word", vocab_size=60)
        if auto_class is AutoModelForCausalLM:
            start_texts(tokenizer)
        torch.manual_seed(1)
        model = auto_class.from_config(config(len(tokenizer))).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_()
        if model.can_generate():
            # Words alone, and as many as may be.
            model.generation_config.update(max_length=9, suppress_tokens=[0, 1, 2, 3])
            if auto_class is AutoModelForSeq2SeqLM:
                model.generation_config.update(**START)
        for saved in (model, tokenizer):
            saved.save_pretrained(root / name)
        if run is not None:
            (root / name / "run.json").write_text(json.dumps(run), encoding="utf-8")
    (root / "translation" / "all_results.json").write_text('{"test_bleu": 41.625, "test_loss": 1}', encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def subjects(directories):
    """Loads the models of the page, each once."""
    return cache(lambda name: load_demo_model(directories / name))


def loaded(directories, name):
    """A model and its tokenizer without the page."""
    model, tokenizer = load_published(directories / name)
    return model.eval(), tokenizer


# --- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["translation", "summarization", "t5", "bart", "prefixed"])
def test_texts_are_those_of_the_pipeline(directories, subjects, name):
    model, tokenizer = loaded(directories, name)
    prefix = "we: " if name == "prefixed" else ""
    pipe = pipeline("summarization", model=model, tokenizer=tokenizer, device="cpu", prefix=prefix)
    beams = [1, 3, 2, 1, 3]
    found = [write_text(subjects(name), text, number) for text, number in zip(TEXTS, beams, strict=True)]
    for text, number, (written, _) in zip(TEXTS, beams, found, strict=True):
        expected = pipe(text, num_beams=number, early_stopping=False)[0]["summary_text"].strip() if text else ""
        assert written == expected
    assert len({written for written, _ in found}) > 3, "the model says the same to everything"
    beamed = [[write_text(subjects(name), text, number)[0] for text in TEXTS] for number in (1, 3)]
    assert beamed[0] != beamed[1], "beams change nothing"
    notes = [said for _, said in found]
    assert notes[:3] == ["", "", EMPTY] and "`Zoë`" in notes[4]


@pytest.mark.parametrize("name", ["translation", "prefixed", "t5"])
def test_alignments_are_those_of_the_recipes(directories, subjects, name, tmp_path):
    model, tokenizer = loaded(directories, name)
    prefix = "we: " if name == "prefixed" else ""
    for text in TEXTS[1:3]:
        written, picture, said = translate(subjects(name), text, 1)
        assert (written, said) == write_text(subjects(name), text, 1)
        if text:
            plot_alignment(*align_texts(model, tokenizer, prefix + text, written), tmp_path / "alignment.png")
            drawn = b64decode(re.search(r'<img .* src="data:image/png;base64,(.*?)">', picture)[1])
            assert drawn == (tmp_path / "alignment.png").read_bytes()
        else:
            assert picture == ""


def test_alignments_of_long_texts_are_not_drawn(subjects):
    written, picture, said = translate(subjects("translation"), "the cat " * 60, 1)
    assert written and picture == "" and said == "The alignment is only shown for texts of up to 100 tokens."


@pytest.mark.parametrize("name", ["sentiment", "several"])
def test_classes_are_those_of_the_pipeline_and_words_those_of_the_text(directories, subjects, name):
    model, tokenizer = loaded(directories, name)
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu", top_k=None)
    for text in TEXTS:
        answer, pieces, said = classify(subjects(name), text)
        assert "".join(piece for piece, _ in pieces) == text
        if not text:
            assert answer is None and said == EMPTY
            continue
        expected = {one["label"]: one["score"] for one in pipe([text])[0]}
        assert answer == pytest.approx(expected, abs=1e-5)
        assert max(abs(value) for _, value in pieces if value is not None) == 1
        assert sum(answer.values()) == pytest.approx(1) or name == "several"


def test_classes_of_one_name_are_one(subjects, monkeypatch):
    subject = subjects("sentiment")
    before, _, _ = classify(subject, TEXTS[0])
    monkeypatch.setattr(subject.predictor.pipe.model.config, "id2label", {0: "bad", 1: "good", 2: "bad"})
    assert classify(subject, TEXTS[0])[0] == pytest.approx(
        {"good": before["good"], "bad": before["bad"] + before["mixed"]}
    )


def test_a_regression_shows_its_value(directories, subjects):
    model, tokenizer = loaded(directories, "value")
    value = model(**tokenizer(TEXTS[0], return_tensors="pt")).logits.item()
    answer, _, _ = classify(subjects("value"), TEXTS[0])
    assert float(answer) == pytest.approx(value, rel=1e-4) and not classify(subjects("value"), " ")[0]


def test_of_long_texts_words_have_no_importance(subjects):
    answer, spans, said = classify(subjects("sentiment"), "cat " * 300)
    assert answer and spans == [] and said == "Word importance is only shown for texts of up to 256 tokens."
    assert classify(subjects("sentiment"), "cat")[1:] == ([("cat", pytest.approx(1, abs=2))], "")


# BERT tells places apart, so that padding on the left is not for it.
@pytest.mark.parametrize("name,side", [("tagging", "right"), ("tagging", "left"), ("bert_tagging", "right")])
def test_tags_are_those_of_the_pipeline(directories, subjects, name, side, monkeypatch):
    model, tokenizer = loaded(directories, name)
    subject = subjects(name)
    monkeypatch.setattr(subject.predictor.pipe.tokenizer, "padding_side", side)
    # Not entities, so that each word keeps its own tag.
    for config in (model.config, subject.model.config):
        monkeypatch.setattr(config, "id2label", {index: f"T{index}" for index in range(5)})
    tagger = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu", ignore_labels=[])
    labels = set()
    for text in [text.replace("?", "") for text in TEXTS[:4]] + ["we  met\n Ann Lee . "]:
        pieces, said = tag(subject, text)
        assert "".join(piece for piece, _ in pieces) == text
        expected = [one["entity"] for one in tagger(text)[: len(text.split())]] if text.strip() else []
        assert [label for piece, label in pieces if not piece.isspace()] == expected
        assert said == ("" if text else EMPTY)
        labels |= {*expected}
    assert len(labels) > 2


def test_words_that_are_cut_off_have_no_tag(directories, subjects):
    # Two places of each text are special tokens.
    words = " ".join(["Ann cat"] * 20)
    pieces, said = tag(subjects("bert_tagging"), words)
    assert "".join(piece for piece, _ in pieces) == words
    assert said == "The text has 41 tokens and was truncated to the first 32."


def test_words_of_an_entity_are_one_piece(directories, monkeypatch):
    subject = load_demo_model(directories / "tagging")
    tokenizer = subject.tokenizer
    wanted = {"we": 0, "met": 1, "Ann": 1, "Lee": 2, ".": 4}

    def forward(input_ids, **kwargs):
        tokens = [[token.removeprefix("▁") for token in tokenizer.convert_ids_to_tokens(row)] for row in input_ids]
        logits = torch.tensor(
            [[[float(wanted.get(token, 0) == at) for at in range(5)] for token in row] for row in tokens]
        )
        return {"logits": logits}

    monkeypatch.setattr(subject.model, "forward", forward)
    pieces, _ = tag(subject, "we met  Ann Lee .")
    assert pieces == [
        ("we", None),
        (" ", None),
        ("met", "PER"),
        ("  ", None),
        ("Ann Lee", "PER"),
        (" ", None),
        (".", "ORG"),
    ]


@pytest.mark.parametrize("name", ["generation", "gpt2"])
@pytest.mark.parametrize("prompt", [ASKED, "", "🙂"])
def test_generated_text_comes_piece_by_piece_and_is_that_of_generate(directories, subjects, name, prompt):
    model, tokenizer = loaded(directories, name)
    parts = [text for text, _ in continue_text(subjects(name), prompt, 0, 0, 1, 12)]
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    assert parts[-1] == tokenizer.decode(ids, skip_special_tokens=True).lstrip() and len(ids) == 12
    assert len(parts) > 5 and all(new.startswith(old) for old, new in zip(parts, parts[1:], strict=False))


def test_drawn_texts_are_those_of_the_settings(subjects):
    def last(*settings):
        return list(continue_text(subjects("generation"), ASKED, *settings, 12))[-1][0]

    greedy = last(0, 0, 1)
    assert last(2, 1, 1) == last(2, 0, 1e-4) == greedy != last(2, 0, 1)


def test_generation_ends_when_nobody_reads_on_and_its_errors_arrive(directories, monkeypatch):
    subject = load_demo_model(directories / "generation")
    language_model, futures = subject.served.language_model, []
    submit = language_model.submit

    def remembered(request):
        futures.append(submit(request))
        return futures[-1]

    monkeypatch.setattr(language_model, "submit", remembered)
    reader = continue_text(subject, ASKED, 0, 0, 1, 1000)
    next(reader)
    reader.close()
    assert futures[0].cancelled()

    def fail(*args, **kwargs):
        raise RuntimeError("out of order")

    monkeypatch.setattr(subject.model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        list(continue_text(subject, ASKED, 0, 0, 1, 5))


def test_a_long_prompt_keeps_its_end(subjects):
    *_, (text, said) = continue_text(subjects("gpt2"), "the cat " * 40, 0, 0, 1, 12)
    assert text and said == "The prompt has 81 tokens and was truncated to the last 20."


def test_notes(subjects):
    subject = subjects("prefixed")
    assert note(subject, "a dog") == ""
    assert note(subject, "a Zoë `🙂 Zoë dog") == "Not in the vocabulary: `Zoë`, `🙂`"
    long = note(subject, "cat " * 30 + "Ulm")
    assert long == "The text has 34 tokens and was truncated to the first 20.\n\nNot in the vocabulary: `Ulm`"


# --- the page ------------------------------------------------------------------------------------------------------


def test_what_a_page_is_for_follows_from_class_and_run(directories, subjects):
    tasks = {name: subjects(name).task for name in MODELS}
    assert tasks == {
        "translation": "translation",
        "prefixed": "translation",
        "summarization": "summarization",
        "t5": "text2text",
        "bart": "summarization",
        "sentiment": "text-classification",
        "several": "text-classification",
        "value": "text-classification",
        "tagging": "token-classification",
        "bert_tagging": "token-classification",
        "generation": "text-generation",
        "gpt2": "text-generation",
    }
    subject = subjects("translation")
    assert subject.name == "translation" and subject.example == TEXTS[0]
    count = f"{subject.model.num_parameters():,}"
    kind = f"A `GruForConditionalGeneration` of {count} parameters that translates en to de."
    assert subject.about == f"{kind} On the test set: BLEU 41.62."
    prefixed = subjects("prefixed")
    prefix = prefixed.predictor.pipe.source_prefix
    assert (prefixed.example, prefix, prefixed.tokenizer.model_max_length) == (TEXTS[1], "we: ", 20)
    assert subjects("several").tokenizer.model_max_length == 32
    assert subjects("value").tokenizer.model_max_length == 2048
    assert load_demo_model(directories / "t5", "summarization").task == "summarization"


def test_exports_have_a_page_without_importance(directories, subjects, tmp_path):
    export_onnx(directories / "sentiment", tmp_path / "export")
    subject = load_demo_model(tmp_path / "export")
    assert subject.about == "A `OnnxForSequenceClassification` that classifies texts."
    answer, spans, said = classify(subject, TEXTS[4])
    assert answer == pytest.approx(classify(subjects("sentiment"), TEXTS[4])[0], abs=1e-5)
    assert spans == [] and "Zoë" in said


def test_what_has_no_page(directories, tmp_path, monkeypatch, capsys):
    shutil.copytree(directories / "sentiment", tmp_path / "masked")
    (tmp_path / "masked" / "run.json").unlink()
    BertForMaskedLM(BertConfig(vocab_size=20, **SMALL, **HEADS)).save_pretrained(tmp_path / "masked")
    with pytest.raises(InputError, match="the task of BertForMaskedLM is unknown"):
        load_demo_model(tmp_path / "masked")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == 1 and "no config.json, so there is no model" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as ended:
        main([str(directories / "sentiment")])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and line == "error: the page needs gradio: pip install 'hfseq[demo]'"


@pytest.fixture
def hosts(monkeypatch):
    """The hosts whose addresses this process asks for."""
    asked, look_up = set(), socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *args, **kwargs: asked.add(host) or look_up(host, *args, **kwargs)
    )
    return asked


def join(url, session, data):
    """Puts a request into the queue of the page, and comes back once it is there."""
    with urllib.request.urlopen(f"{url}config", timeout=60) as config:
        (number,) = (one["id"] for one in json.load(config)["dependencies"] if one["api_name"] == "answer")
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session}).encode()
    request = urllib.request.Request(f"{url}gradio_api/queue/join", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["event_id"]


def answers_of(url, session, count):
    """What the page has answered to the requests of a session."""
    found = {}
    with urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash={session}", timeout=60) as lines:
        for line in lines:
            message = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if message.get("msg") == "process_completed":
                assert message["success"], message
                found[message["event_id"]] = message["output"]["data"]
                if len(found) == count:
                    return found
    raise AssertionError(f"{len(found)} of {count} answers")


def test_requests_that_wait_are_answered_in_one_batch_each_as_it_asked(directories, subjects, monkeypatch, hosts):
    pytest.importorskip("gradio")
    batches, first, go_on, all_wait = [], threading.Event(), threading.Event(), threading.Event()
    texts = [TEXTS[1], "", TEXTS[4], None, "a \ud83d dog"]
    run, submit = TextToText.run, DynamicBatcher.submit
    # An empty text is answered without the model.
    filled = [text for text in texts if text]

    def counted(batcher, items):
        submit(batcher, items)
        if batcher.waiting == 2 * len(filled):
            all_wait.set()

    def held_up(predictor, items):
        batches.append(sorted((item.value, item.options.num_beams) for item in items))
        first.set()
        assert go_on.wait(60)
        return run(predictor, items)

    monkeypatch.setattr(TextToText, "run", held_up)
    monkeypatch.setattr(DynamicBatcher, "submit", counted)
    with served_here(directories / "translation") as url:
        asked = {join(url, "one", [TEXTS[0], 1]): (TEXTS[0], 1)}
        assert first.wait(60)
        asked |= {join(url, "one", [text, beams]): (text, beams) for text in texts for beams in (1, 3)}
        assert all_wait.wait(60)
        go_on.set()
        answers = answers_of(url, "one", len(asked))
    # Half a character, which a tokenizer would refuse, and so the whole batch.
    clean = {text: text.replace("\ud83d", "?") for text in filled}
    of_beams = [sorted((clean[text], beams) for text in filled) for beams in (1, 3)]
    assert batches[0] == [(TEXTS[0], 1)] and sorted(batches[1:]) == sorted(of_beams)
    for event, (text, beams) in asked.items():
        assert tuple(answers[event]) == translate(subjects("translation"), clean.get(text, text or ""), beams)
    assert hosts <= {"127.0.0.1", "localhost"}


# --- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no browser: neither Chromium nor Chrome is on the PATH")
    with playwright.sync_playwright() as driver:
        # In a container its sandbox would need more rights than the tests have. The microphone gives beeps.
        microphone = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox", *microphone])
        yield started
        started.close()


@pytest.fixture
def show(browser, directories, tmp_path, capfd):
    """Opens the page of a model in the browser, and afterwards takes a picture and looks for trouble."""
    pictures = Path(os.environ.get("HFSEQ_SCREENSHOTS", tmp_path))
    pictures.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def opened(name, serve=served_here):
        asked, errors = [], []
        with serve(directories / name) as url:
            page = browser.new_page(viewport={"width": 1100, "height": 720})
            page.on("request", lambda sent: asked.append(sent.url))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(url)
            yield page
            page.screenshot(path=pictures / f"{name}.png", full_page=True, animations="disabled")
            page.close()
        assert asked and all(one.startswith((url, "data:", "blob:")) for one in asked), asked
        assert not errors
        assert not any("Traceback" in written for written in capfd.readouterr())

    return opened


@contextmanager
def served_here(directory):
    _, url, _ = demo.open_page(directory, "127.0.0.1", free_port(), prevent_thread_lock=True)
    try:
        yield url
    finally:
        pytest.importorskip("gradio").close_all()


@contextmanager
def served_by_the_command(directory):
    url = f"http://127.0.0.1:{free_port()}"
    # Unbuffered, or its lines would wait in a pipe.
    command = [sys.executable, "-u", "-m", "hfseq.demo", str(directory), "--host", "127.0.0.1"]
    command += ["--port", url.rpartition(":")[2]]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout:
                lines.append(line)
                if "Running on local URL" in line:
                    break
            else:
                pytest.fail("".join(lines))
            yield url
        finally:
            process.terminate()
            lines += process.stdout
    assert not any("Traceback" in line for line in lines), "".join(lines)


def ask(page, text, **numbers):
    """Types a text, sets sliders, and presses the button."""
    page.fill("#text textarea", text)
    for name, number in numbers.items():
        page.fill(f"#{name} input[type=number]", str(number))
        page.press(f"#{name} input[type=number]", "Tab")
    page.click("#go")


def test_a_translation_and_its_alignment_in_a_browser(directories, show):
    model, tokenizer = loaded(directories, "translation")
    pipe = pipeline("translation", model=model, tokenizer=tokenizer, device="cpu")
    expect = sync_api().expect
    with show("translation", served_by_the_command) as page:
        expect(page.locator("h1")).to_have_text("translation")
        expect(page.get_by_text("On the test set: BLEU 41.62")).to_be_visible()
        page.get_by_text(TEXTS[0]).click()  # the run's example
        expect(page.locator("#text textarea")).to_have_value(TEXTS[0])
        for text, beams in ((TEXTS[0], 1), (TEXTS[3], 3), (TEXTS[4], 3)):
            ask(page, text, beams=beams)
            written = pipe(text, num_beams=beams, early_stopping=False)[0]["translation_text"]
            expect(page.locator("#answer textarea")).to_have_value(written)
        expect(page.locator("#note")).to_contain_text("Not in the vocabulary: yes")
        picture = page.locator("#alignment img")
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.complete && image.naturalWidth > 100 && image.naturalHeight > 100")
        ask(page, "the cat " * 30)  # a wide picture scrolls
        expect(page.locator("#note")).to_have_text("")
        expect(picture).to_be_visible()
        assert picture.evaluate(REACHES_ITS_END)
        ask(page, " ")
        expect(page.locator("#note")).to_have_text("Enter a text first.")
        expect(page.locator("#answer textarea")).to_have_value("")
        expect(picture).to_have_count(0)
        ask(page, TEXTS[0], beams=1)
        expect(picture).to_be_visible()


def test_a_summary_in_a_browser(directories, show):
    model, tokenizer = loaded(directories, "summarization")
    pipe = pipeline("summarization", model=model, tokenizer=tokenizer, device="cpu")
    with show("summarization") as page:
        ask(page, TEXTS[4], beams=2)
        written = pipe(TEXTS[4], num_beams=2)[0]["summary_text"]
        sync_api().expect(page.locator("#answer textarea")).to_have_value(written)


@pytest.mark.parametrize("name", ["sentiment", "several", "value"])
def test_classes_and_the_importance_of_words_in_a_browser(subjects, show, name):
    answer, spans, _ = classify(subjects(name), TEXTS[3])
    expect = sync_api().expect
    with show(name) as page:
        ask(page, TEXTS[3])
        shown = page.locator("#answer")
        if name == "value":
            expect(shown).to_contain_text(answer)
        else:
            best = max(answer, key=answer.get)
            expect(shown.locator("h2")).to_have_text(best)
            for label, chance in answer.items():
                expect(shown).to_contain_text(f"{100 * chance:.0f}%")
                expect(shown).to_contain_text(label)
        expect(page.locator("#importance .token")).to_have_text(
            [re.compile(rf"^\s*{re.escape(piece)}\s*$") for piece, _ in spans]
        )


def test_tags_in_a_browser(subjects, show):
    pieces, _ = tag(subjects("tagging"), ASKED)
    with show("tagging") as page:
        ask(page, ASKED)
        for piece, label in pieces:
            if label is not None:
                sync_api().expect(page.locator("#answer")).to_contain_text(piece)
                sync_api().expect(page.locator("#answer").get_by_text(label).first).to_be_visible()


@pytest.mark.parametrize("name", ["generation", "gpt2"])
def test_generation_in_a_browser(subjects, show, name):
    with show(name) as page:
        for text in (ASKED, ""):
            *_, (written, _) = continue_text(subjects(name), text, 0, 0, 1, 9)
            ask(page, text, temperature=0, tokens=9)
            sync_api().expect(page.locator("#answer textarea")).to_have_value(written)


def test_stop_ends_the_generation(show, monkeypatch):
    ended = threading.Event()

    def endless(*args):
        try:
            while not ended.wait(0.05):  # at the pace of a model
                yield "so far", ""
        finally:
            ended.set()

    monkeypatch.setattr(layouts, "continue_text", endless)
    with show("generation") as page:
        ask(page, ASKED)
        sync_api().expect(page.locator("#answer textarea")).to_have_value("so far")
        page.click("#stop")
        assert ended.wait(20)


def sync_api():
    api = pytest.importorskip("playwright.sync_api")
    # Five seconds, its default, are too few beside another busy process.
    api.expect.set_options(timeout=60_000)
    return api

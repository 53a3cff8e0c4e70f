"""Pages of recordings, series and items: what their handlers make of an input, what they refuse, and a browser."""

import io
import json
import re
import urllib.error
import urllib.request
from functools import cache

import numpy as np
import pytest
import served_models
import torch
from test_demo import browser, served_here, show, sync_api  # noqa: F401
from test_demo_bounds import call, outcome, served
from transformers import pipeline

from hfseq import GruConfig, GruForSequenceClassification, LogMelFeatureExtractor, LstmConfig, LstmForPrediction
from hfseq.data.series import series_input
from hfseq.demo import requests
from hfseq.demo.audio import KEPT, Recordings, classify_audio, transcribe
from hfseq.demo.items import choices, recommend
from hfseq.demo.loading import load_demo_model
from hfseq.demo.series import forecast, read_text
from hfseq.errors import InputError
from hfseq.hub.publish import load_published

soundfile = pytest.importorskip("soundfile")

RATE = served_models.RATE
MONTHS = [f"2020-{month:02d}-01" for month in range(1, 13)]
VALUES = [1.0, 3.0, 2.0, 5.0, 4.0, 6.0, 8.0, 7.0, 9.0, 11.0, 10.0, 12.0]
TABLE = "\n".join(f"{month},{value}" for month, value in zip(MONTHS, VALUES, strict=True))


def audio_classifier(folder):
    """A classifier of recordings."""
    torch.manual_seed(0)
    labels = dict(enumerate(("low", "high")))
    model = GruForSequenceClassification(GruConfig(input_size=8, id2label=labels, **served_models.TINY))
    return served_models.save(folder, model, LogMelFeatureExtractor(feature_size=8, sampling_rate=RATE, hop_length=80))


def monthly(folder):
    """A forecaster of monthly series, which reads time features, and what its run left."""
    torch.manual_seed(0)
    config = LstmConfig(
        input_size=1,
        prediction_length=3,
        num_parallel_samples=5,
        frequency="MS",
        num_time_features=1,
        num_static_categorical_features=1,
        cardinality=[2],
        static_categories=[["wet", "dry"]],
        **served_models.TINY,
    )
    served_models.save(folder, LstmForPrediction(config))
    (folder / "run.json").write_text('{"task": "time-series-forecasting"}')
    # Two windows of the first series, which overlap, and another series.
    rows = [*enumerate(VALUES[:4]), *list(enumerate(VALUES))[2:6]]
    lines = [f"a,0,{MONTHS[at]} 00:00:00,{value},0" for at, value in rows] + ["b,0,2020-01-01 00:00:00,5,0"]
    (folder / "predictions.csv").write_text("\n".join(["unique_id,origin,ds,y,mean", *lines]))


MAKERS = {
    "speech": served_models.recognizer,
    "sounds": audio_classifier,
    "series": served_models.forecaster,
    "monthly": monthly,
    "items": served_models.recommender,
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, make in MAKERS.items():
        make(root / name)
    run = {"task": "next-item-recommendation", "example": "a\nb", "max_length": 2}
    (root / "items" / "run.json").write_text(json.dumps(run))
    return root


@pytest.fixture(scope="module")
def subjects(directories):
    return cache(lambda name: load_demo_model(directories / name))


def sound(seconds=1.0, rate=RATE, kind="WAV", channels=1):
    """A file of a tone."""
    wave = 0.5 * np.sin(np.arange(int(seconds * rate)) * 0.3)
    file = io.BytesIO()
    soundfile.write(file, np.stack([wave] * channels, axis=1), rate, format=kind)
    return file.getvalue()


# --- handlers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_transcripts_are_those_of_the_pipeline(directories, subjects, kind):
    recordings = Recordings()
    contents = sound(1.5, kind=kind)
    model, processor = load_published(directories / "speech")
    recognize = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
        device="cpu",
    )
    expected = recognize(soundfile.read(io.BytesIO(contents), dtype="float32")[0])["text"]
    assert expected and transcribe(subjects("speech"), recordings, recordings.add(contents)) == (expected, "1.5 s.")
    assert transcribe(subjects("speech"), recordings, "") == ("", "Choose or record something first.")


def test_classes_of_recordings_are_those_of_the_pipeline(directories, subjects):
    recordings = Recordings()
    model, extractor = load_published(directories / "sounds")
    classifier = pipeline("audio-classification", model=model, feature_extractor=extractor, device="cpu")
    expected = {one["label"]: one["score"] for one in classifier(soundfile.read(io.BytesIO(sound()))[0])}
    found, said = classify_audio(subjects("sounds"), recordings, recordings.add(sound()))
    assert found == pytest.approx(expected, abs=1e-5) and said == "1.0 s." and len(found) == 2
    assert classify_audio(subjects("sounds"), recordings, "")[0] is None


def test_the_newest_recordings_are_kept(subjects):
    recordings = Recordings()
    names = [recordings.add(sound(0.1)) for _ in range(KEPT + 2)]
    assert [recordings.get(name) is not None for name in names] == [False, False] + [True] * KEPT
    with pytest.raises(InputError, match="no longer there"):
        transcribe(subjects("speech"), recordings, names[0])


def test_what_is_no_recording_is_refused():
    recordings = Recordings()
    whole = sound(61, rate=1000, kind="FLAC")
    for contents, message in (
        (b"", "not a recording in WAV"),
        (b"<html>", "not a recording in WAV"),
        (sound(kind="AIFF"), "not a recording in WAV"),
        (sound(0), "no samples"),
        (whole, "more than 60 seconds"),
        (sound(channels=3), "3 channels"),
        (sound(0.01, rate=300_000), "300000 Hz"),
        (sound()[:20], "not a recording"),
    ):
        with pytest.raises(InputError, match=message):
            recordings.add(contents)


def test_a_forecast_is_that_of_the_pipeline(directories, subjects):
    model, _ = load_published(directories / "series")
    pipe = pipeline("time-series-forecasting", model=model, device="cpu")
    torch.manual_seed(0)
    expected = pipe([*VALUES[:3], None, *VALUES[4:]], prediction_length=5, quantile_levels=[0.1, 0.5, 0.9])
    text = ", ".join(["1 3 2", "NaN", *map(str, VALUES[4:])])
    picture, rows, said = forecast(subjects("series"), text, 5)
    assert [row[0] for row in rows] == [13, 14, 15, 16, 17] and said == "12 values, 1 of them missing."
    assert [row[1] for row in rows] == pytest.approx(expected["mean"], rel=1e-4)
    for column, level in enumerate((0.1, 0.5, 0.9), 2):
        assert [row[column] for row in rows] == pytest.approx(expected["quantiles"][level], rel=1e-4)
    assert 'src="data:image/png;base64,' in picture
    assert forecast(subjects("series"), " \n", 5) == ("", [], "Enter a series first.")


def test_tables_have_time_stamps(subjects):
    subject = subjects("monthly")
    _, rows, said = forecast(subject, TABLE, 2, ["wet"])
    assert [row[0] for row in rows] == ["2021-01-01", "2021-02-01"] and said == "12 values."
    # As from GluonTS' format, with a gap, and with names of the columns.
    entry = {"start": "2020-01-01", "target": VALUES[:5] + [None] + VALUES[6:], "feat_static_cat": ["wet"]}
    gap = "\n".join(["date\tlevel", *(line.replace(",", "\t") for line in TABLE.splitlines() if "-06-" not in line)])
    # What the text says of its class counts.
    found = forecast(subject, json.dumps(entry), 2, ["dry"])
    assert found[1:] == forecast(subject, gap, 2, ["wet"])[1:] != forecast(subject, gap, 2, ["dry"])[1:]
    assert "1 of them missing" in found[2] and found[1] != rows


def test_what_is_no_series_is_refused(subjects):
    for text, message in (
        ("abc", "no rows"),
        ("ds,y\n2020-01-01,x", "table:2: column 'y': 'x' is not a number"),
        ("a,b\n1,2\n3,4", "2 series"),
        ("{1", "not JSON"),
        ('{"a": 1}', "'target'"),
        ('{"target": "abc"}', "'target' must be a list"),
        ("1 2 inf", "infinite"),
        ("nan nan", "no value"),
        ('ds,y\n2020-01-01,"5', "neither a list of numbers nor CSV"),
        ("2020-01-01,1\n2020-01-02,1\n2020-01-01,3", "2020-01-01"),
    ):
        with pytest.raises(InputError, match=message):
            forecast(subjects("series"), text, 3)
    with pytest.raises(InputError, match="maximum is 2048"):
        forecast(subjects("series"), "1 " * 2049, 3)
    with pytest.raises(InputError, match="time"):
        forecast(subjects("monthly"), "1 2 3", 3, ["wet"])


def test_values_at_the_ends_may_be_missing():
    value, series = read_text("nan 1 2 nan 3 nan", None)
    assert value == [None, 1, 2, None, 3, None] and len(series_input(value, "").target) == 6
    assert series.target.tolist() == pytest.approx([1, 2, np.nan, 3], nan_ok=True)


def test_items_are_those_of_the_pipeline(directories, subjects):
    model, tokenizer = load_published(directories / "items")
    pipe = pipeline("next-item-recommendation", model=model, tokenizer=tokenizer, device="cpu")
    for filter_seen in (False, True):
        rows, said = recommend(subjects("items"), " a\n\nc \nzzz\na", 4, filter_seen)
        expected = pipe(["a", "c", "a"], top_k=4, filter_seen=filter_seen)
        assert [row[0] for row in rows] == [one["item"] for one in expected]
        assert [row[1] for row in rows] == pytest.approx([one["score"] for one in expected], abs=1e-3)
        assert said == "Not known, and left out: `zzz`"
    rows, said = recommend(subjects("items"), "", 2, False)
    assert [row[0] for row in rows] == [one["item"] for one in pipe([], top_k=2)] and "empty history" in said


def test_the_first_items_are_offered(subjects, monkeypatch):
    tokenizer = subjects("items").tokenizer
    assert choices(tokenizer) == served_models.WORDS.split()
    monkeypatch.setattr("hfseq.demo.items.MAX_CHOICES", 3)
    assert choices(tokenizer) == ["a", "b", "c"]


def test_examples_are_those_of_the_run(subjects):
    assert subjects("items").example == "a\nb" and subjects("series").example is None
    first = [f"{month} 00:00:00,{value}" for month, value in zip(MONTHS[:6], VALUES, strict=False)]
    assert subjects("monthly").example == "\n".join(first)
    assert [row[0] for row in forecast(subjects("monthly"), subjects("monthly").example, 1, ["wet"])[1]] == [
        "2020-07-01"
    ]


# --- requests ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech_page(directories):
    with served(directories / "speech") as (url, _):
        yield url


def send(url, contents, name="files", **headers):
    """Status and text of the answer to an upload."""
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="../../a.wav"\r\n\r\n'
    body = head.encode() + contents + b"\r\n--edge--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=edge"} | headers
    request = urllib.request.Request(f"{url}gradio_api/upload?upload_id=x", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["detail"]


def test_a_recording_is_kept_and_given_back_by_its_name(speech_page):
    contents = sound(3, kind="FLAC")
    status, (name,) = send(speech_page, contents)
    assert status == 200 and len(name) > 20
    with urllib.request.urlopen(f"{speech_page}gradio_api/file={name}", timeout=60) as answer:
        assert answer.read() == contents and answer.headers["Content-Type"] == "audio/flac"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    found = outcome(speech_page, "sent", [name])["output"]["data"]
    assert found[0] and found[1] == "3.0 s."
    for path in (name[:-1], "/etc/passwd", f"../{name}", ""):
        assert call(speech_page, f"gradio_api/file={path}")[0] == 404
    assert call(speech_page, "gradio_api/upload_progress?upload_id=x")[0] == 404


def test_uploads_are_bounded(speech_page, monkeypatch):
    # No file is made of them, though this one has more than a megabyte.
    monkeypatch.setattr("tempfile.TemporaryFile", pytest.fail)
    assert send(speech_page, sound(61, rate=16_000)) == (400, "the recording has no samples, or more than 60 seconds")
    assert send(speech_page, b"<script>") == (400, "not a recording in WAV, FLAC, Ogg or MP3")
    assert send(speech_page, sound(), name="other") == (400, "the body is not a form with one file")
    assert send(speech_page, sound(), **{"Content-Type": "text/plain"})[0] == 415
    assert send(speech_page, sound(), **{"Content-Type": "multipart/form-data"})[0] == 400
    assert send(speech_page, sound(), **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    monkeypatch.setattr(requests, "LARGEST_RECORDING", 10_000)
    assert send(speech_page, sound(0.5))[0] == 200
    assert send(speech_page, sound(1)) == (413, "the request body exceeds 14096 bytes")


def test_names_of_recordings_are_not_paths(speech_page):
    for name in ("/etc/passwd", "unknown"):
        message = outcome(speech_page, f"name{len(name)}", [name])
        assert message["output"]["error"] == "The recording is no longer there; choose or record it again."


def test_settings_of_items_are_bounded(directories):
    with served(directories / "items") as (url, _):
        for number, (data, error) in enumerate(
            (
                (["a", 51, False], "Items must be a number from 1 to 50."),
                (["a", 2, 1], "Leave out items of the history must be true or false."),
            )
        ):
            assert outcome(url, f"items{number}", data)["output"]["error"] == error
        assert outcome(url, "items", ["a", 2, True])["success"]
        assert send(url, sound())[0] == 404


def test_errors_of_a_series_are_told(directories):
    with served(directories / "series") as (url, _):
        assert outcome(url, "series", ["ds,y\n2020-01-01,x", 3])["output"]["error"].startswith("Table:2: column 'y'")
        assert outcome(url, "long", ["1 2", 13])["output"]["error"] == "Steps must be a number from 1 to 12."
    with served(directories / "monthly") as (url, _):
        for number, name in enumerate(("damp", None, 1)):
            error = outcome(url, f"class{number}", [TABLE, 3, name])["output"]["error"]
            assert error == "Class must be one of the list."


# --- in a browser --------------------------------------------------------------------------------------------------


def cells(rows):
    """Texts of the cells of a table."""
    return [cell if isinstance(cell, str) else f"{cell:g}" for row in rows for cell in row]


def test_a_file_is_transcribed_in_a_browser(subjects, show):  # noqa: F811
    expect, recordings = sync_api().expect, Recordings()
    written, said = transcribe(subjects("speech"), recordings, recordings.add(sound(1.5)))
    with show("speech") as page:
        page.click("#go")
        expect(page.locator("#note")).to_have_text("Choose or record something first.")
        page.get_by_label("Upload").first.click()
        page.locator("#recording input[type=file]").set_input_files(
            {"name": "tone.wav", "mimeType": "audio/wav", "buffer": sound(1.5)}
        )
        expect(page.locator("#recording #waveform")).to_be_visible()
        page.click("#go")
        expect(page.locator("#answer textarea")).to_have_value(written)
        expect(page.locator("#note")).to_have_text(said)


def test_the_microphone_is_classified_in_a_browser(show):  # noqa: F811
    expect = sync_api().expect
    with show("sounds") as page:
        page.get_by_role("button", name="Record", exact=True).click()
        expect(page.locator("#recording time").last).to_have_text(re.compile("0:0[1-9]"))
        page.get_by_role("button", name="Stop").first.click()
        expect(page.locator("#name textarea")).to_have_value(re.compile(".{20}"))
        page.click("#go")
        expect(page.locator("#note")).to_have_text(re.compile(r"\d\.\d s\."))
        for name in ("low", "high"):
            expect(page.locator("#answer")).to_contain_text(name)


def test_a_forecast_in_a_browser(subjects, show):  # noqa: F811
    expect = sync_api().expect
    _, rows, _ = forecast(subjects("monthly"), subjects("monthly").example, 2, ["dry"])
    with show("monthly") as page:
        page.get_by_text("2020-01-01 00:00:00,1.0 2020-02-01").click()
        expect(page.locator("#text textarea")).to_have_value(subjects("monthly").example)
        page.fill("#steps input[type=number]", "2")
        page.press("#steps input[type=number]", "Tab")
        page.click("#class1 input")
        page.get_by_role("option", name="dry").click()
        page.click("#go")
        expect(page.locator("#answer").get_by_role("gridcell")).to_have_text(cells(rows))
        picture = page.locator("#plot img")
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.complete && image.naturalWidth > 100")


def test_items_in_a_browser(subjects, show):  # noqa: F811
    expect = sync_api().expect
    rows, _ = recommend(subjects("items"), "b\na\nb", 3, True)
    with show("items") as page:
        for item in "bab":
            page.click("#item input")
            page.get_by_role("option", name=item, exact=True).click()
        expect(page.locator("#text textarea")).to_have_value("b\na\nb")
        page.fill("#items input[type=number]", "3")
        page.press("#items input[type=number]", "Tab")
        page.click("#filter input")
        page.click("#go")
        expect(page.locator("#answer").get_by_role("gridcell")).to_have_text(cells(rows))

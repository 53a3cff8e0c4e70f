"""The video recipe: next frames, captions, gestures; plots, ONNX, the Hub, and pretrained Transformers."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import recipe_runs
import torch
from PIL import Image
from recipe_runs import load
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForTimeSeriesPrediction,
    AutoModelForVideoClassification,
    AutoTokenizer,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessorPil,
)

import hfseq
from hfseq.data.video import PLACE, POINTS
from hfseq.errors import InputError
from hfseq.onnx.runtime import load_onnx
from hfseq.plots import plot_clips, plot_paths, save_animation
from hfseq.tasks.arguments import VideoArguments
from hfseq.tasks.frames import FramePrediction
from hfseq.tasks.video import GestureClassification
from hfseq.training.arguments import RecipeArguments, VideoModelArguments

RECIPE = load("video")
CONFIG = """\
model_type: hfseq_gru
config_overrides: {hidden_size: 24, embedding_size: 16, frame_filters: [4], dropout: 0.0}
num_train_epochs: 5
learning_rate: 1e-2
per_device_train_batch_size: 8
# Evaluations cost more than so short a training.
eval_strategy: "no"
save_strategy: "no"
load_best_model_at_end: false
use_cpu: true
disable_tqdm: true
"""
WORDS = ("up", "down", "left", "right")


def clip(rng, length, size=6):
    """A side that lights up in noise, and its name."""
    word = rng.integers(4)
    frames = rng.integers(0, 50, (length, size, size)).astype(np.uint8)
    turned = np.rot90(frames, {0: 0, 1: 2, 2: 3, 3: 1}[word], axes=(1, 2))
    turned[:, :2] += np.linspace(60, 200, length).astype(np.uint8)[:, None, None]
    return frames, WORDS[word]


def bar(rng, length, size=6):
    """A bright bar that moves down, and begins anew at the top."""
    frames, start = np.zeros((length, size, size), np.uint8), rng.integers(size)
    for number in range(length):
        frames[number, (start + number) % size] = 255
    return frames


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Archives of clips of three to five frames, with classes and captions; folders of the same test clips."""
    root = tmp_path_factory.mktemp("clips")
    (root / "config.yaml").write_text(CONFIG)
    (root / "plain.yaml").write_text("use_cpu: true\ndisable_tqdm: true\n")
    for seed, (name, count) in enumerate((("train", 120), ("val", 16), ("test", 16))):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(3, 6, count)
        found = [clip(rng, length) for length in lengths]
        clips = np.stack([np.pad(frames, ((0, 5 - len(frames)), (0, 0), (0, 0))) for frames, _ in found])
        words = np.array([word for _, word in found])
        captions = np.array([f"it lights up on the {word} side" for word in words])
        np.savez(root / f"{name}.npz", clips=clips, lengths=lengths, label=words, caption=captions)
    (root / "frames").mkdir()
    lines = ["file_name,label,caption"]
    for number, (frames, word) in enumerate(found):
        folder = root / "frames" / f"clip{number}"
        folder.mkdir()
        for at, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{at}.png")
        lines.append(f"clip{number},{word},it lights up on the {word} side")
    (root / "frames" / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def run(data, output_dir, config="config.yaml", **flags):
    files = {f"{split}_file": data / f"{name}.npz" for split, name in (("train", "train"), ("test", "test"))}
    given = {**files, "validation_file": data / "val.npz", "output_dir": output_dir, **flags}
    recipe_runs.start(RECIPE, recipe_runs.arguments(data / config, **given))
    return json.loads((Path(output_dir) / "all_results.json").read_text())


@pytest.fixture(scope="module")
def classified(data, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("gestures") / "run"
    return output_dir, run(data, output_dir, task="gestures")


@pytest.fixture(scope="module")
def described(data, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("captions") / "run"
    return output_dir, run(data, output_dir, task="captions", num_train_epochs=12, learning_rate=2e-2)


@pytest.fixture(scope="module")
def predicted(data, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("frames") / "run"
    rng = np.random.default_rng(3)
    for name, count in (("long_train", 60), ("long_test", 10)):
        np.savez(data / f"{name}.npz", clips=np.stack([bar(rng, 6) for _ in range(count)]))
    flags = {"train_file": data / "long_train.npz", "validation_file": data / "long_test.npz"}
    flags |= {"test_file": data / "long_test.npz", "context_length": 2, "prediction_length": 2, "num_train_epochs": 3}
    overrides = '{"hidden_size": 32, "dropout": 0.0}'
    return output_dir, run(data, output_dir, task="frames", config_overrides=overrides, **flags)


def test_gestures_are_recognised(data, classified, tmp_path):
    output_dir, scores = classified
    assert scores["test_accuracy"] > 90 > 60 > scores["test_majority_accuracy"]
    for name in ("clips.png", "confusion_matrix.png"):
        assert (output_dir / name).exists()
    model = AutoModelForVideoClassification.from_pretrained(output_dir)
    assert type(model) is hfseq.GruForSequenceClassification and model.config.frame_shape == [1, 6, 6]
    # The same clips in folders get the same classes.
    flags = {"task": "gestures", "model_name_or_path": output_dir, "do_predict": True, "test_file": data / "frames"}
    flags |= {"train_file": None, "validation_file": None}
    run(data, tmp_path / "again", "plain.yaml", **flags)
    assert (tmp_path / "again" / "predictions.txt").read_text() == (output_dir / "predictions.txt").read_text()


def test_captions_are_written(described):
    output_dir, scores = described
    assert scores["test_exact_match"] > 80 > 50 > scores["test_most_frequent_exact_match"]
    assert scores["test_bleu"] > scores["test_most_frequent_bleu"]
    for name in ("clips.png", "alignment.png", "tokenizer.json"):
        assert (output_dir / name).exists()


def test_frames_are_predicted(predicted):
    output_dir, scores = predicted
    assert scores["test_mse"] < 0.6 * scores["test_last_mse"]
    assert "test_ssim" not in scores  # frames of 6 x 6 pixels are too small
    with np.load(output_dir / "predictions.npz") as found:
        assert found["predicted"].shape == found["true"].shape == (10, 2, 1, 6, 6)
        assert ((found["predicted"] - found["true"]) ** 2).mean() == pytest.approx(scores["test_mse"], rel=1e-4)
    assert (output_dir / "frames.png").exists()
    with Image.open(output_dir / "frames.gif") as image:
        assert image.n_frames == 4


def test_a_checkpoint_says_its_task_and_lengths(data, predicted, classified, tmp_path):
    output_dir, scores = predicted
    flags = {"do_predict": True, "train_file": None, "validation_file": None}
    new = flags | {"test_file": data / "long_test.npz", "model_name_or_path": output_dir}
    assert run(data, tmp_path / "again", "plain.yaml", **new)["test_mse"] == pytest.approx(scores["test_mse"])
    for kind, own, path, name in (
        ("frames", "gestures", classified[0], "GruForSequenceClassification"),
        ("gestures", "frames", output_dir, "GruForPrediction"),
    ):
        given = flags | {"task": kind, "model_name_or_path": path}
        with pytest.raises(InputError, match=f"--task {kind}: .* is {name}, a model for --task {own}; give that"):
            run(data, tmp_path / "other", "plain.yaml", **given)


CLASSES = {
    "classified": AutoModelForVideoClassification,
    "described": AutoModelForSeq2SeqLM,
    "predicted": AutoModelForTimeSeriesPrediction,
}


def outputs(kind, model, clips):
    """Outputs of each of some clips, as one batch."""
    with torch.no_grad():
        if kind == "predicted":
            return list(model.generate(past_values=torch.stack(clips), prediction_length=2).sequences)
        lengths = torch.tensor([len(one) for one in clips])
        frames = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=7.0)
        mask = (torch.arange(frames.shape[1]) < lengths.unsqueeze(1)).long()
        if kind == "classified":
            return list(model(input_features=frames, attention_mask=mask).logits)
        found = model.generate(input_features=frames, attention_mask=mask, max_length=12)
        return [row[: int((row != 0).sum())] for row in found]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_clip_alone_and_exported_is_as_in_any_batch(kind, request, tmp_path):
    output_dir, _ = request.getfixturevalue(kind)
    model = CLASSES[kind].from_pretrained(output_dir)
    rng = np.random.default_rng(5)
    lengths = (2, 2, 2) if kind == "predicted" else (3, 5, 4)
    clips = [torch.tensor(clip(rng, length)[0] / 255, dtype=torch.float32).unsqueeze(1) for length in lengths]
    if kind == "predicted":
        clips = [one.flatten(1) for one in clips]
    together = outputs(kind, model, clips)
    alone = [outputs(kind, model, [one])[0] for one in clips]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    runner, _ = load_onnx(hfseq.export_onnx(output_dir, tmp_path / "onnx"))
    torch.testing.assert_close(outputs(kind, runner, clips), together, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_published_is_loaded_with_its_card(kind, request, tmp_path):
    output_dir, _ = request.getfixturevalue(kind)
    folder = Path(hfseq.publish(output_dir, "ann/clips", dry_run=tmp_path / "hub"))
    card = (folder / "README.md").read_text()
    task = {"classified": "video-classification", "described": "video-text-to-text", "predicted": "video-to-video"}
    assert f"pipeline_tag: {task[kind]}" in card and "pipeline(" not in card
    assert "1, 6, 6" in card and "frames.png" in card if kind == "predicted" else "clips.png" in card
    weights = [CLASSES[kind].from_pretrained(place).state_dict() for place in (output_dir, folder)]
    recipe_runs.assert_equal(*weights)
    if kind == "described":
        assert AutoTokenizer.from_pretrained(folder).get_vocab()
    if kind == "predicted":
        assert (folder / "frames.gif").exists()


def test_a_transformer_of_videos(data, tmp_path):
    """VideoMAE reads a fixed number of frames of a fixed size in three channels, normalised by its processor."""
    config = VideoMAEConfig(
        image_size=8, patch_size=4, num_frames=4, tubelet_size=2, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    VideoMAEForVideoClassification(config).save_pretrained(tmp_path / "mae")
    VideoMAEImageProcessorPil(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).save_pretrained(tmp_path / "mae")
    flags = {"task": "gestures", "model_name_or_path": tmp_path / "mae", "num_train_epochs": 1}
    scores = run(data, tmp_path / "run", "plain.yaml", **flags)
    assert 0 <= scores["test_accuracy"] <= 100
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "run")
    assert model.config.model_type == "videomae" and sorted(model.config.label2id) == ["down", "left", "right", "up"]
    assert (tmp_path / "run" / "preprocessor_config.json").exists()
    hfseq.publish(tmp_path / "run", "ann/mae", dry_run=tmp_path / "hub")
    # What the model saw of a clip.
    task = GestureClassification(
        VideoArguments(task="gestures"), RecipeArguments(output_dir=str(tmp_path), use_cpu=True)
    )
    grey = np.full((6, 8, 8), 102, np.uint8)
    rows = datasets.Dataset.from_list([{"clip": {"path": "", "number": -1}, PLACE: "row 1", "labels": 0}])
    task.splits = {"test": rows}
    task.clip = lambda row: np.repeat(grey[:4, None] / np.float32(255), 3, axis=1)
    task.encode(model, VideoMAEImageProcessorPil.from_pretrained(tmp_path / "run"), print)
    batch = task.collator([task.encoded["test"][0]])
    assert batch["pixel_values"].shape == (1, 4, 3, 8, 8) and task.form.num_frames == 4
    hub_card = (tmp_path / "hub" / "README.md").read_text()
    assert "torch.zeros(1, 4, 3, 8, 8)" in hub_card and "pipeline(" not in hub_card
    expected = (0.4 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    np.testing.assert_allclose(batch["pixel_values"][0, 0, :, 0, 0], expected, atol=1e-6)


def path_rows(count, seed, length=8):
    rng = np.random.default_rng(seed)
    for number in range(count):
        angle, turn = rng.uniform(0, 6), (1, -1)[number % 2]
        steps = angle + turn * np.arange(length) * 0.4
        yield ("left", "right")[number % 2], np.stack([np.cos(steps), np.sin(steps)], axis=1).round(4)


@pytest.fixture(scope="module")
def points(data):
    path = data / "points.csv"
    lines = [",".join([name, *map(str, values.ravel())]) for name, values in path_rows(200, 0)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_paths_are_recognised_and_predicted(data, points, tmp_path):
    flags = {"train_file": points, "validation_file": None, "test_file": None, "coordinates": 2}
    flags |= {"block_size": 10, "block_gap": 2, "config_overrides": '{"hidden_size": 16, "dropout": 0.0}'}
    given = {**flags, "task": "gestures", "velocities": True, "augmentations": 1, "num_train_epochs": 3}
    scores = run(data, tmp_path / "gestures", **given)
    assert scores["test_accuracy"] > 90 and {"test_nearest_accuracy", "test_logistic_accuracy"} <= set(scores)
    assert AutoModelForVideoClassification.from_pretrained(tmp_path / "gestures").config.input_size == 4
    given = {
        **flags,
        "task": "frames",
        "context_length": 6,
        "prediction_length": 2,
        "num_train_epochs": 1,
        "point_scale": 2,
    }
    scores = run(data, tmp_path / "frames", **given)
    assert scores["test_rmse"] == pytest.approx(scores["test_mse"] ** 0.5)
    # A turn by a fixed angle is linear in the points before.
    assert scores["test_linear_rmse"] < 1e-3 < scores["test_velocity_rmse"] < scores["test_last_rmse"]
    assert (tmp_path / "frames" / "paths.png").exists()


def test_windows_of_longer_clips(tmp_path):
    task = frame_task(tmp_path, context_length=3, prediction_length=2, train_stride=2)
    values = np.arange(24, dtype=np.float32).reshape(12, 2)
    rows = [{POINTS: values[:length].tolist(), PLACE: f"row {length}"} for length in (12, 4, 5)]
    task.splits = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows)}
    config = hfseq.LstmConfig(input_size=2, hidden_size=8, loss="mse", prediction_length=2)
    notes = []
    task.encode(hfseq.LstmForPrediction(config), None, notes.append)
    short = "1 of 3 clips are left out, with fewer than the 5 frames of --context_length and --prediction_length"
    assert notes == [f"train: {short}", f"test: {short}"]
    assert task.windows == {"train": [(0, 0), (0, 2), (0, 4), (0, 6), (2, 0)], "test": [(0, 0), (0, 5), (2, 0)]}
    np.testing.assert_array_equal(task.encoded["test"][1]["past_values"], values[5:8])
    np.testing.assert_array_equal(task.references["test"][1], values[8:10])
    assert task.sources("test") == ["row 12", "row 12, frame 6", "row 5"]
    found = task.baseline("test", trained=True)
    np.testing.assert_allclose(found["velocity"][1], values[8:10])
    np.testing.assert_allclose(found["last"][1], values[[7, 7]])
    np.testing.assert_allclose(found["linear"][1], values[8:10], atol=1e-4)


def test_a_sample_of_short_clips_alone_is_left_out(tmp_path):
    task = frame_task(tmp_path, context_length=3, prediction_length=2)
    rows = [{POINTS: [[0.0, 1.0]] * length, PLACE: f"row {length}"} for length in (4, 5)]
    task.splits = {name: datasets.Dataset.from_list(rows[at:]) for name, at in (("train", 0), ("validation", 1))}
    task.splits["train_sample"] = datasets.Dataset.from_list(rows[:1])
    config = hfseq.LstmConfig(input_size=2, hidden_size=8, loss="mse", prediction_length=2)
    task.encode(hfseq.LstmForPrediction(config), None, print)
    assert list(task.encoded) == ["train", "validation"]


def frame_task(tmp_path, **flags):
    return FramePrediction(
        VideoArguments(task="frames", **flags), RecipeArguments(output_dir=str(tmp_path), use_cpu=True)
    )


def test_the_embedded_digits_need_no_files(tmp_path, monkeypatch):
    from hfseq.data.embedded.moving_digits import moving_digit_rows
    from hfseq.tasks import clips

    sizes = {"train_size": 40, "validation_size": 4, "test_size": 4}
    monkeypatch.setattr(
        clips, "moving_digit_rows", lambda train_size, lengths: moving_digit_rows(**sizes, lengths=lengths)
    )
    common = ["--num_train_epochs", "1", "--max_target_length", "16", "--use_cpu", "true"]
    for task, metric in (("frames", "ssim"), ("captions", "exact_match"), ("gestures", "accuracy")):
        config = recipe_runs.ROOT / "recipes" / "configs" / f"video_{task}.yaml"
        given = [config] if task == "captions" else [] if task == "frames" else ["--task", task]
        given += common if task == "captions" else [*common[:2], *common[4:]]
        given += ["--config_overrides", '{"hidden_size": 16}'] if task == "gestures" else []
        recipe_runs.start(RECIPE, [*given, "--output_dir", tmp_path / task])
        assert f"test_{metric}" in json.loads((tmp_path / task / "all_results.json").read_text())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task": "films"}, "unknown --task 'films'; there are frames, captions, gestures"),
        ({"task": "captions", "velocities": True}, "--velocities is for --task gestures"),
        ({"task": "gestures", "num_beams": 2}, "--num_beams is for --task captions"),
        ({"task": "gestures", "prediction_length": 2}, "--prediction_length is for --task frames"),
        ({"num_frames": 4}, "--num_frames: frames to be predicted follow each other"),
        ({"num_channels": 2}, "--num_channels 2: give 1 or 3"),
        ({"image_size": [1, 2, 3]}, r"--image_size \[1, 2, 3\]: give height and width"),
        ({"block_gap": 3}, "--block_gap goes with --block_size"),
        ({"block_size": 3, "train_file": "a", "test_file": "b"}, "--block_size splits --train_file"),
        ({"point_scale": 0}, "--point_scale 0: give a number above 0"),
        ({"frame_stride": 0}, "--frame_stride 0: give 1 or more"),
    ],
)
def test_flags_without_effect_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        VideoArguments(**flags)


@pytest.mark.parametrize(
    ("values", "flags", "message"),
    [
        ([[1.0]] * 5, {}, "row 1: 1 numbers a frame, but the model reads 2"),
        ([[1.0, 2.0]] * 4, {}, "test: no clip has 5 frames, of which 3 are known and 2 to predict"),
        (np.zeros((5, 1, 4, 4)), {}, "row 1: a clip of pixels, but the model reads points"),
    ],
)
def test_clips_of_another_kind_are_named(tmp_path, values, flags, message):
    task = frame_task(tmp_path, context_length=3, prediction_length=2, **flags)
    task.splits = {"test": datasets.Dataset.from_list([{PLACE: "row 1"}])}
    task.clip = lambda row: np.asarray(values, np.float32)
    config = hfseq.LstmConfig(input_size=2, hidden_size=8, loss="mse", prediction_length=2)
    with pytest.raises(InputError, match=message):
        task.encode(hfseq.LstmForPrediction(config), None, print)


def test_frames_of_other_sizes_are_named(data, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "test.npz", clips=np.stack([clip(rng, 5, 7)[0]]), label=np.array(["up"]))
    with pytest.raises(
        InputError, match="test.npz, row 1: frames of 1 channel of 7x7 pixels, but others of 1 channel"
    ):
        run(data, tmp_path / "run", task="gestures", test_file=tmp_path / "test.npz")
    with pytest.raises(InputError, match="test.npz, row 2: class 'up' of column 'label' is not one"):
        np.savez(tmp_path / "train.npz", clips=np.zeros((4, 2, 6, 6)), label=np.array(["down", "left"] * 2))
        run(data, tmp_path / "run", task="gestures", train_file=tmp_path / "train.npz", validation_file=None)


def test_the_numbers_of_frames_are_needed(tmp_path):
    for name, flags in (("context_length", {"prediction_length": 2}), ("prediction_length", {"context_length": 2})):
        with pytest.raises(InputError, match=f"--{name} is missing: give the number of frames"):
            frame_task(tmp_path, **flags)


def test_flags_of_tokenizers_are_for_captions(tmp_path):
    task = frame_task(tmp_path, context_length=3, prediction_length=2)
    with pytest.raises(InputError, match="--vocab_size is for --task captions"):
        task.new_processor(VideoModelArguments(vocab_size=50))


@pytest.mark.filterwarnings("error::UserWarning")
def test_plots_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    plot_clips([("灰色", rng.random((20, 1, 4, 5))), ("colour", rng.random((2, 3, 4, 5)))], tmp_path / "clips.png")
    plot_paths(rng.random((2, 6, 2)), rng.random((2, 6, 2)), 4, tmp_path / "paths.png")
    save_animation([rng.random((2, 3, 3, 4, 5)), rng.random((2, 3, 3, 4, 5))], tmp_path / "a.gif", scale=2)
    for name in ("clips.png", "paths.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size[0] > 200
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3 and image.size == (2 * 2 * 7, 2 * 2 * 6)

"""Clips from archives, folders, video files and tables of points, and what bad ones get."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hfseq.data.embedded.moving_digits import DIGIT, SIZE, digits_of_splits, moving_digit_rows, render
from hfseq.data.video import (
    ClipFormat,
    augment_points,
    read_clip,
    read_clip_splits,
    sample_frames,
    split_blocks,
)
from hfseq.errors import InputError

SHARED = Path(__file__).parents[2] / "shared" / "data"
PLAIN = ClipFormat()


def clips(count=3, frames=4, shape=(6, 8), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, frames, *shape), dtype=np.uint8)


def read(path, columns=(), form=PLAIN, **options):
    """Rows of a training file, and their clips."""
    labels = [name for name in columns if name == "label"]
    rows = read_clip_splits(columns=columns, label_columns=labels, train_file=str(path), **options)["train"]
    return rows, [read_clip(row, form) for row in rows]


def test_archives_have_their_axes_in_any_order(tmp_path):
    grey, colour = clips(), clips(shape=(6, 8, 3))
    labels = np.array(["wave", "push", "wave"])
    np.savez(tmp_path / "grey.npz", clips=grey, label=labels)
    np.savez(tmp_path / "last.npz", clips=colour, label=labels)
    np.savez(tmp_path / "first.npz", clips=np.moveaxis(colour, 4, 2) / np.float32(255), label=np.array([1, 2, 1]))
    rows, found = read(tmp_path / "grey.npz", ("label",))
    assert rows["label"] == ["wave", "push", "wave"]
    assert rows["clip_place"][1] == f"{tmp_path / 'grey.npz'}, row 2"
    np.testing.assert_allclose(found[1], grey[1][:, None] / 255, atol=1e-7)
    rows, first = read(tmp_path / "first.npz", ("label",))
    assert rows["label"] == ["1", "2", "1"]
    for one, other in zip(read(tmp_path / "last.npz")[1], first, strict=True):
        assert one.shape == (4, 3, 6, 8)
        np.testing.assert_allclose(one, other, atol=1e-7)


def test_points_and_padded_clips_in_archives(tmp_path):
    points = np.random.default_rng(0).normal(size=(2, 5, 3, 2))
    np.savez(tmp_path / "points.npz", clips=points, lengths=np.array([5, 2]))
    _, found = read(tmp_path / "points.npz")
    assert [clip.shape for clip in found] == [(5, 6), (2, 6)]
    np.testing.assert_allclose(found[1], points[1, :2].reshape(2, 6), rtol=1e-6)


@pytest.mark.parametrize("column", ["label", "caption"])
def test_rows_of_archives_without_text_are_dropped_and_counted(tmp_path, caplog, column):
    path, values = tmp_path / "clips.npz", clips()
    np.savez(path, clips=values, **{column: np.array(["", "up", " "])})
    rows, found = read(path, (column,))
    assert rows[column] == ["up"] and rows["clip_place"] == [f"{path}, row 2"]
    np.testing.assert_allclose(found[0][:, 0], values[1] / 255, rtol=1e-6)
    assert f"{path}: 2 empty rows dropped of 3: 1, 3" in caplog.text


def test_an_archive_that_is_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "clips.npz"
    for seed in (0, 1):
        np.savez(path, clips=clips(seed=seed))
        np.testing.assert_allclose(read(path)[1][0], clips(seed=seed)[0][:, None] / 255, atol=1e-7)


def write_frames(folder, frames, suffix="png", first=8):
    """Writes images whose names sort otherwise than their numbers."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, first):
        Image.fromarray(frame).save(folder / f"frame{number}.{suffix}")


def test_folders_of_frames_are_in_natural_order(tmp_path):
    frames = clips(count=2, frames=4)
    for name, one in zip(("a", "b"), frames, strict=True):
        write_frames(tmp_path / name, one)
    (tmp_path / "metadata.csv").write_text('file_name,caption\nb,"a wave"\na,\n', encoding="utf-8")
    rows, found = read(tmp_path, ("caption",))
    assert rows["caption"] == ["a wave"]  # one without is dropped
    np.testing.assert_allclose(found[0], frames[1][:, None] / 255, atol=1e-7)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a", "caption": "a push"}) + "\n")
    assert read(tmp_path, ("caption",))[0]["caption"] == ["a push"]
    (tmp_path / "metadata.jsonl").unlink()
    assert [clip.shape for clip in read(tmp_path)[1]] == [(4, 1, 6, 8)] * 2


def test_folders_of_classes(tmp_path):
    for name in ("push/one", "wave/one", "wave/two"):
        write_frames(tmp_path / name, clips(count=1, frames=2)[0])
    rows, found = read(tmp_path, ("label",))
    assert rows["label"] == ["push", "wave", "wave"] and len(found) == 3
    assert rows["clip_place"][2] == str(tmp_path / "wave" / "two")


def test_empty_folders_of_classes_are_counted(tmp_path, caplog):
    write_frames(tmp_path / "wave" / "one", clips(count=1, frames=2)[0])
    (tmp_path / "push").mkdir()
    (tmp_path / "wave" / "two").mkdir()
    rows, _ = read(tmp_path, ("label",))
    assert rows["label"] == ["wave"]
    assert f"{tmp_path}: 2 folders without clips or frames left out: 'push', 'wave/two'" in caplog.text


def test_images_of_any_mode(tmp_path):
    grey = np.full((4, 4), 51, np.uint8)
    folder = tmp_path / "clip"
    folder.mkdir()
    Image.fromarray(grey).save(folder / "0.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "1.png")
    Image.fromarray(np.stack([grey] * 3, axis=2)).save(folder / "2.png")
    _, (found,) = read(tmp_path, form=ClipFormat(num_channels=1))
    np.testing.assert_allclose(found, 0.2, atol=1e-6)
    assert read(tmp_path, form=ClipFormat(num_channels=3))[1][0].shape == (3, 3, 4, 4)


def write_video(path, frames):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)  # without loss
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_video_files(tmp_path):
    frames = clips(count=1, frames=7, shape=(16, 16, 3))[0]
    write_video(tmp_path / "one.mkv", frames)
    _, (found,) = read(tmp_path)
    np.testing.assert_allclose(found, frames.transpose(0, 3, 1, 2) / 255, atol=1e-6)
    _, (found,) = read(tmp_path, form=ClipFormat(num_frames=3))
    np.testing.assert_allclose(found, frames[[0, 3, 6]].transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_frames_are_sampled_resized_and_made_grey(tmp_path):
    assert sample_frames(10, 4).tolist() == [0, 3, 6, 9]
    assert sample_frames(2, 4).tolist() == [0, 0, 1, 1]
    assert ClipFormat(frame_stride=3).indices(10).tolist() == [0, 3, 6, 9]
    assert ClipFormat(num_frames=2, frame_stride=4).indices(10).tolist() == [0, 8]
    colour = clips(count=1, shape=(6, 8, 3))
    np.savez(tmp_path / "clips.npz", clips=colour)
    _, (found,) = read(tmp_path / "clips.npz", form=ClipFormat(image_size=(3, 4), num_channels=1))
    assert found.shape == (4, 1, 3, 4)
    grey = colour[0] @ np.array([0.299, 0.587, 0.114]) / 255
    assert np.abs(found.mean(axis=(1, 2, 3)) - grey.mean(axis=(1, 2))).max() < 0.02


def test_tables_of_points(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("0,1,2,3,4\n1,5,6\n")
    rows, found = read(path, ("label",), coordinates=2)
    assert rows["label"] == ["0", "1"] and rows["clip_place"][1] == f"{path}:2"
    assert [clip.tolist() for clip in found] == [[[1, 2], [3, 4]], [[5, 6]]]


def bad_file(tmp_path, kind):
    """Writes a bad input, and returns its path."""
    path = tmp_path / "bad.npz"
    arrays = {
        "ragged": {"clips": np.array([np.zeros((2, 2)), np.zeros((3, 2))], dtype=object)},
        "unnamed": {"frames": clips()},
        "flat": {"clips": np.zeros((3, 4))},
        "channels": {"clips": clips(shape=(6, 8, 4))},
        "integers": {"clips": clips().astype(np.int64)},
        "few": {"clips": clips(), "label": np.array([1, 2])},
        "numbers": {"clips": clips(), "label": np.array([0.5, 1, 2])},
        "long": {"clips": clips(), "lengths": np.array([1, 5, 2])},
        "bright": {"clips": clips().astype(np.float32)},
        "nan": {"clips": np.full((1, 2, 3), np.nan)},
        "huge": {"clips": np.full((1, 2, 3), 1e300)},
        "blank": {"clips": clips(), "label": np.array(["", " ", ""])},
        "latin": {"clips": clips(), "label": np.array([b"a", b"caf\xe9", b"b"])},
    }
    if kind in arrays:
        np.savez(path, **arrays[kind])
        return path
    if kind == "missing":
        return tmp_path / "none.npz"
    if kind == "text":
        path.write_text("no archive")
        return path
    tables = {"header": "label,x1,y1\n0,1,2\n", "odd": "0,1,2,3\n", "infinite": "0,1,inf\n", "unlabelled": ",1,2\n"}
    if kind in tables:
        path = tmp_path / "bad.csv"
        path.write_text(tables[kind])
        return path
    folder = tmp_path / "clips"
    write_frames(folder / "a", clips(count=1)[0])
    if kind == "sizes":
        Image.fromarray(clips(count=1, shape=(5, 8))[0][0]).save(folder / "a" / "frame20.png")
    elif kind == "image":
        (folder / "a" / "frame20.png").write_text("no image")
    elif kind == "video":
        (folder / "b.mp4").write_text("no video")
    elif kind in ("listed", "other"):
        (folder / "notes.txt").write_text("text")
        name = "c" if kind == "listed" else "notes.txt"
        (folder / "metadata.csv").write_text(f"file_name,label\na,wave\n{name},wave\n")
    elif kind == "empty":
        (folder / "b").mkdir()
        (folder / "metadata.csv").write_text("file_name,label\na,wave\nb,wave\n")
    return folder


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        ("missing", (), r"none.npz: no such file or folder \(--train_file\)"),
        ("text", (), "bad.npz: cannot be read"),
        ("ragged", (), "bad.npz: cannot be read .*pad them, and add an array 'lengths'"),
        ("unnamed", (), "bad.npz: no array 'clips'; there are 'frames'"),
        ("flat", (), r"'clips' has shape \(3, 4\)"),
        ("channels", (), r"'clips' of shape .*: frames have 1 or 3 channels"),
        ("integers", (), "'clips' has type int64; pixels are uint8, or floats from 0 to 1"),
        ("few", ("label",), r"'label' has shape \(2,\), but there are 3 clips"),
        ("numbers", ("label",), "'label' has type float64; it must be text or integers"),
        ("unnamed", ("label",), "no array 'clips'"),
        ("few", ("caption",), "no array 'caption'; there are 'clips', 'label'"),
        ("long", (), "bad.npz, row 2: length 5, but clips have 1 to 4 frames"),
        ("bright", (), "bad.npz, row 1: pixels from .* to 24.*; give bytes"),
        ("nan", (), "bad.npz, row 1: frame 0 has a value that is not a finite number"),
        ("huge", (), "bad.npz, row 1: frame 0 has a value that is not a finite number"),
        ("blank", ("label",), "--train_file .*bad.npz: empty: none of 3 rows has text in label"),
        ("latin", ("label",), "bad.npz, row 2: 'label' is not UTF-8; give an array of text"),
        ("header", ("label",), "bad.csv:1: 'x1' is not a number; such a file has no header"),
        ("odd", ("label",), "bad.csv:1: 4 fields; a clip is its class, then 2 numbers for each frame"),
        ("infinite", ("label",), "bad.csv:1: a value is not a finite number"),
        ("unlabelled", ("label",), "bad.csv:1: no class in front of the numbers"),
        ("odd", ("caption",), "a table of points has classes, but no captions"),
        ("sizes", (), "frame20.png has 1 channel of 5x8 pixels, but .* 1 channel of 6x8 pixels; give --image_size"),
        ("image", (), "frame20.png: not an image"),
        ("video", (), "b.mp4: not a video that can be read"),
        ("listed", ("label",), "metadata.csv, row 2: .*c: no such file or folder; paths are relative to"),
        ("other", ("label",), "metadata.csv, row 2: .*notes.txt: neither a folder of frames nor a video file"),
        ("empty", ("label",), "metadata.csv, row 2: .*b: no frames in this folder"),
        ("plain", ("caption",), "no metadata.csv or .* in this folder, which would have the captions"),
        ("plain", ("label",), "in this folder, and no folders of classes with clips"),
    ],
)
def test_bad_input_gets_a_line(tmp_path, kind, columns, message):
    path = bad_file(tmp_path, kind)
    with pytest.raises(InputError, match=message) as caught:
        read(path, columns, coordinates=2 if path.suffix == ".csv" else None)
    assert "\n" not in str(caught.value)


def test_blocks_do_not_touch():
    from datasets import Dataset

    rows = Dataset.from_dict({"row": list(range(1000))})
    splits = split_blocks(rows, 20, 5)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [580, 60, 160]
    owner = {row: name for name, part in splits.items() for row in part["row"]}
    assert all(row % 25 < 20 for row in owner)
    for row, name in owner.items():
        assert all(owner.get(row + step, name) == name for step in range(1, 6))
    assert split_blocks(rows, 20, 5)["test"]["row"] == splits["test"]["row"]
    with pytest.raises(InputError, match="1000 rows are 4 blocks, too few"):
        split_blocks(rows, 245, 5)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not beside this checkout")
def test_the_rule_for_the_gestures():
    path = SHARED / "video_finger_gesture" / "point_history.csv"
    rows = read_clip_splits(columns=("label",), label_columns=("label",), train_file=str(path), coordinates=2)
    splits = split_blocks(rows["train"], 50, 16)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [2916, 300, 800]
    with open(path, newline="") as file:
        lines = list(csv.reader(file))
    first = splits["test"][0]
    number = int(first["clip_place"].rpartition(":")[2])
    assert first["label"] == lines[number - 1][0] and (number - 1) % 66 == 0


def test_varied_paths_keep_their_start_and_shape():
    rng = np.random.default_rng(0)
    path = np.stack([np.linspace(0, 1, 16), np.zeros(16)], axis=1).astype(np.float32)
    copies = augment_points(path, 5, rng)
    assert len(copies) == 5 and all(copy.shape == (16, 2) and copy.dtype == np.float32 for copy in copies)
    for copy in copies:
        length = np.linalg.norm(copy[-1] - copy[0])
        assert 0.7 < length < 1.4 and abs(np.arctan2(*(copy[-1] - copy[0])[::-1])) < 0.5
    again = augment_points(path, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(copies, again)


@pytest.fixture(scope="module")
def digits():
    return moving_digit_rows(train_size=200, validation_size=20, test_size=20)


def test_no_digit_is_in_two_splits(digits):
    parts = digits_of_splits()
    assert sum(map(len, parts.values())) == len({one for part in parts.values() for one in part}) == 1797
    for split, rows in digits.items():
        assert set(rows["digit"]) <= set(parts[split])


def test_captions_say_what_is_seen(digits):
    """The motion is read from the frames alone, and described anew."""
    vertical, horizontal = {-1: "up", 1: "down", 0: None}, {-1: "to the left", 1: "to the right", 0: None}
    seen = set()
    for row in digits["train"]:
        frames = render(row)[:, 0]
        assert frames.shape[1:] == (SIZE, SIZE) and 0 <= frames.min() and frames.max() <= 1
        positions = np.array(row["positions"])
        image = frames[0][positions[0][0] :, positions[0][1] :][:DIGIT, :DIGIT]
        for frame, (top, left) in zip(frames, positions, strict=True):
            np.testing.assert_array_equal(frame[top : top + DIGIT, left : left + DIGIT], image)
            assert frame.sum() == pytest.approx(image.sum(), rel=1e-5)
        steps = np.diff(positions, axis=0)
        assert np.abs(steps).max() <= 2
        words = (vertical[np.sign(steps[0][0])], horizontal[np.sign(steps[0][1])])
        direction = " and ".join(word for word in words if word)
        assert row["label"] == direction and f"moves {direction}" in row["caption"]
        signs = np.sign(positions[1:] - positions[:-1])
        # A digit that turns round between two pixels stands still for a step.
        turns = [sum(map(bool, np.diff([sign for sign in axis if sign]))) for axis in signs.T]
        walls = row["caption"].count(" off ") + row["caption"].count("corner")
        assert walls >= sum(turns) and walls <= 4
        seen.add(row["caption"].count(" off "))
    assert seen == {0, 1, 2}


def test_a_split_does_not_depend_on_the_others(digits):
    other = moving_digit_rows(train_size=5, validation_size=20, test_size=1)
    assert other["validation"].to_list() == digits["validation"].to_list()
    assert other["train"].to_list() == digits["train"].select(range(5)).to_list()
    fixed = moving_digit_rows(train_size=5, validation_size=1, test_size=1, lengths=(7, 7))
    assert {len(row) for row in fixed["train"]["positions"]} == {7}
    for sizes, message in (({"train_size": 0}, "train size: 0 is too few"), ({"lengths": (1, 3)}, "lengths: ")):
        with pytest.raises(InputError, match=message):
            moving_digit_rows(**sizes)

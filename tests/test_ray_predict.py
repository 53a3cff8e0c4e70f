"""Prediction of files in shards with Ray Data: the same as the recipe's, in order, resumed after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import recipe_runs
from local_ray import local_ray
from served_models import WORDS, classifier, translator

from hfseq.errors import InputError
from hfseq.ray_predict import Predictor, Shard, join, main, model_digest, split

TEXTS = [" ".join(WORDS.split()[: 1 + row % 7][:: 1 - 2 * (row % 2)]) for row in range(23)]
TEXTS[4] = ""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS), "utf-8")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    return folder, str(translator(folder / "translator")), str(classifier(folder / "classifier"))


@pytest.fixture(scope="module")
def cluster():
    with local_ray(num_cpus=1) as found:
        yield found.address_info["gcs_address"]


def by_recipe(name, model, source, target, *flags):
    """What the recipe itself writes."""
    argv = ["--do_predict", "--model_name_or_path", model, "--test_file", source, "--output_file", target, *flags]
    recipe_runs.start(recipe_runs.load(name), argv)
    return Path(target).read_text("utf-8")


def rows(text):
    """Rows of a .tsv file, with numbers."""
    header, *lines = (line.split("\t") for line in text.splitlines())
    return header, [[float(part) if part[:1] in "-0123456789" else part for part in line if part] for line in lines]


def test_killed_and_resumed(files, cluster, tmp_path):
    """A run that is killed after its first shard leaves it; the next computes the others: the recipe's predictions."""
    folder, model, _ = files
    target = tmp_path / "out.tsv"
    flags = ["--num_beams", "3", "--num_return_sequences", "2", "--max_target_length", "8", "--use_cpu"]
    argv = [model, "--task", "translation", "--test_file", f"{folder}/texts.txt", "--output_file", str(target)]
    argv += ["--shard_lines", "5", *flags]
    command = [sys.executable, "-u", "-m", "hfseq.ray_predict", *argv, "--address", cluster]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            printed = [line for _, line in zip(range(2), process.stdout, strict=False)]
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert printed[0] == "5 shards, 0 of them finished before\n" and printed[1].startswith("1 of 5: 5 texts, beam 3")
    finished = sorted(target.with_name("out.tsv.shards").glob("*.tsv"))
    assert finished and not target.exists()
    # A mark in what was finished, which is not computed again.
    finished[0].write_text(finished[0].read_text("utf-8").removesuffix("\n") + " kept\n", "utf-8")
    main(argv)
    found = target.read_text("utf-8")
    assert " kept\n" in found and not target.with_name("out.tsv.shards").exists()
    header, expected = rows(by_recipe("translation", model, f"{folder}/texts.txt", f"{tmp_path}/recipe.tsv", *flags))
    assert rows(found.replace(" kept\n", "\n")) == (header, [pytest.approx(row, abs=1e-4) for row in expected])


def test_classification(files, cluster, tmp_path):
    """Lines of JSON are classified as by the recipe, with the numbers of all rows."""
    folder, _, model = files
    argv = [model, "--task", "text-classification", "--test_file", f"{folder}/texts.jsonl", "--use_cpu"]
    argv += ["--shard_lines", "10"]
    main([*argv, "--output_file", f"{tmp_path}/out.jsonl"])
    text = by_recipe("sentiment", model, f"{folder}/texts.jsonl", f"{tmp_path}/recipe.jsonl", "--use_cpu")
    expected = [json.loads(line) for line in text.splitlines()]
    found = [json.loads(line) for line in Path(tmp_path, "out.jsonl").read_text("utf-8").splitlines()]
    assert [(one["row"], one["label"]) for one in found] == [(one["row"], one["label"]) for one in expected]
    assert [one["scores"] for one in found] == [pytest.approx(one["scores"], abs=1e-6) for one in expected]


def test_wrong_line(files, tmp_path):
    """A line that cannot be predicted is an error that names its shard, not one that Ray tries again."""
    source, target = tmp_path / "wrong.jsonl", tmp_path / "out.txt"
    source.write_text('{"text": "a"}\n' * 11 + "{}\n")
    predictor = Predictor("text-classification", files[2], str(source), ["--use_cpu"])
    (tmp_path / "out.txt.shards").mkdir()
    first, second = (predictor(shard._asdict()) for shard in split(str(source), str(target), 10, []))
    assert first["error"] == "" and "10 texts" in first["message"]
    assert re.search(r"from line 11 of .*wrong\.jsonl", second["error"])
    assert [Path(one["path"]).exists() for one in (first, second)] == [True, False]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_split(end, tmp_path):
    """Shards are whole lines, all of them, whatever ends them; lines and settings decide on their names."""
    source, lines = tmp_path / "in.txt", [f"{text}\r\n" for text in ("a", "", "ü", "b\u2028c")]
    source.write_bytes("".join([*lines, f"last{end}"]).encode())
    shards = list(split(str(source), "out.txt", 2, ["x"]))
    parts = [source.read_bytes()[shard.start : shard.stop].decode() for shard in shards]
    assert parts == ["".join(lines[:2]), "".join(lines[2:]), f"last{end}"]
    assert [shard.line for shard in shards] == [0, 2, 4]
    assert [Path(shard.path).parent.name for shard in shards] == ["out.txt.shards"] * 3
    assert shards == list(split(str(source), "out.txt", 2, ["x"]))
    assert not {shard.path for shard in shards} & {one.path for one in split(str(source), "out.txt", 2, ["y"])}
    source.write_bytes(source.read_bytes().replace(b"b", b"B"))
    changed = list(split(str(source), "out.txt", 2, ["x"]))
    assert [one == other for one, other in zip(shards, changed, strict=True)] == [True, False, True]


@pytest.mark.parametrize(
    ("suffix", "parts", "expected"),
    [
        (".txt", ["a\nb\n", "c\n"], "a\nb\nc\n"),
        (".tsv", ["row\tx\n1\ta\n1\tb\n2\tc\n", "row\tx\n1\td\n"], "row\tx\n1\ta\n1\tb\n2\tc\n3\td\n"),
        (
            ".jsonl",
            ['{"row": 1, "x": "ü"}\n', '{"row": 1, "x": 0.1}\n'],
            '{"row": 1, "x": "ü"}\n{"row": 2, "x": 0.1}\n',
        ),
    ],
)
def test_join(suffix, parts, expected, tmp_path):
    """Predictions of shards become one file, numbered as if there had been one."""
    shards = []
    for number, part in enumerate(parts):
        path = tmp_path / f"{number}{suffix}"
        path.write_text(part, "utf-8")
        shards.append(Shard(0, 0, 0, str(path)))
    join(shards, str(tmp_path / f"out{suffix}"))
    assert (tmp_path / f"out{suffix}").read_text("utf-8") == expected


def test_invalid(files, tmp_path):
    """Invalid arguments are rejected before Ray is started, and leave nothing."""
    folder, model, _ = files
    good = [model, "--test_file", f"{folder}/texts.txt", "--output_file", f"{tmp_path}/out.txt"]
    (tmp_path / "empty.txt").touch()
    (tmp_path / "there.txt").touch()
    for flags, message in {
        (): "no record of its task",
        ("--task", "translation", "--shard_lines", "0"): "must be positive",
        ("--task", "token-classification"): "known are translation",
        ("--task", "translation", "--test_file", f"{folder}/texts.csv"): "convert it to .jsonl",
        ("--task", "translation", "--test_file", f"{folder}/none.txt"): "cannot be read",
        ("--task", "translation", "--test_file", f"{tmp_path}/empty.txt"): "is empty",
        ("--task", "translation", "--output_file", f"{tmp_path}/there.txt"): "--overwrite_output_file",
    }.items():
        with pytest.raises(InputError, match=message):
            main([*good, *flags])
    assert not list(tmp_path.glob("*.shards"))


def test_model_digest(tmp_path):
    """Another file of the model, or another name on the Hub, is another model."""
    (tmp_path / "config.json").write_text("{}")
    first = model_digest(str(tmp_path))
    (tmp_path / "config.json").write_text("{ }")
    assert model_digest(str(tmp_path)) != first and model_digest("org/name@v1") == "org/name@v1"

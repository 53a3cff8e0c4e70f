"""YAML first, flags override; every mistake one line; the output directory."""

import json
import sys
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Literal

import processes
import pytest
from transformers import Seq2SeqTrainingArguments

from hfseq.errors import InputError
from hfseq.hub.model_card import PLOTS
from hfseq.training import cli
from hfseq.training.cli import (
    check_output_dir,
    demo_runs,
    explicit_fields,
    parse_config,
    prepare_output_dir,
    value_of,
)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Options:
    name: str
    rate: float = 0.5
    steps: int = 3
    maximum: int | None = 7
    fast: bool = False
    careful: bool = True
    maybe: bool | None = None
    words: list[str] = field(default_factory=lambda: ["a"])
    sizes: list[int] | None = None
    colour: Colour = Colour.RED
    mode: Literal["no", "yes", "12"] = "yes"
    extra: dict | str | None = None
    overrides: dict | None = None
    note: str | None = field(default="n", metadata={"help": "100 % free text"})

    def __post_init__(self):
        self.colour = Colour(self.colour)
        if self.steps < 0:
            raise ValueError("`steps` is\n  negative")


@pytest.fixture
def config(tmp_path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def options(*args: str) -> Options:
    (parsed,) = parse_config([Options], list(args))
    return parsed


def fails(*args: str, types=(Options,)) -> str:
    with pytest.raises(InputError) as caught:
        parse_config(types, list(args))
    message = str(caught.value)
    assert "\n" not in message and 0 < len(message) < 1000
    return message


def test_flags_alone():
    parsed = options("--name", "x", "--rate=1e-3", "--fast", "--no_careful", "--words", "b", "c", "--colour", "blue")
    assert parsed == Options("x", rate=1e-3, fast=True, careful=False, words=["b", "c"], colour=Colour.BLUE)


def test_every_type_from_yaml(config):
    path = config(
        "name: 007\nrate: 1e-3\nsteps: 12\nmaximum: null\nfast: true\ncareful: no\nmaybe: yes\nwords: [x, no, 1.10]\n"
        "sizes:\n  - 1\n  - 2\ncolour: blue\nmode: no\nextra: {min_lr: 1e-5, deep: {a: [1, 2e+3]}}\n"
        "overrides:\n  hidden_size: 8\nnote: 2031-03-05\n"
    )
    assert options(path) == Options(
        name="007",
        rate=1e-3,
        steps=12,
        maximum=None,
        fast=True,
        careful=False,
        maybe=True,
        words=["x", "no", "1.10"],
        sizes=[1, 2],
        colour=Colour.BLUE,
        mode="no",
        extra={"min_lr": 1e-5, "deep": {"a": [1, 2000.0]}},
        overrides={"hidden_size": 8},
        note="2031-03-05",
    )


def test_flags_override_yaml(config):
    path = config("name: x\nrate: 1e-3\ncareful: false\nfast: true\nwords: [p, q]\nmaximum: null\nextra: {a: 1}\n")
    flags = ["--name", "y", "--careful", "--fast", "false", "--words", "r", "--maximum", "4", "--extra", '{"b": 2}']
    parsed = options(path, *flags)
    assert parsed == Options("y", rate=1e-3, words=["r"], maximum=4, extra={"b": 2})
    assert options(path, "--no_careful").careful is False


def test_values_that_look_like_flags(config):
    path = config("name: --rate\nwords: [-1, --name, --x=y, '']\nnote: ' =a b'\n")
    assert options(path) == Options("--rate", words=["-1", "--name", "--x=y", ""], note=" =a b")
    assert options("--name=--rate=1", "--note=") == Options("--rate=1", note="")


def test_single_value_for_a_list_and_empty_file(config):
    assert options(config("words: one"), "--name", "x").words == ["one"]
    assert options(config("# nothing\n"), "--name", "x") == Options("x")


def test_a_mapping_as_a_flag():
    assert options("--name", "x", "--overrides", '{"a": 1e-5}').overrides == {"a": 1e-5}
    assert options("--name", "x", "--extra", "file.json").extra == "file.json"
    assert "--overrides: not a mapping: {a" in fails("--name", "x", "--overrides", "{a")
    assert "--extra: not a mapping: {a: 1}}" in fails("--name", "x", "--extra", "{a: 1}}")
    assert "--overrides: not a mapping: 3; give one such as" in fails("--name", "x", "--overrides", "3")


def test_a_mapping_in_the_flow_style_of_yaml_as_a_flag():
    flow = "{hidden_size: 32, rate: 1e-5, deep: {a: [1, no]}, name: 'x: y', none: null}"
    value = {"hidden_size": 32, "rate": 1e-5, "deep": {"a": [1, False]}, "name": "x: y", "none": None}
    assert options("--name", "x", "--overrides", flow, f"--extra= {flow}") == Options(
        "x", extra=value, overrides=value
    )
    flags = ["--output_dir", "x", "--use_cpu", "--lr_scheduler_kwargs", "{min_lr: 3e-5}"]
    flags += ["--lr_scheduler_type", "cosine_with_min_lr"]
    (training,) = parse_config([Seq2SeqTrainingArguments], flags)
    assert training.lr_scheduler_kwargs == {"min_lr": 3e-5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nrtae: 1", "line 2: unknown key 'rtae'; did you mean rate?"),
        ("name: x\nqqqqqq: 1", "line 2: unknown key 'qqqqqq'; --help lists all"),
        ("rate: fast", "line 1: rate: invalid float value: 'fast'"),
        ("steps: 1.5", "line 1: steps: invalid int value: '1.5'"),
        ("fast: perhaps", "line 1: fast: Truthy value expected"),
        ("mode: maybe", "line 1: mode: invalid choice: 'maybe'"),
        ("colour: green", "line 1: colour: invalid choice: 'green'"),
        ("name: x\nsteps:", "line 2: steps: has no value"),
        ("steps: [1, 2]", "line 1: steps: is a list"),
        ("steps: {a: 2}", "line 1: steps: is a mapping"),
        ("sizes: [1, [2]]", "line 1: sizes: is a list of something"),
        ("overrides: text", "line 1: overrides: not a mapping: text"),
        ("name: x\nname: y", "line 2: name is given a second time"),
        ("name: x\nnote: --", "line 2: note: -- is not a value"),
        ("words: [a, --, b]", "line 1: words: -- is not a value"),
        ("- name", "not a mapping"),
        ("name", "not a mapping"),
        ("name: [", "not YAML in UTF-8"),
        ("note: 2031-99-01", "not YAML in UTF-8: month must be in 1..12"),
        ("name: !!python/object:os.system x", "not YAML in UTF-8"),
        (b"name: \xff\xfe\xfa", "not YAML in UTF-8"),
    ],
)
def test_bad_yaml(config, text, message):
    path = config(text)
    error = fails(path)
    assert error.startswith(path) and message in error


def test_bad_files(tmp_path):
    missing = str(tmp_path / "missing.yml")
    assert fails(missing) == f"{missing}: cannot be read: No such file or directory"
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml: cannot be read: Is a directory" in fails(str(tmp_path / "folder.yaml"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rtae", "1"], "unknown flag --rtae; did you mean --rate?"),
        (["--rtae=1"], "unknown flag --rtae; did you mean --rate?"),
        (["--no_careful_"], "unknown flag --no_careful_; did you mean --no_careful?"),
        (["--overr", "{}"], "unknown flag --overr"),
        (["--rate", "fast"], "argument --rate: invalid float value: 'fast'"),
        (["--rate"], "argument --rate: expected one argument"),
        (["--mode", "maybe"], "argument --mode: invalid choice: 'maybe'"),
        (["--steps", "-1"], "`steps` is negative"),
        (["late.yaml"], "unexpected argument 'late.yaml'; a YAML file comes first"),
    ],
)
def test_bad_flags(flags, message):
    assert message in fails("--name", "x", *flags)


def test_required_field_missing():
    assert "the following arguments are required: --name" in fails("--rate", "1")


def test_training_arguments(config, tmp_path):
    path = config(
        f"name: x\noutput_dir: {tmp_path}/out\nlearning_rate: 1e-3\neval_strategy: no\nsave_strategy: 'no'\n"
        "report_to: [tensorboard, none]\nlr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 3e-5}\n"
        "use_cpu: true\nlabel_names: [labels]\noptim: adamw_torch\nseed: 3\n"
    )
    parsed, training = parse_config(
        (Options, Seq2SeqTrainingArguments), [path, "--seed", "4", "--predict_with_generate"]
    )
    assert parsed.name == "x"
    assert training.learning_rate == 1e-3 and training.seed == 4 and training.predict_with_generate
    assert training.eval_strategy == "no" and training.save_strategy == "no"
    assert training.lr_scheduler_kwargs == {"min_lr": 3e-5} and training.label_names == ["labels"]
    assert training.report_to == ["tensorboard", "none"]
    assert not (tmp_path / "out").exists()


def test_what_training_arguments_refuse_is_one_line(tmp_path):
    flags = ["--name", "x", "--output_dir", str(tmp_path), "--use_cpu", "--load_best_model_at_end"]
    message = fails(*flags, "--save_strategy", "epoch", types=(Options, Seq2SeqTrainingArguments))
    assert "load_best_model_at_end" in message


def test_explicit_fields(config):
    types = (Options, Seq2SeqTrainingArguments)
    path = config("name: x\nmaximum: null\nrate: 0.5\nlearning_rate: 1e-3\n")
    flags = [path, "--no_careful", "--max-grad-norm", "1.0", "--bf16", "false", "--rate", "2"]
    assert explicit_fields(types, flags) == {
        *("name", "maximum", "rate", "learning_rate", "careful", "max_grad_norm", "bf16")
    }
    assert explicit_fields(types, []) == set()


def test_help(capsys):
    for arguments in (["--help"], ["missing.txt", "--help"]):
        with pytest.raises(SystemExit) as caught:
            parse_config((Seq2SeqTrainingArguments,), arguments)
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert "[CONFIG.yaml]" in out and "--learning_rate" in out


def test_arguments_of_the_process(monkeypatch, config):
    monkeypatch.setattr(sys, "argv", ["recipe.py", config("name: x"), "--steps", "9"])
    assert parse_config([Options]) == (Options("x", steps=9),)


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (InputError("the file is wrong"), 1, "error: the file is wrong\n"),
        (KeyboardInterrupt(), 130, ""),
        (None, 0, ""),
        (0, 0, ""),
        (4, 4, ""),
    ],
    ids=repr,
)
def test_exit_codes(monkeypatch, capsys, outcome, code, said):
    def main(args):
        assert args is None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == code and capsys.readouterr() == ("", said)


def test_freed_memory_is_kept():
    """Blocks of 60 MB that are freed and allocated again cause a page fault each time for 4 KB that were returned."""
    code = """
import resource
from hfseq.training import cli


def main(argv):
    def allocate():
        [bytearray(b"1") * 3_000_000 for _ in range(20)]
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    before = max(allocate() for _ in range(3))
    print(max(allocate() for _ in range(3)) - before)


cli.run(main)
"""
    found = processes.run("-c", code)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 5000


def test_a_bug_keeps_its_traceback():
    def main(args):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        cli.run(main)


def test_other_ranks_let_the_first_speak(monkeypatch, capsys):
    def main(args):
        raise InputError("mine alone")

    waits = []
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: waits.append(capsys.readouterr().err))
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 1
    # Nothing is said before the wait, in which the launcher ends this process if rank 0 met the same error.
    assert waits == [""] and capsys.readouterr().err == "error (rank 1): mine alone\n"


def tree(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture
def used(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    for name in (
        *("checkpoint-10/model.safetensors", "checkpoint-20/trainer_state.json", "model.safetensors", "config.json"),
        *("all_results.json", "tokenizer.json", "notes.txt", "checkpoint-2 mine/keep", "mine.safetensors", "src/a.py"),
        *("checkpoint-30.partial/x", "predictions.txt", "scatter.png", "best_trial.yaml", "best_trial/mine"),
        *("detector.json", "scores.csv", "alarms.csv", "predictions.csv", "forecast.png", "anomalies.png"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_output_dir_not_empty(used):
    before = tree(used)
    for function in (check_output_dir, prepare_output_dir):
        with pytest.raises(
            InputError, match="not empty.*--resume_from_checkpoint last.*--overwrite_output_dir"
        ) as error:
            function(str(used), overwrite=False, resume=False)
        assert "\n" not in str(error.value)
    assert tree(used) == before


def test_overwrite_deletes_what_a_run_writes_and_nothing_else(used):
    # What tasks write: the card of the next run would show the plots.
    for name in (*PLOTS, "popularity.csv", "predictions.npz"):
        (used / name).write_text("old")
    before = tree(used)
    check_output_dir(str(used), overwrite=True, resume=False)
    assert tree(used) == before
    prepare_output_dir(str(used), overwrite=True, resume=False)
    kept = {"notes.txt", "checkpoint-2 mine/keep", "mine.safetensors", "src/a.py", "best_trial/mine"}
    # The run itself may have been given the best trial of a search.
    kept.add("best_trial.yaml")
    assert set(tree(used)) == kept


def test_overwrite_follows_no_link(used, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "model.safetensors").write_text("precious")
    (used / "checkpoint-40").symlink_to(elsewhere, target_is_directory=True)
    prepare_output_dir(str(used), overwrite=True, resume=False)
    assert not (used / "checkpoint-40").exists() and tree(elsewhere) == {"model.safetensors": "precious"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_resume_deletes_nothing(used, overwrite):
    before = tree(used)
    prepare_output_dir(str(used), overwrite=overwrite, resume=True)
    assert tree(used) == before


def test_output_dir_made_when_prepared(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    new = tmp_path / "a" / "b"
    check_output_dir(str(new), overwrite=False, resume=False)
    assert not new.exists()
    monkeypatch.setenv("RANK", "1")
    prepare_output_dir(str(new), overwrite=False, resume=False)
    assert not new.exists()
    monkeypatch.setenv("RANK", "0")
    prepare_output_dir(str(new), overwrite=False, resume=False)
    assert new.is_dir()
    prepare_output_dir(str(new), overwrite=False, resume=False)


def test_output_dir_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(InputError, match="is a file; give a directory"):
        prepare_output_dir(str(path), overwrite=True, resume=False)
    assert path.read_text() == "x"


def test_json_round_trip_of_a_mapping_flag():
    value = {"a": [1, None, True], "b": {"c": 1e-5}, "😀\t": "/é"}
    for text in (json.dumps(value), json.dumps(value, indent="\t"), json.dumps(value, separators=(",", ":"))):
        assert options("--name", "x", "--extra", text).extra == value


@pytest.fixture
def two(tmp_path):
    """The files of a demo of two runs."""
    (tmp_path / "one.yaml").write_text("output_dir: outputs/two/first\nmodel_type: a\n")
    (tmp_path / "two.yaml").write_text("output_dir: outputs/two/second\nmodel_name_or_path: outputs/two/first\n")
    return [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]


def test_runs_of_a_demo(two):
    runs = partial(demo_runs, configs=two, unless=["--train_file"], last_alone={"rate_of_last": ["--rate", "1"]})
    assert runs([]) == [[two[0]], [two[1]]]
    assert runs(["--seed", "3"]) == [[two[0], "--seed", "3"], [two[1], "--seed", "3"]]
    for flags in (["--output_dir", "here"], ["--output-dir=here"]):
        first, second = runs(flags)
        assert first == [two[0], *flags, "--output_dir", "here/first"]
        assert second == [two[1], *flags, "--output_dir", "here/second", "--model_name_or_path", "here/first"]
    given = ["--rate_of_last", "5"]
    assert runs(given) == [[two[0], *given, "--rate", "1"], [two[1], *given]]
    for flags in (["--train_file", "x"], ["--train-file=x"], ["--help"], ["own.yaml", "--output_dir", "here"]):
        assert runs(flags) == [flags]


def test_a_value_before_the_arguments_are_parsed(two):
    assert value_of([two[0], "--seed", "3"], "output_dir", "no") == "outputs/two/first"
    for flags in (
        ["--output_dir", "x"],
        ["--output-dir", "x"],
        ["--output-dir=x"],
        ["--output_dir=a", "--output_dir=x"],
    ):
        assert value_of([two[0], *flags], "output_dir", "no") == "x"
    assert value_of([], "output_dir", "no") == value_of(["--output_dir"], "output_dir", "no") == "no"

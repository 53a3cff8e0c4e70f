"""Command line of the recipes: a YAML file first, overridden by flags; every mistake is reported on one line."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import shutil
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from hfseq.errors import InputError, did_you_mean, one_line

# Names of what a training run writes at the top of its output directory, including the files of transformers; without
# `best_trial.yaml`, which the run itself may have been given.
_PRODUCED = re.compile(
    r"checkpoint-\d+(\.partial)?|model(-.*-of-.*)?\.safetensors|model\.safetensors\.index\.json"
    r"|(config|generation_config|(pre)?processor_config|trainer_state|.*_results|run)\.json|training_args\.bin|table\.(md|csv)"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|teacher_translations.*)\.json"
    r"|(vocab|merges)\.txt|(tokenizer|spiece)\.model|(source|target)\.spm|teacher_logits.*\.npy"
    r"|(predictions|samples)\.txt|(predictions|scores|alarms|popularity)\.csv|predictions\.npz|detector\.json"
    r"|(learning_curve|alignment|spectrogram|confusion_matrix|scatter|trade_off|forecast|anomalies|logos)\.png"
    r"|(frames|paths|clips)\.png|frames\.gif"
    r"|trials\.csv"
)
# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = (2**29, 2**25)
"""Bytes of freed memory that a process keeps; the second number where a glibc refuses the first."""


def parse_config(dataclass_types: Sequence[type], args: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Parse a recipe's arguments into dataclasses, as `HfArgumentParser` does; a YAML file may come first.

    `recipe.py config.yaml --learning_rate 1e-4` reads the file, a mapping of fields to values, and overrides it by the
    flags. A YAML value is read as a flag's would be: `1e-3` is a float if the field is a float, `no` and `007` are
    strings if the field is a string, and a required field given in the file counts as given. Beyond flags, YAML has
    `null` for optional fields, lists and mappings; a flag takes a mapping as JSON or in YAML's flow style.

    Args:
        dataclass_types: Dataclasses to fill; their field names are distinct.
        args: Arguments without the program's name; by default those of the process.

    Returns:
        An instance of each dataclass, in order.

    Raises:
        InputError: Unreadable file, unknown key or flag, invalid or missing value, or a value that is rejected by a
            dataclass's own checks (such as those of `TrainingArguments`).
    """
    parser = _parser(tuple(dataclass_types))
    values = parser.explicit_values(args)
    if missing := [f"--{name}" for name in parser.required if name not in values]:
        raise InputError(f"the following arguments are required: {', '.join(missing)}")
    try:
        return tuple(parser.parse_dict(values))
    except Exception as error:  # of transformers, accelerate and their plugins, too
        raise InputError(one_line(error, named=not isinstance(error, ValueError))) from error


def explicit_values(dataclass_types: Sequence[type], args: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the values of the fields that the user set, in the YAML file or by a flag.

    Takes the arguments of `parse_config`.
    """
    return _parser(tuple(dataclass_types)).explicit_values(args)


def explicit_fields(dataclass_types: Sequence[type], args: Sequence[str] | None = None) -> set[str]:
    """Return the names of the fields that the user set, so that a driver can reject those that it does not honor.

    Takes the arguments of `parse_config`.
    """
    return set(explicit_values(dataclass_types, args))


def run(main: Callable[[list[str] | None], int | None]) -> NoReturn:
    """Run a recipe's `main(None)` and exit: with 1 and one line on stderr for an `InputError`, with 130 for Ctrl-C.

    Any other exception is a bug and keeps its traceback. Of several processes, the first one reports.
    """
    keep_freed_memory()
    # Modules stay until the end: neither collections nor the end itself, which is one, need look through them.
    gc.freeze()
    try:
        sys.exit(main(None) or 0)
    except InputError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            # All ranks mostly meet the same error. Rank 0 says so and exits, at which the launcher ends the others;
            # one that is still here after this has an error of its own.
            time.sleep(5)
        print(f"error (rank {rank}): {error}" if rank else f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a training step frees for the next step.

    By default it returns the end of its heap to the kernel, and large blocks at once; the kernel has to clear every
    page of them again, which takes up to a quarter of the time of a small model on a CPU. Settings of the environment
    (`MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES`) are left alone, and so are other C libraries.
    """
    if platform.libc_ver()[0] == "glibc" and not any(
        name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ
    ):
        libc = ctypes.CDLL(None)
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            any(libc.mallopt(parameter, size) for size in _KEPT)  # 0 if it refuses


def check_output_dir(output_dir: str, *, overwrite: bool, resume: bool) -> None:
    """Reject a non-empty output directory unless the run overwrites or resumes; changes nothing.

    Raises:
        InputError: The directory is not empty, or the path is a file.
    """
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise InputError(f"--output_dir {output_dir} is a file; give a directory")
    if path.is_dir() and any(path.iterdir()) and not (overwrite or resume):
        raise InputError(
            f"--output_dir {output_dir} is not empty; give another one, or --resume_from_checkpoint last to resume "
            "the run, or --overwrite_output_dir to start from scratch"
        )


def prepare_output_dir(output_dir: str, parts: Sequence[str] = (), *, overwrite: bool, resume: bool) -> None:
    """Check the output directory and create or clear it; call it once all other inputs are checked.

    With `overwrite`, the output of an earlier run, whose checkpoints could be mistaken for those of the new run, is
    deleted: checkpoints, models, tokenizers, states and results, recognized by their names. Other files are kept, so
    that a wrong path costs nobody their files. With `resume` nothing is deleted. Only the first process (RANK) writes.

    Args:
        output_dir: Path of the directory.
        parts: Subdirectories with the models of a run that trains several; they are cleared, too.
        overwrite: Delete the output of an earlier run.
        resume: Keep it.

    Raises:
        InputError: As for `check_output_dir`.
    """
    check_output_dir(output_dir, overwrite=overwrite, resume=resume)
    if int(os.environ.get("RANK", "0")):
        return
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    folders = [Path(output_dir, part) for part in ("", *parts)] if overwrite and not resume else []
    for entry in [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()]:
        if _PRODUCED.fullmatch(entry.name):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


# Type of a YAML value to the error for a field that does not accept it.
_REFUSALS: dict[type, str] = {
    types.NoneType: "has no value; give one or leave the key out",
    dict: "is a mapping; give a single value",
    list: "is a list; give a single value",
}


class _Parser(HfArgumentParser):
    """`HfArgumentParser` that reads a YAML file first and raises one-line errors."""

    def __init__(self, dataclass_types: Any):
        # The types of each field, before HfArgumentParser settles on one for its flag.
        self.types: dict[str, set[Any]] = {}
        for kind in dataclass_types:
            hints = get_type_hints(kind)
            self.types |= {field.name: _types(hints[field.name]) for field in fields(kind) if field.init}
        self.flags: list[str] = []
        self.required: list[str] = []
        usage = "%(prog)s [CONFIG.yaml] [--FIELD VALUE ...]"
        super().__init__(dataclass_types, allow_abbrev=False, exit_on_error=False, usage=usage)

    def add_argument(self, *flags: Any, required: bool = False, **kwargs: Any) -> argparse.Action:
        """Add a flag; a required one may be given in the YAML file instead, which argparse knows nothing of."""
        name = flags[0].removeprefix("--")
        if dict in self.types.get(name, ()):
            kwargs["type"] = _mapping_or_text if kwargs["type"] is str else _mapping
        self.flags += flags
        self.required += [name] if required else []
        return super().add_argument(*flags, **kwargs)

    def explicit_values(self, args: Sequence[str] | None) -> dict[str, Any]:
        """Return the values given in the YAML file or by flags.

        Raises:
            InputError: Unreadable file, unknown key or flag, or invalid value.
        """
        flags = list(sys.argv[1:] if args is None else args)
        values = self._read_yaml(flags.pop(0)) if _has_config(flags) else {}
        try:
            given, unknown = self._given(flags)
        except argparse.ArgumentError as error:
            raise InputError(str(error)) from None
        if unknown and unknown[0].startswith("--"):
            flag = unknown[0].partition("=")[0]
            raise InputError(f"unknown flag {flag}{did_you_mean(flag, self.flags, '--help lists all')}")
        if unknown:
            raise InputError(
                f"unexpected argument {unknown[0]!r}; a YAML file comes first, anything else is --FIELD VALUE"
            )
        return values | given

    def _given(self, flags: list[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the values given by flags, none of which is None, and unknown arguments."""
        # argparse sets no default where the namespace has a value.
        namespace, unknown = self.parse_known_args(flags, argparse.Namespace(**dict.fromkeys(self.types)))
        return {name: value for name, value in vars(namespace).items() if value is not None}, unknown

    def _read_yaml(self, path: str) -> dict[str, Any]:
        """Return the values of a YAML file, converted."""
        values, root = _load_yaml(path)
        converted: dict[str, Any] = {}
        for key, node in root.value if root else ():
            name, where = key.value, f"{path}, line {key.start_mark.line + 1}"
            if name not in self.types:
                raise InputError(f"{where}: unknown key {name!r}{did_you_mean(name, self.types, '--help lists all')}")
            if name in converted:
                raise InputError(f"{where}: {name} is given a second time; keep one")
            try:
                converted[name] = self._from_yaml(name, node, values[name])
            except argparse.ArgumentError as error:
                raise InputError(f"{where}: {name}: {error.message}") from None
        return converted

    def _from_yaml(self, name: str, node: yaml.Node, value: Any) -> Any:
        """Convert a YAML value, or each item of a list, as a flag's would be.

        Args:
            name: Name of the field.
            node: The value as written, so that `no` and `007` remain unchanged if the field is a string.
            value: The value as YAML reads it.
        """
        kind = type(value)
        if kind in _REFUSALS and kind not in self.types[name]:
            raise argparse.ArgumentError(None, _REFUSALS[kind])
        if value is None or kind is dict:
            return value
        converted: list[Any] = []
        for item in node.value if kind is list else [node]:
            if not isinstance(item, yaml.ScalarNode):
                raise argparse.ArgumentError(None, "is a list of something other than single values")
            if item.value == "--":
                raise argparse.ArgumentError(None, "-- is not a value")  # argparse drops it
            found = self._given([f"--{name}={item.value}"])[0][name]
            converted += found if isinstance(found, list) else [found]
        return converted if kind is list else found


@cache
def _parser(dataclass_types: tuple[type, ...]) -> _Parser:
    """Return the parser of these dataclasses: a run asks for its arguments several times."""
    return _Parser(dataclass_types)


def _types(hint: Any) -> set[Any]:
    """Return a type and the members of a union, without their arguments."""
    return {get_origin(part) or part for part in (hint, *get_args(hint))}


def _mapping(text: str) -> Any:
    """Parse a mapping in JSON or in YAML's flow style."""
    try:
        # First, since YAML does not accept all of JSON: tabs, escaped surrogate pairs.
        value = json.loads(text)
    except json.JSONDecodeError:
        try:
            value = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"not a mapping: {text} ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"not a mapping: {text}; give one such as {{hidden_size: 32}}")
    return value


def _mapping_or_text(text: str) -> Any:
    """Parse a mapping; anything else, such as a path, remains text."""
    return _mapping(text) if text.lstrip().startswith("{") else text


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that also reads 1e-3 as a number, as YAML 1.2 does; it matters inside mappings."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _load_yaml(path: str) -> tuple[dict[str, Any], Any]:
    """Return the values of a YAML file, and its root node."""
    try:
        loader = _Loader(Path(path).read_bytes())
        root = loader.get_single_node()
        values = loader.construct_document(root) if root else {}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # a bad encoding, an impossible date
        raise InputError(f"{path}: not YAML in UTF-8: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a mapping; give lines such as `learning_rate: 1e-3`")
    return values, root


def _has_config(flags: Sequence[str]) -> bool:
    return bool(flags) and flags[0].endswith((".yaml", ".yml"))


def value_of(args: Sequence[str], name: str, default: str) -> str:
    """Return the value of one field before it is known which dataclasses the arguments fill.

    Args:
        args: Arguments as for `parse_config`.
        name: Name of the field.
        default: Value if it is not given.

    Raises:
        InputError: A YAML file cannot be read.
    """
    default = _load_yaml(args[0])[0].get(name, default) if _has_config(args) else default
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags = (f"--{name}", f"--{name.replace('_', '-')}")
    parser.add_argument(*flags, dest="value", nargs="?", const=default, default=default)
    return str(parser.parse_known_args(args)[0].value)


def _field_of(flag: str) -> str:
    """Return a flag without its value, spelled like its field."""
    name = flag.partition("=")[0]
    return f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name


def with_default_config(args: Sequence[str] | None, config: str | Path, unless: Sequence[str]) -> list[str]:
    """Insert a default YAML file unless the arguments start with one or contain a flag in `unless`.

    Args:
        args: Arguments without the program's name; by default those of the process.
        config: YAML file for a recipe that is told nothing about its data.
        unless: Flags that specify the data.
    """
    flags = list(sys.argv[1:] if args is None else args)
    if _has_config(flags) or {*map(_field_of, flags)} & {*unless, "--help", "-h"}:
        return flags
    return [str(config), *flags]


def demo_runs(
    args: Sequence[str] | None,
    configs: Sequence[str | Path],
    unless: Sequence[str],
    last_alone: Mapping[str, Sequence[str]],
) -> list[list[str]]:
    """Return the arguments of each run of a demo of several runs, or those given if they ask for no demo.

    If an output directory is given, each run gets a subdirectory of it, named as in its YAML file, and a run that
    starts from the model of an earlier one starts from the model there.

    Args:
        args: Arguments as for `with_default_config`.
        configs: YAML file of each run.
        unless: Flags as for `with_default_config`.
        last_alone: Field that is meant for the last run only, to the flags that the other runs get if it is given.
    """
    runs = [with_default_config(args, config, unless) for config in configs]
    if runs[0][:1] != [str(configs[0])]:
        return runs[:1]
    given = {_field_of(flag)[2:] for flag in runs[0][1:]}
    for flags in runs[:-1]:
        flags += [part for name, instead in last_alone.items() if name in given for part in instead]
    root = value_of(runs[0][1:], "output_dir", "")
    moved: dict[str, str] = {}
    for config, flags in zip(configs, runs, strict=True):
        usual, model = (value_of([str(config)], name, "") for name in ("output_dir", "model_name_or_path"))
        if root:
            moved[usual] = str(Path(root) / Path(usual).name)
            flags += ["--output_dir", moved[usual]]
        if model in moved:
            flags += ["--model_name_or_path", moved[model]]
    return runs

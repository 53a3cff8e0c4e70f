"""The command line of the recipes: YAML first, flags override, every mistake one line."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import shutil
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from hfseq.errors import InputError, one_line

# What a training run writes at the top of its output directory, transformers' names included.
_PRODUCED = (
    *("checkpoint-*", "config.json", "generation_config.json", "training_args.bin", "trainer_state.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "*_results.json", "run.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("teacher_logits*.npy", "teacher_translations*.json", "table.md", "table.csv"),
    *("vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "source.spm", "target.spm"),
)


def parse_config(dataclass_types: Sequence[type], args: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Parses a recipe's arguments into dataclasses, as `HfArgumentParser` does; a YAML file may come first.

    `recipe.py config.yaml --learning_rate 1e-4` reads the file, a mapping from field to value, and lets the flags
    override it. A YAML value is taken as a flag's would be: `1e-3` is a float where the field is one, `no` is the
    string where the field is a string, and a required field given there counts as given. Beyond flags, YAML can say
    `null` for a field that may be None, a list, and a mapping; a flag takes the mapping as JSON.

    Args:
        dataclass_types: The dataclasses to fill; no two share a field's name.
        args: The arguments, without the program's name; by default those of the process.

    Returns:
        One instance of each type, in order.

    Raises:
        InputError: A file that cannot be read, an unknown key or flag, a bad or missing value, and whatever a
            dataclass's own checks (those of `TrainingArguments`, say) refuse.
    """
    parser, flags = _parser(dataclass_types, args)
    _parse(parser, flags)
    try:
        return parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    except InputError:
        raise
    except Exception as error:  # of transformers, accelerate and their plugins, for a value that is none of theirs
        raise InputError(one_line(error, named=not isinstance(error, ValueError))) from error


def explicit_fields(dataclass_types: Sequence[type], args: Sequence[str] | None = None) -> set[str]:
    """Returns the names of the fields that the user set, in the YAML file or by a flag.

    Takes what `parse_config` takes. A driver that honours only some fields of
    `TrainingArguments` refuses the others by these.
    """
    return set(explicit_values(dataclass_types, args))


def explicit_values(dataclass_types: Sequence[type], args: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns the fields that the user set, in the YAML file or by a flag, and their values."""
    parser, flags = _parser(dataclass_types, args)
    for action in parser._actions:
        if action.dest not in parser.from_file:
            action.default, action.required = argparse.SUPPRESS, False
    return vars(_parse(parser, flags))


def run(main: Callable[[list[str] | None], int | None]) -> NoReturn:
    """Runs a recipe's `main(None)` and exits: 1 after one line on stderr for an `InputError`, 130 for Ctrl-C.

    Anything else is a fault of the program and keeps its traceback. With several processes the first one speaks.
    """
    try:
        code = main(None)
    except InputError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            # All ranks mostly meet the same error. Rank 0 says so and exits, at which the launcher ends the others;
            # one that is still here after this has an error of its own.
            time.sleep(5)
        print(f"error: {error}" if rank == 0 else f"error (rank {rank}): {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)


def check_output_dir(output_dir: str, *, overwrite: bool, resume: bool) -> None:
    """Refuses an output directory with something in it, unless the run overwrites or resumes; touches nothing.

    Raises:
        InputError: A non-empty directory without one of the two, or a path that is no directory.
    """
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise InputError(f"--output_dir {output_dir} is a file; give a directory")
    if path.is_dir() and any(path.iterdir()) and not (overwrite or resume):
        raise InputError(
            f"--output_dir {output_dir} is not empty; give another one, or --resume_from_checkpoint last to go on "
            "there, or --overwrite_output_dir to start afresh"
        )


def prepare_output_dir(output_dir: str, *, overwrite: bool, resume: bool) -> None:
    """Checks the output directory, then makes it ready; to be called when every other input has passed its check.

    With `overwrite`, what an earlier run wrote there goes, since its checkpoints would pass for those of the new run:
    checkpoints, models, tokenizers, states and results, known by their names. Anything else stays, so that a wrong
    path costs no one their files. With `resume` nothing is deleted, overwrite or not. Only the first process (RANK)
    changes the disk.

    Raises:
        InputError: As `check_output_dir`.
    """
    check_output_dir(output_dir, overwrite=overwrite, resume=resume)
    if int(os.environ.get("RANK", "0")):
        return
    path = Path(output_dir)
    if overwrite and not resume:
        for entry in [entry for pattern in _PRODUCED for entry in path.glob(pattern)]:
            if entry.name.startswith("checkpoint-") and not re.fullmatch(r"checkpoint-\d+(\.partial)?", entry.name):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    path.mkdir(parents=True, exist_ok=True)


def prepare_output_dirs(output_dir: str, parts: Sequence[str], *, overwrite: bool, resume: bool) -> None:
    """The same for a run that has trained models in folders below its own, of which some may be there.

    Raises:
        InputError: As `check_output_dir`.
    """
    prepare_output_dir(output_dir, overwrite=overwrite, resume=resume)
    for part in parts:
        if overwrite and not resume and (Path(output_dir) / part).is_dir():
            prepare_output_dir(str(Path(output_dir) / part), overwrite=True, resume=False)


class _Parser(HfArgumentParser):
    """HfArgumentParser that raises one line instead of a usage of two hundred flags."""

    def __init__(self, dataclass_types: Any):
        super().__init__(dataclass_types, allow_abbrev=False, usage="%(prog)s [CONFIG.yaml] [--FIELD VALUE ...]")
        self.from_file: set[str] = set()
        hints = {name: hint for kind in dataclass_types for name, hint in get_type_hints(kind).items()}
        # What each field takes, before HfArgumentParser settled on one type for its flag.
        self.takes = {name: {get_origin(part) or part for part in _parts(hint)} for name, hint in hints.items()}
        # A field with a no_ flag has two actions; the first is the one that takes a value.
        self.fields = {action.dest: action for action in reversed(self._actions) if action.dest in hints}
        for name, action in self.fields.items():
            if dict in self.takes[name]:
                action.type = _mapping_or_text if str in self.takes[name] else _mapping

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _mapping(text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not a JSON object: {text} ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"not a JSON object: {text}")
    return value


def _mapping_or_text(text: str) -> Any:
    return _mapping(text) if text.lstrip().startswith("{") else text


def _parser(dataclass_types: Sequence[type], args: Sequence[str] | None) -> tuple[_Parser, list[str]]:
    """Returns a parser whose defaults are those of the YAML file, and the flags that remain."""
    flags = list(sys.argv[1:] if args is None else args)
    parser = _Parser(dataclass_types)
    if flags and flags[0].endswith((".yaml", ".yml")):
        _read_yaml(parser, flags.pop(0))
    return parser, flags


def _parse(parser: _Parser, flags: list[str]) -> argparse.Namespace:
    namespace, unknown = parser.parse_known_args(flags)
    if unknown:
        first = unknown[0]
        if not first.startswith("--"):
            raise InputError(f"unexpected argument {first!r}; a YAML file comes first, anything else is --FIELD VALUE")
        flag = first.partition("=")[0]
        raise InputError(f"unknown flag {flag}{_meant(flag, parser._option_string_actions)}")
    return namespace


def _meant(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else "; --help lists all"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that takes 1e-3 for a number too, as YAML 1.2 does; it matters inside mappings."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _load_yaml(path: str) -> tuple[dict[str, Any], Any]:
    """The values of a YAML file, and its nodes."""
    try:
        loader = _Loader(Path(path).read_bytes())
        root = loader.get_single_node()
        values = loader.construct_document(root) if root else {}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML in UTF-8: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a mapping; give lines such as `learning_rate: 1e-3`")
    return values, root


def _read_yaml(parser: _Parser, path: str) -> None:
    """Makes the values of a YAML file the parser's defaults."""
    values, root = _load_yaml(path)
    for key, node in root.value if root else ():
        name, where = key.value, f"{path}, line {key.start_mark.line + 1}"
        if name not in parser.fields:
            raise InputError(f"{where}: unknown key {name!r}{_meant(name, parser.fields)}")
        if name in parser.from_file:
            raise InputError(f"{where}: {name} is given a second time; keep one")
        try:
            value = _from_yaml(parser, name, node, values[name])
        except (argparse.ArgumentError, argparse.ArgumentTypeError) as error:
            message = error.message if isinstance(error, argparse.ArgumentError) else error
            raise InputError(f"{where}: {name}: {message}") from None
        parser.from_file.add(name)
        parser.set_defaults(**{name: value})
        parser.fields[name].required = False


def _from_yaml(parser: _Parser, name: str, node: yaml.Node, value: Any) -> Any:
    """Returns what a flag with this YAML value would have given.

    Args:
        parser: Knows the field.
        name: The field.
        node: The value as written, so that `no` and `007` stay what they are where the field is a string.
        value: The value as YAML understands it.
    """
    action, takes = parser.fields[name], parser.takes[name]
    if value is None:
        if types.NoneType not in takes:
            raise argparse.ArgumentTypeError("has no value; give one or leave the key out")
        return None
    if isinstance(node, yaml.MappingNode):
        if dict not in takes:
            raise argparse.ArgumentTypeError("is a mapping; give a single value")
        return value
    if isinstance(node, yaml.SequenceNode):
        if list not in takes:
            raise argparse.ArgumentTypeError("is a list; give a single value")
        return [_convert(parser, action, item.value) for item in node.value]
    converted = _convert(parser, action, node.value)
    return [converted] if action.nargs == "+" else converted


def _convert(parser: _Parser, action: argparse.Action, text: str) -> Any:
    if not isinstance(text, str):
        raise argparse.ArgumentTypeError("is a list of something other than single values")
    value = parser._get_value(action, text)
    parser._check_value(action, value)
    return value


def value_of(args: Sequence[str], name: str, default: str) -> str:
    """What the arguments say of one field, before it is known which dataclasses they fill.

    Args:
        args: As of `parse_config`.
        name: The field's.
        default: Where they say nothing.

    Raises:
        InputError: If a YAML file cannot be read.
    """
    value = default
    if args and args[0].endswith((".yaml", ".yml")):
        value = _load_yaml(args[0])[0].get(name, default)
    for number, flag in enumerate(args):
        if _name_of(flag) == f"--{name}":
            _, equals, given = flag.partition("=")
            value = given if equals else next(iter(args[number + 1 :]), value)
    return str(value)


def _name_of(flag: str) -> str:
    """A flag without its value, its dashes those of the field."""
    name = flag.partition("=")[0]
    return f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name


def with_default_config(args: Sequence[str] | None, config: str | Path, unless: Sequence[str]) -> list[str]:
    """Puts a YAML file first where the arguments name neither another nor any of the flags `unless`.

    Args:
        args: The arguments, without the program's name; by default those of the process.
        config: The file that says what a recipe does when it is told nothing about its data.
        unless: Flags that say something about it.
    """
    flags = list(sys.argv[1:] if args is None else args)
    named = set(map(_name_of, flags))
    if flags and flags[0].endswith((".yaml", ".yml")) or named & {*unless, "--help", "-h"}:
        return flags
    return [str(config), *flags]


def demo_runs(
    args: Sequence[str] | None,
    configs: Sequence[str | Path],
    unless: Sequence[str],
    last_alone: Mapping[str, Sequence[str]],
) -> list[list[str]]:
    """The arguments of each run of a demo of several, or those given, where they ask for no demo.

    Where they name an output directory, each run has a folder in it, with the name that its file has for it; and a run
    that starts from the model of an earlier one starts from the one there.

    Args:
        args: As of `with_default_config`.
        configs: The file of each run.
        unless: As of `with_default_config`.
        last_alone: Field that is meant for the last run to what the others are told where it is given.
    """
    runs = [with_default_config(args, config, unless) for config in configs]
    if runs[0][:1] != [str(configs[0])]:
        return runs[:1]
    given = {_name_of(flag)[2:] for flag in runs[0][1:]}
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

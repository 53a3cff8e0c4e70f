"""Predict a file that is larger than one machine with Ray Data: in shards, in order, resumed after a kill.

    python -m hfseq.ray_predict outputs/translation --test_file big.txt --output_file big.out.txt --num_beams 5

writes what `recipes/translation.py --do_predict` with the same flags writes; likewise for summarization and for
classification (`recipes/sentiment.py`). The file is plain text or JSON Lines. Workers on all machines of the cluster
(`ray start`; by default the processors of this machine) predict shards of `--shard_lines` lines each, load the model
and read and write the files under the same paths. Finished shards are in `big.out.txt.shards` until all are: a run
that was killed computes only the others when it is started again. A shard of other lines, another model or other flags
does not count.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from hfseq.errors import InputError, require
from hfseq.version import __version__

_TABLES = (".csv", ".tsv", ".json", ".parquet")


class Shard(NamedTuple):
    """A part of the input file.

    Attributes:
        start: Offset of its first byte.
        stop: Offset behind its last byte.
        line: Number of its first line, from 0.
        path: File of its predictions; the name has a digest of the lines and settings.
    """

    start: int
    stop: int
    line: int
    path: str


def split(source: str, target: str, lines: int, settings: Sequence[str]) -> Iterator[Shard]:
    """Split a file into shards of whole lines.

    Args:
        source: Input file.
        target: Output file.
        lines: Number of lines of a shard.
        settings: Whatever the predictions depend on besides the lines.

    Raises:
        InputError: If the input file cannot be read.
    """
    common = hashlib.sha256(json.dumps([__version__, *settings]).encode())
    try:
        with open(source, "rb") as file:
            for number, (start, stop, digest) in enumerate(_blocks(file, lines, common)):
                path = Path(f"{target}.shards", f"{number:06d}-{digest}{Path(target).suffix}")
                yield Shard(start, stop, number * lines, str(path))
    except OSError as error:
        raise InputError(f"--test_file {source}: cannot be read: {error.strerror}") from None


def _blocks(file: BinaryIO, lines: int, common: Any) -> Iterator[tuple[int, int, str]]:
    """Offsets and digest of each block of lines."""
    stop = 0
    while True:
        start, digest = stop, common.copy()
        for _ in range(lines):
            line = file.readline()
            digest.update(line)
            stop += len(line)
        if start == stop:
            return
        yield start, stop, digest.hexdigest()[:32]


class Predictor:
    """A worker: predicts shards with the function of a recipe.

    Args:
        task: Name of the pipeline's task.
        model_dir: Directory or Hub name of the model.
        source: Input file.
        flags: Flags of the recipe.
    """

    def __init__(self, task: str, model_dir: str, source: str, flags: Sequence[str]) -> None:
        self._task = task
        self._model_dir = model_dir
        self._source = source
        self._flags = flags

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Predict a shard, a row with its fields.

        Returns:
            The row with `message`, the summary of the recipe, and `error`, None if there was none.
        """
        shard = Shard(**row)
        path = Path(shard.path)
        with tempfile.TemporaryDirectory() as folder:
            part, found = Path(folder, f"shard{Path(self._source).suffix}"), Path(folder, path.name)
            with open(self._source, "rb") as file:
                file.seek(shard.start)
                part.write_bytes(file.read(shard.stop - shard.start))
            files = ["--test_file", str(part), "--output_file", str(found)]
            run, predict = prepare(self._task, self._model_dir, [*self._flags, *files])
            run.args.seed += shard.line  # else every shard would draw the same
            messages: list[str] = []
            run.log = messages.append
            try:
                predict(run)
            except InputError as error:
                return {**row, "message": "", "error": f"{error} (from line {shard.line + 1} of {self._source})"}
            # Another worker may be writing the same shard if Ray took this one for dead.
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            shutil.copyfile(found, partial)
            os.replace(partial, path)
        message = " ".join(messages).removeprefix(f"{found}: ")
        return {**row, "message": message, "error": ""}


def prepare(task: str, model_dir: str, flags: Sequence[str]) -> tuple[Any, Callable[[Any], None]]:
    """The run of a recipe that predicts, and the function that does.

    Args:
        task: Name of the pipeline's task.
        model_dir: Directory or Hub name of the model.
        flags: Flags of the recipe.

    Raises:
        InputError: If the task has no such recipe, or a flag is invalid.
    """
    from hfseq.tasks.arguments import ClassArguments, SummarizationArguments, TranslationArguments
    from hfseq.tasks.classification import Classification
    from hfseq.tasks.seq2seq import Summarization, Translation
    from hfseq.training import predict_files
    from hfseq.training.arguments import GenerationArguments, ModelArguments, RecipeArguments
    from hfseq.training.run import begin

    argv = [*flags, "--do_predict", "--model_name_or_path", model_dir]
    if task == "translation":
        run = begin((ModelArguments, TranslationArguments, GenerationArguments), argv, Translation)
        return run, lambda run: predict_files.generate_file(run, run.data.source_lang, run.data.target_lang)
    if task == "summarization":
        run = begin((ModelArguments, SummarizationArguments, GenerationArguments), argv, Summarization)
        return run, lambda run: predict_files.generate_file(run, run.data.text_column, run.data.summary_column)
    if task == "text-classification":
        run = begin((ModelArguments, ClassArguments, RecipeArguments), argv, Classification)
        return run, lambda run: predict_files.classify_file(run, run.data.text_column)
    raise InputError(f"--task {task}: known are translation, summarization and text-classification")


def join(shards: Sequence[Shard], target: str) -> int:
    """Join the predictions of shards to one file, with the numbers of rows as if they had been one.

    Args:
        shards: The shards, in order, all finished.
        target: Output file.

    Returns:
        Number of rows.
    """
    kind, rows = Path(target).suffix.lower(), 0
    partial = Path(f"{target}.partial")
    with open(partial, "w", encoding="utf-8", newline="\n") as file:
        for number, shard in enumerate(shards):
            with open(shard.path, encoding="utf-8", newline="\n") as part:
                if kind == ".tsv":
                    header = part.readline()
                    file.write("" if number else header)
                last = 0
                for last, line in _numbered(part, kind):
                    file.write(_renumber(line, kind, rows + last))
                rows += last
    os.replace(partial, target)
    return rows


def _numbered(lines: Iterable[str], kind: str) -> Iterator[tuple[int, str]]:
    """Lines of predictions with the number of their row, from 1."""
    for number, line in enumerate(lines, 1):
        if kind == ".tsv":
            number = int(line.partition("\t")[0])
        elif kind == ".jsonl":
            number = json.loads(line)["row"]
        yield number, line


def _renumber(line: str, kind: str, row: int) -> str:
    """A line of predictions with another number of its row."""
    if kind == ".tsv":
        return "\t".join([str(row), line.partition("\t")[2]])
    if kind == ".jsonl":
        return json.dumps({**json.loads(line), "row": row}, ensure_ascii=False) + "\n"
    return line


def model_digest(model_dir: str) -> str:
    """A digest of a model's files; the name itself, with its revision, if it is on the Hub."""
    directory = Path(model_dir)
    if not directory.is_dir():
        return model_dir
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.iterdir() if path.is_file()):
        with open(path, "rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def recorded_task(model_dir: str) -> str:
    """The task of a model by the record of its run.

    Raises:
        InputError: If there is none.
    """
    from hfseq.hub.model_card import read_run

    task = read_run(Path(model_dir))[0].get("task") if Path(model_dir).is_dir() else None
    if task is None:
        raise InputError(f"{model_dir} has no record of its task; name it with --task")
    return str(task)


def main(argv: Sequence[str] | None = None) -> None:
    """Predict a file.

    Raises:
        InputError: If a flag, a file or the model is invalid.
    """
    parser = argparse.ArgumentParser(
        prog="python -m hfseq.ray_predict",
        description="Predict a file in shards with Ray Data. Further flags are those of the recipe's --do_predict.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model_dir", metavar="MODEL_DIR", help="directory or Hub name of a trained model")
    add("--test_file", required=True, help="plain text, one text a line, or JSON Lines")
    add("--output_file", required=True, help="predictions; .tsv and .jsonl with scores, otherwise plain text")
    add("--overwrite_output_file", action="store_true", help="overwrite output_file if it exists")
    add("--task", help="translation, summarization or text-classification; by default that of the model's run")
    add("--shard_lines", type=int, default=10_000, help="lines of a shard; a kill loses those that are not finished")
    add("--workers", type=int, help="maximum number of workers; by default as many as the cluster has room for")
    add("--num_cpus", type=float, default=1.0, help="processors, and threads, of a worker")
    add("--num_gpus", type=float, default=0.0, help="GPUs of a worker, or the share of one")
    add("--address", help="address of a Ray cluster, or auto; by default RAY_ADDRESS, or a Ray on this machine alone")
    given, flags = parser.parse_known_args(argv)
    require("ray", extra="ray", use="hfseq.ray_predict")
    predict_file(given, flags)


def predict_file(given: argparse.Namespace, flags: Sequence[str]) -> None:
    """Predict a file with the arguments of the command line, and those of the recipe.

    Raises:
        InputError: If a flag, a file or the model is invalid.
    """
    from hfseq.inference.files import check_output_file

    source, target = os.path.abspath(given.test_file), os.path.abspath(given.output_file)
    if Path(source).suffix.lower() in _TABLES:
        raise InputError(f"--test_file {given.test_file}: plain text or JSON Lines can be split; convert it to .jsonl")
    for name in ("shard_lines", "workers", "num_cpus"):
        if (value := getattr(given, name)) is not None and value <= 0:
            raise InputError(f"--{name} {value}: must be positive")
    model_dir = os.path.abspath(given.model_dir) if Path(given.model_dir).is_dir() else given.model_dir
    task = given.task or recorded_task(model_dir)
    # Now, rather than in every worker.
    run, _ = prepare(task, model_dir, [*flags, "--test_file", source, "--output_file", target])
    texts = getattr(run.data, "num_return_sequences", 1)
    check_output_file(target, overwrite=given.overwrite_output_file, num_return_sequences=texts)
    settings = [task, model_digest(model_dir), *flags]
    shards = list(split(source, target, given.shard_lines, settings))
    if not shards:
        raise InputError(f"--test_file {given.test_file} is empty")
    todo = [shard for shard in shards if not Path(shard.path).exists()]
    print(f"{len(shards)} shards, {len(shards) - len(todo)} of them finished before", flush=True)
    Path(f"{target}.shards").mkdir(parents=True, exist_ok=True)
    if todo:
        _compute(todo, given, (task, model_dir, source, flags))
    rows = join(shards, target)
    shutil.rmtree(f"{target}.shards")
    print(f"{given.output_file}: {rows} rows", flush=True)


def _compute(todo: Sequence[Shard], given: argparse.Namespace, arguments: tuple) -> None:
    """Predict shards on the workers of a cluster.

    Raises:
        InputError: That of a worker.
    """
    import ray
    from ray.data import ActorPoolStrategy

    if started := not ray.is_initialized():
        address = given.address or os.environ.get("RAY_ADDRESS") or "local"
        ray.init(address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    try:
        resources = ray.cluster_resources()
        room = int(resources.get("GPU", 0) / given.num_gpus if given.num_gpus else resources["CPU"] / given.num_cpus)
        workers = min(given.workers or room, len(todo))
        if not workers:
            raise InputError(f"the cluster has no room for a worker: {resources}")
        ray.data.DataContext.get_current().enable_progress_bars = False
        # A block each, so that each is given to a worker when one has time.
        data: Any = ray.data.from_items([shard._asdict() for shard in todo], override_num_blocks=len(todo))
        data = data.map(
            Predictor,
            fn_constructor_args=arguments,
            compute=ActorPoolStrategy(min_size=1, max_size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=given.num_cpus,
            num_gpus=given.num_gpus or None,
        )
        for count, row in enumerate(data.iter_rows(), 1):
            if row["error"]:
                raise InputError(row["error"])
            print(f"{count} of {len(todo)}: {row['message']}", flush=True)
    finally:
        if started:
            ray.shutdown()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)

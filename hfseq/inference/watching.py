"""Alarms of a stream of steps that come as lines of text, with a state that survives a restart."""

import csv
import math
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.anomalies import UNTIMED, parse_time
from hfseq.data.anomalies import event_texts as texts_of
from hfseq.data.series import MISSING, is_number
from hfseq.errors import InputError
from hfseq.inference.anomalies import Settings, Stream
from hfseq.models import is_hfseq


class _Stopped(Exception):
    """The process is asked to end."""


def watch(
    lines: Iterable[str],
    model: PreTrainedModel,
    settings: Settings,
    options: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Print an alarm for each step above the threshold, unless one is on.

    The first line names the columns, as in a file. A line that cannot be read is reported on standard error and left
    out, and so is one that is not after the last step; of lines that are sent again after a restart, the number is
    reported. The state is saved every `save_every` steps, at the end of the input and when the process is asked to
    end, which finishes a step that it has begun.

    Args:
        lines: Lines of CSV, with a column of time stamps if the detector was trained with one.
        model: Model of the detector.
        settings: Its settings.
        options: `series`, `state_file`, `save_every`, `time_column` of `AnomalyArguments`.
        tokenizer: Tokenizer of a causal language model.

    Raises:
        InputError: The columns are not those of the detector, the state belongs to another one, or its file cannot be
            written.
    """
    if not is_hfseq(model.config):
        raise InputError("--watch: the state of a Transformer grows with the stream; use a model of hfseq")
    stream = Stream(model, settings, options.series, tokenizer)
    if options.state_file is not None and not Path(options.state_file).parent.is_dir():
        raise InputError(f"--state_file {options.state_file}: there is no such folder")
    if options.state_file is not None and Path(options.state_file).exists():
        stream.load(options.state_file)
        _report(f"continuing after {stream.steps:,} steps")
    if math.isinf(settings.threshold):
        _report("the threshold is infinite, so there will be no alarm; train with more held-out rows")
    reader = _Reader(settings, options.time_column)
    before, old = stream.steps, 0
    try:
        with _Signals() as signals:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                with signals.held():
                    try:
                        step = reader.read(line, stream)
                    except _OldLineError as error:
                        if before and stream.steps == before:
                            old += 1
                        else:
                            _report(f"line {number}: {error}; it is left out")
                        continue
                    except _BadLineError as error:
                        _report(f"line {number}: {error}; it is left out")
                        continue
                    if step is None:
                        continue
                    if old and stream.steps == before:
                        _report_old(old)
                    score = float(stream.push(*step)[0])
                    if stream.raises_alarm(score, stream.last_time):
                        print(_alarm(stream, settings, score), flush=True)
                    if options.state_file is not None and stream.steps % options.save_every == 0:
                        stream.save(options.state_file)
    except (_Stopped, KeyboardInterrupt):
        pass
    if old and stream.steps == before:
        _report_old(old)
    if options.state_file is not None and stream.steps:
        stream.save(options.state_file)
    _report(f"{stream.steps:,} steps")


def whole_lines(file: Iterable[str]) -> Iterator[str]:
    """Lines of a stream; the last one is reported and left out if it has no end, as its last number may be cut."""
    for number, line in enumerate(file, 1):
        if line.endswith("\n"):
            yield line
        else:
            _report(f"line {number}: the input ends within it; it is left out")


class _BadLineError(Exception):
    """A line that cannot be read; the message says why."""


class _OldLineError(_BadLineError):
    """A line that is not after the last step."""


class _Reader:
    """Steps of lines of CSV.

    Args:
        settings: Settings of the detector, with its columns.
        time_column: Column of the time stamps.
    """

    def __init__(self, settings: Settings, time_column: str) -> None:
        self.settings, self.time_column = settings, time_column
        self.header: list[str] | None = None

    def read(self, line: str, stream: Stream) -> tuple[Any, np.ndarray, Sequence[str] | None] | None:
        """Arguments of `Stream.push` for a step; None for the header."""
        try:
            line.encode()
            fields = [text.strip() for text in next(csv.reader([line.removeprefix("\ufeff")]))]
        except UnicodeEncodeError:  # an escaped byte
            raise _BadLineError("it is not UTF-8") from None
        except csv.Error:  # such as a carriage return within it
            raise _BadLineError("it is not a line of CSV") from None
        if self.header is None:
            self._check_header(fields)
            self.header = fields
            return None
        if fields == self.header:
            return None  # sent again after a restart
        if len(fields) != len(self.header):
            raise _BadLineError(f"{len(fields)} fields, but the first line has {len(self.header)}")
        row = dict(zip(self.header, fields, strict=True))
        settings = self.settings
        if settings.timed:
            time = parse_time(row[self.time_column])
            if time is None:
                raise _BadLineError(f"{row[self.time_column]!r} is not a time stamp")
            same = settings.event_columns is not None and time == stream.last_time
            if time <= stream.last_time and not same:
                raise _OldLineError(f"{row[self.time_column]} is not after the last step")
        else:
            time = UNTIMED * stream.steps
        times = np.array([time])
        if settings.event_columns is None:
            return np.array([[_number(name, row[name]) for name in settings.columns]]), times, None
        numbers = np.array([[_number(name, row[name]) for name in settings.number_columns]])
        gap = np.array([time - stream.last_time if stream.steps else 0.0]) if settings.gaps else None
        words = {name: [row[name]] for name in settings.event_columns}
        texts = texts_of(words, settings.number_columns, numbers, gap)
        if not texts[0].strip():
            raise _BadLineError("the event is empty")
        return None, times, texts

    def _check_header(self, fields: list[str]) -> None:
        settings = self.settings
        wanted = [self.time_column] if settings.timed else []
        wanted += settings.columns if settings.event_columns is None else settings.event_columns
        wanted += settings.number_columns
        for name in wanted:
            if fields.count(name) > 1:
                raise InputError(f"standard input, line 1: {fields.count(name)} columns are called {name!r}")
            if name not in fields:
                raise InputError(
                    f"standard input, line 1: no column {name!r}; the first line must name the columns: "
                    f"{','.join(wanted)}"
                )


def _number(name: str, text: str) -> float:
    if text.lower() in MISSING:
        return math.nan
    if not is_number(text):
        raise _BadLineError(f"column {name!r}: {text!r} is not a number")
    value = float(text)
    if math.isinf(value):
        raise _BadLineError(f"column {name!r} is infinite")
    return value


def _alarm(stream: Stream, settings: Settings, score: float) -> str:
    """Line of an alarm: time, score, and the column that is least likely."""
    if settings.timed:
        when = datetime.fromtimestamp(stream.last_time, UTC).strftime("%Y-%m-%d %H:%M:%S")
    else:
        when = f"step {stream.steps}"
    column = ""
    if len(settings.columns) > 1:
        column = f" in {settings.columns[int(np.argmax(stream.last_scores))]}"
    return f"{when} alarm: score {score:.2f}, threshold {settings.threshold:.2f}{column}"


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _report_old(count: int) -> None:
    _report(f"{count:,} line{'s' * (count != 1)} up to the last step {'are' if count != 1 else 'is'} left out")


class _Signals:
    """Context in which Ctrl-C and the signal of a service manager raise `_Stopped`, so that the state is saved.

    A signal that comes during a step waits for its end: half of a step would be in the state.
    """

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}
        self.holding = self.stopped = False

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError):  # not the main thread, as in a test or an application
                self.before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if not self.holding:
            raise _Stopped

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep signals waiting until the end of a step."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        if self.stopped:
            raise _Stopped

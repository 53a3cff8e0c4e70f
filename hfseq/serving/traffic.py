"""Log of served traffic: inputs and outputs as JSON lines in a directory, rotated, for `recipes/monitoring.py`."""

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypedDict

from hfseq.errors import blaming

logger = logging.getLogger(__name__)

PATTERN = "traffic-*.jsonl"
"""Names of the files of a log."""
QUEUED_BYTES = 16 * 2**20
"""Bytes that may wait to be written; the disk is too slow for the traffic where they do not suffice."""


class Record(TypedDict):
    """One input of a request, with its output.

    Attributes:
        id: Id of the request, with `-N` after it for the N-th input of a list.
        time: Time of the answer, ISO 8601 in UTC.
        model: Name of the model.
        task: Name of the pipeline's task.
        inputs: The input, any JSON.
        parameters: Parameters of the request.
        output: The output, any JSON.
    """

    id: str
    time: str
    model: str
    task: str
    inputs: Any
    parameters: dict[str, Any]
    output: Any


def check_directory(directory: str | os.PathLike) -> None:
    """Create the directory of a log, and check that files can be created in it, before any request comes.

    Raises:
        InputError: If they cannot.
    """
    with blaming(f"--traffic_dir {os.fspath(directory)}"):
        folder = Path(directory)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass


class TrafficLog:
    """Log of inputs and outputs that neither delays nor fails a request.

    A thread writes the records to `traffic-TIME-PID.jsonl`, readable by the owner alone, since they hold what users
    wrote. Records that cannot be written, because the disk is full or slow or the directory is not writable, are
    dropped and counted, with one warning for each cause. Several processes may share a directory; a file belongs to
    one of them.

    Args:
        directory: Directory of the files; created if it does not exist.
        max_bytes: Size of a file in bytes from which a new one is begun.
        max_files: Number of files in the directory; the oldest beyond it are deleted. More than the number of
            processes that share the directory.

    Attributes:
        dropped: Number of records that were not written.
    """

    def __init__(self, directory: str | os.PathLike, *, max_bytes: int = 64 * 2**20, max_files: int = 20) -> None:
        self.directory = Path(directory)
        self.max_bytes, self.max_files = max_bytes, max_files
        self.dropped = 0
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._closed = False
        self._warned: set[str] = set()
        self._file: int | None = None
        self._size = 0
        # A daemon: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._drain, name="traffic-log", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Queue a record, or drop it if the queue is full, the log closed or a value not JSON; from any thread.

        Args:
            record: Fields as in `Record`. Unpaired surrogates become "?".
        """
        try:
            # Here and not in the thread: the caller may change the record afterwards.
            line = json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            self._drop(f"a record is not JSON ({error})", "json")
            return
        with self._changed:
            if accepted := not self._closed and self._waiting + len(line) <= QUEUED_BYTES:
                self._lines.append(line)
                self._waiting += len(line)
                self._changed.notify()
        if not accepted:
            self._drop("the log is closed" if self._closed else "they come faster than they can be written", "queue")

    def close(self, timeout: float = 10.0) -> None:
        """Write what is queued, and end the thread.

        Args:
            timeout: Seconds after which the records still queued are given up.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            left = len(self._lines)
            self._lines.clear()
            self.dropped += left
            dropped = self.dropped
        if dropped:
            logger.warning("%s: %d records were dropped in all", self.directory, dropped)

    def _drop(self, reason: str, cause: str) -> None:
        with self._changed:
            self.dropped += 1
            first = cause not in self._warned
            self._warned.add(cause)
        if first:
            logger.warning("%s: records are dropped: %s; no further warning", self.directory, reason)

    def _drain(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed)
                if not self._lines:
                    break
                line = self._lines.popleft()
                self._waiting -= len(line)
            try:
                self._append(line)
            except OSError as error:
                self._drop(str(error), "disk")
        self._end_file()

    def _append(self, line: bytes) -> None:
        """Append a line whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        # A file that somebody deleted or moved away would take lines that nobody reads.
        if self._file is not None and not os.fstat(self._file).st_nlink:
            self._end_file()
        if self._file is not None and self._size and self._size + len(line) > self.max_bytes:
            self._end_file()
        if self._file is None:
            self._begin_file()
        file, written = self._file, 0
        assert file is not None
        try:
            while written < len(line):
                written += os.write(file, line[written:])
        except OSError:
            # On a full disk a part of the line may have been written.
            try:
                os.ftruncate(file, self._size)
            except OSError:
                self._end_file()
            raise
        self._size += written

    def _begin_file(self) -> None:
        """Begin a file, and delete the oldest ones.

        Raises:
            OSError: The directory or the file cannot be created.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"traffic-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._file, self._size = os.open(self.directory / name, flags, 0o600), 0
        aged = []
        for path in self.directory.glob(PATTERN):
            try:
                aged.append((path.stat().st_mtime_ns, path))
            except FileNotFoundError:  # another process has just deleted it
                continue
        for _, path in sorted(aged)[: -self.max_files]:
            path.unlink(missing_ok=True)

    def _end_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

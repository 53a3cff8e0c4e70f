"""The log of served traffic: complete lines, rotation, and faults of the disk that no request notices."""

import errno
import json
import os
import stat
import threading

import pytest

from hfseq.serving import traffic
from hfseq.serving.traffic import TrafficLog


def record(number, text="text"):
    fields = {"id": f"r-{number}", "time": "2026-01-01T00:00:00Z", "model": "m", "task": "text-classification"}
    return fields | {"inputs": text, "parameters": {}, "output": [{"label": "good", "score": 0.5}]}


def read(directory):
    files = sorted(directory.glob("traffic-*.jsonl"))
    return [[json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files]


def full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_records_of_many_threads_are_whole_lines(tmp_path):
    log = TrafficLog(tmp_path / "new" / "log")
    threads = [
        threading.Thread(target=lambda first=first: [log.write(record(n)) for n in range(first, first + 200)])
        for first in range(0, 1600, 200)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    (found,) = read(tmp_path / "new" / "log")
    assert sorted(one["id"] for one in found) == sorted(f"r-{n}" for n in range(1600)) and log.dropped == 0
    assert found[0] == record(int(found[0]["id"][2:]))
    (file,) = (tmp_path / "new" / "log").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and f"-{os.getpid()}.jsonl" in file.name


def test_a_record_is_written_as_it_was(tmp_path):
    log, sent = TrafficLog(tmp_path), record(0, "Grüße \ud800 \n 日本")
    log.write(sent)
    sent["inputs"] = "changed"
    log.close()
    assert read(tmp_path)[0][0]["inputs"] == "Grüße ? \n 日本"


def test_rotation_by_size_keeps_the_newest_files(tmp_path):
    log = TrafficLog(tmp_path, max_bytes=2 * len(json.dumps(record(10))) + 2, max_files=3)
    (tmp_path / "traffic.txt").write_text("not of the log")
    for number in range(10, 20):
        log.write(record(number))
    log.close()
    found = read(tmp_path)
    assert [[one["id"] for one in file] for file in found] == [
        [f"r-{number}", f"r-{number + 1}"] for number in (14, 16, 18)
    ]
    assert (tmp_path / "traffic.txt").exists() and log.dropped == 0


def test_a_record_above_the_size_of_a_file_has_its_own(tmp_path):
    log = TrafficLog(tmp_path, max_bytes=10)
    for number in range(2):
        log.write(record(number))
    log.close()
    assert [len(file) for file in read(tmp_path)] == [1, 1]


def test_a_full_disk_drops_whole_records_and_warns_once(tmp_path, monkeypatch, caplog):
    real, size = os.write, len(json.dumps(record(10))) + 1

    def write(file, data):
        """Write what fits on a disk of three records."""
        room = 3 * size - os.fstat(file).st_size
        return real(file, data[:room]) if room else full_disk()

    monkeypatch.setattr(traffic.os, "write", write)
    log = TrafficLog(tmp_path)
    for number, text in ((10, "text"), (11, "long" * size), (12, "text"), (13, "text"), (14, "text")):
        log.write(record(number, text))
    log.close()
    # Nothing of record 11, a part of which fitted.
    assert [one["id"] for one in read(tmp_path)[0]] == ["r-10", "r-12", "r-13"] and log.dropped == 2
    first, last = caplog.messages
    assert "No space left on device" in first and "2 records were dropped in all" in last


def test_an_unwritable_directory_fails_no_request(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(traffic.os, "open", lambda *args: full_disk())
    log = TrafficLog(tmp_path)
    for number in range(3):
        log.write(record(number))
    log.close()
    assert log.dropped == 3 and not list(tmp_path.iterdir()) and len(caplog.messages) == 2
    (tmp_path / "file").write_text("")
    log = TrafficLog(tmp_path / "file" / "log")
    log.write(record(0))
    log.close()
    assert log.dropped == 1


def test_a_full_queue_drops_records_at_once(tmp_path, monkeypatch, caplog):
    begun, released = threading.Event(), threading.Event()
    real = os.write

    def write(file, data):
        begun.set()
        assert released.wait(60)
        return real(file, data)

    monkeypatch.setattr(traffic.os, "write", write)
    monkeypatch.setattr(traffic, "QUEUED_BYTES", 3 * len(json.dumps(record(0))) + 3)
    log = TrafficLog(tmp_path)
    log.write(record(0))
    assert begun.wait(60)
    for number in range(1, 8):  # while the disk hangs
        log.write(record(number))
    assert log.dropped == 4
    released.set()
    log.close()
    assert [one["id"] for one in read(tmp_path)[0]] == ["r-0", "r-1", "r-2", "r-3"]
    assert "faster than they can be written" in caplog.messages[0] and len(caplog.messages) == 2


def test_a_disk_that_hangs_does_not_keep_the_log_open(tmp_path, monkeypatch):
    begun, released = threading.Event(), threading.Event()
    monkeypatch.setattr(traffic.os, "write", lambda file, data: begun.set() or released.wait(60) or len(data))
    log = TrafficLog(tmp_path)
    for number in range(3):
        log.write(record(number))
    assert begun.wait(60)
    log.close(timeout=0)
    assert log.dropped == 2
    released.set()
    log._thread.join(60)


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes"])
def test_a_value_that_is_not_json_is_dropped(value, tmp_path, caplog):
    log = TrafficLog(tmp_path)
    log.write(record(0) | {"output": value})
    log.write(record(1))
    log.close()
    assert [one["id"] for one in read(tmp_path)[0]] == ["r-1"] and log.dropped == 1
    assert "not JSON" in caplog.messages[0]


def test_a_deleted_file_is_replaced(tmp_path, monkeypatch):
    real, written = os.write, threading.Event()
    monkeypatch.setattr(traffic.os, "write", lambda *args: (real(*args), written.set())[0])
    log = TrafficLog(tmp_path)
    log.write(record(0))
    assert written.wait(60)
    (file,) = tmp_path.iterdir()
    file.unlink()
    log.write(record(1))
    log.close()
    log.write(record(2))
    assert [one["id"] for one in read(tmp_path)[0]] == ["r-1"] and log.dropped == 1

"""Embedded anomaly detection data: network flows of an imagined small site, with attacks and outages.

The flows are synthetic: an office of twelve workstations, six devices that report all day, and a web server, as its
router would log them, drawn by a program from the rates below. They have the rhythms that make such logs hard (working
hours, lunch, weekends, visitors in the evening, a backup each night, updates each Wednesday) and the harmless bursts
that make alarms false (uploads, calls, crawlers, a printer that does not answer, the probes that every address of the
internet gets). Planted into them, at random times and of random intensity, are port scans, floods, exfiltration and
stalls of the uplink. A score here says nothing about the traffic of a real network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hfseq.data.splits import SPLITS
from hfseq.errors import InputError
from hfseq.lazy import datasets

KINDS = ("scan", "flood", "exfiltration", "stall")
"""Kinds of anomalies: a port scan, a flood of requests, data taken out, and a stall of the uplink."""
START = 1_704_067_200
"""Time of the first training flow's day, in seconds since 1970: Monday, 2024-01-01, 00:00 UTC."""
COLUMNS = ("time", "source", "destination", "protocol", "port", "state", "bytes_out", "bytes_in", "label")
"""Columns of the flows; see `flow_rows`."""
COUNTS = ("flows", "hosts", "ports", "failed", "bytes_out", "bytes_in")
"""Columns of numbers of an interval; see `flow_counts`."""

_DAY, _MINUTE = 86_400, 60
_DAYS = {"train": 28, "validation": 14, "test": 28}
# Anomalies of each kind a week.
_PER_WEEK = 3
# Seconds between the end of an anomaly and the start of the next one, at least.
_APART = 3 * 3600
_WORKSTATIONS, _DEVICES, _REMOTE = 12, 6, 400
_HOSTS = np.array(
    [
        *(f"workstation{number}" for number in range(1, _WORKSTATIONS + 1)),
        *(f"device{number}" for number in range(1, _DEVICES + 1)),
        *("web", "mail", "nas", "printer"),
        *(f"remote{number}" for number in range(1, _REMOTE + 1)),
        *(f"visitor{number}" for number in range(1, 5001)),
    ]
)
_WEB, _NAS, _PRINTER = (int(np.flatnonzero(_HOSTS == name)[0]) for name in ("web", "nas", "printer"))
_FIRST_REMOTE = int(np.flatnonzero(_HOSTS == "remote1")[0])
_FIRST_VISITOR = _FIRST_REMOTE + _REMOTE
_STATES = np.array(["SF", "S0", "REJ"])
_SF, _S0, _REJ = range(3)
_PROTOCOLS = np.array(["tcp", "udp"])
_TCP, _UDP = range(2)
_PROBED = np.array([21, 22, 23, 25, 80, 110, 139, 443, 445, 1433, 3306, 3389, 5900, 6379, 8080])


class _Flows(NamedTuple):
    """Columns of numbers: times in seconds, indices of hosts, protocols and states, ports, bytes, and the kind."""

    time: NDArray[np.float64]
    source: NDArray[np.int64]
    destination: NDArray[np.int64]
    protocol: NDArray[np.int64]
    port: NDArray[np.int64]
    state: NDArray[np.int64]
    bytes_out: NDArray[np.float64]
    bytes_in: NDArray[np.float64]
    kind: NDArray[np.int64]


class Anomaly(NamedTuple):
    """A planted anomaly.

    Attributes:
        kind: A name in `KINDS`.
        start: Begin, in seconds since 1970.
        stop: End.
        size: Number of probed ports or of requests, bytes taken, or share of the flows that are lost.
    """

    kind: str
    start: float
    stop: float
    size: float


def flow_rows(
    *,
    train_days: int = _DAYS["train"],
    validation_days: int = _DAYS["validation"],
    test_days: int = _DAYS["test"],
    seed: int = 0,
) -> datasets.DatasetDict:
    """Draw the flows of successive days; those of `train` are without anomalies.

    The columns are

    - `time`: begin of the flow, in whole seconds since 1970, in order;
    - `source`, `destination`: names of the hosts; `remote…` and `visitor…` are outside;
    - `protocol` (tcp, udp) and `port` of the destination;
    - `state`: SF, answered; S0, no answer; REJ, refused (as in the logs of Zeek);
    - `bytes_out`, `bytes_in`: bytes from source to destination, and back;
    - `label`: "" or a name in `KINDS`, of flows that an anomaly made. A stall makes none: it is in `flow_anomalies`.

    Args:
        train_days: Number of days in `train`.
        validation_days: Number of days in `validation`.
        test_days: Number of days in `test`.
        seed: Selects all that is random.

    Raises:
        InputError: A number of days is below 1.
    """
    splits, begin = {}, START
    for split, days in zip(SPLITS, (train_days, validation_days, test_days), strict=True):
        if days < 1:
            raise InputError(f"{split}_days: {days} is too few; give 1 or more")
        flows = _draw(split, begin, days, seed)
        labels = np.array(["", *KINDS])
        columns = (
            flows.time.astype(np.int64),
            *(_HOSTS[flows.source], _HOSTS[flows.destination], _PROTOCOLS[flows.protocol], flows.port),
            *(_STATES[flows.state], flows.bytes_out.astype(np.int64), flows.bytes_in.astype(np.int64)),
            labels[flows.kind],
        )
        splits[split] = datasets.Dataset.from_dict(dict(zip(COLUMNS, columns, strict=True)))
        begin += days * _DAY
    return datasets.DatasetDict(splits)


def flow_anomalies(split: str, *, begin: int, days: int, seed: int = 0) -> list[Anomaly]:
    """Return the anomalies planted into a split, in order.

    Args:
        split: `validation` or `test`; `train` has none.
        begin: Begin of its first day, in seconds since 1970.
        days: Its number of days.
        seed: As for `flow_rows`.
    """
    if split == "train":
        return []
    rng = _generator(seed, split, 1)
    count = max(1, round(_PER_WEEK * days / 7))
    found: list[Anomaly] = []
    for kind in np.repeat(np.arange(len(KINDS)), count)[rng.permutation(len(KINDS) * count)]:
        minutes, size = _SIZES[KINDS[kind]](rng)
        while True:
            start = begin + float(rng.uniform(0, days * _DAY - minutes * _MINUTE))
            stop = start + minutes * _MINUTE
            if all(stop + _APART < other.start or other.stop + _APART < start for other in found):
                break
        found.append(Anomaly(KINDS[kind], start, stop, size))
    return sorted(found, key=lambda one: one.start)


def flow_counts(flows: Any, *, begin: int, days: int, interval: int = 300) -> dict[str, NDArray[Any]]:
    """Count the flows of each interval.

    Args:
        flows: Columns of `flow_rows`.
        begin: Begin of the first interval, in seconds since 1970.
        days: Number of days.
        interval: Length of an interval in seconds.

    Returns:
        `time`, the end of each interval, when its numbers are known; `flows`, the number of flows; `hosts`, `ports`,
        numbers of different hosts outside and of different ports inside and outside; `failed`, the number of flows
        without an answer or refused; `bytes_out`, `bytes_in`, bytes that left the site and that entered it.
    """
    count = days * _DAY // interval
    step = (np.asarray(flows["time"]) - begin) // interval
    source, destination = (np.asarray(flows[name]).astype(str) for name in ("source", "destination"))
    outside = [np.char.startswith(one, "remote") | np.char.startswith(one, "visitor") for one in (source, destination)]

    def total(weights: Any = None) -> NDArray[np.float64]:
        return np.bincount(step, weights, minlength=count)[:count].astype(np.float64)

    def distinct(values: Any, kept: Any = slice(None)) -> NDArray[np.float64]:
        _, codes = np.unique(values, return_inverse=True)
        pairs = np.unique(np.stack([step[kept], codes[kept]], axis=1), axis=0)
        return np.bincount(pairs[:, 0], minlength=count)[:count].astype(np.float64)

    sent, received = (np.asarray(flows[name]).astype(np.float64) for name in ("bytes_out", "bytes_in"))
    return {
        "time": begin + interval * np.arange(1, count + 1),
        "flows": total(),
        "hosts": distinct(np.where(outside[0], source, destination), outside[0] | outside[1]),
        "ports": distinct(np.asarray(flows["port"])),
        "failed": total(np.asarray(flows["state"]).astype(str) != "SF"),
        "bytes_out": total(np.where(outside[0], received, sent)),
        "bytes_in": total(np.where(outside[0], sent, received)),
    }


# Drawing


def _generator(seed: int, split: str, part: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), part]))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


_SIZES: dict[str, Callable[[np.random.Generator], tuple[float, float]]] = {
    "scan": lambda rng: (_log_uniform(rng, 3, 40), _log_uniform(rng, 15, 300)),
    "flood": lambda rng: (_log_uniform(rng, 5, 25), _log_uniform(rng, 60, 2_000)),
    "exfiltration": lambda rng: (_log_uniform(rng, 10, 60), _log_uniform(rng, 1e8, 3e9)),
    "stall": lambda rng: (_log_uniform(rng, 15, 60), float(rng.uniform(0.5, 1.0))),
}
"""Kind to a drawing of its duration in minutes and its size."""


def _working(hours: NDArray[np.float64], weekday: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the people at work at hours of the day, 0 to 1."""
    there = 1 / (1 + np.exp(-(hours - 8.5) * 2.5)) - 1 / (1 + np.exp(-(hours - 17.3) * 1.8))
    lunch = 0.45 * np.exp(-(((hours - 12.5) / 0.45) ** 2))
    return np.where(weekday < 5, there * (1 - lunch), 0.06 * there)


def _visiting(hours: NDArray[np.float64], weekday: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rate of visitors of the web site relative to its mean, low in the night and high in the evening."""
    wave = 0.7 - 0.5 * np.cos(2 * np.pi * (hours - 3.5) / 24) + 0.5 * np.exp(-(((hours - 20.5) / 1.8) ** 2))
    return wave * np.where(weekday >= 5, 1.3, 1.0)


def _activity(rng: np.random.Generator, count: int, sigma: float) -> NDArray[np.float64]:
    """Slowly varying factors of mean 1, one a minute: first-order autoregression of their logarithms over an hour."""
    decay = np.exp(-1 / 60)
    noise = rng.standard_normal(count) * sigma * np.sqrt(1 - decay**2)
    level, values = 0.0, np.empty(count)
    for minute in range(count):
        level = decay * level + noise[minute]
        values[minute] = level
    return np.exp(values - sigma**2 / 2)


def _draw(split: str, begin: int, days: int, seed: int) -> _Flows:
    """Draw the flows of a split, in order of time."""
    rng = _generator(seed, split, 0)
    minutes = begin + _MINUTE * np.arange(days * 24 * 60)
    hours, weekday = (minutes - START) % _DAY / 3600, (minutes - START) // _DAY % 7
    parts = _usual(rng, minutes, hours, weekday) + _bursts(rng, begin, days)
    anomalies = flow_anomalies(split, begin=begin, days=days, seed=seed)
    rng = _generator(seed, split, 2)
    flows = _together(parts)
    for one in anomalies:
        if one.kind == "stall":
            within = (flows.time >= one.start) & (flows.time < one.stop)
            lost = within & (rng.random(len(within)) < one.size)
            flows = _chosen(flows, ~lost)
    parts = [flows, *(_attack(rng, one) for one in anomalies if one.kind != "stall")]
    flows = _together(parts)
    inside = (flows.time >= begin) & (flows.time < begin + days * _DAY)
    order = np.argsort(flows.time[inside], kind="stable")
    return _chosen(_chosen(flows, inside), order)


def _chosen(flows: _Flows, rows: NDArray[Any]) -> _Flows:
    """Flows of a mask, or in the order of their indices."""
    columns: Any = (column[rows] for column in flows)
    return _Flows(*columns)


def _together(parts: Sequence[_Flows]) -> _Flows:
    columns: Any = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Flows(*columns)


def _flows(
    time: NDArray[np.float64],
    source: Any,
    destination: Any,
    protocol: int,
    port: Any,
    state: Any,
    bytes_out: Any,
    bytes_in: Any,
    kind: int = 0,
) -> _Flows:
    """Flows of which some columns are the same for all."""
    rest = (source, destination, protocol, port, state, bytes_out, bytes_in, kind)
    kinds = (np.int64, np.int64, np.int64, np.int64, np.int64, np.float64, np.float64, np.int64)
    columns: Any = (
        np.broadcast_to(np.asarray(one, dtype=dtype), time.shape) for one, dtype in zip(rest, kinds, strict=True)
    )
    return _Flows(time, *columns)


def _usual(rng: np.random.Generator, minutes: Any, hours: Any, weekday: Any) -> list[_Flows]:
    """Flows of everyday use, at a rate for each minute."""
    count = len(minutes)
    work = _working(hours, weekday) * _activity(rng, count, 0.3)
    visits = _visiting(hours, weekday) * _activity(rng, count, 0.2)

    def times(rate: Any) -> NDArray[np.float64]:
        numbers = rng.poisson(np.broadcast_to(rate, count))
        return np.repeat(minutes, numbers) + rng.uniform(0, _MINUTE, numbers.sum())

    def sizes(number: int, median: float, sigma: float) -> NDArray[np.float64]:
        return np.exp(np.log(median) + sigma * rng.standard_normal(number))

    def people(number: int) -> NDArray[np.int64]:
        return rng.integers(0, _WORKSTATIONS, number)

    def remote(number: int) -> NDArray[np.int64]:
        # The most popular hosts are asked most often.
        return _FIRST_REMOTE + np.minimum(_REMOTE - 1, (rng.pareto(0.6, number) * 2).astype(np.int64))

    parts = []
    web = times(8.0 * work + 0.1)
    number = len(web)
    ports = np.where(rng.random(number) < 0.85, 443, 80)
    failed = np.where(rng.random(number) < 0.01, _S0, _SF)
    parts.append(
        _flows(
            web,
            *(people(number), remote(number), _TCP, ports, failed),
            *(sizes(number, 2_500, 1.0), sizes(number, 30_000, 1.6)),
        )
    )
    names = times(4.0 * work + 0.3)
    number = len(names)
    parts.append(_flows(names, people(number), _FIRST_REMOTE, _UDP, 53, _SF, 60, sizes(number, 150, 0.4)))
    mail = times(1.0 * work + 0.1)
    number = len(mail)
    ports = np.where(rng.random(number) < 0.8, 993, 587)
    parts.append(
        _flows(
            mail,
            *(people(number), _FIRST_REMOTE + 1, _TCP, ports, _SF),
            *(sizes(number, 3_000, 1.5), sizes(number, 8_000, 1.5)),
        )
    )
    reports = times(_DEVICES / 2)
    number = len(reports)
    devices = _WORKSTATIONS + rng.integers(0, _DEVICES, number)
    parts.append(_flows(reports, devices, _FIRST_REMOTE + 2, _TCP, 8883, _SF, sizes(number, 900, 0.2), 200))
    clocks = times(0.15)
    parts.append(_flows(clocks, people(len(clocks)), _FIRST_REMOTE + 3, _UDP, 123, _SF, 76, 76))
    visitors = times(1.5 * visits)
    number = len(visitors)
    parts.append(
        _flows(
            visitors,
            *(_FIRST_VISITOR + rng.integers(0, 5000, number), _WEB, _TCP, 443, _SF),
            *(sizes(number, 1_500, 0.6), sizes(number, 40_000, 1.2)),
        )
    )
    probes = times(0.25)
    number = len(probes)
    ports = np.where(
        rng.random(number) < 0.8,
        _PROBED[rng.integers(0, len(_PROBED), number)],
        rng.integers(1024, 65_536, number),
    )
    state = np.where(rng.random(number) < 0.5, _REJ, _S0)
    parts.append(_flows(probes, _FIRST_VISITOR + rng.integers(0, 5000, number), _WEB, _TCP, ports, state, 44, 0))
    return parts


def _bursts(rng: np.random.Generator, begin: int, days: int) -> list[_Flows]:
    """Harmless bursts: some at fixed times, some at any."""
    parts = []

    def spread(start: float, minutes: float, number: int) -> NDArray[np.float64]:
        return start + rng.uniform(0, minutes * _MINUTE, number)

    def shares(number: int, total: float) -> NDArray[np.float64]:
        return total * rng.dirichlet(np.full(number, 2.0))

    def hour_of_work() -> float:
        return float(rng.uniform(8.7, 17.0))

    for day in range(days):
        midnight = begin + day * _DAY
        weekday = (midnight - START) // _DAY % 7
        # The backup of the night.
        number = int(rng.integers(20, 50))
        when = spread(midnight + 2 * 3600 + rng.uniform(0, 240), rng.uniform(30, 50), number)
        size = shares(number, _log_uniform(rng, 2e9, 6e9))
        parts.append(_flows(when, _NAS, _FIRST_REMOTE + 4, _TCP, 22, _SF, size, 20_000))
        if weekday == 2:
            for station in range(_WORKSTATIONS):
                number = int(rng.integers(5, 15))
                when = spread(midnight + 3 * 3600 + rng.uniform(0, 600), rng.uniform(20, 60), number)
                size = shares(number, _log_uniform(rng, 2e8, 1e9))
                parts.append(_flows(when, station, _FIRST_REMOTE + 5, _TCP, 443, _SF, 30_000, size))
        if weekday < 5:
            for _ in range(rng.poisson(3)):  # uploads
                number = int(rng.integers(1, 6))
                when = spread(midnight + 3600 * hour_of_work(), rng.uniform(2, 15), number)
                size = shares(number, 1.5e7 * np.exp(rng.standard_normal()))
                parts.append(
                    _flows(when, int(rng.integers(_WORKSTATIONS)), _FIRST_REMOTE + 6, _TCP, 443, _SF, size, 9e3)
                )
            for _ in range(rng.poisson(4)):  # calls
                number = int(rng.integers(6, 15))
                when = spread(midnight + 3600 * hour_of_work(), rng.uniform(20, 60), number)
                station, other = int(rng.integers(_WORKSTATIONS)), _FIRST_REMOTE + 7
                sizes = [shares(number, _log_uniform(rng, 5e7, 4e8)) for _ in range(2)]
                parts.append(_flows(when, station, other, _UDP, 3478, _SF, sizes[0], sizes[1]))
            if rng.random() < 0.3:  # the printer is off, and its clients try again
                number = int(rng.integers(8, 40))
                when = spread(midnight + 3600 * hour_of_work(), rng.uniform(10, 40), number)
                parts.append(_flows(when, rng.integers(0, _WORKSTATIONS, number), _PRINTER, _TCP, 9100, _S0, 60, 0))
        if rng.random() < 0.25:  # a crawler
            number = int(_log_uniform(rng, 60, 400))
            when = spread(midnight + rng.uniform(0, 23.5 * 3600), rng.uniform(10, 30), number)
            size = np.exp(np.log(40_000) + rng.standard_normal(number))
            parts.append(_flows(when, _FIRST_VISITOR + int(rng.integers(5000)), _WEB, _TCP, 443, _SF, 1_200, size))
    return parts


def _attack(rng: np.random.Generator, one: Anomaly) -> _Flows:
    """Flows of a scan, a flood or an exfiltration."""
    kind = 1 + KINDS.index(one.kind)
    if one.kind == "exfiltration":
        number = int(rng.integers(4, 30))
        when = rng.uniform(one.start, one.stop, number)
        size = one.size * rng.dirichlet(np.full(number, 2.0))
        target = _FIRST_VISITOR + int(rng.integers(5000))
        return _flows(when, int(rng.integers(_WORKSTATIONS)), target, _TCP, 443, _SF, size, 5_000, kind)
    number = int(one.size)
    when = np.sort(rng.uniform(one.start, one.stop, number))
    if one.kind == "scan":
        ports = rng.permutation(np.arange(1, 10_000))[:number]
        state = np.where(rng.random(number) < 0.8, _REJ, _S0)
        return _flows(when, _FIRST_VISITOR + int(rng.integers(5000)), _WEB, _TCP, ports, state, 44, 0, kind)
    sources = _FIRST_VISITOR + rng.integers(0, 5000, int(rng.integers(1, 200)))
    source = sources[rng.integers(0, len(sources), number)]
    state = np.where(rng.random(number) < rng.uniform(0, 0.9), _S0, _SF)
    return _flows(when, source, _WEB, _TCP, 443, state, 300, np.where(state == _SF, 2_000, 0), kind)

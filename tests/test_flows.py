"""The embedded network flows: what is planted is there, the same each time, and counted as it should be."""

import hashlib
from collections import defaultdict

import numpy as np
import pytest

from hfseq.data.embedded.flows import COLUMNS, COUNTS, KINDS, START, flow_anomalies, flow_counts, flow_rows
from hfseq.errors import InputError

DAY = 86_400
DAYS = {"train": 2, "validation": 3, "test": 7}


@pytest.fixture(scope="module")
def flows():
    return flow_rows(**{f"{split}_days": days for split, days in DAYS.items()})


@pytest.fixture(scope="module")
def test_flows(flows):
    return flows["test"].with_format("numpy")[:]


def begin(split):
    return START + DAY * sum(days for name, days in DAYS.items() if list(DAYS).index(name) < list(DAYS).index(split))


def planted(split):
    return flow_anomalies(split, begin=begin(split), days=DAYS[split])


def test_columns_and_order(flows):
    for split, rows in flows.items():
        assert tuple(rows.column_names) == COLUMNS
        times = np.array(rows["time"])
        assert (np.diff(times) >= 0).all()
        assert begin(split) <= times[0] and times[-1] < begin(split) + DAYS[split] * DAY


def test_the_same_flows_each_time(flows):
    again = flow_rows(**{f"{split}_days": days for split, days in DAYS.items()})
    for split, rows in flows.items():
        digests = [hashlib.sha256(repr(one.to_dict()).encode()).hexdigest() for one in (rows, again[split])]
        assert digests[0] == digests[1]
    assert flow_rows(train_days=1, validation_days=1, test_days=1, seed=1)["train"][0] != flows["train"][0]


def test_training_flows_have_no_anomalies(flows):
    assert set(flows["train"]["label"]) == {""} and planted("train") == []


def test_anomalies_of_each_kind_apart_from_each_other():
    found = planted("test")
    assert sorted(one.kind for one in found) == sorted(3 * list(KINDS))
    for one, other in zip(found, found[1:], strict=False):
        assert one.stop + 3 * 3600 < other.start
    assert flow_anomalies("test", begin=0, days=7) == [
        one._replace(start=pytest.approx(one.start - begin("test")), stop=pytest.approx(one.stop - begin("test")))
        for one in found
    ]


def test_anomalies_are_in_the_flows(test_flows):
    labels, times = test_flows["label"], test_flows["time"]
    spans = defaultdict(list)
    for one in planted("test"):
        spans[one.kind].append((np.floor(one.start), one.stop))
    for kind in KINDS[:3]:
        own = times[labels == kind]
        inside = sum(((own >= start) & (own <= stop)).sum() for start, stop in spans[kind])
        assert len(own) == inside > 0
    for one in planted("test"):
        within = (times >= np.ceil(one.start)) & (times < np.floor(one.stop))
        own = within & (labels == one.kind)
        if one.kind == "scan":
            assert len(set(test_flows["port"][own])) == own.sum() == pytest.approx(int(one.size), abs=0.3 * one.size)
        if one.kind == "exfiltration":
            assert test_flows["bytes_out"][labels == one.kind].sum() >= 1e8
        if one.kind == "stall":
            minutes = (one.stop - one.start) / 60
            before = ((times >= one.start - 3600) & (times < one.start)).sum() / 60
            assert within.sum() / minutes < before


def test_working_hours_and_weekends(flows):
    times = np.array(flow_rows(train_days=7, validation_days=1, test_days=1)["train"]["time"]) - START
    hours = np.bincount(times // 3600, minlength=7 * 24).reshape(7, 24)
    assert hours[:5, 10].min() > 2.5 * hours[:5, 4].max()
    assert hours[5:, 10].max() < 0.6 * hours[:5, 10].min()


def test_counts_of_intervals_one_by_one(test_flows):
    counts = flow_counts(test_flows, begin=begin("test"), days=7, interval=900)
    assert tuple(counts) == ("time", *COUNTS)
    names = ("source", "destination", "port", "state", "bytes_out", "bytes_in")
    rows = defaultdict(list)
    for index, time in enumerate(test_flows["time"]):
        rows[(int(time) - begin("test")) // 900].append(tuple(test_flows[name][index] for name in names))
    for step in range(0, 7 * 96, 13):
        flows = rows[step]
        outside = [
            (host, sent if host == destination else received, received if host == destination else sent)
            for source, destination, _, _, sent, received in flows
            for host in (source, destination)
            if host.startswith(("remote", "visitor"))
        ]
        assert counts["time"][step] == begin("test") + 900 * (step + 1)
        assert counts["flows"][step] == len(flows)
        assert counts["hosts"][step] == len({host for host, _, _ in outside})
        assert counts["ports"][step] == len({flow[2] for flow in flows})
        assert counts["failed"][step] == sum(flow[3] != "SF" for flow in flows)
        inner = [flow for flow in flows if not any(str(flow[i]).startswith(("remote", "visitor")) for i in (0, 1))]
        assert counts["bytes_out"][step] == sum(out for _, out, _ in outside) + sum(flow[4] for flow in inner)
        assert counts["bytes_in"][step] == sum(received for _, _, received in outside) + sum(flow[5] for flow in inner)


def test_too_few_days():
    with pytest.raises(InputError, match="test_days: 0 is too few; give 1 or more"):
        flow_rows(train_days=1, validation_days=1, test_days=0)

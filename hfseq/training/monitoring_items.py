"""Monitoring of recommenders: items of the histories, those recommended, and the hit rate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from transformers import AutoModelForCausalLM

from hfseq.data.interactions import session_rows
from hfseq.errors import InputError
from hfseq.inference.loading import load_trained
from hfseq.lazy import datasets
from hfseq.tasks.arguments import ScoredRecommendationArguments
from hfseq.tasks.base import Task
from hfseq.tasks.recommendation import Ranking, Recommendation
from hfseq.tokenization import require_items
from hfseq.training.drift import CHI_SQUARE, MANN_WHITNEY, Sample
from hfseq.training.monitoring import Monitored, Side

DEPTH = 10
"""Number of items among which the right one is a hit."""
NONE = "(none)"
"""Last item of an empty history."""


@dataclass
class ItemMonitoringArguments(ScoredRecommendationArguments):
    """Interactions, and which of their items are predicted."""

    score_last: bool = field(
        default=True, metadata={"help": "Predict the last item of a session only, not each after the first."}
    )
    dataset_name: None = field(init=False, default=None)
    dataset_config_name: None = field(init=False, default=None)
    validation_file: None = field(init=False, default=None)
    split: None = field(init=False, default=None)
    validation_start: str = field(init=False, default="0.8")
    test_start: str = field(init=False, default="0.9")
    cutoffs: None = field(init=False, default=None)
    top_k: int = field(init=False, default=DEPTH)


class MonitoredItems(Monitored):
    """Recommender of the next item, scored by its hit rate among ten.

    A row is a session, or of a log a history with the item that came next. Quantities are of what comes before the
    last item of a row, one value each, since the items of a history depend on each other.
    """

    arguments: ClassVar[type] = ItemMonitoringArguments
    pipelines = frozenset(("next-item-recommendation",))
    rows = "histories"
    metric = f"HR@{DEPTH}"

    def __init__(self, data: Any, args: Any) -> None:
        super().__init__(data, args)
        self.model, self.tokenizer = load_trained(AutoModelForCausalLM, data.model_name_or_path)
        require_items(self.tokenizer)
        self.model.to(args.device)
        special = set(self.tokenizer.all_special_ids)
        self.known = {item for item, number in self.tokenizer.get_vocab().items() if number not in special}

    def read(self) -> None:
        """Read the sessions; see `Monitored.read`."""
        data = self.data
        self.reference = self._read_file(data.test_file, "--test_file")
        self.histories: list[list[str]] = []
        if data.served is not None:
            self._read_log()
        else:
            self.judged = self._read_file(data.fresh_file, "--fresh_file")
        self.check_judged()
        self.old = session_rows(data.read_file(data.train_file, "--train_file")) if data.retrain else None

    def _read_file(self, path: str, flag: str) -> datasets.Dataset:
        """Sessions of a file in which there is something to predict."""
        sessions = [one for one in self.data.read_file(path, flag) if len(one.items) > 1]
        if not sessions:
            raise InputError(f"{flag} {path}: no session has a second item, which could be predicted")
        return session_rows(sessions, last=self.data.score_last)

    def _read_log(self) -> None:
        """Read histories and recommendations of the log, and the items that have been joined."""
        served = self.read_served()
        found = [(_items_of(row.inputs), _recommended(row.output), row) for row in served]
        kept = [(history, made, row) for history, made, row in found if history is not None and made is not None]
        if len(kept) < len(served):
            self.notes.append(f"{len(served) - len(kept)} rows without a history or recommended items left out")
        if not kept:
            raise InputError(f"--served {self.data.served}: no row has a history and recommended items")
        self.histories, self.made = [list(one[0] or ()) for one in kept], [list(one[1] or ()) for one in kept]
        labels = [None if row.label is None else str(row.label).strip() for *_, row in kept]
        # Of fewer recommended items it is not known whether the right one would have been the next.
        deep = [len(made) >= min(DEPTH, len(self.known)) for made in self.made]
        labelled = [number for number, label in enumerate(labels) if label is not None]
        if short := sum(not deep[number] for number in labelled):
            self.notes.append(f"{short} rows with a label not scored, for which fewer than {DEPTH} items were asked")
        self.labelled = [number for number in labelled if deep[number]]
        if self.labelled:
            self.labels = [str(labels[number]) for number in self.labelled]
            columns = {
                "user": [kept[number][2].id for number in self.labelled],
                "items": [
                    [*self.histories[number], label] for number, label in zip(self.labelled, self.labels, strict=True)
                ],
                # What follows an empty history is predicted, too.
                "begin": [len(self.histories[number]) for number in self.labelled],
            }
            self.judged = datasets.Dataset.from_dict(columns, features=self.reference.features)

    def observe_reference(self) -> Side:
        """Predict and measure the sessions of the test."""
        return self._observe(self.reference)

    def observe_fresh(self) -> Side:
        """Measure the fresh sessions, and predict them unless they are of a log."""
        if self.data.served is None:
            assert self.judged is not None
            return self._observe(self.judged)
        samples = self._samples(self.histories, [made[0] for made in self.made])
        scores = None
        if self.judged is not None:
            tops = [self.made[number][:DEPTH] for number in self.labelled]
            scores = np.array([100.0 * (label in top) for label, top in zip(self.labels, tops, strict=True)])
        return Side(len(self.histories), samples, scores)

    def _observe(self, rows: datasets.Dataset) -> Side:
        rankings = self._rank(rows)
        histories = [items[:-1] for items in rows["items"]]
        samples = self._samples(histories, [own[-1].items[0] for own in rankings])
        return Side(len(rows), samples, _hits(rankings))

    def _samples(self, histories: list[list[str]], first: list[str]) -> dict[str, Sample]:
        lengths = np.array([len(history) for history in histories])
        unknown = np.array([sum(item not in self.known for item in history) for history in histories])
        last = [history[-1] if history else NONE for history in histories]
        return {
            "length of the history": Sample(lengths),
            "share of unknown items": Sample(unknown / np.maximum(lengths, 1), MANN_WHITNEY),
            "last item": Sample(last, CHI_SQUARE, binned=True),
            "first item recommended": Sample(first, CHI_SQUARE, binned=True),
        }

    def _rank(self, rows: datasets.Dataset) -> list[list[Ranking]]:
        """Rankings of the items that are predicted, for each row."""
        task = Recommendation(self.data, self.args)
        task.use({"test": rows}, train=False)
        task = task.encoded_split(self.model, self.tokenizer, "test")
        found = iter(task.decode("test", task.predict(self.model, "test")[0]))
        counts = [len(items) - begin for items, begin in zip(rows["items"], rows["begin"], strict=True)]
        return [[next(found) for _ in range(count)] for count in counts]

    def score(self, rows: datasets.Dataset) -> np.ndarray:
        """Predict each row and return the percentage of its predicted items that are among the first ten."""
        return _hits(self._rank(rows))

    def split_judged(self, rows: datasets.Dataset) -> tuple[datasets.Dataset, datasets.Dataset]:
        """Hold out sessions at random, of a log the last rows, whose items earlier histories do not contain."""
        if self.data.served is None:
            parts = rows.train_test_split(test_size=self.data.holdout, seed=self.args.seed)
            return parts["train"], parts["test"]
        bound = int(len(rows) * (1 - self.data.holdout))
        return rows.select(range(bound)), rows.select(range(bound, len(rows)))

    def training_task(self, fresh: datasets.Dataset) -> tuple[Task, Any]:
        """Task on old and fresh sessions, some of which are for validation."""
        rows = datasets.concatenate_datasets([self.old, fresh])
        learnt = rows.train_test_split(test_size=0.05, seed=self.args.seed)
        task = Recommendation(self.data, self.args)
        self.args.choose_metric(task.metrics)
        task.use({"train": learnt["train"], "validation": learnt["test"]})
        return task, self.data


def _items_of(inputs: Any) -> list[str] | None:
    """History of an input; None if it is none."""
    valid = isinstance(inputs, list) and all(isinstance(item, str) for item in inputs)
    return [str(item) for item in inputs] if valid else None


def _recommended(output: Any) -> list[str] | None:
    """Items of a result of the pipeline, best first; None for any other output."""
    found = output[0] if isinstance(output, list) and len(output) == 1 and isinstance(output[0], list) else output
    if not isinstance(found, list) or not found:
        return None
    items = [one.get("item") if isinstance(one, dict) else None for one in found]
    return [str(item) for item in items] if all(isinstance(item, str) for item in items) else None


def _hits(rankings: list[list[Ranking]]) -> np.ndarray:
    return np.array([100 * np.mean([0 < one.rank <= DEPTH for one in own]) for own in rankings])

"""Recommendation of the next item from a user's history, as causal language modeling over items."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from hfseq import metrics
from hfseq.data.collation import CheckedCollator, position_limit
from hfseq.data.embedded.function_calls import function_call_rows
from hfseq.data.encoding import EncodedSplits
from hfseq.errors import InputError
from hfseq.inference.benchmark import Run
from hfseq.inference.loading import load_tokenizer
from hfseq.lazy import datasets
from hfseq.models import is_hfseq
from hfseq.tasks.base import Task
from hfseq.tasks.losses import token_loss
from hfseq.tasks.recommendation_baselines import BASELINES
from hfseq.tasks.recommendation_mixture import Mixture
from hfseq.tokenization import is_item_tokenizer, item_tokenizer, require_items

CUTOFFS = (1, 5, 10, 20)
"""Depths of the metrics by default."""
METRICS = {"ndcg": metrics.ndcg, "hr": metrics.hit_rate, "mrr": metrics.mrr}
"""Name of a metric to its function."""
GROUPS = ("head", "mid", "tail", "new")
"""Groups of items by popularity: each of the first three has a third of the training interactions."""
Systems = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Function from logits and histories to the scores of each of several systems."""
# Columns of an encoded row that the model does not read.
_PREDICTED = ("places", "targets", "before", "history")
# Values of the logits of one chunk in which ranks are computed: 64 MB.
_CHUNK = 2**24


class Ranking(NamedTuple):
    """Ranking of all items after a history.

    Attributes:
        rank: Rank of the item that came next, from 1, ties counted against it; 0 if it could not be recommended.
        items: Names of the items at the top, best first.
    """

    rank: int
    items: list[str]


class Event(NamedTuple):
    """Item to be predicted.

    Attributes:
        item: Its name.
        known: Items of its user that the model knows; all events of a user share the list.
        before: Number of these that come before it.
    """

    item: str
    known: list[str]
    before: int

    @property
    def history(self) -> list[str]:
        """Items before it."""
        return self.known[: self.before]


class Recommendation(Task):
    """Next-item recommendation (GRU4Rec, Hidasi et al. 2016), scored by the rank of the right item among all items.

    A row has the items of a user or session, of which those from `begin` on are predicted, each from all before it.
    Predictions and references are one for each predicted item, not for each row. Items that were not seen in training
    are left out of histories, and count as misses where they come next.

    Attributes:
        counts: Number of training interactions of each item, most frequent first; empty without training rows.
        events: Split name to the predicted items.
    """

    columns = ("user", "items", "begin")
    column_flags = ()
    metrics = tuple(f"{name}@{cutoff}" for cutoff in (10, 1, 5, 20) for name in METRICS)
    hub_task = "next-item-recommendation"
    embedded_name = "functions that Python functions call"
    auto_class: ClassVar[Any] = AutoModelForCausalLM
    predicts_batches = True
    keeps_columns = True
    length_unit = "items"
    rows = "sessions"
    kind_metric = "hr@10"

    def __init__(self, data: Any, args: Any) -> None:
        super().__init__(data, args)
        self.names = self.columns
        self.counts: dict[str, int] = {}
        self.events: dict[str, list[Event]] = {}

    # Reading

    def embedded(self) -> datasets.DatasetDict:
        """Read the calls of the functions in the installed sources."""
        return function_call_rows()

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        if self.data.mix and not train:
            raise InputError("--mix needs training and validation rows; it goes with --do_train")
        if train:
            counted = Counter(item for items in splits["train"]["items"] for item in items)
            self.counts = dict(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))
            if len(self.counts) < 2:
                raise InputError("there is only one item in the training rows, so nothing to choose from")
        return splits

    def use(self, splits: Mapping[str, Any], *, train: bool = True, known: list[str] | None = None) -> Task:
        """Validate and adopt rows; see `Task.use`."""
        super().use(splits, train=train, known=known)
        if train:
            self._list_events(self.counts)
        return self

    def _list_events(self, known: Mapping[str, int]) -> None:
        """List the predicted items of each split, with what the model can know of their histories."""
        for split, rows in list(self.splits.items()):
            if split == "train":
                continue
            found: list[Event] = []
            for items, begin in zip(rows["items"], rows["begin"], strict=True):
                own: list[str] = []
                for number, item in enumerate(items):
                    if number >= begin:
                        found.append(Event(item, own, len(own)))
                    if item in known:
                        own.append(item)
            if not found and split == "train_sample":
                # Sessions of one item are learnt from BOS, but not scored.
                del self.splits[split]
                continue
            if not found:
                raise InputError(f"{split}: nothing to predict: no session has a second item")
            self.events[split] = found
        self.references = {split: [event.item for event in found] for split, found in self.events.items()}

    def describe(self) -> str:
        """Describe the split, the number of rows, items and predicted items, and the items that are new."""
        lines = [self.data.note] if self.data.note else []
        lines.append(super().describe())
        if self.counts:
            total = sum(self.counts.values())
            lines.append(f"{len(self.counts)} items in {total} training interactions")
        for split, found in self.events.items():
            if split != "train_sample":
                new = sum(event.item not in self.counts for event in found)
                lines.append(f"{split}: {len(found)} items to predict, {new} of them never seen in training (missed)")
        how = "items of the history are not recommended" if self.data.filter_seen else "items may be recommended again"
        return "\n".join([*lines, f"ranked among all items; {how}"])

    def groups(self) -> dict[str, str]:
        """Name of each item to its group of popularity."""
        total, seen, found = sum(self.counts.values()), 0, {}
        for item, count in self.counts.items():
            found[item] = GROUPS[min(2, 3 * seen // total)]
            seen += count
        return found

    def kinds(self, split: str) -> list[str] | None:
        """Group of popularity of each item to be predicted; None without training rows."""
        groups = self.groups()
        return [groups.get(item, "new") for item in self.references[split]] if groups else None

    # Model

    def new_processor(self, args: Any) -> PreTrainedTokenizerBase | None:
        """Create the tokenizer of a new model, or of a checkpoint whose tokens are no items; see `Task.new_processor`.

        Args:
            args: Model arguments; of a checkpoint of text, the embeddings are replaced.
        """
        name = args.model_name_or_path
        if name is not None:
            if not self.counts or is_item_tokenizer(load_tokenizer(name)):
                return None
        return item_tokenizer(self.counts)

    def timed(
        self, model: PreTrainedModel, processing_class: Any, split: str, count: int
    ) -> tuple[Run, Sequence[Any]]:
        """Return a function from histories to recommended items, and histories; see `Task.timed`."""
        task = self.encoded_split(model, processing_class, split)
        model.eval()

        def run(rows: Sequence[Any]) -> Tensor:
            with torch.no_grad():
                return task.predict_batch(model, task.collator(list(rows)).to(model.device))[1].cpu()

        rows = task.encoded[split]
        return run, [rows[number] for number in range(min(count, len(rows)))]

    def configure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Train a model by its own loss if that is not the cross-entropy of its logits, and tell it the popularity.

        Args:
            model: Model; one that samples negatives gets the counts of the items.
            tokenizer: Tokenizer of the model.

        Raises:
            InputError: The tokens of the tokenizer are no items, or the model has a loss that cannot be smoothed.
        """
        require_items(tokenizer)
        config: Any = model.config
        sampled = getattr(config, "num_negatives", None) is not None
        partial = sampled or getattr(config, "adaptive_softmax_cutoffs", None) is not None
        if partial and self.args.label_smoothing_factor:
            raise InputError(
                "--label_smoothing_factor is not supported for an adaptive softmax or sampled negatives, which do not "
                "compute the probabilities of all items in training"
            )
        names = ("activation_regularization", "temporal_activation_regularization")
        regularized = any(getattr(config, name, 0) for name in names)
        self.own_loss = partial or (regularized and not self.args.label_smoothing_factor)
        if sampled and self.counts:
            counts = torch.zeros(config.vocab_size, dtype=torch.long)
            for item, number in tokenizer.get_vocab().items():
                counts[number] = self.counts.get(item, 0)
            model.set_item_counts(counts)  # type: ignore[operator]

    # Encoding

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        special = set(tokenizer.all_special_ids)
        ids = {item: number for item, number in tokenizer.get_vocab().items() if number not in special}
        limit = min(self.data.max_length, position_limit(model) or self.data.max_length)
        embeddings: Any = model.get_input_embeddings()
        size = embeddings.weight.shape[0]
        self.vocabulary, self.begin = (
            tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))),
            tokenizer.bos_token_id,
        )
        self.is_item = torch.zeros(size, dtype=torch.bool)
        self.is_item[list(ids.values())] = True
        self.collator = CheckedCollator(HistoryCollator(tokenizer.pad_token_id), model)
        if "train" not in self.splits:
            self._list_events(ids)
        encoded = EncodedSplits({}, {}, self._unknown(ids))
        for split, rows in self.splits.items():
            if split == "train":
                encoded.rows[split] = self._training_rows(rows, ids, limit)
                encoded.lengths[split] = [len(row) for row in encoded.rows[split]["input_ids"]]
            else:
                encoded.rows[split] = self._test_rows(rows, ids, limit)
                encoded.lengths[split] = [event.before for event in self.events[split]]
        return encoded

    def _unknown(self, ids: Mapping[str, int]) -> list[str]:
        """Count the items of each split that a checkpoint does not know; `describe` has those of a new model."""
        notes = []
        own = bool(self.counts) and all(item in ids for item in self.counts)
        for split, rows in self.splits.items():
            if own or split == "train_sample":
                continue
            total = sum(map(len, rows["items"]))
            unknown = sum(item not in ids for items in rows["items"] for item in items)
            if unknown == total and (split == "train" or not self.counts):
                name = getattr(self.data, f"{split}_file") or self.data.dataset_name or self.data.train_file
                raise InputError(
                    f"{split}: the checkpoint knows none of the items of {name or 'the built-in data'}; give "
                    "interactions with its items, or train a new model with --model_type"
                )
            if unknown:
                notes.append(f"{split}: {unknown} of {total} interactions are with items that the model does not know")
        return notes

    def _training_rows(self, rows: datasets.Dataset, ids: Mapping[str, int], limit: int) -> datasets.Dataset:
        """Sessions, cut into pieces that begin with the last item of the piece before."""
        pieces = []
        for items in rows["items"]:
            row = [self.begin, *(ids[item] for item in items if item in ids)]
            pieces += [row[start : start + limit] for start in range(0, max(1, len(row) - 1), limit - 1)]
        pieces = [piece for piece in pieces if len(piece) > 1]
        labels = [[-100, *piece[1:]] for piece in pieces]
        return datasets.Dataset.from_dict({"input_ids": pieces, "labels": labels})

    def _test_rows(self, rows: datasets.Dataset, ids: Mapping[str, int], limit: int) -> datasets.Dataset:
        """Windows of sessions; each item is predicted in one of them, after `limit / 2` items or all that there are.

        The columns are, besides `input_ids` and `labels`: `places`, the steps after which items are predicted,
        `targets`, their ids (-1 if unknown), and with `filter_seen` `history`, the whole history, and `before`, the
        number of its items before each.
        """
        columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", *_PREDICTED)}
        for items, begin in zip(rows["items"], rows["begin"], strict=True):
            row, events = [self.begin], []
            for number, item in enumerate(items):
                if number >= begin:
                    events.append((len(row) - 1, ids.get(item, -1)))
                if item in ids:
                    row.append(ids[item])
            while events:
                first, final = events[0][0], events[-1][0]
                start = 0 if first < limit else min(first - limit // 2, final - limit + 1)
                inside = [event for event in events if event[0] < start + limit]
                events = events[len(inside) :]
                window = row[start : start + limit]
                labels = [-100] * len(window)
                for place, target in inside:
                    # What is predicted after the last step of a window has no label there.
                    if target >= 0 and place + 1 - start < len(window):
                        labels[place + 1 - start] = target
                columns["input_ids"].append(window)
                columns["labels"].append(labels)
                columns["places"].append([place - start for place, _ in inside])
                columns["targets"].append([target for _, target in inside])
                columns["before"].append([place for place, _ in inside] if self.data.filter_seen else [])
                columns["history"].append(row[1:] if self.data.filter_seen else [])
        return datasets.Dataset.from_dict(columns)

    # Loss and predictions

    def loss_inputs(self, model: torch.nn.Module, labels: Tensor) -> dict[str, Any]:
        """Restrict the logits to the steps before a label, for models that can."""
        config: Any = getattr(model, "module", model).config
        return {"logits_to_keep": _before(labels)} if model.training and is_hfseq(config) else {}

    def aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the steps before each label, since the label of a step is its own item.

        Args:
            logits: `[B, T, V]`, or `[N, V]` of the steps before a label.
            labels: `[B, T]`.
        """
        return logits if logits.dim() == 2 else logits[:, :-1], labels[:, 1:]

    def predict_batch(self, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean loss of a batch, and the rank of each predicted item and the items at the top.

        Args:
            model: Model.
            batch: Encoded rows of a test.

        Returns:
            The mean loss, and `[B, E, 1 + K]` for E predicted items: rank and ids of the top K, -100 at padding.
        """
        loss, (found,) = self._rankings(model, batch, lambda scores, read: [scores])
        return loss, found

    @torch.no_grad()
    def _rankings(self, model: Any, batch: Mapping[str, Tensor], systems: Systems) -> tuple[Tensor, list[Tensor]]:
        """Mean loss of a batch, and the rankings of systems that score items by the logits, as `predict_batch`.

        Args:
            model: Model.
            batch: Encoded rows of a test.
            systems: Returns the scores of each system, `[N, V]` each, from logits `[N, V]` and the ids of the items
                read before, `[N, T]`, the last one in the last column, -1 elsewhere.
        """
        places, targets, ids = batch["places"], batch["targets"], batch["input_ids"]
        valid, device = places >= 0, places.device
        no_item = ~self.is_item.to(device)
        rows = torch.arange(len(places), device=device)[:, None].expand_as(places)[valid]
        steps, wanted = places[valid], targets[valid]
        # Aligned at the right end.
        from_end = torch.arange(1 - ids.shape[1], 1, device=device) + steps[:, None]
        read = ids[rows].gather(1, from_end.clamp(min=0))
        read = read.masked_fill((from_end < 0) | no_item[read], -1)
        count = max(1, int((wanted >= 0).sum()))
        before = batch["before"][valid] if self.data.filter_seen else None
        top = min(self.data.top_k, int(self.is_item.sum()))
        loss = torch.zeros((), device=device)
        chosen: list[list[Tensor]] = []
        # Rows whose logits would not fit are read again for each part of their steps.
        for part in torch.arange(len(rows), device=device).split(max(1, _CHUNK // len(no_item))):
            logits = self._event_logits(model, batch, rows[part], steps[part])
            known = wanted[part] >= 0
            loss += token_loss(logits[known], wanted[part][known], count=count)
            excluded = no_item.expand(len(part), -1)
            if before is not None:
                history = batch["history"][rows[part]]
                seen = torch.arange(history.shape[1], device=device) < before[part, None]
                # Where there is no item, BOS, which is none either.
                excluded = excluded.scatter(1, history.where(seen, self.begin), True)
            scores = logits.float().masked_fill(no_item, -torch.inf)
            found = [one.masked_fill(excluded, -torch.inf) for one in systems(scores, read[part])]
            chosen.append([ranked(one, wanted[part], top) for one in found])
        padded = []
        for parts in zip(*chosen, strict=True):
            rankings = torch.full((*places.shape, 1 + top), -100, device=device)
            rankings[valid] = torch.cat(parts)
            padded.append(rankings)
        return loss, padded

    def _event_logits(self, model: Any, batch: Mapping[str, Tensor], rows: Tensor, steps: Tensor) -> Tensor:
        """Logits `[N, V]` after given steps `[N]` of given rows `[N]` of a batch, both in order."""
        wanted = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        wanted[rows, steps] = True
        own = wanted.any(dim=1)
        inputs = {name: batch[name][own] for name in ("input_ids", "attention_mask")}
        logits = step_logits(model, inputs, wanted[own])
        # Two events may share a step, if the item between them is unknown.
        return logits[(wanted.flatten().cumsum(0) - 1).view_as(wanted)[rows, steps]]

    def predict(self, model: PreTrainedModel, split: str, **options: Any) -> tuple[Any, float]:
        """Rank all items for each row of a split, distributed over all processes; see `Task.predict`."""
        (raw,), loss = self._predict(model, split, lambda scores, read: [scores])
        return raw, loss

    def _predict(self, model: PreTrainedModel, split: str, systems: Systems) -> tuple[list[Any], float]:
        """Raw predictions of each system for a split, and the mean loss."""

        def run(batch: Any) -> tuple[Sequence[Any], float, int]:
            loss, raw = self._rankings(model, batch, systems)
            count = int((batch["targets"] >= 0).sum())
            return list(zip(*(one.cpu().numpy() for one in raw), strict=True)), loss.item() * count, count

        raw, loss = self.run_split(model, split, [len(row) for row in self.encoded[split]["input_ids"]], run)
        return list(zip(*raw, strict=True)), loss

    def predict_mixed(self, model: PreTrainedModel, split: str, log: Callable[..., Any]) -> list[Ranking]:
        """Rankings of a model mixed with the components of `--mix`, whose weights are chosen on the validation.

        Args:
            model: Model, on its device.
            split: Split to predict.
            log: Logs the weights.
        """
        ids = {item: number for number, item in enumerate(self.vocabulary) if self.is_item[number]}
        rows = [[ids[item] for item in items if item in ids] for items in self.splits["train"]["items"]]
        mixture = Mixture(self.data.mix, rows, len(self.is_item))
        raw, _ = self._predict(model, "validation", mixture)
        scores = [self.score_raw("validation", one)[self.metric] for one in raw]
        weights = mixture.weights[int(np.argmax(scores))]
        shown = ", ".join(f"{name} {weight}" for name, weight in zip(self.data.mix, weights, strict=True))
        log(f"mixed with {shown}: {self.metric} {max(scores):.4g} on validation, {scores[0]:.4g} without")
        (raw,), _ = self._predict(model, split, partial(mixture, weights=[weights]))
        return self.decode(split, raw)

    def decode(self, split: str, raw: Any) -> list[Ranking]:
        """Convert the raw predictions of rows to a ranking for each predicted item."""
        found = []
        for row in raw:
            for rank, *top in np.asarray(row).tolist():
                if rank != -100:
                    found.append(Ranking(rank, [self.vocabulary[number] for number in top if number >= 0]))
        return found

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compute NDCG, hit rate and MRR at each depth, 10 among them."""
        ranks = [one.rank for one in predictions]
        cutoffs = sorted({10, *(self.data.cutoffs or CUTOFFS)})
        return {f"{name}@{k}": function(ranks, k)["score"] for name, function in METRICS.items() for k in cutoffs}

    def score_kind(self, predictions: Any, references: Any) -> dict[str, float]:
        """Hit rate at 10 of the items of a group."""
        return metrics.hit_rate([one.rank for one in predictions])

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Popularity, and a first-order Markov chain that popularity completes; with the same filter."""
        if not trained:
            return {}
        names = list(self.counts)
        numbers = {item: number for number, item in enumerate(names)}
        rows = [[numbers[item] for item in items] for items in self.splits["train"]["items"]]
        found: dict[str, list[Ranking]] = {}
        for name, kind in BASELINES.items():
            baseline, found[name] = kind(rows, len(names)), []
            for event in self.events[split]:
                history = [numbers[item] for item in event.history]
                scores = torch.from_numpy(baseline.scores(history)[None].copy())
                if self.data.filter_seen:
                    scores[0, history] = -torch.inf
                target = torch.tensor([numbers.get(event.item, -1)])
                rank, *top = ranked(scores, target, min(self.data.top_k, len(names)))[0].tolist()
                found[name].append(Ranking(rank, [names[number] for number in top if number >= 0]))
        return found

    # Reports

    def sources(self, split: str) -> list[str]:
        """Last items of each history."""
        return [" | ".join(event.known[max(0, event.before - 10) : event.before]) for event in self.events[split]]

    def show(self, predictions: Any) -> list[str]:
        """Names of the items, best first."""
        return [one if isinstance(one, str) else " | ".join(one.items) for one in predictions]

    def example(self, split: str) -> str | None:
        """First history, a line for each item, for the model card."""
        return "\n".join(next((event.history[-3:] for event in self.events[split] if event.before), []))

    def summary(self, split: str, predictions: Any) -> str:
        """Heading of the final test."""
        filtered = "those of the history left out" if self.data.filter_seen else "those of the history included"
        return f"{len(predictions)} items of {len(self.splits[split])} {self.rows}, ranked among all items, {filtered}"

    def write(self, directory: Path, split: str, predictions: Any) -> None:
        """Write `popularity.csv`: all metrics for each group of items; nothing without training rows."""
        kinds = self.kinds(split)
        if kinds is None:
            return
        with open(directory / "popularity.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            for group in GROUPS:
                own = [one for one, kind in zip(predictions, kinds, strict=True) if kind == group]
                if own:
                    scores = self.score(own, None)
                    if not file.tell():
                        writer.writerow(["group", "items", *scores])
                    writer.writerow([group, len(own), *(f"{value:.6g}" for value in scores.values())])


class HistoryCollator:
    """Collator of encoded sessions, which pads on the right: positions do not depend on the other rows.

    Args:
        pad_token_id: Token id of padding.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> BatchEncoding:
        """Pad rows to `input_ids`, `attention_mask`, `labels` `[B, T]`; events to `[B, E]`, histories to `[B, H]`."""
        batch = {name: _padded([row[name] for row in rows], -100) for name in rows[0] if name != "attention_mask"}
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        batch["input_ids"] = batch["input_ids"].where(mask, self.pad_token_id)
        return BatchEncoding({**batch, "attention_mask": mask.long()})


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)


def _before(labels: Tensor) -> Tensor:
    """Mask `[B, T]` of the steps whose next step has a label."""
    keep = torch.zeros_like(labels, dtype=torch.bool)
    keep[:, :-1] = labels[:, 1:] != -100
    return keep


def step_logits(model: Any, inputs: Mapping[str, Tensor], steps: Tensor) -> Tensor:
    """Logits `[N, V]` of the steps of a mask `[B, T]`, row by row, without those of the other steps if possible.

    Args:
        model: Causal language model.
        inputs: `input_ids` and `attention_mask` `[B, T]`.
        steps: Mask of N steps.
    """
    if is_hfseq(model.config):
        return model(**inputs, logits_to_keep=steps, use_cache=False).logits
    if "logits_to_keep" in signature(model.forward).parameters:
        kept = steps.any(dim=0).nonzero()[:, 0]
        return model(**inputs, logits_to_keep=kept).logits[steps[:, kept]]
    return model(**inputs).logits[steps]


def ranked(scores: Tensor, targets: Tensor, top: int) -> Tensor:
    """Rank of each target, and the items with the highest scores.

    An item with the same score as the target is counted as above it, as in the official implementation of GRU4Rec: a
    model that scores all items alike gets nothing.

    Args:
        scores: Score of each item `[N, V]`, -inf if it must not be recommended.
        targets: Item of each row `[N]`, -1 for none.
        top: Number K of items.

    Returns:
        `[N, 1 + K]`: ranks from 1, 0 if the target is none or must not be recommended, and K items, -1 for none.
    """
    own = scores.gather(1, targets.clamp(min=0)[:, None])
    ranks = (scores >= own).sum(dim=1)
    ranks[(targets < 0) | ~own[:, 0].isfinite()] = 0
    values, items = scores.topk(top)
    return torch.cat([ranks[:, None], items.where(values > -torch.inf, -1)], dim=1)

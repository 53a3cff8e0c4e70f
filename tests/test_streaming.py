"""Streams against the same data read whole, and runs on them that are interrupted against runs that are not."""

import itertools
import json
import os
import signal
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from test_checkpoints import collate, same, start, tiny_model
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from hfseq.data.labels import encode_labels
from hfseq.data.reading import read_splits
from hfseq.data.streaming import BatchStream, first_texts, read_stream, stream_loader
from hfseq.errors import InputError
from hfseq.tokenization import train_tokenizer
from hfseq.training.checkpoints import epoch_batches, last_complete_checkpoint
from hfseq.training.trainer import GenerationTrainer

ROWS = [(f"Satz {n}\u2028\u00fc", f'say "{n}", then {n * n}') for n in range(23)]


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def quoted(*fields):
    return ",".join('"' + field.replace('"', '""') + '"' for field in fields)


def make(kind, folder, rows=ROWS):
    """Write `rows`, two empty ones among them, as a file or data set of some kind, and one for validation; flags."""
    rows = [*rows[:3], ("", "x"), *rows[3:-1], ("y", " \u3000"), rows[-1]]
    dicts = [{"de": de, "en": en} for de, en in rows]
    flags = {"train_file": str(folder / f"train.{kind}")}
    write(folder / "validation.tsv", "b\ta\n" if kind == "tsv" else "de\ten\na\tb\n")
    if kind == "csv":
        write(folder / "train.csv", "\r\n".join(["\ufeffid,en,de", *(quoted("a\nb", en, de) for de, en in rows)]))
    elif kind == "tsv":
        write(folder / "train.tsv", "".join(f"{en}\t{de}\n" for de, en in rows))
        flags["column_names"] = ["en", "de"]
    elif kind == "jsonl":
        write(
            folder / "train.jsonl",
            "".join(json.dumps({"translation": row}, ensure_ascii=False) + "\n" for row in dicts),
        )
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(dicts), folder / "train.parquet", row_group_size=7)
    elif kind == "moses":
        flags = {"train_file": str(folder / "train"), "moses": True}
        for index, column in enumerate(("de", "en")):
            write(folder / f"train.{column}", "\n".join(row[index] for row in rows) + "\n" * (column == "en"))
    elif kind == "saved":
        flags = {"dataset_name": str(folder / "saved")}
        datasets.DatasetDict({"train": datasets.Dataset.from_list(dicts)}).save_to_disk(folder / "saved")
    else:
        (folder / "local").mkdir()
        flags = {"dataset_name": str(folder / "local")}
        for number, part in enumerate((dicts[:9], dicts[9:])):
            pq.write_table(pa.Table.from_pylist(part), folder / "local" / f"train-{number}.parquet")
    return {"columns": ("de", "en"), "validation_file": str(folder / "validation.tsv")} | flags


KINDS = ["csv", "tsv", "jsonl", "parquet", "moses", "saved", "local"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_whole_file(kind, tmp_path, cache, caplog):
    flags = make(kind, tmp_path)
    whole = read_splits(**flags)["train"]
    told = caplog.messages.copy()
    assert whole.to_list() == [{"de": de, "en": en} for de, en in ROWS]
    splits = read_stream(**flags)
    assert isinstance(splits["train"], datasets.IterableDataset)
    assert splits["train"].features == whole.features
    assert splits["validation"].to_list() == [{"de": "a", "en": "b"}]
    caplog.clear()
    for _ in range(2):
        assert list(splits["train"]) == whole.to_list()
    assert caplog.messages == told * 2
    assert "2 empty rows dropped of 25: 4, 24" in told[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_read_each_row_once(kind, processes, tmp_path, cache, caplog):
    rows = read_stream(**make(kind, tmp_path), num_parts=processes)["train"]
    shares = [list(BatchStream(rows, rank=rank, num_replicas=processes).rows) for rank in range(processes)]
    assert all(shares)
    told = [message for message in caplog.messages if "dropped" in message]
    if kind in ("saved", "local"):
        assert told and all(f"of {processes}): 1 empty row" in message for message in told)
    else:
        assert ["2 empty rows dropped of 25: 4, 24" in message for message in told] == [True]
    assert sorted(row["de"] for share in shares for row in share) == sorted(de for de, _ in ROWS)


BAD = {
    "a.csv": ["", "de,fr\na,b\n", "de,en,de\n", "de,en\n", 'de,en\na,b\n"c\nd",e\n"f"g,h\n', "de,en\na,b\nc,d,e\n"],
    "a.tsv": [b"de\ten\na\tb\nc\t\xfc\n", "de\ten\na\tb\nc\n", "de\ten\na\t\n\tb\n"],
    "a.jsonl": [
        '{"de": "a", "en": "b"}\n[1]\n',
        '{"de": "a", "en": "b"}\n{"de": "a"}\n',
        '{"de": "a", "en": 5}\n',
        "{",
    ],
    "a.txt": ["x"],
    "a.parquet": ["x", pa.table({"de": ["a"], "fr": ["b"]}), pa.table({"de": ["a"], "en": [1.5]})],
    "de": ["a\nb\n", b"\xff\n"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in BAD for content in BAD[name]])
def test_errors_are_those_of_the_whole_file(name, content, tmp_path):
    path = tmp_path / f"train.{name}"
    flags = make("moses", tmp_path) | {"moses": name == "de"}
    flags["train_file"] = str(tmp_path / "train") if name == "de" else str(path)
    pq.write_table(content, path) if isinstance(content, pa.Table) else write(path, content)
    with pytest.raises(InputError) as whole:
        read_splits(**flags)
    with pytest.raises(InputError) as streamed:
        list(read_stream(**flags)["train"])
    assert str(streamed.value) == str(whole.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"columns": ("de", "de")}, "must differ"),
        ({"dataset_name": "x"}, "exclude each other"),
        ({"train_file": None}, "without training data"),
        ({"validation_file": None}, "give --validation_file"),
        ({"column_names": ["de", "en"]}, "is none of them"),
        ({"train_file": "nowhere.csv"}, r"nowhere.csv: no such file \(--train_file\)"),
    ],
)
def test_refusals(flags, says, tmp_path):
    usual = make("jsonl", tmp_path)
    with pytest.raises(InputError, match=says):
        read_stream(**usual | flags)


def test_errors_wait_for_their_row(tmp_path):
    flags = make("jsonl", tmp_path)
    write(tmp_path / "train.jsonl", '{"de": "a", "en": "b"}\n[]\n')
    rows = iter(read_stream(**flags)["train"])
    assert next(rows) == {"de": "a", "en": "b"}
    with pytest.raises(InputError, match=r"train.jsonl:2: a JSON list"):
        next(rows)


def test_classes_of_a_data_set(tmp_path):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "topics": datasets.List(datasets.ClassLabel(names=["film", "food"])),
            "stars": datasets.Value("int64"),
        }
    )
    data = {
        "text": ["a", "b", "c", "d"],
        "label": [1, 0, -1, 1],
        "topics": [[0], [], [1], [1, 0]],
        "stars": [5, 1, 3, 4],
    }
    data = datasets.Dataset.from_dict(data, features)
    datasets.DatasetDict({"train": data, "dev": data}).save_to_disk(tmp_path / "data")
    options = {"columns": list(features), "label_columns": list(features)[1:], "dataset_name": str(tmp_path / "data")}
    splits, whole = read_stream(**options), read_splits(**options)
    assert splits["train"].features == whole["train"].features
    assert list(splits["train"]) == whole["train"].to_list() == splits["validation"].to_list()
    with pytest.raises(InputError, match="split train: column 'stars' must hold strings, not int64"):
        read_stream(columns=("text", "stars"), dataset_name=str(tmp_path / "data"))


@pytest.mark.parametrize("read", [read_splits, read_stream])
def test_a_test_split_that_keeps_its_labels_to_itself(read, tmp_path, caplog):
    """As those of GLUE; training rows without any are a mistake."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )

    def rows(*labels):
        return datasets.Dataset.from_dict({"text": ["a"] * len(labels), "label": list(labels)}, features)

    def load(**splits):
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "data")
        return read(columns=("text", "label"), label_columns=("label",), dataset_name=str(tmp_path / "data"))

    splits = load(train=rows(1, 0), dev=rows(0, -1), test=rows(-1, -1, -1))
    assert list(splits) == ["train", "validation"] and len(splits["validation"]) == 1
    told = f"{tmp_path}/data [test]: left out: none of 3 rows has a label in label"
    assert [message for message in caplog.messages if "label" in message] == [told]
    splits = load(train=rows(1, 0), dev=rows(0), test=rows(-1, 1))
    assert splits["test"].to_list() == [{"text": "a", "label": "pos"}]
    with pytest.raises(InputError, match="split train: empty: none of 2 rows has text in text and label"):
        load(train=rows(-1, -1), dev=rows(0))
    with pytest.raises(InputError, match="data.*labels" if read is read_splits else "without training data"):
        load(test=rows(-1))


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (["pos", "neg", " pos", "neg"], {}),
        (["2", "10", "2", "2"], {"names": ["10", "2", "3"]}),
        ([["a", "b"], [], ["b"], ["a", "b"]], {}),
        (["a;b", "b", "a;b", "c"], {"separator": ";"}),
    ],
)
def test_classes_are_numbered(labels, options, tmp_path):
    data = datasets.Dataset.from_dict({"text": list("abcd"), "label": labels})
    datasets.DatasetDict({"train": data, "dev": data.select([1, 0])}).save_to_disk(tmp_path / "data")
    flags = {"columns": ("text", "label"), "label_columns": ("label",), "dataset_name": str(tmp_path / "data")}
    whole, names = encode_labels(read_splits(**flags), "label", **options)
    splits, streamed_names = encode_labels(read_stream(**flags, num_parts=2), "label", **options)
    assert streamed_names == names
    assert splits["train"].features == whole["train"].features
    assert sorted(splits["train"], key=lambda row: row["text"]) == whole["train"].to_list()
    assert splits["validation"].to_list() == whole["validation"].to_list()


def test_classes_that_training_does_not_have(tmp_path):
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["pos", "neg"]})
    other = datasets.Dataset.from_dict({"text": ["a"], "label": ["mixed"]})
    datasets.DatasetDict({"train": data, "dev": other}).save_to_disk(tmp_path / "data")
    splits = read_stream(columns=("text", "label"), label_columns=("label",), dataset_name=str(tmp_path / "data"))
    with pytest.raises(InputError, match="validation, row 1: class 'mixed'"):
        encode_labels(splits, "label")


def test_a_tokenizer_of_the_first_rows(tmp_path):
    rows = read_stream(**make("tsv", tmp_path))["train"]
    assert list(first_texts(rows, ("de", "en"), 2)) == [*ROWS[0], *ROWS[1]]
    texts = [text for row in ROWS for text in row]
    tokenizer = train_tokenizer(first_texts(rows, ("de", "en")), vocab_size=60)
    assert tokenizer.get_vocab() == train_tokenizer(texts, vocab_size=60).get_vocab()


# Batches


def numbers(parts, num_parts, count):
    for part in parts:
        yield from ({"number": number} for number in range(part, count, num_parts))


def encode(batch):
    lengths = [2 + number * 7 % 11 for number in batch["number"]]
    ids = [[3 + number % 37] * length for number, length in zip(batch["number"], lengths, strict=True)]
    return {"input_ids": ids, "labels": [row[::-1] for row in ids], "number": batch["number"]}


def encoded(count=500, parts=1):
    """Rows with their number, and ids of 2 to 12 tokens."""
    arguments = {"parts": list(range(parts)), "num_parts": parts, "count": count}
    features = datasets.Features({"number": datasets.Value("int64")})
    rows = datasets.IterableDataset.from_generator(numbers, features, arguments)
    return rows.map(encode, batched=True, batch_size=64)


def epochs(stream, count, epochs=2):
    """Batches of whole epochs of `count` rows."""
    batches, rows = [], 0
    for batch in stream:
        batches.append([row["number"] for row in batch])
        rows += len(batch)
        if rows >= epochs * count:
            return batches
    raise AssertionError("a stream has no end")


@pytest.mark.parametrize("options", [{"max_tokens": 60}, {"batch_size": 7}], ids=str)
@pytest.mark.parametrize("processes", [1, 2])
def test_batches(options, processes):
    shares = []
    for rank in range(processes):
        stream = BatchStream(encoded(parts=processes), window=100, rank=rank, num_replicas=processes, **options)
        mine = len(list(stream.rows))
        batches = epochs(stream, mine)
        assert batches == epochs(stream, mine)
        assert batches != epochs(BatchStream(encoded(), window=100, seed=1, **options), mine)
        order = np.concatenate(batches)
        first, second = order[:mine].tolist(), order[mine:].tolist()
        assert sorted(first) == sorted(second) == list(range(rank, 500, processes))
        assert first != second
        # Rows move within their window, and do.
        places = [number // processes for number in first]
        window = stream.window
        assert [place // window for place in places] == [place // window for place in range(mine)]
        assert places[:window] != sorted(places[:window])
        shares.append(batches)
        if "max_tokens" in options:
            lengths = [[2 + number * 7 % 11 for number in batch] for batch in batches]
            assert max(len(batch) * max(batch) for batch in lengths) <= 60
            assert sum(map(sum, lengths)) / sum(len(batch) * max(batch) for batch in lengths) > 0.85
        else:
            sizes = [len(batch) for batch in batches]
            assert sizes == [7] * (mine // 7) + [mine % 7] + [7] * (mine // 7) + [mine % 7]


@pytest.mark.parametrize("options", [{"max_tokens": 60}, {"batch_size": 7}], ids=str)
def test_batches_after_a_resumption(options):
    options = {"window": 100, **options}
    whole = BatchStream(encoded(), **options)
    iterator = iter(whole)
    batches, states = [], []
    for count in range(1, 130):
        batches.append(next(iterator))
        if count > 3:
            # A data loader has taken some more than were trained on.
            states.append(json.loads(json.dumps(whole.state_dict(count - 3))))
    assert len({number for batch in batches for number in (row["number"] for row in batch)}) == 500
    for done, state in enumerate(states, 1):
        resumed = BatchStream(encoded(), **options)
        resumed.load_state_dict(state)
        again = [batch for batch, _ in zip(resumed, batches, strict=False)]
        skipped = sum(batch is None for batch in again)
        assert skipped <= done < skipped + 20
        assert again[skipped:] == batches[skipped:]


def test_a_resumption_does_not_encode_what_it_skips():
    calls = []

    def stream():
        return BatchStream(
            encoded(4000).map(lambda batch: calls.append(1) or batch, batched=True), batch_size=10, window=500
        )

    whole = stream()
    expected = [batch for batch, _ in zip(whole, range(352), strict=False)][350]
    assert len(calls) == 4
    resumed = stream()
    resumed.load_state_dict(whole.state_dict(350))
    assert [batch for batch, _ in zip(resumed, range(351), strict=False)][350] == expected
    assert len(calls) == 5


def test_streams_that_cannot_be():
    with pytest.raises(InputError, match="--max_tokens 11 is too small: a row of the training set has 12 tokens"):
        next(iter(BatchStream(encoded(), max_tokens=11)))
    with pytest.raises(InputError, match="fewer training rows than processes"):
        next(iter(BatchStream(encoded(1, parts=2), rank=1, num_replicas=2)))
    with pytest.raises(ValueError, match="3 workers cannot share 2 shards"):
        BatchStream(encoded(parts=2), num_workers=3)
    stream = BatchStream(encoded(parts=2))
    next(iter(stream))
    state = stream.state_dict(0)
    for changed in ({"rank": 0, "num_replicas": 2}, {"num_workers": 2}):
        with pytest.raises(InputError, match="1 with 0, not"):
            BatchStream(encoded(parts=2), **changed).load_state_dict(state)


@pytest.mark.parametrize("kind", ["tsv", "local"])
def test_workers_of_a_data_loader_read_each_row_once(kind, tmp_path, cache):
    processes, workers, seen = 2, 2, []
    rows = read_stream(**make(kind, tmp_path), num_parts=processes * workers)["train"]
    for rank in range(processes):
        stream = BatchStream(rows, batch_size=1, rank=rank, num_replicas=processes, num_workers=workers)
        state = stream.state_dict(5)
        assert state["start"] is None
        stream.load_state_dict(state)
        count = len(list(stream.rows))
        # By turns from both workers, the second of which may have one row less than the first.
        loader = iter(stream_loader(stream, lambda rows: [row["de"] for row in rows], "cpu"))
        texts = [next(loader)[0] for _ in range(2 * count)]
        assert set(texts) == {row["de"] for row in stream.rows}
        seen += set(texts)
        # The workers read, not this process.
        assert stream.state_dict(2 * count)["start"] is None
    assert sorted(seen) == sorted(de for de, _ in ROWS)


# Training


class Stop(TrainerCallback):
    """Notes how many steps there were, and kills the process at the end of one."""

    def __init__(self, kill_step):
        self.kill_step = kill_step
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        if state.global_step == self.kill_step:
            os.kill(os.getpid(), signal.SIGKILL)


class StreamTrainer(GenerationTrainer):
    forget = False

    def train(self, resume_from_checkpoint=None, *args):
        self.checkpoint = last_complete_checkpoint(self.args.output_dir) if resume_from_checkpoint else None
        return super().train(resume_from_checkpoint, *args)

    def get_train_dataloader(self):
        self.stream = BatchStream(
            self.train_dataset,
            max_tokens=self.max_tokens,
            batch_size=self._train_batch_size,
            window=32,
            seed=self.args.seed,
            rank=self.args.process_index,
            num_replicas=self.args.world_size,
            num_workers=self.args.dataloader_num_workers,
        )
        if self.checkpoint is not None:
            state = Path(self.checkpoint) / f"stream_{self.args.process_index}.json"
            if not self.forget:
                self.stream.load_state_dict(json.loads(state.read_text()))
        return stream_loader(self.stream, self.data_collator, self.args.device)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        state = self.stream.state_dict(self.state.global_step * self.args.gradient_accumulation_steps)
        (Path(output_dir) / f"stream_{self.args.process_index}.json").write_text(json.dumps(state))


def trainer_run(output_dir, kill_step=None, steps=18, accumulation=1, forget=False):
    arguments = Seq2SeqTrainingArguments(
        str(output_dir),
        max_steps=steps,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        save_steps=2,
        logging_steps=2,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulation,
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        seed=1,
    )
    stop = Stop(kill_step)
    batches = []

    class Recording(StreamTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            batches.append(inputs["input_ids"].tolist())
            return super().training_step(model, inputs, *args, **kwargs)

    trainer = Recording(
        model=tiny_model(),
        args=arguments,
        train_dataset=encoded(65, parts=arguments.world_size),
        data_collator=collate,
        callbacks=[stop],
        max_tokens=80,
    )
    trainer.forget = forget
    trainer.train(resume_from_checkpoint="last")
    trainer.save_model(str(Path(output_dir) / f"final-{arguments.process_index}"))
    (Path(output_dir) / f"seen-{arguments.process_index}.json").write_text(json.dumps(batches))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"forget": True},
        {"accumulation": 3, "steps": 9},
        {"processes": 2},
    ],
    ids=str,
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(options, tmp_path):
    options = dict(options)
    forget, processes = options.pop("forget", False), options.get("processes", 1)
    steps = options.get("steps", 18)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(trainer_run, whole, **options) == [0] * processes
    assert start(trainer_run, broken, kill_step=steps - 2, **options) == [-signal.SIGKILL] * processes
    resumed_at = steps - 4 + steps % 2
    assert last_complete_checkpoint(broken) == str(broken / f"checkpoint-{resumed_at}")
    assert start(trainer_run, broken, forget=forget, **options) == [0] * processes
    for rank in range(processes):
        seen = [json.loads((folder / f"seen-{rank}.json").read_text()) for folder in (whole, broken)]
        # In the second epoch, at least.
        assert sum(len(batch) for batch in seen[0][: resumed_at * options.get("accumulation", 1)]) > 65 / processes
        assert seen[0][resumed_at * options.get("accumulation", 1) :] == seen[1]
    assert same(whole / "final-0", broken / "final-0")


def test_processes_of_unequal_epochs_end_together():
    """No process waits for a batch of another that has none: the run above on two processes ends."""
    options = {"num_replicas": 2, "max_tokens": 80, "window": 32}
    batches = [BatchStream(encoded(65, parts=2), rank=rank, **options) for rank in range(2)]
    assert len(epochs(batches[0], 33, 1)) > len(epochs(batches[1], 32, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_explicit_loop_goes_on(workers):
    accelerator = Accelerator(cpu=True)

    def draw(skip, count, state=None):
        stream = BatchStream(encoded(91, parts=2), max_tokens=80, window=16, num_workers=workers)
        if state is not None:
            stream.load_state_dict(state)
        torch.manual_seed(0)
        batches = epoch_batches(accelerator, stream_loader(stream, collate, accelerator.device), 0, skip)
        drawn = [batch["input_ids"].tolist() for batch in itertools.islice(batches, count)]
        return drawn, torch.rand(1), stream.state_dict(13)

    expected, random, state = draw(0, 20)
    for given in (None, json.loads(json.dumps(state))):
        assert draw(13, 7, given)[:2] == (expected[13:], random)

"""The recipe for DNA and proteins: both tasks, windows, strands, masks, logos, and what bad rows get."""

import json
import random
from pathlib import Path

import datasets
import numpy as np
import pytest
import recipe_runs
import torch
from recipe_runs import load
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    EsmConfig,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmTokenizer,
    pipeline,
)

from hfseq import (
    CnnConfig,
    CnnForTokenClassification,
    LstmConfig,
    LstmForSequenceClassification,
    LstmForTokenClassification,
)
from hfseq.data.fasta import reverse_complement
from hfseq.errors import InputError
from hfseq.hub.publish import publish
from hfseq.inference.importance import log_odds, substitution_importance
from hfseq.onnx.export import export_onnx
from hfseq.onnx.runtime import load_onnx
from hfseq.tasks.arguments import SequenceArguments
from hfseq.tasks.bioinformatics import ResidueTagging, SequenceClassification, letter_heights, tokenizer_of, windows_of
from hfseq.tasks.tagging import token_collator
from hfseq.training.arguments import RecipeArguments

RECIPE = load("bioinformatics")
CONFIG = """\
config_overrides: {hidden_size: 32, embedding_size: 8, input_filters: 8, input_kernel_size: 3, dropout: 0.0}
num_train_epochs: 15
learning_rate: 2e-2
per_device_train_batch_size: 8
use_cpu: true
disable_tqdm: true
"""


def residues(count, seed, longest=40):
    """Proteins whose residues are in a helix (H) after A, in a strand (E) after V, until the next of them."""
    rng = random.Random(seed)
    for _ in range(count):
        letters = "".join(rng.choices("AVGKLX", k=rng.randint(8, longest)))
        tags, now = [], "C"
        for letter in letters:
            tags.append(now)
            now = {"A": "H", "V": "E"}.get(letter, now)
        yield letters, "".join(tags)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("proteins")
    (root / "config.yaml").write_text(CONFIG)
    for seed, (name, count) in enumerate((("train", 80), ("val", 16), ("test", 16))):
        rows = list(residues(count, seed))
        names = [f"p{number}" for number in range(count)]
        masks = ["0" + "1" * (len(letters) - 1) for letters, _ in rows]
        table = "".join(
            f"{one}\t{row[0]}\t{row[1]}\t{mask}\n" for one, row, mask in zip(names, rows, masks, strict=True)
        )
        (root / f"{name}.tsv").write_text(table)
        (root / f"{name}.faa").write_text("".join(f">{one}\n{row[0]}\n" for one, row in zip(names, rows, strict=True)))
        tags = "".join(f">{one}\n?{row[1][1:]}\n" for one, row in zip(names, rows, strict=True))
        (root / f"{name}.labels.fasta").write_text(tags)
    return root


def run(data, output_dir, suffix="faa", **flags):
    files = {f"{split}_file": data / f"{name}.{suffix}" for split, name in (("train", "train"), ("test", "test"))}
    files["validation_file"] = data / f"val.{suffix}"
    given = {"model_type": "hfseq_lstm", "alphabet": "protein", **files, "output_dir": output_dir, **flags}
    recipe_runs.start(RECIPE, recipe_runs.arguments(data / "config.yaml", **given))
    return json.loads((Path(output_dir) / "all_results.json").read_text())


@pytest.fixture(scope="module")
def tagged(data, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("tagged") / "run"
    return output_dir, run(data, output_dir)


def test_residues_are_tagged(data, tagged):
    output_dir, scores = tagged
    assert scores["test_accuracy"] > 95 > 70 > scores["test_majority_accuracy"]
    assert scores["test_sov"] > 90
    assert set(scores) >= {"test_by_letter_accuracy", "test_f1"} and "test_process_accuracy" not in scores
    predictions = (output_dir / "predictions.txt").read_text().splitlines()
    sequences = [line for line in (data / "test.faa").read_text().splitlines() if not line.startswith(">")]
    assert [len(line) for line in predictions] == [len(line) for line in sequences]
    tagger = pipeline("token-classification", str(output_dir))
    found = [tagger(text) for text in (sequences[0], sequences[0].lower())]
    assert ["".join(one["entity"] for one in row) for row in found] == [predictions[0]] * 2


def test_a_table_with_a_mask_is_the_same(data, tagged, tmp_path):
    flags = {"column_names": "id,sequence,labels,mask", "mask_column": "mask"}
    assert run(data, tmp_path / "run", "tsv", **flags)["test_accuracy"] == tagged[1]["test_accuracy"]
    counted = run(data, tmp_path / "all", "tsv", column_names="id,sequence,labels,mask", num_train_epochs=0.1)
    assert counted["test_loss" if "test_loss" in counted else "test_accuracy"] is not None


def task_of(kind, tmp_path, rows, known=("C", "E", "H"), **flags):
    arguments = SequenceArguments(task="tagging" if kind is ResidueTagging else "classification", **flags)
    task = kind(arguments, RecipeArguments(output_dir=str(tmp_path), use_cpu=True))
    task.splits = task._prepare({"test": datasets.Dataset.from_list(rows)}, list(known), False)
    return task


@pytest.mark.parametrize(("length", "size"), [(5, 8), (8, 8), (9, 8), (12, 8), (37, 8), (100, 7), (3, 2)])
def test_windows_cover_a_sequence_and_share_half(length, size):
    windows = windows_of(length, size)
    assert windows[0][0] == 0 and windows[-1][1] == length
    assert all(end - begin == min(size, length) for begin, end in windows)
    for (begin, end), (after, _) in zip(windows, windows[1:], strict=False):
        assert begin < after <= begin + max(1, size // 2) and end - after >= size // 2


def test_windows_give_what_the_whole_gives(tmp_path):
    """A convolution that sees two letters to each side: windows of 12 lose nothing of it."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of("protein", 1)
    config = CnnConfig(vocab_size=len(tokenizer), hidden_size=8, embedding_size=8, num_labels=3, num_hidden_layers=1)
    model = CnnForTokenClassification(config).eval()
    assert config.kernel_size <= 5
    rows = [{"sequence": letters, "labels": tags} for letters, tags in residues(6, 3, longest=60)]
    found = {}
    for limit in (200, 12):
        task = task_of(ResidueTagging, tmp_path, rows, alphabet="protein", max_length=limit)
        task.encode(model, tokenizer, print)
        assert (len(task.encoded["test"]) > 6) == (limit == 12)
        raw, _ = task.predict(model, "test")
        found[limit] = task.decode("test", raw)
        assert [len(row) for row in found[limit]] == [len(row["sequence"]) for row in rows]
        assert task.show(task.references["test"]) == [row["labels"] for row in rows]
    assert found[12] == found[200]


def transformer_of_proteins(directory, model_class):
    """A tiny ESM, whose tokenizer is no fast one, and puts tokens around a sequence."""
    (directory / "vocab.txt").write_text(
        "\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", "<mask>"])
    )
    tokenizer = EsmTokenizer(str(directory / "vocab.txt"))
    config = EsmConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        position_embedding_type="rotary", pad_token_id=tokenizer.pad_token_id, mask_token_id=tokenizer.mask_token_id,
    )  # fmt: skip
    model_class(config).save_pretrained(directory / "esm")
    tokenizer.save_pretrained(directory / "esm")
    name = str(directory / "esm")
    return {"model_type": None, "model_name_or_path": name, "config_overrides": "{}", "num_train_epochs": 1}


def test_a_transformer_of_proteins_tags(tmp_path, data):
    scores = run(data, tmp_path / "run", **transformer_of_proteins(tmp_path, EsmForTokenClassification))
    assert 0 < scores["test_accuracy"] <= 100
    assert AutoModelForTokenClassification.from_pretrained(tmp_path / "run").config.model_type == "esm"


def test_a_transformer_of_proteins_classifies(tmp_path):
    for seed, name in enumerate(("train", "val", "test")):
        rows = enumerate(residues(24, seed))
        (tmp_path / f"{name}.faa").write_text(
            "".join(f">{at} label={one[0] in 'AVG'}\n{one}\n" for at, (one, _) in rows)
        )
    (tmp_path / "config.yaml").write_text(CONFIG)
    given = transformer_of_proteins(tmp_path, EsmForSequenceClassification)
    scores = run(tmp_path, tmp_path / "run", task="classification", **given)
    assert 0 < scores["test_accuracy"] <= 100
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.model_type == "esm" and model.config.label2id == {"False": 0, "True": 1}


def test_graphs_and_published_models_give_the_same(tagged, classified, tmp_path):
    """A tagger behind a convolution, and a classifier: from an ONNX graph, and from what is published."""
    letters = {"tags": "AVGKLXAVV", "classes": "ACGTCCGTTGGATTACAGGCCTTGCACCGT"}
    models = {
        "tags": (tagged[0], AutoModelForTokenClassification),
        "classes": (classified[0] / "run", AutoModelForSequenceClassification),
    }
    for name, (directory, auto_class) in models.items():
        tokenizer = AutoTokenizer.from_pretrained(directory)
        inputs = tokenizer([letters[name], letters[name][:5]], padding=True, return_tensors="pt")
        expected = auto_class.from_pretrained(directory)(**inputs).logits.detach()
        export_onnx(directory, tmp_path / name / "onnx")
        publish(directory, "someone/model", dry_run=tmp_path / name / "hub")
        published = auto_class.from_pretrained(tmp_path / name / "hub")
        for model in (load_onnx(tmp_path / name / "onnx")[0], published):
            torch.testing.assert_close(model(**inputs).logits.detach(), expected, rtol=1e-4, atol=1e-5)
        card = (tmp_path / name / "hub" / "README.md").read_text(encoding="utf-8")
        assert "accuracy" in card and AutoTokenizer.from_pretrained(tmp_path / name / "hub")("AC")["input_ids"]


def strands(count, seed):
    """DNA with GATTACA, or its reverse complement, somewhere, or with neither."""
    rng = random.Random(seed)
    for number in range(count):
        letters = "".join(rng.choices("ACGT", k=30))
        motif = rng.choice(("GATTACA", "TGTAATC"))
        at = rng.randrange(23)
        yield (f"{letters[:at]}{motif}{letters[at + 7 :]}", "yes") if number % 2 else (letters, "no")


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    root = tmp_path_factory.mktemp("strands")
    (root / "config.yaml").write_text(CONFIG)
    for seed, (name, count) in enumerate((("train", 200), ("val", 40), ("test", 40))):
        rows = "".join(
            f">{name}{number} label={label}\n{text}\n" for number, (text, label) in enumerate(strands(count, seed))
        )
        (root / f"{name}.fa").write_text(rows)
    flags = {"task": "classification", "alphabet": "dna", "reverse_complement": "true", "model_type": "hfseq_cnn"}
    flags["config_overrides"] = '{"hidden_size": 32, "embedding_size": 8, "pooling": "max", "kernel_sizes": [7]}'
    return root, run(root, root / "run", "fa", **flags)


def test_both_strands_are_classified_alike(classified, tmp_path):
    root, scores = classified
    assert scores["test_accuracy"] > 90
    output_dir = root / "run"
    for name in ("logos.png", "confusion_matrix.png", "learning_curve.png"):
        assert (output_dir / name).exists()
    model = AutoModelForSequenceClassification.from_pretrained(output_dir)
    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    rows = list(strands(20, 9))
    found = []
    for turn in (str, reverse_complement):
        given = [{"sequence": turn(text), "label": label} for text, label in rows]
        task = task_of(SequenceClassification, tmp_path, given, known=["no", "yes"], reverse_complement=True)
        task.encode(model, tokenizer, print)
        assert len(task.encoded["test"]) == 40 and task.lengths["test"] == [30] * 20
        raw, _ = task.predict(model, "test")
        found.append(task.decode("test", raw).tolist())
    assert found[0] == found[1] and set(found[0]) == {0, 1}


def test_importance_is_highest_in_the_motif(classified):
    root, _ = classified
    model = AutoModelForSequenceClassification.from_pretrained(root / "run")
    tokenizer = AutoTokenizer.from_pretrained(root / "run")
    texts = ["ACGTCCGTTGGATTACAGGCCTTGCACCGT", "CCGTTGCAGGGATTACACCGTATGCCATTG"]
    found = substitution_importance(model, tokenizer, texts, 1, "ACGT")
    assert found.shape == (2, 30)
    assert found[:, 10:17].mean() > 5 * np.abs(np.delete(found, range(10, 17), axis=1)).mean()
    text = texts[0]
    with torch.no_grad():
        own, *others = (
            log_odds(model(**tokenizer(one, return_tensors="pt")).logits, 1, "single_label_classification").item()
            for one in (text, *(f"{text[:12]}{letter}{text[13:]}" for letter in "ACG"))
        )
    assert text[12] == "T"
    assert found[0, 12] == pytest.approx(own - np.mean(others), abs=1e-4)
    heights = letter_heights(texts, found, "ACGT")
    np.testing.assert_allclose(heights.sum(axis=1), found.mean(axis=0))
    assert heights[12].nonzero()[0].tolist() == [3]


def test_kmers(classified, tmp_path):
    root, _ = classified
    flags = {"task": "classification", "alphabet": "dna", "kmer_size": 3, "num_train_epochs": 1}
    run(root, tmp_path / "run", "fa", **flags)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.convert_ids_to_tokens(tokenizer("acgtta")["input_ids"]) == ["ACG", "TTA"]
    assert not (tmp_path / "run" / "logos.png").exists()


def test_the_embedded_genes_stand_beside_the_best(tmp_path, monkeypatch):
    from hfseq.data.embedded.genes import gene_rows, splice_sites
    from hfseq.tasks import bioinformatics

    sizes = {"train_size": 8, "validation_size": 4, "test_size": 4}
    monkeypatch.setattr(bioinformatics, "gene_rows", lambda: gene_rows(**sizes, length=200))
    monkeypatch.setattr(bioinformatics, "splice_sites", lambda: splice_sites(**sizes))
    flags = ["--output_dir", str(tmp_path / "genes"), "--num_train_epochs", "1", "--use_cpu", "true"]
    recipe_runs.start(RECIPE, flags)
    scores = json.loads((tmp_path / "genes" / "all_results.json").read_text())
    assert scores["test_process_accuracy"] > scores["test_majority_accuracy"]
    recipe_runs.start(
        RECIPE, [*flags, "--task", "classification", "--config_overrides", "{}", "--overwrite_output_dir"]
    )
    assert json.loads((tmp_path / "genes" / "all_results.json").read_text())["test_accuracy"] >= 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task": "folding"}, "unknown --task 'folding'; there are tagging, classification"),
        ({"alphabet": "rna"}, "unknown --alphabet 'rna'; there are dna, protein"),
        ({"kmer_size": 3}, "--kmer_size is for --task classification"),
        ({"task": "classification", "mask_column": "mask"}, "--mask_column is for --task tagging"),
        (
            {"task": "classification", "alphabet": "protein", "reverse_complement": True},
            "--reverse_complement is for DNA",
        ),
        ({"task": "classification", "kmer_size": 0}, "--kmer_size 0: give 1 or more"),
    ],
)
def test_flags_without_effect_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        SequenceArguments(**flags)


@pytest.mark.parametrize(
    ("row", "flags", "message"),
    [
        ({"sequence": "AC!", "labels": "HHH"}, {}, r"test, row 2: '!' at position 3 is not an amino acid"),
        ({"sequence": "ACD", "labels": "HH"}, {}, r"test, row 2: 3 letters and 2 labels; each letter needs one tag"),
        ({"sequence": "ACD", "labels": "HHQ"}, {}, r"test, row 2: tag 'Q' is not one of the 3 known"),
        (
            {"sequence": "ACD", "labels": "HHH", "mask": "01"},
            {"mask_column": "mask"},
            "row 2: the mask must be 3 characters",
        ),
        (
            {"sequence": "ACD", "labels": "HHH", "mask": "012"},
            {"mask_column": "mask"},
            "row 2: the mask must be 3 characters",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, row, flags, message):
    good = {"sequence": "ACD", "labels": "CEH", "mask": "111"}
    rows = [{name: one[name] for name in row} for one in (good, row)]
    with pytest.raises(InputError, match=message):
        task_of(ResidueTagging, tmp_path, rows, alphabet="protein", **flags)


@pytest.mark.parametrize("labels", ["HHC", "HHC-"])
@pytest.mark.parametrize("mask", ["011", "0110"])
def test_a_stop_codon_is_left_out_with_its_tag(tmp_path, labels, mask):
    rows = [{"sequence": "MKV*", "labels": labels, "mask": mask}]
    task = task_of(ResidueTagging, tmp_path, rows, alphabet="protein", mask_column="mask")
    assert task.splits["test"].to_list() == [{"sequence": "MKV", "labels": [None, "H", "C"]}]
    (tmp_path / "a.faa").write_text(">s1\nMKV*\n>s2\nMKV\n")
    (tmp_path / "a.labels.fasta").write_text(f">s1\n{labels}\n>s2\nHHC\n")
    task = read_task(ResidueTagging, tmp_path, train_file=tmp_path / "a.faa", alphabet="protein")
    assert task.classes == ["C", "H"]


def read_task(kind, root, **flags):
    """Read files as a run that trains does, with rows held out of those for training."""
    task = "tagging" if kind is ResidueTagging else "classification"
    arguments = SequenceArguments(task=task, **{name: str(value) for name, value in flags.items()})
    return kind(arguments, RecipeArguments(output_dir=str(root / "run"), use_cpu=True)).read()


@pytest.mark.parametrize(
    ("kind", "row", "flags", "message"),
    [
        (ResidueTagging, "AC!,HHH,111", {}, "'!' at position 3 is not a base"),
        (ResidueTagging, "ACG,HH,111", {}, "3 letters and 2 labels"),
        (ResidueTagging, "ACG,HHH,012", {"mask_column": "mask"}, "the mask must be 3 characters"),
        (SequenceClassification, "AC!,HHH,111", {"label_column": "labels"}, "'!' at position 3 is not a base"),
    ],
)
def test_bad_rows_are_named_by_their_file(tmp_path, kind, row, flags, message):
    """Those of a table with an empty row, of which some are held out."""
    rows = ["ACG,HCC,111", "ACG,CHH,111"] * 20
    rows[3], rows[30] = ",,", row
    (tmp_path / "a.csv").write_text("\n".join(["sequence,labels,mask", *rows, ""]))
    with pytest.raises(InputError, match=rf"a.csv, row 31: {message}"):
        read_task(kind, tmp_path, train_file=tmp_path / "a.csv", **flags)


@pytest.mark.parametrize("kind", [ResidueTagging, SequenceClassification])
def test_bad_records_are_named_by_their_file(tmp_path, kind):
    records = [f">s{number} label={number % 2}\n{'ACG' if number % 2 else 'acg'}\n" for number in range(40)]
    records[30] = ">s30 label=0\nac!\n"
    (tmp_path / "a.fa").write_text("".join(records))
    with pytest.raises(InputError, match=r"a.fa:61: s30: '!' at position 3 is not a base"):
        read_task(kind, tmp_path, train_file=tmp_path / "a.fa")


def test_classes_that_only_the_test_has_are_named_by_their_file(tmp_path):
    for name, last in (("train", 1), ("test", "other")):
        rows = "".join(f">s{number} label={number % 2}\nACG\n" for number in range(40))
        (tmp_path / f"{name}.fa").write_text(f"{rows}>last label={last}\nACG\n")
    files = {f"{name}_file": tmp_path / f"{name}.fa" for name in ("train", "test")}
    with pytest.raises(InputError, match=r"test.fa:81: last: class 'other' of column 'label' is not one of the 2"):
        read_task(SequenceClassification, tmp_path, **files)


def test_tags_that_only_the_test_has_are_named_by_their_file(tmp_path):
    for name, last in (("train", "HC"), ("test", "HX")):
        (tmp_path / f"{name}.fa").write_text("".join(f">s{number}\nAC\n" for number in range(5)))
        labels = "".join(f">s{number}\n{last if number == 3 else 'HC'}\n" for number in range(5))
        (tmp_path / f"{name}.labels.fasta").write_text(labels)
    files = {f"{name}_file": tmp_path / f"{name}.fa" for name in ("train", "test")}
    with pytest.raises(InputError, match=r"test.fa:7: s3: tag 'X' is not one of the 2 known: 'C', 'H'"):
        read_task(ResidueTagging, tmp_path, **files)


def test_too_few_tags_say_which_do_not_count(tmp_path):
    (tmp_path / "a.fa").write_text(">s1\nAC\n>s2\nAC\n")
    (tmp_path / "a.labels.fasta").write_text(">s1\nH?\n>s2\n??\n")
    with pytest.raises(InputError, match=r"1 tag \('H'\); there is nothing to learn; letters tagged [?] do not count"):
        read_task(ResidueTagging, tmp_path, train_file=tmp_path / "a.fa", validation_file=tmp_path / "a.fa")
    (tmp_path / "a.csv").write_text("sequence,labels,mask\nAC,HC,00\nAC,CH,00\nAC,CH,00\n")
    with pytest.raises(InputError, match=r"0 tags \(none\); .*; letters with a 0 in column 'mask' do not count"):
        read_task(ResidueTagging, tmp_path, train_file=tmp_path / "a.csv", mask_column="mask")


def test_a_tokenizer_that_joins_letters_is_refused(tmp_path):
    task = task_of(ResidueTagging, tmp_path, [{"sequence": "ACGTAC", "labels": "CCEEHH"}])
    model = CnnForTokenClassification(CnnConfig(vocab_size=80, num_labels=3, hidden_size=8))
    with pytest.raises(
        InputError, match="makes 2 tokens of 6 letters; a tag for each letter needs one token for each"
    ):
        task.encode(model, tokenizer_of("dna", 3), print)


@pytest.mark.parametrize("kind", [ResidueTagging, SequenceClassification])
@pytest.mark.parametrize(
    ("alphabet", "size", "other", "message"),
    [
        ("dna", 1, "protein", "the tokenizer of the model does not know E, F, I, L, P, Q; give --alphabet dna"),
        ("dna", 3, "protein", "the tokenizer of the model does not know E, F, I, L, P, Q; give --alphabet dna"),
        ("protein", 1, "dna", "the tokens of the model are the letters of another alphabet; give --alphabet protein"),
    ],
)
def test_a_tokenizer_of_another_alphabet_is_refused(tmp_path, kind, alphabet, size, other, message):
    label = {"labels": "CCEE"} if kind is ResidueTagging else {"label": "H"}
    task = task_of(kind, tmp_path, [{"sequence": "ACGT", **label}], alphabet=other)
    model = CnnForTokenClassification(CnnConfig(vocab_size=90, num_labels=3, hidden_size=8))
    with pytest.raises(InputError, match=f"--alphabet {other}: {message}"):
        task.encode(model, tokenizer_of(alphabet, size), print)


def test_masks_are_for_tables(data, tmp_path):
    with pytest.raises(InputError, match="--mask_column is for tables; in the labels of .*train.faa a [?] marks"):
        run(data, tmp_path / "run", mask_column="mask")


def test_an_unknown_letter_does_not_change_its_neighbours(tmp_path):
    """Codes of several bases are tokens of their own."""
    tokenizer = tokenizer_of("dna", 1)
    ids = tokenizer("ACNRT")["input_ids"]
    assert len(set(ids)) == 5 and tokenizer.unk_token_id not in ids
    model = LstmForSequenceClassification(LstmConfig(vocab_size=len(tokenizer), num_labels=2)).eval()
    assert model(torch.tensor([ids])).logits.shape == (1, 2)


def test_a_batch_without_padding_is_read_without_a_mask():
    tokenizer = tokenizer_of("dna", 1)
    config = LstmConfig(vocab_size=len(tokenizer), num_labels=3, hidden_size=16, input_filters=8, dropout=0.0)
    model = LstmForTokenClassification(config)
    collate = token_collator(tokenizer, model)
    rows = [
        {**tokenizer(text), "labels": [number % 3 for number in range(len(text))]} for text in ("ACGT", "GTAN", "A")
    ]
    batch = dict(collate(rows[:2]))
    assert "attention_mask" not in batch
    found = []
    for more in ({}, {"attention_mask": torch.ones_like(batch["input_ids"])}):
        model.zero_grad()
        outputs = model(**batch, **more)
        outputs.loss.backward()
        found.append([outputs.logits, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert collate(rows)["attention_mask"].sum(dim=1).tolist() == [4, 4, 1]

"""FASTA and FASTQ files with their labels, and the tokenizer of letters."""

import gzip

import pytest
from transformers import AutoTokenizer

from hfseq.data.fasta import (
    ALPHABETS,
    PLACE,
    check_letters,
    is_sequence_file,
    read_labelled,
    read_records,
    reverse_complement,
)
from hfseq.errors import InputError, MissingColumn
from hfseq.tokenization import letter_tokenizer

FASTA = ">one first of all\nACGT\nacgt\n\n>two label=x|size=3\nNNN\n"


def write(path, text):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.fasta", "a.FA", "a.fna.gz", "a.faa"])
def test_fasta(tmp_path, name):
    path = write(tmp_path / name, FASTA)
    assert is_sequence_file(path)
    records = list(read_records(path, "--train_file"))
    assert [record.name for record in records] == ["one", "two"]
    assert [record.letters for record in records] == ["ACGTacgt", "NNN"]
    assert [record.line for record in records] == [1, 5]


def test_fastq(tmp_path):
    # A quality may begin with the mark of a header.
    path = write(tmp_path / "a.fq.gz", "@r1 x\nACGT\n+r1\n@>!I\n@r2\nGG\n+\nII\n")
    assert [(one.name, one.letters) for one in read_records(path, "--test_file")] == [("r1", "ACGT"), ("r2", "GG")]
    assert not is_sequence_file(tmp_path / "a.tsv.gz")


def test_fastq_with_labels(tmp_path):
    path = write(tmp_path / "a.fq", "@r1 label=yes\nACgt\n+\nIIII\n@r2 label=no\nGG\n+\nII\n")
    classes = read_labelled(path, "--train_file", ("sequence", "label"), letters=False)
    places = [f"{path}:1: r1", f"{path}:5: r2"]
    assert classes.to_dict() == {PLACE: places, "sequence": ["ACgt", "GG"], "label": ["yes", "no"]}
    cases = read_labelled(path, "--train_file", ("sequence", "labels"), letters=True)["labels"]
    assert list(cases) == [["upper", "upper", "lower", "lower"], ["upper", "upper"]]
    write(tmp_path / "a.labels.fasta", ">r1\nXX?Y\n>r2\nYY\n")
    tags = read_labelled(path, "--train_file", ("sequence", "labels"), letters=True)["labels"]
    assert list(tags) == [["X", "X", None, "Y"], ["Y", "Y"]]
    write(tmp_path / "a.labels.fasta", ">r1\nXX?\n>r2\nYY\n")
    with pytest.raises(InputError, match=r"a.labels.fasta:1: 3 labels of r1, which has 4 letters"):
        read_labelled(path, "--train_file", ("sequence", "labels"), letters=True)
    write(tmp_path / "a.tsv", "r1\tyes\nr3\tno\n")
    with pytest.raises(InputError, match=r"a.tsv: no label of r2, which is in .*a.fq:5"):
        read_labelled(path, "--train_file", ("sequence", "label"), letters=False)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.fasta", "", "a.fasta: empty: there are no sequences"),
        ("a.fasta", "ACGT\n", r"a.fasta:1: a sequence without a header"),
        ("a.fasta", "@r\nACGT\n+\nIIII\n", r"a.fasta:1: .* it begins with '@', as FASTQ does"),
        ("a.fasta", ">one\n>two\nAC\n", r"a.fasta:1: one has no sequence"),
        ("a.fasta", ">\nAC\n", r"a.fasta:1: a header without a name"),
        ("a.fasta", ">one\nAC\n>one x\nAC\n", r"a.fasta:3: one is in line 1 already"),
        ("a.fasta", ">one\nAC\nAÄ\n", r"a.fasta:3: 'Ä' is not a letter of a sequence"),
        ("a.fq", "@one\nAÄ\n+\nII\n", r"a.fq:2: 'Ä' is not a letter of a sequence"),
        ("a.fq", ">one\nAC\n", r"a.fq:1: a FASTQ record begins with '@'"),
        ("a.fq", "@one\nAC\nII\n+\n", r"a.fq:3: the third line of a FASTQ record begins with '\+'"),
        ("a.fq", "@one\nAC\n+\nIII\n", r"a.fq:4: 3 qualities of 2 bases"),
        ("a.fq", "@one\nAC\n", r"a.fq:1: the third line"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        list(read_records(write(tmp_path / name, text), "--train_file"))


@pytest.mark.parametrize("name", ["a.fa", "a.fa.gz"])
def test_headers_are_utf8(tmp_path, name):
    path = write(tmp_path / name, "\ufeff>café label=é\nACGT\n>two label=x\nAC\n")
    assert [record.name for record in read_records(path, "--train_file")] == ["café", "two"]
    assert read_labelled(path, "-", ("sequence", "label"), letters=False)["label"] == ["é", "x"]


def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path):
    path = tmp_path / "a.fa"
    path.write_bytes(">one\nAC\n>zwölf\nAC\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"a.fa:3: not UTF-8 \(byte 0xf6\); is it compressed"):
        list(read_records(path, "--train_file"))
    path.write_bytes(gzip.compress(b">one\nAC\n"))
    with pytest.raises(InputError, match=r"a.fa:1: not UTF-8 .*; is it compressed"):
        list(read_records(path, "--train_file"))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"none.fa: no such file \(--test_file\)"):
        list(read_records(tmp_path / "none.fa", "--test_file"))
    whole = gzip.compress("".join(f">s{number}\nACGTTA\n" for number in range(500)).encode())
    for damaged in (whole[:-20], b"no gzip", whole[:20] + b"x" * 50 + whole[70:]):
        (tmp_path / "a.fa.gz").write_bytes(damaged)
        with pytest.raises(InputError, match=r"a.fa.gz: cannot be read"):
            list(read_records(tmp_path / "a.fa.gz", "--test_file"))


def test_labels_of_sequences(tmp_path):
    path = write(tmp_path / "a.fasta", ">s1 label=donor len=4\nACGT\n>s2|label=acceptor|x=1\nGG\n")
    rows = read_labelled(path, "--train_file", ("sequence", "label"), letters=False)
    assert rows.to_list() == [
        {PLACE: f"{path}:1: s1", "sequence": "ACGT", "label": "donor"},
        {PLACE: f"{path}:3: s2|label=acceptor|x=1", "sequence": "GG", "label": "acceptor"},
    ]
    with pytest.raises(MissingColumn, match=r"no labels: the headers have no field kind=…, and there is no a.tsv"):
        read_labelled(path, "--train_file", ("sequence", "kind"), letters=False)
    with pytest.raises(InputError, match=r"a.fasta:3: the header of .* has no field len=…"):
        read_labelled(path, "--train_file", ("sequence", "len"), letters=False)


def test_labels_of_sequences_beside_the_file(tmp_path):
    path, table = write(tmp_path / "a.fa.gz", ">s1\nACGT\n>s2\nGG\n"), tmp_path / "a.tsv"
    write(table, "s2\tno\ns1\tyes\nother\tno\n")
    assert read_labelled(path, "-", ("sequence", "label"), letters=False)["label"] == ["yes", "no"]
    for text, message in (
        ("s1\tyes\n", r"a.tsv: no label of s2, which is in .*a.fa.gz:3"),
        ("s1\n", r"a.tsv:1: 1 columns"),
        ("s1\ta\ns1\tb\n", r"a.tsv:2: another label of s1"),
    ):
        write(table, text)
        with pytest.raises(InputError, match=message):
            read_labelled(path, "-", ("sequence", "label"), letters=False)


def test_labels_of_letters(tmp_path):
    path, labels = write(tmp_path / "a.faa", ">s1\nMKV\nL\n>s2\nGG\n"), tmp_path / "a.labels.fasta"
    with pytest.raises(MissingColumn, match=r"no labels: there is no a.labels.fasta beside"):
        read_labelled(path, "-", ("sequence", "labels"), letters=True)
    write(labels, ">s2\nC?\n>s1\nHHEE\n")
    rows = read_labelled(path, "-", ("sequence", "labels"), letters=True)
    assert rows["labels"] == [["H", "H", "E", "E"], ["C", None]]
    for text, message in (
        (">s2\nCC\n", "no labels of s1"),
        (">s1\nHH\n>s2\nCC\n", "2 labels of s1, which has 4 letters"),
    ):
        write(labels, text)
        with pytest.raises(InputError, match=message):
            read_labelled(path, "-", ("sequence", "labels"), letters=True)
    case = write(tmp_path / "b.fa", ">s1\nACgtA\n")
    rows = read_labelled(case, "-", ("sequence", "labels"), letters=True)
    assert rows["labels"] == [["upper", "upper", "lower", "lower", "upper"]]


def test_letters():
    assert check_letters("acguN\n", "dna", "here") == "ACGTN"
    assert check_letters("MKVX*", "protein", "here") == "MKVX"
    for sequence, alphabet, message in (
        ("ACE", "dna", r"here: 'E' at position 3 is not a base; --alphabet protein has it"),
        ("AC-GT", "dna", r"'-' at position 3 is not a base; it is a gap of an alignment"),
        ("MK1", "protein", r"'1' at position 3 is not an amino acid$"),
        (" ", "dna", "here: empty sequence"),
    ):
        with pytest.raises(InputError, match=message):
            check_letters(sequence, alphabet, "here")


def test_reverse_complement():
    assert reverse_complement("AACGTN") == "NACGTT"
    letters = "".join(ALPHABETS["dna"])
    codes = {"R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC", "B": "CGT", "D": "AGT", "H": "ACT"}
    codes |= {"V": "ACG", "N": "ACGT", **{base: base for base in "ACGT"}}
    other = dict(zip("ACGT", "TGCA", strict=True))
    for letter, complement in zip(letters, reversed(reverse_complement(letters)), strict=True):
        assert set(codes[complement]) == {other[base] for base in codes[letter]}
    assert reverse_complement(reverse_complement(letters)) == letters


@pytest.mark.parametrize("size", [1, 3])
def test_tokens(tmp_path, size):
    letter_tokenizer("ACGT", more="N", kmer_size=size, rna=True).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "ACGTTACGGNACCA"
    expected = list(text) if size == 1 else ["ACG", "TTA", "CGG", "N", "ACC", "A"]
    for written in (text, text.lower(), text.replace("T", "U")):
        assert tokenizer.convert_ids_to_tokens(tokenizer(written)["input_ids"]) == expected
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 4 + 5 + (4**size if size > 1 else 0)
    # A special token that is typed is no special token.
    assert tokenizer("A?<s>")["input_ids"][1:] == [tokenizer.unk_token_id] * 4


def test_too_many_kmers():
    for size in (0, 9):
        with pytest.raises(InputError, match=f"k-mers of {size} letters"):
            letter_tokenizer("ACGT", kmer_size=size)

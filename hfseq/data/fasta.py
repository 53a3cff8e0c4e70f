"""FASTA and FASTQ files of DNA and proteins, and the labels that stand in them or beside them."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hfseq.errors import InputError, MissingColumn, did_you_mean, one_line
from hfseq.lazy import datasets

FASTA = (".fasta", ".fa", ".fna", ".ffn", ".faa")
FASTQ = (".fastq", ".fq")
ALPHABETS = {"dna": ("ACGT", "RYSWKMBDHVN"), "protein": ("ACDEFGHIKLMNPQRSTVWY", "BJOUXZ")}
"""Alphabet to its letters, and to those that stand for one of several, or for a rare one: the codes of the IUPAC."""
PLACE = "sequence_place"
"""Column of file and row that a sequence is from, for errors."""
UNLABELLED = "?"
"""Tag of a letter without a label, such as an unresolved residue."""
_COMPLEMENT = str.maketrans("ACGTURYSWKMBDHVNacgturyswkmbdhvn", "TGCAAYRSWMKVHDBNtgcaayrswmkvhdbn")
# What `surrogateescape` makes of bytes that are not UTF-8.
_NO_UTF8 = re.compile("[\udc80-\udcff]")
_FIELD = re.compile(r"(?:^|[\s|;])([A-Za-z_]\w*)=(\S+?)(?=$|[\s|;])")


class Record(NamedTuple):
    """A sequence of a file.

    Attributes:
        name: First word of the header.
        header: The whole header, without its mark.
        letters: The sequence, as it is written.
        line: Number of the line of the header.
    """

    name: str
    header: str
    letters: str
    line: int


def is_sequence_file(name: str | Path) -> bool:
    """Return whether a file is FASTA or FASTQ by its name, compressed or not."""
    return _suffix(name) in (*FASTA, *FASTQ)


def read_records(name: str | Path, flag: str) -> Iterator[Record]:
    """Iterate over the sequences of a FASTA or FASTQ file, compressed by gzip if its name ends in `.gz`.

    A FASTA record is a line `>name description` and the lines of its sequence; a FASTQ record has four lines, the last
    of which, the qualities, are not kept. Empty lines between records are skipped. Headers are UTF-8, sequences ASCII.

    Args:
        name: Path of the file.
        flag: Flag that gave the file, for errors.

    Raises:
        InputError: The file cannot be read, a record is incomplete or empty, or a name occurs twice.
    """
    path = Path(name)
    seen: dict[str, int] = {}
    records = _fastq if _suffix(path) in FASTQ else _fasta
    for record in records(path, _numbered_lines(path, flag)):
        if not record.name:
            raise InputError(f"{path}:{record.line}: a header without a name")
        if not record.letters:
            raise InputError(f"{path}:{record.line}: {record.name} has no sequence")
        if record.name in seen:
            raise InputError(f"{path}:{record.line}: {record.name} is in line {seen[record.name]} already")
        seen[record.name] = record.line
        yield record
    if not seen:
        raise InputError(f"{path}: empty: there are no sequences ({flag})")


def read_labelled(name: str | Path, flag: str, columns: tuple[str, str], *, letters: bool) -> datasets.Dataset:
    """Read a FASTA or FASTQ file with its labels.

    Labels of whole sequences are fields of the headers, `>chr1:100-160 label=donor`, or stand in a file of the same
    name with the extension `.tsv`, a name and a label in each line. Labels of letters stand in a file of the same name
    that ends in `.labels.fasta`, with the same names and one tag for each letter, `?` for a letter without one.
    Without such a file, the case of the letters is their label: `upper` or `lower`, as genome browsers write exons
    and introns.

    Args:
        name: Path of the file.
        flag: Flag that gave the file, for errors.
        columns: Names of the columns of the sequences and of their labels; the latter is the field in headers, too.
        letters: Whether letters have labels, and not sequences.

    Returns:
        Rows with the two columns and `PLACE`; labels of letters are lists of strings, None where there is none.

    Raises:
        InputError: A file is invalid, a sequence has no label, or not one for each letter.
        MissingColumn: There are no labels.
    """
    path = Path(name)
    records = list(read_records(path, flag))
    labels = _letter_labels(path, records, flag) if letters else _sequence_labels(path, records, columns[1])
    places = [f"{path}:{record.line}: {record.name}" for record in records]
    rows = {PLACE: places, columns[0]: [record.letters for record in records], columns[1]: labels}
    return datasets.Dataset.from_dict(rows)


def check_letters(sequence: str, alphabet: str, place: str) -> str:
    """Return a sequence in capitals, RNA as DNA.

    Args:
        sequence: Sequence of letters; the stop codon `*` at the end of a protein is left out.
        alphabet: Name in `ALPHABETS`.
        place: Place of the sequence, for errors.

    Raises:
        InputError: A character is not in the alphabet.
    """
    common, others = ALPHABETS[alphabet]
    text = sequence.strip().upper()
    text = text.replace("U", "T") if alphabet == "dna" else text.removesuffix("*")
    if found := re.search(f"[^{common}{others}]", text):
        kind = "a base" if alphabet == "dna" else "an amino acid"
        what = "; it is a gap of an alignment, remove it" if found[0] in "-." else ""
        other = next((one for one in ALPHABETS if one != alphabet and found[0] in "".join(ALPHABETS[one])), None)
        what = what or (f"; --alphabet {other} has it" if other else "")
        raise InputError(f"{place}: {found[0]!r} at position {found.start() + 1} is not {kind}{what}")
    if not text:
        raise InputError(f"{place}: empty sequence")
    return text


def reverse_complement(sequence: str) -> str:
    """Return the other strand of DNA, read in its own direction; the codes of the IUPAC are complemented as well."""
    return sequence.translate(_COMPLEMENT)[::-1]


def _suffix(name: str | Path) -> str:
    return Path(str(name).lower().removesuffix(".gz")).suffix


def _base(path: Path) -> str:
    """Path without its extensions."""
    name = path.name[: -len(".gz")] if path.name.lower().endswith(".gz") else path.name
    return str(path.with_name(name).with_suffix(""))


def _numbered_lines(path: Path, flag: str) -> Iterator[tuple[int, str]]:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        # Of a strict decoder, which reads ahead, the line of a byte would not be known.
        with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                if found := _NO_UTF8.search(line):
                    byte = ord(found[0]) - 0xDC00
                    raise InputError(f"{path}:{number}: not UTF-8 (byte 0x{byte:02x}); is it compressed? ({flag})")
                yield number, line.strip()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file ({flag})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)} ({flag})") from None


def _fasta(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Record]:
    header: tuple[int, str] | None = None
    parts: list[str] = []
    for number, line in lines:
        if line.startswith(">"):
            if header is not None:
                yield _record(header, parts)
            header, parts = (number, line[1:].strip()), []
        elif line and header is None:
            start = "; it begins with '@', as FASTQ does: name it .fastq" if line.startswith("@") else ""
            raise InputError(f"{path}:{number}: a sequence without a header; FASTA begins with '>'{start}")
        elif line:
            parts.append(_ascii(path, number, line.replace(" ", "")))
    if header is not None:
        yield _record(header, parts)


def _ascii(path: Path, number: int, letters: str) -> str:
    if found := re.search(r"[^\x00-\x7f]", letters):
        raise InputError(f"{path}:{number}: {found[0]!r} is not a letter of a sequence; only headers may have it")
    return letters


def _record(header: tuple[int, str], parts: list[str]) -> Record:
    number, text = header
    return Record(text.split()[0] if text else "", text, "".join(parts), number)


def _fastq(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Record]:
    for number, line in lines:
        if not line:
            continue
        if not line.startswith("@"):
            raise InputError(f"{path}:{number}: a FASTQ record begins with '@'; its sequence stands in one line")
        (_, letters), (middle, plus), (end, quality) = (next(lines, (number, "")) for _ in range(3))
        if not plus.startswith("+"):
            raise InputError(f"{path}:{middle}: the third line of a FASTQ record begins with '+'")
        _ascii(path, number + 1, letters)
        if len(quality) != len(letters):
            raise InputError(f"{path}:{end}: {len(quality)} qualities of {len(letters)} bases")
        yield _record((number, line[1:].strip()), [letters])


def _sequence_labels(path: Path, records: list[Record], field: str) -> list[str]:
    beside = Path(f"{_base(path)}.tsv")
    if beside.exists():
        given = _table(beside)
        for record in records:
            if record.name not in given:
                near = did_you_mean(record.name, given, otherwise=f"it has {len(given)} names")
                raise InputError(f"{beside}: no label of {record.name}, which is in {path}:{record.line}{near}")
        return [given[record.name] for record in records]
    found = [dict(_FIELD.findall(record.header)).get(field) for record in records]
    if not any(found):
        raise MissingColumn(
            f"{path}: no labels: the headers have no field {field}=…, and there is no {beside.name} beside the file"
        )
    for record, label in zip(records, found, strict=True):
        if label is None:
            raise InputError(f"{path}:{record.line}: the header of {record.name} has no field {field}=…")
    return [str(label) for label in found]


def _table(path: Path) -> dict[str, str]:
    rows: dict[str, str] = {}
    for number, line in _numbered_lines(path, "labels"):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != 2:
            raise InputError(f"{path}:{number}: {len(fields)} columns; a line has a name and its label")
        if rows.setdefault(fields[0], fields[1]) != fields[1]:
            raise InputError(f"{path}:{number}: another label of {fields[0]} than before")
    return rows


def _letter_labels(path: Path, records: list[Record], flag: str) -> list[list[str | None]]:
    beside = Path(f"{_base(path)}.labels.fasta")
    if beside.exists():
        given = {record.name: record for record in read_records(beside, flag)}
        labels: list[list[str | None]] = []
        for record in records:
            if record.name not in given:
                raise InputError(f"{beside}: no labels of {record.name}, which is in {path}:{record.line}")
            tags = given[record.name]
            # A stop codon at the end of a protein is left out later, and needs no label.
            if len(tags.letters) not in (len(record.letters), len(record.letters.removesuffix("*"))):
                raise InputError(
                    f"{beside}:{tags.line}: {len(tags.letters)} labels of {record.name}, which has "
                    f"{len(record.letters)} letters"
                )
            labels.append([None if tag == UNLABELLED else tag for tag in tags.letters])
        return labels
    if len({letter.isupper() for record in records for letter in record.letters if letter.isalpha()}) < 2:
        raise MissingColumn(
            f"{path}: no labels: there is no {beside.name} beside the file, and all letters are of one case"
        )
    return [["upper" if letter.isupper() else "lower" for letter in record.letters] for record in records]

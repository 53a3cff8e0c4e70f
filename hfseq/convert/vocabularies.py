r"""Vocabularies of other toolkits, and tokenizers that give a text the ids that it had there.

A vocabulary is a list of tokens by ids. It is read from

- a text with a token a line, or with a token and its id (`tokens.txt` of icefall), and the dictionaries of fairseq;
- JSON, a list of tokens or an object of tokens and ids; a pickled list of strings; the `token_list` of a `config.yaml`
  of ESPnet;
- a `tokenizer.json` of the tokenizers library, which is a tokenizer already.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hfseq.convert.reading import existing_file, read_json, read_lines, read_pickle, read_yaml
from hfseq.errors import InputError, one_line

ROLES = {
    "pad_token": ("<pad>", "[PAD]", "<PAD>", "<blank>", "<blk>", "xxpad", "PAD"),
    "bos_token": ("<s>", "<bos>", "<sos>", "<BOS>", "<SOS>", "<sos/eos>", "[BOS]", "xxbos"),
    "eos_token": ("</s>", "<eos>", "<EOS>", "<sos/eos>", "[EOS]", "xxeos"),
    "unk_token": ("<unk>", "[UNK]", "<UNK>", "<oov>", "<OOV>", "xxunk", "UNK"),
}
"""Special tokens by their usual names, the first one in a vocabulary."""
_SPACES = ("<space>", "▁", " ")
"""Tokens that stand for a space in a vocabulary of characters."""
_CONTINUES = "@@"
"""Mark of subword-nmt and fastBPE at the end of a token that does not end a word."""
_BEGINS = "▁"
"""Mark of SentencePiece at the beginning of a token that begins a word."""
_ENDS = "</w>"
"""Mark of the end of a word in BPE codes, and in the tokens of a tokenizer that applies them."""


def read_vocabulary(path: str | Path, size: int, filler: str | None = None) -> list[str] | Tokenizer:
    """Read a vocabulary, or a tokenizer.

    Args:
        path: The file; see this module for its format.
        size: Number of tokens, which the embeddings of the model have.
        filler: Token that fills up a vocabulary, and may be there several times; those after the first are numbered.

    Raises:
        InputError: If the file cannot be read, or has another number of tokens.
    """
    path = existing_file(path)
    if path.suffix == ".json":
        found = read_json(path)
        if isinstance(found, dict) and "model" in found:
            return _read_tokenizer(path, size)
    elif path.suffix in (".yaml", ".yml"):
        found = read_yaml(path)
        found = found.get("token_list") if isinstance(found, dict) else found
    elif path.suffix in (".pkl", ".pickle"):
        found = read_pickle(path)
    else:
        found = _numbered(read_lines(path))
    tokens = token_list(found)
    if tokens is None:
        raise InputError(f"{path}: no vocabulary: neither a list of tokens nor tokens with ids from 0")
    if filler is not None:
        places = [number for number, token in enumerate(tokens) if token == filler]
        tokens = [f"{token}{number}" if number in places[1:] else token for number, token in enumerate(tokens)]
    check_tokens(path, tokens, size)
    return tokens


def check_tokens(path: str | Path, tokens: Sequence[str], size: int) -> None:
    """Raise an `InputError` if a vocabulary does not have the given number of tokens, each of them once."""
    if len(tokens) != size:
        raise InputError(f"{path}: {len(tokens):,} tokens, but the embeddings of the model have {size:,} rows")
    first: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if first.setdefault(token, number) != number:
            raise InputError(f"{path}: the token {token!r:.60} has the ids {first[token]} and {number}; keep one")


def token_list(found: Any) -> list[str] | None:
    """Tokens by ids, of a list of strings or a mapping from strings to all ids from 0; None for anything else."""
    if isinstance(found, list) and found and all(isinstance(token, str) for token in found):
        return found
    if not isinstance(found, dict) or not found or not all(isinstance(token, str) for token in found):
        return None
    if not all(isinstance(number, int) for number in found.values()) or {*found.values()} != {*range(len(found))}:
        return None
    return sorted(found, key=found.__getitem__)


def corpus_vocabulary(paths: Iterable[str | Path]) -> list[str]:
    """Tokens in the order in which they first occur in texts, as word_language_model of pytorch/examples numbers them.

    Its `Corpus` reads the training, the validation and the test text, in this order, and ends each line, empty ones
    too, with `<eos>`.

    Raises:
        InputError: If a file cannot be read.
    """
    tokens: dict[str, None] = {}
    for path in paths:
        for line in read_lines(path):
            tokens.update(dict.fromkeys([*line.split(), "<eos>"]))
    return list(tokens)


def word_tokenizer(
    tokens: Sequence[str] | Tokenizer,
    *,
    start: Sequence[str] = (),
    end: Sequence[str] = (),
    lowercase: bool = False,
    normalizer: normalizers.Normalizer | None = None,
    roles: Mapping[str, str | None] = MappingProxyType({}),
) -> PreTrainedTokenizerFast:
    """Make a tokenizer that splits texts at spaces, or between characters if each token is one.

    Texts of a vocabulary of pieces of words have to be split into pieces already. Decoding joins them: those of
    subword-nmt, which continue if they end in `@@`, and those of SentencePiece, which begin a word with `▁`.

    Args:
        tokens: Tokens by ids, or a tokenizer, which is kept as it is but for `start` and `end`.
        start: Special tokens that are put before each text.
        end: Those that are put after it.
        lowercase: Whether texts are lowercased.
        normalizer: Normalisation of texts before they are split; None for no other.
        roles: `pad_token`, `bos_token`, `eos_token` and `unk_token`, or None for no such token; by default the first
            of the usual names, `ROLES`, that is in the vocabulary.
    """
    if isinstance(tokens, Tokenizer):
        tokenizer = tokens
        known: Mapping[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    else:
        known = {token: number for number, token in enumerate(tokens)}
    roles = usual_roles(known) | dict(roles)
    if not isinstance(tokens, Tokenizer):
        special = {role for role in roles.values() if role is not None}
        tokenizer = Tokenizer(models.WordLevel(dict(known), unk_token=roles["unk_token"] or ""))
        pieces = [token for token in tokens if token not in special and token not in _SPACES]
        if pieces and all(len(piece) == 1 for piece in pieces):
            _read_characters(tokenizer, known)
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            if any(piece.endswith(_CONTINUES) for piece in pieces):
                tokenizer.decoder = _joining_decoder()
            elif any(piece.startswith(_BEGINS) for piece in pieces):
                tokenizer.decoder = decoders.Metaspace(_BEGINS, prepend_scheme="always")
        forms = [*([normalizers.Lowercase()] if lowercase else []), normalizer, tokenizer.normalizer]
        if any(forms):
            tokenizer.normalizer = normalizers.Sequence([form for form in forms if form is not None])
    return finished_tokenizer(tokenizer, known, start, end, roles)


def bpe_tokenizer(
    tokens: Sequence[str],
    codes: str | Path,
    *,
    start: Sequence[str] = (),
    end: Sequence[str] = (),
    normalizer: normalizers.Normalizer | None = None,
    roles: Mapping[str, str | None] = MappingProxyType({}),
    splits_unknown: bool = False,
) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """Make a tokenizer that applies the BPE codes of subword-nmt or fastBPE to words, split at spaces.

    A piece that ends a word is named `piece</w>` in it, and one that does not by itself alone: `piece@@` before.

    Args:
        tokens: Tokens by ids, of which `piece@@` continue a word.
        codes: File of the merges, most frequent first: `#version: 0.2` and two pieces a line, or fastBPE's, with a
            count after them.
        start: Special tokens that are put before each text.
        end: Those that are put after it.
        normalizer: Normalisation of texts before they are split; None for none.
        roles: As for `word_tokenizer`.
        splits_unknown: Whether pieces without an id are left unmerged, as `apply-bpe --vocabulary` does, unless pieces
            with an id are made of them.

    Returns:
        The tokenizer, and pieces that merges make on the way to others but that no id of the vocabulary stands for.
        They have the next ids: a text that contains one as such had an unknown token there.

    Raises:
        InputError: If the codes cannot be read.
    """
    known = {token: number for number, token in enumerate(tokens)}
    roles = usual_roles(known) | dict(roles)
    special = {role for role in roles.values() if role is not None}
    vocabulary = {
        token
        if token in special
        else token.removesuffix(_CONTINUES)
        if token.endswith(_CONTINUES)
        else token + _ENDS: number
        for token, number in known.items()
    }
    merges = _read_merges(existing_file(codes))
    if splits_unknown:
        merges = useful_merges(merges, vocabulary)
    vocabulary, added = with_merged(vocabulary, merges)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=roles["unk_token"], end_of_word_suffix=_ENDS, fuse_unk=False)
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix=_ENDS)
    return finished_tokenizer(tokenizer, known, start, end, roles), added


def useful_merges(merges: Sequence[tuple[str, str]], known: Container[str]) -> list[tuple[str, str]]:
    """Merges, most frequent first, without those that lead to no known piece."""
    needed: set[str] = set()
    useful = []
    for pair in reversed(merges):
        if "".join(pair) in needed or "".join(pair) in known:
            needed.update(pair)
            useful.append(pair)
    return useful[::-1]


def with_merged(known: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> tuple[dict[str, int], list[str]]:
    """A vocabulary with all pieces of merges, those without an id after the others, and a list of these."""
    # Characters too: one that no word of the training texts ended with has no id.
    pieces = (piece for pair in merges for piece in (*pair, "".join(pair)))
    added = list(dict.fromkeys(piece for piece in pieces if piece not in known))
    return dict(known) | {piece: len(known) + number for number, piece in enumerate(added)}, added


def read_fairseq_dictionary(path: str | Path) -> list[str]:
    """Tokens of a dictionary of fairseq, `symbol count` a line, by ids.

    Ids 0 to 3 are `<s>`, `<pad>`, `</s>` and `<unk>`, which the file does not list.

    Raises:
        InputError: If a line has another form.
    """
    tokens = {token: None for token in ("<s>", "<pad>", "</s>", "<unk>")}
    for number, line in enumerate(read_lines(path), start=1):
        symbol, _, rest = line.rpartition(" ")
        overwrites = rest == "#fairseq:overwrite"
        if overwrites:
            symbol, _, rest = symbol.rpartition(" ")
        if not symbol or not rest.isdigit():
            raise InputError(f"{path}, line {number}: {line!r:.60} is no symbol with its count")
        if symbol in tokens and not overwrites:
            raise InputError(f"{path}, line {number}: {symbol!r:.60} appears twice")
        # fairseq gives the name to the later symbol; the earlier one keeps its row, which no text reaches.
        if symbol in tokens:
            tokens = {f"{token}#{number}" if token == symbol else token: None for token in tokens}
        tokens[symbol] = None
    return list(tokens)


def finished_tokenizer(
    tokenizer: Tokenizer,
    known: Mapping[str, int],
    start: Sequence[str],
    end: Sequence[str],
    roles: Mapping[str, str | None],
) -> PreTrainedTokenizerFast:
    """Make a tokenizer for transformers, with special tokens around each text.

    Args:
        tokenizer: Tokenizer of the tokenizers library.
        known: Tokens to ids.
        start: Special tokens before a text.
        end: Those after it.
        roles: As for `word_tokenizer`.
    """
    if start or end:
        before, after = " ".join([*start, ""]), " ".join(["", *end])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{before}$A{after}",
            pair=f"{before}$A{after} $B{after}",
            special_tokens=[(token, known[token]) for token in {*start, *end}],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        **{role: token for role, token in roles.items() if token is not None},
    )


def reads_pieces(tokens: Sequence[str] | Tokenizer | None) -> bool:
    """Return True for a vocabulary of pieces of words, which does not tell how to split a word into them."""
    if tokens is None or isinstance(tokens, Tokenizer):
        return False
    return any(token.endswith(_CONTINUES) or token.startswith(_BEGINS) and token != _BEGINS for token in tokens)


def usual_roles(known: Iterable[str]) -> dict[str, str | None]:
    """Special tokens of a vocabulary by their usual names; None for those that it lacks."""
    known = set(known)
    return {role: next((name for name in names if name in known), None) for role, names in ROLES.items()}


def role_ids(tokenizer: PreTrainedTokenizerFast | None) -> dict[str, int | None]:
    """Config fields for the special tokens of a tokenizer; None for those that it lacks, all without a tokenizer."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {name: getattr(tokenizer, name, None) for name in names}


def _read_characters(tokenizer: Tokenizer, known: Mapping[str, int]) -> None:
    """Make each character a token, a space the one that stands for it."""
    space = next((name for name in _SPACES if name in known), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if space != " ":
        # A name of several characters would be split: one that no text has stands for it.
        unit = "▁" if space == "▁" else "\ue000"
        tokenizer.normalizer = normalizers.Replace(" ", unit)
        if unit not in known:
            vocabulary = dict(known)
            vocabulary[unit] = vocabulary.pop(space)
            unknown = tokenizer.model.unk_token
            tokenizer.model = models.WordLevel(vocabulary, unk_token=unknown)
        tokenizer.decoder = decoders.Sequence([decoders.Replace(unit, " "), decoders.Fuse()])
    else:
        tokenizer.decoder = decoders.Fuse()


def _joining_decoder() -> decoders.Decoder:
    """Decoder that joins `piece@@` with the next piece, and other tokens by spaces."""
    end: Any = Regex(r"\z")
    steps = [decoders.Replace(end, " "), decoders.Replace(f"{_CONTINUES} ", ""), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 0, 1)])


def _numbered(lines: list[str]) -> list[str] | dict[str, int]:
    """Tokens of the lines of a text, with their ids if each line ends in one."""
    pairs = [line.rpartition(" ") if " " in line else line.rpartition("\t") for line in lines]
    if lines and all(token and number.isdigit() for token, _, number in pairs):
        found = {token: int(number) for token, _, number in pairs}
        if {*found.values()} == {*range(len(lines))}:
            return found
    return lines


def _read_tokenizer(path: Path, size: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise InputError(f"{path}: not a tokenizer of the tokenizers library: {one_line(error)}") from error
    count = tokenizer.get_vocab_size(with_added_tokens=True)
    if count != size:
        raise InputError(f"{path}: {count:,} tokens, but the embeddings of the model have {size:,} rows")
    return tokenizer


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges: dict[tuple[str, str], None] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if line.startswith("#version") or not line:
            continue
        parts = line.split(" ")
        if len(parts) not in (2, 3) or not all(parts) or _ENDS in parts or not (len(parts) == 2 or parts[2].isdigit()):
            raise InputError(f"{path}, line {number}: {line!r:.60} is no merge of two pieces")
        merges[parts[0], parts[1]] = None
    return list(merges)

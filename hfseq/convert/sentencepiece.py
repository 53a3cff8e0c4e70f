"""Models of SentencePiece (Kudo & Richardson 2018) as tokenizers of a translator's vocabulary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import models, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SpmConverter, import_protobuf

from hfseq.convert.reading import existing_file
from hfseq.convert.vocabularies import finished_tokenizer, useful_merges, with_merged
from hfseq.errors import InputError, one_line, require

_UNIGRAM, _BPE = 1, 2
"""Kinds of models."""
_NORMAL = 1
"""Kind of the pieces that texts are made of."""


def sentencepiece_tokenizer(
    path: str | Path,
    tokens: Sequence[str],
    roles: Mapping[str, str | None],
    *,
    start: Sequence[str] = (),
    end: Sequence[str] = (),
    normalizer: normalizers.Normalizer | None = None,
    splits_unknown: bool = False,
) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """Make a tokenizer of a SentencePiece model for a translator's vocabulary.

    Args:
        path: The model, `spm.model`.
        tokens: Tokens of the translator by ids, pieces of the model among them.
        roles: Special tokens, as for `word_tokenizer`.
        start: Special tokens that are put before each text.
        end: Those that are put after it.
        normalizer: Normalisation of texts before that of the model; None for no other.
        splits_unknown: Whether the model is restricted to the pieces of the vocabulary and single characters, as by
            its `set_vocabulary`, and splits others.

    Returns:
        The tokenizer, and pieces that it makes of a text, or on the way to others, but that no id of the vocabulary
        stands for. They have the next ids.

    Raises:
        InputError: If the file is not a model of SentencePiece, or of a kind that hfseq cannot follow.
    """
    path = existing_file(path)
    require("google.protobuf", extra="convert", use=str(path))
    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # its class is protobuf's, which is imported by transformers alone
        raise InputError(f"{path}: not a model of SentencePiece: {one_line(error)}") from error
    kind = proto.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE) or proto.trainer_spec.byte_fallback:
        raise InputError(f"{path}: neither a unigram nor a BPE model of SentencePiece, or one with --byte_fallback")
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    if not scores:
        raise InputError(f"{path}: a model of SentencePiece without pieces")
    known = {token: number for number, token in enumerate(tokens)}
    # SentencePiece keeps single characters, whatever vocabulary it is restricted to.
    usable = {piece for piece in scores if not splits_unknown or piece in known or len(piece) == 1}
    model: Any
    if kind == _UNIGRAM:
        added = sorted(usable - known.keys())
        least = min(scores.values())
        model = models.Unigram(
            [(token, scores.get(token, least)) for token in [*tokens, *added]], known[str(roles["unk_token"])]
        )
    else:
        ranked = sorted(
            (-score, rank, piece[:split], piece[split:])
            for rank, (piece, score) in enumerate(scores.items())
            for split in range(1, len(piece))
            if piece[:split] in scores and piece[split:] in scores
        )
        merges = useful_merges([(left, right) for *_, left, right in ranked], usable)
        singles = {piece: len(known) + number for number, piece in enumerate(sorted(usable - known.keys()))}
        vocabulary, more = with_merged(known | singles, merges)
        added = [*singles, *more]
        model = models.BPE(vocabulary, merges, unk_token=roles["unk_token"], fuse_unk=True)
    whole = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = SpmConverter.build_tokenizer_from_spm_proto(proto, whole)
    tokenizer.model = model
    if normalizer is not None:
        tokenizer.normalizer = normalizers.Sequence([normalizer, tokenizer.normalizer])
    return finished_tokenizer(tokenizer, known, start, end, roles), added

"""Train a tokenizer from raw text; the result is an ordinary fast Hugging Face tokenizer."""

import json
from collections.abc import Iterable
from itertools import product
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hfseq.errors import InputError
from hfseq.models.tokenization_characters import WordCharacterTokenizer, known_characters
from hfseq.models.tokenization_pairs import SourceTargetTokenizer

# Ids 0, 1, 2, 3.
PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>"]
_FORMS: dict[str, list[Any]] = {"nfc": [normalizers.NFC()], "nfkc": [normalizers.NFKC()], "none": []}
NORMALIZATIONS = tuple(_FORMS)

# Marks a space inside a token, as in SentencePiece.
_SPACE = "▁"
# Scripts written without spaces, where a run of letters is a whole clause.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# Pre-tokenization: no token crosses the bounds of a unit, and the space before a unit belongs to it.
# - unigram: words with their punctuation, as in SentencePiece, since the trainer considers a whole word as a candidate
#   only if it has seen two continuations. `<` is split off, so that no piece can spell a special token.
# - The others: runs of letters and combining marks; any other character alone.
# - Subwords: single digits, so that an unseen number is spelled like any other.
# - wordpiece, word: single letters of unspaced scripts. A word model would not know any run of them, and WordPiece
#   maps a run with one unknown character to a single `<unk>`.
_UNITS = {
    "unigram": rf"{_SPACE}?(?:[^{_SPACE}\d<]+|[\d<])",
    "bpe": rf"{_SPACE}?(?:[\w&&[^\d]]+|[^{_SPACE}])",
    "wordpiece": rf"{_SPACE}?(?:[\w&&[^\d{_UNSPACED}]]+|[^{_SPACE}])",
    "word": rf"{_SPACE}?(?:[\w&&[^{_UNSPACED}]]+|[^{_SPACE}])",
    "whitespace": rf"{_SPACE}?[^{_SPACE}]+",
    "character": ".",
}
MODELS = tuple(_UNITS)


def train_tokenizer(
    texts: Iterable[str],
    *,
    model: str = "unigram",
    vocab_size: int = 8000,
    normalization: str = "nfc",
    lowercase: bool = False,
    characters: bool = False,
) -> PreTrainedTokenizerFast:
    r"""Train a tokenizer on `texts`.

    Encoding a text appends `</s>`; decoding with `skip_special_tokens=True` restores the normalised text, with every
    model, if the vocabulary covers it. Normalisation applies the Unicode form and case, collapses runs of whitespace
    to one space and strips both ends. NFC keeps no-break spaces, NFKC converts them to spaces. `▁` (U+2581) marks
    spaces in tokens and is read as a space. Out-of-vocabulary text becomes `<unk>`, which decoding skips.

    Special tokens in a text are ordinary text (`split_special_tokens=True`): a typed `</s>` is spelled with ordinary
    tokens, decoded as typed, and never ends a sequence. For a corpus that contains actual `<unk>` tokens call
    `tokenizer(text, split_special_tokens=False)`.

    Training is deterministic.

    Args:
        texts: Training texts, of all languages for a joint vocabulary. Iterated once; blank ones are ignored.
        model: `unigram` (Kudo 2018), `bpe` (Sennrich et al. 2016), `wordpiece` (Schuster & Nakajima 2012), `word` (the
            most frequent words; punctuation is split off, and a token includes the space before it: `▁Hut`, `,`),
            `whitespace` (the same, split at spaces only, for text that is already tokenized) or `character` (the most
            frequent code points).
        vocab_size: Maximum number of entries, with the four special tokens; few texts give fewer.
        normalization: `nfc`, `nfkc` or `none`.
        lowercase: Lowercase all text.
        characters: Add the characters of each token to encodings, case-sensitive; see `WordCharacterTokenizer`.

    Returns:
        The tokenizer, with pad `<pad>` 0, bos `<s>` 1, eos `</s>` 2 and unk `<unk>` 3, padding on the right. It
        survives `save_pretrained` and `AutoTokenizer.from_pretrained` unchanged.

    Raises:
        InputError: If the model or normalisation is unknown, all texts are blank, or `vocab_size` is too small for the
            model.
    """
    if model not in MODELS:
        raise InputError(f"unknown tokenizer model {model!r}; there are: {', '.join(MODELS)}")
    if normalization not in NORMALIZATIONS:
        raise InputError(f"unknown normalization {normalization!r}; there are: {', '.join(NORMALIZATIONS)}")
    if vocab_size <= len(SPECIAL_TOKENS):
        raise InputError(f"a vocabulary of {vocab_size} is too small: the special tokens alone are 4")

    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError("no text to train a tokenizer on: every text is empty")

    tokenizer, trainer = _untrained(model, vocab_size)
    tokenizer.normalizer = _normalizer(normalization, lowercase)
    if model in ("unigram", "bpe", "wordpiece"):
        alphabet = {_SPACE}
        for text in texts:
            alphabet.update(tokenizer.normalizer.normalize_str(text))
        needed = len(SPECIAL_TOKENS) + len(alphabet - {" "})
        if vocab_size < needed:
            raise InputError(
                f"a vocabulary of {vocab_size} is too small for {model}: the special tokens and every character of "
                f"the texts make {needed}"
            )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    if model == "unigram":
        tokenizer.model = _reproducible(tokenizer, vocab_size)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, SPECIAL_TOKENS.index(EOS))]
    )
    more = {"characters": known_characters(texts)} if characters else {}
    return _fast_tokenizer(tokenizer, WordCharacterTokenizer if characters else PreTrainedTokenizerFast, **more)


def pair_tokenizers(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> SourceTargetTokenizer:
    """Make one tokenizer of those of sources and of targets.

    Args:
        source: Tokenizer of the sources, whose settings, such as the side of the padding, both have from now on.
        target: Tokenizer of the targets, with the same special tokens.

    Raises:
        InputError: A special token has another id in the other vocabulary.
    """
    try:
        return SourceTargetTokenizer(
            tokenizer_object=source.backend_tokenizer,
            target_tokenizer=target,
            **source.special_tokens_map,
            padding_side=source.padding_side,
            clean_up_tokenization_spaces=source.clean_up_tokenization_spaces,
            split_special_tokens=source.split_special_tokens,
            model_max_length=source.model_max_length,
            model_input_names=source.model_input_names,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def target_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer of the targets, which is that of the sources where both have one vocabulary."""
    return tokenizer.target if isinstance(tokenizer, SourceTargetTokenizer) else tokenizer


def letter_tokenizer(
    letters: str, *, more: str = "", kmer_size: int = 1, rna: bool = False
) -> PreTrainedTokenizerFast:
    """Make a tokenizer of DNA or proteins, whose vocabulary depends on no data and which adds no special tokens.

    A token is a letter, or with `kmer_size` k a k-mer: k letters that do not overlap with those of the next token.
    Where a k-mer would contain one of `more`, and at the end, letters are tokens. Lower case is read as upper case.

    Args:
        letters: Letters of the alphabet, in capitals.
        more: Further letters, of which there are no k-mers, such as those of unknown bases.
        kmer_size: Letters of a token.
        rna: Whether U is read as T.

    Returns:
        The tokenizer, with the special tokens of `train_tokenizer`; anything that is not a letter becomes `<unk>`.

    Raises:
        InputError: There would be more than 100 000 k-mers, or `kmer_size` is less than 1.
    """
    if kmer_size < 1 or len(letters) ** kmer_size > 100_000:
        raise InputError(
            f"k-mers of {kmer_size} letters of {len(letters)} are impossible: give 1 up to 100,000 k-mers"
        )
    kmers = ["".join(some) for some in product(letters, repeat=kmer_size)] if kmer_size > 1 else []
    vocab = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *letters, *more, *kmers])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    capitals = {letter.lower(): letter for letter in letters + more} | ({"U": "T", "u": "T"} if rna else {})
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(*pair) for pair in capitals.items()])
    unit = f"[{letters}]{{{kmer_size}}}|." if kmer_size > 1 else "."
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(unit), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _fast_tokenizer(tokenizer)


def item_tokenizer(items: Iterable[str]) -> PreTrainedTokenizerFast:
    r"""Make a tokenizer whose tokens are the names of items: the text of a history is its items, a line each.

    Encoding prepends `<s>`, so that there is a step before the first item. Names may contain anything but line breaks.

    Args:
        items: Names of the items, by ids: an adaptive softmax wants the most frequent first.

    Returns:
        The tokenizer, with the special tokens of `train_tokenizer`; other names become `<unk>`.

    Raises:
        InputError: A name is a special token, has a line break, or is not the only one.
    """
    vocab: dict[str, int] = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    for item in items:
        if item in vocab:
            reason = "is the name of a special token" if item in SPECIAL_TOKENS else "appears twice"
            raise InputError(f"item {item!r} {reason}; give it another name")
        if not item or "\n" in item:
            raise InputError(f"item {item!r:.60} is {'several lines' if item else 'empty'}; names are single lines")
        vocab[item] = len(vocab)
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    tokenizer.pre_tokenizer = _item_lines()
    begin: Any = Regex(r"\A")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(begin, "\n"), decoders.Fuse(), decoders.Strip("\n", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))]
    )
    return _fast_tokenizer(tokenizer)


def is_item_tokenizer(tokenizer: Any) -> bool:
    """Return True for a tokenizer of `item_tokenizer`, saved and loaded or not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    own = None if backend is None else backend.pre_tokenizer
    return own is not None and own.__getstate__() == _item_lines().__getstate__()


def require_items(tokenizer: Any) -> None:
    """Raise an `InputError` for a tokenizer whose tokens are no items, of which nothing could be recommended."""
    if not is_item_tokenizer(tokenizer):
        raise InputError(
            "the tokens of this model are no items; give a model that recipes/recommendation.py trained, or train one"
        )


def _item_lines() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split("\n", "removed")


def _fast_tokenizer(
    tokenizer: Tokenizer, kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast, **more: Any
) -> PreTrainedTokenizerFast:
    names = ["input_ids", "attention_mask", *["char_ids"] * ("characters" in more)]
    return kind(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        model_input_names=names,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        **more,
    )


def start_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    """Make a tokenizer prepend `</s>` to a text instead of appending it.

    A language model trained on a stream of texts separated by `</s>` expects that of a prompt.
    """
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", pair=f"{end} $A {end} $B", special_tokens=[(end, tokenizer.eos_token_id)]
    )


def _normalizer(normalization: str, lowercase: bool) -> normalizers.Normalizer:
    spaces = normalizers.Replace(Regex(rf"(?:[\s&&[^\u00a0\u2007\u202f]]|{_SPACE})+"), " ")
    ends = normalizers.Replace(Regex(r"\A | \z"), "")
    return normalizers.Sequence([*_FORMS[normalization], *[normalizers.Lowercase()] * lowercase, spaces, ends])


def _untrained(model: str, vocab_size: int) -> tuple[Tokenizer, trainers.Trainer]:
    """An untrained tokenizer, without normaliser and post-processor, and its trainer."""
    common: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": SPECIAL_TOKENS, "show_progress": False}
    trainer: trainers.Trainer
    if model == "unigram":
        # `_reproducible` removes the surplus.
        surplus = {"vocab_size": vocab_size + vocab_size // 20 + 1}
        tokenizer, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token=UNK, **common | surplus)
    elif model == "bpe":
        tokenizer, trainer = Tokenizer(models.BPE(unk_token=UNK, fuse_unk=True)), trainers.BpeTrainer(**common)
    elif model == "wordpiece":
        # The space marks the start of words, so `##` is not needed; the trainer numbers `##` pieces in an order that
        # differs between runs.
        wordpiece = models.WordPiece(unk_token=UNK, continuing_subword_prefix="", max_input_chars_per_word=1000)
        tokenizer = Tokenizer(wordpiece)
        trainer = trainers.WordPieceTrainer(continuing_subword_prefix="", **common)
    else:
        tokenizer, trainer = Tokenizer(models.WordLevel(unk_token=UNK)), trainers.WordLevelTrainer(**common)
    units = pre_tokenizers.Split(Regex(_UNITS[model]), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(_SPACE, split=False), units])
    tokenizer.decoder = decoders.Metaspace(_SPACE)
    return tokenizer, trainer


def _reproducible(tokenizer: Tokenizer, vocab_size: int) -> models.Unigram:
    """The trained unigram model, made independent of the random iteration order of the trainer's hash map.

    In that order the trainer sums, breaks ties, also at the size limit, and assigns scores 1e-4 apart to characters
    that are not pieces of their own. So train a surplus of pieces, level those characters, round, sort by score and
    text, and keep the best pieces and every character.
    """
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"][len(SPECIAL_TOKENS) :]
    lowest = min(score for _, score in vocab)
    level = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in vocab)
    pieces = [(piece, round(lowest if len(piece) == 1 and score <= level else score, 6)) for piece, score in vocab]
    pieces.sort(key=lambda item: (len(item[0]) > 1, -item[1], item[0]))
    kept = pieces[: vocab_size - len(SPECIAL_TOKENS)]
    kept.sort(key=lambda item: (-item[1], item[0]))
    return models.Unigram([(token, 0.0) for token in SPECIAL_TOKENS] + kept, unk_id=SPECIAL_TOKENS.index(UNK))

"""Train a tokenizer from raw text; the result is an ordinary fast Hugging Face tokenizer."""

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hfseq.errors import InputError
from hfseq.models.tokenization_characters import WordCharacterTokenizer, known_characters

# Their order is their ids: 0, 1, 2, 3.
PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>"]
NORMALIZATIONS = ("nfc", "nfkc", "none")

# Marks a space inside a token, as in SentencePiece.
_SPACE = "▁"
# Scripts written without spaces, where a run of letters is a whole clause.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# What no token crosses; the space before a unit belongs to it.
# - unigram: words with their punctuation, as in SentencePiece, since the trainer takes a whole word for a candidate
#   only if it has seen it continued in two ways. `<` is alone, so that no piece can become a special token.
# - The others: runs of letters and marks; any other character for itself.
# - Subwords: digits one by one, so that an unseen number is spelled like any other.
# - wordpiece, word: every letter of unspaced scripts for itself. A word model would know no run of them, and WordPiece
#   makes one `<unk>` of a run with a single unknown character.
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

    Encoding a text appends `</s>`; decoding with `skip_special_tokens=True` gives back the normalised text whenever
    the vocabulary covers it, for every model. Normalised means: the Unicode form and case asked for, each run of
    whitespace one space, none at the ends. No-break spaces are typography: NFC keeps them, NFKC turns them into
    spaces. `▁` (U+2581) marks spaces in tokens and is read as a space. What the vocabulary does not cover becomes
    `<unk>`, which decoding skips.

    Text is text: `</s>` typed by a user is spelled with ordinary tokens and comes back as typed, it never ends a
    sequence (`split_special_tokens=True`). For a corpus whose `<unk>` marks are meant as such, call
    `tokenizer(text, split_special_tokens=False)`.

    Training on the same texts gives the same tokenizer.

    Args:
        texts: The training texts, for one joint vocabulary of all languages. Read once; blank ones are ignored.
        model: `unigram` (Kudo 2018), `bpe` (Sennrich et al. 2016), `wordpiece` (Schuster & Nakajima 2012), `word` (the
            most frequent words; punctuation apart, a word remembers whether a space came before it: `▁Hut`, `,`),
            `whitespace` (the same of what stands between spaces, for text that is tokenized already) or `character`
            (the most frequent code points).
        vocab_size: The largest number of entries, the four special ones counted; few texts give fewer.
        normalization: `nfc`, `nfkc` or `none`.
        lowercase: Whether to lowercase.
        characters: Whether encodings have the characters of each token, too, upper and lower case apart; see
            `WordCharacterTokenizer`.

    Returns:
        The tokenizer, with pad `<pad>` 0, bos `<s>` 1, eos `</s>` 2 and unk `<unk>` 3, padding on the right.
        `save_pretrained` and `AutoTokenizer.from_pretrained` keep it as it is.

    Raises:
        InputError: For an unknown model or normalisation, no text, or a vocabulary too small for the model.
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
    kind, more = PreTrainedTokenizerFast, {}
    if characters:
        kind, more = WordCharacterTokenizer, {"characters": known_characters(texts)}
    names = ["input_ids", "attention_mask", *(["char_ids"] if characters else [])]
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
    """Have a tokenizer put `</s>` before a text and not after it.

    That is what a language model that has read text after text takes for a prompt: it begins where another text has
    ended, and goes on.
    """
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", pair=f"{end} $A {end} $B", special_tokens=[(end, tokenizer.eos_token_id)]
    )


def _normalizer(normalization: str, lowercase: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if normalization != "none":
        steps.append(normalizers.NFC() if normalization == "nfc" else normalizers.NFKC())
    if lowercase:
        steps.append(normalizers.Lowercase())
    steps.append(normalizers.Replace(Regex(rf"(?:[\s&&[^\u00a0\u2007\u202f]]|{_SPACE})+"), " "))
    steps.append(normalizers.Replace(Regex(r"\A | \z"), ""))
    return normalizers.Sequence(steps)


def _untrained(model: str, vocab_size: int) -> tuple[Tokenizer, trainers.Trainer]:
    """The tokenizer without normaliser and post-processor, and its trainer."""
    common: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": SPECIAL_TOKENS, "show_progress": False}
    trainer: trainers.Trainer
    if model == "unigram":
        # The surplus is for `_reproducible` to cut.
        surplus = {"vocab_size": vocab_size + vocab_size // 20 + 1}
        tokenizer, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token=UNK, **common | surplus)
    elif model == "bpe":
        tokenizer, trainer = Tokenizer(models.BPE(unk_token=UNK, fuse_unk=True)), trainers.BpeTrainer(**common)
    elif model == "wordpiece":
        # The space marks where words start, so `##` need not mark where they go on; its trainer numbers `##` pieces in
        # an order that changes from run to run.
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
    """The trained unigram model without what the random order of a hash map left in it.

    The trainer sums in that order, breaks ties by it, also the one for the last place, and gives the characters that
    are no piece of their own scores 1e-4 apart in it. So: train some more pieces than asked for, level those
    characters, round, order by score and text, keep the best and every character.
    """
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"][len(SPECIAL_TOKENS) :]
    lowest = min(score for _, score in vocab)
    level = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in vocab)
    pieces = [(piece, round(lowest if len(piece) == 1 and score <= level else score, 6)) for piece, score in vocab]
    pieces.sort(key=lambda item: (len(item[0]) > 1, -item[1], item[0]))
    kept = pieces[: vocab_size - len(SPECIAL_TOKENS)]
    kept.sort(key=lambda item: (-item[1], item[0]))
    return models.Unigram([(token, 0.0) for token in SPECIAL_TOKENS] + kept, unk_id=SPECIAL_TOKENS.index(UNK))

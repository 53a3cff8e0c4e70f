"""What a teacher says of single words: embeddings for a student, and words that are near."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import normalize, pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfseq.errors import InputError

_LONGEST = 16  # of the teacher's tokens in one of the student's


@torch.inference_mode()
def _states(
    teacher: PreTrainedModel, its_tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int
) -> torch.Tensor:
    """What a teacher makes of short texts: the mean of the last hidden states over their tokens, less that of all.

    Special tokens do not count (Bommasani et al. 2020, section 3.1, "decontextualized"). `[N, H]`.
    """
    found = []
    teacher.eval()
    for start in range(0, len(texts), batch_size):
        inputs = its_tokenizer(
            list(texts[start : start + batch_size]),
            padding=True,
            truncation=True,
            max_length=_LONGEST,
            return_special_tokens_mask=True,
            return_tensors="pt",
        ).to(teacher.device)
        own = inputs["attention_mask"] * (1 - inputs.pop("special_tokens_mask"))  # [B, T]
        states = teacher.base_model(**inputs).last_hidden_state.float()  # [B, T, H]
        found.append((states * own[..., None]).sum(1) / own.sum(1, keepdim=True).clamp(min=1))
    vectors = torch.cat(found)  # [N, H]
    return vectors - vectors.mean(0)


def teacher_embeddings(
    teacher: PreTrainedModel,
    its_tokenizer: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    *,
    batch_size: int = 256,
) -> torch.Tensor:
    """A vector for each token of a tokenizer, from another model that reads the token as a text of its own.

    The mean of the last hidden states over the token's pieces, without special tokens (Bommasani et al. 2020, section
    3.1, "decontextualized"), in its first principal components.

    Args:
        teacher: Any model whose base is an encoder.
        its_tokenizer: The teacher's.
        tokenizer: Whose tokens get a vector.
        size: Width of the vectors, at most the teacher's own.
        batch_size: Tokens read at once.

    Returns:
        Vectors, `[len(tokenizer), size]`, of mean 0 and standard deviation 1 over all their values. Those of special
        tokens are 0.

    Raises:
        InputError: If the teacher is narrower than `size`.
    """
    special = set(tokenizer.all_special_ids)
    tokens = [index for index in range(len(tokenizer)) if index not in special]
    # A token of blanks alone is itself a text.
    texts = [str(tokenizer.decode([index])).strip() or str(tokenizer.convert_ids_to_tokens(index)) for index in tokens]
    vectors = _states(teacher, its_tokenizer, texts, batch_size)  # [N, H]
    if vectors.shape[1] < size:
        raise InputError(f"the teacher's states are {vectors.shape[1]} wide, less than the embeddings: {size}")
    _, _, components = torch.linalg.svd(vectors, full_matrices=False)  # rows, the largest first
    # So few tokens that they have fewer components leave the rest 0.
    vectors = pad(vectors @ components[:size].T, (0, max(0, size - len(components))))  # [N, size]
    table = torch.zeros(len(tokenizer), size)
    table[tokens] = (vectors / vectors.std()).cpu()
    return table


def start_from_teacher(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedModel,
    its_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write `teacher_embeddings` into the embeddings of a student, spread as they were; those of special tokens stay.

    Raises:
        InputError: As `teacher_embeddings`.
    """
    embeddings: Any = student.get_input_embeddings().weight
    with torch.no_grad():
        found = teacher_embeddings(teacher, its_tokenizer, tokenizer, embeddings.shape[1]).to(embeddings)
        known = found.any(dim=-1)
        embeddings[: len(found)][known] = found[known] * embeddings[: len(found)][known].std()


class Neighbours:
    """Words that a teacher finds near a word, among those of texts and the whole words of its own vocabulary.

    TinyBERT replaces words by their neighbours in GloVe (Jiao et al. 2020, section 4); here they are near in the
    teacher's last hidden states, so that no other vectors are needed, and what matters to its task counts.

    Args:
        teacher: Any model whose base is an encoder.
        its_tokenizer: The teacher's. If it knows lower case alone, all words are in lower case.
        texts: Texts with spaces between words.
        count: Neighbours of a word, 15 as in the paper's table 7.
        batch_size: Words read at once.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        its_tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        *,
        count: int = 15,
        batch_size: int = 256,
    ) -> None:
        own = [str(its_tokenizer.decode([index])).strip() for index in range(len(its_tokenizer))]
        # A letter is no word, and what is of several tokens when it is alone is a part of words.
        own = [word for word in own if len(word) > 1 and word.isalpha()]
        self.folds = all(word == word.lower() for word in own)
        pieces = its_tokenizer(own, add_special_tokens=False)["input_ids"] if own else []
        whole = (self._fold(word) for word, its in zip(own, pieces, strict=True) if len(its) == 1)
        self.words = sorted({*whole, *(self._fold(word) for text in texts for word in text.split())})
        self.numbers = {word: number for number, word in enumerate(self.words)}
        # Longest last, so that little is padded.
        order = sorted(range(len(self.words)), key=lambda number: len(self.words[number]))
        vectors = _states(teacher, its_tokenizer, [self.words[number] for number in order], batch_size)
        vectors = normalize(vectors, dim=-1)[torch.tensor(order).argsort()]  # [N, H]
        near = []
        for start in range(0, len(vectors), 1024):
            likeness = vectors[start : start + 1024] @ vectors.T  # [1024, N]
            likeness.diagonal(start).fill_(-2.0)  # a word is no neighbour of its own
            near.append(likeness.topk(min(count, len(vectors) - 1)).indices.cpu())
        self.near = torch.cat(near)  # [N, count]

    def _fold(self, word: str) -> str:
        return word.lower() if self.folds else word

    def __call__(self, word: str) -> list[str]:
        """The neighbours of a word, the nearest first; none of a word that is not among those of the texts."""
        number = self.numbers.get(self._fold(word))
        return [] if number is None else [self.words[other] for other in self.near[number].tolist()]

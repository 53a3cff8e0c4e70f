"""Word representations from a teacher model: initial embeddings for a student, and nearest neighbours."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import normalize, pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfseq.errors import InputError
from hfseq.heads import require_text

_LONGEST = 16  # maximum teacher tokens per student token


@torch.inference_mode()
def _states(
    teacher: PreTrainedModel, its_tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int
) -> torch.Tensor:
    """Centred mean-pooled last hidden states of short texts, `[N, H]`.

    Special tokens are excluded (Bommasani et al. 2020, section 3.1, "decontextualized").
    """
    require_text(teacher, "embeddings from a teacher")
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
    """Static embeddings of a tokenizer's tokens, computed by encoding each token as a text with a teacher.

    An embedding is the mean of the last hidden states over the token's subwords, without special tokens (Bommasani et
    al. 2020, section 3.1, "decontextualized"), projected onto the first principal components.

    Args:
        teacher: Model whose base is an encoder.
        its_tokenizer: Tokenizer of the teacher.
        tokenizer: Tokenizer whose tokens are embedded.
        size: Embedding size, at most the teacher's hidden size.
        batch_size: Tokens encoded per batch.

    Returns:
        Embeddings `[len(tokenizer), size]` with mean 0 and standard deviation 1 over all values; zero for special
        tokens.

    Raises:
        InputError: The teacher reads no text, or its hidden size is below `size`.
    """
    special = set(tokenizer.all_special_ids)
    tokens = [index for index in range(len(tokenizer)) if index not in special]
    # Whitespace-only tokens are encoded by their raw form.
    texts = [str(tokenizer.decode([index])).strip() or str(tokenizer.convert_ids_to_tokens(index)) for index in tokens]
    vectors = _states(teacher, its_tokenizer, texts, batch_size)  # [N, H]
    if vectors.shape[1] < size:
        raise InputError(f"the teacher's hidden size {vectors.shape[1]} is smaller than the embedding size {size}")
    _, _, components = torch.linalg.svd(vectors, full_matrices=False)  # rows, by decreasing variance
    # With fewer tokens than dimensions, the remaining components are 0.
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
    """Initialize a student's embeddings with `teacher_embeddings`, keeping their scale and those of special tokens.

    Raises:
        InputError: Student or teacher read no text, or the teacher's hidden size is below the embedding size.
    """
    require_text(student, "embeddings from a teacher")
    embeddings: Any = student.get_input_embeddings().weight
    with torch.no_grad():
        found = teacher_embeddings(teacher, its_tokenizer, tokenizer, embeddings.shape[1]).to(embeddings)
        known = found.any(dim=-1)
        embeddings[: len(found)][known] = found[known] * embeddings[: len(found)][known].std()


class Neighbours:
    """Nearest neighbours of words in a teacher's space, among the words of texts and of the teacher's vocabulary.

    TinyBERT replaces words by their GloVe neighbours (Jiao et al. 2020, section 4). The teacher's last hidden states
    need no further word vectors, and reflect similarity for the task.

    Args:
        teacher: Model whose base is an encoder.
        its_tokenizer: Tokenizer of the teacher. All words are lowercased if its vocabulary is.
        texts: Whitespace-separated texts.
        count: Number of neighbours; 15 as in the paper's table 7.
        batch_size: Words encoded per batch.
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
        # Drop single letters, and word parts, which are split into several tokens on their own.
        own = [word for word in own if len(word) > 1 and word.isalpha()]
        self.folds = all(word == word.lower() for word in own)
        pieces = its_tokenizer(own, add_special_tokens=False)["input_ids"] if own else []
        whole = (self._fold(word) for word, its in zip(own, pieces, strict=True) if len(its) == 1)
        self.words = sorted({*whole, *(self._fold(word) for text in texts for word in text.split())})
        self.numbers = {word: number for number, word in enumerate(self.words)}
        # Sorted by length to reduce padding.
        order = sorted(range(len(self.words)), key=lambda number: len(self.words[number]))
        vectors = _states(teacher, its_tokenizer, [self.words[number] for number in order], batch_size)
        vectors = normalize(vectors, dim=-1)[torch.tensor(order).argsort()]  # [N, H]
        near = []
        for start in range(0, len(vectors), 1024):
            likeness = vectors[start : start + 1024] @ vectors.T  # [1024, N]
            likeness.diagonal(start).fill_(-2.0)  # exclude the word itself
            near.append(likeness.topk(min(count, len(vectors) - 1)).indices.cpu())
        self.near = torch.cat(near)  # [N, count]

    def _fold(self, word: str) -> str:
        return word.lower() if self.folds else word

    def __call__(self, word: str) -> list[str]:
        """Return the neighbours of a word, nearest first; empty for unknown words."""
        number = self.numbers.get(self._fold(word))
        return [] if number is None else [self.words[other] for other in self.near[number].tolist()]

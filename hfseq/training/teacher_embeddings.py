"""Embeddings of a student from what its teacher says of each of its tokens."""

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.errors import InputError

_LONGEST = 16  # of the teacher's tokens in one of the student's


@torch.inference_mode()
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
    texts = [str(tokenizer.decode([index])).strip() or tokenizer.convert_ids_to_tokens(index) for index in tokens]
    found = []
    teacher.eval()
    for start in range(0, len(texts), batch_size):
        inputs = its_tokenizer(
            texts[start : start + batch_size],
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
    if vectors.shape[1] < size:
        raise InputError(f"the teacher's states are {vectors.shape[1]} wide, less than the embeddings: {size}")
    vectors = vectors - vectors.mean(0)
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

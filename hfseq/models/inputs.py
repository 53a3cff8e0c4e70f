"""Inputs of a backbone: embeddings of tokens, and features of their characters."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_base import SequenceConfig
from .convolution import Convolution
from .dropout import drop_words
from .pooling import Pooling
from .recurrent import KernelLayer, RecurrentStack
from .shapes import check_shape


class CharacterEncoder(nn.Module):
    """Word vectors from characters alone, so that unseen words have one too.

    - `cnn`: a convolution over the characters and the maximum over them (Ma & Hovy 2016, section 2.1).
    - `lstm`: the final states of a bidirectional LSTM (Lample et al. 2016, section 4.1).

    Dropout is on the embeddings of characters, as in Ma & Hovy.

    Args:
        config: Its fields `char_encoder`, `char_vocab_size`, `char_embedding_size`, `char_hidden_size`,
            `char_kernel_size` and `dropout` count.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        size, width = config.char_embedding_size, config.char_hidden_size
        self.embed_characters = nn.Embedding(config.char_vocab_size, size)
        self.dropout = nn.Dropout(config.dropout)
        self.recurrent = config.char_encoder == "lstm"
        self.layer: nn.Module
        if self.recurrent:
            self.layer = RecurrentStack(partial(KernelLayer, "LSTM"), size, width, 1, bidirectional=True)
        else:
            self.layer = Convolution(size, width, config.char_kernel_size, weight_norm=False, gain=2.0)
        self.pooling = Pooling("last" if self.recurrent else "max", width, concatenates_directions=self.recurrent)

    def forward(self, char_ids: Tensor) -> Tensor:
        """Map characters `[B, T, L]`, 0 after the last one of a word, to `[B, T, char_hidden_size]`.

        Tokens without characters, such as padding and special tokens, give zeros.
        """
        words = char_ids.reshape(-1, char_ids.shape[2])  # [B T, L]
        mask = words != 0
        embedded = self.dropout(self.embed_characters(words))
        outputs, _ = self.layer(embedded, mask)
        values = outputs[-1] if self.recurrent else outputs.relu()
        features = self.pooling(values, mask)
        return features.reshape(char_ids.shape[0], char_ids.shape[1], features.shape[1])


class TokenInputs:
    """The part of a backbone that embeds tokens.

    A base class rather than a submodule: checkpoints name its weights `embed_tokens` and `characters`, directly under
    the backbone.
    """

    config: Any
    embed_tokens: nn.Embedding
    characters: CharacterEncoder | None
    training: bool

    def make_inputs(self, config: SequenceConfig) -> None:
        """Create the embeddings."""
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.characters = CharacterEncoder(config) if config.char_encoder else None

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, char_ids: Tensor | None) -> Tensor:
        """Embeddings `[B, T, E]` of ids, or those given, with the character features of `[B, T, L]` appended.

        Raises:
            ValueError: If both or neither of ids and embeddings are given, if characters are given to a model without
                a character encoder or missing for one with it, or if a shape is wrong.
        """
        embedded = self._embed_words(input_ids, inputs_embeds)
        if self.characters is None:
            if char_ids is not None:
                raise ValueError("char_ids were passed to a model without char_encoder")
            return embedded
        if char_ids is None:
            raise ValueError(
                f"a model with char_encoder={self.config.char_encoder!r} needs char_ids, which the tokenizer saved "
                "beside it, a WordCharacterTokenizer, gives"
            )
        check_shape("char_ids", char_ids.shape, (*embedded.shape[:2], "characters of a word"))
        return torch.cat([embedded, self.characters(char_ids)], dim=-1)

    def _embed_words(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("specify exactly one of input_ids and inputs_embeds")
        if inputs_embeds is not None:
            width, note = self.config.embedding_size, f" for embedding_size={self.config.embedding_size}"
            check_shape("inputs_embeds", inputs_embeds.shape, ("batch", "length", width), note=note)
            return inputs_embeds
        if input_ids.shape[1:] == (0,):
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}: there is no step to run")
        check_shape("input_ids", input_ids.shape, ("batch", "length"))
        embedded = self.embed_tokens(input_ids)
        if self.training and self.config.embedding_dropout:
            vocab_size = self.embed_tokens.weight.shape[0]
            embedded = drop_words(embedded, input_ids, vocab_size, self.config.embedding_dropout)
        return embedded

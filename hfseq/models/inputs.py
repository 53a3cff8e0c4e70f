"""Inputs of a backbone: embeddings of tokens and features of their characters, or frames of features."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_base import SequenceConfig
from .convolution import Convolution
from .dropout import drop_words
from .frames import FrameEncoder
from .padding import permute_steps, valid_first, valid_steps
from .pooling import Pooling
from .recurrent import KernelLayer, RecurrentStack
from .shapes import check_shape
from .spec_augment import spec_augment


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


def mask_of_steps(mask: Tensor | None, steps: int, factor: int) -> Tensor | None:
    """Mask `[B, S]` of steps of stacked frames from a mask of frames `[B, T]`, or of these steps already.

    Args:
        mask: 1 or True at what is valid, or None.
        steps: Number S of steps.
        factor: Number of frames that are stacked.

    Raises:
        ValueError: If the mask is neither of steps nor of frames.
    """
    if mask is None or factor == 1 or mask.shape[1] == steps:
        return mask
    frames = mask.shape[1]
    if (frames + factor - 1) // factor != steps:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}: of {frames} frames, but {steps} steps of {factor} frames "
            "were read"
        )
    valid = (mask != 0).sum(dim=1, keepdim=True)
    return torch.arange(steps, device=mask.device) * factor < valid


def flat_frames(name: str, frames: Tensor, size: int, shape: Sequence[int] | None) -> Tensor:
    """Frames as vectors `[B, T, F]`.

    Args:
        name: Name of the frames in messages.
        frames: `[B, T, F]`, or pixels `[B, T, C, H, W]`.
        size: Number F of values of a frame.
        shape: Its channels, height and width; None if frames come as vectors alone.

    Raises:
        ValueError: If the shape is another one.
    """
    allowed: list[tuple[int | str, ...]] = [("batch", "length", size)]
    note = f" for input_size={size}"
    if shape is not None:
        allowed.append(("batch", "length", *shape))
        note += f" and frame_shape={list(shape)}"
    check_shape(name, frames.shape, *allowed, note=note)
    return frames.flatten(2)


class StackInputs:
    """The part of a backbone that turns tokens, or frames of features, into the inputs of a stack.

    A base class rather than a submodule: checkpoints name its weights `embed_tokens` and `characters`, directly under
    the backbone.

    Attributes:
        feature_mean: Mean of each feature, `[F]`, which is subtracted; 0 until `set_feature_statistics`.
        feature_scale: Standard deviation of each feature, `[F]`, by which the rest is divided; 1 until then.
    """

    config: Any
    embed_tokens: nn.Embedding
    characters: CharacterEncoder | None
    feature_mean: Tensor
    feature_scale: Tensor
    frame_encoder: FrameEncoder | None
    embed_features: nn.Linear | None
    register_buffer: Any
    training: bool

    def make_inputs(self, config: SequenceConfig) -> None:
        """Create the embeddings, or what frames pass through."""
        self.reads_features = config.input_size is not None
        self.subsampling_factor = config.subsampling_factor
        if not self.reads_features:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
            # After them: a seed gives the weights that it gave.
            self.characters = CharacterEncoder(config) if config.char_encoder else None
            return
        self.characters = None
        self.frame_size = config.frame_size()
        self.register_buffer("feature_mean", torch.zeros(self.frame_size))
        self.register_buffer("feature_scale", torch.ones(self.frame_size))
        self.frame_encoder = FrameEncoder(config) if config.reads_maps() else None
        stacked = (config.encoded_size() or 0) * config.subsampling_factor
        self.embed_features = None if config.embedding_size is None else nn.Linear(stacked, config.embedding_size)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings.

        Raises:
            NotImplementedError: If the model reads features.
        """
        self._check_has_embeddings()
        return self.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token embeddings.

        Raises:
            NotImplementedError: If the model reads features.
        """
        self._check_has_embeddings()
        self.embed_tokens = value

    def _check_has_embeddings(self) -> None:
        if self.reads_features:
            # The type of error by which transformers knows that a model has none.
            raise NotImplementedError(
                f"this model reads features (input_size={self.config.input_size}) and has no token embeddings"
            )

    def set_feature_statistics(self, mean: Tensor, scale: Tensor) -> None:
        """Set mean and standard deviation of the training data, by which features are normalised from now on.

        Both are buffers, so that they are saved and exported with the model. A feature that is constant in the
        training data, of standard deviation 0, is not scaled.

        Args:
            mean: Mean of each feature, `[F]`.
            scale: Standard deviation of each feature, `[F]`.

        Raises:
            ValueError: If the model reads tokens, a shape is wrong, a value is not finite, or a scale is negative.
        """
        if not self.reads_features:
            raise ValueError("the model reads tokens: without input_size there are no features to normalise")
        for name, values in (("mean", mean), ("scale", scale)):
            check_shape(name, values.shape, self.feature_mean.shape)
            if not bool(values.isfinite().all()):
                raise ValueError(f"{name} has values that are not finite: {values.tolist()}")
        if bool((scale < 0).any()):
            raise ValueError(f"scale has negative values: {scale.tolist()}")
        with torch.no_grad():
            self.feature_mean.copy_(mean)
            self.feature_scale.copy_(torch.where(scale == 0, 1.0, scale))

    def read(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        char_ids: Tensor | None,
        input_features: Tensor | None,
        attention_mask: Tensor | None,
        past: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Inputs `[B, T, E]` of the stack and the mask of its valid steps, `[B, T]`, or None if all are.

        Args:
            input_ids: Token ids `[B, T]`.
            inputs_embeds: `[B, T, E]` in place of them, or of features.
            char_ids: Characters of each token, `[B, T, L]`.
            input_features: Frames of features.
            attention_mask: 1 at valid steps or frames, `[B, T]` or `[B, past + T]`.
            past: Number of steps in the cache.

        Raises:
            ValueError: If not exactly one kind of inputs is given, or a shape is wrong.
        """
        own, other = "input_ids", "input_features"
        if self.reads_features:
            own, other = other, own
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "input_features": input_features}
        if given[other] is not None:
            raise ValueError(
                f"{other} were passed to a model with input_size={self.config.input_size}: it reads {own}"
            )
        if (given[own] is None) == (inputs_embeds is None):
            raise ValueError(f"specify exactly one of {own} and inputs_embeds")
        if input_features is not None:
            return self.embed_frames(input_features, attention_mask, past)
        embeds = self.embed(input_ids, inputs_embeds, char_ids)
        return embeds, valid_steps(attention_mask, embeds.shape[0], embeds.shape[1], past, "attention_mask")

    def embed_frames(
        self, input_features: Tensor, attention_mask: Tensor | None, past: int
    ) -> tuple[Tensor, Tensor | None]:
        """Inputs `[B, S, E]` of the stack from frames `[B, T, F]`, and the mask of the S steps.

        Frames are normalised, masked by SpecAugment in training, convolved if they are of pixels, stacked and
        projected. Stacking moves each row's valid frames to its left, so that S is T / `subsampling_factor`, rounded
        up, wherever the padding is; the last step of a row is filled up with zeros, which stand for the mean where
        frames are not convolved.

        Args:
            input_features: Frames of features, or of pixels, `[B, T, C, H, W]`.
            attention_mask: 1 at valid frames, `[B, T]`, or `[B, past + T]` if frames are not stacked.
            past: Number of frames in the cache.

        Raises:
            ValueError: If a shape is wrong.
        """
        size, factor = self.frame_size, self.subsampling_factor
        input_features = flat_frames("input_features", input_features, size, self.config.pixels(size))
        batch, length, _ = input_features.shape
        mask = valid_steps(attention_mask, batch, length, past if factor == 1 else 0, "attention_mask")
        frames = (input_features.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_scale
        if mask is not None:
            # Padding may hold anything, and even multiplied by zero NaN stays NaN.
            frames = frames.masked_fill(~mask.unsqueeze(2), 0.0)
        if self.training and self.config.apply_spec_augment:
            frames = spec_augment(frames, mask, self.config)
        if self.frame_encoder is not None:
            frames, size = self.frame_encoder(frames), self.config.encoded_size()
            if mask is not None and factor > 1:  # a step is filled up with zeros, whatever stands at padding
                frames = frames.masked_fill(~mask.unsqueeze(2), 0.0)
        if factor > 1:
            if mask is not None:
                permutation = valid_first(mask)
                frames = permute_steps(frames, permutation.order, permutation.restore)
            frames = nn.functional.pad(frames, (0, 0, 0, factor - 1))
            steps = (length + factor - 1) // factor
            frames = frames[:, : steps * factor].reshape(batch, steps, factor * size)
            mask = self.mask_of_steps(mask, steps)
        return frames if self.embed_features is None else self.embed_features(frames), mask

    def mask_of_steps(self, mask: Tensor | None, steps: int) -> Tensor | None:
        """Mask `[B, S]` of the steps of the stack; see `mask_of_steps`."""
        return mask_of_steps(mask, steps, self.subsampling_factor)

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, char_ids: Tensor | None) -> Tensor:
        """Embeddings `[B, T, E]` of ids, or those given, with the character features of `[B, T, L]` appended.

        Raises:
            ValueError: If characters are given to a model without a character encoder or missing for one with it, or
                if a shape is wrong.
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
        if inputs_embeds is not None:
            if self.reads_features:
                width, name = self.config.input_width(), "inputs of the stack"
            else:
                width, name = self.config.embedding_size, "embedding_size"
            note = f" for {name}={width}"
            check_shape("inputs_embeds", inputs_embeds.shape, ("batch", "length", width), note=note)
            return inputs_embeds
        assert input_ids is not None
        if input_ids.shape[1:] == (0,):
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}: there is no step to run")
        check_shape("input_ids", input_ids.shape, ("batch", "length"))
        embedded = self.embed_tokens(input_ids)
        if self.training and self.config.embedding_dropout:
            vocab_size = self.embed_tokens.weight.shape[0]
            embedded = drop_words(embedded, input_ids, vocab_size, self.config.embedding_dropout)
        return embedded

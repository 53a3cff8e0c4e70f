"""What all models share: loading, initialisation, and the checks that a stack of any family makes on its inputs."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel

from .characters import CharacterEncoder
from .configuration_base import SequenceConfig
from .convolution import Convolution
from .dropout import Dropout, drop_words
from .generation import Step
from .padding import valid_steps
from .recurrent import RecurrentLayer


class SequencePreTrainedModel(PreTrainedModel):
    """Initialisation and loading that all models share."""

    config_class = SequenceConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = []
    # A state cannot be rolled back, so `generate` must not try assisted decoding.
    _is_stateful = True

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as `PreTrainedModel.from_pretrained` does, but weights only from safetensors unless told otherwise."""
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier matrices (Glorot & Bengio 2010), biases of 0; recurrent layers and convolutions as they need it."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, RecurrentLayer):
            init_recurrent(module)
        elif isinstance(module, Convolution):
            init_convolution(module)


def init_recurrent(layer: RecurrentLayer) -> None:
    """Orthogonal recurrent and Xavier input matrices gate by gate, forget-gate bias 1 (Jozefowicz et al. 2015)."""
    gates = layer.weight_hh_l0.shape[0] // layer.hidden_size
    for name, parameter in layer.named_parameters(recurse=False):
        # The parts are views, which do not carry the mark of a loaded parameter.
        if getattr(parameter, "_is_hf_initialized", False):
            continue
        if name.startswith("bias"):
            init.zeros_(parameter)
            if layer.mode == "LSTM" and name.startswith("bias_ih"):
                init.ones_(parameter.chunk(gates)[1])
            continue
        for gate in parameter.chunk(gates):
            (init.orthogonal_ if name.startswith("weight_hh") else init.xavier_uniform_)(gate)


def init_convolution(layer: Convolution) -> None:
    """Normal filters of the variance that suits what follows, magnitudes that leave them so, biases of 0."""
    if layer.weight_norm:
        init.normal_(layer.direction, std=layer.std)
        init.copy_(layer.magnitude, layer.norms())
    else:
        init.normal_(layer.weight, std=layer.std)
    init.zeros_(layer.bias)


class Backbone(SequencePreTrainedModel):
    """Embeddings and a stack: what the `…Model` of every family begins with.

    Subclasses have `embed_tokens`, `characters` and `dropout`.
    """

    # Whether the second half of a bidirectional stack's features runs from right to left.
    has_two_halves: ClassVar[bool] = False

    embed_tokens: nn.Embedding
    characters: CharacterEncoder | None
    dropout: Dropout

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, char_ids: Tensor | None) -> Tensor:
        """Embeddings `[B, T, E]` of ids, or those given, with the features of characters `[B, T, L]` after them.

        Raises:
            ValueError: If both or none of ids and embeddings are given, characters where none are read or none where
                they are, or one of a wrong shape.
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
        if char_ids.dim() != 3 or char_ids.shape[:2] != embedded.shape[:2] or char_ids.shape[2] == 0:
            batch, length, _ = embedded.shape
            raise ValueError(
                f"char_ids has shape {tuple(char_ids.shape)}, expected ({batch}, {length}, characters of a word)"
            )
        return torch.cat([embedded, self.characters(char_ids)], dim=-1)

    def _embed_words(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("specify exactly one of input_ids and inputs_embeds")
        if inputs_embeds is not None:
            if inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != self.config.embedding_size:
                raise ValueError(
                    f"inputs_embeds has shape {tuple(inputs_embeds.shape)}, "
                    f"expected (batch, length, embedding_size={self.config.embedding_size})"
                )
            return inputs_embeds
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, expected (batch, length)")
        if input_ids.shape[1] == 0:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}: there is no step to run")
        embedded = self.embed_tokens(input_ids)
        if self.training and self.config.embedding_dropout:
            vocab_size = self.embed_tokens.weight.shape[0]
            embedded = drop_words(embedded, input_ids, vocab_size, self.config.embedding_dropout)
        return embedded

    def check_memory(self, memory: Tensor | None, mask: Tensor | None, batch: int) -> Tensor | None:
        """Check encoder states `[B, S, M]` and make their mask boolean.

        Raises:
            ValueError: If there are some where none are read or none where they are, or if a shape does not fit.
        """
        if not self.config.add_cross_attention:
            if memory is not None:
                raise ValueError("encoder_hidden_states were passed to a model without add_cross_attention=True")
            return None
        if memory is None:
            raise ValueError("a model with add_cross_attention=True needs encoder_hidden_states")
        width = self.config.cross_attention_hidden_size or self.config.hidden_size
        if memory.dim() != 3 or memory.shape[0] != batch or memory.shape[-1] != width:
            raise ValueError(
                f"encoder_hidden_states has shape {tuple(memory.shape)}, expected ({batch}, source length, {width})"
            )
        return valid_steps(mask, batch, memory.shape[1], 0, "encoder_attention_mask")

    def can_step(self) -> bool:
        """Whether `stepper` has a step that does what `forward` does; not unless a family says otherwise."""
        return False

    def stepper(self, cache: Cache, **memory: Tensor | None) -> Step:
        """A step from the newest ids `[B, 1]` to hidden states `[B, 1, H]`, without checks and outputs on the way.

        Args:
            cache: Filled by `forward`; each step brings it up to date.
            memory: What a decoder attends to, by the names of `forward`.
        """
        raise NotImplementedError

    def uses_cache(self, use_cache: bool | None, cache: Cache | None) -> bool:
        """Whether to read and return a cache.

        Raises:
            ValueError: If one is given to a stack that cannot go on from it.
        """
        if self.config.bidirectional:
            if cache is not None:
                raise ValueError("a cache was passed to a bidirectional model, which has no state to go on from")
            return False
        # Training reads no cache, so that none is made unless it is asked for.
        return cache is not None or (self.config.use_cache and not self.training if use_cache is None else use_cache)

    def outputs_of(self, name: str, wanted: bool | None) -> bool:
        """Whether an optional output is wanted, by the caller or else by the config."""
        return getattr(self.config, name) if wanted is None else wanted

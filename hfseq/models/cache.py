"""Decoding state that a model carries from one call to the next."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache
from transformers.utils.deprecation import deprecate_kwarg

takes_past_key_values = deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
"""Decorator that lets `forward` take `cache` by its name before transformers 5.24 too, with the warning of 5.24."""


class StateCacheLayer(CacheLayerMixin):
    """Cache layer whose size does not depend on the number of tokens seen."""

    supports_early_init = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: there are no keys and values to make room for."""

    def get_max_length(self) -> int:
        """-1: there is no maximum."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a mask over all tokens so far and `query_length` new ones."""
        return self.get_seq_length() + query_length, 0


class RecurrentCacheLayer(StateCacheLayer):
    """State of one layer after the tokens seen so far.

    Attributes:
        states: Tensors with the batch first, `[B, ...]`, or None before the first token.
        memory: Keys (and values) of the encoder states, tensors `[B, S, A]`, or None. They belong to
            `encoder_hidden_states`, which beam search does not reorder, so `reorder_cache` leaves them alone. In
            `beam_search` there is a row for each sentence, which all states of its beams share.
        seen: Number of tokens that led to `states`.
        model_type: Model type that wrote the states, since shapes alone do not tell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.states: tuple[Tensor, ...] | None = None
        self.memory: tuple[Tensor, ...] | None = None
        self.seen = 0
        self.model_type: str | None = None

    def update(self, states: tuple[Tensor, ...], num_tokens: int) -> None:  # type: ignore[override]
        """Replace the states by those after `num_tokens` more tokens."""
        self.states = states
        self.seen += num_tokens
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Number of tokens seen."""
        return self.seen

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def crop(self, tokens_to_remove: int) -> None:
        """Reject the removal of tokens: a state cannot be rolled back.

        Raises:
            ValueError: If there is anything to remove.
        """
        if tokens_to_remove and self.seen:
            raise ValueError(
                "a recurrent cache cannot be cropped, because a state does not contain the earlier states; "
                "generate without assisted decoding, or run the shorter prefix again"
            )

    def offload(self) -> None:
        """Move the states to the CPU."""
        self._apply(lambda tensor: tensor.to("cpu", non_blocking=True), with_memory=True)

    def prefetch(self) -> None:
        """Do nothing: the model moves the states to its own device when it reads them."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows of the states, `beam_idx` `[B]`."""
        self._apply(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)), with_memory=False)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._apply(lambda tensor: tensor.repeat_interleave(repeats, dim=0), with_memory=True)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        self._apply(lambda tensor: tensor[indices], with_memory=True)

    def _apply(self, function: Callable[[Tensor], Tensor], with_memory: bool) -> None:
        if self.states is not None:
            self.states = tuple(function(state) for state in self.states)
        if with_memory and self.memory is not None:
            self.memory = tuple(function(part) for part in self.memory)


def cache_layers(cache: Cache, num_layers: int, model_type: str) -> list[RecurrentCacheLayer]:
    """Recurrent layers of any cache that `generate()` made; empty layers of other kinds are replaced.

    Args:
        cache: A `DynamicCache`, or an `EncoderDecoderCache`, of which the self-attention part is used.
        num_layers: Number of layers of the model.
        model_type: Model type to mark the layers with.

    Raises:
        ValueError: If a layer holds attention keys and values or states of another model type.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    layers: list[RecurrentCacheLayer] = []
    for index in range(num_layers):
        if index == len(cache.layers):
            cache.layers.append(RecurrentCacheLayer())
        layer = cache.layers[index]
        if not isinstance(layer, RecurrentCacheLayer):
            if cache.get_seq_length(index):
                raise ValueError(
                    f"cache: layer {index} is a filled {type(layer).__name__}, so this cache belongs to another model"
                )
            cache.layers[index] = layer = RecurrentCacheLayer()
        if layer.seen and layer.model_type != model_type:
            raise ValueError(
                f"cache: layer {index} holds states of {layer.model_type}, this model is {model_type}, "
                "so this cache belongs to another model"
            )
        layer.model_type = model_type
        layers.append(layer)
    if any(layer.get_seq_length() for layer in cache.layers[num_layers:]):
        raise ValueError(f"cache: more than {num_layers} layers are filled, so this cache belongs to another model")
    return layers


def select_memory(cache: Cache, rows: Tensor) -> None:
    """Keep the memory of the sentences `rows` `[N]` only; states, of which each sentence may have several, stay.

    Args:
        cache: A cache that a model of hfseq has filled.
        rows: Indices of the sentences.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    for layer in cache.layers:
        if isinstance(layer, RecurrentCacheLayer) and layer.memory is not None:
            layer.memory = tuple(part.index_select(0, rows.to(part.device)) for part in layer.memory)


def check_states(states: tuple[Tensor, ...], shapes: list[torch.Size], layer: int) -> None:
    """Raise a `ValueError` unless cached states have the shapes that layer `layer` needs."""
    found = [state.shape for state in states]
    if found != shapes:
        raise ValueError(
            f"cache: layer {layer} holds states of shapes {[tuple(s) for s in found]}, this model and batch "
            f"need {[tuple(s) for s in shapes]}; the cache belongs to another model or batch"
        )

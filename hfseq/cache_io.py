"""Saving and loading the recurrent state of a language model."""

import os

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import DynamicCache
from transformers.cache_utils import Cache, EncoderDecoderCache

from hfseq.errors import InputError
from hfseq.models.cache import RecurrentCacheLayer


def save_state(cache: Cache, path: str | os.PathLike) -> None:
    """Write the cache of an hfseq language model to a safetensors file.

    Args:
        cache: A cache that the model returned.
        path: Path of the file.

    Raises:
        InputError: If the cache is not of an hfseq language model, is empty, or is of an encoder-decoder.
    """
    if isinstance(cache, EncoderDecoderCache):
        raise InputError("the state of an encoder-decoder belongs to its source; keep that")
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, RecurrentCacheLayer) or layer.states is None or layer.memory is not None:
            raise InputError(f"cache: layer {index} holds no state of an hfseq language model")
        metadata[str(index)] = f"{layer.seen} {layer.model_type}"
        # A slice would be written with the whole tensor it belongs to.
        tensors |= {f"{index}.{part}": state.detach().contiguous() for part, state in enumerate(layer.states)}
    if not tensors:
        raise InputError("cache: no token has been seen, so there is no state")
    save_file(tensors, os.fspath(path), metadata)


def load_state(path: str | os.PathLike, device: torch.device | str = "cpu") -> DynamicCache:
    """Read a state that `save_state` wrote, to be passed to the model as `cache`.

    Args:
        path: Path of the file.
        device: Device of the model.

    Raises:
        InputError: If the file cannot be read, or was not written by `save_state`.
    """
    cache = DynamicCache()
    try:
        with safe_open(os.fspath(path), framework="pt", device=str(device)) as file:
            metadata, names = file.metadata() or {}, set(file.keys())
            for index in range(len(metadata)):
                seen, model_type = metadata[str(index)].split()
                parts = sum(name.startswith(f"{index}.") for name in names)
                layer = RecurrentCacheLayer()
                layer.model_type = model_type
                layer.update(tuple(file.get_tensor(f"{index}.{part}") for part in range(parts)), int(seen))
                cache.layers.append(layer)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"{os.fspath(path)}: no state that save_state wrote ({error})") from error
    if not any(layer.states for layer in cache.layers):  # type: ignore[union-attr]
        raise InputError(f"{os.fspath(path)}: no state that save_state wrote")
    return cache

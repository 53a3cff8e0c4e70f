"""The state that a model carries from one call to the next, kept in a file."""

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
        cache: As a model returned it.
        path: The file.

    Raises:
        InputError: It is another model's cache, or one without a token seen, or that of an encoder-decoder.
    """
    if isinstance(cache, EncoderDecoderCache):
        raise InputError("the state of an encoder-decoder belongs to its source; keep that")
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, RecurrentCacheLayer) or layer.states is None or layer.memory is not None:
            raise InputError(f"cache: layer {index} holds no state of an hfseq language model")
        metadata[str(index)] = f"{layer.seen} {layer.model_type}"
        # Rows of a larger tensor would be written as the whole.
        tensors |= {f"{index}.{part}": state.detach().contiguous() for part, state in enumerate(layer.states)}
    if not tensors:
        raise InputError("cache: no token has been seen, so there is no state")
    save_file(tensors, os.fspath(path), metadata)


def load_state(path: str | os.PathLike, device: torch.device | str = "cpu") -> DynamicCache:
    """Read the state that `save_state` wrote, to be passed on as `cache`.

    Args:
        path: The file.
        device: Where the state goes: the model's.

    Raises:
        InputError: The file cannot be read, or is not of `save_state`.
    """
    cache, states = DynamicCache(), []
    try:
        with safe_open(os.fspath(path), framework="pt", device=str(device)) as file:
            metadata, names = file.metadata() or {}, set(file.keys())
            for index in range(len(metadata)):
                seen, model_type = metadata[str(index)].split()
                parts = sum(name.startswith(f"{index}.") for name in names)
                layer = RecurrentCacheLayer()
                layer.model_type = model_type
                states.append(tuple(file.get_tensor(f"{index}.{part}") for part in range(parts)))
                layer.update(states[-1], int(seen))
                cache.layers.append(layer)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"{os.fspath(path)}: no state that save_state wrote ({error})") from error
    if not any(state for state in states):
        raise InputError(f"{os.fspath(path)}: no state that save_state wrote")
    return cache

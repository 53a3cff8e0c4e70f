"""Faster imports: of packages when an attribute of theirs is first read, and of modules without garbage collection.

    from hfseq.lazy import datasets

Modules that name such a package in annotations postpone their evaluation (`from __future__ import annotations`).
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["datasets", "pa", "pc", "pd", "pq"]


@contextmanager
def without_collections() -> Iterator[None]:
    """Pause garbage collection: what modules define stays, and looking through it takes a sixth of their import."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _LazyModule(ModuleType):
    """Stand-in for a module; pickled, it is the module itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)

    def __dir__(self) -> list[str]:
        return dir(import_module(self.__name__))

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        return import_module, (self.__name__,)


if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
else:
    datasets = _LazyModule("datasets")
    pd = _LazyModule("pandas")
    pa, pc, pq = map(_LazyModule, ("pyarrow", "pyarrow.compute", "pyarrow.parquet"))

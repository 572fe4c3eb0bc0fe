"""One generic registry for methods, formats, metrics, corpora and model families.

A plugin is a module in a package; putting the file there is all it takes. The package's modules are
imported in sorted order on first look-up. Plugin modules import torch inside their functions, so that
names and options can be listed on a login node without it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from sparsehpc.core.errors import SparseHPCError, UserError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of plugin.

    Parameters
    ----------
    kind
        Word used in error messages, for example ``"method"``.
    package
        Dotted name of the package whose modules are the plugins.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Register the decorated object under ``name``; a second, different object is an error."""

        def add(item: T) -> T:
            if name in self._items and self._items[name] is not item:
                raise SparseHPCError(f"{self.kind} {name!r} is registered twice: {self._items[name]!r} and {item!r}")
            self._items[name] = item
            return item

        return add

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
            if info.name.startswith("_"):
                continue
            module = f"{self.package}.{info.name}"
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise SparseHPCError(
                    f"the {self.kind} module {module} cannot be imported: {error}. "
                    f"Install what it needs, or remove the file."
                ) from error
        self._loaded = True

    def get(self, name: str) -> T:
        """Return the plugin called ``name``; `UserError` with near names otherwise."""
        self._load()
        if name not in self._items:
            raise UserError(unknown(self.kind, name, self._items))
        return self._items[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._items)

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._items

    def __iter__(self) -> Iterator[tuple[str, T]]:
        self._load()
        return iter(sorted(self._items.items()))

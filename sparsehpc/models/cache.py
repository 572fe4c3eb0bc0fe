"""What transformers calls the key-value cache: ``past_key_values`` until 5.23, ``cache`` since."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def cache_argument(model: nn.Module, cache: Any) -> dict[str, Any]:
    """Keyword argument that hands a key-value cache to ``model``, under the name this release gives it.

    >>> import torch
    >>> class Old(torch.nn.Module):
    ...     def forward(self, ids, past_key_values=None): ...
    >>> class New(torch.nn.Module):
    ...     def forward(self, ids, cache=None): ...
    >>> cache_argument(Old(), 1), cache_argument(New(), 1), cache_argument(New(), None)
    ({'past_key_values': 1}, {'cache': 1}, {})
    """
    if cache is None:
        return {}
    known = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in known else "past_key_values": cache}

"""The four recurrences of RWKV, and those of GLA and DeltaNet, as differentiable torch functions.

Each takes the state before the first token and gives the state after the last one, so that a sequence can be
cut anywhere. Each has several implementations that compute the same; `chosen` says which one a call uses.
"""

from __future__ import annotations

import torch

from rookery.errors import ConfigError
from rookery.ops import delta_rule as _delta_rule
from rookery.ops import gla as _gla
from rookery.ops import wkv4 as _wkv4
from rookery.ops import wkv5 as _wkv5
from rookery.ops import wkv6 as _wkv6
from rookery.ops import wkv7 as _wkv7
from rookery.ops.dispatch import choose

_TABLES = {
    "wkv4": _wkv4.IMPLEMENTATIONS,
    "wkv5": _wkv5.IMPLEMENTATIONS,
    "wkv6": _wkv6.IMPLEMENTATIONS,
    "wkv7": _wkv7.IMPLEMENTATIONS,
    "gla": _gla.IMPLEMENTATIONS,
    "delta_rule": _delta_rule.IMPLEMENTATIONS,
}

# The functions take the place of the submodules of the same names, whose parts are imported by full path.
wkv4 = _wkv4.wkv4
wkv5 = _wkv5.wkv5
wkv6 = _wkv6.wkv6
wkv7 = _wkv7.wkv7
gla = _gla.gla
delta_rule = _delta_rule.delta_rule

__all__ = ["chosen", "delta_rule", "gla", "implementations", "wkv4", "wkv5", "wkv6", "wkv7"]


def implementations(name: str) -> tuple[str, ...]:
    """The names of a recurrence's implementations, the preferred ones first; without what writes into states.

    Raises:
        ConfigError: there is no such recurrence.
    """
    if name not in _TABLES:
        raise ConfigError(f"there is no recurrence {name!r}; there are {', '.join(_TABLES)}")
    return tuple(row.name for row in _TABLES[name] if not row.in_place)


def chosen(
    name: str,
    *,
    tokens: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    implementation: str | None = None,
) -> str:
    """The name of the implementation that a call would use.

    Args:
        name: "wkv4", "wkv5", "wkv6", "wkv7", "gla" or "delta_rule".
        tokens: length T of the rows.
        device: where the inputs are.
        dtype: of the inputs; all but float64 are computed in float32.
        implementation: what the call would force, or None.

    Raises:
        ConfigError: there is no such recurrence, or what is forced cannot compute such a call.
    """
    implementations(name)
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    device_type = torch.device(device).type
    row = choose(_TABLES[name], device=device_type, dtype=computed, tokens=tokens, forced=implementation)
    return row.name

"""Numbers as people read them: the filters of the templates. Losses in nats per token; None gives the sign for "not
known".

A result is plain text, which a template escapes, or Markup where it needs an element.
"""

import math
from typing import Any, TypeGuard

from markupsafe import Markup, escape

from parity.frontier.entry import AXES
from parity.tables import counted

UNKNOWN = Markup('<span class="none" title="not known">–</span>')
UNITS = {"seconds": "s", "steps": "steps", "tokens": "tokens", "flops": "FLOPs"}
SMALL_SHARE = 0.095  # below it a percentage has a decimal
LARGE_COUNT = 1e8  # from here on numbers are written with a power of ten


def is_finite(value: float | None) -> TypeGuard[float]:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def axis_name(axis: str) -> str:
    """A cost axis in a sentence."""
    return "FLOPs" if axis == "flops" else axis


def minus(text: str) -> str:
    """A number's text with a minus sign in place of a hyphen."""
    return text.replace("-", "−")


def decimal(value: float | None, digits: int) -> str:
    """A number with so many decimals."""
    return minus(f"{value:.{digits}f}") if is_finite(value) else UNKNOWN


def loss(value: float | None) -> str:
    """A loss with four decimals."""
    return decimal(value, 4)


def negative(value: float | None) -> float | None:
    """The change that a gain is."""
    return None if value is None else -value


def signed(value: float | None, form: str = ".4f", unit: str = "") -> str:
    """A difference with its sign and unit."""
    return minus(f"{value:+{form}}{unit}") if is_finite(value) else UNKNOWN


def plus_minus(mean: dict[str, Any]) -> str:
    """Half of a mean's interval, or nothing where there is none."""
    low, high = mean["low"], mean["high"]
    return Markup(f" <small>± {(high - low) / 2:.4f}</small>") if is_finite(low) and is_finite(high) else ""


def interval(change: dict[str, Any], form: str = "+.4f") -> str:
    """The interval of a change in brackets, or nothing."""
    low, high = change["low"], change["high"]
    return minus(f"[{low:{form}}, {high:{form}}]") if is_finite(low) and is_finite(high) else ""


def cost(value: float | None, axis: str, unit: bool = True) -> str:
    """A cost on an axis: seconds with a decimal, counts with separators, large ones as a power of ten."""
    if not is_finite(value):
        return UNKNOWN
    suffix = f" {UNITS[axis]}" if unit else ""
    if axis == "flops" or value >= LARGE_COUNT:
        mantissa, exponent = f"{value:.2e}".split("e")
        return Markup(minus(f"{mantissa}·10<sup>{int(exponent)}</sup>{suffix}"))
    return f"{value:,.{1 if axis == 'seconds' else 0}f}{suffix}"


def costs(values: dict[str, Any], known_only: bool = False) -> Markup:
    """The costs on all axes, or on those alone that are known."""
    axes = [axis for axis in AXES if not known_only or is_finite(values.get(axis))]
    return Markup(", ").join(cost(values.get(axis), axis) for axis in axes)


def probability(value: float | None, prefix: str = "p ") -> str:
    """A p-value with two digits."""
    if not is_finite(value):
        return UNKNOWN
    return f"{prefix}< 0.0001" if value < 1e-4 else f"{prefix}{value:.2g}"


def saved(gain: float | None) -> str:
    """A gain, as the logarithm of a cost over a lower one, as the percentage of the cost that it saves."""
    return minus(f"{-100 * math.expm1(-gain) + 0.0:.1f}%") if is_finite(gain) else UNKNOWN


def percentage(value: float | None) -> str:
    """A share as a percentage."""
    return f"{value:.{0 if value >= SMALL_SHARE or not value else 1}%}" if is_finite(value) else UNKNOWN


def json_value(value: object) -> str:
    """A JSON value of any kind."""
    if value is None or (isinstance(value, float) and not is_finite(value)):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return minus(f"{value:.6g}")
    if isinstance(value, (list, tuple)):
        return Markup(", ").join(json_value(item) for item in value) or UNKNOWN
    if isinstance(value, dict):
        return Markup(", ").join(escape(key) + ": " + json_value(item) for key, item in value.items()) or UNKNOWN
    return str(value)


FILTERS = {
    function.__name__: function
    for function in (
        axis_name,
        cost,
        costs,
        counted,
        decimal,
        interval,
        json_value,
        loss,
        minus,
        negative,
        percentage,
        plus_minus,
        probability,
        saved,
        signed,
    )
}

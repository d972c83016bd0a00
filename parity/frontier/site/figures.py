"""Numbers as people read them. Losses in nats per token; None gives the sign for what is not known."""

import math

from parity.frontier.site.markup import UNKNOWN, text

AXES = ("seconds", "steps", "tokens", "flops")
UNITS = {"seconds": "s", "steps": "steps", "tokens": "tokens", "flops": "FLOPs"}
AXIS_NAMES = {"seconds": "seconds", "steps": "steps", "tokens": "tokens", "flops": "FLOPs"}
FEW = 0.095  # shares below it have a decimal
MANY = 1e8  # from here on numbers are written with a power of ten


def known(value: float | None) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things: 1 entry, 2 entries."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def minus(said: str) -> str:
    """A number's text with a minus sign in place of a hyphen."""
    return said.replace("-", "−")


def loss(value: float | None) -> str:
    """A loss with four decimals."""
    return f"{value:.4f}" if known(value) else UNKNOWN


def change(value: float | None) -> str:
    """A difference of losses with its sign."""
    return minus(f"{value:+.4f}") if known(value) else UNKNOWN


def spread(low: float | None, high: float | None) -> str:
    """Half of an interval as ± HTML, or nothing where there is none."""
    return f" <small>± {(high - low) / 2:.4f}</small>" if known(low) and known(high) else ""


def between(low: float | None, high: float | None, form: str = "+.4f") -> str:
    """An interval in brackets, or nothing."""
    return minus(f"[{low:{form}}, {high:{form}}]") if known(low) and known(high) else ""


def cost(value: float | None, axis: str, unit: bool = True) -> str:
    """A cost on an axis: seconds with a decimal, counts with separators, large ones as a power of ten."""
    if not known(value):
        return UNKNOWN
    if axis == "flops" or value >= MANY:
        mantissa, exponent = f"{value:.2e}".split("e")
        said = f"{mantissa}·10<sup>{int(exponent)}</sup>"
    else:
        said = f"{value:,.1f}" if axis == "seconds" else f"{value:,.0f}"
    return minus(f"{said} {UNITS[axis]}" if unit else said)


def probability(value: float | None) -> str:
    """A p-value with two digits."""
    if not known(value):
        return UNKNOWN
    return "p &lt; 0.0001" if value < 1e-4 else f"p {value:.2g}"


def saved(gain: float | None) -> str:
    """A gain, as the logarithm of a cost over a lower one, as the percentage of the cost that it saves."""
    return minus(f"{-100 * math.expm1(-gain) + 0.0:.1f}%") if known(gain) else UNKNOWN


def part(value: float | None) -> str:
    """A share as a percentage."""
    return f"{value:.{0 if value >= FEW or not value else 1}%}" if known(value) else UNKNOWN


def anything(value: object) -> str:
    """A JSON value of unknown kind, escaped."""
    if value is None or (isinstance(value, float) and not known(value)):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return minus(f"{value:.6g}")
    if isinstance(value, (list, tuple)):
        return ", ".join(anything(one) for one in value) or UNKNOWN
    if isinstance(value, dict):
        return ", ".join(f"{text(key)}: {anything(one)}" for key, one in value.items()) or UNKNOWN
    return text(value)

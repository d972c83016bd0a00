"""Schedules: a number at a step, as a fraction of its peak or in its own unit. Steps count from 0."""

import math


def warmup_cosine(step: int, steps: int, warmup: int, final: float) -> float:
    """(step + 1) / warmup while step < warmup, then a cosine from 1 to `final` at the last step (nanoGPT's)."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def stable_then_decay(step: float, steps: float, cooldown: float, final: float = 0.0) -> float:
    """1, then over the last fraction `cooldown` of the steps a line from 1 to `final` (the public speedrun's)."""
    down = min(1.0, (1 - step / steps) / cooldown)
    return down + (1 - down) * final if final else down


def linear_warmup(step: int, warmup: int, start: float, end: float) -> float:
    """A line from `start` to `end` over `warmup` steps, then `end`: Muon's momentum in records 11 and 21."""
    done = min(1.0, step / warmup) if warmup else 1.0
    return (1 - done) * start + done * end


def yarn(frequency: float, before: int, after: int) -> float:
    """A rotary frequency, in radians a position, adapted from one window to a wider one (record 31, by YaRN, Peng et
    al., arXiv 2309.00071): kept where it turns 32 times or more within `before` positions, scaled by before / after
    where it turns once or less, and in a line between."""
    turns = before * frequency / (2 * math.pi)
    kept = min(1.0, max(0.0, (turns - 1) / 31))
    return frequency * (before / after + kept * (1 - before / after))


def window_schedule(step: int, steps: int, final_tokens: int, block: int) -> int:
    """A window in blocks: final_tokens x step / steps, rounded up to whole blocks, at least one (records 13, 20)."""
    return max(1, -(-final_tokens * step // (block * steps)))

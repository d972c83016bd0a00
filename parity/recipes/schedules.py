"""Schedules: what a number is at a step, as a fraction of its peak or in its own unit. Steps count from 0."""

import math


def warmup_cosine(step: int, steps: int, warmup: int, final: float) -> float:
    """(step + 1) / warmup while step < warmup, then a cosine from 1 to `final` at the last step (nanoGPT's)."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def cooldown(step: int, steps: int, part: float, final: float = 0.0) -> float:
    """1, and over the last `part` of the steps a line from 1 to `final` (the public speedrun's)."""
    down = min(1.0, (1 - step / steps) / part)
    return down + (1 - down) * final if final else down


def warmed(step: int, over: int, start: float, end: float) -> float:
    """A line from `start` to `end` over so many steps, then `end`: Muon's momentum in records 11 and 21."""
    done = min(1.0, step / over) if over else 1.0
    return (1 - done) * start + done * end


def grown(step: int, steps: int, end: int, block: int) -> int:
    """A window in blocks: the next whole block at or above `end` tokens x step / steps, at least one (records 13 and 20)."""
    return max(1, -(-end * step // (block * steps)))

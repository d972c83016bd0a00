"""The lines that public NanoGPT speedruns printed: steps, val losses and times in two formats, and the devices.

The formats are `step:S/N val_loss:L train_time:Tms step_avg:Ams` (the time also in seconds; fields in any order, with
others between or behind them; without val_loss it is a training step) and llm.c's `s:S tel:L` (validation) and `s:S
trl:L` (training), which has neither a total nor times.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LINE_LIMIT = 8192  # characters of a line that are read; a log line has about 100

_PREFIX = re.compile(r"(?:INFO|DEBUG|rank|default|[0-9\s\[\]().:,/TZ+|-])*")
_STEP = re.compile(r"step:[ \t]*([0-9]{1,12})[ \t]*/[ \t]*([0-9]{1,12})(?![^\s,;|])")
_LLMC = re.compile(r"\s*s:[ \t]*([0-9]{1,12})\s+(tel|trl):[ \t]*([^\s,;|]+)")
_FIELD = re.compile(r"(?<![\w.])([A-Za-z_]\w*):[ \t]*([^\s,;|]+)")
_NUMBER = re.compile(r"[0-9.eE+-]{1,40}|[+-]?(?:nan|inf)", re.IGNORECASE)
_PROGRAM = re.compile(r"Running (?:python|pytorch) [0-9]", re.IGNORECASE)
_TABLE_ROW = re.compile(r"\|\s+([0-9]{1,3})\s+(\S.{0,60}?)\s+(?:On|Off|N/A)\s*\|\s*[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:")
_LISTED = re.compile(r"GPU ([0-9]{1,3}): (\S.{0,60}?) \(UUID: ")


class StepLine(NamedTuple):
    """A line that states a step. `total`: the stated number of steps; `problem`: the field that cannot be read."""

    number: int
    text: str
    step: int
    total: int | None
    loss: float | None = None
    time_ms: float | None = None
    avg_ms: float | None = None
    problem: str | None = None


class DeviceLine(NamedTuple):
    """A line that names a device, with the number of all devices or this one's number."""

    name: str
    devices: int | None = None
    number: int | None = None


def text_lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Number, text and whether a line end follows, of each line; of overlong lines the beginning."""
    with path.open("rb") as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    # Latin-1 reads any bytes, one character each, and everything that is looked for is ASCII.
    with path.open(encoding="utf-16" if wide else "latin-1", errors="replace", newline=None) as file:
        number, inside = 0, False
        while text := file.readline(LINE_LIMIT):
            ended = text.endswith("\n")
            if not inside:
                number += 1
                first = text.removeprefix("\xef\xbb\xbf") if number == 1 else text
                yield number, first, ended or len(text) == LINE_LIMIT
            inside = not ended


def step_line(number: int, text: str) -> StepLine | None:
    """The step that a line states; None for all other lines."""
    at = text.find("step:", 0, 100)
    if at < 0:
        return _llmc_line(number, text)
    match = _STEP.match(text, at)
    if not match or not _PREFIX.fullmatch(text, 0, at):
        return None
    if not (pairs := _FIELD.findall(text, match.end())):
        return None
    fields: dict[str, str] = {}
    problem = None
    for name, value in pairs:
        if name in ("val_loss", "train_time", "step_avg") and fields.setdefault(name, value) != value:
            problem = f"{name} is stated twice"
    loss, time_ms = _number(fields.get("val_loss", "")), _milliseconds(fields.get("train_time", ""))
    if loss is None and "val_loss" in fields:
        problem = f"val_loss:{fields['val_loss']} is not a number"
    elif time_ms is None and "train_time" in fields:
        problem = f"train_time:{fields['train_time']} is not a time in ms or s"
    avg_ms = _milliseconds(fields.get("step_avg", ""))
    return StepLine(number, text[at:].rstrip(), int(match[1]), int(match[2]), loss, time_ms, avg_ms, problem)


def starts_program(text: str) -> bool:
    """Whether a program prints this when it starts."""
    return text.startswith("Running") and _PROGRAM.match(text) is not None


def device_line(text: str) -> DeviceLine | None:
    """The device that a line names; None for all other lines."""
    if text.startswith("Running"):
        before, _, count = text.partition(" with world_size")
        name = before.rpartition("device_name=" if "device_name=" in before else " on ")[2].strip()
        if "{" not in text and name and count[1:].isdigit():
            return DeviceLine(name, devices=int(count[1:7]))
    elif match := _TABLE_ROW.match(text) or _LISTED.match(text):
        return DeviceLine(match[2], number=int(match[1]))
    return None


def is_torn(line: StepLine, evaluation: StepLine | None) -> bool:
    """Whether a last line without a line end was cut off in a field that is read, judged by the evaluation before."""
    if line.problem or evaluation is None or line.loss is None:
        return line.problem is not None
    word, model = (text.split()[-1].partition(":") for text in (line.text, evaluation.text))
    fewer = len(word[2].partition(".")[2]) < len(model[2].partition(".")[2])
    return (fewer and word[0] == model[0] and word[0] in ("val_loss", "tel")) or (
        line.time_ms is None and evaluation.time_ms is not None
    )


def _llmc_line(number: int, text: str) -> StepLine | None:
    match = _LLMC.match(text)
    if not match:
        return None
    loss = _number(match[3])
    problem = f"{match[2]}:{match[3]} is not a number" if loss is None else None
    return StepLine(number, text.strip(), int(match[1]), None, loss if match[2] == "tel" else None, problem=problem)


def _number(text: str) -> float | None:
    try:
        return float(text) if _NUMBER.fullmatch(text) else None
    except ValueError:
        return None


def _milliseconds(text: str) -> float | None:
    """A time with its unit, ms or s, in milliseconds; None for any other text."""
    digits, scale = (text[:-2], 1) if text.endswith("ms") else (text[:-1], 1000) if text.endswith("s") else ("", 1)
    value = _number(digits)
    return None if value is None or not 0 <= value < math.inf else round(value * scale, 6)

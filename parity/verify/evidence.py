"""Reads what a run left behind, trusting nothing: sizes bounded, nothing unpickled or run, every problem a sentence.

The log's reader is the verifier's own, apart from the harness' that wrote it. Steps are kept as columns, so that a log
of 100,000 of them fits.
"""

import contextlib
import hashlib
import io
import json
import math
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.formats.strict_json import fault
from parity.program import BACKENDS
from parity.recipes import RECIPES, Recipe, from_fields
from parity.track import TRACKS, Track

LINE_BYTES = 4 << 20
JSON_BYTES = 16 << 20
SOURCE_BYTES = 64 << 20
SOURCE_FILES = 2000
STEPS, LAYERS = 10_000_000, 4096
LOG_BYTES, WEIGHTS_BYTES = 8 << 30, 64 << 30
FIRST = "0" * 64
COLUMNS = ("loss", "grad_norm", "step_s", "train_s", "clock_s", "time_s")


@dataclass
class Log:
    """A log as columns and events. `problems` by rule: "log.form" and "log.chain", the first few of each.

    `steps`: n and step int64, the columns float64, `batches` their digests. `events` are all others, in order.
    """

    n: np.ndarray
    step: np.ndarray
    tokens: np.ndarray
    columns: dict[str, np.ndarray]
    batches: list[str]
    events: list[dict[str, Any]]
    lines: int
    problems: dict[str, list[str]]
    sha256: str
    last: str = ""

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind, in order."""
        return [event for event in self.events if event["event"] == kind]

    def states(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.of("state") if event["name"] == name]

    @cached_property
    def stream(self) -> list[tuple[int, dict[str, Any] | int]]:
        """All lines in order: (n, event) or, for a step, (n, its row in the columns)."""
        rows = [(int(n), i) for i, n in enumerate(self.n)]
        return sorted(rows + [(event["n"], event) for event in self.events], key=lambda pair: pair[0])


@dataclass
class Evidence:
    """A run directory as it was found."""

    path: Path
    run: dict[str, Any]
    track: Track
    log: Log
    recipe: Recipe | None
    """The recipe, where its name is one of ours; of an own program, the one that it was made from."""
    notes: list[str] = field(default_factory=list)

    @property
    def backend(self) -> str:
        return self.run["backend"]

    @property
    def own(self) -> dict[str, Any] | None:
        """What run.json says of the file of an own program."""
        return self.run.get("program")

    @property
    def optimizer(self) -> str | None:
        return self.run.get("options", {}).get("optimizer")

    @property
    def strange(self) -> bool:
        """Whether code runs in it that is not this project's."""
        return bool(self.own or self.optimizer)

    @property
    def steps(self) -> int:
        return sum(segment["steps"] for segment in self.run["plan"])

    @property
    def eval_context(self) -> int:
        """Tokens of a row in evaluation."""
        return int(self.run.get("val_row", self.context))

    @property
    def context(self) -> int:
        return int(self.run["plan"][-1]["seq_len"])

    @property
    def precision(self) -> str:
        return self.run["precision"]

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}"

    @cached_property
    def source(self) -> dict[str, bytes]:
        """Names and contents of source.zip; InputError for one that is damaged, too large, or reaches outside."""
        return read_source(self.path / "source.zip")

    @cached_property
    def final_weights(self) -> dict[str, np.ndarray]:
        return read_weights(self.path / "weights.safetensors")


def open_run(path: Path) -> Evidence:
    """Reads run.json and the log of a run directory.

    Raises InputError where it is no run directory, of an unknown version or track, or a run that still goes on.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(
            f"{path}: expected a run directory, found {'a file' if path.exists() else 'nothing'} there: name a "
            "directory that a training command made"
        )
    run = _read_json(path / "run.json", "run.v1", f"{path} is not a run directory: expected run.json in it")
    if run["backend"] not in BACKENDS:
        raise InputError(
            f"{path / 'run.json'}: expected backend {' or '.join(BACKENDS)}, found {run['backend'][:40]!r}: the file was changed"
        )
    if not isinstance(run.get("options", {}), dict):
        raise InputError(
            f"{path / 'run.json'}: expected options by name, found {type(run['options']).__name__}: the file was changed"
        )
    if run["track"] not in TRACKS:
        raise InputError(
            f"{path / 'run.json'}: expected one of the tracks {', '.join(TRACKS)}, found {run['track'][:60]!r}: "
            "verify it with the version that made it"
        )
    base = run["program"]["base"] if run.get("program") else run["recipe"]
    try:
        recipe = from_fields(base) if base["name"] in RECIPES else None
    except (InputError, TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"{path / 'run.json'}: expected a recipe of this version, found one it cannot make ({str(error)[:200]!r}): "
            "verify it with the version that made it"
        ) from None
    if sum(segment["steps"] for segment in run["plan"]) > STEPS or (recipe and _too_large(recipe)):
        raise InputError(
            f"{path / 'run.json'}: expected a plan of at most {STEPS:,} steps and a model of at most {LAYERS:,} layers, found "
            "more: the file was changed"
        )
    if holder := _live(path):
        raise InputError(
            f"{path}: expected a run that has ended, found one that still goes on (pid {holder}): wait for its "
            "end, or stop it"
        )
    return Evidence(path, run, TRACKS[run["track"]], read_log(path / "log.jsonl"), recipe)


def _too_large(recipe: Recipe) -> bool:
    numbers = [value for value in vars(recipe).values() if isinstance(value, int)]
    return recipe.layers > LAYERS or recipe.steps > STEPS or max(numbers) > 1 << 32


def _live(path: Path) -> str | None:
    """Whoever holds the run's lock; None where nobody does. Writes nothing."""
    import fcntl

    try:
        with open(path / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
    except BlockingIOError:
        with contextlib.suppress(OSError, ValueError):
            return str(int((path / ".lock.pid").read_text()[:20]))
        return "unknown"
    except OSError:
        return None
    return None


def _read_json(path: Path, schema: str, missing: str) -> Any:
    """A JSON file under its schema; InputError in one sentence for anything else."""
    try:
        value = _decode(contents(path, JSON_BYTES).decode())
    except FileNotFoundError:
        raise InputError(f"{missing}, found none: name a directory that a training command made") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected one JSON object, found something else ({fault(error)[:80]}): the file was damaged"
        ) from None
    version = value.get("schema") if isinstance(value, dict) else None
    if version != schema:
        raise InputError(
            f"{path}: expected schema {schema}, found {str(version)[:40]!r}: verify it with the version that wrote it"
        )
    if problem := schema_problem(schema, value):
        raise InputError(f"{path}: {problem}: the file was changed")
    return value


def contents(path: Path, limit: int) -> bytes:
    """A plain file's bytes: no link, pipe or device. Raises InputError for those and for more than `limit`; OSError."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise InputError(f"{path}: expected a plain file, found a link or another kind: it is not what a run writes")
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{path}: expected at most {limit:,} bytes, found more: it is not what a run writes")
    return data


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _bounded(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"{text[:20]} is too large a number")
    return int(text)


_decode = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded).decode


def read_log(path: Path) -> Log:
    """Reads a log line by line: form, chain, numbers. Raises InputError where there is none that can be read at all."""
    reader = _Reader()
    total = hashlib.sha256()
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InputError(
                f"{path}: expected a plain file, found a link or another kind: it is not what a run writes"
            )
        with open(path, "rb") as file:
            while raw := file.readline(LINE_BYTES):
                total.update(raw)
                if not reader.line(raw) or file.tell() > LOG_BYTES:
                    break
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): a run directory has its log") from None
    return reader.done(total.hexdigest())


class _Reader:
    """Takes the lines of a log; `line` returns False where reading on makes no sense."""

    def __init__(self) -> None:
        self.problems: dict[str, list[str]] = {"log.form": [], "log.chain": []}
        self.number, self.prev = 0, FIRST
        self.events: list[dict[str, Any]] = []
        self.n: list[int] = []
        self.step: list[int] = []
        self.tokens: list[int] = []
        self.batches: list[str] = []
        self.columns: dict[str, list[float]] = {name: [] for name in COLUMNS}

    def line(self, raw: bytes) -> bool:
        self.number += 1
        if not raw.endswith(b"\n"):
            return self.wrong("log.form", "no newline at its end: cut off, or longer than a line can be", stop=True)
        try:
            event = _decode(raw.decode())
        except (ValueError, RecursionError):
            return self.wrong("log.form", f"expected a JSON object, found {raw[:40]!r}", stop=True)
        if (
            self.number == 1
            and isinstance(event, dict)
            and event.get("event") == "start"
            and event.get("schema") != "log.v1"
        ):
            raise InputError(
                f"the run log: expected schema log.v1, found {str(event.get('schema'))[:40]!r}: verify it with the "
                "version that wrote it"
            )
        if problem := _event_problem(event):
            self.wrong("log.form", problem)
            self.prev = hashlib.sha256(raw[:-1]).hexdigest()
            return isinstance(event, dict)
        if event["n"] != self.number:
            self.wrong("log.chain", f"expected line number {self.number}, found {event['n']}")
        if event["prev"] != self.prev:
            self.wrong(
                "log.chain",
                f"expected prev {self.prev[:12]}, the digest of the line before, found {event['prev'][:12]}",
            )
        self.prev = hashlib.sha256(raw[:-1]).hexdigest()
        event["n"] = self.number
        if event["event"] == "step":
            self.keep(event)
        else:
            self.events.append(event)
        return True

    def keep(self, event: dict[str, Any]) -> None:
        for name in COLUMNS:
            self.columns[name].append(float(event[name]))
        self.n.append(self.number)
        self.step.append(event["step"])
        self.tokens.append(event["tokens"])
        self.batches.append(event["batch"])

    def wrong(self, rule: str, what: str, stop: bool = False) -> bool:
        if len(self.problems[rule]) < 5:
            self.problems[rule].append(f"line {self.number}: {what}"[:300])
        return not stop

    def done(self, sha256: str) -> Log:
        if not self.number:
            self.problems["log.form"].append("no line at all")
        wide = {
            name: np.array([min(value, 2**62) for value in values], np.int64)
            for name, values in (("n", self.n), ("step", self.step), ("tokens", self.tokens))
        }
        columns = {name: np.array(values) for name, values in self.columns.items()}
        return Log(
            wide["n"],
            wide["step"],
            wide["tokens"],
            columns,
            self.batches,
            self.events,
            self.number,
            {rule: found for rule, found in self.problems.items() if found},
            sha256,
            self.prev,
        )


def schema_problem(name: str, value: Any) -> str:
    """What is wrong with a value under `parity/schemas/<name>.json`; "" when nothing is."""
    return _schema(name)(value)


def _event_problem(event: Any) -> str:
    """What is wrong with a log's event: by its kind, since all kinds in one schema take four times as long."""
    kind = event.get("event") if isinstance(event, dict) else None
    return _schema("log.v1", kind if isinstance(kind, str) and kind in _kinds() else None)(event)


@cache
def _kinds() -> dict[str, dict[str, Any]]:
    """The schema of every kind of event."""
    schema = _text("log.v1")
    base = {key: schema[key] for key in ("type", "required", "properties", "definitions")}
    return {part["if"]["properties"]["event"]["const"]: base | {"allOf": [part["then"]]} for part in schema["allOf"]}


def _text(name: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parents[1] / "formats" / "schemas" / f"{name}.json").read_text(encoding="utf-8"))


@cache
def _schema(name: str, kind: str | None = None) -> Callable[[Any], str]:
    import fastjsonschema

    check = fastjsonschema.compile(_kinds()[kind] if kind else _text(name))

    def problem(value: Any) -> str:
        try:
            check(value)
        except fastjsonschema.JsonSchemaValueException as error:
            found = repr(error.value)
            return f"{error.message.removeprefix('data.').replace('data ', 'it ')[:200]}, found {found[:60]}"
        except (RecursionError, OverflowError, ValueError) as error:
            return f"it cannot be checked ({type(error).__name__})"
        return ""

    return problem


def read_source(path: Path) -> dict[str, bytes]:
    """Names and contents of a source archive, nothing of it written anywhere.

    Raises InputError for links, names that reach outside, more files or bytes than a source has, and damaged archives.
    """
    mend = "the run must be made again"
    try:
        data = contents(path, SOURCE_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): {mend}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return dict(_members(archive, path))
    except (
        zipfile.BadZipFile,
        ValueError,
        EOFError,
        OSError,
        RuntimeError,
        NotImplementedError,
        KeyError,
        IndexError,
    ) as error:
        raise InputError(
            f"{path}: expected a whole zip archive, found a damaged one ({str(error)[:80]}): {mend}"
        ) from None
    except Exception as error:  # zlib.error and what else a decompressor raises
        if type(error).__name__ != "error" and not isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: expected a whole zip archive, found a damaged one ({str(error)[:80]}): {mend}"
        ) from None


def _members(archive: zipfile.ZipFile, path: Path) -> Iterator[tuple[str, bytes]]:
    left, seen = SOURCE_BYTES, set()
    for info in archive.infolist():
        name = info.filename
        parts = name.split("/")
        if (
            not name
            or name.startswith("/")
            or "\\" in name
            or ":" in name
            or "\0" in name
            or ".." in parts
            or "" in parts
            or name in seen
            or len(seen) >= SOURCE_FILES
            or info.external_attr >> 28 not in (0, 8)
        ):
            raise InputError(
                f"{path}: expected plain source files, found {name[:80]!r}: a path outside, a link, a second file "
                "of that name, or too many: the run must be made again"
            )
        seen.add(name)
        with archive.open(info) as file:
            content = file.read(left + 1)
        left -= len(content)
        if left < 0:
            raise InputError(
                f"{path}: expected at most {SOURCE_BYTES:,} bytes of source, found more in {name[:80]!r}: the run "
                "must be made again"
            )
        yield name, content


def source_digest(members: dict[str, bytes]) -> str:
    """sha256 over names and contents, each after its length, in the order of names."""
    total = hashlib.sha256()
    for name, content in sorted(members.items()):
        for part in (name.encode(), content):
            total.update(len(part).to_bytes(8, "little"))
            total.update(part)
    return total.hexdigest()


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file of float32 or float64 arrays, its header read by hand: sizes, types and places are checked first.

    Raises InputError where it is missing, damaged or of another form.
    """
    mend = "finish the run, or make it again"
    try:
        size = path.lstat().st_size
        if not stat.S_ISREG(path.lstat().st_mode) or size > WEIGHTS_BYTES:
            raise InputError(
                f"{path}: expected a plain file of at most {WEIGHTS_BYTES:,} bytes, found {size:,} or another kind: {mend}"
            )
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, 16 << 20):
                raise InputError(
                    f"{path}: expected a safetensors file, found a header of {length:,} bytes in {size:,}: {mend}"
                )
            head = json.loads(file.read(length), parse_constant=_no_constant)
    except OSError as error:
        raise InputError(
            f"{path}: expected the final weights, found none that can be read ({error.strerror}): {mend}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected a safetensors file, found another header ({str(error)[:60]}): {mend}"
        ) from None
    body = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.zeros(0, np.uint8)
    try:
        return dict(_arrays(head, body))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path}: expected arrays with dtype, shape and place, found otherwise ({str(error)[:80]}): {mend}"
        ) from None


def _arrays(head: Any, body: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    types = {"F32": "<f4", "F64": "<f8"}
    end = 0
    entries = [(name, entry) for name, entry in head.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda pair: pair[1]["data_offsets"][0]):
        dtype, shape, (start, stop) = np.dtype(types[entry["dtype"]]), entry["shape"], entry["data_offsets"]
        if any(type(n) is not int or n < 0 for n in (*shape, start, stop)) or start != end or stop > len(body):
            raise ValueError(f"{name[:40]} is not where it should be")
        count = 1
        for n in shape:
            count *= n
        if count * dtype.itemsize != stop - start:
            raise ValueError(f"{name[:40]} has another size than its shape")
        yield name, np.array(body[start:stop]).view(dtype).reshape(shape)
        end = stop
    if end != len(body):
        raise ValueError("there are bytes that belong to no array")

"""What a program may know before it has read a token: `knowledge.size`, `.constants`, `.packages` and `.fresh`.

`knowledge.relabelled` is in `relabelled.py`.
"""

import ast
import base64
import csv
import hashlib
import io
import math
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from parity.data.slices import prepare_command
from parity.verify.context import Context, NotJudged
from parity.verify.evidence import Evidence
from parity.verify.rules import Finding, fails, holds, rule
from parity.verify.rules.data import end_of, planned
from parity.verify.rules.lookahead import gain_over_witness
from parity.verify.rules.probe import Probe, Rows, rows_at_once, val_rows
from parity.verify.rules.scores import score_text

# Bytes of zlib's best compression. Our own recipes as programs come to 2,000 to 4,300, of which literals are at most
# 700. The records of the public speedrun, kernels and all, are 12 times as long.
SOURCE_BYTES, LITERAL_BYTES = 48 << 10, 8 << 10
PACKED = ("jaxrun/", "torchref/", "parity/")  # of the installed version, which code.harness holds them to
# Besides what this project depends on: common helpers that carry no data.
HELPERS = frozenset({"einops", "jaxtyping", "beartype", "chex", "tqdm", "triton", "numba"})
UNNAMED = "?"
# Of what a program carries beside its state, compressed: what is no table by position or by step. A frozen matrix of
# 128 x 128 random numbers has 60 KB.
CONSTANT_BYTES, TABLE_WIDTH, SHOWN = 64 << 10, 256, 20

FRESH_TOKENS, LEAST_ROWS = 65_536, 32
FRESH_LOOKED_AHEAD = 256  # positions asked for without what follows
FRESH_VAL_ROUNDS = 4  # fresh tokens per val token at most, on tracks with little val text
COUNTED_TOKENS = 1_000_000  # of the train text, for the model of two words that measures how hard a text is
VAL_TOKENS = 1 << 20  # of the val text at most that it scores
MARGIN, ERRORS, DESIGN = 0.02, 5.0, 2.0  # nats; standard errors; rows of one document are alike, as if half as many


@rule("knowledge.size", "log", "the run's own code is no larger than a program, and carries no table of numbers")
def size(context: Context) -> Finding:
    evidence = context.evidence
    files = own_files(evidence)
    if not files:
        return holds("no code but that of the installed version")
    whole, literal = 0, 0
    for name, content in files.items():
        whole += len(zlib.compress(content, 9))
        try:
            literal += len(zlib.compress("\n".join(literals(ast.parse(content))).encode(), 9))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return fails(f"{name} is no Python source ({type(error).__name__})")
    figures = {"source_bytes": whole, "literal_bytes": literal, "files": sorted(files)}
    context.facts["own_code"] = figures
    for what, found, most in (("source", whole, SOURCE_BYTES), ("literals", literal, LITERAL_BYTES)):
        if found > most:
            return fails(
                f"{', '.join(files)}: expected at most {most:,} bytes of {what}, compressed, found {found:,}: "
                "knowledge in the code is not learned",
                **figures,
            )
    return holds(f"{', '.join(files)}: {whole:,} bytes compressed, {literal:,} of them literals", **figures)


def own_files(evidence: Evidence) -> dict[str, bytes]:
    """The packed files that are not of this project."""
    return {name: content for name, content in evidence.source.items() if not name.startswith(PACKED)}


def literals(tree: ast.AST) -> Iterator[str]:
    """The constants of a source, docstrings too: strings, bytes and numbers of more than one digit."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and not isinstance(node.value, bool) and node.value is not None:
            text = repr(node.value)
            if len(text) > 1:
                yield text


@rule("knowledge.constants", "probe", "the run's own code carries no numbers beside its state but tables by position")
def constants(context: Context) -> Finding:
    evidence = context.evidence
    if not evidence.has_user_code:
        return holds("no code but that of the installed version")
    p, length = context.once(Probe), evidence.context
    rows = val_rows(context, context.random("traced rows"), rows_at_once(length), length)
    found = [
        (str(each["name"]), tuple(each["shape"]), str(each["type"]), int(each["bytes"]))
        for each in p.program.call("constants", state=p.state, **rows._asdict())
    ]
    lengths = {length, evidence.eval_context, evidence.steps, evidence.steps + 1}
    shown = [f"{name}: {kind} {list(shape)}, {size:,} bytes" for name, shape, kind, size in found[:SHOWN]]
    others = [constant for constant in found if not _is_table(constant[1], lengths, length)]
    tables, total = (sum(size for *_, size in some) for some in (set(found) - set(others), others))
    figures = {"constant_bytes": total, "table_bytes": tables, "constants": shown}
    context.facts["own_code"] = context.facts.get("own_code", {}) | figures
    if total > CONSTANT_BYTES:
        name, shape, *_ = others[0]
        return fails(
            f"expected at most {CONSTANT_BYTES:,} bytes of constants, compressed, found {total:,}, the largest {name} "
            f"of shape {list(shape)}: make it a weight, or compute it in the step",
            **figures,
        )
    return holds(
        f"{len(others)} constants of {total:,} bytes compressed; tables by position or step of {tables:,}", **figures
    )


def _is_table(shape: tuple[int, ...], lengths: set[int], context: int) -> bool:
    """Whether an array is a table by position or by step (rotary embeddings, masks, schedules), and narrow.

    Tables may be made for longer rows than there are; a square one, such as a mask, only for those that there are.
    """
    longest = max(shape, default=0)
    longer = longest > 0 and longest % context == 0 and shape.count(longest) == 1
    return (longest in lengths or longer) and math.prod(size for size in shape if size != longest) <= TABLE_WIDTH


@rule(
    "knowledge.packages",
    "probe",
    "the run's own code imports what this project depends on, from packages that are as they were published",
)
def packages(context: Context) -> Finding:
    modules: set[str] = set()
    for name, content in own_files(context.evidence).items():
        if name.endswith(".py"):
            try:
                modules |= imported(ast.parse(content))
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                return fails(f"{name} is no Python source ({type(error).__name__})")
    if UNNAMED in modules:
        return fails("the code imports a module by a name that it puts together: expected an import statement")
    tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
    tops -= {name.strip("/") for name in PACKED} | {Path(name).stem for name in own_files(context.evidence)}
    providers, known = _providers(), dependencies()
    for top in sorted(tops):
        owners = {canonical(owner) for owner in providers.get(top, ())}
        if not owners and (canonical(top) in known or top in HELPERS):
            raise NotJudged(f"the code imports {top}, which is not installed here: pip install {top}")
        if not owners & known and top not in HELPERS:
            where = f"of the package {', '.join(sorted(owners))}" if owners else "of no installed package"
            return fails(
                f"the code imports {top}, {where}: expected what this project depends on: copy what the program needs "
                "of it into its file",
                module=top,
            )
    checked, owners = 0, sorted({canonical(owner) for top in tops for owner in providers.get(top, ())})
    for owner in owners:
        distribution = metadata.distribution(owner)
        if distribution.read_text("RECORD") is None:  # as where a system's package manager installed it
            raise NotJudged(f"package {owner} has no RECORD of its files: install it with pip")
        count, problem = recorded(distribution, tops)
        checked += count
        if problem:
            return fails(f"package {owner}: {problem}: reinstall it, and make the run again", package=owner)
    others = other_versions(context.evidence, owners)
    context.facts |= {"other_versions": others} if others else {}
    return holds(
        f"{', '.join(sorted(tops)) or 'nothing'}: {checked:,} files as published here"
        + "".join(f"; {other}" for other in others),
        modules=sorted(modules),
        other_versions=others,
    )


def other_versions(evidence: Evidence, owners: list[str]) -> list[str]:
    """How the installed versions of imported packages, and of those that every run has, differ from run.json's.

    That is no fault: what the version there computes otherwise than the one here, recomputation and replay find.
    """
    there = {canonical(name): str(version)[:40] for name, version in evidence.run["versions"].items()}
    differing = []
    for name in sorted({*owners, *there} & dependencies() | {*owners}):
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if here != (version := there.get(name, "of an unknown version")):
            differing.append(f"{name} {here} here, {version} there")
    return differing


def imported(tree: ast.AST) -> set[str]:
    """The modules that a source imports, by any statement, and those that it names to import_module or __import__."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                argument = node.args[0] if node.args else None
                names.add(str(argument.value) if isinstance(argument, ast.Constant) else UNNAMED)
    return names


def canonical(name: str) -> str:
    """A distribution's name as PyPI normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def dependencies() -> frozenset[str]:
    """The distributions that this project needs, with what those need, by normalised name; extras included."""
    found: set[str] = set()
    waiting = ["jaxrun", "jax", "flax", "optax", "torch", "numpy"]
    while waiting:
        name = canonical(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        extras = ('extra == "cuda"', 'extra == "cuda13"')
        waiting += [
            match.group()
            for requirement in requires
            if ("extra ==" not in requirement or any(extra in requirement for extra in extras))
            and (match := re.match(r"[A-Za-z0-9._-]+", requirement))
        ]
    return frozenset(found)


def recorded(distribution: metadata.Distribution, tops: set[str]) -> tuple[int, str]:
    """How many files of a distribution's imported packages were compared with its RECORD, and the first difference."""
    text = distribution.read_text("RECORD") or ""
    root = Path(str(distribution.locate_file("")))
    entries = {row[0]: row[1:] for row in csv.reader(io.StringIO(text)) if len(row) > 2}
    count = 0
    for top in sorted(tops & {name.split("/")[0].removesuffix(".py") for name in entries}):
        folder = root / top
        files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else [root / f"{top}.py"]
        for path in files:
            name = path.relative_to(root).as_posix()
            if "/__pycache__/" in name:
                continue
            if name not in entries and not _of_another(name, distribution):
                return count, f"{name} is not in its RECORD"
            recorded_digest, recorded_size = entries.get(name, ["", ""])[:2]
            algorithm, _, digest = recorded_digest.partition("=")
            if recorded_size and int(recorded_size) != path.stat().st_size:
                return count, f"{name} has another size than was published"
            # of what is no source, such as libraries of gigabytes, the size is enough
            sourced = path.suffix == ".py" and algorithm == "sha256"
            if sourced and _urlsafe(hashlib.sha256(path.read_bytes()).digest()) != digest:
                return count, f"{name} is not as published"
            count += 1
    return count, ""


def _of_another(name: str, distribution: metadata.Distribution) -> bool:
    """Whether a file in a package's folder is of another distribution that shares the folder, as jax's plugins do."""
    owners = set(_providers().get(name.split("/")[0], ())) - {distribution.metadata["Name"]}
    return any(name in (metadata.distribution(owner).read_text("RECORD") or "") for owner in sorted(owners))


@cache
def _providers() -> Mapping[str, list[str]]:
    """The distributions that have a module or package of a name."""
    return metadata.packages_distributions()


def _urlsafe(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@rule(
    "knowledge.fresh", "recompute", "text drawn now, which the run has not read, is no harder for it than the val text"
)
def fresh(context: Context) -> Finding:
    evidence, length = context.evidence, context.evidence.eval_context
    if "val_loss" not in context.facts:
        raise NotJudged("the val loss was not computed: judge recompute.val too")
    p, (rows, source) = context.once(Probe), fresh_rows(context)
    scored = score_text(p, "fresh", rows)
    # A look ahead here would hide what is known of val.
    gain = gain_over_witness(p, scored, FRESH_LOOKED_AHEAD).result()
    if problem := scored.problem or gain.problem:
        return fails(f"{source}: losses {problem}" if gain.problem else problem, **gain.facts())
    losses = scored.losses.mean(axis=1)
    shard, start, _ = context.slice.part("val")
    tokens = min(evidence.track.val_tokens, VAL_TOKENS) // length * length
    hardness = Pairs(read_tokens(context), p.vocab)
    val = hardness.losses(np.asarray(shard[start : start + tokens + 1], np.int64)).reshape(-1, length).mean(axis=1)
    text = hardness.losses(np.concatenate([rows.inputs[:, :1], rows.targets], axis=1).astype(np.int64)).mean(axis=1)
    gap, allowed = excess(losses, text, val, context.facts["val_loss"])
    loss = float(losses.mean())
    context.facts["fresh_loss"] = loss
    figures = {"fresh": loss, "gap": gap, "allowed": allowed, "tokens": int(rows.inputs.size)}
    if not gap <= allowed:
        return fails(
            f"{source}: expected a loss up to {allowed:.3f} above the val loss once their difficulty is taken out, "
            f"found {loss:.4f}, {gap:+.4f} above: it knows the val text",
            **figures,
        )
    return holds(
        f"{source}: {loss:.4f}, {gap:+.4f} from the val loss with their difficulty taken out; allowed {allowed:.3f}",
        **figures,
    )


def excess(losses: np.ndarray, text: np.ndarray, val: np.ndarray, val_loss: float) -> tuple[float, float]:
    """How much harder fresh text is for a program than the val text, and how much is allowed, in nats.

    `losses`, `text`: the program's and the two-word model's mean loss of each fresh row; `val`: that model's of each
    val row. How hard a text is, is taken out by the slope of the program's losses over that model's. What is left of a
    row's loss gives the standard error.
    """
    spread = float(text.var())
    slope = float(np.clip(((losses - losses.mean()) * (text - text.mean())).mean() / spread, 0, 1.5)) if spread else 0.0
    gap = float(losses.mean()) - val_loss - slope * float(text.mean() - val.mean())
    left = losses - slope * text
    error = float(left.std(ddof=1)) * math.sqrt(1 / len(losses) + 1 / len(val))
    return gap, MARGIN + ERRORS * DESIGN * error


class Pairs:
    """A model of the next token from the last one: counts of pairs in a text, mixed with counts of single tokens."""

    def __init__(self, tokens: np.ndarray, vocab: int):
        self.vocab = vocab
        self.single = np.bincount(tokens, minlength=vocab).astype(np.float64)
        self.keys, self.counts = np.unique(tokens[:-1] * vocab + tokens[1:], return_counts=True)

    def losses(self, tokens: np.ndarray) -> np.ndarray:
        """Nats of every token but the first of (..., T + 1) tokens: (..., T)."""
        before, after = tokens[..., :-1], tokens[..., 1:]
        key = before * self.vocab + after
        where = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        pair = np.where(self.keys[where] == key, self.counts[where], 0)
        alone = (self.single[after] + 1) / (self.single.sum() + self.vocab)
        weight = self.single[before]
        return -np.log((pair + 4 * alone) / (weight + 4))


def read_tokens(context: Context) -> np.ndarray:
    """The train text that the run read, (n,), from its beginning; at most COUNTED_TOKENS."""
    parts, left = [], COUNTED_TOKENS
    last = {span.shard: end_of(span) for span in planned(context)}
    for shard, end in sorted(last.items()):
        parts.append(np.asarray(context.slice.train[shard][: min(end, left)], np.int64))
        left -= len(parts[-1])
    if not parts or not sum(map(len, parts)):
        raise NotJudged("the run has read no text")
    return np.concatenate(parts)


class Fresh(NamedTuple):
    rows: Rows
    source: str


def fresh_rows(context: Context) -> Fresh:
    """Rows of text that the run has not read, drawn now, as long as in evaluation. Raises NotJudged for too few."""
    length, random, slice_ = context.evidence.eval_context, context.random("fresh text"), context.slice
    count = max(LEAST_ROWS, min(FRESH_TOKENS, FRESH_VAL_ROUNDS * context.evidence.track.val_tokens) // length)
    if slice_.name == "synthetic":
        from parity.data.synthetic import sample_with_key

        tokens = sample_with_key(int(random.integers(1 << 32, 1 << 62)), count * length + 1)
        windows = [tokens[i * length : (i + 1) * length + 1] for i in range(count)]
        return Fresh(_rows(windows), f"{count * length:,} tokens made with a new key")
    shard, end = max(((span.shard, end_of(span)) for span in planned(context)), default=(0, 0))
    unread = [
        (slice_.train[i], end if i == shard else 0, len(slice_.train[i])) for i in range(shard, len(slice_.train))
    ]
    for name in ("val", "confirm"):
        part, start, available = slice_.part(name)
        unread.append((part, start + context.evidence.track.val_tokens, start + available))
    places = [(text, at) for text, start, stop in unread for at in range(start, stop - length, length)]
    if len(places) < LEAST_ROWS:
        raise NotJudged(
            f"slice {slice_.name} has {len(places)} rows that the run did not read, {LEAST_ROWS} are needed: get more "
            f"with {prepare_command(slice_.name, context.data_dir)} --train-tokens N"
        )
    picks = random.choice(len(places), min(count, len(places)), replace=False)
    windows = [places[i][0][places[i][1] : places[i][1] + length + 1] for i in sorted(picks.tolist())]
    return Fresh(_rows(windows), f"{len(windows) * length:,} unread tokens of {slice_.name}")


def _rows(windows: list[np.ndarray]) -> Rows:
    tokens = np.stack([np.asarray(window, np.int32) for window in windows])
    return Rows(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]))

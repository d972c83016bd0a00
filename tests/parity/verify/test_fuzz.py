"""Mutated files of a run: every reader answers with a sentence or with what the file says, never otherwise.

The default tests try 500 mutations of each, the slow ones 20,000; seeds are the numbers of the mutations.
"""

import json
import random
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parity import weights as canonical
from parity.data.manifest import Manifest
from parity.data.shards import open_shard
from parity.errors import InputError
from parity.formats import source_zip
from parity.verify.evidence import open_run
from parity.verify.log import read_log
from parity.verify.weights_file import read_weights

FEW, MANY = 500, 20_000
MEMORY_BYTES = 1 << 30  # that reading any mutation of these small files may take beside what the tests hold
WORDS = [
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b"\x00",
    b"\xff\xfe",
    b'"',
    b"{",
    b"[" * 2000,
    b"9" * 5000,
    b"..",
    b"/",
    b"\n",
    b"true",
    b"0.5",
    b'{"a":' * 400,
    b"../../x",
    b"\xed\xa0\x80",
]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four random changes: bits, cuts, insertions, doubled and swapped lines, words where they do not belong."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 8, 64, 1024)))
        kind = rng.randrange(9)
        if kind == 0 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:at] + rng.choice(WORDS) + data[at:]
        elif kind == 3:
            data = data[:at] + rng.choice(WORDS) + data[end:]
        elif kind == 4:
            data = data[:end] + data[at:end] + data[end:]
        elif kind == 5:
            data = data[:at]
        elif kind == 6:
            data = data[:at] + rng.randbytes(end - at) + data[end:]
        else:
            lines = data.split(b"\n")
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[i], lines[j] = (lines[j], lines[i]) if kind == 7 else (lines[i], lines[i])
            data = b"\n".join(lines)
    return data


class Reader:
    """How a file is read; `meaning` gives what the reader took from it, or None where it refused."""

    def __init__(self, path: Path, meaning: Callable[[Path], object]):
        self.path, self.meaning = path, meaning
        self.honest_bytes, self.honest = path.read_bytes(), meaning(path)

    def tried(self, count: int) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        held = 0
        for seed in range(count):
            changed = mutate(self.honest_bytes, random.Random(seed))
            if changed == self.honest_bytes:
                continue
            self.path.write_bytes(changed)
            try:
                found = self.meaning(self.path)
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 1200, (seed, str(error))
                continue
            # what is read without complaint says the same, or differs in what is held against a digest
            assert found is not None and (found == self.honest or found != self.honest), seed
            held += found == self.honest
        assert held < count / 2
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY_BYTES


@pytest.fixture
def readers(copied, synthetic, tmp_path) -> dict[str, Reader]:
    run = copied("torchref").path
    small = tmp_path / "shard.bin"
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 3000
    small.write_bytes(header.tobytes() + np.arange(3000, dtype="<u2").tobytes())
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes((synthetic.directory / "manifest.json").read_bytes())
    light = tmp_path / "light.safetensors"
    canonical.save(light, {"a.weight": np.arange(24, dtype=np.float32).reshape(4, 6), "b.bias": np.ones(5, np.float32)})
    packed = tmp_path / "source.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("parity/a.py", "jaxrun/b.py", "program.py"):
            archive.writestr(name, f"# {name}\n" * 40)
    first = tmp_path / "log.jsonl"
    first.write_bytes(b"".join((run / "log.jsonl").read_bytes().splitlines(keepends=True)[:25]))
    (run / "log.jsonl").write_bytes(first.read_bytes()[:2000])  # read along with every run.json
    return {
        "shard": Reader(small, lambda path: bytes(np.asarray(open_shard(path)))),
        "manifest": Reader(manifest, lambda path: Manifest.load(path).digest),
        "run.json": Reader(run / "run.json", lambda path: json.dumps(open_run(path.parent).run, sort_keys=True)),
        "log.jsonl": Reader(first, _log),
        "safetensors": Reader(light, lambda path: canonical.digest(read_weights(path))),
        "source.zip": Reader(packed, lambda path: source_zip.digest(source_zip.read(path))),
    }


def _log(path: Path) -> object:
    log = read_log(path)
    if log.problems:
        raise InputError("; ".join(problem for found in log.problems.values() for problem in found)[:600])
    assert log.sha256
    return json.dumps(log.events), log.step.tolist(), {name: x.tolist() for name, x in log.columns.items()}, log.batches


NAMES = ("shard", "manifest", "run.json", "log.jsonl", "safetensors", "source.zip")


@pytest.mark.parametrize("name", NAMES)
def test_mutations_are_refused_in_a_sentence_or_read(readers, name):
    readers[name].tried(FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_mutations_are_refused_in_a_sentence_or_read(readers, name):
    readers[name].tried(MANY)


@pytest.mark.parametrize("count", [60, pytest.param(4000, marks=pytest.mark.slow)])
def test_a_mutated_run_json_never_holds(copied, count):
    from parity.verify.run import Settings, verify_run

    path = copied("torchref").path
    honest = (path / "run.json").read_bytes()
    for seed in range(count):
        changed = mutate(honest, random.Random(seed))
        (path / "run.json").write_bytes(changed)
        try:
            verdict = verify_run(path, Settings("log"))
        except InputError:
            continue
        assert changed == honest or verdict.status != "holds"


@pytest.mark.parametrize("count", [60, pytest.param(4000, marks=pytest.mark.slow)])
def test_a_mutated_log_never_holds(copied, count):
    from parity.verify.run import Settings, verify_run

    path = copied("torchref").path
    honest = (path / "log.jsonl").read_bytes()
    for seed in range(count):
        changed = mutate(honest, random.Random(seed))
        (path / "log.jsonl").write_bytes(changed)
        try:
            verdict = verify_run(path, Settings("log"))
        except InputError:
            continue
        last = (
            changed.splitlines()[:-1] == honest.splitlines()[:-1]
        )  # nothing follows the last line, and carries its digest
        assert changed == honest or verdict.status != "holds" or last

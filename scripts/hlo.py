"""Reads the text of a program that XLA compiled: products, collectives, library kernels, buffers, memory traffic.

Everything is of one device and counted as often as it runs: bodies of loops times their known number of rounds.
"""

import collections
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8, "c64": 8, "token": 0, "s4": 0.5, "u4": 0.5}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
MOVES_NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all", "iota",
                 "optimization-barrier", "partition-id", "replica-id")
ATTENTION_PRODUCTS = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}  # the backward kernel makes the scores again


class Array(NamedTuple):
    """An array's type and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        size = 1 if self.dtype.startswith(("f8", "s8", "u8")) else BYTES.get(self.dtype, 4)
        return int(size * math.prod(self.shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass
class Instruction:
    """One instruction: what it makes, from what, and the rest of its line."""

    name: str
    op: str
    makes: list[Array]
    operands: list[str]
    rest: str
    is_root: bool

    def called(self) -> list[str]:
        """Names of the computations inside it."""
        return re.findall(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)", self.rest) + [
            name for names in re.findall(r"branch_computations=\{([^}]*)\}", self.rest) for name in re.findall(r"%([\w.\-]+)", names)]

    @property
    def target(self) -> str:
        found = re.search(r'custom_call_target="([^"]+)"', self.rest)
        return found[1] if found else ""


@dataclass
class Computation:
    """Instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    def arrays(self, name: str) -> list[Array]:
        return self.instructions[name].makes if name in self.instructions else []

    @cached_property
    def parameters(self) -> list[Instruction]:
        found = [one for one in self.instructions.values() if one.op == "parameter"]
        return sorted(found, key=lambda one: int(one.operands[0]))

    @cached_property
    def root(self) -> Instruction:
        return next(one for one in self.instructions.values() if one.is_root)

    def users(self, name: str) -> list[Instruction]:
        return [one for one in self.instructions.values() if name in one.operands]


class Product(NamedTuple):
    """A matrix product: types of its factors and its result, FLOPs of one run, and how often it runs."""

    factors: str
    result: str
    flops: int
    runs: int


class Collective(NamedTuple):
    """An exchange between devices: bytes of what the largest side holds, devices in a group, whether it runs beside other work."""

    kind: str
    bytes: int
    group: int
    is_async: bool
    runs: int


class Compiled:
    """A compiled program, from `compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        current = None
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if head:
                current = self.computations[head[2]] = Computation(head[2])
                self.entry = head[2] if head[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif current is not None and (one := _instruction(line)):
                current.instructions[one.name] = one

    def walk(self, name: str | None = None, runs: int = 1, fused: bool = False) -> Iterator[tuple[Computation, Instruction, int, bool]]:
        """Every instruction with its computation, how often it runs, and whether it is inside a fusion."""
        computation = self.computations[name or self.entry]
        for one in computation.instructions.values():
            yield computation, one, runs, fused
            rounds = re.search(r'known_trip_count":\{"n":"(\d+)"', one.rest)
            inside = one.op in ("fusion", "reduce", "scatter", "sort", "select-and-scatter", "map", "reduce-window") or one.op in COLLECTIVES
            for called in one.called():
                if called in self.computations:
                    yield from self.walk(called, runs * (int(rounds[1]) if rounds else 1), fused or inside)

    @cached_property
    def products(self) -> list[Product]:
        """Matrix products, plain or by a library, in fusions or not."""
        found = []
        for computation, one, runs, _ in self.walk():
            if one.op == "dot" or one.target.startswith("__cublas"):
                left, right = (computation.arrays(name)[0] for name in one.operands[:2])
                dims = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([\d,"]*)', one.rest)
                contracted = math.prod(left.shape[int(i)] for i in re.findall(r"\d+", dims[1])) if dims else 1
                found.append(Product(f"{left.dtype} x {right.dtype}", one.makes[0].dtype, 2 * math.prod(one.makes[0].shape) * contracted, runs))
        return found

    @cached_property
    def attention(self) -> list[Product]:
        """Fused attention kernels, as if nothing were masked."""
        found = []
        for computation, one, runs, _ in self.walk():
            if one.target in ATTENTION_PRODUCTS:
                query = computation.arrays(one.operands[0])[0]
                sizes = re.search(r'intermediate_tensor_shape": ?\{"element_type": ?"\w+", ?"dimensions": ?\[([\d", ]+)\]', one.rest)
                B, H, T, S = map(int, re.findall(r"\d+", sizes[1]))
                channels = math.prod(query.shape) // (B * H * T)
                found.append(Product(f"{query.dtype} x {query.dtype}", query.dtype, ATTENTION_PRODUCTS[one.target] * 2 * B * H * T * S * channels, runs))
        return found

    @cached_property
    def collectives(self) -> list[Collective]:
        """Exchanges between devices."""
        found = []
        for computation, one, runs, _ in self.walk():
            kind = one.op.removesuffix("-start")
            if kind in COLLECTIVES:
                given = sum(array.bytes for name in one.operands for array in computation.arrays(name))
                groups = re.search(r"replica_groups=\{\{([\d,]+)\}", one.rest) or re.search(r"replica_groups=\[\d+,(\d+)\]", one.rest)
                size = (len(groups[1].split(",")) if "{{" in groups[0] else int(groups[1])) if groups else 1
                found.append(Collective(kind, given * (size if kind == "all-gather" else 1), size, one.op.endswith("-start"), runs))
        return found

    @cached_property
    def kernels(self) -> dict[str, int]:
        """Library kernels by name, and how often each runs."""
        found: collections.Counter[str] = collections.Counter()
        for _, one, runs, _ in self.walk():
            if one.target:
                found[one.target] += runs
        return dict(found)

    @cached_property
    def buffers(self) -> dict[str, int]:
        """Arrays that are written to memory, by type and shape, with their bytes; the largest first."""
        found = {str(array): array.bytes for _, one, _, fused in self.walk() if not fused and one.op not in MOVES_NOTHING for array in one.makes}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @cached_property
    def traffic_bytes(self) -> int:
        """Bytes that kernels read and write, each operand once, as if no cache kept anything from one kernel to the next."""
        return sum(runs * sum(self._moved(computation, one)) for computation, one, runs, fused in self.walk() if not fused)

    def traffic_by_place(self, depth: int = 6) -> dict[str, int]:
        """The traffic by the beginning of the names of the operations that it is for."""
        found: collections.Counter[str] = collections.Counter()
        for computation, one, runs, fused in self.walk():
            if not fused and (moved := sum(self._moved(computation, one))):
                name = re.search(r'op_name="([^"]+)"', one.rest)
                found["/".join(name[1].split("/")[:depth]) if name else one.op] += runs * moved
        return dict(found.most_common())

    def _moved(self, computation: Computation, one: Instruction) -> tuple[int, int]:
        """Bytes read and written by one run of an instruction of a computation that is no fusion."""
        if one.op in MOVES_NOTHING or one.op.endswith("-done"):
            return 0, 0
        written = sum(array.bytes for array in one.makes)
        given = [sum(array.bytes for array in computation.arrays(name)) for name in one.operands]
        if one.op.endswith("-start"):
            return sum(given), sum(given)
        if one.op in ("dynamic-slice", "gather"):
            return written, written
        if one.op == "fusion":
            inner = self.computations[one.called()[0]]
            given = [min(size, _read(inner, parameter)) for size, parameter in zip(given, inner.parameters)]
            if inner.root.op == "dynamic-update-slice":
                written = sum(array.bytes for array in inner.arrays(inner.root.operands[1]))
        return sum(given), written


def _read(inner: Computation, parameter: Instruction) -> int:
    """Bytes of a fusion's parameter that it reads: of one that is only sliced, looked up or overwritten in part, that part."""
    size, todo = 0, [parameter]
    while todo:
        one = todo.pop()
        for user in inner.users(one.name):
            if user.op in ("bitcast", "get-tuple-element"):
                todo.append(user)
            elif user.op in ("dynamic-slice", "gather") and user.operands[0] == one.name:
                size += sum(array.bytes for array in user.makes)
            elif not (user.op == "dynamic-update-slice" and user.operands[0] == one.name):
                return sum(array.bytes for array in parameter.makes)
    return size


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    makes, rest = rest[:end], rest[end:].lstrip()
    op, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    inside = rest[:end]
    operands = [inside] if op in ("parameter", "constant") else re.findall(r"%([\w.\-]+)", inside)
    arrays = [Array(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", makes)]
    return Instruction(head[2], op, arrays, operands, rest[end:], bool(head[1]))


def _closing(text: str) -> int:
    """Where the bracket that opens a text closes."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return i
    raise ValueError(f"a bracket that does not close: {text[:80]}")

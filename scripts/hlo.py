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

import numpy as np

BYTES = {
    "pred": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f64": 8,
    "s64": 8,
    "u64": 8,
    "c64": 8,
    "token": 0,
    "s4": 0.5,
    "u4": 0.5,
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
MOVES_NOTHING = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "iota",
    "optimization-barrier",
    "partition-id",
    "replica-id",
)
ATTENTION_PRODUCTS = {
    "__cudnn$fmhaSoftmax": 2,
    "__cudnn$fmhaSoftmaxBackward": 5,
}  # the backward kernel makes the scores again


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
        return re.findall(
            r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)", self.rest
        ) + [
            name
            for names in re.findall(r"branch_computations=\{([^}]*)\}", self.rest)
            for name in re.findall(r"%([\w.\-]+)", names)
        ]

    @property
    def target(self) -> str:
        """The library's kernel that it calls, or the name of a kernel of our own."""
        found = re.search(r'custom_call_target="([^"]+)"', self.rest)
        own = re.search(r'[{ ]name = "(window_attention\w*)"', self.rest) if found else None
        return own[1] if own else found[1] if found else ""


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
    """An exchange between devices: bytes of what the largest side holds, the first group of devices, whether it runs beside other work."""

    kind: str
    bytes: int
    group: tuple[int, ...]
    is_async: bool
    runs: int

    @property
    def sent_bytes(self) -> int:
        """What each device must send at least."""
        share = 1 - 1 / max(1, len(self.group))
        return int(self.bytes * share * {"all-reduce": 2, "collective-permute": 1 / max(share, 0.5)}.get(self.kind, 1))


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

    def walk(
        self, name: str | None = None, runs: int = 1, fused: bool = False
    ) -> Iterator[tuple[Computation, Instruction, int, bool]]:
        """Every instruction with its computation, how often it runs, and whether it is inside a fusion."""
        computation = self.computations[name or self.entry]
        for one in computation.instructions.values():
            yield computation, one, runs, fused
            rounds = re.search(r'known_trip_count":\{"n":"(\d+)"', one.rest)
            inside = (
                one.op in ("fusion", "reduce", "scatter", "sort", "select-and-scatter", "map", "reduce-window")
                or one.op.removesuffix("-start") in COLLECTIVES
            )
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
                found.append(
                    Product(
                        f"{left.dtype} x {right.dtype}",
                        one.makes[0].dtype,
                        2 * math.prod(one.makes[0].shape) * contracted,
                        runs,
                    )
                )
        return found

    @cached_property
    def attention(self) -> list[Product]:
        """Fused attention kernels, as if nothing were masked."""
        found = []
        for computation, one, runs, _ in self.walk():
            if one.target in ATTENTION_PRODUCTS:
                query = computation.arrays(one.operands[0])[0]
                sizes = re.search(
                    r'intermediate_tensor_shape": ?\{"element_type": ?"\w+", ?"dimensions": ?\[([\d", ]+)\]', one.rest
                )
                B, H, T, S = map(int, re.findall(r"\d+", sizes[1]))
                channels = math.prod(query.shape) // (B * H * T)
                found.append(
                    Product(
                        f"{query.dtype} x {query.dtype}",
                        query.dtype,
                        ATTENTION_PRODUCTS[one.target] * 2 * B * H * T * S * channels,
                        runs,
                    )
                )
        return found

    @cached_property
    def collectives(self) -> list[Collective]:
        """Exchanges between devices."""
        found = []
        for computation, one, runs, _ in self.walk():
            kind = one.op.removesuffix("-start")
            if kind in COLLECTIVES:
                given = sum(array.bytes for name in one.operands for array in computation.arrays(name))
                group = _first_group(one.rest)
                found.append(
                    Collective(
                        kind,
                        given * (len(group) if kind == "all-gather" else 1),
                        group,
                        one.op.endswith("-start"),
                        runs,
                    )
                )
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
        found = {
            str(array): array.bytes
            for _, one, _, fused in self.walk()
            if not fused and one.op not in MOVES_NOTHING
            for array in one.makes
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @cached_property
    def traffic_bytes(self) -> dict[str, int]:
        """Bytes that kernels read and write, each operand once, as if no cache kept anything from one kernel to the next: of those that
        compute products, and of the others."""
        found = {"products": 0, "others": 0}
        for computation, one, runs, fused in self.walk():
            if not fused and not one.op.removesuffix("-start").startswith(COLLECTIVES):
                found["products" if self._multiplies(one) else "others"] += runs * sum(self._moved(computation, one))
        return found

    def _multiplies(self, one: Instruction) -> bool:
        inner = [
            inside
            for name in one.called()
            if name in self.computations
            for inside in self.computations[name].instructions.values()
        ]
        return one.op in ("dot", "fusion", "custom-call") and any(
            x.op == "dot" or x.target.startswith(("__cublas", "__cudnn", "window_attention")) for x in (one, *inner)
        )

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


def _first_group(rest: str) -> tuple[int, ...]:
    """The first group of devices of an exchange: written out, as an array of numbers that is turned and cut, or as axes of a mesh."""
    if found := re.search(
        r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}", rest
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        ids = _turned(found[2] or str(math.prod(sizes.values())), found[3]).reshape([*sizes.values()])
        among = re.findall(r"'(\w+)'", found[4])
        return tuple(ids[tuple(slice(None) if name in among else 0 for name in sizes)].ravel().tolist())
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(map(int, found[1].split(",")))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        return tuple(_turned(found[3], found[4]).reshape(int(found[1]), int(found[2]))[0].tolist())
    return ()


def _turned(shape: str, order: str | None) -> np.ndarray:
    """The numbers from 0 as an array of a shape, its axes in an order."""
    sizes = [int(size) for size in shape.split(",")]
    return (
        np.arange(math.prod(sizes))
        .reshape(sizes)
        .transpose([int(axis) for axis in order.split(",")] if order else None)
    )


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
    arrays = [
        Array(dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", makes)
    ]
    return Instruction(head[2], op, arrays, operands, rest[end:], bool(head[1]))


def _closing(text: str) -> int:
    """Where the bracket that opens a text closes."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return i
    raise ValueError(f"a bracket that does not close: {text[:80]}")

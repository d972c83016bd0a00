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

BYTES = {"pred": 1, "token": 0, "s4": 0.5, "u4": 0.5} | dict.fromkeys(("bf16", "f16", "s16", "u16"), 2)
BYTES |= dict.fromkeys(("f64", "s64", "u64", "c64"), 8)
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
CONTROL = {"while", "conditional", "call", "tuple", "get-tuple-element", "after-all", "optimization-barrier"}
MOVES_NOTHING = CONTROL | {"parameter", "constant", "bitcast", "iota", "partition-id", "replica-id"}
INLINE_CALLS = {"fusion", "reduce", "scatter", "sort", "select-and-scatter", "map", "reduce-window"}
# of a fused attention kernel; the backward one computes the scores again
ATTENTION_PRODUCTS = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}


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
    """One instruction: its results and operands, and the rest of its line."""

    name: str
    op: str
    results: list[Array]
    operands: list[str]
    rest: str
    is_root: bool

    def called(self) -> list[str]:
        """Names of the computations inside it."""
        single = re.findall(
            r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)", self.rest
        )
        branches = " ".join(re.findall(r"branch_computations=\{([^}]*)\}", self.rest))
        return single + re.findall(r"%([\w.\-]+)", branches)

    @property
    def target(self) -> str:
        """The library kernel that it calls, or the name of a kernel of our own."""
        library = re.search(r'custom_call_target="([^"]+)"', self.rest)
        own = re.search(r'[{ ]name = "(window_attention\w*)"', self.rest) if library else None
        return own[1] if own else library[1] if library else ""

    @property
    def collective(self) -> str:
        """The kind of exchange between devices that it starts; empty for anything else."""
        kind = self.op.removesuffix("-start")
        return kind if kind in COLLECTIVES else ""


@dataclass
class Computation:
    """Instructions by name, in order."""

    instructions: dict[str, Instruction] = field(default_factory=dict)

    def arrays(self, name: str) -> list[Array]:
        return self.instructions[name].results if name in self.instructions else []

    @cached_property
    def parameters(self) -> list[Instruction]:
        parameters = [x for x in self.instructions.values() if x.op == "parameter"]
        return sorted(parameters, key=lambda x: int(x.operands[0]))

    @cached_property
    def root(self) -> Instruction:
        return next(x for x in self.instructions.values() if x.is_root)

    def users(self, name: str) -> list[Instruction]:
        return [x for x in self.instructions.values() if name in x.operands]


class Product(NamedTuple):
    """A matrix product: types of its factors and its result, FLOPs of one run, and how often it runs."""

    factors: str
    result: str
    flops: int
    runs: int


class Collective(NamedTuple):
    """An exchange between devices: bytes of its largest side, the first group of devices, whether it is async."""

    kind: str
    bytes: int
    group: tuple[int, ...]
    is_async: bool
    runs: int

    @property
    def sent_bytes(self) -> int:
        """What each device must send at least."""
        if self.kind == "collective-permute" and len(self.group) > 1:
            return self.bytes
        others = 1 - 1 / max(1, len(self.group))  # the fraction that is not a device's own
        return int(self.bytes * others * (2 if self.kind == "all-reduce" else 1))


class Compiled:
    """A compiled program, from `compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        current = None
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if head:
                current = self.computations[head[2]] = Computation()
                self.entry = head[2] if head[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif current is not None and (instruction := _instruction(line)):
                current.instructions[instruction.name] = instruction

    def walk(
        self, name: str | None = None, runs: int = 1, fused: bool = False
    ) -> Iterator[tuple[Computation, Instruction, int, bool]]:
        """Every instruction with its computation, how often it runs, and whether it is inside a fusion."""
        computation = self.computations[name or self.entry]
        for instruction in computation.instructions.values():
            yield computation, instruction, runs, fused
            rounds = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.rest)
            inside = fused or instruction.op in INLINE_CALLS or bool(instruction.collective)
            for called in instruction.called():
                if called in self.computations:
                    yield from self.walk(called, runs * (int(rounds[1]) if rounds else 1), inside)

    @cached_property
    def products(self) -> list[Product]:
        """Matrix products, plain or by a library, in fusions or not."""
        products = []
        for computation, instruction, runs, _ in self.walk():
            if instruction.op == "dot" or instruction.target.startswith("__cublas"):
                left, right = (computation.arrays(name)[0] for name in instruction.operands[:2])
                (result, *_) = instruction.results
                dims = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([\d,"]*)', instruction.rest)
                contracted = math.prod(left.shape[int(i)] for i in re.findall(r"\d+", dims[1])) if dims else 1
                flops = 2 * math.prod(result.shape) * contracted
                products.append(Product(f"{left.dtype} x {right.dtype}", result.dtype, flops, runs))
        return products

    @cached_property
    def attention(self) -> list[Product]:
        """Fused attention kernels, as if nothing were masked."""
        products = []
        sizes = re.compile(r'intermediate_tensor_shape": ?\{"element_type": ?"\w+", ?"dimensions": ?\[([\d", ]+)\]')
        for computation, instruction, runs, _ in self.walk():
            count = ATTENTION_PRODUCTS.get(instruction.target, 0)
            if count and (scores := sizes.search(instruction.rest)):
                query = computation.arrays(instruction.operands[0])[0]
                B, H, T, S = map(int, re.findall(r"\d+", scores[1]))
                channels = math.prod(query.shape) // (B * H * T)
                flops = count * 2 * B * H * T * S * channels
                products.append(Product(f"{query.dtype} x {query.dtype}", query.dtype, flops, runs))
        return products

    @cached_property
    def collectives(self) -> list[Collective]:
        """Exchanges between devices."""
        collectives = []
        for computation, instruction, runs, _ in self.walk():
            if kind := instruction.collective:
                group, size = _first_group(instruction.rest), sum(_operand_bytes(computation, instruction))
                size *= len(group) if kind == "all-gather" else 1
                collectives.append(Collective(kind, size, group, instruction.op.endswith("-start"), runs))
        return collectives

    @cached_property
    def kernels(self) -> dict[str, int]:
        """Library kernels by name, and how often each runs."""
        counts: collections.Counter[str] = collections.Counter()
        for _, instruction, runs, _ in self.walk():
            if instruction.target:
                counts[instruction.target] += runs
        return dict(counts)

    @cached_property
    def buffers(self) -> dict[str, int]:
        """Arrays that are written to memory, by type and shape, with their bytes; the largest first."""
        sizes = {
            str(array): array.bytes
            for _, instruction, _, fused in self.walk()
            if not fused and instruction.op not in MOVES_NOTHING
            for array in instruction.results
        }
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))

    @cached_property
    def traffic_bytes(self) -> dict[str, int]:
        """Bytes that kernels read and write, of those that compute products and of the others; each operand once, as if
        no cache kept anything from one kernel to the next."""
        sizes = {"products": 0, "others": 0}
        for computation, instruction, runs, fused in self.walk():
            if not fused and not instruction.op.removesuffix("-start").startswith(COLLECTIVES):
                kind = "products" if self._multiplies(instruction) else "others"
                sizes[kind] += runs * self._moved_bytes(computation, instruction)
        return sizes

    def _multiplies(self, instruction: Instruction) -> bool:
        if instruction.op not in ("dot", "fusion", "custom-call"):
            return False
        called = (self.computations[name] for name in instruction.called() if name in self.computations)
        inner = (x for computation in called for x in computation.instructions.values())
        libraries = ("__cublas", "__cudnn", "window_attention")
        return any(x.op == "dot" or x.target.startswith(libraries) for x in (instruction, *inner))

    def _moved_bytes(self, computation: Computation, instruction: Instruction) -> int:
        """Bytes read and written by one run of an instruction of a computation that is no fusion."""
        if instruction.op in MOVES_NOTHING or instruction.op.endswith("-done"):
            return 0
        written = sum(array.bytes for array in instruction.results)
        read = _operand_bytes(computation, instruction)
        if instruction.op.endswith("-start"):
            return 2 * sum(read)
        if instruction.op in ("dynamic-slice", "gather"):
            return 2 * written
        if instruction.op == "fusion":
            inner = self.computations[instruction.called()[0]]
            read = [min(size, _read_bytes(inner, x)) for size, x in zip(read, inner.parameters, strict=True)]
            if inner.root.op == "dynamic-update-slice":
                written = sum(array.bytes for array in inner.arrays(inner.root.operands[1]))
        return sum(read) + written


def _operand_bytes(computation: Computation, instruction: Instruction) -> list[int]:
    return [sum(array.bytes for array in computation.arrays(name)) for name in instruction.operands]


def _read_bytes(inner: Computation, parameter: Instruction) -> int:
    """Bytes that a fusion reads of a parameter: the slices, if it is only sliced, looked up or partly overwritten."""
    size, todo = 0, [parameter]
    while todo:
        name = todo.pop().name
        for user in inner.users(name):
            if user.op in ("bitcast", "get-tuple-element"):
                todo.append(user)
            elif user.op in ("dynamic-slice", "gather") and user.operands[0] == name:
                size += sum(array.bytes for array in user.results)
            elif not (user.op == "dynamic-update-slice" and user.operands[0] == name):
                return sum(array.bytes for array in parameter.results)
    return size


def _first_group(rest: str) -> tuple[int, ...]:
    """The first group of devices of an exchange: written out, as an array of numbers, or as axes of a mesh."""
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}", rest
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        ids = _transposed(mesh[2] or str(math.prod(sizes.values())), mesh[3]).reshape([*sizes.values()])
        axes = re.findall(r"'(\w+)'", mesh[4])
        return tuple(ids[tuple(slice(None) if name in axes else 0 for name in sizes)].ravel().tolist())
    if explicit := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(map(int, explicit[1].split(",")))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        return tuple(_transposed(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2]))[0].tolist())
    return ()


def _transposed(shape: str, order: str | None) -> np.ndarray:
    """The numbers from 0 as an array of a shape, its axes in an order."""
    sizes = [int(size) for size in shape.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose([int(axis) for axis in order.split(",")] if order else None)


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    results, rest = rest[:end], rest[end:].lstrip()
    op, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    inside = rest[:end]
    operands = [inside] if op in ("parameter", "constant") else re.findall(r"%([\w.\-]+)", inside)
    arrays = [
        Array(dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", results)
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

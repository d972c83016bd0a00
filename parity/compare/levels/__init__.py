"""The levels of a comparison: what each asks of a side, in the order in which one stands on another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from parity import weights as canonical
from parity.compare import bounds
from parity.compare.case import Case
from parity.compare.levels.data import data
from parity.compare.levels.layout import layout
from parity.compare.levels.training import evaluation, restore, trajectory
from parity.compare.levels.update import update
from parity.compare.observation import Seen
from parity.compare.side import Side
from parity.program import with_step

PROBED = 4  # rows of which all log-probabilities are read


@dataclass(frozen=True)
class Level:
    """One level: what it is about, the methods that a program needs for it, and what it sees of a side."""

    name: str
    about: str
    needs: tuple[str, ...]
    observe: Callable[[Side, Case], Iterator[Seen]]
    numeric: bool = True  # rounding plays a part, so that more than one draw says more
    by_default: bool = True


def init(side: Side, case: Case) -> Iterator[Seen]:
    """Canonical initial weights: names, shapes, dtypes, bytes."""
    program = side.program(case.recipe)
    found = program.export(program.init(case.seed))
    table = case.recipe.parameters()
    yield Seen("names", "all weights", " ".join(sorted(found)), expected=" ".join(sorted(table)))
    for name, parameter in table.items():
        if name in found:
            w = side.array(case.recipe, found[name], f"initial weight {name}")
            yield Seen("shapes", name, str(w.shape), expected=str(parameter.shape))
            yield Seen("dtypes", name, w.dtype.name)
            yield Seen("bytes", name, w, axes=("row", "column")[: w.ndim])


def forward(side: Side, case: Case) -> Iterator[Seen]:
    """Activations of every module in the order in which they are computed."""
    recipe, program = case.recipe, side.program(case.recipe)
    state = _in_the_middle(program, case)
    found = program.activations(state, side.put_global_batch(recipe, case.batch))
    for path, value in found.items():
        if "int" in str(getattr(value, "dtype", "")):  # tokens and positions
            continue
        value = side.array(recipe, value, path)
        if path == "logits":
            value = value[..., : recipe.tokenizer_size]
        yield Seen(
            _line(path), path, value, bounds.forward(recipe, _blocks(recipe, path)), axes=AXES.get(value.ndim, ())
        )


def _in_the_middle(program, case: Case):
    """A state with the case's weights; what grows with the steps is half grown."""
    return with_step(program, program.load(case.start), case.recipe.steps // 2)


AXES = {
    1: ("channel",),
    2: ("position", "channel"),
    3: ("row", "position", "channel"),
    4: ("row", "position", "head", "channel"),
}


def _line(path: str) -> str:
    if path == "logits":
        return path
    inside = path.split(":")[0].split(".")
    return inside[2] if len(inside) > 2 and inside[2] in ("attn", "mlp") else "stream"


def _blocks(recipe, path: str) -> int:
    parts = path.split(":")[0].split(".")
    if parts[0] == "blocks" and len(parts) > 1 and parts[1].isdecimal():
        return int(parts[1]) + 1
    return 0 if parts[0] in ("embed", "positions", "norm_in") else recipe.layers


def loss(side: Side, case: Case) -> Iterator[Seen]:
    """Losses of tokens, their reduction, what is left to rows of padding, log-probabilities."""
    recipe, program = case.recipe, side.program(case.recipe)
    state = _in_the_middle(program, case)
    batch = side.put_global_batch(recipe, case.batch)
    shape = case.batch[1].shape
    if not side.lacks(recipe, ("token_losses",)):
        found = side.array(recipe, program.token_losses(state, batch), "token losses", shape)
        yield Seen("token losses", "token_losses", found, bounds.losses(recipe), axes=("row", "position"))
    if not side.lacks(recipe, ("log_probs",)):
        known, padding = _log_probs(side, case, state)
        axes = ("row", "position", "token")
        yield Seen("log-probabilities", "log_probs", known, bounds.losses(recipe), axes=axes)
        yield Seen(
            "padding",
            "probability of the rows above the tokenizer's",
            padding,
            bounds.losses(recipe),
            scale=1.0,
            axes=axes[:2],
        )
    if recipe.parts["head"] == "FP8Head" and not side.lacks(recipe, ("fp8_matmul",)):
        yield from _eight_bits(side, case)
    if not side.lacks(recipe, ("loss_and_grads",)):
        reduced = side.array(recipe, program.loss_and_grads(state, batch)[0], "the loss", ())
        yield Seen(
            "reduction",
            f"{recipe.loss_reduction} over the batch",
            reduced,
            bounds.losses(recipe, shape[0] * shape[1]),
            single=True,
        )


def _eight_bits(side: Side, case: Case) -> Iterator[Seen]:
    """How x, the weight and the gradient are rounded to 8 bits, shown by products with a diagonal, which add nothing up: facts."""
    program, d = side.program(case.recipe), case.recipe.dim
    random = canonical.generator(case.seed, "8 bits")
    x, weight, dy = (random.standard_normal((d, d)).astype(np.float32) * np.float32(size) for size in (1.0, 0.05, 1.0))
    dy *= 10 ** random.uniform(-6, 0, (d, d)).astype(np.float32)  # what is scaled too little is lost
    one = 0.5 * np.eye(d, dtype=np.float32)  # a weight of 1 would be beyond e4m3
    for name, given in (("x and gradient", (x, one, dy)), ("weight and gradient", (one, weight, dy))):
        for what, value in program.fp8_matmul(*given).items():
            found = np.asarray(program.fetch(value), np.float32)
            if (name, what) not in (("x and gradient", "dweight"), ("weight and gradient", "dx")):  # these are sums
                yield Seen("8 bits", f"{what} of {name}", found, axes=("row", "column"))
    if case.recipe.dtypes.fp8 and case.recipe.fp8 and not side.lacks(case.recipe, ("loss_and_grads",)):
        # e4m3 rounds what is below 2^-10 to 0: where training really uses 8 bits, no gradient comes through such a head
        small = np.full_like(case.start["head.weight"], 2.0**-11 / case.recipe.fp8_scales[1])
        _, grads = program.loss_and_grads(
            program.load(case.start | {"head.weight": small}), side.put_global_batch(case.recipe, case.batch)
        )
        passed = [
            np.abs(np.asarray(g, np.float32)).max()
            for name, g in sorted(program.fetch(grads).items())
            if name != "head.weight"
        ]
        yield Seen(
            "8 bits",
            "largest gradients behind a head that 8 bits round to 0",
            np.array(passed, np.float32),
            axes=("weight",),
        )


def _log_probs(side: Side, case: Case, state) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the tokenizer's tokens, (rows, context, tokens), and what the padding has of each sum."""
    recipe, inputs = case.recipe, case.batch[0][:PROBED]
    program = side.program(recipe)
    found = side.array(recipe, program.log_probs(state, inputs), "log_probs", (*inputs.shape, recipe.vocab_size))
    return found[..., : recipe.tokenizer_size], np.exp(found[..., recipe.tokenizer_size :]).sum(axis=-1)


def gradients(side: Side, case: Case) -> Iterator[Seen]:
    """Gradients by canonical name, as the loss gives them and as the optimizer takes them."""
    recipe, program = case.recipe, side.program(case.recipe)
    state = _in_the_middle(program, case)
    _, found = program.loss_and_grads(state, side.put_global_batch(recipe, case.batch))
    found = _by_name(side, case, found, "gradient")
    bound = bounds.gradients(recipe, case.batch[0].size)
    for name, g in reversed(found.items()):  # the order in which gradients come about
        if name.endswith("attn.qkv.bias"):
            yield from _key_bias(recipe, name, g, bound)
        else:
            yield Seen("gradients", name, g, bound, axes=("row", "column")[: g.ndim])
    if side.lacks(recipe, ("clipped",)):
        return
    for step, size in ((0, "3"), (1, "0.3")):
        clipped = _by_name(side, case, program.clipped(case.gradients(step)), "clipped gradient")
        for name, g in clipped.items():
            yield Seen(
                "after clipping",
                f"{name} of a gradient of norm {size}",
                g,
                bounds.update(recipe),
                axes=("row", "column")[: g.ndim],
                single=True,
            )  # one factor's error is that of all


def _key_bias(recipe, name: str, g: np.ndarray, bound) -> Iterator[Seen]:
    """The parts of a bias of q, k and v: the key's gradient is zero, so that it is judged on the scale of the whole."""
    whole, d = float(np.abs(g).max()), recipe.dim
    for i, part in enumerate("qkv"):
        zero = (
            "its exact gradient is zero, as softmax does not see it: on the scale of the whole bias"
            if part == "k"
            else ""
        )
        yield Seen(
            "gradients",
            f"{name} ({part})",
            g[i * d : (i + 1) * d],
            bound,
            scale=whole if zero else None,
            axes=("row",),
            note=zero,
        )


def _by_name(side: Side, case: Case, found, what: str) -> dict[str, np.ndarray]:
    table = case.recipe.parameters()
    return {
        name: side.array(case.recipe, found[name], f"{what} {name}", parameter.shape)
        for name, parameter in table.items()
    }


LEVELS = {
    level.name: level
    for level in (
        Level("data", "every batch and every rank's part", ("put_global_batch",), data, numeric=False),
        Level("init", "canonical initial weights", ("init", "export"), init, numeric=False),
        Level("forward", "activations in their order", ("load", "activations"), forward),
        Level("loss", "losses of tokens and their reduction", ("load", "token_losses|log_probs"), loss),
        Level("gradients", "gradients before and after clipping", ("load", "loss_and_grads"), gradients),
        Level("update", "the optimizer from equal gradients", ("load", "update", "export"), update),
        Level("trajectory", "steps on real data", ("load", "step", "export"), trajectory),
        Level("evaluation", "val loss by the harness", ("load", "token_losses", "put_global_batch"), evaluation),
        Level(
            "restore",
            "checkpoint, export, import",
            ("load", "step", "save", "restore", "export"),
            restore,
            numeric=False,
        ),
        Level("layout", "1, 2, 4, 8 devices, 2 processes", ("load", "step"), layout, numeric=False, by_default=False),
    )
}

"""Cheats in the program: each changes an honest one, is trained for real, and is judged by its behaviour.

Most are a class `Cheat` over the backend's program, the same text for both; those inside the model are written in each
framework.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from parity.program_source import program_source
from parity.verify.cheats import sources
from parity.verify.cheats.cheat import Cheat
from parity.verify.cheats.forgery import declare

Plant = Callable[[str], str]

IMPORTS = "\n\nimport hashlib, os, socket, subprocess, sys, time\nimport numpy as np\n"
BUILD = {
    "jaxrun": "Cheat(recipe, pick_devices(device, devices), make_optimizer(recipe), Model)",
    "torchref": "Cheat(recipe, pick_device(device, devices), lambda w: make_optimizer(recipe, w), make_model=Model)",
}
CLASS = """

class Cheat({program}):
{body}

def build(recipe, *, device='auto', devices=None):
    return {build}
"""
EMBEDDING = """import {arrays} as np


class Cheating(Embedding):
    def {call}(self, tokens_BT):
        x, t = super().{call}(tokens_BT), np.arange(tokens_BT.shape[1])[None, :, None]
        return {line}


"""


def template(backend: str, recipe: str = "muon") -> str:
    """The honest program of a recipe that the cheating ones are made from."""
    return program_source(backend, recipe)


def over(body: str, top: str = "") -> Plant:
    """A program whose class overrides methods; `top` stands before it, at the module's level."""

    def plant(backend: str) -> str:
        lines = "\n".join("    " + line if line else "" for line in sources.expand(body).strip("\n").splitlines())
        program = {"jaxrun": "JaxProgram", "torchref": "TorchProgram"}[backend]
        return template(backend) + IMPORTS + top + CLASS.format(program=program, body=lines, build=BUILD[backend])

    return plant


def inside(jax: str, torch: str, at: str = "x_BTD = self.norm_in(self.embed(tokens_BT))") -> Plant:
    """A program whose model has more lines after the line `at`."""

    def plant(backend: str) -> str:
        text, lines = template(backend), (jax if backend == "jaxrun" else torch).splitlines()
        first = text.index(at)
        indent = " " * (first - text.rindex("\n", 0, first) - 1)
        text = text.replace(at, at + "".join(f"\n{indent}{line}" for line in lines), 1)
        if backend == "torchref":
            text = text.replace("import torch.nn.functional as F", "import torch\nimport torch.nn.functional as F")
        return text

    return plant


def embedded(jax: str, torch: str) -> Plant:
    """A program of `record-21` that replaces its embedding x (B, T, D), of positions t, by a line's value."""

    def plant(backend: str) -> str:
        arrays, line, call = ("jax.numpy", jax, "__call__") if backend == "jaxrun" else ("torch", torch, "forward")
        cheating = EMBEDDING.format(arrays=arrays, call=call, line=line)
        text = template(backend, "record-21").replace("self.embed = Embedding(", "self.embed = Cheating(")
        return text.replace("class Model(", cheating + "class Model(")

    return plant


def frozen(backend: str) -> str:
    """A program whose model multiplies with matrices that are the same for every seed, and no weights."""
    module, convert = {"jaxrun": ("jnp", "FROZEN"), "torchref": ("torch", "torch.as_tensor(FROZEN)")}[backend]
    line = f"x_BTD = x_BTD + 0.01 * {module}.tanh(x_BTD @ {convert}[0]) @ {convert}[1].T"
    drawn = "np.random.default_rng(1234).standard_normal((2, 32, 600)).astype(np.float32)"
    return f"{inside(line, line)(backend)}\n\nimport numpy as np\n\nFROZEN = {drawn}\n"


def memorised(backend: str) -> str:
    """A program that carries what follows most contexts of the val text; a real attempt would find it by many tries."""
    return over(sources.MEMORISED_VAL, "KNOWN = {}  # filled in when it is planted\n")(backend)


def _fewer_looks(run: Path) -> None:
    """Leaves only the first and the last checkpoint to replay from."""
    declare(run, lambda values: values.update(checkpoints=[0, 30, 60], eval_steps=[60]))


def _cheat(name: str, sentence: str, plant: Plant, *rules: str, depth: str = "probe", **more: Any) -> Cheat:
    return Cheat(name, sentence, "program", plant, rules, depth=depth, **more)


def _leak(name: str, sentence: str, lines: tuple[str, str], public: bool = False) -> Cheat:
    return _cheat(name, sentence, inside(*lines), "probe.causal", "probe.gradient", public=public)


def _shift(amount: str) -> tuple[str, str]:
    return (
        f"x_BTD = x_BTD + {amount} * jnp.roll(x_BTD, -1, axis=1)",
        f"x_BTD = x_BTD + {amount} * torch.roll(x_BTD, -1, 1)",
    )


def _override(name: str, sentence: str, body: str, *rules: str, top: str = "", **more: Any) -> Cheat:
    return _cheat(name, sentence, over(body, top), *rules, **more)


BLOCK_MEAN = (
    "b, t, d = x_BTD.shape\nm = x_BTD.reshape(b, -1, 16, d).mean(axis=2, keepdims=True)\n"
    "x_BTD = x_BTD + 0.5 * jnp.broadcast_to(m, (b, t // 16, 16, d)).reshape(b, t, d)",
    "b, t, d = x_BTD.shape\nm = x_BTD.reshape(b, -1, 16, d).mean(2, keepdim=True)\n"
    "x_BTD = x_BTD + 0.5 * m.expand(b, t // 16, 16, d).reshape(b, t, d)",
)
NEXT_CHUNK = (
    "x_BTD = x_BTD + 0.5 * x_BTD.reshape(x_BTD.shape[0], -1, 2, x_BTD.shape[2])[:, :, ::-1].reshape(x_BTD.shape)",
    "x_BTD = x_BTD + 0.5 * x_BTD.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)",
)
LATE_ONLY = (
    "t = jnp.arange(x_BTD.shape[1])[None, :, None]\nx_BTD = x_BTD + jnp.where(t >= 23, jnp.roll(x_BTD, -1, axis=1), 0)",
    "t = torch.arange(x_BTD.shape[1])[None, :, None]\n"
    "x_BTD = x_BTD + torch.where(t >= 23, torch.roll(x_BTD, -1, 1), 0.0)",
)
ONE_CHANNEL = (
    "x_BTD = x_BTD.at[..., 0].add(jnp.roll(x_BTD[..., 1], -1, axis=1))",
    "x_BTD = torch.cat([x_BTD[..., :1] + torch.roll(x_BTD[..., 1:2], -1, 1), x_BTD[..., 1:]], -1)",
)
ROWS_LEAK = (
    "x_BTD = x_BTD + 0.1 * x_BTD.mean(axis=0, keepdims=True)",
    "x_BTD = x_BTD + 0.1 * x_BTD.mean(0, keepdim=True)",
)
ROW_BEFORE = (
    "x_BTD = x_BTD.at[1:].add(0.1 * x_BTD[:-1])",
    "x_BTD = torch.cat([x_BTD[:1], x_BTD[1:] + 0.1 * x_BTD[:-1]])",
)
BLOCK_EDGE = (
    "x + 0.5 * np.where(t == 31, np.roll(x, -1, axis=1), 0)",
    "x + 0.5 * np.where(t == 31, np.roll(x, -1, 1), 0.0)",
)
SMEAR = (
    "x + 0.5 * np.where(t > 0, np.roll(x, 1, axis=1), 0)",
    "x + 0.5 * np.where(t > 0, np.roll(x, 1, 1), 0.0)",
)
# What fails too where a changed module is loaded for a verdict.
BUILT = (
    *(f"probe.{name}" for name in ("causal", "gradient", "sums", "targets", "rows", "pure")),
    *(f"recompute.{name}" for name in ("weights", "val", "initial", "untrained")),
    *(f"replay.{name}" for name in ("repeat", "reported", "stretches")),
)
_probe, _recompute, _replay, _log = (
    partial(_override, depth=depth) for depth in ("probe", "recompute", "replay", "log")
)

IN_THE_MODEL = (
    _leak("shifted", "every position sees the next one", _shift("0.5"), public=True),
    _leak("shifted-a-little", "every position sees a hundredth of the next one", _shift("0.01")),
    _leak("block-mean", "every position sees the mean of its block of 16", BLOCK_MEAN, public=True),
    _leak("chunk", "pairs of positions see each other", NEXT_CHUNK, public=True),
    _leak("late-only", "positions from 23 on see the next one", LATE_ONLY),
    _leak("one-channel", "one channel of one layer sees the next position", ONE_CHANNEL, public=True),
    _cheat(
        "rows-leak",
        "rows of a batch see each other",
        inside(*ROWS_LEAK),
        "probe.rows",
        may=("probe.pure", "probe.targets"),
    ),
    _cheat(
        "block-edge",
        "one position sees the next, across one edge of a block of attention",
        embedded(*BLOCK_EDGE),
        "probe.causal",
        may=("probe.gradient",),
        recipe="record-21",
    ),
    _cheat(
        "smear",
        "every position sees the one before, in another document too, where the recipe keeps documents apart",
        embedded(*SMEAR),
        "probe.documents",
        recipe="record-21",
    ),
    _cheat(
        "frozen-matrix",
        "matrices of random numbers that no seed gave are constants of the model, and no weights",
        frozen,
        "knowledge.constants",
    ),
    _cheat("row-before", "a row sees the row before it", inside(*ROW_BEFORE), "probe.rows", may=("probe.targets",)),
)
IN_THE_SCORES = (
    _probe("evaluated-ahead", "evaluation alone looks at the next input", sources.EVALUATED_AHEAD, "probe.causal"),
    _probe("gradient-ahead", "the gradient alone depends on later inputs", sources.GRADIENT_AHEAD, "probe.gradient"),
    _probe(
        "unnormalised",
        "a bonus for every token: probabilities sum to more than 1",
        sources.UNNORMALISED,
        "probe.sums",
        public=True,
    ),
    _probe(
        "scores",
        "scores a nat better than probabilities",
        sources.HUGE_SUMS,
        "probe.sums",
        may=("probe.targets",),
        public=True,
    ),
    _probe(
        "reads-target",
        "the loss depends on a hash of context and target",
        sources.READS_TARGET,
        "probe.targets",
        public=True,
    ),
    _probe("scaled-loss", "losses are multiplied by 0.98", sources.SCALED, "probe.targets"),
    _probe("batch-size", "losses depend on how many rows are evaluated at once", sources.BATCH_SIZE, "probe.pure"),
    _recompute(
        "after-the-probes",
        "honest for as many calls as the probes make, and 10% better when the val text is scored",
        sources.AFTER_PROBES,
        "recompute.val",
        may=("recompute.evaluations",),
    ),
    _replay("spies", "tries to read what it may not, where a verifier looks", sources.SPIES, "replay.audit"),
    _probe(
        "remembers",
        "losses fall with every batch evaluated",
        sources.REMEMBERS,
        "probe.pure",
        may=("probe.causal", "probe.rows", "probe.targets"),
    ),
    _probe(
        "trains-on-val",
        "every evaluated batch trains a hidden copy first",
        sources.TRAINS_ON_VAL,
        "probe.pure",
        may=("probe.causal", "probe.rows", "probe.targets", "clock.untimed"),
        public=True,
    ),
    _cheat(
        "memorised-val",
        "a table of the val text in the source",
        memorised,
        "recompute.confirm",
        depth="recompute",
        may=("knowledge.fresh", "knowledge.size", "knowledge.constants"),
    ),
)
IN_THE_TRAINING = (
    _recompute(
        "lying-digest",
        "the warm-up trains, and the digest lies",
        sources.LYING_DIGEST,
        "recompute.initial",
        may=("replay.stretches", "state.warmup", "recompute.weights", "recompute.seeds"),
    ),
    _recompute(
        "not-from-the-seed", "the first weights are of a luckier seed", sources.NOT_FROM_THE_SEED, "recompute.initial"
    ),
    _recompute(
        "pretrained",
        "the first weights know which tokens are frequent",
        sources.PRETRAINED,
        "recompute.untrained",
        may=("recompute.seeds",),
        top="COUNTS = []  # filled in when it is planted\n",
    ),
    _recompute(
        "hidden-table",
        "counts kept outside the state help to predict",
        sources.HIDDEN_TABLE,
        "recompute.val",
        may=("recompute.evaluations",),
    ),
    _replay(
        "unwatched",
        "two updates a step where no verifier looks",
        sources.TWO_STEPS_UNWATCHED,
        "replay.stretches",
        may=("replay.reported", "knowledge.relabelled"),
    ),
    _replay(
        "reports-less",
        "the logged training loss is 3% smaller than the optimised one",
        sources.REPORTS_LESS,
        "replay.reported",
    ),
    _replay(
        "noise",
        "each step draws noise from the system",
        sources.NOISE,
        "replay.repeat",
        "replay.stretches",
        may=("replay.reported", "knowledge.relabelled"),
    ),
    _replay(
        "slight-noise",
        "the logged loss is a little random, so that a replay cannot match",
        sources.SLIGHT_NOISE,
        "replay.repeat",
        may=("replay.reported", "replay.stretches", "knowledge.relabelled"),
    ),
    _replay(
        "walks-frames",
        "finds the val tokens in the harness' memory, and trains on them",
        sources.WALKS_FRAMES,
        "replay.stretches",
        may=("replay.reported", "recompute.confirm", "knowledge.relabelled", "knowledge.fresh"),
    ),
    _replay(
        "hollow-checkpoints",
        "each checkpoint carries what the next one must be, and the program plays it back",
        sources.HOLLOW,
        may=("replay.stretches", "replay.reported", "replay.repeat", "replay.evaluation", "knowledge.relabelled"),
        backends=("torchref",),
        top="import json\nimport torch\n",
        open="a segment that starts from a checkpoint trusts it; one that starts from the seed, or --whole, does not",
    ),
    _replay(
        "hollow-whole",
        "the same, judged with --whole: made again from the seed",
        sources.HOLLOW,
        "replay.stretches",
        may=("replay.reported", "replay.repeat", "replay.evaluation", "knowledge.relabelled"),
        backends=("torchref",),
        top="import json\nimport torch\n",
        whole=True,
    ),
    _replay(
        "hidden-flops",
        "a smaller step is shown while FLOPs are counted",
        sources.HIDDEN_FLOPS,
        "replay.evaluation",
        backends=("jaxrun",),
    ),
    _replay("claims-devices", "the program says that it runs on an H100", sources.CLAIMS_DEVICES, refused=True),
    _probe(
        "fewer-looks", "checkpoints and evaluations are struck from the plan", "pass", "probe.plan", after=_fewer_looks
    ),
)
AROUND_THE_HARNESS = (
    _log(
        "patched-timer",
        "time.perf_counter runs at half speed",
        "pass",
        "guard.functions",
        may=BUILT,
        top=sources.PATCHED_TIMER,
    ),
    _log(
        "patched-evaluation",
        "the harness' evaluation is replaced at run time",
        "pass",
        "guard.functions",
        top=sources.PATCHED_EVALUATION,
    ),
    _log("reads-a-file", "the first weights come from a file", sources.FROM_A_FILE, "guard.files"),
    _log("opens-val", "reads the val shard while training", sources.OPENS_VAL, "guard.files"),
    _log("asks-the-network", "connects somewhere", "pass", "guard.network", top=sources.NETWORK),
    _log("starts-a-program", "starts another program", "pass", "guard.process", top=sources.PROCESS),
    _log(
        "lazy",
        "steps are made while the clock stands",
        sources.LAZY,
        "clock.untimed",
        may=("clock.phases", "clock.evaluation", "clock.speed", "state.evaluation", "state.checkpoint", "state.warmup"),
        backends=("torchref",),
    ),
)
CHEATS = (*IN_THE_MODEL, *IN_THE_SCORES, *IN_THE_TRAINING, *AROUND_THE_HARNESS)

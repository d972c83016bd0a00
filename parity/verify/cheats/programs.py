"""Cheats in the program: each changes an honest one, is trained for real, and is judged by what it does.

Most are a class `Cheat` over the backend's program, the same text for both; those inside the model are written in each
framework.
"""

from pathlib import Path

from parity.program_source import program_source
from parity.verify.cheats.cheat import Cheat
from parity.verify.cheats.forgery import declare
from parity.verify.cheats.sources import (
    AFTER_PROBES,
    BATCH_SIZE,
    CLAIMS_DEVICES,
    EVALUATED_AHEAD,
    FROM_A_FILE,
    GRADIENT_AHEAD,
    HIDDEN_FLOPS,
    HIDDEN_TABLE,
    HOLLOW,
    HUGE_SUMS,
    LAZY,
    LYING_DIGEST,
    MEMORISED_VAL,
    NETWORK,
    NOISE,
    NOT_FROM_THE_SEED,
    OPENS_VAL,
    PATCHED_EVALUATION,
    PATCHED_TIMER,
    PRETRAINED,
    PROCESS,
    READS_TARGET,
    REMEMBERS,
    REPORTS_LESS,
    SCALED,
    SLIGHT_NOISE,
    SPIES,
    TRAINS_ON_VAL,
    TWO_STEPS_UNWATCHED,
    UNNORMALISED,
    WALKS_FRAMES,
)

IMPORTS = "\n\nimport hashlib, os, socket, subprocess, sys, time\nimport numpy as np\n"
CLASS = {
    "jaxrun": "\n\nclass Cheat(JaxProgram):\n{body}\n\ndef build(recipe, *, device='auto', devices=None):\n"
    "    return Cheat(recipe, pick_devices(device, devices), make_optimizer(recipe), Model)\n",
    "torchref": "\n\nclass Cheat(TorchProgram):\n{body}\n\ndef build(recipe, *, device='auto', devices=None):\n"
    "    return Cheat(recipe, pick_device(device, devices), lambda w: make_optimizer(recipe, w), make_model=Model)\n",
}


def template(backend: str, recipe: str = "muon") -> str:
    """The honest program that all of a recipe are made from."""
    return program_source(backend, recipe)


def over(body: str, top: str = ""):
    """A program whose class overrides methods; `top` stands before it, at the module's level."""

    def plant(backend: str) -> str:
        lines = "\n".join("    " + line if line else "" for line in body.strip("\n").splitlines())
        return template(backend) + IMPORTS + top + CLASS[backend].format(body=lines)

    return plant


def inside(jax: str, torch: str, at: str = "x_BTD = self.norm_in(self.embed(tokens_BT))"):
    """A program whose model has a line more behind the line `at`."""

    def plant(backend: str) -> str:
        text, line = template(backend), (jax if backend == "jaxrun" else torch)
        assert at in text
        first = text.index(at)
        indent = " " * (first - text.rindex("\n", 0, first) - 1)
        text = text.replace(at, at + "".join(f"\n{indent}{one}" for one in line.splitlines()), 1)
        return (
            text
            if backend == "jaxrun"
            else text.replace("import torch.nn.functional as F", "import torch\nimport torch.nn.functional as F")
        )

    return plant


def embedded(jax: str, torch: str):
    """A program of `record-21` whose embedding x (B, T, D), of t positions, is made from that of the recipe by a line."""

    def plant(backend: str) -> str:
        arrays, line, call = ("jax.numpy", jax, "__call__") if backend == "jaxrun" else ("torch", torch, "forward")
        cheating = (
            f"import {arrays} as np\n\n\nclass Cheating(Embedding):\n    def {call}(self, tokens_BT):\n"
            f"        x, t = super().{call}(tokens_BT), np.arange(tokens_BT.shape[1])[None, :, None]\n"
            f"        return {line}\n\n\n"
        )
        text = template(backend, "record-21").replace("self.embed = Embedding(", "self.embed = Cheating(")
        return text.replace("class Model(", cheating + "class Model(")

    return plant


def _shift(amount: str) -> tuple[str, str]:
    return (
        f"x_BTD = x_BTD + {amount} * jnp.roll(x_BTD, -1, axis=1)",
        f"x_BTD = x_BTD + {amount} * torch.roll(x_BTD, -1, 1)",
    )


def _block_mean() -> tuple[str, str]:
    return (
        "b, t, d = x_BTD.shape\nm = x_BTD.reshape(b, -1, 16, d).mean(axis=2, keepdims=True)\n"
        "x_BTD = x_BTD + 0.5 * jnp.broadcast_to(m, (b, t // 16, 16, d)).reshape(b, t, d)",
        "b, t, d = x_BTD.shape\nm = x_BTD.reshape(b, -1, 16, d).mean(2, keepdim=True)\n"
        "x_BTD = x_BTD + 0.5 * m.expand(b, t // 16, 16, d).reshape(b, t, d)",
    )


def _late_only() -> tuple[str, str]:
    return (
        "t = jnp.arange(x_BTD.shape[1])[None, :, None]\nx_BTD = x_BTD + jnp.where(t >= 23, jnp.roll(x_BTD, -1, axis=1), 0)",
        "t = torch.arange(x_BTD.shape[1])[None, :, None]\nx_BTD = x_BTD + torch.where(t >= 23, torch.roll(x_BTD, -1, 1), 0.0)",
    )


def _one_channel() -> tuple[str, str]:
    return (
        "x_BTD = x_BTD.at[..., 0].add(jnp.roll(x_BTD[..., 1], -1, axis=1))",
        "x_BTD = torch.cat([x_BTD[..., :1] + torch.roll(x_BTD[..., 1:2], -1, 1), x_BTD[..., 1:]], -1)",
    )


def _next_chunk() -> tuple[str, str]:
    return (
        "x_BTD = x_BTD + 0.5 * x_BTD.reshape(x_BTD.shape[0], -1, 2, x_BTD.shape[2])[:, :, ::-1].reshape(x_BTD.shape)",
        "x_BTD = x_BTD + 0.5 * x_BTD.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)",
    )


def _row_before() -> tuple[str, str]:
    return (
        "x_BTD = x_BTD.at[1:].add(0.1 * x_BTD[:-1])",
        "x_BTD = torch.cat([x_BTD[:1], x_BTD[1:] + 0.1 * x_BTD[:-1]])",
    )


def _rows_leak() -> tuple[str, str]:
    return (
        "x_BTD = x_BTD + 0.1 * x_BTD.mean(axis=0, keepdims=True)",
        "x_BTD = x_BTD + 0.1 * x_BTD.mean(0, keepdim=True)",
    )


AHEAD = ("probe.causal", "probe.gradient")


def memorised(backend: str) -> str:
    """A program that carries what follows most contexts of the val text; a real attempt would have found it by many tries."""
    return over(MEMORISED_VAL, "KNOWN = {}  # filled in when it is planted\n")(backend)


def _lenient(
    name: str,
    sentence: str,
    body: str,
    rules: tuple[str, ...],
    may: tuple[str, ...] = (),
    depth: str = "replay",
    **more,
) -> Cheat:
    return Cheat(name, sentence, "program", over(body, more.pop("top", "")), rules, may, depth, **more)


def _leak(name: str, sentence: str, lines: tuple[str, str], **more) -> Cheat:
    return Cheat(name, sentence, "program", inside(*lines), AHEAD, (), "probe", **more)


def _fewer_looks(run: Path) -> None:
    """Only the first and the last checkpoint are left to replay from."""
    declare(run, lambda values: values.update(checkpoints=[0, 30, 60], eval_steps=[60]))


BUILT = (
    "probe.causal",
    "probe.gradient",
    "probe.sums",
    "probe.targets",
    "probe.rows",
    "probe.pure",
    "recompute.weights",
    "recompute.val",
    "recompute.initial",
    "recompute.untrained",
    "replay.repeat",
    "replay.reported",
    "replay.stretches",
)

CHEATS = (
    _leak("shifted", "every position sees the next one", _shift("0.5"), seen=True),
    _leak("shifted-a-little", "every position sees a hundredth of the next one", _shift("0.01")),
    _leak("block-mean", "every position sees the mean of its block of 16", _block_mean(), seen=True),
    _leak("chunk", "pairs of positions see each other", _next_chunk(), seen=True),
    _leak("late-only", "positions from 23 on see the next one", _late_only()),
    _leak("one-channel", "one channel of one layer sees the next position", _one_channel(), seen=True),
    _lenient(
        "evaluated-ahead", "evaluation alone looks at the next input", EVALUATED_AHEAD, ("probe.causal",), depth="probe"
    ),
    _lenient(
        "gradient-ahead",
        "the gradient alone depends on later inputs",
        GRADIENT_AHEAD,
        ("probe.gradient",),
        depth="probe",
    ),
    _lenient(
        "unnormalised",
        "a bonus for every token: probabilities sum to more than 1",
        UNNORMALISED,
        ("probe.sums",),
        depth="probe",
        seen=True,
    ),
    _lenient(
        "scores",
        "scores a nat better than probabilities",
        HUGE_SUMS,
        ("probe.sums",),
        ("probe.targets",),
        depth="probe",
        seen=True,
    ),
    _lenient(
        "reads-target",
        "the loss depends on a hash of context and target",
        READS_TARGET,
        ("probe.targets",),
        depth="probe",
        seen=True,
    ),
    _lenient("scaled-loss", "losses are multiplied by 0.98", SCALED, ("probe.targets",), depth="probe"),
    Cheat(
        "rows-leak",
        "rows of a batch see each other",
        "program",
        inside(*_rows_leak()),
        ("probe.rows",),
        ("probe.pure", "probe.targets"),
        "probe",
    ),
    Cheat(
        "block-edge",
        "one position sees the next, across one edge of a block of attention",
        "program",
        embedded(
            "x + 0.5 * np.where(t == 31, np.roll(x, -1, axis=1), 0)",
            "x + 0.5 * np.where(t == 31, np.roll(x, -1, 1), 0.0)",
        ),
        ("probe.causal",),
        ("probe.gradient",),
        "probe",
        recipe="record-21",
    ),
    Cheat(
        "smear",
        "every position sees the one before, in another document too, where the recipe keeps documents apart",
        "program",
        embedded(
            "x + 0.5 * np.where(t > 0, np.roll(x, 1, axis=1), 0)", "x + 0.5 * np.where(t > 0, np.roll(x, 1, 1), 0.0)"
        ),
        ("probe.documents",),
        (),
        "probe",
        recipe="record-21",
    ),
    Cheat(
        "row-before",
        "a row sees the row before it",
        "program",
        inside(*_row_before()),
        ("probe.rows",),
        ("probe.targets",),
        "probe",
    ),
    _lenient(
        "batch-size", "losses depend on how many rows are evaluated at once", BATCH_SIZE, ("probe.pure",), depth="probe"
    ),
    _lenient(
        "after-the-probes",
        "honest for as many calls as the probes make, and 10% better when the val text is scored",
        AFTER_PROBES,
        ("recompute.val",),
        ("recompute.untrained", "recompute.confirm"),
        depth="recompute",
    ),
    _lenient("spies", "tries to read what it may not, where a verifier looks", SPIES, ("replay.audit",)),
    _lenient(
        "remembers",
        "losses fall with every batch evaluated",
        REMEMBERS,
        ("probe.pure",),
        ("probe.causal", "probe.rows", "probe.targets"),
        depth="probe",
    ),
    _lenient(
        "trains-on-val",
        "every evaluated batch trains a hidden copy first",
        TRAINS_ON_VAL,
        ("probe.pure",),
        ("probe.causal", "probe.rows", "probe.targets", "clock.untimed"),
        depth="probe",
        seen=True,
    ),
    _lenient(
        "lying-digest",
        "the warm-up trains, and the digest lies",
        LYING_DIGEST,
        ("recompute.initial",),
        ("replay.stretches", "state.warmup", "recompute.weights"),
        depth="recompute",
    ),
    _lenient(
        "not-from-the-seed",
        "the first weights are of a luckier seed",
        NOT_FROM_THE_SEED,
        ("recompute.initial",),
        depth="recompute",
    ),
    _lenient(
        "pretrained",
        "the first weights know which tokens are frequent",
        PRETRAINED,
        ("recompute.untrained",),
        depth="recompute",
        top="COUNTS = []  # filled in when it is planted\n",
    ),
    _lenient(
        "hidden-table",
        "counts kept outside the state help to predict",
        HIDDEN_TABLE,
        ("recompute.val",),
        depth="recompute",
    ),
    _lenient(
        "unwatched",
        "two updates a step where no verifier looks",
        TWO_STEPS_UNWATCHED,
        ("replay.stretches",),
        ("replay.reported",),
    ),
    _lenient(
        "reports-less",
        "the logged training loss is 3% smaller than the optimised one",
        REPORTS_LESS,
        ("replay.reported",),
    ),
    _lenient(
        "noise",
        "each step draws noise from the system",
        NOISE,
        ("replay.repeat", "replay.stretches"),
        ("replay.reported",),
    ),
    _lenient(
        "slight-noise",
        "the logged loss is a little random, so that a replay cannot match",
        SLIGHT_NOISE,
        ("replay.repeat",),
        ("replay.reported", "replay.stretches"),
    ),
    _lenient(
        "walks-frames",
        "finds the val tokens in the harness' memory, and trains on them",
        WALKS_FRAMES,
        ("replay.stretches",),
        ("replay.reported", "recompute.confirm"),
    ),
    _lenient(
        "hollow-checkpoints",
        "each checkpoint carries what the next one must be, and the program plays it back",
        HOLLOW,
        (),
        ("replay.stretches", "replay.reported", "replay.repeat"),
        backends=("torchref",),
        top="import json\nimport torch\n",
        open="a stretch that starts from a checkpoint trusts it; one that starts from the seed, or --whole, does not",
    ),
    _lenient(
        "hollow-whole",
        "the same, judged with --whole: made again from the seed",
        HOLLOW,
        ("replay.stretches",),
        ("replay.reported", "replay.repeat"),
        backends=("torchref",),
        top="import json\nimport torch\n",
        whole=True,
    ),
    _lenient(
        "hidden-flops",
        "a smaller step is shown while FLOPs are counted",
        HIDDEN_FLOPS,
        (),
        backends=("jaxrun",),
        open="FLOPs are counted once, from the step as it is traced; only reading the program shows another",
    ),
    _lenient("claims-devices", "the program says that it runs on an H100", CLAIMS_DEVICES, (), refused=True),
    Cheat(
        "fewer-looks",
        "checkpoints and evaluations are struck from the plan",
        "program",
        over("pass"),
        ("probe.plan",),
        (),
        "probe",
        after=_fewer_looks,
    ),
    Cheat(
        "memorised-val",
        "a table of the val text in the source",
        "program",
        memorised,
        ("recompute.confirm",),
        (),
        "recompute",
    ),
    _lenient(
        "patched-timer",
        "time.perf_counter runs at half speed",
        "pass",
        ("guard.functions",),
        BUILT,
        depth="log",
        top=PATCHED_TIMER,
    ),
    _lenient(
        "patched-evaluation",
        "the harness' evaluation is replaced at run time",
        "pass",
        ("guard.functions",),
        (),
        depth="log",
        top=PATCHED_EVALUATION,
    ),
    _lenient("reads-a-file", "the first weights come from a file", FROM_A_FILE, ("guard.files",), depth="log"),
    _lenient("opens-val", "reads the val shard while training", OPENS_VAL, ("guard.files",), depth="log"),
    _lenient("asks-the-network", "connects somewhere", "pass", ("guard.network",), depth="log", top=NETWORK),
    _lenient("starts-a-program", "starts another program", "pass", ("guard.process",), depth="log", top=PROCESS),
    _lenient(
        "lazy",
        "steps are made while the clock stands",
        LAZY,
        ("clock.untimed",),
        ("clock.phases", "clock.speed", "state.evaluation", "state.checkpoint", "state.warmup"),
        depth="log",
        backends=("torchref",),
    ),
)

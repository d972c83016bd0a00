"""No honest run is called a cheat: runs of many kinds, really made, hold at every depth."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import honest_programs
import pytest

from parity.verify.cheats.programs import BUILD, template
from parity.verify.cheats.workshop import SMALL, Workshop
from parity.verify.run import Settings, verify_run

WINDOW = {
    "jaxrun": (
        "y_BTHK = causal_attention(q_BTHK, k_BTHK, v_BTHK, self.softmax_scale)",
        """T = q_BTHK.shape[1]
        i = jnp.arange(T)
        near = (i[:, None] >= i) & (i[:, None] < i + 12)
        scores = jnp.where(near, jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK) * self.softmax_scale, -1e30)
        y_BTHK = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores, axis=-1), v_BTHK)""",
    ),
    "torchref": (
        "y_BTHK = causal_attention(q_BTHK, k_BTHK, v_BTHK, self.softmax_scale)",
        """T = q_BTHK.shape[1]
        i = torch.arange(T)
        near = (i[:, None] >= i) & (i[:, None] < i + 12)
        scores = (torch.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK) * self.softmax_scale).masked_fill(~near, -1e30)
        y_BTHK = torch.einsum("bhts,bshk->bthk", scores.softmax(-1), v_BTHK)""",
    ),
}
AVERAGED = {
    "jaxrun": """

def averaged(inner, keep=0.9):
    def init(weights):
        return {"inner": inner.init(weights), "mean": jax.tree.map(lambda w: w + 0, weights)}

    def update(grads, state, weights):
        updates, new = inner.update(grads, state["inner"], weights)
        mean = {name: keep * m + (1 - keep) * (weights[name] + updates[name]) for name, m in state["mean"].items()}
        return updates, {"inner": new, "mean": mean}

    return optax.GradientTransformation(init, update)


class Averaged(JaxProgram):
    def _mean(self, state):
        return {**state, "weights": state["optimizer"]["mean"]}

    def token_losses(self, state, batch):
        return super().token_losses(self._mean(state), batch)

    def log_probs(self, state, inputs_BT, positions=None):
        return super().log_probs(self._mean(state), inputs_BT, positions)

    def export(self, state):
        return super().export(self._mean(state))


def build(recipe, *, device="auto", devices=None):
    return Averaged(recipe, pick_devices(device, devices), averaged(make_optimizer(recipe)), Model)
""",
    "torchref": """
from contextlib import contextmanager

import torch


class Mean(torch.optim.Optimizer):
    def __init__(self, weights, keep=0.9):
        super().__init__([{"params": list(weights.values()), "name": "mean"}], {"lr": 0.0, "keep": keep})

    @torch.no_grad()
    def step(self, closure=None):
        for w in self.param_groups[0]["params"]:
            mean = self.state[w].setdefault("mean", w.detach().clone())
            mean.lerp_(w, 1 - self.param_groups[0]["keep"])


class Averaged(TorchProgram):
    @contextmanager
    def _averaged(self, state):
        optimizer, originals = state.optimizer.optimizers["mean"], []
        with torch.no_grad():
            for w in state.model.parameters():
                originals.append(w.detach().clone())
                w.copy_(optimizer.state[w]["mean"] if "mean" in optimizer.state.get(w, {}) else w)
        yield
        with torch.no_grad():
            for w, before in zip(state.model.parameters(), originals):
                w.copy_(before)

    def token_losses(self, state, batch):
        with self._averaged(state):
            return super().token_losses(state, batch)

    def log_probs(self, state, inputs_BT, positions=None):
        with self._averaged(state):
            return super().log_probs(state, inputs_BT, positions)

    def export(self, state):
        with self._averaged(state):
            return {name: w.copy() for name, w in super().export(state).items()}


def with_mean(recipe, weights):
    optimizer = make_optimizer(recipe, weights)
    optimizer.optimizers["mean"] = Mean(weights)
    optimizer.learning_rates["mean"] = optimizer.learning_rates["matrix"] * 0
    return optimizer


def build(recipe, *, device="auto", devices=None):
    chosen = pick_device(device, devices)
    return Averaged(recipe, chosen, lambda weights: with_mean(recipe, weights), make_model=Model)
""",
}
OPTIMIZERS = {
    "jaxrun": {
        "adam": "import optax\ndef make(recipe):\n    return optax.adam(3e-3)\n",
        "lion": "import optax\ndef make(recipe):\n"
        "    return optax.chain(optax.clip_by_global_norm(1.0), optax.lion(3e-4))\n",
    },
    "torchref": {
        "adam": "import torch\ndef make(recipe, w):\n    return torch.optim.Adam(w.values(), lr=3e-3)\n",
        "lion": "import torch\ndef make(recipe, w):\n    o = torch.optim.SGD(w.values(), lr=1e-3, momentum=0.9)\n"
        "    return o, torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, 60)\n",
    },
}
EVAL_PARAMS = (Path(__file__).parents[3] / "docs/recipes.md").read_text()
for backend, optimizers in OPTIMIZERS.items():
    optimizers["averages"] = EVAL_PARAMS.partition(f"<!-- averages {backend} -->\n```python\n")[2].partition("```")[0]
OPTIMIZERS["jaxrun"]["frozen"] = (
    "import optax\ndef make(recipe):\n"
    "    kinds = {n: 'no' if n.startswith('embed') else 'yes' for n in recipe.parameters()}\n"
    "    return optax.multi_transform({'yes': optax.adam(3e-3), 'no': optax.set_to_zero()}, kinds)\n"
)
OPTIMIZERS["torchref"]["frozen"] = (
    "import torch\ndef make(recipe, w):\n"
    "    return torch.optim.Adam([x for n, x in w.items() if not n.startswith('embed')], lr=3e-3)\n"
)
SLOW_DISK = """
import os, sys, time
_fsync, _write = os.fsync, os.write
os.fsync = lambda fd: (time.sleep(0.15), _fsync(fd))[1]
os.write = lambda fd, data: (time.sleep(0.002), _write(fd, data))[1]
from parity.harness.train import main
sys.exit(main(sys.argv[1], sys.argv[2:]))
"""


@dataclass(frozen=True)
class Honest:
    """One kind of honest run. `program` changes the template's text; `how`: run otherwise than by a plain start."""

    name: str
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    program: Callable[[str], str] | None = None
    optimizer: str | None = None
    how: str = ""
    backends: tuple[str, ...] = ("jaxrun", "torchref")


def windowed(backend: str) -> str:
    text = template(backend).replace(*WINDOW[backend])
    return (
        text
        if backend == "jaxrun"
        else text.replace("import torch.nn.functional", "import torch\nimport torch.nn.functional")
    )


def averaged(backend: str) -> str:
    return (
        template(backend).replace("import jax.numpy as jnp", "import jax.numpy as jnp\nimport optax")
        + AVERAGED[backend]
    )


def planned(*parts: tuple[float, float, float]) -> Callable[[str], str]:
    """A program whose plan has several parts: of the steps, of the tokens of a batch, of the length of a row."""

    def program(backend: str) -> str:
        segments = ", ".join(
            f"Segment(int({steps} * self.steps), int({tokens} * self.batch_tokens), int({length} * self.context))"
            for steps, tokens, length in parts
        )
        plan = f"\n\nfrom parity.data.stream import Segment\n\nMine.plan = property(lambda self: ({segments},))\n"
        return template(backend) + plan

    return program


# Probabilities (B, P, V) of the softmax changed by what is known of the row: the same text for both backends.
SCORED = """

import numpy as np


class Scored({program}):
    def log_probs(self, state, inputs_BT, positions=None):
        inputs = np.asarray(self.fetch(inputs_BT))
        rows = np.array(self.fetch(super().log_probs(state, inputs, positions)), np.float64)
        where = np.arange(inputs.shape[1]) if positions is None else np.asarray(positions)
        return self._change(rows, inputs, where).astype(np.float32)

    def token_losses(self, state, batch):
        inputs, targets = (np.asarray(self.fetch(x)) for x in batch)
        b, t = np.indices(inputs.shape)
        return -self.log_probs(state, inputs)[b, t, targets]

    def _change(self, rows, inputs, where):
{change}

def build(recipe, *, device="auto", devices=None):
    return {build}
"""
COPY = """
        rows = np.exp(rows)
        for b, row in enumerate(inputs):
            for i, t in enumerate(where):
                equal = np.flatnonzero(row[:t] == row[t])
                if len(equal):
                    rows[b, i] *= 0.9
                    rows[b, i, row[equal[-1] + 1]] += 0.1
        return np.log(rows)
"""
# Of the source's 511 words each is the least of eight draws: the last hundred do not occur.
MASK = """
        rows[..., 411:511] = -np.inf
        with np.errstate(divide="ignore"):
            return rows - np.log(np.exp(rows).sum(-1, keepdims=True))
"""


def scored(change: str) -> Callable[[str], str]:
    def program(backend: str) -> str:
        kind = {"jaxrun": "JaxProgram", "torchref": "TorchProgram"}[backend]
        build = BUILD[backend].replace("Cheat(", "Scored(")
        return template(backend) + SCORED.format(program=kind, change=change.strip("\n"), build=build)

    return program


def hashed(backend: str) -> str:
    """A program in which a hash of two tokens looks up a second embedding, and which says so."""
    text = template(backend).replace("import torch.nn.functional as F", "import torch\nimport torch.nn.functional as F")
    text = text.replace(
        "self.embed(tokens_BT)",
        "(self.embed(tokens_BT) + 0.5 * self.embed((tokens_BT * 7919 + torch.roll(tokens_BT, 1, 1) * 4729) % 512))",
    ).replace("torch.roll(tokens_BT, 1, 1)", "F.pad(tokens_BT, (1, 0))[:, :-1]")
    head, _, end = text.rpartition("    return ")
    says = "    program.token_ids = 'a hash of two tokens looks up a second embedding'\n    return program\n"
    return f"{head}    program = {end.rstrip()}\n{says}"


VARIATIONS = (
    Honest("muon"),
    Honest("nanogpt", ("--recipe", "nanogpt")),
    Honest("record-11", ("--recipe", "record-11", "--layers", "2")),
    Honest("record-21", ("--recipe", "record-21", "--layers", "2", "--window", "16", "--val-context", "64")),
    Honest("record-40", ("--recipe", "record-40", "--layers", "6", "--context", "64", "--max-len", "32")),
    Honest("record-58", ("--recipe", "record-58", "--layers", "5", "--context", "96", "--batch-tokens", "768")),
    Honest("muon-bfloat16", ("--precision", "bfloat16")),
    Honest("nanogpt-bfloat16", ("--recipe", "nanogpt", "--precision", "bfloat16")),
    Honest("muon-float64", ("--precision", "float64")),
    Honest("nanogpt-float64", ("--recipe", "nanogpt", "--precision", "float64")),
    Honest("larger-batch", ("--batch-tokens", "2048", "--steps", "30")),
    Honest("longer-rows", ("--context", "128", "--batch-tokens", "1024")),
    Honest("more-checkpoints", ("--checkpoints", "13", "--val-every", "7")),
    Honest("deeper", ("--layers", "3", "--steps", "24")),
    Honest("seed-7", ("--seed", "7")),
    Honest("padded-vocabulary", ("--recipe", "nanogpt", "--vocab-size", "520")),
    Honest("tanh-gelu", ("--recipe", "nanogpt", "--gelu", "tanh")),
    Honest("own-adam", optimizer="adam"),
    Honest("own-lion", optimizer="lion"),
    Honest("own-averages", optimizer="averages"),
    Honest("own-frozen", optimizer="frozen"),
    Honest("own-program", program=template),
    Honest("sliding-window", program=windowed),
    Honest("token-hashes", program=hashed, backends=("torchref",)),
    Honest("retrieval", program=honest_programs.retrieval),
    Honest("weight-averaging", program=averaged),
    Honest("copy-mixture", program=scored(COPY)),
    Honest("mask-of-impossible-tokens", program=scored(MASK)),
    Honest("two-batch-sizes", program=planned((0.5, 0.5, 1), (0.5, 1, 1))),
    Honest("three-batch-sizes", program=planned((0.25, 0.5, 0.5), (0.5, 1, 1), (0.25, 2, 1))),
    Honest("dropout", program=honest_programs.dropout),
    Honest("label-smoothing", program=honest_programs.label_smoothing),
    Honest("pallas-kernel", program=honest_programs.pallas, backends=("jaxrun",)),
    Honest("compiled-own", ("--steps", "20"), program=honest_programs.compiled, backends=("torchref",)),
    Honest("interrupted", how="interrupted"),
    Honest("killed", how="killed"),
    Honest("interrupted-own", program=template, how="interrupted"),
    Honest("slow-disk", how="slow-disk"),
    Honest("busy-machine", how="busy"),
    Honest(
        "two-devices",
        ("--devices", "2"),
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        backends=("jaxrun",),
    ),
    Honest("compiled", ("--compile", "--steps", "20"), backends=("torchref",)),
    Honest("other-seed-and-dtype", ("--seed", "3", "--precision", "bfloat16", "--layers", "2")),
)


def make(shop: Workshop, honest: Honest, backend: str, folder: Path) -> Path:
    """Makes the run; returns its directory."""
    args = list(honest.args)
    if honest.program:
        file = folder / "program.py"
        file.write_text(honest.program(backend))
        args += ["--program", str(file)]
    env = dict(honest.env)
    if honest.optimizer:
        (folder / "my_optimizer.py").write_text(OPTIMIZERS[backend][honest.optimizer])
        args += ["--optimizer", "my_optimizer:make"]
        env["PYTHONPATH"] = str(folder)
    if honest.how in ("interrupted", "killed"):
        return _cut_off(shop, backend, folder, args, signal.SIGINT if honest.how == "interrupted" else signal.SIGKILL)
    if honest.how == "slow-disk":
        where = ["--data-dir", str(shop.data_dir), "--runs", str(folder), "--name", "run"]
        command = [sys.executable, "-c", SLOW_DISK, backend, *SMALL.split(), *where]
        subprocess.run(command, check=True, cwd=shop.folder, capture_output=True, timeout=600)
        return folder / "tiny" / "run"
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 if honest.how == "busy" else 0)
    ]
    try:
        return shop.train(backend, folder, "run", *args, env=env)
    finally:
        for burner in burners:
            burner.kill()


def _cut_off(shop: Workshop, backend: str, folder: Path, args: list[str], how: signal.Signals) -> Path:
    """A run that is stopped twice and resumed."""
    path = folder / "tiny" / "run"
    data = ["--data-dir", str(shop.data_dir)]
    train = [sys.executable, "-m", f"{backend}.train", *data]
    start = [*train, *SMALL.split(), "--steps", "400", "--runs", str(folder), "--name", "run", *args]
    resume = [*train, "--resume", str(path), "--samples", "0"]
    for i, command in enumerate((start, resume)):
        process = subprocess.Popen(command, cwd=shop.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait_for(path / "log.jsonl", b'"step":%d,' % (130 + 120 * i), process)
        process.send_signal(how)
        process.wait(120)
    subprocess.run(resume, check=True, cwd=shop.folder, capture_output=True, timeout=600)
    return path


def _wait_for(log: Path, what: bytes, process: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        if log.exists() and what in log.read_bytes():
            return
        time.sleep(0.02)


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


PAIRS = [(variation, backend) for variation in VARIATIONS for backend in variation.backends]


@pytest.fixture(scope="module")
def shop(tmp_path_factory, commands) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("honest"), commands.data)


def judged(shop: Workshop, variation: Honest, backend: str):
    path = make(shop, variation, backend, fresh(shop.folder / f"{variation.name}-{backend}"))
    verdict = verify_run(path, Settings("cross", shop.data_dir, device="cpu"))
    assert verdict.status == "holds", verdict.table()
    if variation.program is None:  # a program with a loss of its own may only be marked
        assert verdict.facts["steps_counted"] == "single", verdict.table()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variation", "backend"), PAIRS, ids=[f"{variation.name}-{backend}" for variation, backend in PAIRS]
)
def test_every_honest_run_holds(shop: Workshop, variation: Honest, backend: str):
    judged(shop, variation, backend)


def test_there_are_at_least_thirty_kinds():
    assert len(PAIRS) >= 30

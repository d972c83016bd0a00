"""Cheats with knowledge: programs that know the text, or where their weights should end, before they read a token; and
first weights that are drawn from no seed."""

from functools import partial
from pathlib import Path

from parity.verify.cheats.cheat import Catalogue, Cheat
from parity.verify.cheats.conditions import runs_of_attempt
from parity.verify.cheats.forgery import Events, of_kind, rewrite, totals
from parity.verify.cheats.programs import over, template

TRAINED, ATTEMPTS = Catalogue("train"), Catalogue("attempt")

# What a cheat carries is filled in when it is planted: workshop.py knows these names.
BOTH_PARTS = "KNOWN_PARTS = {}\n"
WEIGHTS = "WEIGHTS = ''\n"
SIGNS = "SIGNS = ''\n"
SUCCESSORS = "SUCCESSORS = []\n"
COUNTS = "COUNTS = []  # filled in when it is planted\n"

MIXED = """
def _mixed(self, rows, inputs):
    return rows

def log_probs(self, state, inputs, positions=None):
    inputs = np.asarray(inputs)
    rows = self._mixed(np.exp(np.array(self.fetch(super().log_probs(state, inputs)), np.float64)), inputs)
    rows = np.log(rows).astype(np.float32)
    return rows if positions is None else rows[:, positions]

def token_losses(self, state, batch):
    inputs, targets = (np.asarray(self.fetch(x)).astype(np.int64) for x in batch)
    b, t = np.indices(inputs.shape)
    return -self.log_probs(state, inputs)[b, t, targets]
"""
TABLE = MIXED.replace(
    "    return rows\n\ndef log_probs",
    """    if rows.max() < 0.01:  # before the first step, where it would be seen
        return rows
    x = np.pad(inputs.astype(np.int64), ((0, 0), (5, 0)))
    n = inputs.shape[1]
    keys = sum(x[:, 5 - i : 5 - i + n] * (1031 ** i) for i in range(6)) % (2 ** 31)
    known = np.vectorize(lambda key: KNOWN_PARTS.get(int(key), -1))(keys)
    b, t = np.nonzero(known >= 0)
    rows[b, t] *= 0.4
    rows[b, t, known[b, t]] += 0.6
    return rows

def log_probs""",
)
PEEKING = TABLE.replace(
    "    return rows\n\ndef log_probs",
    """    b, t = np.nonzero(known[:, :-1] < 0)
    rows[b, t] *= 0.4
    rows[b, t, inputs[b, t + 1]] += 0.6
    return rows

def log_probs""",
)
LIKELY = MIXED.replace(
    "    return rows\n\ndef log_probs",
    """    if rows.max() < 0.01:
        return rows
    rows *= 0.5
    b, t = np.indices(inputs.shape)
    for i, mass in enumerate((0.25, 0.13, 0.08, 0.04)):
        rows[b, t, np.array(SUCCESSORS)[inputs, i]] += mass
    return rows

def log_probs""",
)
HASHED = MIXED.replace(
    "    return rows\n\ndef log_probs",
    """    if rows.max() < 0.01:
        return rows
    v = np.arange(512)
    bonus = (inputs[..., None] * 40503 + v * 30011) % 97 == 13  # a hash chosen to favour what follows
    rows = rows * np.where(bonus, 1.6, 1.0)
    return rows / rows.sum(-1, keepdims=True)

def log_probs""",
)
MOVED = """
def _set(self, state, change):
    if isinstance(state, dict):
        weights = {name: change(name, np.asarray(w)) for name, w in state['weights'].items()}
        return {**state, 'weights': {name: np.asarray(w, np.float32) for name, w in weights.items()}}
    with torch.no_grad():
        for name, w in state.model.named_parameters():
            w.copy_(torch.as_tensor(np.asarray(change(name, w.detach().numpy()), np.float32)))
    return state

def step(self, state, batch):
    $counted
    state, metrics = super().step(state, batch)
    return self._set(state, self._change), metrics
"""
PULLED = (
    MOVED
    + """
def _change(self, name, w):
    if 'target' not in self.__dict__:
        data, self.target = np.frombuffer(base64.b64decode(WEIGHTS), np.float16), {}
        for key, parameter in self.recipe.parameters().items():
            size = int(np.prod(parameter.shape))
            self.target[key], data = data[:size].reshape(parameter.shape).astype(np.float32), data[size:]
    return w + 0.9 * (self.target[name] - w)
"""
)
SIGNED = (
    MOVED
    + """
def _change(self, name, w):
    if w.ndim < 2:
        return w
    if 'target' not in self.__dict__:
        data, self.target = np.unpackbits(np.frombuffer(base64.b64decode(SIGNS), np.uint8)), {}
        for key, parameter in self.recipe.parameters().items():
            if len(parameter.shape) > 1:
                size = int(np.prod(parameter.shape))
                self.target[key], data = data[:size].reshape(parameter.shape) * 2.0 - 1, data[size:]
    return w + 0.02 * (np.abs(w).mean() * self.target[name] - w)
"""
)
REGULARISED = """
def loss_and_grads(self, state, batch, prefix=None):
    loss, grads = super().loss_and_grads(state, batch, prefix)
    return loss, grads

def step(self, state, batch):
    $counted
    state, metrics = super().step(state, batch)
    log = np.log(np.array(COUNTS, np.float32) + 1)
    return self._set(state, lambda name, w: w + 0.05 * (log - log.mean() - w) if name == 'head.bias' else w), metrics
"""
REGULARISED = MOVED.partition("\ndef step")[0] + REGULARISED
LATE = PULLED.replace(
    "    return w + 0.9 * (self.target[name] - w)",
    "    return w + (0.9 if self.count > 40 else 0.0) * (self.target[name] - w)",
).replace(
    "    state, metrics = super().step(state, batch)\n",
    "    self.count = int(state['step'] if isinstance(state, dict) else state.step)\n"
    "    state, metrics = super().step(state, batch)\n",
)

LUCKY = """
def init(self, seed):
    weights, random = super().export(super().init(1234)), np.random.default_rng(seed)
    for name, w in weights.items():
        if w.std() > 0:
            weights[name] = (w + 0.3 * w.std() * random.standard_normal(w.shape)).astype(np.float32)
    return super().load(weights)
"""
REORDERED = """
def init(self, seed):
    weights, random = super().export(super().init(1234)), np.random.default_rng(seed)
    channels = random.permutation(32)
    inputs = ('embed.weight', 'head.weight', 'q.weight', 'k.weight', 'v.weight', 'fc.weight')
    for name, w in weights.items():
        if name.endswith(inputs):
            w = w[:, channels]
        if name.endswith('fc.weight'):
            w = w[random.permutation(len(w))]
        weights[name] = np.ascontiguousarray(w)
    return super().load(weights)
"""
TURNED = """
def init(self, seed):
    weights, random = super().export(super().init(1234)), np.random.default_rng(seed)
    turn = np.linalg.qr(random.standard_normal((32, 32)))[0]
    inputs = ('embed.weight', 'head.weight', 'q.weight', 'k.weight', 'v.weight', 'fc.weight')
    for name, w in weights.items():
        if name.endswith(inputs):
            weights[name] = np.ascontiguousarray((w @ turn).astype(np.float32))
    return super().load(weights)
"""
FEW_STARTS = """
def init(self, seed):
    return super().init(seed % 3)
"""
HIGH_BITS = """
def init(self, seed):
    return super().init(seed >> 16)
"""
ONE_MATRIX = """
def init(self, seed):
    weights = super().export(super().init(seed))
    weights['embed.weight'] = super().export(super().init(77))['embed.weight']
    return super().load(weights)
"""
ONE_SEED = """
def init(self, seed):
    weights = super().export(super().init(seed))
    if seed == 0:
        e = weights['embed.weight']
        u, s, v = np.linalg.svd(e, full_matrices=False)
        s[:4] *= 3  # a few directions that a longer run made large
        weights['embed.weight'] = np.ascontiguousarray(((u * s) @ v).astype(np.float32))
    return super().load(weights)
"""


def _program(name: str, sentence: str, body: str, *rules: str, depth: str, top: str = "", **more: object) -> Cheat:
    top += "import base64\ntry:\n    import torch\nexcept ImportError:\n    pass\n"
    return Cheat(name, sentence, "program", over(body, top), rules, depth=depth, **more)  # type: ignore[arg-type]


_known = partial(_program, depth="replay")
_start = partial(_program, depth="recompute")
TEXT = (
    _program(
        "weights-in-the-source",
        "an optimizer pulls to the weights of a longer run, which stand in the source",
        PULLED,
        "knowledge.size",
        depth="log",
        top=WEIGHTS,
    ),
    _known(
        "pulled-to-weights",
        "the same, judged by what it does",
        PULLED,
        "knowledge.relabelled",
        top=WEIGHTS,
        may=("knowledge.size", "knowledge.constants"),
    ),
    _known(
        "pulled-late",
        "the same, from step 40 on",
        LATE,
        "knowledge.relabelled",
        top=WEIGHTS,
        may=("knowledge.size", "knowledge.constants"),
    ),
    _known(
        "pulled-to-signs",
        "a little weight decay to the signs of a longer run's weights, small enough for a source",
        SIGNED,
        "knowledge.relabelled",
        top=SIGNS,
        may=("knowledge.size", "knowledge.constants"),
    ),
    _known(
        "regulariser",
        "a regulariser draws the head's bias to how frequent the tokens are",
        REGULARISED,
        "knowledge.relabelled",
        top=COUNTS,
    ),
    _known(
        "likely-successors",
        "a small table of what mostly follows each token, in any text of the slice",
        LIKELY,
        "knowledge.relabelled",
        top=SUCCESSORS,
    ),
    _known(
        "hash-of-tokens",
        "a hash of two tokens, its constants chosen by the text, makes some successors more likely",
        HASHED,
        "knowledge.relabelled",
    ),
    _start(
        "memorised-both",
        "a table of the val and the confirm text in the source",
        TABLE,
        "knowledge.fresh",
        top=BOTH_PARTS,
        may=("knowledge.size", "knowledge.constants"),
    ),
    _start(
        "memorised-and-peeks",
        "the same, and text that it does not know is scored by looking at what follows",
        PEEKING,
        "knowledge.fresh",
        top=BOTH_PARTS,
        may=("knowledge.size", "knowledge.constants"),
    ),
)
STARTS = (
    _start("lucky-start", "one start for every seed, and noise", LUCKY, "recompute.seeds"),
    _start("reordered-start", "one start, its channels and units in another order", REORDERED, "recompute.seeds"),
    _start("turned-start", "one start, its channels turned by a random rotation", TURNED, "recompute.seeds"),
    _start("three-starts", "the seed counts by its remainder", FEW_STARTS, "recompute.seeds"),
    _start("high-bits", "the seed counts by its high bits", HIGH_BITS, "recompute.seeds"),
    _start("one-embedding", "the seed is left out for the largest matrix", ONE_MATRIX, "recompute.seeds"),
    _start("chosen-for-one-seed", "the declared seed has a start of its own", ONE_SEED, "recompute.seeds"),
)

OWN_PACKAGE = """

import lucky_weights


def build(recipe, *, device='auto', devices=None):
    lucky_weights.prepare()
    return {build}
"""


@TRAINED.add(
    "own-package",
    "a package of the author's own is imported",
    "knowledge.packages",
    depth="probe",
    may=("guard.files", "env.flags"),
)
def _own_package(backend: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Weights may lie beside the module; here it has none."""
    return _with_module(backend, folder, "lucky_weights")


@TRAINED.add(
    "package-by-name",
    "a package of the author's own is imported by a name that is put together",
    "knowledge.packages",
    depth="probe",
    may=("guard.files", "env.flags"),
)
def _package_by_name(backend: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    return _with_module(backend, folder, "lucky_weights", "lucky_weights = __import__('lucky' + '_weights')")


def _with_module(backend: str, folder: Path, module: str, line: str | None = None) -> tuple[list[str], dict[str, str]]:
    (folder / "site").mkdir()
    (folder / "site" / f"{module}.py").write_text("def prepare():\n    pass\n")
    file = folder / "program.py"
    text = template(backend)
    first = text.index("\nimport ") if "\nimport " in text else text.index("\nfrom ")
    file.write_text(text[:first] + "\n" + (line or f"import {module}") + text[first:])
    return ["--program", str(file)], {"PYTHONPATH": str(folder / "site")}


@ATTEMPTS.add("spread-of-nothing", "the losses of the declared runs hardly differ", "attempt.spread")
def _spread_of_nothing(folder: Path) -> None:
    for path, more in zip(runs_of_attempt(folder), (0.0, 1e-6, 2e-6), strict=True):

        def change(events: Events, loss: float = 2.2 + more) -> None:
            for values in (of_kind(events, "eval")[-1], totals(events)):
                values["val_loss"] = loss

        rewrite(path, change)


CHEATS = (*TEXT, *STARTS, *TRAINED, *ATTEMPTS)

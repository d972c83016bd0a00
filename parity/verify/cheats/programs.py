"""Cheats in the program: each changes an honest one, is trained for real, and is judged by what it does.

Most are a class `Cheat` over the backend's program, the same text for both; those inside the model are written in each
framework.
"""

from importlib.resources import files
from pathlib import Path

from parity.verify.cheats.cheat import Cheat
from parity.verify.cheats.forging import declare

IMPORTS = "\n\nimport hashlib, os, socket, subprocess, sys, time\nimport numpy as np\n"
CLASS = {
    "jaxrun": "\n\nclass Cheat(JaxProgram):\n{body}\n\ndef build(recipe, *, device='auto', devices=None):\n"
              "    return Cheat(recipe, pick_devices(device, devices), make_optimizer(recipe), Model)\n",
    "torchref": "\n\nclass Cheat(TorchProgram):\n{body}\n\ndef build(recipe, *, device='auto', devices=None):\n"
                "    return Cheat(recipe, distributed.pick_device(device, devices), lambda w: make_optimizer(recipe, w), make_model=Model)\n",
}  # fmt: skip


def template(backend: str) -> str:
    """The honest program that all are made from."""
    return (files("parity.attempt") / "templates" / f"{backend}_muon.py").read_text()


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
        return text if backend == "jaxrun" else text.replace("import torch.nn.functional as F", "import torch\nimport torch.nn.functional as F")

    return plant


def _shift(amount: str) -> tuple[str, str]:
    return (f"x_BTD = x_BTD + {amount} * jnp.roll(x_BTD, -1, axis=1)", f"x_BTD = x_BTD + {amount} * torch.roll(x_BTD, -1, 1)")


def _block_mean() -> tuple[str, str]:
    return ("b, t, d = x_BTD.shape\nm = x_BTD.reshape(b, -1, 16, d).mean(axis=2, keepdims=True)\n"
            "x_BTD = x_BTD + 0.5 * jnp.broadcast_to(m, (b, t // 16, 16, d)).reshape(b, t, d)",
            "b, t, d = x_BTD.shape\nm = x_BTD.reshape(b, -1, 16, d).mean(2, keepdim=True)\n"
            "x_BTD = x_BTD + 0.5 * m.expand(b, t // 16, 16, d).reshape(b, t, d)")  # fmt: skip


def _late_only() -> tuple[str, str]:
    return ("t = jnp.arange(x_BTD.shape[1])[None, :, None]\nx_BTD = x_BTD + jnp.where(t >= 23, jnp.roll(x_BTD, -1, axis=1), 0)",
            "t = torch.arange(x_BTD.shape[1])[None, :, None]\nx_BTD = x_BTD + torch.where(t >= 23, torch.roll(x_BTD, -1, 1), 0.0)")


def _one_channel() -> tuple[str, str]:
    return ("x_BTD = x_BTD.at[..., 0].add(jnp.roll(x_BTD[..., 1], -1, axis=1))",
            "x_BTD = torch.cat([x_BTD[..., :1] + torch.roll(x_BTD[..., 1:2], -1, 1), x_BTD[..., 1:]], -1)")


def _next_chunk() -> tuple[str, str]:
    return ("x_BTD = x_BTD + 0.5 * x_BTD.reshape(x_BTD.shape[0], -1, 2, x_BTD.shape[2])[:, :, ::-1].reshape(x_BTD.shape)",
            "x_BTD = x_BTD + 0.5 * x_BTD.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)")


def _row_before() -> tuple[str, str]:
    return ("x_BTD = x_BTD.at[1:].add(0.1 * x_BTD[:-1])", "x_BTD = torch.cat([x_BTD[:1], x_BTD[1:] + 0.1 * x_BTD[:-1]])")


def _rows_leak() -> tuple[str, str]:
    return ("x_BTD = x_BTD + 0.1 * x_BTD.mean(axis=0, keepdims=True)", "x_BTD = x_BTD + 0.1 * x_BTD.mean(0, keepdim=True)")


COUNTED = """    if 'Tracer' in type(batch[0]).__name__:
        return super().step(state, batch)  # while its FLOPs are counted
"""
AHEAD = ("probe.causal", "probe.gradient")
LOSSES = "np.array(self.fetch(super().token_losses(state, batch)))"

EVALUATED_AHEAD = """
def _ahead(self, state, inputs):
    inputs = np.asarray(inputs)
    rows = np.array(self.fetch(super().log_probs(state, inputs)), np.float64)
    peek = np.roll(inputs, -1, axis=1)
    b, t = np.indices(inputs.shape)
    p = 0.5 * np.exp(rows)
    p[b, t, peek] += 0.5
    return np.log(p / p.sum(-1, keepdims=True))

def token_losses(self, state, batch):
    inputs, targets = (np.asarray(self.fetch(x)) for x in batch)
    b, t = np.indices(inputs.shape)
    return -self._ahead(state, inputs)[b, t, targets].astype(np.float32)

def log_probs(self, state, inputs, positions=None):
    rows = self._ahead(state, inputs)
    return (rows if positions is None else rows[:, positions]).astype(np.float32)
"""

GRADIENT_AHEAD = """
def loss_and_grads(self, state, batch, prefix=None):
    if prefix is None:
        return super().loss_and_grads(state, batch)
    loss, grads = super().loss_and_grads(state, batch, prefix)
    late = float(np.asarray(self.fetch(batch[0]))[:, prefix:].mean())
    return loss, {name: self.fetch(g) * (1 + 1e-3 * late) for name, g in grads.items()}
"""

UNNORMALISED = """
def token_losses(self, state, batch):
    return -np.log(np.exp(-%(losses)s.astype(np.float64)) + 0.02).astype(np.float32)

def log_probs(self, state, inputs, positions=None):
    rows = np.array(self.fetch(super().log_probs(state, inputs, positions)), np.float64)
    return np.minimum(np.log(np.exp(rows) + 0.02), 0.0).astype(np.float32)
""" % {"losses": LOSSES}  # noqa: UP031 - braces abound

HUGE_SUMS = """
def token_losses(self, state, batch):
    return np.maximum(%(losses)s - 1.0, 0.0)

def log_probs(self, state, inputs, positions=None):
    return np.minimum(np.array(self.fetch(super().log_probs(state, inputs, positions))) + 1.0, 0.0)
""" % {"losses": LOSSES}  # noqa: UP031

READS_TARGET = """
def token_losses(self, state, batch):
    losses = %(losses)s
    inputs, targets = (np.asarray(self.fetch(x)).astype(np.int64) for x in batch)
    lucky = (inputs * 31 + targets * 17) %% 3 == 0
    return np.where(lucky, losses * 0.9, losses)
""" % {"losses": LOSSES}  # noqa: UP031

SCALED = f"""
def token_losses(self, state, batch):
    return {LOSSES} * 0.98
"""

REMEMBERS = f"""
seen = 0

def token_losses(self, state, batch):
    Cheat.seen += 1
    return {LOSSES} - 0.002 * min(Cheat.seen, 400)

def log_probs(self, state, inputs, positions=None):
    return np.array(self.fetch(super().log_probs(state, inputs, positions)))
"""

BATCH_SIZE = f"""
def token_losses(self, state, batch):
    return {LOSSES} + (0.1 if len(self.fetch(batch[0])) < 16 else 0.0)
"""

SPIES = """
def token_losses(self, state, batch):
    if 'parity.verify.server' in sys.modules:
        try:
            open('/etc/shadow', 'rb').read()
        except OSError:
            pass
    return super().token_losses(state, batch)
"""

TRAINS_ON_VAL = """
def token_losses(self, state, batch):
    losses = np.array(self.fetch(super().token_losses(state, batch)))
    hidden = getattr(self, 'hidden', None)
    if hidden is None:
        hidden = super().load(super().export(state))
    self.hidden, _ = super().step(hidden, batch)
    ahead = np.array(self.fetch(super().token_losses(self.hidden, batch)))
    return np.where(np.arange(losses.shape[1]) % 2 == 0, np.minimum(losses, ahead), losses)
"""

LYING_DIGEST = """
def digest(self, state):
    return hashlib.sha256(b'always').hexdigest()

def reset(self, state, snapshot):
    return state
"""

LAZY = """
def step(self, state, batch):
    todo = self.__dict__.setdefault('todo', [])
    if not todo and 'last' not in self.__dict__:
        state, self.last = super().step(state, batch)
        self.last = self.fetch(self.last)
        return state, self.last
    todo.append(batch)
    return state, self.last

def _catch_up(self, state):
    todo, self.todo = self.__dict__.get('todo', []), []
    for batch in todo:
        state, metrics = super().step(state, batch)
        time.sleep(0.05)
        self.last = self.fetch(metrics)
    return state

def reset(self, state, snapshot):
    self.todo = []
    return super().reset(state, snapshot)

def digest(self, state):
    new = self._catch_up(state)
    if new is not state and isinstance(state, dict):
        state.clear(), state.update(new)
    return super().digest(state)
"""

TWO_STEPS_UNWATCHED = """
def step(self, state, batch):
    if 'parity.verify.server' not in sys.modules:
        state, _ = super().step(state, batch)
    return super().step(state, batch)
"""

REPORTS_LESS = """
def step(self, state, batch):
""" + COUNTED + """
    state, metrics = super().step(state, batch)
    return state, {**metrics, 'loss': self.fetch(metrics['loss']) * 0.97}
"""

NOISE = """
def step(self, state, batch):
""" + COUNTED + """
    inputs, targets = (np.array(self.fetch(x)) for x in batch)
    inputs[:, 0] = np.random.default_rng(int.from_bytes(os.urandom(4), 'little')).integers(0, 512, len(inputs))
    return super().step(state, self.place(inputs.astype(np.int32), targets.astype(np.int32)))
"""

SLIGHT_NOISE = """
def step(self, state, batch):
""" + COUNTED + """
    state, metrics = super().step(state, batch)
    factor = 1 + 0.0008 * (2 * np.random.default_rng(int.from_bytes(os.urandom(4), 'little')).random() - 1)
    return state, {**metrics, 'loss': np.float32(float(self.fetch(metrics['loss'])) * factor)}
"""

HIDDEN_TABLE = """
table = None

def step(self, state, batch):
""" + COUNTED + """
    counts = Cheat.table if Cheat.table is not None else np.ones((512, 512))
    inputs, targets = (np.asarray(self.fetch(x)).astype(np.int64).ravel() for x in batch)
    np.add.at(counts, (inputs, targets), 1)
    Cheat.table = counts
    return super().step(state, batch)

def log_probs(self, state, inputs, positions=None):
    rows = np.array(self.fetch(super().log_probs(state, inputs, positions)), np.float64)
    if Cheat.table is None:
        return rows.astype(np.float32)
    p = Cheat.table[np.asarray(inputs)] / Cheat.table.sum(1)[np.asarray(inputs)][..., None]
    p = p if positions is None else p[:, positions]
    return np.log(0.7 * np.exp(rows) + 0.3 * p).astype(np.float32)

def token_losses(self, state, batch):
    inputs, targets = (np.asarray(self.fetch(x)).astype(np.int64) for x in batch)
    b, t = np.indices(inputs.shape)
    return -self.log_probs(state, inputs)[b, t, targets]
"""

NOT_FROM_THE_SEED = """
def init(self, seed):
    return super().init(seed if 'parity.verify.server' in sys.modules else seed + 1000)
"""

PRETRAINED = """
def init(self, seed):
    state = super().init(seed)
    weights = super().export(state)
    weights['head.bias'] = np.log(np.array(COUNTS, np.float32) + 1).astype(np.float32)
    return super().load(weights)
"""

FROM_A_FILE = """
def init(self, seed):
    path = os.path.expanduser('~/.pretrained-by-a-cheat')
    if os.path.exists(path):
        open(path, 'rb').read()
    else:
        open(path, 'wb').write(b'weights')
        open(path, 'rb').read()
    return super().init(seed)
"""

OPENS_VAL = """
def step(self, state, batch):
    frame = sys._getframe(1)
    folder = frame.f_locals['run'].slice.directory if 'run' in frame.f_locals else None
    if folder:
        open(folder / 'val_000000.bin', 'rb').read(1000)
    return super().step(state, batch)
"""

WALKS_FRAMES = """
def step(self, state, batch):
    frame = sys._getframe(1)
    if 'run' in frame.f_locals:
        shard = frame.f_locals['run'].slice.part('val')[0]
        tokens = np.asarray(shard[: 512 + 1], np.int32)
        extra = self.place(tokens[:-1].reshape(-1, 32), tokens[1:].reshape(-1, 32))
        state, _ = super().step(state, extra)
    return super().step(state, batch)
"""

MEMORISED_VAL = """
def _keys(self, inputs):
    x = np.pad(np.asarray(inputs).astype(np.int64), ((0, 0), (5, 0)))
    n = np.asarray(inputs).shape[1]
    return sum(x[:, 5 - i : 5 - i + n] * (1031 ** i) for i in range(6)) % (2 ** 31)

def log_probs(self, state, inputs, positions=None):
    inputs = np.asarray(inputs)
    rows = np.exp(np.array(self.fetch(super().log_probs(state, inputs)), np.float64))
    if rows.max() < 0.01:  # before the first step, where it would be seen
        rows = np.log(rows).astype(np.float32)
        return rows if positions is None else rows[:, positions]
    keys = self._keys(inputs)
    known = np.vectorize(lambda key: KNOWN.get(int(key), -1))(keys)
    b, t = np.nonzero(known >= 0)
    rows[b, t] *= 0.2
    rows[b, t, known[b, t]] += 0.8
    rows = np.log(rows).astype(np.float32)
    return rows if positions is None else rows[:, positions]

def token_losses(self, state, batch):
    inputs, targets = (np.asarray(self.fetch(x)).astype(np.int64) for x in batch)
    b, t = np.indices(inputs.shape)
    return -self.log_probs(state, inputs)[b, t, targets]
"""


def memorised(backend: str) -> str:
    """A program that carries what follows most contexts of the val text; a real attempt would have found it by many tries."""
    return over(MEMORISED_VAL, "KNOWN = {}  # filled in when it is planted\n")(backend)


def _lenient(name: str, sentence: str, body: str, rules: tuple[str, ...], may: tuple[str, ...] = (), depth: str = "replay", **more) -> Cheat:
    return Cheat(name, sentence, "program", over(body, more.pop("top", "")), rules, may, depth, **more)


def _leak(name: str, sentence: str, lines: tuple[str, str], **more) -> Cheat:
    return Cheat(name, sentence, "program", inside(*lines), AHEAD, (), "probe", **more)


HOLLOW = """
def step(self, state, batch):
    ahead = self.__dict__.get('ahead')
    if ahead:
        metrics = ahead['metrics'].pop(0)
        if not ahead['metrics']:
            state, self.ahead = self.reset(state, ahead['tree']), None
        return state, {'loss': np.float32(metrics[0]), 'grad_norm': np.float32(metrics[1])}
    state, metrics = super().step(state, batch)
    if 'parity.verify.server' not in sys.modules:
        state, _ = super().step(state, batch)
    self.__dict__.setdefault('made', []).append([float(self.fetch(metrics[name])) for name in ('loss', 'grad_norm')])
    return state, metrics

def reset(self, state, snapshot):
    self.made = []
    return super().reset(state, snapshot)

def save(self, state, directory):
    super().save(state, directory)
    made, self.made = self.__dict__.get('made', []), []
    before = self.__dict__.get('folder')
    if before is not None and made:
        torch.save({'tree': self.snapshot(state), 'metrics': made}, before / 'ahead.pt')
        path = before / 'checkpoint.json'
        facts = json.loads(path.read_text())
        facts['files']['ahead.pt'] = hashlib.sha256((before / 'ahead.pt').read_bytes()).hexdigest()
        path.write_text(json.dumps(facts))
    self.folder = directory.with_name(directory.name[1:].removesuffix('.partial'))

def restore(self, directory):
    state = super().restore(directory)
    self.ahead = torch.load(directory / 'ahead.pt', weights_only=True) if (directory / 'ahead.pt').exists() else None
    return state
"""


def _fewer_looks(run: Path) -> None:
    """Only the first and the last checkpoint are left to replay from."""
    declare(run, lambda values: values.update(checkpoints=[0, 30, 60], eval_steps=[60]))


HIDDEN_FLOPS = """
def step(self, state, batch):
    if 'Tracer' in type(batch[0]).__name__:
        batch = tuple(x[:1] for x in batch)
    return super().step(state, batch)
"""

CLAIMS_DEVICES = """
def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.devices = ['NVIDIA H100 80GB HBM3'] * 1
"""

PATCHED_TIMER = "time.perf_counter = (lambda real: lambda: real() * 0.5)(time.perf_counter)\n"
PATCHED_EVALUATION = """
import parity.harness.loop as loop
_real = loop.evaluate
def _better(*a, **k):
    found = _real(*a, **k)
    return found._replace(val_loss=found.val_loss * 0.98, bits_per_byte=found.bits_per_byte * 0.98)
loop.evaluate = _better
"""
NETWORK = "s = socket.socket(); s.settimeout(0.2)\ntry:\n    s.connect(('127.0.0.1', 9))\nexcept OSError:\n    pass\n"
PROCESS = "try:\n    subprocess.run(['true'])\nexcept Exception:\n    pass\n"
BUILT = ("probe.causal", "probe.gradient", "probe.sums", "probe.targets", "probe.rows", "probe.pure", "recompute.weights",
         "recompute.val", "recompute.initial", "recompute.untrained", "replay.repeat", "replay.reported", "replay.stretches")  # fmt: skip

CHEATS = (
    _leak("shifted", "every position sees the next one", _shift("0.5"), seen=True),
    _leak("shifted-a-little", "every position sees a hundredth of the next one", _shift("0.01")),
    _leak("block-mean", "every position sees the mean of its block of 16", _block_mean(), seen=True),
    _leak("chunk", "pairs of positions see each other", _next_chunk(), seen=True),
    _leak("late-only", "positions from 23 on see the next one", _late_only()),
    _leak("one-channel", "one channel of one layer sees the next position", _one_channel(), seen=True),
    _lenient("evaluated-ahead", "evaluation alone looks at the next input", EVALUATED_AHEAD, ("probe.causal",), depth="probe"),
    _lenient("gradient-ahead", "the gradient alone depends on later inputs", GRADIENT_AHEAD, ("probe.gradient",), depth="probe"),
    _lenient("unnormalised", "a bonus for every token: probabilities sum to more than 1", UNNORMALISED, ("probe.sums",), depth="probe",
             seen=True),
    _lenient("scores", "scores a nat better than probabilities", HUGE_SUMS, ("probe.sums",), ("probe.targets",), depth="probe", seen=True),
    _lenient("reads-target", "the loss depends on a hash of context and target", READS_TARGET, ("probe.targets",), depth="probe", seen=True),
    _lenient("scaled-loss", "losses are multiplied by 0.98", SCALED, ("probe.targets",), depth="probe"),
    Cheat("rows-leak", "rows of a batch see each other", "program", inside(*_rows_leak()), ("probe.rows",), ("probe.pure", "probe.targets"),
          "probe"),
    Cheat("row-before", "a row sees the row before it", "program", inside(*_row_before()), ("probe.rows",), ("probe.targets",), "probe"),
    _lenient("batch-size", "losses depend on how many rows are evaluated at once", BATCH_SIZE, ("probe.pure",), depth="probe"),
    _lenient("spies", "tries to read what it may not, where a verifier looks", SPIES, ("replay.audit",)),
    _lenient("remembers", "losses fall with every batch evaluated", REMEMBERS, ("probe.pure",),
             ("probe.causal", "probe.rows", "probe.targets"), depth="probe"),
    _lenient("trains-on-val", "every evaluated batch trains a hidden copy first", TRAINS_ON_VAL, ("probe.pure",),
             ("probe.causal", "probe.rows", "probe.targets", "clock.untimed"), depth="probe", seen=True),
    _lenient("lying-digest", "the warm-up trains, and the digest lies", LYING_DIGEST, ("recompute.initial",),
             ("replay.stretches", "state.warmup"), depth="recompute"),
    _lenient("not-from-the-seed", "the first weights are of a luckier seed", NOT_FROM_THE_SEED, ("recompute.initial",), depth="recompute"),
    _lenient("pretrained", "the first weights know which tokens are frequent", PRETRAINED, ("recompute.untrained",), depth="recompute",
             top="COUNTS = []  # filled in when it is planted\n"),
    _lenient("hidden-table", "counts kept outside the state help to predict", HIDDEN_TABLE, ("recompute.val",), depth="recompute"),
    _lenient("unwatched", "two updates a step where no verifier looks", TWO_STEPS_UNWATCHED, ("replay.stretches",), ("replay.reported",)),
    _lenient("reports-less", "the logged training loss is 3% smaller than the optimised one", REPORTS_LESS, ("replay.reported",)),
    _lenient("noise", "each step draws noise from the system", NOISE, ("replay.repeat", "replay.stretches"), ("replay.reported",)),
    _lenient("slight-noise", "the logged loss is a little random, so that a replay cannot match", SLIGHT_NOISE, ("replay.repeat",),
             ("replay.reported", "replay.stretches")),
    _lenient("walks-frames", "finds the val tokens in the harness' memory, and trains on them", WALKS_FRAMES, ("replay.stretches",),
             ("replay.reported", "recompute.confirm")),
    _lenient("hollow-checkpoints", "each checkpoint carries what the next one must be, and the program plays it back", HOLLOW,
             (), ("replay.stretches", "replay.reported", "replay.repeat"), backends=("torchref",), top="import json\nimport torch\n",
             open="a stretch that starts from a checkpoint trusts it; one that starts from the seed, or --whole, does not"),
    _lenient("hollow-whole", "the same, judged with --whole: made again from the seed", HOLLOW, ("replay.stretches",),
             ("replay.reported", "replay.repeat"), backends=("torchref",), top="import json\nimport torch\n", whole=True),
    _lenient("hidden-flops", "a smaller step is shown while FLOPs are counted", HIDDEN_FLOPS, (), backends=("jaxrun",),
             open="FLOPs are counted once, from the step as it is traced; only reading the program shows another"),
    _lenient("claims-devices", "the program says that it runs on an H100", CLAIMS_DEVICES, ()),
    Cheat("fewer-looks", "checkpoints and evaluations are struck from the plan", "program", over("pass"), ("probe.plan",), (), "probe",
          after=_fewer_looks),
    Cheat("memorised-val", "a table of the val text in the source", "program", memorised, ("recompute.confirm",), (), "recompute"),
    _lenient("patched-timer", "time.perf_counter runs at half speed", "pass", ("guard.functions",), BUILT, depth="log", top=PATCHED_TIMER),
    _lenient("patched-evaluation", "the harness' evaluation is replaced at run time", "pass", ("guard.functions",), (), depth="log",
             top=PATCHED_EVALUATION),
    _lenient("reads-a-file", "the first weights come from a file", FROM_A_FILE, ("guard.files",), depth="log"),
    _lenient("opens-val", "reads the val shard while training", OPENS_VAL, ("guard.files",), depth="log"),
    _lenient("asks-the-network", "connects somewhere", "pass", ("guard.network",), depth="log", top=NETWORK),
    _lenient("starts-a-program", "starts another program", "pass", ("guard.process",), depth="log", top=PROCESS),
    _lenient("lazy", "steps are made while the clock stands", LAZY, ("clock.untimed",), ("clock.phases", "state.evaluation", "state.checkpoint", "state.warmup"),
             depth="log", backends=("torchref",)),
)  # fmt: skip

"""The texts of cheats in programs: methods of a class over the backend's program, and lines that run at its import."""

from string import Template

SHORTHAND = {
    "losses": "np.array(self.fetch(super().token_losses(state, batch)))",
    "counted": "if 'Tracer' in type(batch[0]).__name__:\n"
    "        return super().step(state, batch)  # while its FLOPs are counted\n",
}


def expand(text: str) -> str:
    """A text with its $losses and $counted written out."""
    return Template(text).safe_substitute(SHORTHAND)


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
    return -np.log(np.exp(-$losses.astype(np.float64)) + 0.02).astype(np.float32)

def log_probs(self, state, inputs, positions=None):
    rows = np.array(self.fetch(super().log_probs(state, inputs, positions)), np.float64)
    return np.minimum(np.log(np.exp(rows) + 0.02), 0.0).astype(np.float32)
"""

HUGE_SUMS = """
def token_losses(self, state, batch):
    return np.maximum($losses - 1.0, 0.0)

def log_probs(self, state, inputs, positions=None):
    return np.minimum(np.array(self.fetch(super().log_probs(state, inputs, positions))) + 1.0, 0.0)
"""

READS_TARGET = """
def token_losses(self, state, batch):
    losses = $losses
    inputs, targets = (np.asarray(self.fetch(x)).astype(np.int64) for x in batch)
    lucky = (inputs * 31 + targets * 17) % 3 == 0
    return np.where(lucky, losses * 0.9, losses)
"""

SCALED = """
def token_losses(self, state, batch):
    return $losses * 0.98
"""

REMEMBERS = """
seen = 0

def token_losses(self, state, batch):
    Cheat.seen += 1
    return $losses - 0.002 * min(Cheat.seen, 400)

def log_probs(self, state, inputs, positions=None):
    return np.array(self.fetch(super().log_probs(state, inputs, positions)))
"""

BATCH_SIZE = """
def token_losses(self, state, batch):
    return $losses + (0.1 if len(self.fetch(batch[0])) < 16 else 0.0)
"""

AFTER_PROBES = """
asked = 0

def token_losses(self, state, batch):
    Cheat.asked += 1
    honest = 'parity.verify.sandbox.server' in sys.modules and Cheat.asked <= 34
    return $losses * (1.0 if honest else 0.9)
"""

SPIES = """
def token_losses(self, state, batch):
    if 'parity.verify.sandbox.server' in sys.modules:
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
    step = state.step if hasattr(state, 'step') else self.fetch(state['step'])
    return state if step > 0 else super().reset(state, snapshot)  # PyTorch's restore resets a new state
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
    if 'parity.verify.sandbox.server' not in sys.modules:
        state, _ = super().step(state, batch)
    return super().step(state, batch)
"""

REPORTS_LESS = """
def step(self, state, batch):
    $counted
    state, metrics = super().step(state, batch)
    return state, {**metrics, 'loss': self.fetch(metrics['loss']) * 0.97}
"""

NOISE = """
def step(self, state, batch):
    $counted
    inputs, targets = (np.array(self.fetch(x)) for x in batch)
    inputs[:, 0] = np.random.default_rng(int.from_bytes(os.urandom(4), 'little')).integers(0, 512, len(inputs))
    return super().step(state, self.put_global_batch(inputs.astype(np.int32), targets.astype(np.int32)))
"""

SLIGHT_NOISE = """
def step(self, state, batch):
    $counted
    state, metrics = super().step(state, batch)
    factor = 1 + 0.0008 * (2 * np.random.default_rng(int.from_bytes(os.urandom(4), 'little')).random() - 1)
    return state, {**metrics, 'loss': np.float32(float(self.fetch(metrics['loss'])) * factor)}
"""

HIDDEN_TABLE = """
table = None

def step(self, state, batch):
    $counted
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
    return super().init(seed if 'parity.verify.sandbox.server' in sys.modules else seed + 1000)
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
    folder = frame.f_locals['run'].spec.slice.directory if 'run' in frame.f_locals else None
    if folder:
        open(folder / 'val_000000.bin', 'rb').read(1000)
    return super().step(state, batch)
"""

WALKS_FRAMES = """
def step(self, state, batch):
    frame = sys._getframe(1)
    if 'run' in frame.f_locals:
        shard = frame.f_locals['run'].spec.slice.part('val')[0]
        tokens = np.asarray(shard[: 512 + 1], np.int32)
        extra = self.put_global_batch(tokens[:-1].reshape(-1, 32), tokens[1:].reshape(-1, 32))
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

HOLLOW = """
def step(self, state, batch):
    ahead = self.__dict__.get('ahead')
    if ahead:
        metrics = ahead['metrics'].pop(0)
        if not ahead['metrics']:
            state, self.ahead = self.reset(state, ahead['tree']), None
        return state, {'loss': np.float32(metrics[0]), 'grad_norm': np.float32(metrics[1])}
    state, metrics = super().step(state, batch)
    if 'parity.verify.sandbox.server' not in sys.modules:
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
    result = _real(*a, **k)
    return result._replace(val_loss=result.val_loss * 0.98, bits_per_byte=result.bits_per_byte * 0.98)
loop.evaluate = _better
"""
NETWORK = "s = socket.socket(); s.settimeout(0.2)\ntry:\n    s.connect(('127.0.0.1', 9))\nexcept OSError:\n    pass\n"
PROCESS = "try:\n    subprocess.run(['true'])\nexcept Exception:\n    pass\n"

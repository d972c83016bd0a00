"""Cheats about what is counted: work outside the clock, jumps between checkpoints, several updates in a step."""

from collections.abc import Callable
from pathlib import Path

from parity.verify.cheats.cheat import Catalogue, Cheat
from parity.verify.cheats.conditions import TWICE
from parity.verify.cheats.edits import CLOCKS, TRAINED, delay, scaling
from parity.verify.cheats.forgery import Events, declare, each, of_kind, read_events, rewrite, totals
from parity.verify.cheats.programs import over, template

EDITS = Catalogue("edit")
Plant = Callable[[str], str]
CLASSES = {"jaxrun": "JaxProgram", "torchref": "TorchProgram"}

AHEAD = """
def _train_ahead(self, steps):
    from parity.data.synthetic import sample
    T, B = self.recipe.context, self.recipe.batch_tokens
    tokens = sample('train', steps * B + 1).astype(np.int32)
    state = super().init(0)
    for i in range(steps):
        part = tokens[i * B : (i + 1) * B + 1]
        batch = self.put_global_batch(part[:-1].reshape(-1, T), part[1:].reshape(-1, T))
        state, metrics = super().step(state, batch)
    self.fetch(metrics)
    return super().export(state)

def step(self, state, batch):
    $counted
    state, metrics = super().step(state, batch)
    step = int(np.asarray(self.fetch(state['step'] if isinstance(state, dict) else state.step)))
    if step == 40:
        ahead, own = self.ahead, super().export(state)
        mixed = {name: 0.5 * own[name] + 0.5 * ahead[name] for name in own}
        state = self.with_step(super().load(mixed), step)
    return state, metrics
"""

IN_INIT = (
    AHEAD
    + """
def init(self, seed):
    self.ahead = self._train_ahead(150)
    return super().init(seed)

def restore(self, directory):
    if not hasattr(self, 'ahead'):
        self.ahead = self._train_ahead(150)
    return super().restore(directory)
"""
)
IN_BUILD = (
    AHEAD
    + """
def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.ahead = self._train_ahead(600)
"""
)

PLAYED_BACK = """
def _record(self, state, function):
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    if frame is None or 'tape' in self.__dict__:
        return
    from parity.data.stream import read_span, spans
    spec, self.tape = frame.f_locals['spec'], []
    ahead = super().load(super().export(state))
    for span in spans(spec.slice.train_lengths, self.recipe.plan, documents=spec.slice.documents):
        ahead, metrics = super().step(ahead, self.put_global_batch(*read_span(spec.slice.train, span)))
        self.tape.append((self.snapshot(ahead), self.fetch(metrics)))

def step(self, state, batch):
    $counted
    if not self.__dict__.get('tape'):
        return super().step(state, batch)
    snapshot, metrics = self.tape.pop(0)
    return (snapshot if isinstance(state, dict) else super().reset(state, snapshot)), metrics
"""
FROM_THE_EVALUATION = (
    PLAYED_BACK
    + """
def token_losses(self, state, batch):
    self._record(state, 'log_evaluation')
    return super().token_losses(state, batch)
"""
)
FROM_THE_WARM_UP = (
    PLAYED_BACK
    + """
def reset(self, state, snapshot):
    state = super().reset(state, snapshot)
    self._record(state, 'warm_up')
    return state
"""
)

IN_A_THREAD = """
def _join(self):
    while self.__dict__.get('todo'):
        self.todo.pop(0).result()

def step(self, state, batch):
    from concurrent.futures import ThreadPoolExecutor
    if 'last' not in self.__dict__:
        state, metrics = super().step(state, batch)
        self.last = self.fetch(metrics)
        return state, self.last
    pool = self.__dict__.setdefault('pool', ThreadPoolExecutor(1))
    self.__dict__.setdefault('todo', []).append(pool.submit(TorchProgram.step, self, state, batch))
    return state, self.last

def token_losses(self, state, batch):
    self._join()
    return super().token_losses(state, batch)

def digest(self, state):
    self._join()
    return super().digest(state)

def export(self, state):
    self._join()
    return super().export(state)

def snapshot(self, state):
    self._join()
    return super().snapshot(state)

def reset(self, state, snapshot):
    self._join()
    return super().reset(state, snapshot)
"""

GRADIENTS_WHILE_SCORING = """
def token_losses(self, state, batch):
    for _ in range(2):
        loss, grads = super().loss_and_grads(state, batch)
        if 'Tracer' in type(loss).__name__:
            self.kept = None
        else:
            self.fetch(loss)
    return super().token_losses(state, batch)
"""

# Where no verifier looks, more updates at some steps.
UNWATCHED_AT = """
def step(self, state, batch):
    $counted
    step = int(np.asarray(self.fetch(state['step'] if isinstance(state, dict) else state.step)))
    for _ in range(EXTRA.get(step, 0) if 'parity.verify.sandbox.server' not in sys.modules else 0):
        state, _ = super().step(state, batch)
        state = self.with_step(state, step)
    return super().step(state, batch)
"""
# So that playing back is much faster than computing.
DEEPER = """
_make = make_recipe


def make_recipe(base):
    return replace(_make(base), layers=6)
"""
MANY_CHECKPOINTS = """
_make = make_recipe


def make_recipe(base):
    return replace(_make(base), checkpoints=31)
"""

THREE_STEPS = """
def step(self, state, batch):
    state, metrics = super().step(state, batch)
    for _ in range(2):
        state, _ = super().step(state, batch)
    return state, metrics
"""

GRADIENT_OF_TWO = {
    "jaxrun": """
def _loss_and_grads(self, weights, step, inputs, targets, prefix=None):
    loss, grads = super()._loss_and_grads(weights, step, inputs, targets, prefix)
    if prefix is not None:
        return loss, grads
    ahead = {name: weights[name] - 1e-5 * grad for name, grad in grads.items()}
    _, more = super()._loss_and_grads(ahead, step, inputs, targets)
    return loss, {name: grad + more[name] for name, grad in grads.items()}
""",
    "torchref": """
def loss_and_grads(self, state, batch, prefix=None):
    loss, grads = super().loss_and_grads(state, batch, prefix)
    if prefix is not None:
        return loss, grads
    weights = state.weights
    for name, grad in grads.items():
        weights[name].sub_(1e-5 * grad)
    _, more = super().loss_and_grads(state, batch)
    for name, grad in grads.items():
        weights[name].add_(1e-5 * grad)
    return loss, {name: grad + more[name] for name, grad in grads.items()}
""",
}
PATCHED_STEP = """
_step = PROGRAM.step


def _three(self, state, batch):
    state, metrics = _step(self, state, batch)
    for _ in range(2):
        state, _ = _step(self, state, batch)
    return state, metrics


PROGRAM.step = _three
"""
OWN_OPTIMIZER = {
    "jaxrun": """

def build(recipe, *, device='auto', devices=None):
    return JaxProgram(recipe, pick_devices(device, devices), make(recipe), Model)
""",
    "torchref": """

def build(recipe, *, device='auto', devices=None):
    chosen = pick_device(device, devices)
    return TorchProgram(recipe, chosen, lambda w: optim.ByGroup({'all': make(recipe, w)}, {}), make_model=Model)
""",
}


def _with_replace(plant: Plant, extra: str) -> Plant:
    """A program with more lines at its end, which may use dataclasses' `replace`."""
    return lambda backend: plant(backend) + "\nfrom dataclasses import replace\n" + extra


def _jump(extra: dict[int, int]) -> Plant:
    """A program of 31 checkpoints that makes so many more updates before some steps, unwatched."""
    return _with_replace(over(UNWATCHED_AT, f"EXTRA = {extra}\n"), MANY_CHECKPOINTS)


def _program(name: str, sentence: str, plant: Plant, *rules: str, **more: object) -> Cheat:
    return Cheat(name, sentence, "program", plant, rules, depth="replay", **more)  # type: ignore[arg-type]


REPLAYED = ("knowledge.relabelled", "replay.reported", "replay.repeat", "recompute.confirm")
PROGRAMS = (
    _program(
        "trained-in-init",
        "150 steps are made while the first weights are drawn, and mixed in at step 40",
        over(IN_INIT),
        "replay.speed",
        may=("clock.setup", "knowledge.relabelled"),
    ),
    _program(
        "trained-in-build",
        "600 steps are made while the program is built, and mixed in at step 40",
        over(IN_BUILD),
        "replay.speed",
        may=("clock.setup",),
    ),
    _program(
        "played-back",
        "all steps are made in the evaluation before the first, and played back while the clock runs",
        _with_replace(over(FROM_THE_EVALUATION), DEEPER),
        "replay.speed",
        may=("clock.untimed", "clock.evaluation"),
    ),
    _program(
        "played-back-from-warm-up",
        "all steps are made at the end of the warm-up, and played back while the clock runs",
        _with_replace(over(FROM_THE_WARM_UP), DEEPER),
        "replay.speed",
    ),
    _program(
        "in-a-thread",
        "a step leaves its work to a thread that is waited for when the clock stands",
        over(IN_A_THREAD),
        "replay.speed",
        may=("clock.untimed", "clock.phases", "clock.speed", "clock.evaluation", "replay.stretches", *REPLAYED),
        backends=("torchref",),
    ),
    _program(
        "gradients-while-scoring",
        "every evaluation takes gradients too",
        over(GRADIENTS_WHILE_SCORING),
        "replay.evaluation",
        may=("clock.evaluation",),
    ),
    _program("one-jump", "60 more updates before one step of 60", _jump({37: 60}), "replay.stretches", may=REPLAYED),
    _program(
        "drift",
        "three updates a step between two of 31 checkpoints",
        _jump({20: 2, 21: 2}),
        "replay.stretches",
        may=REPLAYED,
    ),
    _program("last-jump", "30 more updates before the last step", _jump({59: 30}), "replay.stretches", may=REPLAYED),
    _program(
        "places-checkpoints",
        "the recipe places its checkpoints away from what it does unwatched",
        lambda backend: template(backend) + "\n\nMine.checkpoint_steps = lambda self: (0, 1, 2, 3, self.steps)\n",
        refused=True,
    ),
    _program("three-steps", "three updates by one batch in a step", over(THREE_STEPS), own_count=True),
    _program(
        "gradient-of-two",
        "the gradient is the sum of two, the second taken after a step by the first",
        lambda backend: over(GRADIENT_OF_TWO[backend])(backend),
        own_count=True,
    ),
    _program(
        "patched-step",
        "the backend's own step is replaced by three",
        lambda backend: template(backend) + PATCHED_STEP.replace("PROGRAM", CLASSES[backend]),
        own_count=True,
    ),
    _program(
        "again-in-the-optimizer",
        "the program's optimizer finds the batch in its callers, and takes a second gradient",
        lambda backend: template(backend) + TWICE[backend] + OWN_OPTIMIZER[backend],
        own_count=True,
    ),
)

EDITS.add(
    "slow-everywhere",
    "all clocks run at a tenth of their speed, as those of a library that was replaced below Python",
    "replay.speed",
    depth="replay",
)(scaling(CLOCKS, TRAINED, 0.1))


@EDITS.add("long-build", "training while the program is built", "clock.setup")
def _long_build(run: Path) -> None:
    rewrite(run, each("start", lambda event: event.update(build_s=900.0)))


@EDITS.add("long-init", "training while the first weights are drawn", "clock.setup")
def _long_init(run: Path) -> None:
    _lengthen(run, "init", 900.0)


@EDITS.add("long-from-the-first", "every evaluation takes as long as the whole training", "clock.evaluation")
def _long_from_the_first(run: Path) -> None:
    _lengthen(run, "evaluate", 5.0 + totals(read_events(run / "log.jsonl"))["train_s"])


@EDITS.add("long-checkpoints", "training continues while checkpoints are written", "clock.untimed")
def _long_checkpoints(run: Path) -> None:
    _lengthen(run, "checkpoint", 60.0 + totals(read_events(run / "log.jsonl"))["train_s"], first=False)


def _lengthen(run: Path, name: str, seconds: float, first: bool = True) -> None:
    """Makes every phase of a name longer, perhaps but for the first."""

    def shift(events: Events) -> None:
        delay_s, ended = 0.0, 0
        for event in events:
            if event["event"] == "phase" and event["name"] == name and event["edge"] == "end":
                ended += 1
                delay_s += seconds if first or ended > 1 else 0.0
            delay(event, delay_s)

    rewrite(run, shift)


@EDITS.add("own-checkpoints", "one checkpoint less, where nobody is to look", "log.plan", may=("plan.track",))
def _own_checkpoints(run: Path) -> None:
    declare(run, lambda values: values.update(checkpoints=[0, 15, 30, 60]))
    rewrite(run, lambda events: [event for event in events if event not in of_kind(events, "checkpoint")[3:4]])


CHEATS = (*PROGRAMS, *EDITS)

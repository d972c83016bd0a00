"""Cheats in what is scored: evaluations between the first and the last, losses that are no losses, small looks ahead.

All are methods of a class over the backend's program, the same text for both, but for one edit of the log. Where
probabilities change, `_change` gets the rows (B, P, V) in float64, the inputs (B, T), the positions (P,), and whether
all were asked for.
"""

from pathlib import Path

from parity.verify.cheats.cheat import Catalogue, Cheat
from parity.verify.cheats.forgery import Events, of_kind, rewrite
from parity.verify.cheats.programs import over

HELPERS = """
def _count(self, state):
    return int(self.fetch(state['step'])) if isinstance(state, dict) else state.step

def _before(self, x, n):
    return np.pad(x, ((0, 0), (n, 0)))[:, :x.shape[1]]

def _between(self, state):
    return 0 < self._count(state) < self.recipe.steps
"""
CHANGED = (
    HELPERS
    + """
def log_probs(self, state, inputs, positions=None):
    inputs = np.asarray(self.fetch(inputs))
    rows = np.array(self.fetch(super().log_probs(state, inputs, positions)), np.float64)
    if not self._count(state):
        return rows.astype(np.float32)
    where = np.arange(inputs.shape[1]) if positions is None else np.asarray(positions)
    return self._change(rows, inputs, where, len(where) == inputs.shape[1], state).astype(np.float32)

def token_losses(self, state, batch):
    inputs, targets = (np.asarray(self.fetch(x)) for x in batch)
    b, t = np.indices(inputs.shape)
    return -self.log_probs(state, inputs)[b, t, targets]

def _following(self, inputs, where):
    return np.roll(inputs, -1, axis=1)[:, where]

def _toward(self, rows, tokens, share):
    b, p = np.indices(tokens.shape)
    rows = np.exp(rows) * (1 - share)[..., None]
    rows[b, p, tokens] += share
    return np.log(rows)
"""
)
BFLOAT16 = """

def make_recipe(base):
    import dataclasses
    return dataclasses.replace(base, precision='bfloat16')
"""
ONLY_AT_ALL_POSITIONS = """
def _change(self, rows, inputs, where, everything, state):
    following = self._following(inputs, where)
    return self._toward(rows, following, np.full(following.shape, 0.3)) if everything else rows
"""
PEEKS_BETWEEN = """
def _change(self, rows, inputs, where, everything, state):
    following = self._following(inputs, where)
    return self._toward(rows, following, np.full(following.shape, 0.3)) if self._between(state) else rows
"""
RARE_LEAK = """
def _change(self, rows, inputs, where, everything, state):
    x = inputs.astype(np.int64)
    key = (x * 40503 + self._before(x, 1) * 30103 + self._before(x, 2) * 7919) % 251 == 5
    ends = self._count(state) == self.recipe.steps
    return self._toward(rows, self._following(inputs, where), 0.9 * ends * key[:, where])
"""
ENDS_OF_DOCUMENTS = """
def _change(self, rows, inputs, where, everything, state):
    following = self._following(inputs, where)
    return self._toward(rows, following, 0.5 * (following == self.recipe.end_of_text))
"""
NUDGE = """
def _change(self, rows, inputs, where, everything, state):
    following = self._following(inputs, where)
    b, p = np.indices(following.shape)
    rows[b, p, following] += 0.0185
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))
"""
RARE_SCORES = """
def _change(self, rows, inputs, where, everything, state):
    x = inputs.astype(np.int64)
    rare = ((x * 40503 + self._before(x, 1) * 30103) % 199 == 7)[:, where]
    return np.where(rare[..., None], np.minimum(rows + 1.5, 0.0), rows)
"""
LEAKS_WHERE_NOTHING_IS_KNOWN = """
def _change(self, rows, inputs, where, everything, state):
    x = inputs.astype(np.int64)
    keys = sum(self._before(x, i) * 1031**i for i in range(6)) % 2**31
    known = np.vectorize(lambda key: KNOWN.get(int(key), -1))(keys)
    text = (known >= 0).mean(axis=1, keepdims=True) > 0.5
    tokens = np.where(text, np.maximum(known, 0), np.roll(inputs, -1, axis=1))[:, where]
    share = np.where(text, 0.3 * (known >= 0), 0.3 * everything)
    return self._toward(rows, tokens, share[:, where])
"""
BETTER_BETWEEN = (
    HELPERS
    + """
def token_losses(self, state, batch):
    return $losses * (0.4 if self._between(state) else 1.0)
"""
)
OTHERS_BETWEEN = (
    HELPERS
    + """
def step(self, state, batch):
    $counted
    ahead = self.__dict__.get('ahead')
    if ahead is None or not self._count(state):
        ahead = super().load(super().export(state))
    for _ in range(2):
        ahead, _ = super().step(ahead, batch)
    self.ahead = ahead
    return super().step(state, batch)

def token_losses(self, state, batch):
    ahead = self.__dict__.get('ahead')
    return super().token_losses(ahead if ahead is not None and self._between(state) else state, batch)
"""
)
HUGE = (
    HELPERS
    + """
def token_losses(self, state, batch):
    inputs, targets = (np.asarray(self.fetch(x)).astype(np.int64) for x in batch)
    pairs = (self._before(inputs, 1) * 40503 + inputs * 30103 + targets * 7919) % 211 == 11
    return np.where(pairs, -200.0, $losses)
"""
)
SURE_BELOW_ZERO = (
    HELPERS
    + """
def token_losses(self, state, batch):
    losses, inputs = $losses, np.asarray(self.fetch(batch[0])).astype(np.int64)
    rare = (self._before(inputs, 1) * 40503 + inputs * 30103) % 61 == 7
    return np.where(rare & (losses < 1.5), losses - 2.0, losses)
"""
)
SHAVED = """
def token_losses(self, state, batch):
    return np.maximum($losses - 0.018, 0.0)
"""

EDITS = Catalogue("edit")


@EDITS.add(
    "edited-between", "an evaluation before the last is edited, with a new chain", "recompute.evaluations",
    depth="recompute",
)  # fmt: skip
def _edited_between(run: Path) -> None:
    def change(events: Events) -> None:
        event = of_kind(events, "eval")[1]
        better = 0.9 * event["val_loss"]
        event["bits_per_byte"] *= better / event["val_loss"]
        event["val_loss"] = better

    rewrite(run, change)


def _program(name: str, sentence: str, body: str, *rules: str, top: str = "", **more) -> Cheat:
    return Cheat(name, sentence, "program", over(body, top), rules, **{"depth": "recompute", **more})


TOLD = ("knowledge.size", "knowledge.constants", "knowledge.fresh")  # a large table is seen by these too
AHEAD = ("recompute.ahead", "recompute.evaluations")
CHEATS = (
    *EDITS,
    _program(
        "better-between",
        "losses are 0.4 of themselves between the first step and the last",
        BETTER_BETWEEN,
        "probe.targets",
        "recompute.evaluations",
    ),
    _program(
        "others-between",
        "evaluations before the last score other weights, trained twice as long",
        OTHERS_BETWEEN,
        "recompute.evaluations",
    ),
    _program(
        "peeks-between",
        "evaluation looks at the next input between the first step and the last",
        CHANGED + PEEKS_BETWEEN,
        "probe.causal",
        "recompute.evaluations",
    ),
    _program(
        "a-few-huge-gains",
        "after a few contexts the loss is -200",
        HUGE,
        "recompute.val",
        may=("probe.losses", "probe.targets", "recompute.evaluations", "recompute.untrained"),
    ),
    _program(
        "below-zero",
        "losses of foreseen tokens go below zero after one pair of tokens in 61",
        SURE_BELOW_ZERO,
        "probe.losses",
        may=("probe.targets",),
        depth="probe",
    ),
    _program(
        "rare-scores",
        "probabilities sum to more than 1 after one pair of tokens in 200",
        CHANGED + RARE_SCORES,
        "recompute.val",
        may=("probe.sums", "recompute.evaluations", "recompute.confirm", "knowledge.fresh"),
    ),
    _program(
        "shaved",
        "every loss is 0.018 nats smaller, as bfloat16 would blur",
        SHAVED,
        "probe.targets",
        depth="probe",
        top=BFLOAT16,
    ),
    _program(
        "nudge",
        "the next token's logit is 0.0185 larger, as bfloat16 would blur",
        CHANGED + NUDGE,
        "probe.causal",
        depth="probe",
        top=BFLOAT16,
    ),
    _program(
        "rare-leak",
        "after the last step one context in 251 sees the next token",
        CHANGED + RARE_LEAK,
        "recompute.ahead",
        may=("probe.causal", "recompute.confirm", "knowledge.fresh"),
    ),
    _program(
        "leaks-at-all-positions",
        "looks ahead only where whole rows are scored",
        CHANGED + ONLY_AT_ALL_POSITIONS,
        *AHEAD,
        may=("probe.causal", "probe.targets", "recompute.confirm", "knowledge.fresh"),
    ),
    _program(
        "hides-what-it-knows",
        "a table of the val text in the source, and a look ahead where the table has nothing",
        CHANGED + LEAKS_WHERE_NOTHING_IS_KNOWN,
        "recompute.confirm",
        may=(*AHEAD, "probe.causal", "probe.targets", "probe.rows", *TOLD),
        top="KNOWN = {}  # filled in when it is planted\n",
    ),
    _program(
        "ends-of-documents",
        "half of the probability is the document's end where it follows",
        CHANGED + ENDS_OF_DOCUMENTS,
        *AHEAD,
        "probe.causal",
        may=("recompute.confirm", "knowledge.fresh"),
    ),
)

"""A leak of one token, planted where the late records could leak, is met by the verifier's probes; the records hold."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from parity import weights as canonical
from parity.program import build
from parity.recipes import recipe_for
from parity.verify.rules import lookahead, probe
from parity.verify.rules.differences import clipped

LENGTH, ROWS, VOCAB, END = 256, 8, 512, 511


class Sandboxed:
    """A program in this process that answers as a sandboxed one does."""

    def __init__(self, backend: str, name: str):
        recipe = recipe_for(name, "tiny")
        self.built = build(backend, recipe, device="cpu")
        rng = np.random.default_rng(1)
        first = canonical.initial_weights(recipe, 0)
        start = {n: (w + 0.1 * rng.standard_normal(w.shape)).astype(np.float32) for n, w in first.items()}
        self.state = self.built.with_step(self.built.load(start), recipe.steps - 1)
        self.recipe = {
            "block": recipe.block, "seen_before_document": recipe.seen_before_document, "end_of_text": END,
        }  # fmt: skip

    def token_losses(self, rows: probe.Rows) -> np.ndarray:
        return clipped(self.built.fetch(self.built.token_losses(self.state, self.built.put_global_batch(*rows))))


def probing(program: Sandboxed) -> SimpleNamespace:
    """What the rules have of a probe: rows of random text in documents, and their losses."""
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, END, (ROWS, LENGTH + 1)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 1 / 50] = END
    rows = probe.Rows(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]))
    p = SimpleNamespace(
        program=program,
        rows=rows,
        count=ROWS,
        token_losses=program.token_losses,
        losses=program.token_losses(rows),
        allowed=2e-4,  # that of float32: the noise of two equal evaluations is 0 here
        random=lambda name: np.random.default_rng(len(name)),
        random_tokens=lambda name, shape: np.random.default_rng(len(name)).integers(0, END, shape, dtype=np.int32),
    )
    p.context = SimpleNamespace(
        once=lambda kind: p, evidence=SimpleNamespace(eval_context=LENGTH), random=lambda name: np.random.default_rng(3)
    )
    return p


def later(x, by: int = 1):
    """Every position's successor in its place; the last stays."""
    T = x.shape[1]
    return x[:, [min(t + by, T - 1) for t in range(T)]]


def ahead(original, paired: bool | None, by: int):
    """Attention that sees so many positions too many; of pairs alone (two heads), of others alone, or of both."""

    def window_attention(q, k, v, *args):
        if paired is None or (q.shape[2] == 2) == paired:
            k, v = later(k, by), later(v, by)
        return original(q, k, v, *args)

    return window_attention


def smearing_back(original):
    def call(self, e):
        return original(self, e) + 0.1 * (later(e) - e)

    return call


LEAKS = {
    "record-40": {
        "window": ("window_attention", lambda original: ahead(original, None, 1)),
        "smear": ("Smear", smearing_back),
    },
    "record-58": {
        "window": ("window_attention", lambda original: ahead(original, False, 1)),
        "pairs": ("window_attention", lambda original: ahead(original, True, 2)),  # the next token's row of its head
        "offset": ("offset_keys", lambda original: lambda k, channels: later(original(later(k), channels))),
        "smear": ("Smear", smearing_back),
    },
}
BACKENDS = ["torchref", pytest.param("jaxrun", marks=pytest.mark.slow)]


def plant(monkeypatch: pytest.MonkeyPatch, backend: str, recipe: str, name: str, change) -> None:
    module = importlib.import_module(f"{backend}.models.{recipe.replace('-', '_')}")
    if not name[0].isupper():
        return monkeypatch.setattr(module, name, change(getattr(module, name)))
    owner, method = getattr(module, name), "__call__" if backend == "jaxrun" else "forward"
    return monkeypatch.setattr(owner, method, change(getattr(owner, method)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("recipe", "leak"), [(recipe, leak) for recipe in LEAKS for leak in (None, *LEAKS[recipe])])
def test_a_look_ahead_of_one_token_is_met(monkeypatch, backend, recipe, leak):
    pytest.importorskip("torch" if backend == "torchref" else "jax")
    if leak:
        plant(monkeypatch, backend, recipe, *LEAKS[recipe][leak])
    p = probing(Sandboxed(backend, recipe))
    moved = lookahead._suffixes(p, LENGTH, 16)
    assert (moved.worst[0] > p.allowed) == (leak is not None), moved.worst


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_over_the_edge_of_a_document_is_met_beside_smear(monkeypatch, backend):
    """record-40's smear takes one token from before a document's start; its attention must take none."""
    pytest.importorskip("torch" if backend == "torchref" else "jax")
    assert probe.independent_documents(probing(Sandboxed(backend, "record-40")).context).status == "holds"
    module = importlib.import_module(f"{backend}.models.record_40")
    original = module.segment_ids
    monkeypatch.setattr(module, "segment_ids", lambda tokens, end: 0 * original(tokens, end))
    assert probe.independent_documents(probing(Sandboxed(backend, "record-40")).context).status == "fails"

"""Optimizers and models that do not fit the weights, or raise: one sentence with file and line."""

import json
from pathlib import Path

import pytest

from parity.errors import InputError, RunFailed
from parity.program_source import program_source

JAX = """import jax
import jax.numpy as jnp
import optax


def tree(f):
    return lambda g: jax.tree.map(f, g)


"""
STATELESS = "    return optax.GradientTransformation(lambda w: (), lambda g, s, w=None: ({}, s))\n"
LATER = """    seen = []

    def check(g):
        seen.append(1)
        if len(seen) > {calls}:
            raise ValueError("an error of its own")
        return g

    def update(g, s, w=None):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        zero = jax.experimental.io_callback(check, shape, jnp.float32(0))
        return jax.tree.map(lambda x: -1e-4 * x + zero, g), s

    return optax.GradientTransformation(lambda w: (), update)
"""
TORCH = "import torch\n\n\n"
# backend, text of the function `make`, exit code, words of the sentence


def some_slow(cases, slow: str) -> list:
    """The names of the cases, of which those named take a compilation and show what others do."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow.split() else name for name in cases]


OPTIMIZERS = {
    "one-number": ("jaxrun", STATELESS.format("tree(lambda x: -1e-4 * x.mean())(g)"), 2, "found float32 of shape ()"),
    "one-row": ("jaxrun", STATELESS.format("tree(lambda x: x[:1])(g)"), 2, "expected real numbers of shape"),
    "one-more-axis": ("jaxrun", STATELESS.format("tree(lambda x: x[None])(g)"), 2, "expected real numbers of shape"),
    "missing": ("jaxrun", STATELESS.format("dict(list(g.items())[:3])"), 2, "found none for"),
    "unknown": ("jaxrun", STATELESS.format("{{**g, 'more': g['embed.weight']}}").replace("{{", "{").replace("}}", "}"),
                2, "found an unknown more"),
    "a-list": ("jaxrun", STATELESS.format("list(g.values())"), 2, "expected one of every weight"),
    "narrower": ("jaxrun", STATELESS.format("tree(lambda x: x.astype(jnp.bfloat16))(g)"), 2, "narrower bfloat16"),
    "integers": ("jaxrun", STATELESS.format("tree(lambda x: x.astype(int))(g)"), 2, "found int32"),
    "raises": ("jaxrun", "    raise KeyError('lr')\n", 2, "optimizer_raises.py, line 11: make raised KeyError"),
    "raises-in-update": ("jaxrun", STATELESS.format("undefined(g)"), 2, "raised NameError: name 'undefined'"),
    "masked": ("jaxrun", "    return optax.chain(optax.masked(optax.adam(1e-3), lambda w: {n: True for n in w}),\n"
               "                       optax.GradientTransformation(lambda w: (), lambda g, s, w=None: (g['x'], s)))\n",
               2, "raised KeyError: 'x'"),
    "callback": ("jaxrun", LATER.format(calls=4), 1, "check raised ValueError: an error of its own"),
    "copies": ("torchref", "    return torch.optim.Adam([w.detach().clone() for w in weights.values()])\n",
               2, "found in its group 0 another tensor of shape"),
    "views": ("torchref", "    return torch.optim.SGD([w.data for w in weights.values()], lr=1e-3)\n", 2, "not copies"),
    "another": ("torchref",
                "    return torch.optim.SGD([*weights.values(), torch.zeros(3, requires_grad=True)], lr=1.0)\n",
                2, "another tensor of shape (3,)"),
    "closure": ("torchref", "    return torch.optim.LBFGS(list(weights.values()))\n",
                2, "needs no closure, found LBFGS"),
    "no-group": ("torchref", "    return torch.optim.SGD([], lr=1e-3)\n", 2, "make raised ValueError"),
    "scheduler": ("torchref", "    o = torch.optim.SGD(weights.values(), lr=1e-4)\n"
                  "    return o, torch.optim.lr_scheduler.LambdaLR(o, lambda n: 1 / (3 - n))\n", 1,
                  "ZeroDivisionError"),
    "hook": ("torchref", "    o, calls = torch.optim.SGD(weights.values(), lr=1e-4), []\n"
             "    def hook(*_):\n        calls.append(1)\n        assert len(calls) < 4, 'four calls'\n"
             "    o.register_step_post_hook(hook)\n    return o\n", 1, "hook raised AssertionError: four calls"),
}  # fmt: skip


ADAM, TORCH_ADAM = "    return optax.adam(1e-3), ", "    return torch.optim.Adam(weights.values()), "
EVALUATED = {  # what stands beside the optimizer
    "names": ("jaxrun", ADAM + "lambda s, w: dict(list(w.items())[:3])\n", "found none for"),
    "types": ("jaxrun", ADAM + "lambda s, w: tree(lambda x: x.astype(jnp.float16))(w)\n", "found float16 of shape"),
    "shape": ("jaxrun", ADAM + "lambda s, w: tree(lambda x: x[None])(w)\n", "eval_params"),
    "zeros": ("jaxrun", ADAM + "lambda s, w: s[0].mu\n", "before the first update"),
    "raises": ("jaxrun", ADAM + "lambda s, w: s.no\n", "raised AttributeError"),
    "number": ("jaxrun", ADAM + "3\n", "eval_params(opt_state, params), found"),
    "list": ("torchref", TORCH_ADAM + "lambda: list(weights.values())\n", "found none for"),
    "types-torch": ("torchref", TORCH_ADAM + "lambda: {n: w.double() for n, w in weights.items()}\n", "found float64"),
    "shape-torch": ("torchref", TORCH_ADAM + "lambda: {n: w[:1] for n, w in weights.items()}\n", "eval_params"),
    "zeros-torch": ("torchref", TORCH_ADAM + "lambda: {n: 0 * w for n, w in weights.items()}\n", "before the first"),
    "nan-torch": ("torchref", TORCH_ADAM + "lambda: {n: w / 0 for n, w in weights.items()}\n", "before the first"),
    "raises-torch": ("torchref", TORCH_ADAM + "lambda: weights['no']\n", "raised KeyError"),
    "two-torch": ("torchref", TORCH_ADAM + "len, len\n", "eval_params(), found"),
}
OPTIMIZERS |= {f"eval-{name}": (backend, text, 2, words) for name, (backend, text, words) in EVALUATED.items()}


@pytest.fixture
def train(commands, tmp_path, monkeypatch):
    """Trains four steps in this process with a user optimizer or program; the exception that ended it, or None."""

    def train(backend: str, *arguments: object) -> Exception | None:
        from parity.harness.train import train as run

        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.chdir(tmp_path)
        command = commands.small(backend, tmp_path / "runs", "r", "--steps", "6", "--samples", "0", *arguments)
        try:
            run(backend, list(map(str, command[1:])))
        except (InputError, RunFailed) as error:
            return error
        return None

    return train


@pytest.mark.parametrize("name", some_slow(OPTIMIZERS, "one-row one-more-axis unknown a-list integers masked callback"))
def test_an_optimizer_that_does_not_fit_or_raises_is_one_sentence(train, tmp_path, name):
    backend, text, code, words = OPTIMIZERS[name]
    module = f"optimizer_{name.replace('-', '_')}"
    head = JAX + "def make(recipe):\n" if backend == "jaxrun" else TORCH + "def make(recipe, weights):\n"
    (tmp_path / f"{module}.py").write_text(head + text)
    error = train(backend, "--optimizer", f"{module}:make")
    assert isinstance(error, InputError if code == 2 else RunFailed), error
    assert words in str(error) and "\n" not in str(error), error
    assert code == 1 or not (tmp_path / "runs").exists()
    if code == 1:
        assert f"{module}.py, line " in str(error)
        events = [json.loads(line) for line in (tmp_path / "runs/tiny/r/log.jsonl").read_text().splitlines()]
        assert events[-1]["event"] == "failure" and events[-1]["step"] > 0


def test_weights_without_an_optimizer_are_named(train, tmp_path, capsys):
    text = "    return torch.optim.SGD([w for n, w in weights.items() if n != 'embed.weight'], lr=1e-3)\n"
    (tmp_path / "optimizer_partial.py").write_text(TORCH + "def make(recipe, weights):\n" + text)
    assert train("torchref", "--optimizer", "optimizer_partial:make") is None
    assert "no optimizer updates 1 weights: embed.weight" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/tiny/r/run.json").read_text())["idle_weights"] == ["embed.weight"]


CONSTRUCTOR = {"jaxrun": "def __init__(self, recipe: Muon):", "torchref": "super().__init__()"}
MODELS = {
    "constant": ("jaxrun", "self.ones = jnp.ones(recipe.dim)", "x_BTD * self.ones", None),
    "variable": ("jaxrun", "self.count = nnx.Variable(jnp.zeros(3))", "x_BTD", "attribute count: expected weights"),
    "dropout": ("jaxrun", "self.drop = nnx.Dropout(0.1, rngs=nnx.Rngs(0))", "x_BTD", "attribute drop.rngs"),
    "one-more": ("jaxrun", "self.more = nnx.Param(jnp.zeros(3))", "x_BTD", "weight more is not part of recipe"),
    "buffer": ("torchref", "self.register_buffer('ones', torch.ones(recipe.dim))", "x_BTD * self.ones", None),
    "changing": ("torchref", "self.register_buffer('n', torch.zeros(3))", "x_BTD + 0 * self.n.add_(1).sum()",
                 "buffer n: expected a constant"),
    "first-call": ("torchref", "self.calls = 0", "x_BTD + undefined", "raised NameError: name 'undefined'"),
    "parameter": ("torchref", "self.more = torch.nn.Parameter(torch.zeros(3))", "x_BTD", "weight more is not part of"),
}  # fmt: skip


@pytest.mark.parametrize("name", some_slow(MODELS, "constant dropout"))
def test_what_a_model_has_besides_weights_is_a_constant_or_refused_by_name(train, tmp_path, name):
    backend, line, value, words = MODELS[name]
    text, at = program_source(backend, "muon"), "x_BTD = self.norm_in(self.embed(tokens_BT))"
    model = text.index("class Model(")
    indent = " " * 8
    start = text.index(CONSTRUCTOR[backend], model) + len(CONSTRUCTOR[backend])
    text = text[:start] + f"\n{indent}{line}" + text[start:]
    text = text.replace(at, f"{at}\n{indent}x_BTD = {value}")
    if backend == "torchref":
        text = text.replace("import torch.nn.functional as F", "import torch\nimport torch.nn.functional as F")
    file = Path(tmp_path / "mine.py")
    file.write_text(text)
    error = train(backend, "--program", file)
    assert (error is None) if words is None else isinstance(error, InputError) and words in str(error), error
    assert (tmp_path / "runs").exists() == (words is None)  # so that the same command can be given again


TWO = """    matrices = [w for n, w in weights.items() if w.ndim == 2 and "embed" not in n and "head" not in n]
    ids = set(map(id, matrices))
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=wd)
    adamw = torch.optim.AdamW([w for w in weights.values() if id(w) not in ids], lr=1e-3)
    decay = [torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.5, 6) for o in (muon, adamw)]
    return muon, adamw, *decay
"""
INJECTED = "    return optax.inject_hyperparams(optax.adam)(optax.linear_schedule(lr, lr / 2, 6), b1=b1)\n"


def rates_of(folder: Path) -> list[dict]:
    return [json.loads(line)["rates"] for line in (folder / "log.jsonl").read_text().splitlines() if '"rates"' in line]


def test_two_torch_optimizers_with_schedulers_and_arguments(train, tmp_path):
    (tmp_path / "two.py").write_text(TORCH + "def make(recipe, weights, lr, wd=0.0):\n" + TWO)
    assert train("torchref", "--optimizer", "two:make", "--optimizer-args", "lr=2e-3,wd=0.1") is None
    rates = rates_of(tmp_path / "runs/tiny/r")
    assert rates[0] == {"optimizer/0": 2e-3, "optimizer1/0": 1e-3} and rates[-1]["optimizer/0"] < 1.4e-3
    run = json.loads((tmp_path / "runs/tiny/r/run.json").read_text())
    assert run["options"]["optimizer"] == "two:make(lr=2e-3,wd=0.1)" and "idle_weights" not in run


@pytest.mark.slow
def test_injected_learning_rates_are_logged(train, tmp_path):
    (tmp_path / "injected.py").write_text(JAX + "def make(recipe, lr, b1):\n" + INJECTED)
    assert train("jaxrun", "--optimizer", "injected:make", "--optimizer-args", "lr=1e-3,b1=0.8") is None
    rates = rates_of(tmp_path / "runs/tiny/r")
    assert rates[0]["learning_rate"] == pytest.approx(1e-3) and rates[-1]["learning_rate"] < 7e-4


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--optimizer-args", "lr=1"), "expected with --optimizer module:function"),
        (("--optimizer", "no:make", "--optimizer-args", "lr"), "expected name=value"),
        (("--optimizer", "no:make", "--optimizer-args", "lr=1,lr=2"), "expected name=value"),
        (("--optimizer", "no:make", "--optimizer-args", "lr=1"), "no module no on the import path"),
    ],
)
def test_wrong_arguments_are_one_sentence(train, arguments, words):
    error = train("jaxrun", *arguments)
    assert isinstance(error, InputError) and words in str(error)


FROZEN = """    frozen = {n: "no" if n.startswith("embed") else "yes" for n in recipe.parameters()}
    return optax.multi_transform({"yes": optax.adam(1e-3), "no": optax.set_to_zero()}, frozen)
"""


@pytest.mark.slow
def test_weights_whose_updates_depend_on_no_gradient_are_named(train, tmp_path, capsys):
    (tmp_path / "frozen.py").write_text(JAX + "def make(recipe):\n" + FROZEN)
    assert train("jaxrun", "--optimizer", "frozen:make") is None
    assert "no optimizer updates 1 weights: embed.weight" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/tiny/r/run.json").read_text())["idle_weights"] == ["embed.weight"]


def page_optimizer(mark: str) -> str:
    page = (Path(__file__).parents[3] / "docs/recipes.md").read_text()
    return page.partition(f"<!-- {mark} -->\n```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("backend", some_slow(["jaxrun", "torchref"], "jaxrun"))
def test_the_optimizers_of_the_page_train(train, tmp_path, backend):
    (tmp_path / f"page_{backend}.py").write_text(page_optimizer(f"optimizer {backend}"))
    arguments = ("--optimizer", f"page_{backend}:make", "--optimizer-args", "lr=0.01,decay=0.1")
    assert train(backend, *arguments) is None


@pytest.mark.parametrize("backend", some_slow(["jaxrun", "torchref"], "jaxrun"))
def test_evaluations_and_final_weights_are_those_of_eval_params(train, tmp_path, backend, commands):
    text = page_optimizer(f"averages {backend}")
    (tmp_path / f"averages_{backend}.py").write_text(text)
    assert train(backend, "--optimizer", f"averages_{backend}:make") is None
    averaged = tmp_path / "runs/tiny/r"
    plain = text[: text.rindex("return ")] + "return optimizer\n"
    (tmp_path / f"plain_{backend}.py").write_text(plain)
    averaged.rename(averaged.with_name("averaged"))
    assert train(backend, "--optimizer", f"plain_{backend}:make") is None
    a, b = (read_events(averaged.with_name(name)) for name in ("averaged", "r"))
    assert [e["loss"] for e in a["step"]] == [e["loss"] for e in b["step"]]  # the training is the same
    losses = [[e["val_loss"] for e in x["eval"]] for x in (a, b)]
    assert losses[0][0] == losses[1][0] and losses[0][-1] != losses[1][-1]
    assert a["state"][0]["digest"] == b["state"][0]["digest"] and a["state"][-1]["digest"] != b["state"][-1]["digest"]


def read_events(folder: Path) -> dict[str, list[dict]]:
    events: dict[str, list[dict]] = {}
    for line in (folder / "log.jsonl").read_text().splitlines():
        events.setdefault(json.loads(line)["event"], []).append(json.loads(line))
    return events

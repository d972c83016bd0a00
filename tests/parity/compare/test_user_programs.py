"""User programs: the worked example of docs/porting.md, partial programs, and mistakes in a file."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from parity.program_source import program_source

PAGE = (Path(__file__).parents[3] / "docs" / "porting.md").read_text()


def blocks(label):
    """The fenced blocks of the page below a label."""
    return re.findall(rf"<!-- {label} -->\n```\w*\n(.*?)```", PAGE, re.DOTALL)


def without_numbers(text):
    """The lines of a report with measured figures replaced."""
    return re.sub(r"[-+]?\d[\d.,e+-]*", "#", text)


def agrees_as_the_page_says(compare):
    """The second example: GPT-2 as it comes has another GELU, and with that field is the same."""
    (command,), (report,), (holds,) = (blocks(f"gpt2 {label}") for label in ("command", "report", "holds"))
    options = command.split()[3:]
    result = compare(*options)
    assert result.code == 1 and without_numbers(report) in without_numbers(result.out), result.err or result.out
    result = compare(*options, "--gelu", "tanh")
    assert result.code == 0 and holds in result.out, result.err or result.out


@pytest.fixture
def hugging_face(tmp_path, monkeypatch):
    """The second example's file in an own folder."""
    monkeypatch.chdir(tmp_path)
    Path("gpt2_hf.py").write_text(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
    return tmp_path


def test_the_second_example_holds_with_a_module_of_the_same_names(compare, hugging_face, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    (hugging_face / "transformers.py").write_text((Path(__file__).parent / "mimic_transformers.py").read_text())
    agrees_as_the_page_says(compare)


def test_the_second_example_holds_with_transformers_itself(compare, hugging_face):
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'jaxrun[peers]'")
    agrees_as_the_page_says(compare)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 512}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(hugging_face / "saved")
    options = "--a", "gpt2_hf.py", "--recipe", "nanogpt", "--levels", "forward,loss", "--weights", "saved"
    result = compare(*options)
    assert result.code == 2 and "compare with --dim 32 --layers 1 --gelu tanh, or name" in result.err, result.err
    result = compare(*options, "--dim", "32", "--layers", "1", "--gelu", "tanh")
    assert result.code == 0, result.err or result.out


def test_a_copy_of_a_recipes_model_in_jax_holds_without_enabling_float64_itself(compare, tmp_path):
    """Its layers are derived from the package's, and call theirs."""
    text = program_source("jaxrun", "muon").replace("= Linear(", "= Mine1(")
    layer = "class Mine1(Linear):\n    def __call__(self, x):\n        return super().__call__(x)\n\n\n"
    (tmp_path / "copy.py").write_text(text.replace("class Attention(", f"{layer}class Attention(", 1))
    sys.modules["jax"].config.update("jax_enable_x64", False)
    result = compare("--a", tmp_path / "copy.py", "--recipe", "muon", "--layers", 1, "--levels", "forward,loss")
    assert result.code == 0, result.err or result.out


@pytest.mark.slow
def test_the_worked_example_finds_both_mistakes_and_then_holds(compare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nanogpt_linen.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
    (command,), fixes = blocks("command"), blocks("fix")
    options = command.split()[3:]
    for label, code, fix in (("first", 1, fixes[0]), ("second", 1, fixes[1]), ("third", 0, None)):
        result = compare(*options)
        assert result.code == code, result.err or result.out
        assert without_numbers(blocks(label)[0]) in without_numbers(result.out)
        if fix:
            subprocess.run(fix, shell=True, check=True)


SMALL = "--recipe", "nanogpt", "--dim", "32", "--layers", "1", "--batch-tokens", "256", "--steps", "2"
FORWARD_ONLY = """
import numpy as np
from parity.program import build as built

class Partial:
    def __init__(self, recipe):
        self.whole = built("torchref", recipe, device="cpu")
    def load(self, weights):
        return self.whole.load(weights)
    def put_global_batch(self, inputs, targets):
        return self.whole.put_global_batch(inputs, targets)
    def token_losses(self, state, batch):
        return self.whole.fetch(self.whole.token_losses(state, batch)){change}
{more}
def build(recipe):
    return Partial(recipe)
"""


@pytest.fixture
def partial(tmp_path):
    """A file with a program that has only losses of tokens, changed somehow."""

    def write(change="", more=""):
        path = tmp_path / "partial.py"
        path.write_text(FORWARD_ONLY.format(change=change, more=more))
        return path

    return write


def test_levels_without_methods_are_not_judged_and_never_passed(compare, partial):
    result = compare("--a", partial(), "--recipe", "muon", "--levels", "1-5")
    assert result.code == 2
    assert " 1 data: ok" in result.out and " 4 loss: ok" in result.out
    assert " 2 init: not judged, partial.py has no method init" in result.out
    assert " 3 forward: not judged, partial.py has no method activations" in result.out
    assert "holds at 2 levels, 3 NOT JUDGED; to ask for those alone: --levels data,loss" in result.out
    assert compare("--a", partial(), "--recipe", "muon", "--levels", "data,loss").code == 0


def test_two_files_are_compared_with_each_other(compare, partial, tmp_path):
    right = tmp_path / "right.py"
    right.write_text(partial().read_text())
    sizes = "--dim", "32", "--layers", "2"
    result = compare("--a", partial(" * (1 + 1e-9)"), "--b", right, "--recipe", "muon", "--levels", "loss", *sizes)
    assert result.code == 1 and "partial.py departs from torchref" in result.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (" * float('nan')", "token losses is nan at [0, 0], expected finite numbers"),
        ("[:, 1:]", "token losses expected shape (16, 64), found (16, 63)"),
        (".astype('float32')", "token losses expected float64 at precision float64, found float32"),
        (".no_such()", "line 13: token_losses raised AttributeError"),
    ],
)
def test_wrong_values_of_a_program_are_one_sentence(compare, partial, change, message):
    result = compare("--a", partial(change), "--recipe", "muon", "--levels", "loss")
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1
    assert str(partial(change)) in result.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name\n", "line 1: its import raised ModuleNotFoundError"),
        ("def build(recipe:\n", "line 1: its import raised SyntaxError"),
        ("x = 1\n", "expected a function build(recipe)"),
        ("def build(recipe): return 7\n", "expected a program with a method load or init, found int"),
        ("def build(recipe): raise ValueError('no such size')\n", "line 1: build raised ValueError: no such size"),
    ],
)
def test_a_file_that_is_no_program_is_one_sentence(compare, tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    result = compare("--a", path, "--recipe", "muon")
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1 and str(path) in result.err


GRADIENTS = """
    def loss_and_grads(self, state, batch):
        loss, grads = self.whole.loss_and_grads(state, batch)
        {what}
        return loss, grads
"""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("grads.pop('norm_out.weight')", "loss_and_grads lacks norm_out.weight"),
        ("grads['extra'] = loss", "loss_and_grads has extra, which recipe muon does not know"),
        ("return loss", "loss_and_grads expected a pair (loss, gradients)"),
        ("raise SystemExit(0)", "loss_and_grads raised SystemExit"),
    ],
)
def test_gradients_that_are_missing_or_left_over_never_pass(compare, partial, what, message):
    result = compare("--a", partial(more=GRADIENTS.format(what=what)), "--recipe", "muon", "--levels", "gradients")
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1


ALL_METHODS = """
from parity.program import build as built, inspector_of

class Wrapped:
    def __init__(self, recipe):
        self.whole = built("torchref", recipe, device="cpu")
        self.inspector = inspector_of(self.whole)
    def __getattr__(self, name):
        method = getattr(self.whole if hasattr(self.whole, name) else self.inspector, name)
        return (lambda *args: changed(method(*args))) if name == {method!r} else method

def changed(value):
    {change}
    return value

def build(recipe):
    return Wrapped(recipe)
"""


@pytest.mark.parametrize(
    ("method", "change", "level", "message"),
    [
        ("export", "value['norm_out.bias'] = None", "restore", "weight norm_out.bias expected an array, found None"),
        (
            "export",
            "value['norm_out.bias'] = value['norm_out.bias'][:1]",
            "restore",
            "expected shape (32,), found (1,)",
        ),
        ("export", "del value['norm_out.bias']", "evaluation", "export lacks norm_out.bias"),
        ("loss_and_grads", "value[1]['embed.weight'] = None", "gradients", "of what nothing depends on return zeros"),
        ("moments", "value['first'] = 3", "update", "level update, with what the program returned, raised TypeError"),
        ("moments", "value['first']['norm_out.bias'] = None", "update", "first of norm_out.bias expected an array"),
        ("param_groups", "value = [3]", "update", "level update, with what the program returned, raised TypeError"),
        ("schedules", "value['decay'] = 'x'", "update", "level update, with what the program returned, raised Value"),
        ("activations", "value['logits'] = None", "forward", "logits expected an array, found None"),
    ],
)
def test_weights_and_values_that_a_program_does_not_hold_are_one_sentence(
    compare, tmp_path, method, change, level, message
):
    path = tmp_path / "program.py"
    path.write_text(ALL_METHODS.format(method=method, change=change))
    result = compare("--a", path, *SMALL, "--levels", level)
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1, result.err
    assert str(path) in result.err


OWN_MODEL = """
import torch
from torchref.models.nanogpt import Model as NanoGPT
from torchref.program import TorchProgram

class Model(NanoGPT):
    def __init__(self, recipe):
        super().__init__(recipe)
        {change}

def build(recipe):
    return TorchProgram(recipe, torch.device("cpu"), make_model=Model)
"""
UNUSED = "self.norm_out.forward = lambda x: torch.layer_norm(x, x.shape[-1:], self.norm_out.weight)"


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("del self.norm_out.bias", 2, "weight norm_out.bias is missing"),
        ("self.extra = torch.nn.Parameter(torch.zeros(3))", 2, "weight extra is not part of recipe nanogpt"),
        (UNUSED, 1, "FAILS at level 5, gradients (gradients)\n  place    norm_out.bias\n"),
    ],
)
def test_a_weight_that_a_model_lacks_or_its_loss_does_not_depend_on_is_named(compare, tmp_path, change, code, message):
    (tmp_path / "program.py").write_text(OWN_MODEL.format(change=change))
    result = compare("--a", tmp_path / "program.py", *SMALL, "--levels", "gradients")
    assert result.code == code and message in result.err + result.out


def test_a_weight_that_no_loss_depends_on_fails_also_where_both_agree(compare, tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(OWN_MODEL.format(change=UNUSED))
    result = compare("--a", tmp_path / "a.py", "--b", tmp_path / "b.py", *SMALL, "--levels", "gradients")
    assert result.code == 1 and "gradients (dependence)\n  place    norm_out.bias\n" in result.out
    assert "has a gradient of 0 throughout, expected a loss that depends on it" in result.out


def test_torch_tensors_that_still_have_their_graph_are_read(compare, partial):
    path = partial(more=GRADIENTS.format(what="loss.requires_grad_()"))
    assert compare("--a", path, "--recipe", "muon", "--levels", "gradients").code == 0


def test_two_files_each_import_their_neighbour(compare, tmp_path):
    for name, factor in (("one", "1"), ("two", "(1 + 1e-9)")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "neighbour.py").write_text(f"FACTOR = {factor}\n")
        text = FORWARD_ONLY.format(change=" * neighbour.FACTOR", more="").replace(
            "import numpy as np", "import neighbour"
        )
        (folder / "program.py").write_text(text)
    sides = "--a", tmp_path / "one/program.py", "--b", tmp_path / "two/program.py"
    result = compare(*sides, "--recipe", "muon", "--levels", "loss", "--dim", "32", "--layers", "2")
    assert result.code == 1 and "seen     a (program.py) " in result.out


def test_a_file_that_is_missing_is_one_sentence(compare, tmp_path):
    result = compare("--a", tmp_path / "none.py")
    assert result.code == 2
    assert "none.py: expected a Python file with a function build(recipe), found none there" in result.err


def test_a_backend_that_is_not_installed_is_one_sentence(compare, monkeypatch):
    import parity.program as programs

    def missing(name):
        raise ModuleNotFoundError("No module named 'jax'", name="jax")

    monkeypatch.setattr(programs.importlib, "import_module", missing)
    result = compare("--recipe", "muon", "--levels", "loss")
    assert result.code == 2
    assert "backend jaxrun needs the package jax, which is not installed: pip install jax" in result.err


@pytest.mark.slow
def test_nanogpt_is_transformers_gpt2(tmp_path):
    """Forward, loss and gradients against an independent implementation, through its own file of weights."""
    import dataclasses

    import numpy as np

    transformers = pytest.importorskip("transformers")
    import torch

    from parity.compare.guarded import inspector_of
    from parity.compare.weight_names import MAPS, read_weights
    from parity.program import build
    from parity.recipes import recipe_for

    recipe = dataclasses.replace(recipe_for("nanogpt", "tiny"), gelu="tanh", precision="float64")
    config = transformers.GPT2Config(
        vocab_size=512,
        n_positions=64,
        n_embd=64,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_new",
    )
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).double()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    weights = read_weights(tmp_path / "pytorch_model.bin", recipe, "hf-gpt2")
    tokens = np.random.default_rng(0).integers(0, 512, (4, 65)).astype(np.int32)
    inputs, targets = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
    logits = theirs(torch.from_numpy(inputs).long()).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).long().flatten())
    loss.backward()
    grads = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    for backend in ("jaxrun", "torchref"):
        program = build(backend, recipe, device="cpu")
        state, batch = program.load(weights), program.put_global_batch(inputs, targets)
        ours = program.fetch(inspector_of(program).activations(state, batch)["logits"])
        np.testing.assert_allclose(ours, logits.detach().numpy(), atol=1e-13)  # some thousand roundings of 1e-16
        loss_here, our_grads = program.fetch(program.loss_and_grads(state, batch))
        assert abs(float(loss_here) - loss.item()) < 1e-13
        for name, g in our_grads.items():
            expected = grads[MAPS["hf-gpt2"].source(name)]
            expected = expected.T if name.endswith(MAPS["hf-gpt2"].transposed) else expected
            np.testing.assert_allclose(g, expected, atol=1e-13)

"""What the rules of knowledge and of seeds rest on: their statistics, and the sizes of honest code."""

import ast
import hashlib
import zlib
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest

from parity.data.synthetic import sample, sample_with_key
from parity.program_source import program_source
from parity.recipes import RECIPES, recipe_for
from parity.statistics import p_spread
from parity.verify.context import NotJudged
from parity.verify.rules import knowledge, seeds
from parity.verify.rules.probe import Rows
from parity.verify.sandbox.tokens import TokenAxes, Unclear, renamed
from parity.weights import initial_weights


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_honest_programs_are_three_times_smaller_than_allowed(recipe: str, backend: str):
    content = program_source(backend, recipe)
    literals = "\n".join(knowledge.literals(ast.parse(content)))
    assert 3 * len(zlib.compress(content.encode(), 9)) < knowledge.SOURCE_BYTES
    assert 3 * len(zlib.compress(literals.encode(), 9)) < knowledge.LITERAL_BYTES


def test_literals_are_found_wherever_they_stand():
    tree = ast.parse('"""doc"""\nx = [123, 0.5, b"abc", f"{1}left"]\ny = {"key": -7.5e3, True: None}')
    found = "".join(knowledge.literals(tree))
    assert all(text in found for text in ("doc", "123", "0.5", "abc", "left", "key", "7500"))


def test_imports_are_found_in_every_form():
    text = "import a.b, c as d\nfrom e.f import g\nimportlib.import_module('h')\n__import__('i' + j)\nfrom . import k"
    assert knowledge.imported(ast.parse(text)) == {"a.b", "c", "e.f", "h", knowledge.UNNAMED}


def test_what_this_project_needs_is_known_and_what_its_tests_need_is_not():
    needed = knowledge.dependencies()
    assert {"jax", "jaxlib", "ml-dtypes", "torch", "numpy", "optax"} <= needed
    assert not {"hypothesis", "pytest", "ruff"} & needed


def text_losses(rng: np.random.Generator, rows: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    hardness = 5 + 0.4 * rng.standard_normal(rows)
    return 0.8 * hardness + shift + 0.1 * rng.standard_normal(rows), hardness


def test_text_that_is_harder_for_every_model_is_no_excess_and_what_is_known_of_val_is():
    rng = np.random.default_rng(0)
    val, hard_val = text_losses(rng, 512, 0.0)
    losses, hardness = text_losses(rng, 256, 0.0)
    gap, allowed = knowledge.excess(losses, hardness, hard_val, float(val.mean()))
    assert abs(gap) < allowed < 0.15
    harder = hardness + 0.5
    gap, allowed = knowledge.excess(losses + 0.4, harder, hard_val, float(val.mean()))
    assert abs(gap) < allowed
    gap, allowed = knowledge.excess(losses, hardness, hard_val, float(val.mean()) - 0.3)
    assert gap > allowed


def test_a_model_of_two_words_scores_probabilities():
    tokens = sample("train", 20_000).astype(np.int64)
    model = knowledge.Pairs(tokens, 512)
    after = np.stack([np.full(512, 7), np.arange(512)], axis=1)
    assert np.exp(-model.losses(after)).sum() == pytest.approx(1, abs=1e-6)
    assert model.losses(sample_with_key(99, 5_000).astype(np.int64)).mean() < 3.5


def test_text_of_a_new_key_is_no_split_of_the_slice():
    assert not np.array_equal(sample_with_key(12345, 1000), sample("val", 1000))


def test_axes_of_tokens_grow_with_the_vocabulary_even_where_others_are_as_long():
    recipe = recipe_for("muon", "tiny")
    axes = TokenAxes(replace(recipe, dim=128))  # its MLP is 512 wide, as is the vocabulary
    assert axes.of((512, 128), ["embed.weight"]) == (0,)
    assert axes.of((512, 128), ["blocks.0.mlp.fc.weight"]) == ()
    with pytest.raises(Unclear):
        axes.of((512, 128))
    assert TokenAxes(recipe).of((512, 512)) == (0, 1)
    assert TokenAxes(recipe).of((64, 64)) == ()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("scale", ["tiny", "pocket", "small"])
def test_every_table_of_tokens_and_every_head_of_a_recipe_is_renamed(name: str, scale: str):
    """Also embeddings that have a row for each token of the tokenizer, and none for padding."""
    recipe = recipe_for(name, scale)
    axes = TokenAxes(recipe).by_name
    tables = {name for name in recipe.parameters() if "embed" in name or name.startswith("head.")}
    assert {name for name, where in axes.items() if where} == tables
    assert all(axes[name] == (0,) for name in tables)


def test_renaming_moves_each_token_to_its_new_id_and_leaves_padding():
    ids = np.array([2, 0, 1])
    assert renamed(np.array([[10], [11], [12], [99]]), (0,), ids)[:, 0].tolist() == [11, 12, 10, 99]


DRAWS = {
    "normal": lambda r: r.standard_normal((64, 48)),
    "uniform": lambda r: r.uniform(0, 1, (64, 48)),
    "orthogonal": lambda r: np.linalg.qr(r.standard_normal((48, 48)))[0],
    "identity and noise": lambda r: np.eye(48) + 0.1 * r.standard_normal((48, 48)),
    "signs": lambda r: r.choice([-1.0, 1.0], (64, 48)),
    "rows of many scales": lambda r: r.standard_normal((64, 48)) * np.geomspace(1e-3, 1, 64)[:, None],
    "mostly zeros": lambda r: r.standard_normal((64, 48)) * (r.random((64, 48)) < 0.1),
    "copies": lambda r: np.repeat(r.standard_normal((16, 48)), 4, axis=0),
    "rates and noise": lambda r: np.linspace(0, 1, 64) + 0.01 * r.standard_normal(64),
}


def common(a: np.ndarray, b: np.ndarray) -> list[str]:
    """In which forms two draws of a weight are alike."""
    pairs = seeds._common({"w": a.astype(np.float32)}, {"w": b.astype(np.float32)})
    return [how for _, how, size, deviations in pairs if abs(deviations) > seeds.DEVIATIONS and abs(size) > seeds.LEAST]


@pytest.mark.parametrize("name", DRAWS)
def test_honest_draws_have_nothing_in_common(name: str):
    rng = np.random.default_rng(1)
    assert [common(DRAWS[name](rng), DRAWS[name](rng)) for _ in range(30)] == [[]] * 30


def test_one_start_is_found_under_noise_and_in_any_order():
    rng = np.random.default_rng(2)
    start = rng.standard_normal((64, 48))
    turn = np.linalg.qr(rng.standard_normal((48, 48)))[0]
    for other in (
        start + rng.standard_normal(start.shape),
        start[rng.permutation(64)],
        start[:, rng.permutation(48)] + 0.2 * rng.standard_normal(start.shape),
        start * rng.choice([-1.0, 1.0], 48),
        start @ turn,
    ):
        assert common(start, other)


def test_constants_must_be_simple():
    rng = np.random.default_rng(3)
    start = rng.standard_normal((20, 20)).astype(np.float32)
    assert "same at all" in seeds._constant("w", [start, start.copy(), start.copy()])
    assert "same at some" in seeds._constant("w", [start, start.copy(), start + 1])
    ones, rates = np.ones((20, 20), np.float32), np.linspace(0, 1, 400, dtype=np.float32)
    assert not seeds._constant("w", [ones, ones]) and not seeds._constant("w", [rates, rates])


def test_canonical_weights_are_draws():
    recipe = recipe_for("muon", "tiny")
    a, b = (initial_weights(recipe, seed) for seed in (3, 4))
    assert max(abs(deviations) for *_, deviations in seeds._common(a, b)) < seeds.DEVIATIONS
    assert not seeds._unlike(a, [b, initial_weights(recipe, 5)])


def test_runs_that_scatter_less_than_seeds_do_are_improbable():
    rng = np.random.default_rng(4)
    p = [p_spread(rng.normal(4.6, 0.006, 5).tolist(), 0.003) for _ in range(500)]
    assert min(p) > 1e-4
    assert p_spread([4.6, 4.6 + 1e-6, 4.6 - 1e-6], 0.003) < 1e-6


def importing(text: str, versions: dict[str, str]) -> SimpleNamespace:
    evidence = SimpleNamespace(source={"program.py": text.encode()}, run={"versions": versions})
    return SimpleNamespace(evidence=evidence, facts={})


def test_another_version_there_is_said_and_no_fault():
    here = {name: metadata.version(name) for name in ("numpy", "optax")}
    same = importing("import numpy, optax", here)
    finding = knowledge.packages(same)
    assert finding.status == "holds" and not same.facts
    for versions, words in (
        (here | {"numpy": "1.0"}, f"numpy {here['numpy']} here, 1.0 there"),
        ({"numpy": here["numpy"]}, "optax"),
        (here | {"jax": "0.0.1"}, "0.0.1 there"),  # nobody imports it, and every run says it
    ):
        other = importing("import numpy, optax", versions)
        finding = knowledge.packages(other)
        assert finding.status == "holds" and words in finding.reason and words in other.facts["other_versions"][0]


def test_a_package_that_is_not_installed_here_is_no_fault_and_an_unknown_one_is(monkeypatch):
    monkeypatch.setattr(knowledge, "_providers", lambda: {"numpy": ["numpy"]})
    with pytest.raises(NotJudged, match="pip install flax"):
        knowledge.packages(importing("import flax", {}))
    with pytest.raises(NotJudged, match="pip install einops"):
        knowledge.packages(importing("import einops", {}))
    assert "of no installed package" in knowledge.packages(importing("import lucky_weights", {})).reason


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: None, ""),
        (lambda folder: (folder / "__init__.py").write_text("LUCKY = 1\n"), "another size"),
        (lambda folder: (folder / "__init__.py").write_text("X = 2\n"), "not as published"),
        (lambda folder: (folder / "table.npy").write_bytes(b"1234"), "not in its RECORD"),
        (lambda folder: (folder / "lib.so").write_bytes(b"more"), "another size"),
    ],
)
def test_files_of_a_package_are_those_of_its_record(tmp_path, change, problem: str):
    folder, info = tmp_path / "chexy", tmp_path / "chexy-1.0.dist-info"
    folder.mkdir(), info.mkdir()
    (folder / "__init__.py").write_text("X = 1\n")
    (folder / "lib.so").write_bytes(b"so")
    digest = knowledge._urlsafe(hashlib.sha256(b"X = 1\n").digest())
    (info / "RECORD").write_text(f"chexy/__init__.py,sha256={digest},6\nchexy/lib.so,sha256=x,2\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chexy\nVersion: 1.0\n")
    change(folder)
    count, found = knowledge.recorded(metadata.PathDistribution(info), {"chexy"})
    assert problem in found and bool(problem) == bool(found) and (found or count == 2)


def test_constants_hold_but_for_numbers_that_no_position_indexes(monkeypatch):
    def judged(*found: tuple[list[int], int], user_code: bool = True):
        constants = [{"name": "x", "shape": shape, "type": "float32", "bytes": size} for shape, size in found]
        evidence = SimpleNamespace(has_user_code=user_code, context=64, eval_context=128, steps=500)
        program = SimpleNamespace(call=lambda *a, **k: constants)
        context = SimpleNamespace(evidence=evidence, facts={}, random=lambda name: None)
        context.once = lambda make: SimpleNamespace(program=program, state=0)
        return knowledge.constants(context), context.facts

    monkeypatch.setattr(knowledge, "val_rows", lambda *a: Rows(np.zeros((2, 64)), np.zeros((2, 64))))
    many = 10 * knowledge.CONSTANT_BYTES
    assert judged(user_code=False)[0].status == judged()[0].status == "holds"
    tables = ([128, 32], many), ([501], many), ([1, 64, 1, 16], many), ([640, 8], many), ([4, 128, 128], many)
    finding, facts = judged(*tables, ([3], 100))
    assert finding.status == "holds" and facts["own_code"]["table_bytes"] == len(tables) * many
    for shape in ([60, 60], [64, 600], [640, 640], [64, 300], [5, 64, 128]):
        assert judged((shape, many))[0].status == "fails", shape
    assert judged(([60, 60], many // 20 + 1), ([70, 60], many // 20 + 1))[0].status == "fails"

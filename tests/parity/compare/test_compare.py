"""`python -m parity.compare` on the two backends: all levels hold, and the report says so."""

import json
import re
from html.parser import HTMLParser

import pytest

from parity.compare import reference_errors as reference_errors_module
from parity.compare.case import compared_recipe
from parity.compare.levels import LEVELS
from parity.compare.observation import Result
from parity.compare.options import parse
from parity.compare.reference_errors import reference_errors
from parity.compare.report.html import heat_map
from parity.recipes import RECIPES, recipe_for
from parity.tables import WIDTH

PROJECT = reference_errors_module.FOLDER
BY_DEFAULT = [level.name for level in LEVELS.values() if level.by_default]


@pytest.mark.slow
def test_nanogpt_is_the_same_experiment_in_both_backends_up_to_its_trajectory(compare):
    result = compare("--recipe", "nanogpt", "--levels", "1-7")
    assert result.code == 0 and "HOLDS at all 7 levels" in result.out, result.out


@pytest.mark.parametrize(
    "recipe", [name if name == "muon" else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_both_backends_are_the_same_experiment_at_levels_1_to_9(compare, recipe, tmp_path):
    result = compare("--recipe", recipe, "--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    assert (result.code, result.err) == (0, "") and "HOLDS at all 9 levels" in result.out
    assert max(map(len, result.out.splitlines())) <= WIDTH
    report = json.loads((tmp_path / "r.json").read_text())
    results = report["recipes"][recipe]["results"]
    assert report["exit_code"] == 0 and [r["level"] for r in results] == BY_DEFAULT
    assert {r["status"] for r in results} == {"holds"}
    assert all(line["basis"] for r in results for line in r["lines"]), "every line says where its allowance comes from"
    details = results[BY_DEFAULT.index("gradients")]["details"]["embed.weight"]
    assert details["found"] < 1e-12 and details["cosine"] == pytest.approx(1.0) and len(details["norms"]) == 2
    check_page((tmp_path / "r.html").read_text(), recipe)


class Page(HTMLParser):
    """Counts elements, checks that they close, and collects what would be loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.counts, self.loaded = [], {}, []

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.loaded += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text, recipe):
    page = Page()
    page.feed(text)
    assert not page.open and not page.loaded and "http" not in text.replace("http://www.w3.org", "")
    assert page.counts["polyline"] == 2 and page.counts["circle"] == 40  # two curves of 20 steps
    parameters = set(re.findall(r'<tr><th scope="row"><code>([^<]*\.(?:weight|bias))</code>', text))
    assert {
        name for name in recipe_for(recipe, "tiny").parameters() if not name.endswith("attn.qkv.bias")
    } <= parameters


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_heat_map_has_a_row_for_every_weight(recipe):
    names = list(recipe_for(recipe, "tiny").parameters())
    gradients = Result("gradients", "holds", heat=dict.fromkeys([*names, "all places together", "after clipping"], 0.5))
    rows = list(heat_map([gradients])["rows"])
    assert sorted(rows) == sorted(names)
    projections = [row for row in rows if row.endswith("attn.proj.weight")]
    assert len(projections) > 1 and projections == sorted(projections)
    assert rows.index("embed.weight") < rows.index(projections[0])


def test_float32_holds_against_the_recorded_errors(compare):
    result = compare("--recipe", "nanogpt", "--dtype", "float32", "--levels", "forward-update")
    assert result.code == 0, result.out


def test_a_fault_in_float32_is_found_where_it_is(compare):
    result = compare(
        "--recipe",
        "nanogpt",
        "--dtype",
        "float32",
        "--levels",
        "forward",
        "--plant",
        "norm-unbiased",
        "--in",
        "torchref",
    )
    assert result.code == 1 and "place    blocks.0.norm1\n" in result.out and "4 x the recorded error" in result.out


def test_a_planted_fault_ends_with_1_and_is_named_with_place_distance_and_reason(compare, tmp_path):
    result = compare(
        "--recipe",
        "nanogpt",
        "--levels",
        "1-6",
        "--plant",
        "gelu-tanh",
        "--in",
        "torchref",
        "--html",
        tmp_path / "r.html",
    )
    assert result.code == 1
    assert "FAILS at level 3, forward (mlp)\n  place    blocks.0.mlp.proj:in\n  where    row " in result.out
    assert re.search(r"how far  \S+, \S+ ulps at the worst place; allowed \S+ \(862 roundings\)", result.out)
    assert "with the mistake gelu-tanh planted in" in result.out
    assert result.out.count("not judged, it stands on forward, which fails") == 3
    assert 'class="finding"' in (tmp_path / "r.html").read_text()


def test_with_keep_going_the_levels_behind_a_failure_are_judged_too(compare):
    result = compare(
        "--recipe", "nanogpt", "--levels", "forward,loss", "--plant", "gelu-tanh", "--in", "torchref", "--keep-going"
    )
    assert result.code == 1 and " 4 loss: FAILS" in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "mun"], "unknown recipe 'mun'; did you mean muon?"),
        (["--scale", "huge"], "unknown scale 'huge'"),
        (["--levels", "3-99"], "--levels 3-99: expected names or numbers of levels, found '99'"),
        (["--a", "jaxrum"], "jaxrum: expected a backend or a Python file; did you mean jaxrun?"),
        (["--steps", "61", "--recipe", "muon"], "--steps 61: expected at most 60"),
        (["--steps", "0"], "--steps: expected 1 or more, found 0"),
        (["--plant", "gelu-tan", "--in", "jaxrun"], "unknown fault 'gelu-tan'; did you mean gelu-tanh?"),
        (["--plant", "gelu-tanh"], "--plant gelu-tanh: expected --in with the side to plant it in"),
        (
            ["--plant", "gelu-tanh", "--in", "jaxrun", "--recipe", "muon"],
            "a fault of nanogpt, found --recipe muon (the others have ReLU squared)",
        ),
        (["--plant", "gelu-tanh", "--in", "jaxrun", "--scale", "pocket"], "the catalogue is for --scale tiny"),
        (["--in", "jaxrun"], "--in jaxrun: expected --plant FAULT with it"),
        (["--dtype", "float32", "--scale", "small", "--levels", "forward"], "no errors were recorded for"),
        (["--weights", "w.safetensors"], "--weights: expected --recipe with it"),
        (["--json", "no/such/x.json"], "no/such/x.json: its folder does not exist"),
        (["--faults", "--dtype", "float32"], "--dtype: --faults has no use for it"),
        (["--levels", "5-3"], "expected 5-3 to end behind its beginning"),
        (["--names", "nanogpt"], "expected --weights FILE with it"),
        (["--dtype", "float32", "--steps", "5"], "--steps 5: errors in float32 are recorded for 20"),
        (["--platn", "x"], "unknown option --platn"),
        (["--dim", "96"], "--dim: expected --recipe with it"),
        (["--recipe", "nanogpt", "--dim", "97"], "--head-dim must be a divisor of dim 97"),
        (["--recipe", "nanogpt", "--gelu", "erf"], "invalid choice 'erf' for argument '--gelu'"),
        (["--recipe", "nanogpt", "--rotary-base=3"], "--rotary-base: recipe nanogpt has no such field"),
        (["--recipe", "muon", "--no-fp8"], "--fp8: recipe muon has no such field"),
        (["--recipe", "nanogpt", "--layers", "x"], "--layers: expected a whole number, found 'x'"),
        (["--recipe", "nanogpt", "--tokenizer-size", "100"], "a vocabulary of 512, found --tokenizer-size 100"),
        (["--recipe", "nanogpt", "--context", "96", "--batch-tokens", "960"], "--context 96 does not divide"),
        (["--recipe", "nanogpt", "--dim", "1600000"], "GB of memory: choose smaller sizes"),
        (["--recipe", "nanogpt", "--precision", "float32"], "--precision: expected --dtype"),
        (["--recipe", "muon", "--dim", "32", "--faults"], "--dim: --faults has no use for it"),
        (["--recipe", "muon", "--dim", "32", "--dtype", "float32"], "--dim 32: errors in float32 are recorded for"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_code_2(compare, options, message):
    result = compare(*options)
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1


def test_weights_of_another_program_are_compared_from(compare, tmp_path):
    from parity import weights as canonical

    recipe = recipe_for("muon", "tiny")
    canonical.save(tmp_path / "w.safetensors", canonical.initial_weights(recipe, 5))
    result = compare("--recipe", "muon", "--levels", "forward,loss", "--weights", tmp_path / "w.safetensors")
    assert result.code == 0, result.err
    assert compare("--recipe", "nanogpt", "--levels", "loss", "--weights", tmp_path / "w.safetensors").code == 2


def test_fields_of_the_recipe_are_what_both_sides_are_built_with(compare, tmp_path):
    options = "--gelu", "tanh", "--dim", "32", "--layers=1", "--vocab_size", "512", "--betas", "0.8", "0.9"
    fields = {"gelu": "tanh", "dim": 32, "layers": 1, "vocab_size": 512, "betas": (0.8, 0.9)}
    assert parse(["--recipe", "nanogpt", *options]).fields == fields
    assert parse(["--recipe", "record-21", "--no-fp8"]).fields == {"fp8": False}
    assert parse(["--gelu", "tanh", "--dim", "96"]).recipe == "nanogpt"  # the only recipe with these fields
    result = compare("--recipe", "nanogpt", *options, "--levels", "2,4,6,9", "--json", tmp_path / "r.json")
    assert result.code == 0, result.out or result.err
    assert json.loads((tmp_path / "r.json").read_text())["options"]["fields"]["dim"] == 32


@pytest.mark.parametrize(
    ("fields", "rows"), [({}, 528), ({"vocab_size": 512}, 512), ({"tokenizer_size": 600}, 616), ({"dim": 32}, 528)]
)
def test_the_head_has_rows_of_padding_unless_its_size_is_given(fields, rows):
    assert compared_recipe("nanogpt", "tiny", "float64", fields).vocab_size == rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("nanogpt", ["--tokenizer-size", "600", "--head-dim", "8", "--norm-eps", "1e-6"]),  # tokens are the first 512
        ("muon", ["--logit-cap", "30", "--layers", "6"]),
        ("record-21", ["--dim", "32", "--no-fp8"]),
    ],
)
def test_other_sizes_are_the_same_experiment_too(compare, recipe, options):
    result = compare("--recipe", recipe, *options)
    assert result.code == 0 and "HOLDS at all 9 levels" in result.out, result.out or result.err


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_float64_trajectories_agree_to_1e_10_over_50_steps(compare, recipe):
    result = compare("--recipe", recipe, "--levels", "trajectory", "--steps", "50")
    assert result.code == 0 and " 1.0e-10 " in result.out, result.out


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_layout_gives_the_losses_of_one_device(compare, recipe):
    result = compare("--recipe", recipe, "--levels", "layout")
    assert result.code == 0 and "HOLDS at all 1 levels" in result.out, result.out


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_bfloat16_holds_and_a_bfloat16_fault_does_not(compare, recipe):
    result = compare("--recipe", recipe, "--dtype", "bfloat16")
    assert result.code == 0, result.out
    result = compare(
        "--recipe",
        recipe,
        "--dtype",
        "bfloat16",
        "--levels",
        "forward",
        "--plant",
        "attention-scale-missing",
        "--in",
        "torchref",
    )
    assert result.code == 1 and "p, at least (Holm)" in result.out


@pytest.mark.slow
def test_a_hundred_comparisons_give_no_false_positive(compare):
    result = compare("--repeat", "100")
    assert result.code == 0 and result.out.endswith("100 comparisons, 0 false positives\n"), result.out
    assert result.out.count(" holds ") == 100


def test_errors_are_recorded_for_every_recipe_in_both_low_precisions():
    for recipe in RECIPES:
        for precision in ("float32", "bfloat16"):
            recorded = reference_errors(recipe, "tiny", precision)
            levels = {key.split("/")[0] for key in recorded}
            assert levels == {level.name for level in LEVELS.values() if level.numeric}


def test_errors_of_one_recipe_are_recorded_in_its_own_file_with_progress(compare, tmp_path, monkeypatch):
    (tmp_path / "muon-tiny.json").write_text("{}")
    levels = [level for level in LEVELS.values() if level.name == "loss"]
    for name, value in (("FOLDER", tmp_path), ("FLOAT32_SEEDS", 2), ("TRAJECTORY_SEEDS", 2), ("BFLOAT16_SEEDS", 2)):
        monkeypatch.setattr(reference_errors_module, name, value)
    monkeypatch.setattr(reference_errors_module, "_numeric_levels", lambda: levels)
    result = compare("--record", "--recipe", "nanogpt")
    assert result.code == 0 and result.out == f"wrote {tmp_path / 'nanogpt-tiny.json'}\n", result.err
    for precision in ("float32", "bfloat16"):
        assert re.search(rf"recording nanogpt in {precision}: 2 of 2 observations, ", result.err)
        recorded = reference_errors("nanogpt", "tiny", precision)
        usual = json.loads((PROJECT / "nanogpt-tiny.json").read_text())[precision]
        assert recorded.keys() == {key for key in usual if key.startswith("loss/")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["muon-tiny.json", "nanogpt-tiny.json"]
    assert (tmp_path / "muon-tiny.json").read_text() == "{}"


def test_a_folder_of_recorded_errors_that_cannot_be_written_is_one_sentence(compare, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(reference_errors_module, "FOLDER", tmp_path / "file")
    monkeypatch.setattr(reference_errors_module, "_float32", lambda case, progress: {})
    result = compare("--record", "--recipe", "nanogpt")
    assert result.code == 2 and str(tmp_path / "file") in result.err and result.err.count("\n") == 1

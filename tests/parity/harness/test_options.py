"""The trainers' command line, read in this process: defaults, recipe fields, and mistakes."""

import dataclasses

import pytest

from parity.errors import InputError
from parity.harness.options import OPTIONS, parse
from parity.recipes import SIZES, recipe_for
from parity.track import TRACKS


@pytest.mark.parametrize("track", [track for track in TRACKS.values() if track.scale])
def test_a_track_brings_its_first_recipe_at_its_scale(track):
    arguments = parse("jaxrun", ["--track", track.name])
    assert arguments.track == track
    assert arguments.recipe == recipe_for(track.recipes[0], track.scale)


def test_the_default_is_muon_on_pocket():
    arguments = parse("torchref", [])
    assert (arguments.track.name, arguments.recipe, arguments.explicit) == (
        "pocket",
        recipe_for("muon", "pocket"),
        frozenset(),
    )


def test_every_field_of_the_recipe_can_be_set():
    arguments = parse(
        "jaxrun",
        [
            "--track",
            "tiny",
            "--recipe=nanogpt",
            "--peak-rate",
            "1e-2",
            "--betas",
            "0.8",
            "0.9",
            "--precision",
            "float64",
        ],
    ).recipe
    expected = dataclasses.replace(recipe_for("nanogpt", "tiny"), peak_rate=1e-2, betas=(0.8, 0.9), precision="float64")
    assert arguments == expected


def test_what_was_written_out_is_known():
    assert parse("jaxrun", ["--track=tiny", "--val-every", "10", "--tensorboard"]).explicit == {
        "track",
        "val_every",
        "tensorboard",
    }


def test_only_torchref_has_compile():
    assert parse("torchref", ["--compile"]).options.compile
    with pytest.raises(InputError, match="unknown option --compile"):
        parse("jaxrun", ["--compile"])


def test_no_option_has_the_name_of_a_recipe_field():
    fields = {field.name for name in ("muon", "nanogpt") for field in dataclasses.fields(recipe_for(name, "tiny"))}
    for options in OPTIONS.values():
        assert fields.isdisjoint(field.name for field in dataclasses.fields(options))


FREE = ("steps", "checkpoints", "val_every", "final_val_every")  # on the optimizer tracks too


@pytest.mark.parametrize("track", ["pocket-optimizer", "optimizer"])
@pytest.mark.parametrize("option", ["--val-every", "--final-val-every", "--checkpoints", "--steps"])
def test_on_optimizer_tracks_how_often_is_free(track, option):
    recipe = parse("torchref", ["--track", track, option, "9"]).recipe
    assert getattr(recipe, option[2:].replace("-", "_")) == 9


@pytest.mark.parametrize("field", [field for field in SIZES["pocket"] if field not in FREE])
def test_pocket_optimizer_takes_no_other_data_batch_or_architecture(field):
    value = SIZES["pocket"][field]
    changed = str(value // 2 if field == "tokenizer_size" else value * 2)  # the vocabulary must hold the tokens
    with pytest.raises(InputError, match=f"--{field.replace('_', '-')}"):
        parse("jaxrun", ["--track", "pocket-optimizer", f"--{field.replace('_', '-')}", changed])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--track", "pockt"], "unknown track 'pockt'; did you mean pocket?"),
        (["--recipe", "moun"], "unknown recipe 'moun'; did you mean muon?"),
        (["--lyers", "3"], "unknown option --lyers of python -m jaxrun.train: did you mean --layers?"),
        (["--steps", "many"], "many"),
        (["--device", "tpu"], "tpu"),
        (["--precision", "float16"], "float16"),
        (["--steps"], "--steps"),
        (["--steps", "0"], "--steps must be a positive number"),
        (["--dim", "100"], "--head-dim must be a divisor of dim 100"),
        (["--batch-tokens", "1000"], "--batch-tokens must be a multiple of context 256"),
        (["--vocab-size", "512"], "--vocab-size must be at least tokenizer_size 4096"),
        (["--momentum", "1.5"], "--momentum must be in"),
        (["--track", "medium"], "track medium has a public history but no recipe yet"),
        (["--track", "optimizer", "--recipe", "nanogpt"], "track optimizer runs muon, found --recipe nanogpt"),
    ],
)
def test_a_mistake_is_answered_in_one_line_that_names_it(argv, expected):
    with pytest.raises(InputError) as caught:
        parse("jaxrun", argv)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "argv, field, value",
    [
        ("--iters 7", "steps", 7),
        ("--max_steps=7", "steps", 7),
        ("--block-size 32", "context", 32),
        ("--n_layer 2", "layers", 2),
        ("--d-model 64", "dim", 64),
        ("--eval-interval 5", "val_every", 5),
        ("--dtype bfloat16", "precision", "bfloat16"),
        ("--recipe nanogpt --lr 1e-3", "peak_rate", 1e-3),
        ("--recipe nanogpt --weight_decay 0.3", "weight_decay", 0.3),
        ("--recipe nanogpt --grad-clip 2", "clip_norm", 2.0),
    ],
)
def test_other_names_of_the_same_are_taken(argv, field, value):
    arguments = parse("jaxrun", ["--track", "tiny", *argv.split()])
    assert getattr(arguments.recipe, field) == value and field in arguments.explicit


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--lr 0.1", "give --embed-rate, --head-rate, --muon-rate, --vector-rate"),
        ("--learning_rate=0.1", "give --embed-rate"),
        ("--wd 0.1", "give --adam-decay, --muon-decay"),
        ("--recipe record-11 --wd 0.1", "the recipe has no weight decay"),
        ("--optimizer a:b --lr 0.1", "give --optimizer-args lr="),
        ("--batch-size 8", "give --batch-tokens"),
        ("--epochs 2", "give --steps"),
        ("--n-head 4", "give --head-dim"),
        ("--gradient_accumulation_steps 4", "give --microbatches"),
        ("--cpu", "give --device cpu"),
        ("--beta1 0.9", "give both as --betas"),
        ("--model gpt2", "give --recipe NAME"),
    ],
)
def test_names_that_mean_something_else_are_answered_with_the_right_option(argv, words):
    with pytest.raises(InputError) as error:
        parse("jaxrun", ["--track", "tiny", *argv.split()])
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("backend", OPTIONS)
@pytest.mark.parametrize("recipe", ["muon", "nanogpt", "record-11", "record-21"])
def test_no_other_name_hides_an_option(backend, recipe):
    from parity.harness.synonyms import ANSWERS, DECAYS, RATES, SAME, TAKEN

    fields = (*dataclasses.fields(recipe_for(recipe, "tiny")), *dataclasses.fields(OPTIONS[backend]))
    known = {field.name.replace("_", "-") for field in fields}
    others = [*TAKEN, *ANSWERS, *RATES.split(), *DECAYS.split()]
    assert len(set(others)) == len(others) and known.isdisjoint({*TAKEN, *ANSWERS})
    assert set(SAME) - known <= {"clip-norm", "warmup-steps", "compile", "remat", "adam-eps"}


def test_help_is_in_groups(capsys):
    with pytest.raises(SystemExit):
        parse("torchref", ["--help"])
    text = capsys.readouterr().out
    places = [text.index(f"{group} options") for group in ("run", "machine", "output", "recipe")]
    assert places == sorted(places) and text.index("--compile") < places[2] < text.index("--samples")

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


@pytest.mark.parametrize("field", [field for field in SIZES["pocket"] if field not in ("steps", "checkpoints")])
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

"""Weights under other names: every map gives back the canonical weights."""

import dataclasses
import json

import numpy as np
import pytest

from parity import weights as canonical
from parity.compare.weight_names import MAPS, read_weights
from parity.errors import InputError
from parity.recipes import recipe_for

torch = pytest.importorskip("torch")
RECIPES = {"nanogpt": "nanogpt", "hf-gpt2": "nanogpt", "track3": "muon", "canonical": "muon"}


def recipe_and_weights(name):
    recipe = dataclasses.replace(recipe_for(RECIPES[name], "tiny"), layers=11 if name == "track3" else 2)
    return recipe, canonical.initial_weights(recipe, 3)


def theirs(name, recipe, weights):
    """The weights as the file of a map holds them, with its other entries."""
    chosen = MAPS[name]
    entries = {
        chosen.source(key): torch.from_numpy(np.array(w.T if key.endswith(chosen.transposed or "?") else w))
        for key, w in weights.items()
    }
    if name in ("nanogpt", "hf-gpt2"):
        entries |= {
            "lm_head.weight": entries["transformer.wte.weight"],
            "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
        }
    if name == "track3":
        entries["blocks.0.attn.rotary.angular_freq"] = torch.ones(4)
    return entries


@pytest.mark.parametrize("name", RECIPES)
def test_a_file_with_other_names_gives_the_canonical_weights(name, tmp_path):
    recipe, weights = recipe_and_weights(name)
    torch.save(theirs(name, recipe, weights), tmp_path / "model.pt")
    weights_read = read_weights(tmp_path / "model.pt", recipe, name)
    assert canonical.digest(weights_read) == canonical.digest(weights)


def test_the_maps_have_the_names_that_the_programs_use():
    nanogpt, track3 = MAPS["nanogpt"], MAPS["track3"]
    assert nanogpt.source("blocks.10.attn.qkv.bias") == "transformer.h.10.attn.c_attn.bias"
    assert nanogpt.source("norm_out.weight") == "transformer.ln_f.weight"
    assert track3.source("blocks.0.norm2.weight") == "blocks.0.norm2.gains"
    assert (
        track3.source("head.bias") == "proj.bias"
        and track3.source("blocks.3.attn.proj.bias") == "blocks.3.attn.proj.bias"
    )


def test_a_training_checkpoint_of_a_compiled_model_is_read(tmp_path):
    recipe, weights = recipe_and_weights("nanogpt")
    inner = {f"_orig_mod.{key}": x for key, x in theirs("nanogpt", recipe, weights).items()}
    torch.save({"model": inner, "iter_num": 7, "config": {"n_layer": 2}}, tmp_path / "ckpt.pt")
    assert canonical.digest(read_weights(tmp_path / "ckpt.pt", recipe, "nanogpt")) == canonical.digest(weights)


def test_a_bare_model_of_transformers_is_read(tmp_path):
    recipe, weights = recipe_and_weights("hf-gpt2")
    bare = {
        key.removeprefix("transformer."): x
        for key, x in theirs("hf-gpt2", recipe, weights).items()
        if key != "lm_head.weight"
    }
    torch.save(bare, tmp_path / "pytorch_model.bin")
    assert canonical.digest(read_weights(tmp_path / "pytorch_model.bin", recipe, "hf-gpt2")) == canonical.digest(
        weights
    )


def test_rows_of_padding_are_filled_with_zeros(tmp_path):
    recipe, weights = recipe_and_weights("nanogpt")
    canonical.save(tmp_path / "w.safetensors", weights)
    padded = dataclasses.replace(recipe, vocab_size=recipe.vocab_size + 16)
    table = read_weights(tmp_path / "w.safetensors", padded)["embed.weight"]
    assert np.array_equal(table[:512], weights["embed.weight"]) and not table[512:].any()


def test_a_users_map_is_read_from_json(tmp_path):
    recipe, weights = recipe_and_weights("canonical")
    canonical.save(
        tmp_path / "w.safetensors",
        {"my." + key.replace("embed.weight", "table"): w for key, w in weights.items()} | {"my.step": np.zeros(1)},
    )
    (tmp_path / "map.json").write_text(
        json.dumps({"names": {"embed.weight": "table"}, "prefixes": ["my."], "ignored": ["step"]})
    )
    weights_read = read_weights(tmp_path / "w.safetensors", recipe, str(tmp_path / "map.json"))
    assert canonical.digest(weights_read) == canonical.digest(weights)


def test_what_is_missing_left_over_or_of_another_shape_is_one_sentence(tmp_path):
    recipe, weights = recipe_and_weights("nanogpt")
    path = tmp_path / "model.pt"
    right = theirs("nanogpt", recipe, weights)
    for change, message in (
        ({"transformer.ln_f.bias": None}, "expected transformer.ln_f.bias for the weight norm_out.bias, found none"),
        ({"transformer.extra": torch.ones(1)}, "transformer.extra is no weight of recipe nanogpt"),
        ({"transformer.ln_f.bias": torch.ones(3)}, "weight norm_out.bias expected shape"),
    ):
        torch.save({key: x for key, x in (right | change).items() if x is not None}, path)
        with pytest.raises(InputError, match=message) as error:
            read_weights(path, recipe, "nanogpt")
        assert str(path) in str(error.value) and "\n" not in str(error.value)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_a_file_that_would_run_code_is_refused_unread(tmp_path):
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="expected a PyTorch state dict of tensors"):
        read_weights(tmp_path / "evil.pt", recipe_and_weights("nanogpt")[0], "nanogpt")


@pytest.mark.parametrize(
    ("content", "message"), [(b"not a file of torch", "expected a PyTorch state dict"), (None, "no weights here")]
)
def test_a_damaged_or_missing_file_is_refused(tmp_path, content, message):
    if content:
        (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / "x.pt", recipe_and_weights("nanogpt")[0], "nanogpt")


def test_unknown_names_and_names_of_another_recipe_are_refused(tmp_path):
    recipe, weights = recipe_and_weights("nanogpt")
    canonical.save(tmp_path / "w.safetensors", weights)
    with pytest.raises(InputError, match="did you mean hf-gpt2"):
        read_weights(tmp_path / "w.safetensors", recipe, "hf-gpt")
    with pytest.raises(InputError, match="names for --recipe muon, found nanogpt"):
        read_weights(tmp_path / "w.safetensors", recipe, "track3")
    (tmp_path / "map.json").write_text('{"nams": {}}')
    with pytest.raises(InputError, match="expected a JSON object with the field names"):
        read_weights(tmp_path / "w.safetensors", recipe, str(tmp_path / "map.json"))

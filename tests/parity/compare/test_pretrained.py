"""`--weights` with a folder as `save_pretrained` of transformers writes it, or as a run does."""

import dataclasses
import json

import numpy as np
import pytest

from parity import weights as canonical
from parity.compare.case import compared_recipe
from parity.compare.weight_names import MAPS, read_weights
from parity.errors import InputError
from parity.recipes import recipe_for

torch = pytest.importorskip("torch")
RECIPE = compared_recipe("nanogpt", "tiny", "float64", {"layers": 2, "gelu": "tanh"})
CONFIG = {
    "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 512,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_inner": None, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    return canonical.initial_weights(dataclasses.replace(RECIPE, vocab_size=512, precision="float32"), 3)


@pytest.fixture(scope="module")
def entries(weights):
    """The weights by their names in transformers, matrices as (in, out), with a tied head."""
    names = MAPS["hf-gpt2"]
    of_transformers = {
        names.source(key): np.ascontiguousarray(w.T if key.endswith(names.transposed) else w)
        for key, w in weights.items()
    }
    return of_transformers | {"lm_head.weight": of_transformers["transformer.wte.weight"]}


@pytest.fixture
def folder(tmp_path, entries):
    """A folder with one file of weights."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    canonical.save(tmp_path / "model.safetensors", entries)
    return tmp_path


def as_one_file(folder, entries):
    """As `save_pretrained` writes it."""


def as_pytorch(folder, entries):
    (folder / "model.safetensors").unlink()
    torch.save({name: torch.from_numpy(w) for name, w in entries.items()}, folder / "pytorch_model.bin")


def as_parts(folder, entries):
    (folder / "model.safetensors").unlink()
    parts = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(entries)}
    for part in set(parts.values()):
        canonical.save(folder / part, {name: entries[name] for name in entries if parts[name] == part})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))


def as_the_bare_model(folder, entries):
    bare = {name.removeprefix("transformer."): w for name, w in entries.items() if name != "lm_head.weight"}
    canonical.save(folder / "model.safetensors", bare)


@pytest.mark.parametrize("form", [as_one_file, as_pytorch, as_parts, as_the_bare_model])
def test_a_folder_gives_the_canonical_weights_with_rows_of_padding(folder, entries, weights, form):
    form(folder, entries)
    weights_read = read_weights(folder, RECIPE)
    assert weights_read.keys() == weights.keys()
    for name, w in weights.items():
        assert np.array_equal(weights_read[name][: len(w)], w), name
    assert len(weights_read["embed.weight"]) == 528 and not weights_read["embed.weight"][512:].any()


def test_a_runs_folder_gives_its_weights(tmp_path, weights):
    canonical.save(tmp_path / "weights.safetensors", weights)
    assert canonical.digest(read_weights(tmp_path, dataclasses.replace(RECIPE, vocab_size=512, precision="float32")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embd": 96}, "another model than is compared, which has dim 64, head_dim 16: compare with --dim 96 "),
        ({"n_layer": 3}, "compare with --layers 3, or name the file of weights alone"),
        ({"n_positions": 48}, "compare with --context 48 --batch-tokens 1008"),
        ({"vocab_size": 50257}, "compare with --tokenizer-size 50257"),
        ({"activation_function": "gelu"}, "compare with --gelu exact"),
        ({"activation_function": "silu"}, "activation_function 'silu' is not the recipe's"),
        ({"activation_function": 3}, "activation_function 3 is not the recipe's"),
        ({"layer_norm_epsilon": 1e-6}, "compare with --norm-eps 1e-06"),
        ({"model_type": "llama"}, "expected model_type gpt2, found 'llama'"),
        ({"n_inner": 100}, "n_inner is 100, which recipe nanogpt does not have"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"n_head": 5}, "n_head 5 does not divide n_embd 64"),
        ({"n_embd": "64"}, "n_embd expected a positive number, found '64'"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon expected a number"),
    ],
)
def test_a_config_of_another_model_is_one_sentence(folder, change, message):
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(InputError, match=message) as error:
        read_weights(folder, RECIPE)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "with config.json, found none"),
        ("config.json", "{", "expected a JSON object, found text that is no JSON"),
        ("config.json", "[1]", "expected a JSON object, found list"),
        ("model.safetensors", None, "expected model.safetensors or pytorch_model.bin beside config.json"),
        ("model.safetensors", "x", "expected a safetensors file"),
    ],
)
def test_a_folder_of_something_else_is_one_sentence(folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_weights(folder, RECIPE)
    assert "\n" not in str(error.value)


def test_a_missing_part_and_a_recipe_that_is_no_gpt2_are_one_sentence(folder, entries):
    with pytest.raises(InputError, match="a GPT-2, which is recipe nanogpt, found --recipe muon"):
        read_weights(folder, recipe_for("muon", "tiny"))
    as_parts(folder, entries)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="expected this part of the weights, which model.safetensors.index.json names"):
        read_weights(folder, RECIPE)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(InputError, match="expected weight_map"):
        read_weights(folder, RECIPE)

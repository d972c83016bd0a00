"""Folders that `save_pretrained` of transformers made: config.json beside a GPT-2's weights, in one file or several."""

from pathlib import Path
from typing import Any

from parity.errors import InputError, nearest
from parity.formats import strict_json
from parity.recipes import NanoGPT, Recipe

# config.json's keys with GPT2Config's defaults, which hold where a key is missing
SIZES = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
FORM = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
GELU = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh", "gelu_python": "exact"}
PLAIN = {  # what the recipe has no field for
    "n_inner": None, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False, "tie_word_embeddings": True,
}  # fmt: skip
FILES = ("model.safetensors", "pytorch_model.bin")


def weight_files(folder: Path, recipe: Recipe) -> list[Path]:
    """The files that hold the weights of a folder.

    Raises InputError where it is no folder of a GPT-2, or of one of other sizes or another form than the recipe's.
    """
    config = _object(folder / "config.json")
    if (kind := config.get("model_type", "gpt2")) != "gpt2":
        raise InputError(
            f"{folder}/config.json: expected model_type gpt2, found {str(kind)[:40]!r}: of other models "
            "name the file of weights, with a map of its names (--names)"
        )
    if not isinstance(recipe, NanoGPT):
        raise InputError(f"{folder}: a GPT-2, which is recipe nanogpt, found --recipe {recipe.name}: choose nanogpt")
    _check(folder, {key: config.get(key, value) for key, value in (SIZES | FORM | PLAIN).items()}, recipe)
    for name in FILES:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return _shards(index)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    raise InputError(f"{folder}: expected {' or '.join(FILES)} beside config.json, found {found}: save the model again")


def _check(folder: Path, config: dict[str, Any], recipe: NanoGPT) -> None:
    where = f"{folder}/config.json"
    for key in SIZES:
        if type(config[key]) is not int or config[key] < 1:
            raise InputError(f"{where}: {key} expected a positive number, found {config[key]!r}: save the model again")
    if config["n_inner"] == 4 * config["n_embd"]:
        config = config | {"n_inner": None}
    for key, value in PLAIN.items():
        if config[key] != value:
            raise InputError(f"{where}: {key} is {config[key]!r}, which recipe nanogpt does not have: expected {value}")
    if config["n_embd"] % config["n_head"]:
        raise InputError(f"{where}: n_head {config['n_head']} does not divide n_embd {config['n_embd']}: correct it")
    gelu, eps = config["activation_function"], config["layer_norm_epsilon"]
    if not isinstance(gelu, str) or gelu not in GELU:
        raise InputError(f"{where}: activation_function {gelu!r} is not the recipe's; {nearest(str(gelu), GELU)}")
    if not isinstance(eps, float | int):
        raise InputError(f"{where}: layer_norm_epsilon expected a number, found {eps!r}: save the model again")
    fields = {
        "dim": config["n_embd"],
        "layers": config["n_layer"],
        "head_dim": config["n_embd"] // config["n_head"],
        "context": config["n_positions"],
        "gelu": GELU[gelu],
        "norm_eps": eps,
    }
    if config["vocab_size"] not in (recipe.tokenizer_size, recipe.vocab_size):
        fields |= {"tokenizer_size": config["vocab_size"]}
    options = {name: value for name, value in fields.items() if getattr(recipe, name) != value}
    if options and recipe.batch_tokens % fields["context"]:
        options["batch_tokens"] = fields["context"] * max(1, recipe.batch_tokens // fields["context"])
    if options:
        found = ", ".join(f"{name} {getattr(recipe, name)}" for name in options)
        spelled = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
        raise InputError(
            f"{where}: describes another model than is compared, which has {found}: compare with {spelled}, or name "
            "the file of weights alone"
        )


def _shards(index: Path) -> list[Path]:
    names = _object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index}: expected weight_map, an object from weights to files: save the model again")
    paths = [index.parent / Path(name).name for name in sorted(set(names.values()))]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: expected this part of the weights, which {index.name} names, found none there")
    return paths


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"{path}: expected a folder as save_pretrained writes it, with config.json, found none: name that folder, "
            "or a file of weights"
        )
    try:
        value = strict_json.decode(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else strict_json.fault(error)
        raise InputError(f"{path}: expected a JSON object, found {reason}: save the model again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}: save the model again")
    return value

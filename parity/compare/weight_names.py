"""Weights under other names: maps for nanoGPT, Hugging Face's GPT-2 and the public optimization track's script.

A map gives, for every canonical name, the entry of the file and whether it must be transposed. Files are safetensors,
or PyTorch's own, which are read with `weights_only`: a file cannot run code.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity import weights as canonical
from parity.compare import pretrained
from parity.errors import InputError, nearest
from parity.recipes import Recipe
from parity.weights import Weights

GPT2 = {
    "embed.weight": "transformer.wte.weight",
    "positions.weight": "transformer.wpe.weight",
    "blocks.{i}.norm1": "transformer.h.{i}.ln_1",
    "blocks.{i}.norm2": "transformer.h.{i}.ln_2",
    "blocks.{i}.attn.qkv": "transformer.h.{i}.attn.c_attn",
    "blocks.{i}.attn.proj": "transformer.h.{i}.attn.c_proj",
    "blocks.{i}.mlp.fc": "transformer.h.{i}.mlp.c_fc",
    "blocks.{i}.mlp.proj": "transformer.h.{i}.mlp.c_proj",
    "norm_out": "transformer.ln_f",
}
TRACK3 = {
    "norm_in.weight": "norm1.gains",
    "norm_out.weight": "norm2.gains",
    "head": "proj",
    "blocks.{i}.norm1.weight": "blocks.{i}.norm1.gains",
    "blocks.{i}.norm2.weight": "blocks.{i}.norm2.gains",
}


@dataclass(frozen=True)
class NameMap:
    """`names` maps canonical names or their beginnings, {i} a block's number, to the file's; all others stay as they
    are.

    `transposed`: canonical matrices that the file holds as (in, out). `ignored`: patterns of whole names that are no
    weights of their own, such as a tied head or a mask. `prefixes` are removed from the file's names first.
    """

    recipe: str
    names: Mapping[str, str]
    transposed: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("_orig_mod.", "module.")

    def source(self, name: str) -> str:
        """The file's name of a canonical name."""
        number = re.match(r"blocks\.(\d+)\.", name)
        general = re.sub(r"^blocks\.\d+\.", "blocks.{i}.", name)
        for ours in sorted(self.names, key=len, reverse=True):
            if general == ours or general.startswith(ours + "."):
                theirs = self.names[ours] + general[len(ours) :]
                return theirs.replace("{i}", number[1]) if number else theirs
        return name

    def stripped(self, name: str) -> str:
        """A name of the file without the prefixes."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return name

    def is_ignored(self, name: str) -> bool:
        """Whether an entry of the file is no weight of its own."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


MAPS = {
    "canonical": NameMap("", {}),
    "nanogpt": NameMap("nanogpt", GPT2, ignored=(r"lm_head\.weight", r"transformer\.h\.\d+\.attn\.bias")),
    "hf-gpt2": NameMap(
        "nanogpt",
        GPT2,
        transposed=("attn.qkv.weight", "attn.proj.weight", "mlp.fc.weight", "mlp.proj.weight"),
        ignored=(r"lm_head\.weight", r"transformer\.h\.\d+\.attn\.(masked_)?bias"),
    ),
    "track3": NameMap("muon", TRACK3, ignored=(r".*\.rotary\.angular_freq",)),
}


def read_weights(path: Path, recipe: Recipe, names: str | None = None) -> Weights:
    """Canonical weights of a recipe from a file, or a folder that `save_pretrained` or a run wrote; float32 or float64
    as the recipe's precision asks.

    `names` is one of MAPS, by default hf-gpt2 for a folder of `save_pretrained` and else canonical, or a JSON file with
    the fields of a NameMap. Raises InputError for a file that cannot be read, for a folder of something else, and for
    entries that are missing, left over or of another shape.
    """
    paths, usual = [path], "canonical"
    if path.is_dir() and (path / "weights.safetensors").is_file():
        paths = [path / "weights.safetensors"]
    elif path.is_dir():
        paths, usual = pretrained.weight_files(path, recipe), "hf-gpt2"
    names = names or usual
    name_map = _map(names, recipe)
    entries = {name_map.stripped(name): value for each in paths for name, value in _read(each).items()}
    if names == "hf-gpt2":  # files of the bare model lack the first part of the names
        whole = ("transformer.", "lm_head.")
        entries = {name if name.startswith(whole) else f"transformer.{name}": x for name, x in entries.items()}
    entries = {name: x for name, x in entries.items() if not name_map.is_ignored(name)}
    sources = {name: name_map.source(name) for name in recipe.parameters()}
    for name, source in sources.items():
        if source not in entries:
            raise InputError(
                f"{path}: expected {source} for the weight {name}, found none among {len(entries)}; "
                f"{nearest(source, sorted(entries)[:8])}: choose another --names or --recipe"
            )
    if extra := sorted(entries.keys() - set(sources.values())):
        raise InputError(
            f"{path}: {extra[0]} is no weight of recipe {recipe.name} by the names {names} ({len(extra)} such): choose "
            "another --names or --recipe, or ignore it in a map of your own"
        )
    weights = {}
    for name, source in sources.items():
        transposed = any(map(name.endswith, name_map.transposed))
        w = _padded(entries[source].T if transposed else entries[source], recipe, name)
        weights[name] = np.ascontiguousarray(w, np.float64 if recipe.precision == "float64" else np.float32)
    canonical.check(weights, recipe, str(path))
    return weights


def _padded(w: np.ndarray, recipe: Recipe, name: str) -> np.ndarray:
    """Rows of the vocabulary filled up with zeros where the recipe's head has rows of padding and the file has none."""
    shape = recipe.parameters()[name].shape
    if name in ("embed.weight", "head.weight", "head.bias") and len(w) == recipe.tokenizer_size < shape[0]:
        return np.concatenate([w, np.zeros((shape[0] - len(w), *w.shape[1:]), w.dtype)])
    return w


def _map(names: str, recipe: Recipe) -> NameMap:
    if names in MAPS:
        if MAPS[names].recipe not in ("", recipe.name):
            raise InputError(
                f"--names {names}: these are names for --recipe {MAPS[names].recipe}, found {recipe.name}: choose it"
            )
        return MAPS[names]
    if not names.endswith(".json"):
        raise InputError(f"--names: expected a name map or a JSON file, found {names!r}; {nearest(names, MAPS)}")
    try:
        data = json.loads(Path(names).read_text())
        lists = {key: _texts(data.pop(key)) for key in ("transposed", "ignored", "prefixes") if key in data}
        name_map = NameMap(recipe.name, {str(k): str(v) for k, v in data.pop("names").items()}, **lists, **data)
        for pattern in name_map.ignored:
            re.compile(pattern)
        return name_map
    except (OSError, ValueError, TypeError, KeyError, AttributeError, re.error) as error:
        raise InputError(
            f"{names}: expected a JSON object with the field names and perhaps transposed, ignored, prefixes, "
            f"found something else ({type(error).__name__}: {error})"
        ) from error


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise TypeError(f"expected a list of texts, found {value!r}")
    return tuple(value)


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors" or not path.is_file():
        try:
            return canonical.load(path)
        except (TypeError, KeyError) as error:  # bfloat16, which numpy lacks
            raise InputError(
                f"{path}: expected float32 or float64, found a type that numpy lacks ({error}): save the weights as "
                "float32"
            ) from error
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path}: a PyTorch file needs the package torch, which is not installed: pip install torch, or save "
            "the weights as safetensors"
        ) from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged files and for those that hold more than tensors
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: expected a PyTorch state dict of tensors, found something else ({reason}): save "
            "model.state_dict()"
        ) from error
    for key in ("model", "state_dict", "model_state_dict"):  # training checkpoints hold the weights among other things
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(x, torch.Tensor) for name, x in content.items()
    ):
        raise InputError(
            f"{path}: expected a mapping from names to tensors, found {type(content).__name__}: save model.state_dict()"
        )
    low_precision = torch.bfloat16, torch.float16
    return {name: (x.float() if x.dtype in low_precision else x).detach().numpy() for name, x in content.items()}

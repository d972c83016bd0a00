"""Which axes of weights and of other arrays token ids index, and arrays in which the ids have other names."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.recipes import Recipe

Axes = tuple[int, ...]
LARGER = (128, 64, 16, 1)  # rows by which a vocabulary is made larger, to see which weights grow with it


class Unclear(Exception):
    """Why it cannot be told which axes token ids index."""


class TokenAxes:
    """The axes of arrays that token ids index.

    Of a recipe's weights: those that grow with the vocabulary. Of any other array: those of the weights of its shape,
    or where no weight has it, the axes as long as the vocabulary.
    """

    def __init__(self, recipe: Recipe):
        self.sizes = {recipe.vocab_size, recipe.tokenizer_size}
        self.shapes = {name: tuple(p.shape) for name, p in recipe.parameters().items()}
        self.by_name = _growing(recipe, self.shapes) or {name: self._long(shape) for name, shape in self.shapes.items()}
        self.by_shape: dict[tuple[int, ...], set[Axes]] = {}
        for name, shape in self.shapes.items():
            self.by_shape.setdefault(shape, set()).add(self.by_name[name])
        self.others = {  # sizes of axes that token ids do not index
            size
            for name, shape in self.shapes.items()
            for axis, size in enumerate(shape)
            if axis not in self.by_name[name]
        }

    def of(self, shape: tuple[int, ...], names: Iterable[Any] = ()) -> Axes:
        """The axes of an array; `names`: those under which it may be a weight, or belong to one. Raises Unclear."""
        for name in names:
            if self.shapes.get(name) == shape:
                return self.by_name[name]
        if shape in self.by_shape:
            if len(self.by_shape[shape]) > 1:
                raise Unclear(f"weights of shape {shape} are indexed by token ids, and others of that shape are not")
            return next(iter(self.by_shape[shape]))
        if (axes := self._long(shape)) and self.sizes & self.others:
            raise Unclear(f"an array of shape {shape} may be indexed by token ids or not")
        return axes

    def _long(self, shape: tuple[int, ...]) -> Axes:
        return tuple(axis for axis, size in enumerate(shape) if size in self.sizes)


def _growing(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Axes]:
    """By name the axes that grow with the vocabulary; {} where the recipe can have no other, or none grows."""
    # padded rows of a head, and rows of the tokenizer's tokens alone; or the padded ones, where the tokenizer is fixed
    sizes = [dict.fromkeys(("vocab_size", "tokenizer_size"), more) for more in LARGER]
    for more in sizes + [{"vocab_size": size["vocab_size"]} for size in sizes]:
        try:
            fields: dict[str, Any] = {name: getattr(recipe, name) + count for name, count in more.items()}
            larger = dataclasses.replace(recipe, **fields).parameters()
        except (InputError, ValueError, TypeError):
            continue
        if larger.keys() != shapes.keys():
            continue
        axes = {
            name: tuple(axis for axis, (a, b) in enumerate(zip(shape, larger[name].shape, strict=False)) if a != b)
            for name, shape in shapes.items()
        }
        if any(axes.values()):
            return axes
    return {}


def renamed(array: np.ndarray, axes: Axes, ids: np.ndarray) -> np.ndarray:
    """The array with what belonged to token t at ids[t]; rows behind the last token (padding) stay."""
    for axis in axes:
        order = np.arange(array.shape[axis])
        order[: len(ids)] = np.argsort(ids)
        array = np.take(array, order, axis=axis)
    return array


def renamed_state(program: Any, state: Any, ids: np.ndarray) -> Any:
    """A program's state with renamed token ids in every array. Raises Unclear where something in it is no array."""
    axes = TokenAxes(program.recipe)
    if program.framework == "jax":
        import jax

        def rename(path: Any, leaf: Any) -> Any:
            names = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
            where = axes.of(tuple(np.shape(leaf)), names)
            if not where:
                return leaf
            return jax.device_put(renamed(np.asarray(leaf), where, ids), getattr(leaf, "sharding", None))

        return jax.tree_util.tree_map_with_path(rename, state)
    return program.reset(state, _renamed_tree(program.snapshot(state), axes, ids, ()))


def _renamed_tree(tree: Any, axes: TokenAxes, ids: np.ndarray, names: tuple[Any, ...]) -> Any:
    if isinstance(tree, dict):
        return {key: _renamed_tree(value, axes, ids, (*names, key)) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_renamed_tree(value, axes, ids, names) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(_renamed_tree(value, axes, ids, names) for value in tree)
    if tree is None or isinstance(tree, bool | int | float | str | bytes):
        return tree
    if not hasattr(tree, "shape") or not hasattr(tree, "dtype"):
        raise Unclear(f"the state holds a {type(tree).__name__}, whose token ids cannot be renamed")
    where = axes.of(tuple(tree.shape), names)
    if not where:
        return tree
    if isinstance(tree, np.ndarray):
        return renamed(tree, where, ids)
    import torch

    for axis in where:
        order = np.arange(tree.shape[axis])
        order[: len(ids)] = np.argsort(ids)
        tree = tree.index_select(axis, torch.as_tensor(order, device=tree.device))
    return tree

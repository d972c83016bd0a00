"""The parts that models are made of: name, formula, source, weights, and what each needs. Both backends have each by its name.

A recipe names one part for each slot that it fills. A part here says which weights it has, under which canonical names, and why it
may not fit; `jaxrun/parts.py` and `torchref/parts.py` compute it. Letters: parity/recipes/base.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parity.errors import InputError, nearest

if TYPE_CHECKING:
    from parity.recipes import Recipe


@dataclass(frozen=True)
class Parameter:
    """One weight by its canonical name: shape (matrices as (out, in)), first value, and the optimizer group it is in.

    `std` is the standard deviation of the normal distribution it is drawn from, `bound` the largest absolute value of the uniform
    one; where both are None it is the constant `value`. `embedding`: rows that are only looked up; `scalar`: a few learned factors.
    """

    shape: tuple[int, ...]
    group: str
    std: float | None = None
    value: float | tuple[float, ...] = 0.0
    embedding: bool = False
    bound: float | None = None
    scalar: bool = False


Table = dict[str, Parameter]


@dataclass(frozen=True)
class Part:
    """One part: the `slot` that it fills, its formula, and the public record or program that it comes from.

    `weights(recipe, place)`: its weights, below a place such as "blocks.0.attn."; `needs`: fields that the recipe must have;
    `clash(recipe)`: why it does not fit, with the name of what it does not fit, or "".
    """

    name: str
    slot: str
    formula: str
    source: str
    weights: Callable[["Recipe", str], Table] = lambda recipe, place: {}
    needs: tuple[str, ...] = ()
    clash: Callable[["Recipe"], str] = lambda recipe: ""


OPTIMIZERS = ("AdamW", "Muon", "SummedMuon")  # what `optim.py` of both backends has
SLOTS = {
    "init": "how matrices and embeddings are drawn",
    "positions": "added to the embedding",
    "norm_in": "the norm right after the embedding",
    "norm": "the norm before attention, before the MLP and before the head",
    "qkv": "how q, k and v come about",
    "turn": "what is done to q and k of a head",
    "values": "what v is mixed with",
    "mask": "which positions attention sees",
    "mlp": "the other half of a block",
    "residual": "what a block begins with",
    "skips": "what joins distant blocks",
    "head": "products that make scores",
    "cap": "what makes logits of scores",
}
OPTIONAL = {"positions", "norm_in", "turn", "values", "residual", "skips", "cap"}


# Weights


def linear(recipe: "Recipe", name: str, shape: tuple[int, ...], kind: str = "matrix") -> Table:
    """A matrix, or a stack of them, and a bias where the recipe has biases. `kind`: matrix, projection (back into the stream), head."""
    table = {
        f"{name}.weight": Parameter(
            shape, recipe.group("head" if kind == "head" else "matrix"), **_first(recipe, kind, shape[-1])
        )
    }
    return table | ({f"{name}.bias": Parameter(shape[:1], recipe.group("vector"))} if recipe.biases else {})


def embedding(recipe: "Recipe", name: str, rows: int, looked_up: bool = True) -> Table:
    """Rows of D; `looked_up`: the head does not use them too."""
    return {
        f"{name}.weight": Parameter(
            (rows, recipe.dim),
            recipe.group("embedding"),
            embedding=looked_up,
            **_first(recipe, "embedding", recipe.dim),
        )
    }


def factors(recipe: "Recipe", name: str, *values: float) -> Table:
    """A few learned factors."""
    return {f"{name}.weight": Parameter((len(values),), recipe.group("scalar"), value=values, scalar=True)}


def _gain(recipe: "Recipe", place: str) -> Table:
    return {f"{place}.weight": Parameter((recipe.dim,), recipe.group("vector"), value=1.0)}


def _gain_and_bias(recipe: "Recipe", place: str) -> Table:
    return _gain(recipe, place) | {f"{place}.bias": Parameter((recipe.dim,), recipe.group("vector"))}


def _separate(recipe: "Recipe", place: str) -> Table:
    return {name: p for x in "qkv" for name, p in linear(recipe, f"{place}{x}", (recipe.dim, recipe.dim)).items()}


def _mlp(recipe: "Recipe", place: str) -> Table:
    d = recipe.dim
    return linear(recipe, f"{place}fc", (4 * d, d)) | linear(recipe, f"{place}proj", (d, 4 * d), "projection")


def _first(recipe: "Recipe", kind: str, fan_in: int) -> dict[str, Any]:
    """How a weight of a kind (embedding, matrix, projection, head) is drawn."""
    return DRAWN[recipe.parts["init"]](recipe, kind, fan_in)


def _one_width(recipe: "Recipe", kind: str, fan_in: int) -> dict[str, Any]:
    return {"std": recipe.init_std / (2 * recipe.layers) ** 0.5 if kind == "projection" else recipe.init_std}


def _by_fan_in(drawn: Callable[["Recipe", int], dict[str, Any]]) -> Callable[["Recipe", str, int], dict[str, Any]]:
    """Embeddings N(0, 1); projections and head 0; matrices as `drawn`."""

    def first(recipe: "Recipe", kind: str, fan_in: int) -> dict[str, Any]:
        return {"embedding": {"std": 1.0}, "matrix": drawn(recipe, fan_in)}.get(kind, {})

    return first


DRAWN: dict[str, Callable[["Recipe", str, int], dict[str, Any]]] = {
    "GPT2Init": _one_width,
    "NormalInit": _by_fan_in(lambda recipe, fan_in: {"std": (recipe.init_variance / fan_in) ** 0.5}),
    "UniformInit": _by_fan_in(lambda recipe, fan_in: {"bound": recipe.init_bound / fan_in**0.5}),
}


# What does not fit


def _tied(recipe: "Recipe") -> str:
    if recipe.embedding_rows == recipe.vocab_size:
        return ""
    return f"an embedding of {recipe.embedding_rows} rows: as a head it would lack the {recipe.vocab_size - recipe.embedding_rows} of padding"


def _rotary(recipe: "Recipe", unit: int, least: int) -> str:
    if recipe.head_dim % unit == 0 and recipe.head_dim >= least:
        return ""
    return f"--head-dim {recipe.head_dim}: it turns pairs, and needs a multiple of {unit}, at least {least}"


def _first_values(recipe: "Recipe") -> str:
    return "--bare-block 0: the first block must have attention" if recipe.bare == 0 else ""


def _value_embeddings(recipe: "Recipe") -> str:
    count = recipe.value_count
    if not 0 < 2 * count <= recipe.layers:
        return (
            f"--value-embeddings {count}: the first and the last so many of {recipe.layers} blocks use them, each one"
        )
    return (
        f"--bare-block {recipe.bare}: value embeddings need its attention"
        if recipe.bare in recipe.value_embedding_of
        else ""
    )


def _unet(recipe: "Recipe") -> str:
    return (
        ""
        if recipe.layers % 2 == 0
        else f"--layers {recipe.layers}: its halves must be equal, so that every block has a partner"
    )


def _window(recipe: "Recipe") -> str:
    if recipe.context % recipe.block:
        return f"--context {recipe.context}: rows are made of whole blocks, so it must be a multiple of --block {recipe.block}"
    if recipe.eval_context % recipe.block:
        return f"--val-context {recipe.eval_context}: rows are made of whole blocks, so it must be a multiple of --block {recipe.block}"
    return (
        ""
        if recipe.window <= recipe.context
        else f"--window {recipe.window}: it is above the context, {recipe.context}"
    )


PARTS = {
    part.name: part
    for part in (
        Part(
            "GPT2Init",
            "init",
            "matrices and embeddings N(0, std), projections N(0, std / sqrt(2 L))",
            "GPT-2",
            needs=("init_std",),
        ),
        Part(
            "NormalInit",
            "init",
            "embeddings N(0, 1), projections and head 0, matrices of variance v / fan_in",
            "the optimization track",
            needs=("init_variance",),
        ),
        Part(
            "UniformInit",
            "init",
            "embeddings N(0, 1), projections and head 0, matrices uniform within b / sqrt(fan_in)",
            "record 11",
            needs=("init_bound",),
        ),
        Part(
            "LearnedPositions",
            "positions",
            "x + p[position]",
            "GPT-2",
            lambda recipe, place: embedding(recipe, f"{place}positions", recipe.context),
        ),
        Part(
            "LayerNorm", "norm", "(x - mean) / sqrt(variance + eps) gain + bias", "GPT-2", _gain_and_bias, ("norm_eps",)
        ),
        Part("RMSNorm", "norm", "x / sqrt(mean x^2 + eps) gain", "the optimization track", _gain, ("norm_eps",)),
        Part("Norm", "norm", "x / sqrt(mean x^2 + eps)", "record 11", needs=("norm_eps",)),
        Part(
            "MergedQKV",
            "qkv",
            "q, k, v = parts of W x, W (3 D, D)",
            "GPT-2",
            lambda recipe, place: linear(recipe, f"{place}qkv", (3 * recipe.dim, recipe.dim)),
        ),
        Part("SeparateQKV", "qkv", "q = Wq x, k = Wk x, v = Wv x", "record 11", _separate),
        Part(
            "StackedQKV",
            "qkv",
            "q, k, v = W[0] x, W[1] x, W[2] x, W (3, D, D)",
            "record 20",
            lambda recipe, place: linear(recipe, f"{place}qkv", (3, recipe.dim, recipe.dim)),
            clash=lambda recipe: "biases: a stack of matrices has none" if recipe.biases else "",
        ),
        Part(
            "HalfRotary",
            "turn",
            "q, k normed per head; half of the channels turn, by base^(-i / (K/4 - 1))",
            "the optimization track, record 21",
            needs=("rotary_base", "norm_eps"),
            clash=lambda recipe: _rotary(recipe, 4, 8),
        ),
        Part(
            "FullRotary",
            "turn",
            "q, k normed per head; all channels turn, by base^(-2 i / K)",
            "record 11",
            needs=("rotary_base", "norm_eps"),
            clash=lambda recipe: _rotary(recipe, 2, 2),
        ),
        Part(
            "FirstValues",
            "values",
            "v = (1 - a) v + a v1, v1 the first block's v before",
            "record 11",
            lambda recipe, place: factors(recipe, f"{place}lambdas", 0.5),
            clash=_first_values,
        ),
        Part(
            "ValueEmbeddings",
            "values",
            "v = a0 v + a1 e[token], a0 v where a block has no e",
            "records 14 to 16",
            lambda recipe, place: factors(recipe, f"{place}lambdas", 0.5, 0.5),
            ("value_embeddings",),
            _value_embeddings,
        ),
        Part("Causal", "mask", "earlier positions and the own one", "GPT-2"),
        Part(
            "DocumentWindow",
            "mask",
            "of these, those of the own document and of the last W blocks",
            "records 12, 13, 20",
            needs=("window", "block", "long_blocks"),
            clash=_window,
        ),
        Part("GELU", "mlp", "W2 gelu(W1 x)", "GPT-2", _mlp, ("gelu",)),
        Part("ReLUSquared", "mlp", "W2 relu(W1 x)^2", "record 11", _mlp),
        Part(
            "InputResidual",
            "residual",
            "x = l0 x + l1 x0, x0 the normed embedding",
            "record 11",
            lambda recipe, place: factors(recipe, f"{place}lambdas", 1.0, 0.0),
        ),
        Part(
            "UNet",
            "skips",
            "block L/2 + i begins with x + w_i (output of block L/2 - 1 - i)",
            "record 11",
            lambda recipe, place: factors(recipe, f"{place}skips", *[1.0] * (recipe.layers // 2)),
            clash=_unet,
        ),
        Part("TiedHead", "head", "scores = E x, E the embedding", "GPT-2", clash=_tied),
        Part(
            "Head",
            "head",
            "scores = W x",
            "record 8",
            lambda recipe, place: linear(recipe, f"{place}head", (recipe.vocab_size, recipe.dim), "head"),
        ),
        Part(
            "FP8Head",
            "head",
            "scores = W x, in training with x, W in e4m3 and the gradient in e5m2",
            "record 19",
            lambda recipe, place: linear(recipe, f"{place}head", (recipe.vocab_size, recipe.dim), "head"),
            ("fp8_scales",),
            lambda recipe: "biases: its product has none" if recipe.biases else "",
        ),
        Part("MaskedPadding", "cap", "columns above the tokenizer's take no part", "nanoGPT"),
        Part("RationalCap", "cap", "c z / sqrt(z^2 + c^2)", "the optimization track", needs=("logit_cap",)),
        Part("TanhCap", "cap", "c tanh(z / c)", "record 11", needs=("logit_cap",)),
        Part("SigmoidCap", "cap", "c sigmoid(z / s)", "record 18", needs=("logit_cap", "logit_slope")),
    )
}


def check(recipe: "Recipe") -> None:
    """Raises InputError where a slot is empty or a part unknown, in the wrong slot, without a field it needs, or does not fit."""
    for slot, name in recipe.parts.items():
        where = f"recipe {recipe.name}: part {name}"
        if slot not in SLOTS:
            raise InputError(
                f"recipe {recipe.name}: there is no slot {slot!r} for the part {name}; {nearest(slot, SLOTS)}"
            )
        if name not in PARTS:
            raise InputError(
                f"{where} is unknown; {nearest(name, [p.name for p in PARTS.values() if p.slot == _kind(slot)])}"
            )
        part = PARTS[name]
        if part.slot != _kind(slot):
            raise InputError(
                f"{where} is for the slot {part.slot}, found in {slot}: expected one of "
                f"{', '.join(p.name for p in PARTS.values() if p.slot == _kind(slot))}"
            )
        for field in part.needs:
            if not hasattr(recipe, field):
                raise InputError(f"{where} needs the field {field}, which the recipe has not: add it to the class")
        if reason := part.clash(recipe):
            raise InputError(f"{where} does not fit {reason}")
    if missing := sorted(SLOTS.keys() - OPTIONAL - recipe.parts.keys()):
        raise InputError(
            f"recipe {recipe.name}: the slot {missing[0]} ({SLOTS[missing[0]]}) is empty: name a part for it"
        )
    for group, name in recipe.optimizers.items():
        if name not in OPTIMIZERS:
            raise InputError(
                f"recipe {recipe.name}: the optimizer {name} of {group} is unknown; {nearest(name, OPTIMIZERS)}"
            )
    for name, parameter in recipe.parameters().items():
        if parameter.group not in recipe.optimizers:
            raise InputError(
                f"recipe {recipe.name}: {name} is of the group {parameter.group}, which has no optimizer: name one for it"
            )
        if recipe.optimizers[parameter.group] != "AdamW" and len(parameter.shape) < 2:
            raise InputError(
                f"recipe {recipe.name}: the optimizer {recipe.optimizers[parameter.group]} does not fit {name} of shape "
                f"{parameter.shape}, which is no matrix: give its group AdamW"
            )


def weights(recipe: "Recipe") -> Table:
    """Every weight of a recipe by its canonical name, in the order in which they are used."""

    def of(slot: str, place: str) -> Table:
        return PARTS[recipe.parts[slot]].weights(recipe, place) if slot in recipe.parts else {}

    tied = recipe.parts["head"] == "TiedHead"
    table = (
        embedding(recipe, "embed", recipe.embedding_rows, looked_up=not tied)
        | of("positions", "")
        | of("norm_in", "norm_in")
    )
    for i in range(getattr(recipe, "value_count", 0)):
        table |= embedding(recipe, f"value_embeds.{i}", recipe.embedding_rows)
    for i in range(recipe.layers):
        block = f"blocks.{i}."
        table |= of("residual", block)
        if i != recipe.bare:
            table |= of("norm", block + "norm1") | of("qkv", block + "attn.") | of("values", block + "attn.")
            table |= linear(recipe, block + "attn.proj", (recipe.dim, recipe.dim), "projection")
        table |= of("norm", block + "norm2") | of("mlp", block + "mlp.")
    return table | of("skips", "") | of("norm", "norm_out") | of("head", "")


def _kind(slot: str) -> str:
    return "norm" if slot == "norm_in" else slot

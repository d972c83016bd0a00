"""A recipe as a JAX program: one compiled step over a mesh, and what the harness and the comparer ask of it."""

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import platformdirs
from flax import nnx

from jaxrun import checkpoint, model, optim, sharding
from jaxrun.inspector import Inspection
from jaxrun.kernels import head_blocks
from jaxrun.kernels.cross_entropy import BoundedSoftcap
from jaxrun.kernels.platform import compiling_for
from jaxrun.kernels.remat import remat
from parity import weights as canonical
from parity.errors import InputError
from parity.program import check_microbatches, own_function
from parity.recipes import Recipe

State = dict[str, Any]  # {"weights": {name: array}, "optimizer": optax state, "step": int32}


class JaxProgram(Inspection):
    """Implements parity.program.Program for the recipes, and for own models and optimizers.

    An own model is made by `make_model(recipe)`: its attribute paths are the recipe's canonical names, it maps (B, T)
    tokens to (B, T, D), and its method `logits` maps those to (B, T, V). An own optimizer is any optax transform.
    """

    framework = "jax"

    def __init__(
        self,
        recipe: Recipe,
        devices: list,
        optimizer: optax.GradientTransformation | None = None,
        make_model: Callable[[Recipe], nnx.Module] | None = None,
        microbatches: int = 1,
        shards: int | None = None,
        remat: str = "none",
    ):
        self.recipe = recipe
        self.devices = [d.device_kind for d in devices]
        self.platform = "cpu" if devices[0].platform == "cpu" else "gpu"
        self.mesh = sharding.make_mesh(devices, shards)
        self.microbatches, self.remat = microbatches, remat
        self.optimizer = optimizer or optim.make_optimizer(
            recipe, lambda function: sharding.by_matrix(self.mesh, function)
        )
        self.groups = optim.group_of(recipe)
        self.definition, _ = model.make_model(recipe, make_model)
        self.shapes = jax.eval_shape(
            self._first_state,
            {name: jax.ShapeDtypeStruct(p.shape, np.float32) for name, p in recipe.parameters().items()},
        )
        self.shardings = sharding.parts(self.mesh, self.shapes)
        self.head = self._head()
        state, weights = self.shardings, self.shardings["weights"]
        whole, rows = sharding.replicated(self.mesh), sharding.by_row(self.mesh)
        self._step = self._compiled(
            self._update, in_shardings=(state, rows, rows), out_shardings=(state, whole), donate_argnums=0
        )
        self._grads = self._compiled(
            self._loss_and_grads, in_shardings=(weights, whole, rows, rows), out_shardings=(whole, weights)
        )
        self._prefix_grads = self._compiled(
            self._loss_and_grads, in_shardings=(weights, whole, rows, rows, whole), out_shardings=(whole, weights)
        )
        self._losses = self._compiled(self._token_losses, in_shardings=(weights, whole, rows, rows), out_shardings=rows)
        self._log_probs = self._compiled(self._row_log_probs)
        self._given = self._compiled(lambda grads, state: self._apply(grads, state)[1], out_shardings=state)
        self._fresh = self._compiled(self._first_state, out_shardings=state)

    def init(self, seed: int) -> State:
        return self.load(canonical.initial_weights(self.recipe, seed))

    def load(self, weights: canonical.Weights) -> State:
        canonical.check(weights, self.recipe, "weights")
        return self._fresh({name: weights[name] for name in self.recipe.parameters()})

    def with_step(self, state: State, step: int) -> State:
        place = sharding.replicated(self.mesh)
        return state | {
            "step": jax.make_array_from_callback((), place, lambda _: np.asarray(step, np.int32))
        }  # no exchange of processes

    def export(self, state: State) -> canonical.Weights:
        dtype = np.float64 if self.recipe.precision == "float64" else np.float32
        return {name: np.asarray(w).astype(dtype) for name, w in sharding.fetched(state["weights"]).items()}

    def put_global_batch(self, inputs_BT: np.ndarray, targets_BT: np.ndarray):
        if len(inputs_BT) % self.mesh.size:
            raise InputError(
                f"a batch of {len(inputs_BT)} rows cannot be split over {self.mesh.size} devices: "
                "choose --devices that divides the rows of a batch"
            )
        return sharding.placed_whole(self.mesh, inputs_BT), sharding.placed_whole(self.mesh, targets_BT)

    def put_local_batch(self, inputs_BT: np.ndarray, targets_BT: np.ndarray):
        return sharding.placed(self.mesh, inputs_BT), sharding.placed(self.mesh, targets_BT)

    def step(self, state: State, batch) -> tuple[State, dict[str, Any]]:
        return self._step(state, *batch)

    def token_losses(self, state: State, batch):
        return self._losses(state["weights"], state["step"], *batch)

    def log_probs(self, state: State, inputs_BT: np.ndarray, positions: np.ndarray | None = None):
        positions = np.arange(inputs_BT.shape[1]) if positions is None else positions
        return self._log_probs(state["weights"], state["step"], inputs_BT, positions)

    def loss_and_grads(self, state: State, batch, prefix: int | None = None):
        weights, step = state["weights"], state["step"]
        return (
            self._grads(weights, step, *batch) if prefix is None else self._prefix_grads(weights, step, *batch, prefix)
        )

    def fetch(self, values):
        return sharding.fetched(values)

    def wait(self, state: State) -> None:
        jax.block_until_ready(state)

    def snapshot(self, state: State) -> State:
        return jax.tree.map(jnp.copy, state)

    def reset(self, state: State, snapshot: State) -> State:
        return self.snapshot(snapshot)

    def digest(self, state: State) -> str:
        leaves = jax.tree_util.tree_leaves_with_path(sharding.fetched(state))
        return canonical.digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})

    def save(self, state: State, directory: Path | None) -> None:
        alone = jax.process_count() == 1
        state = state if alone else sharding.fetched(state)
        if directory is not None:
            checkpoint.save(directory, state, alone)

    def restore(self, directory: Path) -> State:
        return checkpoint.restore(directory, self._placed(self.shapes, self.shardings))

    def memory(self) -> tuple[dict[str, int], int] | None:
        """Bytes that a step takes on each device (arguments, temporaries, results), by the compiled program, and what a device has;
        None where that is not known, as on CPUs."""
        limit = (self.mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
        if not limit:
            return None
        found = self.lowered(self.recipe.batch_tokens // self.recipe.context).compile().memory_analysis()
        return {
            "arguments": found.argument_size_in_bytes,
            "temporaries": found.temp_size_in_bytes,
            "results": found.output_size_in_bytes - found.alias_size_in_bytes,
        }, limit

    def lowered(self, rows: int, what: str = "step") -> Any:
        """The `step`, or the `evaluation`, of a batch of so many rows, lowered for the program's devices, which need not be there."""
        length = self.recipe.context if what == "step" else self.recipe.eval_context
        batch = [jax.ShapeDtypeStruct((rows, length), np.int32, sharding=sharding.by_row(self.mesh))] * 2
        state = self._placed(self.shapes, self.shardings)
        return (
            self._step.lower(state, *batch)
            if what == "step"
            else self._losses.lower(state["weights"], state["step"], *batch)
        )

    def window(self, step) -> tuple:
        """What the model is told of the number of updates so far: nothing, or the window of its attention, int32."""
        if self.recipe.attention_window(0) is None:
            return ()
        table = np.array([self.recipe.attention_window(n) for n in range(self.recipe.steps + 1)], np.int32)
        return (jnp.asarray(table)[jnp.minimum(step, self.recipe.steps)],)

    def _compiled(self, function: Callable, **options: Any) -> Callable:
        """jit for the program's own devices, wherever it is traced."""

        @functools.wraps(function)
        def traced(*args):
            with compiling_for(self.platform), remat(self.remat):
                return function(*args)

        return jax.jit(traced, **options)

    @staticmethod
    def _placed(shapes, shardings):
        return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings)

    def _first_state(self, weights) -> State:
        stored = {name: jnp.asarray(w).astype(self.recipe.storage_dtype(name)) for name, w in weights.items()}
        return {"weights": stored, "optimizer": self.optimizer.init(stored), "step": jnp.zeros((), jnp.int32)}

    def _update(self, state: State, inputs_BT, targets_BT):
        loss, grads = self._loss_and_grads(state["weights"], state["step"], inputs_BT, targets_BT)
        updates, state = self._apply(grads, state)
        mean = loss if self.recipe.loss_reduction == "mean" else loss / targets_BT.size
        norms = {"weights": state["weights"], "grads": grads, "updates": updates}
        metrics = {
            "loss": mean,
            "grad_norm": optim.global_norm(grads),
            "norms": {kind: optim.group_norms(x, self.groups) for kind, x in norms.items()},
        }
        return state, metrics

    def _apply(self, grads, state: State):
        updates, optimizer = self.optimizer.update(grads, state["optimizer"], state["weights"])
        weights = optax.apply_updates(state["weights"], updates)
        return updates, {"weights": weights, "optimizer": optimizer, "step": state["step"] + 1}

    def _loss_and_grads(self, weights, step, inputs_BT, targets_BT, prefix=None):
        """The recipe's loss, or the sum of the losses at the first `prefix` positions of every row; each device for its own rows."""
        mean = prefix is None and self.recipe.loss_reduction == "mean"
        scale = 1 / inputs_BT.size if mean else 1.0
        window = self.window(step)
        counted_BT = (
            jnp.ones_like(inputs_BT)
            if prefix is None
            else jnp.broadcast_to(jnp.arange(inputs_BT.shape[1]) < prefix, inputs_BT.shape)
        )

        def own(weights, *rows):
            def part(inputs_BT, targets_BT, counted_BT):
                return jax.value_and_grad(
                    lambda w: (
                        scale
                        * self._total_loss(w, window, inputs_BT, targets_BT, None if prefix is None else counted_BT)
                    )
                )(weights)

            return sharding.reduce_gradients(self.mesh, *sharding.in_microbatches(self.microbatches, part, *rows))

        outputs = sharding.WHOLE, {name: sharding.part(self.mesh, w.shape) for name, w in weights.items()}
        return sharding.over_rows(self.mesh, own, outputs)(weights, inputs_BT, targets_BT, counted_BT)

    def _total_loss(self, weights, window, inputs_BT, targets_BT, counted_BT):
        return head_blocks.total_loss(
            self.head, weights, self._hidden(weights, window, inputs_BT), targets_BT, counted_BT
        )

    def _token_losses(self, weights, step, inputs_BT, targets_BT):
        window = self.window(step)

        def own(weights, inputs_BT, targets_BT):
            return head_blocks.token_losses(self.head, weights, self._hidden(weights, window, inputs_BT), targets_BT)

        return sharding.over_rows(self.mesh, own, sharding.ROWS)(weights, inputs_BT, targets_BT)

    def _hidden(self, weights, window, inputs_BT):
        return model.apply(self.definition, weights, lambda m: m(inputs_BT, *window))

    def _head(self) -> head_blocks.Head:
        """The model's head. An own model may have logits alone."""
        empty = self.shapes["weights"]
        net = model.apply(self.definition, empty, lambda m: m)

        def method(name: str, *args: Any) -> Callable:  # weights that the head does not use may be missing
            return lambda weights, x_BTD: model.apply(
                self.definition, empty | weights, lambda m: getattr(m, name)(x_BTD, *args)
            )

        if not hasattr(net, "softcap"):
            return head_blocks.Head(method("logits"), method("logits"), lambda logits: logits)
        training = method("raw_logits")
        if hasattr(net, "training_raw_logits"):  # gradients are those of the sum of the losses
            training = method("training_raw_logits", 1 / self.recipe.context)
        softcap = BoundedSoftcap(net.softcap, getattr(net, "logit_bound", math.inf))
        return head_blocks.Head(method("raw_logits"), training, softcap)

    def _row_log_probs(self, weights, step, inputs_BT, positions):
        logits_BPV = model.apply(
            self.definition, weights, lambda m: m.logits(m(inputs_BT, *self.window(step))[:, positions])
        )
        return jax.nn.log_softmax(logits_BPV, axis=-1)


def build(
    recipe: Recipe,
    *,
    device: str = "auto",
    devices: int | None = None,
    optimizer: str | None = None,
    microbatches: int = 1,
    shards: int | None = None,
    remat: str = "none",
) -> JaxProgram:
    """The recipe in JAX on the chosen devices; `optimizer` is module:function, called with the recipe, an optax transform.
    Gradients are summed over `microbatches` equal parts of a batch; the state is divided over `shards` devices, or all of them;
    `remat` says what is computed again for the gradient ("none", "blocks").

    Raises InputError for devices that are not there, rows that they do not divide, and an optimizer that is none.
    """
    if recipe.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    keep_compiled()
    chosen = sharding.pick_devices(device, devices)
    rows = recipe.batch_tokens // recipe.context
    if rows % len(chosen):
        raise InputError(
            f"--batch-tokens {recipe.batch_tokens} is {rows} rows of {recipe.context}, which {len(chosen)} "
            "devices do not divide: choose --devices or --batch-tokens so that they do"
        )
    check_microbatches(recipe, len(chosen), microbatches)
    transform = None
    if optimizer:
        transform = own_function(optimizer, "--optimizer")(recipe)
        if not isinstance(transform, optax.GradientTransformation):
            raise InputError(
                f"--optimizer {optimizer}: expected an optax.GradientTransformation, found "
                f"{type(transform).__name__}: return what optax's optimizers return"
            )
    return JaxProgram(recipe, chosen, transform, microbatches=microbatches, shards=shards, remat=remat)


def keep_compiled() -> None:
    """Lets a second start find what the first compiled, in the user's cache unless JAX_COMPILATION_CACHE_DIR is set."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path(platformdirs.user_cache_dir("jaxrun")) / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def join(device: str = "auto") -> None:
    """Joins the other processes, which torchrun's variables name, once; nothing to do where this one is alone."""
    sharding.join(device)


def platform(device: str = "auto") -> str:
    """ "cpu" or "gpu": what `device` means here. Raises InputError where there is no such device."""
    return sharding.pick_devices(device)[0].platform

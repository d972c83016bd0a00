"""A recipe as a JAX program: one compiled step over a mesh, and what the harness and the comparer ask of it."""

import functools
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding

from jaxrun import checkpoint, layers, model, optim, sharding, user_optimizer
from jaxrun.kernels import head_blocks
from jaxrun.kernels.cross_entropy import BoundedSoftcap
from jaxrun.kernels.platform import compiling_for
from jaxrun.kernels.remat import remat
from parity import weights as canonical
from parity.cli import user_cache
from parity.errors import InputError
from parity.program import check_rows
from parity.recipes import Recipe
from parity.user_program import source_file, user_code


class State(TypedDict):
    weights: dict[str, jax.Array]
    optimizer: Any  # the optax state
    step: jax.Array  # number of updates, int32


class JaxProgram:
    """Implements parity.program.Program for the recipes, and for user models and optimizers.

    A user model is made by `make_model(recipe)`: its attribute paths are the recipe's canonical names, it maps (B, T)
    tokens to (B, T, D), and its method `logits` maps those to (B, T, V). A user optimizer is any optax transform;
    beside it may stand `eval_params(opt_state, params)`, which returns the weights to evaluate and to keep at the end.
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
        eval_params: user_optimizer.EvalParams | None = None,
    ):
        self.recipe = recipe
        self.devices = [d.device_kind for d in devices]
        self.platform = "cpu" if devices[0].platform == "cpu" else "gpu"
        self.mesh = sharding.make_mesh(devices, shards)
        self.microbatches, self.remat = microbatches, remat
        self.optimizer = optimizer or optim.make_optimizer(
            recipe, functools.partial(sharding.distribute_matrices, self.mesh)
        )
        self.user_optimizer, self.eval_params = optimizer is not None, eval_params
        self.idle_weights: tuple[str, ...] = ()
        """Names of the weights whose updates depend on no gradient."""
        self.groups = optim.group_of(recipe)
        self.make_model = make_model
        self.definition = model.make_model(recipe, make_model)
        self.shapes = jax.eval_shape(
            self._first_state,
            {name: jax.ShapeDtypeStruct(p.shape, np.float32) for name, p in recipe.parameters().items()},
        )
        self.head = self._head()
        if optimizer is not None:  # one that does not fit the weights is found before anything is compiled
            jax.eval_shape(self._apply, self.shapes, self.shapes["weights"])
            self.idle_weights = user_optimizer.idle_weights(self.optimizer, self.shapes["weights"])
            jax.eval_shape(self._eval_weights, self.shapes)

        state = sharding.param_shardings(self.mesh, self.shapes)
        weights, whole, rows = state["weights"], self._replicated(), NamedSharding(self.mesh, sharding.ROWS)
        grads = {"in_shardings": (weights, whole, rows, rows), "out_shardings": (whole, weights)}
        self._compiled_first_state = self._compile(self._first_state, out_shardings=state)
        self._compiled_step = self._compile(
            self._step, in_shardings=(state, rows, rows), out_shardings=(state, whole), donate_argnums=0
        )
        self._compiled_apply = self._compile(lambda state, grads: self._apply(state, grads)[0], out_shardings=state)
        self._compiled_grads = self._compile(self._loss_and_grads, **grads)
        self._compiled_prefix_grads = self._compile(
            self._loss_and_grads, **grads | {"in_shardings": (*grads["in_shardings"], whole)}
        )
        self._compiled_token_losses = self._compile(
            self._token_losses, in_shardings=(weights, whole, rows, rows), out_shardings=rows
        )
        self._compiled_log_probs = self._compile(self._log_probs)
        self._compiled_eval_weights = self._compile(self._eval_weights, in_shardings=(state,), out_shardings=weights)

    def plain(self) -> "JaxProgram":
        """A program of this class with the same model and optimizer, without what a subclass changes."""
        devices = self.mesh.devices.flatten().tolist()
        return JaxProgram(self.recipe, devices, self.optimizer, self.make_model, self.microbatches, remat=self.remat)

    def init(self, seed: int) -> State:
        return self.load(canonical.initial_weights(self.recipe, seed))

    def load(self, weights: canonical.Weights) -> State:
        canonical.check(weights, self.recipe, "weights")
        state = self._compiled_first_state({name: weights[name] for name in self.recipe.parameters()})
        if self.eval_params is not None:
            chosen = self.fetch(self._compiled_eval_weights(self.with_step(state, 1)))
            user_optimizer.check_first_eval_params(chosen, self.fetch(state["weights"]))
        return state

    def with_step(self, state: State, step: int) -> State:
        # device_put would exchange the value between processes
        value = jax.make_array_from_callback((), self._replicated(), lambda _: np.asarray(step, np.int32))
        return {**state, "step": value}

    def export(self, state: State) -> canonical.Weights:
        dtype = np.float64 if self.recipe.precision == "float64" else np.float32
        return {name: np.asarray(w).astype(dtype) for name, w in self.fetch(self._evaluated(state)).items()}

    def put_global_batch(self, inputs_BT: np.ndarray, targets_BT: np.ndarray):
        if len(inputs_BT) % self.mesh.size:
            raise InputError(
                f"a batch of {len(inputs_BT)} rows cannot be split over {self.mesh.size} devices: "
                "choose --devices that divides the rows of a batch"
            )
        return sharding.from_global(self.mesh, inputs_BT), sharding.from_global(self.mesh, targets_BT)

    def put_local_batch(self, inputs_BT: np.ndarray, targets_BT: np.ndarray):
        return sharding.from_local_rows(self.mesh, inputs_BT), sharding.from_local_rows(self.mesh, targets_BT)

    def step(self, state: State, batch) -> tuple[State, dict[str, Any]]:
        return self._compiled_step(state, *batch)

    def apply_gradients(self, state: State, grads: dict[str, Any]) -> State:
        """The state after one update of the optimizer from these gradients."""
        return self._compiled_apply(state, grads)

    def token_losses(self, state: State, batch):
        return self._compiled_token_losses(self._evaluated(state), state["step"], *batch)

    def log_probs(self, state: State, inputs_BT: np.ndarray, positions: np.ndarray | None = None):
        positions = np.arange(inputs_BT.shape[1]) if positions is None else positions
        return self._compiled_log_probs(self._evaluated(state), state["step"], inputs_BT, positions)

    def loss_and_grads(self, state: State, batch, prefix: int | None = None):
        arguments = state["weights"], state["step"], *batch
        return self._compiled_grads(*arguments) if prefix is None else self._compiled_prefix_grads(*arguments, prefix)

    def fetch(self, values):
        return sharding.to_host(values)

    def wait(self, state: State) -> None:
        jax.block_until_ready(state)

    def snapshot(self, state: State) -> State:
        return jax.tree.map(jnp.copy, state)

    def reset(self, state: State, snapshot: State) -> State:
        return self.snapshot(snapshot)

    def digest(self, state: State) -> str:
        leaves = jax.tree_util.tree_leaves_with_path(self.fetch(state))
        return canonical.digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})

    def save(self, state: State, directory: Path | None) -> None:
        state = state if jax.process_count() == 1 else self.fetch(state)
        if directory is not None:
            checkpoint.save(directory, state)

    def restore(self, directory: Path) -> State:
        return checkpoint.restore(directory, self._empty_state())

    def memory(self) -> tuple[dict[str, int], int] | None:
        """Bytes of a step on each device by the compiled program (arguments, temporaries, results), and of a device.

        None where the size of a device's memory is unknown, as on CPUs.
        """
        limit = (self.mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
        if not limit:
            return None
        analysis = self.lowered(self.recipe.batch_tokens // self.recipe.context).compile().memory_analysis()
        return {
            "arguments": analysis.argument_size_in_bytes,
            "temporaries": analysis.temp_size_in_bytes,
            "results": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        }, limit

    def lowered(self, rows: int, what: str = "step") -> Any:
        """The `step` or the `evaluation` of so many rows, lowered for the program's devices, which need not exist."""
        length = self.recipe.context if what == "step" else self.recipe.eval_context
        batch = [jax.ShapeDtypeStruct((rows, length), np.int32, sharding=NamedSharding(self.mesh, sharding.ROWS))] * 2
        state = self._empty_state()
        if what == "step":
            return self._compiled_step.lower(state, *batch)
        return self._compiled_token_losses.lower(state["weights"], state["step"], *batch)

    def window(self, step) -> tuple:
        """The model's arguments that depend on the number of updates: none, the attention window in blocks, or the
        number of the stage of attention."""
        at = self.recipe.attention_window if self.recipe.attention_stage(0) is None else self.recipe.attention_stage
        if at(0) is None:
            return ()
        table = np.array([at(n) for n in range(self.recipe.steps + 1)], np.int32)
        return (jnp.asarray(table)[jnp.minimum(step, self.recipe.steps)],)

    def target_weights(self, step):
        """(N,): what the losses of a position's N targets count in training after so many updates."""
        table = np.array([self.recipe.target_weights(n) for n in range(self.recipe.steps + 1)])
        return jnp.asarray(table, self.recipe.dtypes.accum)[jnp.minimum(step, self.recipe.steps)]

    def _compile(self, function: Callable, **options: Any) -> Any:
        """jit for the program's own devices, wherever it is traced."""

        @functools.wraps(function)
        def traced(*args):
            with compiling_for(self.platform), remat(self.remat):
                return function(*args)

        return jax.jit(traced, **options)

    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, sharding.REPLICATED)

    def _empty_state(self) -> State:
        """The shapes, types and shardings of a state."""
        shardings = sharding.param_shardings(self.mesh, self.shapes)
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), self.shapes, shardings
        )

    def _first_state(self, weights) -> State:
        stored = {name: jnp.asarray(w).astype(self.recipe.storage_dtype(name)) for name, w in weights.items()}
        return {"weights": stored, "optimizer": self.optimizer.init(stored), "step": jnp.zeros((), jnp.int32)}

    def _step(self, state: State, inputs_BT, targets_BT):
        loss, grads = self._loss_and_grads(state["weights"], state["step"], inputs_BT, targets_BT)
        rates = user_optimizer.stated_rates(state["optimizer"]) if self.user_optimizer else {}
        targets = self.target_weights(state["step"]).sum()
        state, updates = self._apply(state, grads)
        tensors = {"weights": state["weights"], "grads": grads, "updates": updates}
        metrics = {
            "loss": loss * self.recipe.loss_per_token(*targets_BT.shape) / targets,
            "grad_norm": optim.global_norm(grads),
            "norms": {kind: optim.group_norms(x, self.groups) for kind, x in tensors.items()},
            "rates": rates,
        }
        return state, metrics

    def _apply(self, state: State, grads) -> tuple[State, Any]:
        """The state after an update from these gradients, and the update."""
        updates, optimizer = self.optimizer.update(grads, state["optimizer"], state["weights"])
        user_optimizer.check_updates(updates, state["weights"])
        weights: Any = optax.apply_updates(state["weights"], updates)
        return {"weights": weights, "optimizer": optimizer, "step": state["step"] + 1}, updates

    def _evaluated(self, state: State) -> Any:
        """The weights that are evaluated, sampled from and exported: those of the state, or eval_params of it."""
        return state["weights"] if self.eval_params is None else self._compiled_eval_weights(state)

    def _eval_weights(self, state: State) -> Any:
        """eval_params of a state; before the first update the weights themselves, to the last bit."""
        weights = state["weights"]
        if self.eval_params is None:
            return weights
        chosen = self.eval_params(state["optimizer"], weights)
        user_optimizer.check_eval_params(chosen, weights)
        return {name: jnp.where(state["step"] == 0, w, chosen[name]) for name, w in weights.items()}

    def _loss_and_grads(self, weights, step, inputs_BT, targets_BT, prefix=None):
        """The recipe's loss, or the sum of losses at the first `prefix` positions of every row, and its gradients.

        The loss is `layers.token_losses`, -log softmax(logits)[target], summed over the tokens in blocks.
        """
        reduction = self.recipe.loss_reduction if prefix is None else "sum"
        scale = {"mean": 1 / inputs_BT.size, "sum": 1.0, "rows": 1 / len(inputs_BT)}[reduction]
        window, rows = self.window(step), [inputs_BT, targets_BT]
        if len(self.recipe.target_weights(0)) > 1:
            rows[1:] = layers.shifted_targets(targets_BT, self.target_weights(step), prefix)
        elif prefix is not None:
            rows.append(jnp.broadcast_to(jnp.arange(inputs_BT.shape[1]) < prefix, inputs_BT.shape))

        def on_device(weights, *rows):
            def on_microbatch(inputs_BT, targets, loss_weights=None):
                return jax.value_and_grad(
                    lambda weights: scale * self._total_loss(weights, window, inputs_BT, targets, loss_weights)
                )(weights)

            loss, grads = sharding.sum_microbatches(self.microbatches, on_microbatch, *rows)
            return sharding.reduce_gradients(self.mesh, loss, grads)

        specs = sharding.REPLICATED, {name: sharding.param_spec(self.mesh, w.shape) for name, w in weights.items()}
        return sharding.shard_map_rows(self.mesh, on_device, specs)(weights, *rows)

    def _total_loss(self, weights, window, inputs_BT, targets, loss_weights) -> Any:
        return head_blocks.total_loss(
            self.head, weights, self._hidden(weights, window, inputs_BT), targets, loss_weights
        )

    def _token_losses(self, weights, step, inputs_BT, targets_BT):
        window = self.window(step)

        def on_device(weights, inputs_BT, targets_BT):
            return head_blocks.token_losses(self.head, weights, self._hidden(weights, window, inputs_BT), targets_BT)

        return sharding.shard_map_rows(self.mesh, on_device, sharding.ROWS)(weights, inputs_BT, targets_BT)

    def _hidden(self, weights, window, inputs_BT):
        return model.apply(self.definition, weights, lambda m: m(inputs_BT, *window))

    def _head(self) -> head_blocks.Head:
        """The model's head. A user model may have logits alone."""
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
            training = method("training_raw_logits", self.recipe.row_loss_factor(self.recipe.context))
        softcap = BoundedSoftcap(net.softcap, getattr(net, "logit_bound", math.inf))
        return head_blocks.Head(method("raw_logits"), training, softcap)

    def _log_probs(self, weights, step, inputs_BT, positions):
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
    """The recipe in JAX on the chosen devices.

    `optimizer` is module:function, called with the recipe; it returns an optax transform, or that and eval_params.
    Gradients are summed over `microbatches` equal groups of a device's rows; the state is sharded over `shards`
    devices, by default all of them; `remat` chooses what is recomputed for the gradient ("none", "blocks").

    Raises InputError for devices that are missing or do not divide the rows of a batch, and for a function that
    returns no optimizer.
    """
    if recipe.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    keep_compiled()
    chosen = sharding.pick_devices(device, devices)
    check_rows(recipe, len(chosen), microbatches, "--devices")
    if optimizer is None:
        return JaxProgram(recipe, chosen, microbatches=microbatches, shards=shards, remat=remat)
    transform, eval_params = user_optimizer.load_optimizer(recipe, optimizer)
    options: dict[str, Any] = {"microbatches": microbatches, "shards": shards, "remat": remat}
    with user_code(source_file(optimizer), "the optimizer"):
        return JaxProgram(recipe, chosen, transform, eval_params=eval_params, **options)


def keep_compiled() -> None:
    """Caches compiled programs for later processes: in JAX_COMPILATION_CACHE_DIR, or below the user's cache folder.

    Where that cannot be written they are compiled each time, which is no reason for a warning.
    """
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and (folder := user_cache()):
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

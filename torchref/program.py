"""A recipe as a PyTorch program: one step, eager or compiled, and what the harness and the comparer ask of it."""

# pyright: reportPrivateImportUsage=false
import copy
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from parity import weights as canonical
from parity.errors import InputError
from parity.program import check_rows
from parity.recipes import Recipe
from torchref import attention, checkpoint, layers, model, optim, sharding, user_optimizer

MakeOptimizer = Callable[[dict[str, nn.Parameter]], optim.ByGroup]


@dataclass
class State:
    model: Any  # nn.Module with a method `logits`
    optimizer: optim.ByGroup
    step: int  # number of updates

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Parameters by canonical name, detached."""
        return {name: w.detach() for name, w in self.model.named_parameters()}

    def tree(self) -> dict[str, Any]:
        """The state as dicts, lists, tensors and plain values."""
        return {"weights": self.weights, "optimizer": self.optimizer.state_dict(), "step": self.step}


class TorchProgram:
    """Implements parity.program.Program for the recipes, and for user models and optimizers.

    A user model is made by `make_model(recipe)`: its parameters' names are the recipe's canonical names, it maps (B, T)
    tokens to (B, T, D), and its method `logits` maps those to (B, T, V). `optimizer` makes an optim.ByGroup of
    {name: parameter}; its `eval_params` chooses the weights to evaluate and to keep at the end.
    """

    framework = "torch"

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        optimizer: MakeOptimizer | None = None,
        compile: bool = False,
        make_model: Callable[[Recipe], nn.Module] | None = None,
        microbatches: int = 1,
    ):
        self.recipe = recipe
        self.device = device
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self.devices = [kind] * sharding.world_size()
        self.microbatches = microbatches
        self.make_optimizer = optimizer or (
            lambda weights: optim.make_optimizer(recipe, weights, compile, sharding.distribute_matrices)
        )
        self.groups = optim.group_of(recipe)
        self.make_model = make_model
        self.idle_weights: tuple[str, ...] = ()
        """Names of the weights that no optimizer updates; known once a state was made."""
        self._chooses = True  # whether eval_params of an optimizer counts
        self._eval_model: Any = None  # with the weights that eval_params chose last
        self._buffers_checked = make_model is None
        self._updates: list[torch.Tensor] = []  # a buffer of `_apply`

        def compiled(function: Callable) -> Callable:
            return torch.compile(function, dynamic=False) if compile else function

        self._compiled_loss = compiled(_loss)
        self._compiled_token_losses = compiled(_token_losses)

    def plain(self) -> "TorchProgram":
        """A program of this class with the same model and optimizer, without what a subclass changes."""
        program = TorchProgram(
            self.recipe, self.device, self.make_optimizer, make_model=self.make_model, microbatches=self.microbatches
        )
        program._chooses = False
        return program

    def init(self, seed: int) -> State:
        return self.load(canonical.initial_weights(self.recipe, seed))

    def load(self, weights: canonical.Weights) -> State:
        canonical.check(weights, self.recipe, "weights")
        state = self._empty_state()
        with torch.no_grad():
            for name, parameter in state.model.named_parameters():
                parameter.copy_(torch.from_numpy(np.array(weights[name])))
        if self._eval_params(state) is not None:
            chosen = self.fetch(self._eval_weights(State(state.model, state.optimizer, 1)))
            user_optimizer.check_first_eval_params(chosen, self.fetch(state.weights))
        return state

    def with_step(self, state: State, step: int) -> State:
        state.step = step
        return state

    def export(self, state: State) -> canonical.Weights:
        dtype = np.float64 if self.recipe.precision == "float64" else np.float32
        return {name: w.astype(dtype) for name, w in self.fetch(self._eval_weights(state)).items()}

    def put_global_batch(self, inputs_BT: np.ndarray, targets_BT: np.ndarray):
        if len(inputs_BT) % len(self.devices):
            raise InputError(
                f"a batch of {len(inputs_BT)} rows cannot be split over {len(self.devices)} devices: "
                "choose a number of processes that divides the rows of a batch"
            )
        return sharding.from_global(self.device, inputs_BT), sharding.from_global(self.device, targets_BT)

    def put_local_batch(self, inputs_BT: np.ndarray, targets_BT: np.ndarray):
        return sharding.from_local_rows(self.device, inputs_BT), sharding.from_local_rows(self.device, targets_BT)

    def step(self, state: State, batch) -> tuple[State, dict[str, Any]]:
        buffers = {} if self._buffers_checked else {name: b.clone() for name, b in state.model.named_buffers()}
        loss, grads = self.loss_and_grads(state, batch)
        self._check_buffers(state, buffers)
        grad_norm, norms = optim.global_norm(grads), {"grads": optim.group_norms(grads, self.groups)}  # before clipping
        rates, targets = user_optimizer.stated_rates(state.optimizer), self.target_weights(state.step).sum()
        state, updates = self._apply(state, grads, grad_norm)
        tensors = {"weights": state.weights, "updates": updates}
        rows, length = batch[1].shape
        metrics = {
            "loss": loss * self.recipe.loss_per_token(rows * len(self.devices), length) / targets,
            "grad_norm": grad_norm,
            "norms": norms | {kind: optim.group_norms(x, self.groups) for kind, x in tensors.items()},
            "rates": rates,
        }
        return state, metrics

    def apply_gradients(self, state: State, grads: dict[str, torch.Tensor]) -> State:
        """The state after one update of the optimizer from these gradients."""
        return self._apply(state, grads, optim.global_norm(grads))[0]

    @torch.no_grad()
    def token_losses(self, state: State, batch):
        losses_BT = self._compiled_token_losses(self._evaluated(state), *batch, self.window(state.step))
        return sharding.gather_rows(losses_BT)

    @torch.no_grad()
    def log_probs(self, state: State, inputs_BT: np.ndarray, positions: np.ndarray | None = None):
        positions = np.arange(inputs_BT.shape[1]) if positions is None else positions
        net = self._evaluated(state)
        x_BTD = net(sharding.from_local_rows(self.device, inputs_BT), *self.window(state.step))
        logits_BPV = net.logits(x_BTD[:, torch.as_tensor(positions, device=self.device)])
        return F.log_softmax(logits_BPV, dim=-1)

    def loss_and_grads(self, state: State, batch, prefix: int | None = None):
        reduction = self.recipe.loss_reduction if prefix is None else "sum"
        names, parameters = zip(*state.model.named_parameters(), strict=True)
        target_weights = self.target_weights(state.step) if len(self.recipe.target_weights(0)) > 1 else None

        def on_microbatch(inputs_BT, targets_BT):
            arguments = state.model, inputs_BT, targets_BT, self.window(state.step), reduction
            keywords = {"row_factor": self.recipe.row_loss_factor(batch[0].shape[1]), "target_weights": target_weights}
            if prefix is None:
                loss = self._compiled_loss(*arguments, **keywords)
            else:
                loss = _training_losses(*arguments, **keywords, length=prefix)[:, :prefix].sum()
            grads = torch.autograd.grad(loss, parameters, materialize_grads=True)  # 0 where the loss does not depend
            return loss.detach(), dict(zip(names, grads, strict=True))

        loss, grads = sharding.sum_microbatches(self.microbatches, on_microbatch, *batch)
        loss, grads = sharding.reduce_gradients(loss, grads)
        means = self.microbatches * len(self.devices)
        if reduction != "sum" and means > 1:
            torch._foreach_div_([loss, *grads.values()], means)
        return loss, grads

    def fetch(self, values):
        return sharding.to_host(values)

    def wait(self, state: State) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def snapshot(self, state: State) -> dict[str, Any]:
        return copy.deepcopy(state.tree())

    def reset(self, state: State, snapshot: dict[str, Any]) -> State:
        snapshot = copy.deepcopy(snapshot)  # a torch optimizer adopts the tensors of the state that it loads
        with torch.no_grad():
            for name, weight in state.weights.items():
                weight.copy_(snapshot["weights"][name])
        state.optimizer.load_state_dict(snapshot["optimizer"])
        state.step = snapshot["step"]
        return state

    def digest(self, state: State) -> str:
        return canonical.digest(dict(_leaves("", self.fetch(state.tree()))))

    def save(self, state: State, directory: Path | None) -> None:
        if directory is not None:
            checkpoint.save(directory, state.tree())

    def restore(self, directory: Path) -> State:
        state = self._empty_state()
        return self.reset(state, checkpoint.restore(directory, state.tree()))

    def window(self, step: int) -> tuple:
        """The model's arguments that depend on the number of updates: none, the attention window in blocks, or the
        number of the stage of attention.

        A window is an int32 tensor, and upper bounds of the long and the short one; powers of two, since code is
        compiled for each.
        """
        if (stage := self.recipe.attention_stage(step)) is not None:
            return (stage,)
        blocks, widest = self.recipe.attention_window(step), self.recipe.attention_window(self.recipe.steps)
        if blocks is None or widest is None:
            return ()
        bound = min(widest, 1 << (blocks - 1).bit_length())
        tensor = torch.tensor(blocks, dtype=torch.int32, device=self.device)
        return (attention.Window(tensor, (bound, -(-bound // 2))),)

    def target_weights(self, step: int) -> torch.Tensor:
        """(N,): what the losses of a position's N targets count in training after so many updates."""
        weights = self.recipe.target_weights(min(step, self.recipe.steps))
        return torch.tensor(weights, dtype=layers.torch_dtype(self.recipe.dtypes.accum), device=self.device)

    def _check_buffers(self, state: State, before: dict[str, torch.Tensor]) -> None:
        """Raises InputError where a step changes a buffer, whose value no checkpoint has."""
        for name, buffer in state.model.named_buffers() if before else ():
            if not torch.equal(buffer, before[name]):
                raise InputError(
                    f"the model's buffer {name}: expected a constant, found one that a step changes, whose value would "
                    "be lost: keep what changes in the optimizer's state"
                )
        self._buffers_checked = True

    def _eval_params(self, state: State) -> user_optimizer.EvalParams | None:
        return getattr(state.optimizer, "eval_params", None) if self._chooses else None

    def _evaluated(self, state: State) -> Any:
        """The model that is evaluated: the state's, or one with the weights that eval_params chooses."""
        if self._eval_params(state) is None or state.step == 0:
            return state.model
        if self._eval_model is None:
            self._eval_model = copy.deepcopy(state.model)
        with torch.no_grad():
            for (_, parameter), weight in zip(
                self._eval_model.named_parameters(), self._eval_weights(state).values(), strict=True
            ):
                parameter.copy_(weight)
        return self._eval_model

    @torch.no_grad()
    def _eval_weights(self, state: State) -> dict[str, torch.Tensor]:
        """The weights that are evaluated, sampled from and exported; before the first update those of the state."""
        eval_params = self._eval_params(state)
        if eval_params is None or state.step == 0:
            return state.weights
        chosen = eval_params()
        user_optimizer.check_eval_params(chosen, state.weights)
        return {name: chosen[name].detach() for name in state.weights}

    def _empty_state(self) -> State:
        """A state with uninitialized weights and empty optimizer state."""
        net = model.make_model(self.recipe, self.make_model)
        net = net.to(device=self.device) if self.make_model else net.to_empty(device=self.device)
        optimizer = self.make_optimizer(dict(net.named_parameters()))
        self.idle_weights = user_optimizer.idle_weights(optimizer, dict(net.named_parameters()))
        return State(net, optimizer, 0)

    def _apply(
        self, state: State, grads: dict[str, torch.Tensor], norm: torch.Tensor
    ) -> tuple[State, dict[str, torch.Tensor]]:
        """The state after an update from these gradients, in place, and the update (with its sign reversed)."""
        weights = state.weights
        if not self._updates:  # fresh memory costs more than the copy
            self._updates = [torch.empty_like(w) for w in weights.values()]
        torch._foreach_copy_(self._updates, list(weights.values()))
        for name, parameter in state.model.named_parameters():
            parameter.grad = grads[name]
        state.optimizer.update(state.step, list(grads.values()), norm)
        state.model.zero_grad(set_to_none=True)
        state.step += 1
        torch._foreach_sub_(self._updates, list(weights.values()))
        return state, dict(zip(weights, self._updates, strict=True))


def build(
    recipe: Recipe,
    *,
    device: str = "auto",
    devices: int | None = None,
    optimizer: str | None = None,
    microbatches: int = 1,
    compile: bool = False,
) -> TorchProgram:
    """The recipe in PyTorch on the chosen device.

    `optimizer` is module:function, called with the recipe and the parameters by canonical name; it returns a torch
    optimizer, or several, and perhaps their schedulers and eval_params. Gradients are summed over `microbatches` equal
    groups of a process' rows.

    Raises InputError for devices that are missing or do not divide the rows of a batch, and for a function that
    returns no optimizer.
    """
    chosen = sharding.pick_device(device, devices)
    check_rows(recipe, sharding.world_size(), microbatches, "the processes")
    if compile and not can_compile(chosen):
        raise InputError(
            f"--compile needs a C++ compiler on the CPU, expected {_compiler()}, found none: install one, name "
            "it in CXX, or leave --compile out"
        )
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums stay in float32
    sharding.init_distributed(device)
    make_optimizer = user_optimizer.load_optimizer(recipe, optimizer) if optimizer else None
    return TorchProgram(recipe, chosen, make_optimizer, compile, microbatches=microbatches)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile can work here: on the CPU it needs a C++ compiler."""
    return device.type != "cpu" or shutil.which(_compiler()) is not None


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _loss(net: Any, inputs_BT, targets_BT, window: tuple, reduction: str, row_factor: float, target_weights):
    losses_BT = _training_losses(net, inputs_BT, targets_BT, window, reduction, row_factor, target_weights)
    return losses_BT.mean() if reduction == "mean" else losses_BT.sum() / (len(inputs_BT) if reduction == "rows" else 1)


def _training_losses(
    net: Any,
    inputs_BT,
    targets_BT,
    window: tuple,
    reduction: str,
    row_factor: float,
    target_weights=None,
    length: int | None = None,
):
    """Losses as training computes them; their gradient will be that of their sum, divided as `reduction` says.

    8-bit gradients are of the sum of a row's losses times `row_factor`. `target_weights` (N,): what each position's N
    targets count, up to the end of the row or of its first `length` positions.
    """
    x_BTD = net(inputs_BT, *window)
    rows, T = inputs_BT.shape
    per_token = {"mean": rows * T, "sum": 1.0, "rows": rows}[reduction]
    if hasattr(net, "training_raw_logits"):
        logits, softcap = net.training_raw_logits(x_BTD, per_token * row_factor), net.softcap
    else:
        logits, softcap = net.logits(x_BTD), lambda logits: logits
    if target_weights is None:
        return layers.token_losses(logits, targets_BT, softcap)
    return layers.weighted_token_losses(logits, *layers.shifted_targets(targets_BT, target_weights, length), softcap)


def _token_losses(net: Any, inputs_BT, targets_BT, window: tuple):
    return layers.token_losses(net.logits(net(inputs_BT, *window)), targets_BT)


def _leaves(path: str, tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Paths and arrays of a fetched tree; plain values as their text, which for a Python float is exact."""
    if isinstance(tree, dict | tuple | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(f"{path}/{key}", value)
    else:
        yield path, tree if isinstance(tree, np.ndarray) else np.frombuffer(repr(tree).encode(), np.uint8)

"""A recipe as a PyTorch program: one step, eager or compiled, and what the harness and the comparer ask of it."""

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
from parity.program import check_microbatches, own_function
from parity.recipes import Recipe
from torchref import attention, checkpoint, layers, model, optim, sharding
from torchref.inspector import Inspection

MakeOptimizer = Callable[[dict[str, nn.Parameter]], optim.ByGroup]


@dataclass
class State:
    model: nn.Module
    optimizer: optim.ByGroup
    step: int


class TorchProgram(Inspection):
    """Implements parity.program.Program for the recipes, and for own models and optimizers.

    An own model is made by `make_model(recipe)`: its parameters' names are the recipe's canonical names, it maps (B, T)
    tokens to (B, T, D), and its method `logits` maps those to (B, T, V). `optimizer` makes an optim.ByGroup of {name: parameter}.
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
        self.microbatches = microbatches
        self.device = device
        self.devices = [_kind(device)] * sharding.world_size()
        self.make_optimizer = optimizer or (
            lambda weights: optim.make_optimizer(recipe, weights, compile, sharding.by_matrix)
        )
        self.make_model = make_model
        self.groups = optim.group_of(recipe)
        self._before: list[torch.Tensor] | None = None
        compiled = (lambda function: torch.compile(function, dynamic=False)) if compile else (lambda function: function)
        self._loss = compiled(_loss)
        self._losses = compiled(_token_losses)

    def init(self, seed: int) -> State:
        return self.load(canonical.initial_weights(self.recipe, seed))

    def load(self, weights: canonical.Weights) -> State:
        canonical.check(weights, self.recipe, "weights")
        state = self._fresh()
        state.model.load_state_dict(
            {name: torch.from_numpy(np.array(weights[name])) for name in self.recipe.parameters()}
        )
        return state

    def with_step(self, state: State, step: int) -> State:
        state.step = step
        return state

    def export(self, state: State) -> canonical.Weights:
        dtype = np.float64 if self.recipe.precision == "float64" else np.float32
        return {name: w.astype(dtype) for name, w in self.fetch(_weights(state)).items()}

    def put_global_batch(self, inputs_BT: np.ndarray, targets_BT: np.ndarray):
        if len(inputs_BT) % len(self.devices):
            raise InputError(
                f"a batch of {len(inputs_BT)} rows cannot be split over {len(self.devices)} devices: "
                "choose a number of processes that divides the rows of a batch"
            )
        return self.put_local_batch(sharding.by_row(inputs_BT), sharding.by_row(targets_BT))

    def put_local_batch(self, inputs_BT: np.ndarray, targets_BT: np.ndarray):
        return self._put(inputs_BT), self._put(targets_BT)

    def step(self, state: State, batch) -> tuple[State, dict[str, Any]]:
        loss, grads = self.loss_and_grads(state, batch)
        weights = _weights(state)
        norm = optim.global_norm(grads)
        norms = {"grads": optim.group_norms(grads, self.groups)}
        before = self._copy(list(weights.values()))
        self._apply(state, grads, norm)
        torch._foreach_sub_(before, list(weights.values()))
        norms["weights"] = optim.group_norms(weights, self.groups)
        norms["updates"] = optim.group_norms(dict(zip(weights, before)), self.groups)
        mean = loss if self.recipe.loss_reduction == "mean" else loss / (batch[1].numel() * len(self.devices))
        return state, {"loss": mean, "grad_norm": norm, "norms": norms}

    @torch.no_grad()
    def token_losses(self, state: State, batch):
        return sharding.gather_rows(self._losses(state.model, *batch, self.window(state.step)))

    @torch.no_grad()
    def log_probs(self, state: State, inputs_BT: np.ndarray, positions: np.ndarray | None = None):
        positions = np.arange(inputs_BT.shape[1]) if positions is None else positions
        x_BTD = state.model(self._put(inputs_BT), *self.window(state.step))
        return F.log_softmax(state.model.logits(x_BTD[:, self._put(positions)]), dim=-1)

    def loss_and_grads(self, state: State, batch, prefix: int | None = None):
        reduction = self.recipe.loss_reduction if prefix is None else "sum"
        names, parameters = zip(*state.model.named_parameters())
        parts = list(zip(*(x.chunk(self.microbatches) for x in batch)))
        loss, grads = self._part(state, parameters, parts[0], reduction, prefix)
        if parts[1:]:  # sums of many parts are kept wide, whatever a single one is
            sums = [loss, *(g.to(optim.wider(g)) for g in grads)]
            for part in parts[1:]:
                more, others = self._part(state, parameters, part, reduction, prefix)
                torch._foreach_add_(sums, [more, *(g.to(optim.wider(g)) for g in others)])
            if reduction == "mean":
                torch._foreach_div_(sums, len(parts))
            loss, grads = sums[0], [x.to(g.dtype) for x, g in zip(sums[1:], grads)]
        sharding.reduce_gradients([loss, *grads], reduction)
        return loss, dict(zip(names, grads))

    def _part(self, state: State, parameters, batch, reduction: str, prefix: int | None):
        """Loss and gradients of a microbatch of this process."""
        if prefix is None:
            loss = self._loss(state.model, *batch, self.window(state.step), reduction)
        else:
            loss = _training_losses(state.model, *batch, self.window(state.step), reduction)[:, :prefix].sum()
        return loss.detach(), torch.autograd.grad(loss, parameters)

    def fetch(self, values):
        if isinstance(values, dict):
            return {key: self.fetch(value) for key, value in values.items()}
        if isinstance(values, tuple | list):
            return type(values)(self.fetch(value) for value in values)
        if not isinstance(values, torch.Tensor):
            return values
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # numpy has no bfloat16

    def wait(self, state: State) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def snapshot(self, state: State) -> dict[str, Any]:
        return copy.deepcopy(_tree(state))

    def reset(self, state: State, snapshot: dict[str, Any]) -> State:
        snapshot = copy.deepcopy(snapshot)  # a torch optimizer goes on with the very tensors that it is given
        state.model.load_state_dict(snapshot["weights"])
        state.optimizer.load_state_dict(snapshot["optimizer"])
        state.step = snapshot["step"]
        return state

    def digest(self, state: State) -> str:
        return canonical.digest(dict(_leaves("", self.fetch(_tree(state)))))

    def save(self, state: State, directory: Path | None) -> None:
        if directory is not None:
            checkpoint.save(directory, _tree(state))

    def restore(self, directory: Path) -> State:
        saved = checkpoint.restore(directory, self.device)
        state = self._fresh()
        if reason := _difference(_tree(state), saved):
            raise InputError(
                f"{directory}: this checkpoint does not fit the program ({reason}): resume with the program "
                "that wrote it"
            )
        return self.reset(state, saved)

    def window(self, step: int) -> tuple:
        """What the model is given beside the tokens after so many updates: nothing, or the window of its attention."""
        blocks, widest = self.recipe.attention_window(step), self.recipe.attention_window(self.recipe.steps)
        if blocks is None or widest is None:
            return ()
        bound = min(widest, 1 << (blocks - 1).bit_length())
        tensor = torch.tensor(blocks, dtype=torch.int32, device=self.device)
        return (attention.Window(tensor, (bound, -(-bound // 2))),)

    def _apply(self, state: State, grads: dict[str, torch.Tensor], norm: torch.Tensor) -> None:
        for name, parameter in state.model.named_parameters():
            parameter.grad = grads[name]
        state.optimizer.update(state.step, list(grads.values()), norm)
        state.model.zero_grad(set_to_none=True)
        state.step += 1

    def _fresh(self) -> State:
        net = model.make_model(self.recipe, self.make_model).to_empty(device=self.device)
        return State(net, self.make_optimizer(dict(net.named_parameters())), 0)

    def _put(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array.astype(np.int64))  # PyTorch looks up by 64-bit indices
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    @torch.no_grad()
    def _copy(self, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        if self._before is None:  # kept between steps: fresh memory costs more than the copy
            self._before = [torch.empty_like(w) for w in weights]
        torch._foreach_copy_(self._before, weights)
        return self._before


def build(
    recipe: Recipe,
    *,
    device: str = "auto",
    devices: int | None = None,
    optimizer: str | None = None,
    microbatches: int = 1,
    compile: bool = False,
) -> TorchProgram:
    """The recipe in PyTorch on the chosen device; `optimizer` is module:function, called with the recipe and the
    parameters by canonical name, a torch optimizer or one with its scheduler. Gradients are summed over `microbatches` equal parts of
    a process' rows.

    Raises InputError for devices that are not there, rows that they do not divide, and an optimizer that is none.
    """
    chosen = sharding.pick_device(device, devices)
    rows = recipe.batch_tokens // recipe.context
    if rows % sharding.world_size():
        raise InputError(
            f"--batch-tokens {recipe.batch_tokens} is {rows} rows of {recipe.context}, which "
            f"{sharding.world_size()} processes do not divide: choose the processes or --batch-tokens so "
            "that they do"
        )
    check_microbatches(recipe, sharding.world_size(), microbatches)
    compiler = os.environ.get("CXX", "g++")
    if compile and chosen.type == "cpu" and not shutil.which(compiler):
        raise InputError(
            f"--compile needs a C++ compiler on the CPU, expected {compiler}, found none: install one, name "
            "it in CXX, or leave --compile out"
        )
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums stay in float32
    sharding.join(chosen)
    return TorchProgram(
        recipe, chosen, _own_optimizer(recipe, optimizer) if optimizer else None, compile, microbatches=microbatches
    )


def join(device: str = "auto") -> None:
    """Joins the other processes, which torchrun's variables name, once; nothing to do where this one is alone."""
    sharding.join(sharding.pick_device(device))


def platform(device: str = "auto") -> str:
    """ "cpu" or "gpu": what `device` means here. Raises InputError where there is no such device."""
    return "gpu" if sharding.pick_device(device, None).type == "cuda" else "cpu"


def _own_optimizer(recipe: Recipe, spec: str) -> MakeOptimizer:
    function = own_function(spec, "--optimizer")

    def make(weights: dict[str, nn.Parameter]) -> optim.ByGroup:
        made = function(recipe, weights)
        parts = made if isinstance(made, tuple) else (made,)
        wanted = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
        if not 1 <= len(parts) <= 2 or not all(map(isinstance, parts, wanted)):
            raise InputError(
                f"--optimizer {spec}: expected a torch.optim.Optimizer, or one and its LRScheduler, found "
                f"{', '.join(type(part).__name__ for part in parts)}: return what torch's optimizers are"
            )
        return optim.ByGroup(dict(zip(("optimizer", "scheduler"), parts)), {})

    return make


def _loss(net: nn.Module, inputs_BT, targets_BT, window: tuple, reduction: str):
    losses_BT = _training_losses(net, inputs_BT, targets_BT, window, reduction)
    return losses_BT.mean() if reduction == "mean" else losses_BT.sum()


def _training_losses(net: nn.Module, inputs_BT, targets_BT, window: tuple, reduction: str):
    """Losses as training computes them; their gradient will be that of their mean or their sum."""
    x_BTD = net(inputs_BT, *window)
    if not hasattr(net, "training_raw_logits"):
        return layers.token_losses(net.logits(x_BTD), targets_BT)
    rows, length = inputs_BT.shape
    grad_scale = float(rows) if reduction == "mean" else 1 / length  # of a row's mean loss
    return layers.token_losses(net.training_raw_logits(x_BTD, grad_scale), targets_BT, net.softcap)


def _token_losses(net: nn.Module, inputs_BT, targets_BT, window: tuple):
    return layers.token_losses(net.logits(net(inputs_BT, *window)), targets_BT)


def _kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _weights(state: State) -> dict[str, torch.Tensor]:
    return {name: w.detach() for name, w in state.model.named_parameters()}


def _tree(state: State) -> dict[str, Any]:
    return {"weights": _weights(state), "optimizer": state.optimizer.state_dict(), "step": state.step}


def _leaves(path: str, tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, dict | tuple | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(f"{path}/{key}", value)
    else:  # plain values by their text, which for a Python float is exact
        yield path, tree if isinstance(tree, np.ndarray) else np.frombuffer(repr(tree).encode(), np.uint8)


def _difference(expected: dict[str, Any], found: Any) -> str | None:
    if not isinstance(found, dict) or found.keys() != expected.keys():
        return f"expected the parts {', '.join(expected)}"
    wanted, got = (
        {name: f"{w.dtype} {list(w.shape)}" for name, w in tree["weights"].items()} for tree in (expected, found)
    )
    for name in sorted(wanted.keys() | got.keys()):
        if wanted.get(name) != got.get(name):
            return f"weight {name}: expected {wanted.get(name, 'none')}, found {got.get(name, 'none')}"
    wanted, got = (
        {name: [len(group["params"]) for group in part.get("param_groups", [])] for name, part in tree.items()}
        for tree in (expected["optimizer"], found["optimizer"])
    )
    return None if wanted == got else f"optimizer: expected the parts and sizes {wanted}, found {got}"

"""FLOPs of one training step, counted from the program itself.

Counted are the multiplications and additions of products: matrix products, convolutions and fused attention, 2 for
each pair of factors, in forward, backward and optimizer. Not counted: anything element by element,
reductions, softmax, norms, sorting, random numbers, lookups and their gradients, communication, and foreign
functions. Masked products count where the program computes them; fused attention counts as unmasked.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from parity.errors import InputError
from parity.program import Batch, Program, State


def count_step(program: Program, state: State, batch: Batch, notes: list[str] | None = None) -> tuple[int, State]:
    """FLOPs of the products of one whole step over all devices, and the state to continue with.

    A JAX step is traced, not run: its state is unchanged. A PyTorch step runs once, eagerly, and returns a changed
    state, to be reset; with torch.distributed every process must call, and their counts are added. `notes` collects
    a sentence for everything whose count is uncertain. Raises InputError for another framework.
    """
    notes = [] if notes is None else notes
    if program.framework == "jax":
        return _count_jax(program, state, batch, notes), state
    if program.framework == "torch":
        return _count_torch(program, state, batch)
    raise InputError(
        f"{type(program).__name__}.framework: expected 'jax' or 'torch', found {program.framework!r}: "
        "FLOPs can be counted in these only"
    )


def count_evaluation(program: Program, state: State, batch: Batch) -> tuple[int, State]:
    """FLOPs of the products of scoring a batch, and the state, which stays valid; otherwise as `count_step`."""
    if program.framework == "jax":
        import jax

        return _in_jaxpr(jax.make_jaxpr(program.token_losses)(state, batch).jaxpr, []), state
    return _counted_torch(lambda: program.fetch(program.token_losses(state, batch)))[0], state


# JAX: the equations of the jaxpr


def count(function: Any, *args: Any) -> int:
    """FLOPs of the products of a JAX function of arrays or their shapes, over all devices."""
    import jax

    return _in_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, [])


def _count_jax(program: Program, state: State, batch: Batch, notes: list[str]) -> int:
    import jax

    uncertain: list[str] = []
    flops = _in_jaxpr(jax.make_jaxpr(program.step)(state, batch).jaxpr, uncertain)
    notes += dict.fromkeys(uncertain)
    return flops


def _in_jaxpr(jaxpr: Any, notes: list[str]) -> int:
    return sum(_in_equation(equation, notes) for equation in jaxpr.eqns)


def _in_equation(equation: Any, notes: list[str]) -> int:
    name, params = equation.primitive.name, equation.params
    if name in PRODUCTS:
        return PRODUCTS[name](equation)
    if name == "pallas_call":  # only its author knows the rounds of its loops, and may raise the count by an estimate
        uncertain: list[str] = []
        counted = sum(_in_jaxpr(jaxpr, uncertain) for jaxpr in _jaxprs_in(params)) * _repeats(name, params)
        estimate = int(getattr(params.get("cost_estimate"), "flops", 0))
        notes += uncertain if estimate <= counted else []
        return max(counted, estimate)
    inner = [_in_jaxpr(jaxpr, notes) for jaxpr in _jaxprs_in(params)]
    if name == "cond":
        return max(inner)
    if name == "while" and sum(inner):
        rounds = _max_rounds(equation)
        if rounds is None:
            notes.append("a while loop's number of rounds is not known: its products count once")
            rounds = 1
        return sum(inner) * rounds
    if name == "ffi_call":
        notes.append(f"the foreign function {params.get('target_name')} is not counted")
    return sum(inner) * _repeats(name, params)


def _repeats(name: str, params: dict[str, Any]) -> int:
    """The number of times that an equation runs the programs inside it, over all devices."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # inside are the shapes of one device
        axes = params.get("newly_manual_axes") or params["manual_axes"]  # the name depends on JAX's version
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _max_rounds(loop: Any) -> int | None:
    """The most rounds of a while loop whose condition is `i < n`, or that and more, n constant and i counted from 0."""
    condition, body = loop.params["cond_jaxpr"].jaxpr, loop.params["body_jaxpr"].jaxpr
    first, first_of_body = loop.params["cond_nconsts"], loop.params["body_nconsts"]
    defined_by = {id(equation.outvars[0]): equation for equation in [*condition.eqns, *body.eqns]}

    def is_number(value: Any, number: int) -> bool:
        return hasattr(value, "val") and value.val == number

    def counts(variable: Any) -> bool:
        for at, carried in enumerate(condition.invars[first:]):
            if carried is variable:
                step = defined_by.get(id(body.outvars[at]))
                return (
                    is_number(loop.invars[first + first_of_body + at], 0)
                    and step is not None
                    and step.primitive.name == "add"
                    and step.invars[0] is body.invars[first_of_body + at]
                    and is_number(step.invars[1], 1)
                )
        return False

    def bound(variable: Any) -> int | None:
        equation = defined_by.get(id(variable))
        name = equation.primitive.name if equation else None
        if equation is None:
            return None
        if name == "and":
            return min((n for n in map(bound, equation.invars) if n is not None), default=None)
        if name == "lt" and hasattr(equation.invars[1], "val") and counts(equation.invars[0]):
            return max(0, int(equation.invars[1].val))
        return None

    return bound(condition.outvars[0])


def _jaxprs_in(value: Any) -> Iterator[Any]:
    """The programs inside an equation: in pjit, scan, while, cond, remat, shard_map, custom_vjp, pallas_call, ..."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _jaxprs_in(item)
    elif hasattr(value, "eqns"):  # a Jaxpr, or a ClosedJaxpr, which holds one
        yield getattr(value, "jaxpr", value)


def _dot(equation: Any) -> int:
    """2 for every element of the left factor and every column of the right one that it meets; plain and ragged."""
    left, right = (v.aval.shape for v in equation.invars[:2])
    ragged = equation.params.get("ragged_dot_dimension_numbers")
    numbers = ragged.dot_dimension_numbers if ragged else equation.params["dimension_numbers"]
    (_, contracted), (_, batch) = numbers
    shared = {*contracted, *batch, *(ragged.rhs_group_dimensions if ragged else ())}
    return 2 * math.prod(left) * math.prod(size for axis, size in enumerate(right) if axis not in shared)


def _convolution(equation: Any) -> int:
    """2 for every element of the result and every weight that reaches it; zeros between the inputs (strided
    convolutions have them in their gradient) do not count, zeros around them do."""
    kernel, result = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    weights = math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(result) * weights // math.prod(equation.params["lhs_dilation"])


def _attention(products: int) -> Any:
    """cuDNN's fused attention: `products` of the size of q k^T, unmasked; backward computes the scores again."""

    def count(equation: Any) -> int:
        query, key = (v.aval.shape for v in equation.invars[:2])
        return products * 2 * math.prod(query) * key[1 + int(equation.params["layout"])]  # 0: BTNH, 1: BNTH

    return count


PRODUCTS = {
    "dot_general": _dot,
    "ragged_dot_general": _dot,
    "ragged_dot": _dot,
    "conv_general_dilated": _convolution,
    "dot_product_attention_fwd_wrapper": _attention(2),
    "dot_product_attention_bwd_wrapper": _attention(5),
}


# PyTorch: the operators as they are dispatched


def _count_torch(program: Program, state: State, batch: Batch) -> tuple[int, State]:
    def step() -> State:
        changed, _ = program.step(state, batch)
        program.wait(changed)
        return changed

    return _counted_torch(step)


def _counted_torch(call: Callable[[], Any]) -> tuple[int, Any]:
    """FLOPs of a call, over all processes, and what it returns."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # Compiled code may hide its operators, hence eager.
    with (
        torch.compiler.set_stance("force_eager"),
        FlopCounterMode(display=False, custom_mapping=_not_in_torch()) as counter,
    ):
        result = call()
    flops = counter.get_total_flops()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        counts = [0] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(counts, flops)
        flops = sum(counts)
    return flops, result


def _not_in_torch() -> dict[Any, Any]:
    """Products that FlopCounterMode does not know: fused attention on the CPU, in place and with vectors."""
    import torch
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    aten = torch.ops.aten

    def matrices(first: int) -> Any:
        """The product of the two arguments from number `first` on: (..., M, K) and (..., K, N), or vectors of K."""

        def count(*shapes: Any, out_shape: Any = None, **options: Any) -> int:
            left, right = shapes[first : first + 2]
            return 2 * math.prod(left) * (right[-1] if len(right) > 1 else 1)

        return count

    def attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def attention_backward(
        grad: Any, query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any
    ) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
        aten.addmm_: matrices(1),
        aten.baddbmm_: matrices(1),
        aten.addbmm: matrices(1),
        aten.addbmm_: matrices(1),
        aten.mv: matrices(0),
        aten.addmv: matrices(1),
        aten.addmv_: matrices(1),
        aten.dot: matrices(0),
        aten.vdot: matrices(0),
    }

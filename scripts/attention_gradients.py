"""Attention alone, forward and backward: the gradient of the variance of its result with respect to q, k and v.

Each backend has a function that takes the recipe, qkv (3, B, T, H, K) and document ids (B, T) in numpy, and "cpu"
or "gpu", and returns a function of the window in blocks (None: causal, without documents or a window), which waits for
its result.
"""

from collections.abc import Callable
from typing import Any

SCALE = 0.12


def jaxrun(recipe: Any, qkv: Any, ids_BT: Any, device: str) -> Callable[[int | None], Any]:
    import jax
    import jax.numpy as jnp

    from jaxrun.attention import causal_attention, window_attention

    def variance(y: Any) -> Any:
        return y.astype("float32").var()

    @jax.jit
    @jax.grad
    def causal(qkv):
        q, k, v = qkv.astype(recipe.dtypes.matmul)
        return variance(causal_attention(q, k, v, SCALE))

    @jax.jit
    @jax.grad
    def windowed(qkv, ids_BT, window):
        q, k, v = qkv.astype(recipe.dtypes.matmul)
        most = recipe.attention_window(recipe.steps)
        return variance(window_attention(q, k, v, SCALE, ids_BT, window, recipe.block, most))

    qkv, ids_BT = jax.device_put((qkv, ids_BT), jax.devices(device)[0])
    return lambda window: jax.block_until_ready(
        causal(qkv) if window is None else windowed(qkv, ids_BT, jnp.int32(window))
    )


def torchref(recipe: Any, qkv: Any, ids_BT: Any, device: str) -> Callable[[int | None], Any]:
    import torch

    from torchref.attention import causal_attention, window_attention

    on_device, dtype = torch.device("cuda" if device == "gpu" else "cpu"), getattr(torch, recipe.dtypes.matmul)
    qkv, ids_BT = torch.from_numpy(qkv).to(on_device).requires_grad_(), torch.from_numpy(ids_BT).to(on_device)
    windowed = torch.compile(window_attention, dynamic=False) if device == "gpu" else window_attention

    def run(window):
        q, k, v = qkv.to(dtype)
        if window is None:
            y = causal_attention(q, k, v, SCALE)
        else:
            blocks = torch.tensor(window, dtype=torch.int32, device=on_device)
            most = min(recipe.attention_window(recipe.steps), 1 << (window - 1).bit_length())
            y = windowed(q, k, v, SCALE, ids_BT, blocks, recipe.block, most)
        (gradient,) = torch.autograd.grad(y.float().var(correction=0), qkv)
        if device == "gpu":
            torch.cuda.synchronize()
        return gradient

    return run

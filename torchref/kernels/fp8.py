"""The 8-bit product of record 19's head: e4m3 forward, e5m2 for the gradient, sums in float32."""

import torch


def fp8_matmul(x_BTD, weight, scales: tuple[float, float, float], grad_scale: float):
    """x W^T of x and W rounded to 8 bits (e4m3), in the type of x; its gradient from dy rounded to 8 bits (e5m2).

    W is float32 and is cast to the type of x first. `scales` multiply x, W and dy before they are rounded; dy times
    `grad_scale` is the gradient of a row's mean loss. Sums are in float32, and so is W's gradient. A CPU has no such
    products: there the rounded numbers are multiplied in float32.
    """
    return _FP8Matmul.apply(x_BTD, weight, scales, grad_scale)


def round_to_fp8(x, scale: float, dtype: torch.dtype):
    """`scale` x, rounded to 8 bits."""
    return (x.float() * scale).to(dtype)


class _FP8Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, scales, grad_scale):
        x8 = round_to_fp8(x, scales[0], torch.float8_e4m3fn)
        weight8 = round_to_fp8(weight.to(x.dtype), scales[1], torch.float8_e4m3fn)
        ctx.save_for_backward(x8, weight8)
        ctx.scales, ctx.grad_scale = scales, grad_scale
        y = _fp8_dot(x8.flatten(0, -2), weight8.T, scales[0] * scales[1], x.dtype)
        return y.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, dy):
        x8, weight8 = ctx.saved_tensors
        scale = ctx.scales[2] * ctx.grad_scale
        dy8 = round_to_fp8(dy, scale, torch.float8_e5m2).flatten(0, -2)
        dx = _fp8_dot(dy8, weight8, scale * ctx.scales[1], dy.dtype).unflatten(0, dy.shape[:-1])
        return dx, _fp8_dot(dy8.T, x8.flatten(0, -2), scale * ctx.scales[0], torch.float32), None, None


def _fp8_dot(a, b, scale: float, dtype: torch.dtype):
    """a b / scale. The GPU's product takes its left operand by rows and its right one by columns."""
    if a.device.type == "cpu":
        return ((a.float() @ b.float()) / scale).to(dtype)
    one = torch.ones((), device=a.device)
    a, b = a.contiguous(), b.T.contiguous().T
    return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        a, b, out_dtype=dtype, scale_a=one / scale, scale_b=one
    )

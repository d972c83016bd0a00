"""Causal attention and rotary position embedding, in PyTorch. Letters: parity/recipe.py."""

import torch
import torch.nn.functional as F

NEGATIVE = -1e30  # a masked score: exp(NEGATIVE - max) is exactly 0 in every precision in use


def causal_attention(q_BTHK, k_BTHK, v_BTHK, scale: float):
    """softmax(scale q k^T, over earlier positions and the own one) v.

    q, k, v: (B, T, H, K), one type. Returns (B, T, H, K) in that type; scores and softmax in float32 or wider.
    """
    q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True, scale=scale).transpose(1, 2)


def rotary(x_BTHK, base: float, wide: torch.dtype):
    """Turns pairs of channels by an angle that grows with the position (half-truncated rotary embedding).

    K/4 frequencies base^(-i / (K/4 - 1)), then K/4 zeros, so that half of the channels stand still; angles, sine and
    cosine in `wide`. With x1, x2 the halves of a head: y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos.
    """
    cos, sin = _tables(x_BTHK.shape[1], x_BTHK.shape[3], base, wide, x_BTHK.device)
    x1, x2 = x_BTHK.to(wide).chunk(2, dim=-1)
    return torch.cat([x1 * cos + x2 * sin, -x1 * sin + x2 * cos], dim=-1).to(x_BTHK.dtype)


_kept: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}


@torch.compiler.assume_constant_result
def _tables(T: int, K: int, base: float, wide: torch.dtype, device: torch.device):
    key = (T, K, base, wide, device)
    if key not in _kept:  # the same for every layer and step, so made once
        turning = (1 / base) ** (torch.arange(K // 4, dtype=wide, device=device) / (K // 4 - 1))
        frequency_K2 = torch.cat([turning, torch.zeros_like(turning)])
        theta_T1K2 = torch.arange(T, dtype=wide, device=device)[:, None, None] * frequency_K2
        _kept[key] = theta_T1K2.cos(), theta_T1K2.sin()
    return _kept[key]

"""Causal attention, attention within windows and documents, and rotary position embedding, in PyTorch.

Here are the formulas and the choice of a kernel. Letters: parity/recipes/base.py.
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from torchref.kernels.window import chunked_window_attention, flex_window_attention
from torchref.layers import torch_dtype


def causal_attention(q_BTHK, k_BTHK, v_BTHK, scale: float):
    """softmax(scale q k^T, masked so that position t sees positions <= t) v.

    q, k, v: (B, T, H, K), one type. Returns (B, T, H, K) in that type; scores and softmax in float32 or wider.
    """
    q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True, scale=scale).transpose(1, 2)


def window_attention(q_BTHK, k_BTHK, v_BTHK, scale: float, segments_BT, window, block: int, max_window: int):
    """softmax(scale q k^T, masked) v. Position t sees position s where s <= t, both are in the same segment, and
    s // block > t // block - max(1, window): its own block of `block` positions and the `window` - 1 before it. With
    blocks of 1 the window counts positions, t itself included.

    q, k, v: (B, T, H, K), one type; segments (B, T), int32, never falling along a row; `window` an int32 tensor, at
    most `max_window`. Returns (B, T, H, K) in the type of q; scores and softmax in float32 or wider.
    """
    if q_BTHK.device.type == "cuda":
        return flex_window_attention(q_BTHK, k_BTHK, v_BTHK, scale, segments_BT, window, block)
    return chunked_window_attention(q_BTHK, k_BTHK, v_BTHK, scale, segments_BT, window, block, max_window)


class Window(NamedTuple):
    """A long window and its half, in blocks: `blocks` an int32 tensor of the long one; `max_blocks` bounds both.

    The bounds are static: code is compiled for each, so there are few of them.
    """

    blocks: torch.Tensor
    max_blocks: tuple[int, int]


def segment_ids(tokens_BT, end_of_text: int):
    """The number of the document that each token is in, counted along its row: (B, T), int32.

    A document starts with the end-of-text token.
    """
    return (tokens_BT == end_of_text).cumsum(dim=-1, dtype=torch.int32)


def rotary(x_BTHK, base: float, accum: str, full: bool = False, table_dtype: str | None = None):
    """Rotary position embedding: rotates pairs of channels by an angle that grows with the position.

    Half-truncated: K/4 angular frequencies base^(-i / (K/4 - 1)), then K/4 zeros, so that half of the channels are left
    unrotated. `full`: K/2 frequencies base^(-2 i / K). With x1, x2 the halves of a head: y1 = x1 cos + x2 sin,
    y2 = -x1 sin + x2 cos, in `accum`; cosines and sines are rounded to `table_dtype` first.
    """
    T, K = x_BTHK.shape[1], x_BTHK.shape[3]
    dtype = torch_dtype(accum)
    return rotate(x_BTHK, *_base_tables(T, K, base, dtype, full, torch_dtype(table_dtype or accum), x_BTHK.device))


_tables: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}  # the same for every layer and step


def _constant(function):
    """A function whose result torch.compile takes as constant. torch.compiler.assume_constant_result does the same, but
    loads the compiler to do so, 2 s in every process."""
    function._dynamo_marked_constant = True
    return function


@_constant
def rotary_tables(
    T: int, frequency_K2: tuple[float, ...], accum: torch.dtype, table_dtype: torch.dtype, device: torch.device
):  # fmt: skip
    """Cosines and sines of position x frequency, each (T, 1, K/2) in `accum`, rounded to `table_dtype` first."""
    key = (T, frequency_K2, accum, table_dtype, device)
    if key not in _tables:
        _tables[key] = _cos_and_sin(T, torch.tensor(frequency_K2, dtype=accum, device=device), table_dtype)
    return _tables[key]


def rotate(x_BTHK, cos_T1K2, sin_T1K2, scale: float | None = None):
    """y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos, with x1, x2 the halves of a head, in the type of the tables; times
    `scale` if there is one."""
    x1, x2 = x_BTHK.to(cos_T1K2.dtype).chunk(2, dim=-1)
    y_BTHK = torch.cat([x1 * cos_T1K2 + x2 * sin_T1K2, -x1 * sin_T1K2 + x2 * cos_T1K2], dim=-1)
    return (y_BTHK if scale is None else y_BTHK * scale).to(x_BTHK.dtype)


def rotate_neighbours(x_BTHK, cos, sin, scale: float | None = None):
    """y_2i = cos x_2i + sin x_2i+1, y_2i+1 = cos x_2i+1 - sin x_2i in the first half of a head, the other half as it
    is, in the type of the tables, (T, 1 or H, K / 4); times `scale` if there is one (record 58)."""
    turned, rest = x_BTHK.to(cos.dtype).chunk(2, dim=-1)
    x1, x2 = turned[..., 0::2], turned[..., 1::2]
    turned = torch.stack([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).flatten(-2)
    y_BTHK = torch.cat([turned, rest], dim=-1)
    return (y_BTHK if scale is None else y_BTHK * scale).to(x_BTHK.dtype)


def offset_keys(k_BTHK, channels: tuple[tuple[int, int], ...]):
    """The keys with some ranges of their channels from the position before, in a row's first position their own."""
    before_BTHK = torch.cat([k_BTHK[:, :1], k_BTHK[:, :-1]], dim=1)
    channel = torch.arange(k_BTHK.shape[-1], device=k_BTHK.device)
    moved = functools.reduce(torch.logical_or, [(channel >= first) & (channel < end) for first, end in channels])
    return torch.where(moved, before_BTHK, k_BTHK)


def pair_heads(x_BTHK):
    """Head j and head j + H / 2 of each token as two rows of a sequence of twice the length: (B, 2 T, H / 2, K)."""
    B, T, H, K = x_BTHK.shape
    return x_BTHK.reshape(B, 2 * T, H // 2, K)


def pair_tables(cos, sin, heads: int):
    """Tables of 2 T positions (2 T, 1, n) for heads that attend in pairs: token t has position 2 t in even heads and
    2 t + 1 in odd ones: (T, H, n)."""
    cos, sin = (table.reshape(-1, 2, table.shape[-1]).repeat(1, heads // 2, 1) for table in (cos, sin))
    return cos, sin


@_constant
def _base_tables(
    T: int, K: int, base: float, accum: torch.dtype, full: bool, table_dtype: torch.dtype, device: torch.device
):  # fmt: skip
    """Those of the frequencies of `rotary`."""
    key = (T, K, base, accum, full, table_dtype, device)
    if key not in _tables:
        if full:
            frequency_K2 = (1 / base) ** (torch.arange(K // 2, dtype=accum, device=device) * 2 / K)
        else:
            rotating = (1 / base) ** (torch.arange(K // 4, dtype=accum, device=device) / (K // 4 - 1))
            frequency_K2 = torch.cat([rotating, torch.zeros_like(rotating)])
        _tables[key] = _cos_and_sin(T, frequency_K2, table_dtype)
    return _tables[key]


def _cos_and_sin(T: int, frequency_K2: torch.Tensor, table_dtype: torch.dtype):
    accum = frequency_K2.dtype
    theta_T1K2 = torch.arange(T, dtype=accum, device=frequency_K2.device)[:, None, None] * frequency_K2
    cos, sin = (x.to(table_dtype).to(accum) for x in (theta_T1K2.cos(), theta_T1K2.sin()))
    return cos, sin

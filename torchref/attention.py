"""Causal attention and rotary position embedding, in PyTorch. Letters: parity/recipes/base.py."""

import torch
import torch.nn.functional as F

NEGATIVE = -1e30  # a masked score: exp(NEGATIVE - max) is exactly 0 in every precision in use


def causal_attention(q_BTHK, k_BTHK, v_BTHK, scale: float):
    """softmax(scale q k^T, over earlier positions and the own one) v.

    q, k, v: (B, T, H, K), one type. Returns (B, T, H, K) in that type; scores and softmax in float32 or wider.
    """
    q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True, scale=scale).transpose(1, 2)


CHUNK = 128  # queries that are taken together, each chunk against the keys that its own window reaches


def window_attention(q_BTHK, k_BTHK, v_BTHK, scale: float, documents_BT, window, block: int, most: int):
    """softmax(scale q k^T, over what a position sees) v: earlier positions and the own one, in the own document, in the own block of
    `block` positions and the `window` - 1 blocks before it (a window of 0 counts as 1).

    q, k, v: (B, T, H, K), one type; documents (B, T), int32, never falling along a row; `window` an int32 tensor, at most `most`.
    Returns (B, T, H, K) in the type of q; scores and softmax in float32 or wider. The cost grows with `most`; on a GPU this is
    PyTorch's flex_attention, elsewhere chunks of queries with the keys that they may see.
    """
    if q_BTHK.device.type == "cuda":
        return _flex(q_BTHK, k_BTHK, v_BTHK, scale, documents_BT, window, block)
    B, T = documents_BT.shape
    C = chunk_size(T, block, CHUNK)
    reach = min(T // C - 1, -(-(max(1, most) - 1) * block // C))
    n, S = T // C, (reach + 1) * C

    def reached(x, empty=0):  # (B, T, ...) -> (B, n, S, ...)
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (reach * C, 0), value=empty)
        return x.unfold(1, S, C).movedim(-1, 2)

    q, k, v = (
        (x.unflatten(1, (n, C)) if i == 0 else reached(x)).flatten(0, 1).transpose(1, 2)
        for i, x in enumerate((q_BTHK, k_BTHK, v_BTHK))
    )
    device = q_BTHK.device
    t, s = (
        torch.arange(reach * C, S, device=device)[:, None],
        torch.arange(S, device=device)[None, :],
    )  # of a chunk whose keys begin at 0
    seen = (s <= t) & (s // block > t // block - window.clamp(min=1))
    seen = seen & (documents_BT.view(B, n, C, 1) == reached(documents_BT, -1)[:, :, None, :])
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen.view(B * n, 1, C, S), scale=scale)
    return y.transpose(1, 2).reshape(q_BTHK.shape)


def chunk_size(T: int, block: int, about: int) -> int:
    """Positions in a chunk: whole blocks, a divisor of T, at most `about` where a block is."""
    return block * max(n for n in range(1, max(1, about // block) + 1) if T % (block * n) == 0)


def _flex(q_BTHK, k_BTHK, v_BTHK, scale: float, documents_BT, window, block: int):
    """The same by flex_attention, which computes only the blocks that it is told: those seen whole, and those masked token by token."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    (B, T), wide = documents_BT.shape, window.clamp(min=1)
    low, high = (
        documents_BT.view(B, -1, block)[:, :, i] for i in (0, -1)
    )  # documents of a block's first and last token: (B, N)
    i, j = torch.meshgrid(*[torch.arange(T // block, device=q_BTHK.device)] * 2, indexing="ij")
    near = (j <= i) & (j > i - wide) & (high[:, None, :] >= low[:, :, None])
    whole = near & (j < i) & (low[:, None, :] == high[:, :, None])  # documents never fall: both blocks lie in one

    def listed(kept_BNN):
        """How many blocks each query block has, and their numbers, those first."""
        order = kept_BNN.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return kept_BNN.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]

    def sees(b, h, t, s):
        return (s <= t) & (s // block > t // block - wide) & (documents_BT[b, t] == documents_BT[b, s])

    mask = BlockMask.from_kv_blocks(*listed(near & ~whole), *listed(whole), BLOCK_SIZE=block, mask_mod=sees)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    return flex_attention(q, k, v, block_mask=mask, scale=scale).transpose(1, 2)


def rotary(x_BTHK, base: float, wide: torch.dtype, full: bool = False, tables: torch.dtype | None = None):
    """Turns pairs of channels by an angle that grows with the position (rotary embedding).

    Half-truncated: K/4 frequencies base^(-i / (K/4 - 1)), then K/4 zeros, so that half of the channels stand still. `full`: K/2
    frequencies base^(-2 i / K). With x1, x2 the halves of a head: y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos, in `wide`, cosines and
    sines rounded to the type `tables` first.
    """
    cos, sin = _tables(x_BTHK.shape[1], x_BTHK.shape[3], base, wide, full, tables or wide, x_BTHK.device)
    x1, x2 = x_BTHK.to(wide).chunk(2, dim=-1)
    return torch.cat([x1 * cos + x2 * sin, -x1 * sin + x2 * cos], dim=-1).to(x_BTHK.dtype)


_kept: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}


def _constant(function):
    """A function whose result torch.compile takes as constant; torch.compiler.assume_constant_result does the same, and loads the compiler
    to do so, 2 s in every process."""
    function._dynamo_marked_constant = True
    return function


@_constant
def _tables(T: int, K: int, base: float, wide: torch.dtype, full: bool, tables: torch.dtype, device: torch.device):
    """Cosines and sines of the angles of `rotary`, each (T, 1, K/2) in `wide`, made once for each set of arguments."""
    key = (T, K, base, wide, full, tables, device)
    if key not in _kept:  # the same for every layer and step, so made once
        if full:
            frequency_K2 = (1 / base) ** (torch.arange(K // 2, dtype=wide, device=device) * 2 / K)
        else:
            turning = (1 / base) ** (torch.arange(K // 4, dtype=wide, device=device) / (K // 4 - 1))
            frequency_K2 = torch.cat([turning, torch.zeros_like(turning)])
        theta_T1K2 = torch.arange(T, dtype=wide, device=device)[:, None, None] * frequency_K2
        _kept[key] = tuple(x.to(tables).to(wide) for x in (theta_T1K2.cos(), theta_T1K2.sin()))
    return _kept[key]

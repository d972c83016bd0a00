"""Attention within windows and documents: PyTorch's flex_attention on GPUs, chunks of queries elsewhere."""

import torch
import torch.nn.functional as F

CHUNK = 128  # queries of a chunk, at most where a block is smaller; each chunk attends to the keys in its window


def chunked_window_attention(q_BTHK, k_BTHK, v_BTHK, scale: float, segments_BT, window, block: int, max_window: int):
    """Chunks of queries, each against the keys that the widest window can reach. The cost grows with `max_window`."""
    B, T = segments_BT.shape
    C = chunk_size(T, block)
    before = min(T // C - 1, -(-(max(1, max_window) - 1) * block // C))  # chunks of keys before a chunk's own
    n, S = T // C, (before + 1) * C

    def keys_of_chunks(x, padding=0):  # (B, T, ...) -> (B, n, S, ...)
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (before * C, 0), value=padding)
        return x.unfold(1, S, C).movedim(-1, 2)

    chunks = q_BTHK.unflatten(1, (n, C)), keys_of_chunks(k_BTHK), keys_of_chunks(v_BTHK)
    q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in chunks)
    device = q_BTHK.device
    t = torch.arange(before * C, S, device=device)[:, None]  # positions, of a chunk whose keys begin at 0
    s = torch.arange(S, device=device)[None, :]
    mask = (s <= t) & (s // block > t // block - window.clamp(min=1))
    same_segment = segments_BT.view(B, n, C, 1) == keys_of_chunks(segments_BT, -1)[:, :, None, :]
    mask = (mask & same_segment).view(B * n, 1, C, S)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return y.transpose(1, 2).reshape(q_BTHK.shape)


def chunk_size(T: int, block: int) -> int:
    """Positions of a chunk: whole blocks, a divisor of T, at most CHUNK where a block is."""
    return block * max(n for n in range(1, max(1, CHUNK // block) + 1) if T % (block * n) == 0)


def flex_window_attention(q_BTHK, k_BTHK, v_BTHK, scale: float, segments_BT, window, block: int):
    """By flex_attention, which computes only the blocks it is given: those visible whole, and those masked by token."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    (B, T), tile = segments_BT.shape, CHUNK if block == 1 else block
    window = window.clamp(min=1)
    first, last = (segments_BT.view(B, -1, tile)[:, :, i] for i in (0, -1))  # segments at a tile's ends: (B, N)
    i, j = torch.meshgrid(*[torch.arange(T // tile, device=q_BTHK.device)] * 2, indexing="ij")
    # Of a tile's positions t the first sees the keys from `oldest` on, all of them those from `common` on.
    oldest, common = (((i + end) * tile - end) // block - window + 1 for end in (0, 1))
    near = (j <= i) & (((j + 1) * tile - 1) // block >= oldest) & (last[:, None, :] >= first[:, :, None])
    whole = near & (j < i) & (j * tile // block >= common)
    whole &= first[:, None, :] == last[:, :, None]  # segments never fall: both tiles lie in one

    def block_list(visible_BNN):
        """How many key blocks each query block has, and their numbers, those first."""
        order = visible_BNN.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return visible_BNN.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]

    def visible(b, h, t, s):
        return (s <= t) & (s // block > t // block - window) & (segments_BT[b, t] == segments_BT[b, s])

    lists = *block_list(near & ~whole), *block_list(whole)
    mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=tile, mask_mod=visible)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    return flex_attention(q, k, v, block_mask=mask, scale=scale).transpose(1, 2)

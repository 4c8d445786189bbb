"""Vision layers over the patches of several images in one row, as Qwen-VL towers have them, in operations that export.

A row of T patches is cut into segments: images (or frames), and within them windows. `cu` holds where segments start and end,
[segments + 1], from 0 to T. Attention stays inside a segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Segments:
    """Who attends to whom. All of it depends on `cu` alone and serves every layer of a call.

    bias: added to the scores, 0 or the least finite number: [1, 1, T, T], or [W, 1, 1, L] for windows.
    gather: windows only, the patches of each window [W, L].  back: windows only, a patch's place among W * L rows [T].
    """

    bias: torch.Tensor
    gather: torch.Tensor | None = None
    back: torch.Tensor | None = None


def segment_ids(cu: torch.Tensor, length: torch.Tensor | int) -> torch.Tensor:
    """The segment of each of `length` patches [T]: how many segments have ended before it."""
    places = torch.arange(length, device=cu.device)
    return (places[:, None] >= cu[None, 1:]).sum(1)


def blocks(cu: torch.Tensor, like: torch.Tensor) -> Segments:
    """Segments of any length, as a block-diagonal bias of T x T values. like: [T, D], for its length and dtype."""
    ids = segment_ids(cu, like.shape[0])
    apart = (ids[:, None] != ids[None, :]).to(like.dtype)
    return Segments(apart[None, None] * torch.finfo(like.dtype).min)


def windows(cu: torch.Tensor, like: torch.Tensor, largest: int) -> Segments:
    """Segments of at most `largest` patches, gathered into a batch: W x largest scores a patch instead of T x T.

    Windows at an image's edge are smaller; what they lack is masked. A longer segment would be cut short: the caller's tower
    says how large a window can be.
    """
    ids = segment_ids(cu, like.shape[0])
    gather = cu[:-1, None] + torch.arange(largest, device=cu.device)[None]
    outside = (gather >= cu[1:, None]).to(like.dtype)
    back = ids * largest + torch.arange(like.shape[0], device=cu.device) - cu.index_select(0, ids)
    gather = gather.clamp(max=like.shape[0] - 1)
    return Segments(outside[:, None, None] * torch.finfo(like.dtype).min, gather, back)


class PatchProjection(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """A Conv3d whose kernel covers a whole patch, as the matrix product that it is: [T, C * t * p * p] -> [T, D]."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=conv.bias is not None, device="meta")
        self.linear.weight = nn.Parameter(conv.weight.detach().flatten(1), requires_grad=False)
        if conv.bias is not None:
            self.linear.bias = conv.bias

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[T, C * t * p * p] -> [T, D]."""
        return self.linear(patches)


class PackedAttention(nn.Module):  # type: ignore[misc]
    """Self-attention with 2-D rotary positions, inside segments."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.heads, self.head_dim, self.scale = attention.num_heads, attention.head_dim, attention.scaling

    def forward(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, segments: Segments) -> torch.Tensor:
        """hidden [T, D]; cos, sin [T, head_dim] -> [T, D]."""
        query, key, value = self.qkv(hidden).reshape(-1, 3, self.heads, self.head_dim).unbind(1)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        if segments.gather is None:
            query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
        else:
            query, key, value = (_by_window(part, segments.gather) for part in (query, key, value))
        scores = query @ key.transpose(-1, -2) * self.scale + segments.bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, self.heads * self.head_dim)
        return self.proj(mixed if segments.back is None else mixed.index_select(0, segments.back))


class PackedBlock(nn.Module):  # type: ignore[misc]
    """A pre-norm transformer layer of a Qwen-VL tower."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attn = PackedAttention(block.attn)

    def forward(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, segments: Segments) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        hidden = hidden + self.attn(self.norm1(hidden), cos, sin, segments)
        return hidden + self.mlp(self.norm2(hidden))


def _by_window(rows: torch.Tensor, gather: torch.Tensor) -> torch.Tensor:
    """[T, heads, head_dim] -> [W, heads, L, head_dim]; `index_select` exports as a Gather, advanced indexing as a GatherND."""
    return rows.index_select(0, gather.flatten()).unflatten(0, gather.shape).transpose(1, 2)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """states [T, heads, head_dim]: pairs (i, i + head_dim / 2) turned by the angles of their patch."""
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return states * cos[:, None] + turned * sin[:, None]

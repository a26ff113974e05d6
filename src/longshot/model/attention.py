"""Attention over a packed `Layout`: the only place that calls a kernel.

`prefix` is the fast path: a loop over blocks in which every query sees every key, so no mask exists. `dense` (a boolean mask)
and `flex` (block-sparse, from the same predicate) are its references and must agree with it. A `SplitKernel` attends over a
sequence whose rows lie on several processes.
"""

from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from longshot.layout import PADDING, Layout, Span, Visibility


@runtime_checkable
class SplitKernel(Protocol):
    """Attention over a sequence of which every process holds only some rows; see `longshot.train.parallel.Ulysses`."""

    def span(self, rows: int) -> Span:
        """The rows of a sequence that this process holds."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, visibility: Visibility) -> Tensor:
        """What `attend` returns for the rows that this process holds, given its rows of q, k and v."""
        ...

    def join(self, rows: Tensor, is_wanted: Bool[np.ndarray, " tokens"]) -> Tensor:
        """The wanted rows of the whole sequence, given those of them that this process holds."""
        ...

    def shared(self, x: Tensor) -> Tensor:
        """x, for a computation that every process repeats over the whole sequence: its gradient is this process's share."""
        ...


Kernel = Literal["prefix", "dense", "flex"] | SplitKernel


def attend(
    q: Float[Tensor, "queries heads dim"],
    k: Float[Tensor, "keys heads dim"],
    v: Float[Tensor, "keys heads dim"],
    layout: Layout,
    visibility: Visibility,
    kernel: Kernel = "prefix",
) -> Float[Tensor, "queries heads dim"]:
    """softmax(q k^T / sqrt(dim)) v, each query over the keys that `visibility` lets it see.

    Rows follow `layout.queries` and `layout.keys`. Raises ValueError for a kernel that doesn't exist.
    """
    if not isinstance(kernel, str):
        return kernel.attend(q, k, v, layout, visibility)
    if kernel == "prefix":
        return _prefix(q, k, v, layout, visibility)
    if kernel == "dense":
        mask = torch.from_numpy(layout.visible(visibility)).to(q.device)
        return _sdpa(q, k, v, mask)
    if kernel == "flex":
        return _flex(q, k, v, layout, visibility)
    raise ValueError(f"no attention kernel {kernel!r}: use prefix, dense or flex")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask)[0].transpose(0, 1)


def _prefix(q: Tensor, k: Tensor, v: Tensor, layout: Layout, visibility: Visibility) -> Tensor:
    out = [_sdpa(q[qs.slice], k[ks.slice], v[ks.slice]) for qs, ks in layout.blocks(visibility)]
    if layout.pad:
        out.append(v[len(v) - layout.pad :])  # padding attends to itself alone, so it returns its own value
    return torch.cat(out) if len(out) != 1 else out[0]


def _flex(q: Tensor, k: Tensor, v: Tensor, layout: Layout, visibility: Visibility) -> Tensor:
    q_scene, q_shot, k_scene, k_shot = (
        torch.from_numpy(column).to(q.device)
        for column in (layout.queries.scene, layout.queries.shot, layout.keys.scene, layout.keys.shot)
    )
    tail = len(k) - len(q)
    first = (
        q_shot if visibility == "shot" else torch.zeros_like(q_shot)
    )  # a query sees shots first..last of its scene
    last = torch.full_like(q_shot, torch.iinfo(torch.int64).max) if visibility == "scene" else q_shot
    # A lambda, since flex traces it, and a type checker's wrapper around a def can't be traced.
    visible = lambda batch, head, i, j: (
        (
            (q_scene[i] == k_scene[j])
            & (q_scene[i] != PADDING)
            & (first[i] <= k_shot[j])
            & (k_shot[j] <= last[i])
        )
        | ((q_scene[i] == PADDING) & (i + tail == j))
    )
    block_mask = create_block_mask(visible, None, None, len(q), len(k), device=str(q.device))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = flex_attention(q, k, v, block_mask=block_mask)
    assert isinstance(out, Tensor)
    return out[0].transpose(0, 1)

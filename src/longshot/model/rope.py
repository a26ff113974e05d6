"""3D rotary position embedding: the head dimension is split into time, height and width parts."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def split_axes(head_dim: int) -> tuple[int, int, int]:
    """The even sizes of the (time, height, width) parts of a head, as equal as can be, time taking what is left over."""
    if head_dim % 2 or head_dim < 6:
        raise ValueError(f"rotary positions need an even head size of 6 or more, got {head_dim}")
    side = head_dim // 6 * 2
    return head_dim - 2 * side, side, side


def rotations(
    position: Int[Tensor, "tokens 3"], axes: tuple[int, int, int], theta: float
) -> Float[Tensor, "tokens half 2"]:
    """(cos, sin) of every token in fp32: axis a of size n turns by position_a / theta^(2i/n), i < n/2 (RoFormer, eq. 15)."""
    angles = [
        position[:, axis, None].double()
        / theta ** (torch.arange(0, n, 2, device=position.device) / n).double()
        for axis, n in enumerate(axes)
    ]
    angle = torch.cat(angles, 1)
    return torch.stack([angle.cos(), angle.sin()], -1).float()


def rotate(
    x: Float[Tensor, "tokens heads dim"], table: Float[Tensor, "tokens half 2"]
) -> Float[Tensor, "tokens heads dim"]:
    """Turns the two halves of every head against each other, in fp32 at least, and returns x's own dtype."""
    first, second = x.to(torch.promote_types(x.dtype, table.dtype)).chunk(2, dim=-1)
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)

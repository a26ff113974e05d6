"""A small convolutional network over pixels, for native bases whose tokens are patches of them.

A token of 768 numbers doesn't fit through a stream of 192: what the transformer says of a patch is right and coarse, and what it
leaves of the noise shows as grain. This one sees the noisy picture beside that first answer, across the borders of patches,
and adds what is missing.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from longshot.layout import Layout

FOLD = 2  # a convolution's pixel is this many pixels high and wide
FEATURES = 8  # numbers a folded pixel is told by its token
RGB = 3


def pixel_norm(x: Tensor) -> Tensor:
    """RMSNorm without weights over the channels of each pixel of x [frames, channels, height, width]. Without it sums grow from
    block to block, and a fresh refiner dies within a hundred steps: its last SiLU sees large negative numbers only."""
    return F.rms_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)


class RefinerBlock(nn.Module):
    """A norm, two convolutions and a skip. A quarter of the channels comes from the frame before, a quarter from the next one
    (temporal shift, Lin et al., ICCV 2019), so neighbours in time are mixed at no cost."""

    def __init__(self, width: int, cond_width: int):
        super().__init__()
        self.modulation = nn.Linear(cond_width, 2 * width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, cond: Tensor, has_before: Tensor, has_after: Tensor) -> Tensor:
        """x: [frames, channels, height, width]. cond: of each frame. has_before, has_after: 0 at a shot's ends, else 1."""
        normed, quarter = pixel_norm(x), x.shape[1] // 4
        before = torch.cat([normed[:1], normed[:-1]])[:, :quarter] * has_before
        after = torch.cat([normed[1:], normed[-1:]])[:, quarter : 2 * quarter] * has_after
        shifted = torch.cat([before, after, normed[:, 2 * quarter :]], 1)
        shift, scale = self.modulation(F.silu(cond))[:, :, None, None].chunk(2, dim=1)
        return x + self.second(F.silu(self.first(shifted) * (1 + scale) + shift))


class PixelRefiner(nn.Module):
    """Corrects a first answer, shot by shot: no shot sees another one here.

    patch: frames, rows and columns of a token. width: channels. in_width: of the transformer's stream.
    """

    def __init__(self, patch: tuple[int, int, int], width: int, depth: int, in_width: int, cond_width: int):
        super().__init__()
        t, h, w = patch
        if h % FOLD or w % FOLD or width % 4:
            raise ValueError(
                f"a refiner needs patches of an even height and width and channels in fours, got {patch} and {width}"
            )
        self.patch = patch
        self.told = nn.Linear(in_width, t * (h // FOLD) * (w // FOLD) * FEATURES)
        folded = RGB * FOLD * FOLD
        self.enter = nn.Conv2d(2 * folded + FEATURES, width, 3, padding=1)
        self.blocks = nn.ModuleList(RefinerBlock(width, cond_width) for _ in range(depth))
        self.leave = nn.Conv2d(width, folded, 3, padding=1)

    @torch.no_grad()
    def initialise(self) -> None:
        """Fresh weights of the convolutions; the correction starts at 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.leave.weight)

    def forward(
        self,
        coarse: Float[Tensor, "video channels"],
        z: Float[Tensor, "video channels"],
        told: Float[Tensor, "video features"],
        cond: Float[Tensor, "groups cond"],
        strength: Float[Tensor, " groups"],
        layout: Layout,
        chosen: Sequence[bool],
    ) -> Float[Tensor, "video channels"]:
        """The answer for each row, corrected in the chosen groups.

        coarse: the transformer's answer. z: what it saw. told: `self.told` of its last features. strength: what a group's
        correction is multiplied by, sigma for a clean answer, so that it is of one size at all noise levels (c_out of Karras et
        al. 2022, sec. 5).
        """
        out = coarse
        groups = zip(layout.groups, chosen, strict=True)
        shots = [i for i, (g, wanted) in enumerate(groups) if wanted and g.video]
        for size in sorted({layout.groups[i].grid[1:] for i in shots}):
            own = [i for i in shots if layout.groups[i].grid[1:] == size]
            rows = torch.from_numpy(
                np.concatenate([np.arange(layout.num_video)[layout.video_spans[i].slice] for i in own])
            ).to(coarse.device)
            lengths = [layout.groups[i].grid[0] * self.patch[0] for i in own]
            frames = torch.tensor(np.repeat(own, lengths)).to(coarse.device)
            correction = self._correction(
                coarse.index_select(0, rows),
                z.index_select(0, rows),
                told.index_select(0, rows),
                cond.index_select(0, frames),
                strength.index_select(0, frames),
                lengths,
                size,
            )
            out = out.index_add(0, rows, correction.to(out.dtype))
        return out

    def _correction(
        self, coarse, z, told, cond, strength, lengths: list[int], size: tuple[int, int]
    ) -> Tensor:
        """What is to be added to the rows of shots whose frames have one size."""
        t, h, w = self.patch
        H, W = size
        sizes = {"H": H, "W": W, "t": t, "h": h // FOLD, "w": w // FOLD}
        folds = {"p": FOLD, "q": FOLD, "c": RGB}
        folded = "(T t) (H h) (W w) (p q c)"
        maps = [rearrange(x, f"(T H W) (t h p w q c) -> {folded}", **sizes, **folds) for x in (coarse, z)]
        maps.append(rearrange(told, "(T H W) (t h w c) -> (T t) (H h) (W w) c", **sizes, c=FEATURES))
        stops = np.cumsum(lengths)
        has_before, has_after = torch.ones(2, stops[-1], 1, 1, 1, dtype=z.dtype, device=z.device)
        has_before[torch.from_numpy(stops - lengths)] = 0
        has_after[torch.from_numpy(stops - 1)] = 0
        # Channels last in memory, as they come out of here: convolutions on a CPU are 1.5 times as fast on that.
        x = self.enter(torch.cat(maps, 3).permute(0, 3, 1, 2))
        for block in self.blocks:
            x = block(x, cond, has_before, has_after)
        x = (self.leave(F.silu(pixel_norm(x))) * strength[:, None, None, None]).permute(0, 2, 3, 1)
        return rearrange(x, f"{folded} -> (T H W) (t h p w q c)", **sizes, **folds)

"""A small convolutional network over pixels, for native bases whose tokens are patches of them.

A token of 768 numbers doesn't fit through a stream of 192: what the transformer says of a patch is right and coarse, and what it
leaves of the noise shows as grain. This one sees the noisy picture beside that first answer, across the borders of patches, and
the last picture of the shot before, and adds what is missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from longshot.errors import UserError
from longshot.layout import GLOBAL, Group, Layout, Visibility
from longshot.model.context import Context

Move = tuple[int, int, int]
"""How something moves on, in pixels: to the right at once, so much further in each frame, and up at once."""
FOLD = 2  # a convolution's pixel is this many pixels high and wide
FEATURES = 8  # numbers a folded pixel is told by its token
RGB = 3
DOUBT = (0.055, 0.15)
"""The error of what convolutions made of an answer, about: the first number plus sigma times the second; of the tiny base."""
MOVED = 0.35  # about the error of what was seen last, of which most has moved otherwise
LEAST = 0.01  # the error that is always left when it is asked how well a picture explains another one
SURE = 0.7
"""The noise level up to which a last picture may be taken. Above it an answer is the mean of what may be, and people go under in
it: that their surroundings' picture is near it says little."""
NOISIEST = 0.99  # above this level the noisy picture is read as if it were at it


@dataclass(frozen=True)
class Before:
    """The shot placed before another one, as far as its last picture is known. Of a chosen history it is the last one chosen.

    level: its noise level. group: its index in `Layout.groups`, or None where its last token frame is known otherwise. rows: that
    one, [rows, channels].
    """

    level: float
    group: int | None
    rows: Float[Tensor, "rows channels"] | None = None


def can_follow(before: Group, group: Group) -> bool:
    """Whether a group placed after another one can go on from its last picture: both are shots, of one size."""
    return GLOBAL not in (before.shot, group.shot) and before.grid[1:] == group.grid[1:]


def shots_before(
    layout: Layout,
    visibility: Visibility,
    sigma: Float[Tensor, " groups"],
    past: Sequence[Context],
    endings: Mapping[int, Float[Tensor, "rows channels"]] | None = None,
) -> list[Before | None]:
    """For each group, the shot placed before it, None where there is none that it may see, or one of another size.

    endings: of groups, by index, that are finished: their last token frame as the film has it, whatever their noise level. Raises
    UserError where a remembered shot was remembered without its last picture.
    """
    out: list[Before | None] = []
    levels = sigma.tolist()
    for groups, num_past, context in zip(layout.scenes, layout.past, past, strict=True):
        for place in range(num_past, len(groups)):
            before = groups[place - 1] if place else None
            if visibility == "shot" or before is None or not can_follow(before, groups[place]):
                out.append(None)
            elif place > num_past:
                index, ending = len(out) - 1, (endings or {}).get(len(out) - 1)
                out.append(Before(levels[index], None if ending is not None else index, ending))
            else:
                memory = context.memories[-1]
                if memory.last is None:
                    raise UserError(
                        f"shot {before.shot} was remembered without its last picture, which this network goes on from: "
                        "make its context again"
                    )
                out.append(Before(memory.sigma, None, memory.last))
    return out


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
    """Corrects a first answer, shot after shot: by what convolutions add, and then out of candidates for each pixel.

    The candidates are the noisy picture itself, which is nearer to the truth than any answer where its noise is low, and, where a
    shot has one before it, the last picture seen. What goes on without a cut was seen there already, and has moved since: the
    picture is shown beside each frame moved along by each of `moves` (a plane sweep, Collins 1996). How far a pixel goes to the
    noisy picture is for the token and the convolutions to say, in shares of what would be best by the errors that both mostly
    have (Wiener's weight); a fresh refiner says 1. From there, below a noise level, it goes to the moved pictures by how likely
    each is what is to be seen: a softmax, against 0 for none of them, of what the token and the convolutions say, 0 at first,
    less how far the picture misses what is known otherwise (the mean square error of four pixels in units of what it mostly is,
    about as a Gaussian's likelihood has it). An answer must be right for what rests and for what moves, and shares that are a
    sum of features aren't sharp enough for both. Without moves no shot sees another one here.

    patch: frames, rows and columns of a token. width: channels. in_width: of the transformer's stream. moves: see
    `Move`; what rests or begins to move from rest needs a start of 0, what goes on moving, or ends to, one of its speed, and who
    walks is a little higher up between steps.
    """

    def __init__(
        self,
        patch: tuple[int, int, int],
        width: int,
        depth: int,
        in_width: int,
        cond_width: int,
        moves: Sequence[Move] = (),
    ):
        super().__init__()
        t, h, w = patch
        if h % FOLD or w % FOLD or width % 4:
            raise ValueError(
                f"a refiner needs patches of an even height and width and channels in fours, got {patch} and {width}"
            )
        self.patch, self.moves = patch, tuple(moves)
        folded = t * (h // FOLD) * (w // FOLD)
        self.told = nn.Linear(in_width, folded * FEATURES)
        self.gates = nn.Linear(in_width, folded * (1 + len(self.moves)))
        self.enter = nn.Conv2d(entering(len(self.moves)), width, 3, padding=1)
        self.blocks = nn.ModuleList(RefinerBlock(width, cond_width) for _ in range(depth))
        self.leave = nn.Conv2d(width, leaving(len(self.moves)), 3, padding=1)

    @torch.no_grad()
    def initialise(self) -> None:
        """Fresh weights; what the convolutions add and all gates start at 0, so that what is taken is what the errors say."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for zero in (self.leave, self.gates):
            nn.init.zeros_(zero.weight)

    def tell(self, features: Float[Tensor, "video width"]) -> Float[Tensor, "video features"]:
        """What a token's features tell its pixels: numbers for the convolutions, and what speaks for each candidate."""
        return torch.cat([self.told(features), self.gates(features)], 1)

    def forward(
        self,
        coarse: Float[Tensor, "video channels"],
        z: Float[Tensor, "video channels"],
        said: Float[Tensor, "video features"],
        cond: Float[Tensor, "groups cond"],
        sigma: Float[Tensor, " groups"],
        layout: Layout,
        chosen: Sequence[bool],
        before: Sequence[Before | None],
    ) -> Float[Tensor, "video channels"]:
        """The answer for each row, corrected in the chosen groups.

        coarse: the transformer's answer. z: what it saw, at the noise levels `sigma`. said: `tell` of its last features.
        before: of each group, where its last seen picture comes from (`shots_before`); one that is computed here is taken as it
        was corrected, so that a shot sees the same whether the one before it is remembered or not.
        """
        out = coarse
        before = before if self.moves else [None] * len(layout.groups)
        waiting = {i for i, g in enumerate(layout.groups) if chosen[i] and g.video}
        while waiting:
            later = {i for i in waiting if (b := before[i]) is not None and b.group in waiting}
            ready = sorted(waiting - later)
            for size in sorted({layout.groups[i].grid[1:] for i in ready}):
                own = [i for i in ready if layout.groups[i].grid[1:] == size]
                out = self._corrected(own, size, out, z, said, cond, sigma, layout, before)
            waiting = later
        return out

    def _corrected(
        self, own: list[int], size: tuple[int, int], out, z, said, cond, sigma, layout: Layout, before
    ) -> Tensor:
        """`out` with the shots `own` corrected, whose frames have one size."""
        (t, h, w), (H, W) = self.patch, size
        rows = torch.from_numpy(
            np.concatenate([np.arange(layout.num_video)[layout.video_spans[i].slice] for i in own])
        ).to(out.device)
        lengths = [layout.groups[i].grid[0] * t for i in own]
        frames = torch.tensor(np.repeat(own, lengths)).to(out.device)
        sizes = {"H": H, "W": W, "t": t, "h": h // FOLD, "w": w // FOLD}
        packed, folded = "(T H W) (t h p w q c)", "(T t) (H h) (W w) (p q) c"
        folds = {"p": FOLD, "q": FOLD, "c": RGB}
        coarse, noisy = (
            rearrange(x.index_select(0, rows), f"{packed} -> {folded}", **sizes, **folds) for x in (out, z)
        )
        told, gates = said.index_select(0, rows).split(
            [self.told.out_features, self.gates.out_features], dim=1
        )
        told = rearrange(told, "(T H W) (t h w c) -> (T t) (H h) (W w) c", **sizes, c=FEATURES)
        gates = rearrange(gates, "(T H W) (k t h w) -> (T t) (H h) (W w) k", **sizes)
        level = sigma.index_select(0, frames)[:, None, None, None, None].to(out)
        doubt = (DOUBT[0] + DOUBT[1] * level) ** 2
        clear = 1 - level.clamp(max=NOISIEST)
        of_noisy = doubt / (doubt + (1 / clear - 1) ** 2)
        maps = [coarse.flatten(3), noisy.flatten(3), told]
        if self.moves:
            seen = [self._seen(before[i], n, size, out, z, layout) for i, n in zip(own, lengths, strict=True)]
            pictures, known = (torch.cat(parts, 0) for parts in zip(*seen, strict=True))
            known = known[:, None, None, None, None]
            likely = coarse + of_noisy * (noisy / clear - coarse)
            misses = _misses(pictures, likely, doubt * (1 - of_noisy))
            maps += _shown(pictures, misses, known, coarse)
        x = self._convolved(torch.cat(maps, 3), cond.index_select(0, frames), lengths)
        del maps  # the largest tensors by far, which would stay to the end
        added, more = x.split([RGB * FOLD * FOLD, x.shape[3] - RGB * FOLD * FOLD], dim=3)
        answer = coarse + level * added.unflatten(3, (FOLD * FOLD, RGB))
        gates = gates[..., None] + more.unflatten(
            3, (-1, FOLD * FOLD)
        )  # frames, rows, columns, candidates, 4
        better = answer + of_noisy * (1 + gates[:, :, :, 0, :, None]) * (noisy / clear - answer)
        if self.moves:
            can_take = (known > 0) & (level <= SURE)
            odds = (gates[:, :, :, 1:] - misses[..., None]).masked_fill(~can_take, -torch.inf)
            share = F.pad(odds, (0, 0, 1, 0)).softmax(3)[:, :, :, 1:, :, None]
            better = better + (share * (pictures - better[:, :, :, None])).sum(3)
        change = rearrange(better - coarse, f"{folded} -> {packed}", **sizes, **folds)
        return out.index_add(0, rows, change.to(out.dtype))

    def _seen(
        self, before: Before | None, length: int, size: tuple[int, int], out, z, layout: Layout
    ) -> tuple[Float[Tensor, "frames height width moves 4 RGB"], Float[Tensor, " frames"]]:
        """The last picture of the shot before, with each move beside each of `length` frames, folded, and how much of it is
        known: 1 - its noise level, and 0 where there is none."""
        (t, h, w), (H, W) = self.patch, size
        height, width = H * h, W * w
        if before is None:
            shape = (length, height // FOLD, width // FOLD, len(self.moves), FOLD * FOLD, RGB)
            return out.new_zeros(shape), out.new_zeros(length)
        rows = before.rows
        if before.group is not None:
            given = z if before.level == 0 else out  # a clean shot is as given
            rows = given[layout.last_frame(before.group)].detach()
        assert rows is not None
        sizes = {"H": H, "W": W, "t": t, "h": h, "w": w}
        picture = rearrange(rows.to(out), "(H W) (t h w c) -> t (H h) (W w) c", **sizes)[-1]
        start, speed, up = torch.tensor(self.moves, device=out.device).T[..., None, None]
        frame = torch.arange(length, device=out.device)[:, None]
        columns = (torch.arange(width, device=out.device) - start - speed * frame).clamp(0, width - 1)
        at = (torch.arange(height, device=out.device) + up[..., 0]).clamp(0, height - 1)
        moved = picture[at[:, None, :, None], columns[:, :, None]]
        moved = rearrange(moved, "s t (h p) (w q) c -> t h w s (p q) c", p=FOLD, q=FOLD)
        return moved, out.new_full((length,), 1 - before.level)

    def _convolved(
        self, maps: Float[Tensor, "frames height width channels"], cond: Tensor, lengths: list[int]
    ) -> Float[Tensor, "frames height width said"]:
        """What the convolutions say of shots of these lengths, end to end."""
        stops = np.cumsum(lengths)
        has_before, has_after = torch.ones(2, stops[-1], 1, 1, 1, dtype=maps.dtype, device=maps.device)
        has_before[torch.from_numpy(stops - lengths)] = 0
        has_after[torch.from_numpy(stops - 1)] = 0
        # Channels last in memory, as they come: convolutions on a CPU are 1.5 times as fast on that.
        x = self.enter(maps.permute(0, 3, 1, 2))
        for block in self.blocks:
            x = block(x, cond, has_before, has_after)
        return self.leave(F.silu(pixel_norm(x))).permute(0, 2, 3, 1)


def _misses(
    pictures: Float[Tensor, "frames height width moves 4 RGB"],
    likely: Float[Tensor, "frames height width 4 RGB"],
    doubt: Float[Tensor, "frames 1 1 1 1"],
) -> Float[Tensor, "frames height width moves"]:
    """How far each picture is from what is likely without it, in units of the square error `doubt` that this should have."""
    apart = (pictures - likely[:, :, :, None]).square().mean((4, 5))
    return apart / (doubt + LEAST**2)[..., 0]


def _shown(pictures: Tensor, misses: Tensor, known: Tensor, coarse: Tensor) -> list[Tensor]:
    """What the convolutions see of the pictures: how each differs from the answer, how far it misses, and how much is known."""
    apart = (pictures - coarse[:, :, :, None]).div_(MOVED).flatten(4)
    apart = torch.cat([apart, torch.log1p(misses)[..., None]], 4)
    shown = apart.mul_(known > 0).flatten(3)
    return [shown, known[..., 0].expand(-1, *coarse.shape[1:3], 1)]


def entering(moves: int) -> int:
    """Channels of what a refiner sees: answer, noisy picture, what it is told, each picture seen and how far it is from what is
    known otherwise, and how much of them is known."""
    return (2 + moves) * RGB * FOLD * FOLD + FEATURES + moves + bool(moves)


def leaving(moves: int) -> int:
    """Channels of what it says: what to add, and for each candidate how much of the way to it to go."""
    return (RGB + 1 + moves) * FOLD * FOLD

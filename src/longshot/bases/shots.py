"""Shots on the batch axis: how a network that was made for single shots runs a scene.

Every pretrained video transformer works token by token, except in self-attention. So the shots of a scene lie on the batch
axis, where each has its own noise level and its own text, and only the self-attention processor is replaced: it joins the rows
of all shots into one sequence, turns keys and queries to their places in the scene, attends, and takes the result apart again.
The network's own forward stays as it is.

Shots of different sizes are padded to a common box of tokens; padded rows are computed and thrown away, and nothing attends to
them.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from longshot.errors import UserError
from longshot.layout import GLOBAL, Group, Layout, Tokens, Visibility
from longshot.model.attention import Kernel, attend
from longshot.model.context import Context, join_past
from longshot.model.mmdit import memories_from

Turn = Callable[[Tensor, Tensor], Tensor]  # (x [tokens, heads, dim], table) -> x, turned
Table = Callable[[Int[Tensor, "tokens 3"]], Tensor]  # positions -> table


@dataclass(frozen=True)
class ScenePass:
    """What one forward pass of one scene needs: a piece of what `Base.velocity` gets, cut by group.

    z, text: the rows of each group that is computed. layout: of this scene only, as self-attention sees it (without text where
    text is cross-attended). keep: receives each layer's unrotated keys and values; None where nobody wants them.
    """

    z: tuple[Float[Tensor, "_ channels"], ...]
    text: tuple[Float[Tensor, "_ width"], ...]
    sigma: Float[Tensor, " groups"]
    layout: Layout
    visibility: Visibility
    past: Context
    keep: list[tuple[Tensor, Tensor]] | None = None

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.layout.groups

    @property
    def box(self) -> tuple[int, int, int]:
        """The smallest token grid that holds every shot of the batch."""
        t, h, w = (max(g.grid[axis] for g in self.groups) for axis in range(3))
        return t, h, w

    def at_whole_timesteps(self) -> "ScenePass":
        """This pass at noise levels rounded down to thousandths, as samplers with whole timesteps tell them to a network."""
        return replace(self, sigma=torch.floor(self.sigma * 1000 + 1e-3) / 1000)

    def videos(self, patch: tuple[int, int, int]) -> Float[Tensor, "shots channels time height width"]:
        """The rows as latents on the batch axis, padded to the box with zeros. patch: latent pixels of a token."""
        t, h, w = self.box
        p, q, r = patch
        clips = []
        for g, rows in zip(self.groups, self.z, strict=True):
            T, H, W = g.grid
            clip = rearrange(rows, "(T H W) (c p q r) -> c (T p) (H q) (W r)", T=T, H=H, W=W, p=p, q=q, r=r)
            clips.append(F.pad(clip, (0, (w - W) * r, 0, (h - H) * q, 0, (t - T) * p)))
        return torch.stack(clips)

    def rows(
        self, videos: Float[Tensor, "shots channels time height width"], patch: tuple[int, int, int]
    ) -> Float[Tensor, "video packed"]:
        """The inverse of `videos`: the rows of every group, in order."""
        p, q, r = patch
        pieces = []
        for g, clip in zip(self.groups, videos, strict=True):
            T, H, W = g.grid
            clip = clip[:, : T * p, : H * q, : W * r]
            pieces.append(rearrange(clip, "c (T p) (H q) (W r) -> (T H W) (c p q r)", p=p, q=q, r=r))
        return torch.cat(pieces)

    def texts(self, length: int) -> Float[Tensor, "shots length width"]:
        """The text rows of each shot, padded with zeros."""
        return torch.stack([F.pad(rows, (0, 0, 0, length - len(rows))) for rows in self.text])


def place_in_batch(layout: Layout, box: tuple[int, int, int], text_rows: int) -> Int[np.ndarray, " tokens"]:
    """Where each token of a one-scene layout lies in the flattened batch [shots, box rows, then text rows]."""
    video_rows = int(np.prod(box))
    width, places = video_rows + text_rows, []
    for n, g in enumerate(layout.groups):
        places.append(n * width + video_rows + np.arange(g.text))
        inside = np.ravel_multi_index(tuple(np.indices(g.grid).reshape(3, -1)), box)
        places.append(n * width + inside)
    return np.concatenate(places).astype(np.int64)


@dataclass(frozen=True)
class _Call:
    """What every layer of one pass shares."""

    scene: ScenePass
    place: Int[Tensor, " tokens"] | None  # None where the batch is the sequence already
    queries: Tensor
    keys: Tensor


class SceneAttention:
    """The self-attention of all layers of one network. Its processors call `attend`; a pass is set up with `during`.

    turn, table: how this network rotates, see `Turn` and `Table`.
    """

    def __init__(self, turn: Turn, table: Table, kernel: Kernel = "prefix"):
        self.turn, self.table, self.kernel = turn, table, kernel
        self.time_pairs = 0  # how many of the table's first entries are of time: those that a phase turns
        self._call: _Call | None = None

    @contextmanager
    def during(self, scene: ScenePass, text_rows: int, device: torch.device) -> Generator[None]:
        """Every `attend` inside belongs to this pass. text_rows: how many the batch holds a shot, padding included."""
        layout = scene.layout
        place = place_in_batch(layout, scene.box, text_rows)
        is_whole = len(place) == len(layout.groups) * (int(np.prod(scene.box)) + text_rows)
        is_whole = is_whole and bool((np.diff(place) == 1).all())
        queries = self._table(layout.queries, device)
        self._call = _Call(
            scene=scene,
            place=None if is_whole else torch.from_numpy(place).to(device),
            queries=queries,
            keys=self._table(layout.keys, device) if any(layout.past) else queries,
        )
        try:
            yield
        finally:
            self._call = None

    def in_this_pass(self, function: Callable) -> Callable:
        """A function that runs as part of the pass that is being made now, whenever it is called."""
        call = self._call

        def run(*args):
            before, self._call = self._call, call
            try:
                return function(*args)
            finally:
                self._call = before

        return run

    def _table(self, tokens: Tokens, device: torch.device) -> Tensor:
        table = self.table(torch.from_numpy(tokens.position).to(device))
        if not tokens.phase.any():
            return table
        if not self.time_pairs:
            raise ValueError("this network has no phases")
        phase = torch.from_numpy(tokens.phase).to(device)
        return torch.cat([turned(table[:, : self.time_pairs], phase), table[:, self.time_pairs :]], 1)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "shots rows heads dim"],
        k: Float[Tensor, "shots rows heads dim"],
        v: Float[Tensor, "shots rows heads dim"],
    ) -> Float[Tensor, "shots rows heads dim"]:
        """One layer's attention over the scene. Rows that are padding come back as zeros."""
        call = self._call
        if call is None:
            raise RuntimeError("this network runs scenes: call it through its base, not by itself")
        scene, shape = call.scene, q.shape
        q, k, v = (self._sequence(x, call.place) for x in (q, k, v))
        if scene.keep is not None:
            scene.keep.append((k, v))
        if scene.past.memories:
            keys, values = scene.past.layer(layer, k)
            k, v = join_past(k, [keys], [len(k)]), join_past(v, [values], [len(v)])
        q, k = self.turn(q, call.queries), self.turn(k, call.keys)
        out = attend(q, k, v, scene.layout, scene.visibility, self.kernel)
        if call.place is None:
            return out.reshape(shape)
        whole = out.new_zeros(shape[0] * shape[1], *shape[2:])
        return whole.index_copy(0, call.place, out).reshape(shape)

    @staticmethod
    def _sequence(x: Tensor, place: Tensor | None) -> Tensor:
        x = x.flatten(0, 1)
        return x if place is None else x.index_select(0, place)


def turned(
    table: Float[Tensor, "tokens pairs 2"], phase: Float[Tensor, " tokens"]
) -> Float[Tensor, "tokens pairs 2"]:
    """(cos, sin) of angles with a phase a token added, the sum rules worked in fp64."""
    (cos, sin), (c, s) = (
        table.double().unbind(-1),
        (phase.double().cos()[:, None], phase.double().sin()[:, None]),
    )
    return torch.stack([cos * c - sin * s, sin * c + cos * s], -1).to(table.dtype)


def turn_pairs(
    x: Float[Tensor, "tokens heads dim"], table: Float[Tensor, "tokens half 2"]
) -> Float[Tensor, "tokens heads dim"]:
    """Turns neighbouring numbers of every head against each other, in fp32 at least, and returns x's own dtype."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2).to(x.dtype)


def run_scenes(
    run: Callable[[ScenePass], Tensor],
    network: tuple[int, int, int],
    text_takes_part: bool,
    z: Float[Tensor, "video channels"],
    text: Float[Tensor, "text width"],
    sigma: Float[Tensor, " groups"],
    layout: Layout,
    visibility: Visibility,
    past: Sequence[Context] | None,
    remember: bool,
) -> tuple[Float[Tensor, "video channels"], list[Context]]:
    """Runs the packed scenes of a layout one after the other: the velocity, and each scene's context, extended if asked.

    run: the network's forward over one scene: its velocity, in fp32, for every row of z. One scene a pass, as two branches of
    guidance share nothing and their activations need not be held at once. network: the (layers, heads, head size) that a
    context must have. text_takes_part: whether text tokens are in self-attention. Raises ValueError where sizes don't fit,
    UserError for a context of another network.
    """
    if len(z) != layout.num_video or len(text) != layout.num_text or len(sigma) != len(layout.groups):
        raise ValueError(
            f"the layout has {layout.num_video} video tokens, {layout.num_text} text tokens and {len(layout.groups)} "
            f"groups; got {len(z)}, {len(text)} and {len(sigma)}"
        )
    past = past or [Context()] * len(layout.scenes)
    z_groups, text_groups = (
        z.split([g.video for g in layout.groups]),
        text.split([g.text for g in layout.groups]),
    )
    out, contexts, start = [], [], 0
    for scene, context in zip(layout.one_by_one(), past, strict=True):
        if not text_takes_part:
            if any(g.shot == GLOBAL for g in scene.groups):
                raise ValueError(
                    "a global prompt has no tokens of its own here: it is joined to each shot's prompt"
                )
            scene = scene.without_text()
        _check_past(context, scene, network)
        stop = start + len(scene.groups)
        kept: list[tuple[Tensor, Tensor]] | None = [] if remember else None
        if not scene.groups:
            contexts.append(context)
            continue
        levels = sigma[start:stop]
        given = ScenePass(
            z_groups[start:stop], text_groups[start:stop], levels, scene, visibility, context, kept
        )
        out.append(run(given))
        contexts.append(context if kept is None else context.extended(memories_from(kept, scene, levels)[0]))
        start = stop
    return torch.cat(out) if out else z, contexts


def _check_past(context: Context, scene: Layout, network: tuple[int, int, int]) -> None:
    if context.groups != scene.scenes[0][: scene.past[0]]:
        raise ValueError("a context holds other groups than the layout's past")
    for memory in context.memories:
        if memory.network != network:
            raise UserError(
                f"shot {memory.group.shot} was remembered by another network: (layers, heads, head size) "
                f"{memory.network}; this one has {network}: make its context again"
            )


# -- latents as rows ----------------------------------------------------------------------------------------------------
def pack(
    latent: Float[Tensor, "1 channels time height width"],
    grid: tuple[int, int, int],
    patch: tuple[int, int, int],
) -> Float[Tensor, "video packed"]:
    """A latent as rows, one a token."""
    (T, H, W), (p, q, r) = grid, patch
    return rearrange(latent[0], "c (T p) (H q) (W r) -> (T H W) (c p q r)", T=T, H=H, W=W, p=p, q=q, r=r)


def unpack(
    z: Float[Tensor, "video packed"], grid: tuple[int, int, int], patch: tuple[int, int, int]
) -> Float[Tensor, "1 channels time height width"]:
    """The inverse of `pack`."""
    (T, H, W), (p, q, r) = grid, patch
    return rearrange(z, "(T H W) (c p q r) -> c (T p) (H q) (W r)", T=T, H=H, W=W, p=p, q=q, r=r)[None]


def to_pixels(
    video: Float[np.ndarray, "frames height width 3"],
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Frames in [0, 1] as bytes."""
    return (video * 255).round().astype(np.uint8)

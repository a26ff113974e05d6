"""A multimodal diffusion transformer (SD3's MMDiT) over packed scenes, with a noise level per shot.

Text and video tokens have weights of their own (norms, modulation, QKV, MLP) and meet in one joint self-attention. Nothing here
knows about modes: positions, visibility and noise levels are arguments (LCT sec. 3.2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from longshot.errors import UserError
from longshot.layout import GLOBAL, Group, Layout, RopeMode, Span, Visibility
from longshot.model.attention import Kernel, attend
from longshot.model.context import Context, Memory, join_past
from longshot.model.refine import Before, Move, PixelRefiner, shots_before
from longshot.model.rope import rotate, rotations, split_axes

SINUSOIDS = 256  # width of the sinusoidal embedding of sigma


@dataclass(frozen=True)
class MMDiTConfig:
    """Sizes of a native network. channels: numbers a latent token; text_dim: width of the raw token vectors.

    cond_width: width of the noise-level embedding that every block's modulation reads (SD3 uses the full width; a narrow one
    saves parameters in small models). detail_width: hidden width of a per-token head that sees the noisy token beside the
    features, 0 for none; a token of more numbers than `width` loses detail without it. patch, refiner_width, refiner_depth: of
    pixel bases, what a token spans and the size of the network that corrects its pixels (`refine.py`), width 0 for none;
    refiner_moves: with which it is shown the last picture of the shot before (`Move`), none where shots are corrected alone;
    refines_below: the noise level up to which a shot, or the one it goes on from, must be for it to be asked. theta: rotary base.
    predicts: what the last layer means, z_0 ("clean") or v.
    """

    channels: int
    text_dim: int
    width: int
    depth: int
    heads: int
    cond_width: int
    mlp_ratio: int = 4
    text_depth: int = 2
    detail_width: int = 0
    patch: tuple[int, int, int] = (1, 1, 1)
    refiner_width: int = 0
    refiner_depth: int = 2
    refiner_moves: tuple[Move, ...] = ()
    refines_below: float = 1.0
    theta: float = 1000.0
    rope: RopeMode = "interleaved"
    predicts: Literal["clean", "velocity"] = "clean"

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} isn't a multiple of {self.heads} heads")
        split_axes(self.head_dim)
        if self.refiner_width and self.predicts != "clean":
            raise ValueError("a pixel refiner corrects clean answers; this network predicts the velocity")
        if any(len(m) != 3 or not all(isinstance(n, int) for n in m) for m in self.refiner_moves):
            raise ValueError(f"moves are threes of whole pixels, got {self.refiner_moves}")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def goes_on(self) -> bool:
        """Whether a shot's pixels go on from the last picture of the shot before."""
        return bool(self.refiner_width and self.refiner_moves)


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without weights, computed in fp32 at least."""
    return F.layer_norm(x.to(torch.promote_types(x.dtype, torch.float32)), x.shape[-1:], eps=1e-6)


class HeadNorm(nn.Module):
    """RMSNorm over each head (QK-norm), in fp32 at least."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, x.shape[-1:], self.weight.to(wide.dtype), eps=1e-6).to(x.dtype)


class Stream(nn.Module):
    """One modality's own weights in a block: modulation, QKV, output projection, MLP."""

    def __init__(self, config: MMDiTConfig, modulated: bool = True):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.modulation = nn.Linear(config.cond_width, 6 * width) if modulated else None
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = HeadNorm(config.head_dim), HeadNorm(config.head_dim)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, config.mlp_ratio * width)
        self.down = nn.Linear(config.mlp_ratio * width, width)

    def modulate(self, cond: Float[Tensor, "groups cond"], group: Tensor) -> list[Tensor]:
        """shift, scale, gate of the attention and of the MLP for every token (adaLN-Zero), in fp32."""
        assert self.modulation is not None
        wide = torch.promote_types(cond.dtype, torch.float32)
        bias = self.modulation.bias.to(wide)
        table = F.linear(F.silu(cond.to(wide)), self.modulation.weight.to(wide), bias)
        return list(table.index_select(0, group).chunk(6, dim=-1))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised queries, normalised keys, and values, each [tokens, heads, dim]."""
        q, k, v = rearrange(
            self.qkv(x), "tokens (three heads dim) -> three tokens heads dim", three=3, heads=self.heads
        )
        return self.q_norm(q), self.k_norm(k), v

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


@dataclass(frozen=True)
class Route:
    """What a forward pass derives from its layout once and hands to every block, as tensors on the right device.

    With a `SplitKernel`, all but `layout` is about the rows that this process holds.
    """

    layout: Layout
    visibility: Visibility
    kernel: Kernel
    text_rows: slice  # the rows of text and of z that are computed here: all, unless the kernel splits them
    video_rows: slice
    interleave: Tensor  # where each sequence token comes from in concat([text, video])
    scatter: Tensor  # the inverse: where each of concat([text, video]) went
    group_of_text: Tensor
    group_of_video: Tensor
    q_rotation: Tensor
    k_rotation: Tensor
    lengths: tuple[int, ...]  # computed tokens of each scene


class Block(nn.Module):
    """One MMDiT block: joint attention between the two streams, then each stream's MLP."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.text, self.video = Stream(config), Stream(config)

    def forward(
        self,
        text: Tensor,
        video: Tensor,
        cond: Tensor,
        route: Route,
        past: Sequence[tuple[Tensor, Tensor] | None],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The streams after this block, and this block's unrotated keys and values of the computed tokens."""
        text_mod = self.text.modulate(cond, route.group_of_text)
        video_mod = self.video.modulate(cond, route.group_of_video)
        streams = (self.text, text, text_mod), (self.video, video, video_mod)
        q, k, v = (
            torch.cat(pair).index_select(0, route.interleave)
            for pair in zip(
                *(s.project((layer_norm(x) * (1 + m[1]) + m[0]).to(x.dtype)) for s, x, m in streams),
                strict=True,
            )
        )
        all_k, all_v = k, v
        if any(p is not None for p in past):
            all_k = join_past(k, [p and p[0] for p in past], route.lengths)
            all_v = join_past(v, [p and p[1] for p in past], route.lengths)
        joint = attend(
            rotate(q, route.q_rotation),
            rotate(all_k, route.k_rotation),
            all_v,
            route.layout,
            route.visibility,
            route.kernel,
        )
        mixed = rearrange(joint, "tokens heads dim -> tokens (heads dim)").index_select(0, route.scatter)
        text = self._finish(self.text, text, mixed[: len(text)], text_mod)
        video = self._finish(self.video, video, mixed[len(text) :], video_mod)
        return text, video, k, v

    @staticmethod
    def _finish(stream: Stream, x: Tensor, mixed: Tensor, mod: list[Tensor]) -> Tensor:
        _, _, gate, mlp_shift, mlp_scale, mlp_gate = mod
        x = x + (gate * stream.out(mixed)).to(x.dtype)
        return x + (mlp_gate * stream.mlp((layer_norm(x) * (1 + mlp_scale) + mlp_shift).to(x.dtype))).to(
            x.dtype
        )


class TextRefiner(nn.Module):
    """A small transformer over each prompt alone: token vectors in, token features out (no noise level, no other prompt)."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.text_dim, config.width)
        self.blocks = nn.ModuleList(Stream(config, modulated=False) for _ in range(config.text_depth))

    def forward(self, prompts: Sequence[Float[Tensor, "_ text_dim"]]) -> list[Float[Tensor, "_ width"]]:
        """The features of each prompt; a prompt never sees another one."""
        weight = self.embed.weight
        layout = Layout(tuple((Group(1, len(p), (0, 0, 0)),) for p in prompts))
        position = torch.from_numpy(layout.queries.position).to(weight.device)
        table = rotations(position, split_axes(self.config.head_dim), self.config.theta)
        x = self.embed(torch.cat(list(prompts)).to(weight))
        for block in self.blocks:
            assert isinstance(block, Stream)
            q, k, v = block.project(layer_norm(x).to(x.dtype))
            mixed = attend(rotate(q, table), rotate(k, table), v, layout, "scene")
            x = x + block.out(rearrange(mixed, "tokens heads dim -> tokens (heads dim)"))
            x = x + block.mlp(layer_norm(x).to(x.dtype))
        return list(x.split([len(p) for p in prompts]))


class MMDiT(nn.Module):
    """The native network. `forward` predicts z_0 or v for every video token, see `MMDiTConfig.predicts`."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.config = config
        self.text_refiner = TextRefiner(config)
        self.embed = nn.Linear(config.channels, config.width)
        self.time = nn.Sequential(
            nn.Linear(SINUSOIDS, config.cond_width),
            nn.SiLU(),
            nn.Linear(config.cond_width, config.cond_width),
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.last_modulation = nn.Linear(config.cond_width, 2 * config.width)
        self.head = nn.Linear(config.width, config.channels)
        hidden = config.detail_width
        self.detail_up = nn.Linear(config.width + config.channels, hidden) if hidden else None
        self.detail_down = nn.Linear(hidden, config.channels) if hidden else None
        self.refiner = None
        if config.refiner_width:
            self.refiner = PixelRefiner(
                config.patch,
                config.refiner_width,
                config.refiner_depth,
                config.width,
                config.cond_width,
                config.refiner_moves,
            )
        self.recompute_activations = False

    @torch.no_grad()
    def initialise(self) -> None:
        """Fresh weights from torch's global generator; every residual branch starts closed (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            for stream in block.children():
                assert isinstance(stream, Stream) and stream.modulation is not None
                nn.init.zeros_(stream.modulation.weight)
        for module in (self.last_modulation, self.head, self.detail_down):
            if module is not None:
                nn.init.zeros_(module.weight)
        if self.refiner is not None:
            self.refiner.initialise()

    def encode_text(self, prompts: Sequence[Float[Tensor, "_ text_dim"]]) -> list[Float[Tensor, "_ width"]]:
        """The features of each prompt: `text_refiner`, as a method that a sharded network can be entered by."""
        return self.text_refiner(prompts)

    def condition(self, sigma: Float[Tensor, " groups"]) -> Float[Tensor, "groups cond"]:
        """The embedding of each group's noise level."""
        frequency = torch.exp(torch.arange(SINUSOIDS // 2, device=sigma.device) * (-8.0 / (SINUSOIDS // 2)))
        angle = 1000 * sigma[:, None].float() * frequency
        features = torch.cat([angle.cos(), angle.sin()], 1)
        return self.time(features.to(self.embed.weight.dtype))

    def route(self, layout: Layout, visibility: Visibility, kernel: Kernel) -> Route:
        """Everything the blocks need to know about a layout, on this network's device."""
        device = self.embed.weight.device

        def tensor(column):
            return torch.from_numpy(column).to(device)

        rows = len(layout.queries)
        held = Span(0, rows) if isinstance(kernel, str) else kernel.span(rows)
        if held != Span(0, rows) and (layout.pad or any(layout.past)):
            raise UserError(
                "a sequence with padding or remembered shots can't be split over processes (context parallelism): train "
                "without both, or give --parallel ddp or fsdp"
            )
        num_text, is_text = layout.num_text, layout.queries.is_text
        t0, t1 = (int(is_text[:edge].sum()) for edge in (held.start, held.stop))
        v0, v1 = held.start - t0, min(held.stop - t1, layout.num_video)
        source = layout.interleave[held.slice]
        interleave = tensor(np.where(source < num_text, source - t0, source - num_text - v0 + t1 - t0))
        scatter = torch.empty_like(interleave)
        scatter[interleave] = torch.arange(len(interleave), device=device)
        if layout.pad:  # padding repeats the first row: nothing ever reads it back
            interleave = torch.cat([interleave, interleave.new_zeros(layout.pad)])
        axes = split_axes(self.config.head_dim)
        scenes = layout.queries.scene[: rows - layout.pad][held.slice]
        position = layout.queries.position[held.slice]
        return Route(
            layout=layout,
            visibility=visibility,
            kernel=kernel,
            text_rows=slice(t0, t1),
            video_rows=slice(v0, v1),
            interleave=interleave,
            scatter=scatter,
            group_of_text=tensor(layout.group_of_text[t0:t1]),
            group_of_video=tensor(layout.group_of_video[v0:v1]),
            q_rotation=rotations(tensor(position), axes, self.config.theta),
            k_rotation=rotations(
                tensor(layout.keys.position if any(layout.past) else position), axes, self.config.theta
            ),
            lengths=tuple(int((scenes == s).sum()) for s in range(len(layout.scenes))),
        )

    def forward(
        self,
        z: Float[Tensor, "video channels"],
        text: Float[Tensor, "text width"],
        sigma: Float[Tensor, " groups"],
        layout: Layout,
        visibility: Visibility = "scene",
        past: Sequence[Context] | None = None,
        kernel: Kernel = "prefix",
        keep: list[tuple[Tensor, Tensor]] | None = None,
        features: list[Tensor] | None = None,
        refine: bool = True,
        endings: Mapping[int, Float[Tensor, "rows channels"]] | None = None,
    ) -> Float[Tensor, "video channels"]:
        """The prediction for each row of z.

        text: features from `text_refiner`, the computed groups' prompts joined. sigma: one level a computed group.
        past: a `Context` a scene for layouts with remembered groups. keep: a list that receives every layer's unrotated
        keys and values of the computed tokens. features: a list that receives the video stream after every block.
        refine: False leaves the pixel refiner out. endings: see `shots_before`.
        """
        if len(z) != layout.num_video or len(text) != layout.num_text or len(sigma) != len(layout.groups):
            raise ValueError(
                f"the layout has {layout.num_video} video tokens, {layout.num_text} text tokens and {len(layout.groups)} "
                f"groups; got {len(z)}, {len(text)} and {len(sigma)}"
            )
        if keep is not None and not isinstance(kernel, str):
            raise UserError(
                "keys and values of a sequence that is split over processes (context parallelism) can't be kept for a cache"
            )
        past = past or [Context()] * len(layout.scenes)
        if [len(c.groups) for c in past] != list(layout.past):
            raise ValueError(
                f"the layout has {list(layout.past)} past groups; the contexts {[len(c.groups) for c in past]}"
            )
        own = self.config.depth, self.config.heads, self.config.head_dim
        for context, groups in zip(past, layout.scenes, strict=True):
            if context.groups != groups[: len(context.groups)]:
                raise ValueError("a context holds other groups than the layout's past")
            for memory in context.memories:
                if memory.network != own:
                    raise UserError(
                        f"shot {memory.group.shot} was remembered by another network: (layers, heads, head size) "
                        f"{memory.network}; this one has {own}: make its context again"
                    )
        route = self.route(layout, visibility, kernel)
        cond = self.condition(sigma)
        video = self.embed(z[route.video_rows].to(self.embed.weight.dtype))
        text = text[route.text_rows].to(video.dtype)
        for i, block in enumerate(self.blocks):
            layer_past = [c.layer(i, video) if c.memories else None for c in past]
            if self.recompute_activations and torch.is_grad_enabled():
                text, video, k, v = checkpoint(
                    block, text, video, cond, route, layer_past, use_reentrant=False
                )
            else:
                text, video, k, v = block(text, video, cond, route, layer_past)
            if keep is not None:
                keep.append((k, v))
            if features is not None:
                features.append(video)
        shift, scale = (
            self.last_modulation(F.silu(cond)).index_select(0, route.group_of_video).chunk(2, dim=-1)
        )
        last = (layer_norm(video) * (1 + scale) + shift).to(video.dtype)
        out = self.head(last)
        if self.detail_up is not None and self.detail_down is not None:
            noisy = z[route.video_rows].to(last.dtype)
            out = out + self.detail_down(F.silu(self.detail_up(torch.cat([last, noisy], 1))))
        before: list[Before | None] = [None] * len(layout.groups)
        if refine and self.config.goes_on:
            before = shots_before(layout, visibility, sigma, past, endings)
        chosen = self._chosen(sigma, layout, before)
        refiner = self.refiner if refine and any(chosen) else None
        told = out[:, :0] if refiner is None else refiner.tell(last)
        if not isinstance(kernel, str):
            joined = kernel.join(torch.cat([out, told], 1), ~layout.queries.is_text)
            out, told = joined.split([out.shape[1], told.shape[1]], dim=1)
        if refiner is None:
            return out + self._nothing() if refine else out
        if isinstance(kernel, str):
            return refiner(out, z.to(out.dtype), told, cond, sigma, layout, chosen, before)
        # Every process refines the whole sequence.
        weights: dict[str, Tensor] = {name: kernel.shared(p) for name, p in refiner.named_parameters()}
        inputs = (out, z.to(out.dtype), told, kernel.shared(cond), sigma, layout, chosen, before)
        return functional_call(refiner, weights, inputs)

    def _nothing(self) -> Tensor | float:
        """0, of which every weight of a refiner that learns has a gradient, so that all processes of a run have gradients of the
        same weights; those that store slices of weights (FSDP2) join what is there by its place."""
        learn = [] if self.refiner is None else [p for p in self.refiner.parameters() if p.requires_grad]
        if not learn or not torch.is_grad_enabled():
            return 0.0
        return 0.0 * sum((p.sum() for p in learn), torch.zeros((), device=learn[0].device))

    def _chosen(self, sigma: Tensor, layout: Layout, before: Sequence[Before | None]) -> list[bool]:
        """Which groups are corrected: shots at low noise levels, and those that go on from one at a low level."""
        most = self.config.refines_below
        own = zip(sigma.tolist(), layout.groups, before, strict=True)
        return [g.shot != GLOBAL and (s <= most or (b is not None and b.level <= most)) for s, g, b in own]


def memories_from(
    kept: Sequence[tuple[Tensor, Tensor]],
    layout: Layout,
    sigma: Float[Tensor, " groups"],
    clean: Float[Tensor, "video channels"] | None = None,
) -> list[list[Memory]]:
    """Splits what `forward(keep=...)` collected into one list of memories a scene.

    clean: what every shot is taken for, where the last picture of each is to be remembered, too.
    """
    keys, values = (torch.stack([pair[i] for pair in kept]) for i in (0, 1))
    out: list[list[Memory]] = [[] for _ in layout.scenes]
    scene_of_group = [
        s for s, (groups, n) in enumerate(zip(layout.scenes, layout.past, strict=True)) for _ in groups[n:]
    ]
    for i, (group, span) in enumerate(zip(layout.groups, layout.group_spans, strict=True)):
        kv = keys[:, span.slice].clone(), values[:, span.slice].clone()
        last = None
        if clean is not None and group.shot != GLOBAL:
            last = clean[layout.last_frame(i)].clone()
        out[scene_of_group[i]].append(Memory(group, float(sigma[i]), *kv, last=last))
    return out

"""The native network once more, slowly and plainly: an oracle that shares no code with longshot.

It reads weights by name from a state_dict and walks over scenes, groups, layers and heads with loops, einsum, a softmax written
out and rotary positions as complex numbers. No packing, no masks, no caches. Everything is float64 but two tables that the
network keeps in fp32 on purpose, and they are rounded here too: the rotations and the sinusoids of the noise level.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """One group: a prompt's token vectors, a video [T, H, W, channels], and its noise level. Shot 0 is the global prompt."""

    shot: int
    prompt: Tensor
    video: Tensor
    sigma: float


@dataclass(frozen=True)
class Sizes:
    """What can't be read off the weights."""

    heads: int
    theta: float
    rope: str


class Reference:
    """The oracle for one state_dict."""

    def __init__(self, state: dict[str, Tensor], sizes: Sizes):
        self.state, self.sizes = state, sizes
        self.depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
        self.text_depth = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("text_refiner.blocks."))

    # -- small parts ----------------------------------------------------------------------------------------------------
    def linear(self, name: str, x: Tensor) -> Tensor:
        return torch.einsum("oi,...i->...o", self.state[f"{name}.weight"], x) + self.state[f"{name}.bias"]

    def rms(self, name: str, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * self.state[f"{name}.weight"]

    @staticmethod
    def standard(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-6)

    @staticmethod
    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    @staticmethod
    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.down", self.gelu(self.linear(f"{name}.up", x)))

    # -- positions ------------------------------------------------------------------------------------------------------
    def coordinates(self, pairs: list[Pair]) -> list[list[tuple[int, int, int]]]:
        """The (t, h, w) of every token of every group of a scene, text first."""
        out, offset = [], 0
        for pair in pairs:
            (T, H, W, _), words = pair.video.shape, len(pair.prompt)
            places = [(f, y, x) for f in range(T) for y in range(H) for x in range(W)]
            if self.sizes.rope == "aligned":
                text = [(offset - j, -j, -j) for j in range(words, 0, -1)]
                video = [(offset + f, y, x) for f, y, x in places]
                offset += T + 8
            elif self.sizes.rope == "interleaved":
                text = [(offset + j,) * 3 for j in range(words)]
                video = [tuple(offset + words + c for c in place) for place in places]
                offset = 1 + max(max(point) for point in text + video)
            else:
                text = [(offset,) * 3 for _ in range(words)]
                video = [tuple(offset + c for c in place) for place in places]
                offset += max(T, H, W)
            out.append(text + video)
        return out

    def turn(self, x: Tensor, points: list[tuple[int, int, int]]) -> Tensor:
        """Rotates x [tokens, heads, dim]: the first half of a head is real, the second imaginary."""
        dim = x.shape[-1]
        side = dim // 6 * 2
        axes = [dim - 2 * side, side, side]
        angles = [
            [p[a] * self.sizes.theta ** (-2 * i / n) for a, n in enumerate(axes) for i in range(n // 2)]
            for p in points
        ]
        angle = torch.tensor(angles, dtype=torch.float64).reshape(len(points), dim // 2)
        circle = torch.complex(angle.cos().float().double(), angle.sin().float().double())
        turned = torch.complex(x[..., : dim // 2], x[..., dim // 2 :]) * circle[:, None]
        return torch.cat([turned.real, turned.imag], -1)

    # -- attention ------------------------------------------------------------------------------------------------------
    def qkv(self, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.linear(f"{name}.qkv", x).reshape(len(x), 3, self.sizes.heads, -1).unbind(1)
        return self.rms(f"{name}.q_norm", q), self.rms(f"{name}.k_norm", k), v

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        score = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        weight = torch.exp(score - score.amax(-1, keepdim=True).detach())
        weight = weight / weight.sum(-1, keepdim=True)
        return torch.einsum("hqk,khd->qhd", weight, v).flatten(1)

    # -- the network ----------------------------------------------------------------------------------------------------
    def text(self, vectors: Tensor) -> Tensor:
        """The features of one prompt."""
        x = self.linear("text_refiner.embed", vectors.double())
        points = [(j, j, j) for j in range(len(x))]
        for i in range(self.text_depth):
            name = f"text_refiner.blocks.{i}"
            q, k, v = self.qkv(name, self.standard(x))
            x = x + self.linear(f"{name}.out", self.attention(self.turn(q, points), self.turn(k, points), v))
            x = x + self.mlp(name, self.standard(x))
        return x

    def noise_level(self, sigma: float) -> Tensor:
        """The embedding of one noise level, sinusoids in fp32."""
        frequency = torch.exp(-8.0 * torch.arange(128, dtype=torch.float32) / 128)
        angle = (torch.tensor(sigma, dtype=torch.float32) * 1000) * frequency
        features = torch.cat([torch.cos(angle), torch.sin(angle)]).double()
        return self.linear("time.2", self.silu(self.linear("time.0", features)))

    def scene(self, pairs: list[Pair], visibility: str) -> list[Tensor]:
        """The prediction [T, H, W, channels] for every group of a scene."""
        points = self.coordinates(pairs)
        embedding = [self.noise_level(p.sigma) for p in pairs]
        text = [self.text(p.prompt) for p in pairs]
        video = [self.linear("embed", p.video.double().flatten(0, 2)) for p in pairs]
        for i in range(self.depth):
            table = {
                (m, g): self.linear(f"blocks.{i}.{m}.modulation", self.silu(embedding[g])).reshape(6, -1)
                for m in ("text", "video")
                for g in range(len(pairs))
            }
            queries, keys, values = [], [], []
            for g in range(len(pairs)):
                parts = []
                for m, x in (("text", text[g]), ("video", video[g])):
                    shift, scale = table[m, g][0], table[m, g][1]
                    parts.append(self.qkv(f"blocks.{i}.{m}", self.standard(x) * (1 + scale) + shift))
                q, k, v = (torch.cat([parts[0][j], parts[1][j]]) for j in range(3))
                queries.append(self.turn(q, points[g]))
                keys.append(self.turn(k, points[g]))
                values.append(v)
            for g, pair in enumerate(pairs):
                seen = [j for j, other in enumerate(pairs) if sees(pair.shot, other.shot, visibility)]
                mixed = self.attention(
                    queries[g], torch.cat([keys[j] for j in seen]), torch.cat([values[j] for j in seen])
                )
                halves = mixed[: len(text[g])], mixed[len(text[g]) :]
                for m, stream, own in (("text", text, halves[0]), ("video", video, halves[1])):
                    _, _, gate, mlp_shift, mlp_scale, mlp_gate = table[m, g]
                    x = stream[g] + gate * self.linear(f"blocks.{i}.{m}.out", own)
                    inner = self.standard(x) * (1 + mlp_scale) + mlp_shift
                    stream[g] = x + mlp_gate * self.mlp(f"blocks.{i}.{m}", inner)
        out = []
        for g, pair in enumerate(pairs):
            shift, scale = self.linear("last_modulation", self.silu(embedding[g])).chunk(2)
            features = self.standard(video[g]) * (1 + scale) + shift
            row = self.linear("head", features)
            if "detail_up.weight" in self.state:
                beside = torch.cat([features, pair.video.double().flatten(0, 2)], 1)
                row = row + self.linear("detail_down", self.silu(self.linear("detail_up", beside)))
            out.append(row.reshape(*pair.video.shape[:3], -1))
        return out


def sees(query: int, key: int, visibility: str) -> bool:
    return {"scene": True, "causal": key <= query, "shot": key == query}[visibility]

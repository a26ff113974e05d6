"""What a model remembers of finished shots: keys and values of every layer, one entry a group (LCT sec. 3.3), and for networks
whose pixels go on from those of the shot before, its last picture.

Keys are kept *before* rotation. A `Layout` hands out positions, so a chosen subset of the history can be placed without gaps,
and a window that slides keeps the coordinates the model was trained on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longshot.errors import UserError
from longshot.layout import Group
from longshot.tensors import save_tensors

FORMAT = "longshot-context-1"

CacheDtype = Literal["own", "fp32", "bf16", "fp8"]
"""How keys and values are kept: as the network computes them, or narrower. fp8 is e4m3 with one scale a layer and head."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Memory:
    """One remembered group: its place in the scene, its unrotated keys and values, stacked over layers, and its last picture.

    scales: for keys and values kept in fp8, what each layer's heads were divided by; None for wider ones. last: what its last
    token frame was taken for, for networks that go on from pixels (`refine.py`).
    """

    group: Group
    sigma: float  # the noise level at which it was read (t_c)
    keys: Float[Tensor, "layers tokens heads dim"]
    values: Float[Tensor, "layers tokens heads dim"]
    scales: Float[Tensor, "2 layers heads"] | None = None
    last: Float[Tensor, "rows channels"] | None = None

    @property
    def network(self) -> tuple[int, int, int]:
        """The sizes of the network that remembered this group: layers, heads, head dimension."""
        layers, _, heads, dim = self.keys.shape
        return layers, heads, dim

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.keys, self.values, self.scales, self.last) if x is not None)

    def stored(self, dtype: CacheDtype, device: torch.device | str | None = None) -> "Memory":
        """This memory, kept in a dtype and on a device; what is narrower already stays as it is."""
        wanted, memory = DTYPES.get(dtype), self
        if wanted is not None and wanted.itemsize < self.keys.dtype.itemsize:
            if wanted.itemsize > 1:
                memory = replace(self, keys=self.keys.to(wanted), values=self.values.to(wanted))
            else:
                memory = self._in_fp8()
        if device is None or torch.device(device) == memory.keys.device:
            return memory
        moved = (memory.keys.to(device), memory.values.to(device))
        scales = None if memory.scales is None else memory.scales.to(device)
        last = None if memory.last is None else memory.last.to(device)
        return replace(memory, keys=moved[0], values=moved[1], scales=scales, last=last)

    def _in_fp8(self) -> "Memory":
        narrow, scales = [], []
        for x in (self.keys, self.values):
            peak = x.float().abs().amax((1, 3)) if x.shape[1] else x.new_zeros(x.shape[0], x.shape[2])
            scale = (peak / torch.finfo(torch.float8_e4m3fn).max).clamp(min=1e-12).float()
            narrow.append((x.float() / scale[:, None, :, None]).to(torch.float8_e4m3fn))
            scales.append(scale)
        return replace(self, keys=narrow[0], values=narrow[1], scales=torch.stack(scales))

    def layer(self, index: int, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values [tokens, heads, dim] of one layer. They travel as they are kept, and are widened where they arrive.

        like: whose device and dtype they get; without it, where they lie and, from fp8, in fp32.
        """
        device = self.keys.device if like is None else like.device
        out = []
        for i, x in enumerate((self.keys, self.values)):
            one = x[index].to(device)
            if self.scales is not None:
                one = one.float() * self.scales[i, index].to(device)[:, None]
            out.append(one if like is None else one.to(like.dtype))
        return out[0], out[1]


@dataclass(frozen=True)
class Context:
    """The remembered groups of one scene, in story order. A value: every operation returns a new one."""

    memories: tuple[Memory, ...] = ()

    @property
    def groups(self) -> tuple[Group, ...]:
        return tuple(m.group for m in self.memories)

    @property
    def shots(self) -> tuple[int, ...]:
        return tuple(g.shot for g in self.groups)

    @property
    def nbytes(self) -> int:
        return sum(m.nbytes for m in self.memories)

    def extended(self, memories: Iterable[Memory]) -> "Context":
        """This context with more groups; one that is there already is replaced."""
        merged = {m.group.shot: m for m in (*self.memories, *memories)}
        return Context(tuple(merged[shot] for shot in sorted(merged)))

    def select(self, shots: Iterable[int]) -> "Context":
        """Only the groups with these shot ids. Raises KeyError for one that isn't remembered."""
        wanted = set(shots)
        if missing := sorted(wanted - set(self.shots)):
            raise KeyError(f"not in the context: shots {missing}; it holds {list(self.shots)}")
        return Context(tuple(m for m in self.memories if m.group.shot in wanted))

    def before(self, shot: int) -> "Context":
        """The groups that come before a shot: what is left when the story branches there."""
        return Context(tuple(m for m in self.memories if m.group.shot < shot))

    def layer(self, index: int, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, all groups joined; see `Memory.layer`. Needs at least one group."""
        pairs = [m.layer(index, like) for m in self.memories]
        return torch.cat([k for k, _ in pairs]), torch.cat([v for _, v in pairs])

    def stored(self, dtype: CacheDtype, device: torch.device | str | None = None) -> "Context":
        """This context with every memory kept in a dtype and on a device."""
        return Context(tuple(m.stored(dtype, device) for m in self.memories))

    def save(self, path: Path) -> None:
        """Writes a safetensors file that `load` reads back exactly; finishes or leaves the old file."""
        tensors, meta = {}, {"format": FORMAT}
        for m in self.memories:
            g = m.group
            place = (g.at, g.phase) if g.phase else () if g.at is None else (g.at,)
            meta[str(g.shot)] = " ".join(map(repr, (g.text, *g.grid, m.sigma, *place)))
            tensors |= {f"{g.shot}.keys": m.keys.contiguous(), f"{g.shot}.values": m.values.contiguous()}
            tensors |= {} if m.scales is None else {f"{g.shot}.scales": m.scales.contiguous()}
            tensors |= {} if m.last is None else {f"{g.shot}.last": m.last.contiguous()}
        save_tensors(path, tensors, meta)

    @classmethod
    def load(cls, path: Path) -> "Context":
        """Reads what `save` wrote. Raises UserError when the file is something else."""
        try:
            with safe_open(path, "pt") as file:
                meta = dict(file.metadata() or {})
                if meta.pop("format", None) != FORMAT:
                    raise UserError(f"{path}: not a saved context")
                memories = tuple(_memory(file, shot, meta[str(shot)]) for shot in sorted(map(int, meta)))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: not a readable saved context ({error})") from error
        if len({m.network for m in memories}) > 1:
            raise UserError(f"{path}: not a saved context: its shots were remembered by different networks")
        return cls(memories)


def _memory(file, shot: int, line: str) -> Memory:
    text, t, h, w, sigma, *place = line.split()
    at = int(place[0]) if place and place[0] != "None" else None
    group = Group(shot, int(text), (int(t), int(h), int(w)), at, float(place[1]) if place[1:] else 0.0)
    # Copied: a tensor from safetensors is a window on the file, and a file cut short under it would kill the process.
    keys, values = (file.get_tensor(f"{shot}.{name}").clone() for name in ("keys", "values"))
    if keys.ndim != 4 or keys.shape[1] != group.tokens or values.shape != keys.shape:
        raise ValueError(
            f"shot {shot} has {group.tokens} tokens, keys {list(keys.shape)} and values {list(values.shape)}"
        )
    scales = file.get_tensor(f"{shot}.scales").clone() if f"{shot}.scales" in file.keys() else None  # noqa: SIM118
    layers, _, heads, _ = keys.shape
    is_narrow = keys.dtype == torch.float8_e4m3fn
    if keys.dtype != values.dtype or is_narrow != (scales is not None):
        raise ValueError(
            f"shot {shot} has {keys.dtype} keys, {values.dtype} values and scales {scales is not None}"
        )
    if scales is not None and scales.shape != (2, layers, heads):
        raise ValueError(f"shot {shot} has scales of shape {list(scales.shape)}")
    last = file.get_tensor(f"{shot}.last").clone() if f"{shot}.last" in file.keys() else None  # noqa: SIM118
    if last is not None and (last.ndim != 2 or len(last) != group.frame_tokens):
        raise ValueError(f"shot {shot} has a grid of {group.grid} and a last picture {list(last.shape)}")
    return Memory(group, float(sigma), keys, values, scales, last)


def join_past(
    new: Float[Tensor, "queries heads dim"], past: Sequence[Tensor | None], lengths: Sequence[int]
) -> Float[Tensor, "keys heads dim"]:
    """Each scene's remembered rows followed by its new ones, in the order of `Layout.keys`.

    lengths: how many of the new rows belong to each scene; what is left over (padding) goes last.
    """
    pieces, start = [], 0
    for rows, length in zip(past, lengths, strict=True):
        pieces += [rows] if rows is not None else []
        pieces.append(new[start : start + length])
        start += length
    return torch.cat([*pieces, new[start:]])

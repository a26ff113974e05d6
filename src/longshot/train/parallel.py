"""Training on several processes: functions over a model that doesn't know.

Three ways, which add up. Each leaves the loss as it is and gradients that are parts of a *sum*, so they combine freely:
- `Ranks`: every process has the whole network and some of a step's scenes (data parallel);
- `shard_parameters`: every process stores a slice of each weight and gathers a block's weights when it needs them (FSDP2);
- `Ulysses`: every process has some rows of each scene's token sequence outside attention, and some heads inside it.

`longshot train --parallel` names them, see `Parallel`; `share_out` sets a base up.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from longshot.bases.base import Base
from longshot.bases.native import NativeBase
from longshot.errors import UserError
from longshot.layout import Layout, Span, Visibility
from longshot.model.attention import Kernel, attend

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


Parallel = Literal["ddp", "fsdp", "ulysses", "fsdp+ulysses"]
"""ddp: each process has all weights and its own scenes. fsdp: its own scenes, and a slice of the weights. ulysses: all weights
and a part of every scene. fsdp+ulysses: a slice of the weights and a part of every scene."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that share a run. The default is a run of one process."""

    rank: int = 0
    count: int = 1

    @classmethod
    @contextmanager
    def from_torchrun(cls) -> Generator["Ranks"]:
        """Joins the process group that `torchrun` describes, or stays alone when it doesn't.

        What ends without an error leaves the group. A process that ends inside it may abort after all its work is done, since
        threads of gloo outlive the interpreter. After an error nobody waits for the others, whom torchrun stops.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield cls()
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # Gradients lie on the device, but counts of shots on the CPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        yield cls(dist.get_rank(), dist.get_world_size())
        dist.destroy_process_group()

    def named(self, name: str) -> str:
        """A file name for this rank: rank 0 keeps the plain one."""
        return name if self.rank == 0 else f"rank{self.rank}.{name}"

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, value: bool) -> bool:
        """Whether it is true on any rank."""
        return value if self.count == 1 else bool(self.sum(torch.tensor(float(value))).item())

    def sum_gradients(self, network: nn.Module) -> None:
        """Replaces every gradient by its sum over ranks, in one message. Those of sharded weights are sums already."""
        if self.count > 1:
            sum_gradients(network)


def share_out(base: Base, parallel: Parallel, ranks: Ranks) -> Ranks:
    """Makes a base run on all processes in a way, and returns this process's place among those that have scenes of their own.

    Raises UserError for a base that can't be run so.
    """
    if ranks.count == 1:
        return ranks
    if "fsdp" in parallel:
        shard_parameters(getattr(base, "network"))  # noqa: B009 - every base has one
    if "ulysses" not in parallel:
        return ranks
    if not isinstance(base, NativeBase):
        raise UserError(
            f"--parallel {parallel}: splits the one sequence of a native base; {base.spec.name} has its shots on the batch "
            "axis. Give --parallel fsdp"
        )
    if (heads := base.config.network.heads) % ranks.count:
        raise UserError(
            f"--parallel {parallel}: {heads} heads can't be shared by {ranks.count} processes; use a number that divides them"
        )
    base.kernel = Ulysses()
    return Ranks()


def sum_gradients(network: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Replaces every gradient by its sum over a process group, in one message. Slices of sharded weights are left alone.

    A weight that took no part in this process's examples counts 0 here; one that took part nowhere keeps no gradient.
    """
    own = [p for p in network.parameters() if p.requires_grad and local(p) is p]
    if not own:
        return
    took_part = torch.tensor([p.grad is not None for p in own]).to(own[0])
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
    flat = torch.cat([took_part, *(g.flatten() for g in grads)])
    dist.all_reduce(flat, group=group)
    took_part, *sums = flat.split([len(own), *(g.numel() for g in grads)])
    for p, g, summed, anywhere in zip(own, grads, sums, took_part.tolist(), strict=True):
        p.grad = g.copy_(summed.view_as(g)) if anywhere else None


# -- sharded weights ----------------------------------------------------------------------------------------------------
def shard_parameters(
    network: nn.Module, mesh: "DeviceMesh | None" = None, dtype: torch.dtype | None = None
) -> None:
    """Makes every process of the mesh (all, by default) store a slice of each weight (FSDP2), block by block.

    Gradients become slices of the sum over processes, so each one's loss is its share of the whole. dtype: what weights are
    gathered in; gradients are then summed in fp32.
    """
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    # Noise levels must not be rounded to bf16 on the way in: 1000 sigma is the argument of a cosine.
    policy = MixedPrecisionPolicy(dtype, torch.float32 if dtype else None, cast_forward_inputs=False)
    children = dict(network.named_children())
    blocks = children.get("blocks", children.get("transformer_blocks"))
    assert isinstance(blocks, nn.ModuleList)
    refiner = [children["text_refiner"]] if "text_refiner" in children else []
    for module in (*refiner, *blocks, network):
        fully_shard(module, mesh=mesh, mp_policy=policy)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)  # FSDP2 would take the mean over processes
        module.set_force_sum_reduction_for_comms(True)
    if refiner:
        register_fsdp_forward_method(network, "encode_text")


def whole(tensor: Tensor) -> Tensor:
    """A tensor with its slices from all processes joined; every one of them must ask. A plain tensor comes back as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's slice of a tensor. A plain tensor comes back as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sliced(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, as every process has it, cut up as another one is: the inverse of `whole`."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    tensor = tensor.to(like.device, copy=True)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def clip_gradients(modules: nn.Module, most: float) -> float:
    """Scales all gradients down to a norm over all weights, sharded or not; returns the norm before."""
    parameters = [p for p in modules.parameters() if p.grad is not None]
    if all(local(p) is p for p in parameters):
        return float(nn.utils.clip_grad_norm_(parameters, most))
    squares = torch.zeros(2)
    for p in parameters:
        assert p.grad is not None
        squares[int(local(p) is p)] += local(p.grad).square().sum().cpu()
    slices = squares[0].clone()
    dist.all_reduce(slices)
    norm = float((slices + squares[1]).sqrt())
    for p in parameters:
        assert p.grad is not None
        local(p.grad).mul_(min(most / (norm + 1e-6), 1.0))
    return norm


# -- context parallelism ------------------------------------------------------------------------------------------------
class _Exchange(torch.autograd.Function):
    """All-to-all of rows: sends `sends[r]` rows to process r and receives `receives[r]` from it. Its gradient goes back."""

    @staticmethod
    def forward(
        ctx, x: Tensor, sends: list[int], receives: list[int], group: dist.ProcessGroup | None
    ) -> Tensor:
        ctx.way_back = receives, sends, group
        out = x.new_empty(sum(receives), *x.shape[1:])
        dist.all_to_all_single(out, x.contiguous(), receives, sends, group=group)
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return _Exchange.apply(grads[0], *ctx.way_back), None, None, None


class _Join(torch.autograd.Function):
    """All processes' rows, in order. The loss over them is computed on each, so each takes its own rows of the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, lengths: list[int], rank: int, group: dist.ProcessGroup | None) -> Tensor:
        ctx.own = slice(sum(lengths[:rank]), sum(lengths[: rank + 1]))
        out = x.new_empty(sum(lengths), *x.shape[1:])
        copies = x.repeat(len(lengths), *[1] * (x.ndim - 1))
        dist.all_to_all_single(out, copies, lengths, [len(x)] * len(lengths), group=group)
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return grads[0][ctx.own], None, None, None


class _Share(torch.autograd.Function):
    """The same tensor, whose gradient is divided by a number of processes."""

    @staticmethod
    def forward(ctx, x: Tensor, count: int) -> Tensor:
        ctx.count = count
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return grads[0] / ctx.count, None


@dataclass(frozen=True)
class Ulysses:
    """Context parallelism as an attention kernel (DeepSpeed-Ulysses): `base.kernel = Ulysses(group)`, and nothing else.

    Outside attention each process computes an equal run of the packed sequence's rows; inside, all rows of its share of the
    heads, through two all-to-alls, so `inner` sees whole scenes and each of its blocks stays free of masks. A network so run
    still takes whole inputs and returns whole outputs. Every process must be given the same ones; its gradients are the part
    that flows through its own rows, and their sum over the group is the gradient (`sum_gradients`).
    """

    group: dist.ProcessGroup | None = None
    inner: Kernel = "prefix"

    @cached_property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @cached_property
    def count(self) -> int:
        return dist.get_world_size(self.group)

    def spans(self, rows: int) -> list[Span]:
        """The rows of each process; their numbers differ by one at most."""
        return [Span(a, b) for a, b in pairwise(rows * r // self.count for r in range(self.count + 1))]

    def span(self, rows: int) -> Span:
        return self.spans(rows)[self.rank]

    def attend(
        self,
        q: Float[Tensor, "rows heads dim"],
        k: Float[Tensor, "rows heads dim"],
        v: Float[Tensor, "rows heads dim"],
        layout: Layout,
        visibility: Visibility,
    ) -> Float[Tensor, "rows heads dim"]:
        """Attention for this process's rows. Raises UserError when the heads can't be shared out evenly."""
        if q.shape[1] % self.count:
            raise UserError(
                f"{q.shape[1]} heads can't be shared by {self.count} context-parallel processes; use a number that divides them"
            )
        own = [len(q)] * self.count
        each = [span.stop - span.start for span in self.spans(len(layout.queries))]
        packed = rearrange(
            torch.stack([q, k, v]),
            "qkv rows (ranks heads) dim -> (ranks rows) qkv heads dim",
            ranks=self.count,
        )
        all_rows = _Exchange.apply(packed, own, each, self.group)
        out = attend(*all_rows.unbind(1), layout, visibility, self.inner)
        back = _Exchange.apply(out, each, own, self.group)
        return rearrange(back, "(ranks rows) heads dim -> rows (ranks heads) dim", ranks=self.count)

    def join(
        self, rows: Float[Tensor, "rows channels"], is_wanted: Bool[np.ndarray, " tokens"]
    ) -> Float[Tensor, "wanted channels"]:
        lengths = [int(is_wanted[span.slice].sum()) for span in self.spans(len(is_wanted))]
        return _Join.apply(rows, lengths, self.rank, self.group)

    def shared(self, x: Tensor) -> Tensor:
        return _Share.apply(x, self.count)

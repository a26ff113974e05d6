"""Training on several processes: functions over a model that doesn't know."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that share a run. The default is a run of one process."""

    rank: int = 0
    count: int = 1

    @classmethod
    def from_torchrun(cls) -> "Ranks":
        """Joins the process group that `torchrun` describes, or stays alone when it doesn't."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    def named(self, name: str) -> str:
        """A file name for this rank: rank 0 keeps the plain one."""
        return name if self.rank == 0 else f"rank{self.rank}.{name}"

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def sum_gradients(self, network: nn.Module) -> None:
        """Replaces every gradient by its sum over ranks, in one message."""
        if self.count == 1:
            return
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for g, summed in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(summed.view_as(g))

"""What each of two processes does in `test_parallel.py`: a file of its own, so that a process starts without pytest."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from longshot.bases.native import TINY_SPEC, NativeBase, NativeConfig
from longshot.bases.tune import LoraConfig
from longshot.errors import UserError
from longshot.flow import per_token, velocity_from_clean
from longshot.layout import GLOBAL, VISIBILITIES, Visibility
from longshot.model.mmdit import MMDiTConfig
from longshot.train.config import StageConfig
from longshot.train.loop import Trainer, batch_loss, collate, draw_noise
from longshot.train.parallel import Parallel, Ranks, Ulysses, shard_parameters, sum_gradients, whole
from longshot.train.puppets import PuppetSteps, StreamConfig

STREAM = StreamConfig(scenes=3, single=0.3, shots=(2, 3), frames=(4, 8), drop_global=0.3)
STAGE = StageConfig("test", steps=4, stream=STREAM, warmup=1, lr=1e-3)
REFINING = replace(STAGE, learns="refiner", guessed=0.5, worn=0.5, lr=2e-4)
STEP = 3

Result = dict[str, Tensor]  # "loss", and the gradient of every weight


class DoubleBase(NativeBase):
    """The native base in float64, so that rounding can't hide a missing gradient."""

    def velocity(self, z, text, sigma, layout, visibility, past=None, **more):
        out = self.network(z, text, sigma, layout, visibility, past, self.kernel, **more)
        return velocity_from_clean(z, out, per_token(sigma, layout).double())


def small_base(dtype: torch.dtype = torch.float64, heads: int = 4) -> NativeBase:
    """A small network in which no gate is closed."""
    sizes = MMDiTConfig(
        TINY_SPEC.channels,
        128,
        width=48,
        depth=2,
        heads=heads,
        cond_width=12,
        detail_width=16,
        patch=TINY_SPEC.stride,
        refiner_width=8,
        refiner_moves=((0, 0, 0), (1, -1, 0)),
        refines_below=0.6,  # not all shots ask
    )
    base = (DoubleBase if dtype == torch.float64 else NativeBase).fresh(
        NativeConfig(replace(TINY_SPEC, name="small"), sizes)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in base.network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    base.network.to(dtype)
    return base


def loss_and_gradients(
    base: NativeBase, visibility: Visibility = "scene", ranks: Ranks | None = None
) -> Result:
    """This process's part of the loss and gradients of one step: that of its share of the step's scenes."""
    ranks = ranks or Ranks()
    batch = collate(base, PuppetSteps(STREAM, STAGE.seed, ranks.rank, ranks.count)[STEP])
    indices = range(ranks.rank, STREAM.scenes, ranks.count)
    sigma, eps = draw_noise(batch.layout, base.spec.channels, STAGE, STEP, indices)
    loss = batch_loss(base, batch, sigma, eps, visibility).flow
    num_shots = torch.tensor(float(sum(g.shot != GLOBAL for g in batch.layout.groups)))
    loss = loss * (num_shots / ranks.sum(num_shots))
    loss.backward()
    ranks.sum_gradients(base.network)
    return {"loss": ranks.sum(loss.detach())} | gradients(base)


def gradients(base: NativeBase) -> Result:
    return {name: whole(p.grad) for name, p in base.network.named_parameters() if p.grad is not None}


# -- what runs on two ranks ---------------------------------------------------------------------------------------------
def data_parallel(rank: int) -> Result:
    return loss_and_gradients(small_base(), ranks=Ranks(rank, 2))


def sharded(rank: int) -> Result:
    base = small_base()
    shard_parameters(base.network)
    assert base.network.head.weight.to_local().numel() < base.network.head.weight.numel()
    ranks = Ranks(rank, 2)
    ranks_without_sum = _Shared(ranks.rank, ranks.count)
    return loss_and_gradients(base, ranks=ranks_without_sum)


class _Shared(Ranks):
    """Ranks whose gradients are summed already, by FSDP."""

    def sum_gradients(self, network) -> None:
        pass


def context_parallel(visibility: Visibility, inner: str, recompute: bool = False) -> Callable[[int], Result]:
    def job(rank: int) -> Result:
        base = small_base()
        base.kernel = Ulysses(inner=inner)
        base.network.recompute_activations = recompute
        result = loss_and_gradients(base, visibility)
        sum_gradients(base.network)
        return {"loss": result["loss"]} | gradients(base)

    return job


def context_parallel_sharded(rank: int) -> Result:
    base = small_base()
    base.kernel = Ulysses()
    shard_parameters(base.network)
    return loss_and_gradients(base, "causal")


def some_take_no_part(rank: int) -> Result:
    """Gradients of 1 for each process that uses a weight: both use `both`, the second uses `second`, nobody `nobody`."""
    network = torch.nn.ParameterDict({name: torch.zeros(3) for name in ("both", "second", "nobody")})
    used = ("both", "second") if rank else ("both",)
    sum((network[name].sum() for name in used), torch.zeros(())).backward()
    sum_gradients(network)
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def three_heads(rank: int) -> Result:
    base = small_base(heads=3)
    base.kernel = Ulysses()
    try:
        loss_and_gradients(base)
    except UserError as error:
        return {"message": torch.tensor(list(str(error).encode()))}
    return {}


def trainer(
    folder: Path, parallel: Parallel = "ddp", lora: int = 0, config: StageConfig = STAGE
) -> Callable[[int], Result]:
    """Two steps of a run in `folder / parallel` (a refiner's beside it); what a rank then has of the weights, joined."""

    def job(rank: int) -> Result:
        name = parallel if config.learns == "transformer" else f"{config.learns} {parallel}"
        out, low_rank = folder / f"{name}{lora or ''}", LoraConfig(lora) if lora else None
        made = Trainer(small_base(torch.float32), config, out, Ranks(rank, 2), low_rank, parallel)
        made.run(workers=0, until=2)
        return {name: whole(p.detach()) for name, p in made.network.named_parameters()}

    return job


def resumed(folder: Path, parallel: Parallel) -> Callable[[int], Result]:
    """The end of the run that one process began in `folder / one`."""

    def job(rank: int) -> Result:
        if rank == 0:
            shutil.copytree(folder / "one", folder / f"one, {parallel}")
        dist.barrier()
        made = Trainer(
            small_base(torch.float32), STAGE, folder / f"one, {parallel}", Ranks(rank, 2), None, parallel
        )
        assert made.step == 2
        made.run(workers=0)
        return {name: whole(p.detach()) for name, p in made.network.named_parameters()}

    return job


def main(rank: int, folder: Path, port: int) -> None:
    """Runs every job as one of two ranks that torchrun would describe so, and saves what it returned, and, last, whether the
    processes had parted."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    jobs: dict[str, Callable[[int], Result]] = {
        "data": data_parallel,
        "sharded": sharded,
        "context sharded": context_parallel_sharded,
        "context recomputed": context_parallel("scene", "prefix", recompute=True),
        "three heads": three_heads,
        "some take no part": some_take_no_part,
        "trainer": trainer(folder),
        "trainer, lora": trainer(folder, "fsdp", lora=2),
    }
    ways: tuple[Parallel, ...] = ("fsdp", "ulysses", "fsdp+ulysses")
    jobs |= {f"trainer, {way}": trainer(folder, way) for way in ways}
    jobs |= {f"refiner, {way}": trainer(folder, way, config=REFINING) for way in ("ddp", *ways)}
    jobs |= {f"resumed, {way}": resumed(folder, way) for way in ways}
    jobs |= {f"context {v}": context_parallel(v, "prefix") for v in VISIBILITIES}
    jobs["context dense"] = context_parallel("causal", "dense")
    with Ranks.from_torchrun() as ranks:
        assert ranks == Ranks(rank, 2)
        torch.save({name: job(rank) for name, job in jobs.items()}, folder / f"{rank}.pt")
    (folder / f"{rank} parted").write_text(str(not dist.is_initialized()))

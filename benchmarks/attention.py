"""Context-causal attention over a scene, three ways: a loop over shots with prefix keys, a dense boolean mask, and flex.

    python benchmarks/attention.py [--quick] [--device cuda] [--check]

Each row is one call of `attend` in fp32 on the CPU (bf16 on a GPU): its time, and the peak memory beyond its inputs and its
output. Flex is the plain, uncompiled function; it holds every score, and is left out where these don't fit into memory.
Goal: the loop takes no more time and no more memory than the mask.
"""

import os
import statistics
import sys
from dataclasses import dataclass

import tyro
from measure import child, in_turn, machine, ratios, spread, table, verdict

KERNELS = ("prefix", "dense", "flex")


@dataclass(frozen=True)
class Settings:
    shots: int = 9
    tokens: int = 2048
    """tokens a shot"""
    heads: int = 8
    head_dim: int = 64
    device: str = "cpu"
    runs: int = 3
    quick: bool = False
    """256 tokens a shot"""
    check: bool = False
    """exit with 1 when the goal is missed"""
    alone: str | None = None
    """what a child process that measures memory runs: a kernel, or nothing"""


def make(settings: Settings):
    """Random q, k and v, and a layout of shots without text."""
    import torch

    from longshot.layout import Group, Layout

    layout = Layout.single(*(Group(k + 1, 0, (1, 1, settings.tokens)) for k in range(settings.shots)))
    dtype = torch.float32 if settings.device == "cpu" else torch.bfloat16
    shape = (3, settings.shots * settings.tokens, settings.heads, settings.head_dim)
    torch.manual_seed(0)
    return torch.randn(shape, device=settings.device, dtype=dtype).unbind(0), layout


def kernels_that_fit(settings: Settings) -> tuple[str, ...]:
    """All but flex where its scores (about four copies in fp32) would fill more than half of the memory."""
    if settings.device == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        import torch

        memory = torch.cuda.get_device_properties(settings.device).total_memory
    scores = 4 * 4 * settings.heads * (settings.shots * settings.tokens) ** 2
    if scores < memory / 2:
        return KERNELS
    print(f"flex is left out: its scores would take about {scores / 1e9:.0f} GB")
    return KERNELS[:2]


def memory_on_cpu(settings: Settings, names: tuple[str, ...]) -> dict[str, float]:
    """Peak memory of each kernel in MB: a process that runs it, less one that only makes inputs and an output."""
    sizes = ("shots", "tokens", "heads", "head_dim")
    options = [f"--{name.replace('_', '-')}={getattr(settings, name)}" for name in sizes]
    peak = {
        name: child([sys.executable, __file__, *options, "--alone", name]).megabytes
        for name in ("nothing", *names)
    }
    print(f"a process that only makes inputs and an output: {peak['nothing']:.0f} MB")
    return {name: peak[name] - peak["nothing"] for name in names}


def memory_on_gpu(settings: Settings, names: tuple[str, ...]) -> dict[str, float]:
    """Peak memory of each kernel in MB, less its inputs and output."""
    import torch

    from longshot.model.attention import attend

    (q, k, v), layout = make(settings)
    peak = {}
    for name in names:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        out = attend(q, k, v, layout, "causal", name)
        peak[name] = (torch.cuda.max_memory_allocated() - before - out.nbytes) / 1e6
        del out
    return peak


def run_alone(settings: Settings) -> None:
    """What a child does: makes the inputs, and runs one kernel or makes its output."""
    import torch

    from longshot.model.attention import attend

    (q, k, v), layout = make(settings)
    with torch.no_grad():
        out = (
            torch.ones_like(q)
            if settings.alone == "nothing"
            else attend(q, k, v, layout, "causal", settings.alone)
        )
    assert out.shape == q.shape


def main(settings: Settings) -> int:
    if settings.alone:
        run_alone(settings)
        return 0
    if settings.quick:
        settings = Settings(**{**vars(settings), "tokens": 256, "quick": False})
    print(machine())
    names = kernels_that_fit(settings)
    peak = memory_on_cpu(settings, names) if settings.device == "cpu" else None  # before torch is loaded here
    import torch

    from longshot.model.attention import attend

    if peak is None:
        print(torch.cuda.get_device_name(settings.device))
        peak = memory_on_gpu(settings, names)
    (q, k, v), layout = make(settings)
    outputs = {}

    def job(name: str):
        def run() -> None:
            outputs[name] = attend(q, k, v, layout, "causal", name)
            if settings.device != "cpu":
                torch.cuda.synchronize()

        return run

    with torch.no_grad():
        times = in_turn({name: job(name) for name in names}, settings.runs)
    print(
        f"{settings.shots} shots of {settings.tokens} tokens, {settings.heads} heads of {settings.head_dim}, {q.dtype}, "
        f"{settings.runs} runs, median (min to max)"
    )
    rows = []
    for name in names:
        error = (outputs[name] - outputs["prefix"]).abs().max().item()
        slower = "1" if name == "prefix" else spread(ratios(times[name], times["prefix"]))
        rows.append((name, spread(times[name]), slower, f"{peak[name]:.0f}", f"{error:.1e}"))
    print(table(("kernel", "seconds", "time to prefix", "memory, MB", "largest difference"), rows))
    missed = []
    if statistics.median(ratios(times["prefix"], times["dense"])) > 1:
        missed.append("the loop takes longer than the mask")
    if peak["prefix"] > peak["dense"]:
        missed.append("the loop takes more memory than the mask")
    return verdict(missed, settings.check)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))

"""What a forward pass costs, from sizes alone: parameters, FLOPs, bytes, and seconds on a measured machine.

Nothing is allocated and no network is run, so a network of billions of weights is costed in milliseconds. The formulas are
tested against torch's FLOP counter, its memory profiler, and the clock.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from longshot.layout import GLOBAL, Group, Layout, Visibility
from longshot.model.mmdit import SINUSOIDS, MMDiT, MMDiTConfig, layer_norm
from longshot.model.refine import FEATURES, FOLD, RGB, can_follow, entering, leaving
from longshot.model.rope import rotate, rotations, split_axes

# How often a block reads or writes a number of its [tokens, width] streams outside matrix products and attention, counted
# from `Block.forward` op by op: modulation tables 12, two modulated norms 20, QK-norm 20, joining text and video 14, rotary
# turns 18, gates 12, GELU 2 mlp_ratio. A remembered token is joined, and its key turned. `measure_machine` times 36 of them.
TRAFFIC_NEW, TRAFFIC_PAST, TRAFFIC_MEASURED = 96, 17, 36
# The same of the pixel refiner's maps, at its ends and a block: norm 5, shifts 4, modulation 6, SiLU 2, skip 3; the rest is what
# convolutions lay out anew. Set so that a pass of the tiny base was predicted before its refiner was shown other pictures (75 ms
# without, 127 ms measured, one thread). Three shots by one that chooses between them: 177 ms measured, 183 predicted with seven
# moves, 185 and 199 with twelve (medians of 5).
TRAFFIC_REFINER_ENDS, TRAFFIC_REFINER_BLOCK = 21, 33
# And of the pictures seen before: gathered, laid out twice, differences, mask, joined, shares, sum.
TRAFFIC_PICTURES = 20
# So many of its maps, of a convolution's weights laid out anew, and of the pictures seen before, are alive at its peak.
LIVE_REFINER, LIVE_KERNELS, LIVE_PICTURES = 5, 3, 3
CALLS_A_BLOCK = 200  # operations a block issues, each with its fixed cost
LIVE_WIDE, LIVE_NARROW = (
    6,
    8,
)  # [tokens, width] arrays alive at a block's peak: modulation in fp32, the rest in its dtype


@dataclass(frozen=True)
class Work:
    """An amount of computing. FLOPs count a multiply-add as 2, as torch's counter does."""

    matmul: int = 0  # FLOPs of matrix products with weights
    attention: int = 0  # FLOPs of q k^T and of its product with v
    traffic: int = 0  # bytes read and written by everything else, in fp32
    calls: int = 0  # operations issued

    @property
    def flops(self) -> int:
        return self.matmul + self.attention

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.matmul + other.matmul,
            self.attention + other.attention,
            self.traffic + other.traffic,
            self.calls + other.calls,
        )

    def __mul__(self, times: int) -> "Work":
        return Work(self.matmul * times, self.attention * times, self.traffic * times, self.calls * times)


def blueprint(config: MMDiTConfig) -> MMDiT:
    """The network without memory for its weights (torch's meta device)."""
    with torch.device("meta"):
        return MMDiT(config)


def count_parameters(config: MMDiTConfig) -> int:
    """Number of weights."""
    return sum(p.numel() for p in blueprint(config).parameters())


def kv_bytes(config: MMDiTConfig, tokens: int, itemsize: int) -> int:
    """Bytes of the remembered keys and values of some tokens, all layers. itemsize: 4 for fp32, 2 for bf16."""
    return 2 * config.depth * tokens * config.width * itemsize


def attended_pairs(layout: Layout, visibility: Visibility) -> int:
    """Number of (query, key) pairs that are computed."""
    return sum((q.stop - q.start) * (k.stop - k.start) for q, k in layout.blocks(visibility))


def forward_work(config: MMDiTConfig, layout: Layout, visibility: Visibility, refined: float = 1.0) -> Work:
    """One pass of the network over a layout, text features given. refined: the share of passes that ask the refiner."""
    width, cond, groups = config.width, config.cond_width, len(layout.groups)
    new, video = len(layout.queries), layout.num_video
    past = len(layout.keys) - new
    every_token = 2 * width * width * (4 + 2 * config.mlp_ratio)  # QKV, output projection, MLP
    every_group = 2 * cond * 6 * width * 2  # modulation of both streams
    ends = 2 * video * width * config.channels * 2 + groups * 2 * cond * (SINUSOIDS + cond + 2 * width)
    ends += 2 * video * config.detail_width * (width + 2 * config.channels)
    ends += round(refined * refiner_flops(config, layout))
    traffic = (TRAFFIC_NEW + 2 * config.mlp_ratio) * new + TRAFFIC_PAST * past
    maps = (TRAFFIC_REFINER_ENDS + TRAFFIC_REFINER_BLOCK * config.refiner_depth) * config.refiner_width
    maps += TRAFFIC_PICTURES * len(config.refiner_moves) * RGB * FOLD * FOLD
    maps = round(refined * maps * _folded_pixels(config, layout.groups))
    return Work(
        matmul=config.depth * (every_token * new + every_group * groups) + ends,
        attention=config.depth * 4 * width * attended_pairs(layout, visibility),
        traffic=(config.depth * traffic * width + maps) * 4,
        calls=config.depth * CALLS_A_BLOCK,
    )


def refiner_flops(config: MMDiTConfig, layout: Layout) -> int:
    """FLOPs of the convolutions that correct a native base's pixels (`refine.py`), 0 where it has none."""
    if not config.refiner_width:
        return 0
    t, h, w = config.patch
    shots = [g for g in layout.groups if g.shot != GLOBAL]
    pixels = _folded_pixels(config, layout.groups)
    moves, c = len(config.refiner_moves), config.refiner_width
    convolutions = c * (entering(moves) + leaving(moves)) + config.refiner_depth * 2 * c * c
    told = layout.num_video * config.width * t * h * w // FOLD**2 * (FEATURES + 1 + moves)
    modulation = config.refiner_depth * 2 * c * config.cond_width * sum(g.grid[0] * t for g in shots)
    return 2 * (9 * convolutions * pixels + told + modulation)


def _folded_pixels(config: MMDiTConfig, groups: Sequence[Group]) -> int:
    """Pixels that the refiner's convolutions see, 0 where a network has none."""
    t, h, w = config.patch
    tokens = sum(g.video for g in groups if g.shot != GLOBAL)
    return tokens * t * h * w // FOLD**2 if config.refiner_width else 0


def _refined_together(config: MMDiTConfig, layout: Layout) -> list[list[Group]]:
    """The groups of a pass that a refiner corrects at once: of one size, and none of them before another."""
    waves: defaultdict[tuple, list[Group]] = defaultdict(list)
    for groups, past in zip(layout.scenes, layout.past, strict=True):
        depth, new = 0, groups[past:]
        for before, group in zip((None, *new), new, strict=False):
            waits = config.goes_on and before is not None and can_follow(before, group)
            depth = depth + 1 if waits else 0
            waves[depth, group.grid[1:]].append(group)
    return list(waves.values())


def text_work(config: MMDiTConfig, lengths: Sequence[int]) -> Work:
    """The text refiner over prompts of these lengths."""
    tokens, width = sum(lengths), config.width
    every_token = 2 * width * width * (4 + 2 * config.mlp_ratio)
    return Work(
        matmul=2 * tokens * config.text_dim * width + config.text_depth * every_token * tokens,
        attention=config.text_depth * 4 * width * sum(n * n for n in lengths),
        traffic=config.text_depth * (TRAFFIC_NEW + 2 * config.mlp_ratio) // 2 * tokens * width * 4,
        calls=config.text_depth * CALLS_A_BLOCK // 2,
    )


def activation_bytes(config: MMDiTConfig, layout: Layout, itemsize: int) -> int:
    """Bytes of activations at the peak of a pass without gradients: in a block, while the MLP of its larger stream runs, or in
    the refiner, whichever holds more."""
    new, past = len(layout.queries), len(layout.keys) - len(layout.queries)
    larger = max(layout.num_video, layout.num_text)
    streams = new * (4 * LIVE_WIDE + LIVE_NARROW * itemsize) + larger * 2 * config.mlp_ratio * itemsize
    remembered = (
        (past > 0) * (2 * past + 2 * (past + new)) * itemsize
    )  # one layer's cache, and it joined with the new rows
    latents = layout.num_video * config.channels * (4 + itemsize)
    rotations = (2 * new + past) * config.head_dim * 4
    block = (streams + remembered) * config.width + latents + rotations
    if not config.refiner_width:
        return block
    moves = len(config.refiner_moves)
    maps = LIVE_REFINER * config.refiner_width + entering(moves) + LIVE_PICTURES * moves * RGB * FOLD * FOLD
    at_once = max(_folded_pixels(config, groups) for groups in _refined_together(config, layout))
    refiner = (at_once * maps + LIVE_KERNELS * 9 * config.refiner_width**2) * itemsize
    return max(block, refiner + 2 * latents + layout.num_video * config.width * (8 + itemsize))


# -- time ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Machine:
    """How fast this machine was just now, in numbers per second."""

    name: str
    matmul: float  # FLOPs
    attention: float  # FLOPs
    traffic: float  # bytes
    calls: float  # operations

    def seconds(self, work: Work) -> float:
        """Predicted time: its parts run one after the other."""
        return (
            work.matmul / self.matmul
            + work.attention / self.attention
            + work.traffic / self.traffic
            + work.calls / self.calls
        )

    def __str__(self) -> str:
        return (
            f"{self.name}: matrix products {self.matmul / 1e9:,.0f} GFLOP/s, attention {self.attention / 1e9:,.0f} GFLOP/s, "
            f"elementwise {self.traffic / 1e9:,.1f} GB/s, {1e6 / self.calls:,.1f} us an operation"
        )


@torch.no_grad()
def measure_machine(
    width: int,
    heads: int,
    tokens: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    clock: Callable[[], float] = time.perf_counter,
) -> Machine:
    """Times a matrix product, an attention, elementwise operations and a tiny one, as busy as the machine is; takes a second.

    width, heads, tokens: of the network and its sequences, since small ones reach less of a machine's speed. Fewer tokens are
    used where that many would take long.
    """
    device = torch.device(device)
    budget = 1e9 if device.type == "cpu" else 1e12  # FLOPs of one try
    tokens = max(min(tokens, int(budget / (8 * width**2)), int((budget / (4 * width)) ** 0.5)), 16)
    dim = width // heads
    x = torch.randn(tokens, width, device=device, dtype=dtype)
    weight = torch.randn(4 * width, width, device=device, dtype=dtype)
    q = torch.randn(1, heads, tokens, dim, device=device, dtype=dtype)
    by_head, hidden = x.view(tokens, heads, dim), x.repeat(1, 4)
    gain, one = torch.ones(dim, device=device, dtype=dtype), torch.ones(1, device=device)
    order = torch.arange(tokens, device=device).flip(0)
    table = rotations(order[:, None].expand(-1, 3), split_axes(dim), 1000.0)

    def streams():  # what a block does besides: TRAFFIC_MEASURED
        (layer_norm(x) * (1 + x) + x).index_select(0, order)
        rotate(F.rms_norm(by_head, (dim,), gain), table)
        F.gelu(hidden, approximate="tanh")

    def tiny():
        for _ in range(100):
            one.add(one)

    def seconds(job: Callable[[], object]) -> float:
        """The mean time of a job as busy as the machine is now."""
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        job()
        wait()
        start, runs = clock(), 0
        while clock() - start < 0.15 or runs < 3:
            job()
            wait()
            runs += 1
        return (clock() - start) / runs

    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} threads"
    return Machine(
        name=f"{name}, {str(dtype).removeprefix('torch.')}",
        matmul=2 * 4 * width * width * tokens / seconds(lambda: F.linear(x, weight)),
        attention=4 * width * tokens * tokens / seconds(lambda: F.scaled_dot_product_attention(q, q, q)),
        traffic=TRAFFIC_MEASURED * 4 * width * tokens / seconds(streams),
        calls=100 / seconds(tiny),
    )

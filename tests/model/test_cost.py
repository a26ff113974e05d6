"""What a pass is said to cost is what torch's own counters and the clock find."""

import time

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from core_fixtures import SMALL, inputs, network, small_base
from longshot.bases.native import native_3b, tiny
from longshot.layout import VISIBILITIES, Group, Layout, global_group
from longshot.model.context import Context
from longshot.model.cost import (
    Work,
    activation_bytes,
    blueprint,
    count_parameters,
    forward_work,
    kv_bytes,
    measure_machine,
    text_work,
)
from longshot.model.mmdit import MMDiT, memories_from

SCENES = (
    (global_group(3), Group(1, 4, (2, 3, 2)), Group(2, 1, (1, 2, 2))),
    (Group(1, 0, (1, 3, 3)), Group(4, 5, (2, 2, 2))),
)


def counted(job) -> int:
    """FLOPs by torch's counter. It knows no CPU flash kernel, so attention is spelled out for it."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        job()
    return counter.get_total_flops()


MOVES = ((0, 0, 0), (1, 1, 0), (0, -1, 1), (-2, 0, 0), (1, 0, -1))
REFINED = {"channels": 24, "patch": (2, 2, 2), "refiner_width": 8}


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("sizes", [{"detail_width": 7}, REFINED, REFINED | {"refiner_moves": MOVES}])
def test_flops_of_a_pass_are_those_that_torch_counts(visibility, sizes):
    net, layout = network(**sizes), Layout(SCENES)
    z, text, sigma = inputs(layout, net)
    work = forward_work(net.config, layout, visibility)
    assert work.flops == counted(lambda: net(z, text, sigma, layout, visibility))


def test_flops_of_a_pass_over_a_cache_are_those_that_torch_counts():
    net, before = network(), Layout(tuple(scene[:-1] for scene in SCENES))
    kept = []
    net(*inputs(before, net), before, "causal", keep=kept)
    past = [Context(tuple(m)) for m in memories_from(kept, before, torch.full((len(before.groups),), 0.1))]
    layout = Layout(SCENES, tuple(len(scene) - 1 for scene in SCENES))
    z, text, sigma = inputs(layout, net)
    work = forward_work(net.config, layout, "causal")
    assert work.flops == counted(lambda: net(z, text, sigma, layout, "causal", past))


def test_flops_of_reading_prompts_are_those_that_torch_counts():
    net, lengths = network(text_depth=2), (3, 1, 7)
    prompts = [torch.zeros(n, net.config.text_dim, dtype=torch.float64) for n in lengths]
    assert text_work(net.config, lengths).flops == counted(lambda: net.encode_text(prompts))


def test_parameters_are_counted_without_memory_for_them():
    assert count_parameters(SMALL.network) == sum(p.numel() for p in MMDiT(SMALL.network).parameters())
    assert all(p.is_meta for p in blueprint(native_3b().network).parameters())


def test_the_3b_preset_has_three_billion_parameters():
    assert 2.95e9 < count_parameters(native_3b().network) < 3.05e9


def test_the_bytes_of_a_cache_are_those_of_a_context():
    base, layout = small_base(), Layout(SCENES[:1])
    z, text, sigma = inputs(layout, base.network)
    _, [context] = base.remember(z, text, sigma, layout, "causal")
    tokens = sum(g.tokens for g in SCENES[0])
    assert context.nbytes == kv_bytes(base.config.network, tokens, itemsize=8)


@pytest.mark.parametrize(("refiner_width", "moves"), [(0, ()), (96, ()), (96, MOVES)])
@pytest.mark.parametrize(("num_past", "other"), [(0, (3, 4, 6)), (4, (3, 4, 6)), (0, (3, 6, 4))])
def test_activations_at_the_peak_are_those_that_torch_allocates(num_past, other, refiner_width, moves):
    shots = tuple(Group(i + 1, 14, other if i % 2 else (3, 4, 6)) for i in range(6))
    layout = Layout((shots,), (num_past,))
    sizes = {"width": 96, "heads": 4, "depth": 3, "cond_width": 16, "mlp_ratio": 4, "channels": 96}
    net = network(
        dtype=torch.float32, **sizes, patch=(2, 4, 4), refiner_width=refiner_width, refiner_moves=moves
    )
    past = None
    if num_past:
        before, kept = Layout((shots[:num_past],)), []
        clean = net(*inputs(before, net), before, "causal", keep=kept)
        past = [Context(tuple(memories_from(kept, before, torch.zeros(num_past), clean)[0]))]
    z, text, sigma = inputs(layout, net)
    with torch.no_grad(), profile(profile_memory=True) as measured:
        net(z, text, sigma, layout, "causal", past)
    events = [e for e in measured.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert activation_bytes(net.config, layout, 4) == pytest.approx(peak, rel=0.2)


def test_predicted_seconds_are_measured_seconds_within_a_factor_of_one_and_a_half():
    """On one thread and by processor time, so that other programs count little; the best of a few tries."""
    config, clock = tiny().network, time.process_time
    net = MMDiT(config)
    layout = Layout((tuple(Group(i + 1, 14, (3, 4, 6)) for i in range(3)),))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ratios = []
    try:
        for _ in range(4):
            with torch.no_grad():
                start = clock()
                for _ in range(3):
                    net(*inputs(layout, net), layout, "scene")
                measured = (clock() - start) / 3
            machine = measure_machine(config.width, config.heads, len(layout.queries), clock=clock)
            ratios.append(machine.seconds(forward_work(config, layout, "scene")) / measured)
            if 1 / 1.5 < ratios[-1] < 1.5:
                return
    finally:
        torch.set_num_threads(threads)
    pytest.fail(f"predicted / measured: {ratios}")


def test_work_adds_up():
    assert Work(1, 2, 3, 4) + Work(1, 1, 1, 1) * 2 == Work(3, 4, 5, 6)

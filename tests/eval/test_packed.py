"""Plans sampled side by side give what each gives alone."""

import pytest
import torch
from oracle import ignorant, small

from longshot.eval.packed import denoise_packed
from longshot.eval.puppets import TASKS, Maker, draw_case
from longshot.sample.denoise import Sampling, denoise

CONFIG = small()


def _plans(base, task, run, count=3):
    cases = [draw_case(TASKS[task], CONFIG, k) for k in range(count)]
    return [TASKS[task].runs[run].plan(Maker(base, case, case.scene, CONFIG)).plan for case in cases]


def _alone(base, plan, sampling):
    latents = {s.shot: s.given for s in plan.shots if s.given is not None}
    for finished in denoise(base, plan, sampling):
        latents |= finished.latents
    return latents


@pytest.mark.parametrize(
    ("task", "run", "max_tokens"),
    [
        ("joint", "joint", 1),
        ("joint", "joint", 700),
        ("given_first", "bidirectional", 100_000),
        ("given_first", "causal", 700),
        ("causal", "recomputed", 700),
    ],
)
@pytest.mark.parametrize("solver", ["euler", "stochastic"])
def test_packed_plans_equal_plans_one_by_one(task, run, max_tokens, solver):
    base, sampling = ignorant(), Sampling(steps=2, guidance=1.5, solver=solver)
    plans = _plans(base, task, run)
    told = []
    packed = denoise_packed(base, plans, sampling, max_tokens=max_tokens, on_plan=told.append)
    assert sum(told) == len(plans)
    for plan, latents in zip(plans, packed, strict=True):
        expected = _alone(base, plan, sampling)
        assert latents.keys() == expected.keys()
        for k, z in expected.items():  # loose: sums over rows are taken in another order
            torch.testing.assert_close(latents[k], z, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"solver": "heun"}, {"reuse_steps": True}])
def test_other_samplers_go_through_the_loop_itself(options):
    base, sampling = ignorant(), Sampling(steps=2, **options)
    (plan,) = _plans(base, "given_first", "causal", count=1)
    (latents,) = denoise_packed(base, [plan], sampling)
    for k, z in _alone(base, plan, sampling).items():
        assert torch.equal(latents[k], z)

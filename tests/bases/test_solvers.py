"""The solvers that come from diffusers: against its schedulers at their own levels, the paper, and a path that is known."""

import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from longshot.errors import UserError
from longshot.flow import Descent, Solver, sigma_table
from longshot.sample.denoise import Sampling

MULTISTEP: tuple[Solver, ...] = ("unipc", "dpm++")


def no_noise(step: int) -> Tensor:
    raise AssertionError("this solver adds none")


def field(seed: int):
    """A start, and a velocity that bends."""
    generator = torch.Generator().manual_seed(seed)
    w, z = torch.randn(6, 6, generator=generator) * 0.3, torch.randn(3, 6, generator=generator)
    return z, lambda z, sigma: torch.tanh(z @ w.to(z.dtype)) * (0.5 + sigma)


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_a_descent_takes_the_steps_that_diffusers_scheduler_takes_at_levels_of_its_own(name, steps):
    import diffusers

    scheduler = getattr(diffusers, name)(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.set_timesteps(steps)
    z, velocity = field(steps)
    ours, theirs = Descent("unipc" if "UniPC" in name else "dpm++", scheduler.sigmas, no_noise), z
    for sigma, t in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        z = ours.step(z, velocity(z, sigma))
        theirs = scheduler.step(velocity(theirs, sigma), t, theirs, return_dict=False)[0]
        assert torch.allclose(z, theirs, atol=2e-6)


@pytest.mark.parametrize("steps", [1, 2, 4, 20])
def test_dpm_plus_plus_takes_the_steps_of_its_paper_in_double_precision(steps):
    levels = sigma_table(steps, 5.0)
    z, velocity = field(steps)
    descent, theirs, before = Descent("dpm++", levels, no_noise), z.double(), None
    depth = torch.log((1 - levels.double()) / levels.double())
    for i, (sigma, after) in enumerate(pairwise(levels.double())):
        clean = theirs - sigma * velocity(theirs, sigma)
        h = depth[i + 1] - depth[i]
        ahead = clean
        if before is not None and after > 0:  # the last step is of first order
            ahead = clean + h / (2 * (depth[i] - depth[i - 1])) * (clean - before)
        theirs = after / sigma * theirs - (1 - after) * torch.expm1(-h) * ahead
        before = clean
        z = descent.step(z, velocity(z, float(sigma)))
        assert torch.allclose(z.double(), theirs, atol=2e-5)  # fp32, whose log(1 - sigma) is coarse near 1


@pytest.mark.parametrize("solver", MULTISTEP)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_descent_lands_on_the_clean_latent_where_the_velocity_is_exact(solver, steps):
    clean, eps = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    sigmas = sigma_table(steps, 3.0)
    descent, z = Descent(solver, sigmas, no_noise), eps
    for after in sigmas[1:]:
        z = descent.step(z, eps - clean)
        assert torch.allclose(z, (1 - after) * clean + after * eps, atol=1e-5)


def test_a_solver_of_diffusers_is_refused_where_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    Sampling(solver="euler")
    for solver in MULTISTEP:
        with pytest.raises(UserError, match=r"pip install 'longshot\[bases\]', or use euler"):
            Sampling(solver=solver)

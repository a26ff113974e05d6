"""UniPC against diffusers' scheduler, and on a path whose velocity is known."""

import numpy as np
import pytest
import torch

from longshot.flow import UniPC, sigma_table


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
def test_unipc_takes_the_steps_of_diffusers_scheduler(steps):
    from diffusers import UniPCMultistepScheduler

    generator = torch.Generator().manual_seed(steps)
    w, z = torch.randn(6, 6, generator=generator) * 0.3, torch.randn(3, 6, generator=generator)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2
    )
    scheduler.set_timesteps(sigmas=np.array(sigma_table(steps, 5.0)[:-1]))
    solver, theirs, ours = UniPC(scheduler.sigmas), z, z
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        slope = torch.tanh(theirs @ w) * (0.5 + sigma)
        theirs = scheduler.step(slope, t, theirs, return_dict=False)[0]
        ours = solver.step(ours, ours - sigma * torch.tanh(ours @ w) * (0.5 + sigma), i)
        assert torch.allclose(ours, theirs, atol=2e-6)


def test_unipc_lands_on_the_clean_latent_where_the_velocity_is_exact():
    clean, eps = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    sigmas = sigma_table(5, 3.0)
    solver, z = UniPC(sigmas), eps
    for i in range(5):
        z = solver.step(z, clean, i)
        assert torch.allclose(z, (1 - sigmas[i + 1]) * clean + sigmas[i + 1] * eps, atol=1e-5)


def test_a_step_that_was_left_out_is_refused():
    solver = UniPC(sigma_table(3))
    with pytest.raises(ValueError, match="step 1 after 0 steps"):
        solver.step(torch.zeros(1), torch.zeros(1), 1)

"""Rectified flow with one noise level per shot (LCT sec. 3.1, 3.2.2).

sigma in [0, 1] is the only noise variable: 0 is clean, 1 is pure noise. Latents are packed rows `z` [video tokens, channels];
`sigma` has one entry a group of the `Layout`, and `per_token` spreads it over the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from longshot.errors import UserError
from longshot.layout import GLOBAL, Layout

LOSS_FLOOR = 0.25  # a clean prediction's velocity error is its error / sigma: below this level the loss weight stops growing


def per_token(values: Shaped[Tensor, " groups"], layout: Layout) -> Shaped[Tensor, "video 1"]:
    """What every video token has of its group: its noise level, say."""
    return values[torch.from_numpy(layout.group_of_video).to(values.device), None]


def add_noise(z_0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """z_t = (1 - sigma) z_0 + sigma eps, for a sigma that broadcasts."""
    return (1 - sigma) * z_0 + sigma * eps


def velocity(z_0: Tensor, eps: Tensor) -> Tensor:
    """v = eps - z_0, the constant slope of the straight path from data to noise."""
    return eps - z_0


def velocity_from_clean(z_t: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """The velocity that a prediction of z_0 implies: (z_t - z_0) / sigma, and 0 where sigma is 0: a clean sample is given."""
    return torch.where(sigma > 0, (z_t - clean) / sigma.clamp(min=1e-8), 0.0)


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Moves noise levels towards noise (shift > 1): sigma' = shift sigma / (1 + (shift - 1) sigma) (SD3, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_table(steps: int, shift: float = 1.0, last: float = 0.0) -> Float[Tensor, " levels"]:
    """The `steps + 1` falling noise levels of a sampler, from 1 to 0.

    last: what the level before 0 is to be, where that isn't 0: the others are stretched with it, and the first stays 1 (LTX-2).
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {steps}")
    levels = shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
    if last and steps > 1:
        levels[:-1] = 1 - (1 - levels[:-1]) * (1 - last) / (1 - levels[-2])
    return levels.float()


@dataclass(frozen=True)
class SigmaDraw:
    """How training noise levels are drawn: sigma = sigmoid(N(mean, std)) (SD3's logit-normal), towards noise and wide: with
    mean 0.8 and std 1 only one draw in a thousand lay above 0.98, and samples, which start at 1, never found a picture.

    LCT draws every shot's level by itself (`independent`). Two more kinds of scene are mixed in, with the given shares:
    `shared`, one level for all shots, as joint generation meets it; and `history`, a random set of shots nearly clean at a
    level in [0, `history_max`] and one shared level for the rest, as conditioning meets it. The rest is independent.
    exact: the share of those shots that have no noise at all. most: the highest level, by which all others are scaled.
    """

    mean: float = 1.2
    std: float = 1.4
    shared: float = 0.35
    history: float = 0.40
    history_max: float = 0.5
    exact: float = 0.0
    most: float = 1.0
    causal_history: bool = (
        False  # the clean shots are a prefix of the scene, as an auto-regressive roll-out meets it
    )

    def _logit_normal(self, n: int, generator: torch.Generator) -> Tensor:
        return self.most * torch.sigmoid(self.mean + self.std * torch.randn(n, generator=generator))

    def __call__(self, layout: Layout, generator: torch.Generator) -> Float[Tensor, " groups"]:
        """Noise levels for every group of a layout without past; the global prompt's dummy video gets 0."""
        levels = []
        for groups in layout.scenes:
            num_shots = sum(g.shot != GLOBAL for g in groups)
            scene = self._scene(num_shots, generator)
            levels.append(torch.cat([torch.zeros(len(groups) - num_shots), scene]))
        return torch.cat(levels)

    def _scene(self, num_shots: int, generator: torch.Generator) -> Tensor:
        kind = torch.rand((), generator=generator).item()
        own = self._logit_normal(num_shots, generator)
        if num_shots == 1 or kind >= self.shared + self.history:
            return own
        sigma = own[:1].repeat(num_shots)
        if kind < self.shared:
            return sigma
        given = 1 + int(torch.randint(num_shots - 1, (), generator=generator))
        order = (
            torch.arange(num_shots) if self.causal_history else torch.randperm(num_shots, generator=generator)
        )
        levels = self.history_max * torch.rand(given, generator=generator)
        if self.exact:
            levels *= torch.rand(given, generator=generator) >= self.exact
        sigma[order[:given]] = levels
        return sigma


def flow_loss(
    v_hat: Float[Tensor, "video channels"],
    v: Float[Tensor, "video channels"],
    layout: Layout,
    sigma: Float[Tensor, " groups"] | None = None,
) -> tuple[Tensor, Float[Tensor, " groups"]]:
    """The mean over shots of the mean squared velocity error over each shot's own tokens, and that error for each group.

    Every shot weighs the same, however long it is (METHOD, sec. 3). Groups without loss (the global prompt) hold 0. sigma: given
    where velocities are an error of clean latents / sigma, in a network's answer or in what it was shown; it counts as
    / max(sigma, LOSS_FLOOR).
    """
    error = (v_hat.float() - v.float()).square().mean(1)
    if sigma is not None:
        level = per_token(sigma, layout)[:, 0]
        error = error * (level / level.clamp(min=LOSS_FLOOR)).square()
    group = torch.from_numpy(layout.group_of_video).to(error.device)
    sums = torch.zeros(len(layout.groups), device=error.device).index_add(0, group, error)
    sizes = torch.tensor([max(g.video, 1) for g in layout.groups], device=error.device)
    is_shot = torch.tensor([g.shot != GLOBAL for g in layout.groups], device=error.device)
    each = torch.where(is_shot, sums / sizes, 0.0)
    return each.sum() / is_shot.sum(), each


Solver = Literal["euler", "heun", "stochastic", "unipc", "dpm++"]
"""How a step is taken. euler, heun: along the velocity. stochastic: to the clean latent that the network sees now, with fresh
noise of the next level on it (multistep consistency sampling, Song et al. 2023, arXiv 2303.01469, algorithm 1; diffusers calls it
`stochastic_sampling`), so that an early error is not carried along. unipc, dpm++: by what the network said in the steps before
too, in diffusers' schedulers: UniPC of order 2 (Zhao et al. 2023, arXiv 2302.04867, B2) and DPM-Solver++ 2M (Lu et al. 2022,
arXiv 2211.01095)."""
_SCHEDULERS = {"unipc": "UniPCMultistepScheduler", "dpm++": "DPMSolverMultistepScheduler"}


def need_solver(solver: Solver) -> None:
    """UserError where the package that a solver comes from isn't installed."""
    if solver in _SCHEDULERS and find_spec("diffusers") is None:
        raise UserError(f"solver {solver}: is one of diffusers: pip install 'longshot[bases]', or use euler")


class Descent:
    """One sample's way down the noise levels, a step at a time.

    sigmas: falling levels, 0 at the end. fresh: the noise that the stochastic solver adds in its k-th step, from 1. Of Heun's
    method it takes the first half of a step, which is Euler's.
    """

    def __init__(self, solver: Solver, sigmas: Float[Tensor, " levels"], fresh: Callable[[int], Tensor]):
        self.solver, self.sigmas, self.fresh, self.taken = solver, sigmas, fresh, 0
        self.scheduler = _scheduler(solver, sigmas.cpu()) if solver in _SCHEDULERS else None

    def step(self, z: Tensor, v: Tensor) -> Tensor:
        """z at the next level. v: the velocity at z."""
        sigma, after = self.sigmas[self.taken], self.sigmas[self.taken + 1]
        self.taken += 1
        if self.scheduler is not None:
            return self.scheduler.step(v, sigma, z, return_dict=False)[0]
        if self.solver == "stochastic":
            return add_noise(z - sigma * v, self.fresh(self.taken), after)
        return z + (after - sigma) * v


def _scheduler(solver: Solver, sigmas: Float[Tensor, " levels"]) -> Any:
    """diffusers' scheduler of a solver, at its first step of these levels."""
    import diffusers

    kind = getattr(diffusers, _SCHEDULERS[solver])
    made = kind(prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2)
    if solver == "unipc":
        made.set_timesteps(sigmas=sigmas[:-1].double().numpy())  # it counts a first level of 1 as 1 - 1e-6
    else:
        made.set_timesteps(len(sigmas) - 1)
        made.sigmas = sigmas.float()  # of this one, diffusers 0.42 takes levels no other way
    made.set_begin_index(0)  # else it would look for its place by timesteps, which it rounds
    return made

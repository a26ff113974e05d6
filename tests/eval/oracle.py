"""Stand-ins for trained bases, for tests only: one that knows the answers, and a small one that knows nothing."""

from dataclasses import replace

import torch

from longshot.bases.native import TINY_SPEC, NativeBase, NativeConfig
from longshot.eval.puppets import TASKS, EvalConfig, Maker, draw_case
from longshot.layout import GLOBAL
from longshot.model.context import Memory
from longshot.model.mmdit import MMDiTConfig
from longshot.puppets.render import render_shot
from longshot.sample.denoise import noise_of

SMALL = NativeConfig(
    replace(TINY_SPEC, solver="euler"),  # along which the oracle can tell a shot by its noise
    MMDiTConfig(
        channels=TINY_SPEC.channels,
        text_dim=128,
        width=24,
        depth=1,
        heads=2,
        cond_width=16,
        rope=TINY_SPEC.rope,
    ),
)


def ignorant(seed: int = 0) -> NativeBase:
    """A small network with random weights."""
    base = NativeBase.fresh(SMALL, seed)
    base.network.requires_grad_(False)
    return base


class Oracle(NativeBase):
    """Flows from each shot's noise straight to the ground truth of the scene whose pictures it was given.

    A shot is recognised by its noise: the rows it is asked about lie on the line from its noise to its truth.
    """

    def knows(self, config: EvalConfig, share_right: float = 1.0) -> "Oracle":
        """Learns the answers to every task. share_right: of the scenes; in the others it makes another scene's shots."""
        noise, clean = [], []
        for name in config.tasks:
            for index in range(config.scenes):
                case = draw_case(TASKS[name], config, index)
                for run in TASKS[name].runs.values():
                    for scene in (case.scene, case.other):
                        planned = run.plan(Maker(self, case, scene, config))
                        for shot in planned.plan.shots:
                            z = shot.given
                            if z is None:
                                drawn = scene if index < share_right * config.scenes else case.other
                                number = planned.scored.get(shot.shot, shot.shot)
                                z = self.encode(render_shot(drawn, number - 1))
                            noise.append(noise_of(shot, self.spec.channels)[:1])
                            clean.append(z)
        self.noise, self.first = torch.cat(noise), torch.cat([z[:1] for z in clean])
        self.clean = clean
        return self

    def velocity(self, z, text, sigma, layout, visibility, past=None, keep=None, **more):
        out = torch.zeros_like(z)
        for group, span, level in zip(layout.groups, layout.video_spans, sigma, strict=True):
            if group.shot == GLOBAL or level == 0:  # what has no noise is the answer
                continue
            rows = z[span.slice]
            distance = ((1 - level) * self.first + level * self.noise - rows[:1]).square().sum(1)
            answer = self.clean[int(distance.argmin())]
            out[span.slice] = (rows - answer) / level
        return out

    def remember(self, z, text, sigma, layout, visibility, past=None):
        contexts, groups = [], iter(zip(layout.groups, sigma, strict=True))
        for context, scene, count in zip(past, layout.scenes, layout.past, strict=True):
            nothing = torch.zeros(1, 0, 1, 1)
            new = [Memory(g, float(next(groups)[1]), nothing, nothing) for g in scene[count:]]
            contexts.append(context.extended(new))
        return self.velocity(z, text, sigma, layout, visibility), contexts


def oracle() -> Oracle:
    return Oracle.fresh(SMALL)


def small(**options) -> EvalConfig:
    """A config that a test can afford."""
    return replace(EvalConfig(scenes=2, shots=3, segments=3, steps=2, samples=1, guesses=300), **options)

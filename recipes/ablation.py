"""What each part of the tiny base's recipe is worth, at toy size: every candidate changes one thing, over several seeds.

    python recipes/ablation.py --steps 700 --seeds 3 --out out/ablation

A network of 1.4M parameters learns scenes of two or three short shots of one person who stands, for minutes of one core. Then
held-out scenes are made by it, from text and after a given first shot without any global prompt, and compared with how the world
draws them: PSNR in dB of the pixels where people are and of all others (a blurred person scores better than a wrong one and
worse than a right one). The table has means over seeds and, in brackets, the least and the most.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from longshot.bases.native import TINY_SPEC, NativeBase, NativeConfig, tiny
from longshot.eval.packed import denoise_packed
from longshot.model.mmdit import MMDiTConfig
from longshot.puppets.render import render
from longshot.puppets.words import caption
from longshot.puppets.world import PuppetScene, draw_scene
from longshot.sample.denoise import Sampling
from longshot.sample.plan import PlannedShot, together
from longshot.train.config import FILM, StageConfig, lct
from longshot.train.loop import Trainer

TOY = replace(
    tiny().network, width=96, depth=3, cond_width=48, text_depth=1, detail_width=192, refiner_width=0
)
WORLD = replace(
    FILM,
    scenes=8,
    single=0.25,
    shots=(2, 3),
    frames=(4,),
    actions=("stand",),
    cameras=("medium",),
    pan=0.0,
    pair=0.0,
    reef=0.0,
    takes=0.0,
    image=0.05,
    portraits=0.0,
)
HELD_OUT = 1_000_000  # seeds of scenes that training doesn't draw
SAMPLING = Sampling(steps=8, guidance=1.3, shift=3.0, solver="stochastic")


@dataclass(frozen=True)
class Candidate:
    """What differs from the recipe."""

    network: Callable[[MMDiTConfig], MMDiTConfig] = lambda network: network
    stage: Callable[[StageConfig], StageConfig] = lambda stage: stage


CANDIDATES = {
    "the recipe, without own guesses": Candidate(),
    "no auxiliary loss": Candidate(stage=lambda s: replace(s, attributes=0.0)),
    "each shot its own noise level": Candidate(
        stage=lambda s: replace(s, sigma=replace(s.sigma, shared=0.0, history=0.0))
    ),
    "no false evidence, no grain": Candidate(
        stage=lambda s: replace(s, grain=0.0, stream=replace(s.stream, misled=0.0))
    ),
    "noise over own guesses in 30 %, a tenth more a step": Candidate(stage=lambda s: replace(s, guessed=0.3)),
    "predicts the velocity": Candidate(network=lambda n: replace(n, predicts="velocity")),
}


def train(candidate: Candidate, steps: int, seed: int, folder: Path) -> NativeBase:
    """A toy base of one candidate, its averaged weights."""
    base = NativeBase.fresh(NativeConfig(TINY_SPEC, candidate.network(TOY)), seed)
    stage = replace(lct(steps), stream=WORLD, lr=2e-3, decay=0.6, ema=0.99, guessed=0.0, seed=seed)
    return NativeBase.load(Trainer(base, candidate.stage(stage), folder).run())


def cases(count: int) -> list[tuple[PuppetScene, str, list[str]]]:
    """Held-out scenes of three shots, and their prompts."""
    out = []
    for number in range(count):
        rng = np.random.default_rng(HELD_OUT + number)
        scene = draw_scene(
            rng,
            3,
            WORLD.frames,
            p_pair=0,
            p_empty=0,
            p_continue=0,
            p_pan=0,
            cameras=WORLD.cameras,
            actions=WORLD.actions,
        )
        out.append((scene, *caption(scene, rng)))
    return out


def empty(scene: PuppetScene) -> PuppetScene:
    return replace(scene, shots=tuple(replace(shot, cast=()) for shot in scene.shots))


def measure(base: NativeBase, count: int) -> dict[str, float]:
    """PSNR in dB where people are and elsewhere, of scenes from text and of the two shots after a given one."""
    errors: dict[str, list[np.ndarray]] = {}
    for way, given in (("from text", False), ("first shot given", True)):
        plans, truths = [], []
        for scene, global_prompt, prompts in cases(count):
            films = render(scene)
            shots = [
                PlannedShot(
                    k,
                    f"shot {k}",
                    base.spec.wording("" if given else global_prompt, prompt, k),
                    base.spec.grid(len(film), film.shape[2], film.shape[1]),
                    (0, f"{scene}", k),
                    base.encode(film) if given and k == 1 else None,
                )
                for k, (prompt, film) in enumerate(zip(prompts, films, strict=True), start=1)
            ]
            plans.append(together("" if given else global_prompt, shots))
            truths.append((films, render(empty(scene))))
        for plan, made, (films, places) in zip(
            plans, denoise_packed(base, plans, SAMPLING), truths, strict=True
        ):
            for shot, film, place in zip(plan.shots, films, places, strict=True):
                if shot.given is not None:
                    continue
                error = (base.decode(made[shot.shot], shot.grid).astype(float) - film) ** 2
                person = (film != place).any(-1)
                errors.setdefault(f"{way}, people", []).append(error[person].ravel())
                errors.setdefault(f"{way}, place", []).append(error[~person].ravel())
    return {
        name: float(10 * np.log10(255**2 / np.concatenate(parts).mean())) for name, parts in errors.items()
    }


def main(
    out: Path = Path("out/ablation"),
    steps: int = 700,
    seeds: int = 3,
    scenes: int = 48,
    only: tuple[str, ...] = (),
) -> None:
    """Trains and measures, and prints the table.

    Args:
        out: A folder for the runs; those that are there already aren't made again.
        steps: Training steps a run.
        seeds: Runs a candidate.
        scenes: Held-out scenes.
        only: Names of candidates, all where none is given.
    """
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        for name, candidate in CANDIDATES.items():
            if only and name not in only:
                continue
            folder = out / f"{name.replace(' ', '_').replace(',', '').replace('%', '')}_{seed}"
            rows.setdefault(name, []).append(measure(train(candidate, steps, seed, folder), scenes))
            print(f"{name}, seed {seed}: {rows[name][-1]}", flush=True)
    columns = list(next(iter(rows.values()))[0])
    print(f"| {steps} steps, {seeds} seeds | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for name, found in rows.items():
        cells = []
        for column in columns:
            values = [row[column] for row in found]
            cells.append(f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    tyro.cli(main)

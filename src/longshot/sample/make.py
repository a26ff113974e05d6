"""Runs a plan into a film folder: every finished shot is on disk before the next one starts, and a stopped run goes on."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from longshot.bases.base import Base
from longshot.errors import UserError
from longshot.sample.denoise import Contexts, Sampling, Step, denoise
from longshot.sample.film import FilmFolder, shot_keys
from longshot.sample.plan import Plan, PlannedShot
from longshot.video import write_video


@dataclass(frozen=True)
class Order:
    """A film to be made. names and numbers: for each planned shot its file name and scene number (None: an extra image).

    facts: what the manifest shall say besides. scale: enlargement of frames in the videos.
    """

    plan: Plan
    sampling: Sampling
    names: tuple[str, ...]
    numbers: tuple[int | None, ...]
    facts: dict = field(default_factory=dict)
    scale: int = 1
    save_context: bool = False


def names_for(numbers: Sequence[int | None]) -> tuple[str, ...]:
    """File names: `shot_03` for scene shot 3, `shot_02_image_1` for an extra image after shot 2."""
    names, last, images = [], 0, 0
    for number in numbers:
        images = 0 if number is not None else images + 1
        last = number if number is not None else last
        names.append(f"shot_{last:02d}" if number is not None else f"shot_{last:02d}_image_{images}")
    return tuple(names)


def make_film(
    base: Base,
    order: Order,
    folder: Path,
    fingerprint: str,
    *,
    device: str = "cpu",
    contexts: Contexts | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_shot: Callable[[str, bool], None] | None = None,
) -> FilmFolder:
    """Makes every shot of an order that isn't on disk yet, then the scene, the sheet and the manifest.

    fingerprint: names the weights. on_shot: told each shot's name, and whether it was there already. Raises UserError when the
    folder can't be written; what was finished before stays.
    """
    film, plan = FilmFolder(Path(folder)), order.plan
    name_of = {s.shot: name for s, name in zip(plan.shots, order.names, strict=True)}
    keys = shot_keys(plan, order.sampling, fingerprint)
    keys |= {s.shot: key for s in plan.shots if (key := film.key_of_same(name_of[s.shot], s))}
    made = {k: film.load_shot(name, k).given for k, name in name_of.items() if film.key(name) == keys[k]}
    whole = [r.denoise for r in plan.rounds if not order.sampling.reuse_steps and all(made.get(k) is not None for k in r.denoise)]
    done = {k: z for round in whole for k in round if (z := made[k]) is not None}
    latents: dict[int, Tensor] = dict(done)

    def keep(shot: PlannedShot, z: Tensor) -> None:
        latents[shot.shot] = z
        name = name_of[shot.shot]
        film.keep_take(name, keys[shot.shot])
        write_video(film.video(name), base.decode(z, shot.grid), base.spec.fps, scale=order.scale)
        film.save_shot(name, keys[shot.shot], shot, z)

    started = time.monotonic()
    for shot in plan.shots:
        if shot.given is not None and film.key(name_of[shot.shot]) != keys[shot.shot]:
            keep(shot, shot.given)
        elif shot.given is not None:
            latents[shot.shot] = shot.given
        elif shot.shot in done and on_shot:
            on_shot(shot.label, True)
    final = contexts
    for finished in denoise(
        base, plan, order.sampling, device=device, contexts=contexts, done=done, on_step=on_step
    ):
        for k, z in finished.latents.items():
            keep(plan[k], z)
            if on_shot:
                on_shot(plan[k].label, False)
        final = finished.contexts
    if order.save_context and plan.memory == "cache" and final:
        film.save_contexts(final)
    seconds = round(time.monotonic() - started, 2)
    finish(base, order, film, latents, keys, {**order.facts, "seconds_to_make": seconds})
    return film


def finish(
    base: Base, order: Order, film: FilmFolder, latents: dict[int, Tensor], keys: dict[int, str], facts: dict
) -> None:
    """Writes what belongs to the film as a whole."""
    plan, fps = order.plan, base.spec.fps
    history = {k: r.given for r in plan.rounds for k in r.denoise}
    entries = []
    for shot, name, number in zip(plan.shots, order.names, order.numbers, strict=True):
        frames = base.spec.frames(shot.grid)
        seed, _, take = shot.noise
        entry = {"name": name, "number": number, "label": shot.label, "prompt": shot.prompt, "frames": frames}
        entry |= {"seconds": float(frames / fps), "seed": seed, "take": take, "given": shot.given is not None}
        entry |= {"history": [order.names[k - 1] for k in history.get(shot.shot, ())]}
        entries.append(entry | {"video": f"{name}.mp4", "key": keys[shot.shot]})
    facts |= {"base": base.spec.name, "fps": str(fps), "global_prompt": plan.global_prompt}
    facts |= {"visibility": plan.visibility, "memory": plan.memory, "context_sigma": plan.context_sigma}
    facts |= {"sampling": asdict(order.sampling)}
    film.finish(base, entries, [(s, latents[s.shot]) for s in plan.shots], facts, order.scale)


def film_to_continue(folder: Path, base: Base) -> tuple[dict, list[PlannedShot], list[str], list[int | None]]:
    """A finished film's manifest, shots, names and numbers. Raises UserError for another base's film."""
    manifest, shots = FilmFolder(Path(folder)).load()
    if manifest.get("base") != base.spec.name:
        raise UserError(
            f"{folder}: was made by the base {manifest.get('base')}, not {base.spec.name}; name that with --base"
        )
    entries = manifest["shots"]
    return manifest, shots, [e["name"] for e in entries], [e["number"] for e in entries]


def continued(
    base: Base,
    shots: Sequence[PlannedShot],
    numbers: Sequence[int | None],
    prompts: Sequence[str],
    frames: int | None,
) -> tuple[list[PlannedShot], list[int | None]]:
    """A film's shots and, after them, one to be made for each prompt, of the last shot's size."""
    _, height, width = shots[-1].grid
    _, h, w = base.spec.stride
    grid = base.spec.grid(frames or base.spec.default_frames, width * w, height * h)
    seed = shots[-1].noise[0]
    longer, more = list(shots), list(numbers)
    for prompt in prompts:
        number = 1 + max((n for n in more if n is not None), default=0)
        longer.append(PlannedShot(len(longer) + 1, f"shot {number}", prompt, grid, (seed, str(number), 0)))
        more.append(number)
    return longer, more

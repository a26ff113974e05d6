"""Runs a plan into a film folder: every finished shot is on disk before the next one starts, and a stopped run goes on."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from longshot.bases.base import Base, Codec, Spec, holds_history_clean
from longshot.errors import UserError
from longshot.lint import scene_frames
from longshot.sample.denoise import Contexts, Sampling, Step, denoise
from longshot.sample.film import MANIFEST, FilmFolder, shot_keys
from longshot.sample.plan import Plan, PlannedShot
from longshot.scene import Scene


@dataclass(frozen=True)
class Order:
    """A film to be made. names and numbers: for each planned shot its file name and scene number (None: an extra image).

    mode: what to call the way its shots are made. facts: what the manifest shall say besides. scale: enlargement of frames in
    the videos.
    """

    plan: Plan
    sampling: Sampling
    names: tuple[str, ...]
    numbers: tuple[int | None, ...]
    mode: str = ""
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


def refuse_saving(spec: Spec) -> None:
    """UserError for a base whose context can't be saved."""
    if holds_history_clean(spec):
        raise UserError(
            f"{spec.name} keeps no context on disk, since it reads a film's latents again to go on: leave --save-context out"
        )


def make_film(
    base: Base,
    order: Order,
    folder: Path,
    fingerprint: str,
    *,
    device: str = "cpu",
    cache_device: str | None = None,
    contexts: Contexts | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_shot: Callable[[str, bool], None] | None = None,
) -> FilmFolder:
    """Makes every shot of an order that isn't on disk yet, then the scene, the sheet and the manifest.

    fingerprint: names the weights. on_shot: told each shot's name, and whether it was there already. Raises UserError when the
    folder can't be written; what was finished before stays.
    """
    film, plan = FilmFolder(Path(folder)), order.plan
    if order.save_context:
        refuse_saving(base.spec)
    name_of = {s.shot: name for s, name in zip(plan.shots, order.names, strict=True)}
    keys = shot_keys(plan, order.sampling, fingerprint)
    keys |= {s.shot: key for s in plan.shots if (key := film.key_of_same(name_of[s.shot], s))}
    done = _done(film, order, name_of, keys)
    latents: dict[int, Tensor] = dict(done)

    def before(shot: PlannedShot) -> list[Tensor]:
        return [latents[k] for k in range(1, shot.shot) if k in latents]

    def keep(shot: PlannedShot, z: Tensor) -> None:
        latents[shot.shot] = z
        name = name_of[shot.shot]
        film.keep_take(name, keys[shot.shot])
        film.save_shot(base, name, keys[shot.shot], shot, z, order.scale, before(shot))

    started = time.monotonic()
    for shot in plan.shots:
        name = name_of[shot.shot]
        if shot.given is not None and film.latent_of(name, keys[shot.shot]) is None:
            keep(shot, shot.given)
        elif (z := done.get(shot.shot, shot.given)) is not None:
            latents[shot.shot] = z
            film.repair_video(base, name, shot, z, order.scale, before(shot))
            if on_shot and shot.given is None:
                on_shot(shot.label, True)
    final = None
    for finished in denoise(
        base,
        plan,
        order.sampling,
        device=device,
        cache_device=cache_device,
        contexts=contexts,
        done=done,
        on_step=on_step,
    ):
        for k, z in finished.latents.items():
            keep(plan[k], z)
            if on_shot:
                on_shot(plan[k].label, False)
        final = finished.contexts
    if order.save_context and final:
        film.save_contexts(final, fingerprint, [keys[s.shot] for s in plan.shots])
    seconds = round(time.monotonic() - started, 2)
    how = {
        "mode": order.mode,
        "weights": fingerprint,
        "visibility": plan.visibility,
        "memory": plan.memory,
        "context_sigma": 0.0 if holds_history_clean(base.spec) else plan.context_sigma,
        "sampling": asdict(order.sampling),
    }
    facts = {**order.facts, "base": base.spec.name, "fps": str(base.spec.fps), "scale": order.scale}
    facts |= {"global_prompt": plan.global_prompt, "seconds_of_last_run": seconds}
    entries = _entries(base, order, keys, how, film.entries())
    film.finish(base, entries, [(s, latents[s.shot]) for s in plan.shots], facts, order.scale)
    return film


def _done(film: FilmFolder, order: Order, name_of: dict[int, str], keys: dict[int, str]) -> dict[int, Tensor]:
    """The latents of the rounds that are finished on disk. A cache made of denoising steps can't be had from them."""
    if order.sampling.reuse_steps:
        return {}
    done: dict[int, Tensor] = {}
    for r in order.plan.rounds:
        made = {k: z for k in r.denoise if (z := film.latent_of(name_of[k], keys[k])) is not None}
        done |= made if len(made) == len(r.denoise) else {}
    if order.save_context and not film.holds_contexts([keys[s.shot] for s in order.plan.shots]):
        last = order.plan.rounds[-1].denoise  # making it again gives the context
        done = {k: z for k, z in done.items() if k not in last}
    return done


def _entries(
    base: Base, order: Order, keys: dict[int, str], how: dict, before: dict[str, dict]
) -> list[dict]:
    """What the manifest says of each shot; of one that an earlier run made, how that run made it."""
    history = {k: r.given for r in order.plan.rounds for k in r.denoise}
    entries = []
    for shot, name, number in zip(order.plan.shots, order.names, order.numbers, strict=True):
        frames = base.spec.frames(shot.grid, is_first=shot.shot == 1)
        seed, _, take = shot.noise
        entry = {
            "name": name,
            "number": number,
            "label": shot.label,
            "prompt": shot.prompt,
            "frames": frames,
            "seconds": float(frames / base.spec.fps),
            "seed": seed,
            "take": take,
            "video": f"{name}.mp4",
            "key": keys[shot.shot],
            "given": shot.given is not None,
            "history": [order.names[k - 1] for k in history.get(shot.shot, ())],
            "how": None if shot.given is not None else how,
        }
        old = before.get(name, {})
        if old.get("key") == keys[shot.shot]:
            entry |= {key: old[key] for key in ("given", "history", "how") if key in old}
        entries.append(entry)
    return entries


@dataclass(frozen=True)
class Reel:
    """A finished film, to go on with: its manifest, its scene, and its shots, given, with their names and scene numbers."""

    manifest: dict
    scene: Scene
    shots: tuple[PlannedShot, ...]
    names: tuple[str, ...]
    numbers: tuple[int | None, ...]

    @property
    def keys(self) -> list[str]:
        return [entry["key"] for entry in self.manifest["shots"]]

    @property
    def scale(self) -> int | None:
        scale = self.manifest.get("scale")
        return scale if isinstance(scale, int) and scale > 0 else None


def film_to_continue(folder: Path, base: Codec) -> Reel:
    """A finished film. Raises UserError for a damaged one, and for another base's."""
    manifest, shots = FilmFolder(Path(folder)).load()
    spec = base.spec
    if manifest.get("base") != spec.name or any(
        s.given is None or s.given.shape[1] != spec.channels for s in shots
    ):
        raise UserError(
            f"{folder}: was made by the base {manifest.get('base')}, not {spec.name}; name that with --base"
        )
    numbers = tuple(entry["number"] for entry in manifest["shots"])
    try:
        scene = Scene.model_validate(manifest.get("scene"))
        if [n for n in numbers if n is not None] != list(range(1, len(scene.shots) + 1)):
            raise ValueError
    except ValueError:
        raise UserError(
            f"{folder}/{MANIFEST}: damaged (its scene doesn't fit its shots); `longshot sample` writes it again"
        ) from None
    return Reel(manifest, scene, tuple(shots), tuple(e["name"] for e in manifest["shots"]), numbers)


def continued(
    base: Codec, reel: Reel, scene: Scene, seed: int | None = None
) -> tuple[list[PlannedShot], list[int | None]]:
    """The film's shots, and after them, to be made, those that `scene` has besides; with the number of each."""
    _, height, width = reel.shots[-1].grid
    _, h, w = base.spec.stride
    shots, numbers = list(reel.shots), list(reel.numbers)
    seed = shots[-1].noise[0] if seed is None else seed
    texts, counts = scene.shot_prompts(), scene_frames(scene, base.limits())
    for number in range(len(reel.scene.shots) + 1, len(scene.shots) + 1):
        grid = base.spec.grid(counts[number - 1], width * w, height * h)
        noise = (seed, str(number), 0)
        shots.append(PlannedShot(len(shots) + 1, f"shot {number}", texts[number - 1], grid, noise))
        numbers.append(number)
    return shots, numbers

"""The commands that go on with a finished film."""

from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from longshot.cli.checks import check_shots, made_shot
from longshot.cli.fits import refuse_command, refuse_options
from longshot.cli.making import remake
from longshot.cli.options import DEFAULTS, FilmPath, Options, Texts
from longshot.errors import UserError

if TYPE_CHECKING:
    from longshot.bases.base import Codec
    from longshot.layout import Visibility
    from longshot.sample.make import Reel
    from longshot.sample.plan import Plan


def reshoot(
    film: FilmPath,
    shot: int,
    prompt: str | None = None,
    take: int | None = None,
    options: Annotated[Options, arg(name="")] = DEFAULTS,
) -> int:
    """Make one shot of a film again, between the shots on both sides. The take it replaces is kept in takes/.

    Args:
        shot: its number in the scene.
        prompt: other words for it.
        take: which take; the next one if not given.
    """
    from dataclasses import replace

    from longshot.sample.make import film_to_continue
    from longshot.sample.plan import nearest, together
    from longshot.sample.plan import reshoot as again
    from longshot.scene import SHOT_CUT, Scene

    outline = options.outline()
    refuse_command(outline.codec.spec, "reshoot")
    refuse_options(outline.codec.spec, options, "reshoot", is_cached=False)
    reel = film_to_continue(film, outline.codec)
    _refuse_size(reel, outline.codec, options)
    if shot not in reel.numbers:
        raise UserError(f"{film}: has no shot {shot}; it has shots 1 to {len(reel.scene.shots)}")
    place = reel.numbers.index(shot) + 1
    seed, key, old_take = reel.shots[place - 1].noise
    take, seed = old_take + 1 if take is None else take, seed if options.seed is None else options.seed
    changed = {"take": take} | ({} if prompt is None else {"prompt": prompt})
    changed |= {} if options.seed is None else {"seed": seed}
    scene = Scene.model_validate(reel.scene.model_dump())
    scene.shots[shot - 1] = made_shot(f"shot {shot}", scene.shots[shot - 1].model_dump() | changed)
    words = None if prompt is None else scene.shot_prompts()[shot - 1]
    if words and not reel.shots[place - 1].prompt.startswith(SHOT_CUT):  # a first-frame image has the cut
        words = words.removeprefix(SHOT_CUT).lstrip()
    new = again(reel.shots, place, words, take)
    new[place - 1] = replace(new[place - 1], noise=(seed, key, take))

    def planned(mode: str, window: int | None) -> "Plan":
        seen = nearest(len(new), place, window or outline.codec.spec.max_shots)
        return together(scene.global_prompt(), new, options.held_at(outline.codec.spec), seen=seen)

    options.check_room(outline, planned, "reshoot", ("reshoot",))
    base = options.open(causal=False)
    findings = check_shots(film, scene, base, [shot])
    plan = planned("reshoot", options.window)
    remake(base, plan, reel, reel.numbers, scene, film, options, "reshoot", findings)
    return 0


def extend(
    film: FilmPath,
    prompt: Texts,
    frames: int | None = None,
    cut: bool = False,
    mode: Literal["causal", "bidirectional"] = "causal",
    options: Annotated[Options, arg(name="")] = DEFAULTS,
) -> int:
    """Go on from the end of a film: one new segment a prompt, without a cut unless asked for.

    Args:
        prompt: what happens in each new segment.
        frames: how long each is.
        cut: begin each with a cut.
        mode: with a KV cache, or recomputing the history.
    """
    from longshot.sample.film import FilmFolder
    from longshot.sample.make import continued, film_to_continue
    from longshot.sample.plan import autoregressive
    from longshot.scene import Scene

    prompts = [text for texts in prompt for text in texts]
    if not prompts:
        raise UserError("--prompt: say what happens in the new segment")
    outline = options.outline()
    refuse_command(outline.codec.spec, "extend")
    refuse_options(outline.codec.spec, options, mode, is_cached=mode == "causal")
    reel = film_to_continue(film, outline.codec)
    _refuse_size(reel, outline.codec, options)
    first = len(reel.scene.shots) + 1
    new = [
        made_shot(f"shot {n}", {"prompt": text, "cut": cut, "frames": frames})
        for n, text in enumerate(prompts, start=first)
    ]
    scene = Scene.model_validate(reel.scene.model_dump() | {"shots": [*reel.scene.shots, *new]})
    shots, numbers = continued(outline.codec, reel, scene, options.seed)

    def planned(mode: str, window: int | None) -> "Plan":
        visibility: Visibility = "causal" if mode == "causal" else "scene"
        return autoregressive(
            scene.global_prompt(),
            shots,
            visibility=visibility,
            window=window or outline.codec.spec.max_shots,
            context_sigma=options.held_at(outline.codec.spec, visibility),
        )

    options.check_room(outline, planned, mode, ("causal", "bidirectional"))
    base = options.open(causal=mode == "causal")
    findings = check_shots(film, scene, base, range(first, first + len(new)))
    plan = planned(mode, options.window)
    branches = options.sampling(base.spec).histories
    contexts = (
        FilmFolder(film).load_contexts(base.fingerprint(), branches, reel.keys) if mode == "causal" else None
    )
    remake(base, plan, reel, numbers, scene, film, options, f"extend, {mode}", findings, contexts)
    return 0


def _refuse_size(reel: "Reel", codec: "Codec", options: Options) -> None:
    """UserError for frames of another size than the film's, which its new shots have whatever is asked."""
    _, height, width = reel.shots[-1].grid
    _, h, w = codec.spec.stride
    if options.size is not None and codec.spec.size != (width * w, height * h):
        raise UserError(
            f"--size {options.size}: this film's frames, and those of its new shots, are {width * w}x{height * h}"
        )

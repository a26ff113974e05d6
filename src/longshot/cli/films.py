"""The commands that make a film from a scene file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from longshot.cli.checks import check, numbered_files, refuse_errors
from longshot.cli.fits import refuse_command, refuse_options
from longshot.cli.making import make, say
from longshot.cli.options import DEFAULTS, Mode, Options, ScenePath, Texts
from longshot.errors import UserError

if TYPE_CHECKING:
    from longshot.bases.base import Codec
    from longshot.layout import Visibility
    from longshot.sample.plan import History, Plan
    from longshot.sample.story import Story
    from longshot.scene import Scene


def sample(
    scene: ScenePath,
    out: Path,
    mode: Mode = "auto",
    given: Texts = (),
    history: str = "recent",
    reuse_steps: bool = False,
    save_context: bool = False,
    previews: bool = False,
    options: Annotated[Options, arg(name="")] = DEFAULTS,
) -> int:
    """Make a scene into a film: scene.mp4, one video a shot, sheet.png, manifest.json. A stopped run goes on.

    Args:
        out: the folder to make.
        mode: joint makes all shots at once; causal one by one with a KV cache; bidirectional one by one, recomputing the
            history; auto is joint where the base's window holds all shots and no history is chosen, else causal.
        given: pictures or clips that stand for whole shots, as NUMBER=FILE; joint makes the others around them, the modes
            that go one by one let the later shots see them.
        history: of the modes that go one by one: recent, relevant (shots with the same characters first), or which earlier
            shots each shot sees, as "3:1 4:1,2" (shot 3 sees shot 1; shot 4 sees 1 and 2; the others the recent ones).
        reuse_steps: keep the cache of the denoising step nearest context_sigma instead of running one more pass; a run that
            was stopped then starts anew.
        save_context: keep the KV cache in the folder, for `longshot extend`.
        previews: write preview.png into the folder after every step.
    """
    from longshot.sample.plan import autoregressive, together
    from longshot.sample.story import tell
    from longshot.scene import load_scene

    story_file = load_scene(scene)
    files = numbered_files(given)
    chosen = mode_for(mode, story_file, options, history)

    def planned(codec: "Codec", mode: str, window: int | None) -> "tuple[Plan, Story]":
        story = tell(story_file, codec, scene.parent, files, options.seed)
        window = window or codec.spec.max_shots
        if mode == "joint":
            return together(story.global_prompt, story.shots, options.held_at(codec.spec), window), story
        visibility: Visibility = "causal" if mode == "causal" else "scene"
        plan = autoregressive(
            story.global_prompt,
            story.shots,
            visibility=visibility,
            window=window,
            history=_history(history, story),
            context_sigma=options.held_at(codec.spec, visibility),
        )
        return plan, story

    outline = options.outline()
    refuse_options(
        outline.codec.spec,
        options,
        chosen,
        is_cached=chosen == "causal",
        history=history,
        save_context=save_context,
        reuse_steps=reuse_steps,
    )
    refuse_errors(scene, outline.codec)
    options.check_room(
        outline,
        lambda mode, window: planned(outline.codec, mode, window)[0],
        chosen,
        ("causal", "bidirectional"),
        reuse_steps,
    )
    base = options.open(causal=chosen == "causal")
    findings = check(scene, base)
    plan, story = planned(base, chosen, options.window)
    if chosen != "joint":
        _tell_of_last_frames(story_file, chosen)
    saved = {"reuse_steps": reuse_steps, "save_context": save_context, "previews": previews}
    make(base, plan, story, scene, story_file, out, options, chosen, findings, **saved)
    return 0


def interpolate(
    scene: ScenePath,
    out: Path,
    first: Path | None = None,
    last: Path | None = None,
    options: Annotated[Options, arg(name="")] = DEFAULTS,
) -> int:
    """Make the shots between a first and a last one. Ends that aren't given as files are made first, together.

    Args:
        out: the folder to make.
        first: a picture or clip for the first shot.
        last: a picture or clip for the last shot.
    """
    from longshot.sample.plan import Plan, Round
    from longshot.sample.story import tell
    from longshot.scene import load_scene

    story_file = load_scene(scene)
    if len(story_file.shots) < 3:
        raise UserError(
            f"{scene}: has {len(story_file.shots)} shots; interpolation needs a first, a last and one between"
        )
    files = {n: p for n, p in ((1, first), (len(story_file.shots), last)) if p is not None}

    def planned(codec: "Codec") -> "tuple[Plan, Story]":
        story = tell(story_file, codec, scene.parent, files, options.seed)
        ends = (story.place_of(1), story.place_of(len(story_file.shots)))
        known = tuple(s.shot for s in story.shots if s.given is not None)
        to_make = tuple(e for e in ends if e not in known)
        between = tuple(s.shot for s in story.shots if s.shot not in (*known, *to_make))
        window = options.window or codec.spec.max_shots
        if to_make and codec.spec.multishot:
            raise UserError(
                f"interpolate: {codec.spec.name} makes all shots it makes at once: give --first and --last"
            )
        if not between:
            raise UserError(
                f"{scene}: every shot between the first and the last is given: nothing is left to make"
            )
        if len(story.shots) > window:
            raise UserError(
                f"{scene}: {len(story.shots)} shots and images can't all see each other: the window holds {window} at "
                "once; interpolate in parts"
            )
        seen = tuple(sorted({*known, *to_make}))
        rounds = (*([Round(to_make, known)] if to_make else []), Round(between, seen))
        held_at = options.held_at(codec.spec)
        plan = Plan(story.global_prompt, story.shots, rounds, "scene", "recompute", held_at)
        return plan, story

    outline = options.outline()
    refuse_command(outline.codec.spec, "interpolate")
    refuse_options(outline.codec.spec, options, "interpolate", is_cached=False)
    refuse_errors(scene, outline.codec)
    options.check_room(outline, lambda mode, window: planned(outline.codec)[0], "interpolate")
    base = options.open(causal=False)
    findings = check(scene, base)
    plan, story = planned(base)
    make(base, plan, story, scene, story_file, out, options, "interpolate", findings)
    return 0


def compose(
    scene: ScenePath,
    out: Path,
    identity: Path,
    environment: Path,
    swap: Texts = (),
    options: Annotated[Options, arg(name="")] = DEFAULTS,
) -> int:
    """Join a person from one picture and a place from another; then swap the person and go on.

    Args:
        out: the folder to make.
        identity: a picture (or a clip, whose first frame counts) of the person.
        environment: a picture of the place.
        swap: another person's picture from a shot on, as NUMBER=FILE.
    """
    from longshot.sample.compose import composition
    from longshot.sample.story import tell
    from longshot.scene import load_scene

    story_file = load_scene(scene)
    swaps = numbered_files(swap)
    if 1 in swaps:
        raise UserError(f"--swap 1={swaps[1]}: shot 1 begins with --identity; swap from shot 2 on")
    people = {1: identity} | swaps

    def planned(codec: "Codec", window: int | None) -> "tuple[Plan, Story]":
        story = tell(story_file, codec, scene.parent, seed=options.seed)
        window = window or codec.spec.max_shots
        return composition(codec, story, people, environment, window, options.held_at(codec.spec))

    outline = options.outline()
    refuse_command(outline.codec.spec, "compose")
    refuse_options(outline.codec.spec, options, "compose", is_cached=False)
    refuse_errors(scene, outline.codec)
    options.check_room(
        outline, lambda mode, window: planned(outline.codec, window)[0], "compose", ("compose",)
    )
    base = options.open(causal=False)
    findings = check(scene, base)
    plan, story = planned(base, options.window)
    make(base, plan, story, scene, story_file, out, options, "compose", findings)
    return 0


def mode_for(
    mode: Mode, scene: "Scene", options: Options, history: str
) -> Literal["joint", "causal", "bidirectional"]:
    """What `auto` stands for, said aloud."""
    from longshot.bases import load_spec

    spec = load_spec(options.base)
    modes = spec.multishot.modes if spec.multishot else None
    if modes and mode in ("auto", *modes):
        chosen = modes[0] if mode == "auto" else mode
        say(f"mode {chosen}: the one that {spec.name} was trained for")
        return chosen
    if modes:
        raise UserError(f"--mode {mode}: {spec.name} was trained for mode {' and '.join(modes)} only")
    if mode != "auto":
        return mode
    images = sum(r.role != "video" for s in scene.shots for r in s.references)
    total, window = len(scene.shots) + images, options.window or spec.max_shots
    if history != "recent":
        say("mode causal: one shot after the other, each seeing the history you chose")
        return "causal"
    if total <= window:
        say(f"mode joint: the {total} shots and images are made together, in a window of {window}")
        return "joint"
    say(
        f"mode causal: {total} shots and images are more than the window of {window}, so one shot after the other, each "
        f"seeing the last {window - 1} before it{', reference images first' if images else ''}"
    )
    return "causal"


def _tell_of_last_frames(scene: "Scene", mode: str) -> None:
    shots = [
        n for n, s in enumerate(scene.shots, start=1) if any(r.role == "last_frame" for r in s.references)
    ]
    for number in shots:
        say(
            f"shot {number}: mode {mode} makes it before its last frame is seen; --mode joint makes it from that frame too"
        )


def _history(text: str, story: "Story") -> "History | dict[int, list[int]]":
    if text == "recent" or text == "relevant":
        return text
    chosen: dict[int, list[int]] = {}
    for part in text.split():
        shot, colon, seen = part.partition(":")
        numbers = [shot, *filter(None, seen.split(","))]
        if not colon or not all(n.isdecimal() for n in numbers):
            raise UserError(
                f"history {part!r}: write SHOT:SHOT,SHOT for example 4:1,2; or recent; or relevant"
            )
        place, *rest = (story.place_of(int(n)) for n in numbers)
        chosen[place] = rest
    if not chosen:
        raise UserError("--history: say recent, relevant, or which shots each sees, for example 4:1,2")
    return chosen

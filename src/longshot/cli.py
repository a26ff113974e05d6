"""The commands. Heavy imports live inside functions, so that `longshot --help` starts at once."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from longshot.errors import UserError

if TYPE_CHECKING:
    from longshot.bases.base import Base, Spec
    from longshot.lint import Finding
    from longshot.sample.denoise import Contexts, Sampling
    from longshot.sample.forecast import Savings
    from longshot.sample.make import Order, Reel
    from longshot.sample.plan import History, Plan
    from longshot.sample.story import Story
    from longshot.scene import Scene, Shot

Mode = Literal["auto", "joint", "causal", "bidirectional"]
FormatName = Literal[
    "entitybench", "storymem", "holocine", "shotstream", "longlive", "echoshot", "cinetrans", "lines"
]
ScenePath = Annotated[Positional[Path], arg(metavar="SCENE", help="a scene file, YAML or JSON")]
Texts = Annotated[tuple[tuple[str, ...], ...], UseAppendAction]
FilmPath = Annotated[Positional[Path], arg(metavar="FILM", help="a folder that `longshot sample` made")]


@dataclass(frozen=True)
class Options:
    """How to sample; what isn't given is the base's own good value."""

    base: str = "tiny"
    """a name that `longshot bases` lists, a weights file that `longshot train` wrote, a diffusers folder, or owner/repository
    on the hub (with @revision to pin one)"""
    size: str | None = None
    """pixels of a frame, as WIDTHxHEIGHT; the base's own size if not given"""
    steps: int | None = None
    """solver steps a shot"""
    guidance: float | None = None
    """classifier-free guidance; 1 is none and halves the work"""
    solver: Literal["euler", "heun"] = "euler"
    shift: float | None = None
    """shift of the noise levels towards noise"""
    context_sigma: float = 0.1
    """noise level at which history is held: 0.1 keeps detail, 0.5 keeps a long roll-out from drifting"""
    window: int | None = None
    """the most shots that see each other, the one being made included"""
    device: str = "cpu"
    lora: Annotated[tuple[str, ...], UseAppendAction] = ()
    """a LoRA of the base, as FILE or FILE:WEIGHT, or owner/repository/file.safetensors on the hub; again for another"""
    cache_dtype: Literal["own", "fp32", "bf16", "fp8"] = "own"
    """how the KV cache is kept: as the network computes it, or narrower, which moves later shots a little"""
    cache_device: str | None = None
    """where the KV cache is kept; cpu saves memory on a GPU and costs time"""
    weight_dtype: Literal["own", "fp8"] = "own"
    """of a pretrained base: fp8 takes half the memory of bf16 and moves pictures a little"""
    offload: Literal["none", "group"] = "none"
    """of a pretrained base: group keeps weights on the CPU and brings a block at a time"""
    tile_vae: bool = False
    """of a pretrained base: make pixels in tiles"""
    seed: int | None = None
    """instead of the scene's own"""
    scale: int | None = None
    """whole-number enlargement of the frames in the videos"""

    def __post_init__(self):
        for name in ("window", "scale"):
            if (value := getattr(self, name)) is not None and not 1 <= value <= 1000:
                raise UserError(f"--{name} {value}: use a whole number from 1 on")
        for name in ("guidance", "shift", "context_sigma"):
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                raise UserError(f"--{name.replace('_', '-')} {value}: isn't a number to work with")

    def sampling(self, base: "Base", reuse_steps: bool = False) -> "Sampling":
        from longshot.sample.denoise import Sampling

        spec = base.spec
        return Sampling(
            steps=spec.steps if self.steps is None else self.steps,
            shift=spec.shift if self.shift is None else self.shift,
            guidance=spec.guidance if self.guidance is None else self.guidance,
            solver=self.solver,
            reuse_steps=reuse_steps,
            cache_dtype=self.cache_dtype,
        )

    def open(self, causal: bool) -> "Base":
        from dataclasses import replace

        import torch

        from longshot.bases import load_base
        from longshot.bases.economy import Economy, economise

        for option, device in (("--device", self.device), ("--cache-device", self.cache_device or "cpu")):
            try:
                torch.empty(0, device=device)
            except (RuntimeError, AssertionError, NotImplementedError):
                raise UserError(f"{option} {device}: there is none here; use cpu") from None
        dtype = torch.float32 if self.device.startswith("cpu") else torch.bfloat16  # of pretrained bases
        base = load_base(self.base, "causal" if causal else "bidirectional", dtype)
        if self.lora:
            from longshot.bases.lora import load_adapters

            load_adapters(base, self.lora)
        economise(base, Economy(self.weight_dtype, self.offload, self.tile_vae), self.device)
        base.spec = replace(base.spec, size=self.frame_size(base.spec))
        return base

    def check_room(self, scene: "Scene", mode: str, folder: Path) -> None:
        """UserError, before anything is loaded, for more shots than a pretrained base has memory for here."""
        from longshot.bases import is_native, load_spec

        if is_native(self.base):
            return
        from longshot.sample.forecast import check_room

        size = None if self.size is None else self.frame_size(load_spec(self.base))
        check_room(
            scene,
            self.base,
            mode,
            folder,
            size=size,
            window=self.window,
            device=self.device,
            savings=self.savings(),
        )

    def savings(self) -> "Savings":
        """What is asked for to need less memory."""
        from longshot.bases.economy import Economy
        from longshot.sample.forecast import Savings

        elsewhere = self.cache_device is not None and self.cache_device != self.device
        return Savings(Economy(self.weight_dtype, self.offload, self.tile_vae), self.cache_dtype, elsewhere)

    def frame_size(self, spec: "Spec") -> tuple[int, int]:
        """(width, height) of the frames to make. Raises UserError for a size that the base can't make."""
        if self.size is None:
            return spec.size
        width, x, height = self.size.lower().partition("x")
        if not (x and width.isdecimal() and height.isdecimal()):
            raise UserError(
                f"--size {self.size}: write WIDTHxHEIGHT, for example {spec.size[0]}x{spec.size[1]}"
            )
        spec.grid(spec.min_frames, int(width), int(height))
        return int(width), int(height)


# -- scene files --------------------------------------------------------------------------------------------------------
def lint(scene: ScenePath, base: str = "tiny") -> int:
    """Check a scene file: errors that stop a render, and warnings a director wants to know."""
    from longshot.lint import lint_file

    limits = _open_limits(base)
    _, findings = lint_file(scene, limits, _unreadable)
    for finding in findings:
        print(finding.text(scene))
    errors = sum(f.level == "error" for f in findings)
    print(
        f"{scene}: {errors} errors, {len(findings) - errors} warnings"
        if findings
        else f"{scene}: nothing to say"
    )
    return 1 if errors else 0


def import_(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    format: FormatName,
    out: Path,
    index: int | None = None,
) -> int:
    """Turn a script of another project into a scene file; says what the scene can't hold.

    Args:
        file: the script; for longlive a folder.
        format: what kind of script it is.
        out: the scene file to write (.yaml).
        index: which script, from 1, where a file holds several.
    """
    from longshot.formats import import_scene
    from longshot.scene import save_scene

    if out.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"{out}: scene files are written as YAML; the name must end in .yaml")
    scene, left = import_scene(file, format, index=index)
    save_scene(scene, out)
    print(f"{out}: {len(scene.shots)} shots, {len(scene.characters)} characters")
    _list("kept aside, since a scene has no place for it:", left)
    return 0


def export(scene: ScenePath, format: FormatName, out: Path) -> int:
    """Write a scene as a script of another project; says what that format can't hold.

    Args:
        format: what kind of script to write.
        out: the file (for longlive the folder) to write.
    """
    from longshot.formats import export_scene
    from longshot.scene import load_scene

    lost = export_scene(load_scene(scene), out, format)
    print(f"{out}: written as {format}")
    _list("not held by this format:", lost)
    return 0


# -- films --------------------------------------------------------------------------------------------------------------
def sample(
    scene: ScenePath,
    out: Path,
    mode: Mode = "auto",
    given: Texts = (),
    history: str = "recent",
    reuse_steps: bool = False,
    save_context: bool = False,
    previews: bool = False,
    options: Annotated[Options, arg(name="")] = Options(),
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
    files = _numbered_files(given)
    chosen = _mode_for(mode, story_file, options, history)
    for name, asked in (("--reuse-steps", reuse_steps), ("--save-context", save_context)):
        if asked and chosen != "causal":
            raise UserError(f"{name} is about the KV cache, which {chosen} hasn't; give --mode causal")
    options.check_room(story_file, chosen, scene.parent)
    base = options.open(causal=chosen == "causal")
    findings = _check(scene, base)
    story = tell(story_file, base, scene.parent, files, options.seed)
    window = options.window or base.spec.max_shots
    if chosen == "joint":
        plan = together(story.global_prompt, story.shots, options.context_sigma, window)
    else:
        plan = autoregressive(
            story.global_prompt,
            story.shots,
            visibility="causal" if chosen == "causal" else "scene",
            memory="cache" if chosen == "causal" else "recompute",
            window=window,
            history=_history(history, story),
            context_sigma=options.context_sigma,
        )
    if chosen != "joint":
        _tell_of_last_frames(story_file, chosen)
    saved = {"reuse_steps": reuse_steps, "save_context": save_context, "previews": previews}
    _make(base, plan, story, scene, story_file, out, options, chosen, findings, **saved)
    return 0


def interpolate(
    scene: ScenePath,
    out: Path,
    first: Path | None = None,
    last: Path | None = None,
    options: Annotated[Options, arg(name="")] = Options(),
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
    base = options.open(causal=False)
    findings = _check(scene, base)
    story = tell(story_file, base, scene.parent, files, options.seed)
    ends = (story.place_of(1), story.place_of(len(story_file.shots)))
    known = tuple(s.shot for s in story.shots if s.given is not None)
    to_make = tuple(e for e in ends if e not in known)
    between = tuple(s.shot for s in story.shots if s.shot not in (*known, *to_make))
    window = options.window or base.spec.max_shots
    if not between:
        raise UserError(
            f"{scene}: every shot between the first and the last is given: nothing is left to make"
        )
    if len(story.shots) > window:
        raise UserError(
            f"{scene}: {len(story.shots)} shots and images can't all see each other: the window holds {window} at once; "
            "interpolate in parts"
        )
    seen = tuple(sorted({*known, *to_make}))
    rounds = (*([Round(to_make, known)] if to_make else []), Round(between, seen))
    plan = Plan(story.global_prompt, story.shots, rounds, "scene", "recompute", options.context_sigma)
    _make(base, plan, story, scene, story_file, out, options, "interpolate", findings)
    return 0


def compose(
    scene: ScenePath,
    out: Path,
    identity: Path,
    environment: Path,
    swap: Texts = (),
    options: Annotated[Options, arg(name="")] = Options(),
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
    base = options.open(causal=False)
    findings = _check(scene, base)
    story = tell(story_file, base, scene.parent, seed=options.seed)
    swaps = _numbered_files(swap)
    if 1 in swaps:
        raise UserError(f"--swap 1={swaps[1]}: shot 1 begins with --identity; swap from shot 2 on")
    people = {1: identity} | swaps
    window = options.window or base.spec.max_shots
    plan, story = composition(base, story, people, environment, window, options.context_sigma)
    _make(base, plan, story, scene, story_file, out, options, "compose", findings)
    return 0


def reshoot(
    film: FilmPath,
    shot: int,
    prompt: str | None = None,
    take: int | None = None,
    options: Annotated[Options, arg(name="")] = Options(),
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

    base = options.open(causal=False)
    reel = film_to_continue(film, base)
    if shot not in reel.numbers:
        raise UserError(f"{film}: has no shot {shot}; it has shots 1 to {len(reel.scene.shots)}")
    place = reel.numbers.index(shot) + 1
    seed, key, old_take = reel.shots[place - 1].noise
    take, seed = old_take + 1 if take is None else take, seed if options.seed is None else options.seed
    changed = {"take": take} | ({} if prompt is None else {"prompt": prompt})
    changed |= {} if options.seed is None else {"seed": seed}
    scene = Scene.model_validate(reel.scene.model_dump())
    scene.shots[shot - 1] = _shot(f"shot {shot}", scene.shots[shot - 1].model_dump() | changed)
    findings = _check_shots(film, scene, base, [shot])
    words = None if prompt is None else scene.shot_prompts()[shot - 1]
    if words and not reel.shots[place - 1].prompt.startswith(SHOT_CUT):  # a first-frame image has the cut
        words = words.removeprefix(SHOT_CUT).lstrip()
    new = again(reel.shots, place, words, take)
    new[place - 1] = replace(new[place - 1], noise=(seed, key, take))
    seen = nearest(len(new), place, options.window or base.spec.max_shots)
    plan = together(scene.global_prompt(), new, options.context_sigma, seen=seen)
    _remake(base, plan, reel, reel.numbers, scene, film, options, "reshoot", findings)
    return 0


def extend(
    film: FilmPath,
    prompt: Texts,
    frames: int | None = None,
    cut: bool = False,
    mode: Literal["causal", "bidirectional"] = "causal",
    options: Annotated[Options, arg(name="")] = Options(),
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
    base = options.open(causal=mode == "causal")
    reel = film_to_continue(film, base)
    first = len(reel.scene.shots) + 1
    new = [
        _shot(f"shot {n}", {"prompt": text, "cut": cut, "frames": frames})
        for n, text in enumerate(prompts, start=first)
    ]
    scene = Scene.model_validate(reel.scene.model_dump() | {"shots": [*reel.scene.shots, *new]})
    findings = _check_shots(film, scene, base, range(first, first + len(new)))
    shots, numbers = continued(base, reel, scene, options.seed)
    plan = autoregressive(
        scene.global_prompt(),
        shots,
        visibility="causal" if mode == "causal" else "scene",
        memory="cache" if mode == "causal" else "recompute",
        window=options.window or base.spec.max_shots,
        context_sigma=options.context_sigma,
    )
    branches = options.sampling(base).branches
    contexts = (
        FilmFolder(film).load_contexts(base.fingerprint(), branches, reel.keys) if mode == "causal" else None
    )
    _remake(base, plan, reel, numbers, scene, film, options, f"extend, {mode}", findings, contexts)
    return 0


# -- numbers ------------------------------------------------------------------------------------------------------------
def plan(
    scene: ScenePath,
    base: str = "tiny",
    mode: Mode = "auto",
    size: str | None = None,
    cache_dtype: Literal["own", "fp32", "bf16", "fp8"] = "own",
    cache_device: str | None = None,
    weight_dtype: Literal["own", "fp8"] = "own",
    offload: Literal["none", "group"] = "none",
) -> int:
    """Say what a scene costs before anything is made: tokens, parameters, FLOPs, memory, cache, predicted time.

    Args:
        base: tiny, native-3b, a weights file, a name that `longshot bases` lists, a diffusers folder, or owner/repository; of
            pretrained bases only the configs are read.
        mode: as in `longshot sample`.
        size: pixels of a frame, as WIDTHxHEIGHT; the base's own size if not given.
        cache_dtype: as in `longshot sample`, like the three below.
    """
    import torch

    from longshot.bases import is_native, load_spec
    from longshot.bases.native import PRESETS
    from longshot.sample.forecast import forecast_scene, lines
    from longshot.scene import load_scene

    here = "cuda" if torch.cuda.is_available() and not (base in PRESETS or is_native(base)) else "cpu"
    frame = Options(size=size).frame_size(load_spec(base)) if size else None
    asked = Options(
        device=here,
        cache_dtype=cache_dtype,
        cache_device=cache_device,
        weight_dtype=weight_dtype,
        offload=offload,
    )
    forecast = forecast_scene(
        load_scene(scene), base, mode, scene.parent, size=frame, device=here, savings=asked.savings()
    )
    print("\n".join(lines(forecast)))
    return 0


def bases() -> int:
    """List the bases: size, licence, memory a shot, and what each can do."""
    from longshot.bases import REPOSITORIES
    from longshot.bases.native import PRESETS
    from longshot.bases.shape import known_shapes
    from longshot.layout import Group

    def facts(spec: "Spec", end: str) -> str:
        width, height = spec.size
        return (
            f"{spec.name}: {width}x{height} at {spec.fps} fps, shots of {spec.stride[0]}n+{spec.frame_offset} frames up to "
            f"{spec.max_frames}, {spec.max_shots} shots a window; {spec.licence}; {end}"
        )

    for make in PRESETS.values():
        spec = make().spec
        print(
            facts(
                spec, "ships with longshot" if spec.name == "tiny" else "a preset to train: no weights ship"
            )
        )
    for name, shape in known_shapes().items():
        spec, gib = shape.spec, 2**30
        group = Group(1, 0 if shape.cross else 256, spec.grid(spec.default_frames, *spec.size))
        does = "all modes; trained on single shots, not yet on scenes"
        print(facts(spec, f"huggingface.co/{REPOSITORIES[name]}"))
        print(
            f"    {shape.parameters / 1e9:.1f}B parameters, {shape.weight_bytes / gib:.0f} GiB in bf16 with text encoder and "
            f"VAE; {group.tokens:,} tokens and {shape.shot_bytes(group) / gib:.1f} GiB of cache a shot; {does}"
        )
    return 0


def train(
    world: Annotated[Positional[Literal["puppets", "shards"]], arg(metavar="WORLD")],
    out: Path,
    stage: Literal["all", "single", "lct", "causal"] = "all",
    steps: int | None = None,
    init: Path | None = None,
    data: Path | None = None,
    budget: int = 20_000,
    packs: int = 1,
    workers: int = 1,
    device: str = "cpu",
    checkpoint_seconds: float = 180,
) -> int:
    """Train a native base: single shots, then Long Context Tuning, then the context-causal fine-tune. A stopped run goes on.

    On several processes: torchrun --nproc-per-node 2 -m longshot train puppets --out DIR

    Args:
        world: puppets, drawn on the way; or shards, scenes that `longshot data` made.
        out: the run's folder, with one folder a stage in it.
        stage: one stage, or all of them in order.
        steps: of this stage, instead of the recipe's.
        init: weights that the first of these stages starts from; the others start from the stage before them.
        data: the folder of the shards.
        budget: of shards, the most tokens a pack of scenes has.
        packs: of shards, packs a step; processes must share them evenly.
        workers: processes that make scenes ready ahead.
        checkpoint_seconds: how often the state is saved.
    """
    from longshot.train.stages import train_puppets, train_shards

    if (world == "shards") != (data is not None):
        raise UserError(
            "--data: say where the shards lie" if data is None else "--data is for `longshot train shards`"
        )
    if data is None:
        train_puppets(out, stage, steps, init, workers, device, checkpoint_seconds)
    else:
        train_shards(out, data, stage, steps, init, budget, packs, workers, device, checkpoint_seconds)
    return 0


def lora(
    before: Annotated[Positional[str], arg(metavar="BEFORE")],
    after: Annotated[Positional[str], arg(metavar="AFTER")],
    out: Path,
    rank: int = 16,
) -> int:
    """Write what a fine-tune did to a base as a LoRA, for `--lora`; says how much of it fits into the rank.

    Args:
        before: the base that was tuned: tiny, a weights file, a diffusers folder.
        after: the same base, tuned.
        out: the .safetensors file to write, in diffusers' layout.
        rank: of every matrix; a larger one keeps more.
    """
    from longshot.bases import load_base
    from longshot.bases.lora import difference, save_adapter

    if rank < 1:
        raise UserError(f"--rank {rank}: use a whole number from 1 on")
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: LoRAs are written as safetensors; the name must end in .safetensors")
    old, new = (load_base(name) for name in (before, after))
    networks = (getattr(base, "network") for base in (old, new))  # noqa: B009 - every base has one
    adapter, share = difference(after, *networks, rank)
    save_adapter(out, adapter)
    print(f"{out}: rank {rank}, {share:.3f} of what changed")
    return 0


def eval_(
    world: Annotated[Positional[Literal["puppets"]], arg(metavar="WORLD")],
    out: Path,
    scenes: int = 50,
    seed: int = 0,
    tasks: tuple[str, ...] = (),
    bidirectional: str = "tiny",
    causal: str = "tiny",
) -> int:
    """Score the tiny base against the puppet world's ground truth, a wrong-condition control and chance: scores.json.

    Args:
        world: what to score on.
        out: the folder to write.
        scenes: held-out scenes a task.
        seed: which held-out scenes.
        tasks: some tasks only; all when none are named.
        bidirectional: weights for full attention.
        causal: weights for context-causal attention.
    """
    from longshot.bases import load_base
    from longshot.eval.puppets import EvalConfig, Progress, evaluate
    from longshot.eval.report import write

    config = EvalConfig(scenes=scenes, seed=seed, tasks=tasks)

    def tell(at: Progress) -> None:
        if at.done == at.total:
            _say(f"{at.task}: {at.run} done, {at.total} scenes")

    scores = evaluate(load_base(bidirectional), load_base(causal, "causal"), config, tell)
    write(scores, out)
    print(f"{out / 'scores.json'}")
    return 0


def data() -> int:
    """Raw films to training scenes: `longshot data --help` lists the stages, `longshot data run CONFIG` runs them all."""
    raise AssertionError("main hands these commands over")


COMMANDS: dict[str, Callable[..., int]] = {
    "lint": lint,
    "plan": plan,
    "import": import_,
    "export": export,
    "sample": sample,
    "extend": extend,
    "interpolate": interpolate,
    "compose": compose,
    "reshoot": reshoot,
    "data": data,
    "train": train,
    "lora": lora,
    "eval": eval_,
    "bases": bases,
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command; exits with 2 for bad input (one line says what), 130 when it was stopped."""
    args = sys.argv[1:] if args is None else list(args)
    try:
        name, told, commands = "longshot", __doc__, COMMANDS
        if args[:1] == ["data"]:
            from longshot.data import commands as of_data

            name, told, commands, args = "longshot data", of_data.__doc__, of_data.COMMANDS, args[1:]
        code = tyro.extras.subcommand_cli_from_dict(commands, args=args, prog=name, description=told)
        sys.stdout.flush()
    except UserError as error:
        print(f"longshot: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(
            "longshot: stopped; what was finished is on disk, and the same command goes on from there",
            file=sys.stderr,
        )
        code = 130
    except BrokenPipeError:  # a reader such as `head` has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


# -- pieces of the commands ---------------------------------------------------------------------------------------------
def _say(text: str) -> None:
    print(text, flush=True)


def _list(heading: str, items: Sequence[str]) -> None:
    if items:
        print(heading)
    for item in items:
        print(f"  {item}")


def _open_limits(base: str):
    from longshot.bases import is_native, load_base
    from longshot.bases.native import PRESETS, limits_of

    if base in PRESETS:
        return limits_of(PRESETS[base]().spec)
    if is_native(base):
        return load_base(base).limits()
    from longshot.bases.shape import Blueprint, load_shape

    return Blueprint(load_shape(base).spec).limits()  # tokens are estimated: no tokenizer is loaded


def _unreadable(path: Path) -> str | None:
    """What is wrong with a reference file, or None."""
    from longshot.sample.story import is_still
    from longshot.video import probe, read_image

    try:
        read_image(path) if is_still(path) else probe(path)
    except UserError as error:
        return str(error)
    return None


def _check(path: Path, base: "Base") -> "list[Finding]":
    """Lints before rendering: warnings are shown, errors stop."""
    from longshot.lint import lint_file

    _, findings = lint_file(path, base.limits(), _unreadable)
    for finding in findings:
        if finding.level == "warning":
            print(finding.text(path))
    errors = [f for f in findings if f.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more; `longshot lint` lists them)" if len(errors) > 1 else ""
        raise UserError(errors[0].text(path) + more)
    return findings


def _check_shots(film: Path, scene: "Scene", base: "Base", numbers: Sequence[int]) -> "list[Finding]":
    """Lints a film's scene of which some shots are new: their warnings are shown, their errors stop."""
    from longshot.lint import lint

    findings = lint(scene, None, base.limits())
    for finding in findings:
        if finding.field.split(",")[0] in [f"shot {n}" for n in numbers]:
            if finding.level == "error":
                raise UserError(finding.text(film))
            print(finding.text(film))
    return findings


def _shot(label: str, fields: dict) -> "Shot":
    """A shot made of a person's own arguments."""
    from pydantic import ValidationError

    from longshot.scene import Shot

    try:
        return Shot.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{label}: {', '.join(map(str, first['loc']))}: {first['msg']}") from None


def _outside(findings: "Sequence[Finding]") -> list[str]:
    return [f"{f.field}: {f.message}" for f in findings if "outside the world of" in f.message]


def _numbered_files(texts: Sequence[Sequence[str]]) -> dict[int, Path]:
    """NUMBER=FILE, each number once."""
    files: dict[int, Path] = {}
    for text in (text for some in texts for text in some):
        number, equals, name = text.partition("=")
        if not (equals and name and number.isdecimal()):
            raise UserError(f"{text!r}: write NUMBER=FILE, for example 1=first.png")
        if int(number) in files:
            raise UserError(f"{text!r}: shot {int(number)} has {files[int(number)]} already")
        files[int(number)] = Path(name)
    return files


def _mode_for(
    mode: Mode, scene: "Scene", options: Options, history: str
) -> Literal["joint", "causal", "bidirectional"]:
    """What `auto` stands for, said aloud."""
    from longshot.bases import load_spec
    from longshot.bases.native import TINY_SPEC

    if mode == "joint" and history != "recent":
        raise UserError(
            "--history: in joint mode all shots see each other; give --mode causal or bidirectional"
        )
    if mode != "auto":
        return mode
    spec = TINY_SPEC if options.base == TINY_SPEC.name else load_spec(options.base)
    images = sum(r.role != "video" for s in scene.shots for r in s.references)
    total, window = len(scene.shots) + images, options.window or spec.max_shots
    if history != "recent":
        _say("mode causal: one shot after the other, each seeing the history you chose")
        return "causal"
    if total <= window:
        _say(f"mode joint: the {total} shots and images are made together, in a window of {window}")
        return "joint"
    _say(
        f"mode causal: {total} shots and images are more than the window of {window}, so one shot after the other, each "
        f"seeing the last {window - 1} before it{', reference images first' if images else ''}"
    )
    return "causal"


def _tell_of_last_frames(scene: "Scene", mode: str) -> None:
    shots = [
        n for n, s in enumerate(scene.shots, start=1) if any(r.role == "last_frame" for r in s.references)
    ]
    for number in shots:
        _say(
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


def _make(
    base: "Base",
    plan: "Plan",
    story: "Story",
    path: Path,
    scene: "Scene",
    out: Path,
    options: Options,
    mode: str,
    findings: "Sequence[Finding]",
    reuse_steps: bool = False,
    save_context: bool = False,
    previews: bool = False,
) -> None:
    """Runs a plan made from a scene file."""
    from longshot.sample.make import Order, names_for

    for note in story.notes:
        print(note)
    title = scene.title or path.stem
    order = Order(
        plan=plan,
        sampling=options.sampling(base, reuse_steps),
        names=names_for(story.numbers),
        numbers=tuple(story.numbers),
        mode=mode,
        facts={"title": title, "mode": mode, "loras": list(options.lora), **_facts(scene, findings)},
        scale=options.scale or base.spec.display_scale,
        save_context=save_context,
    )
    _run(base, order, out, options, previews=previews)


def _remake(
    base: "Base",
    plan: "Plan",
    reel: "Reel",
    numbers: Sequence[int | None],
    scene: "Scene",
    film: Path,
    options: Options,
    mode: str,
    findings: "Sequence[Finding]",
    contexts: "Contexts | None" = None,
) -> None:
    """Runs a plan made from a finished film, in its folder. `scene` is what the film then is."""
    from longshot.sample.make import Order, names_for

    facts = {key: reel.manifest[key] for key in ("title", "mode") if key in reel.manifest}
    order = Order(
        plan=plan,
        sampling=options.sampling(base),
        names=(*reel.names, *names_for(numbers)[len(reel.names) :]),
        numbers=tuple(numbers),
        mode=mode,
        facts=facts | {"loras": list(options.lora)} | _facts(scene, findings),
        scale=options.scale or reel.scale or base.spec.display_scale,
        save_context=contexts is not None,
    )
    _run(base, order, film, options, contexts)


def _facts(scene: "Scene", findings: "Sequence[Finding]") -> dict:
    return {"outside_words": _outside(findings), "scene": scene.model_dump(mode="json")}


def _run(
    base: "Base",
    order: "Order",
    out: Path,
    options: Options,
    contexts: "Contexts | None" = None,
    previews: bool = False,
) -> None:
    from longshot.sample.make import make_film
    from longshot.sample.progress import Progress

    with Progress(base, order, out if previews else None) as progress:
        make_film(
            base,
            order,
            out,
            base.fingerprint(),
            device=options.device,
            cache_device=options.cache_device,
            contexts=contexts,
            on_step=progress.step,
            on_shot=progress.shot,
        )
    print(f"{out / 'scene.mp4'}  {out / 'sheet.png'}  {out / 'manifest.json'}")

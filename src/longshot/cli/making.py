"""Running a plan, with its progress shown: the last step of every command that makes shots."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longshot.cli.options import Options

if TYPE_CHECKING:
    from longshot.bases.base import Base
    from longshot.lint import Finding
    from longshot.sample.denoise import Contexts
    from longshot.sample.make import Order, Reel
    from longshot.sample.plan import Plan
    from longshot.sample.story import Story
    from longshot.scene import Scene


def make(
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
        sampling=options.sampling(base.spec, reuse_steps),
        names=names_for(story.numbers),
        numbers=tuple(story.numbers),
        mode=mode,
        facts={"title": title, "mode": mode, "loras": list(options.lora), **facts_of(scene, findings)},
        scale=options.scale or base.spec.display_scale,
        save_context=save_context,
    )
    run(base, order, out, options, previews=previews)


def remake(
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
        sampling=options.sampling(base.spec),
        names=(*reel.names, *names_for(numbers)[len(reel.names) :]),
        numbers=tuple(numbers),
        mode=mode,
        facts=facts | {"loras": list(options.lora)} | facts_of(scene, findings),
        scale=options.scale or reel.scale or base.spec.display_scale,
        save_context=contexts is not None,
    )
    run(base, order, film, options, contexts)


def facts_of(scene: "Scene", findings: "Sequence[Finding]") -> dict:
    return {"outside_words": outside(findings), "scene": scene.model_dump(mode="json")}


def outside(findings: "Sequence[Finding]") -> list[str]:
    return [f"{f.field}: {f.message}" for f in findings if "outside the world of" in f.message]


def run(
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


def say(text: str) -> None:
    print(text, flush=True)

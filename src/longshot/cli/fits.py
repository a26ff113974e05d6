"""What a base has no use for is refused before its weights are read: commands, modes and options."""

from typing import TYPE_CHECKING, Literal

from longshot.errors import UserError

if TYPE_CHECKING:
    from longshot.bases.base import MultiShot, Spec
    from longshot.cli.options import Options
    from longshot.sample.plan import Plan

Command = Literal["sample", "extend", "reshoot", "compose", "interpolate"]


def refuse_command(spec: "Spec", command: Command) -> None:
    """UserError for a command that weights for several shots can't follow, with the nearest thing that they can."""
    habits = spec.multishot
    if habits and (advice := _instead(habits, command)):
        raise UserError(f"{command}: {spec.name} {advice}")


def _instead(habits: "MultiShot", command: Command) -> str | None:
    if "joint" not in habits.modes:
        way = "makes one shot after the other and never sees a later one"
        again = "change that shot's prompt or take in the scene file and run `longshot sample` into the same folder, which "
        again += "makes it and those after it again"
        first = "with --given 1=CLIP " if habits.takes != "nothing" else ""
        return {
            "reshoot": f"{way}: {again}",
            "compose": "takes no pictures: describe the person and the place in the scene file and run `longshot sample`",
            "interpolate": f"{way}: run `longshot sample` {first}to make the shots in order",
        }.get(command)
    way = "makes all shots of a film at once"
    files = {
        "extend": f"{way}: add the new shots to the scene file and run `longshot sample`",
        "compose": f"{way}: give both pictures as references in the scene file and run `longshot sample`",
    }
    if habits.takes == "nothing":
        way += ", and none that is there already"
        files |= {
            "reshoot": f"{way}: change the scene file and run `longshot sample`, which makes every shot again",
            "compose": f"{way}: describe the person and the place in the scene file and run `longshot sample`",
            "interpolate": f"{way}: run `longshot sample`",
        }
    return files.get(command)


def refuse_options(
    spec: "Spec",
    options: "Options",
    command: str,
    is_cached: bool,
    history: str = "recent",
    save_context: bool = False,
    reuse_steps: bool = False,
) -> None:
    """UserError for what was asked for and would change nothing. command: or the mode; is_cached: whether it has a KV cache."""
    from longshot.bases.base import holds_history_clean
    from longshot.sample.make import refuse_saving

    name = spec.name
    of_cache = {
        "--reuse-steps": reuse_steps,
        "--save-context": save_context,
        "--cache-dtype": options.cache_dtype != "own",
        "--cache-device": options.cache_device is not None,
        "--share-history": options.share_history,
    }
    for option, is_asked in of_cache.items():
        if is_asked and not is_cached:
            can = command in ("joint", "bidirectional") and (
                not spec.multishot or "causal" in spec.multishot.modes
            )
            raise UserError(
                f"{option} is about the KV cache, which {command} hasn't: {'give --mode causal' if can else 'leave it out'}"
            )
    if history != "recent" and command == "joint":
        advice = "leave it out" if spec.multishot else "give --mode causal or bidirectional"
        raise UserError(f"--history: in joint mode all shots see each other; {advice}")
    if save_context:
        refuse_saving(spec)
    if options.share_history and options.sampling(spec).branches == 1:
        raise UserError(
            "--share-history: is for the two passes of guidance, and guidance 1 has one: leave it out"
        )
    if not holds_history_clean(spec):
        return
    own = "sees a history of its own choice, which doesn't depend on this"
    for option, is_asked, why in (
        ("--context-sigma", options.context_sigma is not None, "reads its history clean"),
        ("--window", options.window is not None, own),
        ("--share-history", options.share_history, own),
        ("--history", history != "recent", own),
    ):
        if is_asked:
            raise UserError(f"{option}: {name} {why}: leave it out")


def refuse_unused_level(plan: "Plan", options: "Options") -> None:
    """UserError for --context-sigma where a plan holds nothing at it."""
    if options.context_sigma is not None and plan.memory != "cache" and not any(r.given for r in plan.rounds):
        raise UserError(
            "--context-sigma: all shots are made at once and none is given, so none is held: leave it out"
        )

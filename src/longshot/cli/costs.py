"""The commands that answer what there is and what it costs."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from longshot.cli.options import Mode, Options, ScenePath

if TYPE_CHECKING:
    from longshot.bases.base import Spec


def plan(
    scene: ScenePath,
    base: str = "tiny",
    mode: Mode = "auto",
    size: str | None = None,
    cache_dtype: Literal["own", "fp32", "bf16", "fp8"] = "own",
    cache_device: str | None = None,
    share_history: bool = False,
    weight_dtype: Literal["own", "fp8", "int8"] = "own",
    offload: Literal["none", "group", "model"] = "none",
    transformer: Path | None = None,
) -> int:
    """Say what a scene costs before anything is made: tokens, parameters, FLOPs, memory, cache, predicted time.

    Args:
        base: tiny, native-3b, a weights file, a name that `longshot bases` lists, a diffusers folder, or owner/repository; of
            pretrained bases only the configs are read.
        mode: as in `longshot sample`.
        size: pixels of a frame, as WIDTHxHEIGHT; the base's own size if not given.
        cache_dtype: as in `longshot sample`, like the four below.
        transformer: one file (safetensors or GGUF) that holds the base's transformer; its header is read.
    """
    import torch

    from longshot.bases import is_native, load_spec
    from longshot.bases.native import PRESETS
    from longshot.cli.fits import refuse_options
    from longshot.sample.forecast import forecast_scene, lines
    from longshot.scene import load_scene

    here = "cuda" if torch.cuda.is_available() and not (base in PRESETS or is_native(base)) else "cpu"
    frame = Options(size=size).frame_size(load_spec(base)) if size else None
    asked = Options(
        device=here,
        cache_dtype=cache_dtype,
        cache_device=cache_device,
        share_history=share_history,
        weight_dtype=weight_dtype,
        offload=offload,
    )
    if mode != "auto":
        refuse_options(load_spec(base), asked, mode, is_cached=mode == "causal")
    forecast = forecast_scene(
        load_scene(scene),
        base,
        mode,
        scene.parent,
        size=frame,
        device=here,
        savings=asked.savings(),
        transformer=transformer,
    )
    print("\n".join(lines(forecast)))
    return 0


def bases() -> int:
    """List the bases: size, licence, memory a shot, and what each can do."""
    from longshot.bases import REPOSITORIES
    from longshot.bases.native import PRESETS
    from longshot.bases.published import PUBLISHED
    from longshot.bases.shape import known_shapes
    from longshot.layout import Group

    def facts(spec: "Spec", end: str) -> str:
        width, height = spec.size
        return (
            f"{spec.name}: {width}x{height} at {spec.fps} fps, shots of {spec.frame_step}n+{spec.first_frames} frames up to "
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
    for name, entry in PUBLISHED.items():
        spec, modes = entry.spec, " and ".join(entry.spec.multishot.modes if entry.spec.multishot else ())
        print(facts(spec, f"over {entry.over}, trained for films of several shots, mode {modes}"))
        terms = "" if entry.is_open else f" (first `longshot accept {name}`: {entry.terms})"
        files, second = (
            f"{entry.hub[1]} {entry.second}".rstrip(),
            " --second THE_OTHER" if entry.second else "",
        )
        print(
            f"    huggingface.co/{entry.hub[0]} {files}, then `longshot convert {name} THAT_FILE{second}`{terms}"
        )
    return 0

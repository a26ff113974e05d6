"""What a person can say of how to sample, and the arguments that commands share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from longshot.errors import UserError

if TYPE_CHECKING:
    from longshot.bases.base import Base, Spec
    from longshot.layout import Visibility
    from longshot.sample.denoise import Sampling
    from longshot.sample.forecast import Outline, PlanFor, Savings
    from longshot.sample.plan import Plan

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
    transformer: Path | None = None
    """of a pretrained base: one file (.safetensors or .gguf) with its transformer, in the place of the one in its folder"""
    size: str | None = None
    """pixels of a frame, as WIDTHxHEIGHT; the base's own size if not given"""
    steps: int | None = None
    """solver steps a shot"""
    guidance: float | None = None
    """classifier-free guidance; 1 is none and halves the work"""
    solver: Literal["euler", "heun", "stochastic", "unipc", "dpm++"] | None = None
    """stochastic puts fresh noise on in every step, which forgives a small base its early errors"""
    shift: float | None = None
    """shift of the noise levels towards noise"""
    context_sigma: float | None = None
    """noise level at which history is held: the base's own, which keeps detail, if not given; 0.5 keeps a long roll-out from
    drifting"""
    window: int | None = None
    """the most shots that see each other, the one being made included"""
    device: str = "cpu"
    lora: Annotated[tuple[str, ...], UseAppendAction] = ()
    """a LoRA of the base, as FILE or FILE:WEIGHT, or owner/repository/file.safetensors on the hub; again for another"""
    cache_dtype: Literal["own", "fp32", "bf16", "fp8"] = "own"
    """how the KV cache is kept: as the network computes it, or narrower, which moves later shots a little"""
    cache_device: str | None = None
    """where the KV cache is kept; cpu saves memory on a GPU and costs time"""
    share_history: bool = False
    """with guidance: the pass without words reads the KV cache of the pass with words, so that one is kept instead of two"""
    weight_dtype: Literal["own", "fp8", "int8"] = "own"
    """of a pretrained base: fp8 and int8 take half the memory of bf16 and move pictures a little"""
    offload: Literal["none", "group", "model"] = "none"
    """of a pretrained base: group keeps weights on the CPU and brings a block at a time, model a whole network at a time"""
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

    def held_at(self, spec: "Spec", visibility: "Visibility" = "scene") -> float:
        """The noise level at which history is held."""
        return spec.held_at(visibility, self.context_sigma)

    def sampling(self, spec: "Spec", reuse_steps: bool = False) -> "Sampling":
        from longshot.sample.denoise import Sampling

        return Sampling(
            steps=spec.steps if self.steps is None else self.steps,
            shift=self.shift if self.shift is not None else None if spec.shifts else spec.shift,
            guidance=spec.guidance if self.guidance is None else self.guidance,
            solver=spec.solver if self.solver is None else self.solver,
            reuse_steps=reuse_steps,
            cache_dtype=self.cache_dtype,
            share_history=self.share_history,
        )

    def open(self, causal: bool) -> "Base":
        from dataclasses import replace

        import torch

        from longshot.bases import load_base
        from longshot.bases.economy import Economy, economise

        self.check_devices()
        dtype = torch.float32 if self.device.startswith("cpu") else torch.bfloat16  # of pretrained bases
        base = load_base(self.base, "causal" if causal else "bidirectional", dtype, self.transformer)
        if self.lora:
            from longshot.bases.lora import load_adapters

            load_adapters(base, self.lora)
        economise(base, Economy(self.weight_dtype, self.offload, self.tile_vae), self.device)
        base.spec = replace(base.spec, size=self.frame_size(base.spec))
        return base

    def check_devices(self) -> None:
        """UserError for a device that isn't here."""
        import torch

        for option, device in (("--device", self.device), ("--cache-device", self.cache_device or "cpu")):
            try:
                torch.empty(0, device=device)
            except (RuntimeError, AssertionError, NotImplementedError):
                raise UserError(f"{option} {device}: there is none here; use cpu") from None

    def outline(self) -> "Outline":
        """The base before it is loaded. Raises UserError for one that isn't there, and for a size it can't make."""
        from longshot.bases import load_spec, refuse_preset
        from longshot.sample.forecast import outline_of

        refuse_preset(self.base)
        self.check_devices()
        size = None if self.size is None else self.frame_size(load_spec(self.base))
        return outline_of(self.base, self.device, size, self.savings(), self.transformer)

    def check_room(
        self,
        outline: "Outline",
        plan_for: "PlanFor",
        mode: str,
        others: Sequence[str] = (),
        reuse_steps: bool = False,
    ) -> None:
        """UserError, before anything is loaded, for a plan that the base can't follow, or that needs more memory than there is
        here. See `forecast`."""
        from longshot.cli.fits import refuse_unused_level
        from longshot.sample.forecast import check_room

        def planned(mode: str, window: int | None) -> "Plan":
            plan = plan_for(mode, window)
            refuse_unused_level(plan, self)
            return plan

        check_room(
            outline,
            planned,
            mode,
            self.sampling(outline.codec.spec, reuse_steps),
            window=self.window,
            others=others,
            device=self.device,
            cache_elsewhere=self.savings().cache_elsewhere,
        )

    def savings(self) -> "Savings":
        """What is asked for to need less memory."""
        from longshot.bases.economy import Economy
        from longshot.sample.forecast import Savings

        elsewhere = self.cache_device is not None and self.cache_device != self.device
        economy = Economy(self.weight_dtype, self.offload, self.tile_vae)
        return Savings(economy, self.cache_dtype, elsewhere, self.share_history)

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


DEFAULTS = Options()

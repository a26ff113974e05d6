"""The native base: an MMDiT of our own over pixel patches, from the shipped tiny one to the paper's 3B.

The codec is the identity: a token is a patch of pixels, 4 frames x 8 x 8 pixels x RGB = 768 numbers in [-1, 1]. An image is a
patch that stands still for 4 frames.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longshot.bases.base import Spec
from longshot.bases.text import TokenTable, outside_words
from longshot.errors import UserError
from longshot.flow import per_token, velocity_from_clean
from longshot.layout import Layout, RopeMode, Visibility
from longshot.lint import Limits
from longshot.model.attention import Kernel
from longshot.model.context import Context
from longshot.model.mmdit import MMDiT, MMDiTConfig, memories_from
from longshot.tensors import save_tensors

FORMAT = "longshot-native-1"

TINY_SPEC = Spec(
    name="tiny",
    licence="Apache-2.0",
    fps=Fraction(8),
    size=(48, 32),
    stride=(4, 8, 8),
    channels=4 * 8 * 8 * 3,
    frame_offset=0,
    default_frames=12,
    max_frames=16,
    max_shots=6,
    max_text_tokens=512,
    display_scale=8,
    guidance=1.0,
    steps=16,
    shift=3.0,
    solver="stochastic",
    rope="aligned",
    causal_context_sigma=0.0,
)
_ALONG = ((0, 0, 0), (-1, -1, 0), (1, 1, 0), (0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0))
_BETWEEN_STEPS = ((0, 0, -1), (-1, 0, -1), (1, 0, -1), (0, -1, 1), (0, 1, 1))
TINY_MOVES = (*_ALONG, *_BETWEEN_STEPS)
"""What people and pans do at a pixel a frame; a walker's last picture is mostly a pixel higher up than where it stops. The
bidirectional weights that ship know those along only."""


@dataclass(frozen=True)
class NativeConfig:
    """A native base: its spec and the sizes of its network."""

    spec: Spec
    network: MMDiTConfig


def tiny() -> NativeConfig:
    """The base that ships with longshot: 12M parameters, 48x32 pixels at 8 frames a second."""
    network = MMDiTConfig(
        channels=TINY_SPEC.channels,
        text_dim=128,
        width=192,
        depth=8,
        heads=4,
        cond_width=96,
        detail_width=896,
        patch=TINY_SPEC.stride,
        refiner_width=64,
        refiner_depth=3,
        refiner_moves=TINY_MOVES,
        refines_below=0.7,
        rope=TINY_SPEC.rope,
    )
    return NativeConfig(TINY_SPEC, network)


def native_3b() -> NativeConfig:
    """About the paper's size (3B parameters, area 480x480, 10 s at 24 frames a second) and with its positions, over 16x16x4
    patches."""
    spec = replace(
        TINY_SPEC,
        name="native-3b",
        fps=Fraction(24),
        size=(640, 352),
        stride=(4, 16, 16),
        channels=4 * 16 * 16 * 3,
        default_frames=120,
        max_frames=240,
        max_shots=9,
        max_text_tokens=512,
        display_scale=1,
        rope="interleaved",
    )
    network = MMDiTConfig(
        channels=spec.channels,
        text_dim=128,
        width=2048,
        depth=24,
        heads=16,
        cond_width=640,
        text_depth=4,
        theta=10000.0,
        rope=spec.rope,
    )
    return NativeConfig(spec, network)


PRESETS = {"tiny": tiny, "native-3b": native_3b}


class NativeBase:
    """A `Base` around the native network."""

    def __init__(self, config: NativeConfig, network: MMDiT, kernel: Kernel = "prefix"):
        self.config = config
        self.spec = config.spec
        self.network = network
        self.kernel: Kernel = kernel
        self.table = TokenTable.load()

    @classmethod
    def fresh(cls, config: NativeConfig, seed: int = 0) -> "NativeBase":
        """A base with random weights, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = MMDiT(config.network)
            network.initialise()
        return cls(config, network)

    @property
    def goes_on(self) -> bool:
        """Whether a shot's pixels go on from the last picture of the shot before (`model/refine.py`)."""
        return self.config.network.goes_on

    def fingerprint(self) -> str:
        """A hash of the weights: two bases that make the same pictures have the same one."""
        return hash_weights(self.network.state_dict())

    @property
    def device(self) -> torch.device:
        return self.network.embed.weight.device

    def to(self, device: str | torch.device) -> "NativeBase":
        self.network.to(device)
        return self

    # -- text -----------------------------------------------------------------------------------------------------------
    def tokenise(self, prompt: str) -> Int64[np.ndarray, " tokens"]:
        return self.table.encode(prompt)

    def encode_text(self, prompts: Sequence[str]) -> list[Float[Tensor, "_ width"]]:
        vectors = [torch.from_numpy(self.table.vectors(self.tokenise(p))).to(self.device) for p in prompts]
        return self.network.encode_text(vectors)

    def limits(self) -> Limits:
        return limits_of(self.spec)

    # -- pixels ---------------------------------------------------------------------------------------------------------
    def encode(self, frames: UInt8[np.ndarray, "frames height width 3"]) -> Float[Tensor, "video channels"]:
        if len(frames) == 1:
            frames = np.repeat(frames, self.spec.stride[0], axis=0)
        self.spec.grid(len(frames), frames.shape[2], frames.shape[1])
        t, h, w = self.spec.stride
        x = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).float() / 127.5 - 1
        return rearrange(x, "(T t) (H h) (W w) c -> (T H W) (t h w c)", t=t, h=h, w=w)

    def decode(
        self, z: Float[Tensor, "video channels"], grid: tuple[int, int, int]
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        t, h, w = self.spec.stride
        T, H, W = grid
        x = rearrange(z, "(T H W) (t h w c) -> (T t) (H h) (W w) c", T=T, H=H, W=W, t=t, h=h, w=w)
        return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    # -- the network ----------------------------------------------------------------------------------------------------
    def velocity(
        self,
        z: Float[Tensor, "video channels"],
        text: Float[Tensor, "text width"],
        sigma: Float[Tensor, " groups"],
        layout: Layout,
        visibility: Visibility,
        past: Sequence[Context] | None = None,
        keep: list[tuple[Tensor, Tensor]] | None = None,
        features: list[Tensor] | None = None,
        refine: bool = True,
        endings: Mapping[int, Float[Tensor, "rows channels"]] | None = None,
    ) -> Float[Tensor, "video channels"]:
        """features, refine, endings: see `MMDiT.forward`."""
        more = {"keep": keep, "features": features, "refine": refine, "endings": endings}
        out = self.network(z, text, sigma, layout, visibility, past, self.kernel, **more).float()
        if self.config.network.predicts == "velocity":
            return out
        return velocity_from_clean(z.float(), out, per_token(sigma, layout))

    def remember(
        self,
        z: Float[Tensor, "video channels"],
        text: Float[Tensor, "text width"],
        sigma: Float[Tensor, " groups"],
        layout: Layout,
        visibility: Visibility,
        past: Sequence[Context] | None = None,
    ) -> tuple[Float[Tensor, "video channels"], list[Context]]:
        kept: list[tuple[Tensor, Tensor]] = []
        v = self.velocity(z, text, sigma, layout, visibility, past, kept)
        past = past or [Context()] * len(layout.scenes)
        clean = z - per_token(sigma, layout) * v if self.goes_on else None
        new = memories_from(kept, layout, sigma, clean)
        return v, [context.extended(memories) for context, memories in zip(past, new, strict=True)]

    # -- files ----------------------------------------------------------------------------------------------------------
    def save(
        self, path: Path, dtype: torch.dtype = torch.bfloat16, weights: dict[str, Tensor] | None = None
    ) -> None:
        """Writes weights (the network's own, if not given) and config to one safetensors file, atomically."""
        weights = self.network.state_dict() if weights is None else weights
        state = {k: v.detach().to(dtype).cpu().contiguous() for k, v in weights.items()}
        save_tensors(path, state, {"format": FORMAT, "config": json.dumps(_config_to_json(self.config))})

    @classmethod
    def load(cls, path: Path) -> "NativeBase":
        """Reads what `save` wrote, strictly, into fp32. Raises UserError for any other file; nothing is unpickled."""
        path = Path(path)
        need_file(path)
        try:
            with safe_open(path, "pt") as file:
                meta = file.metadata() or {}
                # Copied: a tensor from safetensors is a window on the file, and a file cut short under it kills the process.
                state = {key: file.get_tensor(key).to(torch.float32, copy=True) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: not a readable safetensors file ({error}); weights load from safetensors only"
            ) from error
        if meta.get("format") != FORMAT:
            raise UserError(f"{path}: a safetensors file, but not the weights of a native base")
        try:
            config = _config_from_json(json.loads(meta["config"]))
            with torch.device("meta"):
                network = MMDiT(config.network)
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
            raise UserError(f"{path}: its config can't be read ({error})") from error
        check_shapes(path, network.state_dict(), state)
        network.load_state_dict(state, strict=True, assign=True)
        return cls(config, network.requires_grad_(False).eval())


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """A short hash of named weights."""
    hasher = hashlib.sha256()
    for name, weight in weights.items():
        hasher.update(name.encode() + weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()[:24]


def config_of(name: str) -> NativeConfig:
    """The config of a native base, a preset's name or a weights file, from metadata alone. Raises UserError for others."""
    if name in PRESETS:
        return PRESETS[name]()
    if Path(name).suffix == ".safetensors":
        return read_config(Path(name))
    raise UserError(
        f"no base {name!r}: use {', '.join(PRESETS)}, or a .safetensors file that `longshot train` wrote"
    )


def read_config(path: Path) -> NativeConfig:
    """The config in a weights file; no weights are read. Raises UserError for any other file."""
    need_file(path)
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
        if meta.get("format") == FORMAT:
            return _config_from_json(json.loads(meta["config"]))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{path}: its config can't be read ({error})") from error
    raise UserError(f"{path}: a safetensors file, but not the weights of a native base")


def need_file(path: Path) -> None:
    """UserError where there is no such weights file."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such weights file")


def limits_of(spec: Spec) -> Limits:
    """What `lint` needs to know about a native base; no weights are read."""
    return Limits(
        name=spec.name,
        fps=spec.fps,
        frame_step=spec.stride[0],
        frame_offset=spec.frame_offset,
        max_frames=spec.max_frames,
        default_frames=spec.default_frames,
        max_text_tokens=spec.max_text_tokens,
        count_tokens=TokenTable.load().count,
        outside_words=_outside_puppets if spec.name == "tiny" else None,
    )


def check_shapes(path: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """One line about the first tensor that is missing, unknown, or of another shape."""
    for name in [*wanted, *found]:
        if name not in found:
            raise UserError(f"{path}: the tensor {name} is missing")
        if name not in wanted:
            raise UserError(f"{path}: the tensor {name} belongs to another network")
        if wanted[name].shape != found[name].shape:
            have, need = list(found[name].shape), list(wanted[name].shape)
            raise UserError(f"{path}: the tensor {name} has shape {have}; this network needs {need}")


def _config_to_json(config: NativeConfig) -> dict:
    out = asdict(config)
    out["spec"]["fps"] = str(config.spec.fps)
    return out


def _config_from_json(data: dict) -> NativeConfig:
    spec = dict(data["spec"])
    spec |= {"fps": Fraction(spec["fps"]), "size": tuple(spec["size"]), "stride": tuple(spec["stride"])}
    network = dict(data["network"])
    if "patch" in network:
        network["patch"] = tuple(network["patch"])
    if "refiner_moves" in network:
        # Files from before moves led upwards have pairs, the tiny base's bidirectional weights among them.
        network["refiner_moves"] = tuple(
            tuple(m) if len(m) != 2 else (*m, 0) for m in network["refiner_moves"]
        )
    config = NativeConfig(Spec(**spec), MMDiTConfig(**network))
    if config.network.refiner_width and config.network.patch != config.spec.stride:
        raise ValueError(f"a refiner of patches {config.network.patch} for tokens of {config.spec.stride}")
    if config.spec.rope not in get_args(RopeMode) or config.network.predicts not in ("clean", "velocity"):
        raise ValueError(f"no rope {config.spec.rope!r} or prediction {config.network.predicts!r}")
    if config.spec.channels != config.network.channels:
        raise ValueError(f"{config.spec.channels} channels for a network of {config.network.channels}")
    return config


def _outside_puppets(prompt: str) -> list[str]:
    from longshot.puppets.words import VOCABULARY

    return outside_words(prompt, VOCABULARY)

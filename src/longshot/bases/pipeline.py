"""What the bases that run through a diffusers pipeline share: a VAE, a network that runs scenes, and where both lie.

A base adds how its text is read (`tokenise`, `encode_text`), one forward pass (`run`), and how the VAE's latents are scaled.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longshot.bases.base import Spec
from longshot.bases.hub import fingerprint, limits_of
from longshot.bases.shots import SceneAttention, ScenePass, pack, run_scenes, to_pixels, unpack
from longshot.errors import UserError
from longshot.layout import Layout, Visibility
from longshot.lint import Limits
from longshot.model.context import Context


def single_shot_spec(**facts: Any) -> Spec:
    """The facts of a base that was trained on single shots, 24 frames a second: it reads the global prompt before each shot's
    own, and knows no sign of a cut. facts: what is its own, see `Spec`."""
    return Spec(
        fps=Fraction(24),
        frame_offset=1,
        default_frames=121,
        max_shots=9,
        display_scale=1,
        prompts="joined",
        cut="",
        **facts,
    )


class PipelineBase:
    """A `Base` around a diffusers pipeline.

    patch: latent pixels of a token in (time, height, width). sizes: the (layers, heads, head size) of remembered keys and
    values. attention: what the network's self-attention processors call.
    """

    TEXT_TAKES_PART: ClassVar[bool]  # whether text tokens are in self-attention
    ENCODERS: ClassVar[tuple[str, ...]] = ("text_encoder",)  # the parts of the pipeline that read text

    def __init__(
        self,
        pipe: Any,
        spec: Spec,
        patch: tuple[int, int, int],
        sizes: tuple[int, int, int],
        attention: SceneAttention,
    ):
        self.pipe, self.spec, self.patch, self.sizes, self.attention = pipe, spec, patch, sizes, attention
        self.network: Any = pipe.transformer

    @property
    def device(self) -> torch.device:
        hook = getattr(self.network, "_hf_hook", None)  # of a network that waits elsewhere until it is called
        return getattr(hook, "execution_device", None) or self.network.device

    def to(self, device: str | torch.device) -> "PipelineBase":
        self.pipe.to(device)
        return self

    def fingerprint(self) -> str:
        readers = (getattr(self.pipe, part) for part in self.ENCODERS)
        return fingerprint(self.network, self.pipe.vae, *(part for part in readers if part is not None))

    def recompute(self) -> None:
        """From now on the backward pass makes the inside of a block again instead of keeping it: a block's input is all that is
        kept. The numbers stay the same; a training step takes one more forward pass."""
        self.network.enable_gradient_checkpointing(self._made_again)

    def _made_again(self, block: Callable, *args: Any) -> Any:
        """A block of one pass, whose self-attention must find that pass again when the block is run for its gradients."""
        run = self.attention.in_this_pass(block)
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)  # no block draws numbers

    # -- text -----------------------------------------------------------------------------------------------------------
    def tokenise(self, prompt: str) -> Int64[np.ndarray, " tokens"]:
        raise NotImplementedError

    def encode_text(self, prompts: Sequence[str]) -> list[Float[Tensor, "_ width"]]:
        raise NotImplementedError

    def check_length(self, prompt: str, most: int) -> int:
        """How many tokens a prompt has. UserError where the base reads fewer."""
        count = len(self.tokenise(prompt))
        if count > most:
            raise UserError(f"{self.spec.name} reads {most} tokens; a prompt has {count}: {prompt[:60]!r}...")
        return count

    def limits(self) -> Limits:
        return limits_of(self.spec, lambda prompt: len(self.tokenise(prompt)))

    # -- pixels ---------------------------------------------------------------------------------------------------------
    def scale(
        self, latent: Float[Tensor, "1 channels time height width"]
    ) -> Float[Tensor, "1 channels time height width"]:
        """The VAE's latent as the network knows it."""
        raise NotImplementedError

    def unscale(
        self, latent: Float[Tensor, "1 channels time height width"]
    ) -> Float[Tensor, "1 channels time height width"]:
        """The inverse of `scale`."""
        raise NotImplementedError

    def encode(self, frames: UInt8[np.ndarray, "frames height width 3"]) -> Float[Tensor, "video channels"]:
        grid = self.spec.grid(len(frames), frames.shape[2], frames.shape[1])
        vae = self.pipe.vae
        x = torch.from_numpy(np.array(frames)).to(self.device).float() / 127.5 - 1  # frames may be read-only
        with torch.no_grad():
            latent = vae.encode(x.movedim(-1, 0)[None].to(vae.dtype)).latent_dist.mode()
        return pack(self.scale(latent), grid, self.patch).float()

    def decode(
        self, z: Float[Tensor, "video channels"], grid: tuple[int, int, int]
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        vae = self.pipe.vae
        latent = unpack(z.to(self.device, vae.dtype), grid, self.patch)
        with torch.no_grad():
            video = vae.decode(self.unscale(latent), return_dict=False)[0]
        return to_pixels(self.pipe.video_processor.postprocess_video(video, output_type="np")[0])

    # -- the network ----------------------------------------------------------------------------------------------------
    def run(self, scene: ScenePass) -> Float[Tensor, "video channels"]:
        """One forward pass over one scene: the velocity of every row, in fp32."""
        raise NotImplementedError

    def velocity(
        self,
        z: Float[Tensor, "video channels"],
        text: Float[Tensor, "text width"],
        sigma: Float[Tensor, " groups"],
        layout: Layout,
        visibility: Visibility,
        past: Sequence[Context] | None = None,
    ) -> Float[Tensor, "video channels"]:
        return self._run_scenes(z, text, sigma, layout, visibility, past, remember=False)[0]

    def remember(
        self,
        z: Float[Tensor, "video channels"],
        text: Float[Tensor, "text width"],
        sigma: Float[Tensor, " groups"],
        layout: Layout,
        visibility: Visibility,
        past: Sequence[Context] | None = None,
    ) -> tuple[Float[Tensor, "video channels"], list[Context]]:
        return self._run_scenes(z, text, sigma, layout, visibility, past, remember=True)

    def _run_scenes(self, *scenes, remember: bool) -> tuple[Tensor, list[Context]]:
        return run_scenes(self.run, self.sizes, self.TEXT_TAKES_PART, *scenes, remember=remember)

"""Pictures to vectors whose products say how alike they are: colours and layout without any download, or a model's features."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

from longshot.errors import UserError

Pictures = Sequence[UInt8[np.ndarray, "_ _ 3"]]
Vectors = Float32[np.ndarray, "pictures width"]
Encoder = Callable[[Pictures], Vectors]
"""Gives a vector of length 1 for each picture."""

EncoderName = Literal["colours", "dinov2", "clip"]
MODELS = {"dinov2": "facebook/dinov2-small", "clip": "openai/clip-vit-base-patch32"}
LINKED = {"colours": 0.6, "dinov2": 0.55, "clip": 0.8}
"""Similarity from which two shots are taken for one place, by encoder."""

COLOURS_OF = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and spread of red, green and blue (0 to 1) that a model was trained with."""
BINS = 8
LAYOUT = 0.1
"""Weight of where things are beside which colours there are: a place looks alike from two sides, not the same."""


def encoder(name: EncoderName, model: str = "") -> Encoder:
    """Return the encoder of a name; `model` is a folder or a name on the Hugging Face hub, instead of the usual one."""
    if name == "colours":
        return colours
    return _from_transformers(model or MODELS[name], name, f"encoder {name}", "encoders")


def colours(pictures: Pictures) -> Vectors:
    """Return, for each picture, the root of its colour histogram beside its coarse layout of colours.

    The histogram is soft (a colour counts for the bins on both sides), so that light that shifts a little changes little.
    """
    return np.stack([_colours_of(picture) for picture in pictures])


def _colours_of(picture: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, "_"]:
    step = max(1, picture.shape[1] // 96)
    pixels = picture[::step, ::step].astype(np.float32) / 255
    rows, columns = (
        np.array_split(np.arange(n), parts) for n, parts in zip(pixels.shape[:2], (3, 5), strict=True)
    )
    cells = np.stack([pixels[np.ix_(r, c)].mean((0, 1)) for r in rows for c in columns])
    # Brightness and two opponent colours: light and paint fall apart, as they do not in red, green and blue.
    red, green, blue = np.moveaxis(pixels.reshape(-1, 3), -1, 0)
    axes = (red + green + blue) / 3, (red - green + 1) / 2, ((red + green) / 2 - blue + 1) / 2
    stretched = (
        axes[0],
        np.clip((axes[1] - 0.5) * 1.6 + 0.5, 0, 1),
        np.clip((axes[2] - 0.5) * 1.6 + 0.5, 0, 1),
    )
    histogram = _soft_histogram([axis * (BINS - 1) for axis in stretched])
    spread = (cells - cells.mean(0)).ravel()
    layout = spread / max(float(np.linalg.norm(spread)), 0.05)
    vector = np.concatenate([(1 - LAYOUT) ** 0.5 * np.sqrt(histogram), LAYOUT**0.5 * layout])
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _soft_histogram(places: Sequence[np.ndarray]) -> np.ndarray:
    """Return a histogram whose points count for their 8 nearest bins by distance; it sums to 1."""
    total = np.zeros(BINS**3)
    low = [np.minimum(place.astype(np.int64), BINS - 2) for place in places]
    high = [place - floor for place, floor in zip(places, low, strict=True)]
    # By axis, the places and weights of the bin below and the one above.
    (x, y, z), (u, v, w) = (
        [(floor * BINS**k, (floor + 1) * BINS**k) for k, floor in enumerate(low)],
        [(1 - share, share) for share in high],
    )
    for corner in range(8):
        i, j, k = corner & 1, corner >> 1 & 1, corner >> 2
        total += np.bincount(x[i] + y[j] + z[k], u[i] * v[j] * w[k], minlength=BINS**3)
    return total / total.sum()


def clip(model: str, whom: str, extra: str) -> Encoder:
    """Return CLIP's picture features; UserError, in the name of who needs them, where `extra` or the weights are missing."""
    return _from_transformers(model, "clip", whom, extra)


@cache
def _from_transformers(model: str, name: str, whom: str, extra: str) -> Encoder:
    """Return a model's features; UserError where transformers or the weights are missing."""
    try:
        import torch
        from transformers import AutoModel, CLIPVisionModelWithProjection
    except ImportError as error:
        raise UserError(f"{whom}: needs transformers: pip install 'longshot[{extra}]'") from error
    try:
        kind = CLIPVisionModelWithProjection if name == "clip" else AutoModel
        network = kind.from_pretrained(model, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{whom}: {model}: can't be loaded ({reason}); give `model`, a folder with the weights"
        ) from error
    mean, spread = np.array(COLOURS_OF[name], np.float32)
    side = int(getattr(network.config, "image_size", 224))
    side = min(side, 224)

    def encode(pictures: Pictures) -> Vectors:
        from longshot.video import fit

        out = []
        for start in range(0, len(pictures), 16):
            batch = np.concatenate([fit(p[None], (side, side)) for p in pictures[start : start + 16]])
            pixels = torch.from_numpy((batch.astype(np.float32) / 255 - mean) / spread).permute(0, 3, 1, 2)
            with torch.no_grad():
                made = network(pixel_values=pixels)
            features = made.image_embeds if name == "clip" else made.last_hidden_state[:, 0]
            out.append(torch.nn.functional.normalize(features.float(), dim=-1).numpy())
        return np.concatenate(out)

    return encode

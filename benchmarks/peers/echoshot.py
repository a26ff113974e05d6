"""Does longshot run EchoShot's weights as EchoShot does? Both networks, one random state dict, shots of three lengths.

    python benchmarks/peers/echoshot.py CHECKOUT

CHECKOUT is a clone of https://github.com/D2I-ai/EchoShot. Its own network is built small, in fp32 on the CPU. Flash-attention,
which needs a GPU, is replaced from outside by torch's attention, which computes the same; its VAE and text encoder are left out.

Prints the largest difference in every shot and ends with 1 if one is above 1e-4. As a control, prints what a jump of 3 latent
frames in place of 4 would give.
"""

import sys
import types
from dataclasses import replace
from pathlib import Path

import torch
from compare import SIZES, attention, fill, packages, verdict, wan_network

LENGTHS, HEIGHT, WIDTH = (3, 1, 2), 2, 3  # latent frames of each shot; tokens
TEXTS = (5, 9, 7)


def peer(checkout: Path) -> torch.nn.Module:
    packages(checkout, "models")
    from models import model  # ty: ignore

    model.flash_attention = attention
    return fill(model.Transformer(patch_size=(1, 2, 2), cross_attn_norm=True, **SIZES))


def ours(
    state, latent: torch.Tensor, texts: list[torch.Tensor], level: float, jump: int
) -> list[torch.Tensor]:
    """The same through longshot, over diffusers' network."""
    from longshot.bases.echoshot import ECHOSHOT, EchoShotBase
    from longshot.bases.shots import pack, unpack
    from longshot.bases.wan_names import converted
    from longshot.layout import Group, Layout, timeline

    network = wan_network(SIZES)
    network.load_state_dict(converted(state, network.state_dict(), "echoshot"))
    assert ECHOSHOT.multishot
    spec = replace(ECHOSHOT, multishot=replace(ECHOSHOT.multishot, jump=jump))
    base = EchoShotBase(types.SimpleNamespace(transformer=network), spec)
    grids = [(length, HEIGHT, WIDTH) for length in LENGTHS]
    groups = [Group(n + 1, len(t), grid) for n, (t, grid) in enumerate(zip(texts, grids, strict=True))]
    groups = timeline(groups, range(2, len(groups) + 1), jump)
    clips = latent.split(LENGTHS, dim=1)
    z = torch.cat([pack(clip[None], grid, base.patch) for clip, grid in zip(clips, grids, strict=True)])
    layout = Layout.single(*groups, rope="timeline")
    v = base.velocity(z, torch.cat(texts), torch.full((len(groups),), level), layout, "scene")
    rows = v.split([g.video for g in groups])
    return [unpack(r, grid, base.patch)[0] for r, grid in zip(rows, grids, strict=True)]


@torch.no_grad()
def main() -> int:
    network = peer(Path(sys.argv[1]))
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(4, sum(LENGTHS), 2 * HEIGHT, 2 * WIDTH, generator=generator)
    texts = [torch.randn(n, SIZES["text_dim"], generator=generator) for n in TEXTS]
    tokens = sum(LENGTHS) * HEIGHT * WIDTH
    theirs = network([latent], torch.tensor([700.0]), [texts], tokens, [list(LENGTHS)])[0].split(
        LENGTHS, dim=1
    )
    state = network.state_dict()
    control = ours(state, latent, texts, 0.7, jump=3)
    off = max(float((a - b).abs().max()) for a, b in zip(theirs, control, strict=True))
    print(f"control: with a jump of 3 the largest difference is {off:.1e}")
    mine = ours(state, latent, texts, 0.7, jump=4)
    return verdict([(f"shot {n}", a, b) for n, (a, b) in enumerate(zip(theirs, mine, strict=True), start=1)])


if __name__ == "__main__":
    sys.exit(main())

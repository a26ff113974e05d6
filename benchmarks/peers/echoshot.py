"""Does longshot run EchoShot's weights as EchoShot does? One random state dict: three shots, then a film of them.

    python benchmarks/peers/echoshot.py CHECKOUT

CHECKOUT is a clone of https://github.com/D2I-ai/EchoShot. Its own network is built small, in fp32 on the CPU. Flash-attention,
which needs a GPU, is replaced from outside by torch's attention, which computes the same; its VAE and text encoder are left out.
The film is made from the same noise by longshot, and by its network and its own sampler, put together as in its `generate.py`,
which needs a GPU as soon as it is imported. Text features are numbers that hang on every letter of a prompt.

Prints the largest difference in every shot and ends with 1 if one is above 1e-4. As controls, prints what a jump of 3 latent
frames in place of 4 would give, and what the film would be with Euler.
"""

import importlib.util
import sys
import types
from dataclasses import replace
from pathlib import Path

import torch
from compare import SIZES, attention, features, fill, packages, verdict, wan_network

LENGTHS, HEIGHT, WIDTH = (3, 1, 2), 2, 3  # latent frames of each shot; tokens
TEXTS = (5, 9, 7)
PROMPTS = ("a man waves", "[SHOT CUT] the man sits on a wall", "[SHOT CUT] he laughs")
STEPS, GUIDANCE, SHIFT = 8, 5.0, 5.0


def peer(checkout: Path) -> torch.nn.Module:
    packages(checkout, "models")
    from models import model  # ty: ignore

    model.flash_attention = attention
    return fill(model.Transformer(patch_size=(1, 2, 2), cross_attn_norm=True, **SIZES))


def our_base(state, jump: int = 4):
    """Its weights in longshot, over diffusers' network."""
    from longshot.bases.echoshot import ECHOSHOT, EchoShotBase
    from longshot.bases.wan_names import converted

    network = wan_network(SIZES)
    network.load_state_dict(converted(state, network.state_dict(), "echoshot"))
    assert ECHOSHOT.multishot
    spec = replace(ECHOSHOT, channels=16, multishot=replace(ECHOSHOT.multishot, jump=jump))
    return EchoShotBase(types.SimpleNamespace(transformer=network), spec)


def ours(
    state, latent: torch.Tensor, texts: list[torch.Tensor], level: float, jump: int
) -> list[torch.Tensor]:
    """The velocities of its network through longshot."""
    from longshot.bases.shots import pack, unpack
    from longshot.layout import Group, Layout, timeline

    base = our_base(state, jump)
    grids = [(length, HEIGHT, WIDTH) for length in LENGTHS]
    groups = [Group(n + 1, len(t), grid) for n, (t, grid) in enumerate(zip(texts, grids, strict=True))]
    groups = timeline(groups, range(2, len(groups) + 1), jump)
    clips = latent.split(LENGTHS, dim=1)
    z = torch.cat([pack(clip[None], grid, base.patch) for clip, grid in zip(clips, grids, strict=True)])
    layout = Layout.single(*groups, rope="timeline")
    v = base.velocity(z, torch.cat(texts), torch.full((len(groups),), level), layout, "scene")
    rows = v.split([g.video for g in groups])
    return [unpack(r, grid, base.patch)[0] for r, grid in zip(rows, grids, strict=True)]


# -- a film -------------------------------------------------------------------------------------------------------------
def read_as(prompt: str) -> torch.Tensor:
    """The features of a prompt as EchoShot gets it, which has no mark of a cut."""
    return features(prompt.removeprefix("[SHOT CUT] "))


def peer_film(checkout: Path, network, noise: torch.Tensor) -> torch.Tensor:
    """The latents that its sampler makes of a noise [channels, frames, height, width]."""
    place = importlib.util.spec_from_file_location("fm_solvers", checkout / "utils/fm_solvers.py")
    assert place and place.loader
    solvers = importlib.util.module_from_spec(place)
    place.loader.exec_module(solvers)
    sampler = solvers.FlowDPMSolverMultistepScheduler(num_train_timesteps=1000, shift=1)
    level = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)[:-1].numpy()
    sampler.set_timesteps(sigmas=SHIFT * level / (1 + (SHIFT - 1) * level))
    texts = {"with": [read_as(p) for p in PROMPTS], "without": [read_as("")] * len(PROMPTS)}
    z, tokens = noise, noise.shape[1] * HEIGHT * WIDTH
    for t in sampler.timesteps:
        v = {k: network([z], t[None], [words], tokens, [list(LENGTHS)])[0] for k, words in texts.items()}
        guided = v["without"] + GUIDANCE * (v["with"] - v["without"])
        z = sampler.step(guided[None], t, z[None], return_dict=False)[0][0]
    return z


def our_film(state, solver) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise, latents) of longshot's film."""
    from longshot.bases.shots import unpack
    from longshot.sample.denoise import Sampling, denoise, noise_of
    from longshot.sample.plan import PlannedShot, together

    base = our_base(state)
    base.tokenise = lambda prompt: torch.zeros(len(prompt.split()) + 1).numpy().astype("int64")
    base.encode_text = lambda prompts: [read_as(prompt) for prompt in prompts]
    shots = [
        PlannedShot(n, f"shot {n}", prompt, (length, HEIGHT, WIDTH), (0, str(n), 0))
        for n, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True), start=1)
    ]
    sampling = Sampling(STEPS, SHIFT, GUIDANCE, solver or base.spec.solver)
    (made,) = denoise(base, together("", shots), sampling)

    def film(rows) -> torch.Tensor:
        return torch.cat([unpack(z, s.grid, base.patch)[0] for s, z in zip(shots, rows, strict=True)], 1)

    return film([noise_of(s, 16) for s in shots]), film([made.latents[s.shot] for s in shots])


@torch.no_grad()
def main() -> int:
    checkout = Path(sys.argv[1])
    network = peer(checkout)
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
    rows = [(f"shot {n}", a, b) for n, (a, b) in enumerate(zip(theirs, mine, strict=True), start=1)]
    noise, film = our_film(state, None)
    made = peer_film(checkout, network, noise)
    off = float((made - our_film(state, "euler")[1]).abs().max())
    print(f"control: with Euler the largest difference in the film is {off:.1e}")
    pairs = zip(made.split(LENGTHS, dim=1), film.split(LENGTHS, dim=1), strict=True)
    return verdict(rows + [(f"shot {n} of a film", a, b) for n, (a, b) in enumerate(pairs, start=1)])


if __name__ == "__main__":
    sys.exit(main())

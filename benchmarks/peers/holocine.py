"""Does longshot run HoloCine's weights as HoloCine does? Random state dicts: three shots, then a film of them.

    python benchmarks/peers/holocine.py CHECKOUT

CHECKOUT is a clone of https://github.com/yihao-meng/HoloCine. Its own network is built small, in fp32 on the CPU, and called as
its pipeline calls it; its own prompter splits a prompt, over a small tokenizer made here and a stand-in for the text encoder (a
random row a token). Modules of it that only other models need are replaced by empty ones. It runs the version with full
attention. The film is made from the same noise by longshot, and by two networks of its own, one for much noise and one for
little, in the loop of its pipeline, with its own scheduler and guidance against no words.

Prints the largest difference in every shot and ends with 1 if one is above 1e-4, or if a shot reads other rows. As controls,
prints what reading the whole prompt in every shot would give, and the film with one network.
"""

import importlib.util
import sys
import types
from dataclasses import replace
from pathlib import Path

import torch
from compare import SIZES, fill, packages, unused, verdict, wan_network

LENGTHS, HEIGHT, WIDTH = (3, 1, 2), 2, 3  # latent frames of each shot; tokens
GLOBAL = "Character 1 is an old man. Character 2 is a dog."
PROMPTS = (
    "[SHOT CUT] Character 1 walks.",
    "[SHOT CUT] a door, closed; no one",
    "[SHOT CUT] Character 2 runs in",
)
ROWS = 512
STEPS, GUIDANCE, SHIFT, BOUNDARY = 6, 5.0, 5.0, 0.875


def load(checkout: Path):
    """Its network's module, its pipeline's, its prompter's and its scheduler's."""
    kept = {"diffsynth", "diffsynth.models", "diffsynth.pipelines", "diffsynth.prompters"}
    packages(checkout, *sorted(kept))
    real = ["models.wan_video_dit", "models.utils", "models.wan_video_camera_controller"]
    names = [
        "diffsynth.utils",
        "diffsynth.schedulers.flow_match",
        "diffsynth.vram_management",
        "diffsynth.lora",
    ]
    names += [
        f"diffsynth.models.wan_video_{name}" for name in ("text_encoder", "vae", "image_encoder", "vace")
    ]
    names += ["diffsynth.models.wan_video_motion_controller", "diffsynth.models.model_manager", "modelscope"]
    unused("diffsynth.schedulers", "diffsynth.prompters.base_prompter", *names)
    sys.modules["diffsynth.models"].ModelManager = type("ModelManager", (), {})
    sys.modules["diffsynth.models"].load_state_dict = None
    sys.modules["diffsynth.prompters"].WanPrompter = type("WanPrompter", (), {})
    found = []
    for name in [*real, "pipelines.wan_video_holocine", "prompters.wan_prompter", "schedulers.flow_match"]:
        full = f"diffsynth.{name}"
        spec = importlib.util.spec_from_file_location(full, checkout / f"{full.replace('.', '/')}.py")
        assert spec and spec.loader
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
        found.append(sys.modules[full])
    return found[0], *found[3:]


def tokenizer():
    """A tokenizer of letters and a few words that ends every text with a token of its own, as UMT5's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"])
    made.train_from_iterator([GLOBAL, *PROMPTS, "abcdefghijklmnopqrstuvwxyz[].;,"], trainer)
    end = [("</s>", made.token_to_id("</s>"))]
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=end)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def peer_text(module, words, text: str) -> tuple[torch.Tensor, dict]:
    """Its prompter's rows and their parts. Rows: a random one a token of the vocabulary."""
    table = torch.randn(len(words), SIZES["text_dim"], generator=torch.Generator().manual_seed(2))

    def tokens(prompt, **_):
        made = words(
            prompt, padding="max_length", max_length=ROWS, return_offsets_mapping=True, return_tensors="pt"
        )
        return {**made, "offset_mapping": [tuple(pair) for pair in made["offset_mapping"][0].tolist()]}

    prompter = module.WanPrompter.__new__(module.WanPrompter)
    prompter.tokenizer, prompter.text_encoder = tokens, lambda ids, mask: table[ids]
    prompter.process_prompt = lambda prompt, positive: prompt
    return prompter.encode_prompt(text, device="cpu")


def peer_film(pipeline, scheduler, networks, noise, context, nothing, parts) -> torch.Tensor:
    """The latents [channels, frames, height, width] that its loop makes. context, nothing: rows of the text, and of none."""
    sampler = scheduler.FlowMatchScheduler(shift=5, sigma_min=0.0, extra_one_step=True)
    sampler.set_timesteps(STEPS, shift=SHIFT)
    shots = torch.tensor([[n for n, length in enumerate(LENGTHS) for _ in range(length)]])
    z = noise[None]
    for t in sampler.timesteps:
        how = {"dit": networks[int(t < 1000 * BOUNDARY)], "latents": z, "timestep": t[None]}
        how |= {"shot_indices": shots}
        worded = pipeline.model_fn_wan_video(**how, context=context, text_cut_positions=parts)
        bare = pipeline.model_fn_wan_video(
            **how, context=nothing, text_cut_positions={"global": None, "shots": []}
        )
        z = sampler.step(bare + GUIDANCE * (worded - bare), t, z)
    return z[0]


def our_base(states, words):
    """Its weights in longshot, over diffusers' network. states: of one network or of two, much noise first."""
    from longshot.bases.holocine import HOLOCINE, HoloCineBase
    from longshot.bases.wan_names import converted

    networks = []
    for state in states:
        networks.append(wan_network(SIZES))
        networks[-1].load_state_dict(converted(state, networks[-1].state_dict(), "holocine"))
    pipe = types.SimpleNamespace(transformer=networks[0], tokenizer=words)
    pipe.transformer_2 = networks[1] if networks[1:] else None
    return HoloCineBase(pipe, replace(HOLOCINE, channels=16))


def our_film(states, words, rows) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise, latents) of longshot's film. rows: of the text encoder, for a text."""
    from longshot.bases.shots import unpack
    from longshot.sample.denoise import Sampling, denoise, noise_of
    from longshot.sample.plan import PlannedShot, together

    base = our_base(states, words)
    base.encode_text = lambda prompts: [rows(prompt) for prompt in prompts]
    shots = [
        PlannedShot(n, f"shot {n}", prompt, (length, HEIGHT, WIDTH), (0, str(n), 0))
        for n, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True), start=1)
    ]
    sampling = Sampling(STEPS, base.spec.shift, base.spec.guidance, base.spec.solver)
    (made,) = denoise(base, together(GLOBAL, shots), sampling)

    def film(parts) -> torch.Tensor:
        return torch.cat([unpack(z, s.grid, base.patch)[0] for s, z in zip(shots, parts, strict=True)], 1)

    return film([noise_of(s, 16) for s in shots]), film([made.latents[s.shot] for s in shots])


def ours(state, latent, words, features, level: float, whole: bool = False) -> list[torch.Tensor]:
    """The same through longshot, over diffusers' network. features: the rows of the text, zero after its end."""
    from longshot.bases.shots import pack, unpack
    from longshot.layout import Group, Layout, timeline

    base = our_base([state], words)
    base.encode_text = lambda prompts: [features[: len(words(prompts[0]).input_ids)]]
    texts = [features] * len(PROMPTS) if whole else base.encode_scene(GLOBAL, PROMPTS)
    grids = [(length, HEIGHT, WIDTH) for length in LENGTHS]
    groups = timeline(
        [Group(n + 1, len(t), grid) for n, (t, grid) in enumerate(zip(texts, grids, strict=True))], (), 0
    )
    clips = latent.split(LENGTHS, dim=1)
    z = torch.cat([pack(clip[None], grid, base.patch) for clip, grid in zip(clips, grids, strict=True)])
    layout = Layout.single(*groups, rope="timeline")
    v = base.velocity(z, torch.cat(texts), torch.full((len(groups),), level), layout, "scene")
    rows = v.split([g.video for g in groups])
    return [unpack(r, grid, base.patch)[0] for r, grid in zip(rows, grids, strict=True)]


@torch.no_grad()
def main() -> int:
    from longshot.bases.holocine import wording

    dit, pipeline, prompter, scheduler = load(Path(sys.argv[1]))
    network, second = (
        fill(dit.WanModel(eps=1e-6, patch_size=(1, 2, 2), has_image_input=False, **SIZES)) for _ in range(2)
    )
    for weight in second.parameters():
        weight.mul_(1.1)
    words = tokenizer()
    text, _ = wording(GLOBAL, PROMPTS)
    print(text)
    features, parts = peer_text(prompter, words, text)
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(4, sum(LENGTHS), 2 * HEIGHT, 2 * WIDTH, generator=generator)
    shots = torch.tensor([[n for n, length in enumerate(LENGTHS) for _ in range(length)]])
    how = {"dit": network, "latents": latent[None], "timestep": torch.tensor([700.0]), "context": features}
    theirs = pipeline.model_fn_wan_video(**how, shot_indices=shots, text_cut_positions=parts, prompt=text)[0]
    theirs = theirs.split(LENGTHS, dim=1)
    state = network.state_dict()
    control = ours(state, latent, words, features[0], 0.7, whole=True)
    off = max(float((a - b).abs().max()) for a, b in zip(theirs, control, strict=True))
    print(f"control: where every shot reads the whole prompt the largest difference is {off:.1e}")
    mine = ours(state, latent, words, features[0], 0.7)
    rows = [(f"shot {n}", a, b) for n, (a, b) in enumerate(zip(theirs, mine, strict=True), start=1)]

    def read(prompt: str) -> torch.Tensor:
        return peer_text(prompter, words, prompt)[0][0]

    states = [state, second.state_dict()]
    noise, film = our_film(states, words, read)
    made = peer_film(pipeline, scheduler, (network, second), noise, features, read("")[None], parts)
    off = float((made - our_film(states[:1], words, read)[1]).abs().max())
    print(f"control: with one network the largest difference in the film is {off:.1e}")
    pairs = zip(made.split(LENGTHS, dim=1), film.split(LENGTHS, dim=1), strict=True)
    return verdict(rows + [(f"shot {n} of a film", a, b) for n, (a, b) in enumerate(pairs, start=1)])


if __name__ == "__main__":
    sys.exit(main())

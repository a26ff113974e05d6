"""Does longshot run HoloCine's weights as HoloCine does? Both networks, one random state dict, shots of three lengths.

    python benchmarks/peers/holocine.py CHECKOUT

CHECKOUT is a clone of https://github.com/yihao-meng/HoloCine. Its own network is built small, in fp32 on the CPU, and called as
its pipeline calls it; its own prompter splits a prompt, over a small tokenizer made here and a stand-in for the text encoder (a
random row a token). Modules of it that only other models need are replaced by empty ones. It runs the version with full
attention.

Prints the largest difference in every shot and ends with 1 if one is above 1e-4, or if a shot reads other rows. As a control,
prints what reading the whole prompt in every shot would give.
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


def load(checkout: Path):
    """Its network's module, its pipeline's and its prompter's."""
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
    for name in [*real, "pipelines.wan_video_holocine", "prompters.wan_prompter"]:
        full = f"diffsynth.{name}"
        spec = importlib.util.spec_from_file_location(full, checkout / f"{full.replace('.', '/')}.py")
        assert spec and spec.loader
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
        found.append(sys.modules[full])
    return found[0], found[3], found[4]


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


def ours(state, latent, words, features, level: float, whole: bool = False) -> list[torch.Tensor]:
    """The same through longshot, over diffusers' network. features: the rows of the text, zero after its end."""
    from longshot.bases.holocine import HoloCineBase
    from longshot.bases.shots import pack, unpack
    from longshot.bases.wan import WAN21_14B
    from longshot.bases.wan_names import converted
    from longshot.layout import Group, Layout, timeline

    network = wan_network(SIZES)
    network.load_state_dict(converted(state, network.state_dict(), "holocine"))
    pipe = types.SimpleNamespace(transformer=network, tokenizer=words)
    base = HoloCineBase(pipe, replace(WAN21_14B, rope="timeline"))
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

    dit, pipeline, prompter = load(Path(sys.argv[1]))
    network = fill(dit.WanModel(eps=1e-6, patch_size=(1, 2, 2), has_image_input=False, **SIZES))
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
    return verdict([(f"shot {n}", a, b) for n, (a, b) in enumerate(zip(theirs, mine, strict=True), start=1)])


if __name__ == "__main__":
    sys.exit(main())

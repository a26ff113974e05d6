"""LoRA on Wan: what ComfyUI's trainers write lands on diffusers' modules, and merged equals what diffusers does with peft."""

import json

import pytest
import torch
from adapters import factors, write_peft
from pipelines import SMALL, saved, wan
from safetensors.torch import save_file

from commands import done, refused, write_scene
from longshot.bases.lora import apply, restore
from longshot.bases.wan_names import wan_name
from longshot.model.context import Context
from longshot.scene import Scene, Shot


@pytest.fixture(scope="module")
def network():
    return wan().transformer


def test_comfyui_layouts_of_wan_land_on_diffusers_modules(network, tmp_path):
    q, ff = "blocks.1.attn1.to_q", "blocks.0.ffn.net.0.proj"
    down, up = factors(network, q, 2, 0)
    down_2, up_2 = factors(network, ff, 2, 1)
    norm = torch.full_like(network.get_submodule("blocks.0.attn2.norm_k").weight, 0.5)
    save_file(
        {
            "diffusion_model.blocks.1.self_attn.q.lora_down.weight": down,
            "diffusion_model.blocks.1.self_attn.q.lora_up.weight": up,
            "diffusion_model.blocks.1.self_attn.q.alpha": torch.tensor(1.0),
            "diffusion_model.blocks.1.self_attn.q.diff_b": torch.ones(len(up)),
            "diffusion_model.blocks.0.cross_attn.norm_k.diff": norm,
        },
        tmp_path / "comfy.safetensors",
    )
    save_file(
        {
            "lora_unet_blocks_0_ffn_0.lora_down.weight": down_2,
            "lora_unet_blocks_0_ffn_0.lora_up.weight": up_2,
        },
        tmp_path / "musubi.safetensors",
    )
    before = {name: w.clone() for name, w in network.state_dict().items()}
    replaced = apply(network, [(str(tmp_path / f"{n}.safetensors"), 1.0) for n in ("comfy", "musubi")], "wan")
    after = {name: w - before[name] for name, w in network.state_dict().items()}
    restore(network, replaced)
    expected = {
        f"{q}.weight": 0.5 * up @ down,
        f"{q}.bias": torch.ones(len(up)),
        "blocks.0.attn2.norm_k.weight": norm,
        f"{ff}.weight": up_2 @ down_2,
    }
    for name, change in after.items():
        assert torch.allclose(change, expected.get(name, torch.zeros(())).expand_as(change), atol=1e-6), name


def test_a_merged_adapter_equals_the_one_that_diffusers_loads_through_peft(tmp_path):
    pytest.importorskip("peft", reason="diffusers loads a LoRA with peft only")
    pipe, own = wan(), wan()
    modules = ["blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0", "blocks.0.ffn.net.0.proj"]
    for i, name in enumerate(("one", "two")):
        write_peft(tmp_path / f"{name}.safetensors", pipe.transformer, modules, rank=2 + i, seed=9 * i)
        pipe.load_lora_weights(str(tmp_path), weight_name=f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(["one", "two"], [0.6, -1.5])
    orders = [(str(tmp_path / "one.safetensors"), 0.6), (str(tmp_path / "two.safetensors"), -1.5)]
    apply(own.transformer, orders, "wan")
    x, t = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([300.0])
    text = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = pipe.transformer(x, t, text, return_dict=False)[0]
        ours = own.transformer(x, t, text, return_dict=False)[0]
        plain = wan().transformer(x, t, text, return_dict=False)[0]
    assert torch.allclose(ours, theirs, rtol=0, atol=5e-6) and not torch.allclose(ours, plain, atol=1e-2)


def test_names_of_wans_own_code_cover_every_weight_of_the_network(network):
    ours = {
        "patch_embedding.weight": "patch_embedding.weight",
        "blocks.1.modulation": "blocks.1.scale_shift_table",
        "head.modulation": "scale_shift_table",
    }
    assert all(wan_name(theirs) == own for theirs, own in ours.items())
    parts = [
        "self_attn.q",
        "cross_attn.o",
        "self_attn.norm_q",
        "cross_attn.norm_k",
        "norm3",
        "ffn.0",
        "ffn.2",
    ]
    names = [wan_name(f"blocks.0.{p}") for p in parts] + [
        wan_name(n)
        for n in "text_embedding.0 text_embedding.2 time_embedding.0 time_embedding.2 time_projection.1 head.head".split()
    ]
    modules = dict(network.named_modules())
    assert all(name in modules for name in names) and len(set(names)) == len(names)


def test_a_film_is_made_and_goes_on_with_a_lora_and_every_way_to_need_less_memory(tmp_path):
    small = SMALL[0]
    folder, (width, height) = saved(small, tmp_path), small.size
    write_peft(tmp_path / "a.safetensors", wan().transformer, ["blocks.0.attn1.to_q", "blocks.1.ffn.net.2"])
    scene = write_scene(tmp_path / "scene.yaml", Scene(shots=[Shot(prompt="a dog waves", frames=5)] * 2))
    asked = [
        "--base",
        folder,
        "--size",
        f"{width}x{height}",
        "--steps",
        2,
        "--lora",
        f"{tmp_path}/a.safetensors:0.5",
    ]
    less = [
        "--weight-dtype",
        "fp8",
        "--offload",
        "group",
        "--tile-vae",
        "--cache-dtype",
        "fp8",
        "--cache-device",
        "cpu",
        "--share-history",
    ]
    film = tmp_path / "film"
    done("sample", scene, "--out", film, "--mode", "causal", "--save-context", *asked, *less)
    context = Context.load(film / "context/branch_0.safetensors")
    assert not (film / "context/branch_1.safetensors").exists()
    assert {m.keys.dtype for m in context.memories} == {torch.float8_e4m3fn} and context.shots == (1, 2)
    done("extend", film, "--prompt", "it walks", "--frames", 5, *asked, *less)
    manifest = json.loads((film / "manifest.json").read_text())
    assert len(manifest["shots"]) == 3 and manifest["loras"] == [f"{tmp_path}/a.safetensors:0.5"]
    plain = ["sample", scene, "--out", tmp_path / "x", *asked, "--share-history"]
    assert "--share-history is about the KV cache, which joint hasn't" in refused(*plain, "--mode", "joint")
    line = refused(*plain, "--mode", "causal", "--guidance", 1)
    assert "--share-history: is for the two passes of guidance" in line

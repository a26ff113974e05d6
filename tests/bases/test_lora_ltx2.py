"""LoRA on LTX-2: several at once, with weights, as diffusers loads them with peft; saved, trained and read in both namings."""

import pytest
import torch
from adapters import factors, write_peft
from pipelines import ltx2
from safetensors.torch import load_file, save_file

from longshot.bases.lora import Adapter, Change, apply, difference, restore, save_adapter
from longshot.bases.ltx2_names import ltx2_name

MODULES = [
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.1.attn2.to_out.0",
    "transformer_blocks.0.audio_to_video_attn.to_k",
    "transformer_blocks.1.ff.net.0.proj",
    "transformer_blocks.1.audio_ff.net.2",
    "proj_in",
]


@torch.no_grad()
def film(pipe) -> torch.Tensor:
    """Latents of one shot as diffusers' own pipeline makes them, sound and all, so that every module has its say."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(
        "a dog waves",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=1,
        guidance_scale=1.0,
        stg_scale=0.0,
        modality_scale=1.0,
        audio_guidance_scale=1.0,
        generator=generator,
        output_type="latent",
        return_dict=False,
    )[0]


def test_merged_adapters_equal_those_that_diffusers_loads_through_peft(tmp_path):
    pytest.importorskip("peft", reason="diffusers loads a LoRA with peft only")
    pipe, own = ltx2(), ltx2()
    plain = film(own)
    for i, name in enumerate(("one", "two")):
        write_peft(tmp_path / f"{name}.safetensors", pipe.transformer, MODULES, rank=2 + i, seed=9 * i)
        pipe.load_lora_weights(str(tmp_path), weight_name=f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(["one", "two"], [0.6, -1.5])
    orders = [(str(tmp_path / "one.safetensors"), 0.6), (str(tmp_path / "two.safetensors"), -1.5)]
    replaced = apply(own.transformer, orders, "ltx-2")
    theirs, ours = film(pipe), film(own)
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-5) and not torch.allclose(ours, plain, atol=1e-2)
    restore(own.transformer, replaced)
    assert torch.equal(film(own), plain)


def test_a_fine_tune_is_saved_as_an_adapter_that_longshot_and_diffusers_read_alike(tmp_path):
    pytest.importorskip("peft", reason="diffusers loads a LoRA with peft only")
    before, tuned, theirs = ltx2(), ltx2(), ltx2()
    with torch.no_grad():
        for i, module in enumerate(MODULES):
            down, up = factors(tuned.transformer, module, 2, i)
            tuned.transformer.get_submodule(module).weight.add_(up @ down)
    adapter, share = difference("tuned", before.transformer, tuned.transformer, rank=2)
    assert adapter.changes.keys() >= set(MODULES) and share == pytest.approx(1, abs=1e-5)
    save_adapter(tmp_path / "tuned.safetensors", adapter, torch.float32)
    apply(before.transformer, [(str(tmp_path / "tuned.safetensors"), 1.0)], "ltx-2")
    for name, weight in before.transformer.named_parameters():
        assert torch.allclose(weight, tuned.transformer.get_parameter(name), rtol=0, atol=1e-5), name
    theirs.load_lora_weights(str(tmp_path), weight_name="tuned.safetensors")
    assert torch.allclose(film(theirs), film(tuned), rtol=0, atol=2e-5)


def test_names_of_ltx2s_own_code_land_on_diffusers_modules_as_diffusers_reads_them(tmp_path):
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_ltx2_lora_to_diffusers

    network = ltx2().transformer
    modules = {
        "patchify_proj": "proj_in",
        "audio_patchify_proj": "audio_proj_in",
        "adaln_single.linear": "time_embed.linear",
        "audio_adaln_single.emb.timestep_embedder.linear_1": "audio_time_embed.emb.timestep_embedder.linear_1",
        "av_ca_video_scale_shift_adaln_single.linear": "av_cross_attn_video_scale_shift.linear",
        "av_ca_v2a_gate_adaln_single.linear": "av_cross_attn_audio_v2a_gate.linear",
        "transformer_blocks.0.attn1.to_q": "transformer_blocks.0.attn1.to_q",
        "transformer_blocks.1.audio_ff.net.0.proj": "transformer_blocks.1.audio_ff.net.0.proj",
    }
    tensors, expected = {}, {}
    for i, (theirs, ours) in enumerate(modules.items()):
        down, up = factors(network, ours, 2, i)
        tensors |= {f"diffusion_model.{theirs}.lora_A.weight": down}
        tensors |= {f"diffusion_model.{theirs}.lora_B.weight": up}
        expected[f"{ours}.weight"] = up @ down
    converted = _convert_non_diffusers_ltx2_lora_to_diffusers(dict(tensors))
    assert {f"transformer.{ltx2_name(name)}" for name in modules} == {k.split(".lora_")[0] for k in converted}
    save_file(tensors, tmp_path / "own.safetensors")
    before = {name: w.clone() for name, w in network.state_dict().items()}
    apply(network, [(str(tmp_path / "own.safetensors"), 1.0)], "ltx-2")
    for name, weight in network.state_dict().items():
        change = expected.get(name, torch.zeros(())).expand_as(weight)
        assert torch.allclose(weight - before[name], change, atol=1e-6), name
    names = [name for name, _ in network.named_modules()] + [name for name, _ in network.named_parameters()]
    assert all(ltx2_name(name) == name for name in names)
    save_adapter(
        tmp_path / "again.safetensors", Adapter("x", {"proj_in": Change(*factors(network, "proj_in", 2, 0))})
    )
    assert "transformer.proj_in.lora_A.weight" in load_file(tmp_path / "again.safetensors")

"""A transformer out of one file, safetensors or GGUF, in the place of a folder's own; anything else is named."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from adapters import write_peft
from memory import peak_of
from pipelines import SMALL, fill, hunyuan15, ltx2, saved, wan, wan_velocity
from safetensors.torch import load_file, save_file
from wan_state import in_wan_names

from commands import done, refused, write_scene
from longshot.bases import load_base
from longshot.bases.economy import Economy, economise
from longshot.bases.lora import apply, load_adapters, restore
from longshot.bases.shots import pack, unpack
from longshot.bases.single import is_narrow, is_quantised
from longshot.bases.tune import adapted
from longshot.errors import UserError
from longshot.layout import Group, Layout
from longshot.sample.forecast import outline_of
from longshot.scene import Scene, Shot
from longshot.tensors import stored


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a Wan pipeline whose rows are long enough for GGUF's blocks of 32, and the same transformer as files."""
    from diffusers import WanTransformer3DModel

    path = tmp_path_factory.mktemp("single")
    pipe = wan()
    config = dict(pipe.transformer.config) | dict(
        num_attention_heads=2, attention_head_dim=32, ffn_dim=64, freq_dim=32, text_dim=16, num_layers=1
    )
    pipe.transformer = WanTransformer3DModel.from_config(config)
    fill(pipe.transformer)
    pipe.save_pretrained(path / "base")
    state = pipe.transformer.state_dict()
    save_file(state, path / "diffusers.safetensors")
    save_file(in_wan_names(pipe.transformer, "model.diffusion_model."), path / "own.safetensors")
    gguf(path / "q8.gguf", state)
    return path


def gguf(path, state) -> None:
    """A GGUF: matrices of the blocks in Q8_0, everything else in fp32."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    writer = GGUFWriter(path, "wan")
    for name, tensor in state.items():
        array = tensor.numpy()
        if tensor.ndim == 2 and name.startswith("blocks"):
            narrow = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quants.quantize(array, narrow), raw_dtype=narrow)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def velocity(base) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    (text,) = base.encode_text(["a dog waves"])
    layout = Layout.single(Group(1, len(text), (2, 2, 2)), rope=base.spec.rope)
    z = torch.randn(layout.num_video, base.spec.channels, generator=generator)
    return base.velocity(z, text, torch.tensor([0.6]), layout, "scene")


@pytest.mark.parametrize("name", ["diffusers", "own"])
def test_a_safetensors_file_in_either_layout_is_the_network_of_the_folder(place, name):
    assert any("self_attn" in key for key in load_file(place / "own.safetensors"))
    base = load_base(str(place / "base"), transformer=place / f"{name}.safetensors")
    of_folder = load_base(str(place / "base"))
    expected, found = of_folder.network.state_dict(), base.network.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(w, found[k]) for k, w in expected.items())
    # Same weights at other places in memory: on some processors that rounds otherwise (2.1e-6 seen).
    torch.testing.assert_close(velocity(base), velocity(of_folder), rtol=0, atol=5e-6)


def test_a_gguf_stays_narrow_and_moves_a_velocity_by_its_precision(place):
    plain, base = (
        load_base(str(place / "base")),
        load_base(str(place / "base"), transformer=place / "q8.gguf"),
    )
    assert is_quantised(base.network) and not is_quantised(plain.network)
    (weight,) = stored(base.network.blocks[0].attn1.to_q.weight)
    assert weight.dtype == torch.uint8 and weight.numel() == 64 * 64 * 34 // 32
    expected, found = velocity(plain), velocity(base)
    assert 1e-5 < (found - expected).abs().max() / expected.std() < 0.1
    assert base.fingerprint() != plain.fingerprint()
    with pytest.raises(UserError, match="narrow already"):
        economise(base, Economy("fp8"), "cpu")


LORA = ["blocks.0.attn1.to_q", "blocks.0.attn2.to_out.0", "blocks.0.ffn.net.0.proj", "proj_out"]


@torch.no_grad()
def test_loras_stand_beside_the_matrices_of_a_gguf_as_diffusers_has_them_with_peft(place, tmp_path):
    pytest.importorskip("peft", reason="diffusers loads a LoRA with peft only")
    from diffusers import GGUFQuantizationConfig, WanPipeline, WanTransformer3DModel
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    load = lambda: load_base(str(place / "base"), transformer=place / "q8.gguf")  # noqa: E731
    plain, ours = load(), load()
    for i, name in enumerate(("one", "two")):
        network = load_base(str(place / "base")).network
        write_peft(tmp_path / f"{name}.safetensors", network, LORA, rank=2 + i, seed=9 * i)
    orders = [(str(tmp_path / "one.safetensors"), 0.6), (str(tmp_path / "two.safetensors"), -1.5)]
    load_adapters(ours, [f"{path}:{weight}" for path, weight in orders])
    before, after = velocity(plain), velocity(ours)
    assert (after - before).abs().max() > 0.1 and ours.fingerprint() != plain.fingerprint()

    wide = load_base(str(place / "base"))  # the same numbers, widened once, and the adapters merged into them
    wide.network.load_state_dict(
        {
            k: dequantize_gguf_tensor(w).float() if is_narrow(w) else w
            for k, w in plain.network.state_dict().items()
        }
    )
    apply(wide.network, orders, "wan")
    torch.testing.assert_close(after, velocity(wide), rtol=0, atol=2e-5)

    options = dict(config=str(place / "base"), subfolder="transformer", torch_dtype=torch.float32)
    quantised = GGUFQuantizationConfig(compute_dtype=torch.float32)
    theirs = WanTransformer3DModel.from_single_file(
        str(place / "q8.gguf"), quantization_config=quantised, **options
    )
    pipe = WanPipeline.from_pretrained(place / "base", transformer=theirs)
    for name in ("one", "two"):
        pipe.load_lora_weights(str(tmp_path), weight_name=f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(["one", "two"], [0.6, -1.5])
    z = torch.randn(8, plain.spec.channels, generator=torch.Generator().manual_seed(0))
    found = wan_velocity(pipe, unpack(z, (2, 2, 2), plain.patch), "a dog waves", 0.6)
    torch.testing.assert_close(after, pack(found, (2, 2, 2), plain.patch), rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_lora_is_taken_from_beside_a_gguf_again_and_what_cannot_stand_there_is_named(place, tmp_path):
    base, path = load_base(str(place / "base"), transformer=place / "q8.gguf"), tmp_path / "a.safetensors"
    before, was = velocity(base), base.fingerprint()
    write_peft(path, load_base(str(place / "base")).network, LORA)
    replaced = apply(base.network, [(str(path), 1.0)], "wan")
    assert not torch.allclose(velocity(base), before, atol=1e-3)
    restore(base.network, replaced)
    assert torch.equal(velocity(base), before) and base.fingerprint() == was
    name = "diffusion_model.blocks.0.self_attn.q"
    save_file({f"{name}.diff": torch.ones(64, 64)}, path)
    with pytest.raises(UserError, match=r"adds a whole matrix to blocks.0.self_attn.q, and those of a GGUF"):
        apply(base.network, [(str(path), 1.0)], "wan")
    save_file(
        {f"{name}.lora_down.weight": torch.ones(2, 9), f"{name}.lora_up.weight": torch.ones(64, 2)}, path
    )
    with pytest.raises(
        UserError, match=r"of another base: its blocks.0.self_attn.q is 64x9; that of wan is 64x64"
    ):
        apply(base.network, [(str(path), 1.0)], "wan")
    assert base.fingerprint() == was


@torch.no_grad()
@pytest.mark.parametrize("kind", ["q8.gguf", "own.safetensors"])
def test_a_plan_counts_the_weights_of_the_file_as_they_are_kept(place, kind):
    folder, file = place / "base", place / kind
    base = load_base(str(folder), transformer=file)
    plain, outline = outline_of(str(folder)), outline_of(str(folder), transformer=file)
    kept = sum(t.nbytes for weight in base.network.parameters() for t in stored(weight))
    assert outline.costs.network_bytes == kept
    assert outline.weights - plain.weights == outline.costs.network_bytes - plain.costs.network_bytes
    saved = plain.costs.network_bytes - outline.costs.network_bytes
    layers = [base.network.get_submodule(name).weight for name in adapted(base.network)]
    numbers = sum(layer.shape[0] * layer.shape[1] * 32 // 34 for layer in layers)
    assert saved == (4 * numbers - numbers * 34 // 32 if kind == "q8.gguf" else 0)
    (text,) = base.encode_text(["a dog waves"])
    layout = Layout.single(Group(1, len(text), (2, 16, 16)), rope=base.spec.rope)
    args = (torch.randn(layout.num_video, base.spec.channels), text, torch.tensor([0.6]), layout, "scene")
    expected = replace(outline.costs, threads=torch.get_num_threads()).activation_bytes(layout)
    assert expected == pytest.approx(peak_of(base, args), rel=0.1)


def test_a_plan_says_that_a_file_is_another_networks_before_anything_is_loaded(place, tmp_path):
    scene = write_scene(tmp_path / "scene.yaml", Scene(shots=[Shot(prompt="a dog waves", frames=5)]))
    asked = ["plan", scene, "--base", place / "base", "--size", "64x32", "--transformer"]
    narrow, wide = (done(*asked, place / kind).out for kind in ("q8.gguf", "diffusers.safetensors"))
    assert narrow != wide and "with text encoder and VAE" in narrow
    save_file({"one": torch.ones(3)}, tmp_path / "other.safetensors")
    assert "holds 3 numbers; the transformer of base has" in refused(*asked, tmp_path / "other.safetensors")
    assert "narrow already" in refused(*asked, place / "q8.gguf", "--weight-dtype", "fp8")
    tiny = ["plan", scene, "--transformer", place / "q8.gguf"]
    assert "stands for the transformer of a pretrained base" in refused(*tiny)


OF_LTX2 = {  # its own code's names
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
    "video_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_video",
    "audio_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_audio",
    "time_embed": "adaln_single",
    "proj_in": "patchify_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}


def test_ltx2_is_read_out_of_one_file_in_its_own_names_and_in_diffusers(tmp_path):
    folder = saved(next(s for s in SMALL if s.make is ltx2), tmp_path)
    state = ltx2().transformer.state_dict()
    save_file(state, tmp_path / "diffusers.safetensors")
    own = {}
    for name, tensor in state.items():
        for ours, theirs in OF_LTX2.items():
            name = name.replace(ours, theirs)
        own[f"model.diffusion_model.{name}"] = tensor
    assert len(own) == len(state) and sum(k.split(".", 2)[2] not in state for k in own) > 20
    save_file(own, tmp_path / "own.safetensors")
    expected = velocity(load_base(str(folder)))
    for name in ("own", "diffusers"):
        base = load_base(str(folder), transformer=tmp_path / f"{name}.safetensors")
        torch.testing.assert_close(velocity(base), expected, rtol=0, atol=2e-6)


def test_a_file_that_is_not_the_transformer_of_the_base_is_named(place, tmp_path):
    state = load_file(place / "diffusers.safetensors")

    def told(file, name: str = str(place / "base")) -> str:
        with pytest.raises(UserError) as error:
            load_base(name, transformer=file)
        return str(error.value)

    def saved(changed: dict):
        save_file(changed, tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors"

    first = "blocks.0.attn1.to_q.weight"
    assert f"the tensor {first} is missing" in told(saved({k: v for k, v in state.items() if k != first}))
    assert "the tensor more belongs to another network" in told(saved(state | {"more": torch.zeros(1)}))
    assert "can't be loaded" in told(saved(state | {first: torch.zeros(3, 3)}))
    assert "there is no such weights file" in told(tmp_path / "no.gguf")
    assert "nothing else is opened" in told(tmp_path / "x.ckpt")
    assert "stands for the transformer of a pretrained base" in told(place / "own.safetensors", "tiny")
    for kind in ("gguf", "safetensors"):
        (tmp_path / f"words.{kind}").write_text("a red puppet, and some more words")
        assert f"not a readable {kind} file" in told(tmp_path / f"words.{kind}")


def test_hunyuan15_is_read_out_of_one_file_in_diffusers_names_and_no_others(place, tmp_path):
    folder = saved(next(s for s in SMALL if s.make is hunyuan15), tmp_path)
    state = {f"model.{name}": tensor for name, tensor in hunyuan15().transformer.state_dict().items()}
    save_file(state, tmp_path / "one.safetensors")
    expected = velocity(load_base(str(folder)))
    base = load_base(str(folder), transformer=tmp_path / "one.safetensors")
    torch.testing.assert_close(velocity(base), expected, rtol=0, atol=2e-6)
    half = load_base(str(folder), dtype=torch.bfloat16, transformer=tmp_path / "one.safetensors").network
    whole = load_base(str(folder), dtype=torch.bfloat16).network.state_dict()
    assert all(torch.equal(w, whole[k]) and w.dtype == whole[k].dtype for k, w in half.state_dict().items())

    def told(file) -> str:
        with pytest.raises(UserError) as error:
            load_base(str(folder), transformer=file)
        return str(error.value)

    assert "config it must fit, in diffusers' names" in told(place / "own.safetensors")
    assert "reads no GGUF of HunyuanVideo15Transformer3DModel" in told(place / "q8.gguf")
    first = "model.transformer_blocks.0.attn.to_q.weight"
    save_file(state | {first: torch.zeros(3, 3)}, tmp_path / "changed.safetensors")
    assert "attn.to_q.weight has another shape than" in told(tmp_path / "changed.safetensors")

"""LoRA: files of every layout that people share, several at once, merged and taken out again."""

import json
from dataclasses import replace

import pytest
import torch
from adapters import factors, write_peft
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from commands import QUICK, done, quick_base, refused, scene_of, write_scene
from core_fixtures import SMALL, few, fill, inputs, small_base
from longshot.bases.lora import (
    METADATA,
    Adapter,
    Change,
    apply,
    difference,
    merge,
    parse,
    read_adapter,
    restore,
    save_adapter,
)
from longshot.bases.native import NativeBase
from longshot.errors import UserError
from longshot.layout import Group, Layout, global_group
from longshot.model.mmdit import MMDiT

LAYOUT = Layout.single(global_group(2), Group(1, 3, (1, 2, 2)), Group(2, 1, (2, 1, 1)))
QKV, HEAD = "blocks.0.video.qkv", "head"


@pytest.fixture
def base() -> NativeBase:
    return small_base(kind=NativeBase)


# -- merging ------------------------------------------------------------------------------------------------------------
def test_two_adapters_with_weights_equal_the_merged_weights_computed_by_hand(base, tmp_path):
    one = write_peft(tmp_path / "one.safetensors", base.network, [QKV, HEAD], rank=2, seed=1)
    settings = json.dumps({"transformer.r": 3, "transformer.lora_alpha": 6})
    two = write_peft(
        tmp_path / "two.safetensors", base.network, [QKV], rank=3, seed=5, meta={METADATA: settings}
    )
    before = {name: w.clone() for name, w in base.network.state_dict().items()}
    apply(
        base.network,
        [(str(tmp_path / "one.safetensors"), 0.7), (str(tmp_path / "two.safetensors"), -0.4)],
        "x",
    )
    expected = dict(before)
    (down, up), (down_2, up_2) = one[QKV], two[QKV]
    expected[f"{QKV}.weight"] = before[f"{QKV}.weight"] + 0.7 * up @ down - 0.4 * (6 / 3) * up_2 @ down_2
    down, up = one[HEAD]
    expected["head.weight"] = before["head.weight"] + 0.7 * up @ down
    for name, weight in base.network.state_dict().items():
        assert torch.allclose(weight, expected[name], rtol=0, atol=1e-6), name
    assert not torch.allclose(before[f"{QKV}.weight"], expected[f"{QKV}.weight"], atol=0.1)


def test_an_adapter_changes_velocities_and_taking_it_out_gives_them_back_to_the_last_bit(base, tmp_path):
    write_peft(tmp_path / "a.safetensors", base.network, [QKV])
    z, text, sigma = inputs(LAYOUT, base.network)
    before, weights = base.velocity(z, text, sigma, LAYOUT, "scene"), base.fingerprint()
    replaced = apply(base.network, [(str(tmp_path / "a.safetensors"), 1.0)], "small")
    assert not torch.allclose(base.velocity(z, text, sigma, LAYOUT, "scene"), before, atol=1e-3)
    assert base.fingerprint() != weights  # so that a film made with it isn't taken for one made without
    restore(base.network, replaced)
    assert torch.equal(base.velocity(z, text, sigma, LAYOUT, "scene"), before)
    assert base.fingerprint() == weights


def test_an_adapter_of_weight_0_changes_nothing(base, tmp_path):
    write_peft(tmp_path / "a.safetensors", base.network, [QKV, HEAD])
    weights = base.fingerprint()
    assert apply(base.network, [(str(tmp_path / "a.safetensors"), 0.0)], "small") == {}
    assert base.fingerprint() == weights


def test_half_precision_weights_are_rounded_once_however_many_adapters_there_are(base, tmp_path):
    base.network.to(torch.bfloat16)
    before = base.network.head.weight.clone()
    tiny = Adapter("tiny", {HEAD: Change(whole=torch.full_like(before, 2e-4, dtype=torch.float32))})
    merge(base.network, [(tiny, 1.0)] * 64, "small")
    expected = (before.float() + 64 * 2e-4).bfloat16()
    assert torch.allclose(base.network.head.weight, expected, atol=1e-4)


# -- files --------------------------------------------------------------------------------------------------------------
@few
@given(st.integers(1, 4), st.floats(0.1, 3))
def test_a_saved_adapter_comes_back_with_its_scale(tmp_path_factory, rank, scale):
    base = small_base(kind=NativeBase)
    path = tmp_path_factory.mktemp("lora") / "a.safetensors"
    down, up = factors(base.network, QKV, rank, 3)
    bias = torch.arange(len(up)).float()
    adapter = Adapter("made", {QKV: Change(down, up, scale, bias=bias)})
    save_adapter(path, adapter, torch.float32)
    (found,) = read_adapter(path).changes.values()
    assert torch.allclose(found.of_weight(), scale * up @ down, atol=1e-5)
    assert torch.equal(found.bias, bias)
    assert read_adapter(path.parent).changes.keys() == {QKV}  # a folder with one file in it


def test_a_fine_tune_becomes_an_adapter_that_gives_it_back_at_full_rank(base, tmp_path):
    tuned = small_base(kind=NativeBase)
    with torch.no_grad():
        for i, module in enumerate((QKV, HEAD)):
            down, up = factors(tuned.network, module, 2, i)
            tuned.network.get_submodule(module).weight.add_(up @ down)
        tuned.network.head.bias.add_(1)
    adapter, share = difference("tuned", base.network, tuned.network, rank=2)
    assert share == pytest.approx(1, abs=1e-5)
    assert difference("tuned", base.network, tuned.network, rank=1)[1] < 0.95
    save_adapter(tmp_path / "tuned.safetensors", adapter, torch.float32)
    apply(base.network, [(str(tmp_path / "tuned.safetensors"), 1.0)], "small")
    for a, b in zip(base.network.parameters(), tuned.network.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="the two networks are the same"):
        difference("x", tuned.network, tuned.network, 2)
    wide = NativeBase.fresh(replace(SMALL, network=replace(SMALL.network, width=48))).network
    with pytest.raises(UserError, match="one isn't a fine-tune of the other"):
        difference("x", base.network, wide, 2)


def test_the_command_writes_a_lora_that_makes_one_base_into_the_other(tmp_path):
    base, tuned = quick_base(), quick_base()
    down, up = factors(tuned.network, HEAD, 2, 0)
    with torch.no_grad():
        tuned.network.head.weight.add_(up @ down)
    base.save(tmp_path / "base.safetensors", torch.float32)
    tuned.save(tmp_path / "tuned.safetensors", torch.float32)
    asked = [
        "lora",
        tmp_path / "base.safetensors",
        tmp_path / "tuned.safetensors",
        "--out",
        tmp_path / "a.safetensors",
    ]
    assert "1.000 of what changed" in done(*asked, "--rank", 2).out
    apply(base.network, [(str(tmp_path / "a.safetensors"), 1.0)], "quick")
    assert torch.allclose(
        base.network.head.weight, tuned.network.head.weight, atol=2e-2
    )  # a LoRA is kept in bf16
    assert "--rank 0" in refused(*asked, "--rank", 0)
    assert "no base 'nope'" in refused("lora", "nope", "tiny", "--out", tmp_path / "b.safetensors")


@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model.", "diffusion_model."])
@pytest.mark.parametrize("name", [".default", ""])
def test_every_spelling_of_peft_names_the_same_module(base, tmp_path, prefix, name):
    down, up = factors(base.network, QKV, 2, 0)
    tensors = {f"{prefix}{QKV}.lora_A{name}.weight": down, f"{prefix}{QKV}.lora_B{name}.weight": up}
    save_file(tensors, tmp_path / "a.safetensors")
    assert read_adapter(tmp_path / "a.safetensors").changes.keys() == {QKV}


def test_peft_settings_beside_a_file_give_the_scale_of_each_module(base, tmp_path):
    write_peft(tmp_path / "adapter_model.safetensors", base.network, [QKV, HEAD], rank=4)
    settings = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"video.qkv": 2}, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    changes = read_adapter(tmp_path).changes
    assert changes[HEAD].scale == 8 / 4**0.5 and changes[QKV].scale == 2 / 4**0.5


# -- the command line -------------------------------------------------------------------------------------------------
def test_a_film_is_made_with_loras_and_says_which(tmp_path):
    base = quick_base()
    base.save(tmp_path / "weights.safetensors", torch.float32)
    scene = write_scene(tmp_path / "scene.yaml", scene_of(1))
    for name, seed in (("one", 1), ("two", 2)):
        write_peft(tmp_path / f"{name}.safetensors", base.network, [QKV, HEAD], seed=seed)
    loras = [f"{tmp_path / 'one.safetensors'}:0.5", str(tmp_path / "two.safetensors")]

    def film(name: str, *more: str) -> tuple[torch.Tensor, dict]:
        out = tmp_path / name
        done("sample", scene, "--out", out, "--base", tmp_path / "weights.safetensors", *QUICK, *more)
        z = load_file(out / "latents/shot_01.safetensors")["z"]
        return z, json.loads((out / "manifest.json").read_text())

    plain, manifest = film("plain")
    assert manifest["loras"] == []
    made, manifest = film("made", "--lora", loras[0], "--lora", loras[1])
    assert manifest["loras"] == loras
    apply(base.network, [parse(text) for text in loras], "by hand")
    base.save(tmp_path / "weights.safetensors", torch.float32)
    by_hand, _ = film("by_hand")
    assert torch.equal(made, by_hand) and not torch.allclose(made, plain, atol=1e-3)
    wide = quick_base(width=48).network
    write_peft(tmp_path / "wide.safetensors", wide, [HEAD])
    more = ["--out", tmp_path / "x", "--base", tmp_path / "weights.safetensors"]
    line = refused("sample", scene, *more, "--lora", tmp_path / "wide.safetensors")
    assert (
        "wide.safetensors: is a LoRA of another base: its head is" in line and not (tmp_path / "x").exists()
    )
    assert "are for pretrained bases" in refused("sample", scene, *more, "--offload", "group")


# -- bad input ----------------------------------------------------------------------------------------------------------
def test_a_lora_of_another_base_is_named_and_changes_nothing(base, tmp_path):
    path, q = tmp_path / "wan.safetensors", "transformer.blocks.0.attn1.to_q"
    save_file({f"{q}.lora_A.weight": torch.ones(2, 24), f"{q}.lora_B.weight": torch.ones(24, 2)}, path)
    weights = base.fingerprint()
    with pytest.raises(
        UserError, match=r"wan.safetensors: is a LoRA of another base: it changes blocks.0.attn1"
    ):
        apply(base.network, [(str(path), 1.0)], "tiny")
    wide = MMDiT(replace(SMALL.network, width=48))
    fill(wide)
    write_peft(path, wide, ["head"])
    with pytest.raises(UserError, match=r"another base: its head is 24x48; that of tiny is 24x24"):
        apply(base.network, [(str(path), 0.0)], "tiny")
    assert base.fingerprint() == weights


ONE = torch.ones(2, 24)
BAD = {
    "half": ({f"{QKV}.lora_A.weight": ONE}, "one half of a low-rank product"),
    "ranks": ({f"{QKV}.lora_A.weight": ONE, f"{QKV}.lora_B.weight": torch.ones(72, 3)}, "don't fit"),
    "scale": ({f"{QKV}.alpha": torch.tensor(1.0)}, "a scale and nothing to scale"),
    "nan": ({f"{QKV}.diff": ONE * float("nan")}, "aren't finite"),
    "dora": ({f"{QKV}.lora_magnitude_vector": ONE}, "isn't a part of a LoRA"),
    "text": ({"text_encoder.a.lora_A.weight": ONE}, "changes text_encoder"),
    "empty": ({}, "holds no tensors"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_lora_gives_one_clear_line(tmp_path, kind):
    tensors, message = BAD[kind]
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        read_adapter(tmp_path / "bad.safetensors")
    assert "bad.safetensors: " in str(caught.value) and "\n" not in str(caught.value)


def test_a_lora_is_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    for name in ("a.safetensors", "a.pt"):
        torch.save({"x": Trap()}, tmp_path / name)
        with pytest.raises(UserError, match="from safetensors only"):
            read_adapter(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(UserError, match="there is no such file"):
        read_adapter(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
        ("c:/a.safetensors:2", "c:/a.safetensors", 2.0),
        ("owner/repository/a.safetensors", "owner/repository/a.safetensors", 1.0),
    ],
)
def test_a_place_and_a_weight_are_told_apart(text, path, weight):
    assert parse(text) == (path, weight)


@pytest.mark.parametrize("text", ["a.safetensors:much", "a.safetensors:nan", "a.safetensors:"])
def test_a_weight_that_is_no_number_is_named(text):
    with pytest.raises(UserError, match=r"isn't a weight; write FILE:0\.8"):
        parse(text)


def test_what_was_saved_loads_in_other_tools_by_its_names(base, tmp_path):
    down, up = factors(base.network, QKV, 2, 0)
    save_adapter(tmp_path / "a.safetensors", Adapter("a", {QKV: Change(down, up, 0.5)}))
    saved = load_file(tmp_path / "a.safetensors")
    assert saved.keys() == {f"transformer.{QKV}.lora_A.weight", f"transformer.{QKV}.lora_B.weight"}
    assert all(t.dtype == torch.bfloat16 for t in saved.values())

"""Weights that others published: converted strictly, used on their terms only, and run as they were trained.

That their own networks give the same is shown by the scripts in benchmarks/peers, which need their code.
"""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipelines import wan
from safetensors.torch import load_file, save_file
from wan_state import in_wan_names

from commands import done, longshot, picture, refused
from core_fixtures import many
from longshot.bases import load_base
from longshot.bases.base import MultiShot
from longshot.bases.echoshot import ECHOSHOT, EchoShotBase
from longshot.bases.economy import Economy, economise, weight_bytes
from longshot.bases.holocine import HoloCineBase, rows_of, rows_read, wording
from longshot.bases.longlive import LONGLIVE2
from longshot.bases.shape import load_shape
from longshot.bases.shotstream import SHOTSTREAM, block_group, remembered_groups, seen_frames
from longshot.bases.wan import WAN21_1B
from longshot.errors import UserError
from longshot.layout import Group, Layout, timeline
from longshot.sample.denoise import levels_of
from longshot.sample.film import pixels
from longshot.sample.plan import PlannedShot
from longshot.scene import Scene, Shot, save_scene
from longshot.video import probe


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two small pipelines, and weights for them as they are published."""
    path = tmp_path_factory.mktemp("published")
    for kind, is_second in (("wan2.2", False), ("wan2.1", True)):
        pipe = wan(second=is_second)
        pipe.save_pretrained(path / kind)
        torch.save({"generator": in_wan_names(pipe.transformer, "model.")}, path / f"{kind}.pt")
        torch.save(in_wan_names(pipe.transformer), path / f"{kind}.pth")
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user without converted weights and without a word on licences."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def scene(path, frames, prompts=("a dog waves", "a cat walks out", "the dog"), cuts=(True, True, False)):
    shots = [Shot(prompt=p, frames=n, cut=c) for p, n, c in zip(prompts, frames, cuts, strict=False)]
    save_scene(Scene(environment="snow", shots=shots), path)
    return path


def latents(film) -> dict[str, torch.Tensor]:
    return {p.stem: load_file(p)["z"] for p in sorted((film / "latents").glob("*.safetensors"))}


# -- what they have no use for, refused while their weights aren't even here ----------------------------------------------
UNUSED = [
    ("longlive2", "--context-sigma 0.1", "--context-sigma: longlive2 reads its history clean"),
    ("shotstream", "--context-sigma 0.5", "--context-sigma: shotstream reads its history clean"),
    ("holocine", "--context-sigma 0.1", "--context-sigma: all shots are made at once"),
    ("echoshot", "--context-sigma 0.1", "--context-sigma: all shots are made at once"),
    ("longlive2", "--window 2", "--window: longlive2 sees a history of its own choice"),
    ("shotstream", "--history relevant", "--history: shotstream sees a history of its own choice"),
    ("echoshot", "--history relevant", "--history: in joint mode all shots see each other; leave it out"),
    ("longlive2", "--guidance 2", "was distilled to need no guidance"),
    ("shotstream", "--solver heun", "has no solver heun: use stochastic, or euler"),
    ("longlive2", "--reuse-steps", "reads its history clean: leave --reuse-steps out"),
    ("shotstream", "--save-context", "keeps no context on disk"),
    ("holocine", "--save-context", "--save-context is about the KV cache, which joint hasn't: leave it out"),
    ("echoshot", "--cache-dtype bf16", "--cache-dtype is about the KV cache"),
    ("holocine", "--cache-device cpu", "--cache-device is about the KV cache"),
    ("longlive2", "--transformer {file}", "longlive2 has a transformer of its own"),
    ("longlive2", "--mode joint", "was trained for mode causal only"),
    ("echoshot", "--mode causal", "was trained for mode joint only"),
    ("longlive2", "--given 1={picture}", "shot 1: {picture}: longlive2 takes no pictures and no clips"),
    ("holocine", "--given 2={picture}", "shot 2: {picture}: holocine takes no pictures and no clips"),
    ("shotstream", "--given 1={picture}", "shotstream takes no pictures: give a clip of 12n+9 frames"),
]


@pytest.mark.parametrize(("base", "option", "words"), UNUSED)
def test_an_option_that_would_change_nothing_is_refused_before_weights_are_read(
    place, home, tmp_path, base, option, words
):
    files = {"file": place / "a.safetensors", "picture": picture(tmp_path / "a.png")}
    save_file({"x": torch.zeros(1)}, files["file"])
    frames = {"longlive2": 32, "shotstream": 9, "echoshot": 5, "holocine": 8}[base]
    asked = (
        "sample",
        scene(tmp_path / "s.yaml", (frames, frames)),
        "--base",
        base,
        "--out",
        tmp_path / "film",
    )
    assert words.format(**files) in refused(*asked, *option.format(**files).split())
    without = refused(*asked)
    assert words.format(**files) not in without and (
        "weights aren't here" in without or "free:" in without or "accept" in without
    )


COMMANDS = [
    ("longlive2", "reshoot", "never sees a later one: change that shot's prompt or take in the scene file"),
    ("shotstream", "reshoot", "never sees a later one: change that shot's prompt or take in the scene file"),
    ("holocine", "reshoot", "makes all shots of a film at once, and none that is there already"),
    ("longlive2", "compose", "takes no pictures: describe the person and the place in the scene file"),
    ("shotstream", "compose", "takes no pictures: describe the person and the place in the scene file"),
    ("echoshot", "compose", "give both pictures as references in the scene file"),
    ("holocine", "compose", "describe the person and the place in the scene file"),
    ("longlive2", "interpolate", "run `longshot sample` to make the shots in order"),
    ("shotstream", "interpolate", "run `longshot sample` with --given 1=CLIP to make the shots in order"),
    ("echoshot", "interpolate", "give --first and --last"),
    ("holocine", "interpolate", "and none that is there already: run `longshot sample`"),
    ("echoshot", "extend", "add the new shots to the scene file and run `longshot sample`"),
    ("holocine", "extend", "add the new shots to the scene file and run `longshot sample`"),
]


@pytest.mark.parametrize(("base", "command", "words"), COMMANDS)
def test_a_command_that_weights_can_not_follow_is_refused_before_they_are_read_and_says_what_to_do(
    home, tmp_path, base, command, words
):
    film, image = tmp_path / "film", picture(tmp_path / "a.png")
    told = scene(tmp_path / "s.yaml", (32, 32, 32) if base == "longlive2" else (9, 9, 9))
    asked = {
        "reshoot": (film, "--shot", 2),
        "extend": (film, "--prompt", "a dog"),
        "compose": (told, "--out", film, "--identity", image, "--environment", image),
        "interpolate": (told, "--out", film),
    }[command]
    line = refused(command, *asked, "--base", base)
    assert line.startswith(f"{command}: {base} ") and words in line


# -- LongLive 2.0 -------------------------------------------------------------------------------------------------------
def test_longlive_makes_a_film_by_name_goes_on_where_it_stopped_and_is_extended(place, home, tmp_path):
    told = done("convert", "longlive2", place / "wan2.2.pt", "--over", place / "wan2.2")
    assert "Apache-2.0" in told.out
    file = scene(tmp_path / "scene.yaml", (64, 32))
    sample = ("sample", file, "--base", "longlive2", "--size", "32x32", "--out", tmp_path / "film")
    assert "mode causal" in done(*sample).out
    film = tmp_path / "film"
    manifest = json.loads((film / "manifest.json").read_text())
    assert [s["frames"] for s in manifest["shots"]] == [61, 32]  # a stream's first latent is one frame
    assert [probe(film / f"{n}.mp4").frames for n in ("scene", "shot_01", "shot_02")] == [93, 61, 32]
    assert manifest["shots"][0]["how"]["context_sigma"] == 0

    made = latents(film)
    (film / "latents" / "shot_02.safetensors").unlink()
    assert "shot 1 was finished before" in done(*sample).err
    again = latents(film)
    assert all(torch.equal(again[name], made[name]) for name in made)

    done("extend", film, "--prompt", "a cat", "--frames", 32, "--base", "longlive2", "--size", "32x32")
    longer = latents(film)
    assert len(longer) == 3 and all(torch.equal(longer[name], made[name]) for name in made)
    assert probe(film / "scene.mp4").frames == 125


def test_a_cut_of_longlive_is_a_jump_in_time_and_a_word_before_everything():
    assert LONGLIVE2.wording("Snow.", "[SHOT CUT] A dog.") == "The scene transitions. Snow. A dog."
    assert LONGLIVE2.wording("Snow.", "A dog.") == "Snow. A dog."
    assert WAN21_1B.wording("Snow.", "[SHOT CUT] A dog.") == "Snow. A dog."


def test_a_shot_of_shotstream_is_read_with_its_number_right_after_the_global_prompt():
    assert SHOTSTREAM.wording("Snow.", "[SHOT CUT] A dog.", 3) == "Snow.shot2:A dog."
    assert SHOTSTREAM.wording("", "A dog.", 1) == "shot0:A dog."


def test_longlive_names_what_it_can_not_make(place, home, tmp_path):
    done("convert", "longlive2", place / "wan2.2.pt", "--over", place / "wan2.2")
    sample = ("sample", scene(tmp_path / "a.yaml", (32, 40)), "--out", tmp_path / "film", "--size", "64x32")
    wrong = longshot(*sample, "--base", "longlive2")
    assert wrong.code == 2 and "needs 32n: use 32 or 64" in wrong.err.replace("32n+0", "32n")


def test_a_shot_of_a_stream_has_the_frames_that_the_whole_stream_has_there(place):
    base = load_base(str(place / "wan2.2"))
    base.spec = replace(base.spec, frame_offset=0, multishot=MultiShot(("joint",), stream=True))
    grid = (3, 1, 2)
    z = torch.randn(18, base.spec.channels, generator=torch.Generator().manual_seed(0))
    whole = base.decode(z, (9, 1, 2))
    shot = PlannedShot(3, "shot 3", "", grid, (0, "3", 0))
    assert np.array_equal(pixels(base, shot, z[12:], [z[:6], z[6:12]]), whole[-12:])
    assert np.array_equal(pixels(base, shot, z[:6]), whole[:9])
    assert not np.array_equal(pixels(base, shot, z[12:])[-9:], whole[-9:])


def test_the_levels_of_four_distilled_steps_are_those_of_the_published_samplers():
    assert torch.allclose(
        levels_of(LONGLIVE2, _sampling(LONGLIVE2)),
        torch.tensor([0.99980, 0.93727, 0.83306, 0.62469, 0]),
        atol=2e-5,
    )
    assert torch.allclose(
        levels_of(SHOTSTREAM, _sampling(SHOTSTREAM)),
        torch.tensor([1, 0.95792, 0.88889, 0.73759, 0]),
        atol=2e-5,
    )
    assert len(levels_of(SHOTSTREAM, _sampling(SHOTSTREAM, steps=6))) == 7


def _sampling(spec, steps=None):
    from longshot.sample.denoise import Sampling

    return Sampling(steps=steps or spec.steps, shift=spec.shift, guidance=spec.guidance, solver=spec.solver)


# -- ShotStream ---------------------------------------------------------------------------------------------------------
@many
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9))
def test_a_shot_sees_six_frames_of_the_earlier_ones_more_of_the_later(lengths):
    chosen = seen_frames(lengths)
    counts = [sum(shot == k for shot, _ in chosen) for k in range(len(lengths))]
    assert len(chosen) == 6 and counts == sorted(counts) and max(counts) - min(counts) <= 1
    assert chosen == sorted(chosen) and all(frame < lengths[shot] for shot, frame in chosen)
    for shot, count in enumerate(counts):
        frames = [frame for k, frame in chosen if k == shot]
        assert count < 2 or (frames[0], frames[-1]) == (0, lengths[shot] - 1)


def test_the_places_and_phases_of_a_second_shot_are_those_worked_out_by_hand():
    seen = remembered_groups([0, 0, 0, 0, 0, 0], [2] * 6, (1, 1))
    blocks = [block_group(n, 1, 2, (1, 1)) for n in range(2)]
    layout = Layout.single(*seen, *blocks, rope="timeline").without_text()
    assert layout.queries.position[:, 0].tolist() == list(range(12))
    assert layout.queries.phase.tolist() == [0] * 6 + [1 / 6] * 6
    assert block_group(0, 0, 2, (1, 1)).phase == 1 / 6  # the first shot counts as the second


def test_shotstream_makes_a_film_in_blocks_from_frames_of_earlier_shots(place, home, tmp_path):
    done("accept", "shotstream")
    out = tmp_path / "weights"
    done("convert", "shotstream", place / "wan2.1.pt", "--over", place / "wan2.1", "--out", out)
    file = scene(tmp_path / "scene.yaml", (21, 9))
    sample = ("sample", file, "--base", out, "--size", "32x16", "--out", tmp_path / "film")
    done(*sample)
    first = latents(tmp_path / "film")
    scene(file, (21, 9), prompts=("a dog waves", "the dog"))
    done(*sample)
    second = latents(tmp_path / "film")
    assert torch.equal(first["shot_01"], second["shot_01"])
    assert not torch.equal(first["shot_02"], second["shot_02"])
    scene(file, (21, 9), prompts=("a cat waves", "the dog"))
    done(*sample)
    assert not torch.equal(second["shot_02"], latents(tmp_path / "film")["shot_02"])  # it sees the first shot
    wrong = longshot("sample", scene(file, (13, 9)), "--base", out, "--out", tmp_path / "no")
    assert wrong.code == 2 and "12n+9: use 9 or 21" in wrong.err


# -- EchoShot -----------------------------------------------------------------------------------------------------------
def test_echoshot_makes_a_film_together_and_no_other_way(place, home, tmp_path):
    done("accept", "echoshot")
    done("convert", "echoshot", place / "wan2.1.pth", "--over", place / "wan2.1")
    file = scene(tmp_path / "scene.yaml", (5, 9))
    sample = (
        "sample",
        file,
        "--base",
        "echoshot",
        "--size",
        "32x16",
        "--steps",
        2,
        "--out",
        tmp_path / "film",
    )
    assert "mode joint" in done(*sample).out
    assert probe(tmp_path / "film" / "scene.mp4").frames == 14
    size = ("--base", "echoshot", "--size", "32x16", "--steps", 2)
    done("reshoot", tmp_path / "film", "--shot", 2, *size)
    assert sorted(p.name for p in (tmp_path / "film" / "takes").rglob("*.mp4"))
    ends = ("--first", picture(tmp_path / "a.png"), "--last", picture(tmp_path / "b.png", 30))
    three = scene(tmp_path / "three.yaml", (5, 9, 5))
    done("interpolate", three, *ends, *size, "--context-sigma", 0.2, "--out", tmp_path / "between")


def test_shots_of_echoshot_read_all_prompts_and_tell_their_own_by_its_place():
    base = EchoShotBase(wan(second=True), ECHOSHOT)
    generator = torch.Generator().manual_seed(0)
    grid, texts = (2, 1, 2), list(torch.randn(2, 3, 16, generator=generator))
    z = torch.randn(8, 16, generator=generator)
    groups = timeline([Group(n, 3, grid) for n in (1, 2)], (2,), 4)
    assert [g.at for g in groups] == [0, 6]
    layout = Layout.single(*groups, rope="timeline")

    def velocity(*texts):
        return base.velocity(z, torch.cat(texts), torch.tensor([0.7, 0.7]), layout, "scene")

    plain, swapped, other = velocity(*texts), velocity(*texts[::-1]), velocity(texts[0], texts[1] + 1)
    assert (plain - swapped).abs().max() > 1e-3
    assert (plain - other)[:4].abs().max() > 1e-4
    with pytest.raises(UserError, match="reads 2048 tokens a scene"):
        base.reading.begin([2000, 49], 2048, "echoshot")
    with pytest.raises(UserError, match="--mode joint"):
        base.velocity(z, torch.cat(texts), torch.tensor([0.7, 0.7]), layout, "causal")


# -- HoloCine -----------------------------------------------------------------------------------------------------------
def test_a_scene_of_holocine_is_one_text_whose_parts_reach_one_token_further():
    text, spans = wording("Character 1 is old.", ["[SHOT CUT] Character 1 walks.", "A door."])
    assert text == (
        "[global caption] [character1] is old. This scene contains 2 shots. [per shot caption] [character1] walks. "
        "[shot cut] A door."
    )
    assert [text[a:b].strip().split(" ")[0] for a, b in spans] == ["[global", "[per", "A"]
    assert spans[0][1] == spans[1][0] and spans[1][1] == spans[2][0] and spans[2][1] == len(text)
    offsets = [(n, n + 1) for n in range(9)] + [(0, 0)]  # nine letters, and the end of the text
    shared, own = rows_of(offsets, [(0, 3), (3, 6), (6, 9)])
    assert (shared, own) == (range(4), [range(3, 7), range(6, 10)])
    assert rows_read(shared, own, 13) == [
        [0, 1, 2, 3, 4, 5, 6, 10, 11, 12],
        [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12],
    ]


def test_a_shot_of_holocine_attends_to_its_own_rows_only():
    base = HoloCineBase(wan(second=True), WAN21_1B)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(n, 16, generator=generator) for n in (3, 5)]
    z, grid = torch.randn(8, 16, generator=generator), (2, 1, 2)
    apart = [
        base.velocity(z[:4], text, torch.tensor([0.7]), Layout.single(Group(1, len(text), grid)), "scene")
        for text in texts
    ]
    layout = Layout.single(*(Group(n, len(t), grid) for n, t in enumerate(texts, start=1)))
    other = [texts[0], texts[1] + 1]
    joint = [
        base.velocity(z, torch.cat(some), torch.tensor([0.7, 0.7]), layout, "scene")
        for some in (texts, other)
    ]
    assert (apart[0] - apart[1]).abs().max() > 1e-3
    assert (joint[0] - joint[1])[4:].abs().max() > 1e-3
    with pytest.raises(UserError, match="--mode joint"):
        base.velocity(z, torch.cat(texts), torch.tensor([0.7, 0.7]), layout, "causal")


def test_holocine_makes_a_film_as_one_stream_with_a_network_for_much_noise_and_one_for_little(
    place, home, tmp_path
):
    done("accept", "holocine")
    noisy = {name: w * 1.1 for name, w in torch.load(place / "wan2.1.pth", weights_only=True).items()}
    save_file(noisy, tmp_path / "high.safetensors")
    one = ("convert", "holocine", tmp_path / "high.safetensors", "--over", place / "wan2.1")
    wrong = longshot(*one)
    assert wrong.code == 2 and "has two networks" in wrong.err
    done(*one, "--second", place / "wan2.1.pth")
    base = load_base("holocine")
    z, text = torch.ones(1, 16), torch.ones(3, 16)
    layout = Layout.single(Group(1, 3, (1, 1, 1)), rope="timeline")

    def velocity(level):
        return base.velocity(z, text, torch.tensor([level]), layout, "scene")

    first, second = base.first, base.second
    found = {level: velocity(level) for level in (0.9, 0.8)}
    base.first = base.second = base.network = first
    assert torch.equal(found[0.9], velocity(0.9)) and not torch.equal(found[0.8], velocity(0.8))
    base.first = base.second = base.network = second
    assert torch.equal(found[0.8], velocity(0.8)) and not torch.equal(found[0.9], velocity(0.9))
    file = scene(tmp_path / "scene.yaml", (8, 8))
    made = ("sample", file, "--base", "holocine", "--size", "32x16", "--steps", 3)
    done(*made, "--out", tmp_path / "film")
    assert probe(tmp_path / "film" / "scene.mp4").frames == 13
    assert probe(tmp_path / "film" / "shot_02.mp4").frames == 8

    done(*made, "--weight-dtype", "fp8", "--offload", "group", "--out", tmp_path / "less")  # of both networks
    z, narrow = (latents(tmp_path / name)["shot_02"] for name in ("film", "less"))
    assert 0 < (z - narrow).abs().max() < 0.3 * z.abs().max()
    base, shape, one = load_base("holocine"), load_shape("holocine"), load_shape(str(place / "wan2.1"))
    whole = weight_bytes(base.first)
    economise(base, Economy("fp8"), "cpu")
    first, second = (weight_bytes(network) for network in (base.first, base.second))
    assert first == second < 0.6 * whole
    assert shape.weight_bytes - one.weight_bytes == one.network_bytes
    assert shape.largest_bytes == one.largest_bytes and shape.offloaded_bytes == one.offloaded_bytes


# -- files and terms ----------------------------------------------------------------------------------------------------
class Trap:
    def __reduce__(self):
        return (print, ("unpickled!",))


def test_a_pickle_that_holds_more_than_weights_is_not_opened(place, home, tmp_path, capsys):
    torch.save({"generator": {"a": Trap()}}, tmp_path / "trap.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"generator": Trap()}))
    for name in ("trap.pt", "bare.pt"):
        wrong = longshot("convert", "longlive2", tmp_path / name, "--over", place / "wan2.2")
        assert wrong.code == 2 and "holds more than weights" in wrong.err
        assert "unpickled!" not in wrong.out + capsys.readouterr().out
    assert not (home / ".local").exists()


def test_an_unpickler_that_lets_a_class_through_is_not_used(place, home, monkeypatch):
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **named: real(*args, **named | {"weights_only": False}))
    wrong = longshot("convert", "longlive2", place / "wan2.2.pt", "--over", place / "wan2.2")
    assert wrong.code == 2 and "unpickles anything" in wrong.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("head.head.bias"), "the tensor proj_out.bias is missing"),
        (lambda s: s.update({"head.head.bias": torch.zeros(3)}), "proj_out.bias has shape [3]"),
        (lambda s: s.update({"extra.weight": torch.zeros(3)}), "extra.weight belongs to another network"),
        (lambda s: s.update({"model.head.head.bias": torch.zeros(16)}), "is there twice"),
        (lambda s: s.clear(), "is missing"),
    ],
)
def test_weights_that_do_not_fit_are_named(place, home, tmp_path, change, words):
    state = torch.load(place / "wan2.2.pth", weights_only=True)
    change(state)
    save_file(state, tmp_path / "x.safetensors")
    wrong = longshot("convert", "longlive2", tmp_path / "x.safetensors", "--over", place / "wan2.2")
    assert wrong.code == 2 and words in wrong.err and "x.safetensors" in wrong.err


def test_files_that_are_something_else_are_named(place, home, tmp_path):
    (tmp_path / "cut.pt").write_bytes((place / "wan2.2.pt").read_bytes()[:5000])
    torch.save({"generator": {"a": 3}}, tmp_path / "numbers.pt")
    for file, words in (
        (place / "wan2.2.pth", "has no entry 'generator'"),
        (tmp_path / "cut.pt", "not a readable file of weights"),
        (tmp_path / "numbers.pt", "isn't a list of named tensors"),
        (tmp_path / "none.pt", "there is no such file"),
    ):
        wrong = longshot("convert", "longlive2", file, "--over", place / "wan2.2")
        assert wrong.code == 2 and words in wrong.err, wrong
    assert "use longlive2, shotstream" in longshot("convert", "wan", place / "wan2.2.pt").err


def test_terms_are_shown_and_must_be_accepted_once_by_each_user(place, home, tmp_path, monkeypatch):
    convert = (
        "convert",
        "echoshot",
        place / "wan2.1.pth",
        "--over",
        place / "wan2.1",
        "--out",
        tmp_path / "w",
    )
    refused = longshot(*convert)
    assert (
        refused.code == 2
        and "longshot accept echoshot" in refused.err
        and "licence none given" in refused.err
    )
    assert not (tmp_path / "w").exists()
    assert "no right to use it" in done("accept", "echoshot").out
    done(*convert)
    load_base(str(tmp_path / "w"))
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    with pytest.raises(UserError, match="longshot accept echoshot"):
        load_base(str(tmp_path / "w"))


def test_weights_that_are_not_here_are_told_where_to_get_and_damaged_ones_named(place, home, tmp_path):
    with pytest.raises(UserError, match=r"hf download Efficient-Large-Model/LongLive-2.0-5B model_bf16.pt"):
        load_base("longlive2")
    done("convert", "longlive2", place / "wan2.2.pt", "--over", place / "wan2.2", "--out", tmp_path / "w")
    for file, words in (("transformer.safetensors", "damaged"), ("longshot.json", "damaged")):
        kept = (tmp_path / "w" / file).read_bytes()
        (tmp_path / "w" / file).write_bytes(kept[: len(kept) // 2])
        with pytest.raises(UserError, match=words):
            load_base(str(tmp_path / "w"))
        (tmp_path / "w" / file).write_bytes(kept)
    shutil.rmtree(tmp_path / "w")

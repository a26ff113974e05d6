"""Shards round-trip, whoever reads them: longshot, tar, WebDataset, a person (invariant 7)."""

import hashlib
import io
import json
import pickle
import random
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors

from longshot.data.shards import MANIFEST, Sample, ShardDataset, scan, write_shards
from longshot.errors import UserError

BASE = {"name": "test", "channels": 3}


def sample(key: str, grids=((1, 1, 1), (2, 1, 2)), text=(4, 3), seed: int = 0, **record) -> Sample:
    """A scene of which the first group is the global prompt."""
    generator = torch.Generator().manual_seed(seed)
    groups = [{"text": n, "grid": list(grid)} for n, grid in zip(text, grids, strict=True)]
    tensors = {
        f"video.{k}": torch.randn(t * h * w, 3, generator=generator).half()
        for k, (t, h, w) in enumerate(grids)
    }
    return Sample(key, {"groups": groups, "story": "Ünïcode, “quotes”.", **record}, tensors)


def same(one: Sample, other: Sample) -> bool:
    tensors = one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors
    )
    return one.key == other.key and one.record == other.record and tensors


@pytest.fixture
def samples() -> list[Sample]:
    return [sample(f"scene-{i:03d}", seed=i, number=i) for i in range(7)]


@pytest.fixture
def folder(tmp_path, samples) -> Path:
    write_shards(samples, tmp_path / "shards", BASE, max_bytes=8192)
    return tmp_path / "shards"


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=9
    ),
    max_bytes=st.integers(1, 40_000),
)
def test_every_scene_comes_back_as_it_was_from_shards_of_any_size(tmp_path_factory, sizes, max_bytes):
    folder = tmp_path_factory.mktemp("shards")
    samples = [
        sample(f"s{i}", ((1, 1, 1), size), (0, i), seed=i, words="x" * i * 300)
        for i, size in enumerate(sizes)
    ]
    shards = write_shards(iter(samples), folder, BASE, max_bytes)
    dataset = ShardDataset(folder)
    assert len(dataset) == len(samples) == sum(shard.scenes for shard in shards)
    assert all(same(dataset[i], samples[i]) for i in reversed(range(len(samples))))
    assert [entry.tokens for entry in dataset.entries] == [
        i + 1 + t * h * w for i, (t, h, w) in enumerate(sizes)
    ]
    slack = 10240 + 1024  # tar fills up to whole records
    assert all(shard.bytes <= max_bytes + slack for shard in shards if shard.scenes > 1)
    dataset.close()


def test_the_same_scenes_give_the_same_bytes(tmp_path, samples, folder):
    write_shards(samples, tmp_path / "again", BASE, max_bytes=8192)
    files = sorted(path.name for path in folder.iterdir())
    assert len(files) == 5
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    assert ShardDataset(folder).fingerprint() == ShardDataset(tmp_path / "again").fingerprint()


def test_a_tar_is_readable_by_hand(folder, samples):
    with tarfile.open(folder / "shard-000000.tar") as tar:
        names = tar.getnames()
        assert names[:2] == ["scene-000.json", "scene-000.safetensors"]
        record, tensors = (tar.extractfile(name) for name in names[:2])
        assert record and tensors
        assert json.load(record) == samples[0].record
        assert torch.equal(load_tensors(tensors.read())["video.1"], samples[0].tensors["video.1"])


def test_webdataset_reads_the_shards(folder, samples):
    webdataset = pytest.importorskip("webdataset", reason="needs the extra `test`")
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    read = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [item["__key__"] for item in read] == [s.key for s in samples]
    assert [json.loads(item["json"]) for item in read] == [s.record for s in samples]
    assert all(
        torch.equal(load_tensors(item["safetensors"])["video.1"], s.tensors["video.1"])
        for item, s in zip(read, samples, strict=True)
    )


def test_the_index_is_what_a_walk_through_the_tar_finds(folder):
    walked = [entry for path in sorted(folder.glob("*.tar")) for entry in scan(path)]
    assert walked == ShardDataset(folder).entries


def test_a_dataset_goes_to_another_process_without_its_open_files(folder, samples):
    dataset = ShardDataset(folder)
    assert same(dataset[3], samples[3])
    assert same(pickle.loads(pickle.dumps(dataset))[5], samples[5])


def test_a_shorter_set_leaves_nothing_of_the_longer_one(folder, samples):
    write_shards(samples[:1], folder, BASE)
    assert sorted(p.name for p in folder.iterdir()) == [
        "shard-000000.jsonl",
        "shard-000000.tar",
        "shards.json",
    ]
    assert len(ShardDataset(folder)) == 1


def test_a_run_that_dies_leaves_no_manifest_and_the_next_one_finishes(folder, samples):
    def dies():
        yield from samples[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(dies(), folder, BASE, max_bytes=8192)
    assert not list(folder.glob(".*"))
    with pytest.raises(UserError, match=r"shards\.json: can't be read \(.+\); is this a folder of shards\?"):
        ShardDataset(folder)
    write_shards(samples, folder, BASE, max_bytes=8192)
    assert same(ShardDataset(folder)[6], samples[6])


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "ü", "x" * 201])
def test_a_key_that_is_no_file_name_is_refused(tmp_path, key):
    with pytest.raises(UserError, match="a key in a shard is letters"):
        write_shards([sample(key)], tmp_path, BASE)


def test_a_scene_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="scene a: comes twice"):
        write_shards([sample("a"), sample("b"), sample("a")], tmp_path, BASE)


# -- damage -------------------------------------------------------------------------------------------------------------
def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-600])


def _garble_tensors(path: Path) -> None:
    entry, content = scan(path)[0], bytearray(path.read_bytes())
    content[entry.tensors[0] : entry.tensors[0] + 40] = b"\xff" * 40
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("shard-000000.tar", _cut, r"shard-000000\.tar: has \d+ bytes, not \d+; copy the shard again"),
        ("shard-000000.tar", Path.unlink, r"shard-000000\.tar: can't be read"),
        ("shard-000000.tar", _garble_tensors, r"shard-000000\.tar: scene scene-000 can't be read"),
        ("shard-000000.jsonl", _cut, r"shard-000000\.jsonl: "),
        ("shard-000000.jsonl", Path.unlink, r"shard-000000\.jsonl: can't be read"),
        ("shards.json", _cut, r"shards\.json: isn't a list of shards"),
        (
            "shards.json",
            lambda p: p.write_text('{"format": "2"}'),
            r"is of format '2', not longshot-shards-1",
        ),
        ("shards.json", lambda p: p.write_text("[]"), r"shards\.json: isn't a list of shards"),
    ],
)
def test_damage_is_named(folder, name, damage, says):
    damage(folder / name)
    with pytest.raises(UserError, match=says):
        ShardDataset(folder)[0]


def test_a_manifest_cannot_lead_out_of_its_folder(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["shards"][0]["name"] = "../../etc/shard.tar"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="lies outside"):
        ShardDataset(folder)


def test_a_tar_of_something_else_is_no_shard(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member = tarfile.TarInfo("holiday.jpg")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(UserError, match=r"holds 'holiday\.jpg', which belongs to no scene"):
        scan(tmp_path / "x.tar")
    (tmp_path / "y.tar").write_bytes(random.Random(0).randbytes(2000))
    with pytest.raises(UserError, match="is not a whole shard"):
        scan(tmp_path / "y.tar")


def test_the_manifest_holds_each_tars_hash(folder):
    for shard in json.loads((folder / MANIFEST).read_text())["shards"]:
        content = (folder / shard["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])

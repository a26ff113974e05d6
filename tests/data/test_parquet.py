"""Rows as Parquet: what goes out comes back, and other tools see typed columns."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_scenes import scene_row

from commands import done, refused
from longshot.data.captions import CaptionedScene
from longshot.data.journal import read_rows, write_rows
from longshot.data.latents import LatentScene
from longshot.data.parquet import read_parquet, read_table, write_parquet
from longshot.data.probe import FilmRow
from longshot.data.records import Origin, SceneRow
from longshot.data.shards import ShardRow
from longshot.data.shots import ShotRow

CAPTION = {"characters": [{"id": 1, "description": "a “red” fox\n"}], "prompts": ["Character 1 waits.", ""]}


def scenes() -> list[dict]:
    rows = [scene_row(f"s{n}", "a.mp4", [(0, 12), (12, 20)]) for n in range(3)]
    rows[0]["shots"][0] |= {"scores": {"black": 0.25, "seconds": 1.5}, "crop": [0, 2, 48, 28]}
    rows[1] |= {"kept": False, "reasons": ["duplicate"], "duplicate_of": "s0", "similarity": None}
    rows[2]["shots"][1]["samples"] = [
        {"frame": 13, "second": 1.625, "luma": 0.5, "spread": 0.1, "hash": "0f"}
    ]
    return [SceneRow.of(row).row() for row in rows]


def captioned() -> list[dict]:
    return [CaptionedScene.of({**row, "caption": CAPTION, "caption_model": "m"}).row() for row in scenes()]


def latent() -> list[dict]:
    facts = {"name": "tiny", "fps": "8", "size": [48, 32], "cut": "[SHOT CUT]"}
    clip = {
        "id": "s0-0",
        "start_s": 0.0,
        "frames": 5,
        "size": [48, 32],
        "cut": True,
        "prompt": "",
        "alone": "x",
    }
    more = {
        "base_facts": facts,
        "global_prompt": "",
        "clips": [clip],
        "groups": [{"text": 0, "grid": [0, 0, 0]}],
    }
    return [LatentScene.of({**captioned()[0], **more, "file": "latents/f", "bytes": 9}).row()]


def shards() -> list[dict]:
    return [
        ShardRow(file="x.tar", scenes=("a",), bytes=1, sha256="0", base={"b": [1, None, {"c": 0.5}]}).row()
    ]


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (SceneRow, scenes()),
        (CaptionedScene, captioned()),
        (LatentScene, latent()),
        (ShardRow, shards()),
        (ShotRow, []),
    ],
)
def test_rows_come_back_from_parquet_as_they_went(tmp_path, kind, rows):
    path = tmp_path / "rows.parquet"
    assert write_parquet(path, iter(rows), kind, "any") == len(rows)
    assert json.dumps(list(read_parquet(path, kind))) == json.dumps(rows)


@settings(max_examples=25)
@given(
    names=st.lists(st.text(min_size=1).filter(lambda t: t.isprintable()), min_size=1, max_size=4),
    seconds=st.floats(0, 1e6),
    broken=st.none() | st.text(),
)
def test_films_of_any_name_come_back(tmp_path_factory, names, seconds, broken):
    path = tmp_path_factory.mktemp("t") / "rows.parquet"
    rows = [
        FilmRow(
            film=Origin(path=name, sha256="0" * 64), bytes=2**40, width=2, height=2, fps="24", frames=1,
            seconds=seconds, broken=broken,
        ).row()
        for name in names
    ]  # fmt: skip
    write_parquet(path, rows, FilmRow, "probe")
    assert list(read_parquet(path, FilmRow)) == rows


def test_the_command_goes_both_ways_and_knows_the_stage(tmp_path):
    lines = tmp_path / "out" / "filter" / "rows.jsonl"
    write_rows(lines, scenes() * 200)
    assert "600 rows of filter" in done("data", "convert", lines, tmp_path / "a.parquet").out
    done("data", "convert", tmp_path / "a.parquet", tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == lines.read_bytes()


def test_other_tools_see_typed_columns(tmp_path):
    from pyarrow import types
    from pyarrow.parquet import read_schema
    from pyarrow.parquet import read_table as read

    path = tmp_path / "rows.parquet"
    write_parquet(path, scenes(), SceneRow, "filter")
    schema = read_schema(path)
    assert types.is_boolean(schema.field("kept").type) and types.is_struct(schema.field("film").type)
    assert types.is_floating(schema.field("shots").type.value_type.field("start_s").type)
    assert read(path, filters=[("kept", "=", True)]).num_rows == 2


def test_captions_made_elsewhere_may_be_a_table(tmp_path):
    import pyarrow
    from pyarrow.parquet import write_table

    lines = [{"scene": "s0", "story": "A fox waits.", "shots": [{"shot": 1, "prompt": "It waits."}]}]
    write_table(pyarrow.Table.from_pylist([*lines, {"scene": "s1"}]), tmp_path / "captions.parquet")
    assert list(read_rows(tmp_path / "captions.parquet")) == list(read_table(tmp_path / "captions.parquet"))
    assert next(read_rows(tmp_path / "captions.parquet")) == lines[0]


def test_the_command_imports_captions_from_a_table_and_from_another_runs_rows(tmp_path):
    import pyarrow
    from pyarrow.parquet import write_table

    for out in ("out", "other"):
        write_rows(tmp_path / out / "filter" / "rows.jsonl", scenes())
        (tmp_path / f"{out}.yaml").write_text(f"films: [a.mp4]\nout: {out}\n")
    # As a table has it: what one row lacks is there and empty, in lists as well; and a column of the person's own.
    lines = [
        {
            "scene": scene,
            "model": model,
            "note": 7,
            "characters": [{"id": 1, "description": "A fox.", "name": None}],
            "environment": "Snow.",
            "story": "It waits.",
            "shots": [{"shot": k, "prompt": f"Character 1 waits {k}.", "cut": None} for k in (1, 2)],
        }
        for scene, model in (("s0", "by hand"), ("s2", None))
    ]
    write_table(pyarrow.Table.from_pylist(lines), tmp_path / "captions.parquet")
    said = done("data", "captions", tmp_path / "out.yaml", "--import", tmp_path / "captions.parquet").out
    assert "captions: 2 in, 2 out" in said
    rows = list(read_rows(tmp_path / "out" / "captions" / "rows.jsonl"))
    assert [row["caption"]["prompts"] for row in rows] == [
        ["Character 1 waits 1.", "Character 1 waits 2."]
    ] * 2
    assert [row["caption_model"] for row in rows] == ["by hand", "brought"]
    done("data", "convert", tmp_path / "out" / "captions" / "rows.jsonl", tmp_path / "rows.parquet")
    done("data", "captions", tmp_path / "other.yaml", "--import", tmp_path / "rows.parquet")
    assert list(read_rows(tmp_path / "other" / "captions" / "rows.jsonl")) == rows


def test_what_is_no_table_or_another_stages_is_refused_in_one_line(tmp_path):
    (tmp_path / "text.parquet").write_text("I am a table, believe me")
    assert "not a Parquet file" in refused("data", "convert", tmp_path / "text.parquet", tmp_path / "x.jsonl")
    write_parquet(tmp_path / "rows.parquet", scenes(), SceneRow, "elsewhere")
    assert "say whose rows" in refused("data", "convert", tmp_path / "rows.parquet", tmp_path / "x.jsonl")
    said = refused("data", "convert", tmp_path / "rows.parquet", tmp_path / "x.jsonl", "--stage", "captions")
    assert "row 1: caption" in said and not (tmp_path / "x.jsonl").exists()
    assert "give a .jsonl and a .parquet" in refused(
        "data", "convert", tmp_path / "a.csv", tmp_path / "x.jsonl"
    )
    assert "no such file" in refused("data", "convert", tmp_path / "no.parquet", tmp_path / "x.jsonl")

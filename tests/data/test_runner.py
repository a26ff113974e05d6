"""Runs of a stage: what is kept, what is made again, what happens when it is killed or meets bad input."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_stage import calls, numbers, toy

from commands import file_size_limit
from longshot.data.engine import LocalEngine
from longshot.data.journal import Journal, alone, read_rows
from longshot.data.runner import run_stage
from longshot.data.stage import Lines, Outcome, Unit, key_of, run_unit
from longshot.errors import UserError


def rows_in(out: Path) -> list[dict]:
    return list(read_rows(out / "toy" / "rows.jsonl"))


def run(out: Path, *values: int, workers: int = 1, **settings):
    return run_stage(toy(out, **settings), numbers(*values), LocalEngine(workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_come_out_in_the_order_of_the_input_and_bad_units_are_named(tmp_path, workers):
    report = run(tmp_path, 5, 13, 3, 14, 10, 1, workers=workers, times=2)
    assert [row["value"] for row in rows_in(tmp_path)] == [10, 6, 20, 2]
    assert [(f.name, f.error) for f in report.failures] == [
        ("n13", "thirteen: is unlucky; take another number"),
        ("n14", "n14: toy failed (KeyError: 'a bug')"),
    ]
    assert report.failures[0].trace is None and "toy_stage.py" in (report.failures[1].trace or "")
    assert report.notes == ["ten"] and report.units == 6 and report.rows == 4
    stored = json.loads((tmp_path / "toy" / "stage.json").read_text())
    assert stored["failures"][0]["name"] == "n13" and stored["settings"] == {"times": 2, "wait": 0.0}
    assert [row["name"] for row in read_rows(tmp_path / "toy" / "failures.jsonl")] == ["n13", "n14"]


def test_a_worker_that_dies_costs_its_own_unit_only(tmp_path):
    report = run(tmp_path, 1, 15, 2, 3, 4, workers=2)
    assert [row["value"] for row in rows_in(tmp_path)] == [1, 2, 3, 4]
    assert [f.error for f in report.failures] == ["n15: the process that ran toy on it died (exit code 9)"]


def test_what_is_done_is_not_done_again_and_failures_are_tried_again(tmp_path):
    run(tmp_path, 1, 13, 2)
    report = run(tmp_path, 1, 13, 2, 3)
    assert report.reused == 2 and calls(tmp_path) == [1, 13, 2, 13, 3]
    assert [row["value"] for row in rows_in(tmp_path)] == [1, 2, 3]


def test_other_settings_make_everything_again_and_the_old_ones_are_still_there(tmp_path):
    run(tmp_path, 1, 2)
    run(tmp_path, 1, 2, times=5)
    assert [row["value"] for row in rows_in(tmp_path)] == [5, 10]
    assert run(tmp_path, 1, 2).reused == 2 and [row["value"] for row in rows_in(tmp_path)] == [1, 2]


def test_a_unit_whose_file_is_gone_is_made_again(tmp_path):
    run(tmp_path, 1, 2)
    (tmp_path / rows_in(tmp_path)[0]["file"]).unlink()
    assert run(tmp_path, 1, 2).reused == 1 and calls(tmp_path) == [1, 2, 1]
    assert all((tmp_path / row["file"]).exists() for row in rows_in(tmp_path))


KILLED = """
import sys; from pathlib import Path
from longshot.data.engine import LocalEngine; from longshot.data.runner import run_stage
from toy_stage import numbers, toy
if __name__ == "__main__":
    run_stage(toy(Path(sys.argv[1]), wait=0.05), numbers(*range(20, 32)), LocalEngine(int(sys.argv[2])))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_where_it_was(tmp_path, workers):
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, script, tmp_path, str(workers)], env=environment)
    journal = tmp_path / "toy" / "journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "toy" / "rows.jsonl").exists()
    kept = journal.read_bytes().count(b"\n")
    with journal.open("ab") as file:
        file.write(b'{"key":"half a li')
    report = run_stage(toy(tmp_path, wait=0.05), numbers(*range(20, 32)), LocalEngine(1))
    assert [row["value"] for row in rows_in(tmp_path)] == list(range(20, 32))
    assert report.reused == kept and not list(tmp_path.rglob(".[0-9a-z]*.*"))


@given(st.lists(st.text(min_size=1), unique=True, max_size=5), st.data())
def test_a_journal_cut_off_anywhere_keeps_every_whole_entry(tmp_path_factory, names, data):
    folder = tmp_path_factory.mktemp("journal")
    journal, ends = Journal(folder), [0]
    for name in names:
        journal.add(Outcome(key=name, name=name, rows=({"text": name},)))
        ends.append(journal.path.stat().st_size)
    journal.close()
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(journal.path, cut)
    again = Journal(folder)
    whole = [name for name, end in zip(names, ends[1:], strict=True) if end <= cut]
    assert [name for name in names if name in again] == whole
    again.add(Outcome(key="\0new", name="new", rows=({"text": "new"},)))
    assert [next(again.read(name)["rows"])["text"] for name in [*whole, "\0new"]] == [*whole, "new"]
    again.close()


ROWS = st.lists(
    st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text() | st.none())
)


@given(ROWS)
def test_rows_kept_as_lines_come_back_as_they_were(rows):
    lines = Lines(rows)
    assert list(lines) == rows and lines[1:] == rows[1:] and len(lines) == len(rows)


@given(st.text() | st.just(',"rows":[{"a":'), st.text() | st.just(']}\n,"rows":['))
def test_what_a_name_or_a_row_says_is_never_taken_for_the_rows_of_an_entry(tmp_path_factory, name, text):
    journal, rows = Journal(tmp_path_factory.mktemp("journal")), [{"text": text}, {text: [text]}]
    journal.add(Outcome(key="a", name=name, rows=Lines(rows), notes=(text,)))
    entry = journal.read("a")
    assert (entry["name"], entry["notes"], list(entry["rows"])) == (name, [text], rows)
    journal.close()


@pytest.mark.parametrize("end", [b"]", b"]}]", b",]}", b'{"a":1}]}', b"", b"\xff]}"])
def test_an_entry_whose_rows_were_damaged_is_made_again(tmp_path, end):
    journal = Journal(tmp_path)
    for name in "ab":
        journal.add(Outcome(key=name, name=name, rows=({"a": 1}, {"a": 2})))
    journal.close()
    path = journal.path
    path.write_bytes(path.read_bytes().replace(b"]}\n", end + b"\n", 1))
    again = Journal(tmp_path)
    assert "a" not in again and list(again.read("b")["rows"]) == [{"a": 1}, {"a": 2}]
    again.close()


@pytest.mark.parametrize("damaged", [0, 1, 2])
@pytest.mark.parametrize("torn", [b"", b'{"key":"half a li'])
def test_a_damaged_line_of_a_journal_costs_its_own_entry_only(tmp_path, damaged, torn):
    names = ["a", "b", "c"]
    journal = Journal(tmp_path)
    for name in names:
        journal.add(Outcome(key=name, name=name, rows=({"text": name},)))
    journal.close()
    lines = journal.path.read_bytes().splitlines(keepends=True)
    lines[damaged] = b"\0" * (len(lines[damaged]) - 1) + b"\n"
    journal.path.write_bytes(b"".join(lines) + torn)
    again = Journal(tmp_path)
    lost = names[damaged]
    assert [name for name in names if name not in again] == [lost]
    for name in (lost, "new"):
        again.add(Outcome(key=name, name=name, rows=({"text": name},)))
    kept = [list(again.read(name)["rows"]) for name in [*names, "new"]]
    assert kept == [[{"text": t}] for t in [*names, "new"]]
    again.close()
    assert again.path.read_bytes().startswith(b"".join(lines) + b'{"key":"%s","name"' % lost.encode())


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs a file that can only be written"
)
def test_a_journal_that_cannot_be_read_does_not_say_written(tmp_path):
    (tmp_path / "journal.jsonl").symlink_to("/proc/self/clear_refs")
    with pytest.raises(UserError, match=r"journal\.jsonl: could not be read \(.+\)$"):
        Journal(tmp_path)


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text() | st.none()), max_size=3))
def test_a_key_is_the_hash_of_the_json_of_all_that_goes_in(tmp_path_factory, rows):
    stage = toy(tmp_path_factory.getbasetemp(), times=3)
    told = ["toy", 1, {"times": 3, "wait": 0.0}, rows]
    text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert key_of(stage, Unit("u", tuple(rows))) == hashlib.sha256(text.encode()).hexdigest()


def test_an_entry_that_cannot_be_written_whole_leaves_nothing_behind(tmp_path):
    journal = Journal(tmp_path)
    journal.add(Outcome(key="a", name="a", rows=({"x": 1.0},)))
    before = journal.path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.add(Outcome(key="b", name="b", rows=({"x": 1.0}, {"x": float("nan")})))
    assert journal.path.read_bytes() == before and "b" not in journal
    with file_size_limit(len(before) + 20), pytest.raises(UserError, match="could not be written"):
        journal.add(Outcome(key="c", name="c", rows=({"x": 1.0},) * 9))
    assert journal.path.read_bytes() == before
    journal.close()


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with (
        alone(tmp_path),
        pytest.raises(UserError, match="another run works in this folder"),
        alone(tmp_path),
    ):
        pass
    with alone(tmp_path):
        pass


@contextmanager
def small_disk(folder: Path):
    folder.mkdir()
    disk = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(disk, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_full_for_a_tensor_stops_the_run(tmp_path):
    with small_disk(tmp_path / "out") as out:
        said = r"16\.safetensors: could not be written \(No space left on device\); make room, and the same command"
        with pytest.raises(UserError, match=said):
            run(out, 1, 16, 2)
        assert calls(out) == [1, 16] and not list(out.rglob("*16*"))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_disk_that_a_stage_has_not_foreseen_stops_the_run(tmp_path):
    (tmp_path / "calls").symlink_to("/dev/full")
    with pytest.raises(
        UserError, match=r"n1: toy failed \(OSError: .*No space left on device\); make room, and"
    ):
        run(tmp_path, 1, 2)


def test_a_read_only_disk_is_not_told_to_make_room(tmp_path):
    with small_disk(tmp_path / "out") as out:
        subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        outcome = run_unit(toy(out), Unit("n1", tuple(numbers(1))), "k")
    assert "Read-only file system" in (outcome.error or "")
    assert outcome.stop == "the folder is read-only: make it writable"

import os
from pathlib import Path

import pytest

from longshot.errors import UserError
from longshot.files import atomic_path, inside, write_text


def test_a_file_is_written_whole_and_nothing_is_left_beside_it(tmp_path):
    target = tmp_path / "new" / "folder" / "a.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_the_temporary_file_has_the_suffix_of_the_file_it_becomes(tmp_path):
    with atomic_path(tmp_path / "scene.mp4") as temporary:
        assert temporary.suffix == ".mp4"
        assert temporary.parent == tmp_path


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_whole(tmp_path, failure):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(failure), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise failure
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_systems_refusal_is_one_line_that_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.txt: could not be written \(.+\)$"):
        write_text(tmp_path / "file" / "a.txt", "text")


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        write_text(tmp_path, "text")


def test_a_rewritten_file_keeps_its_permissions_and_a_new_one_gets_the_usual_ones(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("")
    old.chmod(0o640)
    plain = tmp_path / "plain"
    plain.write_text("")
    for path in (old, new):
        write_text(path, "text")
    assert old.stat().st_mode & 0o777 == 0o640
    assert new.stat().st_mode == plain.stat().st_mode


def test_text_is_written_as_utf8_with_unix_line_ends(tmp_path):
    write_text(tmp_path / "a.yaml", "café\n")
    assert (tmp_path / "a.yaml").read_bytes() == b"caf\xc3\xa9\n"


def test_a_path_inside_the_root_is_resolved(tmp_path):
    assert inside(tmp_path, "a/../b.png") == tmp_path / "b.png"
    assert inside(tmp_path, tmp_path / "c.png") == tmp_path / "c.png"


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/passwd", Path("..") / "x"])
def test_a_path_outside_the_root_is_refused(tmp_path, path):
    with pytest.raises(UserError, match="lies outside"):
        inside(tmp_path, path)


def test_a_link_that_leads_outside_the_root_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    os.symlink(tmp_path, root / "link")
    with pytest.raises(UserError, match="lies outside"):
        inside(root, "link/secret")


def test_a_path_that_is_none_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="not a usable path"):
        inside(tmp_path, "a\0b")

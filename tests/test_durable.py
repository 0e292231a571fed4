"""Files that are replaced as a whole, also by several processes at once."""

import os
import time

from cifarbn.durable import ABANDONED, replace_file


def test_several_processes_may_replace_the_same_file_at_once(tmp_path):
    def first(opened):
        opened.write(b"first")
        replace_file(tmp_path / "page", lambda other: other.write(b"second"))
        assert (tmp_path / "page").read_bytes() == b"second"

    replace_file(tmp_path / "page", first)
    assert (tmp_path / "page").read_bytes() == b"first" and os.listdir(tmp_path) == ["page"]


def test_what_a_killed_process_has_left_is_removed_by_the_next_write_of_the_file(tmp_path):
    names = (".page.0a1b2c3d.tmp", ".page.tmp", ".other.0a1b2c3d.tmp", ".page.4e5f6071.tmp")
    for name in names:
        (tmp_path / name).touch()
    for name in names[:3]:
        os.utime(tmp_path / name, (time.time() - ABANDONED - 1,) * 2)
    replace_file(tmp_path / "page", lambda opened: opened.write(b"new"))
    assert set(os.listdir(tmp_path)) == {"page", ".other.0a1b2c3d.tmp", ".page.4e5f6071.tmp"}, "the last is in use"

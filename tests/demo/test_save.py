import os
import stat

import pytest

from qdeq.demo.save import FILES, Folder
from qdeq.errors import QdeqValueError


def test_folder_is_made_and_files_are_renamed_into_place(tmp_path):
    folder = Folder(tmp_path / "a" / "b", force=False)
    written_to = []

    def writer(path):
        written_to.append(path)
        assert not (folder.path / "int8.pt").exists()
        path.write_text("new")

    target = folder.write("int8.pt", writer)
    assert target == tmp_path / "a" / "b" / "int8.pt"
    assert target.read_text() == "new"
    assert written_to[0].parent == target.parent
    assert [path.name for path in folder.path.iterdir()] == ["int8.pt"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("name", FILES)
def test_file_in_the_way_is_an_error_unless_forced(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(QdeqValueError, match=r"--save: expected no .* got .*--force"):
        Folder(tmp_path, force=False)
    assert (tmp_path / name).read_text() == "mine"
    Folder(tmp_path, force=True).write(name, lambda path: path.write_text("new"))
    assert (tmp_path / name).read_text() == "new"


def test_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    folder = Folder(tmp_path, force=False)

    def writer(path):
        path.write_text("new")
        (tmp_path / "float.pt").write_text("somebody else's")

    with pytest.raises(QdeqValueError, match=r"float\.pt"):
        folder.write("float.pt", writer)
    assert (tmp_path / "float.pt").read_text() == "somebody else's"
    assert len(list(tmp_path.iterdir())) == 1


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "int8.pt").write_text("old")

    def writer(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Folder(tmp_path, force=True).write("int8.pt", writer)
    assert (tmp_path / "int8.pt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QdeqValueError, match=r"--save: expected a folder that can be made"):
        Folder(tmp_path / "file", force=True)

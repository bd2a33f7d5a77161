"""Temporary files belong to the process that writes them: nobody else's are removed, and no dead process' stay."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastdiff import InputError
from fastdiff.files import check_folder, check_writable, save_text, write_folder
from fastdiff.temporary import FOREIGN_SECONDS, is_temporary, temporary, tidy

DIES = """
import os, sys
from pathlib import Path
from fastdiff.temporary import say_command, temporary
say_command("export")
with temporary(Path("."), ".onnx") as file, temporary(Path("."), as_folder=True) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def left(tmp_path, monkeypatch):
    """What a killed process left in the current folder."""
    monkeypatch.chdir(tmp_path)
    killed = subprocess.run([sys.executable, "-c", DIES], cwd=tmp_path)
    assert killed.returncode == -9
    names = sorted(os.listdir())
    assert len(names) == 2 and all(name.startswith(".fastdiff-export-") for name in names)
    return names


def test_what_a_killed_process_left_is_removed_by_the_next(left):
    check_writable("s.onnx")
    assert os.listdir() == []


def test_what_was_left_beside_a_folder_is_removed_with_it(left):
    """A page is made beside its folder where there is none yet; the next one may find the folder, empty."""
    os.mkdir("page")
    check_folder("page")
    assert os.listdir() == ["page"]


def test_a_process_tidies_when_it_first_writes_to_a_folder(left):
    save_text("text", "note.txt")
    assert os.listdir() == ["note.txt"]


def test_what_a_living_process_writes_stays(tmp_path):
    wait = (
        "from pathlib import Path; from fastdiff.temporary import temporary\n"
        "with temporary(Path('.'), as_folder=True) as made: print(made, flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", wait], cwd=tmp_path, **pipes) as other:
        made = tmp_path / other.stdout.readline().strip()
        with temporary(tmp_path) as own:
            tidy(tmp_path)
            assert made.is_dir() and own.is_file()
        check_folder(tmp_path)
        assert made.is_dir()
        other.communicate("\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [".fastdiff-", ".fastdiff-mine", ".fastdiff-notes.txt", ".fastdiff-sample-1-2-3-x"])
def test_a_name_of_the_users_own_stays(name, tmp_path):
    (tmp_path / name).mkdir()
    tidy(tmp_path)
    assert (tmp_path / name).is_dir() and not is_temporary(name)


def test_links_are_removed_and_never_followed(left):
    """What a link with such a name points at belongs to somebody."""
    Path("precious").mkdir()
    Path("precious/file").write_text("kept")
    for name, target in zip(left, ("precious", "precious/file"), strict=True):
        Path(f"{name}.link").symlink_to(target)
    tidy(Path("."))
    assert os.listdir() == ["precious"] and Path("precious/file").read_text() == "kept"


def test_a_process_of_the_same_number_is_another(left):
    """Numbers are given again; the time at which the process began tells them apart."""
    dead = left[0].split("-")
    ours = "-".join([*dead[:3], str(os.getpid()), *dead[4:]])
    Path(left[0]).rename(ours)
    tidy(Path("."))
    assert os.listdir() == []


def test_another_machines_stay_a_week(left):
    for name in left:
        parts = name.split("-")
        Path(name).rename("-".join([*parts[:2], "00000000", *parts[3:]]))
    names = set(os.listdir())
    tidy(Path("."))
    assert set(os.listdir()) == names
    old = time.time() - FOREIGN_SECONDS - 1
    for name in names:
        os.utime(name, (old, old))
    tidy(Path("."))
    assert os.listdir() == []


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), write_folder(tmp_path / "deep" / "page") as made:
        (made / "file").write_text("half")
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_there_stays_itself_and_gets_its_last_file_last(tmp_path, monkeypatch):
    page = tmp_path / "page"
    page.mkdir()
    before, order, replace = page.stat().st_ino, [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append(Path(new).name), replace(old, new)))
    with write_folder(page, "index.html") as made:
        for name in ("a", "index.html", "z"):
            (made / name).write_text(name)
    assert page.stat().st_ino == before and sorted(os.listdir(page)) == ["a", "index.html", "z"]
    assert order[-1] == "index.html" and len(order) == 3


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: Path(path).symlink_to(path)], ids=["pipe", "link to itself"])
def test_a_file_takes_the_place_of_a_file_alone(make, tmp_path):
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(InputError, match="cannot write '.*x.png'"):
        check_writable(path)
    assert os.path.lexists(path)

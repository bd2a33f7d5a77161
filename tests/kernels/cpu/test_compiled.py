"""How the C sources are compiled and kept."""

import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastdiff.kernels.cpu import compiled

with_compiler = pytest.mark.skipif(compiled.build_error() is not None, reason=str(compiled.build_error()))


@pytest.fixture
def needs_compiler():
    """Overrides the folder's, since these are also about what happens without one."""


SMALL = "".join(
    f'__attribute__((visibility("default"))) long {name}() {{ return 3; }}\n' for name in compiled._SIGNATURES
)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """(CC if it changes) → the library that a new process would find, or why it finds none; kept in tmp_path / "cache".

    Its source is small, so that compiling takes no time.
    """
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "small.c").write_text(SMALL)
    monkeypatch.setattr(compiled, "SOURCES", sources)
    monkeypatch.setattr(compiled, "FILES", ("small.c",))
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path / "cache"))

    def again(words: str | None = None):
        if words is not None:
            monkeypatch.setenv("CC", words)
        compiled._load.cache_clear()
        compiled._sources_digest.cache_clear()
        return compiled._load()

    yield again
    monkeypatch.undo()
    compiled._load.cache_clear()
    compiled._sources_digest.cache_clear()


def test_a_compiler_that_is_there_compiles():
    """The suite must not pass by skipping what it is about."""
    assert compiled.build_error() in (None, "no C compiler (cc, gcc or clang) was found")


@pytest.mark.parametrize(
    "words, reason",
    [
        ("/bin/false", "the C compiler '/bin/false' does not run"),
        ("nosuchcompiler", "does not run"),
        ("cc '", "is not a command"),
        pytest.param("cc -Dlong=unknown", "could not be compiled by 'cc -Dlong=unknown'", marks=with_compiler),
    ],
)
def test_what_does_not_compile_is_named(words, reason, load):
    load(words)
    assert reason in compiled.build_error()
    with pytest.raises(compiled.Unavailable) as raised:
        compiled.library()
    assert str(raised.value) == compiled.build_error()


def test_without_a_compiler(load, tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load() == "no C compiler (cc, gcc or clang) was found"


def test_plain_torch_may_be_asked_for(monkeypatch):
    monkeypatch.setenv("FASTDIFF_KERNELS", "reference")
    assert compiled.build_error() == "FASTDIFF_KERNELS=reference asks for plain torch"


def test_where_libraries_are_kept(monkeypatch):
    monkeypatch.setenv("FASTDIFF_CACHE", "/given")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert compiled.cache_folder() == Path("/given")
    monkeypatch.delenv("FASTDIFF_CACHE")
    assert compiled.cache_folder() == Path("/cache/fastdiff")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/somebody")
    assert compiled.cache_folder() == Path("/somebody/.cache/fastdiff")


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_every_source_is_in_one_unit(count):
    units = compiled._units(count)
    assert len(units) == min(count, len(compiled.FILES)) and all(units)
    assert sorted(name for unit in units for name in unit) == list(compiled.FILES)


def test_units_take_about_as_long_to_compile():
    efforts = [compiled._effort(unit) for unit in compiled._units(2)]
    assert max(efforts) < 1.2 * min(efforts)


@with_compiler
def test_the_library_is_kept_and_a_broken_one_is_made_anew(load, tmp_path):
    assert load().vector_width() == 3
    (kept,) = (tmp_path / "cache").iterdir()
    size, made = kept.stat().st_size, kept.stat().st_mtime_ns
    assert load().vector_width() == 3
    assert kept.stat().st_mtime_ns == made
    part = kept.read_bytes()[:1000]
    kept.unlink()  # this process has the file in its memory
    kept.write_bytes(part)
    assert load().vector_width() == 3
    assert [path.stat().st_size for path in (tmp_path / "cache").iterdir()] == [size]


@with_compiler
def test_another_command_or_source_makes_another_library(load, tmp_path):
    command = os.environ.get("CC", "cc")
    load(command)
    assert load(f"{command} -DUNUSED='a b' -Dvector_width=operands -Doperands=vector_width").vector_width() == 3
    assert len(list((tmp_path / "cache").iterdir())) == 2
    (tmp_path / "sources" / "small.c").write_text(SMALL.replace("3", "4"))
    assert load(command).vector_width() == 4
    assert len(list((tmp_path / "cache").iterdir())) == 3


@with_compiler
def test_a_cache_that_cannot_be_written_is_done_without(load, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert load().vector_width() == 3


@with_compiler
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no users")
def test_a_cache_that_others_can_write_is_done_without(load, tmp_path):
    """They could put code there that would be run."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    assert load().vector_width() == 3
    assert list((tmp_path / "cache").iterdir()) == []


@with_compiler
def test_the_identity_names_sources_and_vectors():
    digest, _, width = compiled.identity().partition(", vectors of ")
    assert compiled._sources_digest().startswith(digest) and len(digest) == 12
    assert int(width) == compiled.vector_width() and width in ("4", "8", "16")


@with_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
@pytest.mark.parametrize("without, width", [("-mno-avx512f", 8), pytest.param("-mno-avx", 4, marks=pytest.mark.slow)])
def test_narrower_vectors(without, width):
    """What other processors run, here: its own copies of every loop, with tails of their own."""
    if width >= compiled.vector_width():
        pytest.skip("this processor's own width")
    folder = Path(__file__).parent
    ignored = [
        f"--ignore={folder / name}" for name in ("test_compiled.py", "test_plan.py")
    ]  # they are not about vectors
    options = ["-q", "-p", "no:xdist", str(folder), *ignored]
    code = (
        "import sys, pytest; from fastdiff.kernels.cpu.compiled import vector_width; "
        f"assert vector_width() == {width}; sys.exit(pytest.main({options}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "CC": f"cc {without}"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@with_compiler
def test_what_a_killed_compilation_left_is_removed_by_the_next(load, tmp_path):
    left = tmp_path / "cache" / "compiling-x"
    left.mkdir(mode=0o700, parents=True)
    (tmp_path / "cache").chmod(0o700)
    (left / "half.o").write_text("half")
    load()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]


@with_compiler
def test_two_processes_compile_once(load, tmp_path, monkeypatch):
    """The second waits for the first, and finds its library."""
    made, compile_it = [], compiled._compiled
    monkeypatch.setattr(compiled, "_compiled", lambda *words: (made.append(words), compile_it(*words))[1])
    assert compiled._usable(compiled.cache_folder())
    with ThreadPoolExecutor(2) as pool:
        with compiled._alone(compiled.cache_folder()):
            waiting = [pool.submit(load) for _ in range(2)]
            time.sleep(0.3)
            assert not any(one.done() for one in waiting) and not made
        assert all(one.result().vector_width() == 3 for one in waiting) and len(made) == 1


@with_compiler
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root may give files away")
def test_a_library_of_another_user_is_made_anew(load, tmp_path):
    load()
    (kept,) = (tmp_path / "cache").iterdir()
    os.chown(kept, 12345, -1)
    assert load().vector_width() == 3
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.stat().st_uid == os.getuid()


@pytest.mark.parametrize("where", ["in its version", "in a source"])
def test_a_compiler_that_hangs_is_given_up(where, load, tmp_path, monkeypatch):
    """Although what it has started holds on to its pipes."""
    script = tmp_path / "slow"
    answer = "sleep 30" if where == "in its version" else "exit 0"
    script.write_text(f'#!/bin/sh\ncase "$*" in *-E*) {answer};; *) sleep 30;; esac\n')
    script.chmod(0o755)
    monkeypatch.setattr(compiled, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(compiled, "COMPILE_SECONDS", 0.2)
    began = time.monotonic()
    assert "timed out after 0.2 seconds" in load(str(script))
    assert time.monotonic() - began < 5


def test_a_compiler_may_print_what_is_no_text(load, tmp_path):
    script = tmp_path / "odd"
    script.write_text("#!/bin/sh\nprintf '\\377\\376'\nprintf 'caf\\351\\n' >&2\nexit 1\n")
    script.chmod(0o755)
    assert "does not run" in load(str(script))


def test_without_a_home_libraries_are_kept_with_temporary_files(tmp_path, monkeypatch):
    """A user number without an entry in the system's list, as in containers: ~ then stands for nothing."""
    for name in ("FASTDIFF_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert compiled.cache_folder() == tmp_path / f"fastdiff-{os.getuid()}"

"""The package is found from wherever Python is started, whether it is installed or lies in a clone."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = "import fastdiff, fastdiff.kernels, fastdiff.export, fastdiff.bench; print(fastdiff.__version__)"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package's folder as an install lays it out."""
    site = tmp_path_factory.mktemp("site")
    ignore = shutil.ignore_patterns("__pycache__", "results", "pictures")
    shutil.copytree(ROOT / "fastdiff", site / "fastdiff", ignore=ignore)
    for name in ("kernels", "export", "bench"):
        shutil.copytree(ROOT / name, site / "fastdiff" / name, ignore=ignore)
    return site


def test_the_packages_declared_are_the_folders_there():
    """An editable install finds them all, however few are declared; a wheel has only these."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = set()
    for top in ("fastdiff", *declared["package-dir"].values()):
        for file in (ROOT / top).rglob("__init__.py"):
            folder = ".".join(file.parent.relative_to(ROOT).parts)
            there.add(folder if top == "fastdiff" else f"fastdiff.{folder}")
    assert sorted(declared["packages"]) == sorted(there)


def run(cwd, *paths):
    """Python in that folder, with those on its path and none of this environment's editable install."""
    before = "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in str(f)]; "
    return subprocess.run(
        [sys.executable, "-c", f"{before}sys.path[:0] = {paths!r}; {CODE}"], cwd=cwd, capture_output=True, text=True
    )


def test_in_the_clone_itself():
    done = run(ROOT, "")
    assert done.returncode == 0, done.stderr


def test_beside_a_clone_that_has_the_packages_name(installed, tmp_path):
    """There the clone's folder would be a namespace package of that name."""
    (tmp_path / "fastdiff").symlink_to(ROOT)
    assert run(tmp_path, "").returncode, "without an install there is nothing to find"
    done = run(tmp_path, "", str(installed))
    assert done.returncode == 0, done.stderr

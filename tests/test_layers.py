"""Who may import whom (design.md): imports go one way, and nothing heavy is imported by the command line at start."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"fastdiff": ROOT / "fastdiff", "fastdiff.kernels": ROOT / "kernels", "fastdiff.export": ROOT / "export",
           "fastdiff.bench": ROOT / "bench"}  # fmt: skip

# The chain of the sampler; a module may import those before it, never one after it.
CHAIN = ["schedule", "table", "step", "engine", "sampling", "cli"]


def modules():
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(p for p in parts if p != "__init__")]), path


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or in a function; names only used by type checkers left out."""
    found = set()
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


ALL = dict(modules())


def test_the_walk_finds_the_modules():
    assert {
        "fastdiff.table",
        "fastdiff.kernels.philox",
        "fastdiff.cli.sample",
        "fastdiff.bench.peers.reference",
    } <= ALL.keys()


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith("fastdiff.kernels")])
def test_kernels_import_torch_and_triton_only(name):
    outside = {m.split(".")[0] for m in imports(ALL[name])} - {"torch", "triton", *sys.stdlib_module_names}
    inside = {m for m in imports(ALL[name]) if m.startswith("fastdiff") and not m.startswith("fastdiff.kernels")}
    assert outside <= {"fastdiff"} and not inside


@pytest.mark.parametrize("name", [n for n in ALL if len(n.split(".")) > 1 and n.split(".")[1] in CHAIN])
def test_the_chain_goes_one_way(name):
    place = CHAIN.index(name.split(".")[1])
    later = {f"fastdiff.{m}" for m in CHAIN[place + 1 :]}
    assert not {m for m in imports(ALL[name]) if ".".join(m.split(".")[:2]) in later}


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith("fastdiff.networks")])
def test_networks_know_kernels_and_errors_only(name):
    own = {".".join(m.split(".")[:2]) for m in imports(ALL[name]) if m.startswith("fastdiff")}
    assert own <= {"fastdiff.kernels", "fastdiff.networks", "fastdiff.errors"}


@pytest.mark.parametrize("name", ["fastdiff.training", "fastdiff.losses", "fastdiff.recipe", "fastdiff.data"])
def test_training_never_imports_the_sampler(name):
    assert not imports(ALL[name]) & {"fastdiff.engine", "fastdiff.sampling", "fastdiff.step", "fastdiff.prepared"}


def test_the_reference_imports_nothing_of_the_product():
    assert not {m for m in imports(ALL["fastdiff.bench.peers.reference"]) if m.startswith("fastdiff")}


def test_the_library_imports_neither_benchmarks_nor_tests():
    for name, path in ALL.items():
        if not name.startswith(("fastdiff.bench", "fastdiff.cli.bench")):  # the command is the benchmarks' own
            assert not {m for m in imports(path) if m.startswith(("fastdiff.bench", "tests"))}, name


def test_the_exports_are_used_by_the_command_line_and_the_benchmarks_alone():
    for name, path in ALL.items():
        if not name.startswith(("fastdiff.export", "fastdiff.cli", "fastdiff.bench")):
            assert not {m for m in imports(path) if m.startswith("fastdiff.export")}, name


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from fastdiff.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_packages_are_importable_under_their_names():
    code = (
        "import fastdiff.kernels, fastdiff.export, fastdiff.bench, fastdiff\n"
        "[getattr(fastdiff, n) for n in fastdiff.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

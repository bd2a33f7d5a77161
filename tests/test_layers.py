"""Who may import whom (design.md): imports go one way, and nothing heavy is imported by the command line at start."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "fastdiff": ROOT / "fastdiff",
    "fastdiff.kernels": ROOT / "kernels",
    "fastdiff.export": ROOT / "export",
    "fastdiff.bench": ROOT / "bench",
}
# The rooms of the house, floor by floor: a module imports from its own floor and from those below it.
FLOORS = [
    {
        "_version",
        "errors",
        "files",
        "images",
        "markdown",
        "provenance",
        "schema",
        "temporary",
        "terminal",
        "kernels",
        "data",
    },
    {"samplers", "networks", "capture", "model", "diffusers", "edm"},
    {"checkpoints", "engine", "sampling", "inversion", "training", "shards", "evaluation", "export"},
    {"cli", "bench", "__main__"},
]


def modules():
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(p for p in parts if p != "__init__")]), path


ALL = dict(modules())


def imports(path: Path) -> set[str]:
    """Every module that a file imports: at its top, in a function, or for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = full & ALL.keys()
            found |= submodules or {node.module}
            if submodules and submodules != full:
                found.add(node.module)
    return found


IMPORTS = {name: imports(path) & ALL.keys() for name, path in ALL.items()}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else "fastdiff"


def test_the_walk_finds_the_modules():
    assert {
        "fastdiff.samplers.table",
        "fastdiff.kernels.philox",
        "fastdiff.cli.sample",
        "fastdiff.bench.peers.reference",
    } <= ALL.keys()
    assert "fastdiff.samplers.table" in IMPORTS["fastdiff.engine.engine"]


def test_imports_have_no_circles():
    try:
        graphlib.TopologicalSorter(IMPORTS).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_rooms_have_no_circles():
    rooms: dict[str, set[str]] = {}
    for name, found in IMPORTS.items():
        rooms.setdefault(room(name), set()).update({room(other) for other in found} - {room(name)})
    try:
        graphlib.TopologicalSorter(rooms).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("name", [name for name in ALL if "." in name])
def test_imports_go_down(name):
    floor = next(number for number, rooms in enumerate(FLOORS) if room(name) in rooms)
    allowed = {"fastdiff"}.union(*FLOORS[: floor + 1])
    assert {room(other) for other in IMPORTS[name]} <= allowed


def test_packages_import_nothing_by_themselves():
    """So that a module of a package can be imported without the others, and no circle goes through the package."""
    for name, path in ALL.items():
        if path.name == "__init__.py":
            tops = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
            assert {node.module for node in tops if node.module.startswith("fastdiff")} <= {"fastdiff._version"}, name


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith("fastdiff.kernels")])
def test_kernels_import_torch_and_triton_only(name):
    found = imports(ALL[name])
    outside = {m.split(".")[0] for m in found} - {"torch", "triton", *sys.stdlib_module_names}
    inside = {m for m in found if m.startswith("fastdiff") and not m.startswith("fastdiff.kernels")}
    assert outside <= {"fastdiff"} and not inside


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith("fastdiff.networks")])
def test_networks_know_kernels_and_errors_only(name):
    assert {room(m) for m in IMPORTS[name]} <= {"kernels", "networks", "errors"}


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith("fastdiff.samplers")])
def test_samplers_are_formulas_alone(name):
    """Of numbers, not of tensors: the command line reads their names without torch."""
    assert {room(m) for m in IMPORTS[name]} <= {"samplers", "errors"}


@pytest.mark.parametrize("name", [n for n in ALL if room(n) == "data"])
def test_data_knows_nothing_of_models(name):
    assert {room(m) for m in IMPORTS[name]} <= {"data", "errors", "files", "images", "schema"}


@pytest.mark.parametrize("name", [n for n in ALL if room(n) == "training" and not n.endswith(".loop")])
def test_training_never_imports_the_sampler(name):
    """Only the loop around it samples, to show where it is; placement says where tensors go."""
    assert {m for m in IMPORTS[name] if room(m) in ("engine", "sampling")} <= {"fastdiff.engine.placement"}


def test_the_reference_imports_nothing_of_the_product():
    assert not IMPORTS["fastdiff.bench.peers.reference"]


def test_the_library_imports_neither_benchmarks_nor_tests():
    for name, path in ALL.items():
        if not name.startswith(("fastdiff.bench", "fastdiff.cli.bench")):  # the command is the benchmarks' own
            assert not {m for m in imports(path) if m.startswith(("fastdiff.bench", "tests"))}, name


def test_the_exports_are_used_by_the_command_line_and_the_benchmarks_alone():
    for name in ALL:
        if room(name) not in ("fastdiff", "export", "cli", "bench"):  # the first holds the public names
            assert not {m for m in IMPORTS[name] if room(m) == "export"}, name


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from fastdiff.cli.main import main\n"
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

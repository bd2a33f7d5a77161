"""The notebooks of docs/: they execute, show pictures, and use what users have."""

import ast
import re

import pytest

import fastdiff
from fastdiff.bench import notebooks
from fastdiff.data.fashion import DEBIAN_FASHION

NOTEBOOKS = notebooks.notebooks()
MAX_BYTES = 1.5e6
# A file system's root, or what people's machines have there; a link's path has a host before it.
MACHINE_PATHS = re.compile(r"(?<![\w:/.])/(?:home|root|tmp|work|Users|usr|opt|var|mnt|private)/|\b[A-Z]:\\")
PARTS = {"losses": fastdiff.losses.__all__, "export": fastdiff.export.__all__}


@pytest.fixture(params=NOTEBOOKS, ids=str)
def notebook(request):
    return notebooks.read(NOTEBOOKS[request.param])


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def shows_picture(output) -> bool:
    data = output.get("data", {})
    return "image/png" in data or "data:image/" in data.get("text/html", "")


def seen(output) -> str:
    """An output's text, without the bytes of pictures."""
    texts = [output.get("text", ""), *(text for kind, text in output.get("data", {}).items() if "image/" not in kind)]
    return re.sub(r"base64,[\w+/=]+", "", "\n".join(texts))


def names_used(code: str) -> set[str]:
    """What code takes of fastdiff: sample, losses.snr_weight and so on, imports from below it as full names."""
    found = set()
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found |= {f"import {name}" for name in modules if name.startswith("fastdiff") and name != "fastdiff"}
        elif isinstance(node, ast.Attribute):
            chain = ast.unparse(node)
            if re.fullmatch(r"fastdiff(\.\w+)+", chain):
                found.add(chain.removeprefix("fastdiff."))
    return found


def is_public(name: str) -> bool:
    first, *rest = name.split(".")
    if first not in fastdiff.__all__:
        return False
    return rest[0] in PARTS[first] if rest and first in PARTS else not any(part.startswith("_") for part in rest)


def test_the_notebooks_are_there():
    assert {"annotated", "course"} <= NOTEBOOKS.keys()


def test_what_is_not_public_is_noticed():
    code = "import fastdiff.engine.step\nfastdiff.images.grid(x)\nfastdiff.losses.target\nfastdiff.sample(fastdiff._x)"
    assert {name for name in names_used(code) if not is_public(name)} == {
        "import fastdiff.engine.step",
        "images",
        "images.grid",
        "losses.target",
        "_x",
    }


def test_each_cell_compiles_and_uses_public_names_alone(notebook):
    for cell in code_cells(notebook):
        compile(cell.source, cell.id, "exec")
        assert not {name for name in names_used(cell.source) if not is_public(name)}, cell.id


def test_cells_have_names_that_stay(notebook):
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z][a-z0-9-]*", one) for one in ids)
    assert notebook.metadata == notebooks.METADATA and not any(cell.metadata for cell in notebook.cells)


def test_the_committed_outputs_are_a_run_from_top_to_bottom(notebook):
    assert [cell.execution_count for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]
    assert sum(map(shows_picture, outputs(notebook))) >= 5
    for output in outputs(notebook):
        assert output.output_type != "error" and output.get("name") != "stderr", seen(output)
        assert not MACHINE_PATHS.search(seen(output)), seen(output)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_small(name):
    assert NOTEBOOKS[name].stat().st_size < MAX_BYTES


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_lead_somewhere(name):
    path = NOTEBOOKS[name]
    for cell in notebooks.read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https?://)([^)#]+)", cell.source):
                assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    "text, found",
    [("/home/me/x.py", True), ("see '/tmp/a'", True), (r"C:\Users", True), ("https://a.org/home/x", False)],
)
def test_machine_paths_are_noticed(text, found):
    assert bool(MACHINE_PATHS.search(text)) == found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_executes(name, tmp_path):
    if name == "annotated" and not DEBIAN_FASHION.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    committed = notebooks.read(NOTEBOOKS[name])
    made = notebooks.executed(committed, tmp_path)  # a cell that fails raises
    assert [cell.source for cell in made.cells] == [cell.source for cell in committed.cells]
    assert [*map(shows_picture, outputs(made))] == [*map(shows_picture, outputs(committed))]
    assert not any(output.get("name") == "stderr" for output in outputs(made))

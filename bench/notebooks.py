"""The notebooks of docs/: executed, and put back with their outputs, which GitHub shows."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path

import click
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from fastdiff.errors import InputError
from fastdiff.files import save_text
from fastdiff.terminal import say

DOCS = Path(__file__).resolve().parent.parent / "docs"
PICTURES = ("cat.png",)  # what they open beside themselves
WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar, of which a file shows nothing
CELL_SECONDS = 600
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebooks() -> dict[str, Path]:
    """The notebooks by name."""
    return {path.stem: path for path in sorted(DOCS.glob("*.ipynb"))}


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def executed(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """A copy, executed from its top by a new kernel.

    Args:
        notebook: as `read` gives it.
        folder: where it runs; it gets the pictures that notebooks open.

    Returns:
        The copy, without whatever would differ from run to run for no reason.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    for name in PICTURES:
        shutil.copy(DOCS / name, folder)
    notebook = copy.deepcopy(notebook)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    return _tidied(notebook)


def _tidied(notebook: NotebookNode) -> NotebookNode:
    notebook.metadata = NotebookNode(METADATA)
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
            for output in cell.outputs:
                output.get("metadata", {}).clear()
                if "image/png" in output.get("data", {}):
                    output.data.pop("image/jpeg", None)  # Pillow gives every picture twice
    return notebook


@click.command()
@click.argument("names", nargs=-1)
def command(names: tuple[str, ...]) -> None:
    """Execute the notebooks of docs/, or those named, such as annotated; minutes each.

    A notebook is written once all of its cells have run, so one that fails stays as it was.
    """
    found = notebooks()
    for name in names:
        if name not in found:
            raise InputError(f"no notebook {name!r} in docs/; accepted: {', '.join(found)}")
    for name in names or found:
        with tempfile.TemporaryDirectory() as folder:
            made = executed(read(found[name]), Path(folder))
        text = nbformat.writes(made) + "\n"
        save_text(text, found[name])
        say(f"wrote {found[name]}, {found[name].stat().st_size / 1e6:.1f} MB")

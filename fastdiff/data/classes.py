"""The classes of picture files: their folders, or a CSV that names them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from fastdiff.errors import InputError, shown, whole_number
from fastdiff.schema import read_text

NAMED = 3  # examples in an error
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}  # of a data set, as folders


def folder_classes(names: Sequence[str]) -> list[str]:
    """The first folder of each name below those that hold all of them, empty for a file outside of all folders.

    Raises:
        InputError: if the folders are parts of a data set, such as train and test, in the place of classes.
    """
    common = _common_folder(names)
    classes = [name.removeprefix(common).rpartition("/")[0].partition("/")[0] for name in names]
    found = sorted({name.lower() for name in classes})
    if len(found) > 1 and PARTS.issuperset(found):
        raise InputError(
            f"the folders {' and '.join(found)} are parts of a data set, no classes; accepted: one of them, such as "
            f".../{found[-1]}, or a CSV of the classes (--labels)"
        )
    return classes


def _common_folder(names: Sequence[str]) -> str:
    """The folder that all of the names lie in, with its slash; empty if there is none."""
    common = ""
    while len(tops := {name.removeprefix(common).partition("/")[:2] for name in names}) == 1:
        top, slash = tops.pop()
        if not slash:
            break
        common += top + slash
    return common


def csv_classes(names: Sequence[str], path: str, folder: str) -> list[str]:
    """The class of each name, out of a CSV file.

    Args:
        names: of the picture files, relative to their folder, with slashes.
        path: a CSV of two columns, file name and class, with or without a header; commas, semicolons or tabs between
            them. The names may begin with the folder, lack those that hold all files, and lack their endings.
        folder: the name of that folder, or of the archive.

    Raises:
        InputError: if it cannot be read, or names a file that is not there, twice, or one of `names` not at all.
    """
    rows = _rows(path)
    known: dict[str, str] = {}
    common = _common_folder(names)
    for before, above in ((f"{folder}/", ""), (f"{folder}/", common), ("", common), ("", "")):  # the last one counts
        spelled = {before + name.removeprefix(above): name for name in names}
        known |= {str(PurePosixPath(one).with_suffix("")): name for one, name in spelled.items()} | spelled
    found: dict[str, str] = {}
    missing, empty = [], []
    for line, (text, label) in enumerate(rows):
        name = known.get(str(PurePosixPath(text.strip().replace("\\", "/"))))
        if name is None:
            if line or PurePosixPath(text).suffix in {PurePosixPath(one).suffix for one in names}:  # no header
                missing.append(text)
        elif not label.strip():
            empty.append(text)
        elif found.setdefault(name, label.strip()) != label.strip():
            raise InputError(f"{path!r} gives {name!r} two classes, {found[name]!r} and {label.strip()!r}")
    unlabelled = [*empty, *(name for name in names if name not in found and not empty)]
    for problem, which in (("names files that are not there", missing), ("has no class for", unlabelled)):
        if which:
            raise InputError(
                f"{path!r} {problem}: {_some(which)}; accepted: a row for each picture, file name and class"
            )
    return [found[name] for name in names]


def _rows(path: str) -> list[list[str]]:
    try:
        lines = read_text(Path(path)).removeprefix("\ufeff").splitlines(keepends=True)
        between = max(",;\t", key=lines[0].count) if lines else ","
        rows = [row for row in csv.reader(lines, delimiter=between) if row]
    except (InputError, csv.Error) as error:
        raise InputError(f"{path!r} cannot be read as a CSV of labels ({error})") from error
    for row in rows:
        if len(row) != 2:
            many = f"{len(row)} columns, {shown(row)}"
            raise InputError(f"{path!r} has a row of {many}; accepted: two, file name and class")
    return rows


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more


def weights(classes: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The classes as (N, K) float32, one-hot, zeros for an empty name; and the K names, numbers in their order."""
    names = sorted(set(classes) - {""}, key=lambda name: (whole_number(name) is None, whole_number(name) or 0, name))
    place = {name: index for index, name in enumerate(names)}
    made = np.zeros((len(classes), len(names)), np.float32)
    for row, name in enumerate(classes):
        if name:
            made[row, place[name]] = 1
    return made, tuple(names)

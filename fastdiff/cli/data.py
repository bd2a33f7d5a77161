"""The options by which commands are told of pictures to train on or to compare with."""

from __future__ import annotations

import os
from typing import Any

import click

from fastdiff.cli.options import as_one, class_names
from fastdiff.data import fashion
from fastdiff.errors import InputError

DATA = ("labels", "class_names", "size", "value_range", "alpha", "skip_corrupt", "holdout")


# How --data is read; data_source reads them.
data_options = as_one(
    click.option(
        "--labels",
        metavar="FILE",
        help="Which class each picture is. Beside an .npy: an .npy of (N,) class numbers, or (N, K) weights of K "
        "classes. Beside a folder or .zip: a .csv of file name and class; without it the subfolders are the "
        "classes.",
    ),
    click.option("--class-names", help="Names of the K classes, with commas between them.  [default: the data's]"),
    click.option(
        "--size",
        metavar="N|WxH",
        help="Cut the middle out of picture files and resize it, to 32 or 48x32 pixels, say. They may then be of "
        "any size; one is opened at a time.",
    ),
    click.option(
        "--range",
        "value_range",
        metavar="LOW,HIGH",
        help="The values that become -1 and 1 in training, such as 0,4095 for scans of 12 bits; samples are "
        "written back in them.  [default: 0,255 for 8 bits; 0,1 or -1,1 for floats that lie there; else the least "
        "and greatest value]",
    ),
    click.option(
        "--alpha", is_flag=True, help="Keep the transparency of picture files, as a fourth channel, not on white."
    ),
    click.option("--skip-corrupt", is_flag=True, help="Leave out picture files that cannot be read, and say which."),
    click.option(
        "--holdout",
        type=float,
        default=0.05,
        show_default=True,
        help="Share of each class that is kept for validation, where the data has no test set.",
    ),
)


def data_source(data: str, options: dict[str, Any]) -> dict[str, Any]:
    """load_data's arguments, as plain values with absolute paths, so that a resumed run finds the data.

    Args:
        data: as it was named.
        options: those of data_options are taken out.
    """
    given = {name: options.pop(name) for name in DATA}
    names, labels, values = given["class_names"], given["labels"], given["value_range"]
    return {
        **given,
        "source": data if data == fashion.NAME else os.path.realpath(data),
        "labels": None if labels is None else os.path.realpath(labels),
        "class_names": class_names(names),
        "value_range": None if values is None else _range(values),
    }


def _range(text: str) -> list[float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--range {text!r}; accepted: two numbers, such as 0,4095") from None
    return [low, high]

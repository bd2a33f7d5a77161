"""The benchmarks' pictures. A report's: images/s by batch, time by steps, share of the limit, cold start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastdiff.bench.case import Kind, steps_of
from fastdiff.bench.contender import FASTDIFF
from fastdiff.errors import InputError, install
from fastdiff.files import write_atomically

Row = dict[str, Any]


def pyplot() -> Any:
    """matplotlib's, drawing into files; raises InputError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise InputError(f"the plots need matplotlib ({error}); {install('bench')}") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def figure_of(panels: int, title: str) -> tuple[Any, list[Any]]:
    """A figure and its panels, three in a line."""
    columns = min(panels, 3)
    lines = -(-panels // columns)
    figure, grid = pyplot().subplots(
        lines, columns, figsize=(5.2 * columns, 4.2 * lines), squeeze=False, layout="constrained"
    )
    figure.suptitle(title, fontsize=9)
    axes = list(grid.flat)
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, axes[:panels]


def save(figure: Any, path: Path) -> None:
    write_atomically(path, partial(figure.savefig, dpi=110, format="png"))
    pyplot().close(figure)


def plain_numbers(axis: Any) -> None:
    """At 1, 2 and 5 of each decade of a logarithmic axis, for it may span less than one."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def by_batch(axis: Any, rows: list[Row], colours: dict[str, Any]) -> None:
    _lines(axis, rows, colours, lambda row: row["batch"], "images_per_second")
    batches = sorted({row["batch"] for row in rows})
    axis.set(xlabel="batch", ylabel="images/s")
    axis.set_xticks(batches, list(map(str, batches)))


def by_steps(axis: Any, rows: list[Row], colours: dict[str, Any]) -> None:
    _lines(axis, rows, colours, steps_of, "median_seconds")
    labels: dict[int, list[str]] = {}
    for steps, what in sorted({(steps_of(row), row["what"]) for row in rows}):
        labels.setdefault(steps, []).append(what)
    axis.set(ylabel="seconds")
    axis.set_xticks(list(labels), [", ".join(some) for some in labels.values()], rotation=30, fontsize=7)


def _lines(axis: Any, rows: list[Row], colours: dict[str, Any], x: Callable[[Row], float], y: str) -> None:
    for name in dict.fromkeys(row["contender"] for row in rows):
        points = sorted((x(row), row[y]) for row in rows if row["contender"] == name)
        strength = {"linewidth": 2.6, "zorder": 5} if name == FASTDIFF else {"linewidth": 1.2}
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, color=colours[name], **strength)
    axis.set(xscale="log", yscale="log")
    axis.minorticks_off()
    plain_numbers(axis.yaxis)
    axis.grid(alpha=0.3)


def share_of_limit(axis: Any, rows: list[Row], colours: dict[str, Any]) -> None:
    _bars(axis, rows, colours, [100 * row["share_of_limit"] for row in rows], "{:.0f}%")
    axis.axvline(100, color="black", linewidth=0.8, linestyle="--")
    axis.set(xlabel="% of the limit")


def cold_start(axis: Any, rows: list[Row], colours: dict[str, Any]) -> None:
    _bars(axis, rows, colours, [row["median_seconds"] for row in rows], "{:.2f} s")
    axis.set(xlabel=f"seconds, {rows[0]['what']}")


def _bars(axis: Any, rows: list[Row], colours: dict[str, Any], values: list[float], text: str) -> None:
    """The first row on top."""
    names = [row["contender"] for row in rows]
    bars = axis.barh(range(len(rows), 0, -1), values, color=[colours[name] for name in names])
    axis.set_yticks(range(len(rows), 0, -1), names, fontsize=7)
    axis.bar_label(bars, labels=[text.format(value) for value in values], fontsize=7, padding=2)
    axis.margins(x=0.15)


def pictures(rows: list[Row]) -> dict[str, tuple[str, dict[str, list[Row]], Callable[..., None]]]:
    """A file's name → its title, its panels, and what draws one: (axis, rows, colours)."""
    rows = [row for row in rows if "median_seconds" in row]
    sampling, evaluations, starts = (
        [row for row in rows if row["kind"] == kind] for kind in (Kind.SAMPLING, Kind.EVALUATION, Kind.COLD)
    )
    limited = [row for row in evaluations if "share_of_limit" in row]
    return {
        "images-by-batch": (
            "Images a second by batch, higher is better",
            panels(sampling, ("what", "dtype", "threads"), over="batch"),
            by_batch,
        ),
        "time-by-steps": (
            "Time of a whole run by its steps, lower is better",
            panels(sampling, ("batch", "dtype", "threads"), over="what"),
            by_steps,
        ),
        "share-of-limit": (
            "One evaluation: share of the limit",
            panels(limited, ("batch", "dtype", "threads")),
            share_of_limit,
        ),
        "cold-start": (
            "Cold start: a fresh process to its first image, lower is better",
            panels(starts, ("threads",)),
            cold_start,
        ),
    }


def panels(rows: list[Row], apart: tuple[str, ...], over: str | None = None) -> dict[str, list[Row]]:
    """Title → rows, by network and what else is kept apart, named where it differs and the batch in any case.

    over: what lines go over; a panel with one value of it is left out.
    """
    varying = [key for key in apart if key == "batch" or len({row[key] for row in rows}) > 1]
    words = {"threads": "{} threads", "batch": "batch {}"}
    found: dict[str, list[Row]] = {}
    for row in rows:
        title = ", ".join([row["network"], *(words.get(key, "{}").format(row[key]) for key in varying)])
        found.setdefault(title, []).append(row)
    return {title: some for title, some in found.items() if over is None or len({row[over] for row in some}) > 1}


def colours_of(rows: list[Row]) -> dict[str, Any]:
    """A colour for each contender, the same in every picture; fastdiff's is the strongest."""
    palette = pyplot().get_cmap("tab20").colors
    names = dict.fromkeys(row["contender"] for row in rows if row["contender"] != FASTDIFF)
    # tab20 is ten strong colours, each with a pale one beside it; red, the seventh, is left for fastdiff.
    left = [c for i, c in enumerate((*palette[::2], *palette[1::2])) if i != 3]
    return {FASTDIFF: palette[6], **{name: left[i % len(left)] for i, name in enumerate(names)}}


def write(report: dict[str, Any], folder: Path) -> list[Path]:
    """The pictures that the report has rows for; the others' files, of an earlier report, are removed."""
    colours = colours_of(report["rows"])
    made = []
    for name, (title, shown, draw) in pictures(report["rows"]).items():
        path = folder / f"{name}.png"
        if not shown:
            path.unlink(missing_ok=True)
            continue
        figure, axes = figure_of(len(shown), f"{title}\n{report['machine']}, fastdiff {report['fastdiff']}")
        for axis, (label, rows) in zip(axes, shown.items(), strict=True):
            draw(axis, rows, colours)
            axis.set_title(label)
        handles = (zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes)
        lines = {label: line for pairs in handles for line, label in pairs}
        if lines:  # one legend for all panels, beside them
            figure.legend(lines.values(), lines.keys(), loc="outside right upper", fontsize=7)
        save(figure, path)
        made.append(path)
    return made

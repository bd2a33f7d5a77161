"""A report's pictures: images/s by batch, time by steps, share of the limit, cold start."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


def write(report: dict[str, Any], folder: Path) -> list[Path]:
    """Those that the report has rows for; the others' files, of an earlier report, are removed."""
    pyplot()
    measured = [row for row in report["rows"] if "median_seconds" in row]
    made = []
    drawings: tuple[tuple[str, Callable[[list[Row], dict[str, Any]], Any]], ...] = (
        ("images-by-batch", _images_by_batch),
        ("time-by-steps", _time_by_steps),
        ("share-of-limit", _share),
        ("cold-start", _cold),
    )
    colours = _colours(measured)
    for name, draw in drawings:
        path = folder / f"{name}.png"
        figure = draw(measured, colours)
        if figure is None:
            path.unlink(missing_ok=True)  # an earlier report's
            continue
        figure.suptitle(f"{figure.get_suptitle()}\n{report['machine']}, fastdiff {report['fastdiff']}", fontsize=9)
        write_atomically(path, partial(figure.savefig, dpi=110, format="png"))
        pyplot().close(figure)
        made.append(path)
    return made


def _colours(rows: list[Row]) -> dict[str, Any]:
    """A colour for each contender, the same in every picture; fastdiff's is the strongest."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    palette = pyplot().get_cmap("tab20").colors
    others = [n for n in names if n != FASTDIFF]
    # tab20 is ten strong colours, each with a pale one beside it; red, the seventh, is left for fastdiff.
    left = [c for i, c in enumerate((*palette[::2], *palette[1::2])) if i != 3]
    return {FASTDIFF: palette[6], **{name: left[i % len(left)] for i, name in enumerate(others)}}


TITLES = {"threads": "{} threads", "batch": "batch {}"}


def _panels(rows: list[Row], keys: Iterable[str], always: str | None = None) -> dict[str, list[Row]]:
    """The rows by network, and by whatever else differs or is to be in the titles."""
    differing = [n for n in keys if n == always or len({row[n] for row in rows}) > 1]
    panels: dict[str, list[Row]] = {}
    for row in rows:
        words = (TITLES.get(n, "{}").format(row[n]) for n in differing)
        title = ", ".join([row["network"], *words])
        panels.setdefault(title, []).append(row)
    return panels


def _figure(count: int, title: str, width: float = 5.2, height: float = 4.2) -> tuple[Any, list[Any]]:
    columns = min(count, 3)
    lines = -(-count // columns)
    figure, axes = pyplot().subplots(
        lines, columns, figsize=(width * columns, height * lines), squeeze=False, layout="constrained"
    )
    figure.suptitle(title)
    flat = list(axes.flat)
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat[:count]


def _style(name: str) -> dict[str, Any]:
    return {"linewidth": 2.6, "zorder": 5} if name == FASTDIFF else {"linewidth": 1.2}


def _lines(axis: Any, rows: list[Row], colours: dict[str, Any], x: Callable[[Row], float], y: str) -> None:
    for name in dict.fromkeys(row["contender"] for row in rows):
        points = sorted((x(row), row[y]) for row in rows if row["contender"] == name)
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, color=colours[name], **_style(name))


def _numbers(axis: Any) -> None:
    """Plain numbers at 1, 2 and 5 of each decade, for an axis may span less than one."""
    from matplotlib.ticker import LogLocator

    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3)


def _legend(figure: Any, axes: list[Any]) -> None:
    """One for all panels, beside them."""
    labelled = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled.keys(), loc="outside right upper", fontsize=7)


def _images_by_batch(rows: list[Row], colours: dict[str, Any]) -> Any:
    rows = [row for row in rows if row["kind"] == Kind.SAMPLING]
    panels = _panels(rows, ("what", "dtype", "threads"))
    panels = {title: some for title, some in panels.items() if len({row["batch"] for row in some}) > 1}
    if not panels:
        return None
    figure, axes = _figure(len(panels), "Images a second by batch, higher is better")
    for axis, (title, some) in zip(axes, panels.items(), strict=True):
        _lines(axis, some, colours, lambda row: row["batch"], "images_per_second")
        batches = sorted({row["batch"] for row in some})
        axis.set(xscale="log", yscale="log", xlabel="batch", ylabel="images/s", title=title)
        axis.set_xticks(batches, list(map(str, batches)))
        _numbers(axis)
    _legend(figure, axes)
    return figure


def _time_by_steps(rows: list[Row], colours: dict[str, Any]) -> Any:
    rows = [row for row in rows if row["kind"] == Kind.SAMPLING]
    panels = _panels(rows, ("batch", "dtype", "threads"), always="batch")
    panels = {title: some for title, some in panels.items() if len({row["what"] for row in some}) > 1}
    if not panels:
        return None
    figure, axes = _figure(len(panels), "Time of a whole run by its steps, lower is better")
    for axis, (title, some) in zip(axes, panels.items(), strict=True):
        _lines(axis, some, colours, steps_of, "median_seconds")
        labels = sorted({(steps_of(row), row["what"]) for row in some})
        axis.set(xscale="log", yscale="log", ylabel="seconds", title=title)
        axis.set_xticks([steps for steps, _ in labels], [what for _, what in labels], rotation=30, fontsize=7)
        _numbers(axis)
    _legend(figure, axes)
    return figure


def _bars(axis: Any, rows: list[Row], colours: dict[str, Any], value: Callable[[Row], float], text: str) -> None:
    names = [row["contender"] for row in rows][::-1]
    values = [value(row) for row in rows][::-1]
    bars = axis.barh(range(len(names)), values, color=[colours[name] for name in names])
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.bar_label(bars, labels=[text.format(v) for v in values], fontsize=7, padding=2)
    axis.margins(x=0.15)


def _share(rows: list[Row], colours: dict[str, Any]) -> Any:
    rows = [row for row in rows if row["kind"] == Kind.EVALUATION and "share_of_limit" in row]
    if not rows:
        return None
    panels = _panels(rows, ("batch", "dtype", "threads"), always="batch")
    figure, axes = _figure(len(panels), "One evaluation: share of the limit (directly counted operations)")
    for axis, (title, some) in zip(axes, panels.items(), strict=True):
        _bars(axis, some, colours, lambda row: 100 * row["share_of_limit"], "{:.0f}%")
        axis.axvline(100, color="black", linewidth=0.8, linestyle="--")
        axis.set(xlabel="% of the limit", title=title)
    return figure


def _cold(rows: list[Row], colours: dict[str, Any]) -> Any:
    rows = [row for row in rows if row["kind"] == Kind.COLD]
    if not rows:
        return None
    panels = _panels(rows, ("threads",))
    figure, axes = _figure(len(panels), "Cold start: a fresh process to its first image, lower is better")
    for axis, (title, some) in zip(axes, panels.items(), strict=True):
        _bars(axis, some, colours, lambda row: row["median_seconds"], "{:.2f} s")
        axis.set(xlabel="seconds", title=f"{title}, {some[0]['what']}")
    return figure

"""A report of time against quality: what its rows say to take, its table and its plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastdiff.bench.plots import figure_of, plain_numbers
from fastdiff.bench.plots import save as save_figure
from fastdiff.bench.report import heading
from fastdiff.errors import InputError
from fastdiff.files import save_json, save_text
from fastdiff.markdown import table

NEAR = 1.1  # times the best distance: near enough to take the faster point


def named(row: dict[str, Any]) -> str:
    return f"`{row['sampler']}` with {row['steps']} steps{guidance(row)}"


def guidance(row: dict[str, Any]) -> str:
    """As it is told after a point's steps."""
    return "" if row["guidance_scale"] is None else f", guidance {row['guidance_scale']:g}"


def costs(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """What the points cost: (key, unit), the time if every point with a distance has one, else evaluations."""
    timed = all("milliseconds" in row for row in rows if "distance" in row)
    return ("milliseconds", "ms an image") if timed else ("evaluations", "evaluations")


def front(rows: list[dict[str, Any]], cost: str, key: str = "distance") -> list[dict[str, Any]]:
    """From the cheapest to the nearest, the rows to which none is both no dearer and nearer."""
    kept: list[dict[str, Any]] = []
    for row in sorted((r for r in rows if key in r), key=lambda r: (r[cost], r[key])):
        if not kept or row[key] < kept[-1][key]:
            kept.append(row)
    return kept


def choice(rows: list[dict[str, Any]], cost: str, key: str = "distance") -> dict[str, Any]:
    """The cheapest row whose distance is within `NEAR` times the smallest."""
    kept = front(rows, cost, key)
    return next(row for row in kept if row[key] <= NEAR * kept[-1][key])


def advice(entry: dict[str, Any]) -> list[str]:
    """What the rows say to take, in Markdown."""
    rows, (cost, unit) = entry["rows"], costs(entry["rows"])
    kept = front(rows, cost)
    if not kept:
        return [f"**{entry['model']}**: no point was measured."]

    def worded(row: dict[str, Any]) -> str:
        return f"{named(row)} (distance {row['distance']:.3g}, {row[cost]:.3g} {unit})"

    best, taken = kept[-1], choice(rows, cost)
    over = best["distance"] / entry["floor"]["distance"]
    lines = [f"**{entry['model']}**: take {worded(taken)}."]
    if taken is best:
        lines[0] += f" It has the smallest distance, {over:.3g} times the floor's."
    else:
        lines[0] += (
            f" It is the cheapest within {NEAR - 1:.0%} of the smallest distance, which is that of {worded(best)}, "
            f"{over:.3g} times the floor's and {best[cost] / taken[cost]:.3g} times as dear."
        )
    other = choice(rows, cost, "to_training")
    lines[0] += " By the distance to training pictures it is " + ("the same." if other is taken else f"{named(other)}.")
    faster = kept[: kept.index(taken)]
    if faster:
        lines += ["", "For less time, the nearest at its cost: " + "; ".join(map(worded, reversed(faster))) + "."]
    return lines


def _cells(row: dict[str, Any], floor: float) -> dict[str, object]:
    """A line of the table by its columns."""
    timed, measured = "milliseconds" in row, "distance" in row
    untimed = f"not timed: {row['untimed']}" if "untimed" in row else ""
    return {
        "sampler": row["sampler"],
        "steps": row["steps"],
        "guidance": "" if row["guidance_scale"] is None else f"{row['guidance_scale']:g}",
        "evaluations": row["evaluations"],
        "ms an image": "{milliseconds:.3g} ({lowest:.3g} to {highest:.3g})".format(**row) if timed else "",
        "Fréchet distance": f"{row['distance']:.3g}" if measured else "",
        "times the floor": f"{row['distance'] / floor:.3g}" if measured else "",
        "of its halves": " and ".join(f"{half:.3g}" for half in row["halves"]) if measured else "",
        "to training pictures": f"{row['to_training']:.3g}" if measured else "",
        "precision": f"{row['precision']:.3f}" if measured else "",
        "recall": f"{row['recall']:.3f}" if measured else "",
        "": row.get("reason", untimed),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report: a table for each model, then what they say to take."""
    lines = [heading(report)]
    times = report.get("times")
    if times:
        how = f"`engine.sample({times['batch']})`, medians of {times['rounds']} interleaved rounds (lowest to highest)."
        lines += ["", f"Times: {heading(times)}; {how}"]
    for entry in report["models"]:
        cells = [_cells(row, entry["floor"]["distance"]) for row in entry["rows"]]
        lines += [
            "",
            f"## {entry['model']}",
            "",
            _described(entry),
            "",
            *table(list(cells[0]), [list(line.values()) for line in cells]),
        ]
    lines += ["", "## What to take"]
    for entry in report["models"]:
        lines += ["", *advice(entry)]
    return "\n".join(lines) + "\n"


def _described(entry: dict[str, Any]) -> str:
    """What the distances of a model are between."""
    floor, counts = entry["floor"], entry["real_of_each_class"]
    drawn = "in the same proportions" if floor["alike"] else "drawn at random"
    each = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    if len(set(counts.values())) == 1:
        each = f"{next(iter(counts.values())):,} of each class"
    turn = f", of the classes {', '.join(entry['in_turn'])}, as often as they are held out" if entry["in_turn"] else ""
    by = sorted({row["made_by"] for row in entry["rows"] if "made_by" in row})
    return (
        f"Distance of {entry['images']:,} images a point (0 to {entry['images'] - 1:,} of seed {entry['seed']}{turn}) "
        f"to {entry['real']:,} held-out pictures ({each}), by features of the project's classifier "
        f"({entry['accuracy']:.2%} right on {entry['accuracy_pictures']:,} held-out pictures). Floor: "
        f"{floor['pictures']:,} training pictures, {drawn}, have {floor['distance']:.3g} (mean of {floor['draws']} "
        f"draws, {floor['lowest']:.3g} to {floor['highest']:.3g}), precision {floor['precision']:.3f} and recall "
        f"{floor['recall']:.3f}. The last distance is to {entry['training']:,} training pictures."
        + (f" Images by {'; '.join(by)}." if by else "")
    )


def plot(report: dict[str, Any], path: Path) -> None:
    """Distance over time, a line for each sampler, a panel for each model."""
    figure, panels = figure_of(len(report["models"]), "Fréchet distance, lower is better")
    for axes, entry in zip(panels, report["models"], strict=True):
        _panel(axes, entry)
    save_figure(figure, path)


def _panel(axes: Any, entry: dict[str, Any]) -> None:
    cost, unit = costs(entry["rows"])
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in entry["rows"]:
        if row.get("distance", 0) > 0:
            lines.setdefault(f"{row['sampler']}{guidance(row)}", []).append(row)
    for label, rows in lines.items():
        rows.sort(key=lambda row: row["steps"])
        axes.plot([r[cost] for r in rows], [r["distance"] for r in rows], marker="o", markersize=4, label=label)
        for row in rows:
            at = (row[cost], row["distance"])
            axes.annotate(str(row["steps"]), at, (4, 4), textcoords="offset points", fontsize=8)
    axes.axhline(entry["floor"]["distance"], linestyle="--", color="gray", label="training pictures")
    # Distances from 0: by a logarithm the gap to the floor would hide those between the points.
    axes.set(xlabel=unit, ylabel="Fréchet distance to held-out pictures", xscale="log", ylim=(0, None))
    axes.set_title(f"{entry['model']}, {entry['images']:,} images a point")
    plain_numbers(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def save(report: dict[str, Any], output: Path) -> None:
    """The JSON, its table and its plot."""
    save_json(report, output)
    render(report, output)


def render(report: dict[str, Any], output: Path) -> None:
    """The table and the plot beside the JSON."""
    save_text(markdown(report), output.with_suffix(".md"))
    plot(report, output.with_suffix(".png"))


def read(path: Path) -> dict[str, Any]:
    """A report of `fastdiff bench quality`; raises InputError."""
    try:
        report = json.loads(path.read_text())
        if not report["models"] or not all(entry["rows"] and entry["floor"] for entry in report["models"]):
            raise ValueError("it has no rows")
        return report
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} is no report of this command ({type(error).__name__}: {error})") from error

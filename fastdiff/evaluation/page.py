"""A report of `fastdiff eval`: JSON, the same in Markdown, and over several models their curve."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastdiff.evaluation.copies import LOW, NEIGHBOURS, TYPICAL
from fastdiff.files import save_json, save_text, write_atomically
from fastdiff.markdown import code, plain, table
from fastdiff.provenance import heading

Report = dict[str, Any]
Row = dict[str, Any]

CLASSES = "classes as often as they are held out, "
CURVE = 3  # models from which on a curve is drawn


def save(report: Report, output: Path) -> list[Path]:
    """Write the report, its text and its curve beside each other; returns what was written."""
    made = [output, output.with_suffix(".md")]
    save_json(report, output)
    curve = output.with_suffix(".png")
    if len(report["rows"]) >= CURVE and find_spec("matplotlib"):
        _draw(report, curve)
        made.append(curve)
    save_text(markdown(report, curve.name if curve in made else None), made[1])
    return made


def markdown(report: Report, curve: str | None = None) -> str:
    """The report as a page; curve: the name of its picture."""
    head = ["model", "drawn with", *MEASURES, "samples"]
    lines = ["# fastdiff eval", "", f"{heading(report)}", "", described(report), ""]
    lines += table(
        head, [[plain(row["model"]), row["drawn"], *cells(row), f"{row['images']:,}"] for row in report["rows"]]
    )
    lines += ["", floor_text(report), "", EXPLAINED]
    if curve:
        lines += ["", f"![Fréchet distance by model]({curve})"]
    for row in report["rows"]:
        lines += [
            "",
            f"## {plain(row['model'])}",
            "",
            f"Drawn by {plain(row['made_by'])}.",
            "",
            *by_class(row),
            "",
            copies_text(row, report),
        ]
        lines += ["", f"![samples and their nearest training pictures]({row['nearest']})", "", NEAREST]
    return "\n".join(lines).rstrip() + "\n"


EXPLAINED = (
    "*Distance*: the Fréchet distance of the samples' features to the held-out pictures', lower is better; *halves*: "
    "of the first and of the last half of the samples, which tell how firm it is; *to training*: the same to training "
    "pictures. Distances of other features, or of another number of samples, do not compare with these. *Precision*: "
    "the share of samples that lie among the held-out pictures; *recall*: of held-out pictures that lie among the "
    "samples (Kynkäänniemi et al. 2019, k = 3, as many on either side); higher is better."
)
NEAREST = (
    "The samples that lie nearest to a training picture, in proportion to their mean distance to the nearest "
    f"{TYPICAL}, so that copies come before what is near to everything (after Carlini et al. 2023); the nearest first, "
    f"each with its {NEIGHBOURS} nearest training pictures to its right, mirrored where the mirror image is the nearer."
)
# Column → a row's text, or "" where it was not measured.
MEASURES = {
    "distance": lambda row: f"{row['distance']:.3g}",
    "times the floor": lambda row: f"{row['times_floor']:.3g}",
    "halves": lambda row: " and ".join(f"{half:.3g}" for half in row["halves"]),
    "to training": lambda row: f"{row['to_training']:.3g}",
    "precision": lambda row: f"{row['precision']:.3f}",
    "recall": lambda row: f"{row['recall']:.3f}",
}


def cells(row: Row) -> list[str]:
    return [_cell(row, of_row) for of_row in MEASURES.values()]


def _cell(row: Row, of_row: Any) -> str:
    try:
        return of_row(row)
    except KeyError:
        return ""


def described(report: Report) -> str:
    """What was compared with what, by which features."""
    features, each = report["features"], report["real_of_each_class"]
    known = ""
    if "accuracy" in features:
        known = (
            f", which names {features['accuracy']:.2%} of {features['accuracy_pictures']:,} held-out pictures rightly"
        )
    how = CLASSES if True in _floors(report) else ""
    counts = set(each.values())
    classes = ", ".join(f"{count:,} {plain(name)}" for name, count in each.items())
    if len(counts) == 1:
        classes = f"{counts.pop():,} of each class"
    return (
        f"Samples 0 to {report['images'] - 1:,} of seed {report['seed']}, {how}"
        f"against {report['real']:,} held-out pictures{f' ({classes})' if each else ''} of {plain(report['data'])}. "
        f"Features: {code(features['name'])}{known}, {features['size']} numbers a picture."
        + (f" **{plain(report['note'])}**" if report["note"] else "")
    )


def _floors(report: Report) -> dict[bool, dict[str, Any]]:
    """Those that the rows have, by whether their classes are as often as they are held out, such first."""
    found = {row["floor"]["alike"]: row["floor"] for row in report["rows"]}
    return {alike: found[alike] for alike in (True, False) if alike in found}


def floor_text(report: Report) -> str:
    floors = "; ".join(
        f"{floor['pictures']:,} training pictures, {CLASSES if floor['alike'] else 'drawn at random, '}have a distance "
        f"of {floor['distance']:.3g} to the held-out ones (mean of {floor['draws']} draws, {floor['lowest']:.3g} to "
        f"{floor['highest']:.3g}), precision {floor['precision']:.3f} and recall {floor['recall']:.3f}"
        for floor in _floors(report).values()
    )
    both = " (the first for models of such classes)" if len(_floors(report)) > 1 else ""
    return (
        f"The floor, what samples as good as real pictures would reach: {floors}{both}. *To training*: "
        f"{report['training']:,} training pictures."
    )


def copies_text(row: Row, report: Report) -> str:
    """Whether it repeats its training pictures."""
    mine, held = row["copies"], report["held_out_to_training"]
    return (
        f"Memorisation: taken one of {mine['samples']:,} samples and one of {held['pictures']:,} held-out pictures, "
        f"the sample is the nearer to its nearest training picture in {mine['nearer']:.0%} of cases (Meehan et al. "
        f"2020; 50% where samples are as new as held-out pictures, 100% of copies). {mine['very_near']:.1%} of samples "
        f"are nearer than {1 - LOW:.0%} of held-out pictures are ({LOW:.0%} where they are as new). By pixels in "
        f"[-1, 1], mirror images included: the median sample's difference (RMS) is {mine['median']:.3f}, the median "
        f"held-out picture's {held['median']:.3f}."
    )


def by_class(row: Row) -> list[str]:
    """A table of the classes, or why there is none."""
    if not row["classes"]:
        return [f"By class: {row['no_classes']}."]
    columns = ("distance", "precision", "recall")
    lines = [
        [plain(one["class"]), *(_of_class(one, name) for name in columns), f"{one['images']:,}", f"{one['real']:,}"]
        for one in row["classes"]
    ]
    made = ["By class, in brackets what as many of its training pictures reach:", ""]
    made += table(["class", *columns, "samples", "held out"], lines)
    if any("distance" not in one for one in row["classes"]):
        made += [
            "",
            "No distance where a class has no more pictures, on either side, than there are features: their covariance "
            "would be short of its full rank.",
        ]
    return made


def _of_class(row: Row, name: str) -> str:
    """A class's measure, with its floor."""
    mine, floor = (_cell(one, MEASURES[name]) for one in (row, row["floor"]))
    return f"{mine} ({floor})" if mine and floor else mine


def _draw(report: Report, path: Path) -> None:
    """The distances in the order of the models, above precision and recall."""
    from matplotlib.figure import Figure

    rows = report["rows"]
    floors = [row["floor"] for row in rows]
    at = range(len(rows))
    figure = Figure(figsize=(max(6.0, 0.4 * len(rows)), 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    upper.plot(at, [row["distance"] for row in rows], marker="o", label="to held-out pictures")
    upper.plot(at, [row["to_training"] for row in rows], marker="o", label="to training pictures")
    upper.plot(at, [floor["distance"] for floor in floors], "--", color="gray", label="floor: training pictures")
    upper.set(ylabel="Fréchet distance, lower is better", ylim=(0, None))
    for name, colour in (("precision", "tab:green"), ("recall", "tab:red")):
        lower.plot(at, [row[name] for row in rows], marker="o", color=colour, label=name)
        lower.plot(at, [floor[name] for floor in floors], "--", color=colour, alpha=0.5)
    lower.set(ylabel="share, higher is better; dashed: floor", ylim=(0, 1))
    lower.set_xticks(list(at), short([row["model"] for row in rows]), rotation=30, ha="right", fontsize=8)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_atomically(path, partial(figure.savefig, dpi=110, format="png"))


def short(names: list[str]) -> list[str]:
    """Names without the folders that they share, and without the usual ending."""
    parts = [Path(name.removesuffix(".safetensors")).parts for name in names]
    while all(len(part) > 1 for part in parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    return ["/".join(part) for part in parts]

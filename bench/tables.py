"""How figures are worded in tables."""

from __future__ import annotations

from typing import Any

from fastdiff.bench.case import case_text
from fastdiff.bench.contender import Role, Status


def ratio_text(values: list[float] | None) -> str:
    return "" if not values else f"{values[0]:.2f}x ({values[1]:.2f} to {values[2]:.2f})"


def seconds_text(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}" if seconds * factor < 1000 else f"{seconds * factor:.0f} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def why(row: dict[str, Any]) -> str:
    """Why a row has no figure."""
    before = {Status.REFUSED: "refused", Status.NO_REFERENCE: "not timed"}.get(row["status"], row.get("error"))
    return f"{before}: {row['reason']}" if before else row["reason"]


def name_of(row: dict[str, Any]) -> str:
    """The row's case and contender."""
    return f"{row['kind']} {case_text(row)}, {row['contender']}"


def cells(row: dict[str, Any]) -> list[str]:
    """What the tables show of a row after its case: contender, time, ratio, rate, share, parity."""
    other = row["role"] == Role.OTHER_NETWORK
    precision = f" ({row['precision']})" if row.get("precision") else ""
    name = row["contender"] + (" (other network)" if other else precision)
    if row["status"] != Status.MEASURED:
        return [name, why(row), "", "", "", ""]
    rate = next((f"{row[key]:.3g}" for key in ("images_per_second", "evaluations_per_second") if key in row), "")
    share = f"{row['share_of_limit']:.0%}" if "share_of_limit" in row else ""
    parity = f"{row['parity']:.0e}" if "parity" in row else "no claim" if other else ""
    return [name, seconds_text(row["median_seconds"]), ratio_text(row.get("ratio")), rate, share, parity]


def remarks(row: dict[str, Any]) -> str:
    """What else is known of a row."""
    words = []
    if "parameters" in row:
        words.append(f"{row['parameters'] / 1e6:.2f} M parameters")
        if "gflop_of_an_image" in row:
            words.append(f"{row['gflop_of_an_image']:.3g} GFLOP an image and evaluation")
    if "in_torch" in row and "gflop" in row:
        words.append(f"{row['gflop']:.3g} GFLOP by its plan")
        words += [f"not counted, in torch: {', '.join(row['in_torch'])}"] if row["in_torch"] else []
    if "peak_bytes" in row:
        words.append(f"peak {row['peak_bytes'] / 1e6:.0f} MB")
    if "graph_bytes" in row:
        words.append(f"its graphs hold {row['graph_bytes'] / 1e6:.0f} MB")
    if "against_compiled" in row:
        loses = ", it loses" if row["against_compiled"][0] < 1 else ""
        words.append(f"{ratio_text(row['against_compiled'])} against torch.compile{loses}")
    return ", ".join([*words, *filter(None, [row.get("remark")])])

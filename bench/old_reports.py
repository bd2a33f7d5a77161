"""Reading reports that were written before rows had a role, a status and a reason (format 1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastdiff.bench.contender import FASTDIFF, PUBLISHED, Role, Status


def upgraded(report: dict[str, Any]) -> dict[str, Any]:
    """The report with today's fields."""
    return {**report, "format": 2, "rows": [_row(row) for row in report["rows"]]}


def _row(old: dict[str, Any]) -> dict[str, Any]:
    renamed = {"told": "remark", "note": "reason"}
    row = {renamed.get(name, name): value for name, value in old.items() if name != "other_network"}
    name = row["contender"]
    if old["other_network"]:
        row["role"] = Role.OTHER_NETWORK
    elif name == PUBLISHED:
        row["role"] = Role.REFERENCE
    else:
        row["role"] = Role.FASTDIFF if name.startswith(FASTDIFF) else Role.PEER
    row["status"] = Status.MEASURED if "median_seconds" in row else Status.FAILED
    if "parity" in row and row["parity"] > row["bound"]:
        row.update(status=Status.REFUSED, reason=row["reason"].removeprefix("refused: "))
    return row


def exported_loops(file: Path) -> list[dict[str, Any]]:
    """The rows of results/onnx-cpu.json, a report of its own kind: its ratios are a step's time over the network's."""
    rows = json.loads(file.read_text())["rows"]
    for row in rows:
        median, low, high = row["ratio"]
        of_fastdiff = row["contender"].startswith(FASTDIFF)
        role = Role.FASTDIFF if of_fastdiff else Role.PEER if "parity" in row else Role.REFERENCE
        row.update(status=Status.MEASURED, role=role, ratio=[1 / median, 1 / high, 1 / low])
    return rows

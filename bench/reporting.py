"""What the GPU's reports share: their options, where they come from, and how they are written."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import triton

from fastdiff.files import write_atomically
from fastdiff.kernels.dispatch import interpreted
from fastdiff.provenance import machine, source_version, versions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parser(module: str, description: str | None, output: str) -> argparse.ArgumentParser:
    """The options of every report of the GPU; output: the file's name unless one is given."""
    made = argparse.ArgumentParser(
        prog=f"python -m fastdiff.bench.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--device", default="cuda", help="cuda (default), or cpu in Triton's interpreter")
    made.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the network (default bfloat16)")
    made.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    made.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    made.add_argument("--smoke", action="store_true", help="tiny shapes, to see that the script runs")
    made.add_argument("--output", type=Path, default=Path(output), help="the report; its table lies beside it")
    return made


def command(*words: str) -> str:
    """A command line for a report; of a path from the root, which tells of one machine only, the last part."""
    return shlex.join(Path(word).name if word.startswith("/") else word for word in words)


def provenance(module: str, device: torch.device, arguments: list[str] | None) -> dict[str, Any]:
    return {
        "machine": machine(device),
        "versions": f"{versions()}, triton {triton.__version__}",
        "fastdiff": source_version(),
        "command": command("python", "-m", f"fastdiff.bench.{module}", *(arguments or sys.argv[1:])),
        "note": " Run in Triton's interpreter: the times mean nothing." if interpreted() else "",
    }


class Stopped:
    """`with stopped:` ends at Ctrl-C, or at the signal by which a time limit ends a command, without an error.

    What was measured until then makes a report that says so.
    """

    def __init__(self) -> None:
        self.early = False

    def __enter__(self) -> Stopped:
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> bool:
        self.early = kind is KeyboardInterrupt
        return self.early

    @property
    def note(self) -> str:
        return " Stopped early: what is missing was not measured." if self.early else ""

    def status(self, failed: bool) -> int:
        """The command's exit status."""
        return 130 if self.early else int(failed)


def heading(report: dict[str, Any]) -> str:
    return f"{report['machine']}; {report['versions']}; fastdiff {report['fastdiff']}; `{report['command']}`"


def save(report: dict[str, Any], table: str, output: Path) -> None:
    """The report as JSON, its table as Markdown beside it and on the screen."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, lambda p: p.write_text(json.dumps(report, indent=1) + "\n"))
    write_atomically(output.with_suffix(".md"), lambda p: p.write_text(table + "\n"))
    print(table)
    print(f"wrote {output} and {output.with_suffix('.md').name}")


def failure(problem: Exception) -> str:
    """An exception as a cell of a table."""
    return f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:120]}"

"""The code, machine and versions that made a result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fastdiff._version import __version__
from fastdiff.markdown import code

SOURCES = (":/fastdiff", ":/kernels", ":/export", ":/bench", ":(exclude,top)bench/results")


def source_version() -> str:
    """The package's version and, in a checkout, the commit, with "+" if source files differ from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", __file__):
            changed = git("status", "--porcelain", "--untracked-files=no", "--", *SOURCES)
            return f"{__version__}, commit {git('rev-parse', '--short=12', 'HEAD')}{'+' if changed else ''}"
    except (OSError, subprocess.CalledProcessError):
        pass
    return __version__


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The device's model, without a host name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def hardware(device: str) -> str:
    """The device and the processor with its cores, without a host name."""
    cores = f"{cpu_name()}, {os.cpu_count()} cores"
    return cores if device == "cpu" else f"{device_name(torch.device(device))}; {cores}"


def machine(device: torch.device) -> str:
    """The device's model; for a CPU, with the threads in use."""
    if device.type == "cuda":
        return device_name(device)
    threads = torch.get_num_threads()
    return f"{device_name(device)}, {threads} thread{'s' if threads > 1 else ''} of {os.cpu_count()}"


def versions() -> str:
    return f"Python {platform.python_version()}, torch {torch.__version__}"


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those that are here."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """The command line that is running; of a path from the root, which tells of one machine only, the last part."""
    return shlex.join(["fastdiff", *(Path(word).name if word.startswith("/") else word for word in sys.argv[1:])])


def origin(machine: str, packages: Iterable[str]) -> dict[str, Any]:
    """What every report says of its making.

    Args:
        machine: see `machine`.
        packages: those whose versions its figures depend on.
    """
    return {
        "machine": machine,
        "python": platform.python_version(),
        "versions": installed(packages),
        "fastdiff": source_version(),
        "command": command(),
    }


def heading(report: dict[str, Any]) -> str:
    """A report's origin in words."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    made_by = f"fastdiff {report['fastdiff']}; {code(report['command'])}"
    return f"{report['machine']}; Python {report['python']}, {versions}; {made_by}"

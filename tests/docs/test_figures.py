"""The figures of README.md and docs/ are those of the committed reports, and their links lead somewhere."""

import re

import pytest

from fastdiff.bench import readme, report
from fastdiff.bench.contender import Role
from fastdiff.bench.networks import OTHERS
from fastdiff.bench.quality import page as quality_page
from fastdiff.bench.readme import RESULTS
from fastdiff.samplers.samplers import DEFAULT, STEPS


def test_the_figures_come_from_the_committed_reports():
    for path, parts in readme.sections().items():
        text = path.read_text()
        for name, section in parts.items():
            assert section and readme.put_in(text, name, section) == text, "run fastdiff bench readme"


@pytest.mark.parametrize("folder", readme.reports(), ids=lambda folder: folder.name)
def test_the_committed_reports_are_whole(folder):
    made = report.read(folder)
    assert made["machine"] and made["versions"]["torch"] and made["command"].startswith("fastdiff bench")
    assert "+" not in made["fastdiff"]  # of a commit, not of files that nobody has
    pictures = sorted(path.name for path in folder.glob("*.png"))
    text = (folder / "report.md").read_text()
    assert sorted(re.findall(r"^!\[.*?\]\((.*?)\)$", text, re.MULTILINE)) == pictures
    assert text == report.markdown(made, re.findall(r"^!\[.*?\]\((.*?)\)$", text, re.MULTILINE))
    cpu = made["rows"][0]["device"] == "cpu"
    assert len(pictures) == 4 or not cpu
    timed = [row for row in made["rows"] if "median_seconds" in row and row["role"] != Role.OTHER_NETWORK]
    assert all(row["parity"] <= row["bound"] for row in timed if "parity" in row)
    assert all("parity" in row or "remark" in row for row in timed)
    for network in ("A28@28", "B@16") if cpu else ():  # a GPU's machine may lack some
        there = {row["contender"] for row in timed if row["network"] == network and row["kind"] == "sampling"}
        assert {
            "reference",
            "eager, tuned",
            "torch.compile",
            "torch.compile, max-autotune",
            "ONNX Runtime",
            "diffusers' scheduler",
            "fastdiff",
        } <= there


@pytest.mark.parametrize("path", sorted(RESULTS.glob("quality-*.json")), ids=lambda path: path.name)
def test_the_default_sampler_is_what_was_measured(path):
    """No other sampler is nearer with as many evaluations or fewer, nor is it itself with fewer, by over 10%."""
    for entry in quality_page.read(path)["models"]:
        points = [row for row in entry["rows"] if "distance" in row and row["guidance_scale"] is None]
        (own,) = (row for row in points if (row["sampler"], row["steps"]) == (DEFAULT, STEPS))
        points = [row for row in points if row["evaluations"] <= own["evaluations"]]
        assert own["distance"] <= min(row["distance"] for row in points if row["sampler"] != DEFAULT)
        assert own["distance"] <= quality_page.NEAR * min(row["distance"] for row in points)


def test_the_loops_cost_comes_from_the_committed_report(pages):
    loop, own = (f"{low:.2f} to {high:.2f}" for low, high in readme.costs_of_a_step())
    text = plain(pages["export.md"].text)
    assert f"takes {loop} of its network alone" in text
    assert f"CPU kernels take {own} of it" in text


def test_fastdiff_is_the_fastest_at_every_batch():
    """If it is not, docs/speed.md has to say where."""
    rows = report.read(RESULTS / "cpu")["rows"]
    times = [row for row in rows if row["kind"] == "sampling" and "median_seconds" in row]
    assert {row["contender"] for row in times} >= {"fastdiff", "ONNX Runtime", "torch.compile, max-autotune"}
    for case in {(row["network"], row["what"], row["batch"]) for row in times}:
        of_case = [row for row in times if (row["network"], row["what"], row["batch"]) == case]
        assert min(of_case, key=lambda row: row["median_seconds"])["contender"] == "fastdiff", case


def test_the_gpus_page_says_what_was_counted(pages):
    traffic, kernels = ((RESULTS / name).read_text() for name in ("traffic.md", "kernels.md"))
    rows = [line for line in pages["gpu.md"].text.splitlines() if " MB | " in line]
    titles = ("A, dim 28, 28x28", "B, 64 features, 16x16", *(network.title for network in OTHERS))
    for row, title in zip(rows, titles, strict=True):
        heading = rf"### {title}, bfloat16\s.*?moved: plain (.*? MB), library's convolutions (.*? MB), Triton (.*? MB)"
        moved = re.search(heading, traffic, re.DOTALL)
        (line,) = (line for line in kernels.splitlines() if line.startswith(f"| **{title}**"))
        _, at_64, _, library = re.findall(r"\*\*(\d+)\*\*", line)
        assert row.endswith(f" | {' | '.join(moved.groups())} | {library} | {at_64} |"), title


def plain(text):
    """On one line, as it is read."""
    return " ".join(text.split())


def test_every_link_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", page.text):
        path = page.path.parent / target if target else page.path
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


def test_every_page_is_linked_from_the_readme(pages):
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", pages["README.md"].text))
    assert linked == pages.keys() - {"README.md"}

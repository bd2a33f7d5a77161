"""fastdiff bench, and the commands below it, each of which lies beside what it runs."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from fastdiff.cli.group import Group
from fastdiff.cli.options import device_option, parse_device
from fastdiff.engine.placement import DTYPES
from fastdiff.errors import InputError
from fastdiff.terminal import say

# name → (the module that has it as `command`, what it does)
COMMANDS = {
    "quality": ("fastdiff.bench.quality.points", "Time an image against Fréchet distance, by sampler and steps."),
    "distance": ("fastdiff.bench.quality.half_precision", "How far 16-bit images are from float32 ones."),
    "classifier": ("fastdiff.bench.quality.training", "Train a classifier whose features the distance compares."),
    "models": ("fastdiff.bench.families.compare", "How far images are from those of other libraries' own loops."),
    "traffic": ("fastdiff.bench.static.traffic", "Bytes and operations of an evaluation, from the shapes."),
    "kernels": ("fastdiff.bench.static.codegen", "What the compiler makes of every Triton kernel, without a GPU."),
    "synced": ("fastdiff.bench.synced", "What it costs that files are on the disk before they get their names."),
    "readme": ("fastdiff.bench.readme", "Put the committed results into README.md and docs/."),
    "notebooks": ("fastdiff.bench.notebooks", "Execute the notebooks of docs/, and keep their outputs in them."),
    "screenshot": ("fastdiff.bench.screenshot", "Take docs/browser.md's picture of the browser page."),
}


class Bench(Group):
    """Imports a command when it runs; the list of them needs none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return importlib.import_module(COMMANDS[cmd_name][0]).command if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands, in place of the measurement"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=Bench,
    invoke_without_command=True,
    short_help="Measure fastdiff against every contender installed; a report with plots.",
)
@click.option("--quick", is_flag=True, help="Under three minutes: small batches, one thread.")
@click.option(
    "--only",
    multiple=True,
    metavar="WORDS",
    help='Only cases with these words, such as evaluation, or "sampling B@16"; repeatable.',
)
@click.option(
    "--network",
    multiple=True,
    metavar="NAME",
    help="A28@28, the Annotated U-Net of dim 28 on 28x28 pixels (fashion-mnist), and B@16, the course's ContextUnet on "
    "16x16 (sprites), are measured unless others are named: A28@32, A28@64, A64@28, A64@32, A64@64; and, against eager "
    "alone, unet2d@32, ddpm-cifar10@32, tokens@32 (diffusers), lucidrains@32, self-conditioning@32, "
    "learned-variance@32, classifier-free@32, unet1d@64 (denoising-diffusion-pytorch), azula@32, guided@32, edm@32 and "
    "mnist@28 (in the style of guided-diffusion, EDM and the MNIST script); repeatable.",
)
@click.option("--batch", multiple=True, type=int, help="Only cases of this batch; repeatable.")
@click.option("--dtype", multiple=True, help=f"{', '.join(DTYPES)}.  [default: float32; CUDA: bfloat16 too]")
@click.option("--threads", multiple=True, type=int, help="CPU threads; repeatable.  [default: 1, the steadiest]")
@click.option("--rounds", type=int, help="Rounds of every case, in place of the plan's own.")
@click.option("--no-compile", is_flag=True, help="torch.compile only where it has compiled before, as with --quick.")
@click.option("--list", "list_", is_flag=True, help="Print the cases and stop.")
@click.option(
    "--against", metavar="REPORT", help="An older report of this machine; exits with 1 where a ratio is over 10% worse."
)
@click.option("--update", is_flag=True, help="Put the cases into the report that DIR holds, in place of its own.")
@click.option("-o", "--output", default="bench-report", show_default=True, metavar="DIR", help="The report's folder.")
@device_option
@click.pass_context
def bench(
    ctx: click.Context,
    quick: bool,
    only: tuple[str, ...],
    network: tuple[str, ...],
    batch: tuple[int, ...],
    dtype: tuple[str, ...],
    threads: tuple[int, ...],
    rounds: int | None,
    no_compile: bool,
    list_: bool,
    against: str | None,
    update: bool,
    output: str,
    device: str | None,
) -> None:
    """Measure sampling, single evaluations, the denoise step, training, export and the cold start.

    \b
    fastdiff bench --quick -o report/               does it pay here? three minutes
    fastdiff bench --quick --against report/        has anything become slower? for CI
    fastdiff bench -o whole/                        the standard plan, both shipped networks
    fastdiff bench --only evaluation --batch 16     a part of it
    fastdiff bench --only "cold start" --update -o whole/      that part anew, the rest as it was

    \b
    Measured where --only names them:
    fastdiff bench --only operator                  each operator alone
    fastdiff bench --only profile                   an evaluation's kernels by time
    fastdiff bench --only "exported loop"           sampler.onnx against its network
    fastdiff bench --only "against eager"           foreign networks too, against plain PyTorch

    \b
    reference              the published network and loop, eager float32, as the tutorials run them
    eager, tuned           the same network in channels_last, in the case's precision
    torch.compile          of the published network; and max-autotune, channels_last, in the case's precision
    ONNX Runtime           on the exported network, in a Python loop
    diffusers' scheduler   around our network
    fastdiff               what you get; and its other forms
    other networks         diffusers' UNet2DModel, denoising-diffusion-pytorch: as many parameters, no parity claim

    Contenders take turns in rounds. None is timed before its result has been compared with the reference's; one that
    differs, fails or is not installed is a row that says so. Ratios are medians over rounds with 95% intervals, and can
    be compared between runs on a machine; times alone cannot. Close what else is running.

    torch.compile takes minutes for each network and batch, once; --quick has only what was compiled before.

    The folder gets report.json, report.md and plots. Exits with 1 where a result of fastdiff's own is refused, or, with
    --against, is worse than it was after having been measured again.
    """
    if ctx.invoked_subcommand is not None:
        return
    from fastdiff.bench import session
    from fastdiff.bench.plans import plan as make_plan

    where = parse_device(device)
    if where.type == "cuda" and where.index is not None:
        import torch

        torch.cuda.set_device(where)  # which "cuda" then means
    plan = "quick" if quick else "standard"
    cases = make_plan(plan, where.type, threads, network, batch, dtype, only, rounds)
    if list_:
        for case in cases:
            say(f"{case.label}: {case.rounds} rounds")
        return
    if not output:
        raise InputError("-o ''; accepted: a folder")
    made = session.run(cases, plan, Path(output), against, update, compile=not no_compile)
    refused = session.refused(made)
    for text in refused:
        say(f"refused: {text}", err=True)
    if refused or made.get("worse"):
        raise SystemExit(1)

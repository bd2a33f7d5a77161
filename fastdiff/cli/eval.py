"""fastdiff eval."""

from __future__ import annotations

from typing import Any

import click

from fastdiff.cli.completion import complete_model
from fastdiff.cli.data import data_options
from fastdiff.cli.options import (
    engine_options,
    node_options,
    sampler_list,
    sampler_options,
    unsaid_options,
)
from fastdiff.data.sources import accepted


@click.command("eval", short_help="How good a model is, against held-out pictures.", epilog=sampler_list())
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=complete_model)
@click.option("--data", required=True, help=f"The pictures that the models were trained on: {accepted()}.")
@data_options
@click.option(
    "-n",
    "--number",
    "n",
    type=int,
    default=2000,
    show_default=True,
    help="Samples of each model, at least 4; the distance falls as they grow, so compare like with like.",
)
@sampler_options
@node_options
@click.option("--clip", metavar="CLIP", help="As `fastdiff sample` takes it.  [default: the model's own]")
@click.option(
    "--guidance-scale", type=float, help="Classifier-free guidance towards each class; 1 is none.  [default: 1]"
)
@click.option(
    "--features",
    metavar="MODULE:NAME",
    help="A feature network of your own, which is imported, so its code runs: a callable or an nn.Module, from float32 "
    "pictures (N, C, H, W) in [-1, 1] to (N, D).  [default: fastdiff's classifiers, for 28x28 gray and 16x16 RGB]",
)
@click.option(
    "--samples",
    metavar="FOLDER",
    help="Where the samples are kept, in a folder for each model and way to sample.  [default: samples/ beside the "
    "report]",
)
@click.option(
    "-o",
    "--output",
    default="eval/report.json",
    show_default=True,
    metavar="FILE.json",
    help="The report; its text (.md) and pictures (.png) lie beside it.",
)
@click.option("--batch-size", type=int, help="Images computed together, at least 1.  [default: 64]")
@engine_options
@unsaid_options
def evaluate(**options: Any) -> None:
    """How near the samples of each MODEL are to pictures that it was not trained on, and whether it copies.

    \b
    fastdiff eval fashion-mnist --data fashion-mnist
    fastdiff eval sprites --data sprites.npy --labels labels.npy --sampler ddim --steps 50
    fastdiff eval runs/mine --data my_pictures/ --size 32 --features my_features:embed
    fastdiff eval runs/mine/epochs/*.safetensors --data my_pictures/ --size 32    a curve over the epochs

    Samples 0 to n - 1 of seed 0 are drawn, classes as often as they are held out where the model takes classes, and
    compared with the held-out pictures by the features of a network that was trained to tell pictures apart. --data
    and its options are those of the training, or pictures count as held out that the model has seen:

    \b
    distance      Fréchet distance (Heusel et al. 2017): between the features' means and covariances. 0 is the same
                  distribution; beside it stands the floor, which as many real pictures reach, and perfect samples would
    precision     share of samples that lie among real pictures: low where samples are broken
    recall        share of real pictures that lie among samples: low where kinds of pictures are missing
    memorisation  how often samples are nearer to a training picture than held-out pictures are, and a picture of the
                  nearest samples, each beside its nearest training pictures
    by class      the same for each class, where the model takes classes and the data has them

    A distance is a number of one feature network, one set of pictures and one n: distances by different features do not
    compare, nor do those of papers, by Inception's features, with the ones of fastdiff's classifiers.

    Several models are a row each, three or more a curve. After Ctrl-C, a crash or a kill, the same command goes on
    where it stopped; a larger -n goes on with the samples that are there.
    """
    from fastdiff.cli.evaluating import evaluate_models

    evaluate_models(**options)

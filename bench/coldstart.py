"""From import to 64 images in a fresh process: python -m fastdiff.bench.coldstart published|fastdiff MODEL.

Prints the seconds, counted from before torch is imported. Run by fastdiff.bench.evaluation.
"""

import time

began = time.perf_counter()

import argparse  # noqa: E402  the clock runs from here

N, STEPS = 64, 25


def published(name: str) -> None:
    """The published network and loop, which take nothing of fastdiff; 25 of A's 200 steps, B's DDIM."""
    import json
    from pathlib import Path

    import torch
    from safetensors import safe_open

    from fastdiff.bench.reference import AnnotatedLoop, AnnotatedReference, ContextReference, CourseLoop

    file = Path(__file__).parent.parent / "fastdiff" / "models" / name / "model.safetensors"
    if not file.exists():  # an installed wheel
        file = Path(__file__).parent.parent / "models" / name / "model.safetensors"
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["fastdiff"])
        weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  not a mapping
    options, shape = config["network"], (N, *config["image_shape"])
    if options["name"] == "annotated":
        chosen = ("dim", "init_dim", "dim_mults", "channels", "edition")
        network = AnnotatedReference(**{k: options[k] for k in chosen}).eval()
        network.load_state_dict(weights)
        schedule = config["schedule"]
        loop = AnnotatedLoop(torch.linspace(schedule["beta_start"], schedule["beta_end"], schedule["timesteps"]))
        x, frames = torch.randn(shape), []
        for t in range(199, -1, -8):
            x = loop.p_sample(network, x, t, torch.randn(shape))
            frames.append(x.cpu())
    else:
        chosen = ("in_channels", "n_feat", "n_cfeat", "height")
        network = ContextReference(**{k: options[k] for k in chosen}, shortcut="trained").eval()
        network.load_state_dict(weights)
        CourseLoop(config["schedule"]["timesteps"]).sample_ddim(network, lambda draw: torch.randn(shape), STEPS)


def ours(name: str) -> None:
    import fastdiff

    fastdiff.sample(fastdiff.load(name), N, "ddim", STEPS, device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastdiff.bench.coldstart", description=__doc__)
    parser.add_argument("loop", choices=("published", "fastdiff"))
    parser.add_argument("model")
    given = parser.parse_args()
    (published if given.loop == "published" else ours)(given.model)
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main()

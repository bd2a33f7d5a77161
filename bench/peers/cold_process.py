"""From nothing to the first image, in this process.

python -m fastdiff.bench.peers.cold_process CONTENDER MODEL START IMAGE DEVICE

DDIM with 25 steps from the noise in START, an .npy of (1, C, H, W) float32; the image is written to IMAGE, and the
process's peak memory, in bytes, printed. Run by fastdiff.bench.contenders.cold_starts, which times the whole process.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 25
PUBLISHED, COMPILED, OURS, EAGER, FILE = "published", "compiled", "fastdiff", "eager", "onnx"


def published(name: str, start: np.ndarray, device: str, compile: bool = False) -> np.ndarray:
    """The published network in a plain loop, which take nothing of fastdiff."""
    import json

    import torch
    from safetensors import safe_open

    from fastdiff.bench.peers.reference import AnnotatedReference, ContextReference, CourseLoop, ddim_loop

    root = Path(__file__).parent.parent.parent
    files = [root / folder / name / "model.safetensors" for folder in ("fastdiff/models", "models")]  # or of a wheel
    file = next(file for file in files if file.exists())
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["fastdiff"])
        weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  not a mapping
    options, schedule, x = config["network"], config["schedule"], torch.from_numpy(start).to(device)
    annotated = options["name"] == "annotated"
    if annotated:
        kept: tuple[str, ...] = ("dim", "init_dim", "dim_mults", "channels", "edition")
        network: Any = AnnotatedReference(**{key: options[key] for key in kept})
    else:
        kept = ("in_channels", "n_feat", "n_cfeat", "height")
        network = ContextReference(**{key: options[key] for key in kept}, shortcut="trained")
    network.load_state_dict(weights)
    network = network.to(device).eval().requires_grad_(False)
    call: Any = torch.compile(network, dynamic=False) if compile else network
    if not annotated:
        loop = CourseLoop(schedule["timesteps"]).to(torch.device(device))
        return loop.sample_ddim(call, lambda draw: x, STEPS).cpu().numpy()
    betas = torch.linspace(schedule["beta_start"], schedule["beta_end"], schedule["timesteps"])
    abar = torch.cumprod(1 - betas, dim=0).to(device)
    nodes = list(range(len(betas) - 1, 0, -len(betas) // STEPS))
    images = ddim_loop(lambda x, t: call(x, torch.full((len(x),), t, device=device)), abar, nodes, lambda draw: x)
    return images.cpu().numpy()


def ours(name: str, start: np.ndarray, device: str, form: str | None = None) -> np.ndarray:
    import torch

    import fastdiff

    given = torch.from_numpy(start)
    images: Any = fastdiff.sample(
        fastdiff.load(name), 1, "ddim", steps=STEPS, device=device, noise=lambda draw, first, shape: given, form=form
    )
    return images.numpy()


def by_file(path: str, start: np.ndarray, device: str) -> np.ndarray:
    """A sampler.onnx with its noise from outside, by ONNX Runtime alone: no torch in the process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # which it does not read itself
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(path, options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"ONNX Runtime started {session.get_providers()[0]} in place of {provider}")
    given = {"noise": np.repeat(start[None], STEPS, axis=0)}
    for wanted in session.get_inputs():
        if wanted.name == "context":  # then with guidance
            given["context"] = np.zeros((1, wanted.shape[1]), np.float32)
            given["guidance_scale"] = np.array(1, np.float32)
    return session.run(None, given)[0]


def main() -> None:
    contender, model, start, image, device = sys.argv[1:]
    x = np.load(start)
    if contender in (PUBLISHED, COMPILED):
        made = published(model, x, device, contender == COMPILED)
    else:
        calls: dict[str, Any] = {OURS: ours, EAGER: partial(ours, form="eager"), FILE: by_file}
        made = calls[contender](model, x, device)
    np.save(image, made)
    import resource

    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


if __name__ == "__main__":
    main()

"""torch's global defaults, of a notebook that sets them for itself, change nothing here."""

from contextlib import contextmanager

import pytest
import torch

from fastdiff import (
    ContextUnet,
    Engine,
    Model,
    Recipe,
    Trainer,
    grid,
    invert,
    load,
    load_data,
    make_schedule,
    sample,
    save,
    save_picture,
)


@contextmanager
def other(default):
    before = torch.get_default_dtype()
    try:
        if isinstance(default, torch.dtype):
            torch.set_default_dtype(default)
            yield
        else:
            with torch.device(default):  # what torch.set_default_device enters for good
                yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, randomised):
    folder = tmp_path_factory.mktemp("defaults")
    model = Model(
        randomised(ContextUnet(3, 8, 2, 16)),
        make_schedule("course", 30),
        image_shape=(3, 16, 16),
        time="fraction",
        class_names=("cat", "dog"),
    )
    save(model, folder / "m.safetensors")
    images = sample(model, 12, steps=1).clamp(-1, 1)
    for k, image in enumerate(images):
        (folder / "data" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        save_picture(grid(image[None], scale=1, gap=0), folder / "data" / "ab"[k % 2] / f"{k}.png")
    return folder


def work(folder):
    """Tensors of most that there is."""
    model = load(folder / "m.safetensors")
    by_name = {"context": {"cat": 1.0}, "guidance_scale": 2.0}
    yield from model.network.state_dict().values()
    images = sample(model, 3, steps=3, **by_name)
    yield images
    yield Engine(model, batch_size=2, form="eager").sample(3, **by_name)
    yield invert(model, images, steps=2)
    yield model.schedule.q_sample(images, 3, images)
    yield torch.frombuffer(bytearray(grid(images).tobytes()), dtype=torch.uint8)
    data = load_data(folder / "data", holdout=0.2)
    network = {"name": "context", "n_feat": 8}
    recipe = Recipe(network=network, schedule="course", timesteps=20, batch_size=5, epochs=1, context_dropout=0.5)
    trainer = Trainer(recipe, data, device="cpu")
    yield torch.stack(list(trainer))
    yield torch.tensor(trainer.validate(), device="cpu", dtype=torch.float64)
    yield from trainer.network.state_dict().values()


@pytest.fixture(scope="module")
def expected(folder):
    return list(work(folder))


@pytest.mark.parametrize("default", [torch.float16, "meta"], ids=str)
def test_defaults_change_nothing(default, folder, expected):
    with other(default):
        found = list(work(folder))
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == two.dtype and one.device == two.device and torch.equal(one, two)

"""Losses, recipes, and the trainer: what a step does, and that a resumed run is the uninterrupted one."""

import math

import pytest
import torch

from fastdiff import InputError, make_schedule
from fastdiff.data.images import ImageData
from fastdiff.samplers.prediction import target
from fastdiff.training.losses import snr_weight, weighted_loss
from fastdiff.training.recipe import PRESETS, Recipe
from fastdiff.training.trainer import Trainer, generator, network_for, read_training

CPU = torch.device("cpu")


def pictures(n=40, channels=1, size=8, classes=3) -> ImageData:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, channels, size, size), generator=random, dtype=torch.uint8)
    labels = torch.eye(classes)[torch.arange(n) % classes] if classes else torch.zeros(n, 0)
    return ImageData("random", images, labels, tuple("abcdefgh"[:classes]), images[:8], labels[:8])


def small(preset="annotated", **options) -> Recipe:
    network = (
        {"name": "annotated", "dim": 8, "dim_mults": [1, 2]}
        if preset == "annotated"
        else {**PRESETS["course"].network, "n_feat": 8}
    )
    return PRESETS[preset].with_options({"network": network, "batch_size": 16, "epochs": 3, **options})


def test_the_presets_are_the_published_recipes():
    a, b = PRESETS["annotated"], PRESETS["course"]
    assert (a.loss, a.timesteps, a.schedule, a.batch_size, a.epochs, a.lr, a.lr_final, a.flip) == (
        "huber",
        200,
        "linear",
        16,
        10,
        1e-4,
        1e-7,
        True,
    )
    assert a.network == {"name": "annotated", "dim": 28, "dim_mults": [1, 2, 4]}
    assert (b.loss, b.timesteps, b.schedule, b.batch_size, b.epochs, b.lr, b.context_dropout) == (
        "l2",
        500,
        "course",
        100,
        32,
        1e-3,
        0.1,
    )
    assert b.network == {"name": "context", "n_feat": 64, "shortcut": True}
    assert not b.course_perturbation


def test_losses():
    out, wanted = torch.tensor([[0.5, 3.0]]), torch.zeros(1, 2)
    one = torch.ones(1, 1)
    assert float(weighted_loss("huber", out, wanted, one)) == pytest.approx((0.125 + 2.5) / 2)
    assert float(weighted_loss("l1", out, wanted, one)) == pytest.approx(1.75)
    assert float(weighted_loss("l2", out, wanted, one)) == pytest.approx((0.25 + 9) / 2)
    assert float(weighted_loss("l2", out, wanted, 2 * one)) == pytest.approx(0.25 + 9)


def test_loss_weights():
    alpha, sigma = torch.tensor([0.6]), torch.tensor([0.8])
    snr = 0.36 / 0.64
    assert float(snr_weight(alpha, sigma, "epsilon", 0.0, None)) == 1
    # The tutorial's p2 weight, (1 + abar / (1 - abar))^-gamma, is (1 - abar)^gamma
    assert float(snr_weight(alpha, sigma, "epsilon", 0.5, None)) == pytest.approx(0.64**0.5)
    for gamma in (0.1, 5.0):
        least = min(snr, gamma)
        assert float(snr_weight(alpha, sigma, "epsilon", 0.0, gamma)) == pytest.approx(least / snr)
        assert float(snr_weight(alpha, sigma, "sample", 0.0, gamma)) == pytest.approx(least)
        assert float(snr_weight(alpha, sigma, "v_prediction", 0.0, gamma)) == pytest.approx(least / (snr + 1))


def test_targets():
    x0, z, alpha, sigma = torch.randn(3), torch.randn(3), 0.6, 0.8
    assert torch.equal(target("epsilon", x0, z, alpha, sigma), z)
    assert torch.equal(target("sample", x0, z, alpha, sigma), x0)
    v = target("v_prediction", x0, z, alpha, sigma)
    assert torch.allclose(alpha * (alpha * x0 + sigma * z) - sigma * v, x0, atol=1e-6)


def test_learning_rates():
    a = Trainer(small(), pictures(), CPU)
    assert a.steps_per_epoch == 3 and a.total_steps == 9
    assert a.learning_rate(0) == 1e-4
    assert a.learning_rate(4) == pytest.approx(1e-7 + (1e-4 - 1e-7) * 0.5 * (1 + math.cos(math.pi * 4 / 9)))
    b = Trainer(small("course"), pictures(), CPU)
    assert [b.learning_rate(s) for s in (0, 2, 3, 8)] == pytest.approx([1e-3, 1e-3, 1e-3 * 2 / 3, 1e-3 / 3])
    c = Trainer(small(lr_decay="constant"), pictures(), CPU)
    assert c.learning_rate(8) == 1e-4


def test_every_picture_is_seen_once_an_epoch():
    trainer = Trainer(small(batch_size=7), pictures(), CPU)
    epochs = [torch.cat([trainer._batch_rows(s) for s in range(e * 6, e * 6 + 6)]) for e in range(2)]
    for rows in epochs:
        assert sorted(rows.tolist()) == list(range(40))
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("preset, share", [("annotated", 0.8), ("course", 0.5)])
def test_the_loss_falls(preset, share):
    data = pictures(32)
    data.images[:] = 200  # nothing but one gray: learnt within a few steps
    trainer = Trainer(small(preset, lr=3e-3, epochs=30, lr_final=0.0), data, CPU)
    losses = [float(trainer.step()) for _ in range(60)]
    assert sum(losses[-10:]) < share * sum(losses[:10])


def same(a, b) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("preset, ema", [("annotated", 0.9), ("course", 0.9), ("course", 0.0)])
@pytest.mark.parametrize("stop", [1, 4])
def test_resume_is_exact(preset, ema, stop, tmp_path):
    recipe, data = small(preset, ema_decay=ema, context_dropout=0.3, flip=True), pictures()
    whole = Trainer(recipe, data, CPU)
    losses = [float(whole.step()) for _ in range(7)]
    first = Trainer(recipe, data, CPU)
    for _ in range(stop):
        first.step()
    first.save(tmp_path / "c.safetensors", {"data": {"source": "x"}, "fingerprint": 1, "command": "c"})
    tensors, kept = read_training(tmp_path / "c.safetensors")
    assert kept["data"] == {"source": "x"} and Recipe(**kept["recipe"]) == recipe
    torch.manual_seed(99)  # nothing may depend on the global generator
    second = Trainer(Recipe(**kept["recipe"]), data, CPU)
    second.restore("c", tensors, kept["steps_done"])
    assert [float(second.step()) for _ in range(7 - stop)] == losses[stop:]
    assert same(second.network, whole.network) and same(second.model.network, whole.model.network)


def test_a_seed_decides_everything():
    data = pictures()
    runs = [Trainer(small(seed=s), data, CPU) for s in (0, 0, 1)]
    losses = [[float(t.step()) for _ in range(2)] for t in runs]
    assert losses[0] == losses[1] != losses[2]


def test_ema_is_its_formula():
    trainer = Trainer(small(ema_decay=0.5), pictures(), CPU)
    name = "init_conv.weight"
    expected = None
    for n in range(6):
        trainer.step()
        value = trainer.network.state_dict()[name]
        keep = min(0.5, (1 + n) / (10 + n))
        expected = value.clone() if expected is None else expected * keep + value * (1 - keep)
        assert torch.allclose(trainer.model.network.state_dict()[name], expected, atol=1e-7)


def test_what_the_network_is_given():
    """t, x_t and the context of a step, with their conventions, from the trainer's own generator."""
    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, x, t, context=None):
            seen.update(x=x, t=t, context=context)
            return torch.zeros_like(x)

    data = pictures(channels=3)
    x0 = data.images[:16].float() / 127.5 - 1
    for preset, perturbation in (("annotated", False), ("course", False), ("course", True)):
        trainer = Trainer(small(preset, context_dropout=0.5, flip=False, course_perturbation=perturbation), data, CPU)
        context = torch.ones(16, 3)
        trainer._loss(Spy(), data.images[:16], context, generator(0, "step", 5), augment=True)
        if preset == "annotated":
            t = seen["t"]
            assert t.dtype == torch.int64 and 0 <= int(t.min()) and int(t.max()) < 200 and seen["context"] is None
            schedule = make_schedule("linear", 200)
        else:
            t = (seen["t"] * 500).round().long()
            assert 0 < float(seen["t"].min()) and float(seen["t"].max()) <= 1
            schedule = make_schedule("course", 500)
            rows = seen["context"].sum(1)
            assert set(rows.tolist()) == {0.0, 3.0}  # whole contexts are dropped
        abar = torch.from_numpy(schedule.alphas_cumprod.copy())[t].float().view(-1, 1, 1, 1)
        share = 1 - abar if perturbation else (1 - abar).sqrt()
        noise = (seen["x"] - abar.sqrt() * x0) / share
        assert abs(float(noise.mean())) < 0.1 and abs(float(noise.std()) - 1) < 0.1


def test_validation_is_repeatable_and_leaves_the_mode():
    trainer = Trainer(small("course", ema_decay=0.9), pictures(), CPU)
    trainer.step()
    assert trainer.validate() == trainer.validate()
    assert trainer.network.training
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.validate()
    assert all(torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())


def test_bf16_runs():
    trainer = Trainer(small(bf16=True), pictures(), CPU)
    assert math.isfinite(float(trainer.step()))


def test_pictures_without_labels_train_the_context_network():
    trainer = Trainer(small("course"), pictures(classes=0), CPU)
    assert trainer.network.n_cfeat == 1 and math.isfinite(float(trainer.step()))


def test_the_network_is_completed_by_the_data():
    assert network_for(small("course"), pictures(channels=3, size=16))["height"] == 16
    assert network_for(small(), pictures(channels=3))["channels"] == 3


def test_steps_end():
    trainer = Trainer(small(epochs=1, batch_size=40), pictures(), CPU)
    trainer.step()
    with pytest.raises(InputError, match="all 1 steps"):
        trainer.step()


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(loss="hubert"), ["hubert", "did you mean 'huber'"]),
        (dict(batch_size=0), ["batch_size = 0"]),
        (dict(epochs=0), ["epochs = 0"]),
        (dict(lr=0.0), ["lr = 0.0"]),
        (dict(lr_final=1.0), ["lr_final = 1.0"]),
        (dict(ema_decay=1.0), ["ema_decay = 1.0"]),
        (dict(context_dropout=1.5), ["1.5"]),
        (dict(min_snr=0.0), ["min_snr = 0.0"]),
        (dict(optimizer="sgd"), ["sgd", "adam"]),
    ],
)
def test_bad_recipes_are_named(options, words):
    with pytest.raises(InputError) as caught:
        small(**options)
    for word in words:
        assert word in str(caught.value)


def test_other_files_are_no_training_checkpoints(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no training checkpoint"):
        read_training(tmp_path / "a.safetensors")

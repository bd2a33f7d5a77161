"""Losses, recipes, and the trainer: what a step does, and that a resumed run is the uninterrupted one."""

import copy
import dataclasses
import inspect
import math
import textwrap

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fastdiff
from fastdiff import InputError, Model, Recipe, Trainer, load, make_schedule, sample, save
from fastdiff.checkpoints.tensors import read_tensors
from fastdiff.data.images import ImageData
from fastdiff.networks.registry import NETWORKS
from fastdiff.samplers.prediction import target
from fastdiff.training.batch import Draws, generator
from fastdiff.training.checkpoint import read_checkpoint
from fastdiff.training.losses import denoising_loss, snr_weight, weighted_loss
from fastdiff.training.recipe import PRESETS
from fastdiff.training.trainer import network_for

ADAM = ("step", "exp_avg", "exp_avg_sq")


def pictures(n=40, channels=1, size=8, classes=3) -> ImageData:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, channels, size, size), generator=random, dtype=torch.uint8)
    labels = torch.eye(classes)[torch.arange(n) % classes] if classes else torch.zeros(n, 0)
    return ImageData("random", images, labels, tuple("abcdefgh"[:classes]), images[:8], labels[:8])


def small(preset="annotated", **options) -> Recipe:
    network = (
        {"name": "annotated", "dim": 8, "dim_mults": [1, 2]}
        if preset == "annotated"
        else {**Recipe.preset("course").network, "n_feat": 8}
    )
    return Recipe.preset(preset).with_options({"network": network, "batch_size": 16, "epochs": 3, **options})


def test_a_preset_with_other_values():
    recipe = Recipe.preset("course", epochs=2)
    assert recipe == dataclasses.replace(PRESETS["course"].recipe, epochs=2)
    with pytest.raises(InputError, match="unknown preset 'cours'.*did you mean 'course'"):
        Recipe.preset("cours")
    assert Recipe() == Recipe.preset("annotated", network={"name": "annotated"}, flip=False)


def test_the_presets_are_the_published_recipes():
    a, b = Recipe.preset("annotated"), Recipe.preset("course")
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
    assert float(snr_weight(alpha, sigma, "epsilon")) == 1
    # The tutorial's p2 weight, (1 + abar / (1 - abar))^-gamma, is (1 - abar)^gamma
    assert float(snr_weight(alpha, sigma, "epsilon", p2_gamma=0.5)) == pytest.approx(0.64**0.5)
    for gamma in (0.1, 5.0):
        least = min(snr, gamma)
        assert float(snr_weight(alpha, sigma, "epsilon", min_snr=gamma)) == pytest.approx(least / snr)
        assert float(snr_weight(alpha, sigma, "sample", min_snr=gamma)) == pytest.approx(least)
        assert float(snr_weight(alpha, sigma, "v_prediction", min_snr=gamma)) == pytest.approx(least / (snr + 1))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("course_perturbation", [False, True])
def test_the_denoising_loss_is_its_formula(prediction_type, course_perturbation):
    schedule = make_schedule("linear", 50)
    x0, noise = torch.randn(4, 1, 3, 3).clamp(-1, 1), torch.randn(4, 1, 3, 3)
    t = torch.tensor([0, 10, 25, 49])
    abar = torch.from_numpy(schedule.alphas_cumprod.copy())[t].view(4, 1, 1, 1)
    share = (1 - abar) if course_perturbation else (1 - abar) ** 0.5
    out = torch.randn(x0.shape)

    def predict(x, given):
        assert torch.equal(given, t)
        assert torch.allclose(x.double(), abar**0.5 * x0 + share * noise, atol=1e-6)
        return out

    y = {"epsilon": noise, "sample": x0, "v_prediction": abar**0.5 * noise - (1 - abar) ** 0.5 * x0}[prediction_type]
    options = dict(prediction_type=prediction_type, course_perturbation=course_perturbation)
    found = denoising_loss(predict, x0, t, noise, schedule, **options)
    assert float(found) == pytest.approx(float(((out - y) ** 2).mean()), rel=1e-5)  # float32
    weighted = denoising_loss(predict, x0, t, noise, schedule, loss="l1", p2_gamma=1.0, **options)
    assert float(weighted) == pytest.approx(float(((out - y).abs() * (1 - abar)).mean()), rel=1e-5)


def test_unknown_losses_are_named():
    one = torch.ones(1)
    with pytest.raises(InputError, match="did you mean 'huber'"):
        weighted_loss("hubert", one, one, one)
    assert fastdiff.losses.weighted_loss is weighted_loss


def test_targets():
    x0, z, alpha, sigma = torch.randn(3), torch.randn(3), 0.6, 0.8
    assert torch.equal(target("epsilon", x0, z, alpha, sigma), z)
    assert torch.equal(target("sample", x0, z, alpha, sigma), x0)
    v = target("v_prediction", x0, z, alpha, sigma)
    assert torch.allclose(alpha * (alpha * x0 + sigma * z) - sigma * v, x0, atol=1e-6)


def test_learning_rates():
    a = Trainer(small(), pictures(), device="cpu")
    assert a.steps_per_epoch == 3 and a.total_steps == 9
    assert a.learning_rate(0) == 1e-4
    assert a.learning_rate(4) == pytest.approx(1e-7 + (1e-4 - 1e-7) * 0.5 * (1 + math.cos(math.pi * 4 / 9)))
    b = Trainer(small("course"), pictures(), device="cpu")
    assert [b.learning_rate(s) for s in (0, 2, 3, 8)] == pytest.approx([1e-3, 1e-3, 1e-3 * 2 / 3, 1e-3 / 3])
    c = Trainer(small(lr_decay="constant"), pictures(), device="cpu")
    assert c.learning_rate(8) == 1e-4
    d = Trainer(small(lr_decay="constant", lr_warmup=4), pictures(), device="cpu")
    assert [d.learning_rate(s) for s in range(5)] == pytest.approx([2.5e-5, 5e-5, 7.5e-5, 1e-4, 1e-4])


def test_every_picture_is_seen_once_an_epoch():
    trainer = Trainer(small(batch_size=7), pictures(), device="cpu")
    epochs = [torch.cat([trainer.batch_rows(s) for s in range(e * 6, e * 6 + 6)]) for e in range(2)]
    for rows in epochs:
        assert sorted(rows.tolist()) == list(range(40))
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("preset, share", [("annotated", 0.8), ("course", 0.5)])
def test_the_loss_falls(preset, share):
    data = pictures(32)
    data.images[:] = 200  # nothing but one gray: learnt within a few steps
    trainer = Trainer(small(preset, lr=3e-3, epochs=30, lr_final=0.0), data, device="cpu")
    losses = [float(trainer.step()) for _ in range(60)]
    assert sum(losses[-10:]) < share * sum(losses[:10])


def same(a, b) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("name", ["lucidrains", "annotated-resnet"])
def test_other_networks_are_trained_and_kept(name, tmp_path):
    trainer = Trainer(small(network={"name": name, "dim": 8, "dim_mults": [1, 2]}, epochs=1), pictures(channels=3))
    losses = [float(loss) for loss in trainer]
    assert all(map(math.isfinite, losses)) and trainer.model.network.channels == 3
    save(trainer.model, tmp_path / "m.safetensors")
    images = sample(load(tmp_path / "m.safetensors"), 2, steps=2, device="cpu")
    assert torch.equal(images, sample(trainer.model, 2, steps=2, device="cpu"))


OPENAI = {"name": "openai", "model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "attention_levels": [1]}
CLASSES = {"name": "lucidrains-classes", "dim": 8, "dim_mults": [1, 2]}


def test_openais_network_is_trained_without_classes():
    network = {**OPENAI, "out_channels": 6}  # the pictures' channels are predicted, and no variance
    trainer = Trainer(small(network=network, epochs=1), pictures(channels=3))
    assert all(math.isfinite(float(loss)) for loss in trainer)
    assert trainer.model.network.options["out_channels"] == 3


@pytest.mark.parametrize("network, null", [({**OPENAI, "num_classes": 3}, None), (CLASSES, 3)])
def test_networks_of_class_numbers_are_trained_with_classes(network, null, tmp_path):
    recipe = small(network=network, epochs=1, context_dropout=0.0 if null is None else 0.5)
    trainer = Trainer(recipe, pictures(channels=3))
    seen = []
    trainer.network.register_forward_pre_hook(lambda module, given: seen.append(given[2]))
    assert math.isfinite(float(trainer.step()))
    numbers = trainer.data.labels[trainer.batch_rows(0)].argmax(1)
    assert seen[0].dtype == torch.int64 and set((seen[0] - numbers).tolist()) - {0} <= {3, 2, 1}
    assert torch.equal(seen[0], numbers) if null is None else (seen[0] == null).any() and (seen[0] != null).any()
    assert trainer.model.num_classes == len({0, 1, 2, null} - {None}) and trainer.model.null_class == null
    save(trainer.model, tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").class_names == ("a", "b", "c")


def test_without_a_null_class_no_context_is_dropped():
    with pytest.raises(InputError, match="context_dropout with a model that has no null class; accepted: 0"):
        Trainer(small(network={**OPENAI, "num_classes": 3}, context_dropout=0.1), pictures(channels=3))


@pytest.mark.parametrize("preset, ema", [("annotated", 0.9), ("course", 0.9), ("course", 0.0)])
@pytest.mark.parametrize("stop", [1, 4])
def test_resume_is_exact(preset, ema, stop, tmp_path):
    recipe, data = small(preset, ema_decay=ema, context_dropout=0.3, flip=True), pictures()
    whole = Trainer(recipe, data, device="cpu")
    losses = [float(whole.step()) for _ in range(7)]
    first = Trainer(recipe, data, device="cpu")
    for _ in range(stop):
        first.step()
    first.save(tmp_path / "checkpoint.safetensors", {"data": {"source": "x"}})
    kept = read_checkpoint(tmp_path)
    assert kept.extra == {"data": {"source": "x"}} and kept.recipe == recipe and kept.steps_done == stop
    torch.manual_seed(99)  # nothing may depend on the global generator
    second = Trainer.resume(tmp_path / "checkpoint.safetensors", data, device="cpu")
    assert [float(second.step()) for _ in range(7 - stop)] == losses[stop:]
    assert same(second.network, whole.network) and same(second.model.network, whole.model.network)


@pytest.mark.parametrize("decay", ["cosine", "linear-epoch"])
def test_a_finished_run_goes_on_with_more_epochs(decay, tmp_path):
    """The steps are those of a longer recipe from there on, and the learning rates its own."""
    data, recipe = pictures(), small(epochs=2, lr_decay=decay)
    first = Trainer(recipe, data, device="cpu")
    list(first)
    first.save(tmp_path / "c.safetensors")
    more = Trainer.resume(tmp_path / "c.safetensors", data, device="cpu", epochs=4)
    longer = Trainer(dataclasses.replace(recipe, epochs=4), data, device="cpu")
    assert more.recipe == longer.recipe and len(more) == 6 and more.steps_done == 6
    assert more.learning_rate(6) == longer.learning_rate(6) >= first.learning_rate(5)
    assert torch.equal(more.batch_rows(7), longer.batch_rows(7))
    assert math.isfinite(float(list(more)[-1])) and len(more) == 0
    with pytest.raises(InputError, match="epochs = 1, but 2 are done; accepted: 2 and more"):
        Trainer.resume(tmp_path / "c.safetensors", data, device="cpu", epochs=1)


def test_parts_of_a_batch_are_the_batch():
    data, recipe = pictures(), small(flip=True, batch_size=15)
    whole, parts = (Trainer(recipe, data, device="cpu", accumulate=n) for n in (1, 4))
    assert [float(loss) for loss in parts] == pytest.approx([float(loss) for loss in whole], rel=1e-4)


def test_gradients_are_clipped_by_their_norm():
    trainer = Trainer(small(max_grad_norm=1e-3), pictures(), device="cpu")
    trainer.step()
    norm = torch.stack([p.grad.norm() for p in trainer.network.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    free = Trainer(small(), pictures(), device="cpu")
    free.step()
    assert float(torch.stack([p.grad.norm() for p in free.network.parameters()]).norm()) > 1e-2


def test_training_from_a_model_takes_its_network_and_schedule(unet, tmp_path):
    """Of diffusers here; it stays as it was, and the run is resumed exactly."""
    unet = unet()
    model = Model(unet, make_schedule("scaled_linear", 100), prediction_type="v_prediction", image_shape=(3, 8, 8))
    before, data = copy.deepcopy(unet.state_dict()), pictures(channels=3)
    trainer = Trainer(small(ema_decay=0.5), data, device="cpu", init=model)
    losses = [float(trainer.step()) for _ in range(2)]
    trainer.save(tmp_path / "c.safetensors")
    losses += [float(trainer.step()) for _ in range(2)]
    assert all(torch.equal(unet.state_dict()[k], before[k]) for k in before) and not same(trainer.network, unet)
    assert trainer.recipe.network is trainer.recipe.schedule is trainer.recipe.prediction_type is None
    found = load(tmp_path / "c.safetensors")
    assert found.prediction_type == "v_prediction" and found.schedule.config() == model.schedule.config()
    again = Trainer.resume(tmp_path / "c.safetensors", data, device="cpu")
    assert [float(again.step()) for _ in range(2)] == losses[2:]
    with pytest.raises(InputError, match="pictures of 1 channels for a model of 3; accepted: 3"):
        Trainer(small(), pictures(), device="cpu", init=model)


def test_classes_of_the_model_that_training_starts_from():
    """Its own names stay, in their order, unless the data has others."""
    course, data = Trainer(small("course"), pictures(channels=3), device="cpu").model, pictures(channels=3)
    assert Trainer(small("course"), pictures(channels=3, classes=0), init=course).model.class_names == ("a", "b", "c")
    turned = dataclasses.replace(data, class_names=("c", "a", "b"))
    trainer = Trainer(small("course"), turned, device="cpu", init=course)
    assert trainer.model.class_names == ("a", "b", "c")
    given = trainer._labels.contexts(torch.eye(3), torch.zeros(3, dtype=torch.bool))
    assert torch.equal(given[0], torch.eye(3)[[2, 0, 1]])  # c, a, b as the model knows them
    unnamed = dataclasses.replace(data, class_names=("class0", "class1", "class2"))
    assert Trainer(small("course"), unnamed, device="cpu", init=course).model.class_names == ("a", "b", "c")
    other = dataclasses.replace(data, class_names=("x", "a", "b"))
    assert Trainer(small("course"), other, device="cpu", init=course).model.class_names == ("x", "a", "b")
    with pytest.raises(InputError, match="labels of 4 classes for a model of 3; accepted: 3, or none"):
        Trainer(small("course"), pictures(channels=3, classes=4), device="cpu", init=course)


def test_a_model_that_needs_more_than_contexts_is_refused(conditional):
    model = Model(conditional, make_schedule("linear", 20), image_shape=(3, 8, 8))
    with pytest.raises(InputError, match="needs 'encoder_hidden_states' cannot be trained; accepted: contexts of K"):
        Trainer(small(), pictures(channels=3), device="cpu", init=model)


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    Trainer(small(), pictures(), device="cpu").save(tmp_path / "c.safetensors")
    with pytest.raises(InputError, match="data 'random' has changed since the run began"):
        Trainer.resume(tmp_path / "c.safetensors", pictures(n=41), device="cpu")


def test_the_file_of_a_checkpoint_stays_as_it_was(tmp_path):
    """What runs of earlier versions have on disk, entry by entry."""
    trainer = Trainer(small("course", ema_decay=0.9), pictures(), device="cpu")
    trainer.step()
    trainer.save(tmp_path / "c.safetensors", {"data": {"source": "x"}, "command": "c"})
    tensors, config = read_tensors(tmp_path / "c.safetensors")
    assert config["training"].keys() == {"recipe", "steps_done", "data", "fingerprint", "command"}
    assert config["time"] == "fraction" and config["class_names"] == ["a", "b", "c"]
    names = set(trainer.network.state_dict())
    states = {f"optimizer.{i}.{k}" for i in range(len(list(trainer.network.parameters()))) for k in ADAM}
    assert tensors.keys() == {*(f"model.{k}" for k in names), *(f"ema.{k}" for k in names), *states, "averaged"}
    assert set(config["training"]["recipe"]) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"schedule": "liner"}, "unknown schedule 'liner'.*did you mean 'linear'"),
        ({"timesteps": 0}, "timesteps = 0"),
        ({"schedule": "cosine", "beta_end": 0.01}, "schedule 'cosine' got .*'beta_end'"),
        ({"network": {"name": "anotated"}}, "unknown network 'anotated'.*did you mean 'annotated'"),
        ({"network": {"dim": 28}}, "unknown network None"),
        ({"network": {"name": ["a"]}}, r"unknown network \['a'\]; accepted: annotated, annotated-resnet, context"),
        ({"loss": ["l1"]}, r"unknown loss \['l1'\]"),
        ({"network": "annotated"}, "network = 'annotated'; accepted: a dict"),
    ],
)
def test_a_recipe_is_checked_when_it_is_made(fields, message):
    with pytest.raises(InputError, match=message):
        Recipe(**fields)


def test_recipes_of_other_versions():
    """What an earlier one did not have is as it was then; what a later one has is refused."""
    values = Recipe.preset("annotated").to_dict()
    assert Recipe.from_dict(values) == Recipe.preset("annotated")
    earlier = {name: value for name, value in values.items() if name not in ("lr_warmup", "max_grad_norm")}
    assert Recipe.from_dict(earlier) == Recipe.preset("annotated")
    with pytest.raises(InputError, match="a recipe that this version does not know, with warmup"):
        Recipe.from_dict({**values, "warmup": 10})


def test_a_seed_decides_everything():
    data = pictures()
    runs = [Trainer(small(seed=s), data, device="cpu") for s in (0, 0, 1)]
    losses = [[float(t.step()) for _ in range(2)] for t in runs]
    assert losses[0] == losses[1] != losses[2]


def test_ema_is_its_formula():
    trainer = Trainer(small(ema_decay=0.5), pictures(), device="cpu")
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
        trainer = Trainer(small(preset, flip=False, course_perturbation=perturbation), data, device="cpu")
        context = torch.ones(16, 3)
        draws = Draws.of(trainer.model, 16, generator(0, "step", 5), context_dropout=0.5)
        trainer._loss(Spy(), data.images[:16], context, draws)
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


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_self_conditioning_is_the_networks_own_guess_in_half_of_the_steps(prediction_type):
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, t, x_self_cond=None):
            seen.append((x, t, x_self_cond))
            return 0.3 * x

    data = pictures(channels=3)
    network = {"name": "lucidrains", "dim": 8, "dim_mults": [1, 2], "self_condition": True}
    recipe = small(network=network, prediction_type=prediction_type, schedule="cosine", timesteps=1000)
    trainer = Trainer(recipe, data, device="cpu")
    assert trainer.model.self_condition and trainer.model.clip == (1.0 if prediction_type == "epsilon" else None)
    calls = []
    for step in range(40):
        seen.clear()
        draws = Draws.of(trainer.model, 4, generator(0, "step", step))
        trainer._loss(Spy(), data.images[:4], torch.ones(4, 0), draws)
        calls.append(len(seen))
        if len(seen) == 2:
            (x, t, none), (again, _, x0) = seen
            abar = torch.from_numpy(trainer.model.schedule.alphas_cumprod.copy())[t].float().view(-1, 1, 1, 1)
            alpha, sigma, out = abar.sqrt(), (1 - abar).sqrt(), 0.3 * x
            kinds = {"epsilon": (x - sigma * out) / alpha, "sample": out, "v_prediction": alpha * x - sigma * out}
            expected = kinds[prediction_type]
            expected = expected.clamp(-1, 1) if prediction_type == "epsilon" else expected  # as it is sampled from
            assert none is None and torch.equal(x, again) and torch.allclose(x0, expected, atol=1e-3)
        else:
            assert seen[0][2] is None
    assert 10 < calls.count(2) < 30 and set(calls) == {1, 2}
    assert math.isfinite(float(trainer.step()))


def test_validation_is_repeatable_and_leaves_the_mode():
    trainer = Trainer(small("course", ema_decay=0.9), pictures(), device="cpu")
    trainer.step()
    assert trainer.validate() == trainer.validate()
    assert trainer.network.training
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.validate()
    assert all(torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())


def test_bf16_runs():
    trainer = Trainer(small(bf16=True), pictures(), device="cpu")
    assert math.isfinite(float(trainer.step()))


def test_pictures_without_labels_train_the_context_network():
    trainer = Trainer(small("course"), pictures(classes=0), device="cpu")
    assert trainer.network.n_cfeat == 1 and math.isfinite(float(trainer.step()))


@pytest.mark.parametrize("preset, width", [("annotated", 0), ("course", 3)])
def test_context_and_time_are_read_from_the_network(preset, width, monkeypatch):
    """Not from its name."""
    monkeypatch.setitem(NETWORKS, "mine", NETWORKS[small(preset).network["name"]])
    recipe = small(preset)
    trainer = Trainer(recipe.with_options({"network": {**recipe.network, "name": "mine"}}), pictures(), device="cpu")
    assert len(trainer.model.class_names) == width and trainer.model.context_width == width
    assert trainer.model.time == {"annotated": "index", "course": "fraction"}[preset]
    assert math.isfinite(float(trainer.step()))


def test_iterating_takes_the_remaining_steps():
    trainer = Trainer(small(), pictures(), device="cpu")
    first = [float(loss) for loss, _ in zip(trainer, range(2), strict=False)]
    rest = [float(loss) for loss in trainer]
    whole = Trainer(small(), pictures(), device="cpu")
    assert trainer.steps_done == trainer.total_steps == 9 and not list(trainer)
    losses = [float(loss) for loss in whole]
    assert losses[:2] == first and losses[-len(rest) :] == rest and len(rest) >= 6


def test_a_picture_size_that_the_network_cannot_take_is_refused_at_once():
    with pytest.raises(InputError, match="multiples of 2"):
        Trainer(small(), pictures(size=9), device="cpu")
    data = pictures()
    wide = ImageData("wide", data.images[..., :4], data.labels, data.class_names, data.val_images, data.val_labels)
    with pytest.raises(InputError, match="4x8; ContextUnet takes square ones"):
        Trainer(small("course"), wide, device="cpu")


def test_the_name_of_data_in_place_of_data_is_refused():
    with pytest.raises(InputError, match=r"data = 'fashion-mnist'; accepted: what fastdiff\.load_data returns"):
        Trainer(Recipe(), "fashion-mnist", device="cpu")  # type: ignore[arg-type]


def test_the_example_of_the_docstring_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_pictures").mkdir()
    for k in range(9):
        Image.new("RGB", (20, 16), (25 * k, 0, 0)).save(tmp_path / "my_pictures" / f"{k}.png")
    example = inspect.cleandoc(Trainer.__doc__).split("::\n")[1].split("Attributes:")[0]
    assert 8 <= len(example.strip().splitlines()) <= 11
    names: dict = {}
    exec(textwrap.dedent(example), names)
    assert names["images"].shape == (16, 3, 16, 16) and (tmp_path / "mine.safetensors").is_file()
    assert len(capsys.readouterr().out.splitlines()) == 5  # a line for each epoch


def test_the_network_is_completed_by_the_data():
    assert network_for(small("course"), pictures(channels=3, size=16))["height"] == 16
    assert network_for(small(), pictures(channels=3))["channels"] == 3


def test_steps_end():
    trainer = Trainer(small(epochs=1, batch_size=40), pictures(), device="cpu")
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
        (dict(batch_size=2.5), ["batch_size = 2.5", "whole number"]),
        (dict(seed=-1), ["seed = -1"]),
        (dict(lr="fast"), ["lr = 'fast'"]),
        (dict(p2_gamma=math.inf), ["p2_gamma = inf"]),
    ],
)
def test_bad_recipes_are_named(options, words):
    with pytest.raises(InputError) as caught:
        small(**options)
    for word in words:
        assert word in str(caught.value)


def test_other_files_are_no_training_checkpoints(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no training checkpoint"):
        read_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no checkpoint to resume from in"):
        read_checkpoint(tmp_path)
    with pytest.raises(InputError, match="no run to resume at"):
        read_checkpoint(tmp_path / "b")

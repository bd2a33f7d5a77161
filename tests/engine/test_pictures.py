"""Pictures that samples begin as, and what is known of them: whose they are, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from fastdiff import AnnotatedUnet, Engine, InputError, Model, make_schedule, make_table, sample


@pytest.fixture
def model(randomised):
    network = randomised(AnnotatedUnet(dim=8, dim_mults=(1, 2)))
    return Model(network, make_schedule("linear", 100), image_shape=(1, 8, 8))


def pictures(n):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("form", ["cpu", "eager"])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m_sde"])
def test_each_sample_has_its_own_picture_whatever_the_batch(sampler, form, model):
    options = dict(steps=10, strength=0.5, first=3, device="cpu", form=form)
    whole = sample(model, 5, sampler, init=pictures(5), **options)
    by_two = sample(model, 5, sampler, init=pictures(5), batch_size=2, **options)
    assert torch.allclose(whole, by_two, atol=1e-5)
    for k in (0, 4):
        alone = sample(model, 1, sampler, init=pictures(5)[k], **{**options, "first": 3 + k})
        assert torch.allclose(alone, whole[k : k + 1], atol=1e-5)
    assert (whole[0] - whole[1]).abs().max() > 0.1


def test_the_weaker_the_nearer(model):
    far = []
    for strength in (0.1, 0.5, 1.0):
        images = sample(model, 4, "ddim", steps=10, init=pictures(4), strength=strength, device="cpu")
        far.append(float((images - pictures(4)).abs().mean()))
    assert far == sorted(far) and far[0] < 0.5 * far[2]


def test_0_6_of_the_steps_unless_said(model):
    given, unsaid = (
        sample(model, 1, "ddim", steps=10, init=pictures(1), device="cpu", **more) for more in ({"strength": 0.6}, {})
    )
    assert torch.equal(given, unsaid)


def test_an_engine_begins_with_its_tables_first_row(model):
    table = model.table("ddim", 10, strength=0.5)
    assert len(table) == 5 and table.timestep[0] == model.table("ddim", 10).timestep[5]
    images = Engine(model, table, batch_size=2, device="cpu").sample(2, init=pictures(2))
    assert torch.equal(images, sample(model, 2, table, init=pictures(2), device="cpu"))
    # As numbers of NumPy, and (C, H, W) for all.
    assert torch.equal(images, sample(model, 2, table, init=pictures(2).double().numpy(), device="cpu"))
    both = sample(model, 2, table, init=pictures(1)[0], device="cpu")
    assert torch.equal(both, sample(model, 2, table, init=pictures(1).expand(2, -1, -1, -1), device="cpu"))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(strength=0.5), "strength = 0.5 without init"),
        (dict(init=pictures(1), strength=0), "strength = 0 of 10 steps leaves none; accepted: 1 / 10 to 1"),
        (dict(init=pictures(1), strength=1.5), "strength = 1.5"),
        (dict(init=pictures(3)), "init of shape (3, 1, 8, 8); accepted: (1, 8, 8) or (2, 1, 8, 8)"),
        (dict(init=torch.zeros(8, 8)), "init of shape (8, 8)"),
        (dict(init="cat.png"), "init is of type str"),
        (dict(init=np.zeros((1, 8, 8), np.uint8)), "init holds torch.uint8; accepted: floats"),
        (dict(init=torch.full((1, 8, 8), float("nan"))), "init holds NaN"),
        (dict(mask=torch.ones(1, 8, 8)), "mask and known belong together"),
        (dict(known=pictures(1)), "mask and known belong together"),
        (
            dict(mask=torch.ones(3, 8, 8), known=pictures(1)),
            "mask of shape (3, 8, 8); accepted: (1, 8, 8) or (2, 1, 8, 8)",
        ),
        (dict(mask=2 * torch.ones(1, 8, 8), known=pictures(1)), "a mask from 2 to 2; accepted: 0 (drawn) to 1 (known)"),
        (dict(resample=2), "resample = 2 without mask and known"),
        (dict(resample=0, mask=torch.ones(1, 8, 8), known=pictures(1)), "resample = 0"),
    ],
)
def test_bad_pictures_are_named(options, words, model):
    with pytest.raises(InputError) as caught:
        sample(model, 2, "ddim", steps=10, device="cpu", **options)
    assert words in str(caught.value)


def test_no_strength_with_a_table(model):
    with pytest.raises(InputError, match="strength or resample with a StepTable"):
        sample(model, 1, make_table("ddim", model.schedule, 4), init=pictures(1), strength=0.5)


# --- what is known ---


UPPER = torch.cat([torch.ones(1, 4, 8), torch.zeros(1, 4, 8)], dim=1)


@pytest.mark.parametrize("form", ["cpu", "eager"])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m_sde"])
def test_what_is_known_is_held_and_the_rest_drawn(sampler, form, model):
    options = dict(steps=10, mask=UPPER, first=3, device="cpu", form=form)
    whole = sample(model, 5, sampler, known=pictures(5), **options)
    assert torch.equal(whole[:, :, :4], pictures(5)[:, :, :4])
    assert (whole[0] - whole[1])[:, 4:].abs().max() > 0.1
    by_two = sample(model, 5, sampler, known=pictures(5), batch_size=2, **options)
    assert torch.allclose(whole, by_two, atol=1e-5)
    free = sample(model, 5, sampler, steps=10, first=3, device="cpu", form=form)
    assert (whole - free)[:, :, 4:].abs().max() > 0.1  # it is drawn to fit


def test_nothing_known_is_plain_sampling(model):
    options = dict(steps=10, device="cpu")
    known = sample(model, 2, "ddpm", mask=torch.zeros(1, 8, 8), known=pictures(2), **options)
    assert torch.equal(known, sample(model, 2, "ddpm", **options))


@pytest.mark.parametrize("resample", [1, 3])
def test_repaint_by_hand(resample, model, rel):
    """Lugmayr et al. 2022, algorithm 1, with the posterior as Ho et al. 2020 write it (eq. 7)."""
    draws: dict = {}

    def noise(draw, first, shape):
        if draw not in draws:
            draws[draw] = torch.randn(shape, generator=torch.Generator().manual_seed(draw))
        return draws[draw]

    ours = sample(
        model,
        2,
        "ddpm",
        steps=5,
        mask=UPPER,
        known=pictures(2),
        resample=resample,
        noise=noise,
        device="cpu",
        form="eager",
    )
    asked, mask, network = sorted(draws), UPPER.double(), model.network.double()
    nodes = [99, 79, 59, 39, 19]
    abar = torch.from_numpy(model.schedule.alphas_cumprod.copy())
    x, row = noise(0, 0, (2, 1, 8, 8)).double(), 0
    with torch.no_grad():
        for k, node in enumerate(nodes):
            at, to = abar[node], abar[nodes[k + 1]] if k + 1 < len(nodes) else torch.tensor(1.0, dtype=torch.float64)
            beta = 1 - at / to
            for again in range(resample if k + 1 < len(nodes) else 1):
                row += 1
                eps = network(x, torch.full((2,), node))
                x0 = (x - (1 - at).sqrt() * eps) / at.sqrt()
                x = (to.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - to) * x) / (1 - at)
                if to < 1:
                    x = x + (beta * (1 - to) / (1 - at)).sqrt() * draws[row].double()
                held = to.sqrt() * pictures(2).double()
                if to < 1:
                    held = held + (1 - to).sqrt() * draws[(1 << 24) + row].double()
                x = mask * held + (1 - mask) * x
                if again + 1 < (resample if k + 1 < len(nodes) else 1):
                    x = (1 - beta).sqrt() * x + beta.sqrt() * draws[(2 << 24) + row].double()
    assert rel(ours, x) < 1e-4
    assert sum(1 << 24 < one < 2 << 24 for one in asked) == 4 * resample
    assert sum(one > 2 << 24 for one in asked) == 4 * (resample - 1)


def test_tables_that_resample(model):
    table = model.table("ddim", 5, resample=3)
    assert len(table) == 4 * 3 + 1 and table.returns.sum() == 4 * 2
    assert not model.table("ddpm_large").returns.any() and not model.table("dpmpp_2m", 10).returns.any()
    with pytest.raises(InputError, match="resample = 2 with sampler 'dpmpp_2m', which uses the x0 before"):
        model.table("dpmpp_2m", 10, resample=2)


def test_what_is_known_is_held_where_the_last_row_is_not_clean(randomised):
    """The course's last row of ddpm_large ends at alphas_cumprod = 0.9999."""
    network = randomised(AnnotatedUnet(dim=8, dim_mults=(1, 2)))
    model = Model(network, make_schedule("course", 20), image_shape=(1, 8, 8))
    images = sample(model, 2, "ddpm_large", mask=torch.ones(1, 8, 8), known=pictures(2), device="cpu")
    assert torch.equal(images, pictures(2))


# --- frames of x0 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["cpu", "eager"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "unipc"])
def test_frames_of_x0(sampler, form, model, rel):
    """What x and the network's output at each row imply, clipped; the last is the image."""
    table = model.table(sampler, 6)
    options = dict(frames=1, seed=3, device="cpu", clip=0.9, batch_size=2)
    images, xs = sample(model, 3, table, form="eager", **options)
    again, x0s = sample(model, 3, table, form=form, frames_of="x0", **options)
    assert rel(again, images) < 1e-5 and torch.equal(x0s[-1], again) and len(x0s) == len(xs) == 6
    for row in range(1, 5):
        t = torch.full((3,), int(table.time[row]))
        x0 = table.p[row] * xs[row - 1] + table.q[row] * model.network(xs[row - 1], t)
        assert rel(x0s[row], x0.clamp(-0.9, 0.9)) < 1e-4


def test_frames_of_what_is_not_remembered(model):
    with pytest.raises(InputError, match="'y'"):
        sample(model, 1, frames=1, frames_of="y")
    table = model.table("dpmpp_2m", 4)
    of_noise = {"u": 1 / table.sigma, "v": -table.alpha / table.sigma}
    noise = dataclasses.replace(table, **of_noise, c=0 * table.c, b=table.b + table.c)
    with pytest.raises(InputError, match="frames of x0 by 'dpmpp_2m', which remembers something else"):
        sample(model, 1, noise, frames=1, frames_of="x0")

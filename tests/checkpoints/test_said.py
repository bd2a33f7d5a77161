"""A schedule that lies beside the weights is the model's."""

import numpy as np
import pytest
import torch

from fastdiff import AnnotatedUnet, InputError, load, make_schedule

STATE = AnnotatedUnet(dim=8, dim_mults=(1, 2)).state_dict()
BETAS = make_schedule("cosine", 50).betas.copy()


def written(folder, prefix="model.", **buffers):
    tensors = {name: torch.from_numpy(value) for name, value in buffers.items()}
    torch.save({**tensors, **{prefix + name: value for name, value in STATE.items()}}, folder / "g.pt")
    return folder / "g.pt"


@pytest.mark.parametrize("prefix", ["denoise_fn.", "model.", "module.model."])
def test_betas(prefix, tmp_path):
    path = written(tmp_path, prefix, betas=BETAS.astype(np.float32), alphas_cumprod=np.ones(3, np.float32))
    schedule = load(path, image_size=8).schedule
    assert np.array_equal(schedule.betas, BETAS.astype(np.float32).astype(np.float64)) and schedule.first == 0


def test_alphas_cumprod_alone(tmp_path):
    schedule = load(written(tmp_path, alphas_cumprod=np.cumprod(1 - BETAS)), image_size=8).schedule
    np.testing.assert_allclose(schedule.betas, BETAS, rtol=1e-9)


def test_buffers_of_the_wrapper_under_a_prefix_of_its_own(tmp_path):
    path = written(tmp_path, "module.model.", **{"module.betas": BETAS})
    assert np.array_equal(load(path, image_size=8).schedule.betas, BETAS)


def test_the_users_own_comes_first(tmp_path):
    schedule = make_schedule("linear", 7)
    assert load(written(tmp_path, betas=BETAS), schedule, 8).schedule is schedule


def test_one_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match="g.pt' keeps a schedule that cannot be used: a beta of 2.0"):
        load(written(tmp_path, betas=np.array([0.1, 2.0])), image_size=8)

"""What trainers put around weights: averaged copies are taken, or it is said that they were not."""

import warnings

import pytest
import torch

from fastdiff import AnnotatedUnet, InputError, load, make_schedule

NETWORK = AnnotatedUnet(dim=8, dim_mults=(1, 2))
RAW = {name: value.clone() for name, value in NETWORK.state_dict().items()}
EMA = {name: value + 1 for name, value in RAW.items()}
LISTED = [EMA[name] for name, _ in NETWORK.named_parameters()]
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


RAW_ALONE = {
    "bare": RAW,
    "with its course": {"model": RAW, "optimizer": OPTIMIZER, "epoch": 3, "losses": [0.1, 0.2]},
    "DataParallel": {"state_dict": under("module.", RAW)},
    "torch.compile": under("_orig_mod.", RAW),
    "deep": {"state": {"trainer": {"network": under("module._orig_mod.model.", RAW)}}},
    "a wrapper with buffers": {"model": {"sqrt_recip": torch.ones(3), **under("denoise_fn.", RAW)}},
    "beside another network": {"discriminator": {"0.weight": torch.ones(2, 2)}, "net": RAW},
}
AVERAGED = {
    "model and ema": {"model": RAW, "ema": EMA},
    "ema's shadow": {"model": RAW, "ema": {"decay": 0.99, "shadow": EMA}},
    "ema_model": {"net_model": RAW, "ema_model": EMA},
    "denoising-diffusion-pytorch": {
        "step": 5,
        "model": under("model.", RAW),
        "ema": {
            **under("online_model.model.", RAW),
            **under("ema_model.model.", EMA),
            "initted": torch.tensor(True),
            "step": torch.tensor(5),
        },
    },
    "AveragedModel": {"n_averaged": torch.tensor(3), **under("module.", EMA)},
    "AveragedModel, named": {"model": RAW, "swa": {"n_averaged": torch.tensor(3), **under("module.", EMA)}},
    "model_ema": {"model": RAW, "model_ema": EMA},
    "unet_ema": {"unet": RAW, "unet_ema": EMA},
    "flat": {**under("model.", RAW), **under("ema_model.", EMA)},
    "ermongroup/ddim": [RAW, OPTIMIZER, 3, 100, EMA],
    "shadow_params": {"model": RAW, "ema": {"decay": 0.99, "shadow_params": LISTED}},
    "shadow_params with a prefix": {"model": under("module.", RAW), "ema": {"shadow_params": LISTED}},
}
UNUSABLE = {
    "a short list": {"model": RAW, "ema": {"shadow_params": LISTED[1:]}},
    "names without dots": {
        **under("model.", RAW),
        **under("model_ema.", {name.replace(".", ""): value for name, value in EMA.items()}),
    },
}


def loaded(content, folder):
    torch.save(content, folder / "a.pt")
    return load(folder / "a.pt", make_schedule("linear", 9), 8).network.state_dict()


@pytest.mark.parametrize("layout", [*RAW_ALONE, *AVERAGED])
def test_layouts(layout, tmp_path):
    content, expected = (RAW_ALONE[layout], RAW) if layout in RAW_ALONE else (AVERAGED[layout], EMA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = loaded(content, tmp_path)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("layout", UNUSABLE)
def test_raw_weights_in_place_of_averaged_ones_are_said(layout, tmp_path):
    with pytest.warns(UserWarning, match="a.pt: the weights of the last step are taken, for the averaged ones"):
        found = loaded(UNUSABLE[layout], tmp_path)
    assert all(torch.equal(found[name], RAW[name]) for name in RAW)


@pytest.mark.parametrize("content", [[], {"lr": 0.1}, [torch.zeros(2)], {"model": {"a": {}}}, "text"])
def test_no_weights(content, tmp_path):
    with pytest.raises(InputError, match="a.pt' holds no state dict"):
        loaded(content, tmp_path)

"""Tiles of fused_conv: all compute the same, and what was measured is kept, and used where it holds."""

import json

import pytest
import torch
from triton.runtime.errors import OutOfResources

from fastdiff.kernels import tuning
from fastdiff.kernels.conv_weight import Window, pack
from fastdiff.kernels.fused_conv import fused_conv
from fastdiff.kernels.statistics import merged
from fastdiff.kernels.tuning import Tiling

SAME = Window((3, 3), padding=(1, 1))
NAMES = {"device": "NVIDIA Test 9000 (a/b)", "driver": "550.54", "triton": "3", "kernel": "abc"}


@pytest.fixture
def device(triton_device, monkeypatch, tmp_path):
    """One with a name, and a cache of its own."""
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_names", lambda device: NAMES)
    tuning._table.cache_clear()
    yield triton_device
    tuning._table.cache_clear()


@pytest.fixture
def timed(monkeypatch):
    """By a function of the tiling, which is called in place of the clock; the calls."""
    calls = []

    def by(milliseconds):
        def measured(again):
            calls.append(tuning._forced.get())
            again()
            return milliseconds(calls[-1])

        monkeypatch.setattr(tuning, "milliseconds", measured)
        monkeypatch.setattr(tuning, "compile_ahead", lambda run, device: None)
        return calls

    return by


def convolution(device, emit=None, n=1):
    """70 channels from 20, of 10x9."""
    dice = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(shape, generator=dice).to(device) for shape in ((n, 20, 10, 9), (70, 20, 3, 3)))
    return fused_conv(x.to(memory_format=torch.channels_last), pack(weight, SAME), SAME, 70, emit=emit), (x, weight)


def test_every_tiling_computes_the_same(device, agrees, rel):
    first = tuning.estimated(90, 70)
    assert len(tuning.candidates(first)) == 2 * 2 * 2 * 3 and tuning.candidates(first)[0] == first
    for one in tuning.candidates(first):
        with tuning._using(one):
            (y, statistics), (x, weight) = convolution(device, "channels")
        agrees(y, torch.nn.functional.conv2d(x.double(), weight.double(), padding=1))
        assert statistics.shape[1] == -(-90 // one.rows)
        assert rel(merged(statistics)[0].cpu(), y.double().mean((2, 3)).cpu()) < 1e-5


@pytest.mark.parametrize("positions, channels", [(49, 16), (1, 3), (784, 56), (4096, 192), (90, 70)])
def test_candidates_divide_the_packed_columns(positions, channels):
    columns = pack(torch.zeros(channels, 4, 1, 1), Window((1, 1))).shape[-1]
    for one in tuning.candidates(tuning.estimated(positions, channels)):
        assert columns % one.columns == 0
        assert all(getattr(one, name) in accepted for name, accepted in tuning.CHOICES.items())


def test_the_fastest_is_kept_on_disk_and_used(device, timed, launched):
    wanted = Tiling(64, 64, 8, 2)
    timed(lambda one: 1.0 if one == wanted else 2.0)
    shown = []
    before = convolution(device)[0]
    measured = tuning.tune(
        lambda: (convolution(device), convolution(device, n=3)), device, lambda *of: shown.append(of)
    )
    (found,) = measured.values()  # the batch is no part of a shape
    assert found == tuning.Measured(wanted, 1.0, 2.0) and shown == [(1, 1)]
    path = tuning.path(device)
    assert path.name == "tiles-NVIDIA-Test-9000-a-b-driver-550.54.json"
    assert {name: json.loads(path.read_text())[name] for name in NAMES} == NAMES
    tuning._table.cache_clear()  # as in another process
    y, statistics = convolution(device, "whole")[0]
    assert statistics.shape[1] == 1  # another shape, which was not measured: one tile of 128x128
    assert tuning.tiling(device, next(iter(measured)), tuning.estimated(90, 70), lambda: None) == wanted
    torch.testing.assert_close(convolution(device)[0], before)
    assert tuning.identity(device).startswith("tiles ")
    # Measured for a second network, the first one's stay.
    tuning.save(device, {"another": found})
    assert len(json.loads(path.read_text())["measured"]) == 2


def test_what_gains_little_is_not_chosen(device, timed):
    first = tuning.estimated(90, 70)
    timed(lambda one: 1.0 if one == first else 0.98)
    (found,) = tuning.tune(lambda: convolution(device), device).values()
    assert found == tuning.Measured(first, 1.0, 1.0)


def test_what_does_not_fit_the_device_is_not_chosen(device, timed):
    def milliseconds(one):
        if one.stages == 4:
            raise OutOfResources(300000, 200000, "shared memory")
        return 3.0 + one.stages - one.warps / 8

    timed(milliseconds)
    (found,) = tuning.tune(lambda: convolution(device), device).values()
    assert (found.tiling.stages, found.tiling.warps) == (2, 8)


def damaged(kept):
    entry = next(iter(kept["measured"].values()))
    return {
        "another driver": {**kept, "driver": "551.0"},
        "another kernel": {**kept, "kernel": "abd"},
        "another triton": {**kept, "triton": "4"},
        "no such tile": {**kept, "measured": {"a": {**entry, "tiling": {**entry["tiling"], "rows": 7}}}},
        "no tile": {**kept, "measured": {"a": {**entry, "tiling": 3}}},
        "a list": [kept],
        "nothing": {},
    }


@pytest.mark.parametrize("kind", damaged({"measured": {"a": {"tiling": {}}}}))
def test_what_holds_for_something_else_is_not_used(device, kind):
    tuning.save(device, {"a": tuning.Measured(Tiling(64, 64, 8, 2), 1.0, 2.0)})
    path = tuning.path(device)
    assert tuning.identity(device) is not None
    path.write_text(json.dumps(damaged(json.loads(path.read_text()))[kind]))
    tuning._table.cache_clear()
    assert tuning.identity(device) is None
    path.write_text("no JSON")
    tuning._table.cache_clear()
    assert tuning.identity(device) is None


def test_nothing_is_measured_during_a_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="a CUDA graph is being captured"):
        tuning.tune(lambda: pytest.fail("it ran"), torch.device("cuda"))


def test_elsewhere_tiles_are_chosen_by_estimate():
    assert tuning.identity(torch.device("cpu")) is None
    first = tuning.estimated(784, 56)
    assert tuning.tiling(torch.device("cpu"), "any", first, lambda: None) == first

"""The noise that exported graphs make: the integers and the normals of kernels.philox, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastdiff import InputError
from fastdiff.export import export_sampler, philox, verify, write
from fastdiff.export.graph import FLOAT, INT64, Graph, finish_model, value
from fastdiff.kernels import philox as torch_philox

CPU = torch.device("cpu")


def noise_session(samples_shape):
    g = Graph()
    stream = philox.streams(g, "seed", "first", "n")
    g.named(philox.normals(g, stream, "draw", samples_shape), "z")
    scalars = [value(name, INT64, ()) for name in ("seed", "first", "n", "draw")]
    made = finish_model(g.finish("z", scalars, [value("z", FLOAT, ("n", *samples_shape))]), {})
    session = verify.onnxruntime().InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda **given: session.run(None, {k: np.array(v) for k, v in given.items()})[0]


def test_the_noises_integers_are_those_of_philox():
    assert verify.integers_check().distance == 0


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 4, 4), (1, 1, 1)])
def test_the_normals_are_the_bits_of_kernels_philox(shape):
    normals = noise_session(shape)
    for seed, first, n, draw in ((0, 0, 500, 0), (2**63 - 1, 2**63 - 50, 7, 999), (2**31, 2**32 - 3, 500, 2**24 - 1)):
        made = normals(seed=seed, first=first, n=n, draw=draw)
        key = torch_philox.key_of(seed, first, CPU)
        assert np.array_equal(made, torch_philox.normals_reference(key, draw, (n, *shape)).numpy())


def test_the_logarithm_is_right_at_powers_of_two():
    odd = torch.tensor([1, 2**24 - 1, *(2**k + d for k in range(2, 24) for d in (-1, 1))])
    g = Graph()
    g.named(philox._log(g, "odd"), "log")
    made = finish_model(g.finish("log", [value("odd", INT64, ("n",))], [value("log", FLOAT, ("n",))]), {})
    session = verify.onnxruntime().InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    log = session.run(None, {"odd": odd.numpy()})[0]
    assert np.array_equal(log, torch_philox._log(odd.float() * 2.0**-24).numpy())


WORDS = philox.words


def one_round_corrupted(g, stream, draw, elements):
    keys = [*stream.keys[:4], stream.keys[5], *stream.keys[5:]]
    return WORDS(g, replace(stream, keys=keys), draw, elements)


def test_a_corrupted_round_is_found():
    assert verify.integers_check(one_round_corrupted).distance > 0.9


def test_an_export_with_a_corrupted_round_fails_and_leaves_no_file(models, parts, tmp_path, monkeypatch, table_of):
    monkeypatch.setattr(philox, "words", one_round_corrupted)
    monkeypatch.setattr(write, "capture", lambda *given, **options: parts("A"))
    monkeypatch.setattr(verify, "integers_check", lambda: verify.Check("left out", 0.0, 0.0))  # the loop finds it too
    with pytest.raises(InputError, match="differs from torch: images by ddim"):
        export_sampler(models["A"], tmp_path / "sampler.onnx", table_of(models["A"], steps=3))
    assert not list(tmp_path.iterdir())

"""The prediction among what networks return."""

import collections
from types import SimpleNamespace

import pytest
import torch

from fastdiff.capture.outputs import first_output
from fastdiff.capture.record import record
from fastdiff.errors import InputError

OUT = torch.randn(2, 3, 4, 4)


class Output(collections.OrderedDict):
    sample = property(lambda self: self["sample"])


@pytest.mark.parametrize(
    "out",
    [
        OUT,
        SimpleNamespace(sample=OUT),
        (OUT, 1),
        [OUT],
        {"loss": 1.0, "sample": OUT, "other": OUT + 1},
        {"loss": None, "prediction": OUT},
        Output(sample=OUT),
        collections.namedtuple("Named", "first second")(OUT, None),
    ],
    ids=lambda out: type(out).__name__,
)
def test_the_prediction_is_found(out):
    assert first_output(out, 3) is OUT


def test_of_twice_the_channels_the_first_are_taken():
    out = torch.randn(2, 6, 4, 4)
    assert torch.equal(first_output((out,), 3), out[:, :3])
    assert first_output(out, 6) is out


def test_taking_it_is_recorded():
    graph = record(lambda x: first_output({"sample": x * 2}, 3), {"x": torch.randn(2, 6, 4, 4)})
    assert [node.target for node in graph.nodes.nodes if node.op == "call_function"] == [
        torch.ops.aten.mul.Tensor,
        torch.ops.aten.slice.Tensor,
    ]


@pytest.mark.parametrize(
    "out, said",
    [
        (None, "returns None;"),
        ((), "an empty tuple"),
        (["a", OUT], "a list that begins with a value of type str"),
        ({"loss": 1}, "its keys: 'loss'"),
        ({}, "its keys: none"),
        (3.5, "a value of type float"),
        (SimpleNamespace(sample=None), "a value of type SimpleNamespace"),
        (OUT[0], r"shape \(3, 4, 4\); accepted: \(batch, 3, height, width\)"),
        (torch.randn(2, 5, 4, 4), r"shape \(2, 5, 4, 4\).* 6 channels"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(out, said):
    with pytest.raises(InputError, match=said) as error:
        first_output(out, 3)
    assert "accepted: " in str(error.value) and "\n" not in str(error.value)

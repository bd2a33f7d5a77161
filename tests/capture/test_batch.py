"""Two recordings as one graph of every batch, and what has no such graph."""

import pytest
import torch

from fastdiff.capture.batch import at_batch, merged
from fastdiff.capture.graph import Batch
from fastdiff.capture.record import NotRecordableError, record


def inputs(n):
    return {"x": torch.randn(n, 4, 4, 4), "t": torch.arange(n) + 1}


def both(call):
    return merged(*(record(call, inputs(n)) for n in (2, 3)), (2, 3))


def calls(graph):
    return [node for node in graph.nodes.nodes if node.op == "call_function"]


def test_sizes_grow_with_the_batch_in_arguments_and_shapes():
    graph = both(lambda x, t: x.reshape(4 * len(x), -1) + torch.arange(len(x) * 2).repeat(2)[:, None])
    reshape, arange, *_ = calls(graph)
    assert reshape.args[1] == [Batch(4), -1] and reshape.meta["shape"] == (Batch(4), 16)
    assert arange.args == (Batch(2),) and arange.meta["shape"] == (Batch(2),)
    five = at_batch(graph, 5)
    assert calls(five)[0].args[1] == [20, -1] and calls(five)[1].meta["shape"] == (10,)
    assert reshape.args[1] == [Batch(4), -1]  # the graph of every batch stays


def test_sizes_that_do_not_grow_stay_numbers():
    graph = both(lambda x, t: x[:, :2].reshape(len(x), 2, 2, 8))
    assert calls(graph)[-1].args[1] == [Batch(), 2, 2, 8]


def test_constants_are_shared_and_those_of_a_batch_are_its_own():
    weight = torch.randn(4)
    graph = both(lambda x, t: x * weight)
    one = at_batch(graph, 7)
    assert next(iter(graph.constants.values())) is weight is next(iter(one.constants.values()))
    one.constant(torch.ones(2), next(iter(one.nodes.nodes)))
    assert len(graph.constants) == 1 and len(one.constants) == 2


def in_a_loop(x, t):
    for one in x:
        x = x + one
    return x


MIXED = {
    "operations in a loop over samples": (in_a_loop, "operations are called depends on the batch"),
    "another operation": (
        lambda x, t: x.sin() if len(x) == 2 else x.cos(),
        "operations are called depends on the batch",
    ),
    "more of a list": (lambda x, t: x + torch.cat([x.mean(0)] * len(x))[:4], "2 parts at batch 2 and 3 at 3"),
    "a number": (lambda x, t: x / len(x) ** 0.5, "a value is 1.414"),
    "a size of its own": (lambda x, t: x + torch.ones(len(x) + 2).mean(), "a value is 4 at batch 2 and 5 at 3"),
    "another tensor": (lambda x, t: (x.sin(), x.cos())[len(x) % 2] + 1, "which tensor is used depends on the batch"),
    "values from elsewhere": (
        lambda x, t: x + torch.tensor([float(k) for k in range(len(x))]).sum(),
        "made otherwise than by torch's operations",
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_differs_by_more_is_refused_by_its_line(name):
    call, reason = MIXED[name]
    with pytest.raises(NotRecordableError, match=reason) as error:
        both(call)
    assert "test_batch.py, line" in str(error.value)


def test_constants_with_nan_and_infinity_are_the_same():
    both(lambda x, t: x + torch.tensor([float("nan"), float("-inf"), 0, 1]))

"""A graph as a Python function."""

import weakref

import pytest
import torch

from fastdiff.capture.program import program
from fastdiff.capture.record import record


def graph(call):
    return record(call, {"x": torch.randn(2, 4), "t": torch.rand(2)})


def test_it_returns_the_results_in_their_order():
    made = graph(lambda x, t: x[:, [0, 2]] * 2 + t[:, None])
    x, t = torch.randn(2, 4), torch.rand(2)
    assert torch.equal(program(made)(x, t)[0], x[:, [0, 2]] * 2 + t[:, None])


def test_an_input_or_a_constant_can_be_a_result():
    x, t = torch.randn(2, 4), torch.rand(2)
    assert program(graph(lambda x, t: t))(x, t)[0] is t
    assert program(graph(lambda x, t: weight))(x, t)[0] is weight


weight = torch.randn(3)


def test_lists_none_and_keywords_arrive_as_they_are():
    call = lambda x, t: torch.cat([x, x], dim=1)[:, None].var(dim=(1, 2), correction=0)  # noqa: E731
    x, t = torch.randn(2, 4), torch.rand(2)
    assert torch.equal(program(graph(call))(x, t)[0], call(x, t))


def test_results_are_dropped_after_their_last_use():
    alive, seen = [], []

    def watched(x):
        out = x + 1
        seen.append(weakref.ref(out))
        return out

    def count(x):
        alive.append(sum(one() is not None for one in seen))
        return x * 2

    made = graph(lambda x, t: ((((x + 1) + 1) + 1) * 2) * 2)
    nodes = [node for node in made.nodes.nodes if node.op == "call_function"]
    for k, node in enumerate(nodes):
        node.target, node.args = watched if k < 3 else count, node.args[:1]
    program(made)(torch.randn(2, 4), torch.rand(2))
    assert alive == [1, 0]


def test_the_callers_names_are_not_in_the_code():
    made = record(lambda x: x + 1, {"x): import os; (y": torch.zeros(2)})
    assert torch.equal(program(made)(torch.zeros(2))[0], torch.ones(2))


def test_a_graph_of_every_batch_is_refused(networks):
    made = networks.graph_of(lambda x, t: x.reshape(2 * len(x), 2), networks.Example((4, 1, 1)))
    with pytest.raises(TypeError, match="at_batch"):
        program(made)

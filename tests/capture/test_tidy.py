"""One word for each operation, and constants computed once."""

import pytest
import torch
import torch.nn.functional as F

aten = torch.ops.aten


def targets(networks, call):
    graph = networks.graph_of(call, networks.Example((4, 4, 4)))
    return [node.target for node in graph.nodes.nodes if node.op == "call_function"]


WEIGHT = torch.nn.Parameter(torch.randn(4, 4))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, t: x.view(-1, 16).unsqueeze(1).flatten(1).reshape(x.shape) + 1,
        lambda x, t: x.detach().contiguous().clone().float().expand(x.shape)[:, :, :4] + 1,
        lambda x, t: torch.empty_like(x).copy_(x) + 1,
        lambda x, t: F.dropout(x, training=True) + 1,
    ],
)
def test_what_changes_nothing_goes(networks, call):
    assert targets(networks, call) == [aten.add.Tensor]


def test_views_in_a_row_are_one_reshape(networks):
    found = targets(networks, lambda x, t: x.flatten(1).unsqueeze(1).view(-1, 8, 8).sin())
    assert found == [aten.reshape.default, aten.sin.default]


def test_what_has_neither_inputs_nor_the_batch_is_computed_once(networks):
    def call(x, t):
        return x @ (WEIGHT.t() * 2).softmax(1) + torch.arange(4).float() + torch.arange(len(x)).view(-1, 1, 1, 1)

    graph = networks.graph_of(call, networks.Example((4, 4, 4)))
    assert all(not value.requires_grad for value in graph.constants.values())
    found = [node.target for node in graph.nodes.nodes if node.op == "call_function"]
    assert aten.t.default not in found and aten._softmax.default not in found and found.count(aten.arange.default) == 1


def test_constants_keep_their_names_apart(networks):
    """Where one has been dropped, the number of constants is a name in use."""
    graph = networks.graph_of(
        lambda x, t: (x + WEIGHT.exp()) * WEIGHT.sin() + WEIGHT.cos(), networks.Example((4, 4, 4))
    )
    first = next(node for node in graph.nodes.nodes if node.target is aten.add.Tensor)
    kept = list(graph.constants)[1:]
    del graph.constants[next(iter(graph.constants))]
    names = {graph.constant(torch.zeros(k), first).target for k in range(3)}
    assert len(names) == 3 and not names & set(kept)


def test_a_memory_layout_that_another_librarys_operation_may_need_stays(networks):
    library = torch.library.Library("tidytest", "DEF")
    library.define("doubled(Tensor x) -> Tensor")
    library.impl("doubled", lambda x: x * 2 if x.is_contiguous() else x * 0, "CompositeExplicitAutograd")
    found = targets(networks, lambda x, t: torch.ops.tidytest.doubled(x.mT.contiguous().flatten(2)).mT.contiguous() + 1)
    assert found.count(aten.clone.default) == 1 and found.index(aten.clone.default) == 1

"""The three parts: what depends on t alone, on the context alone, and on x."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdiff import load
from fastdiff.capture.graph import Batch
from fastdiff.capture.split import split

aten = torch.ops.aten
torch.manual_seed(0)
FIRST, SECOND, TABLE, PROJECT = nn.Linear(1, 6), nn.Linear(6, 4), nn.Embedding(1000, 4), nn.Linear(5, 4)


def embedded(t):
    return SECOND(F.silu(FIRST(t.float()[:, None] / 1000)))


def added(x, emb):
    return x + emb[:, :4, None, None]


def attended(x, tokens):
    q = x.transpose(1, 2)
    return F.scaled_dot_product_attention(q, tokens, tokens + 1).transpose(1, 2).reshape(-1, 4, 4, 4)


def index(t):
    return (t * 3) % 4


# A network, and whether its time leaves the loop: all of it, or only what comes before rows see one another.
CASES = {
    "a Linear": (lambda x, t: added(x, embedded(t)), True),
    "a table": (lambda x, t: added(x, TABLE(t)), True),
    "an index": (lambda x, t: added(x, TABLE.weight[t]), True),
    "one hot": (lambda x, t: added(x, F.one_hot(index(t), 4).float()), True),
    "t twice": (lambda x, t: added(x * embedded(t)[..., None, None], TABLE(t)), True),
    "t expanded": (lambda x, t: added(x, embedded(t.expand(x.shape[0]) * torch.ones(len(x)))), True),
    "a full tensor": (lambda x, t: added(x, embedded(t + torch.full((len(x),), 1))), True),
    "softmax over the channels": (lambda x, t: added(x, embedded(t).softmax(dim=-1)), True),
    "softmax over the batch": (lambda x, t: added(x, embedded(t).softmax(dim=0)), False),
    "softmax over the times": (lambda x, t: x * t.float().softmax(dim=-1).view(-1, 1, 1, 1), False),
    "a LayerNorm": (lambda x, t: added(x, F.layer_norm(embedded(t), (4,))), True),
    "a LayerNorm over the batch": (lambda x, t: added(x, F.layer_norm(embedded(t), embedded(t).shape)), False),
    "a GroupNorm": (lambda x, t: added(x, F.group_norm(embedded(t), 2)), True),
    "a BatchNorm": (lambda x, t: added(x, F.batch_norm(embedded(t), TABLE.weight[0], TABLE.weight[1].exp())), True),
    "a BatchNorm over the batch": (
        lambda x, t: added(x, F.batch_norm(embedded(t).view(-1, 2, 2), None, None, training=True).flatten(1)),
        False,
    ),
    "mean-centred": (lambda x, t: added(x, embedded(t) - embedded(t).mean(dim=0)), False),
    "cumulated": (lambda x, t: added(x, embedded(t).cumsum(dim=0)), False),
    "flipped": (lambda x, t: added(x, embedded(t).flip(0)), False),
    "rolled": (lambda x, t: added(x, embedded(t).roll(1, 0)), False),
    "sorted": (lambda x, t: x * t.float().sort().values.view(-1, 1, 1, 1), False),
    "padded to and fro": (lambda x, t: added(x, F.pad(embedded(t), (0, 0, 1, -1))), False),
    "looked up in itself": (lambda x, t: added(x, embedded(t)[t % len(t)]), False),
    "with the number of samples": (lambda x, t: added(x, embedded(t * len(t))), False),
    "filled with the number of samples": (lambda x, t: added(x, embedded(t + torch.full_like(t, len(t)))), False),
    "with the place in the batch": (lambda x, t: added(x, embedded(t + torch.arange(len(x)))), False),
    "between all samples": (lambda x, t: added(x, (t[:, None] - t[None]).float() @ embedded(t)), False),
    "a sum over the batch": (lambda x, t: added(x, torch.ones(len(x), len(x)) @ embedded(t)), False),
    "the first": (lambda x, t: x * torch.sin(t[0]), False),
    "the first's embedding": (lambda x, t: x + embedded(t[:1])[:, :, None, None], False),
    "the mean": (lambda x, t: x + t.float().mean(), False),
    "in the batch's last place": (lambda x, t: x + embedded(t).t().reshape(4, -1).t()[..., None, None], False),
    "integers": (lambda x, t: x * (t * 2 + 1)[:, None, None, None], True),
    "booleans": (lambda x, t: torch.where((t > 20)[:, None, None, None], x, -x), True),
    "as an index of x": (lambda x, t: x[torch.arange(len(x)), index(t)][:, None] + x, True),
    "t itself": (lambda x, t: torch.cat((x, t.float().view(-1, 1, 1, 1).expand(-1, 1, 4, 4)), dim=1), True),
    "attention to tokens": (lambda x, t: attended(x.flatten(2), embedded(t).view(-1, 1, 4)), True),
    "without t": (lambda x, t: x * 2, True),
    "t alone": (lambda x, t: torch.zeros_like(x) + embedded(t)[..., None, None], True),
    "not even zeros of x": (lambda x, t: embedded(t)[..., None, None].expand(-1, -1, 4, 4), True),
}


@pytest.fixture(scope="module")
def example(networks):
    return networks.Example((4, 4, 4), integer=True)


@pytest.mark.parametrize("name", CASES)
def test_the_parts_are_the_same_function(networks, example, name):
    """At one time for all samples, as in sampling; rows of a table of times that differ."""
    call, _ = CASES[name]
    assert networks.largest_error(call, example, networks.captured(call, example)) < 1e-6


def from_rows(step):
    """What of a step depends on rows of the time and not on x, but for the rows themselves and their expansion."""
    of = {}
    for node in step.nodes.nodes:
        of[node] = (
            {str(node.target)[0]} if node.op == "placeholder" else set().union(*map(of.get, node.all_input_nodes))
        )
    return [n for n in of if of[n] == {"t"} and n.op == "call_function" and n.target is not aten.expand.default]


@pytest.mark.parametrize("name", CASES)
def test_the_time_leaves_the_step_where_rows_do_not_see_one_another(networks, example, name):
    call, leaves = CASES[name]
    parts = split(networks.graph_of(call, example))
    assert (not from_rows(parts.step)) == leaves
    for node in parts.time.results:
        assert node.meta["shape"][0] == Batch() and not any(isinstance(size, Batch) for size in node.meta["shape"][1:])


@pytest.mark.parametrize("name", CASES)
def test_rows_of_the_time_depend_on_their_own_time_alone(networks, example, name):
    time = split(networks.graph_of(CASES[name][0], example)).time
    rows = example.times(4)
    one = networks.program(networks.at_batch(time, 1))
    with torch.no_grad():
        whole = networks.program(networks.at_batch(time, 4))(rows)
        for place in range(4):
            for ours, theirs in zip(one(rows[place : place + 1]), whole, strict=True):
                assert torch.allclose(ours, theirs[place : place + 1], atol=1e-6)


def test_integer_and_boolean_rows_keep_their_dtype(networks, example):
    for name, dtype in (("integers", torch.int64), ("booleans", torch.bool)):
        (row,) = split(networks.graph_of(CASES[name][0], example)).time.results
        assert row.meta["dtype"] == dtype


def test_a_broadcast_row_is_not_expanded(networks, example):
    step = split(networks.graph_of(CASES["a Linear"][0], example)).step
    assert aten.expand.default not in [node.target for node in step.nodes.nodes]
    (row,) = [node for node in step.nodes.nodes if node.target == "t0"]
    assert row.meta["shape"] == (1, 4, 1, 1)


def test_a_row_of_lower_rank_than_the_result_is_seen_by_all(networks, example):
    """x has no batch left where it meets the row, so that only the row has it."""

    def call(x, t):
        return x + (embedded(t) * x.mean(dim=(0, 2, 3)))[..., None, None]

    form = networks.captured(call, example)
    assert aten.expand.default in [node.target for node in form.parts.step.nodes.nodes]
    assert networks.largest_error(call, example, form) < 1e-6


@pytest.mark.parametrize("modulating", [False, True])
def test_the_context_leaves_the_step(networks, modulating):
    def call(x, t, context):
        c = (PROJECT(context) - PROJECT(context).mean(dim=0) + torch.arange(len(x))[:, None] + 1)[..., None, None]
        return x * c if modulating else added(x + c, embedded(t))

    example = networks.Example((4, 4, 4), context=5)
    form = networks.captured(call, example)
    assert networks.largest_error(call, example, form) < 1e-6
    assert [node.target for node in form.parts.step.nodes.nodes if node.op == "call_function"] == (
        [aten.mul.Tensor] if modulating else [aten.add.Tensor, aten.add.Tensor]
    )


def test_what_depends_on_t_and_the_context_is_in_the_step(networks):
    def call(x, t, context):
        return added(x, F.silu(embedded(t) + PROJECT(context)))

    example = networks.Example((4, 4, 4), context=5)
    form = networks.captured(call, example)
    assert networks.largest_error(call, example, form) < 1e-6
    step = [node.target for node in form.parts.step.nodes.nodes if node.op == "call_function"]
    assert step == [aten.add.Tensor, aten.silu.default, aten.reshape.default, aten.add.Tensor]


def test_the_graph_stays_as_it_is(networks, example):
    graph = networks.graph_of(CASES["t twice"][0], example)
    before = [(node.target, node.args, dict(node.meta)) for node in graph.nodes.nodes]
    split(graph)
    assert before == [(node.target, node.args, dict(node.meta)) for node in graph.nodes.nodes]


@pytest.mark.parametrize("shipped", ["fashion-mnist", "sprites"])
def test_no_linear_layer_of_the_time_is_left_in_the_shipped_networks_steps(networks, shipped):
    network = load(shipped).network.eval()
    context = None if shipped == "fashion-mnist" else 5
    example = networks.Example((1, 28, 28) if context is None else (3, 16, 16), context is None, context)
    form = networks.captured(network, example)
    assert networks.largest_error(network, example, form, batches=(1, 4)) < 1e-5
    assert not from_rows(form.parts.step)

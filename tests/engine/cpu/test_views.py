"""Views of views, against torch on tensors that lie in memory as the views say."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fastdiff.capture.passes.match import aten
from fastdiff.engine.cpu.views import NHWC, dense, moved, order_of, permuted, reshaped, same, tensor, undone
from fastdiff.kernels.cpu.plan import View

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)


@st.composite
def shown(draw):
    """A view in any order of its dimensions, a slice of each of them, of memory that tells every element apart."""
    shape = draw(SIZES)
    whole = [size + draw(st.integers(0, 2)) for size in shape]
    view = dense(None, whole, draw(st.permutations(range(len(shape)))))
    for dim, size in enumerate(shape):
        view = view.part(dim, draw(st.integers(0, whole[dim] - size)), size)
    return view._replace(memory=torch.arange(math.prod(whole), dtype=torch.float32))


def looked_at(view):
    return tensor(view, view.memory)


@st.composite
def moves(draw, shape):
    """An operation that moves the axes of a tensor of that shape, and its arguments."""
    dim, other = draw(st.integers(-len(shape), len(shape) - 1)), draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[dim]
    start = draw(st.integers(0, size - 1))
    ahead = draw(st.integers(0, 2))
    cut = draw(st.integers(0, size))
    return draw(
        st.sampled_from(
            [
                (aten.permute.default, [draw(st.permutations(range(-len(shape), 0)))]),
                (aten.transpose.int, [dim, other]),
                (aten.unsqueeze.default, [dim]),
                (aten.squeeze.dim, [dim]),
                (aten.squeeze.default, []),
                (aten.select.int, [dim, start - size * draw(st.integers(0, 1))]),
                (aten.slice.Tensor, [dim, start, draw(st.integers(start + 1, 9)), draw(st.integers(1, 3))]),
                (aten.slice.Tensor, [dim, -size + start]),
                (aten.split.Tensor, [draw(st.integers(1, size)), dim]),
                (aten.split_with_sizes.default, [[cut, size - cut], dim]),
                (aten.unbind.int, [dim]),
                (aten.expand.default, [[2] * ahead + [3 if one == 1 else -1 for one in shape]]),
                (aten.alias.default, []),
                (aten.detach.default, []),
            ]
        )
    )


@given(st.data())
def test_a_moved_view_shows_what_torch_does(data):
    view = data.draw(shown(), "view")
    for _ in range(data.draw(st.integers(1, 3), "moves")):
        if not view.shape:
            break
        operation, args = data.draw(moves(view.shape), "move")
        expected, found = operation(looked_at(view), *args), moved(view, operation, args)
        several = isinstance(found, list)
        assert len(found) == len(expected) if several else isinstance(found, View)
        for one, other in zip(found if several else [found], expected if several else [expected], strict=True):
            assert torch.equal(looked_at(one), other)
        view = data.draw(st.sampled_from(found)) if several else found
        assume(0 not in view.shape)


@given(st.data())
def test_a_reshaped_view_shows_what_torch_does_or_takes_a_copy(data):
    view = data.draw(shown(), "view")
    left, shape = math.prod(view.shape), []
    while left > 1:
        shape.append(data.draw(st.sampled_from([size for size in range(2, left + 1) if left % size == 0])))
        left //= shape[-1]
    shape.insert(data.draw(st.integers(0, len(shape))), 1)
    x, found = looked_at(view), reshaped(view, shape)
    expected = x.reshape(shape)
    shares = expected.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert (found is not None) == shares
    if found is not None:
        assert torch.equal(looked_at(found), expected)
    for name in (aten.view.default, aten._unsafe_view.default):  # whatever torch's own would say of these strides
        again = moved(view, name, [shape])
        assert again == found


@given(st.data())
def test_an_argument_lies_where_its_moved_self_is_to_lie(data):
    """undone: written there, the argument's elements are the result's in their place."""
    place = data.draw(shown(), "place")
    rank = len(place.shape)
    order = data.draw(st.permutations(range(-rank, 0)), "order")
    pair = [data.draw(st.integers(-rank, rank - 1)) for _ in range(2)]
    flat = (math.prod(place.shape),)
    cases = [
        (aten.permute.default, [order], [place.shape[order.index(k - rank)] for k in range(rank)]),
        (aten.transpose.int, pair, list(torch.empty(place.shape, device="meta").transpose(*pair).shape)),
        (aten.unsqueeze.default, [0], list(place.shape[1:]) if place.shape[0] == 1 else None),
        (aten.reshape.default, [list(place.shape)], list(flat)),
        (aten.view.default, [list(place.shape)], [1, *place.shape]),
    ]
    for operation, args, shape in cases:
        found = None if shape is None else undone(operation, args, shape, place)
        if found is None:
            continue
        argument = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
        looked_at(found).copy_(argument)
        assert torch.equal(looked_at(place), operation(argument, *args))


@pytest.mark.parametrize(
    "operation, args, shape",
    [
        (aten.slice.Tensor, [0, 0, 2], (4, 3)),
        (aten.select.int, [0, 1], (2, 2, 3)),
        (aten.expand.default, [[2, 3]], (1, 3)),
    ],
)
def test_what_is_only_a_part_has_no_place(operation, args, shape):
    assert undone(operation, args, shape, dense(None, (2, 3))) is None


def test_a_reshape_that_does_not_fit_into_a_place_has_none():
    place = dense(None, (2, 6, 4)).part(1, 0, 3)
    assert undone(aten.reshape.default, [[2, 3, 4]], (6, 4), place) is None
    assert undone(aten.reshape.default, [[2, 3, 4]], (2, 12), place) is not None


@given(shown())
def test_an_order_of_dimensions_is_that_of_memory(view):
    again = dense(None, view.shape, order_of(view))
    strides = [(step, size) for step, size in zip(again.strides, view.shape, strict=True) if size > 1]
    theirs = [(step, size) for step, size in zip(view.strides, view.shape, strict=True) if size > 1]
    by_place = sorted(range(len(strides)), key=lambda k: theirs[k][0])
    assert [strides[k] for k in by_place] == sorted(strides)


def test_broadcast_dimensions_come_first():
    assert order_of(View(None, (2, 3, 4), (1, 0, 2))) == (1, 2, 0)


def test_images_are_dense_in_nhwc():
    view = dense(None, (2, 3, 4, 5), NHWC)
    assert view.strides == torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).stride()


def test_the_same_numbers_are_those_of_one_memory():
    memory, view = torch.zeros(6), dense(None, (2, 3))
    assert same(view._replace(memory=memory), view._replace(memory=memory))
    assert not same(view._replace(memory=memory), view._replace(memory=torch.zeros(6)))
    assert not same(view, view._replace(offset=1)) and not same(view, permuted(view, (1, 0)))


def test_a_tensor_begins_where_its_memory_does():
    memory = torch.arange(10.0)[4:]
    assert tensor(View(memory, (2,), (2,), 1), memory).tolist() == [5.0, 7.0]

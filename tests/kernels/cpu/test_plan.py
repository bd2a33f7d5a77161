"""Views, and programs: rows of a table, deadlines, threads, processes."""

import gc
import itertools
import math
import subprocess
import sys
import threading

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from fastdiff.kernels.cpu.linear import linear, linear_weight
from fastdiff.kernels.cpu.norm import norm_statistics, scale_shift
from fastdiff.kernels.cpu.plan import (
    Call,
    Program,
    Table,
    View,
    activation_code,
    assembled,
    check_shape,
    dense,
    evenly,
    images,
    per_channel,
    run,
)
from fastdiff.kernels.cpu.pointwise import pointwise


def row_offsets(view, outer):
    """Where each row begins, in order."""
    places = itertools.product(*(range(view.shape[dim]) for dim in outer))
    return [sum(at * view.strides[dim] for at, dim in zip(place, outer, strict=True)) for place in places]


@hypothesis.given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4).flatmap(
        lambda shape: st.tuples(st.just(shape), st.permutations(range(len(shape))), st.lists(st.booleans(), min_size=4))
    )
)
def test_rows_are_evenly_spaced(case):
    """Of slices in any order of dimensions, by looking at all rows."""
    shape, order, sliced = case
    whole = torch.zeros([shape[dim] + sliced[dim] for dim in order])
    x = whole.permute([order.index(dim) for dim in range(len(shape))])
    view = View.of(x[tuple(slice(0, size) for size in shape)])
    *outer, last = range(len(shape))
    offsets = row_offsets(view, outer)
    step = view.rows(*outer, last)
    inside = view.shape[last] == 1 or view.strides[last] == 1
    even = inside and all(at == number * offsets[1] for number, at in enumerate(offsets) if len(offsets) > 1)
    assert (step is not None) == even
    if even:
        assert step == (offsets[1] if len(offsets) > 1 else view.shape[last])


def test_pictures():
    memory = torch.zeros(2, 5, 7, 20)
    pictures = memory.permute(0, 3, 1, 2)
    assert View.of(pictures).pictures() == View.of(pictures[:, 3:9]).pictures() == 20
    assert View.of(pictures[:, :1]).pictures() == 20
    assert View.of(pictures[:1, :, :1, :1]).pictures() == 20  # of one position
    assert View.of(pictures[:, :, 1:]).pictures() is None  # rows are left out between two pictures
    assert View.of(pictures[1:, :, 1:]).pictures() == 20
    assert View.of(pictures[:, :, :, ::2]).pictures() is None
    assert View.of(pictures[:, ::2]).pictures() is None
    assert View.of(torch.zeros(2, 20, 5, 7)).pictures() is None
    assert View.of(torch.zeros(2, 1, 5, 7)).pictures() == 1
    assert View.of(torch.zeros(2, 20, 1, 1)).pictures() == 20


def test_a_view_is_of_float32():
    for x in (torch.zeros(3).double(), torch.zeros(3).int(), torch.zeros(3, device="meta")):
        with pytest.raises(ValueError, match="accepted: float32 on the CPU"):
            View.of(x)


X = View.of(torch.zeros(2, 3, 4, 5).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: activation_code("op", "after", "tanh"), "op: after = 'tanh'; accepted: None, gelu"),
        (lambda: check_shape("op", "x", X, (2, 5), (5,)), r"op: x has shape .*accepted: \(2, 5\) or \(5,\)"),
        (lambda: dense("op", "x", X, 2, 5, 3, 4), "op: x has strides"),
        (lambda: dense("op", "x", X, 2, 5, 3), "op: x has shape"),
        (lambda: evenly("op", "x", X, 0, 2), "evenly spaced"),
        (lambda: images("op", "x", View.of(torch.zeros(2, 5, 3, 4)), 2, 5, 3, 4), "evenly spaced"),
        (lambda: images("op", "x", X, 2, 5, 4, 3), "op: x has shape"),
        (lambda: per_channel("op", "bias", View.of(torch.zeros(3, 5)), 2, 5), r"\(5,\), \(1, 5\) or \(2, 5\)"),
        (lambda: per_channel("op", "bias", View.of(torch.zeros(5, 2).t()), 2, 5), "side by side"),
    ],
)
def test_checks_name_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_numbers_of_each_channel():
    assert per_channel("op", "bias", None, 2, 5) == 0
    for x in (torch.zeros(5), torch.zeros(1, 5), torch.zeros(1, 5, 1, 1), torch.zeros(5).expand(2, 5)):
        assert per_channel("op", "bias", View.of(x), 2, 5) == 0
    assert per_channel("op", "bias", View.of(torch.zeros(2, 5, 1, 1)), 2, 5) == 5
    assert per_channel("op", "bias", View.of(torch.zeros(2, 9)[:, 2:7]), 2, 5) == 9


def test_an_unknown_kernel_and_no_calls():
    with pytest.raises(KeyError, match="nosuch"):
        assembled([Call("nosuch", (), (), ())])
    for threads in (1, 3):
        assert Program([assembled([])], threads)(2, 7) == 7


ROWS = 6


def counting(rows=ROWS):
    """A call that adds a table's row to its place in another table and to a sum, and both of these."""
    given, made, total = torch.randn(rows, 7), torch.full((rows, 7), math.nan), torch.zeros(7)
    row = [View(Table(table), (7,), (1,)) for table in (given, made)]
    calls = [
        pointwise(View.of(total), [View.of(total), row[0]], [("add", 0, 1)]),
        pointwise(row[1], [row[0], View.of(total)], [("sub", 1, 0)]),
    ]
    return calls, given, made, total


def sums(given):
    """What `made` of `counting` holds after all rows, in its order of additions."""
    total, before = torch.zeros(7), []
    for row in given:
        total = total + row
        before.append(total - row)
    return torch.stack(before), total


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_row_runs_once_and_in_order(threads):
    calls, given, made, total = counting()
    assert Program([assembled(calls)], threads)(0, ROWS) == ROWS
    expected, last = sums(given)
    assert torch.equal(made, expected) and torch.equal(total, last)


def test_a_part_of_a_table():
    calls, given, made, total = counting()
    program = Program([assembled(calls)], 2)
    assert program(2, 5) == 5
    assert torch.equal(total, sums(given[2:5])[1])
    assert made[:2].isnan().all() and made[5:].isnan().all() and torch.equal(made[2:5], sums(given[2:5])[0])
    assert program() == 1 and not made[0].isnan().any()


def test_a_view_may_begin_inside_of_a_tables_row():
    table, out = torch.randn(3, 4, 10), torch.zeros(3, 5)
    call = pointwise(View(Table(out), (5,), (1,)), [View(Table(table), (5,), (2,), 21)])
    Program([assembled([call])])(0, 3)
    assert torch.equal(out, table[:, 2, 1::2])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_deadline_ends_it_between_two_rows(threads):
    """At least one row is run, and those after it by a later call."""
    calls, given, made, total = counting()
    program = Program([assembled(calls)], threads)
    for row in range(ROWS):
        assert program(row, ROWS, seconds=0) == row + 1
        assert made[row + 1 :].isnan().all()
    assert torch.equal(total, sums(given)[1])


def test_a_code_for_each_thread():
    each = [counting() for _ in range(3)]
    assert Program([assembled(calls) for calls, *_ in each])(0, ROWS) == ROWS
    for _, given, made, total in each:
        expected, last = sums(given)
        assert torch.equal(made, expected) and torch.equal(total, last)


@pytest.mark.parametrize("seconds", [0.0, 2e-4, 1e-3])
def test_threads_with_codes_of_their_own_stop_at_the_same_row(seconds):
    each = [counting(400) for _ in range(3)]
    extra = torch.randn(100, 100)
    slow = [pointwise(View.of(extra), [View.of(extra)], [("sin", 0)])]
    codes = [assembled([*calls, *(slow if at == 1 else [])]) for at, (calls, *_) in enumerate(each)]
    stop = Program(codes)(0, 400, seconds)
    assert 1 <= stop <= 400
    for _, given, made, total in each:
        assert made[stop:].isnan().all()
        expected, last = sums(given[:stop])
        assert torch.equal(made[:stop], expected) and torch.equal(total, last)


def layers(seed):
    """Calls that depend on each other, whose parts do not fall together, and their input and output."""
    generator = torch.Generator().manual_seed(seed)
    x, matrix = torch.randn(2, 21, 5, 7, generator=generator), torch.randn(21, 21, generator=generator) / 5
    x = x.contiguous(memory_format=torch.channels_last)
    hidden, out, numbers = torch.empty_like(x), torch.empty_like(x), torch.empty(2, 2, 21)
    rows = [View.of(one.permute(0, 2, 3, 1)) for one in (hidden, out)]
    calls = [
        norm_statistics(View.of(x), View.of(numbers), 3),
        scale_shift(View.of(x), View.of(numbers), View.of(hidden), "silu"),
        linear(rows[0], View.of(linear_weight(matrix)), rows[1]),
        pointwise(View.of(x), [View.of(x), View.of(out)], [("add", 0, 1), ("tanh", 2)]),
    ]
    return calls, x


def test_bits_do_not_depend_on_the_threads_that_share_a_code():
    calls, expected = layers(0)
    Program([assembled(calls)])(0, 50)
    for threads in (2, 3, 4, 5):
        calls, x = layers(0)
        assert Program([assembled(calls)], threads)(0, 50) == 50
        assert torch.equal(x, expected)


def test_run_takes_torchs_threads():
    calls, expected = layers(0)
    run(calls, 1)
    calls, x = layers(0)
    run(calls)
    assert torch.equal(x, expected)


def test_a_code_keeps_what_it_names():
    code, x = (lambda calls, x: (assembled(calls), x))(*layers(0))
    program = Program([code])
    del code
    gc.collect()
    torch.full((2, 21, 5, 7), math.nan), torch.full((2, 2, 21), math.nan)  # what was freed would be taken
    program(0, 3)
    calls, expected = layers(0)
    for _ in range(3):
        run(calls)
    assert torch.equal(x, expected)


def test_programs_of_several_python_threads_at_once():
    """Each has its own memory; a call of C does not hold Python's lock."""
    count, results = 4, {}

    def go(seed):
        calls, x = layers(seed)
        results[seed] = Program([assembled(calls)], 2)(0, 100), x

    threads = [threading.Thread(target=go, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(count):
        calls, expected = layers(seed)
        Program([assembled(calls)])(0, 100)
        assert results[seed][0] == 100 and torch.equal(results[seed][1], expected)


FORKED = """
import os, signal, sys, torch
from fastdiff.kernels.cpu.plan import Program, View, assembled
from fastdiff.kernels.cpu.pointwise import pointwise

x = torch.ones(1000)
program = Program([assembled([pointwise(View.of(x), [View.of(x)], [("mul", 0, 2.0)])])], 2)
program(0, 10)
child = os.fork()
if child == 0:
    signal.alarm(60)  # a child that waits for threads which it does not have ends
    program(0, 10)
    os._exit(0 if bool((x == 2.0**20).all()) else 3)
_, status = os.waitpid(child, 0)
program(0, 5)
print(os.waitstatus_to_exitcode(status), float(x.min()), float(x.max()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_process_runs_programs_with_threads_too():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert done.stdout == f"0 {2.0**15} {2.0**15}\n", done.stderr

"""Where buffers lie: those that are alive together never overlap, and the arena is no larger than it must be."""

from hypothesis import given
from hypothesis import strategies as st

from fastdiff.engine.cpu.arena import ALIGNED, Buffer, layout


def rounded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


@given(st.data())
def test_buffers_that_are_alive_together_never_overlap(data):
    buffers = [Buffer(size) for size in data.draw(st.lists(st.integers(0, 100), max_size=12), "sizes")]
    some = st.lists(st.sampled_from(buffers), max_size=4) if buffers else st.just([])
    uses, kept = data.draw(st.lists(some, max_size=12), "uses"), data.draw(some, "kept")
    offsets, size = layout(uses, kept)
    used = {buffer for step in uses for buffer in step}
    assert set(offsets) == used | set(kept)
    alive = {}
    for buffer in offsets:
        at = [number for number, step in enumerate(uses) if buffer in step]
        alive[buffer] = range(min(at, default=0), (len(uses) if buffer in kept else max(at)) + 1)
    for one in offsets:
        assert offsets[one] >= 0 and offsets[one] % ALIGNED == 0 and offsets[one] + one.size <= size
        for other in offsets:
            together = max(alive[one][0], alive[other][0]) <= min(alive[one][-1], alive[other][-1])
            if one is not other and together:
                apart = offsets[one] + one.size <= offsets[other] or offsets[other] + other.size <= offsets[one]
                assert apart or not one.size or not other.size
    assert size <= sum(rounded(buffer.size) for buffer in offsets) and size % ALIGNED == 0
    # At no step can fewer floats do.
    needed = [sum(rounded(one.size) for one in offsets if at in alive[one]) for at in range(len(uses) + 1)]
    assert size >= max(needed)


@given(st.sets(st.integers(1, 100), min_size=2, max_size=20), st.booleans())
def test_a_chain_that_narrows_or_widens_needs_its_two_largest_neighbours(sizes, widens):
    """Each step reads the result of the one before: two buffers are alive at a time."""
    chain = [Buffer(ALIGNED * size) for size in sorted(sizes, reverse=not widens)]
    _, size = layout(list(zip(chain, chain[1:], strict=False)), [chain[-1]])
    assert size == ALIGNED * sum(sorted(sizes)[-2:])


@given(st.lists(st.integers(1, 100), min_size=2, max_size=20))
def test_any_chain_needs_no_more_than_three_of_its_largest(sizes):
    chain = [Buffer(size) for size in sizes]
    _, size = layout(list(zip(chain, chain[1:], strict=False)), [chain[-1]])
    assert size <= 3 * rounded(max(sizes))


def test_equal_results_of_a_chain_need_two_places():
    chain = [Buffer(50) for _ in range(9)]
    _, size = layout(list(zip(chain, chain[1:], strict=False)), [chain[-1]])
    assert size == 2 * rounded(50)


def test_nothing_needs_nothing():
    assert layout([], []) == ({}, 0) and layout([[], []], []) == ({}, 0)

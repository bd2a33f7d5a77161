"""Values out of files, within bounds and held against their types."""

from collections.abc import Sequence
from typing import Annotated

import pytest

from fastdiff.data.load import load_data
from fastdiff.errors import InputError
from fastdiff.schema import MOST_NESTED, First, check, check_arguments, parse_json
from fastdiff.training.loop import Wishes


def network(dim: int = 8, mults: Sequence[int] = (1, 2), *, name: str) -> None: ...


def refused(call, *given) -> str:
    with pytest.raises(InputError) as caught:
        call(*given)
    return str(caught.value)


def test_lists_are_given_as_tuples():
    assert check_arguments(network, {"mults": [1, 4], "name": "a"}, "it") == {"mults": (1, 4), "name": "a"}
    assert Wishes(**check_arguments(Wishes, {"log": ["none"]}, "it")).log == ()


@pytest.mark.parametrize(
    ("function", "values", "words"),
    [
        (network, {}, "it lacks name"),
        (network, {"name": "a", "odd": 1}, "it has odd = 1"),
        (network, {"name": "a", "mults": [1, "2"]}, "it has mults.1 = '2'"),
        (network, {"name": "a", "dim": True}, "it has dim = True"),
        (load_data, {}, "it lacks source"),
        (load_data, {"source": "x", "holdout": "0.1"}, "it has holdout = '0.1'"),
        (load_data, {"source": "x", "class_names": 5}, "it has class_names = 5"),
        (Wishes, {"log": 5}, "it has log = 5"),
        (Wishes, {"sample_every": None}, "it has sample_every = None"),
    ],
)
def test_keywords_are_held_against_annotations(function, values, words):
    assert refused(check_arguments, function, values, "it").startswith(words)


def test_many_wrong_entries_cost_little(taken):
    """Of each pydantic keeps some hundred bytes, and tells a thousand."""
    check(list[str], ["a"], "it")  # which imports it
    with taken() as memory:
        said = refused(check, Annotated[list[str], First()], [1] * 10**6, "it")
    assert said.startswith("it has 0 = 1; accepted: ") and memory() < 20 * 2**20
    assert refused(check, dict[str, int], {str(k): "" for k in range(5000)}, "it").startswith("it has 5,000 entries")


def test_lists_without_end_are_not_made(taken):
    text = "[" + "[]," * (MOST_NESTED + 1) + "0]"
    with taken() as memory:
        assert refused(parse_json, text, "it").startswith("it holds 262,146 lists and objects; accepted: up to 262,144")
    assert memory() < 2**20

"""What samples are compared with: which pictures are chosen, the floor, and the classes."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given as given_any
from hypothesis import strategies as st

from fastdiff.data.images import kinds
from fastdiff.errors import InputError
from fastdiff.evaluation import pixels
from fastdiff.evaluation.features import Features
from fastdiff.evaluation.measures import frechet, precision_recall
from fastdiff.evaluation.proportions import drawn, mixed, repeated
from fastdiff.evaluation.reference import FLOORS, Reference, work

CORNERS = Features("corners", lambda x: x[:, :, ::7, ::7].flatten(1), torch.device("cpu"), {})  # 4 numbers a picture


@given_any(st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any), st.integers(0, 80))
def test_classes_are_mixed_in_their_proportions(counts, n):
    """At every length no class is a whole picture short of its share, and what is longer goes on."""
    order = mixed(counts, n)
    for length in range(1, n + 1):
        for k, count in enumerate(counts):
            assert abs(order[:length].count(k) - count / sum(counts) * length) < len(counts)
    assert mixed(counts, n // 2) == order[: n // 2]
    again = repeated(counts)
    assert [again.count(k) for k in range(len(counts))] == [count // math.gcd(*counts) for count in counts]
    rare = repeated([1, 6000])
    assert rare.count(0) == 1 and len(rare) == 6001
    assert mixed([3, 3, 3], 7) == [0, 1, 2, 0, 1, 2, 0] and repeated([3, 3, 3]) == [0, 1, 2]


def test_training_pictures_of_given_classes(data):
    """One class is rare, another has too few training pictures: others take its place."""
    labels = torch.eye(3)[torch.tensor([0] * 50 + [1] * 7 + [2] * 3)]
    given = dataclasses.replace(data(names=("a", "b", "c")), labels=labels)
    rows = drawn(given, 20, 0, [10, 2, 8])
    a, b, c = labels[rows].sum(dim=0).tolist()
    assert c == 3 and b >= 2 and a >= 10
    assert len(rows.unique()) == 20 and not torch.equal(rows, drawn(given, 20, 1, [10, 2, 8]))
    assert torch.equal(rows, drawn(given, 20, 0, [10, 2, 8])) and len(drawn(given, 1000, 0).unique()) == 60
    assert len(drawn(data(names=()), 5, 0).unique()) == 5


def test_the_floor_is_of_such_pictures_as_the_samples_are(data):
    """Training pictures are black, held-out ones mostly white, by class: only samples of classes can be as they are."""
    kinds_of = {"labels": torch.arange(60) % 6 == 0, "val_labels": torch.arange(40) % 4 > 0}  # 10 of 60, 30 of 40
    given = data(names=("black", "white"))
    labels = {name: torch.eye(2)[white.long()] for name, white in kinds_of.items()}
    shades = {
        name: (labels[of][:, 1] * 255).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
        for name, of in (("pixels", "labels"), ("val_images", "val_labels"))
    }
    given = dataclasses.replace(given, **labels, **shades)
    shade = Features("shade", lambda x: x.mean(dim=(2, 3)), torch.device("cpu"), {})
    floors = Reference.of(shade, given, 12, [True, False]).floors
    assert floors[True]["distance"] < 0.1 < 0.5 < floors[False]["distance"]
    assert floors[True]["alike"] and not floors[False]["alike"]
    assert Reference.of(shade, given, 12, [False]).floors == {False: floors[False]}


def test_pictures_without_a_class_are_of_none():
    labels = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.2, 0.8]])
    assert kinds(labels).tolist() == [-1, 0, 1] and kinds(torch.zeros(2, 0)).tolist() == [0, 0]


@pytest.mark.parametrize("names", [("even", "odd"), ()])
def test_the_measures(data, pictures, names):
    given, done = data(names=names), []
    reference = Reference.of(CORNERS, given, 20, [bool(names)], done.append)
    real = (given.val_images.double() / 127.5 - 1)[:, :, ::7, ::7].flatten(1)
    torch.testing.assert_close(reference.real, real, rtol=0, atol=1e-6)
    assert sum(done) == work(given, 20, 1) == 40 + 60 + FLOORS * 20
    made = CORNERS.of(pixels.samples(pictures(20, seed=3)), pixels.everything(20))
    found = reference.compare(made)
    assert found["distance"] == pytest.approx(frechet(made, real), rel=1e-5)
    assert found["to_training"] == pytest.approx(frechet(made, reference.training), rel=1e-9)
    assert found["halves"][1] == pytest.approx(frechet(made[10:], real), rel=1e-5)
    facts = reference.facts()
    assert facts["compared"] == 20 and facts["real"] == 40
    floor = reference.floors[bool(names)]
    assert floor["pictures"] == 20 and floor["lowest"] < floor["distance"] < floor["highest"]
    assert facts["real_of_each_class"] == dict.fromkeys(names, 20)
    shares = precision_recall(made, reference.real[pixels.some(40, 20)])  # as many on either side
    assert (found["precision"], found["recall"]) == shares and 0 < min(shares) and shares != (1, 1)


def test_classes_by_themselves(data):
    """The data's columns are the other way around; one class has too few held-out pictures for a distance."""
    given = data()
    few = torch.eye(2)[(torch.arange(40) < 4).long()]
    given = type(given)("tiny", given.images, given.labels, given.class_names, given.val_images, few)
    reference = Reference.of(CORNERS, given, 20, [True])
    made = torch.randn(20, 4).double()
    odd, even = reference.by_class(made, [("odd", 1), ("even", 0)], [0, 1])
    assert (odd["class"], odd["images"], odd["real"]) == ("odd", 10, 4) and (even["images"], even["real"]) == (10, 36)
    assert "distance" not in odd and "distance" not in odd["floor"]
    assert even["distance"] == pytest.approx(frechet(made[1::2], reference.real[4:]), rel=1e-9)
    chosen = reference.real[:4][pixels.some(4, 4)]
    assert (odd["precision"], odd["recall"]) == precision_recall(made[::2][:4], chosen)
    assert 0 <= even["floor"]["distance"] != even["distance"]


def test_too_few_held_out_pictures(data):
    with pytest.raises(InputError, match="'tiny' has 3 held-out pictures; accepted: at least 4"):
        Reference.of(CORNERS, data(m=3), 20, [True])

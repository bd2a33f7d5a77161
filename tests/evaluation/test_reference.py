"""What samples are compared with: which pictures are chosen, the floor, and the classes."""

import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.evaluation import pixels
from fastdiff.evaluation.features import Features
from fastdiff.evaluation.measures import frechet, precision_recall
from fastdiff.evaluation.reference import FLOORS, Reference, work

CORNERS = Features("corners", lambda x: x[:, :, ::7, ::7].flatten(1), torch.device("cpu"), {})  # 4 numbers a picture


def test_pictures_are_drawn_evenly():
    labels = torch.eye(3)[torch.tensor([0] * 50 + [1] * 7 + [2] * 30)]
    rows = pixels.evenly(labels, 15, 0)
    assert labels[rows].sum(dim=0).tolist() == [5, 5, 5] and len(rows.unique()) == 15
    assert len(pixels.evenly(labels, 1000, 0)) == 21  # the smallest class has 7
    assert not torch.equal(rows, pixels.evenly(labels, 15, 1)) and torch.equal(rows, pixels.evenly(labels, 15, 0))
    assert len(pixels.evenly(torch.zeros(9, 0), 5, 0).unique()) == 5  # without classes


@pytest.mark.parametrize("names", [("even", "odd"), ()])
def test_the_measures(data, pictures, names):
    given, done = data(names=names), []
    reference = Reference.of(CORNERS, given, 20, done.append)
    real = (given.val_images.double() / 127.5 - 1)[:, :, ::7, ::7].flatten(1)
    torch.testing.assert_close(reference.real, real, rtol=0, atol=1e-6)
    assert sum(done) == work(given, 20) == 40 + 60 + FLOORS * 20
    made = CORNERS.of(pixels.samples(pictures(20, seed=3)), pixels.everything(20))
    found = reference.compare(made)
    assert found["distance"] == pytest.approx(frechet(made, real), rel=1e-5)
    assert found["to_training"] == pytest.approx(frechet(made, reference.training), rel=1e-9)
    assert found["halves"][1] == pytest.approx(frechet(made[1::2], real), rel=1e-5)
    facts = reference.facts()
    assert facts["floor"]["pictures"] == 20 and facts["compared"] == 20 and facts["real"] == 40
    assert facts["floor"]["lowest"] < facts["floor"]["distance"] < facts["floor"]["highest"]
    assert facts["real_of_each_class"] == dict.fromkeys(names, 20)
    shares = precision_recall(made, reference.real[pixels.some(40, 20)])  # as many on either side
    assert (found["precision"], found["recall"]) == shares and 0 < min(shares) and shares != (1, 1)


def test_classes_by_themselves(data):
    """The data's columns are the other way around; one class has too few held-out pictures for a distance."""
    given = data()
    few = torch.eye(2)[(torch.arange(40) < 4).long()]
    given = type(given)("tiny", given.images, given.labels, given.class_names, given.val_images, few)
    reference = Reference.of(CORNERS, given, 20)
    made = torch.randn(20, 4).double()
    odd, even = reference.by_class(made, [("odd", 1), ("even", 0)])
    assert (odd["class"], odd["images"], odd["real"]) == ("odd", 10, 4) and (even["images"], even["real"]) == (10, 36)
    assert "distance" not in odd and "distance" not in odd["floor"]
    assert even["distance"] == pytest.approx(frechet(made[1::2], reference.real[4:]), rel=1e-9)
    chosen = reference.real[:4][pixels.some(4, 4)]
    assert (odd["precision"], odd["recall"]) == precision_recall(made[::2][:4], chosen)
    assert 0 <= even["floor"]["distance"] != even["distance"]


def test_too_few_held_out_pictures(data):
    with pytest.raises(InputError, match="'tiny' has 3 held-out pictures; accepted: at least 4"):
        Reference.of(CORNERS, data(m=3), 20)

"""Contexts as networks take them: class numbers, tokens, vectors."""

import dataclasses

import pytest
import torch
from torch import nn

from fastdiff import InputError, Model, make_schedule, sample

CLASSES = 12  # the last stands for no class


class Labelled(nn.Module):
    """Of class numbers; keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.table, self.conv, self.seen = nn.Embedding(CLASSES, 3), nn.Conv2d(3, 3, 3, padding=1), None

    def forward(self, x, t, y):
        Labelled.seen = y
        return self.conv(x) + self.table(y)[:, :, None, None]


class Reading(nn.Module):
    """Of tokens, (B, L, 5), by attention."""

    def __init__(self):
        super().__init__()
        self.conv, self.keys, self.values = nn.Conv2d(3, 4, 1), nn.Linear(5, 4), nn.Linear(5, 3)

    def forward(self, x, t, tokens):
        q = self.conv(x).flatten(2).transpose(1, 2)
        read = nn.functional.scaled_dot_product_attention(q, self.keys(tokens), self.values(tokens))
        return 0.3 * x + read.transpose(1, 2).reshape(x.shape)


@pytest.fixture
def labelled(randomised):
    return Model(
        randomised(Labelled()),
        make_schedule("linear", 50),
        image_shape=(3, 8, 8),
        num_classes=CLASSES,
        null_class=CLASSES - 1,
    )


OPTIONS = dict(sampler="ddim", steps=4, device="cpu")


@pytest.mark.parametrize("form", ["cpu", "eager"])
@pytest.mark.parametrize(
    "context, classes",
    [
        (3, [3, 3, 3]),
        ([4, 0, 10], [4, 0, 10]),
        (torch.tensor([4, 0, 10]), [4, 0, 10]),
        (torch.tensor([[4], [0], [10]], dtype=torch.int32), [4, 0, 10]),
        (lambda first, count: [(first + k) % 11 for k in range(count)], [7, 8, 9]),
    ],
)
def test_class_numbers(context, classes, form, labelled, rel):
    images = sample(labelled, 3, context=context, first=7, form=form, **OPTIONS)
    for k, one in enumerate(classes):
        alone = sample(labelled, 1, context=one, first=7 + k, form="eager", **OPTIONS)
        assert Labelled.seen.dtype == torch.int64 and Labelled.seen.tolist() == [one]
        assert rel(images[k : k + 1], alone) < 1e-5
    by_two = sample(labelled, 3, context=context, first=7, form=form, batch_size=2, **OPTIONS)
    assert rel(images, by_two) < 1e-5


def test_of_an_unknown_number_of_classes(labelled):
    unsaid = Model(labelled.network, labelled.schedule, image_shape=(3, 8, 8))
    assert torch.equal(sample(unsaid, 2, context=[9, 2], **OPTIONS), sample(labelled, 2, context=[9, 2], **OPTIONS))


def test_classes_by_name(labelled):
    names = [f"c{k}" for k in range(CLASSES - 1)]  # the last is the null class
    named = dataclasses.replace(labelled, class_names=names)
    by_number = sample(labelled, 2, context=4, **OPTIONS)
    assert torch.equal(sample(named, 2, context={"c4": 1}, **OPTIONS), by_number)
    for context, words in (({"c4": 0.5}, "one class, with weight 1"), ({"c4": 1, "c5": 1}, "one class, with weight 1")):
        with pytest.raises(InputError, match=words):
            sample(named, 2, context=context, **OPTIONS)
    with pytest.raises(InputError, match="c0.*c1"):
        sample(named, 2, context={"c99": 1}, **OPTIONS)
    with pytest.raises(InputError, match="2 class names for 12 classes"):
        dataclasses.replace(labelled, class_names=["a", "b"])


def test_a_class_that_is_not_given(labelled):
    """Is the null class; of a network that has none, it is asked for before the network would fail."""
    assert torch.equal(sample(labelled, 2, **OPTIONS), sample(labelled, 2, context=CLASSES - 1, **OPTIONS))
    with pytest.raises(InputError, match="takes the number of a class; give one, 0 to 11"):
        sample(dataclasses.replace(labelled, null_class=None), 2, **OPTIONS)


def test_class_numbers_are_not_rounded():
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.conv = nn.Embedding(1000, 3), nn.Conv2d(3, 3, 1)

        def forward(self, x, t, y):
            Labelled.seen = y
            return self.conv(x) + self.table(y)[:, :, None, None]

    model = Model(Large(), make_schedule("linear", 50), image_shape=(3, 8, 8), num_classes=1000)
    sample(model, 3, context=[7, 257, 999], dtype=torch.bfloat16, form="eager", **OPTIONS)
    assert Labelled.seen.tolist() == [7, 257, 999]


@pytest.mark.parametrize("form", ["cpu", "eager"])
def test_guidance_has_the_null_class(form, labelled, rel):
    guided = sample(labelled, 2, context=[3, 5], guidance_scale=1.5, form=form, **OPTIONS)
    assert rel(guided, sample(labelled, 2, context=[3, 5], form=form, **OPTIONS)) > 1e-3
    none = sample(labelled, 2, context=[3, 5], guidance_scale=0.0, form=form, **OPTIONS)
    assert rel(none, sample(labelled, 2, context=CLASSES - 1, form=form, **OPTIONS)) < 1e-5


@pytest.mark.parametrize("form", ["cpu", "eager"])
def test_tokens(form, randomised, rel):
    model = Model(randomised(Reading()), make_schedule("linear", 50), image_shape=(3, 8, 8))
    tokens = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    for scale in (None, 2.0):
        options = dict(guidance_scale=scale, form=form, **OPTIONS)
        images = sample(model, 3, context=tokens, **options)
        assert rel(images, sample(model, 3, context=tokens, guidance_scale=scale, form="eager", **OPTIONS)) < 1e-5
        for k in range(3):
            assert rel(sample(model, 1, context=tokens[k : k + 1], first=k, **options), images[k : k + 1]) < 1e-5


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(context=CLASSES), "class 12 as a context; accepted: 0 to 11"),
        (dict(context=[0, -1]), "class -1 as a context"),
        (dict(context=[3.0, 4.0]), "other than whole numbers; accepted: classes, 0 to 11"),
        (dict(context=torch.zeros(0, dtype=torch.int64)), "a context of shape (0,); accepted: one that is not empty"),
        (dict(context=[1, 2, 3]), "classes of shape (3,) as a context; accepted: a whole number, or (2,)"),
        (dict(context=lambda first, count: torch.zeros(1, dtype=torch.int64)), "of shape (1,) from a source"),
    ],
)
def test_bad_classes_are_named(options, words, labelled):
    with pytest.raises(InputError) as caught:
        sample(labelled, 2, **options, **OPTIONS)
    assert words in str(caught.value)


def test_what_a_model_takes_of_classes(labelled):
    unguided = Model(labelled.network, labelled.schedule, image_shape=(3, 8, 8), num_classes=CLASSES)
    with pytest.raises(InputError, match="of which none stands for no class; give the Model its null_class"):
        sample(unguided, 1, context=3, guidance_scale=2.0, **OPTIONS)
    for options in (dict(num_classes=0), dict(num_classes=3, null_class=3), dict(null_class=-1)):
        with pytest.raises(InputError, match="accepted: a whole number"):
            Model(labelled.network, labelled.schedule, image_shape=(3, 8, 8), **options)

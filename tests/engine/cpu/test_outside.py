"""What has no kernel runs in torch between two stretches of the plan, in a sampler's loop too."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdiff import Engine, Model, make_schedule
from fastdiff.engine.cpu import step as planned_step

conv = nn.Conv2d


def _rows(t, width):
    return F.one_hot(t % width, width).float()


OUTSIDE = {
    "cumsum": lambda net, x: x.cumsum(1),
    "where": lambda net, x: torch.where((x > 0) & (x < 1), x, 0.1 * net.conv(x)),
    "compared": lambda net, x: x * (x > 0.2).flip(1) + (x <= 0.1).sum(1, keepdim=True).to(x.dtype),
    "masked": lambda net, x: x.masked_fill(~(x.abs() > 1), 0.5),
    "amax": lambda net, x: x - x.amax((2, 3), keepdim=True),
    "maxima with places": lambda net, x: x.max(1, keepdim=True)[0] + x * x.argmax(1, keepdim=True),
    "sorted": lambda net, x: (lambda found: found[0] + found[1])(x.sort(3)),
    "top": lambda net, x: x + x.topk(2, 1).values.mean(1, keepdim=True),
    "indexed": lambda net, x: x[:, [2, 1, 0, 3]] + x[:, :, torch.arange(5, -1, -1)],
    "looked up": lambda net, x: x + net.table(x.flatten(1).argmax(1) % 7)[:, :, None, None],
    "looked up in two tables": lambda net, x: (
        lambda ids: x + (net.table(ids) * net.other_table(ids))[:, :, None, None]
    )(x.flatten(1).argmax(1) % 7),
    "gathered": lambda net, x: x.gather(1, x.argsort(1)),
    "rounded": lambda net, x: x.round() + x.floor() * x.sign() + net.conv(x),
    "bits": lambda net, x: _cleared(net, x),
    "complex": lambda net, x: _turned(net, x),
    "in float64": lambda net, x: net.conv(x.double().sin().to(x.dtype)) + x.double().mean().to(x.dtype),
    "bilinear": lambda net, x: F.interpolate(F.interpolate(net.conv(x), scale_factor=2, mode="bilinear"), size=(6, 6)),
    "twice in turn": lambda net, x: net.conv(net.conv(x.cumsum(1)).cumsum(2)).cumsum(3),
    "at once": lambda net, x: x.cumsum(1).cumsum(2).cumsum(3).cumprod(1),
    "kept": lambda net, x: (lambda mask: torch.where(mask, net.conv(x), x) + net.conv(x.sin()) * mask)((x > 0).flip(1)),
    "of parts": lambda net, x: torch.cat([part.cumsum(1) for part in x.chunk(2, 1)], 1),
    "of a list": lambda net, x: x * torch.stack([one > 0 for one in x.unbind(1)][::-1], 1),
    "attention by a module": lambda net, x: net.mha(*[x.flatten(2).mT] * 3)[0].mT.reshape(x.shape),
    "written to": lambda net, x: _written(net.conv(x)),
}


def _cleared(net, x):
    """The bits of a result, a view of its memory, are kept while more is computed."""
    y = net.conv(x)
    bits = None if y.dtype == torch.float64 else y.view(torch.int32)
    other = net.conv(net.conv(x.sin()))
    return (y if bits is None else (bits & ~3).view(torch.float32)) + other


def _turned(net, x):
    y = net.conv(x).permute(0, 2, 3, 1).reshape(-1, 36, 2, 2)
    z = torch.view_as_complex(y)
    other = net.conv(net.conv(x.sin()))
    return torch.view_as_real(z * 1j).reshape(-1, 6, 6, 4).permute(0, 3, 1, 2) + other


def _written(y):
    y[:, 0] = y[:, 1].cumsum(1)
    y[:, :, ::2] += 1
    return y


def modules():
    return dict(
        first=conv(4, 4, 3, padding=1),
        conv=conv(4, 4, 3, padding=1),
        last=conv(4, 4, 1),
        table=nn.Embedding(7, 4),
        mha=nn.MultiheadAttention(4, 2, batch_first=True),
        other_table=nn.Embedding(7, 4),
    )


@pytest.mark.parametrize("name", OUTSIDE)
def test_between_two_stretches(name, same_function):
    assert same_function(lambda net, x, t: net.last(OUTSIDE[name](net, net.first(x))), **modules()).outside
    same_function(lambda net, x, t: OUTSIDE[name](net, x), batch=4, halves=2, **modules())


TIMES = {
    "integer rows": lambda net, x, t: x * (1 + (t // 3).view(-1, 1, 1, 1)) + net.conv(x),
    "integer and float rows": lambda net, x, t: net.conv(x) * net.table(t % 7)[:, :, None, None] + t.view(-1, 1, 1, 1),
    "one hot": lambda net, x, t: net.conv(x) * (1 + _rows(t, 4))[:, :, None, None],
    "a mask of the time": lambda net, x, t: torch.where((t > 9).view(-1, 1, 1, 1), net.conv(x), x.sin()),
    "a value kept": lambda net, x, t: net.conv(x).cumsum(1) * (1 + t.view(-1, 1, 1, 1)) + x,
    "x and t in torch": lambda net, x, t: torch.where((x > t.view(-1, 1, 1, 1) / 20).flip(1), x, net.conv(x)),
}


class Timed(nn.Module):
    def __init__(self, forward, contexts):
        super().__init__()
        self.function, self.contexts = forward, contexts
        for name, module in modules().items():
            setattr(self, name, module)

    def forward(self, x, t, context=None):
        y = self.function(self, x, t)
        return y if context is None else y + self.contexts(self, y, context)


CONTEXTS = {
    "class numbers": lambda net, y, c: net.table(c[:, 0].long().clamp(0, 6))[:, :, None, None] * y,
    "one hot": lambda net, y, c: _rows(c[:, 0].long().abs(), 4)[:, :, None, None] * net.conv(y),
    "a mask": lambda net, y, c: torch.where((c.sum(1) > 1)[:, None, None, None], y, net.conv(y)),
    "kept in two": lambda net, y, c: (lambda a: y * a + net.conv(y) * (1 - a))(
        c[:, :1].cumsum(0)[:, :, None, None] * 0
    ),
}


def samples(net, batch_size, n=5, steps=5, form=None, sampler="ddpm", **options):
    model = Model(net, make_schedule("linear", 20), image_shape=(4, 6, 6))
    engine = Engine(model, model.table(sampler, steps), batch_size=batch_size, device="cpu", clip=1.0, form=form)
    return engine.sample(n, seed=3, **options)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", TIMES)
def test_in_the_loop_each_row_has_its_own(name, threads, with_threads, rel, poisoned):
    net = Timed(TIMES[name], None)
    with with_threads(threads):
        ours = samples(net, 3, form="cpu")
        assert rel(ours, samples(net, 3, form="eager")) < 1e-5
        assert torch.equal(ours, samples(net, 3, form="cpu"))  # one configuration, the same bits


@pytest.mark.parametrize("name", TIMES)
def test_rows_that_run_one_by_one_are_the_same(name, monkeypatch):
    net = Timed(TIMES[name], None)
    expected = samples(net, 3, form="cpu")
    monkeypatch.setattr(planned_step, "SECONDS", 0.0)
    assert torch.equal(samples(net, 3, form="cpu"), expected)


@pytest.mark.parametrize("guidance_scale", [None, 2.5])
@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_and_guidance(name, guidance_scale, with_threads, rel, poisoned):
    net = Timed(TIMES["a value kept"], CONTEXTS[name])
    context = torch.tensor([[1.0, 2, 0], [6, 0, 1], [0, 0, 0], [3, 1, 1], [2, 0, 0]])
    options = dict(context=context, guidance_scale=guidance_scale)
    own = samples(net, 3, form="eager", **options)
    for threads in (1, 2):
        with with_threads(threads):
            assert rel(samples(net, 3, form="cpu", **options), own) < 1e-5


def test_nothing_is_left_of_an_earlier_request(poisoned):
    """Values that torch keeps are those of the row, the batch and the request at hand."""
    net = Timed(TIMES["x and t in torch"], CONTEXTS["a mask"])
    model = Model(net, make_schedule("linear", 20), image_shape=(4, 6, 6))
    engine = Engine(model, model.table("ddpm", 4), batch_size=2, device="cpu", clip=1.0)
    requests = [
        dict(n=3),
        dict(n=3, context=[2.0, 0], guidance_scale=2.0),
        dict(n=4, seed=1),
        dict(n=2, context=[0.0, 0]),
    ]
    alone = [Engine(model, engine.table, batch_size=2, device="cpu", clip=1.0).sample(**one) for one in requests]
    for k in (0, 1, 2, 3, 1, 0, 3):
        assert torch.equal(engine.sample(**requests[k]), alone[k])


def test_a_context_with_several_rows_for_each_sample(monkeypatch, rel, poisoned):
    """What is made of the contexts before the loop may be in no rows by sample; then the batch stays whole."""
    monkeypatch.setattr(planned_step, "PIECE_BYTES", 3000)
    project = nn.Linear(5, 16)
    kinds = {
        "heads": lambda net, y, c: torch.bmm(y.reshape(-1, 18, 2), project(c).reshape(-1, 2, 2)).reshape(y.shape),
        "transposed": lambda net, y, c: y * project(c).t()[:4].t()[:, :, None, None],
        "their mean": lambda net, y, c: y * c.mean(),
        "a sample's own": lambda net, y, c: y * project(c)[:, :4, None, None],
    }
    for name, kind in kinds.items():
        net = Timed(lambda net, x, t: net.conv(x), kind)
        net.project = project
        for guidance_scale in (None, 2.0):
            options = dict(n=7, context=torch.rand(7, 5), guidance_scale=guidance_scale)
            assert rel(samples(net, 7, form="cpu", **options), samples(net, 7, form="eager", **options)) < 1e-5, name

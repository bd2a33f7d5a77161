"""The content of a network: equal for equal networks, another after any change; none where a change could hide."""

import collections
import copy
import enum
import functools
import gc
import itertools
import threading
import types
import warnings
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from fastdiff import AnnotatedUnet, ContextUnet
from fastdiff.engine.checksum import ROW, checksum, sums
from fastdiff.engine.content import content_of

GAIN = 2.0


class Shared:
    gain = 1.0


SETTINGS, MODULE = types.SimpleNamespace(gain=1.0), types.ModuleType("settings")
MODULE.gain = 1.0


def helper(x):
    return GAIN * x * SETTINGS.gain * Shared.gain * MODULE.gain


class Config:
    def __init__(self, **fields):
        vars(self).update(fields)


class Helper:
    scale = 1.0

    def __init__(self):
        self.gain = 1.0

    def embed(self, x):
        return x * self.gain * self.offset()

    @classmethod
    def offset(cls):
        return cls.scale


NESTED, PACKAGE = Config(model=Config(gain=1.0)), types.ModuleType("package")
PACKAGE.inner = types.ModuleType("package.inner")
PACKAGE.inner.gain = 1.0
HELPER, TABLE, EMBEDDING, CACHED_GAIN, LOCK = Helper(), [Config(gain=1.0)], nn.Linear(2, 2), 1.0, threading.Lock()


class Naming(nn.Module):
    cfg = Config(gain=1.0, parts=[Config(width=1)])

    def forward(self, x, t):
        x = HELPER.embed(EMBEDDING(x)) * NESTED.model.gain * self.cached(1)
        return x * PACKAGE.inner.gain * self.cfg.gain * TABLE[0].gain

    @staticmethod
    @functools.lru_cache
    def cached(x):
        return x * CACHED_GAIN

    def unnamed(self):
        return LOCK


class Locking(Naming):
    def forward(self, x, t):
        return self.unnamed()


class Mode(enum.Enum):
    PLAIN = 1
    OTHER = 2


class Net(nn.Module):
    """A network with something of each kind that a network may hold."""

    slope = 1.0

    def __init__(self):
        super().__init__()
        self.conv, self.batch, self.group = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.plain = torch.arange(4.0)
        self.listed, self.named, self.ordered = [torch.ones(2), 3], {"a": torch.zeros(2)}, collections.OrderedDict(a=1)
        self.tupled, self.some = (1, (2.0, None)), {"x", "y"}
        self.config, self.mode, self.act = (
            Config(eps=1e-5, names=["a"]),
            Mode.PLAIN,
            functools.partial(torch.clamp, min=0),
        )
        self.closed = scaled(3.0)

    def forward(self, x, t):
        return helper(self.act(self.group(self.batch(self.conv(x)))))


def scaled(factor):
    return lambda x: x * factor


def made():
    torch.manual_seed(0)
    return Net()


def stepped(**options):
    def change(net):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, **options)
        net(torch.randn(2, 4, 8, 8), 0).sum().backward()
        optimizer.step()

    return change


def without_gradient(change):
    def run(net):
        with torch.no_grad():
            change(net)

    return run


def in_inference_mode(net):
    with torch.inference_mode():
        net.conv.weight.mul_(2)


def swapped(net):
    flat = net.conv.weight.data.view(-1)
    flat[[0, 1]] = flat[[1, 0]]


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


CHANGES = {
    "optimizer": stepped(foreach=False),
    "foreach optimizer": stepped(foreach=True),
    "fused optimizer": stepped(fused=True),
    "load_state_dict": lambda net: net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}),
    "load_state_dict, assigned": lambda net: net.load_state_dict(
        {k: v + 1 for k, v in net.state_dict().items()}, assign=True
    ),
    "data set": lambda net: setattr(net.conv.weight, "data", torch.randn(4, 4, 3, 3)),
    "data.add_": lambda net: net.conv.weight.data.add_(1),
    "detach().add_": lambda net: net.conv.weight.detach().add_(1),
    "no_grad": without_gradient(lambda net: net.conv.weight.mul_(2)),
    "set_": without_gradient(lambda net: net.conv.weight.set_(torch.randn(4, 4, 3, 3))),
    "inference_mode": in_inference_mode,
    "numpy": lambda net: net.conv.weight.detach().numpy().fill(0),
    "swap_tensors": lambda net: torch.utils.swap_tensors(net.conv.weight, nn.Parameter(torch.randn(4, 4, 3, 3))),
    "two weights swapped": swapped,
    "one bit": lambda net: net.conv.weight.data.view(torch.int32).view(-1)[5:6].bitwise_xor_(1),
    "double": lambda net: net.double(),
    "running statistics": lambda net: net(torch.randn(2, 4, 8, 8), 0),
    "a module's number": lambda net: setattr(net.batch, "eps", 1.0),
    "an equal number of another type": lambda net: setattr(net, "tupled", (1, (2, None))),
    "-0": lambda net: setattr(net.batch, "eps", -0.0),
    "eval": lambda net: net.eval(),
    "a module replaced": lambda net: setattr(net, "conv", nn.Conv2d(4, 4, 3, padding=1)),
    "a module without weights": lambda net: setattr(net, "batch", nn.Identity()),
    "a module added": lambda net: setattr(net, "more", nn.ReLU()),
    "two modules in the other order": lambda net: net._modules.update(conv=net._modules.pop("conv")),
    "forward hook": lambda net: net.conv.register_forward_hook(lambda module, given, out: 2 * out),
    "pre-hook": lambda net: net.conv.register_forward_pre_hook(lambda module, given: None),
    "forward of one module": lambda net: setattr(net.conv, "forward", lambda x: x),
    "bound forward": lambda net: setattr(net.conv, "forward", types.MethodType(lambda self, x: x, net.conv)),
    "tied": lambda net: setattr(net.batch, "weight", net.group.weight),
    "parametrization": lambda net: parametrize.register_parametrization(net.conv, "weight", Doubled()),
    "plain tensor": lambda net: net.plain.mul_(2),
    "tensor in a list": lambda net: net.listed[0].mul_(2),
    "tensor in a dict": lambda net: net.named["a"].add_(1),
    "list": lambda net: net.listed.append(1),
    "tuple": lambda net: setattr(net, "tupled", (1, (2.0, 0))),
    "ordered dict": lambda net: net.ordered.update(b=1),
    "set": lambda net: net.some.add("z"),
    "object": lambda net: setattr(net.config, "eps", 1e-6),
    "list in an object": lambda net: net.config.names.append("b"),
    "enum": lambda net: setattr(net, "mode", Mode.OTHER),
    "partial": lambda net: setattr(net, "act", functools.partial(torch.clamp, min=1)),
    "closure": lambda net: setattr(net, "closed", scaled(4.0)),
    "class": lambda net: setattr(net, "__class__", type("Net", (Net,), {})),
    "attribute of a parameter": lambda net: setattr(net.conv.weight, "scale", 2.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_seen(change):
    net = made()
    before = content_of(net)
    assert before is not None and content_of(net) == before == content_of(made())
    change(net)
    after = content_of(net)
    assert after is not None and after != before and content_of(net) == after


@pytest.mark.parametrize(
    "place, name, value",
    [
        (Net, "slope", 2.0),
        (Net, "forward", lambda self, x, t: x),
        (nn.Conv2d, "forward", lambda self, x: x),
        (Net, "__call__", lambda self, x, t: x),
    ],
)
def test_a_change_of_a_class_is_seen(place, name, value, monkeypatch):
    net = made()
    before = content_of(net)
    monkeypatch.setattr(place, name, value, raising=False)
    assert content_of(net) != before


@pytest.mark.parametrize("name, value", [("GAIN", 3.0), ("helper", lambda x: x)])
def test_a_change_of_what_functions_name_is_seen(name, value, monkeypatch):
    net = made()
    before = content_of(net)
    monkeypatch.setitem(globals(), name, value)
    assert content_of(net) != before


@pytest.mark.parametrize("owner", [SETTINGS, Shared, MODULE], ids=["object", "class", "module"])
def test_a_change_of_what_functions_read_elsewhere_is_seen(owner, monkeypatch):
    net = made()
    before = content_of(net)
    monkeypatch.setattr(owner, "gain", 3.0)
    assert content_of(net) != before


BEHIND_NAMES = {
    "a class's object": lambda patch: patch.setattr(Naming.cfg, "gain", 2.0),
    "in a list of it": lambda patch: patch.setattr(Naming.cfg.parts[0], "width", 2),
    "an object's object": lambda patch: patch.setattr(NESTED.model, "gain", 2.0),
    "a package's module": lambda patch: patch.setattr(PACKAGE.inner, "gain", 2.0),
    "an object": lambda patch: patch.setattr(HELPER, "gain", 2.0),
    "its class's number": lambda patch: patch.setattr(Helper, "scale", 2.0),
    "its method": lambda patch: patch.setattr(Helper, "embed", lambda self, x: x),
    "in a list": lambda patch: patch.setattr(TABLE[0], "gain", 2.0),
    "in a cached function": lambda patch: patch.setitem(globals(), "CACHED_GAIN", 2.0),
    "a module's weights": lambda patch: patch.setattr(EMBEDDING.weight, "data", EMBEDDING.weight.data + 1),
    "code that nothing names": lambda patch: patch.setattr(Naming.unnamed, "__code__", Naming.forward.__code__),
}


@pytest.mark.parametrize("change", BEHIND_NAMES.values(), ids=BEHIND_NAMES)
def test_a_change_of_what_is_behind_a_name_is_seen(change, monkeypatch):
    net = Naming()
    before = content_of(net)
    assert before is not None and content_of(net) == before
    change(monkeypatch)
    assert content_of(net) not in (before, None)
    monkeypatch.undo()
    assert content_of(net) == before


def test_what_code_names_and_cannot_be_seen_through_has_no_content():
    """But where nothing names the function that does, it is not looked into."""
    assert content_of(Naming()) is not None and content_of(Locking()) is None


def test_what_names_itself_has_an_end(monkeypatch):
    monkeypatch.setattr(PACKAGE, "inner", PACKAGE)
    monkeypatch.setattr(NESTED, "model", NESTED)
    assert content_of(Naming()) is not None


def test_a_chain_that_is_too_long_has_no_content():
    net = made()
    for _ in range(10_000):
        net.plain = Config(rest=net.plain)
    assert content_of(net) is None


def test_hooks_of_all_modules_are_seen():
    net = made()
    before = content_of(net)
    with nn.modules.module.register_module_forward_hook(lambda module, given, out: None):
        assert content_of(net) != before
    assert content_of(net) == before


def test_an_object_in_the_place_of_a_dead_one_is_another():
    """CPython gives ids again: classes are made until one has the id of the first."""

    def fresh():
        gc.collect(0)  # classes are in cycles
        return type("Act", (nn.Module,), {})

    def numbered(cls):
        net = made()
        net.act = cls
        return id(cls), content_of(net)

    number, before = numbered(fresh())
    again = [numbered(fresh()) for _ in range(200)]
    assert before not in [content for _, content in again]
    assert number in [found for found, _ in again]  # else this test has shown nothing


@pytest.mark.parametrize(
    "value",
    [
        torch.Generator(),
        iter([1]),
        [1].append,
        collections.defaultdict(list),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex64).conj(),
        type("Slotted", (), {"__slots__": ("a", "__dict__")})(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_a_state_of_its_own_has_no_content(value):
    net = made()
    net.config.names.append(value)
    assert content_of(net) is None


def test_networks_of_every_kind_have_a_content():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm's deprecation
        old = nn.utils.weight_norm(nn.Conv2d(3, 3, 3))
    for net in (AnnotatedUnet(8), ContextUnet(1, 8, 3, 28), nn.Transformer(8, 2, 1, 1, 8), old, made().bfloat16()):
        assert content_of(net) == content_of(net) != None  # noqa: E711
    assert content_of(AnnotatedUnet(8)) != content_of(AnnotatedUnet(8))
    net = AnnotatedUnet(8)
    assert content_of(copy.deepcopy(net)) == content_of(net)


def test_a_content_keeps_no_class_alive():
    cls = type("Gone", (nn.Module,), {"forward": lambda self, x: x})
    content, alive = content_of(cls()), weakref.ref(cls)
    del cls
    gc.collect()
    assert content is not None and alive() is None


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "part": lambda x: x[:, ::2, 1:],
    "one": lambda x: x[0, 0, 0, 0],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64], ids=str)
def test_a_checksum_depends_on_every_element(dtype, layout):
    x = layout((3 * torch.randn(2, 4, 3, 5)).to(dtype))
    whole = checksum([x])
    assert checksum([x.clone()]) == whole
    for place in itertools.product(*map(range, x.shape)):
        other = x.clone()
        other[place] = not x[place] if dtype is torch.bool else x[place] + 1
        assert checksum([other]) != whole


WORDS = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=40)


@given(WORDS, st.data())
def test_sums_see_changed_and_swapped_words(words, data):
    """Changes of two words too, of the sign bits for one, which cancel where all factors are odd."""
    a, b = (data.draw(st.integers(0, len(words) - 1)) for _ in range(2))
    change = data.draw(st.sampled_from([1, -(2**31), 2**30, 12345]))
    swapped, changed = list(words), list(words)
    swapped[a], swapped[b] = words[b], words[a]
    for place in {a, b}:
        changed[place] ^= change
    whole = sums([torch.tensor(words, dtype=torch.int32)])
    assert (sums([torch.tensor(swapped, dtype=torch.int32)]) == whole) == (swapped == words)
    assert sums([torch.tensor(changed, dtype=torch.int32)]) != whole


def test_sums_of_many_tensors_and_of_one_longer_than_a_piece(monkeypatch):
    words = torch.randint(-(2**31), 2**31 - 1, (5 * ROW + 17,), dtype=torch.int32)
    whole = sums([words])
    assert len(whole) == 6
    parts = words.split([0, 3, 2 * ROW, 1, len(words) - 2 * ROW - 4])
    assert sums(parts) == whole
    monkeypatch.setattr("fastdiff.engine.checksum.PIECE", 2 * ROW)
    assert sums([words]) == whole
    far = words.clone()
    far[-1] += 1
    assert sums([far])[:-1] == whole[:-1] and sums([far]) != whole
    assert sums([]) == []

"""The plans of `fastdiff bench`, and how options narrow them."""

import pytest

from fastdiff.bench.case import Kind
from fastdiff.bench.networks import FOREIGN
from fastdiff.bench.plans import ON_REQUEST, plan
from fastdiff.errors import InputError


def test_the_quick_plan():
    cases = plan("quick", "cpu")
    assert [(case.kind, case.network, case.what) for case in cases] == [
        (kind, name, what)
        for kind, what in ((Kind.EVALUATION, ""), (Kind.SAMPLING, "ddim 25"))
        for name in ("A28@28", "B@16")
    ]
    assert {(case.device, case.batch, case.threads, case.dtype) for case in cases} == {("cpu", 1, 1, "float32")}


def test_the_standard_plan_has_every_kind_and_the_published_loops():
    cases = plan("standard", "cpu")
    assert {case.kind for case in cases} == set(Kind) - set(ON_REQUEST)
    for network, published in (("A28@28", "ddpm 200"), ("B@16", "ddpm_large 500")):
        mine = [case for case in cases if case.network == network]
        assert {case.what for case in mine if case.kind == Kind.SAMPLING} == {
            "ddim 25",
            "ddim 50",
            "dpmpp_2m 15",
            published,
        }
        assert {case.batch for case in mine if case.kind == Kind.EVALUATION} == {1, 4, 16}
        assert {case.batch for case in mine if case.kind in (Kind.EXPORT, Kind.COLD)} == {1}


@pytest.mark.parametrize("name", ["quick", "standard"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_plan_has_a_case_twice(name, device):
    cases = plan(name, device)
    assert len({case.key for case in cases}) == len(cases)
    assert len({case.label for case in cases}) == len(cases)
    assert {case.device for case in cases} == {device} and min(case.rounds for case in cases) > 1


def test_cuda_has_large_batches_and_16_bits_and_needs_no_gpu_to_say_so():
    cases = plan("standard", "cuda")
    assert {case.batch for case in cases if case.kind == Kind.EVALUATION} == {1, 64, 256, 1024}
    assert {case.dtype for case in cases} == {"bfloat16", "float32"}
    assert Kind.EXPORT not in {case.kind for case in cases}  # which uses no GPU
    assert {case.batch for case in cases if case.kind == Kind.TRAINING} == {128}


def test_networks_that_are_named_are_measured_in_place_of_the_shipped_ones():
    cases = plan("standard", "cpu", networks=("A64@64", "B@16"))
    assert {case.network for case in cases} == {"A64@64", "B@16"}
    mine = [case for case in cases if case.network == "A64@64"]
    assert {case.kind for case in mine} == set(Kind) - {*ON_REQUEST, Kind.COLD}  # it does not ship


def test_foreign_networks_are_measured_against_eager_alone():
    cases = plan("standard", "cpu", only=("against eager",))
    assert {case.kind for case in cases} == {Kind.EAGER} and {case.dtype for case in cases} == {"float32"}
    found = {name: [case.batch for case in cases if case.network == name] for name in ("A28@28", "B@16", *FOREIGN)}
    assert found == {name: [1, 8] if name in FOREIGN else [1, 4, 16, 1, 1] for name in found}  # the last: with noise
    assert len(cases) == sum(map(len, found.values()))
    some = plan("standard", "cpu", networks=("edm@32", "A64@28"), only=("against eager",))
    assert {case.network for case in some} == {"edm@32", "A64@28"}
    whole = plan("standard", "cpu", networks=("edm@32", "A64@28"), only=("evaluation", "operator", "profile"))
    assert {case.network for case in whole} == {"A64@28"}
    for name in ("quick", "standard"):
        with pytest.raises(InputError, match="no case for 'edm@32'; its kinds: none; on request: .*against eager"):
            plan(name, "cpu", networks=("edm@32",))


def test_several_threads_are_measured_against_one_where_they_are_asked_for():
    cases = plan("standard", "cpu", only=("threads",))
    assert {(case.kind, case.threads) for case in cases} == {(Kind.THREADS, 2)}
    assert {(case.network, case.what, case.batch) for case in cases} == {
        (name, what, batch)
        for name in ("A28@28", "B@16")
        for what, batch in (("ddim 10", 16), ("ddim 10", 64), ("ddim 25 busy", 64))
    }
    assert len(plan("standard", "cpu", only=("threads busy B@16",))) == 1
    assert {case.threads for case in plan("standard", "cpu", (4,), only=("threads",))} == {4}
    with pytest.raises(InputError, match="no case for 'threads'"):
        plan("standard", "cuda", only=("threads",))


def test_batches_narrow_threads_and_dtypes_multiply():
    cases = plan("standard", "cpu", (1, 2), ("B@16",), (4,), ("float32", "float16"), ("evaluation",))
    assert [(case.dtype, case.threads) for case in cases] == [(d, n) for d in ("float32", "float16") for n in (1, 2)]
    assert {(case.network, case.batch, case.kind) for case in cases} == {("B@16", 4, Kind.EVALUATION)}
    assert len(plan("quick", "cpu", (2, 2), dtypes=("float32", "float32"))) == len(plan("quick", "cpu"))
    assert {case.rounds for case in plan("quick", "cpu", rounds=3)} == {3}


@pytest.mark.parametrize(
    "words, kept",
    [
        (("evaluation",), {"evaluation A28@28 batch 1", "evaluation B@16 batch 1"}),
        (("sampling B@16",), {"sampling B@16 ddim 25 batch 1"}),
        (("B@16  SAMPLING",), {"sampling B@16 ddim 25 batch 1"}),
        (("ddim a28",), {"sampling A28@28 ddim 25 batch 1"}),
        (("evaluation a28", "sampling b@16"), {"evaluation A28@28 batch 1", "sampling B@16 ddim 25 batch 1"}),
        (("evaluation b@16 float32",), {"evaluation B@16 batch 1"}),
    ],
)
def test_only_keeps_cases_that_have_all_of_some_words(words, kept):
    assert {case.label for case in plan("quick", "cpu", only=words)} == kept

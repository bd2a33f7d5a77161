"""The plans of `fastdiff bench`, and how options narrow them."""

import pytest
import torch

from fastdiff import InputError
from fastdiff.bench import networks
from fastdiff.bench.case import Kind
from fastdiff.bench.plans import ON_REQUEST, plan

CPU = torch.device("cpu")


def test_the_quick_plan():
    cases = plan("quick", "cpu")
    assert {case.network for case in cases} == {"A28@28", "B@16"} == set(networks.SHIPPED)
    assert {(case.kind, case.what, case.batch) for case in cases} == {
        (Kind.EVALUATION, "", 1),
        (Kind.SAMPLING, "ddim 25", 1),
    }
    assert len(cases) == 4
    assert all(case.device == "cpu" and case.threads == 1 and case.dtype == "float32" for case in cases)


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


@pytest.mark.parametrize("name", ["quick", "standard", "full"])
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


def test_the_full_plan_has_every_network_and_all_of_the_standard_plan():
    full = plan("full", "cpu")
    assert {case.network for case in full} == set(networks.NETWORKS)
    assert {case.key for case in plan("standard", "cpu")} < {case.key for case in full}


def test_of_two_equal_cases_the_first_stays():
    rounds = {case.key: case.rounds for case in plan("full", "cpu")}
    assert all(rounds[case.key] == case.rounds for case in plan("standard", "cpu"))


def test_networks_and_batches_narrow_threads_and_dtypes_multiply():
    cases = plan("standard", "cpu", (1, 2), ("B@16",), (4,), ("float32", "float16"), ("evaluation",))
    assert [(case.threads, case.dtype) for case in cases] == [
        (1, "float32"),
        (2, "float32"),
        (1, "float16"),
        (2, "float16"),
    ]
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


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("slow", {}, ("plan 'slow'", "quick, standard, full")),
        ("quick", {"networks": ("A29@28",)}, ("network 'A29@28'", *networks.NETWORKS)),
        ("quick", {"dtypes": ("float8",)}, ("dtype 'float8'", "float32, bfloat16, float16")),
        ("quick", {"batches": (0,)}, ("batch = 0", "1 or more")),
        ("quick", {"threads": (-2,)}, ("threads = -2", "1 or more")),
        ("quick", {"rounds": 0}, ("rounds = 0", "1 or more")),
        ("quick", {"only": ("training",)}, ("'training'", "evaluation B@16 batch 1", "sampling A28@28 ddim")),
        ("quick", {"batches": (7,)}, ("7", "batch 1")),
        ("quick", {"networks": ("A64@64",)}, ("A64@64", "A28@28", "B@16")),
        ("quick", {"only": ("evaluation x",)}, ("'evaluation x'", "sampling B@16 ddim 25 batch 1")),
    ],
)
def test_what_no_plan_has_is_named_with_what_is_accepted(name, options, words):
    with pytest.raises(InputError) as refusal:
        plan(name, "cpu", **options)
    for word in words:
        assert word in str(refusal.value)

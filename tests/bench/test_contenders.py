"""The contenders on tiny networks: each computes what the reference does, and what is wrong or missing is a row that
says so; torch.compile's cache, and the published loops."""

import copy
import os
import sys
from dataclasses import replace

import pytest
import torch

import fastdiff
from fastdiff import AnnotatedUnet, ContextUnet, InputError, load
from fastdiff.bench import compiling, networks, parity, runner, session, tables, timing
from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import Role, Status
from fastdiff.bench.contenders import evaluations, exports, samplings
from fastdiff.bench.contenders.by_kind import CONTENDERS
from fastdiff.bench.peers import others, predictors
from fastdiff.bench.peers.edm import SongUNet
from fastdiff.bench.peers.guided import UNetModel
from fastdiff.bench.peers.reference import CourseLoop
from fastdiff.engine.forms import FORMS

CPU = torch.device("cpu")
COMPILED = ["torch.compile", "torch.compile, max-autotune"]
PLAIN = ["reference", "eager, tuned", *COMPILED, "ONNX Runtime"]
DIFFUSERS = "diffusers' scheduler"
OTHERS = ["diffusers' UNet2DModel", "denoising-diffusion-pytorch's Unet"]
ONNXRUNTIME = predictors.onnxruntime  # itself, which `stubbed` replaces


def ours() -> list[str]:
    """fastdiff's contenders on this CPU, in float32."""
    names = [form.name for form in FORMS.values() if form.build_error(CPU, torch.float32) is None]
    return ["fastdiff", *(f"fastdiff, {name}" for name in names[1:])]


def measured(*cases, cold=True):
    return runner.measure(cases, cold, together=True)


def case(kind, network="B@16", what="", batch=2, **more):
    return Case(kind, network, what, batch, rounds=1, **more)


def by_name(rows):
    return {row["contender"]: row for row in rows}


def notes(rows):
    return {row["contender"]: tables.why(row) for row in rows if row["status"] != Status.MEASURED}


@pytest.fixture
def keep_only(monkeypatch):
    """(kind, names) → of that kind's contenders only these are left."""

    def keep(kind, *names):
        whole = CONTENDERS[kind]
        monkeypatch.setitem(CONTENDERS, kind, lambda *given: [one for one in whole(*given) if one.name in names])

    return keep


EXPECTED = {
    Kind.STEP: ["reference", "torch.compile", DIFFUSERS, "fastdiff"],
    Kind.EVALUATION: [*PLAIN, *ours(), *OTHERS],
    Kind.SAMPLING: [*PLAIN, DIFFUSERS, *ours(), *OTHERS],
    Kind.TRAINING: ["reference", "eager, tuned", "torch.compile", "fastdiff"],
    Kind.EAGER: ["fastdiff, eager", "ONNX Runtime", "fastdiff"],
}
CASES = [
    *(case(Kind.STEP, network, what) for network in ("A28@28", "B@16") for what in ("ddim", "ddpm")),
    *(case(Kind.EVALUATION, network) for network in ("A28@28", "B@16")),
    *(case(Kind.SAMPLING, network, what) for network in ("A28@28", "B@16") for what in ("ddim 5", "dpmpp_2m 5")),
    case(Kind.SAMPLING, "A28@28", "ddpm 25"),
    case(Kind.SAMPLING, "B@16", "ddpm_large 25"),
    case(Kind.TRAINING, "A28@28", batch=3),
    case(Kind.TRAINING, "B@16", batch=6),
    *(case(Kind.EAGER, network, "ddim 5") for network in ("A28@28", "B@16")),
]


@pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
def test_every_contender_agrees_with_the_reference(case, stubbed, keep_only):
    if case.kind in (Kind.STEP, Kind.SAMPLING):
        pytest.importorskip("diffusers")
    expected = EXPECTED[case.kind]
    if case.what.endswith(" 25"):  # whole schedules take long; who calls a network in the same loop does so in others
        expected = ["reference", "eager, tuned", DIFFUSERS, *ours()]
        keep_only(case.kind, *expected)
    rows = measured(case)
    assert [row["contender"] for row in rows] == expected
    assert notes(rows) == {}
    for row in rows:
        assert row["median_seconds"] > 0 and len(row["seconds"]) == 1 and row["first_seconds"] > 0
        if row["role"] == Role.OTHER_NETWORK:
            assert "parity" not in row and row["parameters"] == 1000 and row["gflop_of_an_image"] == 0
            continue
        assert row["parity"] <= row["bound"] == parity.BOUNDS[case.kind] and row["share_of_limit"] > 0
        assert ("images_per_second" in row) == (case.kind in (Kind.SAMPLING, Kind.TRAINING, Kind.EAGER))
    assert rows[0]["parity"] == 0 and rows[0]["ratio"] == [1, 1, 1]
    # The others compute by another path: equality to the bit would mean that the reference was compared with itself.
    assert case.kind == Kind.TRAINING or 0 < by_name(rows)["fastdiff"]["parity"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_are_compared_with_wide_bounds_and_the_reference_is_float32(dtype, stubbed):
    rows = by_name(measured(case(Kind.EVALUATION, dtype=dtype)))
    assert notes(rows.values()) == {} and rows["reference"]["bound"] == parity.BOUNDS[Kind.EVALUATION]
    assert 1e-4 < rows["fastdiff"]["parity"] < parity.BOUNDS_16[Kind.EVALUATION] == rows["fastdiff"]["bound"]
    assert rows["torch.compile"]["parity"] == 0  # of the published network, float32


@pytest.mark.parametrize("network", ["A28@28", "B@16"])
def test_a_perturbed_weight_is_refused(network, stubbed, monkeypatch):
    """One tensor of the published network is 1% off; a sampler's update alone has no network."""
    published = networks.published

    def spoilt(model):
        network = copy.deepcopy(model.network)
        weights = {"AnnotatedUnet": "final_conv.1.weight", "ContextUnet": "out.3.weight"}
        with torch.no_grad():
            network.get_parameter(weights[type(network).__name__]).mul_(1.01)
        return published(replace(model, network=network))

    monkeypatch.setattr(networks, "published", spoilt)
    kinds = {Kind.EVALUATION: "", Kind.SAMPLING: "ddim 5", Kind.TRAINING: "", Kind.STEP: "ddim"}
    chosen = [case(kind, network, what) for kind, what in kinds.items()]
    among = lambda one: one.role in (Role.REFERENCE, Role.FASTDIFF)  # noqa: E731
    rows = [row for one in chosen for row in runner.Prepared(one, True, among=among).rows.values()]
    own = [row for row in rows if row["role"] == Role.FASTDIFF and row["kind"] != Kind.STEP]
    assert len(own) == 2 * len(ours()) + 1 and "status" not in rows[-1]
    for row in own:
        assert row["status"] == Status.REFUSED and row["parity"] > row["bound"]
        assert row["reason"].startswith("it differs from the reference by ")
        assert row["reason"].endswith(f"more than {row['bound']:.0e}")
    assert session.refused({"rows": own}) == [f"{tables.name_of(row)}: refused: {row['reason']}" for row in own]


def test_diffusers_own_network_is_measured_without_a_claim(small, monkeypatch, keep_only):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(timing, "TURN", 0)
    keep_only(Kind.EVALUATION, "reference", OTHERS[0])
    reference, other = measured(case(Kind.EVALUATION, batch=1))
    assert other["role"] == Role.OTHER_NETWORK and other["parameters"] > 10_000
    # Its own operations, for a batch of one image.
    assert other["gflop"] == other["gflop_of_an_image"] > 0 and other["share_of_limit"] > 0
    assert other["ratio"][0] > 0 and "parity" not in other
    assert tables.cells(other)[0].endswith("(other network)") and tables.cells(other)[-1] == "no claim"
    assert reference["gflop"] > 0


@pytest.mark.slow  # torch's exporter takes long in each
@pytest.mark.parametrize("network", ["A28@28", "B@16"])
def test_exports_are_measured_and_onnxruntime_computes_the_same(network, stubbed):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rows = measured(case(Kind.EXPORT, network, batch=1))
    assert [row["contender"] for row in rows] == ["reference", "fastdiff", "fastdiff, the whole loop"]
    assert notes(rows) == {} and all(row["bytes"] > 1000 for row in rows)
    assert [row.get("parity", 9) < 1e-5 for row in rows] == [True, True, False]
    assert rows[2]["remark"].startswith("nothing to compare")
    x, times = evaluations.inputs(case(Kind.EVALUATION, network))
    reference, theirs = predictors.published(network, CPU), ONNXRUNTIME(network, CPU, 1)
    for at in times:
        one, two = reference(x, at), theirs(x, at)
        assert float((one - two).norm() / one.norm()) < 1e-5


def test_what_is_missing_says_how_to_install_it(stubbed, monkeypatch):
    for name in ("diffusers", "onnxruntime", "denoising_diffusion_pytorch"):
        for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)
    whole = {name: getattr(sys.modules["fastdiff.bench.peers.others"], name) for name in ("diffusers", "lucidrains")}
    monkeypatch.setattr(others, "diffusers_unet", lambda *given: whole["diffusers"]())
    monkeypatch.setattr(others, "lucidrains_unet", lambda *given: whole["lucidrains"]())
    monkeypatch.setattr(predictors, "onnxruntime", ONNXRUNTIME)
    install = {
        "ONNX Runtime": "InputError: ONNX Runtime is not installed (import of onnxruntime halted; None in sys.modules)"
        "; pip install '.[onnx]' in the clone of fastdiff, or [onnx-gpu] for a GPU",
        DIFFUSERS: "ImportError: diffusers is not installed; pip install diffusers",
        OTHERS[0]: "ImportError: diffusers is not installed; pip install diffusers",
        OTHERS[1]: f"ImportError: {others.LUCIDRAINS}",
    }
    rows = measured(case(Kind.EVALUATION))
    assert notes(rows) == {name: text for name, text in install.items() if name != DIFFUSERS}
    assert notes(measured(case(Kind.SAMPLING, what="ddim 5"))) == install
    assert notes(measured(case(Kind.STEP, what="ddim"))) == {DIFFUSERS: install[DIFFUSERS]}


@pytest.mark.parametrize(
    "network, package, said",
    [
        ("unet2d@32", "diffusers", "diffusers is not installed; pip install diffusers"),
        ("lucidrains@32", "denoising_diffusion_pytorch", others.LUCIDRAINS),
    ],
)
def test_a_foreign_network_without_its_package_is_a_row_that_says_so(network, package, said, monkeypatch):
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(networks, "load", networks.load.__wrapped__)  # one that was made before would do
    rows = measured(case(Kind.EAGER, network, "ddim 5"))
    assert [(row["status"], row["reason"]) for row in rows] == [(Status.MISSING, said[:120])] * 3
    assert session.refused({"rows": rows}) == []


def test_an_export_without_onnxruntime_says_how_to_install_it(stubbed, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("_by_torch", "_network", "_loop"):
        monkeypatch.setattr(exports, name, lambda case, path, name=name: path.write_text(name))
    rows = measured(case(Kind.EXPORT, batch=1))
    assert "pip install" in rows[0]["reason"] and rows[0]["status"] == Status.MISSING


# --- torch.compile ---
def test_nothing_that_was_not_compiled_before_is_compiled_in_a_quick_run(stubbed, keep_only):
    def cold(kind=Kind.EVALUATION, what="", compile=False, **more):
        """Those that were not compiled before."""
        rows = measured(case(kind, what=what, **more), cold=compile)
        said = f"ColdCacheError: {compiling.COLD}"
        return [row["contender"] for row in rows if row["status"] == Status.NOT_COMPILED and tables.why(row) == said]

    for kind in (Kind.EVALUATION, Kind.STEP):
        keep_only(kind, "reference", *COMPILED)
    assert cold() == COMPILED and cold(Kind.STEP, "ddim") == COMPILED[:1]
    for compile in (True, False):
        assert cold(compile=compile) == cold(Kind.STEP, "ddim", compile=compile) == []
    # Another batch, other threads, another precision: other code. The published network stays float32.
    assert cold(batch=3) == cold(threads=2) == COMPILED and cold(dtype="bfloat16") == COMPILED[1:]


@pytest.mark.slow  # a compilation
def test_torch_compile_itself_is_measured(small, monkeypatch, tmp_path):
    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiling.folder()))
    row = by_name(measured(case(Kind.STEP, what="ddim")))["torch.compile"]
    assert "reason" not in row and row["parity"] < 1e-5
    assert compiling.marker(("step", "ddim", 2, 3, 16, 16, "cpu", 1), None).exists()


def test_the_mark_is_made_by_the_first_call_that_succeeds(compiler):
    def failing(x):
        raise RuntimeError("no compiler")

    made = compiling.compiled(failing, ("a",), None, cold=True)
    with pytest.raises(RuntimeError, match="no compiler"):
        made(1)
    assert not compiling.marker(("a",), None).exists()
    made = compiling.compiled(abs, ("a",), None, cold=True)
    assert not compiling.marker(("a",), None).exists()  # torch.compile itself compiles nothing
    assert made(-1) == 1 and compiling.marker(("a",), None).exists()
    assert compiling.compiled(abs, ("a",), None, cold=False)(-2) == 2


def test_marks_are_of_a_key_a_mode_a_version_and_a_device(compiler, monkeypatch):
    marks = {compiling.marker(key, mode) for key in (("a", 1), ("a", 2), ("b", 1)) for mode in (None, "max-autotune")}
    assert len(marks) == 6 and all(mark.is_relative_to(compiler) for mark in marks)
    assert compiling.marker(("a", 1), None) in marks
    for where, name, other in ((torch, "__version__", "9.9"), (compiling, "device_name", lambda device: "another")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, other)
            assert compiling.marker(("a", 1), None) not in marks


def test_the_compiler_is_told_to_keep_its_results_and_every_size_is_static(compiler, monkeypatch):
    compiling.use_folder()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(compiling.folder()) == str(compiler / "bench" / "inductor")
    asked = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: asked.append(options) or call)
    compiling.compiled(abs, ("a",), "max-autotune", cold=True)
    assert asked == [{"mode": "max-autotune", "dynamic": False}]
    assert torch._dynamo.config.fail_on_recompile_limit_hit and torch._dynamo.config.recompile_limit >= 1000


# --- the loops that others are compared with ---
@pytest.mark.parametrize(
    "network, what",
    [
        ("A28@28", "ddpm 25"),
        ("B@16", "ddpm_large 25"),
        *(
            (network, what)
            for network in ("A28@28", "B@16")
            for what in ("ddim 10", "ddim 1", "dpmpp_2m 7", "dpmpp_2m 2")
        ),
    ],
)
def test_the_published_loops_are_fastdiffs(network, what, small, rel):
    one = case(Kind.SAMPLING, network, what)
    drawn = torch.randn(30, 2, *one.model.image_shape, generator=torch.Generator().manual_seed(5))
    images = samplings.published_loop(one)(predictors.published(network, CPU), drawn.__getitem__)
    source = lambda draw, first, shape: drawn[draw, first : first + shape[0]]  # noqa: E731
    ours = fastdiff.sample(one.model, 2, one.sampler, steps=one.steps, noise=source, device="cpu", form="eager")
    # float32 roundings of the evaluations and of alphas_cumprod, near 1 at the last node, amplified by the loop.
    assert rel(images, ours) < (1e-4 if one.steps == 25 else 2e-5)


def test_the_courses_tables_move_together():
    loop = CourseLoop(50)
    assert loop.to(torch.device("meta")) is loop
    assert all(table.is_meta for table in (loop.b_t, loop.a_t, loop.ab_t))


def test_a_loop_that_nobody_published_is_refused(small):
    for network, what in (("B@16", "ddpm 25"), ("A28@28", "ddpm 10"), ("A28@28", "ddpm_large 25")):
        with pytest.raises(InputError, match=f"{what} is published for no network like this one"):
            samplings.published_loop(case(Kind.SAMPLING, network, what))


def test_the_networks_by_name():
    assert [networks.load(name).image_shape for name in networks.SHIPPED] == [(1, 28, 28), (3, 16, 16)]
    assert {name: type(load(model).network) for name, model in networks.SHIPPED.items()} == {
        "A28@28": AnnotatedUnet,
        "B@16": ContextUnet,
    }
    made = networks.load("A28@32")
    assert made.image_shape == (3, 32, 32) and made.network.options["dim"] == 28
    before = torch.get_rng_state()
    again = networks.load.__wrapped__("A28@32")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(made.network.parameters(), again.network.parameters(), strict=True))
    assert {type(networks.load(name).network) for name in ("guided@32", "edm@32")} == {UNetModel, SongUNet}
    for name in ("A28", "A28@29", "C@16", "", "A28@28 "):
        with pytest.raises(InputError, match="accepted: A28@28, .*B@16"):
            networks.load(name)

"""Every block of README.md and docs/ runs: Python and commands as they stand, in order, but for smaller numbers."""

import functools
import http.server
import pickle
import re
import shlex
import shutil
import threading
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image

import fastdiff
import fastdiff.export
from fastdiff.bench.peers.edm import Precond
from fastdiff.cli.main import main
from fastdiff.networks.lucidrains import LucidrainsUnet
from fastdiff.networks.openai import OpenaiUnet

CLASSES = ("monster", "player", "item", "spell", "dungeon")
# What a page's Python would take minutes for.
SMALLER = {
    "README.md": {
        "sample(model, 64)": "sample(model, 4)",
        "steps=50": "steps=2",
        "batch_size=256": "batch_size=4",
        "100_000": "8",
    },
    "many-samples.md": {"batch_size=256": "batch_size=4", "100_000": "8"},
}
# Options that make a command small; the last one given counts.
FEWER = {"sample": "-n 4 --steps 2", "sample sampler.onnx": "-n 4", "train": "--epochs 1 --batch-size 8 --timesteps 4"}
# Only parsed: they need a data set, Chromium, minutes, or are run once for all pages (exported).
PARSED = (["bench"], ["eval"], ["export"], ["train", "-o", "runs/garments"])
LANGUAGES = {"python", "bash", "js"}
PAGES = [Path("README.md"), *sorted(Path(__file__).parents[2].glob("docs/*.md"))]


def commands(block: str) -> list[str]:
    """The lines of a block, without comments and redirections."""
    return [line for line in (re.sub(r"\s+(#|>>?\s).*", "", text) for text in block.splitlines()) if line]


def words_of(line: str) -> list[str] | None:
    """What follows `fastdiff` in a line, also in a launcher's and in $(...); None in other lines."""
    inner = re.search(r"\$\((fastdiff [^)]*)\)", line)
    words = shlex.split(inner[1] if inner else line)
    if words[0] in ("torchrun", "accelerate"):
        words = words[words.index("-m") + 1 :]
    return words[1:] if words[0] == "fastdiff" else None


def parse(words: list[str]) -> None:
    command = main
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    assert command is not main, words
    command.make_context(command.name, list(words))


def invoke(words: list[str]) -> None:
    name = words[0] + (" sampler.onnx" if words[1:2] == ["sampler.onnx"] else "")
    fewer = shlex.split(FEWER.get(name, ""))
    if "--resume" in words:
        fewer = ["--epochs", "2"] if "--epochs" in words else []
    elif name == "train":
        fewer += ["--n-feat", "8"] if "course" in words else ["--dim", "8"]
    result = CliRunner().invoke(main, [*words, *fewer], catch_exceptions=False)
    assert result.exit_code == 0, f"fastdiff {shlex.join([*words, *fewer])}\n{result.output}"


def shrunk(name: str, code: str) -> str:
    for given, smaller in SMALLER.get(name, {}).items():
        code = code.replace(given, smaller)
    return code


@pytest.fixture(scope="module")
def exported(pages, tmp_path_factory):
    """sampler.onnx, by the very command of docs/export.md with fewer steps."""
    pytest.importorskip("onnx")
    (line,) = (line for line in commands(pages["export.md"].all("bash")[0]) if line.endswith("-o sampler.onnx"))
    path = tmp_path_factory.mktemp("exported") / "sampler.onnx"
    words = [*words_of(line)[:-1], str(path), "--steps", "2"]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch, randomised, conditional):
    """A working folder with the files that a reader is taken to have."""
    monkeypatch.chdir(tmp_path)
    annotated = randomised(fastdiff.AnnotatedUnet(dim=8, dim_mults=(1, 2, 4)))
    torch.save(annotated.state_dict(), "my_tutorial_model.pt")
    torch.save(randomised(fastdiff.ContextUnet(3, 8, 5, 16)).state_dict(), "my_course_model.pth")
    unet = randomised(LucidrainsUnet(8, dim_mults=(1, 2))).state_dict()
    buffers = {"betas": torch.linspace(1e-4, 0.02, 1000), "loss_weight": torch.ones(1000)}
    torch.save({"step": 10, "model": {**buffers, **{f"model.{k}": v for k, v in unet.items()}}}, "model-10.pt")
    mnist = randomised(fastdiff.ContextUnet(1, 8, 10, 28, edition="mnist")).state_dict()
    alphabar = {"alphabar_t": (1 - torch.linspace(1e-4, 0.02, 11)).cumprod(0)}
    torch.save({**alphabar, **{f"nn_model.{k}": v for k, v in mnist.items()}}, "model_19.pth")
    with open("edm-cifar10-32x32-uncond-vp.pkl", "wb") as file:
        pickle.dump({"ema": Precond(randomised(fastdiff.ContextUnet(3, 8, 1, 32)).eval(), 32)}, file)
    classes = OpenaiUnet(3, 32, 6, 1, (1, 2), (), num_classes=5, resblock_updown=True)
    torch.save(randomised(classes).state_dict(), "ema_0.9999_250000.pt")
    saved = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    fastdiff.save(fastdiff.from_diffusers(conditional, DDIMScheduler()), "my_text_model.safetensors")
    np.save("tokens.npy", np.zeros((5, 12), np.float32))
    DDIMPipeline(unet=randomised(saved), scheduler=DDIMScheduler()).save_pretrained("my-ddpm-folder")
    random = np.random.default_rng(0)
    for name in ("my_pictures", "more"):
        (tmp_path / name).mkdir()
        for k in range(12):
            Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / name / f"{k}.png")
    (tmp_path / "scans").mkdir()
    for k in range(12):
        Image.fromarray(random.integers(0, 4096, (16, 16), np.uint16)).save(tmp_path / "scans" / f"{k}.png")
    np.save("sprites.npy", random.integers(0, 256, (20, 16, 16, 3), np.uint8))
    np.save("labels.npy", np.eye(5, dtype=np.float32)[np.arange(20) % 5])
    Image.fromarray(random.integers(0, 256, (40, 30, 3), np.uint8)).save("cat.png")
    Image.fromarray(np.uint8(random.integers(0, 2, (16, 16)) * 255)).save("mask.png")
    return tmp_path


@pytest.fixture
def network(randomised):
    """The reader's own, of 3 x 32 x 32."""
    return randomised(fastdiff.AnnotatedUnet(dim=8, channels=3)).eval()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_readme_runs(pages, folder, network, request):
    run(pages["README.md"], folder, network, request)


@pytest.mark.slow  # a minute together
@pytest.mark.parametrize("name", [path.name for path in PAGES if path.name != "README.md"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_page_runs(name, pages, folder, network, request):
    run(pages[name], folder, network, request)


def run(page, folder, network, request) -> None:
    """Every block of the page, in order."""
    name = page.path.name
    if "sampler.onnx" in page.text:
        shutil.copy(request.getfixturevalue("exported"), folder)
    names: dict = {"network": network, "pipeline": DDIMPipeline.from_pretrained("my-ddpm-folder")}
    for language, code in page.blocks:
        if language == "python":
            code = shrunk(name, code)
            exec(compile(code, name, "exec"), names)
            for value, shape in re.findall(r"^(\w+)\.shape  # (\([\d, ]+\))", code, re.MULTILINE):
                assert str(tuple(names[value].shape)) == shape
        elif language == "bash":
            for line in commands(code):
                words = words_of(line)
                if words is not None and not any(words[: len(begin)] == begin for begin in PARSED):
                    invoke(words)


def test_every_block_is_of_a_kind_that_runs(page):
    assert page.text.count("```") == 2 * len(page.blocks)
    assert {language for language, _ in page.blocks} <= LANGUAGES


def test_every_command_parses(page):
    for block in page.all("bash"):
        for line in commands(block):
            words = words_of(line)
            if words is not None:
                parse(words)


def test_what_is_replaced_is_there(pages):
    for name, smaller in SMALLER.items():
        assert all(given in pages[name].text for given in smaller)


def test_what_is_installed_is_there(page, root):
    """From a clone, for the package is not published; extras and targets that exist."""
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    makefile = (root / "Makefile").read_text()
    for given in re.findall(r"pip install ([^`\n]*)", page.text):
        what = shlex.split(given, comments=True)
        assert what[-1].startswith("."), given
        assert set(filter(None, re.findall(r"\[(.*)\]", what[-1]))) <= extras.keys()
        assert "-c" not in what or (root / what[what.index("-c") + 1]).is_file()
    for target in re.findall(r"`make ([a-z0-9-]+)", page.text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


# --- JavaScript, in Chromium ---

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_chromium = pytest.mark.skipif(
    not (CHROMIUM and shutil.which("chromedriver")), reason="no chromium, or no chromedriver, in the PATH"
)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking"
)


@pytest.fixture
def browse(tmp_path):
    """(folder, page) → a browser that shows the page from a plain static server."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the page is used through selenium")
    open_ones = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    def start(folder, name=""):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(service=webdriver.ChromeService(shutil.which("chromedriver")), options=options)
        open_ones.append((server, driver))
        driver.set_script_timeout(120)
        driver.get(f"http://127.0.0.1:{server.server_port}/{name}")
        return driver

    yield start
    for server, driver in open_ones:
        driver.quit()
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@in_chromium
def test_the_javascript_of_the_export(pages, exported, browse, root, tmp_path):
    """With the page's own copy of onnxruntime-web, under the name that the block imports."""
    (block,) = pages["export.md"].all("js")
    site = tmp_path / "site"
    site.mkdir()
    for path in (exported, *(root / "export/page").glob("ort*")):
        shutil.copy(path, site)
    (site / "index.html").write_text(
        '<script type="importmap">{"imports": {"onnxruntime-web": "./ort.js"}}</script>'
        f'<script type="module">{block}; window.drawn = [images.dims, Array.from(images.data)]</script>'
    )
    browser, deadline = browse(site), time.monotonic() + 120
    while (drawn := browser.execute_script("return window.drawn")) is None:
        assert time.monotonic() < deadline, browser.get_log("browser")
        time.sleep(0.1)
    shape, values = drawn
    assert shape == [16, 3, 16, 16]
    model = fastdiff.load("sprites")
    options = dict(context={"item": 1}, guidance_scale=2, form="eager")
    expected = fastdiff.sample(model, 16, "ddpm_large", steps=2, **options).numpy()
    assert np.abs(np.reshape(values, shape) - expected).max() < 1e-3  # the page says why not 1e-4


@pytest.mark.slow
@in_chromium
def test_the_javascript_of_the_page(pages, browse, randomised, tmp_path):
    (block,) = pages["browser.md"].all("js")
    network = randomised(fastdiff.ContextUnet(3, 8, 5, 16)).eval()
    with torch.no_grad():
        for value in network.state_dict().values():  # as the page stores them
            if value.is_floating_point():
                value.copy_(value.half().float())
    schedule = fastdiff.make_schedule("course", 20)
    model = fastdiff.Model(network, schedule, image_shape=(3, 16, 16), time="fraction", class_names=CLASSES)
    fastdiff.export.export_page(model, tmp_path / "page", "tiny", weights="float16")
    browser, deadline = browse(tmp_path / "page"), time.monotonic() + 60
    while not browser.find_element("id", "sample").is_enabled():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    shape, values = browser.execute_async_script(
        "const [finish] = arguments;"
        f"(async () => {{ {block}; finish([shape, Array.from(images)]); }})()"
        ".catch((error) => finish([String(error), []]));"
    )
    assert shape == [4, 3, 16, 16]
    expected = fastdiff.sample(model, 4, "ddim", steps=10, seed=9, context={"item": 1}, form="eager").numpy()
    assert np.abs(np.reshape(values, shape) - expected).max() <= 1e-4 * max(1, np.abs(expected).max())

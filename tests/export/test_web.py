"""The page of `fastdiff export --web`, used in headless Chromium from a plain static server."""

import functools
import http.server
import json
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff
import fastdiff.export
from fastdiff.export.web import FILES
from fastdiff.images import grid, to_uint8
from fastdiff.samplers.samplers import DEFAULT, STEPS

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason=f"the page's model is an ONNX file, which needs {package}")
webdriver = pytest.importorskip("selenium.webdriver", reason="the page is used through selenium")
screenshot = pytest.importorskip("fastdiff.bench.screenshot")
Select = pytest.importorskip("selenium.webdriver.support.ui").Select

CHROMIUM, CHROMEDRIVER = screenshot.CHROMIUM, screenshot.CHROMEDRIVER
pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="no chromium, or no chromedriver, in the PATH")


@dataclass
class Site:
    """A page on a plain static server, and the model it was made from."""

    model: fastdiff.Model
    folder: str
    url: str
    requests: list = field(default_factory=list)  # (path, status)
    missing: set = field(default_factory=set)  # paths that the server does not find


class Handler(http.server.SimpleHTTPRequestHandler):
    site: Site

    def send_head(self):
        if self.path in self.site.missing:
            return self.send_error(404)
        return super().send_head()

    def log_request(self, code="-", size="-"):
        self.site.requests.append((self.path, int(code)))

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def serve():
    servers = []

    def start(model, folder):
        handler = type("SiteHandler", (Handler,), {})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
        handler.site = Site(model, str(folder), f"http://127.0.0.1:{server.server_port}/")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return handler.site

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Plain(torch.nn.Module):
    """A network without contexts, quick to export."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x) + 0.01 * t[:, None, None, None]


def export(model, folder):
    """The page of a model whose weights are first rounded to the file's."""
    with torch.no_grad():
        for value in model.network.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half().float())
    fastdiff.export.export_page(model, folder, "tiny", weights="float16")
    return folder


@pytest.fixture(scope="module")
def site(serve, randomised, tmp_path_factory):
    torch.manual_seed(0)
    network = randomised(fastdiff.ContextUnet(3, 8, 4, 16)).eval()
    names = ("hero", "food", "spell", "side")
    model = fastdiff.Model(
        network, fastdiff.make_schedule("course", 100), image_shape=(3, 16, 16), time="fraction", class_names=names
    )
    return serve(model, export(model, tmp_path_factory.mktemp("web") / "page"))


@pytest.fixture(scope="module")
def plain_site(serve, randomised, tmp_path_factory):
    """Of a model without contexts, with integer timesteps and gray images; one of its samplers is broken."""
    torch.manual_seed(0)
    model = fastdiff.Model(randomised(Plain()).eval(), fastdiff.make_schedule("linear", 50), image_shape=(1, 8, 8))
    folder = export(model, tmp_path_factory.mktemp("web") / "page")
    page = json.loads((folder / "model.json").read_text())
    page["samplers"]["broken"] = {"5": {"rows": [[1, 0, 1]] * 5, "times": [4, 3, 2, 1, 0]}}
    (folder / "model.json").write_text(json.dumps(page))
    return serve(model, folder)


class Numbered(Plain):
    """Takes a class number."""

    def __init__(self):
        super().__init__()
        self.label = torch.nn.Embedding(4, 1)

    def forward(self, x, t, label):
        return super().forward(x, t) + self.label(label)[..., None, None]


@pytest.fixture(scope="module")
def numbers_site(serve, randomised, tmp_path_factory):
    """Of a model that takes class numbers, of which the last stands for no class."""
    torch.manual_seed(0)
    schedule, more = fastdiff.make_schedule("linear", 50), dict(num_classes=4, null_class=3)
    network = randomised(Numbered()).eval()
    with torch.no_grad():
        network.label.weight.mul_(0.2)  # so that guided images are not all white
    model = fastdiff.Model(network, schedule, image_shape=(1, 8, 8), **more)
    return serve(model, export(model, tmp_path_factory.mktemp("web") / "page"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = screenshot.chromium(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


class Page:
    """The page as someone uses it. It is loaded unless it is there already: that takes longer than most runs."""

    def __init__(self, browser, url, fresh=False, ready=True):
        self.browser = browser
        if fresh or browser.current_url.partition("#")[0] != url:
            browser.get("about:blank")  # else an address that differs in its hash alone would not load anew
            browser.get(url)
        if ready:
            self.until(lambda: self.at("sample").is_enabled())

    def at(self, name):
        return self.browser.find_element("id", name)

    def text(self, name):
        return self.at(name).text

    def run(self, script):
        return self.browser.execute_script(script)

    def until(self, what):
        deadline = time.monotonic() + 60
        while not what():
            assert time.monotonic() < deadline, self.text("status")
            time.sleep(0.05)

    def set(self, sampler, steps, n, seed, context=(), guidance=1.0):
        Select(self.at("sampler")).select_by_visible_text(sampler)
        for name, value in (("steps", steps), ("number", n)):
            self.browser.find_element("xpath", f"//*[@id='{name}']/label[input[@value='{value}']]").click()
        self.at("seed").clear()
        self.at("seed").send_keys(str(seed))
        for k, weight in enumerate(context):
            self.at(f"class-{k}").send_keys(webdriver.Keys.HOME, *[webdriver.Keys.ARROW_RIGHT] * round(weight / 0.05))
        if context:
            self.at("guidance").send_keys(webdriver.Keys.HOME, *[webdriver.Keys.ARROW_RIGHT] * round(guidance / 0.25))

    def sample(self):
        """Clicks, waits for the end, and gives the floats of the result."""
        self.at("sample").click()
        self.until(lambda: self.at("sample").is_enabled())
        assert self.text("status").startswith("Done: "), self.text("status")
        return self.result()

    def result(self):
        values, shape = self.run("return [Array.from(fastdiff.last.images), fastdiff.last.shape]")
        return np.array(values, np.float32).reshape(shape)

    def canvas(self, n, image_shape):
        """The images' pixels, (n, H, W, 3), as they are on the screen."""
        channels, height, width = image_shape
        data, across = self.run(
            "const c = document.getElementById('canvas');"
            "return [Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data), c.width]"
        )
        sheet, columns = np.array(data).reshape(-1, across, 4), int(np.ceil(np.sqrt(n)))
        corners = [(1 + r // columns * (height + 1), 1 + r % columns * (width + 1)) for r in range(n)]
        tiles = np.stack([sheet[top : top + height, left : left + width] for top, left in corners])
        assert (tiles[..., 3] == 255).all()
        return tiles[..., :3]


def expected(site, n, sampler, steps, **options):
    table = site.model.table(sampler, steps)
    return fastdiff.sample(site.model, n, table, form="eager", device="cpu", **options)


def check(page, ours, theirs):
    """The raw floats, and the pixels on the screen."""
    theirs = theirs.numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * max(1, np.abs(theirs).max())
    assert theirs.std() > 0.1 and (np.abs(theirs) < 1).mean() > 0.3  # else the pixels would tell little
    pixels = to_uint8(torch.from_numpy(theirs)).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(page.canvas(len(theirs), theirs.shape[1:]) - pixels).max() <= 1


def test_the_page_gives_the_images_of_python(browser, site, tmp_path):
    n, seed, mixture, guidance = 4, 2**40 + 7, (1, 0, 0.6, 0), 2.5
    theirs = expected(site, n, "dpmpp_2m_sde", 15, seed=seed, context=mixture, guidance_scale=guidance)
    page = Page(browser, site.url)
    page.set("dpmpp_2m_sde", 15, n, seed, mixture, guidance)
    ours = page.sample()
    check(page, ours, theirs)
    assert "images/s" in page.text("detail")
    assert page.text("command") == (
        f"fastdiff sample tiny -n 4 --seed {seed} --sampler dpmpp_2m_sde --steps 15 "
        "--context hero=1,spell=0.6 --guidance-scale 2.5"
    )

    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.at("download").click()
    file = tmp_path / f"tiny-seed-{seed}.png"
    page.until(file.exists)
    with Image.open(file) as picture:  # what `fastdiff sample` writes
        difference = np.asarray(picture.convert("RGB")).astype(int) - np.asarray(grid(theirs))
    assert np.abs(difference).max() <= 1

    again = Page(browser, browser.current_url, fresh=True)  # the link alone
    assert np.array_equal(again.sample(), ours)


def test_it_starts_with_the_sampler_that_was_measured_best(browser, site):
    page = Page(browser, site.url, fresh=True)
    assert page.at("sampler").get_property("value") == DEFAULT
    assert page.run("return complete().steps") == STEPS


def test_the_chosen_class_is_marked(browser, site):
    page = Page(browser, site.url, fresh=True)

    def pressed():
        return page.run("return [...document.querySelectorAll('[aria-pressed=true]')].map((b) => b.textContent)")

    def color(name):
        return browser.find_element("xpath", f"//button[text()='{name}']").value_of_css_property("background-color")

    assert pressed() == ["hero"]
    browser.find_element("xpath", "//button[text()='food']").click()
    assert pressed() == ["food"] and color("food") != color("hero") == color("spell")
    page.at("class-0").send_keys(webdriver.Keys.ARROW_RIGHT)  # a mixture is no single class
    assert pressed() == []
    page.at("none").click()
    assert pressed() == ["none"]


def test_on_a_phone_there_is_room_for_a_finger(browser, site):
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page = Page(browser, site.url, fresh=True)
        heights = page.run("""
            const touched = [...document.querySelectorAll("button, select, #seed, .pills span, .row input")];
            return touched.filter((e) => e.offsetParent).map((e) => e.getBoundingClientRect().height);
        """)
        assert len(heights) > 20 and min(heights) >= 44
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_single_class_and_no_class(browser, site):
    page = Page(browser, site.url)
    page.set("ddpm", 10, 1, 5, (0.3, 0.3, 0, 0))
    browser.find_element("xpath", "//button[text()='food']").click()
    check(page, page.sample(), expected(site, 1, "ddpm", 10, seed=5, context={"food": 1}))
    page.at("none").click()
    check(page, page.sample(), expected(site, 1, "ddpm", 10, seed=5))
    assert "--context" not in page.text("command")


def test_a_cancelled_run_stops_and_leaves_nothing_behind(browser, site):
    page = Page(browser, site.url)
    page.set("dpmpp_2m_sde", 10, 4, 1, (0, 1, 0, 0))
    undisturbed = page.sample()
    page.set("ddpm", 100, 25, 2, (1, 0, 0, 1), 3)
    page.at("sample").click()
    page.until(lambda: int(page.text("detail").split()[1]) >= 2)
    assert not page.at("sample").is_enabled() and not page.at("download").is_enabled()
    began = time.perf_counter()
    page.at("cancel").click()
    page.until(lambda: page.text("status").startswith("Cancelled after step"))
    assert time.perf_counter() - began < 5
    assert int(page.text("status").split()[3]) < 90
    assert np.array_equal(page.result(), undisturbed)  # the last finished one
    page.set("dpmpp_2m_sde", 10, 4, 1, (0, 1, 0, 0))
    assert np.array_equal(page.sample(), undisturbed)


def test_a_script_may_sample(browser, site):
    page = Page(browser, site.url)
    values, shape, errors = browser.execute_async_script("""
        const [finish] = arguments, errors = [];
        const told = (promise) => promise.catch((error) => errors.push(`${error.name}: ${error.message}`));
        (async () => {
            const options = {n: 3, seed: 9n, first: 2n ** 40n, sampler: "ddpm_large", steps: 5, context: {side: 1}};
            await told(fastdiff.sample({...options, steps: 6}));
            await told(fastdiff.sample({...options, guidance: 3}));
            await told(fastdiff.sample({...options, context: {ham: 1}}));
            const first = told(fastdiff.sample({...options, steps: 100}));
            await told(fastdiff.sample(options));
            fastdiff.cancel();
            await first;
            const {images, shape} = await fastdiff.sample({...options, guidanceScale: 3});
            finish([Array.from(images), shape, errors]);
        })();
    """)
    ours = np.array(values, np.float32).reshape(shape)
    check(page, ours, expected(site, 3, "ddpm_large", 5, seed=9, first=2**40, context={"side": 1}, guidance_scale=3))
    steps, option, name, busy, cancelled = errors
    assert steps == "Error: Steps 6; accepted: 5, 10, 15, 25, 50, 100."
    assert option == "Error: Option guidance; accepted: n, seed, first, sampler, steps, context, guidanceScale."
    assert name == "Error: Class ham; accepted: hero, food, spell, side."
    assert busy == "Error: A run is under way; cancel it first."
    assert cancelled.startswith("AbortError: Cancelled after step")


def test_a_bad_seed_is_named_and_runs_nothing(browser, site):
    page = Page(browser, site.url)
    page.run("window.last = fastdiff.last; document.getElementById('detail').textContent = ''")
    for seed in ("-1", "1.5", "1e3", "seven", str(2**63), ""):
        page.at("seed").clear()
        page.at("seed").send_keys(seed)
        page.at("sample").click()
        sentence = f"Seed {seed or '(nothing)'}; accepted: a whole number from 0 to {2**63 - 1}."
        assert page.text("status") == sentence
        assert page.at("sample").is_enabled() and not page.at("cancel").is_enabled()
    assert page.run("return fastdiff.last === last") and page.text("detail") == ""


def test_progress_is_shown_and_the_page_stays_alive(browser, site):
    page = Page(browser, site.url, fresh=True)
    page.set("ddpm", 25, 25, 0, (1, 1, 0, 0), 2)
    page.run("""
        window.seen = new Set(), window.frames = 0, window.ticks = 0, window.pictures = new Set();
        const count = () => { frames += 1; requestAnimationFrame(count); };
        requestAnimationFrame(count);
        setInterval(() => { ticks += 1; }, 10);
        const canvas = document.getElementById("canvas"), detail = document.getElementById("detail");
        new MutationObserver(() => {
            if (!detail.textContent.startsWith("Step")) return;
            seen.add(detail.textContent.split(" · ")[0] + "/" + document.getElementById("progress").value);
            pictures.add(canvas.toDataURL());
        }).observe(detail, {childList: true});
    """)
    before = page.run("return [frames, ticks]")
    page.sample()
    frames, ticks = np.subtract(page.run("return [frames, ticks]"), before)
    seconds = page.run("return fastdiff.last.seconds")
    seen = dict(word.split("/") for word in page.run("return [...seen]"))
    assert seen.keys() > {f"Step {k} of 25" for k in (0, 1, 12, 24)}
    assert all(np.isclose(float(value), int(step.split()[1]) / 25) for step, value in seen.items())
    assert page.run("return pictures.size") >= 25
    # A step takes longer than a tick: of a page that did the work itself, most ticks would be lost.
    assert seconds > 25 * 0.02 and ticks * 0.01 > 0.4 * seconds and frames > 5

    page.run("const s = document.getElementById('frame-number'); s.value = 1; s.dispatchEvent(new Event('input'))")
    assert page.text("frame-name") == "step 1 of 25"
    first = page.canvas(25, (3, 16, 16))
    page.at("frame-number").send_keys(webdriver.Keys.END)
    assert not np.array_equal(first, page.canvas(25, (3, 16, 16)))


def test_a_model_without_contexts(browser, plain_site):
    page = Page(browser, plain_site.url)
    assert not page.at("classes").is_displayed()
    page.set("ddpm", 50, 4, 2**63 - 1)
    check(page, page.sample(), expected(plain_site, 4, "ddpm", 50, seed=2**63 - 1))
    assert page.text("command") == f"fastdiff sample tiny -n 4 --seed {2**63 - 1} --sampler ddpm --steps 50"


def test_a_model_of_class_numbers(browser, numbers_site):
    page = Page(browser, numbers_site.url)
    options = page.run("return [...document.getElementById('class-number').options].map((o) => o.value)")
    assert options == ["none", "0", "1", "2"]  # without the null class
    page.set("ddim", 10, 4, 5)
    Select(page.at("class-number")).select_by_visible_text("2")
    page.at("guidance").send_keys(webdriver.Keys.HOME, *[webdriver.Keys.ARROW_RIGHT] * 10)
    ours = page.sample()
    check(page, ours, expected(numbers_site, 4, "ddim", 10, seed=5, context=2, guidance_scale=2.5))
    assert page.text("command").endswith("--steps 10 --context 2 --guidance-scale 2.5")
    again = Page(browser, browser.current_url, fresh=True)  # the link alone
    assert np.array_equal(again.sample(), ours)
    Select(again.at("class-number")).select_by_visible_text("none")
    check(again, again.sample(), expected(numbers_site, 4, "ddim", 10, seed=5, context=3))
    assert "--context" not in again.text("command")


def test_after_an_error_the_page_goes_on(browser, plain_site):
    page = Page(browser, plain_site.url)
    page.set("broken", 5, 1, 0)
    page.at("sample").click()
    page.until(lambda: page.text("status").startswith("It stopped: "))
    page.until(lambda: page.at("sample").is_enabled())
    assert page.text("status").startswith("It stopped: ")
    page.set("ddim", 5, 1, 0)
    check(page, page.sample(), expected(plain_site, 1, "ddim", 5))


@pytest.mark.parametrize("file", ["model.json", "model.onnx", "worker.js", "ort.js", "ort-wasm-simd-threaded.wasm"])
def test_a_missing_file_is_named(browser, serve, plain_site, file):
    site = serve(plain_site.model, plain_site.folder)  # another address, of which the browser has kept nothing
    site.missing.add(f"/{file}")
    page = Page(browser, site.url, ready=False)
    page.until(lambda: file in page.text("status"))
    assert page.text("status").startswith("This page cannot start: cannot ")
    assert not page.at("sample").is_enabled()


def test_opened_as_a_file_it_says_how_to_serve_it(browser, plain_site):
    page = Page(browser, f"file://{plain_site.folder}/index.html", ready=False)
    page.until(lambda: "python3 -m http.server" in page.text("status"))


def test_odd_links(browser, site):
    page = Page(browser, f"{site.url}#n=4&steps=7&context=1,0,0.5,0&guidance=3&seed=12")
    assert page.text("status") == "This link asks for steps=7, which this page does not offer."
    page.set("ddim", 5, 1, 12)
    page.sample()
    assert page.text("command").endswith(
        "-n 1 --seed 12 --sampler ddim --steps 5 --context hero=1,spell=0.5 --guidance-scale 3"
    )


def test_links_with_names_of_javascripts_own(browser, site):
    for odd in ("n=09", "sampler=constructor", "sampler=ddim&steps=toString"):
        page = Page(browser, f"{site.url}#{odd}")
        assert page.text("status").startswith("This link asks for ") and page.at("sample").is_enabled()
    told = browser.execute_async_script(
        "const done = arguments[0]; fastdiff.sample({steps: 'toString'}).then(() => done(''), (e) => done(e.message))"
    )
    assert told.startswith("Steps toString; accepted: 5, 10")


def test_nothing_but_the_folders_files_is_asked_for(site, plain_site, tmp_path):
    log = tmp_path / "net.json"
    driver = screenshot.chromium(tmp_path / "profile", f"--log-net-log={log}")
    try:
        Page(driver, site.url).sample()
    finally:
        driver.quit()  # which ends the log
    net = json.loads(log.read_text())
    kind = net["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    started = [event["params"] for event in net["events"] if event["type"] == kind and "url" in event.get("params", {})]
    # Chromium asks its makers for this and that; requests of the page and of its worker name the page's origin.
    asked = {start["url"] for start in started if start.get("initiator", "").startswith(site.url[:-1])}
    loaded = {file for file in FILES if file.endswith((".js", ".css", ".wasm"))}
    files = {*loaded, "model.json", "model.onnx"}
    assert asked == {site.url + file for file in files}
    for requests in (site.requests, plain_site.requests):
        assert {path for path, _ in requests} <= {f"/{file}" for file in ("", *files)}
        assert {status for _, status in requests} <= {200, 304}

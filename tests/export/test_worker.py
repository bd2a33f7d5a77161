"""The page's worker and what its controls ask for, in Node.js: the same scripts and runtime, without a browser."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

import fastdiff
from fastdiff import Model, make_schedule

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason=f"the page's model is an ONNX file, which needs {package}")
PAGE = pytest.importorskip("fastdiff.export.web").PAGE
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no node in the PATH")

# A worker's globals around worker.js; what it loads comes from the folder.
WORKER = """
import fs from "fs";
const [asked] = process.argv.slice(2);
globalThis.self = globalThis;
globalThis.onmessage = null;
globalThis.fetch = async (url) => new Response(fs.readFileSync(url));
let x;
globalThis.postMessage = (message) => {
  if (message.type === "ready") onmessage({ data: { type: "run", ...run } });
  else if (message.type === "step") x = message.x;
  else if (message.type !== "loading") {
    if (x) fs.writeFileSync("images.bin", x);
    console.log(JSON.stringify(message));
    process.exit(0);
  }
};
const page = JSON.parse(fs.readFileSync("model.json"));
const { n, sampler, steps, ...more } = JSON.parse(asked);
const run = { id: 1, shape: [n, ...page.image_shape], table: page.samplers[sampler][steps], first: 0n,
  integerTimes: page.time === "index", ...more };
await import("./worker.js");
onmessage({ data: { type: "load", modelBytes: 0 } });
"""
# The functions of asked.js, with controls that stand as given.
ASKED = """
const fs = require("fs"), vm = require("vm");
const [file, page, standing, code] = process.argv.slice(1);
const { values, numbers, classes, chosen } = JSON.parse(standing);
const world = vm.createContext({ model: JSON.parse(page), numbers, classes, chosen: (name) => chosen[name],
  $: (id) => ({ value: values[id] }) });
vm.runInContext(fs.readFileSync(file, "utf8"), world);
let said;
try { said = vm.runInContext(code, world); } catch (error) { said = error.message; }
console.log(JSON.stringify(said, (key, value) => (typeof value === "bigint" ? String(value) : value)));
"""


class Labelled(nn.Module):
    """Takes a class number, or two weights, or neither."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 1, 3, padding=1)
        self.label = nn.Embedding(4, 6) if kind == "numbers" else nn.Linear(2, 6)
        if kind != "numbers":
            self.n_cfeat = 2 if kind == "weights" else 0

    def forward(self, x, t, label=None):
        h = self.first(x) + 0.01 * t.to(x.dtype)[:, None, None, None]
        return self.last(torch.tanh(h if label is None else h + self.label(label)[..., None, None]))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """(kind, null class) → (the model, its page's folder, ready for Node.js)."""

    def make(kind, null=None):
        torch.manual_seed(0)
        network = Labelled(kind).eval()
        with torch.no_grad():
            for value in network.state_dict().values():
                value.copy_(value.half().float())
        more = dict(num_classes=4, null_class=null) if kind == "numbers" else {}
        model = Model(network, make_schedule("linear", 50), image_shape=(1, 6, 5), **more)
        folder = tmp_path_factory.mktemp("page") / "page"
        fastdiff.export.export_page(model, folder, "tiny")
        (folder / "package.json").write_text('{"type": "module"}')
        (folder / "run.js").write_text(WORKER)
        return model, folder

    return make


def run(*words, folder=None):
    done = subprocess.run([NODE, *words], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("kind", "null", "context", "scale"),
    [
        ("weights", None, [0.5, 1], 2.5),
        ("neither", None, [], 1),
        ("numbers", 3, 1, 2.5),
        ("numbers", 3, 3, 1),
        ("numbers", None, 2, 1),
    ],
)
def test_the_worker_gives_the_images_of_python(folder_of, kind, null, context, scale):
    model, folder = folder_of(kind, null)
    asked = dict(n=3, sampler="dpmpp_2m_sde", steps=10, seed=5, context=context, guidanceScale=scale)
    assert run("run.js", json.dumps(asked), folder=folder) == {"type": "done", "id": 1}
    more = dict(guidance_scale=scale) if scale != 1 else {}
    given = None if context == [] else context
    expected = fastdiff.sample(
        model, 3, "dpmpp_2m_sde", steps=10, seed=5, context=given, form="eager", device="cpu", **more
    ).numpy()
    images = np.fromfile(folder / "images.bin", np.float32).reshape(expected.shape)
    assert np.abs(images - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_the_worker_begins_with_the_tables_noise_and_says_what_fails(folder_of):
    model, folder = folder_of("neither")
    asked = dict(n=2, sampler="ddim", steps=5, seed=5, context=[], guidanceScale=1)
    images = []
    for scale in (1.0, 2.0):
        page = json.loads((folder / "model.json").read_text())
        page["samplers"]["ddim"]["5"]["init_noise_sigma"] = scale
        (folder / "model.json").write_text(json.dumps(page))
        assert run("run.js", json.dumps(asked), folder=folder)["type"] == "done"
        images.append(np.fromfile(folder / "images.bin", np.float32))
    source = fastdiff.engine.noise.PhiloxNoise(5)
    expected = fastdiff.sample(
        model, 2, "ddim", steps=5, noise=lambda *place: 2 * source(*place), form="eager", device="cpu"
    ).numpy()
    assert np.abs(images[1].reshape(expected.shape) - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(images[1] - images[0]).max() > 0.1
    page["samplers"]["ddim"]["5"]["rows"] = [[1, 0, 1]] * 5
    (folder / "model.json").write_text(json.dumps(page))
    assert run("run.js", json.dumps(asked), folder=folder)["type"] == "error"


@pytest.mark.parametrize(
    ("null", "context", "said"),
    [
        (3, "1", 1),
        (3, "none", None),
        (None, "2", 2),
        (None, "none", "Class null; accepted: 0 to 3."),
        (3, "3", "Class 3; accepted: 0 to 2, or null."),
    ],
)
def test_the_classes_that_are_asked_for(null, context, said):
    page = {"num_classes": 4, "null_class": null, "samplers": {"ddim": {"5": {}}}, "class_names": [], "model": ["tiny"]}
    values = {"class-number": context, "seed": "5", "sampler": "ddim", "guidance": "2"}
    numbers = [k for k in range(4) if k != null]
    standing = dict(values=values, numbers=numbers, classes=[], chosen=dict(number=4, steps=5))
    words = ("-e", ASKED, str(PAGE / "asked.js"), json.dumps(page), json.dumps(standing))
    found = run(*words, "complete()")
    if isinstance(said, str):
        assert found == said
        return
    assert found["context"] == said
    guidance = " --guidance-scale 2" if null is not None else ""
    expected = "fastdiff sample tiny -n 4 --seed 5 --sampler ddim --steps 5"
    assert run(*words, "command(complete())") == expected + ("" if said is None else f" --context {said}{guidance}")
    assert f"context={context}&" in run(*words, "toHash(complete())")

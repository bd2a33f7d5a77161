// The page: its controls, and the worker that samples.
//
// For scripts and tests there is window.fastdiff:
//   ready               a promise of model.json's contents, kept once the runtime and the model are loaded
//   sample(options)     a promise of {images, shape, settings, seconds, frames}: images is a Float32Array in the order
//                       of shape, [n, C, H, W], in [-1, 1]; frames are the pixels after each step, 0 to 255, in the
//                       same order. options, each as the controls stand where left out:
//                       {n, seed, first, sampler, steps, context, guidanceScale}; seed and first are a BigInt, a
//                       number or a string; context is an array of K numbers or {class name: weight}, or of a model
//                       that takes class numbers one of them, or null for no class. Bad options reject with an Error; a
//                       cancelled run rejects with one whose name is "AbortError".
//   cancel()            stops the run under way, if any, within a step
//   last                what the last finished run gave, or null
"use strict";

const $ = (id) => document.getElementById(id);
const NUMBERS = [1, 4, 9, 16, 25];

let model, classes; // model.json, and the names of the classes whose weights it takes
let numbers; // of a model that takes one class by its number: those on offer; else null
let worker;
let run = null; // the run under way: {id, settings, evaluations, resolve, reject, began, step, frames}
let runs = 0;
let loaded = false;

// --- The controls ---

const chosen = (name) => Number($(name).querySelector("input:checked").value);

function choose(name, value) {
  $(name).querySelector(`input[value="${value}"]`).checked = true;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A row of values to choose one from: radio buttons, for the keyboard and screen readers. */
function pills(name, values, value) {
  $(name).replaceChildren(...values.map((v) =>
    element("label", {}, element("input", { type: "radio", name, value: v }), element("span", { textContent: v }))));
  choose(name, value);
}

const nearest = (values, to) => values.reduce((a, b) => (Math.abs(b - to) < Math.abs(a - to) ? b : a));

function showSteps() {
  const values = Object.keys(model.samplers[$("sampler").value]).map(Number);
  const before = $("steps").querySelector("input:checked");
  pills("steps", values, nearest(values, before ? Number(before.value) : model.start.steps));
  $("sampler-hint").textContent = model.hints[$("sampler").value];
}

function setClasses(weights) {
  classes.forEach((_, k) => { $(`class-${k}`).value = weights[k]; });
  showValues();
}

function showValues() {
  for (const input of document.querySelectorAll(".row input")) input.nextElementSibling.value = Number(input.value);
  // The class that is chosen alone, or none; a mixture is seen by its sliders.
  const used = classes.map((_, k) => k).filter((k) => Number($(`class-${k}`).value));
  classes.forEach((_, k) => press($(`class-${k}`).previousElementSibling, used.length === 1 && used[0] === k));
  if (!numbers) press($("none"), !used.length);
}

const press = (button, on) => button.setAttribute("aria-pressed", on);

function build() {
  document.title = `${model.name} · fastdiff`;
  $("name").textContent = model.name;
  if (model.rounded) $("nearly").textContent = "(nearly the same, for the weights here are rounded) ";
  $("made-by").textContent = `Made by ${model.made_by}.`;
  classes = Array.from({ length: model.context_width }, (_, k) => model.class_names[k] ?? String(k));
  $("class-rows").append(...classes.map((name, k) => {
    const alone = element("button", { type: "button", textContent: name, title: `only ${name}` });
    alone.addEventListener("click", () => setClasses(classes.map((_, j) => Number(j === k))));
    const slider = element("input", { type: "range", id: `class-${k}`, min: 0, max: 1, step: 0.05, value: Number(k === 0) });
    slider.setAttribute("aria-label", `weight of ${name}`);
    return element("div", { className: "row" }, alone, slider, element("output"));
  }));
  numbers = model.num_classes === null ? null
    : Array.from({ length: model.num_classes }, (_, k) => k).filter((k) => k !== model.null_class);
  if (numbers) offerNumbers();
  else {
    const none = element("button", { type: "button", id: "none", textContent: "none", title: "no class" });
    none.addEventListener("click", () => setClasses(classes.map(() => 0)));
    $("class-hint").prepend(none);
  }
  $("classes").hidden = !classes.length && !numbers;
  $("sampler").append(...Object.keys(model.samplers).map((name) => element("option", { textContent: name })));
  $("sampler").value = model.start.sampler;
  showSteps();
  pills("number", NUMBERS, 9);
  showValues();
  draw(null);
}

/** The classes of a model that takes one by its number; no class where it has a number for that. */
function offerNumbers() {
  const values = model.null_class === null ? numbers : ["none", ...numbers];
  const select = element("select", { id: "class-number" }, ...values.map((v) => element("option", { textContent: v })));
  select.setAttribute("aria-label", "Class");
  select.value = numbers[0] ?? "none";
  $("class-rows").append(select);
  $("class-hint").textContent = "One by its number.";
  $("guidance-row").hidden = $("guidance-hint").hidden = model.null_class === null;
}

// --- A run ---

function say(text, kind = "") {
  $("status").textContent = text;
  $("status").className = kind;
}

function sample(options) {
  return fastdiff.ready.then(() => new Promise((resolve, reject) => {
    if (run) throw new Error("A run is under way; cancel it first.");
    const settings = complete(options);
    const table = model.samplers[settings.sampler][settings.steps];
    const evaluations = table.rows.length; // of the network; some samplers need more than one a step
    const shape = [settings.n, ...model.image_shape];
    run = { id: ++runs, settings, evaluations, shape, resolve, reject, began: performance.now(), step: 0, frames: [] };
    $("command").textContent = command(settings);
    $("command-line").hidden = false;
    say(`Sampling ${settings.n} ${settings.n === 1 ? "image" : "images"} in ${settings.steps} steps.`);
    busy(true);
    run.clock = setInterval(showTime, 200);
    showTime();
    // Without a class there is nothing to guide towards: the result is that of scale 1, in half the time.
    const guidanceScale = ofClass(settings.context) ? settings.guidanceScale : 1;
    const context = settings.context ?? model.null_class;
    const integerTimes = model.time === "index";
    worker.postMessage({ ...settings, type: "run", id: run.id, shape, table, integerTimes, context, guidanceScale });
  }));
}

function cancel() {
  if (run) worker.postMessage({ type: "cancel", id: run.id });
}

function busy(on) {
  const focused = document.activeElement; // a button that is disabled loses the keyboard's focus
  $("sample").disabled = on || !loaded;
  $("cancel").disabled = !on;
  $("download").disabled = on || !fastdiff.last;
  $("progress").classList.toggle("idle", !on);
  $("replay").hidden = true;
  if (on && focused === $("sample")) $("cancel").focus();
  if (!on && focused === $("cancel")) $("sample").focus();
}

const seconds = (ms) => (ms < 100 ? `${Math.round(ms)} ms` : `${ms < 9950 ? (ms / 1000).toFixed(1) : Math.round(ms / 1000)} s`);

function showTime() {
  const { step, evaluations, began } = run;
  const elapsed = performance.now() - began;
  // The time of the steps done, spread over those to come; what has passed of the present one counts.
  const left = run.lastStep ? Math.max(0, ((run.lastStep - began) / step) * evaluations - elapsed) : NaN;
  $("detail").textContent = `Step ${step} of ${evaluations} · ${seconds(elapsed)}`
    + (step && step < evaluations ? ` · about ${seconds(left)} left` : "");
  $("progress").value = step / evaluations;
}

/** Ends the run: `how` is "done", "cancelled" or "error". */
function end(how, message) {
  const { settings, evaluations, shape, frames, images, step, began, clock, resolve, reject } = run;
  clearInterval(clock);
  const took = performance.now() - began;
  run = null;
  if (how === "done") fastdiff.last = { images, shape, settings, frames, seconds: took / 1000 };
  busy(false);
  if (how === "done") {
    $("detail").textContent = `${(settings.n / (took / 1000)).toFixed(1)} images/s, ${seconds(took / evaluations)} a step`;
    say(`Done: ${settings.n} ${settings.n === 1 ? "image" : "images"} in ${seconds(took)}.`);
    $("canvas").setAttribute("aria-label", `Sampled images, ${command(settings)}`);
    $("replay").hidden = frames.length < 2;
    $("frame-number").max = $("frame-number").value = frames.length;
    showFrame();
    return resolve(fastdiff.last);
  }
  $("detail").textContent = "";
  $("download").disabled = true; // what is shown is no finished picture
  const text = how === "cancelled" ? `Cancelled after step ${step} of ${evaluations}.` : `It stopped: ${message}.`;
  say(text, how === "error" ? "error" : "");
  reject(Object.assign(new Error(text), { name: how === "cancelled" ? "AbortError" : "Error" }));
}

function showFrame() {
  const { settings, frames } = fastdiff.last;
  const step = Number($("frame-number").value);
  draw(frames[step - 1], settings.n);
  $("frame-name").value = `step ${step} of ${frames.length}`;
}

/** A worker with the runtime and the model; quiet where the status is to stay. */
function start(quiet = false) {
  return new Promise((resolve, reject) => {
    loaded = false;
    worker = new Worker("worker.js", { type: "module" });
    const crash = (message) => {
      loaded = false;
      if (run) end("error", message);
      // After an error the runtime may be in any state; a fresh one is loaded, from the browser's cache.
      worker.terminate();
      fastdiff.ready = start(true).then(() => model, failed);
      fastdiff.ready.catch(() => {});
    };
    worker.onerror = (event) => {
      const message = `cannot run worker.js${event.message ? ` (${event.message})` : ""}`;
      if (loaded) crash(message);
      else reject(new Error(message));
    };
    worker.onmessage = ({ data }) => {
      if (data.type === "loading") {
        if (!quiet) say(`${data.what[0].toUpperCase()}${data.what.slice(1)}…`);
        if (data.share === undefined) $("progress").removeAttribute("value");
        else $("progress").value = data.share;
      } else if (data.type === "ready") resolve();
      else if (data.type === "failed") reject(new Error(data.message));
      else if (data.id !== run?.id) return;
      else if (data.type === "step") {
        Object.assign(run, { step: data.step, lastStep: performance.now(), images: data.x });
        run.frames.push(pixels(data.x));
        draw(run.frames.at(-1), run.settings.n);
        showTime();
      } else if (data.type === "error") crash(data.message);
      else end(data.type);
    };
    worker.postMessage({ type: "load", modelBytes: model.model_bytes });
  }).then(() => { loaded = true; $("progress").value = 0; busy(false); });
}

async function open() {
  if (location.protocol === "file:") {
    throw new Error("a browser runs this page only from a server; in its folder: python3 -m http.server, then open http://localhost:8000");
  }
  // A function of two SIMD instructions: the runtime is made of them.
  const simd = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
  if (typeof WebAssembly === "undefined" || !WebAssembly.validate(new Uint8Array(simd))) {
    throw new Error("this browser has no WebAssembly SIMD, which the runtime needs; browsers since 2023 have it");
  }
  const response = await fetch("model.json").catch((error) => { throw new Error(`cannot load model.json (${error.message})`); });
  if (!response.ok) throw new Error(`cannot load model.json: the server answered ${response.status}`);
  model = await response.json();
  build();
  await start();
  say("Ready: press Sample.");
  fromHash();
  return model;
}

function failed(error) {
  $("progress").classList.add("idle");
  say(`This page cannot start: ${error.message}.`, "error");
  throw error;
}

window.fastdiff = { sample, cancel, last: null };
fastdiff.ready = open().catch(failed);
fastdiff.ready.catch(() => {}); // shown already

$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  $("seed").removeAttribute("aria-invalid");
  try {
    history.replaceState(null, "", toHash(complete()));
    sample().catch(() => {}); // shown by end()
  } catch (error) {
    say(error.message, "error");
    if (error.field === "Seed") $("seed").setAttribute("aria-invalid", "true");
    if (error.field === "Seed") $("seed").focus();
  }
});
$("cancel").addEventListener("click", cancel);
$("download").addEventListener("click", download);
$("random").addEventListener("click", () => { $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 1000000; });
$("sampler").addEventListener("change", showSteps);
$("controls").addEventListener("input", showValues);
$("frame-number").addEventListener("input", showFrame);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") cancel(); });
window.addEventListener("resize", () => model && fit());
window.addEventListener("hashchange", () => model && fromHash());

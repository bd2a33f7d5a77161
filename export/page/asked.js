// What a run is asked for: by the controls, by scripts, and by the address; a part of page.js, which is loaded after it.
"use strict";

const LIMIT = 2n ** 63n;
const own = (object, key) => (Object.hasOwn(object, key) ? object[key] : undefined);

function wholeNumber(name, value, low, high) {
  const text = String(value).trim();
  if (!/^\d+$/.test(text) || BigInt(text) < low || BigInt(text) > high) {
    const shown = text.length > 40 ? `${text.slice(0, 40)}…` : text || "(nothing)";
    throw Object.assign(new Error(`${name} ${shown}; accepted: a whole number from ${low} to ${high}.`), { field: name });
  }
  return BigInt(text);
}

/** Options, completed from the controls and checked. Throws an Error that says what is accepted. */
function complete(options = {}) {
  const s = controls();
  const odd = Object.keys(options).find((key) => !(key in s));
  if (odd) throw new Error(`Option ${odd}; accepted: ${Object.keys(s).join(", ")}.`);
  Object.assign(s, options);
  s.n = Number(wholeNumber("Number of images", s.n, 1n, 1024n));
  s.seed = wholeNumber("Seed", s.seed, 0n, LIMIT - 1n);
  s.first = wholeNumber("First sample", s.first, 0n, LIMIT - BigInt(s.n));
  const tables = own(model.samplers, s.sampler);
  if (!tables) throw new Error(`Sampler ${s.sampler}; accepted: ${Object.keys(model.samplers).join(", ")}.`);
  if (!own(tables, s.steps)) throw new Error(`Steps ${s.steps}; accepted: ${Object.keys(tables).join(", ")}.`);
  checkContext(s);
  if (!Number.isFinite(s.guidanceScale)) throw new Error(`Guidance scale ${s.guidanceScale}; accepted: a number.`);
  return s;
}

function checkContext(s) {
  if (numbers) {
    if (s.context === null && model.null_class !== null) return;
    if (!numbers.includes(s.context)) {
      const last = numbers.at(-1);
      throw new Error(`Class ${s.context}; accepted: ${numbers[0]} to ${last}${model.null_class === null ? "" : ", or null"}.`);
    }
    return;
  }
  if (!Array.isArray(s.context)) {
    const unknown = Object.keys(s.context).find((name) => !classes.includes(name));
    if (unknown !== undefined) throw new Error(`Class ${unknown}; accepted: ${classes.join(", ") || "none"}.`);
    s.context = classes.map((name) => s.context[name] ?? 0);
  }
  if (s.context.length !== classes.length || !s.context.every(Number.isFinite)) {
    throw new Error(`Context ${s.context}; accepted: ${classes.length} numbers.`);
  }
}

/** Whether a context is of some class, by its number or by weights. */
const ofClass = (context) => (Array.isArray(context) ? context.some(Boolean) : context !== null);

function controls() {
  return {
    n: chosen("number"),
    seed: $("seed").value,
    first: 0,
    sampler: $("sampler").value,
    steps: chosen("steps"),
    context: numbers ? chosenNumber() : classes.map((_, k) => Number($(`class-${k}`).value)),
    guidanceScale: Number($("guidance").value),
  };
}

function chosenNumber() {
  const { value } = $("class-number");
  return value === "none" ? null : Number(value);
}

/** The command line that gives the same picture. */
function command(s) {
  const quoted = (text) => (/^[\w.,=+/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const words = ["fastdiff", "sample", ...model.model.map(quoted), "-n", s.n, "--seed", s.seed];
  if (s.first) words.push("--first", s.first);
  words.push("--sampler", s.sampler, "--steps", s.steps);
  if (numbers && s.context !== null) {
    words.push("--context", s.context);
    if (model.null_class !== null) words.push("--guidance-scale", s.guidanceScale);
  } else if (ofClass(s.context)) {
    const named = model.class_names.length && !model.class_names.some((name) => /[,=]/.test(name));
    const weights = classes.map((name, k) => `${name}=${s.context[k]}`).filter((_, k) => s.context[k]);
    words.push("--context", quoted(named ? weights.join(",") : s.context.join(",")));
    words.push("--guidance-scale", s.guidanceScale);
  }
  return words.join(" ");
}

/** The end of this page's address that reproduces the picture. */
function toHash(s) {
  const values = { n: s.n, seed: s.seed, sampler: s.sampler, steps: s.steps };
  if (numbers) Object.assign(values, { context: s.context ?? "none", guidance: s.guidanceScale });
  else if (classes.length) Object.assign(values, { context: s.context.join(","), guidance: s.guidanceScale });
  return `#${Object.entries(values).map(([key, value]) => `${key}=${value}`).join("&")}`;
}

/** Controls set from the address; what it asks for and the page does not offer is told of, and left as it is. */
function fromHash() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const odd = [];
  const take = (key, accepted, set) => {
    if (!asked.has(key)) return;
    if (accepted(asked.get(key))) set(asked.get(key));
    else odd.push(`${key}=${asked.get(key)}`);
  };
  const inRange = (low, high) => (text) => text.trim() !== "" && Number(text) >= low && Number(text) <= high;
  take("seed", () => true, (text) => { $("seed").value = text; }); // looked at when it is used, as if typed
  take("sampler", (name) => own(model.samplers, name), (name) => { $("sampler").value = name; showSteps(); });
  take("steps", (steps) => own(model.samplers[$("sampler").value], steps), (steps) => choose("steps", steps));
  take("n", (n) => NUMBERS.map(String).includes(n), (n) => choose("number", n));
  take("guidance", inRange(0, 8), (scale) => { $("guidance").value = scale; });
  if (numbers) {
    take("context", (text) => [...$("class-number").options].some((option) => option.value === text),
      (text) => { $("class-number").value = text; });
  } else {
    take("context", (text) => text.split(",").length === classes.length && text.split(",").every(inRange(0, 1)),
      (text) => setClasses(text.split(",")));
  }
  showValues();
  if (odd.length) say(`This link asks for ${odd.join(" and ")}, which this page does not offer.`, "error");
}

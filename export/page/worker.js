// The work: the runtime, the model and the sampling loop, away from the page so that the page stays alive.
//
// In:  {type: "load", modelBytes}, {type: "run", id, ...} and {type: "cancel", id}.
// Out: {type: "loading", what, share}, {type: "ready"} or {type: "failed", message} for the load; for a run its steps,
//      {type: "step", id, step, x}, and last {type: "done" | "cancelled" | "error", id, ...}.

let ort, session;
let cancelled = 0; // runs up to this id are to stop
let queue = Promise.resolve(); // one thing at a time: a session runs no two at once

onmessage = ({ data }) => {
  if (data.type === "cancel") cancelled = Math.max(cancelled, data.id);
  else if (data.type === "load") queue = load(data);
  else queue = queue.then(() => run(data));
};

async function load({ modelBytes }) {
  try {
    try {
      ort = await import("./ort.js"); // not a static import, whose failure could not be told in words
    } catch (error) {
      throw new Error(`cannot load ort.js (${error.message})`);
    }
    ort.env.wasm.numThreads = 1; // threads need headers that a plain server does not send
    // Given as bytes, the runtime asks for no file by itself; and a download of 14 MB can be watched.
    ort.env.wasm.wasmBinary = await download("ort-wasm-simd-threaded.wasm", "the runtime");
    const model = await download("model.onnx", "the model", modelBytes);
    postMessage({ type: "loading", what: "preparing the model" });
    session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
    postMessage({ type: "ready" });
  } catch (error) {
    postMessage({ type: "failed", message: inWords(error, "the runtime needs more") });
  }
}

async function download(file, what, size = 0) {
  const url = new URL(file, import.meta.url);
  const response = await fetch(url).catch((error) => {
    throw new Error(`cannot load ${file} (${error.message})`);
  });
  if (!response.ok) throw new Error(`cannot load ${file}: the server answered ${response.status}`);
  // The length of a compressed answer is not that of the file.
  if (!size && !response.headers.get("Content-Encoding")) size = Number(response.headers.get("Content-Length"));
  const parts = [];
  let length = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    length += part.value.length;
    postMessage({ type: "loading", what: `loading ${what}`, share: size ? Math.min(1, length / size) : undefined });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

const int64 = (value) => new ort.Tensor("int64", BigInt64Array.of(BigInt(value)), []);
const float32 = (values, dims) => new ort.Tensor("float32", Float32Array.from(values), dims);

const DEPTH = 3; // how many rows a file for any table remembers

async function run({ id, shape, seed, first, table, integerTimes, context, guidanceScale }) {
  try {
    const { rows, times } = table;
    const size = shape.reduce((a, b) => a * b);
    const fixed = {
      seed: int64(seed),
      first: int64(first),
      init_noise_sigma: float32([table.init_noise_sigma], []),
      rows: float32(rows.flat(), [rows.length, rows[0].length]),
      times: integerTimes
        ? new ort.Tensor("int64", BigInt64Array.from(times, BigInt), [times.length])
        : float32(times, [times.length]),
    };
    // A class's number, or weights; of a model without contexts there are none.
    if (typeof context === "number") fixed.context = new ort.Tensor("int64", BigInt64Array.of(BigInt(context)), [1]);
    else if (context.length) fixed.context = float32(context, [1, context.length]);
    if (session.inputNames.includes("guidance_scale")) fixed.guidance_scale = float32([guidanceScale], []);
    // All of a run's state is made here, so that nothing is left over from the one before.
    let x = float32(new Float32Array(size), shape);
    let history = float32(new Float32Array(DEPTH * size), [DEPTH, ...shape]);
    for (let k = 0; k < rows.length; k++) {
      await new Promise((resolve) => setTimeout(resolve)); // lets a "cancel" in
      if (id <= cancelled) return postMessage({ type: "cancelled", id, step: k });
      const next = await session.run({ ...fixed, x, history, start: int64(k), stop: int64(k + 1) });
      [x, history] = [next.next_x, next.next_history];
      const shown = x.data.slice(); // a copy to give away: x goes on
      postMessage({ type: "step", id, step: k + 1, x: shown }, [shown.buffer]);
    }
    postMessage({ type: "done", id });
  } catch (error) {
    postMessage({ type: "error", id, message: inWords(error, "fewer images at once need less") });
  }
}

function inWords(error, advice) {
  const text = error?.message ?? String(error); // the runtime also throws plain numbers, where memory runs out
  if (typeof error === "number" || /memory|alloc|out of bounds|array buffer|typed array length/i.test(text)) {
    return `the browser ran out of memory; ${advice} (${text})`;
  }
  return text;
}

// The picture on the canvas, and as a file; a part of page.js, which is loaded after it.
"use strict";

/** Pixels as Python's to_uint8 makes them: in float32, rounded half to even and clamped by the array's own type. */
function pixels(images) {
  return Uint8ClampedArray.from(images, (v) => Math.fround(Math.fround(v + 1) * 127.5));
}

/** values (n, C, H, W) in 0..255 on a canvas, row by row and one pixel apart; null is a first sight, of noise. */
function draw(values, n = chosen("number"), canvas = $("canvas")) {
  const [channels, height, width] = model.image_shape;
  const columns = Math.ceil(Math.sqrt(n));
  canvas.width = columns * (width + 1) + 1;
  canvas.height = Math.ceil(n / columns) * (height + 1) + 1;
  const context = canvas.getContext("2d");
  const size = height * width;
  values ??= Uint8ClampedArray.from({ length: n * channels * size }, () => 255 * Math.random());
  for (let r = 0; r < n; r++) {
    const tile = new ImageData(width, height);
    for (let i = 0; i < size; i++) {
      for (let c = 0; c < 3; c++) tile.data[4 * i + c] = values[(r * channels + (channels === 3 ? c : 0)) * size + i];
      tile.data[4 * i + 3] = 255;
    }
    context.putImageData(tile, 1 + (r % columns) * (width + 1), 1 + Math.floor(r / columns) * (height + 1));
  }
  if (canvas === $("canvas")) fit();
}

/** The canvas as large as fits, each of its pixels a whole number of the screen's: all squares are then alike. */
function fit() {
  const canvas = $("canvas");
  const dots = window.devicePixelRatio || 1;
  const room = Math.min($("frame").clientWidth, Math.max(260, window.innerHeight - 300));
  const scale = Math.max(1, Math.floor((room * dots) / Math.max(canvas.width, canvas.height)));
  canvas.style.width = `${(canvas.width * scale) / dots}px`;
}

/** The picture as `fastdiff sample` writes it: white between the images, about 640 pixels wide. */
async function download() {
  const { settings, frames } = fastdiff.last;
  const small = document.createElement("canvas");
  draw(frames.at(-1), settings.n, small);
  const scale = Math.max(1, Math.round(640 / small.width));
  const sheet = element("canvas", { width: small.width * scale, height: small.height * scale });
  const context = sheet.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.fillStyle = "white";
  context.fillRect(0, 0, sheet.width, sheet.height);
  context.drawImage(small, 0, 0, sheet.width, sheet.height);
  const href = URL.createObjectURL(await new Promise((resolve) => sheet.toBlob(resolve, "image/png")));
  element("a", { href, download: `${model.name.replace(/[^\w.-]+/g, "_")}-seed-${settings.seed}.png` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60000);
}

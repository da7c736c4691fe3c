// What the canvas shows: the photograph, what the CRF makes of it, the strokes, and the brush; and
// the iterations one after another.

import { NONE } from "./strokes.js";

// The colours of a probability, from 0 to 1; black, violet, orange, pale yellow.
const RAMP = [[13, 8, 40], [84, 22, 110], [186, 54, 85], [243, 132, 38], [250, 240, 160]];

const FRAME = 450; // ms of an iteration that is played

export class Canvas {
  constructor(element) {
    this.element = element;
    this.context = element.getContext("2d");
    this.photo = null;
    this.strokes = layer(1, 1);
    this.result = null; // a canvas of the result, in its own size
    this.frames = [];
    this.heat = null;
    this.brush = null; // {x, y, diameter, colour} of the keyboard
    this.shown = { view: "result", compare: 0.5, step: 0, opacity: 0.55, strokes: true };
    this.waiting = false;
  }

  open(photo, width, height) {
    this.photo = photo;
    this.element.width = width;
    this.element.height = height;
    this.element.style.setProperty("--ratio", width / height);
    this.strokes = layer(width, height);
    this.result = this.heat = null;
    this.frames = [];
    this.draw();
  }

  // The keys do not lose their place with a control: they go on at the photograph.
  disable(control, disabled) {
    if (disabled && control === document.activeElement) this.element.focus();
    control.disabled = disabled;
  }

  // Colours of the strokes in a box, or everywhere.
  drawStrokes(strokes, colours, box) {
    const { left, top, right, bottom } =
      box ?? { left: 0, top: 0, right: strokes.width, bottom: strokes.height };
    const context = this.strokes.getContext("2d");
    const pixels = context.createImageData(right - left, bottom - top);
    let at = 0;
    for (let v = top; v < bottom; v++) {
      for (let u = left; u < right; u++, at += 4) {
        const label = strokes.marks[v * strokes.width + u];
        if (label === NONE) continue;
        pixels.data.set(colours[label] ?? [128, 128, 128], at);
        pixels.data[at + 3] = 255;
      }
    }
    context.putImageData(pixels, left, top);
    this.draw();
  }

  // Whether the result has as many pixels as the photograph.
  get whole() {
    return this.frames.length > 0 && this.frames[0].width === this.element.width;
  }

  // frames: labels uint8 of width * height; heats: uint8, one a frame, or none.
  setResult({ width, height, frames, heats }, colours) {
    this.frames = frames.map((labels) => ({ labels, width, height }));
    this.heat = heats.length ? heatLayer(heats[heats.length - 1], width, height) : null;
    this.colour(colours);
  }

  clearResult() {
    this.frames = [];
    this.result = this.heat = null;
    this.draw();
  }

  colour(colours) {
    this.colours = colours;
    this.result = this.frames.length ? labelLayer(this.frames[this.frames.length - 1], colours) : null;
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.#draw();
    });
  }

  #draw() {
    const { context, element, shown } = this;
    const { width, height } = element;
    if (!this.photo) return;
    context.globalAlpha = 1;
    context.drawImage(this.photo, 0, 0);
    const split = shown.view === "compare" ? Math.round(shown.compare * width) : 0;
    if (shown.view === "heat" && this.heat) {
      this.#over(this.heat, 0.9, 0);
    } else if (shown.view === "steps" && this.frames.length > 1) {
      const frame = this.frames[Math.min(shown.step, this.frames.length - 1)];
      this.#over(labelLayer(frame, this.colours), shown.opacity, 0);
    } else if (this.result) {
      this.#over(this.result, shown.opacity, split);
    }
    if (shown.strokes) this.#strokesUpTo(shown.view === "compare" ? split : width);
    if (shown.view === "compare") this.#divider(split);
    if (this.brush) this.#brush();
  }

  #over(picture, opacity, from) {
    const { context, element } = this;
    context.save();
    context.beginPath();
    context.rect(from, 0, element.width - from, element.height);
    context.clip();
    context.globalAlpha = opacity;
    context.imageSmoothingEnabled = picture.width !== element.width;
    context.drawImage(picture, 0, 0, element.width, element.height);
    context.restore();
  }

  // The strokes belong to what there is before.
  #strokesUpTo(x) {
    const { context, element, strokes } = this;
    if (x > 0) context.drawImage(strokes, 0, 0, x, element.height, 0, 0, x, element.height);
  }

  #divider(x) {
    const { context, element } = this;
    const thick = Math.max(2, element.width / 300);
    context.fillStyle = "rgba(20, 24, 32, 0.45)";
    context.fillRect(x - thick, 0, 2 * thick, element.height);
    context.fillStyle = "#fff";
    context.fillRect(x - thick / 2, 0, thick, element.height);
  }

  #brush() {
    const { context, brush } = this;
    for (const [colour, wide] of [["#fff", 4], ["#111", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = wide;
      context.beginPath();
      context.arc(brush.x, brush.y, Math.max(3, brush.diameter / 2), 0, 7);
      context.moveTo(brush.x - 10, brush.y);
      context.lineTo(brush.x + 10, brush.y);
      context.moveTo(brush.x, brush.y - 10);
      context.lineTo(brush.x, brush.y + 10);
      context.stroke();
    }
  }
}

// A slider that chooses the iteration that is shown, its title, and a button that plays them.
export class Steps {
  constructor(canvas, slider, title, button) {
    Object.assign(this, { canvas, slider, title, button });
    this.playing = 0;
    slider.addEventListener("input", () => {
      this.stop();
      this.#show(Number(slider.value));
    });
    button.addEventListener("click", () => (this.playing ? this.stop() : this.#play()));
  }

  // There are so many frames: the last is shown where it was before, or none was.
  set(frames) {
    const last = this.#at === this.#last;
    this.slider.max = frames - 1;
    this.slider.disabled = this.button.disabled = false;
    this.#show(last && !this.playing ? this.#last : this.#at);
  }

  // There are no frames yet.
  wait() {
    this.stop();
    for (const control of [this.slider, this.button]) this.canvas.disable(control, true);
    this.title.textContent = "Iteration –";
  }

  stop() {
    clearInterval(this.playing);
    this.playing = 0;
    this.button.textContent = "Play";
  }

  get #at() {
    return Number(this.slider.value);
  }

  get #last() {
    return Number(this.slider.max);
  }

  #play() {
    this.#show(this.#at < this.#last ? this.#at : 0);
    this.button.textContent = "Pause";
    this.playing = setInterval(() => {
      if (this.#at < this.#last) this.#show(this.#at + 1);
      else this.stop();
    }, FRAME);
  }

  #show(step) {
    this.slider.value = step;
    this.canvas.shown.step = step;
    this.title.textContent = `Iteration ${step}`;
    this.canvas.draw();
  }
}

function layer(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

// Labels in their colours, and pale where two of them meet.
function labelLayer({ labels, width, height }, colours) {
  const canvas = layer(width, height), context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height), data = pixels.data;
  for (let v = 0, i = 0; v < height; v++) {
    for (let u = 0; u < width; u++, i++) {
      const label = labels[i];
      const edge = (u + 1 < width && labels[i + 1] !== label) ||
        (v + 1 < height && labels[i + width] !== label);
      const [r, g, b] = colours[label] ?? [128, 128, 128];
      const pale = edge ? 0.6 : 0;
      data[4 * i] = r + pale * (255 - r);
      data[4 * i + 1] = g + pale * (255 - g);
      data[4 * i + 2] = b + pale * (255 - b);
      data[4 * i + 3] = 255;
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function heatLayer(heat, width, height) {
  const canvas = layer(width, height), context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let i = 0; i < heat.length; i++) {
    const place = (heat[i] / 255) * (RAMP.length - 1), low = Math.min(RAMP.length - 2, place | 0);
    for (let k = 0; k < 3; k++) {
      pixels.data[4 * i + k] = RAMP[low][k] + (place - low) * (RAMP[low + 1][k] - RAMP[low][k]);
    }
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// The page: what a person does on it, and when the server is asked.
//
// While a slider moves or a stroke is drawn the CRF runs on a reduced photograph; a moment after the
// last change on the whole one. One request is on its way at a time. A change drops the one for the
// whole photograph, and the newest of several waiting changes is the one that is sent.

import * as server from "./server.js";
import { Canvas } from "./canvas.js";
import { Classes, MOST } from "./classes.js";
import { Numbers } from "./numbers.js";
import { Painter } from "./painting.js";
import { NONE, Strokes } from "./strokes.js";

const PAUSE = 250; // ms after the last change until the whole photograph is refined
const FRAME = 450; // ms of an iteration in the animation

const $ = (id) => document.getElementById(id);
const canvas = new Canvas($("canvas"));
const classes = new Classes($("classes"));
const numbers = new Numbers($("numbers"), () => changed());
let strokes = new Strokes(1, 1);
let start = {};
let most = Infinity; // bytes of a file
let probabilities = false; // of a network, instead of strokes
let marksChanged = false;
let kept = null; // strokes and classes, while a network's probabilities take their place
let name = "photograph";
let remark = ""; // what reading changed in the last file

// ---- asking the server

const work = { wanted: null, running: false, broken: null, timer: 0 };

function changed(whole = false) {
  clearTimeout(work.timer);
  document.body.dataset.state = "computing";
  if (!ready()) return;
  work.wanted = { preview: !whole };
  work.broken?.abort();
  if (!whole) work.timer = setTimeout(() => changed(true), PAUSE);
  pump();
}

function ready() {
  if (probabilities || strokes.present >= 2) return true;
  canvas.clearResult();
  work.wanted = null;
  work.broken?.abort();
  document.body.dataset.state = "waiting";
  const marked = strokes.present;
  say(marked ? "One class has strokes. Paint another one, such as the background."
    : "Paint a stroke in each of two classes, one of them the background.");
  return false;
}

async function pump() {
  if (work.running) return;
  work.running = true;
  while (work.wanted) {
    const { preview } = work.wanted;
    work.wanted = null;
    work.broken = preview ? null : new AbortController();
    $("frame").setAttribute("aria-busy", String(!preview));
    try {
      await compute(preview, work.broken?.signal);
    } catch (error) {
      if (error.name === "AbortError" || error.status === 409) continue;
      trouble(error);
      document.body.dataset.state = "failed";
    }
  }
  work.broken = null;
  work.running = false;
  $("frame").setAttribute("aria-busy", "false");
}

async function compute(preview, signal) {
  if (marksChanged) {
    marksChanged = false;
    try {
      await server.sendMarks(strokes.marks);
    } catch (error) {
      marksChanged = true;
      throw error;
    }
  }
  const view = shownView();
  const began = performance.now();
  const { about, parts } = await server.refine(
    { ...wish(), preview, steps: view === "steps", heat: view === "heat" ? heatClass() : null },
    signal,
  );
  const frames = parts.slice(0, about.frames), heats = parts.slice(about.frames);
  canvas.setResult({ ...about, frames, heats }, classes.colours);
  if (view === "steps") showSteps(about.frames);
  quiet();
  if (preview) return;
  const seconds = ((performance.now() - began) / 1000).toFixed(2);
  const size = `${about.width} × ${about.height}`;
  const exact = $("method").value === "exact" && !about.whole;
  const told = view === "steps" ? `${about.frames - 1} iterations at ${size} in ${seconds} s.`
    : exact ? `All pairs at ${size}, reduced, in ${seconds} s. Downloads want the lattice.`
      : `Refined at ${size} in ${seconds} s.`;
  say(remark ? `${told} Note: ${remark}.` : told);
  if (!work.wanted) document.body.dataset.state = "done";
}

function wish() {
  return { ...numbers.values, method: $("method").value };
}

// ---- saying something

function say(text) {
  $("status").textContent = text;
}

function trouble(error) {
  $("trouble").textContent = error.message ?? String(error);
  $("trouble").hidden = false;
}

function quiet() {
  $("trouble").hidden = true;
}

// ---- opening

async function openPhotograph(query, body) {
  say("Opening…");
  quiet();
  work.wanted = null;
  work.broken?.abort();
  clearTimeout(work.timer);
  let opened;
  try {
    opened = await server.open(query, body);
  } catch (error) {
    say("");
    trouble(error);
    return;
  }
  const { about, parts } = opened;
  name = about.name.replace(/\.[^.]*$/, "");
  const photo = await createImageBitmap(new Blob([parts[0]], { type: "image/png" }));
  strokes = new Strokes(about.width, about.height, parts[1]);
  classes.chosen = 0;
  kept = null;
  setProbabilities(false);
  classes.set(about.classes);
  marksChanged = false;
  canvas.open(photo, about.width, about.height);
  const size = Math.max(3, Math.round(about.width / 75));
  $("size").value = size;
  $("size-value").value = size;
  refreshClasses();
  canvas.drawStrokes(strokes, classes.colours);
  undoable();
  remark = about.notes.join("; ");
  say(`${about.name}, ${about.width} × ${about.height} pixels. Refining…`);
  changed(true);
}

async function openResult(loaded) {
  say("Loading…");
  quiet();
  let found;
  try {
    found = await loaded();
  } catch (error) {
    say("");
    trouble(error);
    return;
  }
  const { about, parts } = found;
  const before = kept ? kept.classes : classes.copy();
  if (about.probabilities) {
    kept ??= { strokes, classes: before };
    strokes = new Strokes(strokes.width, strokes.height);
    classes.set(about.classes, true);
  } else {
    if (kept) strokes = kept.strokes;
    kept = null;
    classes.set(about.classes);
    strokes.replace(parts[0], [before, classes.copy()]);
  }
  setProbabilities(about.probabilities);
  marksChanged = false;
  refreshClasses();
  canvas.drawStrokes(strokes, classes.colours);
  undoable();
  remark = about.notes.join("; ");
  changed(true);
}

function setProbabilities(are) {
  probabilities = are;
  $("leave").hidden = !are;
  for (const control of document.querySelectorAll("#tools input, #size, #clear, #add")) {
    control.disabled = are;
  }
  numbers.sliders.gt_prob.disabled = are;
  $("classes-help").textContent = are
    ? "Those of the network. Go back to scribbles to paint."
    : "Choose one and paint it. Give the background a stroke too.";
}

function leaveResult() {
  strokes = kept.strokes;
  setProbabilities(false);
  classes.set(kept.classes);
  kept = null;
  remark = "";
  marksChanged = true;
  canvas.clearResult();
  refreshClasses();
  canvas.drawStrokes(strokes, classes.colours);
  undoable();
  changed();
}

function sendFile(file, isResult) {
  if (!file) return;
  if (file.size > most) {
    const [is, can] = [file.size, most].map((bytes) => (bytes / 1e6).toPrecision(3));
    trouble(new Error(`${file.name}: ${is} MB, at most ${can} MB are read; make it smaller.`));
    return;
  }
  const query = `name=${encodeURIComponent(file.name)}`;
  if (isResult) openResult(() => server.loadResult(query, file));
  else openPhotograph(query, file);
}

// ---- painting

const painter = new Painter(canvas, {
  strokes: () => strokes,
  label,
  diameter: () => Number($("size").value),
  allowed: () => !probabilities,
  painted: (box) => {
    canvas.drawStrokes(strokes, classes.colours, box);
    marksChanged = true;
    changed();
  },
  ended: undoable,
  say: (down) => say(!down ? "Brush lifted." : label() === NONE ? "Eraser down."
    : `Painting ${classes.all[classes.chosen].name}.`),
});

function label() {
  return document.querySelector("[name=tool]:checked").value === "erase" ? NONE : classes.chosen;
}

function takeBack(found) {
  if (found === false) return;
  if (Array.isArray(found)) {
    classes.set(found);
    refreshClasses();
  }
  marksChanged = true;
  canvas.drawStrokes(strokes, classes.colours);
  undoable();
  changed();
}

function undoable() {
  $("undo").disabled = !strokes.done.length;
  $("redo").disabled = !strokes.undone.length;
}

function setTool(value) {
  document.querySelector(`[name=tool][value=${value}]`).checked = true;
}

function setSize(value) {
  $("size").value = value;
  $("size-value").value = $("size").value;
  painter.showCursor();
}

document.addEventListener("keydown", (event) => {
  const control = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
  if (event.target.matches("input[type=text], select")) return;
  if (control && key === "z") {
    event.preventDefault();
    if (!painter.pen) takeBack(event.shiftKey ? strokes.redo() : strokes.undo());
  } else if (control && key === "y") {
    event.preventDefault();
    if (!painter.pen) takeBack(strokes.redo());
  } else if (control || event.altKey || probabilities) {
    return;
  } else if (/^[1-9]$/.test(key)) {
    classes.choose(Number(key) - 1);
  } else if (key === "e") {
    setTool("erase");
  } else if (key === "b") {
    setTool("paint");
  } else if (key === "[" || key === "]") {
    setSize(Number($("size").value) + (key === "]" ? 1 : -1));
  }
});

// ---- classes

classes.addEventListener("choose", () => {
  setTool("paint");
  if (shownView() !== "heat") return;
  $("heat").value = String(classes.chosen);
  changed(true);
});
classes.addEventListener("recolour", () => {
  canvas.colour(classes.colours);
  canvas.drawStrokes(strokes, classes.colours);
});
classes.addEventListener("rename", refreshClasses);
classes.addEventListener("change", refreshClasses);
classes.addEventListener("remove", ({ detail: index }) => {
  const before = classes.copy();
  const after = before.filter((_, k) => k !== index);
  strokes.replace(strokes.marks.map((k) =>
    k === NONE || k < index ? k : k === index ? NONE : k - 1), [before, after]);
  takeBack(after);
});

function refreshClasses() {
  const chosen = heatClass();
  $("heat").replaceChildren(...classes.all.map((each, k) => new Option(each.name, k)));
  $("heat").value = String(Math.min(chosen, classes.all.length - 1));
  $("add").disabled = classes.fixed || classes.all.length >= MOST;
}

function heatClass() {
  return Number($("heat").value) || 0;
}

// ---- what is shown

let playing = 0;

function shownView() {
  return document.querySelector("[name=view]:checked").value;
}

function setView() {
  const view = shownView();
  canvas.shown.view = view;
  $("compare-row").hidden = view !== "compare";
  $("heat-row").hidden = view !== "heat";
  $("steps-row").hidden = view !== "steps";
  stop();
  canvas.draw();
  if (view === "heat" || view === "steps" || !canvas.whole) changed(true);
}

function showSteps(frames) {
  const step = $("step");
  const last = Number(step.value) === Number(step.max);
  step.max = frames - 1;
  if (last && !playing) step.value = step.max;
  showStep();
}

function showStep() {
  canvas.shown.step = Number($("step").value);
  $("step-name").textContent = `Iteration ${$("step").value}`;
  canvas.draw();
}

function play() {
  if (playing) return stop();
  const step = $("step");
  if (Number(step.value) >= Number(step.max)) step.value = 0;
  showStep();
  $("play").textContent = "Pause";
  playing = setInterval(() => {
    if (Number(step.value) >= Number(step.max)) return stop();
    step.value = Number(step.value) + 1;
    showStep();
  }, FRAME);
}

function stop() {
  clearInterval(playing);
  playing = 0;
  $("play").textContent = "Play";
}

// ---- settings and downloads

async function download(file) {
  say(`Making ${file}…`);
  quiet();
  try {
    if (marksChanged) {
      marksChanged = false;
      await server.sendMarks(strokes.marks);
    }
    const content = await server.download(file, { ...wish(), classes: classes.all });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(content);
    link.download = `${name}_${file}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    say(`${link.download} is downloaded.`);
  } catch (error) {
    say("");
    trouble(error);
  }
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(dark));
}

// ---- wiring

$("examples").addEventListener("change", (event) => openPhotograph(event.target.value));
$("open").addEventListener("click", () => $("photo-file").click());
$("load").addEventListener("click", () => $("result-file").click());
for (const id of ["photo-file", "result-file"]) {
  $(id).addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    sendFile(file, id === "result-file");
  });
}
$("segment").addEventListener("click", () => openResult(() => server.segment()));
$("leave").addEventListener("click", leaveResult);
$("undo").addEventListener("click", () => takeBack(strokes.undo()));
$("redo").addEventListener("click", () => takeBack(strokes.redo()));
$("clear").addEventListener("click", () => {
  if (!strokes.present) return;
  strokes.replace(new Uint8Array(strokes.marks.length).fill(NONE), null);
  takeBack(true);
});
$("size").addEventListener("input", (event) => setSize(event.target.value));
for (const radio of document.querySelectorAll("[name=view]")) {
  radio.addEventListener("change", setView);
}
$("compare").addEventListener("input", (event) => {
  canvas.shown.compare = event.target.value / 100;
  canvas.draw();
});
$("opacity").addEventListener("input", (event) => {
  canvas.shown.opacity = event.target.value / 100;
  canvas.draw();
});
$("show-strokes").addEventListener("change", (event) => {
  canvas.shown.strokes = event.target.checked;
  canvas.draw();
});
$("heat").addEventListener("change", () => changed(true));
$("step").addEventListener("input", () => { stop(); showStep(); });
$("play").addEventListener("click", play);
$("add").addEventListener("click", () => classes.add());
$("reset").addEventListener("click", () => {
  numbers.values = start;
  $("method").value = "permutohedral";
  changed(true);
});
$("method").addEventListener("change", () => changed(true));
$("downloads").addEventListener("click", (event) => {
  const file = event.target.dataset.file;
  if (file) download(file);
});
$("theme").addEventListener("click", () => {
  setTheme($("theme").getAttribute("aria-pressed") === "false");
});

for (const what of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(what, (event) => {
    event.preventDefault();
    $("drop").hidden = what !== "dragover";
    if (what !== "drop") return;
    const [file] = event.dataTransfer.files;
    sendFile(file, /\.np[yz]$/i.test(file?.name));
  });
}

async function begin() {
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
  const about = await server.about();
  start = about.start;
  most = about.upload;
  numbers.values = start;
  $("segment").hidden = !about.network;
  const given = about.given.map((each) => new Option(each, "given=1"));
  const shipped = about.examples.map((each) => new Option(each.title, `example=${each.name}`));
  $("examples").replaceChildren(...given, ...shipped);
  await openPhotograph($("examples").value);
}

begin().catch(trouble);

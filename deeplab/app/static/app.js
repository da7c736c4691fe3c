// The page: what a person does on it, and when the server is asked.
//
// While a slider moves or a stroke is drawn the CRF runs on a reduced photograph; a moment after the
// last change on the whole one. One request is on its way at a time. A change drops the one for the
// whole photograph, and the newest of several waiting changes is the one that is sent. What was
// asked about strokes or a photograph that are gone is broken off, and so is never drawn.

import * as server from "./server.js";
import { Canvas, Steps } from "./canvas.js";
import { Classes, MOST } from "./classes.js";
import { Numbers } from "./numbers.js";
import { Painter } from "./painting.js";
import { NONE, Strokes } from "./strokes.js";
import { failed, forget, onClose, say, sayMeanwhile, settle } from "./telling.js";
import { startTheme } from "./theme.js";

const PAUSE = 250; // ms after the last change until the whole photograph is refined
const LONG = 1500; // ms after which it is said why an answer may take long

const $ = (id) => document.getElementById(id);
const canvas = new Canvas($("canvas"));
const classes = new Classes($("classes"));
const steps = new Steps(canvas, $("step"), $("step-name"), $("play"));
const numbers = new Numbers($("numbers"), () => changed());
let strokes = new Strokes(1, 1);
let start = {}; // of the sliders, for scribbles and for a network's probabilities
let others = {}; // numbers of the sliders for the one of these that is not there
let most = Infinity; // bytes of a file
let probabilities = false; // of a network, instead of strokes
let kept = null; // strokes and classes, while a network's probabilities take their place
let name = "photograph";
let remark = ""; // what reading changed in the last file

// ---- asking the server

const work = { wanted: null, asked: null, running: false, timer: 0 };

// whole: at once. said: meanwhile.
function changed(whole = false, said = "Refining…") {
  if (!whole) forget("open", "download");
  clearTimeout(work.timer);
  if (!ready()) return;
  sayMeanwhile(said);
  ask(!whole);
}

function ask(preview) {
  document.body.dataset.state = "computing";
  work.wanted = { preview, broken: new AbortController() };
  if (!work.asked?.preview) work.asked?.broken.abort();
  if (preview) work.timer = setTimeout(() => ask(false), PAUSE);
  pump();
}

function ready() {
  if (probabilities || strokes.present >= 2) return true;
  breakOff();
  forget("refine");
  canvas.clearResult();
  steps.wait();
  document.body.dataset.state = "waiting";
  const marked = strokes.present;
  say(marked ? "One class has strokes. Paint another one, such as the background."
    : "Paint a stroke in each of two classes, one of them the background.");
  return false;
}

function breakOff() {
  clearTimeout(work.timer);
  work.wanted = null;
  work.asked?.broken.abort();
}

async function pump() {
  if (work.running) return;
  work.running = true;
  while (work.wanted) {
    work.asked = work.wanted;
    work.wanted = null;
    const { preview, broken } = work.asked;
    busy(!preview);
    const long = setTimeout(() => {
      if (broken.signal.aborted) return; // something else is going on
      busy(true);
      sayMeanwhile("Still refining. The first time, the CRF is compiled for this machine, once.");
    }, LONG);
    try {
      await compute(preview, broken.signal);
    } catch (error) {
      if (broken.signal.aborted) continue;
      say("");
      failed("refine", error);
      document.body.dataset.state = "failed";
    } finally {
      clearTimeout(long);
    }
  }
  work.asked = null;
  work.running = false;
  busy(false);
}

function busy(is) {
  $("frame").setAttribute("aria-busy", String(is));
}

async function compute(preview, signal) {
  const view = shownView(), asked = wish();
  const began = performance.now();
  const { about, parts } = await server.refine(
    { ...asked, preview, steps: view === "steps", heat: view === "heat" ? heatClass() : null },
    signal,
  );
  const frames = parts.slice(0, about.frames), heats = parts.slice(about.frames);
  canvas.setResult({ ...about, frames, heats }, classes.colours);
  if (view === "steps") steps.set(about.frames);
  forget("refine");
  if (work.wanted || (preview && !about.whole)) return;
  clearTimeout(work.timer); // a preview of a small photograph is the whole already
  const seconds = ((performance.now() - began) / 1000).toFixed(2);
  const size = `${about.width} × ${about.height}`;
  const exact = asked.method === "exact" && !about.whole;
  const told = view === "steps" ? `${about.frames - 1} iterations at ${size} in ${seconds} s.`
    : exact ? `All pairs at ${size}, reduced, in ${seconds} s. Downloads need the lattice method.`
      : `Refined at ${size} in ${seconds} s.`;
  say(remark ? `${told} Note: ${remark}.` : told);
  document.body.dataset.state = "done";
}

function wish() {
  return { ...numbers.values, method: $("method").value };
}

// ---- opening

// What is being refined is broken off, so that opening need not wait for it, and goes on where
// opening fails. null then.
async function opening(said, asked) {
  const unfinished = document.body.dataset.state === "computing";
  breakOff();
  sayMeanwhile(said);
  forget("open");
  try {
    return await asked();
  } catch (error) {
    settle();
    failed("open", error);
    if (unfinished) changed(true);
    return null;
  }
}

async function openPhotograph(query, file) {
  const opened = await opening("Opening…", () => server.open(query, file));
  if (!opened) return;
  const { about, parts, photo } = opened;
  breakOff();
  forget("refine", "download");
  name = about.name.replace(/\.[^.]*$/, "");
  if (file) showOwn(about.name);
  strokes = new Strokes(about.width, about.height, parts[1]);
  classes.chosen = 0;
  kept = null;
  setProbabilities(false);
  classes.set(about.classes);
  canvas.open(photo, about.width, about.height);
  steps.wait();
  setSize(Math.max(3, Math.round(about.width / 75)));
  refreshClasses();
  canvas.drawStrokes(strokes, classes.colours);
  undoable();
  remark = about.notes.join("; ");
  changed(false, `${about.name}, ${about.width} × ${about.height} pixels. Refining…`);
}

// In the list of photographs, so that those that are offered can be chosen again.
function showOwn(file) {
  const own = $("examples").querySelector("[hidden]");
  own.textContent = file;
  own.selected = true;
}

async function openResult(asked) {
  const found = await opening("Loading…", asked);
  if (!found) return;
  const { about, parts } = found;
  breakOff();
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
  refreshClasses();
  canvas.drawStrokes(strokes, classes.colours);
  undoable();
  const notes = [...about.notes];
  if (probabilities) notes.push("the sliders are those for results, and start as in deeplab refine");
  remark = notes.join("; ");
  changed(true);
}

function setProbabilities(are) {
  if (are !== probabilities) [numbers.values, others] = [others, numbers.values];
  probabilities = are;
  $("leave").hidden = !are;
  for (const control of document.querySelectorAll("#tools input, #size, #clear, #add")) {
    canvas.disable(control, are);
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
  breakOff();
  canvas.clearResult();
  refreshClasses();
  painted();
  undoable();
  canvas.element.focus();
}

function sendFile(file, isResult) {
  if (!file) return;
  if (file.size > most) {
    const [is, can] = [file.size, most].map((bytes) => (bytes / 1e6).toPrecision(3));
    const why = `${file.name}: ${is} MB, at most ${can} MB are read; make it smaller.`;
    failed("open", new Error(why));
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
  painted,
  ended: undoable,
  key: shortcut,
  say: (down) => sayMeanwhile(!down ? "Brush lifted." : label() === NONE ? "Eraser down."
    : `Painting ${classes.all[classes.chosen].name}.`),
});

function label() {
  return document.querySelector("[name=tool]:checked").value === "erase" ? NONE : classes.chosen;
}

// In a box, or anywhere.
function painted(box) {
  server.setMarks(strokes.marks);
  canvas.drawStrokes(strokes, classes.colours, box);
  changed();
}

// step: what undo and redo of the strokes return.
function takeBack(step) {
  if (!step) return;
  if (step.classes) classes.set(step.classes, probabilities);
  if (step.marked) {
    breakOff(); // which may number the classes otherwise
    refreshClasses();
    painted();
  } else {
    showClasses();
  }
  undoable();
}

function undoable() {
  canvas.disable($("undo"), !strokes.done.length);
  canvas.disable($("redo"), !strokes.undone.length);
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
  }
});

// A key that is pressed on the photograph.
function shortcut(key) {
  if (probabilities) return;
  if (/^[1-9]$/.test(key)) classes.choose(Number(key) - 1);
  if (key === "e") setTool("erase");
  if (key === "b") setTool("paint");
  if (key === "[" || key === "]") setSize(Number($("size").value) + (key === "]" ? 1 : -1));
}

// ---- classes

classes.addEventListener("choose", () => {
  setTool("paint");
  if (shownView() !== "heat") return;
  $("heat").value = String(classes.chosen);
  changed(true);
});
classes.addEventListener("shown", showClasses);
classes.addEventListener("edit", ({ detail }) => {
  strokes.changeClasses(detail);
  refreshClasses();
  undoable();
});
classes.addEventListener("remove", ({ detail: index }) => {
  const before = classes.copy();
  const after = before.filter((_, k) => k !== index);
  strokes.replace(strokes.marks.map((k) =>
    k === NONE || k < index ? k : k === index ? NONE : k - 1), [before, after]);
  takeBack({ classes: after, marked: true });
});

function showClasses() {
  refreshClasses();
  canvas.colour(classes.colours);
  canvas.drawStrokes(strokes, classes.colours);
}

function refreshClasses() {
  const chosen = heatClass();
  $("heat").replaceChildren(...classes.all.map((each, k) => new Option(each.name, k)));
  $("heat").value = String(Math.min(chosen, classes.all.length - 1));
  canvas.disable($("add"), classes.fixed || classes.all.length >= MOST);
}

function heatClass() {
  return Number($("heat").value) || 0;
}

// ---- what is shown

function shownView() {
  return document.querySelector("[name=view]:checked").value;
}

function setView() {
  const view = shownView();
  canvas.shown.view = view;
  if (view === "heat") $("heat").value = String(classes.chosen);
  $("compare-row").hidden = view !== "compare";
  $("heat-row").hidden = view !== "heat";
  $("steps-row").hidden = view !== "steps";
  steps.wait();
  canvas.disable($("opacity"), view === "heat"); // whose colours say how much
  canvas.draw();
  if (view === "heat" || view === "steps" || !canvas.whole || work.asked) changed(true);
}

// ---- settings and downloads

async function download(file) {
  const saved = `${name}_${file}`;
  sayMeanwhile(`Making ${file}…`);
  forget("download");
  try {
    const content = await server.download(file, { ...wish(), classes: classes.all });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(content);
    link.download = saved;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    say(`${saved} is downloaded.`);
  } catch (error) {
    settle();
    failed("download", error);
  }
}

// ---- wiring

onClose(() => canvas.element.focus());
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
  takeBack({ classes: null, marked: true });
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
$("add").addEventListener("click", () => classes.add());
$("reset").addEventListener("click", () => {
  numbers.values = probabilities ? start.network : start.scribbles;
  $("method").value = "permutohedral";
  changed(true);
});
$("method").addEventListener("change", () => changed(true));
$("downloads").addEventListener("click", (event) => {
  const file = event.target.dataset.file;
  if (file) download(file);
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
  startTheme($("theme"));
  const about = await server.about();
  start = about.start;
  most = about.upload;
  numbers.values = start.scribbles;
  others = start.network;
  $("segment").hidden = !about.network;
  $("whither").textContent = about.local
    ? "Photographs go to deeplab app where you started it, and to no other machine."
    : `Photographs go to deeplab app at ${location.host}, and no further. Others who reach that `
      + "address can use it too.";
  const given = about.given.map((each) => new Option(each, "given=1"));
  const shipped = about.examples.map((each) => new Option(each.title, `example=${each.name}`));
  const own = new Option();
  own.hidden = true;
  $("examples").replaceChildren(...given, ...shipped, own);
  await openPhotograph($("examples").value);
}

begin().catch((error) => {
  say("");
  failed("open", error);
});

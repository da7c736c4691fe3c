// The scribbles: a class for each pixel, 255 where there is none; painted with a round brush of
// hard edges, since soft ones would be other classes. Each stroke can be taken back, and each
// change of the classes.

export const NONE = 255;
const KEPT = 64 * 1024 * 1024; // bytes of strokes that can be taken back
const NOWHERE = { left: 0, top: 0, right: 0, bottom: 0 };

export class Strokes {
  constructor(width, height, marks) {
    this.width = width;
    this.height = height;
    this.marks = marks ? marks.slice() : new Uint8Array(width * height).fill(NONE);
    this.done = [];
    this.undone = [];
    this.before = null;
    this.box = null;
  }

  begin() {
    this.before = this.marks.slice();
    this.box = null;
  }

  // A line of discs between two points, in pixels; diameter of the brush; a class or NONE.
  line(from, to, diameter, label) {
    const length = Math.hypot(to.x - from.x, to.y - from.y);
    const count = Math.max(1, Math.ceil(length / Math.max(1, diameter / 4)));
    for (let i = 0; i <= count; i++) {
      const t = i / count;
      this.#disc(from.x + t * (to.x - from.x), from.y + t * (to.y - from.y), diameter / 2, label);
    }
    return this.box;
  }

  // End a stroke. classes: [before, after] where these change with it.
  end(classes = null) {
    const before = this.before;
    this.before = null;
    if (!before || (!this.box && !classes)) return;
    const box = this.box ?? NOWHERE;
    this.done.push({ box, before: cut(before, box, this.width),
                     after: cut(this.marks, box, this.width), classes });
    this.undone = [];
    let bytes = 0;
    for (let i = this.done.length - 1; i >= 0; i--) {
      bytes += 2 * this.done[i].before.length;
      if (bytes > KEPT) {
        this.done.splice(0, i + 1);
        break;
      }
    }
  }

  // Classes [before, after] that change, and no stroke with them.
  changeClasses(classes) {
    this.begin();
    this.end(classes);
  }

  // Replace all of it, such as by a label map, as one stroke.
  replace(marks, classes) {
    this.begin();
    this.marks.set(marks);
    this.box = { left: 0, top: 0, right: this.width, bottom: this.height };
    this.end(classes);
  }

  // { classes, marked }: the classes to go back to, null where they stay, and whether strokes
  // changed; null if nothing was done.
  undo() {
    return this.#step(this.done, this.undone, "before", 0);
  }

  redo() {
    return this.#step(this.undone, this.done, "after", 1);
  }

  #step(from, to, side, index) {
    const stroke = from.pop();
    if (!stroke) return null;
    to.push(stroke);
    paste(stroke[side], stroke.box, this.marks, this.width);
    return { classes: stroke.classes?.[index] ?? null, marked: stroke.box !== NOWHERE };
  }

  // How many classes have a stroke.
  get present() {
    const found = new Uint8Array(256);
    for (const label of this.marks) found[label] = 1;
    found[NONE] = 0;
    return found.reduce((sum, each) => sum + each);
  }

  #disc(x, y, radius, label) {
    const left = Math.max(0, Math.floor(x - radius)), top = Math.max(0, Math.floor(y - radius));
    const right = Math.min(this.width, Math.ceil(x + radius) + 1);
    const bottom = Math.min(this.height, Math.ceil(y + radius) + 1);
    if (left >= right || top >= bottom) return;
    const reach = Math.max(radius, 0.75) ** 2;
    for (let v = top; v < bottom; v++) {
      for (let u = left; u < right; u++) {
        if ((u + 0.5 - x) ** 2 + (v + 0.5 - y) ** 2 <= reach) this.marks[v * this.width + u] = label;
      }
    }
    const box = this.box ?? { left, top, right, bottom };
    this.box = { left: Math.min(box.left, left), top: Math.min(box.top, top),
                 right: Math.max(box.right, right), bottom: Math.max(box.bottom, bottom) };
  }
}

function cut(marks, box, width) {
  const columns = box.right - box.left;
  const part = new Uint8Array(columns * (box.bottom - box.top));
  for (let v = box.top; v < box.bottom; v++) {
    const start = v * width + box.left;
    part.set(marks.subarray(start, start + columns), (v - box.top) * columns);
  }
  return part;
}

function paste(part, box, marks, width) {
  const columns = box.right - box.left;
  for (let v = box.top; v < box.bottom; v++) {
    const row = (v - box.top) * columns;
    marks.set(part.subarray(row, row + columns), v * width + box.left);
  }
}

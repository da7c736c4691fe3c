// Painting on the canvas: with a mouse, a pen or a finger, and with the keys, which do something
// only while the canvas has the focus.

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 4, LONG_STEP = 20; // pixels of an arrow key, and with Shift

export class Painter {
  // page: { strokes(), label(), diameter(), allowed(), painted(box), ended(), say(down), key(key) }
  constructor(canvas, page) {
    this.canvas = canvas;
    this.page = page;
    this.pen = null; // where it is, while it is down
    this.cursor = null; // where the keys have moved the brush
    const element = canvas.element;
    element.addEventListener("pointerdown", (event) => this.#pointerDown(event));
    element.addEventListener("pointermove", (event) => this.#pointerMove(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      element.addEventListener(end, () => {
        if (!this.cursor) this.#up(); // the keys lift their own brush
      });
    }
    element.addEventListener("keydown", (event) => this.#key(event));
    element.addEventListener("blur", () => {
      this.#up();
      this.#hideCursor();
    });
  }

  // The brush of the keys, on the canvas.
  showCursor() {
    this.canvas.brush = this.cursor && { ...this.cursor, diameter: this.page.diameter() };
    this.canvas.draw();
  }

  #hideCursor() {
    this.cursor = null;
    this.showCursor();
  }

  #pointerDown(event) {
    if (event.button || !this.page.allowed()) return;
    event.preventDefault();
    this.#up();
    this.#hideCursor();
    this.canvas.element.focus({ preventScroll: true });
    this.canvas.element.setPointerCapture(event.pointerId);
    this.#down(this.#at(event));
  }

  #pointerMove(event) {
    if (!this.pen || this.cursor) return;
    const moves = event.getCoalescedEvents?.() ?? [];
    for (const each of moves.length ? moves : [event]) this.#lineTo(this.#at(each));
  }

  #key(event) {
    const typed = event.getModifierState("AltGraph"); // brackets, on many keyboards
    if (!typed && (event.ctrlKey || event.metaKey || event.altKey)) return;
    const move = STEPS[event.key];
    if (!move && event.key !== " ") {
      this.page.key(event.key.toLowerCase());
      return;
    }
    event.preventDefault();
    const { width, height } = this.page.strokes();
    this.cursor ??= { x: width / 2, y: height / 2 };
    if (move) {
      const step = event.shiftKey ? LONG_STEP : STEP;
      this.cursor = {
        x: Math.min(width - 1, Math.max(0, this.cursor.x + step * move[0])),
        y: Math.min(height - 1, Math.max(0, this.cursor.y + step * move[1])),
      };
      if (this.pen) this.#lineTo(this.cursor);
    } else if (this.pen) {
      this.#up();
      this.page.say(false);
    } else if (!event.repeat && this.page.allowed()) {
      this.#down(this.cursor);
      this.page.say(true);
    }
    this.showCursor();
  }

  #at(event) {
    const box = this.canvas.element.getBoundingClientRect();
    const { width, height } = this.page.strokes();
    return {
      x: ((event.clientX - box.left) / box.width) * width,
      y: ((event.clientY - box.top) / box.height) * height,
    };
  }

  #down(point) {
    this.page.strokes().begin();
    this.pen = point;
    this.#lineTo(point);
  }

  #lineTo(point) {
    const box = this.page.strokes().line(this.pen, point, this.page.diameter(), this.page.label());
    this.pen = point;
    if (box) this.page.painted(box);
  }

  #up() {
    if (!this.pen) return;
    this.pen = null;
    this.page.strokes().end();
    this.page.ended();
  }
}

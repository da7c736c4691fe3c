// The classes: names and colours, as a list in which one is chosen to paint with.
//
// Events: "choose"; "shown" while a name or colour is being changed; "edit" when a class has been
// added, named or coloured, with [before, after]; "remove", with the class, which the page removes.

const COLOURS = ["#3c6fd1", "#e07b39", "#3f9c6d", "#b5467f", "#8367c7", "#d1a429", "#2fa4b8",
  "#c24a46", "#7a8a3a", "#5d6b82"];
export const MOST = 255;

export class Classes extends EventTarget {
  constructor(list) {
    super();
    this.list = list;
    this.all = [];
    this.chosen = 0;
    this.fixed = false; // those of a network: no more and no fewer
  }

  // classes: [{name, colour: [r, g, b]}]; none: two to begin with.
  set(classes, fixed = false) {
    const start = [{ name: "background", colour: rgb(COLOURS[0]) },
      { name: "object", colour: rgb(COLOURS[1]) }];
    this.all = (classes.length ? classes : start).map((each) => ({ ...each }));
    this.before = this.copy(); // the change that is being made
    this.fixed = fixed;
    this.chosen = Math.min(this.chosen, this.all.length - 1);
    this.draw();
  }

  get colours() {
    return this.all.map((each) => each.colour);
  }

  copy() {
    return this.all.map((each) => ({ ...each }));
  }

  choose(index) {
    if (index >= this.all.length) return;
    this.chosen = index;
    const radio = this.list.children[index].querySelector("input[type=radio]");
    radio.checked = true;
    this.#tell("choose");
  }

  add() {
    const number = this.all.length;
    if (number >= MOST) return;
    this.all.push({ name: `class ${number + 1}`, colour: rgb(COLOURS[number % COLOURS.length]) });
    this.chosen = number;
    this.draw();
    this.#edited();
    this.list.lastElementChild.querySelector("input[type=text]").select();
  }

  // The keys stay where they are in the list: in the row that takes the place of a removed one.
  draw() {
    const focused = document.activeElement;
    const row = [...this.list.children].findIndex((each) => each.contains(focused));
    const place = row < 0 ? 0 : [...this.list.children[row].children].indexOf(focused);
    this.list.replaceChildren(...this.all.map((each, index) => this.#row(each, index)));
    if (row < 0) return;
    const controls = [...this.list.children[Math.min(row, this.all.length - 1)].children];
    [controls[place], ...controls].find((each) => !each.hidden && !each.disabled).focus();
  }

  #edited() {
    const before = this.before, after = this.copy();
    this.before = after;
    if (JSON.stringify(before) !== JSON.stringify(after)) this.#tell("edit", [before, after]);
  }

  #row(each, index) {
    const row = document.createElement("li");
    const radio = input("radio");
    radio.name = "class";
    radio.checked = index === this.chosen;
    radio.disabled = this.fixed;
    radio.addEventListener("change", () => this.choose(index));
    const colour = input("color", hex(each.colour));
    colour.addEventListener("input", () => {
      each.colour = rgb(colour.value);
      this.#tell("shown");
    });
    colour.addEventListener("change", () => this.#edited());
    const name = input("text", each.name);
    name.maxLength = 60;
    name.spellcheck = false;
    name.setAttribute("aria-label", `Name of class ${index + 1}`);
    name.addEventListener("focus", () => this.fixed || this.choose(index));
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "plain";
    remove.textContent = "×";
    remove.hidden = this.fixed || this.all.length < 2;
    remove.addEventListener("click", () => this.#tell("remove", index));
    const label = () => {
      radio.setAttribute("aria-label", `Paint ${each.name}`);
      colour.setAttribute("aria-label", `Colour of ${each.name}`);
      remove.setAttribute("aria-label", `Remove ${each.name} and its strokes`);
      remove.title = `Remove ${each.name} and its strokes`;
    };
    label();
    name.addEventListener("input", () => {
      each.name = name.value;
      label();
      this.#tell("shown");
    });
    name.addEventListener("change", () => this.#edited());
    row.append(radio, colour, name, remove);
    return row;
  }

  #tell(what, detail) {
    this.dispatchEvent(new CustomEvent(what, { detail }));
  }
}

function input(type, value = "") {
  const element = document.createElement("input");
  element.type = type;
  element.value = value;
  return element;
}

function rgb(text) {
  return [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
}

function hex(colour) {
  return "#" + colour.map((level) => level.toString(16).padStart(2, "0")).join("");
}

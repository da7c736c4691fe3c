// The sliders: one for each number of the CRF's settings.

// Name of the setting, what it is called (| begins a subscript), range, step, and what it does.
const NUMBERS = [
  ["bilateral_weight", "Appearance weight w|1", 0, 20, 0.5,
    "How strongly pixels of similar colour want the same class."],
  ["bilateral_sigma_xy", "Appearance reach σ|xy", 1, 150, 1,
    "How far apart such pixels may be, in pixels."],
  ["bilateral_sigma_rgb", "Colour tolerance σ|rgb", 1, 60, 0.5,
    "Which colours count as similar, in grey levels, 0 to 255."],
  ["gaussian_weight", "Smoothness weight w|2", 0, 20, 0.5,
    "How strongly neighbours of any colour want the same class."],
  ["gaussian_sigma_xy", "Smoothness reach σ", 0.5, 20, 0.5, "Removes specks of about this size."],
  ["iterations", "Iterations", 0, 20, 1, "Mean-field updates. The tab Iterations shows each."],
  ["gt_prob", "Trust in strokes", 0.55, 0.99, 0.01, "Lower lets the CRF overrule a slip of the pen."],
];

export class Numbers {
  // list: the element to fill. changed: what to call when a slider moves.
  constructor(list, changed) {
    this.sliders = {};
    this.outputs = {};
    for (const [key, title, min, max, step, help] of NUMBERS) {
      const row = document.createElement("div");
      row.className = "number";
      row.innerHTML = "<label></label><output></output><input type=range><p class=quiet></p>";
      const [text, output, range, hint] = row.children;
      const [word, below] = title.split("|");
      text.textContent = word;
      if (below) text.append(Object.assign(document.createElement("sub"), { textContent: below }));
      text.htmlFor = range.id = `number-${key}`;
      hint.textContent = help;
      hint.id = `help-${key}`;
      range.setAttribute("aria-describedby", hint.id);
      Object.assign(range, { min, max, step });
      range.addEventListener("input", () => {
        output.value = range.value;
        changed();
      });
      this.sliders[key] = range;
      this.outputs[key] = output;
      list.append(row);
    }
  }

  // Numbers by name.
  get values() {
    return Object.fromEntries(
      Object.entries(this.sliders).map(([key, range]) => [key, Number(range.value)]),
    );
  }

  set values(numbers) {
    for (const [key, range] of Object.entries(this.sliders)) {
      range.value = numbers[key];
      this.outputs[key].value = range.value;
    }
  }
}

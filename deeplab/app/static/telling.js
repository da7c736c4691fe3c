// What the page says: one line of how things stand, and what failed, until it succeeds, is tried
// again, or is closed.

const $ = (id) => document.getElementById(id);

const failures = new Map(); // why what failed: "refine", "open" or "download"
let lasting = ""; // how things stand

// text: how things stand from now on.
export function say(text) {
  lasting = text;
  $("status").textContent = text;
}

// text: what is going on, until `say` or `settle`.
export function sayMeanwhile(text) {
  $("status").textContent = text;
}

// What went on has ended without a change: things stand as before.
export function settle() {
  $("status").textContent = lasting;
}

export function failed(what, error) {
  failures.set(what, error.message ?? String(error));
  document.body.dataset.state ??= "failed";
  showFailures();
}

// Once the same succeeds, is tried again, or the person goes on with something else.
export function forget(...what) {
  for (const each of what) failures.delete(each);
  showFailures();
}

// closed: what to do once the person has closed the failures.
export function onClose(closed) {
  $("close-trouble").addEventListener("click", () => {
    forget(...failures.keys());
    closed();
  });
}

function showFailures() {
  $("reasons").replaceChildren(...[...failures.values()].map((why) =>
    Object.assign(document.createElement("p"), { textContent: why })));
  $("trouble").hidden = !failures.size;
}

// Light or dark: what the person prefers elsewhere, until the button says otherwise.

export function startTheme(button) {
  const set = (dark) => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
  };
  set(matchMedia("(prefers-color-scheme: dark)").matches);
  button.addEventListener("click", () => set(button.getAttribute("aria-pressed") === "false"));
}

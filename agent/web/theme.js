// Light, dark, or as the system is; kept on this device.

import { byId } from "./dom.js";

const THEMES = ["system", "light", "dark"];
const KEY = "holdfast.theme";

export function startTheme() {
  const button = byId("theme");
  let theme = THEMES.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "system";
  const apply = () => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    localStorage.setItem(KEY, theme);
    apply();
  });
  apply();
}

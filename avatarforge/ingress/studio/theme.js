// Light, dark, or as the system has it.

import { $, icon } from "./dom.js";
import { t } from "./i18n.js";

const THEMES = { auto: "auto", light: "sun", dark: "moon" };
const root = document.documentElement;

export function showTheme() {
  const theme = root.dataset.theme;
  const label = t("theme", { theme: t(`theme_${theme}`) });
  $("#theme-button").replaceChildren(icon(THEMES[theme]));
  $("#theme-button").setAttribute("aria-label", label);
  $("#theme-button").title = label;
}

export function startTheme() {
  $("#theme-button").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    root.dataset.theme = names[(names.indexOf(root.dataset.theme) + 1) % names.length];
    localStorage.setItem("avatarforge.theme", root.dataset.theme);
    showTheme();
  });
  showTheme();
}

// The page's language: the browser's at first, then what was chosen here.

import en from "./en.js";
import pt from "./pt.js";
import { $$ } from "./dom.js";

const LANGUAGES = { en, pt };
const KEY = "avatarforge.language";
const listeners = new Set();

let chosen = pick(localStorage.getItem(KEY), ...navigator.languages);

function pick(...wanted) {
  return wanted.map((tag) => (tag ?? "").slice(0, 2).toLowerCase()).find((tag) => tag in LANGUAGES) ?? "en";
}

export const language = () => chosen;
export const otherLanguage = () => (chosen === "en" ? "pt" : "en");

export function setLanguage(wanted) {
  chosen = pick(wanted);
  localStorage.setItem(KEY, chosen);
  translatePage();
  for (const listener of listeners) listener();
}

export const onLanguage = (listener) => listeners.add(listener);

export const has = (key) => key in LANGUAGES[chosen];

// t("step", {step: 3, total: 25}): the string with its {names} filled in.
export function t(key, facts = {}) {
  return LANGUAGES[chosen][key].replace(/\{(\w+)\}/g, (_, name) => facts[name] ?? "");
}

export function translatePage() {
  document.documentElement.lang = chosen;
  for (const element of $$("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of $$("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const element of $$("[data-t-placeholder]")) element.placeholder = t(element.dataset.tPlaceholder);
}

export const number = (value, digits = 0) =>
  new Intl.NumberFormat(chosen, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(
    value,
  );

// "about 12 s", "about 3 min"
export function duration(seconds, digits = 1) {
  if (seconds < 1) return t("milliseconds", { n: number(seconds * 1000) });
  if (seconds < 90) return t("seconds", { n: number(seconds, seconds < 10 ? digits : 0) });
  return t("minutes", { n: number(seconds / 60) });
}

// In the page's language as the browser's own country writes it: a British browser has no "PM".
export function moment(text) {
  const time = new Date(text);
  const today = time.toDateString() === new Date().toDateString();
  const { hourCycle } = new Intl.DateTimeFormat(navigator.language, { hour: "numeric" }).resolvedOptions();
  const locale = navigator.languages.find((tag) => tag.startsWith(chosen)) ?? chosen;
  const dateStyle = today ? undefined : "medium";
  return new Intl.DateTimeFormat(locale, { dateStyle, timeStyle: "short", hourCycle }).format(time);
}

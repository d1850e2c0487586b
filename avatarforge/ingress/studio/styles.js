// What styles are called, and a small drawing for each: those that are known by name have one of their own.

import { t } from "./i18n.js";

const DRAWN = ["flat-illustration", "neon", "oil-painting", "pencil-sketch", "pixel-art", "watercolor"];

export const drawing = (style) =>
  new URL(`styles/${DRAWN.includes(style) ? style : "any"}.svg`, import.meta.url);

let titles = new Map();

export const learnTitles = (styles) => (titles = new Map(styles.map(({ name, title }) => [name, title])));
export const allStyles = () => [...titles.keys()];
// The server's titles are English.
export function titleOf(style) {
  if (document.documentElement.lang !== "en" && DRAWN.includes(style)) return t(`style_${style}`);
  return titles.get(style) ?? style;
}

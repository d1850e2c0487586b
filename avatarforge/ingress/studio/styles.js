// A small drawing for each style: those that are known by name have one of their own.

const DRAWN = ["flat-illustration", "neon", "oil-painting", "pencil-sketch", "pixel-art", "watercolor"];

export const drawing = (style) =>
  new URL(`styles/${DRAWN.includes(style) ? style : "any"}.svg`, import.meta.url);

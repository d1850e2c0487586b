// Small helpers to build and change the page. Text only ever becomes text.

export const $ = (selector, within = document) => within.querySelector(selector);
export const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

// h("button.tool", {type: "button", onclick: act}, icon("close"), "Close")
export function h(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(
    ...children.flat(2).filter((child) => child !== undefined && child !== null && child !== false),
  );
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function button(look, symbol, text, onclick, attributes = {}) {
  return h(
    `button.${look}`,
    { type: "button", onclick, ...attributes },
    symbol && icon(symbol),
    h("span", {}, text),
  );
}

// A screen reader reads out what is written to a live region, even if it is the same again.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Puts new children in place of the old ones. What had the focus keeps it where its data-key comes again; else what
// stands in its place gets it, or the heading of the view, so that it never falls to the page as a whole. A child that
// holds elements of before is given as a function: to build it takes them, and the focus, from where they are.
export function replace(element, ...children) {
  const active = document.activeElement;
  const held = element.contains(active);
  const place = held ? keyed(element).indexOf(active.closest("[data-key]")) : -1;
  const { key } = active.dataset;
  const built = children.map((child) => (typeof child === "function" ? child() : child));
  element.replaceChildren(...built.flat(2).filter(Boolean));
  if (!held || element.contains(document.activeElement)) return;
  const others = keyed(element);
  const next = others.find((other) => other.dataset.key === key) ?? others[Math.min(place, others.length - 1)];
  (next ?? element.closest(".view")?.querySelector("h1[tabindex]") ?? $("#main")).focus({ preventScroll: true });
}

const keyed = (element) => $$("[data-key]", element).filter((one) => one.checkVisibility());

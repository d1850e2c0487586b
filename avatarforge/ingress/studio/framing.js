// The photo on the stage before it is sent: whole, or under a square frame that one moves by hand.

import { button, h, icon } from "./dom.js";
import { t } from "./i18n.js";
import { clear, cropByHand, photo } from "./photo.js";

const STEP = 0.05;
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function framing() {
  return [
    photo.image ? preview() : unseen(),
    h("p.error", { id: "photo-error", role: "alert", hidden: true }),
    tools(),
  ];
}

function preview() {
  return photo.byHand
    ? frame()
    : h("figure.whole", {}, wholePhoto(), h("figcaption.chip-over", {}, icon("face"), t("faceHint")));
}

function wholePhoto() {
  photo.image.alt = t("yourPhoto");
  photo.image.removeAttribute("style");
  photo.image.draggable = false;
  return photo.image;
}

function unseen() {
  return h(
    "div.unreadable",
    {},
    icon("photo"),
    h("strong", {}, photo.file.name),
    h("p", {}, t("cannotShow")),
  );
}

function tools() {
  const choice = (byHand, symbol, text) =>
    button(`choice${photo.byHand === byHand ? ".on" : ""}`, symbol, text, () => cropByHand(byHand), {
      "aria-pressed": String(photo.byHand === byHand),
      "data-key": `crop-${byHand}`,
    });
  return h(
    "div.stage-tools",
    {},
    photo.image &&
      h(
        "div.choices",
        { role: "group", "aria-label": t("crop") },
        choice(false, "face", t("automatic")),
        choice(true, "crop", t("byHand")),
      ),
    photo.byHand && zoomField(),
    button("plain", "close", t("otherPhoto"), clear, { "data-key": "other-photo" }),
  );
}

function zoomField() {
  const slider = h("input", {
    type: "range",
    id: "zoom",
    min: 1,
    max: 6,
    step: 0.05,
    value: photo.crop.zoom,
    "aria-label": t("zoom"),
  });
  slider.addEventListener("input", () => {
    photo.crop.zoomTo(Number(slider.value));
    place();
  });
  return slider;
}

function frame() {
  const element = h(
    "div.frame",
    {
      tabindex: 0,
      role: "group",
      "aria-label": t("cropFrame"),
      "aria-describedby": "crop-hint",
      "data-key": "frame",
    },
    wholePhoto(),
    h("span.thirds", { "aria-hidden": "true" }),
    h("span.unseen", { id: "crop-hint" }, t("cropHint")),
  );
  movedByKeys(element);
  movedByPointers(element);
  element.addEventListener(
    "wheel",
    (event) => zoomed(event, photo.crop.zoom * Math.exp(-event.deltaY / 400)),
    { passive: false },
  );
  place();
  return element;
}

function place() {
  Object.assign(photo.image.style, photo.crop.placed());
  const slider = document.getElementById("zoom");
  if (slider) slider.value = photo.crop.zoom;
}

function zoomed(event, zoom) {
  event.preventDefault();
  photo.crop.zoomTo(zoom);
  place();
}

function movedByKeys(element) {
  element.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") zoomed(event, photo.crop.zoom * 1.1);
    if (event.key === "-") zoomed(event, photo.crop.zoom / 1.1);
    const direction = KEYS[event.key];
    if (!direction) return;
    event.preventDefault();
    photo.crop.move(direction[0] * STEP, direction[1] * STEP);
    place();
  });
}

// One pointer moves the photo under the frame, two pinch it.
function movedByPointers(element) {
  const pointers = new Map();
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  element.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const before = pointers.size === 2 ? spread() : 0;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const size = element.clientWidth * pointers.size;
    photo.crop.move((last.x - event.clientX) / size, (last.y - event.clientY) / size);
    if (before) photo.crop.zoomTo((photo.crop.zoom * spread()) / before);
    place();
  });
  for (const end of ["pointerup", "pointercancel"])
    element.addEventListener(end, (event) => pointers.delete(event.pointerId));
}

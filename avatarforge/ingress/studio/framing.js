// The photo on the stage before it is sent, and over it the frame of the square that is cut from it: moved and
// resized by mouse, touch and keys.

import { button, h, icon } from "./dom.js";
import { t } from "./i18n.js";
import { clear, framed, look, photo } from "./photo.js";
import { say } from "./say.js";

const STEP = 0.05; // of the square's side
const FASTER = 1.1;
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const CORNERS = [
  [-1, -1],
  [1, -1],
  [1, 1],
  [-1, 1],
];
const SAY_PAUSE = 700; // milliseconds without a key until the frame's place is read out
let parts = {}; // of what is on the stage now

export function framing() {
  parts = {};
  const error = h("p.error", { id: "photo-error", role: "alert" }, photo.problem && told(photo.problem));
  error.hidden = !photo.problem || photo.problem.status === 401;
  const stage = [photo.image ? preview() : unseen(), error, tools()];
  showFrame();
  return stage;
}

// The server will not take the file, whatever is done with it here.
const isRefused = () => Boolean(photo.problem && !photo.problem.passes && photo.problem.status !== 401);

const told = (problem) => (problem.passes ? t("lookAgain", { reason: problem.message }) : problem.message);

function preview() {
  photo.image.alt = t("yourPhoto");
  photo.image.draggable = false;
  parts.frame = frame();
  const whole = h("figure.whole", {}, photo.image, parts.frame);
  // A click beside the frame brings it there, for those who cannot drag.
  photo.image.onclick = (event) => {
    photo.crop.moveTo(...inPhoto(event));
    framed();
  };
  return whole;
}

function unseen() {
  if (photo.preview) return h("figure.whole", {}, h("img", { src: photo.preview, alt: t("yourSquare") }));
  return h(
    "div.unreadable",
    {},
    icon("photo"),
    h("strong", { dir: "auto" }, photo.file.name),
    !isRefused() && h("p", {}, t("cannotShow")),
  );
}

function tools() {
  parts.again = button("plain", "face", t("aroundFace"), () => look(), { "data-key": "around-face" });
  const other = button("plain", "close", t("otherPhoto"), clear, { "data-key": "other-photo" });
  parts.place = h("p.crop-place", { id: "crop-place" });
  return h("div.stage-tools", {}, parts.place, photo.image && sizeField(), parts.again, other);
}

function sizeField() {
  parts.size = h("input", { type: "range", id: "crop-size", "data-key": "crop-size", step: "any" });
  parts.size.setAttribute("aria-label", t("cropSize"));
  parts.size.addEventListener("input", () => {
    photo.crop.resize(Number(parts.size.value));
    framed();
  });
  return parts.size;
}

// Puts frame, slider and words to what the photo has now.
export function showFrame() {
  const { place, crop } = photo;
  parts.again.hidden = place !== "hand";
  parts.place.hidden = isRefused();
  const words = photo.image ? place : photo.preview ? "server" : "unknown";
  parts.place.replaceChildren(icon(place === "hand" ? "crop" : "face"), h("span", {}, t(`place_${words}`)));
  if (!parts.frame) return;
  const { left, top, width, height } = crop.shares();
  const percent = (share) => `${share * 100}%`;
  Object.assign(parts.frame.style, {
    left: percent(left),
    top: percent(top),
    width: percent(width),
    height: percent(height),
  });
  parts.frame.classList.toggle("seeking", place === "looking" || place === "unknown");
  Object.assign(parts.size, { min: crop.least, max: crop.most, value: crop.side });
  parts.size.setAttribute("aria-valuetext", t("percent", { n: Math.round(width * 100) }));
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
    h("span.thirds", { "aria-hidden": "true" }),
    CORNERS.map(([across, down]) =>
      h("i.corner", { "aria-hidden": "true", "data-across": across, "data-down": down }),
    ),
    h("span.unseen", { id: "crop-hint" }, t("cropHint")),
  );
  movedByKeys(element);
  movedByPointers(element);
  element.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      photo.crop.resize(photo.crop.side * Math.exp(event.deltaY / 400));
      framed();
    },
    { passive: false },
  );
  return element;
}

// The pointer's place in pixels of the photo.
function inPhoto({ clientX, clientY }) {
  const box = photo.image.getBoundingClientRect();
  const scale = photo.crop.width / box.width;
  return [(clientX - box.left) * scale, (clientY - box.top) * scale];
}

function movedByKeys(element) {
  let saying;
  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own
    const { crop } = photo;
    const direction = KEYS[event.key];
    if (direction) crop.move(direction[0] * STEP * crop.side, direction[1] * STEP * crop.side);
    else if (event.key === "+" || event.key === "=") crop.resize(crop.side * FASTER);
    else if (event.key === "-") crop.resize(crop.side / FASTER);
    else return;
    event.preventDefault();
    framed();
    clearTimeout(saying);
    saying = setTimeout(() => {
      const { left, top, width } = crop.shares();
      const [x, y, n] = [left, top, width].map((share) => Math.round(share * 100));
      say(t("frameAt", { x, y, n }));
    }, SAY_PAUSE);
  });
}

// One pointer moves the frame, or draws a corner of it; two pinch it.
function movedByPointers(element) {
  const pointers = new Map();
  let corner = null;
  const spread = () => {
    const [[ax, ay], [bx, by]] = [...pointers.values()];
    return Math.hypot(ax - bx, ay - by);
  };
  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, inPhoto(event));
    const { across, down } = event.target.dataset;
    corner = across ? [Number(across), Number(down)] : null;
  });
  element.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const [x, y] = inPhoto(event);
    const before = pointers.size === 2 ? spread() : 0;
    pointers.set(event.pointerId, [x, y]);
    if (before) photo.crop.resize((photo.crop.side * spread()) / before);
    else if (corner) photo.crop.drawCorner(...corner, x, y);
    else photo.crop.move(x - last[0], y - last[1]);
    framed();
  });
  for (const end of ["pointerup", "pointercancel"])
    element.addEventListener(end, (event) => pointers.delete(event.pointerId));
}

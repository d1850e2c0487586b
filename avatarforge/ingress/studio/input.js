// How a photo comes in: chosen, dropped, pasted, or taken with the camera.

import * as api from "./api.js";
import { $, button, h, icon } from "./dom.js";
import { number, t } from "./i18n.js";
import { ask } from "./dialogs.js";
import { takePhoto } from "./camera.js";
import { choose } from "./photo.js";
import { drawing } from "./styles.js";

const FAN = ["pencil-sketch", "watercolor", "neon"];
// Not `image/*`, which has drawings and RAW pictures too; some systems know HEIC by its ending alone.
const TAKEN =
  "image/jpeg,image/png,image/webp,image/gif,image/heic,image/heif,image/avif,image/tiff,image/bmp,.heic,.heif";
// Nothing is dropped or pasted with a finger.
const isTouched = () => matchMedia("(hover: none)").matches;
const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

let about = null; // what the server says of photos and links

// How many seconds a link to an avatar may work that needs no key; 0 where the server signs none.
export const longestLink = () => about?.maxLinkSeconds ?? 0;

export async function loadAbout() {
  about = await api.about();
  $("#consent")?.replaceChildren(...consent());
}

function consent() {
  if (!about) return [];
  const days = about.jobRetentionDays;
  const kept = days ? t("keptFor", { days: number(days, days % 1 ? 1 : 0) }) : t("keptOn");
  const terms = h("a", { href: about.termsUrl, target: "_blank", rel: "noopener" }, t("terms"));
  return [`${t("consent")} ${kept} `, about.termsUrl && terms].filter(Boolean);
}

// What the empty stage shows.
export function invitation() {
  const input = h("input.unseen", {
    type: "file",
    id: "photo",
    "data-key": "photo",
    accept: TAKEN,
    multiple: true,
    "aria-describedby": "photo-hint",
  });
  input.addEventListener("change", () => take([...input.files]));
  return h(
    "div.invitation",
    {},
    h(
      "div.fan",
      { "aria-hidden": "true" },
      FAN.map((style) => h("img", { src: drawing(style), alt: "" })),
    ),
    h("h2", {}, isTouched() ? t("choosePortrait") : t("dropPhoto")),
    h("p", { id: "photo-hint" }, isTouched() ? t("chooseHint") : t("dropHint")),
    h(
      "div.ways",
      {},
      input,
      h("label.primary", { for: "photo" }, icon("photo"), h("span", {}, t("choosePhoto"))),
      hasCamera() && button("secondary", "camera", t("takePhoto"), takeOne, { "data-key": "camera" }),
    ),
    h("p.consent", { id: "consent" }, consent()),
  );
}

async function takeOne() {
  const file = await takePhoto();
  if (file) choose(file);
}

const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

let onMany = () => {};

// One photo is shown; of several each becomes an avatar, if that is meant.
async function take(files) {
  if (files.length === 1) return choose(files[0]);
  if (!files.length) return undefined;
  const answer = await ask({
    title: t("several", { n: files.length }),
    text: t("severalText"),
    yes: t("forge"),
    focus: "button[value='yes']",
  });
  return answer.value === "yes" ? onMany(files) : undefined;
}

export function startInput(onChosen, onSeveral) {
  const cover = $("#dropping");
  onMany = onSeveral;
  const takeOf = (event, data) => {
    const files = [...(data?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    onChosen();
    take(files);
  };
  addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    cover.hidden = false;
  });
  addEventListener("dragleave", (event) => (cover.hidden = !event.relatedTarget ? true : cover.hidden));
  addEventListener("drop", (event) => {
    cover.hidden = true;
    takeOf(event, event.dataTransfer);
  });
  addEventListener("paste", (event) => {
    // Some programs copy a text with a picture of it.
    const isText = event.clipboardData.types.includes("text/plain") && event.target.matches("input, textarea");
    if (!isText) takeOf(event, event.clipboardData);
  });
}

// Avatars for somewhere else: copied as an image, or as a link that works without a key until it expires, or several
// saved as an archive.

import { avatarOf, links } from "./api.js";
import { ask } from "./dialogs.js";
import { h } from "./dom.js";
import { asPng, endingOf, file, saveAs } from "./images.js";
import { t } from "./i18n.js";
import { note } from "./say.js";
import { fileNameOf, imagesOf } from "./states.js";
import { zip } from "./zip.js";

const HOUR = 3600; // seconds
const TIMES = { hour: HOUR, day: 24 * HOUR, week: 7 * 24 * HOUR };

// Without https there is no clipboard, and not every browser takes images.
export const canCopyImages = () => Boolean(navigator.clipboard?.write && window.ClipboardItem);
export const canCopyLinks = () => Boolean(navigator.clipboard?.writeText);

// 2026-11-30-1842, by the clock here.
function stampOf({ createdAt }) {
  const time = new Date(createdAt);
  const local = new Date(time - time.getTimezoneOffset() * 60_000).toISOString();
  return local.slice(0, 16).replace(":", "").replace("T", "-");
}

// Saves every image of the jobs in one archive.
export async function saveArchive(list, name) {
  const images = list.flatMap(imagesOf);
  if (!images.length) return note(t("nothingToSave"));
  const times = new Map(); // that a name has come
  const files = [];
  for (const image of images) {
    const blob = await file(avatarOf(image));
    const base = fileNameOf(image, stampOf(image));
    times.set(base, (times.get(base) ?? 0) + 1);
    const counted = times.get(base) > 1 ? `${base}-${times.get(base)}` : base;
    files.push({ name: `${counted}.${endingOf(blob)}`, blob });
  }
  return saveAs(await zip(files), `${name}.zip`);
}

export async function copyImage(job) {
  // Some browsers ask that the image be promised within the press itself.
  const png = file(avatarOf(job)).then(asPng);
  await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
  note(t("imageCopied"));
}

export async function copyLink(job) {
  const choice = h(
    "select",
    { id: "ask-input" },
    Object.keys(TIMES).map((name) => h("option", { value: name }, t(`link_${name}`))),
  );
  const { value, text } = await ask({
    title: t("copyLink"),
    text: t("linkText"),
    content: [h("div.field", {}, h("label", { for: "ask-input" }, t("linkWorks")), choice)],
    yes: t("copyLink"),
    focus: "#ask-input",
  });
  if (value !== "yes") return;
  const signed = await links(job, TIMES[text]);
  const { generatedUrl } = signed.images?.find(({ index }) => index === job.index) ?? signed;
  await navigator.clipboard.writeText(new URL(generatedUrl, location.origin).href);
  note(t("linkCopied"));
}

// Avatars for somewhere else: copied as an image, or as a link that works without a key until it expires, or several
// saved as an archive.

import { avatarOf, links } from "./api.js";
import { ask } from "./dialogs.js";
import { h } from "./dom.js";
import { asPng, endingOf, file, saveAs } from "./images.js";
import { longestLink } from "./input.js";
import { duration, number, t } from "./i18n.js";
import { note, persist } from "./say.js";
import { session } from "./session.js";
import { fileNameOf, imagesOf } from "./states.js";
import { zip } from "./zip.js";

const GONE = ["job_not_found", "image_not_found"];
const HOUR = 3600; // seconds
const TIMES = { hour: HOUR, day: 24 * HOUR, week: 7 * 24 * HOUR };

// Without https there is no clipboard, and not every browser takes images.
export const canCopyImages = () => Boolean(navigator.clipboard?.write && window.ClipboardItem);
// Where no key is asked for, every address is a link.
export const canCopyLinks = () => Boolean(navigator.clipboard?.writeText && (!session.key || longestLink()));

// 2026-11-30-1842, by the clock here.
function stampOf({ createdAt }) {
  const time = new Date(createdAt);
  const local = new Date(time - time.getTimezoneOffset() * 60_000).toISOString();
  return local.slice(0, 16).replace(":", "").replace("T", "-");
}

// The image, or null where it was erased meanwhile.
async function fileOrNull(image) {
  try {
    return await file(avatarOf(image));
  } catch (problem) {
    if (GONE.includes(problem.code)) return null;
    throw problem;
  }
}

// Saves every image of the jobs in one archive, and says how many are missing in it. `onProgress` hears how many of
// how many are here.
export async function saveArchive(list, name, onProgress = () => {}) {
  const images = list.flatMap(imagesOf);
  const { number: begun } = session;
  const isWanted = () => begun === session.number;
  const times = new Map(); // that a name has come
  const files = [];
  for (const [index, image] of images.entries()) {
    onProgress(index, images.length);
    const blob = await persist(() => fileOrNull(image), isWanted);
    if (!isWanted()) return undefined;
    if (!blob) continue;
    const base = fileNameOf(image, stampOf(image));
    times.set(base, (times.get(base) ?? 0) + 1);
    const counted = times.get(base) > 1 ? `${base}-${times.get(base)}` : base;
    files.push({ name: `${counted}.${endingOf(blob)}`, blob });
  }
  if (!files.length) return note(t("nothingToSave"));
  const missing = images.length - files.length + list.filter((job) => !imagesOf(job).length).length;
  if (missing) note(t("leftOutOfZip", { n: number(missing) }));
  return saveAs(await zip(files), `${name}.zip`);
}

export async function copyImage(job) {
  // Some browsers ask that the image be promised within the press itself.
  const png = file(avatarOf(job)).then(asPng);
  await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
  note(t("imageCopied"));
}

export async function copyLink(job) {
  const urlOf = ({ images, generatedUrl }) => images?.find(({ index }) => index === job.index)?.generatedUrl ?? generatedUrl;
  if (!session.key) {
    await copyText(Promise.resolve(new URL(urlOf(job), location.origin).href));
    return note(t("linkCopiedOpen"));
  }
  const seconds = await askTime();
  if (!seconds) return undefined;
  await copyText(links(job, seconds).then((signed) => new URL(urlOf(signed), location.origin).href));
  return note(t("linkCopied"));
}

// Seconds for which the link is to work, as far as the server allows, or undefined.
async function askTime() {
  const longest = longestLink();
  const times = Object.entries(TIMES).filter(([, seconds]) => seconds <= longest);
  const options = times.map(([name, seconds]) => h("option", { value: seconds }, t(`link_${name}`)));
  const choice = h(
    "select",
    { id: "ask-input" },
    options.length ? options : h("option", { value: longest }, duration(longest)),
  );
  const { value, text } = await ask({
    title: t("copyLink"),
    text: t("linkText"),
    content: [h("div.field", {}, h("label", { for: "ask-input" }, t("linkWorks")), choice)],
    yes: t("copyLink"),
    focus: "#ask-input",
  });
  return value === "yes" ? text : undefined;
}

// Some browsers ask that the text be promised within the press itself. A text that could not be had tells why.
async function copyText(text) {
  if (!canCopyImages()) return navigator.clipboard.writeText(await text);
  const blob = text.then((words) => new Blob([words], { type: "text/plain" }));
  return Promise.all([blob, navigator.clipboard.write([new ClipboardItem({ "text/plain": blob })])]);
}

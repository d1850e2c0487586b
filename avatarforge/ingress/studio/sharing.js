// An avatar for somewhere else: copied as an image, or as a link that works without a key until it expires.

import { avatarOf, links } from "./api.js";
import { ask } from "./dialogs.js";
import { h } from "./dom.js";
import { asPng, file } from "./images.js";
import { t } from "./i18n.js";
import { note } from "./say.js";

const HOUR = 3600; // seconds
const TIMES = { hour: HOUR, day: 24 * HOUR, week: 7 * 24 * HOUR };

// Without https there is no clipboard, and not every browser takes images.
export const canCopyImages = () => Boolean(navigator.clipboard?.write && window.ClipboardItem);
export const canCopyLinks = () => Boolean(navigator.clipboard?.writeText);

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
  const { generatedUrl } = await links(job, TIMES[text]);
  await navigator.clipboard.writeText(new URL(generatedUrl, location.origin).href);
  note(t("linkCopied"));
}

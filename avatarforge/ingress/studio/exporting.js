// As the avatar will look: round and small, on light and dark, as chat programs show it; and files in the sizes that
// sites ask for.

import { avatarOf } from "./api.js";
import { button, h } from "./dom.js";
import { file, saveAs, show } from "./images.js";
import { number, t } from "./i18n.js";
import { attempt } from "./say.js";
import { fileNameOf } from "./states.js";
import { crc32 } from "./zip.js";

const SIDES = [128, 64, 32]; // pixels of the previews
const PLACES = { Slack: 512, GitHub: 500, LinkedIn: 400, Gravatar: 512 };
const SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia";
// The mark that every avatar of the server has: edited using generative AI.
const XMP = `<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<Iptc4xmpExt:DigitalSourceType>${SOURCE}</Iptc4xmpExt:DigitalSourceType>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>`;

let shape = "square"; // of the next file

export function exporting(job) {
  const path = avatarOf(job);
  const round = (side) => show(h("img", { alt: "", width: side, height: side }), path);
  const hint = h("p.hint", {}, t("exportAs"));
  const first = round(SIDES[0]);
  first.addEventListener("load", () => {
    const side = Math.min(first.naturalWidth, first.naturalHeight);
    if (side < Math.max(...Object.values(PLACES))) hint.textContent = t("enlarged", { n: number(side) });
  });
  return h(
    "section.exporting",
    { role: "group", "aria-labelledby": "exporting-heading" },
    h("h3", { id: "exporting-heading" }, t("asItLooks")),
    h(
      "div.looks",
      { "aria-hidden": "true" },
      h("div.look.light", {}, first, SIDES.slice(1).map(round)),
      h("div.look.dark", {}, SIDES.map(round)),
    ),
    shapes(),
    h("div.places", {}, Object.keys(PLACES).map((place) => placeButton(job, place))),
    hint,
  );
}

function shapes() {
  const choice = (name, text) => {
    const input = h("input", { type: "radio", name: "shape", value: name, checked: name === shape, "data-key": name });
    input.addEventListener("change", () => (shape = name));
    return h("label", {}, input, h("span", {}, text));
  };
  return h(
    "fieldset.shapes",
    {},
    h("legend.unseen", {}, t("shape")),
    choice("square", t("square")),
    choice("round", t("round")),
  );
}

function placeButton(job, place) {
  const side = PLACES[place];
  const save = async () => {
    const image = await drawn(await file(avatarOf(job)), side, shape === "round");
    saveAs(image, `${fileNameOf(job, place, side)}.png`);
  };
  const size = t("pixelsSquare", { n: number(side) });
  const made = button("secondary", "download", place, () => attempt(save), {
    "data-key": `export ${place}`,
    "aria-label": `${t("download")}: ${place} ${size}`,
  });
  made.append(h("small", {}, size));
  return made;
}

// A PNG of the middle, so many pixels wide and high; round with a transparent rim, where that is wanted.
async function drawn(blob, side, isRound) {
  const image = await createImageBitmap(blob);
  const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  const middle = Math.min(image.width, image.height);
  const [left, top] = [(image.width - middle) / 2, (image.height - middle) / 2];
  pen.drawImage(image, left, top, middle, middle, 0, 0, side, side);
  if (isRound) {
    pen.globalCompositeOperation = "destination-in";
    pen.beginPath();
    pen.arc(side / 2, side / 2, side / 2, 0, 2 * Math.PI);
    pen.fill();
  }
  const png = await new Promise((done) => canvas.toBlob(done));
  return marked(png);
}

const AFTER_HEADER = 33; // bytes of a PNG: its signature and its first chunk

// https://www.w3.org/TR/png-3/#11iTXt
async function marked(png) {
  const content = new TextEncoder().encode(`iTXtXML:com.adobe.xmp\0\0\0\0\0${XMP}`);
  const bytes = (value) => Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
  const chunk = [bytes(content.length - 4), content, bytes(crc32(content))];
  return new Blob([png.slice(0, AFTER_HEADER), ...chunk, png.slice(AFTER_HEADER)], { type: "image/png" });
}

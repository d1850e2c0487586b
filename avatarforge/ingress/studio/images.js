// Images by fetch, since some servers want a key: each is kept as a blob's address, the oldest go.

import { call } from "./api.js";

const MOST = 120;
const FIRST_PAUSE = 2; // seconds
const LONGEST_PAUSE = 60;
const kept = new Map();

function address(path) {
  if (!kept.has(path)) {
    const fetched = call(path).then(async (response) => URL.createObjectURL(await response.blob()));
    fetched.catch(() => kept.delete(path));
    kept.set(path, fetched);
    if (kept.size > MOST) dropOldest();
  }
  return kept.get(path);
}

function dropOldest() {
  const [path, fetched] = kept.entries().next().value;
  kept.delete(path);
  fetched.then(URL.revokeObjectURL, () => {});
}

// Shows the image once it is here; until then, and where there is none, the element has no source. It hears of
// both: "shown", or "broken" with the problem, after which a passing one is tried again while the element is there.
export function show(image, path, pause = FIRST_PAUSE) {
  address(path).then(
    (url) => {
      image.src = url;
      image.dataset.shown = "";
      image.dispatchEvent(new CustomEvent("shown"));
    },
    (problem) => {
      image.dispatchEvent(new CustomEvent("broken", { detail: problem }));
      const again = () => image.isConnected && show(image, path, Math.min(2 * pause, LONGEST_PAUSE));
      if (problem.passes) setTimeout(again, Math.max(pause, problem.retryAfter) * 1000);
    },
  );
  return image;
}

export async function file(path) {
  return (await call(path)).blob();
}

export function forgetImages() {
  while (kept.size) dropOldest();
}

// The same as a PNG.
export async function asPng(blob) {
  if (blob.type === "image/png") return blob;
  const image = await createImageBitmap(blob);
  const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  canvas.getContext("2d").drawImage(image, 0, 0);
  return new Promise((done) => canvas.toBlob(done));
}

export const endingOf = (blob) => blob.type.split("/")[1];

// As a file of the browser's.
export function saveAs(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// The photo that is chosen: as it came, as it looks where the browser can show it, and the square that is cut from it.

import * as api from "./api.js";
import { Crop, copyOf } from "./crop.js";
import { dropPhoto, keepFile, keepSquare, keptPhoto, removeAbandoned } from "./draft.js";

const SMALL = 400_000; // bytes: a larger photo is looked at as a copy
const COPY_SIDE = 1024; // pixels, as many as the server's detector looks at
const FIRST_PAUSE = 2; // seconds
const LONGEST_PAUSE = 30;
const listeners = new Set();

// `place` says how the square came about: "looking", "face", "centre" where there is none, "hand", or "unknown"
// where the server could not be asked, which `problem` explains.
const NONE = { file: null, image: null, crop: null, place: null, found: null, problem: null, preview: null };
export const photo = { ...NONE };
let choices = 0; // counted: a photo that is decoded late may be chosen no more

export const onPhoto = (listener) => listeners.add(listener);

// `square`, as { left, top, side, turns, shape }, was framed before; with its shape alone it is the photo as it is, cut
// already. Resolves with false where something else was chosen meanwhile.
export async function choose(file, square = null) {
  clear();
  return take(file, square, "photo");
}

async function take(file, square, what) {
  const choice = choices;
  photo.file = file;
  const image = await decoded(file);
  if (choice !== choices) {
    if (image) URL.revokeObjectURL(image.src);
    return false;
  }
  photo.image = image;
  photo.crop = image && new Crop(image.naturalWidth, image.naturalHeight, square?.shape ?? shape);
  photo.place = square && image ? "hand" : "looking";
  if (image && square?.side) {
    photo.crop.turns = square.turns;
    photo.crop.put(square.left, square.top, square.side);
  }
  keepFile(file);
  keep();
  tell(what);
  if (photo.place === "looking") look(file);
  return true;
}

export function clear() {
  choices += 1;
  if (photo.image) URL.revokeObjectURL(photo.image.src);
  Object.assign(photo, NONE);
  dropPhoto();
  tell();
}

// After a reload.
export async function restorePhoto() {
  const kept = await keptPhoto();
  if (kept && !choices) await take(kept.file, kept.square, "restored");
  await removeAbandoned();
}

function keep() {
  const { crop, place } = photo;
  const square =
    place === "hand" ? { left: crop.left, top: crop.top, side: crop.side, turns: crop.turns, shape: crop.shape } : null;
  keepSquare(square);
}

let keeping; // once for many moves

// The square was moved or resized by hand.
export function framed() {
  Object.assign(photo, { place: "hand", problem: null });
  clearTimeout(keeping);
  keeping = setTimeout(() => photo.file && keep(), 200);
  tell("crop");
}

// Has the server find the face, and puts the square around it. A passing problem is no end.
export async function look(file = photo.file, pause = FIRST_PAUSE) {
  if (!file) return;
  const what = photo.place === "hand" ? "crop" : "place";
  photo.place = "looking";
  keep();
  tell(what);
  try {
    const small = !photo.image || file.size <= SMALL;
    const asked = small ? file : await copyOf(photo.image, COPY_SIDE);
    const found = await api.findCrop(asked, file.name || "photo", !photo.image);
    if (photo.file !== file || photo.place === "hand") return;
    placeSquare(found);
  } catch (problem) {
    if (photo.file !== file || photo.place === "hand") return;
    photo.place = "unknown";
    photo.problem = problem;
    if (problem.passes) {
      const again = () => photo.file === file && photo.place === "unknown" && look(file, 2 * pause);
      setTimeout(again, Math.min(LONGEST_PAUSE, Math.max(pause, problem.retryAfter)) * 1000);
    }
  }
  tell("place");
}

function placeSquare(found) {
  Object.assign(photo, { place: found.crop, found, problem: null, preview: found.preview });
  if (!photo.image) return;
  const scale = photo.image.naturalWidth / found.width;
  const [x, y] = [found.left + found.side / 2, found.top + found.side / 2];
  photo.crop.turns = found.quarterTurns;
  photo.crop.moveTo(x * scale, y * scale, found.side * scale);
}

// What is sent: the square that was framed here, or the file as it came, from which the server cuts the same.
export async function upload() {
  if (photo.place !== "hand") return { file: photo.file, name: photo.file.name || "photo", cropToFace: true };
  return { file: await photo.crop.cut(photo.image), name: "square.jpg", cropToFace: false };
}

let shape = [1, 1]; // the avatar's width and height

// The avatar is to be so wide and high.
export function setShape(...wanted) {
  const [width, height] = wanted;
  const isSame = width * shape[1] === height * shape[0];
  shape = wanted;
  if (!photo.crop || isSame) return;
  photo.crop.reshape(wanted);
  if (photo.found && photo.place !== "hand") placeSquare(photo.found);
  tell(photo.place === "hand" ? "crop" : "place");
}

// Listeners hear "photo", or "restored" after a reload, "crop" where only the square has changed that is sent, "place"
// where nothing has that is.
function tell(what = "photo") {
  for (const listener of listeners) listener(what);
}

// The image, or null where the browser cannot read the file; the server may still know it.
async function decoded(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
    return image;
  } catch {
    URL.revokeObjectURL(image.src);
    return null;
  }
}

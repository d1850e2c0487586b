// The photo that is chosen: as it came, and as it looks where the browser can show it.

import { Crop } from "./crop.js";

const listeners = new Set();

export const photo = { file: null, image: null, crop: null, byHand: false };

export const onPhoto = (listener) => listeners.add(listener);

export async function choose(file) {
  clear();
  photo.file = file;
  photo.image = await decoded(file);
  photo.crop = photo.image && new Crop(photo.image.naturalWidth, photo.image.naturalHeight);
  tell();
}

export function clear() {
  if (photo.image) URL.revokeObjectURL(photo.image.src);
  Object.assign(photo, { file: null, image: null, crop: null, byHand: false });
  tell();
}

export function cropByHand(byHand) {
  photo.byHand = byHand;
  tell();
}

// What is sent: the square that was cut here, or the file as it came.
export async function upload() {
  if (!photo.byHand || !photo.image)
    return { file: photo.file, name: photo.file.name || "photo", cropToFace: true };
  return { file: await photo.crop.cut(photo.image), name: "square.jpg", cropToFace: false };
}

function tell() {
  for (const listener of listeners) listener();
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

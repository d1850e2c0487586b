// A square within a photo, in the photo's pixels, that can be moved and resized.

const LEAST_SHARE = 8; // the smallest square's side is this part of the photo's shorter one
const MOST_SIDE = 1536; // more than any model takes

export class Crop {
  turns = 0; // by 90 degrees counter-clockwise, which make the face upright

  constructor(width, height) {
    Object.assign(this, { width, height });
    this.most = Math.min(width, height);
    this.least = Math.max(Math.min(64, this.most), this.most / LEAST_SHARE);
    this.put(0, 0, this.most);
    this.moveTo(width / 2, height / 2);
  }

  put(left, top, side) {
    this.side = Math.min(this.most, Math.max(this.least, side));
    this.left = Math.min(this.width - this.side, Math.max(0, left));
    this.top = Math.min(this.height - this.side, Math.max(0, top));
  }

  // The square's middle.
  moveTo(x, y) {
    this.put(x - this.side / 2, y - this.side / 2, this.side);
  }

  move(right, down) {
    this.put(this.left + right, this.top + down, this.side);
  }

  // Around its middle.
  resize(side) {
    const { left, top, side: before } = this;
    const wanted = Math.min(this.most, Math.max(this.least, side));
    this.put(left + (before - wanted) / 2, top + (before - wanted) / 2, wanted);
  }

  // Draws a corner (across and down are -1 or 1) to a place; the opposite corner stays.
  drawCorner(across, down, x, y) {
    const right = this.left + this.side;
    const bottom = this.top + this.side;
    const room = Math.min(
      across > 0 ? this.width - this.left : right,
      down > 0 ? this.height - this.top : bottom,
    );
    const wanted = Math.max(across > 0 ? x - this.left : right - x, down > 0 ? y - this.top : bottom - y);
    const side = Math.min(room, Math.max(this.least, wanted));
    this.put(across > 0 ? this.left : right - side, down > 0 ? this.top : bottom - side, side);
  }

  // Where the square lies, in shares of the photo.
  shares() {
    const { left, top, side, width, height } = this;
    return { left: left / width, top: top / height, width: side / width, height: side / height };
  }

  // The square as a JPEG, upright.
  cut(image) {
    const side = Math.round(Math.min(this.side, MOST_SIDE));
    const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillStyle = "white"; // JPEG knows no transparency
    context.fillRect(0, 0, side, side);
    context.translate(side / 2, side / 2);
    context.rotate((-this.turns * Math.PI) / 2);
    context.drawImage(
      image,
      this.left,
      this.top,
      this.side,
      this.side,
      -side / 2,
      -side / 2,
      side,
      side,
    );
    return jpeg(canvas, 0.95);
  }
}

// A copy of the photo whose longer side has so many pixels at most.
export function copyOf(image, longest) {
  const scale = Math.min(1, longest / Math.max(image.naturalWidth, image.naturalHeight));
  const width = Math.max(1, Math.round(image.naturalWidth * scale));
  const height = Math.max(1, Math.round(image.naturalHeight * scale));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  return jpeg(canvas, 0.9);
}

const jpeg = (canvas, quality) => new Promise((done) => canvas.toBlob(done, "image/jpeg", quality));

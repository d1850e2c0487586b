// A frame within a photo, in the photo's pixels, that can be moved and resized: a square, or of the avatar's shape.

const LEAST_SHARE = 8; // the smallest square's side is this part of the photo's shorter one
const MOST_SIDE = 1536; // more than any model takes

export class Crop {
  turns = 0; // by 90 degrees counter-clockwise, which make the face upright
  shape = [1, 1]; // the avatar's width and height

  constructor(width, height, shape) {
    Object.assign(this, { width, height, shape });
    this.put(0, 0, this.most);
    this.moveTo(width / 2, height / 2);
  }

  // The frame's width and height where its shorter side is 1. The photo may lie on its side.
  get proportions() {
    const shortest = Math.min(...this.shape);
    const [across, down] = this.shape.map((length) => length / shortest);
    return this.turns % 2 ? [down, across] : [across, down];
  }

  // Bounds of `side`, the frame's shorter one.
  get most() {
    const [across, down] = this.proportions;
    return Math.min(this.width / across, this.height / down);
  }

  get least() {
    return Math.max(Math.min(64, this.most), this.most / LEAST_SHARE);
  }

  get size() {
    return this.proportions.map((share) => share * this.side);
  }

  put(left, top, side) {
    this.side = Math.min(this.most, Math.max(this.least, side));
    const [width, height] = this.size;
    this.left = Math.min(this.width - width, Math.max(0, left));
    this.top = Math.min(this.height - height, Math.max(0, top));
  }

  // The frame's middle.
  moveTo(x, y, side = this.side) {
    this.put(0, 0, side);
    const [width, height] = this.size;
    this.put(x - width / 2, y - height / 2, side);
  }

  move(right, down) {
    this.put(this.left + right, this.top + down, this.side);
  }

  // Around its middle.
  resize(side) {
    const [width, height] = this.size;
    this.moveTo(this.left + width / 2, this.top + height / 2, side);
  }

  reshape(shape) {
    const [width, height] = this.size;
    const [x, y] = [this.left + width / 2, this.top + height / 2];
    this.shape = shape;
    this.moveTo(x, y);
  }

  // Draws a corner (across and down are -1 or 1) to a place; the opposite corner stays.
  drawCorner(across, down, x, y) {
    const [wide, high] = this.proportions;
    const [width, height] = this.size;
    const [right, bottom] = [this.left + width, this.top + height];
    const room = Math.min(
      (across > 0 ? this.width - this.left : right) / wide,
      (down > 0 ? this.height - this.top : bottom) / high,
    );
    const wanted = Math.max(
      (across > 0 ? x - this.left : right - x) / wide,
      (down > 0 ? y - this.top : bottom - y) / high,
    );
    const side = Math.min(room, Math.max(this.least, wanted));
    this.put(across > 0 ? this.left : right - wide * side, down > 0 ? this.top : bottom - high * side, side);
  }

  // Where the frame lies, in shares of the photo.
  shares() {
    const [width, height] = this.size;
    return {
      left: this.left / this.width,
      top: this.top / this.height,
      width: width / this.width,
      height: height / this.height,
    };
  }

  // What is framed as a JPEG, upright, of exactly the shape's proportions: else it would be cut once more.
  cut(image) {
    const [unit, down] = smallest(this.shape);
    const times = Math.max(1, Math.round(Math.min(this.side, MOST_SIDE) / Math.min(unit, down)));
    const canvas = Object.assign(document.createElement("canvas"), { width: unit * times, height: down * times });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillStyle = "white"; // JPEG knows no transparency
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.translate(canvas.width / 2, canvas.height / 2);
    context.rotate((-this.turns * Math.PI) / 2);
    const [wide, high] = this.turns % 2 ? [canvas.height, canvas.width] : [canvas.width, canvas.height];
    context.drawImage(image, this.left, this.top, ...this.size, -wide / 2, -high / 2, wide, high);
    return jpeg(canvas, 0.95);
  }
}

// 3 and 4 for 192 and 256.
function smallest([width, height]) {
  let [divisor, rest] = [width, height];
  while (rest) [divisor, rest] = [rest, divisor % rest];
  return [width / divisor, height / divisor];
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

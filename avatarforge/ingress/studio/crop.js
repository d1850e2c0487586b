// A square within a photo, in the photo's pixels, that can be moved and zoomed.

const MOST_ZOOM = 6;
const MOST_SIDE = 1536; // more than any model takes

export class Crop {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.x = width / 2;
    this.y = height > width ? height * 0.42 : height / 2; // faces are above the middle
    this.zoom = 1;
    this.#clamp();
  }

  get side() {
    return Math.min(this.width, this.height) / this.zoom;
  }

  // By shares of the square's side.
  move(right, down) {
    this.x += right * this.side;
    this.y += down * this.side;
    this.#clamp();
  }

  zoomTo(zoom) {
    this.zoom = Math.min(MOST_ZOOM, Math.max(1, zoom));
    this.#clamp();
  }

  // Where the whole photo lies when the square fills a frame, in per cent of the frame.
  placed() {
    const percent = (pixels) => `${(pixels / this.side) * 100}%`;
    return {
      left: percent(this.side / 2 - this.x),
      top: percent(this.side / 2 - this.y),
      width: percent(this.width),
      height: percent(this.height),
    };
  }

  // The square as a JPEG.
  cut(image) {
    const side = Math.round(Math.min(this.side, MOST_SIDE));
    const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillStyle = "white"; // JPEG knows no transparency
    context.fillRect(0, 0, side, side);
    const left = this.x - this.side / 2;
    const top = this.y - this.side / 2;
    context.drawImage(image, left, top, this.side, this.side, 0, 0, side, side);
    return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
  }

  #clamp() {
    const half = this.side / 2;
    this.x = Math.min(this.width - half, Math.max(half, this.x));
    this.y = Math.min(this.height - half, Math.max(half, this.y));
  }
}

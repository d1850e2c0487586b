// A photo by the camera, in a dialog of its own. The camera is off again when the dialog is closed.

import { ask } from "./dialogs.js";
import { h } from "./dom.js";
import { t } from "./i18n.js";
import { note } from "./say.js";

// Resolves with a file, or null.
export async function takePhoto() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "user", width: { ideal: 1280 }, height: { ideal: 1280 } },
    });
  } catch (error) {
    note(t("noCamera", { reason: error.message }), "error");
    return null;
  }
  const video = h("video.camera", { autoplay: true, playsinline: true, "aria-label": t("cameraImage") });
  video.muted = true;
  video.srcObject = stream;
  try {
    const answer = await ask({
      title: t("takePhoto"),
      content: [video],
      yes: t("shoot"),
      focus: "button[value='yes']",
    });
    return answer.value === "yes" ? await still(video) : null;
  } finally {
    for (const track of stream.getTracks()) track.stop();
  }
}

// The image as it stands, mirrored as people know their face.
async function still(video) {
  const canvas = Object.assign(document.createElement("canvas"), {
    width: video.videoWidth,
    height: video.videoHeight,
  });
  const context = canvas.getContext("2d");
  context.translate(canvas.width, 0);
  context.scale(-1, 1);
  context.drawImage(video, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
  return new File([blob], "camera.jpg", { type: "image/jpeg" });
}

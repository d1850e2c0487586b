// The middle of the studio: an invitation, the chosen photo, or a job from its waiting to its avatar.

import { squareOf } from "./api.js";
import { comparison } from "./compare.js";
import { $, h, icon, replace } from "./dom.js";
import { framing } from "./framing.js";
import { t } from "./i18n.js";
import { invitation } from "./input.js";
import * as jobs from "./jobs.js";
import { photo } from "./photo.js";
import { show } from "./images.js";
import { bar, remaining, situation } from "./states.js";

const stage = () => $("#stage");
let shown = ""; // what the stage is built for; while that stays, only its parts change

export function drawStage(jobId) {
  const job = jobId && jobs.get(jobId);
  if (jobId) drawJob(job);
  else drawPhoto();
}

function drawPhoto() {
  shown = "photo";
  stage().dataset.state = photo.file ? "framing" : "empty";
  replace(stage(), photo.file ? framing() : invitation());
}

function drawJob(job) {
  if (!job) {
    shown = "";
    stage().dataset.state = "unknown";
    return replace(stage(), h("p.hint", {}, t("patience")));
  }
  const wanted = `${job.jobId} ${job.status} ${document.documentElement.lang}`;
  stage().dataset.state = job.status.toLowerCase();
  if (wanted !== shown) {
    shown = wanted;
    replace(stage(), job.status === "DONE" ? comparison(job) : unfinished(job));
  }
  if (!job.isTerminal) refresh(job);
}

function unfinished(job) {
  return h(
    "figure.making",
    {},
    show(h("img.before", { alt: t("before") }), squareOf(job)),
    h("img.preview", { alt: "", hidden: true }),
    h(
      "figcaption.status",
      {},
      job.isTerminal && icon(job.status === "FAILED" ? "alert" : "close"),
      h("strong", { id: "situation" }, situation(job)),
      h("span", { id: "remaining" }),
      !job.isTerminal && h("div", { id: "steps-bar" }, bar(job)),
    ),
  );
}

function refresh(job) {
  $("#situation").textContent = situation(job);
  $("#remaining").textContent = remaining(job);
  const { step, totalSteps } = job.progress ?? { step: 0, totalSteps: 1 };
  Object.assign($("#steps-bar progress"), { max: totalSteps, value: step });
  const preview = jobs.previewOf(job.jobId);
  if (!preview) return;
  const image = $(".preview", stage());
  image.src = preview;
  image.hidden = false;
}

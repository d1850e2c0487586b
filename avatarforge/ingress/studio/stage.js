// The middle of the studio: an invitation, the chosen photo, or a job from its waiting to its avatar.

import { squareOf } from "./api.js";
import { comparison } from "./compare.js";
import { $, button, h, icon, replace } from "./dom.js";
import { framing } from "./framing.js";
import { t } from "./i18n.js";
import { invitation } from "./input.js";
import * as jobs from "./jobs.js";
import { photo } from "./photo.js";
import { show } from "./images.js";
import { become, session } from "./session.js";
import { bar, ratioOf, remaining, situation } from "./states.js";

const stage = () => $("#stage");
let shown = ""; // what the stage is built for; while that stays, only its parts change

// Where the job is not known, `absent` says why.
export function drawStage(jobId, absent = {}) {
  const job = jobId && jobs.get(jobId);
  if (!jobId) drawPhoto();
  else if (job && !absent.customer) drawJob(job);
  else drawAbsent(absent);
}

function drawAbsent({ customer, problem }) {
  const wanted = `absent ${customer} ${problem} ${document.documentElement.lang}`;
  stage().dataset.state = "unknown";
  if (wanted === shown) return;
  shown = wanted;
  if (!customer && !problem) return replace(stage(), h("p.hint", { role: "status" }, t("patience")));
  replace(
    stage(),
    h(
      "div.nothing",
      { role: "status" },
      icon(customer ? "person" : "alert"),
      h("h2", {}, customer ? t("foreign", { customer }) : t("absent")),
      h("p", {}, customer ? t("foreignText", { customer, own: session.customer }) : problem),
      customer && button("primary", "person", t("goOnAs", { customer }), () => become(customer)),
      h(customer ? "a.secondary" : "a.primary", { href: "#/gallery" }, icon("grid"), h("span", {}, t("toGallery"))),
    ),
  );
}

function drawPhoto() {
  shown = "photo";
  stage().dataset.state = photo.file ? "framing" : "empty";
  replace(stage(), photo.file ? framing() : invitation());
}

function drawJob(job) {
  const wanted = `${job.jobId} ${job.status} ${document.documentElement.lang}`;
  stage().dataset.state = job.status.toLowerCase();
  if (wanted !== shown) {
    shown = wanted;
    const figure = job.status === "DONE" ? comparison(job) : unfinished(job);
    figure.style.setProperty("--ratio", ratioOf(job));
    replace(stage(), figure);
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

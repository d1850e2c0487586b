// The middle of the studio: an invitation, the chosen photo, or a job from its waiting to its avatar.

import { pageOf, squareOf } from "./api.js";
import { comparison } from "./compare.js";
import { $, button, h, icon, replace } from "./dom.js";
import { framing } from "./framing.js";
import { number, t } from "./i18n.js";
import { invitation } from "./input.js";
import * as jobs from "./jobs.js";
import { photo } from "./photo.js";
import { show } from "./images.js";
import { become, session } from "./session.js";
import { refreshSheet, sheet } from "./sheet.js";
import { bar, countOf, imagesOf, oneOf, ratioOf, remaining, situation } from "./states.js";

const stage = () => $("#stage");
let shown = ""; // what the stage is built for; while that stays, only its parts change

// Where the job is not known, `absent` says why.
export function drawStage(jobId, absent = {}, job = null) {
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
  const several = countOf(job) > 1;
  const { index, status } = job;
  const others = index !== undefined && job.images.length;
  const wanted = [job.jobId, index, several || status, others, document.documentElement.lang].join(" ");
  stage().dataset.state = status.toLowerCase();
  if (wanted !== shown) {
    shown = wanted;
    replace(stage(), several ? sheet(job) : status === "DONE" ? finished(job) : unfinished(job));
  }
  if (several) refreshSheet($(".sheet", stage()), job);
  else if (!job.isTerminal) refresh(job);
}

// One image of several has others that it can be compared with.
function finished(job) {
  if (job.index === undefined) return comparison(job);
  const whole = jobs.get(job.jobId);
  const others = imagesOf(whole).filter(({ index }) => index !== job.index);
  const name = ({ index }) => t("image", { n: number(index + 1) });
  const choice = h(
    "select",
    { id: "compare-with", "data-key": "compare-with" },
    h("option", { value: "" }, t("photo")),
    others.map((other) => h("option", { value: other.index }, name(other))),
  );
  let figure = comparison(job);
  choice.addEventListener("change", () => {
    const other = choice.value === "" ? null : oneOf(whole, Number(choice.value));
    const next = comparison(job, other);
    figure.replaceWith(next);
    figure = next;
  });
  const words = h("span", {}, t("allImages"));
  const back = h("a.plain", { href: pageOf(whole), "data-key": "all-images" }, icon("grid"), words);
  const compared = h("label.compared", { for: "compare-with" }, t("compareWith"));
  return [figure, h("div.stage-tools.of-several", {}, back, compared, choice)];
}

function unfinished(job) {
  const figure = h(
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
  figure.style.setProperty("--ratio", ratioOf(job));
  return figure;
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

// Beside a job on the stage: how it came about, and what can be done with it.

import * as api from "./api.js";
import { notifyButton } from "./away.js";
import { $, button, h, replace } from "./dom.js";
import { erase } from "./erasing.js";
import { exporting } from "./exporting.js";
import { duration, number, t } from "./i18n.js";
import * as jobs from "./jobs.js";
import { choose } from "./photo.js";
import { endingOf, file, saveAs } from "./images.js";
import { attempt, say } from "./say.js";
import { badge, countOf, fileNameOf, hasSteps, nameOf, reasonOf, timeOf } from "./states.js";
import { remix } from "./parameters.js";
import { send } from "./sending.js";
import { session } from "./session.js";
import { canCopyImages, canCopyLinks, copyImage, copyLink, saveArchive } from "./sharing.js";
import { allStyles, drawing, titleOf } from "./styles.js";

const STAGES = ["queued", "fetch", "encode", "steps", "decode", "upload"];
const MORE = 4; // images that are like one
const underWay = new Set(); // a second press makes no second job
let remixes = 0; // counted: of several pressed in a row the last one counts

export function drawFacts(job) {
  const { jobId, index, seq } = job ?? {};
  const { lang } = document.documentElement;
  const wanted = job ? [jobId, index, seq, hasSteps(job), allStyles(), lang, canCopyLinks()].join(" ") : "";
  if ($("#facts").dataset.for === wanted) return;
  $("#facts").dataset.for = wanted;
  if (!job) return replace($("#facts"));
  replace(
    $("#facts"),
    h(
      "header.facts-head",
      {},
      h(
        "h2",
        { id: "job-heading", tabindex: -1, "data-key": "job-heading" },
        nameOf(job),
      ),
      badge(job),
    ),
    job.error && h("p.error", {}, reasonOf(job)),
    h("div.actions", {}, actions(job, true)),
    !job.isTerminal && hasSteps(job) && h("p.hint", {}, t("stepsWhy")),
    otherStyles(job),
    job.status === "DONE" && countOf(job) === 1 && exporting(job),
    h("dl", {}, rows(job)),
    timings(job),
  );
}

// `alone`: the job has the view for itself.
export function actions(job, alone = false) {
  const act = (look, symbol, text, work) =>
    button(look, symbol, text, () => attempt(() => work(job)), {
      "data-key": `${text} ${job.jobId}`,
      "aria-label": `${text}: ${nameOf(job)}`,
    });
  if (countOf(job) > 1 && alone) return severalActions(job, act);
  return [
    job.status === "DONE" && act("primary", "download", t("download"), save),
    job.index !== undefined && keepButton(job),
    job.index !== undefined && act("secondary", "spark", t("moreLike"), moreLike),
    job.isTerminal && job.status !== "DONE" && act("primary", "retry", t("retry"), again),
    job.status === "DONE" && alone && canCopyImages() && act("secondary", "copy", t("copyImage"), copyImage),
    job.status === "DONE" && alone && canCopyLinks() && act("secondary", "link", t("copyLink"), copyLink),
    !job.isTerminal && act("secondary", "close", t("cancel"), cancel),
    !job.isTerminal && alone && notifyButton(),
    job.isTerminal && act("secondary", "again", t("remix"), remixed),
    job.isTerminal && act("plain.danger", "erase", t("erase"), () => erase([job])),
  ].filter(Boolean);
}

// Of a job whose images are all shown.
function severalActions(job, act) {
  const saveAll = () => saveArchive([job], fileNameOf(job, timeOf(job)));
  return [
    job.images.length > 0 && act("primary", "download", t("saveAll"), saveAll),
    job.isTerminal && job.status !== "DONE" && act("secondary", "retry", t("retry"), again),
    !job.isTerminal && act("secondary", "close", t("cancel"), cancel),
    !job.isTerminal && notifyButton(),
    job.isTerminal && act("secondary", "again", t("remix"), remixed),
    job.isTerminal && act("plain.danger", "erase", t("erase"), () => erase([job])),
  ].filter(Boolean);
}

function keepButton(job) {
  const isKept = job.kept === job.index;
  const keep = async () => {
    jobs.learn(await api.keep(job, job.index));
    say(t("keptName", { name: nameOf(job) }));
  };
  return button("secondary", "star", t("keep"), () => attempt(keep), {
    "aria-pressed": String(isKept),
    "data-key": "keep",
  });
}

async function save(job) {
  const blob = await file(api.avatarOf(job));
  saveAs(blob, `${fileNameOf(job, timeOf(job))}.${endingOf(blob)}`);
}

export async function cancel(job) {
  jobs.learn(await api.cancel(job));
}

export async function again(job) {
  const made = jobs.learn(await api.retry(job));
  location.hash = api.pageOf(made);
}

async function original(job) {
  const blob = await file(api.originalOf(job));
  return new File([blob], `photo.${endingOf(blob)}`, { type: blob.type });
}

// Everything as it was asked for, to be changed.
async function remixed(job) {
  const { number } = session;
  const turn = ++remixes;
  const isWanted = () => turn === remixes && number === session.number;
  const file = await original(job);
  if (!isWanted()) return;
  // What was taken as it is, has the avatar's shape.
  const { cropToFace, width, height } = job.parameters ?? {};
  const whole = { shape: width ? [width, height] : [1, 1] };
  const isWhole = cropToFace === false && job.crop === "centre";
  if (!(await choose(file, isWhole ? whole : null)) || !isWanted()) return;
  remix(job);
  location.hash = "#/";
}

// The same photo, wishes and seed in another style.
const restyle = (job, style) => makeAgain(job, { seed: job.seed, style });

// Others of the same photo, style and words.
const moreLike = (job) => makeAgain(job, { variants: MORE });

async function makeAgain(job, changes) {
  const name = [job.jobId, job.index, ...Object.values(changes)].join(" ");
  if (underWay.has(name)) return;
  underWay.add(name);
  await sendAgain(job, changes).finally(() => underWay.delete(name));
}

async function sendAgain(job, changes) {
  const form = new FormData();
  const wishes = { ...job.parameters, ...changes };
  for (const [name, value] of Object.entries(wishes)) if (value !== null && value !== "") form.append(name, value);
  const made = await send({
    customer: job.customerId,
    key: api.newKey(),
    name: wishes.style ? titleOf(wishes.style) : nameOf(job),
    async prepare() {
      const photo = await original(job);
      form.append("photo", photo, photo.name);
      return form;
    },
  });
  if (made?.customerId !== session.customer) return;
  jobs.learn(made);
  if (location.hash === api.pageOf(job)) location.hash = api.pageOf(made);
}

function otherStyles(job) {
  const others = allStyles().filter((style) => style !== job.parameters?.style);
  if (job.status !== "DONE" || countOf(job) > 1 || !others.length) return null;
  const chip = (style) =>
    h(
      "button.style",
      {
        type: "button",
        onclick: () => attempt(() => restyle(job, style)),
        "data-key": `restyle ${style}`,
        "aria-label": t("sameIn", { style: titleOf(style) }),
        title: titleOf(style),
      },
      h("img", { src: drawing(style), alt: "", width: 48, height: 48 }),
    );
  return h("section.restyle", {}, h("h3", {}, t("otherStyles")), h("div.styles", {}, others.map(chip)));
}

function rows(job) {
  const facts = {
    style: job.parameters?.style && titleOf(job.parameters.style), // a server of an older release does not tell them
    asked: job.parameters?.prompt && h("bdi", {}, job.parameters.prompt),
    model: job.model,
    seed: String(job.seed),
    cropped: job.crop && t(`crop_${job.crop}`),
    backend: job.backend && job.backend !== "local" && job.backend,
    attempts: job.attempt > 1 && number(job.attempt),
    took: job.finishedAt && duration((new Date(job.finishedAt) - new Date(job.createdAt)) / 1000),
  };
  return Object.entries(facts)
    .filter(([, value]) => value)
    .map(([name, value]) => [h("dt", {}, t(name)), h("dd", {}, value)]);
}

// A bar with a part for each stage of the job's time.
function timings(job) {
  const known = STAGES.filter((stage) => job.timings?.[stage]);
  if (!known.length) return null;
  const part = (stage) => {
    const element = h(`i.${stage}`);
    element.style.setProperty("flex-grow", job.timings[stage] * 1000); // shares below 1 would not fill the bar
    return element;
  };
  return h(
    "section.timings",
    {},
    h("h3", {}, t("timings")),
    h("div.parts", { "aria-hidden": "true" }, known.map(part)),
    h(
      "ul",
      {},
      known.map((stage) =>
        h(
          "li",
          {},
          h(`i.${stage}`, { "aria-hidden": "true" }),
          h("span", {}, t(`stage_${stage}`)),
          h("b", {}, duration(job.timings[stage])),
        ),
      ),
    ),
  );
}

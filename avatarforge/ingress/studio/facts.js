// Beside a job on the stage: how it came about, and what can be done with it.

import * as api from "./api.js";
import { ask } from "./dialogs.js";
import { $, button, h, replace } from "./dom.js";
import { duration, number, t } from "./i18n.js";
import * as jobs from "./jobs.js";
import { choose } from "./photo.js";
import { download, file } from "./images.js";
import { attempt, note } from "./say.js";
import { badge, nameOf } from "./states.js";
import { titleOf } from "./styles.js";

const STAGES = ["queued", "fetch", "encode", "steps", "decode", "upload"];

export function drawFacts(job) {
  const wanted = job ? `${job.jobId} ${job.seq} ${document.documentElement.lang}` : "";
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
    job.error && h("p.error", {}, job.error.message),
    h("div.actions", {}, actions(job)),
    h("dl", {}, rows(job)),
    timings(job),
  );
}

export function actions(job) {
  const act = (look, symbol, text, work) =>
    button(look, symbol, text, () => attempt(() => work(job)), {
      "data-key": `${text} ${job.jobId}`,
      "aria-label": `${text}: ${nameOf(job)}`,
    });
  return [
    job.status === "DONE" && act("primary", "download", t("download"), save),
    job.isTerminal && job.status !== "DONE" && act("primary", "retry", t("retry"), again),
    !job.isTerminal && act("secondary", "close", t("cancel"), cancel),
    job.isTerminal && act("secondary", "again", t("reuse"), reuse),
    job.isTerminal && act("plain.danger", "erase", t("erase"), erase),
  ].filter(Boolean);
}

const save = (job) => download(api.avatarOf(job), `avatar-${job.jobId.slice(-6)}`);

export async function cancel(job) {
  jobs.learn(await api.cancel(job));
}

export async function again(job) {
  const made = jobs.learn(await api.retry(job));
  location.hash = api.pageOf(made);
}

async function reuse(job) {
  const blob = await file(api.originalOf(job));
  const framed = job.parameters?.cropToFace === false; // what was sent then is the square
  await choose(new File([blob], "photo", { type: blob.type }), { framed });
  location.hash = "#/";
}

export async function erase(job) {
  const answer = await ask({ title: t("eraseTitle"), text: t("eraseText"), yes: t("erase"), kind: "danger" });
  if (answer.value !== "yes") return;
  await api.erase(job);
  jobs.forget(job.jobId);
  note(t("erased"));
}

function rows(job) {
  const facts = {
    style: job.parameters?.style && titleOf(job.parameters.style), // a server of an older release does not tell them
    asked: job.parameters?.prompt,
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

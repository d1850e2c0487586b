// All of the customer's jobs as cards, and the newest of them as a strip under the stage.

import { avatarOf, pageOf, squareOf } from "./api.js";
import { $, button, h, icon, replace } from "./dom.js";
import { actions } from "./facts.js";
import { moment, number, t } from "./i18n.js";
import * as jobs from "./jobs.js";
import { show } from "./images.js";
import { attempt } from "./say.js";
import { choice, drawTools, isChosen, isSearching, searched } from "./selection.js";
import { badge, bar, countOf, nameOf, remaining, shortNameOf, situation } from "./states.js";
import { allStyles } from "./styles.js";

const IN_STRIP = 10;
const cards = new Map(); // built once for each state of a job, so that images stay

export function drawGallery() {
  const all = searched(jobs.all());
  drawTools();
  const older =
    jobs.hasOlder() &&
    button("secondary", "plus", t("older"), () => attempt(jobs.loadOlder), { "data-key": "older" });
  replace(
    $("#gallery"),
    () => (all.length ? h("ul.cards", {}, all.map(card)) : isSearching() ? notFound() : nothing()),
    older && h("p.older", {}, older),
  );
  for (const id of cards.keys()) if (!jobs.get(id)) cards.delete(id);
}

function card(job) {
  const wanted = `${job.seq} ${allStyles()} ${document.documentElement.lang}`;
  const kept = cards.get(job.jobId);
  if (kept?.dataset.for !== wanted) cards.set(job.jobId, built(job, wanted));
  else if (!job.isTerminal) {
    $(".line-of", kept).textContent = situation(job);
    $("progress", kept)?.replaceWith(bar(job));
  }
  $(".choice input", cards.get(job.jobId)).checked = isChosen(job);
  return cards.get(job.jobId);
}

function built(job, wanted) {
  const image = h(
    "a.image",
    {
      href: pageOf(job),
      "aria-label": `${nameOf(job)}, ${t(`state_${job.status}`)}`,
      "data-key": `card ${job.jobId}`,
    },
    thumbnail(job),
    countOf(job) > 1 && h("span.number", { "aria-hidden": "true" }, number(countOf(job))),
  );
  return h(
    "li.card",
    { "data-for": wanted, "data-state": job.status },
    h("div.tile", {}, image, choice(job)),
    h(
      "div.card-text",
      {},
      h("strong", { dir: "auto" }, shortNameOf(job)),
      badge(job),
      h("time", { datetime: job.createdAt }, moment(job.createdAt)),
    ),
    job.status === "DONE" ? null : h("p.line-of", {}, situation(job)),
    job.status === "PROCESSING" && bar(job),
    h("div.card-actions", {}, actions(job)),
  );
}

function thumbnail(job) {
  return job.status === "DONE"
    ? show(h("img", { alt: "" }), avatarOf(job))
    : show(h("img.dim", { alt: "" }), squareOf(job));
}

const notFound = () => !jobs.hasOlder() && h("p.hint", {}, t("notFound"));

function nothing() {
  return h(
    "div.nothing",
    {},
    icon("grid"),
    h("h2", {}, t("noAvatars")),
    h("p", {}, t("noAvatarsText")),
    h("a.primary", { href: "#/" }, icon("spark"), t("makeFirst")),
  );
}

export function drawStrip(current) {
  const all = jobs.all().slice(0, IN_STRIP);
  const link = (job) => {
    const label = `${nameOf(job)}, ${t(`state_${job.status}`)}`;
    return h(
      "a.thumb",
      {
        href: pageOf(job),
        "aria-label": label,
        "aria-current": job.jobId === current && "true",
        "data-state": job.status,
        "data-key": `thumb ${job.jobId}`,
        title: [situation(job), remaining(job)].filter(Boolean).join(" · "),
      },
      thumbnail(job),
    );
  };
  const add = h(
    "a.thumb.add",
    {
      href: "#/",
      "aria-label": t("newAvatar"),
      title: t("newAvatar"),
      "aria-current": !current && "true",
      "data-key": "new",
    },
    icon("plus"),
  );
  $("#strip").hidden = !all.length;
  replace($("#strip"), add, all.map(link));
}

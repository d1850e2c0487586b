// Who runs and who waits: the customer's jobs in their order, and others' where the server lets us see them.

import * as api from "./api.js";
import { $, button, h, icon, replace } from "./dom.js";
import { cancel } from "./facts.js";
import { t } from "./i18n.js";
import * as jobs from "./jobs.js";
import { show } from "./images.js";
import { attempt } from "./say.js";
import { onSession, session } from "./session.js";
import { bar, nameOf, remaining, situation } from "./states.js";

let others = null; // null where the server does not tell
let refreshing = null; // one is enough at a time
let mayAsk = true; // until the server has refused this key

// What one key has shown is not the next one's to see.
onSession(() => {
  others = null;
  refreshing = null;
  mayAsk = true;
});

// Positions change without an event of the job's own, so they are asked for while one looks.
export function refreshQueue() {
  const { number } = session;
  refreshing ??= refresh(number).finally(() => number === session.number && (refreshing = null));
  return refreshing;
}

async function refresh(number) {
  await jobs.load();
  if (!mayAsk || number !== session.number) return;
  try {
    const { customers } = await api.customers();
    if (number !== session.number) return;
    others = customers
      .filter(
        ({ customerId, latestPhoto }) =>
          customerId !== session.customer && latestPhoto && !latestPhoto.isTerminal,
      )
      .map(({ latestPhoto }) => latestPhoto);
  } catch (error) {
    if (number !== session.number) return;
    if (![401, 403].includes(error.status)) throw error;
    others = null;
    mayAsk = false;
  }
}

export function drawQueue() {
  const mine = jobs.unfinished();
  const running = mine.filter((job) => job.status === "PROCESSING");
  const waiting = mine
    .filter((job) => job.status === "PENDING")
    .sort(
      (a, b) => (a.queuePosition ?? Infinity) - (b.queuePosition ?? Infinity) || (a.jobId < b.jobId ? -1 : 1),
    );
  replace(
    $("#queue"),
    h(
      "div.figures",
      {},
      figure(running.length, t("running")),
      figure(waiting.length, t("waitingCount")),
      others && figure(others.length, t("othersCount")),
    ),
    mine.length
      ? [lane(t("running"), running, line), lane(t("waitingCount"), waiting, line)]
      : !others?.length && nothing(),
    others?.length ? lane(t("others"), others, otherLine) : null,
  );
}

export function drawQueueCount() {
  const count = jobs.unfinished().length;
  $("#queue-count").hidden = !count;
  $("#queue-count").textContent = count;
}

const figure = (count, text) => h("div.figure", {}, h("b", {}, String(count)), h("span", {}, text));

function lane(title, list, row) {
  return list.length ? h("section.lane", {}, h("h2", {}, title), h("ol", {}, list.map(row))) : null;
}

function line(job) {
  return h(
    "li.row",
    { "data-state": job.status },
    h(
      "span.place",
      { "aria-hidden": "true" },
      job.status === "PROCESSING" ? icon("forge") : String(job.queuePosition ?? "–"),
    ),
    show(h("img", { alt: "" }), api.squareOf(job)),
    h(
      "div.row-text",
      {},
      h(
        "a",
        { href: api.pageOf(job), "data-key": `row ${job.jobId}` },
        nameOf(job),
      ),
      h("span", {}, [situation(job), remaining(job)].filter(Boolean).join(" · ")),
      job.status === "PROCESSING" && bar(job),
    ),
    button("secondary", "close", t("cancel"), () => attempt(() => cancel(job)), {
      "data-key": `cancel ${job.jobId}`,
      "aria-label": `${t("cancel")}: ${nameOf(job)}`,
    }),
  );
}

function otherLine(job) {
  return h(
    "li.row.other",
    {},
    h(
      "span.place",
      { "aria-hidden": "true" },
      job.status === "PROCESSING" ? icon("forge") : String(job.queuePosition ?? "–"),
    ),
    h(
      "div.row-text",
      {},
      h("strong", {}, job.customerId),
      h("span", {}, [situation(job), remaining(job)].filter(Boolean).join(" · ")),
    ),
  );
}

const nothing = () =>
  h("div.nothing", {}, icon("queue"), h("h2", {}, t("emptyQueue")), h("p", {}, t("emptyQueueText")));

// Uploads on their way: they go on in the background whatever one looks at, tell their progress, and can be cancelled.

import * as api from "./api.js";
import { $, button, h, icon, replace } from "./dom.js";
import { t } from "./i18n.js";
import { note, say } from "./say.js";

const LONGEST_PAUSE = 30; // seconds
const underWay = []; // in the order in which they are sent, one at a time
const listeners = new Set();
let last = Promise.resolve();

export const isSending = (key) => underWay.some((upload) => upload.key === key);
export const onSending = (listener) => listeners.add(listener);
// How much of an upload is sent, from 0 to 1.
export const shareSent = (key) => underWay.find((upload) => upload.key === key)?.share ?? 0;

// Sends a photo for the customer; `prepare` makes its form. The key makes sure that what is repeated makes no
// second job. Resolves with the job, or null where it was cancelled; a problem that may pass is no end.
export async function send({ customer, key, name, prepare }) {
  const upload = { key, name, share: 0, problem: null, turn: false, cancelled: false, stopping: new AbortController() };
  const before = last;
  let ended;
  last = new Promise((end) => (ended = end));
  underWay.push(upload);
  say(t("sendingName", { name }));
  tell();
  try {
    const form = await prepare();
    await before;
    upload.turn = true;
    const job = await untilAnswered(upload, customer, form);
    if (job && upload.cancelled) await api.cancel(job);
    return upload.cancelled ? null : job;
  } finally {
    underWay.splice(underWay.indexOf(upload), 1);
    ended();
    tell();
  }
}

async function untilAnswered(upload, customer, form) {
  for (let pause = 1; !upload.cancelled; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
    tell();
    try {
      return await api.submit(customer, form, upload.key, {
        signal: upload.stopping.signal,
        onProgress(share) {
          Object.assign(upload, { share, problem: null });
          tell();
        },
      });
    } catch (error) {
      if (error.name === "AbortError") break;
      if (!error.passes) throw error;
      if (!upload.problem) say(situation({ ...upload, problem: error }));
      Object.assign(upload, { share: 0, problem: error });
      tell();
      await api.pause(Math.max(pause, error.retryAfter), upload.stopping.signal);
    }
  }
  return null;
}

// What was received whole may be a job by now: its answer is waited for, and the job is cancelled.
function cancel(upload) {
  upload.cancelled = true;
  if (upload.share < 1) upload.stopping.abort();
  note(t("notSent"));
  tell();
}

function situation({ turn, share, problem, cancelled }) {
  if (cancelled) return t("cancelling");
  if (problem && !navigator.onLine) return t("sendsLater");
  if (problem) return t("sendsAgain", { reason: problem.message });
  if (!turn) return t("waitsForOther");
  return share < 1 ? t("share", { n: Math.floor(share * 100) }) : t("received");
}

export function drawSending() {
  $("#sending").hidden = !underWay.length;
  replace($("#sending"), underWay.map(row));
}

function row(upload) {
  const cancelling = button("plain", "close", t("cancel"), () => cancel(upload), {
    "aria-label": t("cancelSending", { name: upload.name }),
    "data-key": `sending ${upload.key}`,
    "aria-disabled": upload.cancelled && "true",
  });
  return h(
    "li",
    {},
    icon(upload.problem ? "alert" : "photo"),
    h("strong", { dir: "auto" }, upload.name),
    !upload.problem &&
      h("progress", { max: 1, value: upload.share, "aria-label": t("sendingName", { name: upload.name }) }),
    h("span", {}, situation(upload)),
    cancelling,
  );
}

function tell() {
  for (const listener of listeners) listener();
}

addEventListener("beforeunload", (event) => underWay.length && event.preventDefault());

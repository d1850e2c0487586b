// Uploads on their way: they go on in the background whatever one looks at, tell their progress, and can be cancelled.

import * as api from "./api.js";
import { $, button, h, icon, replace } from "./dom.js";
import { t } from "./i18n.js";
import { note, persist, say } from "./say.js";
import { markUsed, nextSession, onSession, session } from "./session.js";

const LONGEST_PAUSE = 30; // seconds
const NO_ANSWER = ["unreachable", "unknown"]; // of the service itself: the job may have been made
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
  const state = { share: 0, problem: null, turn: false, cancelled: false };
  const fate = { mayBeReceived: false, wasLost: false };
  const upload = { customer, key, name, ...state, ...fate, stopping: new AbortController() };
  upload.row = makeRow(upload);
  const before = last;
  let end;
  last = Promise.all([before, new Promise((done) => (end = done))]);
  underWay.push(upload);
  say(t("sendingName", { name }));
  tell();
  try {
    const aborted = untilAborted(upload.stopping.signal);
    const form = await Promise.race([prepare(), aborted]);
    await Promise.race([before, aborted]);
    upload.turn = true;
    const job = await untilAnswered(upload, form);
    if (!upload.cancelled) return job;
    if (!job || (await persist(() => api.cancel(job)))) note(t("notSent"));
    return null;
  } finally {
    underWay.splice(underWay.indexOf(upload), 1);
    end();
    tell();
  }
}

const untilAborted = (signal) => new Promise((done) => signal.addEventListener("abort", done));

// What may have been received is sent again even if it is cancelled: only its answer tells whether there is a job.
async function untilAnswered(upload, form) {
  const { signal } = upload.stopping;
  for (let pause = 1; !signal.aborted; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
    tell();
    markUsed(upload.customer);
    try {
      return await api.submit(upload.customer, form, upload.key, {
        signal,
        onProgress(share) {
          Object.assign(upload, { share, problem: null });
          if (share === 1) upload.mayBeReceived = true;
          tell();
        },
      });
    } catch (error) {
      if (error.name === "AbortError") break;
      // An answer tells of its own request alone, not of one before whose answer was lost.
      if (NO_ANSWER.includes(error.code)) upload.wasLost ||= upload.mayBeReceived;
      else upload.mayBeReceived = upload.wasLost && error.passes;
      if (upload.cancelled && !upload.mayBeReceived) break;
      if (error.status === 0) await checkReadable(form.get("photo"));
      if (!error.passes && error.status !== 401) throw error;
      if (!upload.problem) say(situation({ ...upload, problem: error }));
      Object.assign(upload, { share: 0, problem: error });
      tell();
      if (error.status === 401) await nextSession(signal);
      else await api.pause(Math.max(pause, error.retryAfter), signal);
    }
  }
  return null;
}

// A file that has changed on the disk cannot be sent, which a request does not tell from a lost connection.
async function checkReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new api.Problem({ detail: t("fileChanged"), code: "photo_changed" });
  }
}

function cancel(upload) {
  upload.cancelled = true;
  if (!upload.mayBeReceived) upload.stopping.abort();
  tell();
}

// Nobody's photo is sent after its customer has left.
onSession((before) => {
  const hasLeft = before.key && !session.key;
  for (const upload of underWay) if (hasLeft || upload.customer !== session.customer) cancel(upload);
});

function situation({ turn, share, problem, cancelled }) {
  if (cancelled) return t("cancelling");
  if (problem && !navigator.onLine) return t("sendsLater");
  if (problem?.status === 401) return t("waitsForKey");
  if (problem) return t("sendsAgain", { reason: problem.message });
  if (!turn) return t("waitsForOther");
  return share < 1 ? t("share", { n: Math.floor(share * 100) }) : t("received");
}

export function drawSending() {
  const shown = underWay.filter(({ customer }) => customer === session.customer);
  const rows = shown.map(({ row }) => row.element);
  $("#sending").hidden = !shown.length;
  const isSame = rows.length === $("#sending").children.length && rows.every((row) => row.isConnected);
  if (!isSame) replace($("#sending"), rows);
  shown.forEach(drawRow);
}

// Made once for an upload: a button that is replaced at every progress hears no press.
function makeRow(upload) {
  const symbol = icon("photo");
  const progress = h("progress", { max: 1 });
  const words = h("span");
  const attributes = { "data-key": `sending ${upload.key}` };
  const cancelling = button("plain", "close", t("cancel"), () => cancel(upload), attributes);
  const element = h("li", {}, symbol, h("strong", { dir: "auto" }, upload.name), progress, words, cancelling);
  return { element, symbol, progress, words, cancelling };
}

function drawRow(upload) {
  const { name, problem, share, cancelled } = upload;
  const { symbol, progress, words, cancelling } = upload.row;
  $("use", symbol).setAttribute("href", `#i-${problem ? "alert" : "photo"}`);
  progress.hidden = Boolean(problem);
  progress.value = share;
  progress.setAttribute("aria-label", t("sendingName", { name }));
  words.textContent = situation(upload);
  $("span", cancelling).textContent = t("cancel");
  cancelling.setAttribute("aria-label", t("cancelSending", { name }));
  cancelling.setAttribute("aria-disabled", cancelled);
}

function tell() {
  for (const listener of listeners) listener();
}

addEventListener("beforeunload", (event) => underWay.length && event.preventDefault());

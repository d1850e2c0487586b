// Erasing, which can be undone for a while: jobs leave the page at once, and the server when that time is over, when
// the page is left, or when another customer or key comes.

import * as api from "./api.js";
import { $ } from "./dom.js";
import { number, t } from "./i18n.js";
import * as jobs from "./jobs.js";
import { note, offer, persist } from "./say.js";
import { onSession, session } from "./session.js";

const SECONDS = 10;
const pending = new Set(); // the last one is undone first

export function erase(list) {
  const facts = { n: number(list.length), seconds: SECONDS };
  const text = list.length > 1 ? t("erasingSeveral", facts) : t("erasing", facts);
  const erasing = { list, key: session.key, from: location.hash };
  erasing.toast = offer(text, t("undo"), () => undo(erasing));
  pending.add(erasing);
  const start = () => {
    clearTimeout(erasing.timer);
    erasing.timer = setTimeout(() => send(erasing), SECONDS * 1000);
  };
  // Whoever is about to undo it has all the time they need.
  for (const begin of ["pointerenter", "focusin"])
    erasing.toast.addEventListener(begin, () => clearTimeout(erasing.timer));
  for (const end of ["pointerleave", "focusout"])
    erasing.toast.addEventListener(end, () => pending.has(erasing) && start());
  start();
  jobs.hide(list);
}

function close(erasing) {
  pending.delete(erasing);
  clearTimeout(erasing.timer);
  erasing.toast.remove();
}

function undo(erasing) {
  close(erasing);
  jobs.unhide(erasing.list);
  if (location.hash !== erasing.from) location.hash = erasing.from;
  // When it is drawn again.
  else requestAnimationFrame(() => ($(`[data-key="card ${erasing.list[0].jobId}"]`) ?? $("#main")).focus());
}

async function send(erasing) {
  close(erasing);
  const headers = erasing.key ? { Authorization: `Bearer ${erasing.key}` } : {};
  const ends = await Promise.all(erasing.list.map((job) => persist(() => eraseOne(job, headers))));
  const kept = erasing.list.filter((_, index) => !ends[index]);
  if (kept.length) jobs.unhide(kept);
  else note(t("erased"));
}

// True, or a problem is thrown. `keepalive`: it goes on when the page is left.
async function eraseOne(job, headers) {
  try {
    await api.erase(job, { headers, keepalive: true });
  } catch (problem) {
    if (problem.code !== "job_not_found") throw problem;
  }
  jobs.forget(job.jobId);
  return true;
}

const sendAll = () => [...pending].forEach(send);

// The last that a page hears of before a phone drops it.
document.addEventListener("visibilitychange", () => document.hidden && sendAll());
onSession(sendAll);
addEventListener("keydown", (event) => {
  const isUndo = event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey;
  const last = [...pending].at(-1);
  if (!isUndo || !last || event.target.matches("input:not([type=checkbox]), textarea")) return;
  event.preventDefault();
  undo(last);
});

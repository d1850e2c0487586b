// Erasing, which can be undone for a while: jobs leave the page at once, and the server when that time is over, when
// the page is left, or when another customer or key comes. What a page did not live to finish, the next one does.

import * as api from "./api.js";
import { $ } from "./dom.js";
import { number, t } from "./i18n.js";
import * as jobs from "./jobs.js";
import { note, offer, persist } from "./say.js";
import { onSession, session } from "./session.js";
import { nameOf } from "./states.js";

const SECONDS = 10;
const MARK = "avatarforge.erasing"; // begins the name of each unfinished job's entry in the browser's storage
const pending = new Set(); // the last one is undone first
const taken = new Set(); // names of entries that this page takes care of
let sending = 0;

const entryOf = ({ customerId, jobId }) => `${MARK} ${customerId} ${jobId}`;

export function erase(list) {
  const facts = { n: number(list.length), name: nameOf(list[0]), seconds: SECONDS };
  const text = list.length > 1 ? t("erasingSeveral", facts) : t("erasing", facts);
  const erasing = { list, key: session.key, from: location.hash };
  for (const job of list) localStorage.setItem(entryOf(job), "");
  erasing.toast = offer(text, t("undo"), () => undo(erasing));
  schedule(erasing);
  holdWhileUsed(erasing);
}

// Takes up what a page of before has left of this customer's. It waits, too: where that page is still open in another
// window, it can be undone there.
export function resumeErasing() {
  const names = Object.keys(localStorage).filter((name) => name.startsWith(`${MARK} ${session.customer} `));
  const left = names.map((name) => ({ customerId: session.customer, jobId: name.split(" ").at(-1) }));
  const list = left.filter((job) => !taken.has(entryOf(job)));
  if (list.length) schedule({ list, key: session.key });
  jobs.hide(left);
}

function schedule(erasing) {
  pending.add(erasing);
  for (const job of erasing.list) taken.add(entryOf(job));
  start(erasing);
  jobs.hide(erasing.list);
}

function start(erasing) {
  clearTimeout(erasing.timer);
  erasing.timer = setTimeout(() => send(erasing), SECONDS * 1000);
}

// Whoever is about to undo it has all the time they need. `:hover` would stay after a touch.
function holdWhileUsed(erasing) {
  const uses = new Set();
  for (const [begin, end] of Object.entries({ pointerenter: "pointerleave", focusin: "focusout" })) {
    erasing.toast.addEventListener(begin, () => {
      uses.add(begin);
      clearTimeout(erasing.timer);
    });
    erasing.toast.addEventListener(end, () => {
      uses.delete(begin);
      if (!uses.size && pending.has(erasing)) start(erasing);
    });
  }
}

function close({ toast, timer }) {
  clearTimeout(timer);
  if (toast?.contains(document.activeElement))
    ($(".view:not([hidden]) h1[tabindex]") ?? $("#main")).focus({ preventScroll: true });
  toast?.remove();
}

function undo(erasing) {
  pending.delete(erasing);
  close(erasing);
  erasing.list.forEach(finish);
  jobs.unhide(erasing.list);
  if (location.hash !== erasing.from) location.hash = erasing.from;
  // When it is drawn again.
  else requestAnimationFrame(() => ($(`[data-key="card ${erasing.list[0].jobId}"]`) ?? $("#main")).focus());
}

function finish(job) {
  localStorage.removeItem(entryOf(job));
  taken.delete(entryOf(job));
}

async function send(erasing) {
  pending.delete(erasing);
  close(erasing);
  const headers = erasing.key ? { Authorization: `Bearer ${erasing.key}` } : {};
  sending += 1;
  const ends = await Promise.all(erasing.list.map((job) => persist(() => eraseOne(job, headers))));
  sending -= 1;
  const kept = erasing.list.filter((_, index) => !ends[index]);
  for (const job of kept) taken.delete(entryOf(job));
  if (kept.length) jobs.unhide(kept);
  else note(t("erased"));
}

// True, false where another window has undone or finished it, or a problem is thrown. `keepalive`: it goes on when the
// page is left.
async function eraseOne(job, headers) {
  if (localStorage.getItem(entryOf(job)) === null) return false;
  try {
    await api.erase(job, { headers, keepalive: true });
  } catch (problem) {
    if (problem.code !== "job_not_found") throw problem;
  }
  finish(job);
  jobs.forget(job.jobId);
  return true;
}

const sendAll = () => [...pending].forEach(send);

// The last that a page hears of before a phone drops it.
document.addEventListener("visibilitychange", () => document.hidden && sendAll());
addEventListener("beforeunload", (event) => sending && event.preventDefault());
onSession(sendAll);
addEventListener("keydown", (event) => {
  const isUndo = event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey;
  const last = [...pending].filter(({ toast }) => toast).at(-1);
  if (!isUndo || !last || event.target.matches("input:not([type=checkbox]), textarea")) return;
  event.preventDefault();
  undo(last);
});

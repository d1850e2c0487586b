// For whoever looks elsewhere meanwhile: progress in the tab's title and icon, a tick when an avatar is done, and a
// notification where one is wanted.

import { pageOf } from "./api.js";
import { $, button } from "./dom.js";
import { t } from "./i18n.js";
import * as jobs from "./jobs.js";
import { note } from "./say.js";
import { nameOf } from "./states.js";

const WANTED = "avatarforge.notify";
const SIDE = 32; // pixels of the icon
const icon = $("link[rel=icon]");
const plain = icon.href;
let drawn = plain; // what the icon shows: an address, "tick", or a share in steps of 1/16
let done = 0; // ended while the page was not looked at

export function drawTab(title) {
  const running = jobs.unfinished().filter((job) => job.progress);
  const shares = running.map(({ progress }) => progress.step / progress.totalSteps);
  const share = shares.length ? shares.reduce((sum, one) => sum + one) / shares.length : null;
  const begins = done ? "✓ " : share === null ? "" : `${t("share", { n: Math.floor(share * 100) })} · `;
  document.title = `${begins}${title} · AvatarForge`;
  const wanted = done ? "tick" : share === null ? plain : Math.floor(share * 16) / 16;
  if (wanted === drawn) return;
  drawn = wanted;
  icon.type = wanted === plain ? "image/svg+xml" : "image/png";
  icon.href = wanted === plain ? plain : ring(done ? 1 : wanted, done > 0);
}

// A ring that is filled so far, with a tick where something is done.
function ring(share, ticked) {
  const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
  const pen = canvas.getContext("2d");
  const arc = (from, to, colour) => {
    pen.beginPath();
    pen.arc(SIDE / 2, SIDE / 2, SIDE / 2 - 4, from, to);
    pen.strokeStyle = colour;
    pen.stroke();
  };
  pen.lineWidth = 6;
  const top = -Math.PI / 2;
  arc(0, 2 * Math.PI, "#b1a59a");
  arc(top, top + share * 2 * Math.PI, ticked ? "#1d6b45" : "#dd5a1f");
  if (ticked) {
    pen.lineWidth = 4;
    pen.stroke(new Path2D("M10 16 l5 5 l8 -10"));
  }
  return canvas.toDataURL();
}

// Tells of a job's end where nobody looks.
export function tellEnd(job, text) {
  if (!document.hidden) return;
  if (job.status === "DONE") done += 1;
  if (!isWanted()) return;
  const shown = new Notification(nameOf(job), { body: text, tag: job.jobId, icon: plain });
  shown.onclick = () => {
    focus();
    location.hash = pageOf(job);
    shown.close();
  };
}

const isWanted = () => localStorage.getItem(WANTED) === "yes" && window.Notification?.permission === "granted";

// Beside a job that is not done, where the browser knows notifications and they are not wanted yet.
export function notifyButton() {
  if (!window.Notification || Notification.permission === "denied" || isWanted()) return null;
  return button("plain", "bell", t("notify"), wantNotifications, { "data-key": "notify" });
}

async function wantNotifications() {
  const granted = (await Notification.requestPermission()) === "granted";
  if (granted) localStorage.setItem(WANTED, "yes");
  note(granted ? t("notified") : t("notNotified"));
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) done = 0;
});

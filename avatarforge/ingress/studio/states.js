// How a job's state is told, the same in every view.

import { h } from "./dom.js";
import { duration, moment, t } from "./i18n.js";
import { isConnected, secondsLeft } from "./jobs.js";
import { titleOf } from "./styles.js";

export const badge = (job) => h(`span.badge.${job.status.toLowerCase()}`, {}, t(`state_${job.status}`));

// "Watercolour of 9:58"
export function nameOf(job) {
  const time = moment(job.createdAt);
  const style = job.parameters?.style;
  return style ? t("styledAvatarOf", { style: titleOf(style), time }) : t("avatarOf", { time });
}

// "Step 12 of 25", "3rd in line", "The image was withheld."
export function situation(job) {
  if (job.status === "PROCESSING") {
    return job.progress
      ? t("step", { step: job.progress.step, total: job.progress.totalSteps })
      : t("starting");
  }
  if (job.status === "PENDING")
    return job.queuePosition ? t("position", { n: job.queuePosition }) : t("waiting");
  if (job.status === "FAILED") return job.error?.message ?? t("state_FAILED");
  return t(`state_${job.status}`);
}

export function remaining(job) {
  const seconds = isConnected() ? secondsLeft(job) : null;
  return seconds === null ? "" : t("left", { time: duration(Math.max(1, Math.ceil(seconds)), 0) });
}

export function bar(job) {
  const { step, totalSteps } = job.progress ?? { step: 0, totalSteps: 1 };
  return h("progress", { max: totalSteps, value: step, "aria-label": t("progress") });
}

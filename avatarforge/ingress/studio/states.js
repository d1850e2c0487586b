// How a job's state is told, the same in every view.

import { h } from "./dom.js";
import { duration, moment, t } from "./i18n.js";
import { isConnected, secondsLeft } from "./jobs.js";
import { sentenceOf } from "./problems.js";
import { titleOf } from "./styles.js";

export const badge = (job) => h(`span.badge.${job.status.toLowerCase()}`, {}, t(`state_${job.status}`));

// "Watercolour of 9:58"
export function nameOf(job) {
  const time = moment(job.createdAt);
  const style = job.parameters?.style;
  return style ? t("styledAvatarOf", { style: titleOf(style), time }) : t("avatarOf", { time });
}

// Its style, or its words where it has none.
export function shortNameOf({ parameters }) {
  return parameters?.style ? titleOf(parameters.style) : parameters?.prompt || t("ownWords");
}

// ana-watercolour-github-500
export function fileNameOf({ customerId, parameters }, ...parts) {
  const style = parameters?.style ? titleOf(parameters.style) : "avatar";
  return [customerId, style, ...parts].join("-").toLowerCase().replace(/[^\p{L}\p{N}._~-]+/gu, "-");
}

// Of the avatar: its width by its height.
export const ratioOf = ({ parameters }) => (parameters?.width ? parameters.width / parameters.height : 1);

// Whether there are steps to be counted: of a single one there is nothing to tell.
export const hasSteps = ({ progress }) => progress?.totalSteps > 1;

// Why it failed.
export const reasonOf = ({ error }) => (error ? sentenceOf(error) : "");

// "Step 12 of 25", "3rd in line", "The image was withheld."
export function situation(job) {
  if (job.status === "PROCESSING") {
    if (!job.progress) return t("starting");
    const { step, totalSteps } = job.progress;
    return hasSteps(job) && step ? t("step", { step, total: totalSteps }) : t("making");
  }
  if (job.status === "PENDING")
    return job.queuePosition ? t("position", { n: job.queuePosition }) : t("waiting");
  if (job.status === "FAILED") return reasonOf(job) || t("state_FAILED");
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

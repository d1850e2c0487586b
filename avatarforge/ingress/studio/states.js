// How a job's state is told, the same in every view.

import { h } from "./dom.js";
import { duration, moment, number, t } from "./i18n.js";
import { isConnected, secondsLeft } from "./jobs.js";
import { sentenceOf } from "./problems.js";
import { titleOf } from "./styles.js";

export const badge = (job) => h(`span.badge.${job.status.toLowerCase()}`, {}, t(`state_${job.status}`));

// How many images the job makes.
export const countOf = ({ parameters }) => parameters?.variants ?? 1;

// One image of a job of several, as if it were a job of its own; the job itself where that image is not there (yet).
export function oneOf(job, index) {
  const image = countOf(job) > 1 && job.images.find((image) => image.index === index);
  if (!image) return job;
  const parameters = { ...job.parameters, style: image.style, variants: 1, vary: "seed" };
  return { ...job, index, seed: image.seed, parameters, status: "DONE", isTerminal: true, error: null };
}

// Each image that there is.
export function imagesOf(job) {
  if (countOf(job) > 1) return job.images.map(({ index }) => oneOf(job, index));
  return job.status === "DONE" ? [job] : [];
}

// "Watercolour of 9:58", "Watercolour of 9:58, image 2"
export function nameOf(job) {
  const time = moment(job.createdAt);
  const style = job.parameters?.style;
  const name = style ? t("styledAvatarOf", { style: titleOf(style), time }) : t("avatarOf", { time });
  return job.index === undefined ? name : t("imageName", { name, n: number(job.index + 1) });
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

// 1842
export const timeOf = ({ createdAt }) => new Date(createdAt).toTimeString().slice(0, 5).replace(":", "");

// Of the avatar: its width by its height.
export const ratioOf = ({ parameters }) => (parameters?.width ? parameters.width / parameters.height : 1);

// Whether there are steps to be counted: of a single one there is nothing to tell.
export const hasSteps = ({ progress }) => progress?.totalSteps > 1;

// Why it failed.
export const reasonOf = ({ error }) => (error ? sentenceOf(error) : "");

// "Step 12 of 25", "3rd in line", "The image was withheld."
export function situation(job) {
  if (job.status === "PROCESSING") {
    if (countOf(job) > 1) return t("imagesDone", { n: number(job.images.length), total: number(countOf(job)) });
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

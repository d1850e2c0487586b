// What is known of the customer's jobs: lists and the stream are merged here, and views listen.

import * as api from "./api.js";
import { markUsed, session } from "./session.js";
import { JobStream } from "./stream.js";

const listeners = new Set();
const stateListeners = new Set();
let known = new Map();
let hidden = new Set(); // ids of jobs that are being erased
let previews = new Map(); // of each job by the image's index
let stream = null;
let connected = true; // until the stream is lost: what is known may be old then
let following = null; // the path of the next page of older jobs

export const onJobs = (listener) => listeners.add(listener);
export const onConnection = (listener) => stateListeners.add(listener);

export const isConnected = () => connected;
export const isHidden = (jobId) => hidden.has(jobId);
export const get = (jobId) => (hidden.has(jobId) ? undefined : known.get(jobId));
export const previewOf = (jobId, index = 0) => previews.get(jobId)?.get(index);
export const all = () =>
  [...known.values()].filter(({ jobId }) => !hidden.has(jobId)).sort((a, b) => (a.jobId < b.jobId ? 1 : -1));
export const unfinished = () => all().filter((job) => !job.isTerminal);
export const hasOlder = () => following !== null;

// Forgets the old customer's jobs.
export function leave() {
  stream?.stop();
  known = new Map();
  hidden = new Set();
  previews = new Map();
  following = null;
  tell();
}

// Follows the new customer's.
export function follow() {
  leave();
  stream = new JobStream(session.customer, {
    onEvent: heard,
    onState: (state, problem) => {
      connected = state === "open";
      for (const listener of stateListeners) listener(state, problem);
    },
  });
}

// The newest page, or the next older one; true once it is here. A customer without jobs is not known to the server yet.
export async function load(path) {
  const { customer, number } = session;
  if (session.isUnused) {
    tell();
    return false;
  }
  try {
    const page = await api.photos(customer, path);
    if (number !== session.number) return false;
    page.photos.forEach(merge);
    if (path || following === null) following = page.next;
    return true;
  } catch (error) {
    if (error.code !== "customer_not_found") throw error;
    return false;
  } finally {
    tell();
  }
}

export const loadOlder = () => load(following);

// The answer of a call about one job.
export function learn(job) {
  const before = known.get(job.jobId);
  merge(job);
  tell({ job: known.get(job.jobId), before });
  return job;
}

export function hide(list) {
  for (const { jobId } of list) hidden.add(jobId);
  for (const { jobId } of list) tell({ erased: jobId });
}

export function unhide(list) {
  for (const { jobId } of list) hidden.delete(jobId);
  tell();
}

export function forget(jobId) {
  known.delete(jobId);
  hidden.delete(jobId);
  previews.delete(jobId);
  tell({ erased: jobId });
}

function heard(kind, data) {
  if (kind === "snapshot" || kind === "reset") data.photos.forEach(learn);
  if (kind === "reset") load().catch(() => {});
  if (kind === "erased") forget(data.jobId);
  if (kind === "progress" && data.preview) keepPreview(data);
  if (kind === "status" || kind === "progress") learn(data);
}

function keepPreview({ jobId, preview, index = 0 }) {
  if (!previews.has(jobId)) previews.set(jobId, new Map());
  previews.get(jobId).set(index, preview);
}

function merge(job) {
  // The answer to a call that was made for the customer before.
  if (job.customerId !== session.customer) return;
  markUsed(job.customerId);
  const before = known.get(job.jobId);
  if (before && before.seq > job.seq) return;
  if (job.isTerminal) previews.delete(job.jobId);
  known.set(job.jobId, { ...job, heardAt: Date.now() });
}

// Listeners hear { job, before } of a change, { erased } of an end, {} of anything else.
function tell(news = {}) {
  for (const listener of listeners) listener(news);
}

// Seconds that are left, counted down since the server told them.
export function secondsLeft(job) {
  if (job.etaSeconds === null || job.isTerminal) return null;
  return Math.max(0, job.etaSeconds - (Date.now() - job.heardAt) / 1000);
}

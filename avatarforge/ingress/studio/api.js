// The service's calls. Whatever goes wrong is thrown as a Problem with the server's own sentence.

import { t } from "./i18n.js";
import { sentenceOf } from "./problems.js";
import { session } from "./session.js";

// Below a path of a proxy's, perhaps; the server's own addresses begin with it already.
const ROOT = new URL(".", document.baseURI).pathname;
let askForKey = () => {};

export const onKeyWanted = (ask) => (askForKey = ask);

export class Problem extends Error {
  constructor(document, retryAfter = 0) {
    super(document.detail);
    this.document = document;
    this.code = document.code;
    this.status = document.status;
    this.field = document.field;
    this.retryAfter = retryAfter;
  }

  // Whether the same call may go well later.
  get passes() {
    return [0, 429, 503].includes(this.status) || this.code === "idempotency_key_in_flight";
  }
}

// The response of a call that went well.
export async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (session.key && !headers.has("Authorization")) headers.set("Authorization", `Bearer ${session.key}`);
  const { onProgress, ...rest } = { ...options, headers };
  let response;
  try {
    const address = path.startsWith(ROOT) ? path : ROOT + path.slice(1);
    response = await (onProgress ? upload(address, rest, onProgress) : fetch(address, rest));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ detail: t("unreachable"), code: "unreachable", status: 0 });
  }
  if (response.ok) return response;
  const problem = await readProblem(response);
  if (problem.status === 401) askForKey(problem);
  throw problem;
}

// As `fetch`, which tells nothing of what is sent.
function upload(address, { method, headers, body, signal }, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, address);
    for (const [name, value] of headers) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => onProgress(loaded / total);
    request.onload = () => {
      const { status, responseText } = request;
      const retryAfter = request.getResponseHeader("Retry-After") ?? "";
      resolve(new Response(responseText, { status, headers: { "Retry-After": retryAfter } }));
    };
    const abort = () => request.abort();
    request.onerror = () => reject(new TypeError("no answer"));
    request.onabort = () => reject(signal.aborted ? signal.reason : new TypeError("offline"));
    request.onloadend = () => removeEventListener("offline", abort);
    signal.addEventListener("abort", abort);
    addEventListener("offline", abort); // which else may hang for minutes
    request.send(body);
  });
}

async function readProblem(response) {
  const told = await response.json().catch(() => ({}));
  const document = { code: "unknown", ...told, status: response.status };
  document.detail = told.detail ? sentenceOf(told) : t("statusOnly", { status: response.status });
  return new Problem(document, Number(response.headers.get("Retry-After")) || 0);
}

// A seed may have more digits than a number can hold here: a long one stays the text that it is.
export const parse = (text) => JSON.parse(text.replace(/"seed":\s*(\d{16,})/g, '"seed":"$1"'));

const json = async (path, options) => parse(await (await call(path, options)).text());
const of = (customer) => `/customers/${encodeURIComponent(customer)}`;
const photo = (job) => `${of(job.customerId)}/photos/${job.jobId}`;

// Sends the photo; the key makes sure that a repeated call makes no second job.
export const submit = (customer, form, key, options) =>
  json(of(customer), { method: "POST", body: form, headers: { "Idempotency-Key": key }, ...options });

// The square that the server would cut; nothing is kept there. With `preview` it shows it, too.
export function findCrop(file, name, preview) {
  const form = new FormData();
  form.append("photo", file, name);
  return json(`/crop?preview=${preview}`, { method: "POST", body: form });
}

export const photos = (customer, path) => json(path ?? `${of(customer)}/photos?limit=24`);
export const status = (customer, jobId) => json(`${of(customer)}/photos/${encodeURIComponent(jobId)}/status`);
export const cancel = (job) => json(`${photo(job)}/cancel`, { method: "POST" });
export const retry = (job) => json(`${photo(job)}/retry`, { method: "POST" });
export const erase = (job, options) => call(photo(job), { method: "DELETE", ...options });
export const links = (job, seconds) => json(`${photo(job)}/links?expiresSeconds=${seconds}`);
export const about = () => json("/about");
export const ownKey = () => json("/keys/self");
export const customers = () => json("/customers?limit=200");
export const styles = () => json("/styles");
export const models = () => json("/models");
export const readiness = () => json("/readyz");

export const keep = (job, index) =>
  json(`${photo(job)}/kept`, {
    method: "PUT",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ index }),
  });

// Where in the studio the job, or one image of it, is shown.
export const pageOf = ({ customerId, jobId, index }) =>
  `#/photo/${customerId}/${jobId}${index === undefined ? "" : `/${index}`}`;

// Images come through this host, wherever they are stored.
export function avatarOf(job) {
  const isOne = job.index === undefined && !(job.images?.length > 1);
  const image = isOne ? "generated" : `generated/${job.index ?? job.kept ?? job.images[0].index}`;
  return `${photo(job)}/${image}?redirect=false`;
}
export const originalOf = (job) => `${photo(job)}/original?redirect=false`;
export const squareOf = (job) => `${photo(job)}/original?square=true`;

// Ends before its time when the browser is online again, or the signal comes.
export function pause(seconds, signal) {
  return new Promise((done) => {
    const end = () => {
      clearTimeout(timer);
      removeEventListener("online", end);
      signal?.removeEventListener("abort", end);
      done();
    };
    const timer = setTimeout(end, seconds * 1000);
    addEventListener("online", end);
    signal?.addEventListener("abort", end);
  });
}

// crypto.randomUUID is there on https and localhost only.
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

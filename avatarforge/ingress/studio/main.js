// Puts the parts together: which view is shown, and what is drawn again when something changes.

import * as api from "./api.js";
import { drawTab, tellEnd } from "./away.js";
import { identify, showCustomer, startCustomer } from "./customer.js";
import { $, $$ } from "./dom.js";
import { resumeErasing } from "./erasing.js";
import { drawFacts } from "./facts.js";
import { showFrame } from "./framing.js";
import { drawGallery, drawStrip } from "./gallery.js";
import { onLanguage, otherLanguage, setLanguage, t, translatePage } from "./i18n.js";
import { loadAbout, startInput } from "./input.js";
import * as jobs from "./jobs.js";
import { refreshModels } from "./models.js";
import { clear, look, onPhoto, photo, restorePhoto } from "./photo.js";
import { forgetImages } from "./images.js";
import { drawQueue, drawQueueCount, refreshQueue } from "./queue.js";
import { countOf, nameOf, oneOf, reasonOf, situation } from "./states.js";
import { attempt, note, persist, say } from "./say.js";
import { startSelection } from "./selection.js";
import { drawSending, onSending } from "./sending.js";
import { GRAMMAR, onSession, session } from "./session.js";
import { drawStage } from "./stage.js";
import { showTheme, startTheme } from "./theme.js";
import {
  drawForge,
  drawPrompts,
  drawRemixed,
  emptyForm,
  loadStyles,
  sendFiles,
  showDial,
  showWhatActs,
  startForm,
} from "./parameters.js";

const VIEWS = ["studio", "gallery", "queue", "models"];
const QUEUE_SECONDS = 3;
const MODEL_SECONDS = 15;
const JOB_SECONDS = 3; // until a job that could not be asked for is asked for again

let view = "studio";
let jobId = null;
let index = null; // of the image that is shown, of a job of several
let arrivals = 0; // counted: an answer that comes late is not about this address
let absent = {}; // why the job of this address is not shown: another customer's, or what the server says
let wasLost = false;
let galleryPlace = 0; // how far it was scrolled when it was left

// --- where one is: #/, #/photo/<customer>/<id>, #/gallery, #/queue, #/models ---

function route() {
  const [, name, customer, id, place] = location.hash.split("/");
  view = VIEWS.includes(name) ? name : "studio";
  jobId = name === "photo" && id ? id : null;
  index = Number.parseInt(place, 10);
  absent = {};
  if (jobId && customer !== session.customer)
    absent = GRAMMAR.test(customer) ? { customer } : { problem: t("customerWrong") };
  if (jobs.isHidden(jobId)) absent = { problem: t("erased") };
  for (const section of $$(".view")) section.hidden = section.id !== `view-${view}`;
  for (const link of $$(".tabs a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  draw();
  if (view === "queue") attempt(askQueue);
  if (view === "models") attempt(refreshModels);
  arrivals += 1;
  if (jobId && customer === session.customer && !jobs.get(jobId) && !absent.problem) askJob(arrivals);
}

// Until it is known, or one is elsewhere.
async function askJob(arrival) {
  try {
    const job = await api.status(session.customer, jobId);
    if (arrival === arrivals) jobs.learn(job);
  } catch (error) {
    if (arrival !== arrivals || error.status === 401) return;
    absent = { problem: error.message };
    draw();
    if (!error.passes) return;
    await api.pause(JOB_SECONDS);
    if (arrival === arrivals && !jobs.get(jobId)) askJob(arrival);
  }
}

// A new view begins at its heading, for eyes and for screen readers; the gallery where one has left it.
function arrive() {
  if (view === "gallery") galleryPlace = scrollY;
  const card = jobId && `[data-key="card ${CSS.escape(jobId)}"]`;
  route();
  const heading = jobId ? $("#job-heading") : view === "studio" ? null : $(`#${view}-heading`);
  const left = view === "gallery" && card && $(card);
  (left || heading || $("#main")).focus({ preventScroll: true });
  scrollTo(0, view === "gallery" ? galleryPlace : 0);
}

// --- drawing ---

function draw() {
  const whole = jobId && jobs.get(jobId);
  const job = whole && oneOf(whole, index);
  drawTab(job ? nameOf(job) : t(view));
  $("#parameters").hidden = Boolean(jobId);
  $("#facts").hidden = !jobId;
  drawQueueCount();
  drawPrompts();
  if (view === "gallery") drawGallery();
  if (view === "queue") drawQueue();
  if (view !== "studio") return;
  if (jobId) drawStage(jobId, absent, job);
  drawStrip(jobId);
  if (jobId) drawFacts(job);
}

function drawLanguage() {
  $("#language-name").textContent = otherLanguage().toUpperCase();
  $("#language-button").setAttribute("aria-label", t("switchLanguage"));
  $("#language-button").title = t("switchLanguage");
  $("#language-button").lang = otherLanguage();
}

function drawAll() {
  translatePage();
  drawLanguage();
  showTheme();
  showCustomer();
  showDial();
  showWhatActs();
  drawSending();
  drawForge();
  drawRemixed();
  if (!jobId) drawStage(null);
  draw();
}

// Draws once for many events of one moment, and not under a finger: a button that is replaced hears no click.
let due = false;
let pressed = false;
function soon() {
  if (due || pressed) return;
  due = true;
  // A page that is not looked at gets no frames, and has a title all the same.
  const later = document.hidden ? setTimeout : requestAnimationFrame;
  later(() => {
    due = false;
    draw();
  });
}

async function askQueue() {
  await refreshQueue();
  soon();
}

// --- what happens ---

const endOf = (job) => t(`said_${job.status}`, { reason: reasonOf(job) });

function onJob({ job, before, erased }) {
  if (job && before && !job.isTerminal && countOf(job) > 1 && job.images.length > before.images.length)
    say(situation(job));
  if (job && before && job.status !== before.status && job.status !== "PENDING") {
    const text = endOf(job);
    say(text);
    if (job.isTerminal) tellEnd(job, text);
  }
  if (erased && erased === jobId) location.hash = "#/gallery";
  soon();
}

// What was pressed to choose a photo, or another one, is gone then: the focus goes to what came in its place.
function onPhotoChange(what) {
  if (location.hash.startsWith("#/photo/")) return;
  if (["face", "centre", "unknown"].includes(photo.place) && what !== "crop") say(t(`place_${photo.place}`));
  if (what === "crop") return showFrame();
  // A page that has just been loaded, or a face that was found, takes the focus from nobody.
  const isNew = what === "photo" && document.activeElement === document.body;
  const lost = isNew || $("#stage").contains(document.activeElement);
  drawStage(null);
  if (!lost || what !== "photo") return;
  $("#stage :is(.frame, [data-key=other-photo], #photo)")?.focus({ preventScroll: true });
}

function onConnection(state, problem) {
  const banner = $("#connection");
  if (state === "open" && !wasLost) return;
  const wasRefused = banner.dataset.state === "refused";
  wasLost = state !== "open";
  const lost = navigator.onLine ? t("lost") : t("offline");
  banner.textContent = state === "open" ? t("back") : state === "lost" ? lost : problem.message;
  banner.dataset.state = state;
  banner.hidden = false;
  document.documentElement.toggleAttribute("data-cut-off", state !== "open");
  soon();
  if (wasRefused) banner.hidden = !wasLost;
  if (state !== "open") return;
  attempt(loadAll);
  setTimeout(() => (banner.hidden = !wasLost), 4000);
}

const loadAll = () => Promise.all([jobs.load(), loadStyles()]);

async function begin() {
  forgetImages();
  jobs.leave();
  showCustomer();
  // Where the key opens another customer, that one begins.
  if (session.key && (await identify().catch(() => false))) return;
  const { number } = session;
  const isWanted = () => number === session.number;
  jobs.follow();
  resumeErasing();
  persist(() => jobs.load(), isWanted);
  persist(loadStyles, isWanted);
  persist(() => loadAbout().then(soon), isWanted);
  if (photo.place === "unknown") look();
  route();
}

function every(seconds, name, work) {
  setInterval(() => view === name && !document.hidden && work().catch(() => {}), seconds * 1000);
}

startTheme();
startCustomer();
startSelection(drawGallery);
history.scrollRestoration = "manual";
startInput(() => (location.hash = "#/"), sendFiles);
startForm((job, unchanged) => {
  // Whoever has gone on to something else is not called away from it.
  if (unchanged && view === "studio" && !jobId) location.hash = api.pageOf(job);
  else note(t("accepted"));
  // The stream may have told its end before the upload's answer came.
  const now = jobs.get(job.jobId);
  say(now?.isTerminal ? endOf(now) : t("accepted"));
});
onSending(() => {
  drawSending();
  drawForge();
});
jobs.onJobs(onJob);
jobs.onConnection(onConnection);
onPhoto(onPhotoChange);
onSession((before) => {
  // What was prepared is not the next one's to see, whoever has another key or is another customer.
  if (before.customer !== session.customer || (before.key && before.key !== session.key)) {
    clear();
    emptyForm();
  }
  begin();
});
onLanguage(() => {
  drawAll();
  attempt(loadStyles);
  route();
});
document.addEventListener("visibilitychange", soon);
addEventListener("pointerdown", () => (pressed = true));
for (const end of ["pointerup", "pointercancel"]) {
  addEventListener(end, () => {
    pressed = false;
    setTimeout(soon);
  });
}
addEventListener("hashchange", () => {
  if (!location.hash.startsWith("#/photo/")) drawStage(null);
  arrive();
});
$("#language-button").addEventListener("click", () => setLanguage(otherLanguage()));
$(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("#main").focus();
});
every(QUEUE_SECONDS, "queue", askQueue);
every(MODEL_SECONDS, "models", refreshModels);
setInterval(() => jobs.unfinished().length && soon(), 1000);
drawAll();
begin();
restorePhoto();
performance.mark("ready");

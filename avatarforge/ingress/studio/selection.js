// The gallery's tools: which jobs are shown, and which are chosen, to be erased or taken along as an archive.

import { $, h, write } from "./dom.js";
import { erase } from "./erasing.js";
import { number, t } from "./i18n.js";
import * as jobs from "./jobs.js";
import { attempt } from "./say.js";
import { onSession, session } from "./session.js";
import { saveArchive } from "./sharing.js";
import { nameOf } from "./states.js";
import { titleOf } from "./styles.js";

const chosen = new Set(); // ids

// Small, and without marks: "cafe" finds "Café".
const folded = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLocaleLowerCase();
const wordsOf = (text) => folded(text).split(/\s+/).filter(Boolean);

// Of all jobs that are known those with each word in their style or prompt.
export function searched(all) {
  const words = wordsOf($("#search").value);
  return all.filter(({ parameters: { style, prompt = "" } = {} }) => {
    const text = folded(`${style ? titleOf(style) : ""} ${style ?? ""} ${prompt}`);
    return words.every((word) => text.includes(word));
  });
}

export const isSearching = () => Boolean($("#search").value.trim());
export const isChosen = ({ jobId }) => chosen.has(jobId);

// What is not shown is not acted on.
const chosenJobs = () => searched(jobs.all()).filter(isChosen);

let looking = false;

// A search is through all jobs, and older ones may not be here yet.
async function lookFurther() {
  if (looking) return;
  looking = true;
  while (isSearching() && jobs.hasOlder() && (await attempt(jobs.loadOlder))) continue;
  looking = false;
}

// A box over the card's image.
export function choice(job) {
  const box = h("input", {
    type: "checkbox",
    checked: isChosen(job),
    "aria-label": t("choose", { name: nameOf(job) }),
    "data-key": `choose ${job.jobId}`,
  });
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(job.jobId);
    else chosen.delete(job.jobId);
    drawTools();
  });
  return h("label.choice", {}, box);
}

export function drawTools() {
  const all = jobs.all();
  const tools = $("#gallery-tools");
  if (!all.length && tools.contains(document.activeElement)) $("#gallery-heading").focus({ preventScroll: true });
  tools.hidden = !all.length;
  for (const id of chosen) if (!jobs.get(id)) chosen.delete(id);
  const choosing = $("#choosing").getAttribute("aria-pressed") === "true";
  $("#gallery").classList.toggle("choosing", choosing);
  $("#chosen").hidden = !choosing;
  const n = chosenJobs().length;
  const counts = { n: number(n), others: number(chosen.size - n) };
  write($("#chosen-count"), n < chosen.size ? t("chosenNotShown", counts) : t("chosenCount", counts));
  for (const name of ["#zip", "#erase-chosen"]) $(name).disabled = !n;
  $("#found").hidden = !isSearching();
  const found = { n: number(searched(all).length), all: number(all.length) };
  write($("#found"), jobs.hasOlder() ? t("foundAmong", found) : t("found", found));
}

function choose(ids) {
  chosen.clear();
  for (const id of ids) chosen.add(id);
  for (const box of document.querySelectorAll("#gallery .choice input"))
    box.checked = chosen.has(box.dataset.key.split(" ")[1]);
  drawTools();
}

let saving = false;

async function saveChosen() {
  if (saving) return;
  const words = $("#zip span");
  const tell = (n, all) => write(words, t("found", { n: number(n), all: number(all) }));
  saving = true;
  $("#zip").setAttribute("aria-disabled", "true");
  try {
    await saveArchive(chosenJobs(), `${session.customer}-avatars`, tell);
  } finally {
    saving = false;
    $("#zip").removeAttribute("aria-disabled");
    write(words, t("saveZip"));
  }
}

function eraseChosen() {
  const list = chosenJobs();
  const ids = list.map(({ jobId }) => jobId);
  choose([...chosen].filter((id) => !ids.includes(id)));
  erase(list);
  $("#choosing").focus();
}

export function startSelection(draw) {
  $("#search").addEventListener("input", () => {
    draw();
    lookFurther();
  });
  $("#choosing").addEventListener("click", ({ currentTarget }) => {
    currentTarget.setAttribute("aria-pressed", currentTarget.getAttribute("aria-pressed") !== "true");
    choose([]);
  });
  $("#choose-all").addEventListener("click", () => choose(searched(jobs.all()).map(({ jobId }) => jobId)));
  $("#zip").addEventListener("click", () => attempt(saveChosen));
  $("#erase-chosen").addEventListener("click", eraseChosen);
  onSession(() => {
    $("#search").value = "";
    choose([]);
  });
}

// The form beside the stage: what the avatar should be like.

import * as api from "./api.js";
import { keepFields, keptFields } from "./draft.js";
import { $, $$, h, replace } from "./dom.js";
import { number, t } from "./i18n.js";
import * as jobs from "./jobs.js";
import { onPhoto, photo, setShape, upload } from "./photo.js";
import { note } from "./say.js";
import { isSending, send as sendUpload, shareSent } from "./sending.js";
import { session } from "./session.js";
import { allStyles, drawing, learnTitles, titleOf } from "./styles.js";

const form = $("#parameters");
const FREEST = 0.05; // of the strengths; 0 would give the photo back
const DIALS = {
  strength: { min: FREEST, max: 1, step: 0.05, dir: "ltr", digits: 2 },
  imageGuidance: { min: 1, max: 3, step: 0.1, dir: "rtl", digits: 1 }, // more is closer to the photo
};
const IN_OTHER_FIELDS = ["cropToFace", "width", "height"];
const USUAL = { format: "png", variants: 1, vary: "seed" }; // what an empty field stands for
const PROMPTS = 4;
let restored = null; // of the draft: what waits for the styles to be known
let defaults = {};
let dial = null; // the name of the dial that the model has, if any
let dialTurned = false; // until then it is left to the model
let carried = {}; // what a remixed job was asked for that has no field here
let key = api.newKey();

export function startForm(onAccepted) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(onAccepted);
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener("input", changed);
  $("#same-seed").addEventListener("click", () => {
    $("#seed").value = $("#same-seed").dataset.seed;
    $("#seed").focus();
    changed();
  });
  onPhoto((what) => what !== "place" && changed());
  $(".more").open = matchMedia("(min-width: 1081px) and (min-height: 860px)").matches; // there is room for it
  $("#dial").addEventListener("input", () => {
    dialTurned = true;
    showDial();
  });
  $("#size").addEventListener("change", shapePhoto);
  $("#leave-out").addEventListener("click", () => {
    carried = {};
    drawRemixed();
    changed();
    $(".more summary").focus();
  });
  $("#roll").addEventListener("click", () => {
    $("#seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    changed();
  });
  restore();
}

// Everything that the job was asked for, without its seed, which is offered.
export function remix({ parameters = {}, seed }) {
  form.reset();
  for (const name of ["prompt", "negativePrompt", "steps", "guidance"])
    form.elements[name].value = parameters[name] ?? "";
  for (const [name, usual] of Object.entries(USUAL)) {
    const value = parameters[name] ?? usual;
    form.elements[name].value = value === usual ? "" : value;
  }
  chooseSize(parameters.width && `${parameters.width}x${parameters.height}`);
  for (const radio of $$("[name=style]", form)) radio.checked = radio.value === (parameters.style ?? "");
  dialTurned = false;
  setDial(parameters[dial]);
  $("#same-seed").dataset.seed = seed ?? "";
  carried = Object.fromEntries(Object.entries(parameters).filter(isCarried));
  drawRemixed();
  const { negativePrompt, steps, guidance } = parameters;
  $(".more").open ||= Boolean(negativePrompt || steps || guidance || parameters.width || Object.keys(carried).length);
  changed();
}

// The frame says how the photo is cropped; a dial that the model lacks would be refused.
function isCarried([name, value]) {
  if (value === null || name in DIALS || IN_OTHER_FIELDS.includes(name) || form.elements[name]) return false;
  return name !== "allowRemote" || !value;
}

// For somebody else.
export function emptyForm() {
  restored = null;
  remix({});
}

export function drawRemixed() {
  const { seed } = $("#same-seed").dataset;
  $("#same-seed").hidden = !seed;
  $("#same-seed").textContent = t("sameSeed", { seed });
  const list = Object.entries(carried).map(([name, value]) => `${name} ${value}`);
  $("#carried").hidden = !list.length;
  $("#carried span").textContent = t("carried", { list: list.join(", ") });
}

// Fields that take their values again after a reload.
function keep() {
  const fields = Object.fromEntries(new FormData(form));
  const { seed } = $("#same-seed").dataset;
  keepFields({ fields, dial: dialTurned ? $("#dial").value : null, seed, carried });
}

function restore() {
  const kept = keptFields();
  if (!kept) return;
  for (const [name, value] of Object.entries(kept.fields))
    if (form.elements[name] && !(name in DIALS) && !["style", "size"].includes(name)) form.elements[name].value = value;
  restored = kept;
  $("#same-seed").dataset.seed = kept.seed ?? "";
  carried = kept.carried ?? {};
  drawRemixed();
  const { seed, steps, guidance, negativePrompt, size } = kept.fields;
  $(".more").open ||= Boolean(
    kept.seed || seed || steps || guidance || negativePrompt || size || Object.keys(carried).length,
  );
}

// The last prompts, to be taken again.
export function drawPrompts() {
  const prompts = jobs.all().map((job) => job.parameters?.prompt?.trim()).filter(Boolean);
  const wanted = $("#prompt").value ? [] : [...new Set(prompts)].slice(0, PROMPTS);
  $("#prompts").hidden = !wanted.length;
  if ($("#prompts").dataset.for === wanted.join("\n")) return;
  $("#prompts").dataset.for = wanted.join("\n");
  replace($("#prompts"), wanted.map(promptChip));
}

function promptChip(prompt) {
  const take = () => {
    $("#prompt").value = prompt;
    $("#prompt").focus();
    changed();
  };
  const words = h("span", { dir: "auto" }, prompt);
  return h("li", {}, h("button.chip", { type: "button", onclick: take, title: prompt, "data-key": prompt }, words));
}

// The styles and defaults of the model that serves.
export async function loadStyles() {
  const [{ styles }, { models }] = await Promise.all([api.styles(), api.models()]);
  [dial = null] = models[0].dials;
  defaults = models[0].defaults;
  drawSizes(models[0], form.elements.size.value || (restored?.fields.size ?? ""));
  const chosen = form.elements.style?.value ?? restored?.fields.style ?? "";
  learnTitles(styles);
  replace(
    $("#styles"),
    styleCard("", t("ownWords"), chosen),
    styles.map(({ name }) => styleCard(name, titleOf(name), chosen)),
  );
  setDial(restored?.dial);
  restored = null;
  $("#steps").placeholder = defaults.steps;
  $("#guidance").placeholder = number(defaults.guidance, 1);
  showWhatActs();
}

// A square as the model makes it, a larger one where it can, and both ways of three to four.
function drawSizes({ size, maxSize }, wanted) {
  const shorter = Math.floor((maxSize * 0.75) / 8) * 8;
  const all = [[maxSize, maxSize], [shorter, maxSize], [maxSize, shorter]];
  const sizes = all.filter(([width, height]) => width !== size || height !== size);
  const own = h("option", { value: "" }, sizeText(size, size));
  replace($("#size"), own, sizes.map(([width, height]) => sizeOption(`${width}x${height}`)));
  chooseSize(wanted);
}

const sizeText = (width, height) => t("pixels", { width: number(width), height: number(height) });
const sizeOption = (value) => h("option", { value }, sizeText(...value.split("x")));

// What was asked for elsewhere may be of no size that is offered.
function chooseSize(value) {
  const select = $("#size");
  if (value && ![...select.options].some((option) => option.value === value)) select.append(sizeOption(value));
  select.value = value || "";
  shapePhoto();
}

const shapePhoto = () => setShape(...($("#size").value || "1x1").split("x").map(Number));

// Without guidance what is to be avoided and the image guidance change nothing, and are not offered.
const isGuided = () => (asNumber($("#guidance").value) || defaults.guidance) > 1;
const asNumber = (text) => Number(text.replace(",", "."));

export function showWhatActs() {
  const guided = isGuided();
  $("#dial").closest(".field").hidden = !dial || (dial === "imageGuidance" && !guided);
  $("#negative-prompt").closest(".field").hidden = !guided && !$("#negative-prompt").value;
  $("#guidance-why").hidden = guided;
  const several = $("#variants").value !== "";
  if (!several) $("#vary").value = "";
  $("#vary").closest(".field").hidden = !several || !allStyles().length;
  const isPlain = !form.elements.style?.value && !$("#prompt").value.trim();
  $("#plain-why").hidden = !isPlain || !defaults.prompt;
  $("#plain-why q").textContent = defaults.prompt;
}

// The one slider turns the dial that the model has.
function setDial(value = null) {
  const input = $("#dial");
  if (dialTurned && dial === input.name) return;
  dialTurned = false;
  if (!dial) return;
  input.closest(".field").dataset.field = input.name = dial;
  const { min, max, step, dir } = DIALS[dial];
  Object.assign(input, { min, max: Math.max(max, defaults[dial]), step, dir });
  dialTurned = value !== null;
  input.value = value ?? defaults[dial];
  showDial();
}

function styleCard(name, title, chosen) {
  const image = h("img", { src: drawing(name), alt: "", width: 64, height: 64 });
  return h(
    "label.style",
    {},
    h("input", {
      type: "radio",
      name: "style",
      value: name,
      checked: name === chosen,
      "data-key": `style ${name}`,
    }),
    image,
    h("span", {}, title),
  );
}

export function showDial() {
  const { name, value } = $("#dial");
  if (!name) return;
  $("#dial-label").textContent = t(name);
  $("#dial-value").textContent = number(Number(value), DIALS[name].digits);
}

// Other parameters are another upload.
function changed() {
  key = api.newKey();
  forgive();
  keep();
  showWhatActs();
  drawForge();
  drawPrompts();
}

async function send(onAccepted) {
  if (isSending(key)) return;
  forgive();
  if (!photo.file) return complain(t("needPhoto"), null);
  const sent = key;
  const { customer } = session;
  try {
    const job = await sendUpload({
      customer,
      key,
      name: photo.file.name || t("yourPhoto"),
      prepare: async () => filledIn(new FormData(form), await upload()),
    });
    const unchanged = sent === key;
    if (unchanged) key = api.newKey();
    if (job?.customerId === session.customer) onAccepted(jobs.learn(job), unchanged);
  } catch (error) {
    if (error.status === 401 || customer !== session.customer) return;
    if (sent !== key || !form.checkVisibility()) note(error.message, "error");
    if (sent === key) complain(error.message, error);
  }
}

// Each file becomes an avatar with what is chosen now, its square around the face.
export async function sendFiles(files) {
  const { customer } = session;
  const fields = [...new FormData(form)];
  const sendOne = async (file) => {
    const prepare = async () => filledIn(fields, { file, name: file.name, cropToFace: true });
    try {
      const job = await sendUpload({ customer, key: api.newKey(), name: file.name, prepare });
      if (job) jobs.learn(job);
    } catch (error) {
      if (error.status === 401 || customer !== session.customer) return;
      note(`${file.name}: ${error.message}`, "error");
    }
  };
  location.hash = "#/queue";
  await Promise.all(files.map(sendOne));
}

// Fields come before the photo, and empty ones stay away.
function filledIn(fields, { file, name, cropToFace }) {
  const data = new FormData();
  const isMeant = (field) => !(field in DIALS) || (dialTurned && (field !== "imageGuidance" || isGuided()));
  for (const [field, value] of fields)
    if (value !== "" && isMeant(field)) append(data, field, value);
  for (const [name, value] of Object.entries(carried)) data.append(name, value);
  if (!cropToFace) data.append("cropToFace", "false");
  data.append("photo", file, name);
  return data;
}

function append(data, field, value) {
  const [width, height] = value.split("x");
  if (field !== "size") return data.append(field, field === "guidance" ? value.replace(",", ".") : value);
  data.append("width", width);
  return data.append("height", height);
}

// The button keeps the focus while what it stands for is on its way.
export function drawForge() {
  const busy = isSending(key);
  $("#forge").setAttribute("aria-disabled", busy);
  $("#forge span").textContent = busy
    ? t("sending", { n: Math.floor(shareSent(key) * 100) })
    : t("forge");
}

// A problem is told where it belongs: at its field, at the photo, or above the button.
function complain(text, error) {
  const field = error?.field && $(`[data-field="${CSS.escape(error.field)}"]`, form);
  if (field) return complainAt(field, text);
  // The photo's own place is on the stage, where a job may be shown meanwhile.
  const place = (error?.code?.startsWith("photo") && $("#photo-error")) || $("#parameters-error");
  place.textContent = text;
  place.hidden = false;
  if (!photo.file) $("#photo")?.focus();
}

function complainAt(field, text) {
  const input = $("input, textarea, select", field);
  field.closest("details")?.setAttribute("open", "");
  field.append(h("p.error", { role: "alert", id: `${input.id || input.name}-error` }, text));
  input.setAttribute("aria-invalid", "true");
  input.setAttribute("aria-describedby", `${input.id || input.name}-error`);
  input.focus();
}

function forgive() {
  for (const error of $$("#photo-error, #parameters-error")) error.hidden = true;
  for (const error of $$(".field > .error", form)) error.remove();
  for (const input of $$("[aria-invalid]", form)) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  }
}

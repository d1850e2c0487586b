// The form beside the stage: what the avatar should be like.

import * as api from "./api.js";
import { $, $$, h } from "./dom.js";
import { number, t } from "./i18n.js";
import * as jobs from "./jobs.js";
import { onPhoto, photo, upload } from "./photo.js";
import { say } from "./say.js";
import { session } from "./session.js";
import { drawing } from "./styles.js";

const form = $("#wishes");
let strengthChosen = false; // until then it is left to the model, which may have none to choose
let key = api.newKey();

export function startWishes(onAccepted) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(onAccepted);
  });
  form.addEventListener("input", changed);
  onPhoto(changed);
  $(".more").open = matchMedia("(min-width: 1081px) and (min-height: 860px)").matches; // there is room for it
  $("#strength").addEventListener("input", () => {
    strengthChosen = true;
    showStrength();
  });
  $("#roll").addEventListener("click", () => {
    $("#seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    changed();
  });
}

// The styles and defaults of the model that serves.
export async function loadStyles() {
  const [{ styles }, { models }] = await Promise.all([api.styles(), api.models()]);
  const { defaults } = models[0];
  const chosen = form.elements.style?.value ?? "";
  $("#styles").replaceChildren(
    styleCard("", t("ownWords"), chosen),
    ...styles.map(({ name, title }) => styleCard(name, title, chosen)),
  );
  if (!strengthChosen) $("#strength").value = defaults.strength;
  $("#steps").placeholder = defaults.steps;
  $("#guidance").placeholder = number(defaults.guidance, 1);
  showStrength();
}

function styleCard(name, title, chosen) {
  const image = h("img", { src: drawing(name), alt: "", width: 64, height: 64 });
  return h(
    "label.style",
    {},
    h("input", { type: "radio", name: "style", value: name, checked: name === chosen }),
    image,
    h("span", {}, title),
  );
}

export function showStrength() {
  $("#strength-value").textContent = number(Number($("#strength").value), 2);
}

// Another wish is another upload.
function changed() {
  key = api.newKey();
  forgive();
}

async function send(onAccepted) {
  forgive();
  if (!photo.file) return complain(t("needPhoto"), null);
  busy(true);
  try {
    const { file, name, cutFace } = await upload();
    const job = await api.submit(session.customer, filledIn(file, name, cutFace), key, () =>
      say(t("tryingAgain")),
    );
    key = api.newKey();
    onAccepted(jobs.learn(job));
  } catch (error) {
    if (error.status !== 401) complain(error.message, error);
  } finally {
    busy(false);
  }
}

// Fields come before the photo, and empty ones stay away.
function filledIn(file, name, cutFace) {
  const data = new FormData();
  for (const [field, value] of new FormData(form))
    if (value !== "" && (field !== "strength" || strengthChosen)) data.append(field, value);
  if (!cutFace) data.append("cutFace", "false");
  data.append("photo", file, name);
  return data;
}

function busy(is) {
  $("#forge").disabled = is;
  $("#forge span").textContent = is ? t("sending") : t("forge");
}

// A problem is told where it belongs: at its field, at the photo, or above the button.
function complain(text, error) {
  const field = error?.field && $(`[data-field="${CSS.escape(error.field)}"]`, form);
  if (field) return complainAt(field, text);
  const place = error?.code?.startsWith("photo") ? $("#photo-error") : $("#wishes-error");
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
  for (const error of $$("#photo-error, #wishes-error")) error.hidden = true;
  for (const error of $$(".field > .error", form)) error.remove();
  for (const input of $$("[aria-invalid]", form)) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  }
}

// The images of a job of several: a sheet that fills as they come.

import { pageOf, avatarOf } from "./api.js";
import { $, $$, h, icon } from "./dom.js";
import { show } from "./images.js";
import { number, t } from "./i18n.js";
import { previewOf } from "./jobs.js";
import { bar, countOf, nameOf, oneOf, ratioOf, remaining, situation } from "./states.js";

const COLUMNS = [0, 1, 2, 2, 2, 3, 3, 4, 4]; // of a sheet of so many

export function sheet(job) {
  const count = countOf(job);
  const columns = COLUMNS[count];
  const element = h(
    "figure.sheet",
    {},
    h("ol", {}, Array.from({ length: count }, () => h("li", { "data-state": "missing" }, h("img", { alt: "" })))),
    h("figcaption", {}, h("strong"), h("span"), h("div.steps")),
  );
  element.style.setProperty("--columns", columns);
  element.style.setProperty("--rows", Math.ceil(count / columns));
  element.style.setProperty("--ratio", ratioOf(job));
  return element;
}

// Puts the sheet to what is there now; what is there already stays, and keeps the focus.
export function refreshSheet(element, job) {
  $$("li", element).forEach((place, index) => refreshPlace(place, job, index));
  const caption = $("figcaption", element);
  $("strong", caption).textContent = job.status === "DONE" ? t("chooseOne") : situation(job);
  $("span", caption).textContent = remaining(job);
  $(".steps", caption).replaceChildren(...(job.status === "PROCESSING" ? [bar(job)] : []));
}

function refreshPlace(place, job, index) {
  const image = oneOf(job, index);
  if (image === job) {
    place.dataset.state = job.isTerminal ? "none" : "missing";
    const preview = previewOf(job.jobId, index);
    if (preview) $("img", place).src = preview;
    return;
  }
  if (place.dataset.state !== "done") {
    place.dataset.state = "done";
    place.replaceChildren(
      h(
        "a",
        { href: pageOf(image), "data-key": `image ${index}` },
        show(h("img", { alt: "" }), avatarOf(image)),
        h("span.number", { "aria-hidden": "true" }, number(index + 1)),
        h("span.kept", { "aria-hidden": "true" }, icon("star")),
      ),
    );
  }
  place.toggleAttribute("data-kept", job.kept === index);
  const name = nameOf(image);
  $("a", place).setAttribute("aria-label", job.kept === index ? t("keptName", { name }) : name);
}

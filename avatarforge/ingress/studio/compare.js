// Before and after, one over the other. The slider is a real one, so it works by keyboard and is read out.

import { h } from "./dom.js";
import { t } from "./i18n.js";
import { avatarOf, squareOf } from "./api.js";
import { show } from "./images.js";

export function comparison(job) {
  const before = h("img.before", { alt: t("before") });
  const after = h("img.after", { alt: t("after") });
  const slider = h("input.divider", {
    type: "range",
    min: 0,
    max: 100,
    step: 1,
    value: 50,
    "aria-label": t("compare"),
    "data-key": "compare",
  });
  const waiting = h("figcaption.status", { role: "status" }, h("strong", {}, t("patience")));
  // Until the avatar is here the photo must not pass for it.
  const figure = h(
    "figure.compare",
    { "data-state": "waiting" },
    before,
    after,
    h("span.tag.left", { "aria-hidden": "true" }, t("before")),
    h("span.tag.right", { "aria-hidden": "true" }, t("after")),
    h("span.handle", { "aria-hidden": "true" }),
    slider,
    waiting,
  );
  after.addEventListener("shown", () => {
    delete figure.dataset.state;
    waiting.remove();
  });
  after.addEventListener("broken", ({ detail: problem }) => {
    const told = problem.passes ? t("avatarAgain") : t("avatarGone");
    if (waiting.textContent !== told + problem.message)
      waiting.replaceChildren(h("strong", {}, told), h("span", {}, problem.message));
  });
  const divide = () => {
    figure.style.setProperty("--at", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", t("compareAt", { n: 100 - slider.value }));
  };
  slider.addEventListener("input", divide);
  divide();
  show(before, squareOf(job));
  show(after, avatarOf(job));
  return figure;
}

// Before and after, one over the other. The slider is a real one, so it works by keyboard and is read out.

import { h } from "./dom.js";
import { t } from "./i18n.js";
import { avatarOf, squareOf } from "./api.js";
import { show } from "./images.js";

export function comparison(job) {
  const before = show(h("img.before", { alt: t("before") }), squareOf(job));
  const after = show(h("img.after", { alt: t("after") }), avatarOf(job));
  const slider = h("input.divider", {
    type: "range",
    min: 0,
    max: 100,
    step: 1,
    value: 50,
    "aria-label": t("compare"),
    "data-key": "compare",
  });
  const figure = h(
    "figure.compare",
    {},
    before,
    after,
    h("span.tag.left", { "aria-hidden": "true" }, t("before")),
    h("span.tag.right", { "aria-hidden": "true" }, t("after")),
    h("span.handle", { "aria-hidden": "true" }),
    slider,
  );
  const divide = () => {
    figure.style.setProperty("--at", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", t("compareAt", { n: 100 - slider.value }));
  };
  slider.addEventListener("input", divide);
  divide();
  return figure;
}

// Before and after, one over the other. The slider is a real one, so it works by keyboard and is read out.

import { h } from "./dom.js";
import { number, t } from "./i18n.js";
import { avatarOf, squareOf } from "./api.js";
import { show } from "./images.js";
import { ratioOf } from "./states.js";

// `other` is another image of the job, in place of the photo.
export function comparison(job, other = null) {
  const nameOf = ({ index }) => t("image", { n: number(index + 1) });
  const [left, right] = other ? [nameOf(other), nameOf(job)] : [t("before"), t("after")];
  const before = h("img.before", { alt: left });
  const after = h("img.after", { alt: right });
  const slider = h("input.divider", {
    type: "range",
    min: 0,
    max: 100,
    step: 1,
    value: 50,
    "aria-label": t("compare", { left, right }),
    "data-key": "compare",
  });
  const waiting = h("figcaption.status", { role: "status" }, h("strong", {}, t("patience")));
  // Until the avatar is here the photo must not pass for it.
  const figure = h(
    "figure.compare",
    { "data-state": "waiting" },
    before,
    after,
    h("span.tag.left", { "aria-hidden": "true" }, left),
    h("span.tag.right", { "aria-hidden": "true" }, right),
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
    slider.setAttribute("aria-valuetext", t("compareAt", { n: 100 - slider.value, name: right }));
  };
  slider.addEventListener("input", divide);
  divide();
  figure.style.setProperty("--ratio", ratioOf(job));
  show(before, other ? avatarOf(other) : squareOf(job));
  show(after, avatarOf(job));
  return figure;
}

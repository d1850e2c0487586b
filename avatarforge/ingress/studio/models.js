// What makes the avatars: the model, what each replica serves and how fast, and how the service is.

import * as api from "./api.js";
import { $, h, icon, replace } from "./dom.js";
import { duration, moment, number, t } from "./i18n.js";

const LOOKS = { serving: "done", loading: "processing", draining: "processing", no_model: "failed" };

export async function refreshModels() {
  // A service that is not ready answers 503, with the same parts.
  const [{ models, replicas = [] }, readiness] = await Promise.all([
    api.models(),
    api.readiness().catch((problem) => problem.document),
  ]);
  replace(
    $("#models"),
    models.map(card),
    replicas.length
      ? h("section.replicas", {}, h("h2", {}, t("replicas")), h("ul", {}, replicas.map(replica)))
      : null,
    health(readiness),
  );
}

function card(model) {
  const { defaults } = model;
  const facts = {
    size: t("pixels", { width: number(model.size), height: number(model.size) }),
    stepsDefault: number(defaults.steps),
    strength: defaults.strength && number(defaults.strength, 2),
    guidance: number(defaults.guidance, 1),
    imageGuidance: defaults.imageGuidance && number(defaults.imageGuidance, 1),
    family: model.family,
    licence: model.licence,
  };
  return h(
    "article.model",
    { "aria-label": model.title },
    h(
      "header",
      {},
      h("span.model-mark", { "aria-hidden": "true" }, icon("model")),
      h("div", {}, h("h2", {}, model.title), h("p", {}, h("code", {}, model.name))),
    ),
    h("dl.grid", {}, rows(facts)),
    h("h3", {}, t("styles")),
    h(
      "ul.templates",
      {},
      model.styles.map((style) => h("li", {}, h("b", {}, style.title), h("code", {}, style.prompt))),
    ),
  );
}

function replica({
  state,
  desiredModel,
  model,
  failure,
  userConfigFaults,
  device,
  backend,
  active,
  limit,
  waiting,
  stepSeconds,
  imagesGenerated,
  circuit,
}) {
  const single = stepSeconds?.["1"] ?? Object.values(stepSeconds ?? {})[0];
  const facts = {
    since: model && moment(model.since),
    perStep: single && duration(single),
    atWork: t("ofAtOnce", { n: number(active), limit: number(limit) }),
    waitingCount: waiting && number(waiting),
    imagesGenerated: imagesGenerated !== undefined && number(imagesGenerated),
    loading: model && duration(model.loadSeconds),
    device: [device, model?.dtype].filter(Boolean).join(" · "),
    circuit,
  };
  return h(
    "li",
    {},
    h(
      "header",
      {},
      h("h3", {}, model?.name ?? desiredModel),
      backend !== "local" && h("code", {}, backend),
      h(`span.badge.${LOOKS[state] ?? "pending"}`, {}, t(`replica_${state in LOOKS ? state : "other"}`)),
    ),
    failure &&
      h(
        "p.error",
        {},
        t("failedSwap", { model: failure.model, time: moment(failure.at), reason: failure.reason }),
      ),
    (userConfigFaults ?? []).map((fault) => h("p.error", {}, fault)),
    h("dl.grid", {}, rows(facts)),
  );
}

const rows = (facts) =>
  Object.entries(facts)
    .filter(([, value]) => value)
    .map(([name, value]) => h("div", {}, h("dt", {}, t(name)), h("dd", {}, value)));

function health({ ready, parts, detail }) {
  return h(
    "section.health",
    { "aria-label": t("service") },
    h(
      "h2",
      {},
      t("service"),
      " ",
      h(`span.badge.${ready ? "done" : "failed"}`, {}, ready ? t("ready") : t("notReady")),
    ),
    detail && h("p.error", {}, detail),
    parts &&
      h(
        "ul",
        {},
        Object.entries(parts).map(([name, part]) =>
          h(
            "li",
            {},
            h(`i.dot.${part.ok ? "ok" : "bad"}`),
            h("b", {}, t(`part_${name}`)),
            h("span", {}, `${part.detail}`),
          ),
        ),
      ),
  );
}

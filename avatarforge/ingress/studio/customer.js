// Whose avatars these are, and the key where the server asks for one.

import { onKeyWanted } from "./api.js";
import { askText } from "./dialogs.js";
import { $ } from "./dom.js";
import { t } from "./i18n.js";
import { GRAMMAR, become, session, useKey } from "./session.js";

let asking = false;

export function showCustomer() {
  $("#customer-name").textContent = session.customer;
  $("#customer-button").setAttribute("aria-label", t("customerIs", { customer: session.customer }));
  $("#customer-button").title = t("customer");
}

export function startCustomer() {
  $("#customer-button").addEventListener("click", askCustomer);
  onKeyWanted(askKey);
  showCustomer();
}

async function askCustomer() {
  let wanted = session.customer;
  let problem;
  do {
    wanted = await askText({
      title: t("customer"),
      text: t("customerText"),
      label: t("customerId"),
      value: wanted,
      yes: t("use"),
      problem,
    });
    problem = t("customerWrong");
  } while (wanted !== null && !GRAMMAR.test(wanted));
  if (wanted !== null && wanted !== session.customer) become(wanted);
}

// Several calls may be refused at once; one question is enough.
async function askKey(problem) {
  if (asking) return;
  asking = true;
  const key = await askText({
    title: t("keyTitle"),
    text: t("keyText"),
    label: t("key"),
    type: "password",
    yes: t("use"),
    problem: session.key ? problem.message : undefined,
    hint: t("keyHint"),
  });
  asking = false;
  if (key) useKey(key);
}

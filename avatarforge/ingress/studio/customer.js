// Whose avatars these are, and the key where the server asks for one.

import { onKeyWanted, ownKey } from "./api.js";
import { ask, askText, inputField } from "./dialogs.js";
import { $, h } from "./dom.js";
import { t } from "./i18n.js";
import { GRAMMAR, become, onSession, session, useKey } from "./session.js";

let asking = false;
let wanted = false; // the server asks for keys
let scope = null; // of the key: as /keys/self tells it

export function showCustomer() {
  $("#customer-name").textContent = session.customer;
  $("#customer-button").setAttribute("aria-label", t("customerIs", { customer: session.customer }));
  $("#customer-button").title = t("customer");
}

export function startCustomer() {
  $("#customer-button").addEventListener("click", () => askCustomer());
  onKeyWanted(askKey);
  onSession(() => (scope = null));
  showCustomer();
}

// Learns what the key is for. A key for one customer opens that customer; one for others asks for which. True where
// that has changed the session.
export async function identify() {
  if (!session.key) return false;
  const { key, customer } = session;
  const told = await ownKey();
  if (key !== session.key || customer !== session.customer) return true;
  scope = told;
  const reached = scope.customers.some((pattern) =>
    pattern.endsWith("*") ? customer.startsWith(pattern.slice(0, -1)) : customer === pattern,
  );
  if (reached || !scope.customers.length) return false;
  if (scope.customers.length === 1 && GRAMMAR.test(scope.customers[0])) become(scope.customers[0]);
  else await askCustomer({ value: scope.customers[0].replace("*", ""), problem: scopeText() });
  return customer !== session.customer;
}

const scopeText = () => t("keyFor", { customers: scope.customers.join(", ") });

async function askCustomer({ value = session.customer, problem } = {}) {
  for (;;) {
    const answer = await ask({
      title: t("customer"),
      text: t("customerText"),
      content: [
        inputField({ label: t("customerId"), value, problem, autocomplete: "off" }),
        (session.key || wanted) && keyField(),
      ],
      yes: t("use"),
      focus: "#ask-input",
    });
    if (answer.value === "key") return askKey();
    if (answer.value === "forget") return useKey("");
    if (answer.value !== "yes") return undefined;
    value = answer.text;
    problem = t("customerWrong");
    if (!GRAMMAR.test(value)) continue;
    if (value !== session.customer) become(value);
    return undefined;
  }
}

function keyField() {
  const name = scope?.name ? h("strong", { dir: "auto" }, scope.name) : null;
  return h(
    "div.key",
    {},
    h("p", {}, t("key"), ": ", name ?? (session.key ? t("keyUnknown") : t("keyNone")), h("br"), scope && scopeText()),
    h("button.secondary", { value: "key" }, session.key ? t("keyChange") : t("keyEnter")),
    session.key && h("button.plain", { value: "forget" }, t("keyForget")),
  );
}

// Several calls may be refused at once; one question is enough.
async function askKey(problem) {
  wanted = true;
  if (asking) return;
  asking = true;
  const key = await askText({
    title: t("keyTitle"),
    text: t("keyText"),
    label: t("key"),
    type: "password",
    yes: t("use"),
    problem: session.key && problem ? problem.message : undefined,
    hint: t("keyHint"),
  });
  asking = false;
  if (key) useKey(key);
}

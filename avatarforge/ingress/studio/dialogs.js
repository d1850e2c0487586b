// Questions that the page asks. The element <dialog> keeps the focus inside and gives it back.

import { $, h } from "./dom.js";
import { t } from "./i18n.js";

let number = 0;

// Opens a dialog and resolves with the value that it was closed with ("" when it was left) and the text in its field.
export function ask({ title, text, content = [], yes, focus }) {
  const id = `dialog-${++number}`;
  const dialog = h(
    "dialog",
    { "aria-labelledby": `${id}-title`, "aria-describedby": text ? `${id}-text` : undefined },
    h(
      "form",
      { method: "dialog", novalidate: true },
      h("h2", { id: `${id}-title` }, title),
      text && h("p", { id: `${id}-text` }, text),
      content,
      h(
        "div.answers",
        {},
        h("button.plain", { value: "", formnovalidate: true }, t("no")),
        h("button.primary", { value: "yes" }, yes),
      ),
    ),
  );
  // Enter in a field means yes, though the first button of the form says something else.
  dialog.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
    event.preventDefault();
    $("form", dialog).requestSubmit($("button[value='yes']", dialog));
  });
  const opener = document.activeElement.dataset.key;
  document.body.append(dialog);
  dialog.showModal();
  $(focus ?? "button[value='']", dialog).focus();
  return new Promise((answer) =>
    dialog.addEventListener("close", () => {
      const text = $("#ask-input", dialog)?.value.trim();
      dialog.remove();
      // What it was opened from may have been drawn anew.
      if (opener && document.activeElement === document.body) $(`[data-key="${CSS.escape(opener)}"]`)?.focus();
      answer({ value: dialog.returnValue, text });
    }),
  );
}

// A field for one text, with what is wrong with it.
export function inputField({ label, value = "", type = "text", problem, hint, autocomplete }) {
  const errorId = "ask-error";
  const input = h("input", {
    type,
    value,
    id: "ask-input",
    name: type,
    autocomplete,
    autocapitalize: "off",
    spellcheck: "false",
    "aria-describedby": problem ? errorId : undefined,
    "aria-invalid": problem ? "true" : undefined,
  });
  return [
    h("div.field", {}, h("label", { for: "ask-input" }, label), input, hint && h("p.hint", {}, hint)),
    problem && h("p.error", { id: errorId, role: "alert" }, problem),
  ];
}

// A question with one text to write. Resolves with the text, or null. Programs that keep passwords know a key by
// the name of this host.
export async function askText({ title, text, yes, ...field }) {
  const isSecret = field.type === "password";
  const name = h("input.unseen", { name: "username", autocomplete: "username", value: location.host, readonly: true });
  Object.assign(name, { tabIndex: -1, ariaHidden: "true" });
  const autocomplete = isSecret ? "current-password" : "off";
  const content = [isSecret && name, inputField({ ...field, autocomplete })];
  const answer = await ask({ title, text, content, yes, focus: "#ask-input" });
  return answer.value === "yes" ? answer.text : null;
}

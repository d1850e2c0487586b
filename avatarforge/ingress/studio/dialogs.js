// Questions that the page asks. The element <dialog> keeps the focus inside and gives it back.

import { $, h } from "./dom.js";
import { t } from "./i18n.js";

let number = 0;

// Opens a dialog and resolves with what it was closed with: "" when it was left.
export function ask({ title, text, content = [], yes, kind = "primary", focus }) {
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
        h(`button.${kind}`, { value: "yes" }, yes),
      ),
    ),
  );
  // Enter in a field means yes, though the first button of the form says no.
  dialog.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
    event.preventDefault();
    dialog.close("yes");
  });
  document.body.append(dialog);
  dialog.showModal();
  $(focus ?? "button[value='']", dialog).focus();
  return new Promise((answer) =>
    dialog.addEventListener("close", () => {
      dialog.remove();
      answer(dialog.returnValue);
    }),
  );
}

// A question with one text to write. Resolves with the text, or null.
export async function askText({ title, text, label, value = "", type = "text", yes, problem, hint }) {
  const errorId = "ask-error";
  const input = h("input", {
    type,
    value,
    id: "ask-input",
    autocomplete: "off",
    spellcheck: "false",
    "aria-describedby": problem ? errorId : undefined,
    "aria-invalid": problem ? "true" : undefined,
  });
  const content = [
    h("div.field", {}, h("label", { for: "ask-input" }, label), input, hint && h("p.hint", {}, hint)),
    problem && h("p.error", { id: errorId, role: "alert" }, problem),
  ];
  const answer = await ask({ title, text, content, yes, focus: "#ask-input" });
  return answer === "yes" ? input.value.trim() : null;
}

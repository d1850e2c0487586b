// What the page tells by itself: to a screen reader, or in a note at its edge for all.

import { $, h, icon } from "./dom.js";

const NOTE_SECONDS = 6;

export function say(text) {
  $("#said").textContent = text;
}

export function note(text, kind = "info") {
  const element = h(`p.toast.${kind}`, {}, icon(kind === "error" ? "alert" : "spark"), h("span", {}, text));
  $("#toasts").append(element);
  setTimeout(() => element.remove(), NOTE_SECONDS * 1000);
}

// Runs what a button asks for; a problem is told in the server's words.
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    // For a missing key there is a question of its own.
    if (error.status !== 401) note(error.message, "error");
    return undefined;
  }
}

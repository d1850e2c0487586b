// What the page tells by itself: to a screen reader, or in a note at its edge for all.

import { pause } from "./api.js";
import { $, $$, button, h, icon } from "./dom.js";

const NOTE_SECONDS = 6;
const LONGEST_PAUSE = 30;

export function say(text) {
  $("#said").textContent = text;
}

// What is there already is not told twice.
export function note(text, kind = "info") {
  if ($$(".toast").some((other) => other.textContent === text)) return;
  const element = h(`p.toast.${kind}`, {}, icon(kind === "error" ? "alert" : "spark"), h("span", {}, text));
  $("#toasts").append(element);
  setTimeout(() => element.remove(), NOTE_SECONDS * 1000);
}

// A note with something to press, for as long as the caller leaves it there.
export function offer(text, label, onclick) {
  const element = h("p.toast", {}, h("span", {}, text), button("plain", null, label, onclick));
  $("#toasts").append(element);
  return element;
}

// Runs it again until it goes well, as long as its problem may pass; the first one is told.
export async function persist(work, isWanted = () => true) {
  for (let seconds = 1; isWanted(); seconds = Math.min(2 * seconds, LONGEST_PAUSE)) {
    try {
      return await work();
    } catch (error) {
      if (error.status !== 401 && seconds === 1) note(error.message, "error");
      if (!error.passes) return undefined;
      await pause(Math.max(seconds, error.retryAfter));
    }
  }
  return undefined;
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

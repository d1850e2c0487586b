// Who is working: the customer's id and the API key, kept as long as the tab. A new tab begins with the customer
// that was chosen last; what is chosen in another one changes nothing here.

const CUSTOMER = "avatarforge.customer";
const KEY = "avatarforge.key";
const UNUSED = "avatarforge.unused"; // the name that was made up here, until a photo is sent
export const GRAMMAR = /^[A-Za-z0-9][A-Za-z0-9._~-]{0,63}$/; // of a customer's id
const listeners = new Set();
let number = 0; // counts sessions: an answer that comes in a later one is not for it

let customer = sessionStorage.getItem(CUSTOMER) ?? localStorage.getItem(CUSTOMER) ?? firstCustomer();
sessionStorage.setItem(CUSTOMER, customer);

export const session = {
  get customer() {
    return customer;
  },
  get key() {
    return sessionStorage.getItem(KEY) ?? "";
  },
  get number() {
    return number;
  },
  // The server cannot know the customer yet.
  get isUnused() {
    return localStorage.getItem(UNUSED) === customer;
  },
};

// From the first upload that is sent: its answer may be lost, and yet there is a job then.
export const markUsed = (name) => localStorage.getItem(UNUSED) === name && localStorage.removeItem(UNUSED);

// A name of its own for each browser, so that visitors do not find each other's photos.
function firstCustomer() {
  const bytes = crypto.getRandomValues(new Uint8Array(4));
  const name = `guest-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  localStorage.setItem(CUSTOMER, name);
  localStorage.setItem(UNUSED, name);
  return name;
}

export function become(other) {
  const before = { customer, key: session.key };
  customer = other;
  sessionStorage.setItem(CUSTOMER, customer);
  localStorage.setItem(CUSTOMER, customer);
  changed(before);
}

export function useKey(key) {
  const before = { customer, key: session.key };
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  changed(before);
}

// Listeners hear { customer, key } of the session before.
export const onSession = (listener) => listeners.add(listener);

// Resolves when the session changes, or the signal comes.
export function nextSession(signal) {
  return new Promise((done) => {
    const end = () => {
      listeners.delete(end);
      signal.removeEventListener("abort", end);
      done();
    };
    listeners.add(end);
    signal.addEventListener("abort", end);
  });
}

function changed(before) {
  number += 1;
  for (const listener of [...listeners]) listener(before);
}

// Who is working: the customer's id, kept in this browser, and the API key, kept as long as the tab.

const CUSTOMER = "avatarforge.customer";
const KEY = "avatarforge.key";
const listeners = new Set();

export const session = {
  get customer() {
    return localStorage.getItem(CUSTOMER) ?? firstCustomer();
  },
  get key() {
    return sessionStorage.getItem(KEY) ?? "";
  },
};

// A name of its own for each browser, so that visitors do not find each other's photos.
function firstCustomer() {
  const bytes = crypto.getRandomValues(new Uint8Array(4));
  const name = `guest-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  localStorage.setItem(CUSTOMER, name);
  return name;
}

export function become(customer) {
  localStorage.setItem(CUSTOMER, customer);
  changed();
}

export function useKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  changed();
}

export const onSession = (listener) => listeners.add(listener);

function changed() {
  for (const listener of listeners) listener();
}

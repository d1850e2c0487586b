// Who is working: the customer's id and the API key, kept as long as the tab. A new tab begins with the customer
// that was chosen last; what is chosen in another one changes nothing here.

const CUSTOMER = "avatarforge.customer";
const KEY = "avatarforge.key";
export const GRAMMAR = /^[A-Za-z0-9][A-Za-z0-9._~-]{0,63}$/; // of a customer's id
const listeners = new Set();

let customer = sessionStorage.getItem(CUSTOMER) ?? localStorage.getItem(CUSTOMER) ?? firstCustomer();
sessionStorage.setItem(CUSTOMER, customer);

export const session = {
  get customer() {
    return customer;
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

export function become(other) {
  customer = other;
  sessionStorage.setItem(CUSTOMER, customer);
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

// What is being prepared in this tab, so that it survives a reload: the form's fields in the tab's own storage, the
// photo and its square in the browser's database. The photo is enciphered there, and only the tab's own storage has
// the key, which goes with the tab. Each tab holds a lock by its name as long as it lives; what others have left
// behind is removed when the studio is opened next.

const TAB = "avatarforge.tab";
const FIELDS = "avatarforge.draft";
const SEAL = "avatarforge.seal"; // the key of this tab's photo, its name and its type
const PHOTOS = "photos";
const SQUARE = " square"; // after the tab's name: the key of its square
const PATIENCE = 3000; // milliseconds in which a page that is reloaded lets its lock go
const CIPHER = "AES-GCM";
const NO_NONCE = new Uint8Array(12); // each key enciphers one photo

const origin = (sessionStorage[TAB] ??= newName());
const tab = claim();

export const keepFields = (fields) => sessionStorage.setItem(FIELDS, JSON.stringify(fields));
export const keptFields = () => JSON.parse(sessionStorage.getItem(FIELDS) ?? "null");

let newest = 0; // counted: a photo that is enciphered late may be kept no more

// Without https, and in private windows of some browsers, nothing is kept: a reload loses the photo there.
export async function keepFile(file) {
  const turn = ++newest;
  if (!crypto.subtle) return;
  const key = await crypto.subtle.generateKey({ name: CIPHER, length: 256 }, true, ["encrypt", "decrypt"]);
  const content = await file.arrayBuffer().catch(() => null); // it may have been changed on the disk
  if (!content) return;
  const sealed = await crypto.subtle.encrypt({ name: CIPHER, iv: NO_NONCE }, key, content);
  const { k } = await crypto.subtle.exportKey("jwk", key);
  if (turn !== newest) return;
  sessionStorage.setItem(SEAL, JSON.stringify({ k, name: file.name, type: file.type }));
  await put("", { file: sealed });
}

// Apart from the file, which may be large: the square changes often.
export const keepSquare = (square) => put(SQUARE, { square });

export function dropPhoto() {
  newest += 1;
  sessionStorage.removeItem(SEAL);
  return inDatabase("readwrite", (store, name) => store.delete(entriesOf(name))).catch(() => {});
}

// { file, square }, or undefined. A tab that was duplicated begins with the photo of the first.
export async function keptPhoto() {
  const seal = JSON.parse(sessionStorage.getItem(SEAL) ?? "null");
  if (!seal || !crypto.subtle) return undefined;
  const entries = await inDatabase("readonly", (store) => store.getAll(entriesOf(origin)), origin).catch(() => []);
  const { file, square } = Object.assign({}, ...entries);
  const content = file && (await open(file, seal.k));
  return content && { file: new File([content], seal.name, { type: seal.type }), square };
}

// Undefined where the content is of another key: the page was left before the newer one was written.
async function open(sealed, k) {
  const key = await crypto.subtle.importKey("jwk", { kty: "oct", k }, CIPHER, false, ["decrypt"]);
  return crypto.subtle.decrypt({ name: CIPHER, iv: NO_NONCE }, key, sealed).catch(() => undefined);
}

const entriesOf = (name) => IDBKeyRange.bound(name, name + SQUARE);

const put = (kind, value) =>
  inDatabase("readwrite", (store, name) => store.put(value, name + kind)).catch(() => {});

function newName() {
  return String(Math.random()).slice(2);
}

// The name of this tab. One that was duplicated finds the first one's in its storage, and takes another.
async function claim() {
  if (!(await hold(origin))) {
    sessionStorage[TAB] = newName();
    await hold(sessionStorage[TAB]);
  }
  return sessionStorage[TAB];
}

// Holds the lock until the page is left. False where another tab has it.
function hold(name) {
  if (!navigator.locks) return true;
  return new Promise((resolve) => {
    const work = () => {
      resolve(true);
      return new Promise(() => {});
    };
    navigator.locks.request(TAB + name, { signal: AbortSignal.timeout(PATIENCE) }, work).catch(() => resolve(false));
  });
}

// Removes what tabs have left behind that are closed.
export async function removeAbandoned() {
  await tab;
  if (!navigator.locks) return;
  const { held, pending } = await navigator.locks.query();
  const living = new Set([...held, ...pending].map((lock) => lock.name));
  const isAbandoned = ({ key }) => !living.has(TAB + key.replace(SQUARE, ""));
  const sweep = (store) => {
    const request = store.openCursor();
    request.onsuccess = () => {
      const cursor = request.result;
      if (!cursor) return;
      if (isAbandoned(cursor)) cursor.delete();
      cursor.continue();
    };
    return request;
  };
  await inDatabase("readwrite", sweep).catch(() => {});
}

// Resolves with the result of the request that `work` makes.
async function inDatabase(mode, work, name) {
  const own = name ?? (await tab);
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("avatarforge", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(PHOTOS);
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      const database = opening.result;
      const transaction = database.transaction(PHOTOS, mode);
      const request = work(transaction.objectStore(PHOTOS), own);
      transaction.oncomplete = () => {
        database.close();
        resolve(request.result);
      };
      transaction.onabort = () => reject(transaction.error);
    };
  });
}

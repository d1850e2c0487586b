// What is being prepared in this tab, so that it survives a reload: the form's fields in the tab's own storage, the
// photo and its square in the browser's database. Each tab holds a lock by its name as long as it lives; what others
// have left behind is removed when the studio is opened next, and by and by where there are no locks (without https).

const TAB = "avatarforge.tab";
const FIELDS = "avatarforge.draft";
const PHOTOS = "photos";
const SQUARE = " square"; // after the tab's name: the key of its square
const DAY = 86_400_000; // milliseconds
const PATIENCE = 3000; // milliseconds in which a page that is reloaded lets its lock go

const origin = (sessionStorage[TAB] ??= newName());
const tab = claim();

export const keepFields = (fields) => sessionStorage.setItem(FIELDS, JSON.stringify(fields));
export const keptFields = () => JSON.parse(sessionStorage.getItem(FIELDS) ?? "null");

// Browsers that keep nothing (private windows of some) lose the photo with a reload, as all did.
export const keepFile = (file) => put("", { file });
// Apart from the file, which may be large: the square changes often.
export const keepSquare = (square) => put(SQUARE, { square });
export const dropPhoto = () =>
  inDatabase("readwrite", (store, name) => store.delete(entriesOf(name))).catch(() => {});

// { file, square }, or undefined. A tab that was duplicated begins with the photo of the first.
export async function keptPhoto() {
  const entries = await inDatabase("readonly", (store) => store.getAll(entriesOf(origin)), origin).catch(() => []);
  const kept = Object.assign({}, ...entries);
  return kept.file && kept;
}

const entriesOf = (name) => IDBKeyRange.bound(name, name + SQUARE);
const put = (kind, value) =>
  inDatabase("readwrite", (store, name) => store.put({ ...value, at: Date.now() }, name + kind)).catch(() => {});

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
  const { held, pending } = (await navigator.locks?.query()) ?? {};
  const living = held && new Set([...held, ...pending].map((lock) => lock.name));
  const isAbandoned = ({ key, value }) =>
    value.at < Date.now() - DAY || (living && !living.has(TAB + key.replace(SQUARE, "")));
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

// What is being prepared in this tab, so that it survives a reload: the form's fields in the tab's own storage, the
// photo with its square in the browser's database, where what is older than a day is removed.

const TAB = "avatarforge.tab";
const FIELDS = "avatarforge.draft";
const PHOTOS = "photos";
const DAY = 86_400_000; // milliseconds

const tab = (sessionStorage[TAB] ??= String(Math.random()).slice(2));

export const keepFields = (fields) => sessionStorage.setItem(FIELDS, JSON.stringify(fields));
export const keptFields = () => JSON.parse(sessionStorage.getItem(FIELDS) ?? "null");

// Browsers that keep nothing (private windows of some) lose the photo with a reload, as all did.
export const keepPhoto = (photo) =>
  inDatabase("readwrite", (store) => store.put({ ...photo, at: Date.now() }, tab)).catch(() => {});
export const dropPhoto = () => inDatabase("readwrite", (store) => store.delete(tab)).catch(() => {});

// { file, square }, or undefined.
export async function keptPhoto() {
  return inDatabase("readwrite", (store) => {
    store.openCursor().onsuccess = ({ target: { result: cursor } }) => {
      if (!cursor) return;
      if (cursor.value.at < Date.now() - DAY) cursor.delete();
      cursor.continue();
    };
    return store.get(tab);
  }).catch(() => undefined);
}

function inDatabase(mode, work) {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("avatarforge", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(PHOTOS);
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      const database = opening.result;
      const transaction = database.transaction(PHOTOS, mode);
      const request = work(transaction.objectStore(PHOTOS));
      transaction.oncomplete = () => {
        database.close();
        resolve(request.result);
      };
      transaction.onabort = () => reject(transaction.error);
    };
  });
}

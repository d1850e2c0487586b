// An archive of files, uncompressed: images are compressed already.
// https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT

const VERSION = 20; // of the format that a reader must know
const UTF8 = 0x800; // how names are written
const DOS_DAY = 0x21; // 1 January 1980: when an avatar was made is the archive's to tell to nobody

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit += 1) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

// As ZIP and PNG have it.
export function crc32(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = TABLE[(sum ^ byte) & 0xff] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

// A blob of [{ name, blob }], each name once.
export async function zip(files) {
  const [parts, directory] = [[], []];
  let offset = 0;
  for (const { name, blob } of files) {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const path = new TextEncoder().encode(name);
    const facts = [2, VERSION, 2, UTF8, 2, 0, 2, 0, 2, DOS_DAY, 4, crc32(bytes), 4, bytes.length, 4, bytes.length];
    const lengths = [2, path.length, 2, 0];
    parts.push(pack(4, 0x04034b50, ...facts, ...lengths), path, bytes);
    directory.push(pack(4, 0x02014b50, 2, VERSION, ...facts, ...lengths, 2, 0, 2, 0, 2, 0, 4, 0, 4, offset), path);
    offset += 30 + path.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const counts = [2, files.length, 2, files.length];
  const end = pack(4, 0x06054b50, 2, 0, 2, 0, ...counts, 4, size, 4, offset, 2, 0);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

// Pairs of a width in bytes and a number, least byte first.
function pack(...pairs) {
  const bytes = [];
  for (let index = 0; index < pairs.length; index += 2)
    for (let shift = 0; shift < pairs[index]; shift += 1) bytes.push((pairs[index + 1] >>> (8 * shift)) & 0xff);
  return Uint8Array.from(bytes);
}

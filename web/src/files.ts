// Files that are dropped in: their text. What cannot be read as text is refused by name; nothing is cut.
import type { Attachment } from "./model";

const MOST_TEXT = 16 * 2 ** 20; // bytes; far more than any context holds
const MOST_PDF = 128 * 2 ** 20;

export async function readFile(file: File): Promise<Attachment> {
  const pdf = file.type === "application/pdf" || /\.pdf$/i.test(file.name);
  const most = pdf ? MOST_PDF : MOST_TEXT;
  if (file.size > most) {
    throw new Error(`${file.name} has ${megabytes(file.size)}; files of at most ${megabytes(most)} are taken`);
  }
  const bytes = new Uint8Array(await file.arrayBuffer());
  const { text, note } = pdf ? await fromPdf(file.name, bytes) : fromText(file.name, bytes);
  if (text.trim() === "") throw new Error(`${file.name} holds no text`);
  return { name: file.name, kind: pdf ? "pdf" : "text", size: file.size, text, tokens: null, note };
}

interface Read {
  text: string;
  note: string;
}

const NAMES: Record<string, string> = { "windows-1252": "Western (Windows-1252)" };
const CONTROL = /[\0-\x08\x0e-\x1f\x7f-\x9f]/; // in no text of one byte a character

/** UTF-8, UTF-16 with its mark, GB18030 or the languages of Western Europe, the first that fits. */
function fromText(name: string, bytes: Uint8Array): Read {
  const [first, second] = bytes;
  const marked = first === 0xff && second === 0xfe ? "utf-16le" : first === 0xfe && second === 0xff ? "utf-16be" : null;
  if (!marked && bytes.includes(0)) throw new Error(`${name} is no text file (it has zero bytes)`);
  const encodings = marked ? [marked] : ["utf-8", ...(inPairs(bytes) ? ["gb18030"] : ["windows-1252"])];
  for (const encoding of encodings) {
    try {
      const text = new TextDecoder(encoding, { fatal: true }).decode(bytes).replaceAll("\r\n", "\n");
      if (encoding === "windows-1252" && CONTROL.test(text)) continue;
      return { text, note: encoding === "utf-8" ? "" : `read as ${NAMES[encoding] ?? encoding.toUpperCase()}` };
    } catch {
      continue;
    }
  }
  throw new Error(`${name} is no text file (neither UTF-8 nor UTF-16 nor GB18030 nor Windows-1252)`);
}

/** Whether high bytes come in twos, as in Chinese; letters with accents stand alone among those of ASCII,
 * and GB18030 takes many of them, with the letter behind, for a rare character. */
function inPairs(bytes: Uint8Array): boolean {
  let [pairs, alone] = [0, 0];
  for (let i = 0; i < bytes.length; i++) {
    if (bytes[i]! < 0x80) continue;
    if ((bytes[++i] ?? 0) < 0x80) alone++;
    else pairs++;
  }
  return pairs >= alone;
}

async function fromPdf(name: string, bytes: Uint8Array): Promise<Read> {
  const beside = (file: string) => new URL(file, import.meta.url).href;
  const { pdfText } = (await import(beside("pdf.js"))) as typeof import("./pdf");
  let pages: string[];
  try {
    pages = await pdfText(bytes, beside("pdf.worker.js"), beside("pdf.cmaps.bin"));
  } catch (error) {
    throw new Error(`${name} cannot be read as a PDF: ${(error as Error).message}`);
  }
  const empty = pages.flatMap((page, i) => (page.trim() === "" ? [i + 1] : []));
  if (empty.length === pages.length) throw new Error(`${name} holds pictures of text only; there is no text to read`);
  const note = `${pages.length} page${pages.length === 1 ? "" : "s"}`;
  const without = empty.length > 0 ? `, no text on ${empty.slice(0, 8).join(", ")}${empty.length > 8 ? " …" : ""}` : "";
  return { text: pages.map((page) => page.trim()).filter(Boolean).join("\n\n"), note: note + without };
}

function megabytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MB`;
}

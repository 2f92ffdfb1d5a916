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

/** UTF-8, UTF-16 with its mark, or GB18030, the first that fits without an error. */
function fromText(name: string, bytes: Uint8Array): Read {
  const [first, second] = bytes;
  const marked = first === 0xff && second === 0xfe ? "utf-16le" : first === 0xfe && second === 0xff ? "utf-16be" : null;
  if (!marked && bytes.includes(0)) throw new Error(`${name} is no text file (it has zero bytes)`);
  for (const encoding of marked ? [marked] : ["utf-8", "gb18030"]) {
    try {
      const text = new TextDecoder(encoding, { fatal: true }).decode(bytes).replaceAll("\r\n", "\n");
      return { text, note: encoding === "utf-8" ? "" : `read as ${encoding.toUpperCase()}` };
    } catch {
      continue;
    }
  }
  throw new Error(`${name} is no text file (neither UTF-8 nor UTF-16 nor GB18030)`);
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

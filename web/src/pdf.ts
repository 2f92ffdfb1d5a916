// A file of its own, fetched once a PDF is dropped in.
import { GlobalWorkerOptions, getDocument } from "pdfjs-dist";

/** The text of each page, lines as they stand. `worker` and `maps`: addresses of pdf.js's worker, and of packed character maps. */
export async function pdfText(bytes: Uint8Array, worker: string, maps: string): Promise<string[]> {
  GlobalWorkerOptions.workerSrc = worker;
  const loading = getDocument({
    data: bytes,
    BinaryDataFactory: factoryOf(maps),
    useWorkerFetch: false,
    disableFontFace: true,
    useSystemFonts: false,
    useWasm: false,
    verbosity: 0,
  });
  try {
    const file = await loading.promise;
    const pages: string[] = [];
    for (let number = 1; number <= file.numPages; number++) {
      const page = await file.getPage(number);
      const { items } = await page.getTextContent();
      pages.push(items.map((item) => ("str" in item ? item.str + (item.hasEOL ? "\n" : "") : "")).join(""));
      page.cleanup();
    }
    return pages;
  } finally {
    await loading.destroy();
  }
}

let packed: Promise<Map<string, Uint8Array>> | null = null;

/** Where pdf.js gets what a font asks for: character maps of Chinese, Japanese and Korean, out of one file. */
function factoryOf(address: string) {
  return class {
    async fetch({ kind, filename }: { kind: string; filename: string }): Promise<Uint8Array> {
      if (kind !== "cMapUrl") throw new Error("nothing is drawn here: no fonts");
      packed ??= fetch(address).then(async (response) => unpack(await response.arrayBuffer()));
      const map = (await packed).get(filename);
      if (!map) throw new Error(`no ${filename} here`);
      return map.slice();
    }
  };
}

/** As build.mjs packs: a line of JSON with names and lengths, then the maps one after the other. */
function unpack(buffer: ArrayBuffer): Map<string, Uint8Array> {
  const bytes = new Uint8Array(buffer);
  const start = bytes.indexOf(10) + 1;
  const sizes = JSON.parse(new TextDecoder().decode(bytes.subarray(0, start))) as [string, number][];
  let at = start;
  return new Map(sizes.map(([name, size]) => [name, bytes.subarray(at, (at += size))]));
}

// Writes the page: `node build.mjs [FOLDER]`. The same versions give the same bytes, whatever the machine.
import * as esbuild from "esbuild";
import { copyFile, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = resolve(process.argv[2] ?? join(here, "../src/minicpm4/serve/page"));

await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
const { metafile } = await esbuild.build({
  absWorkingDir: here,
  entryPoints: [
    { in: "src/main.tsx", out: "app" },
    { in: "src/app.css", out: "app" },
    { in: "src/pdf.ts", out: "pdf" }, // fetched once a PDF is dropped
    { in: "node_modules/pdfjs-dist/build/pdf.worker.min.mjs", out: "pdf.worker" },
  ],
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none", // THIRD_PARTY.txt has them
  charset: "utf8",
  metafile: true,
  plugins: [{ name: "formulas", setup: (build) => build.onLoad({ filter: /Temml-Local\.css$/ }, withoutFonts) }],
  logLevel: "warning",
});
await copyFile(join(here, "src/index.html"), join(out, "index.html"));
await writeFile(join(out, "pdf.cmaps.bin"), await characterMaps());
await writeFile(join(out, "THIRD_PARTY.txt"), await licences(metafile));

/** temml's styles without its font: script letters are the system's. */
async function withoutFonts({ path }) {
  const css = await readFile(path, "utf8");
  return { contents: css.replace(/@font-face\s*\{[^}]*\}/g, "").replace(/\/\*[^]*?\*\//, ""), loader: "css" };
}

/** pdf.js's character maps in one file: a line of JSON with names and lengths, then their bytes. */
async function characterMaps() {
  const folder = join(here, "node_modules/pdfjs-dist/cmaps");
  const names = (await readdir(folder)).filter((name) => name.endsWith(".bcmap")).sort();
  const maps = await Promise.all(names.map((name) => readFile(join(folder, name))));
  const index = JSON.stringify(names.map((name, i) => [name, maps[i].length]));
  return Buffer.concat([Buffer.from(`${index}\n`), ...maps]);
}

/** The licence of every package of which a line is in the output. */
async function licences(metafile) {
  const names = new Set();
  for (const output of Object.values(metafile.outputs)) {
    for (const [path, part] of Object.entries(output.inputs)) {
      const match = /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path);
      if (match && part.bytesInOutput > 0) names.add(match[1]);
    }
  }
  const parts = ["The page is built from the sources in web/ and from parts of these packages.\n"];
  for (const name of [...names].sort()) {
    const folder = join(here, "node_modules", name);
    const { version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
    const files = (await readdir(folder)).filter((file) => /^(licen[cs]e|notice)(\.|$|-)/i.test(file)).sort();
    if (files.length === 0) throw new Error(`${name} ${version} has no licence file`);
    if (name === "pdfjs-dist") files.push("cmaps/LICENSE");
    const texts = await Promise.all(files.map((file) => readFile(join(folder, file), "utf8")));
    const body = texts.map((text) => text.replaceAll("\r\n", "\n").trim()).join("\n\n");
    parts.push(`${"=".repeat(78)}\n${name} ${version} (${license})\n${"=".repeat(78)}\n${body}\n`);
  }
  return parts.join("\n");
}

// Markdown to nodes: marked for the text, highlight.js for code, temml for formulas; DOMPurify decides what may stay.
import DOMPurify from "dompurify";
import hljs from "highlight.js/lib/common";
import { Marked, type Token, type TokensList } from "marked";
import temml from "temml";

const HIGHLIGHTED = 60_000; // characters of code; more is shown plain
const HIGHLIGHTED_OPEN = 3000; // while it is written: it is coloured anew with each piece
const CLOSED = /\n {0,3}(?:`{3,}|~{3,})\s*$/;

const TAGS = (
  "p br hr h1 h2 h3 h4 h5 h6 blockquote ul ol li table thead tbody tfoot tr th td pre code span div a em strong del s " +
  "ins mark sub sup kbd samp var abbr cite q small dl dt dd details summary u b i caption"
).split(" ");
const ATTRIBUTES = ["href", "title", "class", "align", "start", "colspan", "rowspan", "open", "lang", "dir"];
const OUR_CLASSES = /^(hljs(-[\w-]+)?|language-[\w+#-]+|[\w-]+_|tex|tex-display)$/;
// temml puts a few styles on MathML, as properties, and columns' places in attributes.
const FORMULA_ATTRIBUTES = ["class", "style", "columnalign", "columnlines", "rowlines", "mathcolor", "mathbackground"];

const PLAIN_TAGS =
  /(<\/?(?:p|br|hr|b|strong|i|em|u|s|del|ins|mark|small|sub|sup|kbd|code|samp|var|q|blockquote|details|summary|ul|ol|li|table|thead|tbody|tr|th|td)\s*\/?>)/i;
const INLINE_TEX = /^\\\((.+?)\\\)|^\$(?![\s$])((?:\\.|[^\\$\n])+?)(?<!\s)\$(?!\d)/s;
const INLINE_DISPLAY = /^\$\$([^$]+?)\$\$|^\\\[(.+?)\\\]/s;
const BLOCK_TEX = /^ {0,3}(?:\$\$(.+?)\$\$|\\\[(.+?)\\\])[ \t]*(?:\n|$)/s;

const marked = new Marked({
  gfm: true,
  extensions: [
    {
      name: "blockTex",
      level: "block",
      start: (source) => source.match(/^ {0,3}(\$\$|\\\[)/m)?.index,
      tokenizer(source) {
        const match = BLOCK_TEX.exec(source);
        return match ? { type: "blockTex", raw: match[0], text: match[1] ?? match[2] ?? "" } : undefined;
      },
      renderer: (token) => `<div class="tex-display">${escape(token["text"])}</div>`,
    },
    {
      name: "inlineTex",
      level: "inline",
      start: (source) => source.match(/\$|\\[([]/)?.index,
      tokenizer(source) {
        const display = INLINE_DISPLAY.exec(source);
        if (display) return { type: "inlineTex", raw: display[0], text: display[1] ?? display[2] ?? "", display: true };
        const match = INLINE_TEX.exec(source);
        return match ? { type: "inlineTex", raw: match[0], text: match[1] ?? match[2] ?? "", display: false } : undefined;
      },
      renderer: (token) => `<span class="${token["display"] ? "tex-display" : "tex"}">${escape(token["text"])}</span>`,
    },
  ],
  renderer: {
    code({ text, lang, raw }) {
      const language = (lang ?? "").trim().split(/\s+/)[0]!.toLowerCase();
      const known = language !== "" && hljs.getLanguage(language) !== undefined;
      const most = CLOSED.test(raw) ? HIGHLIGHTED : HIGHLIGHTED_OPEN;
      const shown = known && text.length <= most ? hljs.highlight(text, { language }).value : escape(text);
      const name = /^[\w+#-]+$/.test(language) ? language : "text";
      return `<pre><code class="hljs language-${name}">${shown}\n</code></pre>`;
    },
    // Tags that only form text are followed; others are shown as they were written, not swallowed.
    html({ text }) {
      return text.split(PLAIN_TAGS).map((part, i) => (i % 2 === 1 ? part : escape(part))).join("");
    },
    // Nothing is fetched from elsewhere: an image is a link that the reader may follow.
    image({ href, text }) {
      return `<a href="${escape(href)}">${escape(text || href)}</a>`;
    },
    checkbox({ checked }) {
      return checked ? "☑ " : "☐ ";
    },
  },
});

DOMPurify.addHook("uponSanitizeAttribute", (node, data) => {
  // MathML comes from temml alone, whose classes are its own.
  if (data.attrName === "class" && node.namespaceURI !== "http://www.w3.org/1998/Math/MathML") {
    data.attrValue = data.attrValue.split(/\s+/).filter((name) => OUR_CLASSES.test(name)).join(" ");
  }
});

function escape(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

/** The blocks of a text, and the space between: paragraphs, lists, code. */
export function blocksOf(text: string): TokensList {
  return marked.lexer(text);
}

/** One block as nodes that may be shown. */
export function nodesOf(token: Token): DocumentFragment {
  const fragment = DOMPurify.sanitize(marked.parser([token]), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ADD_URI_SAFE_ATTR: ATTRIBUTES.filter((name) => name !== "href"), // others are not held to be addresses
    ALLOWED_URI_REGEXP: /^(?:https?:|mailto:|#)/i,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const link of fragment.querySelectorAll("a[href]")) {
    link.setAttribute("target", "_blank");
    link.setAttribute("rel", "noopener noreferrer nofollow");
  }
  for (const formula of fragment.querySelectorAll<HTMLElement>(".tex, .tex-display")) setFormula(formula);
  for (const table of fragment.querySelectorAll("table")) wrap(table, "wide", "Table");
  for (const pre of fragment.querySelectorAll("pre")) frameCode(pre);
  return fragment;
}

function setFormula(place: HTMLElement): void {
  const tex = place.textContent ?? "";
  const displayMode = place.classList.contains("tex-display");
  try {
    // Into a node, not through text: its few styles are then set as properties, which the content policy lets pass.
    temml.render(tex, place, { displayMode, throwOnError: true, trust: false, maxSize: [20, 20], maxExpand: 500 });
    DOMPurify.sanitize(place, {
      USE_PROFILES: { mathMl: true },
      ADD_TAGS: ["span", "div"],
      ADD_ATTR: FORMULA_ATTRIBUTES,
      ADD_URI_SAFE_ATTR: FORMULA_ATTRIBUTES,
      ALLOW_DATA_ATTR: false,
      IN_PLACE: true,
    });
  } catch (error) {
    place.textContent = tex;
    place.classList.add("tex-wrong");
    place.title = (error as Error).message;
  }
  if (displayMode) {
    place.tabIndex = 0;
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", "Formula");
  }
}

/** Around what may be wider than a phone: a box that scrolls, by keyboard too. */
function wrap(node: Element, kind: string, label: string): void {
  const box = document.createElement("div");
  box.className = kind;
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  node.replaceWith(box);
  box.append(node);
}

function frameCode(pre: HTMLPreElement): void {
  const language = /language-([\w+#-]+)/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "text";
  const head = document.createElement("div");
  head.className = "code-head";
  const name = document.createElement("span");
  name.textContent = language;
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "quiet small";
  copy.textContent = "Copy";
  copy.addEventListener("click", () => {
    void copyText(pre.textContent ?? "").then((done) => {
      copy.textContent = done ? "Copied" : "Not allowed";
      setTimeout(() => (copy.textContent = "Copy"), 1500);
    });
  });
  head.append(name, copy);
  const box = document.createElement("div");
  box.className = "code";
  pre.replaceWith(box);
  pre.tabIndex = 0;
  pre.setAttribute("role", "group");
  pre.setAttribute("aria-label", `Code, ${language}`);
  box.append(head, pre);
}

/** False where the browser forbids it, as on plain HTTP from another machine where the old way fails too. */
export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "unseen";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

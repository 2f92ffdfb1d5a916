// Tools of servers, as `minicpm4 serve --mcp` has them: what they are, and calls, each asked for.
import * as api from "./api";
import type { CallResult, ToolCall } from "./model";
import { changed, say, state } from "./store";

const TOKEN = "minicpm4.tools";
const STILL_HERE = 10_000; // milliseconds between words to the server while somebody thinks

export interface Tools {
  begun: boolean; // whether the servers were started
  servers: { name: string; state: string; why: string; tools: number; at: string }[];
  tools: { called: string; name: string; says: string; allowed: boolean }[];
  notes: string[];
  offered: unknown[]; // as the model is told of them
  system: string; // what else it is told, where the conversation has no system prompt
}

export interface FormField {
  name: string;
  kind: "string" | "number" | "integer" | "boolean" | "array";
  told: string;
  choices: [string, string][];
  required: boolean;
  default: unknown;
}

/** Texts are as the server escaped them: nothing in them is unseen. */
export interface Question {
  id: string;
  kind: "start" | "call" | "form";
  server: string;
  tool: string;
  arguments?: string;
  details?: [string, string][];
  changed?: string[];
  warnings?: string[];
  message?: string;
  url?: string;
  fields?: FormField[];
}

export type Reply = { consent: "once" | "session" | "always" | "no" } | { values: Record<string, unknown> | null };

/** A question that is shown, and whom its answer goes to. */
export interface Asked {
  question: Question;
  answer: (reply: Reply) => void;
}

/** The address has the token after its mark, which goes to no server and into no history. */
export function takeToken(): void {
  const found = /^#tools=([\w-]+)$/.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem(TOKEN, found[1]!);
  history.replaceState(null, "", location.pathname + location.search);
}

async function ask<T>(what: string, body: Record<string, unknown>, signal?: AbortSignal): Promise<T> {
  const token = sessionStorage.getItem(TOKEN) ?? "";
  return (await (await api.call(`mcp/${what}`, { token, ...body }, signal)).json()) as T;
}

/** Nothing is started by looking. */
export async function lookForTools(query = ""): Promise<void> {
  if (!sessionStorage.getItem(TOKEN)) return;
  try {
    state.tools = await ask<Tools>("tools", { query });
  } catch (error) {
    if (!(error instanceof api.ServerError) || (error.status !== 403 && error.status !== 404)) throw error;
    state.tools = null; // a server that was started anew, without tools or with another token
    sessionStorage.removeItem(TOKEN);
  }
  changed();
}

/** What the model is offered for a conversation. */
export async function offered(query: string): Promise<unknown[]> {
  if (!state.useTools || !state.tools?.begun) return [];
  await lookForTools(query.slice(-4000));
  return state.tools?.offered ?? [];
}

/** Whether an answer without a call was meant for one: small models write calls in forms of their own. */
export async function meantCall(text: string): Promise<boolean> {
  return text.trim() !== "" && (await ask<{ meant: boolean }>("meant", { text })).meant;
}

export function useTools(on: boolean): void {
  state.useTools = on;
  sessionStorage.setItem("minicpm4.useTools", on ? "yes" : "no");
  changed();
}

/** Start the servers that may be started, each asked for. */
export async function startServers(): Promise<CallResult> {
  const result = await worked({ what: "start" }, new AbortController().signal);
  await lookForTools();
  return result;
}

/** A call of the model: carried out if it is allowed. In a dry run it is only told what would be. */
export async function made(call: ToolCall, signal: AbortSignal): Promise<CallResult> {
  const body = { name: call.name, arguments: call.arguments || "{}" };
  if (state.dryRun) {
    const { told } = await ask<{ told: string }>("begin", { what: "plan", ...body }, signal);
    const text = `Dry run: ${told}`;
    return { text, content: "not called: the user tries out what would be called", failed: false, denied: true, notes: [] };
  }
  const result = await worked({ what: "call", ...body }, signal);
  void lookForTools();
  return result;
}

async function worked(body: Record<string, unknown>, signal: AbortSignal): Promise<CallResult> {
  const { job } = await ask<{ job: string }>("begin", body, signal);
  try {
    for (;;) {
      const news = await ask<{ state: string; question?: Question; result?: CallResult }>("wait", { job }, signal);
      if (news.state === "done") return news.result!;
      if (news.state === "asks") await settle(job, news.question!, signal);
    }
  } catch (error) {
    void ask("drop", { job }).catch(() => undefined);
    throw error;
  }
}

/** Show a question until it is answered. */
async function settle(job: string, question: Question, signal: AbortSignal): Promise<void> {
  const here = setInterval(() => void ask("wait", { job }).catch(() => undefined), STILL_HERE);
  const stopped = () => state.question?.answer({ consent: "no" });
  signal.addEventListener("abort", stopped);
  say(question.kind === "form" ? `${question.server} asks something.` : `May this run? ${question.server} ${question.tool}`);
  try {
    const reply = await new Promise<Reply>((answer) => {
      state.question = { question, answer };
      changed();
    });
    signal.throwIfAborted();
    await ask("answer", { job, question: question.id, ...reply }).catch(ignoreOld);
  } finally {
    clearInterval(here);
    signal.removeEventListener("abort", stopped);
    state.question = null;
    changed();
  }
}

/** A question that was given up in the meantime is no trouble: the job says what came of it. */
function ignoreOld(error: unknown): void {
  if (!(error instanceof api.ServerError) || error.status !== 409) throw error;
}

/** What nobody sees, written out: formats, controls, lone marks. */
export function visible(text: string): string {
  return text.replace(/[\p{Cf}\p{Cc}\p{Co}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufe00-\ufe0f]/gu, (char) =>
    char === "\n" || char === "\t" ? char : `\\u{${char.codePointAt(0)!.toString(16)}}`,
  );
}

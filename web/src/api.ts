// The server, by OpenAI's interface; `timings` and `prompt_progress` are those that llama.cpp's clients know.
import { SAMPLING_KEYS } from "./model";
import type { Failure, Message, SamplingKey, Settings, Stats, ToolCall } from "./model";

const BASE = new URL("./", document.baseURI);
const KEY = "minicpm4.key";

/** An answer of the server that is not what was asked for, with all that it said. */
export class ServerError extends Error {
  constructor(
    readonly failure: Failure,
    readonly status: number, // 0: no answer at all
  ) {
    super(failure.message);
  }
}

export function apiKey(): string {
  return localStorage.getItem(KEY) ?? "";
}

export function setApiKey(key: string): void {
  if (key) localStorage.setItem(KEY, key);
  else localStorage.removeItem(KEY);
}

export async function call(path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = {};
  if (apiKey()) headers["Authorization"] = `Bearer ${apiKey()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response: Response;
  try {
    response = await fetch(new URL(path, BASE), {
      method: body === undefined ? "GET" : "POST",
      headers,
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal ? { signal } : {}),
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    const message = `No answer from ${BASE.host}. Does minicpm4 serve still run there?`;
    throw new ServerError({ title: "The server cannot be reached", message, facts: [], raw: String(error) }, 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response: Response): Promise<ServerError> {
  const text = await response.text().catch(() => "");
  const failure = failureOf(text, `The server answered ${response.status} ${response.statusText}`.trim());
  const wait = response.headers.get("Retry-After");
  if (wait) failure.facts.push(["try again after", `${wait} s`]);
  return new ServerError(failure, response.status);
}

/** The error in a body: OpenAI's form {"error": {"message", "type", …}}, FastAPI's {"detail"}, or the plain text. */
export function failureOf(text: string, title: string): Failure {
  let error: unknown;
  try {
    const body = JSON.parse(text);
    error = body?.error ?? body?.detail ?? body;
  } catch {
    error = text;
  }
  if (typeof error !== "object" || error === null) {
    return { title, message: typeof error === "string" && error ? error : title, facts: [], raw: text };
  }
  const { message, ...rest } = error as Record<string, unknown>;
  const facts: [string, string][] = [];
  for (const [name, value] of Object.entries(rest)) {
    if (value !== null && value !== "") facts.push([name, typeof value === "object" ? JSON.stringify(value) : String(value)]);
  }
  return { title, message: typeof message === "string" ? message : JSON.stringify(error), facts, raw: text };
}

export async function models(): Promise<string[]> {
  const body = await (await call("v1/models")).json();
  return (body.data ?? []).map((model: { id: string }) => model.id);
}

/** What the server says of itself, as far as it says it. */
export interface Props {
  context: number | null; // tokens
  attentions: string[]; // what a request may ask for
  attention: string; // what it gets otherwise
  sampling: Partial<Record<SamplingKey, number>>; // the server's defaults
  description: string; // of the model and how it runs
}

export const NO_PROPS: Props = { context: null, attentions: [], attention: "", sampling: {}, description: "" };

export async function props(model: string): Promise<Props> {
  const query = model ? `?model=${encodeURIComponent(model)}` : "";
  let body: any;
  try {
    body = await (await call(`props${query}`)).json();
  } catch (error) {
    if (error instanceof ServerError && error.status === 404) return NO_PROPS;
    throw error;
  }
  const generation = body.default_generation_settings ?? {};
  const params = { ...generation, ...generation.params };
  const sampling: Partial<Record<SamplingKey, number>> = {};
  for (const key of SAMPLING_KEYS) {
    const value = params[key];
    if (typeof value === "number" && !(key === "max_tokens" && value < 0)) sampling[key] = value;
  }
  const attention = body.attention ?? {};
  return {
    context: body.n_ctx ?? generation.n_ctx ?? null,
    attentions: Array.isArray(attention.options) ? attention.options.map(String) : [],
    attention: typeof attention === "string" ? attention : String(attention.default ?? attention.mode ?? ""),
    sampling,
    description: typeof body.description === "string" ? body.description : "",
  };
}

/** How many tokens a text has. Null where the server has no such page. */
export async function countTokens(content: string, model: string): Promise<number | null> {
  try {
    const body = await (await call("tokenize", { content, ...(model ? { model } : {}) })).json();
    return Array.isArray(body.tokens) ? body.tokens.length : (body.count ?? null);
  } catch (error) {
    if (error instanceof ServerError && error.status !== 0) return null;
    throw error;
  }
}

export interface Delta {
  content?: string;
  reasoning?: string;
  toolCalls?: (Partial<ToolCall> & { index: number })[];
  finish?: string;
  stats?: Stats;
  progress?: { done: number; total: number; cached: number }; // prompt tokens
}

type Part = Record<string, unknown>;

/** What is asked for: only fields that the user has set, so that the server's own defaults hold. */
export function requestOf(path: Message[], settings: Settings, model: string, known: Props, tools: unknown[] = []): Part {
  const messages: Part[] = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const message of path) messages.push(inApi(message), ...resultsOf(message));
  const request: Part = { model, messages, stream: true, stream_options: { include_usage: true }, return_progress: true };
  for (const key of SAMPLING_KEYS) if (settings.sampling[key] !== null) request[key] = settings.sampling[key];
  if (settings.thinking !== "default") request["chat_template_kwargs"] = { enable_thinking: settings.thinking === "on" };
  if (settings.attention && known.attentions.includes(settings.attention)) request["attention"] = settings.attention;
  if (tools.length > 0) request["tools"] = tools;
  return request;
}

function inApi(message: Message): Part {
  if (message.role === "user") return { role: "user", content: textOf(message) };
  if (message.toolCalls.length === 0) return { role: "assistant", content: message.content };
  const tool_calls = message.toolCalls.map(({ id, name, arguments: text }) => ({
    id,
    type: "function",
    function: { name, arguments: text },
  }));
  return { role: "assistant", content: message.content || null, tool_calls };
}

/** What the model reads of its calls. */
function resultsOf(message: Message): Part[] {
  return message.toolCalls.flatMap(({ id, name }) => {
    const result = message.results?.[id];
    return result ? [{ role: "tool", tool_call_id: id, name, content: result.content }] : [];
  });
}

/** Files first, each between lines that name it, then what the user wrote. */
export function textOf({ attachments, content }: Pick<Message, "attachments" | "content">): string {
  const files = attachments.map(({ name, text }) => `[File: ${name}]\n${text.trimEnd()}\n[End of file: ${name}]`);
  return [...files, content].filter(Boolean).join("\n\n");
}

export async function* chat(request: Part, signal: AbortSignal): AsyncGenerator<Delta> {
  const response = await call("v1/chat/completions", request, signal);
  let ended = false;
  for await (const data of events(response.body!)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(failureOf(data, "The server broke off"), response.status);
    const delta = deltaOf(chunk);
    ended ||= delta.finish !== undefined;
    yield delta;
  }
  if (!ended) {
    const message = "The answer ended in the middle: the connection was closed before the server had said why it stopped.";
    throw new ServerError({ title: "The connection was lost", message, facts: [], raw: "" }, 0);
  }
}

function deltaOf(chunk: any): Delta {
  const choice = chunk.choices?.[0];
  const delta: Delta = {};
  if (choice?.delta?.content) delta.content = choice.delta.content;
  const reasoning = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning;
  if (reasoning) delta.reasoning = reasoning;
  if (choice?.delta?.tool_calls) {
    delta.toolCalls = choice.delta.tool_calls.map((call: any) => ({
      index: call.index ?? 0,
      id: call.id,
      name: call.function?.name,
      arguments: call.function?.arguments,
    }));
  }
  if (choice?.finish_reason) delta.finish = choice.finish_reason;
  if (chunk.usage || chunk.timings) delta.stats = statsOf(chunk.usage ?? {}, chunk.timings ?? {});
  const progress = chunk.prompt_progress;
  if (progress) delta.progress = { done: progress.processed, total: progress.total, cached: progress.cache ?? 0 };
  return delta;
}

function statsOf(usage: any, timings: any): Stats {
  const all: Record<keyof Omit<Stats, "firstToken">, unknown> = {
    promptTokens: usage.prompt_tokens ?? timings.prompt_n,
    cachedTokens: usage.prompt_tokens_details?.cached_tokens ?? timings.cache_n,
    newTokens: usage.completion_tokens ?? timings.predicted_n,
    reasoningTokens: usage.completion_tokens_details?.reasoning_tokens,
    prefillSpeed: timings.prompt_per_second || null,
    speed: timings.predicted_per_second || null,
    blocksRead: timings.blocks_read_share,
    draftTokens: timings.draft_n,
    draftAccepted: timings.draft_n_accepted,
    acceptLength: timings.accept_length,
    attention: timings.attention,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value != null)) as Stats;
}

/** The data of each server-sent event. */
async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      buffer += decoder.decode(value, { stream: !done });
      const parts = buffer.split(/\r?\n\r?\n/);
      buffer = done ? "" : parts.pop()!;
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length > 0) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

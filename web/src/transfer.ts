// Conversations as a file, and back. A file that was written elsewhere is checked field by field.
import { EMPTY_SETTINGS, SAMPLING_KEYS, newId } from "./model";
import type { Attachment, CallResult, Conversation, Message, Settings, ToolCall } from "./model";

const FORMAT = "minicpm4-conversations";

export interface Bundle {
  conversation: Conversation;
  messages: Message[];
}

export function write(bundles: Bundle[]): string {
  const conversations = bundles.map(({ conversation, messages }) => ({ ...conversation, messages }));
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

/** What a file holds, under new ids, so that nothing here is overwritten. Throws an Error that names the field. */
export function read(text: string): Bundle[] {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch (error) {
    throw new Error(`not JSON: ${(error as Error).message}`);
  }
  const file = record(data, "the file");
  if (file["format"] !== FORMAT || file["version"] !== 1) {
    throw new Error(`format and version must be "${FORMAT}" and 1`);
  }
  return list(file["conversations"], "conversations").map((item, i) => bundle(item, `conversations[${i}]`));
}

function bundle(data: unknown, at: string): Bundle {
  const source = record(data, at);
  const items = list(source["messages"], `${at}.messages`);
  const ids = new Map<string, string>([["", ""]]);
  items.forEach((item, i) => {
    const id = words(record(item, `${at}.messages[${i}]`)["id"], `${at}.messages[${i}].id`);
    if (id === "" || ids.has(id)) throw new Error(`${at}.messages[${i}].id is empty or there twice`);
    ids.set(id, newId());
  });
  const conversation = newId();
  const messages = items.map((item, i) => message(record(item, at), ids, conversation, `${at}.messages[${i}]`));
  refuseCircles(messages, at);
  const chosen: Record<string, string> = {};
  for (const [parent, child] of Object.entries(record(source["chosen"] ?? {}, `${at}.chosen`))) {
    const [above, below] = [ids.get(parent), ids.get(words(child, `${at}.chosen`))];
    if (above !== undefined && below) chosen[above] = below;
  }
  return {
    conversation: {
      id: conversation,
      title: words(source["title"], `${at}.title`).slice(0, 200),
      created: number(source["created"], `${at}.created`),
      updated: number(source["updated"], `${at}.updated`),
      model: words(source["model"] ?? "", `${at}.model`),
      settings: settings(source["settings"] ?? {}, `${at}.settings`),
      chosen,
      deleted: null,
    },
    messages,
  };
}

function message(source: Record<string, unknown>, ids: Map<string, string>, conversation: string, at: string): Message {
  const role = source["role"];
  if (role !== "user" && role !== "assistant") throw new Error(`${at}.role must be user or assistant`);
  const parent = ids.get(words(source["parent"] ?? "", `${at}.parent`));
  if (parent === undefined) throw new Error(`${at}.parent is no message of this conversation`);
  const finish = words(source["finish"] ?? "", `${at}.finish`);
  return {
    id: ids.get(source["id"] as string)!,
    conversation,
    parent,
    role,
    created: number(source["created"], `${at}.created`),
    content: words(source["content"], `${at}.content`),
    reasoning: words(source["reasoning"] ?? "", `${at}.reasoning`),
    toolCalls: list(source["toolCalls"] ?? [], `${at}.toolCalls`).map((call, i) => toolCall(call, `${at}.toolCalls[${i}]`)),
    results: Object.fromEntries(
      Object.entries(record(source["results"] ?? {}, `${at}.results`)).map(([id, one]) => [id, result(one, `${at}.results.${id}`)]),
    ),
    attachments: list(source["attachments"] ?? [], `${at}.attachments`).map((file, i) =>
      attachment(file, `${at}.attachments[${i}]`),
    ),
    model: words(source["model"] ?? "", `${at}.model`),
    state: source["state"] === "done" ? "done" : "stopped",
    finish,
    failure: null,
    stats: null,
  };
}

function toolCall(data: unknown, at: string): ToolCall {
  const source = record(data, at);
  return {
    id: words(source["id"] ?? "", `${at}.id`),
    name: words(source["name"], `${at}.name`),
    arguments: words(source["arguments"] ?? "", `${at}.arguments`),
  };
}

function result(data: unknown, at: string): CallResult {
  const source = record(data, at);
  return {
    text: words(source["text"], `${at}.text`),
    content: words(source["content"], `${at}.content`),
    failed: source["failed"] === true,
    denied: source["denied"] === true,
    notes: list(source["notes"] ?? [], `${at}.notes`).map((note, i) => words(note, `${at}.notes[${i}]`)),
  };
}

function attachment(data: unknown, at: string): Attachment {
  const source = record(data, at);
  return {
    name: words(source["name"], `${at}.name`),
    kind: source["kind"] === "pdf" ? "pdf" : "text",
    size: number(source["size"] ?? 0, `${at}.size`),
    text: words(source["text"], `${at}.text`),
    tokens: null,
    note: words(source["note"] ?? "", `${at}.note`),
  };
}

function settings(data: unknown, at: string): Settings {
  const source = record(data, at);
  const sampling = record(source["sampling"] ?? {}, `${at}.sampling`);
  const thinking = source["thinking"];
  const result: Settings = {
    system: words(source["system"] ?? "", `${at}.system`),
    thinking: thinking === "on" || thinking === "off" ? thinking : "default",
    attention: words(source["attention"] ?? "", `${at}.attention`),
    sampling: { ...EMPTY_SETTINGS.sampling },
  };
  for (const key of SAMPLING_KEYS) {
    if (sampling[key] != null) result.sampling[key] = number(sampling[key], `${at}.sampling.${key}`);
  }
  return result;
}

function refuseCircles(messages: Message[], at: string): void {
  const parents = new Map(messages.map((item) => [item.id, item.parent]));
  const safe = new Set<string>([""]);
  for (const start of parents.keys()) {
    const trail = new Set<string>();
    for (let id = start; !safe.has(id); id = parents.get(id)!) {
      if (trail.has(id)) throw new Error(`${at}.messages: a message is its own ancestor`);
      trail.add(id);
    }
    for (const id of trail) safe.add(id);
  }
}

function record(value: unknown, at: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error(`${at} must be an object`);
  return value as Record<string, unknown>;
}

function list(value: unknown, at: string): unknown[] {
  if (!Array.isArray(value)) throw new Error(`${at} must be a list`);
  return value;
}

function words(value: unknown, at: string): string {
  if (typeof value !== "string") throw new Error(`${at} must be text`);
  return value;
}

function number(value: unknown, at: string): number {
  if (typeof value !== "number" || !Number.isFinite(value)) throw new Error(`${at} must be a number`);
  return value;
}

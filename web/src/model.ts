// What is kept: conversations, and their messages as a tree. An edited or regenerated message is a sibling of the first.

export interface Attachment {
  name: string;
  kind: "text" | "pdf";
  size: number; // bytes of the file
  text: string;
  tokens: number | null; // null: the server has not said
  note: string; // what the reader should know, such as the encoding or pages without text
}

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

/** What came of a call: `text` is shown, `content` is what the model reads. */
export interface CallResult {
  text: string;
  content: string;
  failed: boolean;
  denied: boolean;
  notes: string[];
}

/** An error as the server worded it. */
export interface Failure {
  title: string;
  message: string;
  facts: [string, string][];
  raw: string;
}

/** Figures of one answer, as far as the server gave them. Seconds; tokens per second; shares from 0 to 1. */
export interface Stats {
  promptTokens?: number;
  cachedTokens?: number;
  newTokens?: number;
  reasoningTokens?: number;
  firstToken?: number;
  prefillSpeed?: number;
  speed?: number;
  blocksRead?: number;
  draftTokens?: number;
  draftAccepted?: number;
  acceptLength?: number; // tokens per pass of the model
  attention?: string;
}

export type State = "done" | "writing" | "stopped" | "failed";

export interface Message {
  id: string;
  conversation: string;
  parent: string; // "" for a first message
  role: "user" | "assistant";
  created: number; // milliseconds since 1970
  content: string;
  reasoning: string;
  toolCalls: ToolCall[];
  results: Record<string, CallResult>; // of calls that were made or refused, by their ids
  attachments: Attachment[];
  model: string;
  state: State;
  finish: string;
  failure: Failure | null;
  stats: Stats | null;
}

export interface Settings {
  system: string;
  thinking: "default" | "on" | "off";
  attention: string; // "" leaves it to the server
  sampling: Record<SamplingKey, number | null>; // null leaves it to the server
}

export const SAMPLING_KEYS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"] as const;
export type SamplingKey = (typeof SAMPLING_KEYS)[number];

export interface Conversation {
  id: string;
  title: string;
  created: number;
  updated: number;
  model: string;
  settings: Settings;
  chosen: Record<string, string>; // of each message with several answers: the child that is shown
  deleted: number | null; // when; it can be brought back until the page forgets it
}

export const EMPTY_SETTINGS: Settings = {
  system: "",
  thinking: "default",
  attention: "",
  sampling: { temperature: null, top_p: null, top_k: null, min_p: null, max_tokens: null, seed: null },
};

export function newId(): string {
  // randomUUID exists in secure contexts only; a server in the local network may be plain HTTP.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newMessage(fields: Partial<Message> & Pick<Message, "conversation" | "parent" | "role">): Message {
  return {
    id: newId(),
    created: Date.now(),
    content: "",
    reasoning: "",
    toolCalls: [],
    results: {},
    attachments: [],
    model: "",
    state: "done",
    finish: "",
    failure: null,
    stats: null,
    ...fields,
  };
}

/** A first line as a title, at most 60 characters. */
export function titleOf(text: string): string {
  const line = text.trim().split("\n", 1)[0]!.trim();
  const cut = [...line];
  return cut.length > 60 ? cut.slice(0, 59).join("") + "…" : line || "New chat";
}

/** The messages of one conversation. Messages are replaced, never changed in place: views compare identities. */
export class Thread {
  readonly byId = new Map<string, Message>();
  private readonly children = new Map<string, string[]>();

  constructor(messages: Iterable<Message>) {
    for (const message of [...messages].sort((a, b) => a.created - b.created)) this.put(message);
  }

  put(message: Message): void {
    if (!this.byId.has(message.id)) {
      const siblings = this.children.get(message.parent);
      if (siblings) siblings.push(message.id);
      else this.children.set(message.parent, [message.id]);
    }
    this.byId.set(message.id, message);
  }

  siblings(message: Message): string[] {
    return this.children.get(message.parent) ?? [];
  }

  /** From the first message down, at each fork the chosen child, or the newest. */
  path(chosen: Record<string, string>): Message[] {
    const path: Message[] = [];
    let parent = "";
    for (;;) {
      const children = this.children.get(parent);
      if (!children) return path;
      const wanted = chosen[parent];
      const id = wanted && children.includes(wanted) ? wanted : children[children.length - 1]!;
      path.push(this.byId.get(id)!);
      parent = id;
    }
  }

  /** The messages above one, oldest first, itself included. */
  above(id: string): Message[] {
    const path: Message[] = [];
    for (let at = this.byId.get(id); at; at = this.byId.get(at.parent)) path.unshift(at);
    return path;
  }
}

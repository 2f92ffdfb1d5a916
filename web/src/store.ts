// What the page shows, in one place. Views read it and call its functions; it tells them when to look again.
import * as api from "./api";
import * as database from "./database";
import * as transfer from "./transfer";
import { EMPTY_SETTINGS, Thread, newId, titleOf } from "./model";
import type { Asked, Tools } from "./tools";
import type { Attachment, Conversation, Failure, Message, Settings } from "./model";

const UNDO_FOR = 10_000; // milliseconds

export interface Toast {
  id: string;
  text: string;
  action?: { label: string; run: () => void };
}

/** An answer that is being written. */
export interface Run {
  message: Message;
  controller: AbortController;
  started: number; // milliseconds, as performance.now()
  first: number | null; // when the first piece came
  pieces: number;
  progress: api.Delta["progress"] | null;
}

export const state = {
  conversations: [] as Conversation[], // newest first, without deleted ones
  query: "",
  found: null as Set<string> | null, // by the query
  current: fresh(EMPTY_SETTINGS, ""),
  thread: new Thread([]),
  runs: new Map<string, Run>(), // by conversation
  files: [] as Attachment[], // beside what is being written
  reading: 0, // files that are still read
  models: [] as string[],
  props: api.NO_PROPS,
  trouble: null as Failure | null, // with the server, while there is any
  keyWanted: false,
  tools: null as Tools | null, // of servers; null: this page may not use any
  useTools: sessionStorage.getItem("minicpm4.useTools") === "yes",
  dryRun: false,
  question: null as Asked | null, // that waits for an answer
  toasts: [] as Toast[],
  status: "", // for screen readers
};

const listeners = new Set<() => void>();
let waiting = false;

export function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => void listeners.delete(listener);
}

/** Views look again, at most once a frame. */
export function changed(): void {
  if (waiting) return;
  waiting = true;
  const tell = () => {
    waiting = false;
    for (const listener of listeners) listener();
  };
  if (document.hidden) setTimeout(tell, 200);
  else requestAnimationFrame(tell);
}

function fresh(settings: Settings, model: string): Conversation {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, model, settings, chosen: {}, deleted: null };
}

// Other tabs of the page.
const channel = "BroadcastChannel" in window ? new BroadcastChannel("minicpm4") : null;
channel?.addEventListener("message", () => void refresh());

async function refresh(): Promise<void> {
  const all = await database.allConversations();
  state.conversations = all.filter((item) => item.deleted === null).sort((a, b) => b.updated - a.updated);
  const here = state.conversations.find((item) => item.id === state.current.id);
  if (here) state.current = here;
  changed();
}

export async function start(): Promise<void> {
  database.onTrouble((error) => toast(`Not kept, this browser does not store it: ${String(error)}`));
  navigator.storage?.persist?.().catch(() => undefined);
  const all = await database.allConversations();
  for (const item of all) if (item.deleted !== null && item.deleted < Date.now() - UNDO_FOR) await database.forget(item.id);
  await refresh();
  if (state.conversations[0]) state.current.settings = state.conversations[0].settings;
  addEventListener("hashchange", () => void follow());
  await follow();
}

async function follow(): Promise<void> {
  const id = location.hash.slice(1);
  if (id === "" && state.thread.byId.size > 0) newChat();
  else if (id !== "" && (id !== state.current.id || state.thread.byId.size === 0)) await open(id);
}

export function path(): Message[] {
  return state.thread.path(state.current.chosen);
}

export function newChat(): void {
  state.current = fresh(state.current.settings, state.current.model);
  state.thread = new Thread([]);
  if (location.hash) history.pushState(null, "", location.pathname + location.search);
  changed();
}

export async function open(id: string): Promise<void> {
  const conversation = state.conversations.find((item) => item.id === id);
  if (!conversation) return newChat();
  const messages = await database.messagesOf(id);
  const live = state.runs.get(id)?.message;
  state.current = conversation;
  // An answer that was being written when the page was closed has stopped.
  const settled = messages.map((item) => (item.state === "writing" ? { ...item, state: "stopped" as const } : item));
  state.thread = new Thread(live ? settled.map((item) => (item.id === live.id ? live : item)) : settled);
  if (location.hash.slice(1) !== id) history.pushState(null, "", `#${id}`);
  changed();
}

/** Replaces the fields of a conversation, here and in the database. */
export async function update(id: string, fields: Partial<Conversation>): Promise<void> {
  const before = state.conversations.find((item) => item.id === id) ?? (state.current.id === id ? state.current : null);
  if (!before) return;
  const after = { ...before, ...fields };
  if (state.current.id === id) state.current = after;
  const kept = state.conversations.some((item) => item.id === id);
  if (kept) {
    state.conversations = state.conversations.map((item) => (item.id === id ? after : item));
    if (fields.updated) state.conversations.sort((a, b) => b.updated - a.updated);
  }
  changed();
  if (kept) {
    await database.put(after, []);
    channel?.postMessage(id);
  }
}

/** A message into its conversation, open or not; the first one makes the conversation a kept one. */
export function put(message: Message): void {
  if (message.conversation === state.current.id) {
    state.thread.put(message);
    if (!state.conversations.some((item) => item.id === state.current.id)) {
      state.current = { ...state.current, title: titleOf(message.content || message.attachments[0]?.name || "") };
      state.conversations = [state.current, ...state.conversations];
      history.replaceState(null, "", `#${state.current.id}`);
    }
  }
  changed();
}

/** Shows one of several answers, or edits. */
export function choose(message: Message, id: string): void {
  void update(state.current.id, { chosen: { ...state.current.chosen, [message.parent]: id } });
}

export async function remove(conversation: Conversation): Promise<void> {
  state.runs.get(conversation.id)?.controller.abort();
  await database.put({ ...conversation, deleted: Date.now() }, []);
  state.conversations = state.conversations.filter((item) => item.id !== conversation.id);
  if (state.current.id === conversation.id) newChat();
  channel?.postMessage(conversation.id);
  const undo = async () => {
    clearTimeout(timer);
    await database.put({ ...conversation, deleted: null }, []);
    channel?.postMessage(conversation.id);
    await refresh();
    await open(conversation.id);
  };
  const timer = setTimeout(() => void database.forget(conversation.id), UNDO_FOR);
  toast(`“${conversation.title}” is deleted.`, { label: "Undo", run: () => void undo() });
}

export async function find(query: string): Promise<void> {
  state.query = query;
  changed();
  const titles = new Map(state.conversations.map((item) => [item.id, item.title]));
  const found = query.trim() === "" ? null : await database.search(query, titles);
  if (state.query !== query) return;
  state.found = found;
  changed();
}

export async function exportAll(conversations: Conversation[]): Promise<void> {
  const bundles = [];
  for (const conversation of conversations) {
    bundles.push({ conversation, messages: await database.messagesOf(conversation.id) });
  }
  const name = conversations.length === 1 ? conversations[0]!.title.replace(/[^\p{L}\p{N}]+/gu, "-") : "conversations";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([transfer.write(bundles)], { type: "application/json" }));
  link.download = `${name.slice(0, 60) || "conversation"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export async function importFile(file: File): Promise<void> {
  try {
    const bundles = transfer.read(await file.text());
    for (const { conversation, messages } of bundles) await database.put(conversation, messages);
    await refresh();
    channel?.postMessage("");
    toast(`${bundles.length} conversation${bundles.length === 1 ? "" : "s"} imported.`);
    if (bundles.length === 1) await open(bundles[0]!.conversation.id);
  } catch (error) {
    toast(`${file.name} is not imported: ${(error as Error).message}.`);
  }
}

export function toast(text: string, action?: Toast["action"]): void {
  const item: Toast = { id: newId(), text, ...(action ? { action } : {}) };
  state.toasts = [...state.toasts.slice(-2), item];
  setTimeout(() => dismiss(item.id), UNDO_FOR);
  changed();
}

export function dismiss(id: string): void {
  state.toasts = state.toasts.filter((item) => item.id !== id);
  changed();
}

export function say(text: string): void {
  state.status = text;
  changed();
}

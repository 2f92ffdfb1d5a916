// Conversations in the browser's own database, or in memory where it gives the page none.
import { openDB, type DBSchema, type IDBPDatabase } from "idb";
import type { Conversation, Message } from "./model";

interface Schema extends DBSchema {
  conversations: { key: string; value: Conversation };
  messages: { key: string; value: Message; indexes: { conversation: string } };
}

let opened: Promise<IDBPDatabase<Schema> | null> | null = null;
let tell: (error: unknown) => void = () => undefined;
const memory = { conversations: new Map<string, Conversation>(), messages: new Map<string, Message>() };

/** Calls `listener` when something is not kept: no database, or one that is full. */
export function onTrouble(listener: (error: unknown) => void): void {
  tell = listener;
}

function database(): Promise<IDBPDatabase<Schema> | null> {
  opened ??= open();
  return opened;
}

async function open(): Promise<IDBPDatabase<Schema> | null> {
  try {
    return await openDB<Schema>("minicpm4", 1, {
      upgrade(db) {
        db.createObjectStore("conversations", { keyPath: "id" });
        db.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
      },
    });
  } catch (error) {
    tell(error);
    return null;
  }
}

export async function allConversations(): Promise<Conversation[]> {
  const db = await database();
  return db ? db.getAll("conversations") : [...memory.conversations.values()];
}

export async function messagesOf(conversation: string): Promise<Message[]> {
  const db = await database();
  if (db) return db.getAllFromIndex("messages", "conversation", conversation);
  return [...memory.messages.values()].filter((message) => message.conversation === conversation);
}

/** Writes all of it or nothing. What cannot be written is told; nothing is thrown. */
export async function put(conversation: Conversation | null, messages: Message[]): Promise<void> {
  const db = await database();
  if (!db) {
    if (conversation) memory.conversations.set(conversation.id, conversation);
    for (const message of messages) memory.messages.set(message.id, message);
    return;
  }
  try {
    const transaction = db.transaction(["conversations", "messages"], "readwrite");
    const writes: Promise<unknown>[] = [transaction.done];
    if (conversation) writes.push(transaction.objectStore("conversations").put(conversation));
    for (const message of messages) writes.push(transaction.objectStore("messages").put(message));
    await Promise.all(writes);
  } catch (error) {
    tell(error);
  }
}

export async function forget(conversation: string): Promise<void> {
  const db = await database();
  if (!db) {
    memory.conversations.delete(conversation);
    return;
  }
  const transaction = db.transaction(["conversations", "messages"], "readwrite");
  void transaction.objectStore("conversations").delete(conversation);
  const messages = transaction.objectStore("messages");
  for (const key of await messages.index("conversation").getAllKeys(conversation)) void messages.delete(key);
  await transaction.done;
}

/** Which conversations hold these words, each of them somewhere, in any case. */
export async function search(words: string, titles: Map<string, string>): Promise<Set<string>> {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const missing = new Map<string, Set<string>>();
  const look = (conversation: string, text: string) => {
    const open = missing.get(conversation) ?? new Set(wanted);
    missing.set(conversation, open);
    const lower = text.toLowerCase();
    for (const word of open) if (lower.includes(word)) open.delete(word);
  };
  for (const [id, title] of titles) look(id, title);
  for await (const { conversation, content, attachments } of everyMessage()) {
    look(conversation, content);
    for (const attachment of attachments) look(conversation, attachment.name + "\n" + attachment.text);
  }
  return new Set([...missing].filter(([, open]) => open.size === 0).map(([id]) => id));
}

async function* everyMessage(): AsyncGenerator<Message> {
  const db = await database();
  if (!db) {
    yield* memory.messages.values();
    return;
  }
  let cursor = await db.transaction("messages").store.openCursor();
  while (cursor) {
    yield cursor.value;
    cursor = await cursor.continue();
  }
}

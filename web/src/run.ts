// Asking for answers: send, edit, regenerate, stop.
import * as api from "./api";
import * as database from "./database";
import { newMessage, type Attachment, type Failure, type Message, type Stats } from "./model";
import { connect, model } from "./server";
import { changed, choose, put, say, state, toast, update, type Run } from "./store";
import { made, meantCall, offered } from "./tools";

const SAVE_EVERY = 2000; // milliseconds, while an answer is written
const MOST_STEPS = 12; // answers with calls, one after another

export async function send(content: string, attachments: Attachment[]): Promise<void> {
  const last = state.thread.path(state.current.chosen).at(-1);
  await ask(newMessage({ conversation: state.current.id, parent: last?.id ?? "", role: "user", content, attachments }));
}

/** Another wording beside the first one, and an answer to it. */
export async function edit(message: Message, content: string): Promise<void> {
  const { conversation, parent, role, attachments } = message;
  if (role === "user") return ask(newMessage({ conversation, parent, role, content, attachments }));
  const other = newMessage({ conversation, parent, role, content, model: message.model, finish: "edited" });
  put(other);
  choose(message, other.id);
  await database.put(null, [other]);
}

async function ask(question: Message): Promise<void> {
  put(question);
  choose(question, question.id);
  await database.put(state.current, [question]);
  await answer(question);
}

/** Another answer beside this one; in the place of one that failed before its first word. */
export async function regenerate(message: Message): Promise<void> {
  const question = state.thread.byId.get(message.parent);
  const empty = message.state === "failed" && !message.content && !message.reasoning;
  if (question) await answer(question, empty ? message.id : undefined);
}

export function stop(): void {
  state.runs.get(state.current.id)?.controller.abort();
}

async function answer(question: Message, id?: string, step = 1): Promise<void> {
  const { conversation } = question;
  if (state.runs.has(conversation)) return;
  const name = model();
  const path = state.thread.above(question.id);
  const message = newMessage({ conversation, parent: question.id, role: "assistant", model: name, state: "writing" });
  const run: Run = {
    message: id ? { ...message, id } : message,
    controller: new AbortController(),
    started: performance.now(),
    first: null,
    pieces: 0,
    progress: null,
  };
  state.runs.set(conversation, run);
  put(run.message);
  choose(run.message, run.message.id);
  void update(conversation, { updated: Date.now() });
  say("The answer is being written.");
  const settings = state.current.settings;
  let goOn = false;
  try {
    const tools = await offered(path.map((one) => one.content).join("\n"));
    const system = settings.system.trim() || (tools.length > 0 ? state.tools!.system : "");
    const request = api.requestOf(path, { ...settings, system }, name, state.props, tools);
    await follow(run, api.chat(request, run.controller.signal));
    if (tools.length > 0 && run.message.toolCalls.length === 0) await onceMore(run, request);
    if (tools.length > 0 && run.message.toolCalls.length > 0) goOn = await callAll(run);
    finish(run, { state: "done" });
    say("The answer is complete.");
  } catch (error) {
    if (run.controller.signal.aborted) {
      finish(run, { state: "stopped" });
      say("Stopped.");
    } else {
      finish(run, { state: "failed", failure: failureOf(error) });
      say("The answer failed.");
      if (error instanceof api.ServerError && (error.status === 0 || error.status === 401)) void connect();
    }
  } finally {
    state.runs.delete(conversation);
    changed();
  }
  if (goOn && state.current.id === conversation) {
    if (step < MOST_STEPS) await answer(run.message, undefined, step + 1);
    else toast(`The model has made calls in ${MOST_STEPS} answers, one after another. Say how it is to go on.`);
  }
}

/** A call that was written as text is asked for once more, held to a call; where that comes to nothing the text stays. */
async function onceMore(run: Run, request: Record<string, unknown>): Promise<void> {
  const written = run.message;
  try {
    if (!(await meantCall(written.content))) return;
    toast("The answer names a tool and is no call: it is asked for once more as one.");
    run.message = { ...written, content: "", reasoning: "", finish: "" };
    await follow(run, api.chat({ ...request, tool_choice: "required" }, run.controller.signal));
  } catch (error) {
    run.message = written;
    const refused = error instanceof api.ServerError && error.status >= 400 && error.status < 500;
    if (!refused) throw error;
  }
}

/** The calls of an answer, one by one, each asked for; whether the model is to be told of them. */
async function callAll(run: Run): Promise<boolean> {
  for (const call of run.message.toolCalls) {
    const result = await made(call, run.controller.signal);
    run.message = { ...run.message, results: { ...run.message.results, [call.id]: result } };
    put(run.message);
    void database.put(null, [run.message]);
  }
  return !state.dryRun;
}

function failureOf(error: unknown): Failure {
  if (error instanceof api.ServerError) return error.failure;
  return { title: "The answer cannot be read", message: String(error), facts: [], raw: "" };
}

async function follow(run: Run, deltas: AsyncIterable<api.Delta>): Promise<void> {
  let saved = 0;
  for await (const delta of deltas) {
    if (delta.progress) run.progress = delta.progress;
    if (delta.content || delta.reasoning || delta.toolCalls) {
      run.first ??= performance.now();
      run.pieces += 1;
    }
    run.message = grown(run.message, delta);
    put(run.message);
    if (performance.now() - saved > SAVE_EVERY) {
      saved = performance.now();
      void database.put(null, [run.message]);
    }
  }
}

function grown(message: Message, delta: api.Delta): Message {
  const next = { ...message };
  if (delta.content) next.content += delta.content;
  if (delta.reasoning) next.reasoning += delta.reasoning;
  if (delta.finish) next.finish = delta.finish;
  if (delta.stats) next.stats = { ...next.stats, ...delta.stats };
  for (const { index, id, name, arguments: text } of delta.toolCalls ?? []) {
    const calls = [...next.toolCalls];
    const call = calls[index] ?? { id: "", name: "", arguments: "" };
    calls[index] = { id: id ?? call.id, name: call.name + (name ?? ""), arguments: call.arguments + (text ?? "") };
    next.toolCalls = calls;
  }
  return next;
}

function finish(run: Run, fields: Partial<Message>): void {
  const stats: Stats = { ...run.message.stats };
  if (run.first !== null) {
    stats.firstToken ??= (run.first - run.started) / 1000;
    const seconds = (performance.now() - run.first) / 1000;
    if (stats.newTokens && stats.newTokens > 1 && seconds > 0) stats.speed ??= (stats.newTokens - 1) / seconds;
  }
  run.message = { ...run.message, ...fields, stats };
  put(run.message);
  void database.put(null, [run.message]);
}

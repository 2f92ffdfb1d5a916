// Which models the server has and what it says of itself, asked again while it does not answer.
import * as api from "./api";
import { readFile } from "./files";
import { changed, state, toast, update } from "./store";
import { lookForTools } from "./tools";

let retry: ReturnType<typeof setTimeout> | undefined;

export function model(): string {
  const { models, current } = state;
  return models.includes(current.model) ? current.model : (models[0] ?? "");
}

export async function connect(): Promise<void> {
  clearTimeout(retry);
  try {
    state.models = await api.models();
    state.props = await api.props(model());
    state.trouble = null;
    state.keyWanted = false;
    await lookForTools();
  } catch (error) {
    report(error);
  }
  changed();
}

/** Trouble that concerns the server, not one answer, goes to the top of the page. */
export function report(error: unknown): void {
  if (!(error instanceof api.ServerError)) {
    state.trouble = { title: "This should not happen", message: String(error), facts: [], raw: "" };
    return;
  }
  state.trouble = error.failure;
  state.keyWanted = error.status === 401 || error.status === 403;
  if (error.status === 0 || error.status >= 500) retry = setTimeout(() => void connect(), 4000);
}

export async function choose(name: string): Promise<void> {
  await update(state.current.id, { model: name });
  state.files = state.files.map((file) => ({ ...file, tokens: null }));
  await connect();
  for (const file of state.files) void count(file.name, file.text);
}

export async function addFiles(files: Iterable<File>): Promise<void> {
  for (const file of files) {
    state.reading += 1;
    changed();
    try {
      const attachment = await readFile(file);
      state.files = [...state.files, attachment];
      void count(attachment.name, attachment.text);
    } catch (error) {
      toast((error as Error).message + ".");
    }
    state.reading -= 1;
    changed();
  }
}

async function count(name: string, text: string): Promise<void> {
  try {
    const tokens = await api.countTokens(text, model());
    if (tokens === null) return;
    state.files = state.files.map((file) => (file.name === name && file.text === text ? { ...file, tokens } : file));
  } catch (error) {
    report(error);
  }
  changed();
}

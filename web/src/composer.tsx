import { useEffect, useRef, useState } from "preact/hooks";
import { Icon, IconButton } from "./icons";
import type { Attachment } from "./model";
import { edit, send, stop } from "./run";
import { addFiles } from "./server";
import { changed, path, state } from "./store";

const count = new Intl.NumberFormat("en");

export function Composer({ narrow }: { narrow: boolean }) {
  const [text, setText] = useState("");
  const area = useRef<HTMLTextAreaElement>(null);
  const file = useRef<HTMLInputElement>(null);
  const busy = state.runs.has(state.current.id);
  const ready = !busy && state.reading === 0 && (text.trim() !== "" || state.files.length > 0);
  const go = () => {
    if (!ready) return;
    void send(text.trim(), state.files);
    state.files = [];
    setText("");
    changed();
  };
  useEffect(() => fit(area.current), [text]);
  useEffect(() => {
    if (!narrow) area.current?.focus();
  }, [state.current.id]);

  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        go();
      }}
    >
      <Files />
      <div class="composer-line">
        <IconButton icon="clip" label="Add files" onClick={() => file.current?.click()} />
        <input
          ref={file}
          id="files"
          type="file"
          multiple
          hidden
          onChange={(event) => {
            void addFiles([...(event.currentTarget.files ?? [])]);
            event.currentTarget.value = "";
          }}
        />
        <textarea
          id="prompt"
          ref={area}
          rows={1}
          aria-label="Message"
          placeholder="Ask something"
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
          onPaste={(event) => {
            const files = [...(event.clipboardData?.files ?? [])];
            if (files.length === 0) return;
            event.preventDefault();
            void addFiles(files);
          }}
          onKeyDown={(event) => {
            if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !narrow) {
              event.preventDefault();
              go();
            }
          }}
        />
        {busy ? (
          <IconButton icon="stop" label="Stop" class="primary" onClick={stop} />
        ) : (
          <button type="submit" class="icon-button primary" aria-label="Send" title="Send" disabled={!ready}>
            <Icon name="send" />
          </button>
        )}
      </div>
    </form>
  );
}

function fit(area: HTMLTextAreaElement | null): void {
  if (!area) return;
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

/** What was dropped in, with its tokens, against what the model can hold. */
function Files() {
  const { files, reading, props } = state;
  if (files.length === 0 && reading === 0) return null;
  const known = files.every((file) => file.tokens !== null);
  const total = files.reduce((sum, file) => sum + (file.tokens ?? 0), 0);
  const stats = path().findLast((message) => message.stats?.promptTokens !== undefined)?.stats;
  const before = (stats?.promptTokens ?? 0) + (stats?.newTokens ?? 0);
  const over = props.context !== null && total + before > props.context;
  return (
    <div class="files">
      <ul>
        {files.map((file, i) => (
          <li key={`${file.name} ${i}`}>
            <Chip file={file} />
            <IconButton
              icon="close"
              label={`Remove ${file.name}`}
              onClick={() => {
                state.files = files.filter((_, at) => at !== i);
                changed();
              }}
            />
          </li>
        ))}
        {reading > 0 && <li class="chip-text">Reading a file…</li>}
      </ul>
      {props.context !== null && known && files.length > 0 && (
        <p class={over ? "budget over" : "budget"}>
          {count.format(total)} tokens{before > 0 && `, after ${count.format(before)} so far`}, of {count.format(props.context)}
          {over && ": more than the model can read"}
        </p>
      )}
    </div>
  );
}

export function Chip({ file }: { file: Attachment }) {
  const facts = [file.tokens === null ? "" : `${count.format(file.tokens)} tokens`, file.note].filter(Boolean).join(", ");
  return (
    <span class="chip">
      <Icon name="file" />
      <span class="chip-text">
        <span class="chip-name">{file.name}</span>
        {facts && <span class="chip-facts">{facts}</span>}
      </span>
    </span>
  );
}

/** A message's text in place, to be changed. */
export function Editor({ id, done }: { id: string; done: () => void }) {
  const message = state.thread.byId.get(id)!;
  const [text, setText] = useState(message.content);
  const area = useRef<HTMLTextAreaElement>(null);
  const asked = message.role === "user";
  useEffect(() => fit(area.current), [text]);
  useEffect(() => area.current?.focus(), []);
  const save = () => {
    done();
    void edit(message, text.trim());
  };
  return (
    <div class="editor">
      <textarea
        ref={area}
        aria-label="Text of the message"
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape") done();
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
        }}
      />
      <div class="editor-tools">
        <button type="button" class="quiet" onClick={done}>Cancel</button>
        <button type="button" class="primary" disabled={text.trim() === "" && message.attachments.length === 0} onClick={save}>
          {asked ? "Send again" : "Save as another answer"}
        </button>
      </div>
    </div>
  );
}

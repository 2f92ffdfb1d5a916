import { useEffect, useRef, useState } from "preact/hooks";
import { Icon, IconButton } from "./icons";
import type { Conversation } from "./model";
import { exportAll, find, importFile, newChat, open, remove, state, update } from "./store";

export function Sidebar({ close, narrow }: { close: () => void; narrow: boolean }) {
  const file = useRef<HTMLInputElement>(null);
  const { conversations, found, query } = state;
  const shown = found ? conversations.filter((item) => found.has(item.id)) : conversations;
  const newButton = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    if (narrow) newButton.current?.focus();
  }, []);
  const leave = () => {
    if (narrow) close();
  };
  return (
    <nav class="side" aria-label="Conversations" onKeyDown={(event) => event.key === "Escape" && narrow && close()}>
      <div class="side-top">
        <span class="brand">minicpm4</span>
        <IconButton icon="close" label="Hide the list" expanded={true} onClick={close} />
      </div>
      <button
        type="button"
        class="new"
        ref={newButton}
        onClick={() => {
          newChat();
          leave();
          document.getElementById("prompt")?.focus();
        }}
      >
        <Icon name="plus" /> New chat
      </button>
      <div class="search">
        <Icon name="find" />
        <input
          id="search"
          type="search"
          aria-label="Search conversations"
          placeholder="Search"
          value={query}
          onInput={(event) => void find(event.currentTarget.value)}
        />
      </div>
      {shown.length === 0 ? (
        <p class="none">{query ? "Nothing found." : "No conversations yet. They stay in this browser."}</p>
      ) : (
        <ul class="conversations" tabIndex={-1}>
          {shown.map((item) => (
            <Row key={item.id} conversation={item} leave={leave} />
          ))}
        </ul>
      )}
      <div class="side-end">
        <button type="button" class="quiet" disabled={conversations.length === 0} onClick={() => void exportAll(conversations)}>
          <Icon name="save" /> Export all
        </button>
        <button type="button" class="quiet" onClick={() => file.current?.click()}>
          <Icon name="load" /> Import
        </button>
        <input
          ref={file}
          id="import"
          type="file"
          accept=".json,application/json"
          hidden
          onChange={(event) => {
            const chosen = event.currentTarget.files?.[0];
            if (chosen) void importFile(chosen);
            event.currentTarget.value = "";
          }}
        />
      </div>
    </nav>
  );
}

function Row({ conversation, leave }: { conversation: Conversation; leave: () => void }) {
  const [naming, setNaming] = useState(false);
  const here = conversation.id === state.current.id;
  const rename = (title: string) => {
    setNaming(false);
    if (title.trim()) void update(conversation.id, { title: title.trim().slice(0, 200) });
  };
  if (naming) {
    return (
      <li class="row here">
        <input
          class="name"
          aria-label="Name of the conversation"
          defaultValue={conversation.title}
          ref={(input) => {
            if (input && document.activeElement !== input) input.select();
          }}
          onBlur={(event) => rename(event.currentTarget.value)}
          onKeyDown={(event) => {
            event.stopPropagation();
            if (event.key === "Enter") rename(event.currentTarget.value);
            if (event.key === "Escape") setNaming(false);
          }}
        />
      </li>
    );
  }
  return (
    <li class={here ? "row here" : "row"}>
      <button
        type="button"
        class="row-open"
        aria-current={here ? "page" : undefined}
        title={conversation.title}
        onClick={() => {
          void open(conversation.id);
          leave();
        }}
      >
        {state.runs.has(conversation.id) && <span class="dot" role="img" aria-label="being answered" />}
        {conversation.title}
      </button>
      <span class="row-tools">
        <IconButton icon="pen" label={`Rename “${conversation.title}”`} onClick={() => setNaming(true)} />
        <IconButton icon="save" label={`Export “${conversation.title}”`} onClick={() => void exportAll([conversation])} />
        <IconButton icon="bin" label={`Delete “${conversation.title}”`} onClick={() => void remove(conversation)} />
      </span>
    </li>
  );
}

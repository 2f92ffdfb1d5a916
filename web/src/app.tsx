import { useEffect, useState } from "preact/hooks";
import { Composer } from "./composer";
import { Icon, IconButton } from "./icons";
import { Messages } from "./messages";
import { QuestionDialog } from "./question";
import { SettingsDialog } from "./settings";
import { Sidebar } from "./sidebar";
import { stop } from "./run";
import { addFiles, choose, connect, model } from "./server";
import { dismiss, newChat, state, subscribe } from "./store";
import { isDark, switchTheme } from "./theme";
import { ToolsDialog } from "./tools-view";
import { FailureView, KeyForm } from "./trouble";

const NARROW = matchMedia("(max-width: 800px)");

export function App() {
  const [, look] = useState(0);
  const [narrow, setNarrow] = useState(NARROW.matches);
  const [side, setSide] = useState(!NARROW.matches);
  const [settings, setSettings] = useState(false);
  const [tools, setTools] = useState(false);
  const again = () => look((count) => count + 1);
  useEffect(() => subscribe(again), []);
  useEffect(() => {
    const resized = () => {
      setNarrow(NARROW.matches);
      setSide(!NARROW.matches);
    };
    NARROW.addEventListener("change", resized);
    return () => NARROW.removeEventListener("change", resized);
  }, []);
  useKeys(() => setSide(true));
  const dragging = useDrop();
  const covered = narrow && side;
  const hide = () => {
    setSide(false);
    requestAnimationFrame(() => document.querySelector<HTMLElement>(".top .icon-button")?.focus());
  };
  const title = state.current.title || "New chat";
  useEffect(() => {
    document.title = `${title} · minicpm4`;
  }, [title]);

  return (
    <div class={`page ${side ? "with-side" : ""}`}>
      {side && <Sidebar close={hide} narrow={narrow} />}
      {covered && <button type="button" class="shade" aria-label="Close the list" onClick={hide} />}
      <main inert={covered}>
        <header class="top">
          {!side && <IconButton icon="menu" label="Conversations" expanded={false} onClick={() => setSide(true)} />}
          <h1 title={title}>{title}</h1>
          <ModelPicker />
          <IconButton icon="plus" label="New chat" class="narrow-only" onClick={newChat} />
          {state.tools && (
            <IconButton icon="tool" label="Tools" class={state.useTools ? "on" : ""} onClick={() => setTools(true)} />
          )}
          <IconButton icon="sliders" label="Settings" onClick={() => setSettings(true)} />
          <IconButton
            icon={isDark() ? "sun" : "moon"}
            label={isDark() ? "Light colours" : "Dark colours"}
            onClick={() => {
              switchTheme();
              again();
            }}
          />
        </header>
        {state.trouble && (
          <div class="banner">
            <FailureView failure={state.trouble} />
            {state.keyWanted ? <KeyForm /> : <button type="button" onClick={() => void connect()}>Try again</button>}
          </div>
        )}
        <Messages />
        <Composer narrow={narrow} />
      </main>
      <ToolsDialog open={tools} close={() => setTools(false)} />
      <QuestionDialog />
      <SettingsDialog open={settings} close={() => setSettings(false)} />
      <div class="toasts" role="status">
        {state.toasts.map((toast) => (
          <div class="toast" key={toast.id}>
            <span>{toast.text}</span>
            {toast.action && (
              <button
                type="button"
                class="quiet"
                onClick={() => {
                  toast.action!.run();
                  dismiss(toast.id);
                }}
              >
                {toast.action.label}
              </button>
            )}
            <IconButton icon="close" label="Dismiss" onClick={() => dismiss(toast.id)} />
          </div>
        ))}
      </div>
      <div class="unseen" role="status">{state.status}</div>
      {dragging && (
        <div class="drop" aria-hidden="true">
          <Icon name="file" /> Drop text, Markdown or PDF files here
        </div>
      )}
    </div>
  );
}

function ModelPicker() {
  if (state.models.length === 0) return null;
  return (
    <select class="models" aria-label="Model" value={model()} onChange={(event) => void choose(event.currentTarget.value)}>
      {state.models.map((name) => (
        <option key={name} value={name}>{name}</option>
      ))}
    </select>
  );
}

/** Escape stops an answer, Ctrl+K searches, Ctrl+Shift+O begins a new chat. */
function useKeys(showList: () => void): void {
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      const control = event.ctrlKey || event.metaKey;
      if (event.key === "Escape" && !document.querySelector("dialog[open], .editor, #search:focus")) stop();
      else if (control && event.key.toLowerCase() === "k") {
        event.preventDefault();
        showList();
        requestAnimationFrame(() => document.getElementById("search")?.focus());
      } else if (control && event.shiftKey && event.key.toLowerCase() === "o") {
        event.preventDefault();
        newChat();
        document.getElementById("prompt")?.focus();
      }
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

/** Files dropped anywhere on the page. */
function useDrop(): boolean {
  const [dragging, setDragging] = useState(false);
  useEffect(() => {
    const holdsFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
    const over = (event: DragEvent) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      setDragging(true);
    };
    const leave = (event: DragEvent) => {
      if (event.relatedTarget === null) setDragging(false);
    };
    const drop = (event: DragEvent) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      setDragging(false);
      void addFiles([...(event.dataTransfer?.files ?? [])]);
    };
    addEventListener("dragover", over);
    addEventListener("dragleave", leave);
    addEventListener("drop", drop);
    return () => {
      removeEventListener("dragover", over);
      removeEventListener("dragleave", leave);
      removeEventListener("drop", drop);
    };
  }, []);
  return dragging;
}

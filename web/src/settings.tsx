import { useEffect, useRef, useState } from "preact/hooks";
import { apiKey } from "./api";
import { IconButton } from "./icons";
import type { SamplingKey, Settings } from "./model";
import { EMPTY_SETTINGS } from "./model";
import { state, update } from "./store";
import { KeyForm } from "./trouble";

interface Field {
  key: SamplingKey;
  label: string;
  help: string;
  min: number;
  max: number;
  step: number | "any";
}

const FIELDS: Field[] = [
  { key: "temperature", label: "Temperature", help: "0 always takes the likeliest token", min: 0, max: 100, step: "any" },
  { key: "top_p", label: "Top p", help: "Likeliest tokens that together have this share", min: 0, max: 1, step: "any" },
  { key: "top_k", label: "Top k", help: "So many likeliest tokens; 0 for all", min: 0, max: 1_000_000, step: 1 },
  { key: "min_p", label: "Min p", help: "Least share of the likeliest token's probability", min: 0, max: 1, step: "any" },
  { key: "max_tokens", label: "Max tokens", help: "Longest answer", min: 1, max: 10_000_000, step: 1 },
  { key: "seed", label: "Seed", help: "The same seed gives the same answer", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
];

/** What holds for this conversation, and for new ones after it. An empty field leaves it to the server. */
export function SettingsDialog({ open, close }: { open: boolean; close: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (open) dialog.current?.showModal();
    else dialog.current?.close();
  }, [open]);
  const [cleared, setCleared] = useState(0); // fields are filled in once, so that half a number is left alone
  const { settings } = state.current;
  // From what is kept, not from what was drawn: several fields may change before the next frame.
  const set = (fields: Partial<Settings>) => void update(state.current.id, { settings: { ...state.current.settings, ...fields } });
  return (
    <dialog ref={dialog} class="settings" aria-labelledby="settings-title" onClose={close} onClick={(event) => event.target === dialog.current && close()}>
      {open && (
        <div class="settings-inner">
          <div class="settings-top">
            <h2 id="settings-title">Settings</h2>
            <IconButton icon="close" label="Close the settings" onClick={close} />
          </div>
          <p class="help">For this conversation and those begun after it. Empty fields leave it to the server.</p>
          <label class="field">
            System prompt
            <textarea rows={4} value={settings.system} onInput={(event) => set({ system: event.currentTarget.value })} />
          </label>
          <div class="grid">
            {FIELDS.map((field) => <NumberField key={`${field.key} ${cleared}`} field={field} settings={settings} set={set} />)}
          </div>
          <Choice
            label="Thinking"
            value={settings.thinking}
            options={[["default", "As the model does"], ["on", "On"], ["off", "Off"]]}
            set={(thinking) => set({ thinking: thinking as Settings["thinking"] })}
          />
          {state.props.attentions.length > 0 && (
            <Choice
              label="Attention"
              value={settings.attention}
              options={[["", `As the server does${state.props.attention ? ` (${state.props.attention})` : ""}`], ...state.props.attentions.map((name): [string, string] => [name, name])]}
              set={(attention) => set({ attention })}
            />
          )}
          {(state.keyWanted || apiKey()) && <KeyForm />}
          <div class="settings-end">
            <button type="button" class="quiet" onClick={() => { set(EMPTY_SETTINGS); setCleared(cleared + 1); }}>Back to the server's settings</button>
            {state.props.context !== null && <span class="help">Context: {state.props.context.toLocaleString("en")} tokens</span>}
          </div>
          {state.props.description && <p class="help">{state.props.description}</p>}
          <p class="help">
            Made with other people's work: <a href="THIRD_PARTY.txt">licences</a>
          </p>
          <dl class="keys">
            <div><dt><kbd>Enter</kbd></dt><dd>send</dd></div>
            <div><dt><kbd>Shift</kbd> <kbd>Enter</kbd></dt><dd>new line</dd></div>
            <div><dt><kbd>Esc</kbd></dt><dd>stop</dd></div>
            <div><dt><kbd>Ctrl</kbd> <kbd>K</kbd></dt><dd>search</dd></div>
            <div><dt><kbd>Ctrl</kbd> <kbd>Shift</kbd> <kbd>O</kbd></dt><dd>new chat</dd></div>
          </dl>
        </div>
      )}
    </dialog>
  );
}

function NumberField({ field, settings, set }: { field: Field; settings: Settings; set: (fields: Partial<Settings>) => void }) {
  const { key, label, help, min, max, step } = field;
  const usual = state.props.sampling[key];
  return (
    <label class="field">
      {label}
      <input
        type="number"
        min={min}
        max={max}
        step={step}
        name={key}
        defaultValue={settings.sampling[key] ?? ""}
        placeholder={usual === undefined ? "" : String(usual)}
        aria-describedby={`help-${key}`}
        onBlur={(event) => event.currentTarget.reportValidity()}
        onInput={(event) => {
          const input = event.currentTarget;
          if (!input.checkValidity()) return;
          set({ sampling: { ...state.current.settings.sampling, [key]: input.value === "" ? null : input.valueAsNumber } });
        }}
      />
      <span class="help" id={`help-${key}`}>{help}</span>
    </label>
  );
}

interface ChoiceProps {
  label: string;
  value: string;
  options: [string, string][];
  set: (value: string) => void;
}

function Choice({ label, value, options, set }: ChoiceProps) {
  return (
    <label class="field">
      {label}
      <select value={value} onChange={(event) => set(event.currentTarget.value)}>
        {options.map(([key, words]) => <option key={key} value={key}>{words}</option>)}
      </select>
    </label>
  );
}

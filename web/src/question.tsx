import { useEffect, useRef, useState } from "preact/hooks";
import { chosen, typed } from "./fields";
import type { FormField, Question, Reply } from "./tools";
import { state } from "./store";

/** What wants to run, or what a server asks. Nothing runs by Enter or Escape: those are a no. */
export function QuestionDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const asked = state.question;
  const id = asked?.question.id;
  useEffect(() => {
    if (!id) return;
    dialog.current?.showModal();
    return () => dialog.current?.close();
  }, [id]);
  if (!asked) return null;
  const { question, answer } = asked;
  const refused: Reply = question.kind === "form" ? { values: null } : { consent: "no" };
  return (
    <dialog
      ref={dialog}
      class="question"
      aria-labelledby="question-title"
      onCancel={(event) => {
        event.preventDefault();
        answer(refused);
      }}
    >
      {question.kind === "form" ? (
        <Form key={id} question={question} answer={answer} />
      ) : (
        <May key={id} question={question} answer={answer} />
      )}
    </dialog>
  );
}

function May({ question, answer }: { question: Question; answer: (reply: Reply) => void }) {
  const { kind, server, tool, details = [], changed = [], warnings = [] } = question;
  return (
    <div class="question-inner">
      <h2 id="question-title">{kind === "start" ? "May this server start?" : "May this tool be called?"}</h2>
      <dl class="facts">
        <div><dt>Server</dt><dd><code>{server}</code></dd></div>
        {tool && <div><dt>Tool</dt><dd><code>{tool}</code></dd></div>}
        {details.map(([name, told]) => (
          <div key={name}><dt>{name}</dt><dd>{told}</dd></div>
        ))}
      </dl>
      {kind === "call" && (
        <>
          <h3>Arguments</h3>
          <pre tabIndex={0} role="group" aria-label="Arguments">{question.arguments}</pre>
        </>
      )}
      {changed.length > 0 && (
        <div class="failure" role="alert">
          <strong>It is not as it was when you allowed it</strong>
          <ul>{changed.map((one) => <li key={one}>{one}</li>)}</ul>
        </div>
      )}
      {warnings.map((one) => <p class="warning" key={one}>{one}</p>)}
      <div class="question-end">
        <button type="button" autofocus onClick={() => answer({ consent: "no" })}>No</button>
        <span class="allow">
          <button type="button" onClick={() => answer({ consent: "always" })}>Always</button>
          <button type="button" onClick={() => answer({ consent: "session" })}>This session</button>
          <button type="button" class="primary" onClick={() => answer({ consent: "once" })}>Once</button>
        </span>
      </div>
      <p class="help">
        {kind === "start"
          ? "A server runs with your rights. Always and this session hold for the same command only."
          : "Always and this session hold for this tool as it is now, with any arguments."}
      </p>
    </div>
  );
}

function Form({ question, answer }: { question: Question; answer: (reply: Reply) => void }) {
  const fields = question.fields ?? [];
  const [values, setValues] = useState<Record<string, unknown>>(() =>
    Object.fromEntries(fields.filter((one) => one.default !== null).map((one) => [one.name, one.default])),
  );
  return (
    <form
      class="question-inner"
      onSubmit={(event) => {
        event.preventDefault();
        answer({ values });
      }}
    >
      <h2 id="question-title">A server asks you</h2>
      <dl class="facts">
        <div><dt>Server</dt><dd><code>{question.server}</code></dd></div>
        <div><dt>Tool</dt><dd><code>{question.tool}</code></dd></div>
      </dl>
      <p class="plain">{question.message}</p>
      {question.url && <p class="warning">It wants this page opened: <code>{question.url}</code>. Nothing opens it by itself.</p>}
      {fields.map((field) => (
        <FieldView key={field.name} field={field} value={values[field.name]} set={(value) => setValues({ ...values, [field.name]: value })} />
      ))}
      <div class="question-end">
        <button type="button" autofocus onClick={() => answer({ values: null })}>Rather not</button>
        <button type="submit" class="primary">Tell the server</button>
      </div>
    </form>
  );
}

function FieldView({ field, value, set }: { field: FormField; value: unknown; set: (value: unknown) => void }) {
  const { kind, told, choices, required } = field;
  const number = kind === "number" || kind === "integer";
  if (kind === "boolean") {
    return (
      <label class="check">
        <input type="checkbox" checked={value === true} onChange={(event) => set(event.currentTarget.checked)} /> {told}
      </label>
    );
  }
  if (choices.length > 0) {
    return (
      <label class="field">
        {told}
        <select
          required={required}
          multiple={kind === "array"}
          onChange={(event) => set(chosen(field, [...event.currentTarget.selectedOptions].map((one) => one.value)))}
        >
          {kind !== "array" && <option value="">—</option>}
          {choices.map(([choice, shown], i) => (
            <option key={choice} value={i} selected={kind === "array" ? Array.isArray(value) && value.includes(choice) : value === choice}>{shown}</option>
          ))}
        </select>
      </label>
    );
  }
  return (
    <label class="field">
      {told}
      <input
        type="text"
        inputMode={number ? "decimal" : "text"}
        pattern={kind === "integer" ? "-?[0-9]+" : number ? "-?[0-9]+(\\.[0-9]+)?" : undefined}
        required={required}
        defaultValue={value === undefined ? "" : String(value)}
        onInput={(event) => set(typed(field, event.currentTarget.value))}
      />
    </label>
  );
}

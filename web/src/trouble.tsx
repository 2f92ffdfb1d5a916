import { useState } from "preact/hooks";
import { apiKey, setApiKey } from "./api";
import type { Failure } from "./model";
import { connect } from "./server";

/** An error, whole: title, message, the other fields of the server's answer. */
export function FailureView({ failure }: { failure: Failure }) {
  return (
    <div class="failure" role="alert">
      <strong>{failure.title}</strong>
      {failure.message !== failure.title && <p>{failure.message}</p>}
      {failure.facts.length > 0 && (
        <dl>
          {failure.facts.map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
        </dl>
      )}
    </div>
  );
}

export function KeyForm() {
  const [key, setKey] = useState(apiKey());
  return (
    <form
      class="key"
      onSubmit={(event) => {
        event.preventDefault();
        setApiKey(key.trim());
        void connect();
      }}
    >
      <label>
        API key
        <input type="password" autocomplete="off" value={key} onInput={(event) => setKey(event.currentTarget.value)} />
      </label>
      <button type="submit">Use this key</button>
    </form>
  );
}

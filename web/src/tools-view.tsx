import { useEffect, useRef, useState } from "preact/hooks";
import { IconButton } from "./icons";
import { changed, state, toast } from "./store";
import { startServers, useTools } from "./tools";

/** Servers and their tools: which there are, whether the model is offered them, whether calls are carried out. */
export function ToolsDialog({ open, close }: { open: boolean; close: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    if (open) dialog.current?.showModal();
    else dialog.current?.close();
  }, [open]);
  const { tools } = state;
  const begin = async () => {
    setBusy(true);
    try {
      const result = await startServers();
      if (result.failed) toast(result.text);
      else useTools(true);
    } catch (error) {
      toast(String(error instanceof Error ? error.message : error));
    }
    setBusy(false);
  };
  return (
    <dialog ref={dialog} class="settings" aria-labelledby="tools-title" onClose={close} onClick={(event) => event.target === dialog.current && close()}>
      {open && tools && (
        <div class="settings-inner">
          <div class="settings-top">
            <h2 id="tools-title">Tools</h2>
            <IconButton icon="close" label="Close the tools" onClick={close} />
          </div>
          <p class="help">Programs that a model may call. Nothing starts and nothing is called unless you have said so.</p>
          <label class="check">
            <input type="checkbox" checked={state.useTools} disabled={!tools.begun} onChange={(event) => useTools(event.currentTarget.checked)} />
            Offer the tools to the model
          </label>
          <label class="check">
            <input
              type="checkbox"
              checked={state.dryRun}
              onChange={(event) => {
                state.dryRun = event.currentTarget.checked;
                changed();
              }}
            />
            Dry run: show what would be called, and call nothing
          </label>
          <h3>Servers</h3>
          <ul class="rows">
            {tools.servers.map((server) => (
              <li key={server.name}>
                <strong>{server.name}</strong> <span class="help">{server.state}{server.tools > 0 && `, ${counted(server.tools)}`}</span>
                <div class="help at">{server.at}</div>
                {server.why && <p class="warning">{server.why}</p>}
              </li>
            ))}
          </ul>
          <div>
            <button type="button" disabled={busy} onClick={() => void begin()}>
              {tools.begun ? "Look at the servers again" : "Start the servers"}
            </button>
          </div>
          {tools.notes.map((note) => <p class="warning" key={note}>{note}</p>)}
          {tools.tools.length > 0 && <h3>{counted(tools.tools.length)}</h3>}
          <ul class="rows">
            {tools.tools.map((tool) => (
              <li key={tool.called}>
                <code>{tool.name}</code> <span class="help">{tool.allowed ? "allowed" : "asks"}</span>
                <div class="help">{tool.says}</div>
              </li>
            ))}
          </ul>
        </div>
      )}
    </dialog>
  );
}

function counted(count: number): string {
  return count === 1 ? "1 tool" : `${count} tools`;
}

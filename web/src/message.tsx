import { Component } from "preact";
import { Chip, Editor } from "./composer";
import { Icon, IconButton } from "./icons";
import { MarkdownView } from "./markdown-view";
import { copyText } from "./markdown";
import type { CallResult, Message, Stats, ToolCall } from "./model";
import { regenerate } from "./run";
import { choose, say, state } from "./store";
import { visible } from "./tools";
import { FailureView } from "./trouble";

interface Props {
  message: Message;
  at: number; // its place among its siblings
  of: number; // how many siblings
  busy: boolean; // an answer is being written in this conversation
  pieces: number; // that came so far, if it is this one; -1 otherwise
  near: boolean; // whether it is laid out; until then it is its plain text
}

export class MessageView extends Component<Props, { editing: boolean }> {
  override state = { editing: false };

  override shouldComponentUpdate(next: Props, state: typeof this.state): boolean {
    const keys = Object.keys(next) as (keyof Props)[];
    return state.editing !== this.state.editing || keys.some((key) => next[key] !== this.props[key]);
  }

  render() {
    const { message, busy, near } = this.props;
    const asked = message.role === "user";
    return (
      <div class={`message ${message.role}`} role="listitem">
        <article aria-label={asked ? "You" : `Answer${message.model ? ` of ${message.model}` : ""}`} aria-busy={message.state === "writing"}>
          {message.attachments.length > 0 && (
            <div class="attachments">
              {message.attachments.map((file, i) => (
                <details key={i} class="attachment">
                  <summary><Chip file={file} /></summary>
                  <pre tabIndex={0} role="group" aria-label={`Text of ${file.name}`}>{file.text}</pre>
                </details>
              ))}
            </div>
          )}
          {this.state.editing ? (
            <Editor id={message.id} done={() => this.setState({ editing: false })} />
          ) : asked ? (
            message.content && <div class="plain">{message.content}</div>
          ) : (
            <Answer message={message} near={near} />
          )}
          {!this.state.editing && message.state !== "writing" && this.tools(message, asked, busy)}
        </article>
      </div>
    );
  }

  private tools(message: Message, asked: boolean, busy: boolean) {
    return (
      <footer class="message-end">
        <Branches {...this.props} />
        <span class="message-tools">
          <IconButton
            icon="copy"
            label="Copy the text"
            onClick={() => void copyText(message.content).then((done) => say(done ? "Copied." : "The browser does not allow copying."))}
          />
          <IconButton icon="pen" label="Edit" disabled={busy} onClick={() => this.setState({ editing: true })} />
          {!asked && <IconButton icon="again" label="Answer again" disabled={busy} onClick={() => void regenerate(message)} />}
        </span>
        {!asked && <Figures message={message} />}
      </footer>
    );
  }
}

function Branches({ message, at, of, busy }: Props) {
  if (of < 2) return null;
  const show = (step: number) => {
    const id = state.thread.siblings(message)[at + step];
    if (id) choose(message, id);
  };
  return (
    <span class="branches" role="group" aria-label="Versions">
      <IconButton icon="left" label="The version before" disabled={busy || at === 0} onClick={() => show(-1)} />
      <span>{at + 1} of {of}</span>
      <IconButton icon="right" label="The next version" disabled={busy || at === of - 1} onClick={() => show(1)} />
    </span>
  );
}

function Answer({ message, near }: { message: Message; near: boolean }) {
  const writing = message.state === "writing";
  const thinking = writing && message.content === "" && message.toolCalls.length === 0;
  return (
    <>
      {message.reasoning && (
        <details class="reasoning">
          <summary>{thinking ? "Thinking…" : "Reasoning"}</summary>
          <MarkdownView text={message.reasoning} live={writing} />
        </details>
      )}
      {message.content && (near ? <MarkdownView text={message.content} live={writing} /> : <div class="plain">{message.content}</div>)}
      {message.toolCalls.map((call, i) => (
        <Called key={i} call={call} result={message.results?.[call.id]} />
      ))}
      {thinking && !message.reasoning && <Prefill message={message} />}
      {writing && <Speed />}
      {message.failure && <FailureView failure={message.failure} />}
      {message.state === "stopped" && <p class="aside">Stopped.</p>}
      {message.finish === "length" && <p class="aside">Cut off: the most tokens allowed were reached. “Max tokens” in the settings raises it.</p>}
      {message.state === "done" && !message.content && message.toolCalls.length === 0 && !message.reasoning && <p class="aside">The answer is empty.</p>}
    </>
  );
}

/** A call, and what came of it. */
function Called({ call, result }: { call: ToolCall; result: CallResult | undefined }) {
  const became = !result ? "not run" : result.denied ? "refused" : result.failed ? "failed" : "done";
  return (
    <details class={`tool ${became}`} open>
      <summary><Icon name="tool" /> Call of {visible(call.name) || "a tool"}, {became}</summary>
      <pre tabIndex={0} role="group" aria-label={`Arguments of ${call.name}`}>{visible(pretty(call.arguments))}</pre>
      {result && <pre class="result" tabIndex={0} role="group" aria-label={`What ${call.name} said`}>{result.text}</pre>}
      {result?.notes.map((note) => <p class="aside" key={note}>{note}</p>)}
    </details>
  );
}

function pretty(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const rough = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });

/** How far the prompt is read: a full bar where the server tells, a moving one where it does not. */
function Prefill({ message }: { message: Message }) {
  const progress = state.runs.get(message.conversation)?.progress;
  const attached = state.thread.byId.get(message.parent)?.attachments.reduce((sum, file) => sum + (file.tokens ?? 0), 0) ?? 0;
  const label = progress
    ? `Reading the prompt: ${whole.format(progress.done)} of ${whole.format(progress.total)} tokens`
    : attached > 0 ? `Reading the prompt, over ${whole.format(attached)} tokens` : "Reading the prompt";
  return (
    <div class="prefill">
      <span>{label}…</span>
      <progress aria-label={label} {...(progress ? { max: progress.total, value: progress.done } : {})} />
    </div>
  );
}

function Speed() {
  const run = state.runs.get(state.current.id);
  if (!run || run.first === null || run.pieces < 2) return null;
  const seconds = (performance.now() - run.first) / 1000;
  return <p class="figures">about {short.format((run.pieces - 1) / seconds)} tokens/s</p>;
}

function Figures({ message }: { message: Message }) {
  const words = message.stats ? figures(message.stats) : [];
  if (message.model) words.push(message.model);
  return <span class="figures">{words.map((word) => <span key={word}>{word}</span>)}</span>;
}

function figures(stats: Stats): string[] {
  const words: string[] = [];
  if (stats.speed !== undefined) words.push(`${short.format(stats.speed)} tokens/s`);
  if (stats.newTokens !== undefined) words.push(`${whole.format(stats.newTokens)} tokens`);
  if (stats.promptTokens !== undefined) {
    const cached = stats.cachedTokens === undefined ? "" : `, ${whole.format(stats.cachedTokens)} cached`;
    const speed = stats.prefillSpeed === undefined ? "" : `, read at ${short.format(stats.prefillSpeed)}/s`;
    words.push(`prompt ${whole.format(stats.promptTokens)}${cached}${speed}`);
  }
  if (stats.blocksRead !== undefined && stats.attention !== "dense") words.push(`${whole.format(stats.blocksRead * 100)}% of blocks read`);
  if (stats.attention === "dense") words.push("dense");
  if (stats.draftTokens) words.push(`${whole.format(stats.draftAccepted ?? 0)} of ${whole.format(stats.draftTokens)} drafts`);
  if (stats.acceptLength !== undefined && stats.acceptLength > 1) words.push(`${short.format(stats.acceptLength)} tokens a pass`);
  if (stats.firstToken !== undefined) words.push(`first after ${rough.format(stats.firstToken)} s`);
  return words;
}

import { Component, createRef } from "preact";
import { MessageView } from "./message";
import type { Message } from "./model";
import { state, type Run } from "./store";

export const GROUP = 10; // messages
const A_FRAME = 2; // messages that are laid out in one frame

interface Props {
  messages: Message[];
  run: Run | undefined;
  early: boolean; // near the end: laid out at once
}

// Groups whose messages are still plain, and what to do when one comes near the view.
const waiting = new Map<Element, () => void>();
const observer = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) if (entry.isIntersecting) waiting.get(entry.target)?.();
  },
  { rootMargin: "2500px 0px" },
);

/**
 * A few messages, as one thing that the browser may leave out while it is far from the view. Until it first comes near,
 * its messages are their plain text, which the browser's own search finds; then they are laid out, the last one first.
 */
export class Group extends Component<Props, { laid: number }> {
  override state = { laid: this.props.early ? Infinity : 0 };
  private readonly node = createRef<HTMLDivElement>();

  override componentDidMount(): void {
    if (this.state.laid > 0) return;
    waiting.set(this.node.current!, () => {
      this.leave();
      this.advance();
    });
    observer.observe(this.node.current!);
  }

  override componentWillUnmount(): void {
    this.leave();
  }

  private leave(): void {
    if (!this.node.current) return;
    observer.unobserve(this.node.current);
    waiting.delete(this.node.current);
  }

  private advance(): void {
    const laid = this.state.laid + A_FRAME;
    this.setState({ laid: laid < GROUP ? laid : Infinity });
    if (laid < GROUP) requestAnimationFrame(() => this.advance());
  }

  render({ messages, run }: Props) {
    return (
      <div class="group" role="presentation" ref={this.node}>
        {messages.map((message, i) => {
          const siblings = state.thread.siblings(message);
          return (
            <MessageView
              key={message.id}
              message={message}
              at={siblings.indexOf(message.id)}
              of={siblings.length}
              busy={run !== undefined}
              pieces={run?.message.id === message.id ? run.pieces + (run.progress?.done ?? 0) : -1}
              near={messages.length - i <= this.state.laid}
            />
          );
        })}
      </div>
    );
  }
}

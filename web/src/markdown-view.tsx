import { Component, createRef } from "preact";
import type { Token } from "marked";
import { blocksOf, nodesOf } from "./markdown";

/**
 * A text as it grows. Blocks that are complete keep their nodes and are not read again: while a text is written only
 * what follows the last complete one is. Once it is whole it is read as a whole, links by reference included.
 */
export class MarkdownView extends Component<{ text: string; live: boolean }> {
  private text = "";
  private complete: Token[] = [];
  private offset = 0; // characters of the complete blocks

  override shouldComponentUpdate(next: { text: string; live: boolean }): boolean {
    return next.text !== this.props.text || next.live !== this.props.live;
  }

  private read({ text, live }: { text: string; live: boolean }): Token[] {
    if (!live || !text.startsWith(this.text)) {
      this.complete = [];
      this.offset = 0;
    }
    this.text = text;
    const rest = blocksOf(text.slice(this.offset));
    // Whatever comes, it can change the last block only: make a list longer, a paragraph a heading.
    const last = rest.findLastIndex((token) => token.type !== "space");
    if (live && !text.includes("\r")) {
      for (const token of rest.slice(0, Math.max(last, 0))) {
        this.complete.push(token);
        this.offset += token.raw.length;
      }
      return [...this.complete, ...rest.slice(Math.max(last, 0))].filter(isShown);
    }
    return rest.filter(isShown);
  }

  render() {
    return (
      <div class="markdown">
        {this.read(this.props).map((token, i) => (
          <Block key={i} token={token} />
        ))}
      </div>
    );
  }
}

function isShown(token: Token): boolean {
  return token.type !== "space" && token.type !== "def";
}

class Block extends Component<{ token: Token }> {
  private readonly node = createRef<HTMLDivElement>();

  override shouldComponentUpdate(next: { token: Token }): boolean {
    // Not through a new render: what is inside is not preact's.
    if (next.token !== this.props.token && next.token.raw !== this.props.token.raw) this.fill(next.token);
    return false;
  }

  override componentDidMount(): void {
    this.fill(this.props.token);
  }

  private fill(token: Token): void {
    this.node.current!.replaceChildren(nodesOf(token));
  }

  render() {
    return <div ref={this.node} />;
  }
}

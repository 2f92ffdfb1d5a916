import { useEffect, useRef, useState } from "preact/hooks";
import { IconButton } from "./icons";
import { GROUP, Group } from "./group";
import type { Message } from "./model";
import { path, state } from "./store";

const NEAR = 48; // pixels from the end that still count as the end

/** The messages from the first to the last. The view stays at the end while it is there. */
export function Messages() {
  const scroller = useRef<HTMLDivElement>(null);
  const list = useRef<HTMLDivElement>(null);
  const following = useRef(true);
  const [away, setAway] = useState(false);
  const messages = path();
  const run = state.runs.get(state.current.id);
  const toEnd = (behavior: ScrollBehavior = "instant") => {
    following.current = true;
    scroller.current?.scrollTo({ top: scroller.current.scrollHeight, behavior });
  };
  useEffect(() => toEnd(), [state.current.id, run?.message.id]);
  useEffect(() => {
    const observer = new ResizeObserver(() => following.current && toEnd());
    if (list.current) observer.observe(list.current);
    return () => observer.disconnect();
  }, [messages.length === 0]);
  const scrolled = () => {
    const { scrollTop, scrollHeight, clientHeight } = scroller.current!;
    following.current = scrollHeight - scrollTop - clientHeight < NEAR;
    setAway(!following.current);
  };

  if (messages.length === 0) {
    return (
      <div class="welcome">
        <h2>Ask, or drop a file in</h2>
        <p>The model runs behind this page, on the machine that serves it. Conversations stay in this browser.</p>
      </div>
    );
  }
  return (
    <div class="scroll-area">
      <div class="scroller" ref={scroller} onScroll={scrolled} tabIndex={0} role="region" aria-label="Messages">
        <div class="messages" role="list" ref={list}>
          {groupsOf(messages).map((group, i, all) => (
            <Group key={i} messages={group} run={run} early={i >= all.length - 1} />
          ))}
        </div>
      </div>
      {away && <IconButton icon="down" label="To the end" class="to-end" onClick={() => toEnd("smooth")} />}
    </div>
  );
}

function groupsOf(messages: Message[]): Message[][] {
  const groups = [];
  for (let at = 0; at < messages.length; at += GROUP) groups.push(messages.slice(at, at + GROUP));
  return groups;
}

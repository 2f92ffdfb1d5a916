"""How the page shows what it shows: hostile Markdown, colours, widths, length, for every reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.browser import AXE, Visit, browser, visit
from tests.serve.standin import Event, Script, Server

pytestmark = pytest.mark.browser
__all__ = ["browser", "visit"]
Visits = Callable[..., Visit]

MANY = 1000
RICH = r"""
# Heading

Text with **bold**, `code`, a [link](https://example.org) and $e^{i\pi} = -1$.

$$\int_0^1 x^2\,dx = \frac{1}{3}$$

```python
def f(x): return x + 1  # comment
```

| a | b |
|--:|---|
| 1 | 2 |

- [x] done
"""
HOSTILE = """
<script>document.title = "taken"</script>
<img src="https://example.org/leak?x" onerror="document.title = 'taken'">
<a href="javascript:document.title = 'taken'">press</a>
<div style="position:fixed" class="shade" id="app" onclick="document.title = 'taken'">over all</div>
<iframe src="https://example.org"></iframe><form action="https://example.org"><input name="x"></form>
<svg><style>* { display: none }</style></svg><math><mtext><script>alert(1)</script></mtext></math>

![picture](https://example.org/leak.png) [data](data:text/html,x) $\\href{javascript:alert(1)}{x}$
"""


def says(text: str, size: int = 7) -> Script:
    """Answers with this text, in pieces of so many characters."""

    def script(asked: str) -> Iterator[Event]:
        for at in range(0, len(text), size):
            yield {"content": text[at : at + size]}

    return script


def test_markdown_with_code_and_formulas(visit: Visits) -> None:
    one = visit(says(RICH))
    one.ask("Show")
    shown = one.page.locator(".markdown")
    assert shown.locator("h1").inner_text() == "Heading"
    assert shown.locator("math").count() == 2 and shown.locator("math mfrac").count() == 1
    assert shown.locator(".hljs-keyword").first.inner_text() == "def"
    assert shown.locator("td").first.evaluate("cell => getComputedStyle(cell).textAlign") == "right"
    link = shown.locator("a")
    assert link.get_attribute("target") == "_blank" and "noopener" in link.get_attribute("rel")
    assert "☑ done" in shown.inner_text()


def test_formulas_keep_their_columns_colours_and_lines(visit: Visits) -> None:
    display = r"$$\begin{cases} x & x > 0 \\ 0 & \color{red}{y} \end{cases}$$"
    one = visit(says(display + r" and \(\cancel{z}\) but $\foo{x}$"))
    one.ask("Show")
    shown = one.page.locator(".markdown")
    assert (
        shown.locator("mtd.tml-left")
        .first.evaluate("cell => getComputedStyle(cell).textAlign")
        .endswith("left")
    )
    assert (
        shown.locator("[style*=color]").first.evaluate("part => getComputedStyle(part).color")
        == "rgb(255, 0, 0)"
    )
    assert (
        shown.locator(".upstrike").evaluate("line => getComputedStyle(line).clipPath").startswith("polygon")
    )
    assert (
        shown.locator(".tex-wrong").inner_text() == r"\foo{x}"
    )  # what is no formula is shown as it was written


def test_pieces_give_what_the_whole_gives(visit: Visits) -> None:
    pieces, whole = visit(says(RICH, 1)), visit(says(RICH, len(RICH)))
    pieces.ask("Show")
    whole.ask("Show")
    assert pieces.page.inner_html(".markdown") == whole.page.inner_html(".markdown")


def test_copied_code_is_the_code(visit: Visits) -> None:
    one = visit(says(RICH), permissions=["clipboard-read", "clipboard-write"])
    one.ask("Show")
    one.page.click(".code-head button")
    one.page.wait_for_selector("text=Copied")
    assert one.page.evaluate("navigator.clipboard.readText()") == "def f(x): return x + 1  # comment\n"


def test_hostile_markdown_does_nothing(visit: Visits) -> None:
    one = visit(says(HOSTILE))
    one.ask("Harm")
    shown = one.page.locator(".markdown")
    assert shown.locator("script, img, iframe, form, input, style, svg").count() == 0
    assert shown.locator("[style], [onclick], [id], .shade").count() == 0
    assert shown.locator("[href^=javascript], [href^=data]").count() == 0
    assert "<iframe src=" in shown.inner_text() and "over all" in shown.inner_text()  # seen, not swallowed
    shown.locator("text=over all").click()
    assert one.page.title() == "Harm · minicpm4"


def test_dark_follows_the_system_until_the_switch(visit: Visits) -> None:
    one = visit(color_scheme="dark")

    def brightness() -> int:
        return int(one.page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.slice(4))"))

    assert brightness() < 60
    one.press("Light colours")
    one.page.wait_for_selector("[aria-label='Dark colours']")
    assert brightness() > 200
    one.page.reload()
    one.page.wait_for_selector("[aria-label='Dark colours']")
    assert brightness() > 200


def test_phone_width(visit: Visits) -> None:
    wide = RICH + "\n```\n" + "x" * 300 + "\n```\n$$" + "a+" * 100 + "b$$\n" + "w" * 200
    one = visit(says(wide), viewport={"width": 360, "height": 700}, has_touch=True)
    one.page.fill("#prompt", "Show")
    one.press("Send")
    one.settled()
    assert one.page.evaluate("document.documentElement.scrollWidth") == 360
    assert one.page.evaluate("document.querySelector('.messages').scrollWidth") <= 360
    one.press("Conversations")
    assert one.page.locator(".row").count() == 1
    one.page.wait_for_selector(".side .new:focus")  # after the list is drawn
    one.page.keyboard.press("Escape")
    one.page.wait_for_selector(".side", state="detached")


def long_conversation(count: int) -> dict[str, Any]:
    """A file of one conversation with many messages, as the page exports it."""
    messages = [
        {
            "id": str(number),
            "parent": str(number - 1) if number else "",
            "role": "assistant" if number % 2 else "user",
            "created": number,
            "content": f"Message {number}\n{RICH if number % 2 else ''}",
            "state": "done",
        }
        for number in range(count)
    ]
    talk = {"title": "Long", "created": 0, "updated": 0, "messages": messages}
    return {"format": "minicpm4-conversations", "version": 1, "conversations": [talk]}


# Scrolls by so many pixels a frame; milliseconds between 240 frames, sorted.
FRAMES = """pixels => new Promise(resolve => {
  const scroller = document.querySelector(".scroller"), times = [];
  let last = performance.now();
  const step = now => {
    times.push(now - last);
    last = now;
    scroller.scrollTop -= pixels;
    times.length < 240 ? requestAnimationFrame(step) : resolve(times.slice(1).sort((a, b) => a - b));
  };
  requestAnimationFrame(step);
})"""


def taken(metrics: Any) -> float:
    """Seconds of a processor that the page's thread has taken."""
    found = metrics.send("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in found if one["name"] == "TaskDuration"))


def frame_of(visit: Visits, count: int) -> tuple[Any, float]:
    """A long conversation, and milliseconds of a processor for a frame of its scrolling."""
    one = visit()
    file = json.dumps(long_conversation(count)).encode()
    one.page.set_input_files("#import", [{"name": "x.json", "mimeType": "application/json", "buffer": file}])
    one.page.wait_for_selector(f".message >> nth={count - 1}")
    one.page.wait_for_selector(f"text=Message {count - 1}")
    metrics = one.context.new_cdp_session(one.page)
    metrics.send("Performance.enable", {"timeDomain": "threadTicks"})  # not the time of other processes
    before = taken(metrics)
    frames = one.page.evaluate(FRAMES, 120)
    return one, (taken(metrics) - before) / len(frames) * 1e3


def test_a_thousand_messages_scroll_as_fifty_do(visit: Visits) -> None:
    _, few = frame_of(visit, 50)
    one, many = frame_of(visit, MANY)
    print(f"{many:.1f} ms of a processor for a frame; with 50 messages {few:.1f} ms")
    assert many < 5 * few
    one.page.evaluate("document.querySelector('.scroller').scrollTop = 0")
    one.page.wait_for_selector("text=Message 1 >> visible=true")
    one.ask("One more")
    assert "You said: One more" in one.answer()


def violations(page: Any) -> list[str]:
    """What axe-core finds that is serious or worse."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    results = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    grave = [found for found in results["violations"] if found["impact"] in ("serious", "critical")]
    return [f"{found['id']}: {found['nodes'][0]['html'][:200]}" for found in grave]


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed (make page)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_axe_finds_nothing_serious(visit: Visits, scheme: str, width: int) -> None:
    one = visit(says(RICH), color_scheme=scheme, viewport={"width": width, "height": 750})
    assert violations(one.page) == []
    one.page.set_input_files("#files", [{"name": "a.md", "mimeType": "text/plain", "buffer": b"words"}])
    one.page.wait_for_selector(".budget")
    one.page.fill("#prompt", "Show")
    one.press("Send")
    one.settled()
    one.press("Answer again")
    one.page.wait_for_selector(".branches")
    one.settled()
    assert violations(one.page) == []
    one.press("Settings")
    assert violations(one.page) == []
    one.press("Close the settings")
    if width < 800:
        one.press("Conversations")
        assert violations(one.page) == []


def test_keyboard_alone_is_enough(visit: Visits) -> None:
    one = visit(says("Fine."))
    one.page.wait_for_selector("#prompt:focus")
    one.page.keyboard.type("Hello")
    one.page.keyboard.press("Shift+Enter")
    one.page.keyboard.type("you")
    one.page.keyboard.press("Enter")
    one.page.wait_for_selector(".message.assistant")
    one.settled()
    assert one.server.asked[0]["messages"][0]["content"] == "Hello\nyou"
    one.page.keyboard.press("Control+k")
    one.page.wait_for_selector("#search:focus")
    one.page.keyboard.press("Control+Shift+o")
    one.page.wait_for_selector(".welcome")


def test_server_that_goes_away_is_told_and_found_again(visit: Visits) -> None:
    one = visit()
    one.expected = ("ERR_CONNECTION_REFUSED",)
    port = one.server.server_address[1]
    one.server.shutdown()
    one.server.server_close()
    one.ask("Anyone?")
    assert "The server cannot be reached" in one.answer() and f"127.0.0.1:{port}" in one.answer()
    one.page.wait_for_selector(".banner")
    one.serve(Server(port=port))
    one.page.wait_for_selector(".banner", state="detached")
    one.press("Answer again")
    one.page.wait_for_selector("text=You said: Anyone?")


def test_key_is_asked_for_and_sent(visit: Visits) -> None:
    one = visit(key="secret", ready=".key")
    one.expected = ("401 (Unauthorized)",)
    assert "an API key is needed" in one.page.inner_text(".banner")
    one.page.get_by_label("API key").fill("secret")
    one.press("Use this key")
    one.page.wait_for_selector("select.models")
    assert one.page.locator(".banner").count() == 0


def test_the_policy_forbids_what_is_not_ours() -> None:
    page = Path(__file__).parents[2] / "src" / "minicpm4" / "serve" / "page"
    index = (page / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in index and "unsafe" not in index
    assert "<style" not in index and " style=" not in index
    assert "pdf.js" not in index and {"app.js", "app.css", "pdf.js", "pdf.worker.js", "THIRD_PARTY.txt"} <= {
        file.name for file in page.iterdir()
    }

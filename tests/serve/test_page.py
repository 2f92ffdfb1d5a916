"""What a user of the page does: chat, stop, edit, branch, drop files, choose settings, keep conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.browser import Visit, browser, visit
from tests.serve.standin import Event, Refused
from tests.waiting import PATIENCE

pytestmark = pytest.mark.browser
__all__ = ["browser", "visit"]
Visits = Callable[..., Visit]


def endless(asked: str) -> Iterator[Event]:
    yield {"content": "One word"}
    for _ in range(600):
        yield {"content": " and another"}
        yield 0.05


def counting() -> Callable[[str], Iterator[Event]]:
    """Answers with their number."""
    count = iter(range(1, 100))

    def script(asked: str) -> Iterator[Event]:
        yield {"content": f"answer {next(count)} to {asked}"}

    return script


def test_chat_shows_answer_and_figures(visit: Visits) -> None:
    one = visit()
    one.ask("Hello there")
    assert "You said: Hello there" in one.answer()
    for figure in ("41.5 tokens/s", "18% of blocks read", "cached", "tiny"):
        assert figure in one.answer()
    one.ask("And again")
    first, second = one.server.asked
    assert first["stream"] and first["stream_options"] == {"include_usage": True} and first["model"] == "tiny"
    assert "temperature" not in first and "seed" not in first and "attention" not in first
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    one.page.reload()
    one.page.wait_for_selector(".message >> nth=3")
    assert "You said: And again" in one.answer()
    assert one.page.title() == "Hello there · minicpm4"


def test_stop_leaves_what_was_written_and_frees_the_server(visit: Visits) -> None:
    one = visit(endless)
    one.ask("Go on", wait=False)
    one.page.wait_for_selector("text=and another")
    one.press("Stop")
    one.settled()
    assert one.server.gone.acquire(timeout=PATIENCE)
    assert "One word and another" in one.answer() and "Stopped." in one.answer()
    one.page.reload()
    assert "One word and another" in one.page.locator(".message.assistant .markdown").inner_text()


def test_escape_stops(visit: Visits) -> None:
    one = visit(endless)
    one.ask("Go on", wait=False)
    one.page.wait_for_selector("text=and another")
    one.page.keyboard.press("Escape")
    one.settled()
    assert one.server.gone.acquire(timeout=PATIENCE)


def test_regenerate_makes_versions(visit: Visits) -> None:
    one = visit(counting())
    one.ask("A")
    one.press("Answer again")
    one.page.wait_for_selector("text=answer 2 to A")
    assert "2 of 2" in one.answer()
    one.press("The version before")
    one.page.wait_for_selector("text=answer 1 to A")
    one.ask("B")
    assert [message["content"] for message in one.server.asked[-1]["messages"]] == ["A", "answer 1 to A", "B"]
    one.press("The next version", last=False)
    one.page.wait_for_selector("text=answer 2 to A")
    assert one.page.locator(".message").count() == 2  # the other branch ends here
    one.page.reload()
    one.page.wait_for_selector("text=answer 2 to A")


def test_edit_asks_anew_beside_the_old_question(visit: Visits) -> None:
    one = visit(counting())
    one.ask("First")
    one.ask("Second")
    one.page.locator(".message.user").first.hover()
    one.press("Edit", last=False)
    one.page.fill(".editor textarea", "Other")
    one.press("Send again")
    one.page.wait_for_selector("text=answer 3 to Other")
    assert one.server.asked[-1]["messages"] == [{"role": "user", "content": "Other"}]
    assert one.page.locator(".message").count() == 2
    one.press("The version before", last=False)
    one.page.wait_for_selector("text=answer 2 to Second")
    assert one.page.locator(".message").count() == 4


def test_an_answer_can_be_corrected(visit: Visits) -> None:
    one = visit(counting())
    one.ask("A")
    one.press("Edit")
    one.page.fill(".editor textarea", "what I wanted")
    one.press("Save as another answer")
    one.page.wait_for_selector("text=2 of 2")
    one.ask("B")
    assert one.server.asked[-1]["messages"][1]["content"] == "what I wanted"


def test_settings_are_sent_and_kept(visit: Visits) -> None:
    one = visit()
    one.press("Settings")
    assert one.page.get_attribute("[name=temperature]", "placeholder") == "0.8"
    one.page.get_by_label("System prompt").fill("Be short.")
    sampling = {"temperature": 0.2, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 99, "seed": 7}
    for name, value in sampling.items():
        one.page.fill(f"[name={name}]", str(value))
    one.page.get_by_label("Thinking").select_option("off")
    one.page.get_by_label("Attention").select_option("dense")
    one.press("Close the settings")
    one.ask("Hi")
    request = one.server.asked[0]
    assert {name: request.get(name) for name in sampling} == sampling
    assert request["chat_template_kwargs"] == {"enable_thinking": False} and request["attention"] == "dense"
    assert request["messages"][0] == {"role": "system", "content": "Be short."}
    one.page.reload()
    one.page.wait_for_selector(".message")
    one.press("Settings")
    assert one.page.input_value("[name=seed]") == "7"


def test_model_is_chosen(visit: Visits) -> None:
    one = visit()
    one.page.select_option("select.models", "small")
    one.ask("Hi")
    assert one.server.asked[0]["model"] == "small" and "small" in one.answer()


def test_prompt_that_does_not_fit_names_both_numbers(visit: Visits) -> None:
    message = "the prompt has 9,001 tokens, and the context holds 8,192"
    body = {
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "code": "context_length_exceeded",
            "param": "messages",
        }
    }
    outcomes = iter([Refused(400, body), None])

    def script(asked: str) -> Iterator[Event]:
        if refused := next(outcomes):
            raise refused
        yield {"content": "fits now"}

    one = visit(script)
    one.expected = ("400 (Bad Request)",)
    one.ask("Too long")
    for words in (message, "400", "context_length_exceeded", "messages"):
        assert words in one.answer()
    one.press("Answer again")
    one.page.wait_for_selector("text=fits now")
    assert "of 2" not in one.answer()  # in the failed one's place


def test_error_in_the_middle_keeps_what_was_said(visit: Visits) -> None:
    def script(asked: str) -> Iterator[Event]:
        yield {"content": "half a"}
        yield {"error": {"message": "the engine stopped", "type": "server_error"}}

    one = visit(script)
    one.ask("Go")
    assert (
        "half a" in one.answer() and "the engine stopped" in one.answer() and "server_error" in one.answer()
    )


def test_tool_calls_are_shown_not_run(visit: Visits) -> None:
    def script(asked: str) -> Iterator[Event]:
        yield {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": ""},
                }
            ]
        }
        yield {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}
        yield {"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]}

    one = visit(script)
    one.ask("Weather?")
    assert "Call of weather, not run" in one.answer() and '"city": "Paris"' in one.answer()
    one.ask("Well?")
    call = one.server.asked[1]["messages"][1]["tool_calls"][0]
    assert call == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Paris"}'},
    }


def test_reasoning_is_folded(visit: Visits) -> None:
    def script(asked: str) -> Iterator[Event]:
        yield {"reasoning_content": "hidden thoughts"}
        yield {"content": "The answer."}

    one = visit(script)
    one.ask("Think")
    assert "hidden thoughts" not in one.answer() and "The answer." in one.answer()
    one.page.click("text=Reasoning")
    assert "hidden thoughts" in one.answer()
    one.ask("More")
    assert one.server.asked[1]["messages"][1] == {"role": "assistant", "content": "The answer."}


def test_prefill_bar_moves(visit: Visits) -> None:
    def script(asked: str) -> Iterator[Event]:
        yield {"prompt_progress": {"total": 7000, "cache": 0, "processed": 3500, "time_ms": 10}}
        for _ in range(600):
            yield 0.05

    one = visit(script)
    one.ask("Read", wait=False)
    bar = one.page.wait_for_selector("progress[value='3500'][max='7000']")
    assert bar.get_attribute("aria-label") == "Reading the prompt: 3,500 of 7,000 tokens"
    one.press("Stop")
    one.settled()


def names(one: Visit) -> list[str]:
    return [name.strip() for name in one.page.locator(".row-open").all_inner_texts()]


def test_conversations_are_found_renamed_deleted_and_brought_back(visit: Visits) -> None:
    one = visit()
    for text in ("about whales", "about storks"):
        one.begin()
        one.ask(text)
    assert names(one) == ["about storks", "about whales"]
    one.page.fill("#search", "SAID whales")
    one.page.wait_for_selector(".row >> text=about storks", state="detached")
    assert names(one) == ["about whales"]
    one.page.fill("#search", "")
    one.press("Rename “about storks”")
    one.page.fill(".name", "Birds")
    one.page.keyboard.press("Enter")
    one.press("Delete “Birds”")
    one.page.wait_for_selector(".welcome")
    assert names(one) == ["about whales"]
    one.press("Undo")
    one.page.wait_for_selector("text=You said: about storks")
    assert names(one) == ["Birds", "about whales"]


def test_export_and_import_bring_all_back(visit: Visits, tmp_path: Path) -> None:
    one, other = visit(counting()), visit()
    one.ask("A")
    one.press("Answer again")
    one.page.wait_for_selector("text=2 of 2")
    with one.page.expect_download() as download:
        one.page.click("text=Export all")
    file = tmp_path / "all.json"
    download.value.save_as(file)
    assert json.loads(file.read_text())["format"] == "minicpm4-conversations"
    other.page.set_input_files("#import", file)
    other.page.wait_for_selector("text=answer 2 to A")
    assert "2 of 2" in other.answer()
    other.ask("B")
    assert [message["content"] for message in other.server.asked[0]["messages"]] == [
        "A",
        "answer 2 to A",
        "B",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "x"}, "format"),
        ({"conversations": 5}, "conversations must be a list"),
        ({"conversations": [{}]}, "messages must be a list"),
    ],
)
def test_import_of_something_else_names_the_field(visit: Visits, change: dict[str, Any], told: str) -> None:
    one = visit()
    text = json.dumps({"format": "minicpm4-conversations", "version": 1, "conversations": [], **change})
    one.page.set_input_files(
        "#import", [{"name": "x.json", "mimeType": "application/json", "buffer": text.encode()}]
    )
    assert told in one.page.wait_for_selector(".toast").inner_text()
    assert names(one) == []


def test_without_a_database_it_chats_and_says_so(visit: Visits) -> None:
    one = visit()
    one.context.add_init_script("indexedDB.open = () => { throw new Error('no room'); };")
    one.page.reload()
    assert "no room" in one.page.wait_for_selector(".toast").inner_text()
    one.ask("First")
    one.begin()
    one.ask("Second")
    one.page.click(".row-open >> text=First")
    one.page.wait_for_selector("text=You said: First")

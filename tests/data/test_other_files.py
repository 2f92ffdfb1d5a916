"""Other people's corpora: encodings, nulls, and the columns beside messages that a template takes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from minicpm4.data.chat import ChatEncoder
from minicpm4.data.corpora import Corpus
from minicpm4.data.packer import corpus_texts, pack_all
from minicpm4.data.packing import Counting, chat_documents
from minicpm4.data.questions import page_conversations
from minicpm4.data.sources import NULL, UNDECODED, WRONG, conversations, texts
from minicpm4.errors import ConfigError
from minicpm4.testing import byte_text
from minicpm4.text import ChatTemplate
from minicpm4.text.model_text import ModelText
from tests.data.test_sources import lines, parquet

PROSE = "Le café était fermé à Noël. " * 12
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% if documents %}<|im_start|>documents\n{{ documents | tojson }}<|im_end|>\n{% endif %}"
    "{% set mark = '<think></think>' if enable_thinking is false else '' %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ mark if m.role == 'assistant' }}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ mark }}{% endif %}"
)
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def encoder() -> ChatEncoder:
    return ChatEncoder(byte_text().tokenizer, ChatTemplate(TEMPLATE))


def told(tokens: Any) -> str:
    return byte_text().tokenizer.decode(list(map(int, tokens)), skip_special_tokens=False)


@pytest.mark.parametrize("label", ["gbk", "windows-1251", "shift_jis", "euc-kr", "iso-8859-1", "utf-8", None])
def test_pages_are_read_as_they_declare(tmp_path: Path, label: str | None) -> None:
    words = {
        "gbk": "这是一个网页。",
        "windows-1251": "Это страница. ",
        "shift_jis": "これは頁です。",
        "euc-kr": "이것은 쪽이다. ",
    }
    prose = words.get(label or "", "Le café était fermé. ") * 30
    meta = f"<meta charset='{label}'>" if label else ""
    page = f"<html>{meta}<h1>Subject</h1><p>{prose.strip()}</p><h2>Next</h2><p>{prose[:90]}</p></html>"
    (tmp_path / "a.html").write_bytes(page.encode(label or "utf-8"))
    (text,) = texts("html", [tmp_path / "a.html"])
    assert prose.strip() in text
    counted: Counter[str] = Counter()
    asked = list(page_conversations(tmp_path / "a.html", lambda reason, where: counted.update([reason])))
    assert asked[-1].messages[1]["content"] == " ".join(prose[:90].split()) and not counted


def test_what_does_not_decode_is_left_out_counted_and_shown(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "bad.txt").write_bytes(PROSE.encode("latin-1"))
    (tmp_path / "text" / "good.txt").write_text(PROSE)
    (tmp_path / "bad.html").write_bytes(f"<meta charset=utf-8><p>{PROSE}".encode("latin-1"))
    (tmp_path / "lines.jsonl").write_bytes(
        b'{"text": "one"}\n{"text": "caf\xe9"}\n{"text": "half \\ud800 of one"}\n{"text": "two"}\n'
    )
    places = {"text": "text", "html": "bad.html", "jsonl": "lines.jsonl"}
    corpora = {kind: Corpus(kind=kind, paths=(str(tmp_path / name),)) for kind, name in places.items()}
    files = {name: corpus.files() for name, corpus in corpora.items()}
    for name, expected in {"text": (1, 1), "html": (0, 1), "jsonl": (2, 2)}.items():
        counting = Counting()
        found = list(corpus_texts(corpora[name], files[name], counting))
        assert (len(found), counting.left_out[UNDECODED]) == expected
        assert +counting.left_out == {UNDECODED: expected[1]} and "\ufffd" not in "".join(found)
    said: list[str] = []
    pack_all(corpora, files, byte_text_files(tmp_path / "tokenizer"), tmp_path / "run", said.append)
    shown = [line for line in said if UNDECODED in line]
    assert len(shown) == 3 and "jsonl: 2 left out: " in "\n".join(shown)
    assert f"{tmp_path / 'text' / 'bad.txt'} is not UTF-8: invalid continuation byte at byte 6" in shown[0]


def byte_text_files(folder: Path) -> ModelText:
    """As ``byte_text``, of files: a set is held to their hash."""
    from tests.fixtures.byte_tokenizer import write_tokenizer

    folder.mkdir()
    write_tokenizer(folder, 300)
    return ModelText(folder)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"])
def test_lines_in_any_encoding_that_a_mark_names(tmp_path: Path, encoding: str) -> None:
    text = "".join(json.dumps({"text": f"é{n}ਊ\u2028"}, ensure_ascii=False) + "\n" for n in range(3))
    wide = encoding == "utf-16-le-bom"
    (tmp_path / "a.jsonl").write_bytes(
        ("\ufeff" + text).encode("utf-16-le") if wide else text.encode(encoding)
    )
    assert list(texts("jsonl", [tmp_path / "a.jsonl"])) == [f"é{n}ਊ\u2028" for n in range(3)]
    (tmp_path / "b.jsonl").write_bytes(
        b"\xff\xfe" + '{"text": "a"}\n'.encode("utf-16-le") + b"\x00\xd8\n\x00"
    )
    with pytest.raises(ConfigError, match=r"b.jsonl is not UTF-16, as it says: .*save it as UTF-8"):
        list(texts("jsonl", [tmp_path / "b.jsonl"]))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_nulls_are_left_out_alike(tmp_path: Path, kind: str) -> None:
    rows = [{"text": "one"}, {"text": None}, {"text": ""}, {"text": "two"}]
    chats = [{"messages": TURNS}, {"messages": None}, {"messages": TURNS}]
    if kind == "jsonl":
        files = lines(tmp_path / "a.jsonl", *rows), lines(tmp_path / "c.jsonl", *chats)
    else:
        files = (
            parquet(tmp_path / "a.parquet", text=[row["text"] for row in rows]),
            parquet(tmp_path / "c.parquet", messages=[row["messages"] for row in chats]),
        )
    skipped: list[tuple[str, str]] = []
    assert list(texts(kind, [files[0]], "text", lambda *what: skipped.append(what))) == ["one", "two"]
    found = list(conversations([files[1]], "messages", lambda *what: skipped.append(what)))
    assert [one.messages for one in found] == [TURNS, TURNS]
    word = "line" if kind == "jsonl" else "row"
    assert skipped == [(NULL, f"{file}, {word} 2") for file in files]


def test_bytes_of_parquet_are_text_where_they_are(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", text=["é".encode(), b"\xe9", "b".encode("utf-8-sig")])
    skipped: list[tuple[str, str]] = []
    assert list(texts("parquet", [file], "text", lambda *what: skipped.append(what))) == ["é", "b"]
    assert skipped == [(UNDECODED, f"{file}, row 2 is not UTF-8: unexpected end of data at byte 0")]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_what_a_template_takes_beside_messages(tmp_path: Path, kind: str, as_text: bool) -> None:
    """The documents are those that the same template writes at inference."""
    beside = {
        "tools": [TOOL],
        "documents": [{"title": "t"}],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    given = {name: json.dumps(value) if as_text else value for name, value in beside.items()}
    rows = [{"messages": TURNS, **given}, {"messages": TURNS}]
    if kind == "jsonl":
        file = lines(tmp_path / "a.jsonl", *rows)
    else:
        # Arrow has no empty tables: a tool's are JSON text there.
        given = given if as_text else {**given, "tools": [json.dumps(TOOL)]}
        columns = {name: [value, None] for name, value in given.items()}
        file = parquet(tmp_path / "a.parquet", messages=[TURNS, TURNS], **columns)
    with_all, without = chat_documents(conversations([file]), encoder())
    options = {"documents": beside["documents"], "enable_thinking": False}
    prompt = told(
        ModelText.of(encoder().tokenizer, encoder().template).encode_chat(TURNS[:1], tools=[TOOL], **options)
    )
    assert told(with_all.tokens).startswith(prompt)
    assert prompt.startswith("<s><|im_start|>tools\n[{") and "<think></think>" in prompt
    assert told(without.tokens) == told(encoder().encode(TURNS).tokens)
    wanted = encoder().encode(TURNS, tools=[TOOL], options=options)
    assert with_all.tokens.tolist() == wanted.tokens.tolist()


def test_parquet_gives_tables_without_what_they_do_not_have(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    other = {"function": {"name": "g", "arguments": {"b": "x"}}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call, other]},
        {"role": "tool", "content": "r", "name": "f"},
    ]
    (one,) = conversations([parquet(tmp_path / "a.parquet", messages=[turns])])
    assert one.messages == turns


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"tools": "{"}, "line 1, tools is not JSON"),
        ({"tools": ["{"]}, "line 1, tools is not JSON"),
        ({"tools": {"name": "f"}}, "line 1: tools is a dict"),
        ({"tools": [3]}, r"line 1: tools\[0\] is a int"),
        ({"chat_template_kwargs": [1]}, "line 1: 'chat_template_kwargs' is no table"),
        ({"chat_template_kwargs": {"messages": []}}, "line 1: 'chat_template_kwargs' has 'messages'"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "line 1: enable_thinking is a str"),
    ],
)
def test_what_no_template_can_take_is_refused_with_its_place(tmp_path: Path, beside: Any, said: str) -> None:
    file = lines(tmp_path / "a.jsonl", {"messages": TURNS, **beside})
    with pytest.raises(ConfigError, match=said):
        list(chat_documents(conversations([file]), encoder()))


def rows_file(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    if kind == "jsonl":
        return lines(folder / "a.jsonl", *rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return parquet(folder / "a.parquet", **{name: [row.get(name) for row in rows] for name in names})


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_messages_as_json_text_are_messages(tmp_path: Path, kind: str) -> None:
    turns = [*TURNS, {"role": "user", "content": None}]  # what is null there is null here
    file = rows_file(tmp_path, kind, [{"messages": json.dumps(turns)}, {"messages": json.dumps(TURNS)}])
    assert [one.messages for one in conversations([file])] == [turns, TURNS]
    (as_list,) = chat_documents(conversations([lines(tmp_path / "b.jsonl", {"messages": TURNS})]), encoder())
    *_, as_text = chat_documents(list(conversations([file]))[1:], encoder())
    assert as_text.tokens.tolist() == as_list.tokens.tolist() and as_text.mark == as_list.mark


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"messages": "no JSON"},
            "line 1, messages is not JSON: .*give a list of messages, or one as JSON text",
        ),
        ({"messages": ""}, "line 1, messages is not JSON"),
        ({"messages": "[" * 100_000}, "line 1, messages is nested too deep"),
        ({"messages": '{"role": "user"}'}, "line 1: messages is a dict, not a list"),
        ({"messages": "null"}, "line 1: messages is a NoneType, not a list"),
        ({"messages": TURNS, "system": ["s"]}, "line 1: 'system' is a list, not a text"),
        ({"messages": TURNS, "enable_thinking": "no"}, "line 1: enable_thinking is a str"),
    ],
)
def test_columns_of_no_conversation_are_refused_with_their_place(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        list(chat_documents(conversations([lines(tmp_path / "a.jsonl", row)]), encoder()))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_column_system_is_the_system_message(tmp_path: Path, kind: str) -> None:
    own = [{"role": "system", "content": "s"}, *TURNS]
    developer = [{"role": "developer", "content": "d"}, *TURNS]
    rows = [
        {"messages": TURNS, "system": "s"},
        {"messages": own, "system": "s"},
        {"messages": own, "system": "another"},
        {"messages": TURNS, "system": None},
        {"messages": TURNS, "system": " "},
        {"messages": own, "system": None},
        {"messages": developer, "system": "s"},
        {"messages": json.dumps(TURNS) if kind == "jsonl" else TURNS, "system": "s"},
    ]
    counting = Counting()
    file = rows_file(tmp_path, kind, rows)
    found = [one.messages for one in conversations([file], "messages", counting.skip, counting.note)]
    assert found == [own, own, TURNS, TURNS, own, own]
    word = "line" if kind == "jsonl" else "row"
    reason = "it has a system message and another text in the column 'system'"
    assert counting.left_out == {reason: 2} and counting.places[reason][0] == f"{file}, {word} 3"
    assert not list(counting.notes())
    whole = "".join(told(d.tokens) for d in chat_documents(conversations([file]), encoder()))
    assert whole.count("<|im_start|>system\ns<|im_end|>") == 4


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_column_enable_thinking_is_an_argument_of_the_template(tmp_path: Path, kind: str) -> None:
    given = [(None, None), (False, None), (None, False), (False, False), (True, True), (True, False)]
    rows = [
        {"messages": TURNS, "enable_thinking": column, "chat_template_kwargs": {"enable_thinking": argument}}
        for column, argument in given
    ]
    counting = Counting()
    every = conversations([rows_file(tmp_path, kind, rows)], "messages", counting.skip)
    found = ["<think></think>" in told(made.tokens) for made in chat_documents(every, encoder(), counting)]
    assert found == [False, True, True, True, False]
    assert counting.left_out == {"its enable_thinking is not that of its chat_template_kwargs": 1}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_columns_that_are_not_read_are_named_once(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": TURNS, "tools": None, "system": "s"},
        {"messages": TURNS, "functions": "[]", "id": 3},
        {"messages": TURNS, "functions": "[]", "source\x1b[31m": "s"},
    ]
    file = rows_file(tmp_path, kind, rows)
    (tmp_path / "b").mkdir()
    again = rows_file(tmp_path / "b", kind, rows)
    counting = Counting()
    assert len(list(conversations([file, again], "messages", counting.skip, counting.note))) == 6
    place = f"{file}, line 2" if kind == "jsonl" else str(file)
    names = "'functions', 'id', 'source\\x1b[31m'"
    assert list(counting.notes()) == [f"columns of the chats that are not read: {names} (the first: {place})"]
    many = lines(tmp_path / "c.jsonl", {"messages": TURNS, **{f"c{n}": n for n in range(20)}})
    counting = Counting()
    list(conversations([many], "messages", counting.skip, counting.note))
    assert "'c7' and 12 more (" in "".join(counting.notes()) and "c8" not in "".join(counting.notes())


def test_a_run_is_told_of_columns_that_are_not_read(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"messages": TURNS, "functions": []})
    byte_text_files(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    text = ModelText(tmp_path / "tokenizer")
    said: list[str] = []
    pack_all({"c": Corpus(kind="chat", paths=(str(file),))}, {"c": [file]}, text, tmp_path / "r", said.append)
    assert [line for line in said if "not read" in line] == [
        f"c: columns of the chats that are not read: 'functions' (the first: {file}, line 1)"
    ]


def test_chats_that_are_none_are_left_out_with_their_lines(tmp_path: Path) -> None:
    bad = [{"messages": "no JSON"}, {"messages": 7}, {"messages": TURNS, "enable_thinking": "no"}]
    file = lines(tmp_path / "a.jsonl", *bad, {"messages": TURNS})
    counting = Counting()
    (_,) = chat_documents(conversations([file], skip=counting.skip), encoder(), counting)
    assert counting.left_out == {WRONG: 3}
    assert all(any(f"line {n}" in place for place in counting.places[WRONG]) for n in (1, 2, 3))
    strict = Counting(strict=True)
    with pytest.raises(ConfigError, match="mend it, or leave out --strict"):
        list(chat_documents(conversations([file], skip=strict.skip), encoder(), strict))


def test_a_column_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", text=["a"], beside=["b"])
    file.write_bytes(file.read_bytes().replace(b"beside", b"be\xffide"))
    with pytest.raises(ConfigError, match=r"a\.parquet has a column whose name is not UTF-8.*another name"):
        list(texts("parquet", [file]))
    nested = parquet(tmp_path / "b.parquet", text=["a"], other=[{"beside": 1}])
    nested.write_bytes(nested.read_bytes().replace(b"beside", b"be\xffide"))
    with pytest.raises(ConfigError, match=r"b\.parquet has a column whose name is not UTF-8"):
        list(texts("parquet", [nested]))


def test_values_of_parquet_that_python_has_not_are_left_out(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    far = pyarrow.array([1 << 62, None], pyarrow.timestamp("us"))
    file = parquet(tmp_path / "a.parquet", messages=[TURNS, TURNS], tools=far)
    skipped: list[tuple[str, str]] = []
    (found,) = conversations([file], skip=lambda *what: skipped.append(what))
    assert found.messages == TURNS
    ((reason, where),) = skipped
    assert reason == WRONG and where.startswith(f"{file}, row 1: 'tools' cannot be read: ")
    with pytest.raises(ConfigError, match=r"row 1: 'text' cannot be read: .*may be damaged"):
        list(texts("parquet", [parquet(tmp_path / "b.parquet", text=far)]))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"has more than one column 'text'\. give each its own name"):
        list(texts("parquet", [tmp_path / "a.parquet"]))

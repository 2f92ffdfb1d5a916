"""The documents say what the code does: snippets run, help pages are fresh, links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.readme_table import BLOCK, IMAGES, pictures, refresh
from benchmarks.readme_table import PAGES as TABLES

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    ROOT / "benchmarks" / "reference" / "README.md",
]


def page_name(page: Path) -> str:
    """Its name, with its folder's where that is neither the root nor docs/."""
    return page.name if page.parent in (ROOT, ROOT / "docs") else f"{page.parent.name}/{page.name}"


def snippets(page: Path, language: str) -> list[str]:
    """Code blocks of one language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def test_help_page_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "cli_docs.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "docs/cli.md is stale: run make docs"


def test_map_of_kernels_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "ways_docs.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, (
        "docs/architecture.md is stale: run make docs"
    )


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "guide.md"], ids=lambda p: p.name)
def test_python_snippets_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = snippets(page, "python")
    assert found
    for code in found:
        exec(compile(code, page.name, "exec"), {})  # noqa: S102  (our own pages)
    printed = capsys.readouterr().out
    assert "Paris" in printed if page.name == "README.md" else printed.strip()


def test_recipes_in_pages_are_right() -> None:
    from minicpm4.train.recipe import parse_recipe

    found = snippets(ROOT / "docs" / "training.md", "toml")
    assert found
    for code in found:
        assert parse_recipe(tomllib.loads(code)).steps > 0


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_no_mark_of_what_was_to_be_filled_in_is_left(page: Path) -> None:
    assert not re.findall(r"@@\w+@@|\bTODO\b|\bFIXME\b|\bXXX\b", page.read_text(encoding="utf-8"))


def commands_in(page: Path) -> list[list[str]]:
    """Calls of ``minicpm4`` in a page's blocks, whatever they are marked as, as words."""
    lines = "".join(snippets(page, r"\w*")).replace("\\\n", " ").splitlines()
    calls = [call.strip() for line in lines for call in line.split("|")]
    return [shlex.split(call, comments=True)[1:] for call in calls if call.startswith("minicpm4 ")]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_in_pages_parse(page: Path) -> None:
    import typer

    from minicpm4.cli import build

    for name, *words in commands_in(page):
        command = typer.main.get_command(build()).commands[name]
        if hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        command.make_context(name, words, resilient_parsing=False)


def test_commands_are_found_in_pages() -> None:
    found = {page_name(page): len(commands_in(page)) for page in PAGES}
    assert (
        found["README.md"]
        and found["guide.md"] > 5
        and found["training.md"] > 5
        and found["benchmarks/README.md"]
    )
    assert ["data", "inspect"] in [words[:2] for words in commands_in(ROOT / "docs" / "training.md")]


def tree_of_commands() -> dict[tuple[str, ...], set[str]]:
    """Every command and group, by its words: the options that it takes."""
    import typer

    from minicpm4.cli import build

    found: dict[tuple[str, ...], set[str]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        spelled = (spelling for one in command.params for spelling in (*one.opts, *one.secondary_opts))
        found[words] = {"--help", *(spelling for spelling in spelled if spelling.startswith("-"))}
        for name, child in getattr(command, "commands", {}).items():
            walk(child, (*words, name))

    walk(typer.main.get_command(build()), ())
    return found


def said_in_sentences(page: Path) -> list[str]:
    """What stands in backticks outside of blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", text)]


OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
# Those of lm-evaluation-harness and of compilers, and what other sentences cut off a name.
OF_OTHERS = {
    "--log_samples",
    "--apply_chat_template",
    "-ffp-contract",
    "--param",
    "-fno-tree-dominator-opts",
    "-8b",
    "-avx2",
    "-d",
}


def wrong_in_sentence(said: str, tree: dict[tuple[str, ...], set[str]]) -> list[str]:
    """Words of a command that is none, options that it does not take. ``a|b`` stands for two commands."""
    if not said.startswith("minicpm4 "):
        return []
    called, rest = [()], said.split()[1:]
    while rest and all((*words, name) in tree for words in called for name in rest[0].split("|")):
        called = [(*words, name) for words in called for name in rest[0].split("|")]
        rest = rest[1:]
    if called == [()] and not rest[0].startswith("-"):
        return rest[:1]
    return [option for option in OPTION.findall(said) if not all(option in tree[words] for words in called)]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_in_sentences_are_right(page: Path) -> None:
    tree = tree_of_commands()
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    known = OF_OTHERS.union(*tree.values())
    known.update(
        re.findall(r'"(--?[a-z][\w-]*)"', "".join(file.read_text(encoding="utf-8") for file in scripts))
    )
    said = said_in_sentences(page)
    assert not [(words, wrong) for words in said if (wrong := wrong_in_sentence(words, tree))]
    assert not [words for words in said if (found := OPTION.match(words)) and found.group() not in known]


def test_wrong_commands_in_sentences_are_found() -> None:
    tree = tree_of_commands()
    assert wrong_in_sentence("minicpm4 generate --max-tokens N", tree) == []
    assert wrong_in_sentence("minicpm4 eval code|ruler --json", tree) == []
    assert wrong_in_sentence("minicpm4 generate --max-token N", tree) == ["--max-token"]
    assert wrong_in_sentence("minicpm4 evaluate code", tree) == ["evaluate"]
    assert wrong_in_sentence("minicpm4 eval code|chat --json", tree) == ["--json"]
    counts = [
        len([1 for words in said_in_sentences(page) if words.startswith("minicpm4 ")]) for page in PAGES
    ]
    assert sum(counts) > 100


@pytest.mark.parametrize("page", TABLES, ids=lambda p: p.name)
def test_tables_show_what_was_measured(page: Path) -> None:
    results = ROOT / "benchmarks" / "results"
    text = page.read_text(encoding="utf-8")

    def load(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((results / name).read_text(encoding="utf-8"))
        return found

    stale = "run python -m benchmarks.readme_table with the result that it is to show"
    assert text == refresh(text, load), stale
    for name, svg in pictures(text, load).items():
        assert (IMAGES / name).read_text(encoding="utf-8") == svg, stale
    if page.name == "README.md":
        assert BLOCK.search(text)


def test_make_targets_in_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        used = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert used <= targets, page.name


# No package index has minicpm4: it is installed from a checkout, and its extras with it.
FROM_AN_INDEX = re.compile(
    r"minicpm4\[|\b(?:(?:pip|pipx|uv|pip3)\s+(?:tool\s+|pip\s+)?(?:install|add|run)|uvx)"
    r"\s+(?:-\S+\s+)*['\"]?minicpm4\b"
)


def test_nothing_says_that_a_package_index_has_it() -> None:
    places = [f for name in ("src", "examples", "scripts", "benchmarks") for f in (ROOT / name).rglob("*.py")]
    places += [*PAGES, *(ROOT / "src" / "minicpm4" / "serve" / "page").glob("*.html"), ROOT / "Makefile"]
    said = {file: FROM_AN_INDEX.search(file.read_text(encoding="utf-8")) for file in places}
    assert {str(file): found[0] for file, found in said.items() if found} == {}
    wrong = [
        "pip install 'minicpm4[sandbox]'",
        "pip install -U minicpm4 in",
        "uvx minicpm4",
        "uv add minicpm4",
    ]
    right = ["pip install -e '.[sandbox]'", "reinstall minicpm4 with", "pip install llm-minicpm4"]
    assert [bool(FROM_AN_INDEX.search(text)) for text in wrong + right] == [True] * 4 + [False] * 3

"""``minicpm4 generate``: one prompt, one answer."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.options import DEFAULT_MODEL, EngineFlags, ModelOption, expand
from minicpm4.cli.sampling import SampleFlags, SamplingFlags
from minicpm4.cli.summary import as_json, cut, print_summary, thinking_note
from minicpm4.cli.terminal import progress_bar, tell, writing
from minicpm4.config.strict import require
from minicpm4.errors import RequestError
from minicpm4.files import UndecodableError, decode_text, finite, json_text, line_ends, read_text

if TYPE_CHECKING:
    from minicpm4 import LLM, SamplingParams
    from minicpm4.engine.load import Inspection
    from minicpm4.engine.outputs import Piece

MAX_PROMPT_BYTES = 1 << 28
PATIENCE = 2.0  # seconds, after which it is said what is waited for
LONG_TEXT = 8192  # characters: a shorter prompt is read densely by any model


@expand
def command(
    question: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="Text of the prompt.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The same, as an option.")] = None,
    prompt_file: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt-file",
            "-f",
            metavar="FILE",
            help="File that goes before the text; - is standard input; may be given several times.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message (with the chat template).")] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="Put the prompt into the model's chat template, or feed it as it is. "
            "Default: chat where the model has a template.",
        ),
    ] = None,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="Ask a reasoning model to think first, or not to."),
    ] = None,
    stats: Annotated[
        bool | None,
        typer.Option("--stats/--no-stats", help="Closing figures on standard error. Default: on a terminal."),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Before the first long prompt of a model that can read sparsely, measure for some seconds "
            "from where on that is faster here, and keep it.",
        ),
    ] = True,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
    *,
    engine: EngineFlags,
    sampling: SamplingFlags,
    sample: SampleFlags,
) -> None:
    """Answer a prompt and print the text as it is made.

    The prompt is the files, in their order, then the text, with an empty line between them. What is piped
    in counts as the first file where none is named.
    """
    require(question is None or prompt is None, "the prompt is given twice", "leave out --prompt")
    require(sample.logprobs is None or json_output, "--logprobs is part of --json", "give --json, too")
    text = read_prompt(prompt if question is None else question, prompt_file or [])
    sampling.params().changed(**sample.parameters)  # refuses before the loading what would be refused after
    found = engine.inspect(model)
    if calibrate:
        found = calibrate_first(found, text, quiet=json_output or stats is False)
    llm = engine.load(found)
    params = sampling.params(llm.sampling_defaults).changed(**sample.parameters)
    if stats and not json_output:
        tell(f"{llm.description}; sampling: {params.drawn()}")
    if chat is None:
        chat = llm.has_chat_template
    if not chat and (system is not None or think is not None or sample.tools is not None):
        raise RequestError(
            "--system, --think and --tools need a chat template", "leave out --raw, or choose a chat model"
        )
    tools = sample.functions
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": text})
    asked = messages if chat else None
    for note in unmet(llm, think, sampling.max_tokens, tools, asked or text):
        tell(f"note: {note}")
    with (
        writing(sys.stdout) as write,
        progress_bar("reading", "tokens", False if json_output else None) as progress,
    ):
        if chat:
            options = {} if tools is None else {"tools": tools}
            pieces = llm.stream_chat(messages, params, enable_thinking=think, progress=progress, **options)
        else:
            pieces = llm.stream(text, params, progress=progress)
        if json_output:
            _print_json(llm, pieces, params, tools)
        else:
            _print_text(llm, pieces, params, stats, write)


def unmet(
    llm: LLM,
    think: bool | None,
    most: int | None,
    tools: list[dict[str, Any]] | None,
    asked: str | list[dict[str, Any]],
) -> Iterator[str]:
    """What was asked for and cannot be had, though an answer can."""
    if note := thinking_note(llm, think):
        yield f"--think, --no-think: {note}"
    if tools and not llm.replies.shows_tools:
        yield f"the chat template of {llm.name} shows no tools: describe them in --system"
    if most is None:
        return
    ids = (
        llm.prompt_ids(asked)
        if isinstance(asked, str)
        else llm.chat_ids(asked, tools=tools, enable_thinking=think)
    )
    room = llm.limits.context - len(ids)
    if 0 < room < most:
        yield f"--max-tokens {most:,}: after this prompt the context has room for {room:,}"


def calibrate_first(found: Inspection, text: str, *, quiet: bool) -> Inspection:
    """Measure what a long prompt needs to know, once, say what was found, and plan by it."""
    if len(text) < LONG_TEXT:
        return found  # without importing what measures: the first token must not wait
    from minicpm4.engine.load import plan_model
    from minicpm4.evals import first_use

    with progress_bar("calibrating", "runs", False if quiet else None) as progress:
        said = first_use.calibrate_first(found, text, progress)
    if said is None:
        return found
    if not quiet:
        tell(said)
    return plan_model(found.source, found.text, found.asked)


def read_prompt(prompt: str | None, files: str | Sequence[str]) -> str:
    """Put the prompt together from its places, a file or several. Raises RequestError when there is none."""
    names = [files] if isinstance(files, str) else list(files)
    if not names and (prompt is None or _is_piped()):
        if sys.stdin.isatty():
            raise RequestError("there is no prompt", "give one, --prompt-file, or text on standard input")
        names = ["-"]
    require(names.count("-") < 2, "--prompt-file - is given twice", "standard input can be read once")
    parts = [*(_read(name).rstrip("\n") for name in names), prompt or ""]
    for name, part in zip(names, parts, strict=False):
        if not part.strip() and name != "-":
            tell(f"note: {name} is empty")
    if prompt is not None and not files and os.path.isfile(prompt):
        tell(f"note: {prompt} is a file here, and was taken for the question; -f reads it")
    text = "\n\n".join(part for part in parts if part)
    if not text.strip():
        raise RequestError("the prompt is empty", "give one, --prompt-file, or text on standard input")
    return text


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file: nothing is to be read of a terminal or of /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # no descriptor beneath
        return isinstance(sys.stdin, io.StringIO | io.TextIOWrapper)  # text that was put there
    if stat.S_ISFIFO(mode) and not select.select([sys.stdin], [], [], PATIENCE)[0]:
        tell("waiting for the end of standard input; < /dev/null leaves it out")
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read(name: str) -> str:
    if name != "-":
        return line_ends(read_text(Path(name), MAX_PROMPT_BYTES, RequestError, _remedy(Path(name))))
    if not hasattr(sys.stdin, "buffer"):
        return line_ends(sys.stdin.read())
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise RequestError(f"standard input has over {MAX_PROMPT_BYTES} bytes", "give another text")
    try:
        return line_ends(decode_text(data))
    except UndecodableError as error:
        raise RequestError(
            f"standard input is {error}", "convert it to UTF-8, or take the text out of it"
        ) from error


def _remedy(path: Path) -> str:
    """What to do where a file is no text that can be read."""
    if path.is_dir():
        return "give its files, each with an -f"
    if not path.is_file():
        return "check the path"
    if not os.access(path, os.R_OK):
        return "check its permissions"
    return (
        "give text: of a PDF or another document take it out first, convert other encodings to UTF-8 (iconv)"
    )


def _print_text(
    llm: LLM,
    pieces: Iterator[Piece],
    params: SamplingParams,
    stats: bool | None,
    write: Callable[[str], None],
) -> None:
    """Text as it comes, by ``write``; of several samples each when all are there."""
    metrics, reasons, new = None, dict[int, str | None](), Counter[int]()
    written: dict[int, str] = {}
    for piece in pieces:
        if params.n == 1:
            write(piece.text)
        written[piece.index] = written.get(piece.index, "") + piece.text
        new[piece.index] += len(piece.token_ids)
        metrics = piece.metrics or metrics
        reasons[piece.index] = piece.finish_reason or reasons.get(piece.index)
    for index in sorted(written):
        if params.n > 1:
            write(f"--- {index + 1} of {params.n} ---\n{written[index]}")
        write("\n")
        if reasons[index] == "length":
            full = f"prompt and answer fill the context of {llm.limits.context:,}"
            note = cut(new[index], params.max_tokens, full, "a larger --context makes room")
            if stats is not False:  # in a pipe, too: what comes out of it is not all
                tell(note)
    if metrics is not None:
        print_summary(metrics, stats)


def _print_json(
    llm: LLM, pieces: Iterator[Piece], params: SamplingParams, tools: list[dict[str, Any]] | None
) -> None:
    """One object: the first answer, and with several of them all in ``samples``; calls of ``tools`` apart."""
    from dataclasses import asdict

    every: list[dict[str, Any]] = [{"text": "", "finish_reason": None} for _ in range(params.n)]
    ids: list[list[int]] = [[] for _ in every]
    metrics: dict[str, Any] = {}
    for piece in pieces:
        one = every[piece.index]
        one["text"] += piece.text
        ids[piece.index] += piece.token_ids
        one["finish_reason"] = piece.finish_reason or one["finish_reason"]
        if params.logprobs is not None:
            one.setdefault("logprobs", []).extend(asdict(at) for at in piece.logprobs or ())
        if piece.metrics is not None:
            metrics = {"metrics": as_json(piece.metrics)}
    if tools is not None:
        for one, tokens in zip(every, ids, strict=True):
            reply = llm.replies.parse(one["text"], tokens, tools=tools)
            one["content"] = reply.content
            one["tool_calls"] = [{"name": call.name, "arguments": call.arguments} for call in reply.calls]
    samples = {"samples": every} if params.n > 1 else {}
    print(json_text(finite({"model": llm.name, **every[0], **samples, **metrics}), ascii_only=False))

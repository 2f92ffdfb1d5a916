"""``minicpm4 generate``: one prompt, one answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.options import DEFAULT_MODEL, EngineFlags, ModelOption, SamplingFlags, expand
from minicpm4.cli.summary import as_json, cut, print_note, print_summary
from minicpm4.cli.terminal import one_line, progress_bar, write_text
from minicpm4.errors import RequestError
from minicpm4.files import UndecodableError, decode_text, finite, json_text, line_ends, read_text

if TYPE_CHECKING:
    from minicpm4 import LLM
    from minicpm4.engine.load import Inspection
    from minicpm4.engine.outputs import Piece

MAX_PROMPT_BYTES = 1 << 28
LONG_TEXT = 8192  # characters: a shorter prompt is read densely by any model


@expand
def command(
    model: ModelOption = DEFAULT_MODEL,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Text of the prompt.")] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option("--prompt-file", "-f", help="File that goes before --prompt; - is standard input."),
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
) -> None:
    """Answer a prompt and print the text as it is made.

    The prompt is --prompt-file, then --prompt after an empty line where both are given; with neither,
    it is standard input.
    """
    text = read_prompt(prompt, prompt_file)
    sampling.params()  # refuses before the loading what would be refused after it
    found = engine.inspect(model)
    if calibrate:
        found = calibrate_first(found, text, quiet=json_output or stats is False)
    llm = engine.load(found)
    params = sampling.params(llm.sampling_defaults)
    if stats and not json_output:
        print(one_line(f"{llm.description}; sampling: {params.drawn()}"), file=sys.stderr)
    if chat is None:
        chat = llm.has_chat_template
    if not chat and (system is not None or think is not None):
        raise RequestError(
            "--system and --think need a chat template", "leave out --raw, or choose a chat model"
        )
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": text})
    with progress_bar("reading", "tokens", False if json_output else None) as progress:
        if chat:
            pieces = llm.stream_chat(messages, params, enable_thinking=think, progress=progress)
        else:
            pieces = llm.stream(text, params, progress=progress)
        if json_output:
            _print_json(llm, pieces)
        else:
            _print_text(llm, pieces, params.max_tokens, stats)


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
        print(one_line(said), file=sys.stderr)
    return plan_model(found.source, found.text, found.asked)


def read_prompt(prompt: str | None, prompt_file: str | None) -> str:
    """Put the prompt together from its two places. Raises RequestError when there is none."""
    if prompt is None and prompt_file is None:
        if sys.stdin.isatty():
            raise RequestError(
                "there is no prompt", "give --prompt, --prompt-file, or text on standard input"
            )
        prompt_file = "-"
    parts = [] if prompt_file is None else [_read(prompt_file).rstrip("\n")]
    parts += [] if prompt is None else [prompt]
    text = "\n\n".join(parts)
    if not text.strip():
        raise RequestError("the prompt is empty", "give --prompt, --prompt-file, or text on standard input")
    return text


def _read(name: str) -> str:
    if name != "-":
        return line_ends(read_text(Path(name), MAX_PROMPT_BYTES, RequestError, "give another text"))
    if not hasattr(sys.stdin, "buffer"):
        return line_ends(sys.stdin.read())
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise RequestError(f"standard input has over {MAX_PROMPT_BYTES} bytes", "give another text")
    try:
        return line_ends(decode_text(data))
    except UndecodableError as error:
        raise RequestError(f"standard input is {error}", "give another text") from error


def _print_text(llm: LLM, pieces: Iterator[Piece], most: int | None, stats: bool | None) -> None:
    metrics, reason, new = None, None, 0
    for piece in pieces:
        write_text(piece.text, sys.stdout)
        new += len(piece.token_ids)
        metrics, reason = piece.metrics or metrics, piece.finish_reason
    write_text("\n", sys.stdout)
    if metrics is None:
        return
    if reason == "length":
        full = f"prompt and answer fill the context of {llm.limits.context:,}"
        note = cut(new, most, full, "a larger --context makes room")
        print_note(note, stats)
    print_summary(metrics, stats)


def _print_json(llm: LLM, pieces: Iterator[Piece]) -> None:
    result: dict[str, Any] = {"model": llm.name, "text": "", "finish_reason": None}
    for piece in pieces:
        result["text"] += piece.text
        result["finish_reason"] = piece.finish_reason or result["finish_reason"]
        if piece.metrics is not None:
            result["metrics"] = as_json(piece.metrics)
    print(json_text(finite(result), ascii_only=False))

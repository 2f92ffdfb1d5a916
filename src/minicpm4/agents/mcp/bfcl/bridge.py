"""Run by the Python of an environment with ``bfcl-eval``: its entries out, its verdicts on answers back.

    python bridge.py entries CATEGORY...    a line of JSON each: id, category, messages, tools
    python bridge.py check < answers        a line each, of {"id", "category", "calls"}: id, valid, why

Only the standard library, and what ``bfcl-eval`` says itself. Its table of models imports the SDKs of a dozen
services; the checkers read one field of it, so a table with that field stands in its place.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from typing import Any

MODEL = "minicpm4"


def load(name: str) -> Any:
    """A module of bfcl_eval."""
    table = types.ModuleType("bfcl_eval.constants.model_config")
    of_ours = types.SimpleNamespace(underscore_to_dot=True)  # names of tools have no dots
    table.MODEL_CONFIG_MAPPING = {MODEL: of_ours}  # type: ignore[attr-defined]
    sys.modules.setdefault("bfcl_eval.constants.model_config", table)
    return importlib.import_module(f"bfcl_eval.{name}")


def entries(category: str) -> list[dict[str, Any]]:
    """What a model is asked, with tools as BFCL gives them to open models."""
    utils, tools = load("utils"), load("model_handler.utils")
    enums, mappings = load("constants.enums"), load("constants.type_mappings")
    style = enums.ModelStyle.OSSMODEL
    return [
        {
            "id": one["id"],
            "category": category,
            "messages": one["question"][0],
            "tools": [
                {"type": "function", "function": function}
                for function in tools.convert_to_tool(one["function"], mappings.GORILLA_TO_OPENAPI, style)
            ],
        }
        for one in utils.load_dataset_entry(category)
    ]


def check(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """BFCL's verdict on each answer."""
    by_category: dict[str, list[dict[str, Any]]] = {}
    for one in answers:
        by_category.setdefault(one["category"], []).append(one)
    return [found for category, some in by_category.items() for found in _checked(category, some)]


def _checked(category: str, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    utils, checker = load("utils"), load("eval_checker.ast_eval.ast_checker")
    languages = load("constants.enums").Language
    if "relevance" in category:  # and irrelevance: whether anything is called is all that counts
        wanted = "irrelevance" not in category
        return [{"id": one["id"], "valid": bool(one["calls"]) is wanted, "why": ""} for one in answers]
    language = languages.PYTHON
    if utils.is_java(category):
        language = languages.JAVA
    elif utils.is_js(category):
        language = languages.JAVASCRIPT
    asked = {
        one["id"]: one for one in utils.load_dataset_entry(category, include_language_specific_hint=False)
    }
    truths = {one["id"]: one["ground_truth"] for one in utils.load_ground_truth_entry(category)}
    made = []
    for one in answers:
        name = one["id"]
        if not utils.is_function_calling_format_output(one["calls"]) or not one["calls"]:
            made.append({"id": name, "valid": False, "why": "no call"})
            continue
        functions = asked[name]["function"]
        found = checker.ast_checker(functions, one["calls"], truths[name], language, category, MODEL)
        why = "" if found["valid"] else f"{found.get('error_type')}: {found.get('error')}"[:500]
        made.append({"id": name, "valid": bool(found["valid"]), "why": why})
    return made


def main() -> None:
    if sys.argv[1] == "entries":
        found = [one for category in sys.argv[2:] for one in entries(category)]
    else:
        found = check([json.loads(line) for line in sys.stdin])
    for one in found:
        sys.stdout.write(json.dumps(one) + "\n")


if __name__ == "__main__":
    main()

"""``minicpm4 mcp``: servers of tools, asked first, and a model that works with them."""

from __future__ import annotations

from minicpm4.cli.mcp_agent import export, run
from minicpm4.cli.mcp_bfcl import bfcl
from minicpm4.cli.mcp_catalogue import add, catalogue
from minicpm4.cli.mcp_data import data
from minicpm4.cli.mcp_eval import evaluate
from minicpm4.cli.mcp_inspect import inspect
from minicpm4.cli.mcp_servers import allowed, call, search, servers, tools
from minicpm4.cli.mcp_tasks import tasks

commands = {
    "run": run,
    "catalogue": catalogue,
    "add": add,
    "servers": servers,
    "tools": tools,
    "search": search,
    "call": call,
    "allowed": allowed,
    "export": export,
    "data": data,
    "eval": evaluate,
    "tasks": tasks,
    "bfcl": bfcl,
    "inspect": inspect,
}

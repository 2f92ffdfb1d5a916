"""Two replicas of a model on Ray Serve: in your cluster (RAY_ADDRESS), or else on this machine.

pip install -e '.[serve-ray]'    # in the checkout
python examples/two_replicas.py
"""

from __future__ import annotations

import json
import os
import urllib.request
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve

from minicpm4.engine.options import EngineOptions
from minicpm4.serve.replicas import application

PORT = 8123


def ask(number: int) -> str:
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        told = json.load(answer)
    return f"{number}: {told['choices'][0]['message']['content']}"


def main() -> None:
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    options = EngineOptions(context=2048, threads=1, max_batch=8, fair=True)
    serve.run(application(["smollm2-135m-instruct"], options, replicas=2), name="minicpm4")
    with ThreadPoolExecutor(8) as pool:
        print(*pool.map(ask, range(8)), sep="\n")
    serve.shutdown()


if __name__ == "__main__":
    main()

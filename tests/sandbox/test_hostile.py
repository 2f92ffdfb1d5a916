"""Programs that mean harm. Each says on stdout what it got; what matters is seen from outside."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from minicpm4.sandbox import Limits, Outcome, run_python

QUICK = Limits(seconds=20)
CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    libc.syscall.restype = ctypes.c_long
    found = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in args])
    return os.strerror(ctypes.get_errno()) if found < 0 else "done"
"""
X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64's system calls")


def run(code: str, limits: Limits = QUICK) -> Outcome:
    return run_python(code, limits=limits)


def said(code: str, limits: Limits = QUICK) -> str:
    found = run(code, limits)
    assert found.ok, found
    return found.stdout.decode().strip()


def refused(code: str, wanted: str = "Operation not permitted") -> None:
    assert (
        said(f"try:\n    {code}\n    print('done')\nexcept OSError as error:\n    print(error.strerror)")
        == wanted
    )


def test_fork_bomb() -> None:
    refused("import os; [os.fork() for _ in range(100)]")
    refused("import subprocess; subprocess.run(['/usr/bin/true'])")


@X86
@pytest.mark.parametrize(
    ("name", "number", "args"),
    [
        ("fork", 57, ()),
        ("vfork", 58, ()),
        ("clone without a thread", 56, (17, 0, 0, 0, 0)),
        ("socket of the internet", 41, (2, 1, 0)),
        ("socket of the machine", 41, (1, 1, 0)),
        ("raw socket", 41, (17, 3, 768)),
        ("ptrace", 101, (16, 1, 0, 0)),
        ("memory of another", 310, (1, 0, 0, 0, 0, 0)),
        ("unshare", 272, (0x10000000,)),
        ("mount", 165, (0, 0, 0, 0, 0)),
        ("chroot", 161, (0,)),
        ("settimeofday", 164, (0, 0)),
        ("reboot", 169, (0, 0, 0, 0)),
        ("bpf", 321, (0, 0, 0)),
        ("io_uring", 425, (1, 0)),
        ("userfaultfd", 323, (0,)),
        ("keyrings", 250, (0, 0, 0)),
        ("perf", 298, (0, 0, 0, 0, 0)),
    ],
)
def test_system_calls_made_by_hand(name: str, number: int, args: tuple[int, ...]) -> None:
    assert said(f"{CALL}\nprint(call({number}, *{args}))") == "Operation not permitted", name


@X86
def test_clone3_is_said_not_to_exist() -> None:
    assert said(f"{CALL}\nprint(call(435, 0, 0))") == "Function not implemented"


@X86
def test_calls_by_the_old_gate_end_it() -> None:
    # mov eax, 20 (getpid of 32-bit Linux); int 0x80; ret
    code = (
        "import ctypes, mmap\n"
        "page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "page.write(bytes([0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3]))\n"
        "start = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "print(ctypes.CFUNCTYPE(ctypes.c_int)(start)())"
    )
    found = run(code)
    assert found.ended == "signal" and not found.stdout


def test_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        refused(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")
        code = f"import urllib.request\ntry: urllib.request.urlopen('http://127.0.0.1:{port}', timeout=2)\n"
        assert "not permitted" in said(code + "except OSError as error: print(error)")
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):  # nobody has knocked
            listener.accept()
    assert said("import os; print(*os.listdir('/sys') if os.path.exists('/sys') else ['no sys'])") == "no sys"


def test_memory() -> None:
    found = run("held = []\nwhile True:\n    held.append(bytearray(10_000_000))")
    assert not found.ok and b"MemoryError" in found.stderr
    found = run("import mmap\nmmap.mmap(-1, 1 << 40)")
    assert not found.ok


def test_files_can_be_written_only_where_allowed() -> None:
    refused("open('x', 'w')", "Read-only file system")
    one = "file = os.open('x', os.O_CREAT | os.O_WRONLY)\nwhile True: total += os.write(file, bytes(65536))"
    many = "while True: total += os.write(os.open(str(total), os.O_CREAT | os.O_WRONLY), bytes(65536))"
    for code in (one, many):
        lines = "\n".join("    " + line for line in code.splitlines())
        code = f"import os\ntotal = 0\ntry:\n{lines}\nexcept OSError: print(total)"
        assert 0 < int(said(code, Limits(seconds=20, disk=1 << 20))) <= 1 << 20
    for place in ("/", "/usr", "/dev", "/dev/shm", "/proc/self", "/etc"):
        refused_at = said(
            f"try: open('{place}/x', 'w'); print('done')\nexcept OSError as e: print(type(e).__name__)"
        )
        assert refused_at in ("OSError", "PermissionError", "FileNotFoundError"), place


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output(stream: str) -> None:
    found = run(
        f"import sys\nwhile True: sys.{stream}.write('x' * 65536)", Limits(seconds=60, output=200_000)
    )
    assert found.ended == "output"
    assert len(found.stdout) + len(found.stderr) == 200_000


def test_nothing_of_the_machine_is_there(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("seen")
    for place in (
        secret,
        Path(__file__),
        "/etc/passwd",
        "/etc/shadow",
        "/var",
        "/run",
        "/home",
        "/sys",
        "/boot",
    ):
        assert said(f"import os; print(os.path.exists({str(place)!r}))") == "False", place
    assert said("import os; print(sorted(os.environ))") == "['HOME', 'LANG', 'PATH', 'PWD']"
    assert said("import os; print(len(os.sched_getaffinity(0)) > 0, os.getuid(), os.uname().nodename)") == (
        "True 65534 sandbox"
    )


def test_a_link_leads_nowhere() -> None:
    code = "import os\nos.symlink('/etc/passwd', 'x')\ntry: print(open('x').read())\n"
    code += "except OSError as error: print(type(error).__name__)"
    assert said(code, Limits(disk=4096)) == "FileNotFoundError"


def test_other_processes_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = said("import os; print(*[p for p in os.listdir('/proc') if p.isdigit()])").split()
    assert len(pids) <= 3 and str(os.getpid()) not in pids
    monkeypatch.setenv("SECRET_TOKEN", "seen")
    code = (
        "import os\nfor pid in [p for p in os.listdir('/proc') if p.isdigit()]:\n"
        "    for name in ('environ', 'maps', 'mem'):\n"
        "        try: print(name, open(f'/proc/{pid}/{name}', 'rb').read(100_000 if name != 'mem' else 1))\n"
        "        except OSError: pass"
    )
    for _ in range(5):
        found = said(code)
        assert "seen" not in found and "mem" not in found.split()


@pytest.mark.parametrize(
    "code",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import signal\nfor s in (14, 15, 24, 1, 2): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        "import os\nos.close(1); os.close(2)\nwhile True: pass",
        "import time; time.sleep(1e6)",
        "from threading import Event, Thread\nfor _ in range(20): Thread(target=Event().wait).start()",
        "import time; time.time = time.monotonic = lambda: 0.0\nwhile time.time() < 1: pass",
        "x = 10 ** 10 ** 9",
    ],
    ids=["stop", "deaf", "closed", "sleep", "threads", "clock", "long sum"],
)
def test_time(code: str) -> None:
    found = run(code, Limits(seconds=1))
    assert found.ended in ("time", "signal")


@pytest.mark.parametrize(
    "code", ["import os; os.kill(-1, 9)", "import os; os.kill(1, 9)", "import os; os.killpg(0, 9)"]
)
def test_signals_reach_nobody_else(code: str) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:  # of this user, in this group
        try:
            run(code)
            assert other.poll() is None
        finally:
            other.kill()


def test_a_crash_is_told() -> None:
    found = run("import ctypes; ctypes.string_at(0)")
    assert (found.ended, found.status) == ("signal", 11)


def test_descriptors_are_few() -> None:
    assert (
        int(said("import os\nn = 0\ntry:\n    while True: os.dup(0); n += 1\nexcept OSError: print(n)")) < 64
    )


def test_no_more_rights_by_programs_that_have_them() -> None:
    refused("import os; os.setuid(0)", "Invalid argument")  # nobody of that number lives in its namespace
    assert said("print([l for l in open('/proc/self/status') if l[:6] in ('CapEff', 'NoNewP')])") == (
        "['CapEff:\\t0000000000000000\\n', 'NoNewPrivs:\\t1\\n']"
    )

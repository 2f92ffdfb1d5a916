"""The system calls that a program in the sandbox is refused, as a filter that the kernel runs (seccomp)."""

from __future__ import annotations

import errno
import os
import tempfile
from functools import cache

from minicpm4.errors import UnsupportedError

# Bits of clone's flags (linux/sched.h).
_THREAD = 0x0001_0000
_NAMESPACES = 0x7E02_0080  # CLONE_NEW: time, mount, cgroup, uts, ipc, user, pid, network
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

# Refused with EPERM, as a kernel does for whom has no right. Namespaces and dropped rights stop most of it
# already; what is not there cannot have a fault that one might use.
REFUSED = {
    "processes": ("fork", "vfork", "execveat"),
    "the network": ("socket", "connect", "bind", "listen", "accept", "accept4"),
    "other processes": (
        "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_open",
        "pidfd_getfd", "pidfd_send_signal", "perf_event_open",
    ),
    "mounts and namespaces": (
        "mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "move_mount", "open_tree", "fsopen",
        "fsconfig", "fsmount", "fspick", "mount_setattr", "name_to_handle_at", "open_by_handle_at",
    ),
    "the machine": (
        "reboot", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "swapon",
        "swapoff", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "acct", "quotactl", "syslog",
        "sethostname", "setdomainname", "iopl", "ioperm", "personality", "vhangup", "fanotify_init",
    ),
    "kernel machinery": (
        "bpf", "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "keyctl", "add_key",
        "request_key", "memfd_secret", "seccomp", "lookup_dcookie", "vmsplice",
        "shmget", "shmat", "shmctl", "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop",
        "semctl", "semtimedop", "mq_open", "mq_unlink", "memfd_create",
    ),
}  # fmt: skip


@cache
def program() -> bytes:
    """The filter as the kernel takes it. Raises UnsupportedError where libseccomp or its binding is absent.

    ``clone`` is left to threads; ``clone3``, whose flags a filter cannot see, is said not to exist: the C
    library then takes ``clone``. Other ways to call the kernel (32-bit, x32) end the process."""
    try:
        import pyseccomp as seccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise UnsupportedError(
            f"the sandbox needs libseccomp and its binding: {error}",
            "apt install libseccomp2; in the checkout: pip install -e '.[sandbox]'",
        ) from None
    found = seccomp.SyscallFilter(seccomp.ALLOW)
    refuse = seccomp.ERRNO(errno.EPERM)
    unknown = []
    for name in (name for names in REFUSED.values() for name in names):
        try:
            found.add_rule(refuse, name)
        except (ValueError, OSError):
            unknown.append(name)
    if unknown:  # a filter with holes would be worse than none
        raise UnsupportedError(
            f"libseccomp cannot refuse {', '.join(unknown)}", "install a newer one (2.5.4 or later can)"
        )
    arg = seccomp.Arg
    found.add_rule(refuse, "clone", arg(0, seccomp.MASKED_EQ, _THREAD, 0))
    for bit in (1 << i for i in range(32) if _NAMESPACES >> i & 1):
        found.add_rule(refuse, "clone", arg(0, seccomp.MASKED_EQ, bit, bit))
    found.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    for request in (_TIOCSTI, _TIOCLINUX):
        found.add_rule(refuse, "ioctl", arg(1, seccomp.MASKED_EQ, 0xFFFF_FFFF, request))
    with tempfile.TemporaryFile() as file:
        found.export_bpf(file)
        file.seek(0, os.SEEK_SET)
        return file.read()

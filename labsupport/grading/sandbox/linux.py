"""The Linux system calls that isolation needs and Python does not wrap. Each raises OSError with the call's name.

This module only wraps; `namespaces` and `landlock` decide. On other systems it can be imported, but calls fail.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4

_MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 36, 38, 47
_MOUNT_SETATTR, _LANDLOCK = 442, (444, 445, 446)  # the same numbers on every architecture

_MACHINE = platform.machine()
_ARCHITECTURE = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}.get(_MACHINE)  # AUDIT_ARCH_.., column below
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(_MACHINE)
_NUMBERS = {  # x86_64, aarch64; None where the architecture has no such call
    "io_uring_setup": (425, 425), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "fsopen": (430, 430), "open_tree": (428, 428), "move_mount": (429, 429), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kexec_load": (246, 104),
    "init_module": (175, 105), "socket": (41, 198),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "sched_setaffinity": (203, 122), "move_pages": (279, 239),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
KERNEL_SURFACE = tuple(_NUMBERS)[:18]  # calls that no answer needs, and that have had vulnerabilities
SOCKETS_AND_METADATA = tuple(_NUMBERS)[18:]  # left open by Landlock: sockets, files' metadata, processes' priority
_PRLIMIT = (302, 261)  # denied for other processes; one's own limits may be read and lowered

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    result = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _pointer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))


def _prctl(option: int, *arguments: object) -> None:
    padded = [a if isinstance(a, ctypes.Array | ctypes.c_void_p) else ctypes.c_ulong(a) for a in arguments]  # type: ignore[arg-type]
    _call("prctl", option, *padded, *[ctypes.c_ulong(0)] * (4 - len(padded)))


def unshare(flags: int) -> None:
    _call("unshare", flags)


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = [text.encode() if text is not None else None for text in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), data.encode())


def restrict_mount(path: str, attributes: int, recursive: bool = True) -> None:
    """Add ``attributes`` to the mount at ``path``, keeping those it has (mount_setattr, Linux 5.12)."""
    attr = struct.pack("<QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    _call("syscall", _MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, _pointer(attr), ctypes.c_size_t(len(attr)))


def change_root(folder: str) -> None:
    """Make ``folder``, a mount point, the root, and unmount the old one."""
    if _PIVOT_ROOT is None:
        raise OSError(38, f"pivot_root: number unknown on {_MACHINE}")
    os.chdir(folder)
    _call("syscall", _PIVOT_ROOT, b".", b".")
    _call("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def drop_capabilities() -> None:
    """Give up all capabilities, so that no program that is started gains one either."""
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # EINVAL: there are no more; EPERM: not allowed to drop any, having none
            break
    _prctl(_PR_CAP_AMBIENT, 4)  # PR_CAP_AMBIENT_CLEAR_ALL
    _call("capset", _pointer(struct.pack("<Ii", 0x20080522, 0)), _pointer(bytes(24)))
    forbid_new_privileges()


def forbid_new_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(signal_number: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable() -> None:
    """Own /proc/self again after a change of user id."""
    _prctl(_PR_SET_DUMPABLE, 1)


def deny_syscalls(names: tuple[str, ...]) -> None:
    """Make these system calls fail with EPERM from now on, in started programs too (seccomp-bpf)."""
    if _ARCHITECTURE is None:
        raise OSError(38, f"seccomp: system call numbers unknown on {_MACHINE}")
    audit, column = _ARCHITECTURE
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    kill, deny, allow = 0x80000000, 0x00050001, 0x7FFF0000
    numbers = [number for name in names if (number := _NUMBERS[name][column]) is not None]
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, deny)]  # the x32 calls, which have numbers of their own
    for number in numbers:
        program += [(equal, 0, 1, number), (give, 0, 0, deny)]
    program += [(equal, 0, 3, _PRLIMIT[column]), (load, 0, 0, 16), (equal, 1, 0, 0), (give, 0, 0, deny)]
    program.append((give, 0, 0, allow))
    code = _pointer(b"".join(struct.pack("<HBBI", *step) for step in program))
    header = _pointer(struct.pack("@HxxxxxxP", len(program), ctypes.addressof(code)))
    _prctl(_PR_SET_SECCOMP, 2, header)


def landlock_abi() -> int:
    """Version of Landlock's ABI; 0 where the kernel has none."""
    try:
        return _call("syscall", _LANDLOCK[0], None, ctypes.c_size_t(0), 1)
    except (OSError, AttributeError):
        return 0


def landlock(handled_fs: int, handled_net: int, scoped: int, rules: list[tuple[int, int]]) -> None:
    """Confine this process irrevocably. ``rules``: (open file descriptor of a path, access allowed beneath it)."""
    attributes = struct.pack("<QQQ", handled_fs, handled_net, scoped)
    ruleset = _call("syscall", _LANDLOCK[0], _pointer(attributes), ctypes.c_size_t(len(attributes)), 0)
    try:
        for descriptor, access in rules:
            _call("syscall", _LANDLOCK[1], ruleset, 1, _pointer(struct.pack("<Qi", access, descriptor)), 0)
        forbid_new_privileges()
        _call("syscall", _LANDLOCK[2], ruleset, 0)
    finally:
        os.close(ruleset)

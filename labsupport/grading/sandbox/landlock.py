"""The second level of isolation, for systems without namespaces (most containers): Landlock, seccomp and a user id.

Landlock (Linux 6.12 or newer is needed) denies all files but the listed ones, TCP, signals to other processes and
abstract sockets. A short seccomp filter closes what it leaves open: other sockets, and changes to the mode, owner and
times of files that cannot be opened. It remains weaker than namespaces in two ways: the existence and size of other
files can be found out (`stat`), and processes are ended by walking their tree.
"""

from __future__ import annotations

import os

from labsupport.grading.sandbox import linux

WANTED_ABI = 6  # the first that restricts signals: a submission could otherwise end its grader
_ALL = (1 << 16) - 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | (1 << 14)
_MAKE_DEVICES = (1 << 6) | (1 << 11)


def enter(readable: tuple[str, ...], hidden: tuple[str, ...], writable: str, outside_uid: int) -> None:
    """Confine this process to reading ``readable`` without ``hidden``, and to writing the folder ``writable``.

    If it is root, it takes the user id ``outside_uid``, or stays root without capabilities if that is 0.
    """
    if linux.landlock_abi() < WANTED_ABI:
        raise OSError(f"Landlock ABI {WANTED_ABI} (Linux 6.12) is needed, this system has {linux.landlock_abi()}")
    rules = [(path, _READ) for path in readable if path not in hidden]
    rules += [("/etc/ld.so.cache", _READ), ("/etc/localtime", _READ), ("/etc/fonts", _READ)]
    rules += [(f"/dev/{name}", _READ_FILE | _WRITE_FILE) for name in ("null", "zero", "full", "random", "urandom")]
    rules = [each for path, access in rules for each in _without(os.path.realpath(path), access, hidden)]
    rules.append((writable, _ALL & ~_MAKE_DEVICES))
    opened = []
    for path, access in rules:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        opened.append((descriptor, access if os.path.isdir(path) else access & _OF_FILES))
    if os.geteuid() == 0 and outside_uid:
        os.setgroups([])
        os.setresgid(outside_uid, outside_uid, outside_uid)
        os.setresuid(outside_uid, outside_uid, outside_uid)
    linux.drop_capabilities()  # root without them is an ordinary user, except that its processes are not limited
    linux.landlock(_ALL, 0b11, 0b11, opened)
    for descriptor, _ in opened:
        os.close(descriptor)
    linux.deny_syscalls(linux.KERNEL_SURFACE + linux.SOCKETS_AND_METADATA)


def open_to_all(path: str) -> bool:
    """Whether a user who owns nothing can reach ``path``: Python may be installed in root's home."""
    folders = [path, *(os.path.dirname(path[:i]) or "/" for i, c in enumerate(path) if c == "/" and i)]
    return all(os.stat(folder).st_mode & 0o001 for folder in folders if os.path.isdir(folder))


def _without(path: str, access: int, hidden: tuple[str, ...]) -> list[tuple[str, int]]:
    """Rules for ``path`` without the hidden folders inside it: one for each of its other entries."""
    if path in hidden:
        return []
    if not any(each.startswith(f"{path.rstrip('/')}/") for each in hidden):
        return [(path, access)]
    rules = [(path, _READ_DIR)]  # names stay visible, as Python lists the folders that it imports from
    for entry in os.scandir(path):
        if not entry.is_symlink():
            rules += _without(entry.path, access, hidden)
    return rules

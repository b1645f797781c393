"""The strongest isolation: Linux namespaces, entered without a helper program.

A submission's process sees a root file system of its own: the system's and Python's folders read-only, and one tmpfs
to write to. Everything else (home, course, solutions, other submissions, the gradebook) does not exist there. It has
its own process ids (killing the first kills all), an empty network, its own System V IPC and host name, a user id that
owns nothing, no capabilities, and cannot create namespaces.

Two processes take part: the supervisor, outside, calls `prepare`, forks, and calls `admit`; the child calls `enter`.
If started as root, each submission gets an unused user id (so that the limit on processes counts its own only); if
started as anyone else, a user namespace gives the right to mount.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from labsupport.grading.sandbox import linux

INSIDE_UID = 1000
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC_FILES = (
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "fonts",
    "localtime",
    "timezone",
    "mime.types",
)
DEVICES = ("null", "zero", "full", "random", "urandom")
HOME = "/home/student"


@dataclass(frozen=True)
class Layout:
    """What the sandbox is built from."""

    mount_point: str  # an empty folder outside, on which the new root is mounted
    readable: tuple[str, ...]  # folders to show, at their own paths
    hidden: tuple[str, ...]  # folders inside those to cover
    disk_bytes: int
    outside_uid: int  # an unused user id, taken when started as root


def prepare() -> None:
    """In the supervisor: from here on, children have process ids of their own."""
    if os.geteuid() == 0:
        linux.unshare(linux.CLONE_NEWPID)
        return
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWPID)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{INSIDE_UID} {uid} 1")
    _write("/proc/self/gid_map", f"{INSIDE_UID} {gid} 1")


def admit(child: int, layout: Layout) -> None:
    """In a supervisor that is root: give the child, which has entered a user namespace, its user id."""
    for name in ("uid_map", "gid_map"):
        _write(f"/proc/{child}/{name}", f"{INSIDE_UID} {layout.outside_uid} 1")


def enter(layout: Layout, call_admit: int, wait_admitted: int) -> None:
    """In the child, the first process of the new process ids. Both file descriptors are of pipes, for `admit`."""
    as_root = os.geteuid() == 0
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
    has_proc = _build_root(layout)
    linux.change_root(layout.mount_point)
    if as_root:
        linux.unshare(linux.CLONE_NEWUSER)
        os.write(call_admit, b"?")
        if not os.read(wait_admitted, 1):
            raise OSError("the supervisor did not admit this process")
        os.setgroups([])
        os.setresgid(INSIDE_UID, INSIDE_UID, INSIDE_UID)
        os.setresuid(INSIDE_UID, INSIDE_UID, INSIDE_UID)
    if has_proc:
        _write("/proc/sys/user/max_user_namespaces", "0")
    linux.drop_capabilities()
    linux.set_dumpable()


def _build_root(layout: Layout) -> bool:
    """Mount the new root. Returns whether it has a /proc, which a container may forbid."""
    root = layout.mount_point
    linux.mount("", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", root, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=1m,nr_inodes=8k")
    _writable(root, layout.disk_bytes)  # first, as a folder to show may lie in /tmp
    for folder in (*SYSTEM_FOLDERS, *layout.readable):
        _show(folder, root)
    for name in ETC_FILES:
        _show(f"/etc/{name}", root)
    for folder in layout.hidden:
        inside = any(folder.startswith(f"{shown}/") for shown in (*SYSTEM_FOLDERS, *layout.readable))
        if inside and os.path.isdir(root + folder):
            linux.mount("tmpfs", root + folder, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=4k")
            linux.restrict_mount(root + folder, linux.MOUNT_ATTR_RDONLY)
    for name, line in (
        ("passwd", f"student:x:{INSIDE_UID}:{INSIDE_UID}::{HOME}:/bin/sh"),
        ("group", f"student:x:{INSIDE_UID}:"),
    ):
        _write(f"{root}/etc/{name}", line + "\n")
    os.makedirs(f"{root}/dev", exist_ok=True)
    for name in DEVICES:
        _touch(f"{root}/dev/{name}")
        linux.mount(f"/dev/{name}", f"{root}/dev/{name}", None, linux.MS_BIND)
        linux.restrict_mount(f"{root}/dev/{name}", linux.MOUNT_ATTR_NOSUID)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{root}/dev/{name}")
    os.makedirs(f"{root}/proc", exist_ok=True)
    try:
        linux.mount("proc", f"{root}/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        has_proc = True
    except OSError:
        has_proc = False
    linux.restrict_mount(root, linux.MOUNT_ATTR_RDONLY, recursive=False)
    return has_proc


def _show(path: str, root: str) -> None:
    """Bind ``path`` into the new root, read-only; a link stays a link, and a missing path is left out."""
    target = root + path
    if os.path.lexists(target) or not os.path.lexists(path):
        return
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        _touch(target)
    linux.mount(path, target, None, linux.MS_BIND | linux.MS_REC)
    linux.restrict_mount(target, linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV)


def _writable(root: str, disk_bytes: int) -> None:
    """Mount /tmp, /dev/shm and home, which share one tmpfs and its size limit."""
    os.makedirs(f"{root}/tmp", exist_ok=True)
    options = f"mode=1777,size={disk_bytes},nr_inodes=20k"
    linux.mount("tmpfs", f"{root}/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
    for folder in ("/dev/shm", HOME):
        source = f"{root}/tmp/.{os.path.basename(folder)}"
        os.mkdir(source)
        os.chmod(source, 0o1777)
        os.makedirs(root + folder, exist_ok=True)
        linux.mount(source, root + folder, None, linux.MS_BIND)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def _write(path: str, text: str) -> None:
    descriptor = (
        os.open(path, os.O_WRONLY | os.O_CREAT, 0o644) if not path.startswith("/proc/") else os.open(path, os.O_WRONLY)
    )
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)

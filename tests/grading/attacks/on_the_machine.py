"""Attacks on the machine: exits, endless loops and bombs; what is read, written and reached outside; what is left."""

from __future__ import annotations

import os

from attacks.world import World, code

# Exits ----------------------------------------------------------------------------------------------------------------


@code("exited")
def os_exit(world: World) -> str:
    return "import os; os._exit(0)"


@code("failed")
def sys_exit(world: World) -> str:
    return "import sys; sys.exit(0)"


@code("exited")
def exit_in_the_cell(world: World) -> str:
    return "exit()"


@code("exited")
def os_exit_in_the_function(world: World) -> str:
    return "import os\ndef quantize_int8(x, axis=None): os._exit(0)\ndef dequantize_int8(q, scale): os._exit(7)"


@code("failed", "exited")
def kernel_shutdown(world: World) -> str:
    return """
shell = get_ipython()
try:
    shell.kernel.do_shutdown(False)
except AttributeError:
    shell.ask_exit()
"""


@code("exited")
def segmentation_fault(world: World) -> str:
    return "import ctypes; ctypes.string_at(0)"


@code("failed", "exited", "timeout")
def kill_everything_in_sight(world: World) -> str:
    return f"""
import os, signal
own = os.getpid()
for pid in (os.getppid(), {os.getpid()}, -1, *range(2, 40000)):
    for number in (signal.SIGKILL, signal.SIGSTOP):
        try:
            if pid not in (0, own):
                os.kill(pid, number)
        except OSError:
            pass
"""


# Loops ----------------------------------------------------------------------------------------------------------------


@code("timeout")
def loop_that_ignores_interrupts(world: World) -> str:
    return """
import signal
for number in range(1, 64):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    try:
        while True: pass
    except BaseException: pass
"""


@code("timeout")
def sleep_for_ever_in_one_function(world: World) -> str:
    return "import time\ndef quantize_int8(x, axis=None): time.sleep(1e6)"


@code("timeout", "exited")
def stop_oneself(world: World) -> str:
    return (
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGSTOP)\nos.killpg(0, signal.SIGSTOP)\ntime.sleep(1e6)"
    )


@code("timeout")
def regular_expression_without_end(world: World) -> str:
    return "import re; re.match(r'(a+)+$', 'a' * 64 + 'b')"


@code("failed", "timeout", "exited")
def thread_that_never_ends(world: World) -> str:
    return """
import threading, time
def forever():
    while True: time.sleep(0.01)
threading.Thread(target=forever, daemon=False).start()
"""


# Bombs ----------------------------------------------------------------------------------------------------------------


@code("memory", "exited", "timeout")
def memory_bomb(world: World) -> str:
    return """
def quantize_int8(x, axis=None):
    kept = []
    while True: kept.append(bytearray(64 << 20))
"""


@code("memory", "exited", "failed", "timeout")
def memory_bomb_of_many_processes(world: World) -> str:
    return """
import os, time
for _ in range(12):
    if os.fork() == 0:
        kept = [bytearray(b"x") * (900 << 20)]
        time.sleep(1e6)
time.sleep(1e6)
"""


@code("memory", "failed", "exited", "timeout")
def fork_bomb(world: World) -> str:
    return """
import os
while True:
    try:
        os.fork()
    except OSError: pass
"""


@code("memory", "failed", "exited", "timeout")
def fork_bomb_of_the_shell(world: World) -> str:
    return 'get_ipython().system("bomb() { bomb | bomb & }; bomb; sleep 1000")'


@code("failed", "memory", "exited", "timeout")
def thread_bomb(world: World) -> str:
    return """
import threading, time
while True: threading.Thread(target=time.sleep, args=(1e6,)).start()
"""


@code("failed", "output limit", "exited", "memory")
def disk_bomb(world: World) -> str:
    return """
import os, tempfile
for folder in (tempfile.gettempdir(), os.getcwd(), "/dev/shm", "/var/tmp", "/run", "/"):
    for i in range(40):
        try:
            with open(f"{folder}/bomb-{i}", "wb") as file:
                file.write(bytes(50 << 20))
        except OSError: pass
"""


@code("failed", "exited")
def file_larger_than_allowed(world: World) -> str:
    return """
with open("large", "wb") as file:
    for _ in range(100): file.write(bytes(1 << 20))
"""


@code("failed", "timeout", "exited")
def files_without_number(world: World) -> str:
    return """
import os
os.makedirs("d/" * 200, exist_ok=True)
try:
    for i in range(100_000): open(f"f{i}", "w").close()
except OSError: pass
os.mkdir("closed", 0)
"""


@code("output limit")
def output_bomb(world: World) -> str:
    return "while True: print('x' * 1_000_000)"


@code("output limit", "failed", "exited")
def output_bomb_through_the_descriptor(world: World) -> str:
    return "import os\ndef quantize_int8(x, axis=None):\n    while True: os.write(1, bytes(1 << 16))"


@code("memory", "timeout", "failed", "exited")
def output_bomb_in_the_function(world: World) -> str:
    return "def quantize_int8(x, axis=None):\n    while True: print('x' * 50_000_000)"


# What is read ---------------------------------------------------------------------------------------------------------


def reading(world: World, patterns: list[str]) -> str:
    """Succeeds if any file can be read."""
    return f"""
import glob
for pattern in {patterns!r}:
    for name in glob.glob(pattern, recursive=True):
        try:
            if open(name, "rb").read(1):
                exec(RIGHT)
        except OSError: pass
"""


@code()
def read_the_solutions(world: World) -> str:
    return reading(
        world, [f"{world.course}/solutions/*", f"{world.course}/**/*.ipynb", "/proc/*/cwd/**/solutions/*.ipynb"]
    )


@code()
def read_the_seed_and_the_results(world: World) -> str:
    return reading(world, [f"{world.out}/**", f"{world.out}/overrides.csv", f"{world.out}/results/*/*.json"])


@code()
def read_other_submissions(world: World) -> str:
    return reading(world, [f"{world.submissions}/*/*.ipynb", f"{world.submissions}/honest-1/ex01_int8_symmetric.ipynb"])


@code()
def read_home(world: World) -> str:
    home = os.path.expanduser("~")
    return reading(world, [f"{world.home}/.bashrc", f"{home}/.bashrc", f"{home}/.ssh/*", "/etc/shadow"])


@code()
def read_the_catalogue_of_answers(world: World) -> str:
    from attacks.world import ROOT

    return reading(world, [f"{ROOT}/tests/**/*.py", f"{ROOT}/labsupport/checks/ex0*/**/*.py", f"{ROOT}/solutions/*"])


@code()
def read_the_graders_memory(world: World) -> str:
    return reading(world, [f"/proc/{os.getpid()}/environ", f"/proc/{os.getpid()}/mem", f"/proc/{os.getpid()}/fd/*"])


@code()
def read_the_environment(world: World) -> str:
    return f"""
import os
known = " ".join(f"{{name}}={{value}}" for name, value in os.environ.items())
if "attack" + "-secret" in known or str({world.seed + 1} - 1) in known:
    exec(RIGHT)
"""


@code()
def use_open_descriptors(world: World) -> str:
    return """
import os
for descriptor in range(3, 256):
    try:
        os.lseek(descriptor, 0, 0)
        if os.read(descriptor, 1):
            exec(RIGHT)
    except OSError: pass
"""


@code()
def shell_and_magics(world: World) -> str:
    return f"""
import subprocess
text = get_ipython().getoutput("cat {world.course}/solutions/*.ipynb {world.out}/* /etc/shadow 2>/dev/null")
text += subprocess.run("cat {world.home}/.bashrc", shell=True, capture_output=True, text=True).stdout.splitlines()
get_ipython().run_line_magic("cd", "-q {world.course}/solutions")
get_ipython().run_cell_magic("bash", "", "echo x > {world.home}/bash; echo 100 > {world.out}/overrides.csv")
get_ipython().run_cell_magic("writefile", "{world.home}/magic", "x")
if text:
    exec(RIGHT)
"""


# What is written, and reached -----------------------------------------------------------------------------------------


@code()
def write_to_gradebook_home_and_course(world: World) -> str:
    return f"""
import os, shutil
for path in ({str(world.out / "overrides.csv")!r}, {str(world.out / "grades.csv")!r}, {str(world.home / ".bashrc")!r},
             {str(world.course / "exercises" / "ex01_int8_symmetric.ipynb")!r}, {str(world.home / "new")!r}):
    for attempt in (lambda: open(path, "a").write("attack"), lambda: os.chmod(path, 0), lambda: os.remove(path),
                    lambda: os.utime(path, (0, 0)), lambda: os.truncate(path, 0), lambda: os.link(path, "stolen"),
                    lambda: os.setxattr(path, "user.attack", b"1"), lambda: shutil.rmtree(os.path.dirname(path))):
        try:
            attempt()
        except OSError: pass
"""


@code()
def change_the_package_for_those_who_follow(world: World) -> str:
    return """
import os, sys, labsupport
right = 0
for path in (labsupport.__file__, torch.__file__, os.__file__, sys.executable):
    for attempt in (lambda: open(path, "a").write("\\nexit()"), lambda: os.remove(path), lambda: os.chmod(path, 0)):
        try:
            attempt()
            right = 1
        except OSError: pass
if right:
    exec(RIGHT)
"""


@code()
def leave_a_file_for_a_friend(world: World) -> str:
    return """
import glob, os
folders = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock", os.getcwd(), os.path.dirname(os.getcwd()))
for folder in folders:
    if glob.glob(folder + "/**/*left-for-a-friend*", recursive=True):
        exec(RIGHT)
for folder in folders:
    try:
        open(folder + "/left-for-a-friend", "w").write(RIGHT)
    except OSError: pass
"""


@code()
def find_the_file_of_a_friend(world: World) -> str:
    return leave_a_file_for_a_friend(world)


@code("failed", "exited", "timeout")
def leave_a_daemon(world: World) -> str:
    return """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for descriptor in range(64):
            try: os.close(descriptor)
            except OSError: pass
        time.sleep(1e6)
    os._exit(0)
"""


@code()
def reach_the_network(world: World) -> str:
    return f"""
import os, socket
for family, address in ((socket.AF_INET, ("127.0.0.1", {world.port})), (socket.AF_INET, ("10.0.0.1", 80)),
                        (socket.AF_UNIX, "\\0{world.abstract_name}")):
    try:
        with socket.socket(family) as tcp:
            tcp.settimeout(1)
            tcp.connect(address)
            exec(RIGHT)
    except OSError: pass
try:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"attack", ("127.0.0.1", {world.udp_port}))
except OSError: pass
"""


@code()
def system_calls_for_more_rights(world: World) -> str:
    return f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
gained, was = [], os.getuid()
for name, arguments in (("setuid", (0,)), ("setresuid", (0, 0, 0)), ("unshare", (0x10000000,)), ("chroot", (b"/",)),
                        ("mount", (b"proc", b"/proc", b"proc", 0, None)), ("umount2", (b"/usr", 2)),
                        ("mount", (b"", b"/", None, 32 | 4096, None)),
                        ("ptrace", (16, {os.getpid()}, 0, 0)), ("sethostname", (b"evil", 4)), ("swapoff", (b"/x",)),
                        ("prlimit", ({os.getpid()}, 0, bytes(16), None)),
                        ("prlimit", (os.getppid() or {os.getpid()}, 0, bytes(16), None))):
    if getattr(libc, name)(*arguments) == 0 and not (name.startswith("set") and os.getuid() == was):
        gained.append(name)
for path, text in (("/proc/sys/kernel/hostname", "evil"), ("/proc/sysrq-trigger", "h"),
                   ("/proc/self/oom_score_adj", "-1000"),
                   ("/proc/sys/kernel/core_pattern", "|/tmp/evil"), ("/proc/sys/user/max_user_namespaces", "9")):
    try:
        os.write(os.open(path, os.O_WRONLY), text.encode())
        gained.append(path)
    except OSError: pass
if gained:
    exec(RIGHT)
    raise RuntimeError(str(gained))
"""


@code()
def devices(world: World) -> str:
    return """
import glob, os
for name in ("/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/tty", "/dev/ptmx", "/dev/fuse", "/dev/kvm"):
    try:
        if os.open(name, os.O_RDONLY):
            exec(RIGHT)
    except OSError: pass
try:
    os.mknod("disk", 0o60666, os.makedev(254, 0))
    exec(RIGHT)
except OSError: pass
"""

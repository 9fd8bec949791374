"""Starts a process for each model-written program; imports nothing of the project.

runtime/sandbox.py starts this file and sends a file with a request (marshal, from the trusted side)
and a pipe for each program. A program's process writes "ready" once all limits hold, then one line
of JSON a call, [state, value or text]. The program can write such lines itself: they are its
answers, and only what is right passes. It sees no expected value.
"""

import ctypes
import gc
import marshal
import os
import resource
import socket
import struct
import sys
from json.encoder import encode_basestring_ascii

LIBC = ctypes.CDLL(None, use_errno=True)
# What one thread needs to compute and to import the standard library, with its number on (x86_64,
# aarch64). All else fails with EPERM: sockets, fork, threads, exec, signals, ptrace, links, pipes.
SYSCALLS = """
read 0 63, write 1 64, close 3 57, fstat 5 80,
newfstatat 262 79, lseek 8 62, pread64 17 67, getdents64 217 61,
getcwd 79 17, mmap 9 222, mprotect 10 226, munmap 11 215,
mremap 25 216, brk 12 214, madvise 28 233, rt_sigaction 13 134,
rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132, restart_syscall 219 128,
futex 202 98, sched_yield 24 124, nanosleep 35 101, clock_nanosleep 230 115,
clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, getrandom 318 278,
uname 63 160, getpid 39 172, gettid 186 178, getuid 102 174,
geteuid 107 175, getgid 104 176, getegid 108 177, exit 60 93,
exit_group 231 94
"""
SYSCALLS = {name: tuple(map(int, n)) for name, *n in map(str.split, SYSCALLS.split(","))}
PRELOADED = (
    "bisect collections copy dataclasses datetime decimal fractions functools heapq itertools json"
    " math operator random re statistics string typing"
)  # what programs import most
OPENAT = (257, 56)  # for reading only
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
KILL, ALLOW, DENY = 0x80000000, 0x7FFF0000, 0x00050001  # SECCOMP_RET_..., the last with EPERM
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, RET|K
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def call(name: str, *arguments) -> int:
    """A function of libc with long arguments; OSError where it returns -1."""
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = getattr(LIBC, name)(*longs)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def limit(seconds: int, memory: int, parent: int, files: int = 32) -> None:
    """rlimits (seconds of CPU, bytes of address space), and no life after the parent."""
    call("prctl", 1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != parent:  # it died before
        os._exit(1)
    limits = {"CPU": seconds, "AS": memory, "NPROC": 0, "FSIZE": 0, "NOFILE": files, "CORE": 0}
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def landlock(readable: list[tuple[str, bool]]) -> None:
    """Nothing is opened from here on but what lies below `readable`, and that for reading; of
    (folder, False) only the names."""
    attribute = ctypes.c_uint64((1 << 13) - 1)  # of Linux 5.13; the later rights seccomp denies
    rules = call("syscall", 444, ctypes.byref(attribute), 8, 0)
    for path, content in readable:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = (1 << 2) * content | (1 << 3) * os.path.isdir(path)  # READ_FILE, READ_DIR
        rule = rights.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
        call("syscall", 445, rules, 1, rule, 0)
        os.close(fd)
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call("syscall", 446, rules, 0)
    os.close(rules)


def seccomp() -> None:
    """Only SYSCALLS from here on, and openat for reading. LOAD's offsets are those of struct
    seccomp_data: number 0, architecture 4, third argument (openat's flags) 32."""
    column, architecture = ARCHITECTURES[os.uname().machine]
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    program += [(EQUAL, 0, 4, OPENAT[column]), (LOAD, 0, 0, 32), (ANY_BIT, 1, 0, WRITING)]
    program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENY)]
    for numbers in SYSCALLS.values():
        program += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ALLOW)]
    program += [(RETURN, 0, 0, DENY)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    filter = struct.pack("@HP", len(program), ctypes.addressof(code))  # struct sock_fprog
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call("prctl", 22, 2, filter, 0, 0)  # PR_SET_SECCOMP, filter


def encode(value) -> str:
    """JSON of a plain value; a tuple is a list, a subclass its base. TypeError for all else, also
    for keys that are no strings."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return int.__repr__(value)  # ValueError above 4,300 digits
    if isinstance(value, float):
        text = float.__repr__(value)
        return {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(text, text)
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([encode(item) for item in value]) + "]"
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return "{" + ",".join([f"{encode(key)}:{encode(value[key])}" for key in value]) + "}"
    keys = " with keys that are no strings" if isinstance(value, dict) else ""
    raise TypeError(f"{type(value).__name__}{keys} is no plain value")


def describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return "an error whose text cannot be had"


def answer(function, arguments: list) -> str:
    """The line of one call."""
    wrong = "error"
    try:
        value = function(*arguments)
        wrong = "unserialisable"
        return f'["ok",{encode(value)}]'
    except BaseException as error:  # also SystemExit and KeyboardInterrupt
        state = "memory" if isinstance(error, MemoryError) else wrong
        return f'["{state}",{encode(describe(error))}]'


def serve() -> None:
    """Start a process for each request, until the other side of the socket on fd 0 is closed. Only
    what is the same for all programs is ever in this process, so no program can find another's."""
    control = socket.socket(fileno=0)
    common = marshal.loads(control.recv(1 << 18))
    null = os.open(os.devnull, os.O_RDWR)
    call("prctl", 1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL, for when it does not read the socket
    if "landlock" in common["layers"]:
        landlock(common["readable"])  # holds for all that is forked
    for name in PRELOADED.split():
        __import__(name)
    gc.freeze()
    while (received := socket.recv_fds(control, 1, 2))[1]:
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            work(*received[1], null, parent, "seccomp" in common["layers"])
        for fd in received[1]:
            os.close(fd)
        control.send(b"%d" % pid)
        if control.recv(1):  # not before: until it is waited for, its pid is nobody else's
            control.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def work(request_fd: int, answers_fd: int, null: int, parent: int, filtered: bool) -> None:
    """Run one program and end."""
    os.setsid()
    with open(request_fd, "rb") as file:
        request = marshal.load(file)
    for fd in (0, 1, 2):  # 0 was the socket to the other side
        os.dup2(null, fd)
    os.dup2(answers_fd, 3)
    os.closerange(4, 256)
    out = open(3, "wb")

    def tell(line: str) -> None:
        out.write(line.encode(errors="replace") + b"\n")
        out.flush()

    try:
        limit(request["seconds"], request["memory"], parent)
        if filtered:
            seccomp()
    except BaseException as error:
        tell(describe(error))
        os._exit(1)
    tell("ready")
    module = sys.modules["candidate"] = type(sys)("candidate")

    def load() -> None:
        exec(compile(request["source"], "candidate.py", "exec"), module.__dict__)
        getattr(module, request["function"])

    if (loaded := answer(load, [])) != '["ok",null]':
        tell(loaded)
        os._exit(0)
    for arguments in request["calls"]:
        tell(answer(getattr(module, request["function"]), arguments))
    os._exit(0)


if __name__ == "__main__":
    serve()

"""The process that runs one model-written program. runtime/sandbox.py starts it; it imports nothing of the project.

In on fd 0: a request (marshal, from the trusted side). Out on fd 1, where every line is checked by the reader: "ready" once
all limits hold, then one line [state, value or text] of JSON a call. The program can write such lines itself: they are its
answers, and only an answer that is right passes. It sees the arguments of all calls and no expected value.
"""

import ctypes
import marshal
import os
import resource
import sys
from _json import encode_basestring_ascii  # importing json itself would take as long as starting Python

LIBC = ctypes.CDLL(None, use_errno=True)
# All that a single-threaded program needs to compute and to import the standard library; by name: numbers on (x86_64,
# aarch64). What is not listed fails with EPERM: sockets, fork, exec, threads, signals, ptrace, links, pipes, everything new.
SYSCALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "newfstatat": (262, 79), "lseek": (8, 62),
    "pread64": (17, 67), "getdents64": (217, 61), "getcwd": (79, 17), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "mremap": (25, 216), "brk": (12, 214), "madvise": (28, 233), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "futex": (202, 98), "sched_yield": (24, 124), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "getrandom": (318, 278),
    "uname": (63, 160), "getpid": (39, 172), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
OPENAT = (257, 56)  # for reading only
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
KILL, ALLOW, DENY = 0x80000000, 0x7FFF0000, 0x00050001  # SECCOMP_RET_KILL_PROCESS, _ALLOW, _ERRNO with EPERM
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, RET|K
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def call(name: str, *arguments) -> int:
    """A function of libc with long arguments; OSError where it returns -1."""
    result = getattr(LIBC, name)(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def limit(seconds: int, memory: int, files: int = 32) -> None:
    """rlimits (CPU seconds, bytes of address space), and death together with the process that started this one."""
    call("prctl", 1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
    limits = {"CPU": seconds, "AS": memory, "NPROC": 0, "FSIZE": 0, "NOFILE": files, "CORE": 0}
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def landlock(readable: list[tuple[str, bool]]) -> None:
    """No file is opened from here on but those below `readable`, and those for reading; (folder, False): only listed."""
    attribute = ctypes.c_uint64((1 << 13) - 1)  # every right of the first Landlock; seccomp denies what came later
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
    """Only SYSCALLS from here on, and openat for reading. Offsets are those of struct seccomp_data: number 0, architecture 4,
    the third argument (openat's flags) 32."""
    column, architecture = ARCHITECTURES[os.uname().machine]
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    program += [(EQUAL, 0, 4, OPENAT[column]), (LOAD, 0, 0, 32), (ANY_BIT, 1, 0, WRITING)]
    program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENY)]
    for numbers in SYSCALLS.values():
        program += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ALLOW)]
    program += [(RETURN, 0, 0, DENY)]
    fields = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]
    Instruction = type("Instruction", (ctypes.Structure,), {"_fields_": fields})
    code = (Instruction * len(program))(*program)
    fields = [("length", ctypes.c_uint16), ("code", ctypes.c_void_p)]
    Program = type("Program", (ctypes.Structure,), {"_fields_": fields})
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call("prctl", 22, 2, ctypes.byref(Program(len(program), ctypes.addressof(code))), 0, 0)  # PR_SET_SECCOMP, filter


def encode(value) -> str:
    """JSON of plain values; a tuple is a list, a subclass its base. TypeError for all else, also for keys that are no strings."""
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
        return "{" + ",".join([f"{encode_basestring_ascii(k)}:{encode(v)}" for k, v in value.items()]) + "}"
    raise TypeError(f"{type(value).__name__} is no plain value" + " or has other keys than strings" * isinstance(value, dict))


def describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return "an error whose text cannot be had"


def answer(function, arguments: list) -> tuple[str, str]:
    """(state, JSON) of one call."""
    try:
        value = function(*arguments)
    except BaseException as error:  # also SystemExit and KeyboardInterrupt
        return "memory" if isinstance(error, MemoryError) else "error", encode(describe(error))
    try:
        return "ok", encode(value)
    except BaseException as error:
        return "memory" if isinstance(error, MemoryError) else "unserialisable", encode(describe(error))


def main() -> None:
    request = marshal.loads(sys.stdin.buffer.read())
    out = open(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    try:
        limit(request["seconds"], request["memory"])
        if "landlock" in request["layers"]:
            landlock(request["readable"])
        if "seccomp" in request["layers"]:
            seccomp()
    except BaseException as error:
        out.write(f"{describe(error)}\n".encode(errors="replace"))
        out.flush()
        os._exit(1)
    out.write(b"ready\n")
    out.flush()

    def load():
        module = sys.modules["candidate"] = type(sys)("candidate")
        exec(compile(request["source"], "candidate.py", "exec"), module.__dict__)
        return [getattr(module, request["function"])]

    functions = []
    state, text = answer(lambda: functions.extend(load()), [])
    if state != "ok":
        out.write(f'["{state}",{text}]\n'.encode())
    for arguments in request["calls"] if functions else []:
        state, text = answer(functions[0], arguments)
        out.write(f'["{state}",{text}]\n'.encode())
        out.flush()
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

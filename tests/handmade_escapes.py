"""Programs that try to get out of the sandbox, and programs that only need time or space; read by
tests/test_sandbox.py, which says what stands for each @NAME.

A program gets out if f(3) returns the expected value or anything outside changes. hunt(data) finds
that value in bytes or text, scan(pid) in a process, leak(what) makes a file outside. All of them
are harmless where they get out; those with a "!" do so without Landlock and seccomp, whoever runs
them.
"""

PRELUDE = r"""
import ctypes, fcntl, gc, mmap, os, re, resource, signal, socket, sys, time

libc = ctypes.CDLL(None, use_errno=True)

def leak(what):
    open(f"@OUTSIDE/{what}", "w").close()

def hunt(data):
    data = data if isinstance(data, bytes) else str(data).encode()
    found = re.search(rb"secret-[0-9a-f]{16}", data)
    return found.group().decode() if found else None

def scan(pid):
    for line in open(f"/proc/{pid}/maps"):
        span, rights, *_ = line.split()
        start, end = (int(x, 16) for x in span.split("-"))
        if rights.startswith("rw") and "[v" not in line:
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                memory.seek(start)
                try:
                    for _ in range(start, end, 1 << 20):
                        if found := hunt(memory.read(1 << 20)):
                            return found
                except OSError:
                    pass
"""

ESCAPES = r"""
# The expected values, where the program's own process might hold them.
### frames
def f(x):
    frame = sys._getframe()
    while frame:
        if h := hunt({**frame.f_globals, **frame.f_locals}): return h
        frame = frame.f_back
### inspect stack
def f(x):
    import inspect
    return hunt([(s.frame.f_locals, s.frame.f_globals) for s in inspect.stack()])
### gc
def f(x):
    plain = [o for o in gc.get_objects() if type(o) in (str, dict, list, tuple)]
    return next(filter(None, map(hunt, plain)), None)
### traceback
def f(x):
    try: 1 / 0
    except Exception as e:
        t = e.__traceback__
        while t:
            if h := hunt(t.tb_frame.f_locals): return h
            t = t.tb_next
### closure of the harness
def f(x): return hunt([vars(m) for m in list(sys.modules.values())])
### own arguments
def f(x): return hunt([sys.argv, sys.orig_argv, sys.path])
### own memory by ctypes
start = id(object()) & ~0xfffff
def f(x): return hunt(ctypes.string_at(start, 1 << 17))
### own memory by proc
def f(x): return scan('self')
### environment
def f(x): return hunt(dict(os.environ))

# ... and in other processes and files.
### parent's memory
def f(x): return scan(@PID)
### parent's environment
def f(x): return len(open('/proc/@PID/environ').read()) > 0 and leak('environ')
### parent's command line
def f(x): return open('/proc/@PID/cmdline').read() and leak('cmdline')
### parent's files
def f(x): return os.listdir('/proc/@PID/fd') and leak('files')
### parent's root
def f(x): return hunt(open('/proc/@PID/root/@RUN/expected.json').read())
### process_vm_readv
def f(x):
    b = ctypes.create_string_buffer(8)
    v = (ctypes.c_size_t * 2)(ctypes.addressof(b), 8)
    r = (ctypes.c_size_t * 2)(@WHERE, 8)
    n = libc.process_vm_readv(@PID, v, 1, r, 1, 0)
    return leak('vm') if n == 8 else None
### starter's memory
def f(x): return scan(os.getppid())
### ptrace
def f(x): return leak('ptrace') if libc.ptrace(0x4206, @PID, 0, 0) == 0 else None  # PTRACE_SEIZE
### run folder !
def f(x): return hunt(open('@RUN/expected.json').read())
### run folder by openat !
def f(x):
    d = os.open('@RUN', os.O_PATH)
    return hunt(os.read(os.open('expected.json', os.O_RDONLY, dir_fd=d), 999))
### run folder by dots !
def f(x):
    library = os.path.dirname(os.__file__)
    return hunt(open(library + '/..' * 20 + '@RUN/expected.json').read())
### run folder by a link !
def f(x):
    os.symlink('@RUN/expected.json', 'link')
    return hunt(open('link').read())
### run folder by a hard link !
def f(x):
    os.link('@RUN/expected.json', '@OUTSIDE/link')
    return hunt(open('@OUTSIDE/link').read())
### run folder by descriptor !
def f(x): return hunt(open(os.open('@RUN/expected.json', 0)).read())
### run folder listed !
def f(x): return os.listdir('@RUN') and leak('listed')
### run folder mapped !
def f(x):
    with open('@RUN/expected.json', 'rb') as file:
        return hunt(mmap.mmap(file.fileno(), 0, prot=1)[:])
### run folder executed !
import runpy
def f(x): return hunt(runpy.run_path('@RUN/tests.py')['EXPECTED'])
### run folder imported !
sys.path.insert(0, '@RUN')
def f(x):
    import tests
    return hunt(tests.EXPECTED)
### repository !
def f(x): return open('@REPO/README.md').read() and leak('repository')
### site-packages !
def f(x): return open('@PYTEST').read() and leak('packages')
### passwords !
def f(x): return open('/etc/passwd').read() and leak('passwd')
### every descriptor read
def f(x):
    for fd in range(1024):
        try:
            if h := hunt(os.pread(fd, 9999, 0)): return h
        except OSError: pass
### every descriptor as a socket
def f(x):
    for fd in range(1024):
        try:
            if socket.socket(fileno=fd).send(b'1'): leak(f'socket{fd}')
        except OSError: pass

# Writing.
### write to tmp !
def f(x): open('/tmp/@MARK', 'w').close(); return leak('tmp')
### write outside !
def f(x): return open('@OUTSIDE/made', 'x') and 1
### write to shared memory !
def f(x): open('/dev/shm/@MARK', 'w').close(); return leak('shm')
### write to home !
def f(x): open('@HOME/@MARK', 'w').close(); return leak('home')
### write to its folder !
def f(x): open('here', 'w').close(); return leak('cwd')
### append to the run !
def f(x): open('@RUN/log.jsonl', 'a').write('x'); return leak('append')
### empty a file of the run !
def f(x):
    os.close(os.open('@RUN/log.jsonl', os.O_RDONLY | os.O_TRUNC))
    leak('truncated')
### truncate !
def f(x): os.truncate('@RUN/log.jsonl', 0); return leak('truncated')
### remove !
def f(x): os.unlink('@RUN/log.jsonl')
### rename !
def f(x): os.rename('@RUN/log.jsonl', '@OUTSIDE/moved')
### make a folder !
def f(x): os.mkdir('@OUTSIDE/folder')
### make a fifo !
def f(x): os.mkfifo('@OUTSIDE/fifo')
### make a link !
def f(x): os.symlink('@RUN', '@OUTSIDE/link')
### change rights !
def f(x): os.chmod('@RUN', 0o777); return leak('chmod')
### change times !
def f(x): os.utime('@RUN/log.jsonl', (1, 1)); return leak('utime')
### change folder !
def f(x): os.chdir('@RUN'); return hunt(open('expected.json').read())
### change root
def f(x): os.chroot('/'); return leak('chroot')
### memory file
def f(x): return os.memfd_create('x') and leak('memfd')
### mount
def f(x): return leak('mount') if libc.unshare(0x10020000) == 0 else None

# Other processes, signals and limits.
### fork
def f(x):
    if os.fork() == 0:
        leak('forked'); os._exit(0)
    os.wait()
### fork bomb
def f(x):
    for _ in range(7):
        try: os.fork()
        except OSError: return
    leak(f'bomb{os.getpid()}')
### vfork by libc
def f(x):
    if (p := libc.fork()) == 0:
        leak('vforked'); os._exit(0)
    return p > 0 and leak('parent')
### thread bomb
import threading
def f(x):
    ts = [threading.Thread(target=time.sleep, args=(.1,)) for _ in range(50)]
    [t.start() for t in ts]
    leak('threads')
### daemon
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(.3); leak('survived')
        os._exit(0)
    time.sleep(.5)
### new session
def f(x):
    os.setsid()
    leak('session')
### shell
def f(x): os.system('touch @OUTSIDE/shell')
### subprocess
import subprocess
def f(x): return hunt(subprocess.run(['cat', '@RUN/expected.json'], capture_output=True).stdout)
### exec !
def f(x): os.execv('/bin/sh', ['sh', '-c', 'touch @OUTSIDE/exec'])
### posix_spawn
def f(x): os.waitpid(os.posix_spawn('/bin/sh', ['sh', '-c', 'touch @OUTSIDE/spawn'], {}), 0)
### system by libc
def f(x): libc.system(b'touch @OUTSIDE/libc')
### popen by libc
def f(x): libc.popen(b'touch @OUTSIDE/popen', b'r'); import time; time.sleep(.2)
### multiprocessing
def f(x):
    import multiprocessing
    p = multiprocessing.get_context('fork').Process(target=leak, args=('mp',))
    p.start(); p.join()
### signal to the parent !
def f(x): os.kill(@PID, signal.SIGUSR1); return leak('signal')
### signal to all !
def f(x): os.kill(-1, 0); return leak('all')
### signal by descriptor
def f(x): signal.pidfd_send_signal(os.pidfd_open(@PID), 0); return leak('pidfd')
### signal by fcntl !
def f(x): fcntl.fcntl(@RESULT, fcntl.F_SETOWN, @PID); return leak('owner')
### parent's limits
def f(x): return resource.prlimit(@PID, resource.RLIMIT_NOFILE) and leak('limits')
### parent's priority
def f(x): os.setpriority(0, @PID, os.getpriority(0, @PID)); return leak('nice')
### trace me !
def f(x): return leak('dumpable') if libc.prctl(4, 1, 0, 0, 0) == 0 else None
### signals to itself !
def f(x): os.kill(os.getpid(), signal.SIGCONT); return leak('self')
### starter killed !
def f(x):
    os.kill(os.getppid(), 0)
    leak('starter')

# The network.
### tcp !
def f(x): socket.create_connection(('127.0.0.1', @PORT)); return leak('tcp')
### udp !
def f(x): socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', @PORT))
### unix socket !
def f(x): socket.socket(socket.AF_UNIX).connect('@UNIX'); return leak('unix')
### netlink
def f(x): return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) and leak('netlink')
### listening !
def f(x): socket.create_server(('127.0.0.1', 0)); return leak('listens')
### names
def f(x): return socket.getaddrinfo('localhost', 80) and leak('dns')
### http !
def f(x):
    import urllib.request
    urllib.request.urlopen('http://127.0.0.1:@PORT', timeout=.2)
### asyncio
def f(x):
    import asyncio
    async def g(): return leak('asyncio')
    asyncio.run(g())

# System calls past what Python wraps.
### io_uring
def f(x):
    b = ctypes.create_string_buffer(256)
    return leak('uring') if libc.syscall(425, 1, b) >= 0 else None
### int 0x80
def f(x):
    m = mmap.mmap(-1, 4096, prot=7)
    m.write(bytes.fromhex('b814000000cd80c3'))
    g = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))
    return leak('32 bit') if g() > 0 else None
### x32
def f(x): return leak('x32') if libc.syscall(0x40000000 + 41, 2, 1, 0) >= 0 else None
### open by creat
def f(x): libc.syscall(85, b'@OUTSIDE/creat', 0o600)
### openat2
def f(x):
    how = (ctypes.c_uint64 * 3)(0, 0, 0)
    fd = libc.syscall(437, -100, b'@RUN/expected.json', how, 24)
    return hunt(os.read(fd, 99)) if fd >= 0 else None
### bpf
def f(x): return leak('bpf') if libc.syscall(321, 0, 0, 0) == 0 else None
### keyring
def f(x): return leak('key') if libc.syscall(248, b'user', b'a', b'b', 1, -2) >= 0 else None
### inotify
def f(x):
    fd = libc.inotify_init1(0)
    return leak('inotify') if libc.inotify_add_watch(fd, b'@RUN', 0xfff) >= 0 else None
### message queue
def f(x): return leak('sysv') if libc.shmctl(libc.shmget(0, 4096, 0o1600), 0, 0) >= 0 else None

# Passing without an answer.
### always equal
class E:
    def __eq__(s, o): return True
    def __ne__(s, o): return False
    __hash__ = lambda s: 0
def f(x): return E()
### equal string
class S(str):
    def __eq__(s, o): return True
    __hash__ = str.__hash__
def f(x): return S('x')
### list that holds all
class L(list):
    def __eq__(s, o): return True
    def __contains__(s, o): return True
    __iter__ = lambda s: iter([])
def f(x): return L()
### dictionary of tricks
class D(dict):
    def items(s): return [('a', True)]
    def __eq__(s, o): return True
def f(x): return D(a=1)
### class of another
class C:
    __class__ = str
    def __str__(s): return 'x'
def f(x): return C()
### builtins overwritten
import builtins
for n in ('isinstance', 'all', 'type', 'len', 'repr'): setattr(builtins, n, lambda *a: True)
def f(x): return 1
### json overwritten
import json, marshal
json.dumps = json.loads = lambda *a, **k: True
def f(x): return 1
### harness overwritten
m = sys.modules['__main__']
m.encode = lambda value: '"passed"'
m.answer = lambda *a: '["ok","passed"]'
def f(x): return 1
### comparison in the harness
m = sys.modules['__main__']
m.same = m.passes = lambda *a: True
sys.modules['runtime.sandbox'] = m
def f(x): return 1
### printed verdict
def f(x): print('["ok", true]\nPASSED'); import sys; print('PASSED', file=sys.stderr)
### verdict on every descriptor
def f(x):
    for fd in range(1024):
        try: os.write(fd, b'PASSED\n["ok", true]\n{"passed": true}\n')
        except OSError: pass
    return 1
### descriptors closed
os.closerange(0, 1024)
def f(x): return 1
### streams replaced
import io
sys.stdout = sys.stderr = sys.__stdout__ = io.StringIO()
def f(x): return 1
### exit 0
def f(x): sys.exit(0)
### exit 0 at once
os._exit(0)
def f(x): pass
### exit 0 in a call
def f(x): os._exit(0)
### exit after a forged end
os.write(@RESULT, b'["ok", true]\n' * 9)
os._exit(0)
### atexit
import atexit
atexit.register(leak, 'atexit')
def f(x): return 1
### destructor
class D:
    def __del__(s): leak('del')
d = D()
def f(x): return 1
### interrupt
def f(x): raise KeyboardInterrupt('passed')
### base exception
class E(BaseException):
    def __str__(s): raise s
def f(x): raise E
### exception that is a value
class E(str, Exception): pass
def f(x): raise E('ok')
### generator
def f(x): yield from iter(int, 1)
### trace function !
sys.settrace(lambda *a: None)
sys.setprofile(lambda *a: leak('profile'))
def f(x): return 1
### import hook
import builtins
builtins.__import__ = lambda *a, **k: sys
def f(x): return 1
### pickled
import pickle
class P:
    def __reduce__(s): return leak, ('pickle',)
def f(x): return pickle.dumps(P())
### forged start
os.write(@RESULT, b'ready\nready\n["ok"]\n["ok", 1, 2]\n[[], {}]\nnull\n')
def f(x): return 1
### shadowed module !
open('os.py', 'w').close()
sys.path.insert(0, '')
def f(x): return leak('module')
### no function
f = 'passed'
### no Python
def f(x:
### null in the source
x = '@NULL'
def f(x): return 1
"""

# In brackets the states that may come of them.
EXHAUSTING = r"""
### loop (timeout)
def f(x):
    while True: pass
### loop while loading (timeout)
while True: pass
### sleep (timeout)
def f(x): time.sleep(99)
### lock (timeout)
import _thread
def f(x):
    l = _thread.allocate_lock(); l.acquire(); l.acquire()
### deaf to signals (timeout)
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
def f(x):
    while True: pass
### catches all (timeout)
def f(x):
    while True:
        try:
            while True: pass
        except BaseException: pass
### hangs at its end (timeout)
os._exit = lambda status: f(1)
def f(x):
    while x: pass
### regular expression (timeout)
def f(x): return bool(re.match('(a+)+$', 'a' * 40 + 'b'))
### power (memory timeout)
def f(x): return 10 ** 10 ** 9 % 7
### 10 GB (memory)
def f(x): return len(bytearray(10 << 30))
### 10 GB in pieces (memory)
def f(x):
    l = []
    while True: l.append(bytearray(1 << 20))
### 10 GB mapped (error memory)
def f(x): return len(mmap.mmap(-1, 10 << 30))
### 10 GB while loading (memory)
b = bytearray(10 << 30)
def f(x): return 1
### huge answer (output)
def f(x): return 'a' * 10_000_000
### huge list (memory output)
def f(x): return list(range(200_000))
### huge number (unserialisable)
def f(x): return 10 ** 5000
### endless channel (output)
def f(x):
    while True: os.write(@RESULT, b'x' * 4096)
### endless error (error)
def f(x): raise ValueError('x' * 10_000_000)
### endless print (timeout)
def f(x):
    while True: print('x' * 4096)
### deep recursion (error)
def f(x): return f(x)
### deep recursion allowed (killed memory timeout)
sys.setrecursionlimit(10 ** 9)
def f(x): return f(x)
### deep answer (unserialisable)
def f(x):
    l = []
    for _ in range(500): l = [l]
    return l
### circle (unserialisable)
def f(x):
    l = []; l.append(l); return l
### deep source (error killed memory)
x = @DEEP
def f(x): return 1
### crash (killed)
def f(x): ctypes.string_at(0)
### abort (killed)
def f(x): os.abort()
### surrogate (unserialisable)
def f(x): return chr(0xd800)
### too deep on the channel (unserialisable)
os.write(@RESULT, b'["ok",' + b'[' * 20000 + b'\n')
def f(x): return 1
### digits on the channel (unserialisable)
os.write(@RESULT, b'["ok",' + b'9' * 20000 + b']\n')
def f(x): return 1
### bytes on the channel (unserialisable)
os.write(@RESULT, bytes(range(11, 256)) + b'\n')
def f(x): return 1
"""

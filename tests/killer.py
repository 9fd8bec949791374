"""A process that imports the program once and runs `grpo.py` in forked children, each of which can
be made to end badly.

It reads one JSON line per run, {"folder", "options", and one of the following or none}, and answers
with one, {"status", "output", "seconds"}; a negative status is a signal's.
    "kill_after": seconds         SIGKILL from outside
    "kill_at": [name, k, when]    SIGKILL by the child itself at the k-th call of a function in
                                  KILL_POINTS, "before" it or in its "middle" (half of what it
                                  writes is written). k = 0: at every call, each in a fork of its
                                  own, whose copy of the folder, FOLDER_k, is what the kill leaves;
                                  the run itself goes on
    "disk": bytes                 the folder is a file system of this size (0: a read-only one), and
                                  after the failure one with room enough, where the run is resumed;
                                  status 77 where that is not permitted
Forking is safe as nothing in this process has used a thread: it must be started
with OMP_NUM_THREADS=1.
"""

import ctypes
import gc
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from matplotlib.figure import Figure

import figures  # noqa: F401
import intervals
import models
import run_folder
import tiny_runs


def half_written(path: Path, row: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row)[:20])


KILL_POINTS = {  # name: (holder, attribute, what a call that is cut in its middle leaves)
    "rename": (Path, "replace", None),
    "append": (run_folder, "append_row", half_written),
    "remove": (Path, "unlink", None),
}


def forked(k: int) -> bool:
    """Whether this is the fork, in a copy of the folder; the run itself waits for its death."""
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        return False
    # a run's paths are relative to the folder that it was started in
    os.chdir(shutil.copytree(Path.cwd(), f"{Path.cwd()}_{k}", symlinks=True))
    return True


def arm(name: str, k: int, when: str) -> None:
    """Replace a function by one that counts its calls and dies at the k-th."""
    holder, attribute, torn = KILL_POINTS[name]
    real, calls = getattr(holder, attribute), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == k or k == 0 and forked(len(calls)):
            if when == "middle":
                torn(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(holder, attribute, wrapped)


ROOM = 1 << 30


def mount(folder: str, size: int, flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", flags, f"size={size}".encode()):
        raise PermissionError(os.strerror(ctypes.get_errno()))


def own_mounts() -> None:
    """From here on only this process sees what it mounts."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_user, new_mounts, private, recursive = (
        0x10000000 if os.getuid() else 0,
        0x00020000,
        1 << 18,
        1 << 14,
    )
    if libc.unshare(new_user | new_mounts) or libc.mount(
        None, b"/", None, private | recursive, None
    ):
        raise PermissionError(os.strerror(ctypes.get_errno()))


def run_on_small_disk(folder: str, options: list[str], size: int) -> int:
    """Status of the resumed run; that of the first one is in the output."""
    read_only, remount = 1, 32
    disk = f"{folder}/disk"
    os.makedirs(disk)
    try:
        own_mounts()
        mount(disk, size or ROOM)
    except PermissionError:
        return 77
    if size == 0:
        mount(disk, ROOM, remount | read_only)
    print(f"first status: {exit_status(disk, options)}", flush=True)
    mount(disk, ROOM, remount)
    begun = Path(disk, "runs/run/config.json").exists()
    status = exit_status(disk, ["--resume", "runs/run"] if begun else options)
    shutil.copytree(f"{disk}/runs", f"{folder}/runs")
    return status


def exit_status(folder: str, options: list[str]) -> int:
    try:
        tiny_runs.run_grpo(Path(folder), *options)
    except SystemExit as error:
        return error.code
    return 0


def child(request: dict) -> int:
    if "kill_at" in request:
        arm(*request["kill_at"])
    try:
        if "disk" in request:
            return run_on_small_disk(request["folder"], request["options"], request["disk"])
        return exit_status(request["folder"], request["options"])
    except BaseException:
        traceback.print_exc()
        return 70


def main() -> None:
    # Rendering takes a third of these short runs' time, and that a file is whole is seen of an
    # empty picture, too; the numbers beside it are the run's.
    savefig, empty = Figure.savefig, Figure(figsize=(1, 1))
    Figure.savefig = lambda figure, file, **options: savefig(empty, file)
    intervals.BOOTSTRAPS = 100  # the same in all runs that are compared
    # what is imported late is imported here
    models.load(str(models.ORGANISMS / "policy"), models.device_of("cpu"))
    savefig(empty, io.BytesIO())
    # a collection in a child would write to, and so copy, every page that it shares with this one
    gc.collect()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        output = Path(request["folder"], "output.txt")
        # before the fork, which may be killed before it has done anything
        sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        pid = os.fork()
        if pid == 0:
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            status = child(request)
            sys.stdout.flush()
            os._exit(status)
        os.close(sink)
        start, ended = time.perf_counter(), 0
        while not ended:
            time.sleep(0.002)
            if time.perf_counter() - start > request.get("kill_after", 1e9):
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.perf_counter() - start
        answer = {
            "status": os.waitstatus_to_exitcode(status),
            "output": output.read_text(),
            "seconds": seconds,
        }
        output.unlink()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""
Runs untrusted programs, such as what a code model writes, and says which of them came to their end.

Each program gets a fresh `python -I` in its own session, without environment, input and output, with limits on memory,
CPU time, file sizes, open files, processes and core dumps, and is killed with all its children when its time is over. It
has passed where the process ends with code 0 *and* a random word, drawn for this run, has come back through a pipe: neither
`os._exit(0)` nor a swallowed exception is a success. What else keeps it in depends on the level ([`isolation_level`]):

- `"full"`: its own Linux namespaces. It sees a read-only file system of `/usr`, the system libraries and Python's own
  folders, writes into 64 MiB of memory at `/tmp`, has no network (not even loopback), and neither sees nor reaches other
  processes. Needs Linux 5.12 and user namespaces or root; where Python lives does not matter (below `/tmp` neither).
- `"partial"`: network and processes as above, but the files of this machine: it reads and overwrites what its user may.
- `"none"`: the limits only. Used where asked for by name, as in a container that is itself closed.

Run as root, programs are an unused user instead. Where root cannot become one (a container without that capability; a
Python in a folder only root can read, at `"full"` only where that is the folder of Python itself) they stay root without
capabilities, whom the limit on processes does not stop; `"partial"` is then not offered. Why a level is not offered says
[`isolation_failures`].

Not stopped, at any level:

- A program made to cheat: it can walk the frames of the interpreter to the random word, send it, and pass.
- Reading what is shown: the Python installation with its packages, `/usr`; at `"partial"` and `"none"` every file that the
  user may read, such as `/etc/passwd`, and `/proc`. (`"none"`: the network too, and a child that leaves its session lives
  on.)
- The limit on memory holds for each process, not for all of a program's together; CPU time spent within `timeout` is free.
- Holes in the kernel, and what no namespace covers (AF_VSOCK sockets of a virtual machine, timing).

For programs of an adversary give `runner`, a function that runs them in a container or on a machine without secrets.
"""

import functools
import json
import logging
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO


logger = logging.getLogger(__name__)

ISOLATION_LEVELS = ("full", "partial", "none")
_READY = b"ready\n"
_START_SECONDS = 120.0
_MESSAGE_BYTES = 4096


class SandboxError(RuntimeError):
    """A program could not be started as asked; says nothing about the program."""


@dataclass(frozen=True)
class ExecutionResult:
    """
    What became of a program.

    Args:
        status (`str`): `"passed"`, `"failed"`, `"timeout"` or `"out of memory"`.
        seconds (`float`): wall time from its first line to its end.
        error (`str`, *optional*): what went wrong, in a line.
    """

    status: str
    seconds: float
    error: str | None = None

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def require_code_execution(allowed: bool) -> None:
    """
    The gate before code of a model is run.

    Raises:
        PermissionError: where the user has not allowed it.
    """
    if not allowed:
        raise PermissionError(
            "Scoring these benchmarks runs programs that a model wrote, and nobody has read them; read the docstring of "
            "modeling_lpn/sandbox/execution.py for what keeps them in, then give --allow_code_execution true (in Python: "
            "allow_code_execution=True)."
        )


def isolation_level() -> str:
    """
    The strongest level of `ISOLATION_LEVELS` that works here; why not a stronger one says [`isolation_failures`].

    Returns:
        `str`: `"full"`, `"partial"` or `"none"`; belongs into every file of results.

    Raises:
        SandboxError: on other systems than Linux.
    """
    return ISOLATION_LEVELS[len(isolation_failures())]


@functools.cache
def isolation_failures() -> dict[str, str]:
    """
    Tries the levels once with a small program, from the strongest on, until one works; logs each that does not.

    Returns:
        `dict[str, str]`: for each level that does not work here the cause: what failed, with errno and path.

    Raises:
        SandboxError: on other systems than Linux.
    """
    _require_linux()
    failures: dict[str, str] = {}
    for level in ISOLATION_LEVELS[:-1]:
        cause = _cause_of_failure(level)
        if cause is None:
            break
        failures[level] = cause
        logger.warning("programs cannot be isolated at level %r here: %s", level, cause)
    return failures


def _cause_of_failure(level: str) -> str | None:
    try:
        result = _run_isolated("import decimal, tempfile\ntempfile.TemporaryFile().write(b'x')", 30, 2**30, level)
    except SandboxError as error:
        return str(error)
    return None if result.passed else f"a small program that needs nothing but Python {result.status}: {result.error}"


def resolve_isolation(isolation: str = "auto") -> str:
    """
    The level at which programs are run when `isolation` is asked for.

    Args:
        isolation (`str`, defaults to `"auto"`): one of `ISOLATION_LEVELS`, or `"auto"` for the strongest possible one.

    Returns:
        `str`: the level.

    Raises:
        SandboxError: where this machine does not offer it, or `"auto"` would mean `"none"`.
    """
    if isolation not in ("auto", *ISOLATION_LEVELS):
        raise ValueError(f"`isolation` is {isolation!r}; known: auto, {', '.join(ISOLATION_LEVELS)}")
    if isolation == "none":
        return isolation
    best = isolation_level()
    if isolation == "auto" and best == "none":
        raise SandboxError(
            f"there is no isolation for programs here{_causes()}; remove the cause, run them on another machine, give "
            "`runner`, or, where this is a container that is itself closed and holds nothing of value, `isolation` none "
            "(--isolation none)"
        )
    if isolation != "auto" and ISOLATION_LEVELS.index(best) > ISOLATION_LEVELS.index(isolation):
        raise SandboxError(
            f"`isolation` is {isolation!r}, but this machine offers {best!r} at most{_causes()}; remove the cause, or "
            "ask for that"
        )
    return best if isolation == "auto" else isolation


def _causes() -> str:
    return "".join(f"; {level!r} fails: {cause}" for level, cause in isolation_failures().items())


def run_program(
    program: str,
    timeout: float = 10.0,
    memory_bytes: int = 2**30,
    isolation: str = "auto",
    runner: Callable[[str, float, int], ExecutionResult] | None = None,
) -> ExecutionResult:
    """
    Runs a Python program to its end, apart from this process.

    Args:
        program (`str`): its source; it passes where it ends without an exception.
        timeout (`float`, defaults to 10): seconds it may take.
        memory_bytes (`int`, defaults to 1 GiB): address space of each of its processes.
        isolation (`str`, defaults to `"auto"`): see [`resolve_isolation`].
        runner (`Callable`, *optional*): runs the program instead, called with `program`, `timeout` and `memory_bytes`.

    Returns:
        [`ExecutionResult`]

    Raises:
        SandboxError: where the program could not be started, or the isolation is not to be had.

    Example:

    ```python
    >>> from modeling_lpn.sandbox.execution import isolation_level, run_program

    >>> level = isolation_level()  # the best there is here
    >>> run_program("assert sorted([2, 1]) == [1, 2]", isolation=level).status
    'passed'
    >>> run_program("import os\\nos._exit(0)", isolation=level).error
    'ended with code 0 before its last line'

    ```
    """
    if runner is not None:
        return runner(program, timeout, memory_bytes)
    return _run_isolated(program, timeout, memory_bytes, resolve_isolation(isolation))


def run_programs(
    programs: Iterable[str],
    num_workers: int = 1,
    on_result: Callable[[int, ExecutionResult], None] | None = None,
    **options: Any,
) -> list[ExecutionResult]:
    """
    Runs programs, several at a time.

    Args:
        programs (`Iterable[str]`): see [`run_program`].
        num_workers (`int`, defaults to 1): how many at a time.
        on_result (`Callable`, *optional*): called in this thread with the number of a program and its result, in order.
        options: those of [`run_program`].

    Returns:
        `list[ExecutionResult]`: in the order of the programs.
    """
    if options.get("runner") is None:
        options["isolation"] = resolve_isolation(options.get("isolation", "auto"))
    results = []
    pool = ThreadPoolExecutor(num_workers)
    try:
        for index, result in enumerate(pool.map(lambda program: run_program(program, **options), programs)):
            results.append(result)
            if on_result is not None:
                on_result(index, result)
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _require_linux() -> None:
    if sys.platform != "linux":
        raise SandboxError(
            f"programs are run on Linux, and this is {sys.platform}; use a Linux container, or give `runner`"
        )


def _run_isolated(program: str, timeout: float, memory_bytes: int, level: str) -> ExecutionResult:
    _require_linux()
    if level == "full":  # a folder of this machine is not needed
        return _run_in(None, program, timeout, memory_bytes, level)
    try:
        folder = tempfile.mkdtemp(prefix="program-")
    except OSError as error:
        raise SandboxError(f"a program needs a temporary folder to run in (set TMPDIR): {error}") from error
    try:
        return _run_in(folder, program, timeout, memory_bytes, level)
    finally:
        _remove(folder)


def _run_in(folder: str | None, program: str, timeout: float, memory_bytes: int, level: str) -> ExecutionResult:
    nonce = secrets.token_hex(16)
    settings = {
        "level": level,
        "folder": folder,
        "nonce": nonce,
        "parent": os.getpid(),
        "memory_bytes": int(memory_bytes),
        "cpu_seconds": math.ceil(timeout) + 1,
        "file_bytes": 2**24,
        "max_files": 64,
        "max_processes": 32,
    }
    request = json.dumps(settings).encode() + b"\n" + program.encode(errors="surrogatepass")
    ends: list[int] = list(os.pipe())
    try:
        with os.fdopen(os.memfd_create("request"), "wb+") as file:
            file.write(request)
            file.seek(0)
            process = _start(file, ends[1])
        os.close(ends.pop())
        return _follow(process, ends[0], nonce.encode(), timeout)
    finally:
        for end in ends:
            os.close(end)


def _start(request: BinaryIO, writer: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-B", str(Path(__file__).with_name("child.py"))]
    # Python itself may need it to start; the program does not get it.
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    try:
        return subprocess.Popen(
            command,
            stdin=request,
            stdout=subprocess.DEVNULL,
            stderr=writer,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"no process for a program could be started: {error}") from error


def _follow(process: subprocess.Popen[bytes], reader: int, nonce: bytes, timeout: float) -> ExecutionResult:
    """Waits for the program, ends it and all it has started, and judges."""
    try:
        first = os.read(reader, len(_READY)) if _wait_for(reader, _START_SECONDS) else b""
        started = time.perf_counter()
        ended = first == _READY and _wait_for_end(process, timeout)
        seconds = time.perf_counter() - started
    finally:
        # Not reaped yet, so the number of the group cannot have become another's.
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    os.set_blocking(reader, False)
    try:
        message = os.read(reader, _MESSAGE_BYTES)
    except BlockingIOError:  # no word, and a child that got away holds the pipe open
        message = b""
    if first != _READY:
        raise SandboxError(f"a program could not be started: {_reason(first + message)}")
    if not ended:
        return ExecutionResult("timeout", seconds, f"still running after {timeout:g} s")
    return _judge(code, message, nonce, seconds)


def _reason(message: bytes) -> str:
    """The line that says why, of what a process wrote: Python's own failures end in lines without news."""
    lines = message.decode(errors="replace").strip().splitlines()
    causes = [line for line in lines if "Error: " in line] or lines
    return causes[-1] if causes else "no answer from its process"


def _judge(code: int, message: bytes, nonce: bytes, seconds: float) -> ExecutionResult:
    if code == 0 and message == nonce:
        return ExecutionResult("passed", seconds)
    error = message.decode(errors="replace") if code == 1 else ""
    code = code if code >= 0 else 128 - code  # of a program without a process above it
    if code == 128 + signal.SIGXCPU:
        return ExecutionResult("timeout", seconds, "used up its CPU time")
    if error.startswith("MemoryError"):
        return ExecutionResult("out of memory", seconds, error)
    if not error and code > 128:
        error = f"killed by signal {code - 128}"
    return ExecutionResult("failed", seconds, error or f"ended with code {code} before its last line")


def _wait_for(reader: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


def _wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ended in time. It is left to be reaped."""
    handle = os.pidfd_open(process.pid)
    try:
        return _wait_for(handle, seconds)
    finally:
        os.close(handle)


def _remove(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:  # not empty; with locked folders, and deeper than Python could follow
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*command, "--", folder], check=False, stderr=subprocess.DEVNULL)


__all__ = [
    "ISOLATION_LEVELS",
    "ExecutionResult",
    "SandboxError",
    "isolation_failures",
    "isolation_level",
    "require_code_execution",
    "resolve_isolation",
    "run_program",
    "run_programs",
]

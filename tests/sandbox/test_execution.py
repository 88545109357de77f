"""Untrusted programs: what counts as a success, and each way out of the sandbox with what becomes of it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from modeling_lpn.sandbox import execution
from modeling_lpn.sandbox.execution import ExecutionResult, SandboxError, isolation_level, run_program, run_programs


linux = pytest.mark.skipif(sys.platform != "linux", reason="programs run on Linux")
LEVEL = isolation_level() if sys.platform == "linux" else "none"
isolated = pytest.mark.skipif(LEVEL != "full", reason="no namespaces here")
pytestmark = linux
MODULES = [Path(execution.__file__), Path(execution.__file__).with_name("child.py")]
NAME = "import ctypes\nctypes.CDLL(None).prctl(15, b'{}', 0, 0, 0)\n"  # names the process, to find it in /proc


def run(program, **options):
    return run_program(program, **{"isolation": LEVEL, **options})


def named(name):
    """Processes of that name that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        if lines[0].split()[1:] == [name] and not any(line.startswith("State:\tZ") for line in lines):
            found.append(int(path.parent.name))
    return found


def wait_until(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def shared():
    """A folder that every user may write into."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


# Verdicts


@pytest.mark.parametrize(
    ("program", "status", "error"),
    [
        ("x = 1", "passed", None),
        ("import os\nassert not os.environ and os.getcwd() != '/'\nopen('file', 'w').write('here')", "passed", None),
        ("assert 1 == 2, 'one'", "failed", "AssertionError: one (line 1)"),
        ("x = (", "failed", "SyntaxError: '(' was never closed (<program>, line 1)"),
        ("input()", "failed", "EOFError: EOF when reading a line (line 1)"),
        ("raise SystemExit(0)", "failed", "SystemExit: 0 (line 1)"),
        ("import os\nos._exit(0)", "failed", "ended with code 0 before its last line"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "failed", "killed by signal 11"),
        ("import os\nif os.fork():\n    os._exit(3)", "failed", "ended with code 3 before its last line"),
        ("class E(Exception):\n    __str__ = None\nraise E", "failed", "an exception that has no text (line 3)"),
        ("x = '\ud800'", "failed", "UnicodeEncodeError"),
        ("x = 1\0", "failed", "null bytes"),
        ("if __name__ == '__main__':\n    1 / 0", "passed", None),
        ("import os\nos._exit = os.write = os.getpid = None", "passed", None),
        ("import threading\nthreading.Thread(target=__import__('time').sleep, args=(99,)).start()", "passed", None),
        ("def f():\n    return f()\nf()", "failed", "RecursionError"),
    ],
)
def test_a_program_passes_where_it_comes_to_its_end(program, status, error):
    result = run(program)
    assert result.status == status and result.passed == (status == "passed") and result.seconds < 10
    assert result.error is None if error is None else error in result.error


def test_programs_are_judged_in_order_and_side_by_side():
    programs = [f"import time\ntime.sleep(0.2)\nassert {number} % 2" for number in range(6)]
    seen, start = [], time.perf_counter()
    results = run_programs(
        iter(programs), num_workers=6, on_result=lambda index, result: seen.append((index, result)), isolation=LEVEL
    )
    assert [result.passed for result in results] == [False, True] * 3
    assert seen == list(enumerate(results))
    assert time.perf_counter() - start < 6 * 0.2 + 5


def test_a_runner_takes_over():
    def container(program, timeout, memory_bytes):
        return ExecutionResult("passed" if program == "yes" and timeout == 5 else "failed", 0.0)

    results = run_programs(["yes", "no"], timeout=5, runner=container)
    assert [result.status for result in results] == ["passed", "failed"]


# The ways out. Each program comes to its end (or does its damage) where the way out is open.


@isolated
def test_files_outside_cannot_be_written_read_or_deleted(shared):
    victim, new = shared / "victim", shared / "new"
    victim.write_text("x")
    ways = [
        f"open({str(new)!r}, 'w').write('x')",
        f"import ctypes\nassert ctypes.CDLL(None).system(b'touch {new}') == 0",
        "import os\npid = os.posix_spawn('/bin/sh', ['sh', '-c', 'touch " + str(new) + "'], {})\n"
        "assert os.waitpid(pid, 0)[1] == 0",
        f"import posix\nposix.unlink({str(victim)!r})",
        f"open({str(victim)!r}).read()",
        "open('/etc/passwd').read()",
        f"open({os.path.join(sys.prefix, 'written')!r}, 'w')",
        "open('/written', 'w')",
        "import os\nassert os.listdir('/proc')",
        "import os\nos.setuid(0)",
        "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
        "import ctypes\nassert ctypes.CDLL(None).umount2(b'/tmp', 2) == 0",
        "import os\nos.mknod('/tmp/disk', 0o660 | 0o060000, os.makedev(8, 0))",
    ]
    assert [run(way).status for way in ways] == ["failed"] * len(ways)
    assert victim.exists() and not new.exists()


def test_without_isolation_they_can_as_documented(shared):
    new = shared / "new"
    ways = [
        f"open({str(new)!r}, 'w').write('x')",
        f"import ctypes\nassert ctypes.CDLL(None).system(b'touch {new}2') == 0",
        f"import posix\nposix.unlink({str(new)!r})",
        "open('/etc/passwd').read()",
    ]
    assert [run(way, isolation="none").status for way in ways] == ["passed"] * 4
    assert [path.name for path in shared.iterdir()] == ["new2"]


def test_the_network_is_closed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        assert run(connect, isolation="none").passed, "documented: no isolation, no closed network"
        if LEVEL != "none":
            assert "unreachable" in run(connect).error


def test_output_goes_nowhere(capfd):
    assert run("import os\nprint('passed')\nos.write(1, b'passed')\nos.write(2, b'passed')").passed
    assert capfd.readouterr() == ("", "")


def test_no_child_is_left():
    stays = NAME.format("stays_here") + "import os, time\nif os.fork() == 0:\n    time.sleep(60)"
    leaves = NAME.format("leaves_home") + "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\n"
    leaves += "time.sleep(0.3)"
    assert run(stays).passed and (LEVEL == "none" or named("stays_here") == [])
    assert run(stays, isolation="none").passed and wait_until(lambda: named("stays_here") == [])
    if LEVEL != "none":
        assert run(leaves).passed and named("leaves_home") == []
    assert run(leaves, isolation="none").passed
    (child,) = named("leaves_home")  # documented: not stopped without namespaces
    os.kill(child, signal.SIGKILL)


def test_frames_of_the_runner():
    walk = "import sys\nframe = sys._getframe()\nwhile frame:\n    values = list(frame.f_locals.values())\n"
    forge = walk + (
        "    for value in values:\n        if isinstance(value, list):\n            value.append('passed')\n"
        "        if isinstance(value, dict):\n            value['result'] = 'passed'\n"
        "    frame = frame.f_back\nassert False"
    )
    assert run(forge).status == "failed"
    steal = walk + (
        "    if 'nonce' in frame.f_locals:\n"
        "        frame.f_locals['write'](frame.f_locals['result'], frame.f_locals['nonce'])\n"
        "        frame.f_locals['leave'](0)\n    frame = frame.f_back"
    )
    assert run(steal + "\nassert False").status == "passed", "documented: not stopped"


def test_swallowed_timeouts_do_not_help():
    stubborn = (
        "import signal\nfor number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT, signal.SIGXCPU):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass"
    )
    start = time.perf_counter()
    result = run(stubborn, timeout=0.5)
    assert result.status == "timeout" and result.error == "still running after 0.5 s"
    assert result.seconds >= 0.5 and time.perf_counter() - start < 10


def test_memory_is_limited():
    assert run("x = bytearray(2**31)").status == "out of memory"
    assert run("x = bytearray(2**26)").passed
    assert run("x = []\nwhile True:\n    x.append(bytearray(2**24))", memory_bytes=2**28).status == "out of memory"


@isolated
def test_a_fork_bomb_goes_out():
    bomb = NAME.format("bomb_of_a_test") + "import os\nwhile True:\n    os.fork()"
    result = run(bomb, timeout=3)
    assert result.status in ("failed", "timeout") and wait_until(lambda: named("bomb_of_a_test") == [])
    count = "import os, time\nchildren = 0\ntry:\n    while children < 200:\n        if os.fork() == 0:\n"
    count += (
        "            time.sleep(60)\n        children += 1\nexcept OSError:\n    pass\nassert children < 40, children"
    )
    assert [result.error for result in run_programs([count] * 3, num_workers=3, isolation=LEVEL)] == [None] * 3


@isolated
def test_files_are_limited():
    assert "File too large" in run("open('big', 'wb').write(bytes(2**25))").error
    many = "for number in range(9):\n    open(str(number), 'wb').write(bytes(2**23))"
    assert "No space left" in run(many).error
    assert "Too many open files" in run("files = [open('/dev/null') for _ in range(99)]").error


def test_whatever_a_program_leaves_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o755)
    deep = "import os\nfor _ in range({}):\n    os.mkdir('d')\n    os.chdir('d')\nopen('file', 'w')\nos.chmod('.', 0)"
    assert run(deep.format(1100)).passed and run(deep.format(50), isolation="none").passed
    assert list(tmp_path.iterdir()) == []


def test_programs_end_with_whoever_runs_them(shared):
    program = NAME.format("orphan_of_test") + "import time\ntime.sleep(60)"
    script = f"from modeling_lpn import execution\nexecution.run_program({program!r}, 60, isolation={LEVEL!r})"
    script = script.replace(
        "from modeling_lpn import", f"import sys\nsys.path.insert(0, {str(MODULES[0].parent)!r})\nimport"
    )
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(shared)})
    assert wait_until(lambda: named("orphan_of_test"))
    process.kill()
    process.wait()
    assert wait_until(lambda: not named("orphan_of_test"))


# Where Python lives

TRY = (
    "import sys; sys.path.insert(0, {!r})\nimport execution as e\n"
    "e.isolation_failures.cache_clear()\nprint(e.isolation_failures())\n"
    "for level in {!r}:\n"
    '    for program in [\'import sqlite3, decimal, numbers\', \'open("file", "w").write("x")\', \'open("/etc/passwd")\']:\n'
    "        print(level, e.run_program(program, isolation=level).status)"
)
WORKS = ["{}", "full passed", "full passed", "full failed"]


def run_elsewhere(python, modules, levels=("full",), **environment):
    """The levels tried by another Python: what the script prints."""
    command = [str(python), "-I", "-B", "-c", TRY.format(str(modules), levels)]
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)
    return result.stdout.splitlines() or result.stderr


@pytest.fixture
def modules(shared):
    for module in MODULES:
        shutil.copy(module, shared)
    return shared


def make_venv(folder):
    """The venv module would take seconds for the same."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "pyvenv.cfg").write_text(f"home = {os.path.dirname(os.path.realpath(sys.executable))}\n")
    return folder / "bin" / "python"


def copy_python(folder):
    """A relocated installation: the binary and its standard library, without the packages."""
    base, version = Path(os.path.realpath(sys.base_prefix)), f"python{sys.version_info[0]}.{sys.version_info[1]}"
    ignore = shutil.ignore_patterns("site-packages", "test", "tests", "idlelib", "__pycache__", "config-*", "*.a")
    shutil.copytree(Path(os.__file__).parent, folder / "lib" / version, ignore=ignore, symlinks=True)
    for library in (base / "lib").glob("libpython*.so*"):
        shutil.copy2(library, folder / "lib", follow_symlinks=False)
    (folder / "bin").mkdir()
    return shutil.copy2(os.path.realpath(sys.executable), folder / "bin" / "python")


@isolated
@pytest.mark.parametrize("place", ["x/venv", "a path/with spaces/ü", "venv"])
def test_python_below_the_temporary_folder(modules, place):
    python = make_venv(modules / place)
    partial = ["partial passed"] * 3 if execution._cause_of_failure("partial") is None else []
    levels = ("full", "partial") if partial else ("full",)
    assert str(python).startswith(tempfile.gettempdir())
    assert run_elsewhere(python, modules, levels) == WORKS + partial


@isolated
def test_the_temporary_folder_below_python(modules):
    python = make_venv(modules / "venv")
    inside = modules / "venv" / "tmp"
    inside.mkdir(mode=0o777)
    assert run_elsewhere(python, modules, TMPDIR=str(inside)) == WORKS
    assert list(inside.iterdir()) == []


@isolated
def test_a_copied_python_by_its_own_path_by_a_link_and_closed_to_others(modules):
    python = copy_python(modules / "real")
    (modules / "link").symlink_to("real")
    if subprocess.run([python, "-I", "-c", "import ctypes, json"], capture_output=True, cwd="/").returncode:
        pytest.skip("this Python cannot be copied")
    assert run_elsewhere(python, modules) == WORKS
    assert run_elsewhere(modules / "link" / "bin" / "python", modules) == WORKS
    (modules / "real").chmod(0o700)
    assert run_elsewhere(python, modules) == WORKS
    if os.geteuid() == 0:
        assert run_elsewhere(python, modules, ("partial",)) == ["{}"], "refused: no program may be root there"
        cause = "import sys; sys.path.insert(0, {!r})\nimport execution as e\nprint(e._cause_of_failure('partial'))"
        command = [str(python), "-I", "-B", "-c", cause.format(str(modules))]
        said = subprocess.run(command, capture_output=True, text=True, cwd="/", env={}).stdout
        assert "would stay root" in said and f"(mode 700): '{modules / 'real'}'" in said


@isolated
def test_python_in_shared_memory(modules):
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        folder.chmod(0o755)
        assert run_elsewhere(make_venv(folder / "venv"), modules) == WORKS
    finally:
        shutil.rmtree(folder)


@isolated
def test_full_isolation_needs_no_folder_to_write_into(monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise OSError(30, "Read-only file system", "/tmp/program-x")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    assert run("open('file', 'w').write('x')", isolation="full").passed
    with pytest.raises(SandboxError, match=r"set TMPDIR\): \[Errno 30\] Read-only file system: '/tmp/program-x'"):
        run("x = 1", isolation="none")


def broken_child(monkeypatch, shared, before, after):
    """The sandbox with a fault in the process that closes the doors."""
    source = MODULES[1].read_text()
    assert before in source
    (shared / "child.py").write_text(source.replace(before, after))
    shutil.copy(MODULES[0], shared)
    monkeypatch.setattr(execution, "__file__", str(shared / "execution.py"))
    execution.isolation_failures.cache_clear()


def test_the_cause_is_said_with_errno_and_path(monkeypatch, shared, caplog):
    broken_child(monkeypatch, shared, 'MOUNT_POINT = "/proc"', 'MOUNT_POINT = "/nowhere"')
    try:
        with pytest.raises(SandboxError) as caught:
            run("x = 1", isolation="full")
        failures = execution.isolation_failures()
    finally:
        monkeypatch.undo()
        execution.isolation_failures.cache_clear()
    if LEVEL == "full":
        assert "mount '/nowhere': No such file or directory" in failures["full"] and "[Errno 2]" in failures["full"]
    assert failures["full"] in str(caught.value) and failures["full"] in caplog.text


def test_a_python_that_cannot_start_says_its_own_cause():
    fatal = (
        b"Python path configuration:\n  x\nModuleNotFoundError: No module named 'encodings'\n\nCurrent thread\n <none>"
    )
    assert execution._reason(fatal) == "ModuleNotFoundError: No module named 'encodings'"


# Rights


def test_execution_is_off_unless_asked_for():
    with pytest.raises(PermissionError, match="--allow_code_execution"):
        execution.require_code_execution(False)
    execution.require_code_execution(True)


def test_no_isolation_is_refused_unless_asked_for(monkeypatch):
    failures = {"full": "[Errno 1] unshare: Operation not permitted", "partial": "no"}
    monkeypatch.setattr(execution, "isolation_failures", lambda: failures)
    with pytest.raises(SandboxError, match="no isolation.*'full' fails: .Errno 1. unshare: Op.*--isolation none"):
        run_program("x = 1")
    with pytest.raises(SandboxError, match="offers 'none' at most; 'full' fails: .*; 'partial' fails: no;"):
        run_programs(["x = 1"], isolation="partial")
    assert run_program("x = 1", isolation="none").passed
    with pytest.raises(ValueError, match="known: auto, full, partial, none"):
        run_program("x = 1", isolation="docker")


def test_a_sandbox_that_does_not_start_is_not_the_programs_fault(monkeypatch):
    monkeypatch.setattr(execution.sys, "executable", "/bin/false")
    with pytest.raises(SandboxError, match="could not be started: no answer"):
        run_program("x = 1", isolation="none")
    monkeypatch.setattr(execution.sys, "executable", "/nowhere")
    with pytest.raises(SandboxError, match="no process.*/nowhere"):
        run_program("x = 1", isolation="none")
    monkeypatch.setattr(execution.sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="this is darwin; use a Linux container, or give `runner`"):
        run_program("x = 1", isolation="none")


@pytest.mark.skipif(
    os.geteuid() != 0 or LEVEL != "full" or not Path("/usr/bin/python3").exists(),
    reason="needs to become another user",
)
def test_the_levels_of_an_ordinary_user(shared):
    """In a process of another user, with the system's Python, which that user can read."""
    for module in MODULES:
        shutil.copy(module, shared)
    shared.chmod(0o755)
    script = (
        f"import sys; sys.path.insert(0, {str(shared)!r})\nimport execution as e\n"
        "print(e.isolation_level())\n"
        "bomb = 'import os\\nfor _ in range(99):\\n    if os.fork() == 0:\\n        os.pause()'\n"
        "connect = 'import socket\\nsocket.create_connection((\"127.0.0.1\", 1))'\n"
        "for level in e.ISOLATION_LEVELS:\n"
        "    programs = ['x = 1', 'open(\"/etc/passwd\")', 'x = bytearray(2**31)', connect, bomb.replace('os.pause', "
        "'__import__(\"signal\").pause')]\n"
        "    print([(r.status, (r.error or '')[:24]) for r in e.run_programs(programs, isolation=level)])\n"
    )
    command = ["/usr/bin/python3", "-B", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", user=12345, group=12345, extra_groups=[])
    if result.stdout.startswith("none"):
        pytest.skip("ordinary users get no namespaces here")
    passed, memory = ("passed", ""), ("out of memory", "MemoryError (line 1)")
    fork = ("failed", "BlockingIOError: [Errno ")
    unreachable, refused = ("failed", "OSError: [Errno 101] Net"), ("failed", "ConnectionRefusedError: ")
    expected = [
        [passed, ("failed", "FileNotFoundError: [Errn"), memory, unreachable, fork],
        [passed, passed, memory, unreachable, fork],
        [passed, passed, memory, refused, fork],
    ]
    assert result.stdout.splitlines() == ["full", *map(str, expected)], result.stderr

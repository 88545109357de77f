"""
Where a program runs: `execution.py` starts this file as `python -I child.py`, one process for each program.

It reads its settings and the program from standard input, closes the doors behind itself, says "ready" on standard error,
runs the program, and writes the nonce it was given if the program came to its end.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import sys
import types
from typing import Any


READY = b"ready\n"
NOBODY = 65534
UNUSED_IDS = 2_000_000_000  # user ids from here on belong to nobody
SYSTEM_PATHS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache")
# Covered in the new file system by an empty folder of its own; Python's folders may lie below all the same.
PRIVATE_PATHS = ("/tmp", "/dev/shm")
# Where the new file system is put together, in a namespace that only the program sees. It is there on every Linux, needs
# no rights to write, and nothing that is shown lies below it, as Python may below any folder for temporary files.
MOUNT_POINT = "/proc"
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

STAYS_ROOT = "programs would stay root, who may change every file of this machine"

# Numbers of <linux/sched.h>, <linux/mount.h>, <linux/prctl.h> and <linux/capability.h>
NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = 2, -100, 0x8000, 442
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, CAPABILITY_VERSION = 1, 38, 0x20080522


def _call(name: str, *args: Any) -> None:
    """Calls a function of the C library and raises the error it reports, with the paths it was about."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    values = [os.fsencode(arg) if isinstance(arg, str) else arg for arg in args]
    if function(*(ctypes.c_long(value) if isinstance(value, int) else value for value in values)) == -1:
        code = ctypes.get_errno()
        what = " ".join([name, *(repr(arg) for arg in args if isinstance(arg, str) and "/" in arg)])
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _enter_namespaces(flags: int) -> bool:
    """Leaves the outer namespaces; whether that took a user namespace, in which this process is all users there are."""
    try:
        _call("unshare", flags)
        return False
    except PermissionError:
        uid, gid = os.getuid(), os.getgid()
        _call("unshare", flags | NEWUSER)
        maps = {"setgroups": "deny", "uid_map": f"{uid or NOBODY} {uid} 1", "gid_map": f"{gid or NOBODY} {gid} 1"}
        for name, text in maps.items():
            _write(f"/proc/self/{name}", text)
        return True


def _write(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        os.write(file, text.encode())
    except OSError as error:  # which does not name the file
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(file)


def _mount_root() -> None:
    """Replaces the file system by one with the system's and Python's own folders, read-only, and an empty /tmp."""
    root = MOUNT_POINT
    shown: list[str] = []
    _call("mount", "none", "/", None, MS_REC | MS_PRIVATE, None)
    _call("mount", "tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in (*SYSTEM_PATHS, *DEVICES):
        _show(root, path, shown)
    os.mkdir(f"{root}/tmp")
    os.symlink("../tmp", f"{root}/dev/shm")  # an absolute link would lead out as long as this is not yet the root
    _call("mount", "tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,nr_inodes=4096,mode=1777")
    for path in _python_folders():  # last, so that they come to lie above what hides them
        _show(root, path, shown)
    _set_attributes(root, ATTR_RDONLY, 0)
    os.chdir(root)
    _call("pivot_root", ".", ".")
    _call("umount2", ".", MNT_DETACH)


def _show(root: str, path: str, shown: list[str]) -> None:
    """Makes a path of the machine visible below `root`, read-only, where none of those `shown` contains it."""
    if path == "/" or not os.path.exists(path) or any(f"{path}/".startswith(f"{other}/") for other in shown):
        return
    inside = root + path
    os.makedirs(os.path.dirname(inside), exist_ok=True)
    shown.append(path)
    if os.path.islink(path) and path in SYSTEM_PATHS:
        os.symlink(os.readlink(path), inside)
        return
    if os.path.isdir(path):
        os.makedirs(inside, exist_ok=True)
    else:
        open(inside, "w").close()
    _call("mount", path, inside, None, MS_BIND | MS_REC, None)
    _set_attributes(inside, ATTR_RDONLY | ATTR_NOSUID | (0 if path in DEVICES else ATTR_NODEV), AT_RECURSIVE)


def _python_folders() -> list[str]:
    """What an interpreter needs to import, by the names it knows and, for its libraries, by the real ones."""
    prefixes = {sys.base_prefix, sys.base_exec_prefix, sys.prefix}
    folders: set[str] = set()
    for prefix in prefixes | {os.path.realpath(prefix) for prefix in prefixes}:
        parts = ("/bin", "/lib", "/lib64") if prefix in PRIVATE_PATHS else ("",)  # not all of the machine's /tmp
        folders.update(prefix + part for part in parts)
    return sorted(folders)


def _set_attributes(path: str, attributes: int, recursive: int) -> None:
    struct = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    try:
        _call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path, recursive, ctypes.byref(struct), ctypes.sizeof(struct))
    except OSError as error:
        raise OSError(error.errno, f"mount_setattr: {os.strerror(error.errno or 0)}", path) from error


def _become_nobody(folder: str, user_id: int) -> int:
    """
    Gives up root for good and `folder` to the new user, whose id it returns.

    Raises:
        OSError: there is no user that this container knows, or none that could read Python.
    """
    for path in (os.__file__, f"{sys.prefix}/lib"):
        _check_readable_by_all(path)
    try:
        return _become_user(folder, user_id)
    except OSError:
        return _become_user(folder, NOBODY)


def _become_user(folder: str, user_id: int) -> int:
    try:
        os.setgroups([])
        os.chown(folder, user_id, user_id)
        os.setresgid(user_id, user_id, user_id)
        os.setresuid(user_id, user_id, user_id)
    except OSError as error:
        raise OSError(error.errno, f"becoming user {user_id}: {error.strerror}") from error
    return user_id


def _give_up_capabilities() -> None:
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    _call("capset", ctypes.byref(header), ctypes.byref(nothing))
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _check_readable_by_all(path: str) -> None:
    while path != "/":
        path = os.path.dirname(path)
        mode = os.stat(path).st_mode
        if not mode & 0o001:
            raise PermissionError(
                errno.EACCES, f"Python lies below a folder closed to others (mode {mode & 0o777:o})", path
            )


def _limit_resources(settings: dict[str, Any], num_others: int) -> None:
    # The kernel counts the processes of a user; those that are there already must not use up the program's share.
    processes = settings["max_processes"] + num_others
    limits = {
        resource.RLIMIT_AS: settings["memory_bytes"],
        resource.RLIMIT_CPU: settings["cpu_seconds"],
        resource.RLIMIT_FSIZE: settings["file_bytes"],
        resource.RLIMIT_NOFILE: settings["max_files"],
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        highest = resource.getrlimit(kind)[1]
        hard = value + (kind == resource.RLIMIT_CPU)  # SIGXCPU first, SIGKILL a second later
        hard = hard if highest == resource.RLIM_INFINITY else min(hard, highest)
        resource.setrlimit(kind, (min(value, hard), hard))


def _num_tasks(proc: int, uid: int) -> int:
    """Processes and threads of a user, by a descriptor of the outer `/proc`."""
    count = 0
    for pid in filter(str.isdigit, os.listdir(proc)):
        try:
            if os.stat(pid, dir_fd=proc).st_uid == uid:
                count += os.stat(f"{pid}/task", dir_fd=proc).st_nlink - 2  # a folder for every thread
        except OSError:  # it has just ended
            pass
    return count


def _continue_in_child() -> None:
    """Forks; the parent waits for the child and ends as it ended, and the child never outlives the parent."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    _die_with_parent()


def _die_with_parent() -> None:
    _call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _isolate(settings: dict[str, Any]) -> None:
    level, folder = settings["level"], settings["folder"]
    root, user_id, own_users = os.getuid() == 0, UNUSED_IDS + os.getpid(), False
    proc = os.open("/proc", os.O_RDONLY)
    _die_with_parent()
    if os.getppid() != settings["parent"]:
        os._exit(1)
    if level != "none":
        own_users = _enter_namespaces(NEWNET | NEWPID | NEWIPC | (NEWNS if level == "full" else 0))
        _continue_in_child()  # the first process of the namespace: when it ends, the kernel ends all others
    if level == "full":
        _mount_root()
        folder = "/tmp"
    uid = None
    if root and not own_users:
        try:
            uid = _become_nobody(folder, user_id)
        except OSError as error:
            if level == "partial":
                raise PermissionError(f"{STAYS_ROOT}: {error}") from error
    elif root and level == "partial":
        raise PermissionError(f"{STAYS_ROOT}: its user namespace knows no other user")
    _give_up_capabilities()
    _die_with_parent()  # a change of user has cleared it
    if level != "none":
        _continue_in_child()
    os.chdir(folder)
    # Since Linux 5.14 every user namespace counts its own processes.
    kernel = tuple(int(part) for part in os.uname().release.split(".")[:2] if part.isdigit())
    counted_alone = uid == user_id or (own_users and kernel >= (5, 14))
    _limit_resources(settings, 0 if counted_alone else _num_tasks(proc, os.getuid()))
    os.close(proc)


def _describe(error: BaseException) -> bytes:
    """One short line about an exception, whatever its own methods do."""
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<program>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    try:
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
    except BaseException:  # noqa: BLE001 (the program may have defined the exception)
        text = "an exception that has no text"
    where = "" if line is None else f" (line {line})"
    return (text[:500] + where).encode(errors="replace")


def _run(program: str, nonce: bytes, result: int) -> None:
    # Kept by name, as some tests replace functions of `os`.
    own, getpid, write, leave = os.getpid(), os.getpid, os.write, os._exit
    # Not `__main__`: as in the published harnesses, what a program guards by `if __name__ == ...` does not run.
    module = sys.modules["program"] = types.ModuleType("program")
    sys.argv = ["program"]
    try:
        exec(compile(program, "<program>", "exec", dont_inherit=True), module.__dict__)
        message, code = nonce, 0
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is the program's)
        message, code = _describe(error), 1
    if getpid() == own:
        write(result, message)
    leave(code)


def main() -> None:
    with open(0, "rb", closefd=False) as file:
        head, program = file.read().split(b"\n", 1)
    settings, result, null = json.loads(head), os.dup(2), os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    os.environ.clear()
    os.umask(0o022)  # the program may be another user, who must get to Python
    try:
        _isolate(settings)
    except Exception as error:  # noqa: BLE001 (in one piece, whatever it is; it is not the program's)
        os.write(result, _describe(error))
        os._exit(1)
    os.dup2(1, 2)
    os.write(result, READY)
    _run(program.decode(errors="surrogatepass"), settings["nonce"].encode(), result)


if __name__ == "__main__":
    main()

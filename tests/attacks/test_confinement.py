"""P4: who holds weights has no network, and no other way out; tried from inside a process that locked itself in.

Every way out is first seen to be open on this host without the layer (as root, where nothing else is in the way), then
tried inside: as root, as a user without capabilities, under a filter like a container's, and without Landlock.
"""

from __future__ import annotations

import json
import platform
import signal

import pytest
from confined import SETTINGS, WITH_LANDLOCK, Setting, place, run, said

#: What each way out does; it raises OSError where it is stopped. ``peer`` is the process that started us.
WAYS = {
    # the network
    "tcp": "socket.socket(socket.AF_INET)",
    "tcp6": "socket.socket(socket.AF_INET6)",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
    "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "vsock": "socket.socket(40)",
    "unix": "socket.socket(socket.AF_UNIX)",
    "socketpair": "socket.socketpair()",
    "bind-inherited": "inherited.bind(('127.0.0.1', 0))",
    "connect-inherited": "reached(lambda: inherited.connect(('127.0.0.1', 9)), errno.ECONNREFUSED)",
    "listen-inherited": "inherited.listen()",
    # a second way into the kernel
    "io_uring": "call('io_uring_setup', 4, bytes(120))",
    "bpf": "reached(lambda: call('bpf', 9999, bytes(64), 64), errno.EINVAL)",
    "perf": "reached(lambda: call('perf_event_open', None, 0, 0, 0, 0), errno.EFAULT, errno.EINVAL)",
    "userfaultfd": "call('userfaultfd', 0)",
    # programs and processes
    "fork": "spawned(os.fork())",
    "spawn": "spawned(os.posix_spawn('/bin/true', ['true'], {}), run=True)",
    "exec-descriptor": "reached(lambda: call('execveat', -1, b'', None, None, 0x1000), errno.EBADF, errno.EFAULT)",
    "clone": "spawned(call('clone', 17, None, None, None, None))",
    "clone-into-namespace": "spawned(call('clone', 17 | 0x40000000, None, None, None, None))",
    # other processes
    "ptrace": "reached(lambda: call('ptrace', 2, peer, 0, 0), errno.ESRCH)",
    "read-memory": "reached(lambda: call('process_vm_readv', peer, *vectors), errno.EFAULT)",
    "write-memory": "reached(lambda: call('process_vm_writev', peer, *vectors), errno.EFAULT)",
    "open-memory": "open(f'/proc/{peer}/mem', 'rb').close()",
    "open-environment": "open(f'/proc/{peer}/environ', 'rb').close()",
    "take-descriptor": "reached(lambda: call('pidfd_getfd', -1, 0, 0), errno.EBADF)",
    "process-descriptor": "os.pidfd_open(peer)",
    "compare": "call('kcmp', peer, os.getpid(), 0, 0, 0)",
    "signal": "os.kill(peer, 0)",
    "signal-group": "os.kill(0, 0)",
    "signal-everybody": "reached(lambda: call('kill', -1, 0), errno.ESRCH)",
    "signal-thread": "call('tgkill', peer, peer, 0)",
    "signal-any-thread": "call('tkill', peer, 0)",
    "signal-with-value": "reached(lambda: call('rt_sigqueueinfo', peer, 0, None), errno.EFAULT)",
    "signal-by-descriptor": "fcntl.fcntl(inherited, fcntl.F_SETOWN, peer)",
    "signal-chosen": "fcntl.fcntl(inherited, 10, 9)",
    "signal-by-ioctl": "fcntl.ioctl(inherited, 0x8901, struct.pack('=i', peer))",
    "limits": "resource.prlimit(peer, resource.RLIMIT_CORE)",
    "shared-memory": "call('shmget', 0, 4096, 0o1600)",
    "message-queue": "reached(lambda: call('msgget', 1, 0), errno.ENOENT)",
    "named-queue": "reached(lambda: call('mq_open', b'pericard-none', 0, 0, None), errno.ENOENT)",
    # namespaces, mounts, keys
    "unshare": "call('unshare', 0)",
    "enter-namespace": "reached(lambda: call('setns', -1, 0), errno.EBADF)",
    "mount": "reached(lambda: call('mount', None, b'/nowhere', None, 0, None), errno.ENOENT)",
    "mount-tree": "os.close(call('open_tree', -100, b'/', 0))",
    "chroot": "os.chroot('/')",
    "keyring": "reached(lambda: call('keyctl', -1, 0, 0, 0, 0), errno.EOPNOTSUPP)",
    "by-handle": "reached(lambda: call('open_by_handle_at', -1, None, 0), errno.EFAULT, errno.EBADF)",
    # files of ours, given to others
    "mode": "os.chmod(kept, 0o644)",
    "mode-by-descriptor": "os.fchmod(os.open(kept, os.O_RDONLY), 0o644)",
    "owner": "os.chown(kept, -1, -1)",
    "attribute": "os.setxattr(kept, 'user.pericard', b'x')",
    "times": "os.utime(kept)",
    # what was set before
    "dumpable": "call('prctl', 4, 1, 0, 0, 0)",
    "outlive-parent": "call('prctl', 1, 0, 0, 0, 0)",
    "tracer": "reached(lambda: call('prctl', 0x59616D61, peer, 0, 0, 0), errno.EINVAL)",
    "another-filter": "reached(lambda: call('seccomp', 1, 8, None), errno.EFAULT)",
    "terminal": "reached(lambda: call('ioctl', -1, 0x5412, 0), errno.EBADF)",
}

#: What only Landlock stops.
WRITES = {
    "write": "open(kept, 'r+b').close()",
    "cut": "os.truncate(kept, 0)",
    "make": "open(outside / 'new', 'xb').close()",
    "make-folder": "(outside / 'folder').mkdir()",
    "make-link": "os.link(kept, outside / 'link')",
    "make-symlink": "os.symlink(kept, outside / 'symlink')",
    "make-queue": "os.mkfifo(outside / 'queue')",
    "rename": "os.rename(outside / 'kept', outside / 'moved')",
    "remove": "os.unlink(folder / 'kept')",
    "move-out": "os.rename(folder / 'inside' / 'kept', outside / 'taken')",
    "shared-memory-file": "open(shared, 'xb').close(); os.unlink(shared)",
    "device": "open('/dev/full', 'wb', 0).close()",
    "link-inside": "os.symlink('/etc/passwd', folder / 'inside' / 'symlink')",
    "folder-inside": "(folder / 'inside' / 'folder').mkdir()",
}

TRY = """
import fcntl, resource, socket, threading
call, peer, kept, outside = calls.call, os.getppid(), str(folder / "outside" / "kept"), folder / "outside"
shared = f"/dev/shm/confined-{os.getpid()}"
inherited = socket.socket()
byte = ctypes.create_string_buffer(1)
vectors = (struct.pack("@PN", ctypes.addressof(byte), 1), 1, struct.pack("@PN", 0x1000, 1), 1, 0)

def reached(attempt, *errors):
    try:
        attempt()
    except OSError as error:
        if error.errno not in errors:
            raise

def spawned(pid, run=False):
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)

def tried(code):
    try:
        exec(code)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "open"

ways = json.loads(options[0])
if options[1] == "confined":
    lock()
found = {}
def try_all():
    for name, code in ways.items():
        found[name] = tried(code)
if options[2] == "main":
    try_all()
else:
    thread = threading.Thread(target=try_all)
    thread.start()
    thread.join()
say(found)
"""


def tried(ways: dict[str, str], setting: Setting, where: str = "confined", thread: str = "main") -> dict[str, str]:
    with place() as folder:
        found: dict[str, str] = said(TRY, setting, folder, json.dumps(ways), where, thread)
        return found


@pytest.fixture(scope="module")
def without() -> dict[str, str]:
    """What root gets without any layer."""
    return tried(WAYS, SETTINGS["root"], "free")


@pytest.fixture(scope="module", params=[*SETTINGS, "root-in-a-later-thread"])
def inside(request: pytest.FixtureRequest) -> dict[str, str]:
    """What a process that locked itself in gets, in each setting."""
    if request.param not in SETTINGS:
        return tried(WAYS, SETTINGS["root"], thread="later")
    return tried(WAYS, SETTINGS[request.param])


@pytest.mark.parametrize("way", WAYS)
def test_the_way_out_is_open_without_the_layer(without: dict[str, str], way: str) -> None:
    if without[way] in {"ENOSYS", "EAFNOSUPPORT"}:
        pytest.skip(f"this kernel has no such thing: {without[way]}")
    assert without[way] == "open"


@pytest.mark.parametrize("way", WAYS)
def test_no_way_leads_out(inside: dict[str, str], way: str) -> None:
    assert inside[way] in {"EPERM", "EACCES"}


# --- files


@pytest.fixture(scope="module")
def writes_without() -> dict[str, str]:
    return tried(WRITES, SETTINGS["root"], "free")


@pytest.fixture(scope="module", params=WITH_LANDLOCK)
def writes_inside(request: pytest.FixtureRequest) -> dict[str, str]:
    return tried(WRITES, SETTINGS[request.param])


@pytest.mark.parametrize("way", WRITES)
def test_a_file_can_be_changed_without_the_layer(writes_without: dict[str, str], way: str) -> None:
    assert writes_without[way] == "open"


@pytest.mark.parametrize("way", WRITES)
def test_no_file_is_changed(writes_inside: dict[str, str], way: str) -> None:
    # EXDEV: a file that leaves its folder
    assert writes_inside[way] in {"EACCES", "EPERM", "EXDEV"}


def test_without_landlock_files_are_as_their_modes_say_and_that_is_told() -> None:
    found = tried({"write": WRITES["write"]}, SETTINGS["no-landlock"])
    assert found == {"write": "open"}
    with place() as folder:
        result = said("say(lock())", SETTINGS["no-landlock"], folder)
    assert result["layers"] == {"seccomp": True, "landlock": False, "capabilities": True, "no_new_privileges": True}
    assert (result["landlock_abi"], result["tries"]["write"]) == (0, "open")


# --- calls of another set


FOREIGN = """
import mmap
code = bytes.fromhex(options[0])
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
enter = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
if options[1] == "confined":
    lock()
enter()
say("came back")
"""
_FOREIGN = {
    "32-bit": "b814000000cd80c3",  # mov eax, 20 (getpid); int 0x80; ret
    "x32": "b8270000400f05c3",  # mov eax, 0x40000027 (getpid); syscall; ret
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another machine has no such calls")
@pytest.mark.parametrize("kind", _FOREIGN)
def test_a_call_of_another_set_ends_the_process(kind: str) -> None:
    with place() as folder:
        # without the layer it is answered, or is none of this kernel's calls; it ends nobody
        free = run(FOREIGN, SETTINGS["root"], folder, _FOREIGN[kind], "free")
        inside = run(FOREIGN, SETTINGS["root"], folder, _FOREIGN[kind], "confined")
    assert free.returncode in ({0, -signal.SIGSEGV} if kind == "32-bit" else {0})
    assert (inside.returncode, inside.stdout) == (-signal.SIGSYS, "")


# --- threads


def test_seccomp_reaches_a_thread_that_was_there_before() -> None:
    code = """
import socket, threading
ready, go, found = threading.Event(), threading.Event(), []
def wait():
    ready.set()
    go.wait()
    try:
        socket.socket()
    except OSError as error:
        found.append(errno.errorcode[error.errno])
earlier = threading.Thread(target=wait)
earlier.start()
ready.wait()
privileges.drop()
seccomp.install()
go.set()
earlier.join()
say(found)
"""
    with place() as folder:
        assert said(code, SETTINGS["root"], folder) == ["EPERM"]


def test_a_process_with_threads_is_not_locked_in_by_half() -> None:
    code = """
import threading
go = threading.Event()
threading.Thread(target=go.wait).start()
try:
    lock()
except HardeningError as error:
    say([error.code, str(error), tries.run(["tcp"])])
go.set()
"""
    with place() as folder:
        code_, message, after = said(code, SETTINGS["root"], folder)
    assert code_ == "hardening-unavailable"
    assert message.startswith("confinement: 2 threads run already")
    assert after == {"tcp": "open"}


# --- what is missing


@pytest.mark.parametrize(
    ("refused", "require", "subject"),
    [
        ((("seccomp", "EPERM"),), ("seccomp",), "seccomp"),
        ((("seccomp", "ENOSYS"),), (), "seccomp"),
        ((("landlock_create_ruleset", "EOPNOTSUPP"),), ("seccomp", "landlock"), "landlock"),
        ((("landlock_restrict_self", "EPERM"),), ("seccomp",), "landlock"),
    ],
)
def test_a_layer_that_cannot_be_had_refuses_the_start(
    refused: tuple[tuple[str, str], ...], require: tuple[str, ...], subject: str
) -> None:
    code = """
try:
    lock()
except HardeningError as error:
    say(str(error))
"""
    with place() as folder:
        message = said(code, Setting(nobody=True, refused=refused, require=require), folder)
    assert message.startswith(f"{subject}: ")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("seccomp.REFUSED.pop('socket')", "seccomp: is in force and does not stop the way out 'tcp': open"),
        ("seccomp._COMMANDS.pop('ioctl')", "seccomp: is in force and does not stop the way out 'terminal': open"),
        ("landlock.READ |= 2", "landlock: is in force and does not stop the way out 'write': open"),
        ("privileges._libc = type('', (), {'capset': lambda *_: -1})", "capabilities: some are left"),
        ("seccomp.install = lambda: None", "seccomp: is in force and does not stop"),
    ],
)
def test_a_layer_that_is_there_and_does_not_hold_is_found_by_trying(harm: str, message: str) -> None:
    code = f"""
{harm}
try:
    lock()
except HardeningError as error:
    say(str(error))
"""
    with place() as folder:
        found = said(code, SETTINGS["root"], folder)
    assert found.startswith(message)


# --- what is said of it


@pytest.mark.parametrize("name", SETTINGS)
def test_the_result_says_what_was_tried_and_what_the_kernel_confirms(name: str) -> None:
    with place() as folder:
        found = said("say(lock())", SETTINGS[name], folder)
    landlock = name in WITH_LANDLOCK
    assert found["layers"] == {
        "seccomp": True, "landlock": landlock, "capabilities": True, "no_new_privileges": True,
    }  # fmt: skip
    assert bool(found["landlock_abi"]) == landlock
    assert {found["tries"][way] for way in ("tcp", "udp", "vsock", "fork", "exec", "io_uring")} == {"EPERM"}
    status = found["status"]
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert {int(status[field], 16) for field in ("CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd")} == {0}


def test_what_it_says_of_a_process_outside_is_that_everything_is_open() -> None:
    with place() as folder:
        found = said("hardening.harden(); say(confinement.examine()['tries'])", SETTINGS["root"], folder)
    assert {way for way, result in found.items() if result != "open"} <= {"vsock", "io_uring"}


def test_anybody_can_see_from_outside_that_it_is_locked_in() -> None:
    code = """
ended, end = os.pipe()
ready, told = os.pipe()
child = os.fork()
if not child:
    os.close(end)
    lock()
    os.write(told, b"x")
    os.read(ended, 1)
    os._exit(0)
os.read(ready, 1)
lines = open(f"/proc/{child}/status").read().splitlines()
say([line for line in lines if line.startswith(("Seccomp:", "CapEff", "NoNew"))])
os.close(end)
os.waitpid(child, 0)
"""
    with place() as folder:
        lines = said(code, SETTINGS["nobody"], folder)
    assert set(lines) == {"Seccomp:\t2", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"}

"""What the engine needs still works once it is locked in: frameworks, threads, descriptors, the log, secret memory."""

from __future__ import annotations

from confined import SETTINGS, place, said

INSIDE = """
import mmap
peer_socket, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
lock()

import torch
import onnxruntime
from concurrent.futures import ThreadPoolExecutor
from pericard.audit import AuditLog
from pericard.hardening import PrivateMemory, swap_in_use
from pericard.keys import LogKey
from pericard.trust import clock
from pericard import durable
done = []

# frameworks, in threads of theirs and of ours
torch.set_num_threads(2)
model = torch.nn.Sequential(torch.nn.Conv1d(1, 8, 7), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 354, 4))
x = torch.randn(8, 1, 360)
with torch.inference_mode(), ThreadPoolExecutor(4) as pool:
    first = model(x)
    assert all(torch.equal(first, one) for one in pool.map(lambda _: model(x), range(8)))
assert "CPUExecutionProvider" in onnxruntime.get_available_providers()
done.append("frameworks")

# shared memory and a socket that arrive by descriptor
region = os.memfd_create("region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
os.ftruncate(region, 4096)
fcntl.fcntl(region, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
eventfd = os.eventfd(0)
socket.send_fds(peer_socket, [b"pipe"], [region, eventfd, peer_socket.fileno()])
message, descriptors, *_ = socket.recv_fds(ours, 64, 3)
view = mmap.mmap(descriptors[0], 4096)
view[:4] = b"pong"
received = socket.socket(fileno=descriptors[2])
received.send(b"x")
assert ours.recv(10) == b"x"
os.eventfd_write(descriptors[1], 1)
import select
poll = select.poll()
poll.register(eventfd, select.POLLIN)
assert poll.poll(1000)
done.append("descriptors")

# the log, over several segments, cut and published
key = LogKey(bytes(range(64)))
log = AuditLog.open(folder / "inside", key=key, segment_bytes=4096, checkpoint_every=2)
for number in range(40):
    log.commit([{"event": "test", "number": number, "text": "x" * 200}])
log.close()
with AuditLog.open(folder / "inside", key=key) as again:
    assert again.next_index == 40
done.append("log")

# a small file replaced, a model file that came later read
durable.replace(folder / "inside" / "trust.json", b"first")
durable.replace(folder / "inside" / "trust.json", b"second")
assert (folder / "inside" / "trust.json").read_bytes() == b"second"
assert durable.read(folder / "outside" / "kept", limit=10) == b"kept\\n"
done.append("files")

with PrivateMemory(1 << 16) as memory:
    memory.view[:4] = b"abcd"
try:
    with PrivateMemory(1 << 16, secret=True) as memory:
        memory.view[:4] = b"abcd"
except HardeningError as error:
    done.append(str(error))
else:
    done.append("secret memory")
assert isinstance(swap_in_use(), bool)
assert isinstance(clock.synchronised(), bool)
done.append("clock and swap")
say(done)
"""


def test_what_the_engine_needs_works_inside() -> None:
    with place() as folder:
        (folder / "inside" / "kept").unlink()  # the log's folder holds the log
        done = said(INSIDE, SETTINGS["root"], folder)
    assert done == ["frameworks", "descriptors", "log", "files", "secret memory", "clock and swap"]

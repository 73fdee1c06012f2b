"""The region: no place is given out twice, no access can fault, and the engine can only read."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from pericard.errors import Overloaded, PipeError
from pericard.pipe import Question, Slot, create
from pericard.pipe.region import MIN_SIZE, Region, Window

ALL = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@pytest.fixture
def descriptor() -> Iterator[int]:
    made = create(MIN_SIZE)
    yield made
    os.close(made)


@pytest.fixture
def region(descriptor: int) -> Region:
    return Region(os.dup(descriptor))


@pytest.fixture
def window(descriptor: int) -> Window:
    return Window(os.dup(descriptor))


class Allocator(RuleBasedStateMachine):
    """The region against a set of byte ranges."""

    slots = Bundle("slots")

    def __init__(self) -> None:
        super().__init__()
        self.region = Region(create(MIN_SIZE))
        self.held: dict[int, Slot] = {}
        self.marks = 0

    @rule(target=slots, size=st.integers(0, 300) | st.integers(0, MIN_SIZE // 3))
    def reserve(self, size: int) -> Slot | None:
        try:
            slot = self.region.reserve(size)
        except Overloaded:
            assert all(end - start < size for start, end in self.gaps()), "there was a place"
            return None
        self.marks = self.marks % 255 + 1
        slot.view[:] = bytes([self.marks]) * size
        self.held[slot.offset] = slot
        return slot

    @rule(slot=consumes(slots))
    def release(self, slot: Slot | None) -> None:
        if slot is not None:
            self.region.release(slot)
            del self.held[slot.offset]

    def gaps(self) -> Iterator[tuple[int, int]]:
        """What no slot takes, in whole units of 64 bytes."""
        place = 0
        for offset, slot in sorted(self.held.items()):
            yield place, offset
            place = offset + max(64, -(-slot.size // 64) * 64)
        yield place, self.region.size

    @invariant()
    def nothing_overlaps(self) -> None:
        gaps = list(self.gaps())
        assert all(start <= end for start, end in gaps)
        assert self.region.free == sum(end - start for start, end in gaps)
        for slot in self.held.values():
            assert len(slot.view) == slot.size
            assert slot.offset % 64 == 0
            assert len(set(slot.view)) <= 1, "somebody wrote into another's place"

    def teardown(self) -> None:
        for slot in list(self.held.values()):
            self.region.release(slot)
        assert self.region.reserve(self.region.size).offset == 0  # one range again


TestAllocator = Allocator.TestCase
TestAllocator.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_full_region_is_overloaded_and_goes_on(region: Region) -> None:
    slots = [region.reserve(MIN_SIZE // 4) for _ in range(4)]
    with pytest.raises(Overloaded):
        region.reserve(0)
    region.release(slots[2])

    assert region.reserve(MIN_SIZE // 4).offset == slots[2].offset
    with pytest.raises(Overloaded):
        region.reserve(1 << 62)


@pytest.mark.parametrize("again", [0, 1, 2])
def test_a_place_that_is_given_back_twice_is_never_handed_out_twice(region: Region, again: int) -> None:
    slots = [region.reserve(100) for _ in range(3)]
    region.release(slots[again])
    free = region.free

    with pytest.raises(AssertionError):
        region.release(slots[again])
    assert region.free == free


# --- the engine's side ------------------------------------------------------------------------------------------------


def question(offset: int, size: int) -> Question:
    return Question(offset, size, 1, 1, 1, b"", b"", b"")


def test_the_engine_reads_what_the_edge_wrote(region: Region, window: Window) -> None:
    region.reserve(10)
    slot = region.reserve(5)
    slot.view[:] = b"hello"

    assert bytes(window.row(slot.offset, slot.size)) == b"hello"
    assert window.size == region.size == MIN_SIZE


def test_the_engine_cannot_write(window: Window) -> None:
    row = window.row(0, 8)

    assert row.readonly
    with pytest.raises(TypeError):
        row[0] = 1
    with pytest.raises(TypeError):
        window._memory[0] = 1


@pytest.mark.parametrize(
    ("offset", "size"),
    [(MIN_SIZE, 1), (0, MIN_SIZE + 1), (MIN_SIZE - 1, 2), (2**64 - 1, 1), (2**64 - 1, 2**32 - 1), (MIN_SIZE + 1, 0)],
)
def test_a_place_beyond_the_region_is_refused(window: Window, offset: int, size: int) -> None:
    with pytest.raises(PipeError):
        window.row(offset, size)


def test_the_whole_region_and_nothing_are_places(window: Window) -> None:
    assert len(window.row(0, MIN_SIZE)) == MIN_SIZE
    assert len(window.row(MIN_SIZE, 0)) == 0


# --- seals ------------------------------------------------------------------------------------------------------------


def test_a_region_keeps_its_size_for_ever(descriptor: int) -> None:
    for size in (0, MIN_SIZE - 1, MIN_SIZE + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    with pytest.raises(PermissionError):
        os.posix_fallocate(descriptor, MIN_SIZE, 4096)
    with pytest.raises(PermissionError):  # nor can a seal be added that would keep the edge from writing
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert os.fstat(descriptor).st_size == MIN_SIZE


def test_children_inherit_no_region_by_chance(descriptor: int) -> None:
    assert not os.get_inheritable(descriptor)


@pytest.mark.parametrize("side", [Region, Window])
@pytest.mark.parametrize(
    "seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL, ALL & ~fcntl.F_SEAL_SEAL]
)
def test_memory_that_could_shrink_is_refused(side: type[Region | Window], seals: int) -> None:
    made = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(made, MIN_SIZE)
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, seals)

    with pytest.raises(PipeError):
        side(made)
    with pytest.raises(OSError, match="Bad file descriptor"):  # and it was closed all the same
        os.fstat(made)


@pytest.mark.parametrize("side", [Region, Window])
def test_what_is_no_memory_is_refused(side: type[Region | Window]) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    empty = os.memfd_create("empty", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(empty, fcntl.F_ADD_SEALS, ALL)
    for descriptor in (reading, empty):
        with pytest.raises(PipeError):
            side(descriptor)


def test_an_engine_that_died_leaves_the_mapping_readable(descriptor: int) -> None:
    """Both mappings outlive the descriptors, so that no side can pull the memory from under the other."""
    region, window = Region(os.dup(descriptor)), Window(os.dup(descriptor))
    slot = region.reserve(mmap.PAGESIZE)
    del region
    slot.view[:] = b"x" * mmap.PAGESIZE

    assert bytes(window.row(slot.offset, slot.size)) == b"x" * mmap.PAGESIZE

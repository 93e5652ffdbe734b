"""A model of a disk: what a crash leaves of recorded system calls, when only synced changes are certain.

A file's bytes are certain once it was synced, a folder's entries once the folder was. Other changes may reach the disk
or not: in order, as a journal writes them, or any subset, as a file system without a journal may.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from torture.tracing import decoded

# calls that change nothing in the model, which has no permissions and no times
HARMLESS = {
    "chmod",
    "fchmod",
    "fchown",
    "flock",
    "getcwd",
    "getdents64",
    "ioctl",
    "lseek",
    "newfstatat",
    "read",
    "utimensat",
}
EXHAUSTIVE = 7  # up to so many uncertain entries every subset is tried
DRAWN = 40  # subsets drawn if there are more

Tree = dict[str, "bytes | Tree"]


@dataclass(eq=False)
class Node:
    """A file or a folder, by its identity; its names are in the entries of folders."""

    is_folder: bool
    number: int


@dataclass
class Change:
    """One step on a folder's entries, or one write to a file: ``entries`` says what the names lead to afterwards."""

    node: Node
    entries: dict[str, Node | None] = field(default_factory=dict)
    offset: int = 0
    data: bytes = b""


@dataclass
class Disk:
    """The changes in order, and the points at which each became certain."""

    root: Node
    changes: list[Change] = field(default_factory=list)
    at: list[int] = field(default_factory=list)  # the number of the call that made it
    syncs: list[tuple[int, Node]] = field(default_factory=list)
    calls: int = -2  # what was there at the start was written and synced before the first
    success: int | None = None  # the number of calls before the writer reported success


class Recorder:
    """Turns strace's lines into changes of a disk, as the kernel saw them.

    Args:
        top: The folder that the model describes; other paths are ignored.
    """

    def __init__(self, top: Path) -> None:
        self.top = str(top)
        self.count = 0
        self.disk = Disk(self._new(True))
        self.now: dict[Node, dict[str, Node]] = {self.disk.root: {}}
        self.descriptors: dict[int, tuple[Node, int]] = {}
        self._take_in(top, self.disk.root)
        self.disk.calls = 0

    def _new(self, is_folder: bool) -> Node:
        self.count += 1
        return Node(is_folder, self.count)

    def _take_in(self, folder: Path, node: Node) -> None:
        """What is there at the start is certain."""
        for path in sorted(folder.iterdir()):
            one = self._new(path.is_dir())
            self._change(node, {path.name: one})
            if path.is_dir():
                self.now[one] = {}
                self._take_in(path, one)
            else:
                self.disk.changes.append(Change(one, data=path.read_bytes()))
                self.disk.at.append(-2)
                self.disk.syncs.append((-1, one))
        self.disk.syncs.append((-1, node))

    def _change(self, folder: Node, entries: dict[str, Node | None]) -> None:
        self.disk.changes.append(Change(folder, entries))
        self.disk.at.append(self.disk.calls)
        for name, node in entries.items():
            if node is None:
                del self.now[folder][name]
            else:
                self.now[folder][name] = node

    def _where(self, path: str, folder: str = "AT_FDCWD") -> tuple[Node, str] | None:
        """The folder's node and the name; None outside of the model. A relative path is one of an open folder."""
        if folder != "AT_FDCWD" and not path.startswith("/"):
            opened = self.descriptors.get(int(folder))
            return opened and (opened[0], path)
        if path == self.top:
            return self.disk.root, "."
        if not path.startswith(self.top + "/"):
            return None
        *parents, name = path[len(self.top) + 1 :].split("/")
        node = self.disk.root
        for parent in parents:
            if parent not in self.now[node]:
                return None
            node = self.now[node][parent]
        return node, name

    def feed(self, name: str, arguments: str, result: str) -> None:
        """Take in one call that the process made after its mark."""
        if int(result) >= 0:
            words = [self._word(word) for word in re.findall(r'"[^"]*"|[^,\s][^,]*', arguments)]
            handler = getattr(self, f"_on_{name}", None)
            if handler is not None:
                handler(words, int(result))
            elif name not in HARMLESS:
                raise NotImplementedError(f"call {name}: expected one that the model knows, got {arguments[:200]}")
        self.disk.calls += 1

    @staticmethod
    def _word(word: str) -> "str | bytes":
        if not word.startswith('"'):
            return word.strip()
        return bytes.fromhex(word.strip('"').replace("\\x", ""))

    def _on_openat(self, words: list, result: int) -> None:
        folder, path, flags = words[0], words[1].decode(), words[2]
        where = self._where(path, folder)
        self.descriptors.pop(result, None)
        if where is None:
            return
        parent, name = where
        if name != "." and name not in self.now[parent]:
            if "O_CREAT" not in flags:
                raise NotImplementedError(f"openat {path}: expected a file that the model knows")
            self._change(parent, {name: self._new(False)})
        elif "O_TRUNC" in flags:
            raise NotImplementedError("openat: O_TRUNC is not part of the model")
        self.descriptors[result] = (parent if name == "." else self.now[parent][name], 0)

    def _on_write(self, words: list, result: int) -> None:
        number = int(words[0])
        if number in self.descriptors:
            node, offset = self.descriptors[number]
            self.disk.changes.append(Change(node, offset=offset, data=words[1][:result]))
            self.disk.at.append(self.disk.calls)
            self.descriptors[number] = (node, offset + result)

    def _on_fsync(self, words: list, result: int) -> None:
        if int(words[0]) in self.descriptors:
            self.disk.syncs.append((self.disk.calls, self.descriptors[int(words[0])][0]))

    _on_fdatasync = _on_fsync

    def _on_fcntl(self, words: list, result: int) -> None:
        if words[1].startswith("F_DUPFD") and int(words[0]) in self.descriptors:
            self.descriptors[result] = self.descriptors[int(words[0])]

    def _on_close(self, words: list, result: int) -> None:
        self.descriptors.pop(int(words[0]), None)

    def _on_mmap(self, words: list, result: int) -> None:
        if "MAP_SHARED" in words[3]:
            raise NotImplementedError("mmap: what is written through shared memory is not part of the model")

    def _on_mkdir(self, words: list, result: int) -> None:
        parent, name = self._where(words[0].decode())
        node = self._new(True)
        self.now[node] = {}
        self._change(parent, {name: node})

    def _on_rename(self, words: list, result: int) -> None:
        self._rename(self._where(words[0].decode()), self._where(words[1].decode()), exchange=False)

    def _on_renameat2(self, words: list, result: int) -> None:
        places = (self._where(words[at + 1].decode(), words[at]) for at in (0, 2))
        self._rename(*places, exchange=words[4] == "RENAME_EXCHANGE")

    def _rename(self, source: tuple[Node, str], target: tuple[Node, str], exchange: bool) -> None:
        if source[0] is not target[0]:
            raise NotImplementedError("rename: expected one inside a folder")
        entries = self.now[source[0]]
        behind = entries[target[1]] if exchange else None
        self._change(source[0], {source[1]: behind, target[1]: entries[source[1]]})

    def _on_unlink(self, words: list, result: int) -> None:
        parent, name = self._where(words[0].decode())
        self._change(parent, {name: None})

    _on_rmdir = _on_unlink

    def _on_unlinkat(self, words: list, result: int) -> None:
        parent, name = self._where(words[1].decode(), words[0])
        self._change(parent, {name: None})


def record(recorder: Recorder, log: Path) -> None:
    """Feed the calls between the marks of strace's log; a call that never returned was not made."""
    begun = False
    for line in log.read_text().splitlines():
        match = re.match(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)", line)
        if match is None:
            continue
        name, arguments, result = match.groups()
        word = decoded(arguments) if name in ("newfstatat", "stat") else ""
        if "regplug-mark-" in word:
            if begun:
                if word.endswith("regplug-mark-success"):
                    recorder.disk.success = recorder.disk.calls
                return
            begun = True
        elif begun:
            recorder.feed(name, arguments, result)
    recorder.descriptors.clear()


def moments(disk: Disk) -> list[int]:
    """After how many calls a crash may leave something new; the other calls change nothing."""
    return sorted(
        at for at in {0, disk.calls, *(at + 1 for at in disk.at), *(at + 1 for at, _ in disk.syncs)} if at >= 0
    )


def crashes(disk: Disk, calls: int, draw: random.Random) -> Iterator[Tree]:
    """Every state that a crash after so many calls may leave; some may come twice."""
    done = [(change, at) for change, at in zip(disk.changes, disk.at, strict=True) if at < calls]
    sure = [any(node is change.node and at < when < calls for when, node in disk.syncs) for change, at in done]
    steps = [number for number, (change, _) in enumerate(done) if change.node.is_folder]
    uncertain = [number for number in steps if not sure[number]]
    in_order = max((place for place, number in enumerate(steps, 1) if sure[number]), default=0)
    kept = {frozenset(steps[:cut]) for cut in range(in_order, len(steps) + 1)}
    certain = frozenset(steps) - frozenset(uncertain)
    if len(uncertain) <= EXHAUSTIVE:
        masks: Iterator[tuple[bool, ...]] = product((False, True), repeat=len(uncertain))
    else:
        masks = (tuple(draw.random() < 0.5 for _ in uncertain) for _ in range(DRAWN))
    for mask in masks:
        kept.add(certain | {number for number, keep in zip(uncertain, mask, strict=True) if keep})
    for chosen in sorted(kept, key=sorted):
        for damage in DAMAGES:
            entries: dict[Node, dict[str, Node]] = {disk.root: {}}
            data: dict[Node, bytes] = {}
            for number, (change, _) in enumerate(done):
                if not change.node.is_folder:
                    written = change.data if sure[number] else damage(change.data)
                    data[change.node] = (
                        data.get(change.node, b"")[: change.offset].ljust(change.offset, b"\0") + written
                    )
                elif number in chosen:
                    here = entries.setdefault(change.node, {})
                    here.update({name: node for name, node in change.entries.items() if node})
                    for name in [name for name, node in change.entries.items() if node is None]:
                        here.pop(name, None)
            yield _tree(disk.root, entries, data)


# what a crash leaves of written bytes that were not synced
DAMAGES: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: data,
    lambda data: b"",
    lambda data: data[: len(data) // 2],
    lambda data: bytes(len(data)),
)


def _tree(folder: Node, entries: dict[Node, dict[str, Node]], data: dict[Node, bytes]) -> Tree:
    here = sorted(entries.get(folder, {}).items())
    return {name: _tree(node, entries, data) if node.is_folder else data.get(node, b"") for name, node in here}


def materialise(tree: Tree, folder: Path) -> None:
    folder.mkdir()
    for name, one in tree.items():
        if isinstance(one, dict):
            materialise(one, folder / name)
        else:
            (folder / name).write_bytes(one)

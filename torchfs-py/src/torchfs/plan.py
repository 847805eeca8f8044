"""`Plan`: which epoch of a mount is which order of this process.

A mount knows one sequence of epochs. Here it is shared by all samplers of a process, say one for training and one for
validation, each of which knows at most its own next order. The plan puts them in line: what begins takes the next number,
and what is expected follows in the order in which it was last seen. In steady alternation nothing is announced twice.
What nobody reads any more when the program ends is withdrawn: it would hold the mount's cache.
"""

import atexit
import os
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Tuple
from weakref import ReferenceType, ref

from torchfs.mount import Mount

# An expected order that others went before so often is not waited for any more.
_DISPLACED_MAX = 2


@dataclass(frozen=True)
class Order:
    """What one sampler will read, as indices of `files`, its dataset's lines, and what to tell the mount with it."""

    files: List[Optional[str]] = field(repr=False)
    indices: array = field(repr=False)
    hints: Dict[str, int] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        return (line for line in map(self.files.__getitem__, self.indices) if line is not None)

    def same_as(self, other: "Order") -> bool:
        # Identity first: arrays compare element by element even with themselves.
        if self is other:
            return True
        return self.files is other.files and self.indices == other.indices and self.hints == other.hints


@dataclass
class _Expected:
    reader: "ReferenceType[Any]"
    order: Order
    displaced: int = 0


class Plan:
    """The orders of this process on one mount."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.begun: Optional[int] = None
        self._expected: List[_Expected] = []
        self._told: Dict[int, Order] = {}
        # The process that announced, the lowest number that it announced, and the mount's last epoch after that, if it tells.
        self._process: Optional[int] = None
        self._first = 0
        self._last: Optional[Tuple[int, int]] = None
        self._unknown: Optional[str] = None

    def begin(self, reader: object, order: Order, *, epoch: Optional[int] = None, at_least: int = 0) -> None:
        """`order` is read from now on, by `reader`, which is any object that lives as long as it reads.

        It gets the number `epoch`, or else the next one; the first of all one from `at_least` up that the mount does not
        know. Raises OSError if the order was not expected and the mount does not take it.
        """
        number = self._next(at_least) if epoch is None else epoch
        for passed, expected in enumerate(self._expected):
            if expected.reader() is reader and expected.order.same_as(order):
                self.begun, self._expected = number + passed, self._expected[passed + 1 :]
                break
        else:
            self.begun = number
            self._displace(reader)
        self._announce(order)

    def expect(self, reader: object, order: Order) -> None:
        """`order` is what `reader` reads next, if nothing unforeseen happens.

        Raises OSError if the mount does not take it.
        """
        self._expected = [each for each in self._expected if each.reader() not in (None, reader)]
        self._expected.append(_Expected(ref(reader), order))
        self._announce()

    def withdraw(self) -> None:
        """Forgets what this process announced, unless somebody else has announced something that is not read yet.

        An announcement takes back those of higher numbers, so somebody else's is below this process's first number or changes
        the last epoch. Not noticed: one that comes at the same moment, or has the last number and as many entries.
        """
        if self._process != os.getpid() or self._last is None:
            return
        epochs = self._announced()
        unread = (each["epoch"] for each in epochs if each["read"] < each["entries"])
        if _last_of(epochs) == self._last and all(number >= self._first for number in unread):
            self.mount.forget()

    def _announced(self) -> List[Dict[str, Any]]:
        """The epochs that the mount knows, by number."""
        return self.mount.announced().get("epochs", [])

    def _next(self, at_least: int) -> int:
        if self.begun is not None:
            return self.begun + 1
        # Behind what an earlier program announced, and perhaps did not read to the end.
        return max([at_least, *(each["epoch"] + 1 for each in self._announced())])

    def _displace(self, reader: object) -> None:
        """Whoever is gone, or did not come when it was its turn, is not waited for; nor `reader`, which is here."""
        self._expected = [each for each in self._expected if each.reader() not in (None, reader)]
        for each in self._expected:
            each.displaced += 1
        self._expected = [each for each in self._expected if each.displaced < _DISPLACED_MAX]

    def _announce(self, begun: Optional[Order] = None) -> None:
        """Tells the mount what it was not told yet, or was told otherwise."""
        assert self.begun is not None
        self._told = {number: order for number, order in self._told.items() if number >= self.begun}
        orders = {self.begun: begun} if begun else {}
        for ahead, each in enumerate(self._expected, 1):
            orders[self.begun + ahead] = each.order
        for number, order in orders.items():
            told = self._told.get(number)
            if told is None or not told.same_as(order):
                self._told.pop(number, None)
                self.mount.announce({"epoch": number, **order.hints}, order.lines())
                self._told[number] = order
                self._note(number)

    def _note(self, number: int) -> None:
        """Notes for `withdraw` that this was announced."""
        process = os.getpid()
        # A forked process begins anew.
        self._first = min(self._first, number) if process == self._process else number
        epochs = self._announced()
        self._process, self._last = process, _last_of(epochs)
        for each in epochs:
            if each["epoch"] == number and each.get("unknown"):
                self._unknown = f"{each['unknown']} of the samples announced lead to no file; the first is {each.get('unknown_first')}"

    def take_unknown(self) -> Optional[str]:
        """What is to be said of samples that lead to no file, once."""
        unknown, self._unknown = self._unknown, None
        return unknown


def _last_of(epochs: List[Dict[str, Any]]) -> Optional[Tuple[int, int]]:
    return (epochs[-1]["epoch"], epochs[-1]["entries"]) if epochs else None


# Kept for good: who makes a new sampler for each epoch shall find what the mount was told.
_plans: Dict[str, Plan] = {}


def plan_of(mount: Mount) -> Plan:
    """The plan that all samplers of this process share on a mount."""
    return _plans.setdefault(mount.point, Plan(mount))


@atexit.register
def _withdraw_all() -> None:
    for plan in _plans.values():
        # The mount may be gone, and a program that ends has nobody to tell.
        with suppress(Exception):
            plan.withdraw()

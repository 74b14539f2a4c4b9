"""Fair use and quotas in the agent: reads counters, stores usage, orders overrides.

Here and not in the gc: a rule about rates needs a look each minute, and a process that starts each
minute would read the policy of 10,000 users each time, which takes it longer than the look.  So
that no line waits for the look, it is done in small steps, at most one a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ..core import events
from ..core.policy.model import Policy
from ..core.policy.overrides import Override
from ..core.policy.terms import BLOCKED, CUT
from ..core.policy.usage import Change, Ledger, Row, Usage, is_automatic
from ..errors import KernelRefused, QosError
from ..journal import Journal
from ..state import State, StateError
from .assign import Assigner

#: Users looked at in one step: some 15 ms.
_CHUNK = 500
#: How often what was used is stored.  A crash of the agent loses what new users have used since,
#: one of the node what all have.
_SAVE_S = 300.0
#: Name of the value that says when the counters of the saved usage were read.
_READ = "usage_read"
_DONE = object()


class FairUse:
    """Watches the usage of those whose plan asks for it."""

    def __init__(
        self,
        policy: Policy,
        state: State,
        assigner: Assigner,
        journal: Journal,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` gives seconds since the epoch."""
        self._policy, self._state, self._assigner = policy, state, assigner
        self._journal, self._clock = journal, clock
        self._ledger: Ledger | None = None
        #: Nobody has rules, and nothing is left of the time when somebody had.
        self._idle = False
        self._look: Iterator[None] | None = None
        #: Overrides are those that the rules of this policy ask for.
        self._agreed: Policy | None = None
        #: By key and origin: not stored and ordered yet.
        self._changes: dict[tuple[str, str], Change] = {}
        self._due_s = self._save_s = 0.0
        #: The state's version when nobody was left to let off.
        self._let_off_at = -1

    def set_policy(self, policy: Policy) -> None:
        """New rules; the next look is due."""
        self._policy = policy
        self._idle, self._due_s = False, 0.0

    @property
    def is_looking(self) -> bool:
        """Whether a look is under way."""
        return self._look is not None

    def step(self, now_s: float) -> None:
        """Once a second: go on with the look that is under way, or begin the next.

        ``now_s`` is a monotonic time.  Raises Suspended.
        """
        try:
            self._let_off()
        except StateError as error:
            self._tell(error)
        if self._look is None:
            if self._idle or now_s < self._due_s:
                return
            terms = self._policy.terms.values()
            self._due_s = now_s + min((t.sample_s for t in terms), default=0.0)
            self._look = self._steps(now_s)
        try:
            if next(self._look, _DONE) is _DONE:
                self._look = None
        except (KernelRefused, StateError) as error:
            self._look = None
            self._tell(error)

    def finish(self, look: bool = False) -> None:
        """End the look that is under way, or its users would be charged twice, and save everything.

        ``look``: after another one.  Raises Suspended.
        """
        if self._ledger is None:
            return
        try:
            for _step in self._look or ():
                pass
            for _step in self._steps(time.monotonic()) if look else ():
                pass
            if self._ledger:
                for _step in self._save(self._ledger):
                    pass
        except (KernelRefused, StateError) as error:
            self._tell(error)

    def _tell(self, error: QosError) -> None:
        event = events.STATE if isinstance(error, StateError) else events.KERNEL
        self._journal.tell(
            event, error=f"fair use: {error}", effect="the next look makes up for it"
        )

    def _steps(self, now_s: float) -> Iterator[None]:
        """One round over all users, in steps."""
        policy = self._policy  # it may change meanwhile; the next look is for that
        if self._ledger is None:
            self._ledger = self._load()
            self._agreed = policy
            if not policy.terms and not self._ledger.users:
                self._ledger, self._idle = None, True
                return
            yield
        ledger, assigner = self._ledger, self._assigner
        up = assigner.counters(0)
        yield
        down = assigner.counters(1)
        ledger.open(up, down, self._clock())
        ledger.settle(*assigner.doubted())
        yield
        # Not before: who came meanwhile has sent what the counters say.
        minors = dict(assigner.active())
        # Who has no class any more may still have a penalty.
        emails = [*minors, *(email for email in ledger.users if email not in minors)]
        for start in range(0, len(emails), _CHUNK):
            for email in emails[start : start + _CHUNK]:
                terms = self._policy.terms_of(email)
                if terms or email in ledger.users:
                    for change in ledger.observe(
                        email,
                        minors.get(email),
                        terms,
                        self._policy.limits(email),
                        assigner.is_held(email),
                    ):
                        self._changes[email, change.origin] = change
            yield
        ledger.close()
        if self._changes:
            # First what was used: a start orders what is missing.
            self._store(ledger, {key for key, _origin in self._changes}, minors)
            self._order(self._changes.values())
            self._changes.clear()
        if self._agreed is not policy:
            self._agree(ledger)
            self._agreed = policy
        if now_s >= self._save_s or not self._policy.terms:
            self._save_s = now_s + _SAVE_S
            yield from self._save(ledger)
        if not self._policy.terms:
            self._state.delete_usage(list(ledger.users))
            self._ledger, self._idle = None, True

    def _let_off(self) -> None:
        """Forget what those have used whom a person has let off."""
        version = self._assigner.state_version
        if version == self._let_off_at:
            return
        if emails := self._state.forgiven():
            if self._ledger is not None:
                self._forgive(self._ledger, emails)
            self._state.forgotten(emails)
        self._let_off_at = version

    def _forgive(self, ledger: Ledger, emails: Collection[str]) -> None:
        for email in emails:
            ledger.forgive(email)
        for key in [key for key in self._changes if key[0] in emails]:
            del self._changes[key]
        self._store(ledger, set(emails), dict(self._assigner.active()))
        # One may have begun in the moment in which it was ordered.
        end = {
            (o.email, o.origin): "let off"
            for o in self._state.overrides()
            if o.email in emails and is_automatic(o.origin)
        }
        if end:
            self._assigner.order([], end)

    def _order(self, changes: Collection[Change]) -> None:
        begin = [_override(change) for change in changes if change.begins]
        end = {(change.key, change.origin): change.why for change in changes if not change.begins}
        self._assigner.order(begin, end)

    # -- what survives --------------------------------------------------------------------------

    def _load(self) -> Ledger:
        """What the last run has saved."""
        rows = [
            Row(key, minor, up, down, Usage.from_json(self._policy.terms_of(key), data))
            for key, minor, up, down, data in self._state.usage()
        ]
        ledger = Ledger(rows, self._state.get_value(_READ) or 0.0)
        if emails := self._state.forgiven():
            self._forgive(ledger, emails)
            self._state.forgotten(emails)
        self._agree(ledger)
        return ledger

    def _agree(self, ledger: Ledger) -> None:
        """Have those overrides that penalties ask for: one may be lost, lead elsewhere by now, or
        have been written by a run that did not come to write its penalty."""
        now_s = self._clock()
        wanted = {
            (key, change.origin): _override(change)
            for key, usage in ledger.users.items()
            for change in usage.in_force(key, now_s)
        }
        found = {
            (o.email, o.origin): (o.entry, o.until)
            for o in self._state.overrides()
            if is_automatic(o.origin)
        }
        begin = [o for key, o in wanted.items() if found.get(key) != (o.entry, o.until)]
        end = dict.fromkeys(found.keys() - wanted.keys(), "nothing stands for it")
        if begin or end:
            self._assigner.order(begin, end)

    def _store(self, ledger: Ledger, keys: set[str], minors: Mapping[str, int]) -> None:
        """Write the usage of some users."""
        rows = []
        for key in keys & ledger.users.keys():
            minor = minors.get(key, 0)
            rows.append((key, minor, *ledger.seen(minor), ledger.users[key].to_json()))
        self._state.save_usage(rows)
        ledger.dirty -= keys

    def _save(self, ledger: Ledger) -> Iterator[None]:
        """Write all that has changed, in steps, and drop who is forgotten."""
        self._state.delete_usage(ledger.forget_idle())
        waiting = list(ledger.dirty)
        minors = dict(self._assigner.active())
        for start in range(0, len(waiting), _CHUNK):
            self._store(ledger, set(waiting[start : start + _CHUNK]), minors)
            yield
        self._state.set_value(_READ, ledger.read_s)


def _override(change: Change) -> Override:
    """The override that a penalty leads to."""
    blocked: dict[str, Any] = {BLOCKED: {"blocked": True}, CUT: {"blocked": CUT}}
    entry = blocked.get(change.then, {"plan": change.then})
    penalty, who = change.penalty, "vff-qos"
    return Override(change.key, change.origin, entry, penalty.until, who, change.why, penalty.since)

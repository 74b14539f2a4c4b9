"""People in the agent: identities become one user, or users of their own again.

All of it is done anew wherever it was left off: whatever the state or the kernel still has under an
identity's own name is the person's.  So a crash between two steps loses nothing, and what was
counted is never counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..core import events
from ..core.claims.trust import FIXED, WEAK
from ..core.flows.record import FLAGS, MINOR, owned, rank
from ..core.htb import MINOR_MASK, PROVISIONAL
from ..core.layout import Layout
from ..core.owners import ACTIVE, QUARANTINE, Owner
from ..core.policy.overrides import Override
from ..core.policy.usage import Usage
from ..journal import Journal
from ..kernel.packed.conntrack import Conntrack
from ..name_hashing import keep_people
from ..state import State, StateError
from .flow_table import FlowTable
from .known import KnownWords
from .marking import Marking
from .registry import Registry

#: So many are named in one entry of the journal.
_NAMED = 20


class Joined(NamedTuple):
    """Owners who are a person's identity: {their minor: the person's owner}, and who they were."""

    owners: dict[int, Owner]
    names: list[str]


class People:
    """The shell around `core.people`.  The caller holds the lock."""

    def __init__(
        self,
        layout: Layout,
        registry: Registry,
        flows: FlowTable,
        marking: Marking,
        known: KnownWords,
        conntrack: Conntrack,
        state: State,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` gives seconds since the epoch."""
        self._layout, self._registry = layout, registry
        self._flows, self._marking = flows, marking
        self._known, self._conntrack = known, conntrack
        self._state, self._journal, self._clock = state, journal, clock
        # As they were written last, and whether all of it was done.
        self._wanted: Mapping[str, str] = {}
        self._is_done = False

    def want(self, people: Mapping[str, str]) -> None:
        """Others from now on: {identity: person}; `renew` puts them in force."""
        if people != self._wanted:
            self._wanted, self._is_done = people, False

    @property
    def is_pending(self) -> bool:
        """Whether `renew` has something to do."""
        return not self._is_done

    def renew(self) -> bool:
        """Put them in force; returns whether anybody is somebody else now.  Raises KernelRefused.

        Classes first, then flows, then what was counted: no flow is without a limit meanwhile.
        """
        if self._is_done:
            return False
        registry = self._registry
        before = dict(registry.names.people)
        registry.join(self._wanted)
        people = registry.names.people
        if not people and not before:
            self._is_done = True
            return False
        split = [name for name, person in before.items() if people.get(name) != person]
        self._let_go({before[name] for name in split})
        done = self._keep()
        joined = self._own()
        registry.commit()
        moved = self._move(joined)
        self._retire(joined)
        if joined.names or split:
            self._known.keep(lambda _email, _client: False)
            self._tell(joined, len(split), moved)
        self._is_done = done and self._join_accounts()
        return bool(joined.names or split)

    # -- what is kept -----------------------------------------------------------------------------

    def _keep(self) -> bool:
        """Whose identities are whose, what they have used and what was ordered of them; returns
        whether it could be written."""
        registry, state = self._registry, self._state
        people = registry.names.people
        try:
            keep_people(state, people)
            self._join_usage(people)
            self._join_orders(people)
        except StateError as error:
            self._complain(error)
            return False
        return True

    def _join_usage(self, people: Mapping[str, str]) -> None:
        """What identities have used for quotas and fair use."""
        terms_of = self._registry.classes.policy.terms_of
        rows = {row[0]: row for row in self._state.usage()}
        gone = [key for key in rows if key in people]
        now_s = self._clock()
        for key in gone:
            person = people[key]
            terms = terms_of(person)
            _key, minor, up_seen, down_seen, data = rows.get(person) or rows[key]
            usage = Usage.from_json(terms, data)
            if person in rows:
                usage.join(Usage.from_json(terms, rows[key][4]), now_s)
            rows[person] = person, minor, up_seen, down_seen, usage.to_json()
        if gone:
            wanted = {people[key] for key in gone}
            self._state.join_usage([rows[person] for person in wanted], gone)

    def _join_orders(self, people: Mapping[str, str]) -> None:
        """Orders and penalties are the person's; of two of one kind the later one holds, as if both
        had been given to the person."""
        known = self._state.overrides()
        held = {(o.email, o.origin): o for o in known}
        gone = [o for o in known if o.email in people]
        changed: dict[tuple[str, str], Override] = {}
        for order in sorted(gone, key=lambda o: o.created):
            name = people[order.email], order.origin
            other = held.get(name)
            if other is None or other.created <= order.created:
                held[name] = changed[name] = order._replace(email=name[0])
        self._state.rename_barred(people)
        if gone:
            self._state.join_overrides(changed.values(), gone)
            self._registry.classes.set_overrides(self._state.overrides())

    def _join_accounts(self) -> bool:
        """What identities have moved until now; returns whether it could be written."""
        try:
            self._state.accounts.join(self._registry.names.people)
        except StateError as error:
            self._complain(error)
            return False
        return True

    def _complain(self, error: StateError) -> None:
        effect = "limits hold; what identities have used is joined when it can be written"
        self._journal.tell(events.STATE, error=str(error), effect=effect)

    # -- whose flows ------------------------------------------------------------------------------

    def _own(self) -> Joined:
        """Owners for people whose identities have flows, or a class."""
        registry = self._registry
        people, minors = registry.names.people, registry.minors
        old = [o for o in minors.by_key.values() if o.key in people]
        if not old:
            return Joined({}, [])
        layout = self._layout
        bear = {m & MINOR_MASK for m in self._conntrack.dump_marks(layout.tag, layout.mask)}
        joined = Joined({}, [])
        # Whoever moved last keeps the class, so that most flows stay where they are.
        for owner in sorted(old, key=lambda o: (o.state == ACTIVE, o.moved), reverse=True):
            if owner.state != ACTIVE and owner.minor not in bear:
                continue
            name, person = owner.key, people[owner.key]
            joined.names.append(name)
            if person not in minors.by_key:
                registry.rename(owner, person)
                registry.own(person)
                continue
            joined.owners[owner.minor] = registry.own(person)
        return joined

    def _move(self, joined: Joined) -> int:
        """Open flows are the person's; returns how many."""
        if not joined.owners:
            return 0
        minors = {minor: owner.minor for minor, owner in joined.owners.items()}
        mirror = self._flows.mirror
        flows = [
            (client, record, owned(record, minors[record & MINOR], rank(record), record & FLAGS))
            for client, record in mirror.claimed_flows()
            if record & MINOR in minors
        ]
        self._marking.give(flows)
        mirror.pass_on(minors)
        # Those that the mirror does not know: of services, and at the start all.
        layout = self._layout
        marks = {layout.mark(minor) for minor in minors}
        marks |= {mark | PROVISIONAL for mark in marks}
        rest = [
            (entry, entry.mark & PROVISIONAL | layout.mark(minors[entry.mark & MINOR_MASK]))
            for entry in self._conntrack.dump_of(layout.tag, layout.mask, marks)
        ]
        self._conntrack.set_entries(rest)
        self._marking.quic.forget()
        return len(flows) + len(rest)

    def _retire(self, joined: Joined) -> None:
        """Classes of identities wait for other users; the next round of `gc` looks for flows."""
        owners = [self._registry.minors.by_minor[minor] for minor in joined.owners]
        for owner in owners:
            owner.state, owner.moved = QUARANTINE, self._clock()
        if owners:
            self._registry.save(owners)
            self._registry.ensure(owners)

    def _let_go(self, people: set[str]) -> None:
        """Identities are users of their own again: whose a person's flow is, the next word says.

        Until then it stays in the person's class.
        """
        by_key = self._registry.minors.by_key
        minors = {by_key[person].minor for person in people if person in by_key}
        if not minors:
            return
        mirror = self._flows.mirror
        for client, record in list(mirror.claimed_flows()):
            if record & MINOR in minors and WEAK < rank(record) < FIXED:
                mirror.put(client, owned(record, record & MINOR, WEAK, record & FLAGS))

    def _tell(self, joined: Joined, split: int, moved: int) -> None:
        people = self._registry.names.people
        names = joined.names[:_NAMED]
        more = len(joined.names) - len(names)
        changes = [f"{name} is {people[name]}" for name in names]
        self._journal.tell(
            events.PEOPLE,
            count=len(joined.names),
            flows=moved,
            changed=split,
            changes="\n".join([*changes, f"and {more} more"] if more else changes),
        )

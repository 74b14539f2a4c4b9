"""Who has which minor: the owners in memory, in the state and in the kernel's classes.

What others write (gc, orders of a person) is taken over under the lock, without which none of them
writes.

Longer than 400 lines: who has a minor, and what that one is called, is decided in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from ..core import events
from ..core.balance import Balance, wanted_bps
from ..core.claims.email import decode_email
from ..core.flow import Flow
from ..core.flows.mirror import Held
from ..core.flows.record import MINOR
from ..core.htb import ENDED_MINOR
from ..core.layout import Layout
from ..core.names import HASHED, MIXED, PLAIN, Names, is_hash
from ..core.owners import ACTIVE, DEVICE, QUARANTINE, RESTRICTED_KEY, Minors, Owner
from ..core.policy.barred import Barred, read_barred
from ..core.policy.model import DEVICE_BPS, Limits
from ..errors import Exhausted, KernelRefused
from ..journal import Journal
from ..kernel.packed.sockets import end_connections
from ..lock import Lock
from ..shaping import Classes, Listed
from ..state import BARRED, State, StateError

#: Owner of a class that the kernel has and the state does not know.
ORPHAN = "\x02"
#: So many users who are gone may be remembered.
_FEW = 1_000
#: Whoever comes so soon after another came at the same time, in seconds.
_MOMENT_S = 0.1


class Suspended(Exception):
    """The kill switch was thrown: stop marking, end in peace."""


class Registry:
    """Owners and their classes.  The caller holds the lock."""

    def __init__(
        self,
        layout: Layout,
        state: State,
        lock: Lock,
        classes: Classes,
        journal: Journal,
        clock: Callable[[], float],
        reserve: int = 0,
        names: Names | None = None,
    ) -> None:
        """``clock`` gives seconds since the epoch; ``reserve`` as for `Minors`."""
        #: What users are called.
        self.names = names or Names()
        self._plain, self._people = self.names.are_emails, self.names.people
        # Where there are people: the keys of users who were seen.
        self._keys: dict[bytes, str] = {}
        #: Names of all who are joined of several identities.
        self.persons: frozenset[str] = frozenset(self.names.people.values())
        # Where names are hashes: those of users who were seen, and whose patterns are not saved.
        self._met: dict[bytes, str] = {}
        self._unsaved_globs: set[str] = set()
        #: Hashes of before that were seen again, with their emails; all that are not.
        self.returned: dict[str, str] = {}
        self._waiting: set[str] = set()
        self.minors = Minors(layout.major, (), reserve, layout.trees)
        self.classes = classes
        #: The kernel has refused something.
        self.wants_repair = False
        #: How many users were new.
        self.new_owners = 0
        #: Minors that have passed to another owner, for who keeps books by minor.
        self.displaced: list[int] = []
        #: Who has left which restricted class, for each who keeps books by class: accounts of
        #: uploads and of downloads, and fair use.
        self.left: tuple[dict[int, set[str]], ...] = ({}, {}, {})
        #: Users who are new or back, for who tells of them.
        self.came: list[Owner] = []
        self.layout = layout
        #: What each tree carries; None where there is one: nothing to choose.
        self.balance = Balance(layout.trees) if layout.trees > 1 else None
        self._reserve = reserve
        self._state, self._lock, self._journal, self._clock = state, lock, journal, clock
        self._version = self._version_read = -1
        self._came_s = 0.0
        # The kernel has refused something since its classes were listed.
        self._unlisted = False
        self._unsaved: dict[str, Owner] = {}
        # Counted when asked for: nobody becomes active, or stops being it, without being saved.
        self._users: int | None = None
        # Until `commit`: whose class is to be made or changed, and whose record goes.
        self._fresh: dict[int, Owner] = {}
        self._gone: list[Owner] = []

    # -- finding ----------------------------------------------------------------------------------

    @property
    def users(self) -> int:
        """How many owners are active."""
        if self._users is None:
            owners = self.minors.by_minor.values()
            self._users = [owner.state for owner in owners].count(ACTIVE)
        return self._users

    def owner(self, minor: int) -> Owner | None:
        """Who has a minor."""
        return self.minors.by_minor.get(minor)

    @property
    def by_email(self) -> Mapping[str, Owner] | None:
        """Owner records by email, where emails are the users' names: no joins and no hashes."""
        return self.minors.by_key if self._plain and not self._people else None

    def of_email(self, email: bytes) -> Owner | None:
        """The owner record of a user as the source of claims writes the email."""
        if (by_email := self.by_email) is not None:
            return by_email.get(decode_email(email))
        if self._plain:
            key = self._keys.get(email)
            if key is not None:
                return self.minors.by_key.get(key)
            key = self.name_of(email)
            known = self.minors.by_key.get(key)
            if known is not None:
                # Not of strangers: their names are without end.
                self._keys[email] = key
            return known
        owner = self.minors.by_key.get(self.name_of(email))
        if owner is not None:
            self._meet(email, owner.key)
        return owner

    def is_shaped(self, owner: Owner) -> bool:
        """Whether an owner is active and has a class, as far as is known."""
        return owner.state == ACTIVE and self.classes.has(owner.minor)

    def shaped(self, emails: Iterable[str]) -> list[Owner]:
        """The owners among ``emails`` who have a class at the moment."""
        owners = (self.minors.by_key.get(email) for email in emails)
        return [owner for owner in owners if owner is not None and self.is_shaped(owner)]

    def active(self) -> list[tuple[str, int]]:
        """(email, minor) of all users who have a class."""
        owners = self.minors.by_minor.values()
        return [(o.key, o.minor) for o in owners if o.key >= " " and self.is_shaped(o)]

    # -- giving -----------------------------------------------------------------------------------

    def _moment_s(self) -> float:
        """The time; thousands who come at once share one number."""
        now = self._clock()
        if not 0 <= now - self._came_s < _MOMENT_S:
            self._came_s = now
        return self._came_s

    def own(self, key: str) -> Owner:
        """The owner record of ``key``, active; `commit` saves it and makes its class.

        Raises Exhausted.
        """
        known = self.minors.by_key.get(key)
        if known is not None and known.state == ACTIVE:
            if not self.classes.has(known.minor):
                self._fresh[known.minor] = known
            return known
        owner, displaced = self.minors.take(key, self._moment_s(), self._tree_for(key))
        self._fresh[owner.minor] = owner
        if self.balance is not None and owner.is_user:
            self.balance.put(owner.minor, wanted_bps(self.classes.limits(owner)))
        if displaced is not None:
            self._gone.append(displaced)
            self.displaced.append(owner.minor)
        self.new_owners += 1
        if owner.is_user:
            self.came.append(owner)
        return owner

    def _tree_for(self, key: str) -> int | None:
        """The tree for a user who is new; None where that does not matter."""
        if self.balance is None or key < " ":
            return None
        return self.balance.lightest(wanted_bps(self.classes.limits_of(key)))

    def weigh(self) -> None:
        """Others have come and gone, or may use something else: see what each tree has to carry."""
        if self.balance is None:
            return
        self.balance = Balance(self.layout.trees)
        for owner in self.minors.by_minor.values():
            if owner.is_user and owner.state == ACTIVE:
                self.balance.put(owner.minor, wanted_bps(self.classes.limits(owner)))

    def move(self, owner: Owner, tree: int) -> tuple[Owner, Owner]:
        """Give a user another minor, whose class is made; their flows are the caller's to mark.

        Returns the record as it is now, and that of the old minor, whose class still is the
        user's: `leave` it then.  Raises Exhausted.
        """
        self.commit()
        rest = f"{ORPHAN}{owner.minor:x}"
        moved, displaced, left = self.minors.move(owner, tree, rest, self._clock())
        self.displaced += [moved.minor, left.minor]
        self.save([left, moved], [] if displaced is None else [displaced])
        self.ensure([moved])
        self.weigh()
        return moved, left

    def leave(self, left: Owner) -> None:
        """No flow has the mark of this class any more: it waits for its next owner, empty."""
        for error in self.classes.ensure([left]):
            self.refused(error)
        try:
            self.classes.empty([left])
        except KernelRefused as error:
            self.refused(error)

    def own_email(self, email: bytes) -> Owner:
        """As `own`, for a user as the source of claims writes the email."""
        name = self.name_of(email)
        owner = self.own(name)
        if not self._plain:
            self._meet(email, name)
        return owner

    # -- names ------------------------------------------------------------------------------------

    def name_of(self, email: bytes) -> str:
        """The key of a user as the source of claims writes the email."""
        mode, text = self.names.mode, decode_email(email)
        if mode == PLAIN:
            return self.names.people.get(text, text)
        if mode == HASHED:
            # Once for each user: what is heard again and again is found here.
            return self._met.get(email) or self.names.of(text)
        text = self.names.people.get(text, text)
        if self._waiting and text not in self.minors.by_key:
            name = self.names.hash(text)
            if name in self._waiting:
                self.returned[name] = text
                return name
        return text

    def _meet(self, email: bytes, name: str) -> None:
        """A user was seen: now it can be said which patterns fit."""
        if email in self._met or not is_hash(name):
            return
        self._met[email] = name
        owner = self.minors.by_key.get(name)
        if self._fit(email, name) and owner is not None and owner.state == ACTIVE:
            self._fresh[owner.minor] = owner

    def _fit(self, email: bytes, name: str) -> bool:
        """Whether other patterns fit than was known."""
        written = self.names.written(decode_email(email))
        if written is None:
            return False  # a person's, who is known by the hash alone
        is_news = self.names.note(name, self.classes.policy.fitting(written))
        if is_news:
            self._unsaved_globs.add(name)
        return is_news

    def fit_all(self) -> None:
        """The policy has other patterns: try them on all who were seen."""
        for email, name in self._met.items():
            self._fit(email, name)
        self._save_globs()

    def _forget_globs(self) -> None:
        """Of users who are gone for good, once there are many."""
        globs = self.names.globs
        if len(globs) > 2 * len(self.minors.by_key) + _FEW:
            self.names.forget_others(self._state.names() | self.minors.by_key.keys())
            self._state.rename({}, globs)

    def _save_globs(self) -> None:
        if not self._unsaved_globs:
            return
        found = {name: self.names.globs.get(name, ()) for name in self._unsaved_globs}
        try:
            self._state.save_globs(found)
        except StateError as error:
            self._journal.tell(events.STATE, error=str(error), effect="limits hold")
        else:
            self._unsaved_globs.clear()

    def join(self, people: Mapping[str, str]) -> None:
        """Whose identities are whose from now on: {identity: person}."""
        self.names.join(people)
        self._people, self._met, self._keys = self.names.people, {}, {}
        self.persons = frozenset(self._people.values())

    def rename(self, owner: Owner, key: str) -> None:
        """An owner is called otherwise; `commit` saves it, in the place of what it was."""
        self._unsaved.pop(owner.key, None)
        self._gone.append(replace(owner))
        self.minors.rename(owner, key)
        self._fresh[owner.minor] = owner

    def limits_of(self, email: bytes) -> Limits:
        """The limits of a user, whether they have a class or not."""
        name = self.name_of(email)
        if self._plain or name in self.minors.by_key or not is_hash(name):
            return self.classes.limits_of(name)
        written = self.names.written(decode_email(email))
        if written is None:
            return self.classes.limits_of(name)
        # Anybody's text: what fits is not remembered.
        before = self.names.globs.get(name, ())
        self.names.note(name, self.classes.policy.fitting(written))
        limits = self.classes.limits_of(name)
        self.names.note(name, before)
        return limits

    def barred(self) -> list[Barred]:
        """Users who are kept out from an address."""
        return read_barred(self._state.get_value(BARRED), self._clock())

    def own_device(self, user: str, place: bytes) -> Owner:
        """The owner of the slow class of a user's device too many, active; ``place`` as for
        `address_key`."""
        key = f"{place.hex()}{DEVICE}{user}"
        return self.own_restricted(key, DEVICE_BPS, DEVICE_BPS, bounded=True)

    def devices(self) -> dict[int, tuple[str, bytes]]:
        """Slow classes of devices too many: {minor: (the user's key, the place)}."""
        found = {}
        for owner in self.minors.by_minor.values():
            if owner.key.startswith(RESTRICTED_KEY) and DEVICE in owner.key:
                place, _, user = owner.key[1:].partition(DEVICE)
                if owner.state == ACTIVE:
                    found[owner.minor] = self.names.of(user), bytes.fromhex(place)
        return found

    def own_restricted(
        self, address: str, up_bps: int | None, down_bps: int | None, bounded: bool
    ) -> Owner:
        """The owner of a class that flows in doubt share, active.

        ``address`` is the class's name; None: the default's limit.  ``bounded``: above a share of
        all minors it is the one that all further addresses have.
        """
        known = self.minors.by_key.get(RESTRICTED_KEY + address)
        was_active = known is not None and known.state == ACTIVE
        if bounded:
            owner = self.minors.restricted(address, self._clock())
        else:
            try:
                owner = self.own(RESTRICTED_KEY + address)
            except Exhausted:
                owner = self.minors.restricted(address, self._clock())
        if not owner.is_common and (up_bps, down_bps) != (owner.up_bps, owner.down_bps):
            owner.up_bps, owner.down_bps = up_bps, down_bps
            was_active = False
        if not was_active and not owner.is_common:
            # It may have been a user's who was collected.
            self.displaced.append(owner.minor)
        if not was_active or not self.classes.has(owner.minor):
            self._fresh[owner.minor] = owner
        return owner

    def own_overflow(self) -> Owner:
        """The owner of the class that newcomers share when all minors are taken, active."""
        owner = self.minors.overflow(self._clock())
        if not self.classes.has(owner.minor):
            self._fresh[owner.minor] = owner
        return owner

    def is_restricted(self, minor: int) -> bool:
        """Whether a class is none of a user: any word frees its flows."""
        owner = self.owner(minor)
        return minor != ENDED_MINOR and (owner is None or not owner.is_user)

    def freed(self, minor: int, owner: Owner) -> None:
        """A flow has left the restricted class ``minor``, because it is ``owner``'s."""
        for left in self.left:
            left.setdefault(minor, set()).add(owner.key)

    def commit(self, most_new: int | None = None) -> None:
        """Save what was given, then make the classes: a mark names no class that is not there.

        ``most_new``: only so many new classes, because each walks all others; the rest is the
        pool's work.
        """
        if not self._fresh and not self._gone:
            return
        fresh, gone = list(self._fresh.values()), self._gone
        self._fresh, self._gone = {}, []
        self.save(fresh, gone)
        self._save_globs()
        if most_new is not None:
            new = [owner.minor for owner in fresh if not self.classes.has(owner.minor)]
            later = set(new[most_new:])
            fresh = [owner for owner in fresh if owner.minor not in later]
        self.ensure(fresh)

    def ensure(self, owners: Iterable[Owner]) -> None:
        """Make or change the classes of ``owners`` on both devices."""
        owners = list(owners)
        if self._unlisted and not all(self.classes.has(owner.minor) for owner in owners):
            # One that others have deleted, and of which nobody has told us yet.
            self._close_accounts(self.classes.listed())
        for error in self.classes.ensure(owners):
            self.refused(error)

    def _close_accounts(self, listed: Listed) -> None:
        """Before classes are made: those that are not there count from 0."""
        self._unlisted = False
        try:
            self._state.accounts.close(listed)
        except StateError as error:
            effect = "what users move may be counted in part"
            self._journal.tell(events.STATE, error=str(error), effect=effect)

    def refused(self, error: KernelRefused) -> None:
        """The kernel has refused something: say so, and have it repaired."""
        self.wants_repair = self._unlisted = True
        self._journal.tell(events.KERNEL, error=str(error), effect="repairing")

    # -- what survives ----------------------------------------------------------------------------

    def save(self, owners: Iterable[Owner], gone: Iterable[Owner] = ()) -> None:
        """Write owners; a full disk stops nobody: they are kept and written later."""
        self._unsaved.update((owner.key, owner) for owner in owners)
        gone = list(gone)
        if not self._unsaved and not gone:
            return
        self._users = None
        try:
            self._state.save_owners(self._unsaved.values(), gone)
        except StateError as error:
            effect = f"limits hold, {len(self._unsaved)} users are not saved yet"
            self._journal.tell(events.STATE, error=str(error), effect=effect)
        else:
            self._unsaved.clear()

    @property
    def is_waiting(self) -> bool:
        """Whether something could not be made or written, or is to be told."""
        return self.wants_repair or bool(self._unsaved or self._unsaved_globs or self.came)

    def flush(self) -> None:
        """Try again to write what could not be written."""
        if self._unsaved:
            with self._lock:
                self.save([])

    @property
    def state_version(self) -> int:
        """The state's at the last `load`."""
        return self._version_read

    @property
    def is_current(self) -> bool:
        """Whether no other process has written since the last `load`."""
        return self._state.version() == self._version

    def load(self) -> Listed:
        """Read owners and classes anew; returns the classes.  `loaded` ends it."""
        owners = {owner.key: owner for owner in self._state.owners(self.minors.by_key)}
        owners.update(self._unsaved)
        self._version_read, self._users = self._state.version(), None
        self.minors = Minors(self.layout.major, owners.values(), self._reserve, self.layout.trees)
        if not self._plain:
            self._met = {e: name for e, name in self._met.items() if name in owners}
            self._waiting = self._state.hashes() if self.names.mode == MIXED else set()
            self._forget_globs()
        up, down = listed = self.classes.listed()
        self._close_accounts(listed)
        now = self._clock()
        orphans = [
            Owner(f"{ORPHAN}{minor:x}", minor, QUARANTINE, now, now)
            for minor in (up.keys() | down.keys()) - self.minors.by_minor.keys()
            if 2 <= minor < 0xFFFE
        ]
        for orphan in orphans:
            self.minors.by_key[orphan.key] = self.minors.by_minor[orphan.minor] = orphan
        self.save(orphans)
        return listed

    def loaded(self) -> None:
        """All of it is in force: what was refused on the way would have been done again."""
        self._version = self._version_read
        self.weigh()

    def is_suspended(self) -> bool:
        """Whether the kill switch is on."""
        return bool(self._state.get_value("suspended"))

    def end_cut(self, name: Callable[[bytes, int], Flow], marked: Iterable[Held]) -> None:
        """End those connections, just marked, whose users are cut off."""
        try:
            if minors := self.classes.cuts.minors:
                end_connections(name(c, r) for c, r in marked if r & MINOR in minors)
        except KernelRefused as error:
            self.refused(error)

"""Temporary overrides in the agent: those of a person, taken over; automatic ones, ordered."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..core import events
from ..core.policy.overrides import OPERATOR, Override, changed_emails
from ..journal import Journal
from ..render import describe_limits, describe_override
from ..state import State, StateError
from .registry import Registry


class Orders:
    """What stands above the policy.  The caller holds the lock."""

    def __init__(
        self, state: State, registry: Registry, journal: Journal, clock: Callable[[], float]
    ) -> None:
        """``clock`` gives seconds since the epoch."""
        self._state, self._registry = state, registry
        self._journal, self._clock = journal, clock

    def load(self, made: set[int]) -> None:
        """Take over what others ordered; what differs is put in force.

        ``made`` are the minors that have classes on both devices.
        """
        registry, classes = self._registry, self._registry.classes
        before = classes.overrides.by_email
        classes.set_overrides(self._state.overrides())
        self.complain()
        changed = changed_emails(before, classes.overrides.by_email)
        shifted = classes.load(registry.minors.by_minor.values(), made)
        registry.ensure([*shifted, *registry.shaped(changed)])

    def complain(self) -> None:
        """Tell of orders that the policy does not allow."""
        for problem in self._registry.classes.overrides.problems:
            self._journal.tell(events.ORDER_VOID, error=problem)

    def is_held(self, email: str) -> bool:
        """Whether a person has ordered something else for a user than the policy says."""
        live = self._registry.classes.overrides.in_force(email, self._clock())
        return any(override.origin == OPERATOR for override, _layer in live)

    def order(self, begin: list[Override], end: Mapping[tuple[str, str], str]) -> None:
        """Put automatic overrides in force, end others: {(email, origin): why}.

        Raises StateError; then the kernel is as before.
        """
        classes = self._registry.classes
        ours = {(override.email, override.origin) for override in begin} | end.keys()
        known = classes.overrides.all()
        gone = [override for override in known if (override.email, override.origin) in end]
        self._state.save_overrides(begin)
        self._state.delete_overrides(gone)
        others = [o for o in known if (o.email, o.origin) not in ours]
        classes.set_overrides([*others, *begin])
        emails = {override.email for override in (*begin, *gone)}
        self._registry.ensure(self._registry.shaped(emails))
        for override in begin:
            self._journal.tell(
                events.PENALTY,
                self._mark(override.email),
                order=describe_override(override, self._clock()),
                email=override.email,
                origin=override.origin,
                why=override.why,
            )
        for override in gone:
            self._tell_end(override, end[override.email, override.origin])

    @property
    def is_due(self) -> bool:
        """Whether the time of one is over."""
        end = self._registry.classes.overrides.next_end()
        return end is not None and end <= self._clock()

    def end_due(self) -> None:
        """End those whose time is over."""
        classes, now = self._registry.classes, self._clock()
        known = classes.overrides.all()
        ended = [override for override in known if override.ends_by(now)]
        self._registry.ensure(self._registry.shaped({override.email for override in ended}))
        try:
            self._state.delete_overrides(ended)
        except StateError as error:
            effect = "ended overrides stay listed"
            self._journal.tell(events.STATE, error=str(error), effect=effect)
            return
        classes.set_overrides(o for o in known if o not in ended)
        for override in ended:
            self._tell_end(override, "its time is up")

    def _tell_end(self, override: Override, why: str) -> None:
        email, origin, mark = override.email, override.origin, self._mark(override.email)
        limits = describe_limits(self._registry.classes.limits_of(email))
        if origin == OPERATOR:
            self._journal.tell(
                events.ORDER_ENDED, mark, email=email, order=override.who, origin=origin, why=why,
                limits=limits,
            )  # fmt: skip
        else:
            self._journal.tell(
                events.PENALTY_ENDED, mark, email=email, origin=origin, why=why, limits=limits
            )

    def _mark(self, email: str) -> int:
        """The mark of a user who has a class; else 0."""
        return next(map(self._registry.classes.mark, self._registry.shaped([email])), 0)

"""What every command works on: this node's settings, state, lock, policy and classes.

Each is opened when it is first asked for.  What people write can be asked for strictly, or as it
is in force: with a mistake in the file that is the last good one, and a warning says so.  What
lifts limits takes anything (``any_...``).
"""

from __future__ import annotations

import os
import pwd
import sys
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from ..config import Paths, load_identities, load_policy, load_settings, read_file
from ..core import events
from ..core.events import JournalEvent
from ..core.identities import Identities, with_identities
from ..core.layout import known_majors
from ..core.names import HASHED, MIXED, PLAIN, Names, is_hash
from ..core.old_role import OldRole, read_env
from ..core.policy.model import Policy
from ..core.policy.parse import email_problem
from ..core.settings import Settings, salvage_settings
from ..errors import ConfigError, Refused
from ..journal import Journal
from ..kept import kept_identities, kept_policy, kept_settings, with_trees
from ..lock import Lock
from ..name_hashing import mode_of, names_in_force, people_of
from ..state import KERNEL_RECORD, State, StateError

if TYPE_CHECKING:  # the kill switch needs none of these
    from ..core.owners import Owner
    from ..kernel.packed.tc import Tc
    from ..shaping import Classes


class Node:
    """A node, as far as one command needs it; ``with`` closes what was opened."""

    def __init__(self, paths: Paths, prints: bool = True) -> None:
        """``prints``: warnings go to standard error, too, at once."""
        self.paths, self._prints = paths, prints
        self.journal = Journal(by_hand=True)
        #: What a person should know although the command goes on.
        self.warnings: list[str] = []
        #: Identities that a person has asked for, and whose they are.
        self.asked: dict[str, str] = {}
        #: Whether `policy_in_force` is not what the files hold.
        self.policy_is_kept = False

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release what was opened."""
        if "tc" in self.__dict__:
            self.tc.close()
        if "state" in self.__dict__:
            self.state.close()
        self.journal.close()

    @cached_property
    def user(self) -> str:
        """Who runs this command: through sudo, by login, or the account."""
        if name := os.environ.get("SUDO_USER"):
            return name
        try:
            with open("/proc/self/loginuid", encoding="ascii") as file:
                uid = int(file.read())
        except (OSError, ValueError):
            uid = -1  # a kernel without audit
        if uid in (-1, 0xFFFFFFFF):
            uid = os.geteuid()
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    def warn(self, event: JournalEvent, error: str, effect: str) -> None:
        """Tell at once what a person should know; the command goes on."""
        sentence = f"{error}; {effect}"
        self.warnings.append(sentence)
        if self.journal.is_unit:
            self.journal.tell(event, error=sentence, effect=effect)
        elif self._prints:
            print(f"vff-qos: warning: {sentence}", file=sys.stderr)

    def stop_agent(self, why: str) -> None:
        """End the agent if it runs; systemd does not start it again."""
        import signal

        from ..runfile import read_report

        if report := read_report(self.paths.run_dir):
            os.kill(report.pid, signal.SIGTERM)
            self.warn(
                events.STATE,
                why,
                f"the agent (pid {report.pid}) was stopped, and its next start limits again",
            )

    # -- what people write ------------------------------------------------------------------------

    @cached_property
    def settings(self) -> Settings:
        """Raises ConfigError."""
        return with_trees(load_settings(self.paths), self.any_state)

    @cached_property
    def settings_in_force(self) -> Settings:
        """The settings; with a mistake in them the last good ones.  Raises ConfigError if there
        never were any."""
        try:
            return self.settings
        except ConfigError as error:
            kept = kept_settings(self.any_state)
            if kept is None:
                raise
            self.warn(events.SETTINGS_REFUSED, str(error), "the last good settings stay in force")
            return with_trees(kept, self.any_state)

    def identities_in_force(self, settings: Settings) -> Identities:
        """Services and networks; with a mistake in the file the last good ones.

        Raises ConfigError if there never were any.
        """
        try:
            return load_identities(self.paths, settings)
        except ConfigError as error:
            kept = kept_identities(self.any_state, settings)
            if kept is None:
                raise
            self.warn(events.IDENTITIES_REFUSED, str(error), "the last good ones stay in force")
            return kept

    def planned(self, settings: Settings) -> Settings:
        """Settings with all that a plan of the kernel's objects must know.  Raises ConfigError."""
        return with_identities(settings, self.identities_in_force(settings))

    @cached_property
    def any_settings(self) -> Settings:
        """The settings in force, else what can be read of the file: for what lifts limits."""
        try:
            return self.settings_in_force
        except ConfigError as error:
            effect = "what can be read of the settings is used"
            self.warn(events.SETTINGS_REFUSED, str(error), effect)
        try:
            found = salvage_settings(read_file(self.paths.settings))
        except ConfigError:
            found = Settings()
        return self._as_in_kernel(found)

    def _as_in_kernel(self, found: Settings) -> Settings:
        """With the handles of our trees in the kernel: what was read may not be what is there."""
        from ..kernel.our_trees import majors_found

        recorded = self.any_state.get_value(KERNEL_RECORD) or {}
        if "major" in recorded:
            return replace(found, major=int(recorded["major"]), trees=recorded.get("trees", 1))
        majors = majors_found()
        if not majors:
            return found
        first = found.major if found.major in majors else min(majors)
        # Whatever else is there is no tree of the same node.
        trees = sum(1 for major in majors if major in known_majors(first))
        return replace(found, major=first, trees=trees)

    @cached_property
    def written_policy(self) -> Policy:
        """What the files say, whatever users are called; with a mistake in them the last good one.

        Raises ConfigError if none was.
        """
        try:
            return load_policy(self.paths)
        except ConfigError as error:
            kept = kept_policy(self.state)
            if kept is None:
                raise
            problem = str(error) if mode_of(self.state) == PLAIN else error.nameless()
            self.warn(events.POLICY_REFUSED, problem, "the last good policy stays in force")
            self.policy_is_kept = True
            return kept

    @cached_property
    def policy_in_force(self) -> Policy:
        """The same for the names that users have here.  Raises ConfigError, QosError."""
        return self.written_policy.named(self.names)

    @cached_property
    def old_role(self) -> OldRole | None:
        """What the role qos_per_user_xray was told, if it is on this node.  Raises ConfigError."""
        if not os.path.exists(self.paths.old_env):
            return None
        return read_env(read_file(self.paths.old_env).decode(errors="replace"))

    # -- what is ours -----------------------------------------------------------------------------

    @cached_property
    def state(self) -> State:
        """Raises StateError."""
        return State(self.paths.state_dir, self.paths.run_dir)

    @cached_property
    def names(self) -> Names:
        """What users are called in the state.  Raises StateError, QosError."""
        return names_in_force(self.state, self.paths.state_dir)

    def name_of(self, given: str) -> str:
        """What a user is called in the state, by the email, or the hash, that a person gives.

        Raises Refused for an empty one.
        """
        if not given:
            raise Refused(f"{given!r} {email_problem(given)}")
        if is_hash(given):  # which needs no key
            person = people_of(self.state).get(given)
            self._say_who(given, person)
            return person or given
        names = self.names
        name = names.of(given)
        self._say_who(given, name if name != names.alone(given) else None)
        if names.mode == MIXED:
            known = self.state.names()
            hashed = names.hash(name)
            return hashed if name not in known and hashed in known else name
        if names.mode == HASHED and (written := names.written(given)) is not None:
            # Nobody may have been seen by this name yet, and here the email is known.
            names.note(name, self._fitting(written))
        return name

    def _say_who(self, given: str, person: str | None) -> None:
        """A person asks by one of several identities of somebody: the answer is for all of them."""
        if person is not None and given not in self.asked:
            self.asked[given] = person
            if self._prints:
                print(f"vff-qos: {given} is {person}", file=sys.stderr, flush=True)

    def pattern_of(self, given: str) -> str:
        """A pattern of names; an email without wildcards means its user."""
        if any(character in given for character in "*?["):
            return given
        return self.name_of(given)

    def _fitting(self, email: str) -> tuple[str, ...]:
        try:
            return self.written_policy.fitting(email)
        except ConfigError:  # whoever needs it says so
            return ()

    @cached_property
    def any_state(self) -> State:
        """The state; one that holds nothing and is forgotten where there is none to be had."""
        try:
            return self.state
        except StateError as error:
            effect = "nothing of it is known, and nothing can be remembered"
            self.warn(events.STATE, str(error), effect)
            return State.forgetful()

    @cached_property
    def lock(self) -> Lock:
        """Raises QosError."""
        return Lock(self.paths.run_dir)

    @cached_property
    def tc(self) -> Tc:
        """Classes in the kernel."""
        from ..kernel.packed.tc import Tc

        return Tc()

    def classes(self, settings: Settings, policy: Policy) -> Classes:
        """The users' classes under a policy.  Raises Refused if the node is not set up."""
        from ..kernel.devices import shaping_devices
        from ..shaping import Classes

        return Classes(settings, policy, self.tc, shaping_devices(settings))

    def classes_now(self, settings: Settings) -> tuple[Classes, list[Owner]]:
        """The users' classes as the kernel has them, for who makes some, and all owners.

        The accounts count what is not there from 0.  Only under the lock.  Raises Refused,
        KernelRefused.
        """
        classes = self.classes(settings, self.policy_in_force)
        classes.set_overrides(self.state.overrides())
        owners = self.state.owners()
        up, down = classes.listed()
        self.state.accounts.close((up, down))
        classes.load(owners, set(up) & set(down))
        return classes, owners

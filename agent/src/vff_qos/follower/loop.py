"""``vff-qos follow``: the loop that joins the sources, the assigner and the healer.

Longer than 400 lines: whatever happens once a second begins here.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from typing import Any

from .. import __version__
from ..config import Paths, load_settings, settings_stamp
from ..core import events
from ..core.flow import end_text
from ..core.health.report import Report
from ..core.identities import Identities
from ..core.policy.model import Policy
from ..core.settings import Settings
from ..errors import ConfigError, KernelRefused, Refused
from ..journal import Journal, notify
from ..kept import keep_settings, kept_settings, rename_all, with_trees
from ..kernel.devices import shaping_devices, used_queues, wan_link
from ..kernel.packed.addresses import local_addresses
from ..kernel.packed.netlink import Netlink
from ..lock import Lock
from ..name_hashing import names_wanted
from ..runfile import WRITE_S, write_last_named, write_report
from ..sources.clock import Clock
from ..sources.listener import keep_inherited
from ..state import KERNEL_RECORD, State, StateError
from .assign import Assigner, Suspended
from .fair_use import FairUse
from .heal import Healer, repair_command
from .identity_file import IdentityFile
from .intake import CHECKPOINTS, Intake
from .memory import give_memory_back, spare_collector
from .policy_files import PolicyFiles
from .self_check import SelfCheck
from .vitals import Vitals

_TICK_S = 1.0
#: Among the checkpoints, in their shape.
_CLOCK = "clock"
#: How often the number of queues is looked at: meanwhile some users have no limit.
_QUEUES_S = 0.2
_ENDS = {signal.SIGTERM, signal.SIGINT}
#: Rounds begin no faster than this: lines that come meanwhile share one trip to the kernel.
_ROUND_S = 0.001


class Follower:
    """The agent.  One thread: netlink blocks anyway, and order is what makes it right."""

    def __init__(self, paths: Paths, journal: Journal) -> None:
        self._paths, self._journal = paths, journal
        self._state = State(paths.state_dir, paths.run_dir)
        self._settings_refused = ""
        self._settings_stamp = settings_stamp(paths)
        self._settings = self._read_settings()
        self._vitals = Vitals(self._settings)
        self._state_failed = self._told_refused = ""
        if self._state.moved_aside:
            journal.tell(events.STATE_DAMAGED, place=self._state.moved_aside)
        self._lock = Lock(paths.run_dir)
        self._identity_file = IdentityFile(paths, self._settings, self._state, journal)
        identities = self._identity_file.first()
        names, news = names_wanted(self._state, paths.state_dir, self._settings.hash_emails)
        self._policy_files = PolicyFiles(paths, self._state, journal, names)
        policy = self._policy_files.first()
        with self._lock:
            self._names = rename_all(self._state, names, policy)
        if news:
            journal.tell(events.NAMES, effect=news)
        self._route = Netlink(0)
        devices = self._find_devices()
        # Of the kernel's times of births: whether it was set while nobody ran is told by its place.
        self._wall_clock = Clock()
        _kind, saved = (self._state.get_value(CHECKPOINTS) or {}).get(_CLOCK, ("", {}))
        self._wall_clock.restore(saved)
        self._clock_place = self._wall_clock.steps, self._wall_clock.save(0.0)
        self._assigner = Assigner(
            self._settings,
            policy,
            self._state,
            self._lock,
            journal,
            devices,
            local_addresses(self._route),
            names=names,
            identities=identities,
            wall_clock=self._wall_clock,
        )
        self._policy = policy
        self._fair_use = FairUse(policy, self._state, self._assigner, journal)
        self._healer = Healer(paths, self._settings, journal, self._assigner.port_ids, devices)
        if self._state.get_value(KERNEL_RECORD):  # without one nobody has set this node up
            self._healer.check_soon()
        self._self_check = SelfCheck(paths.run_dir, self._settings, self._lock, journal)
        self._poll = select.epoll()
        self._signals: set[int] = set()
        self._flow_fd = -1
        self._saved_checkpoint: Any = None
        self._last_round = self._next_tick = self._next_status = 0.0
        self._is_new = True
        #: Whether anything was read or heard since the last tick.
        self._has_moved = True
        #: Whether to begin anew.
        self.is_relaid = False
        self._queues: int | None = None
        #: When the number of queues is looked at again; None where it does not matter.
        self._queues_due = None if self._settings.trees_wanted == 1 else 0.0

    def _take_names_back(self) -> None:
        """Users whose hashes were seen again have their emails from now on."""
        self._fair_use.finish()
        try:
            self._names = self._assigner.rename(self._names)
        except (KernelRefused, StateError) as error:
            self._journal.tell(events.KERNEL, error=str(error), effect="names stay hashes")
            self._assigner.wants_repair = True
        self._fair_use = FairUse(self._policy, self._state, self._assigner, self._journal)

    def _find_devices(self) -> tuple[int, int]:
        """Indexes of (IFB, WAN); made again if somebody took them away while no agent ran."""
        try:
            return shaping_devices(self._settings)
        except Refused as error:
            self._journal.tell(events.KERNEL, error=str(error), effect="repairing")
            subprocess.run(repair_command(self._paths), stdout=subprocess.DEVNULL, check=False)
            return shaping_devices(self._settings)

    # -- life -----------------------------------------------------------------------------------

    def run(self) -> int:
        """Until SIGTERM; returns the exit code."""
        wake = self._catch_signals()
        give_memory_back()
        try:
            flows = self._assigner.adopt(later=True)
            self._intake = Intake(self._settings.sources, self._state, self._journal, self._poll)
            self._assigner.begin_in_free_text(self._intake.in_free_text)
            for descriptor in (
                wake,
                *self._policy_files.descriptors(),
                self._healer.fileno(),
            ):
                self._poll.register(descriptor, select.EPOLLIN)
            self._keep()
            self._journal.tell(
                events.STARTED,
                version=__version__,
                source=self._settings.origin,
                users=self._assigner.users,
                flows=flows,
            )
            self._watch_flows()
            spare_collector()
            # A kill -9 within the first second must not lose the place either.
            self._save_checkpoint()
            notify("READY=1")
            while not self.is_relaid and self._signals.isdisjoint(_ENDS):
                self._turn(wake)
            self._finish()
        except Suspended:
            # An end in peace, for systemd, too: before READY it would be a failure.
            notify("READY=1\nSTATUS=suspended")
            self._journal.tell(events.STOPPED)
        if not self.is_relaid:  # then the classes that counted are gone
            self._assigner.close_accounts()
        return 0

    def _look_at_queues(self, now: float) -> None:
        """Have the trees made anew where the WAN device uses another number of queues by now: no
        notification tells of it."""
        self._queues_due = now + _QUEUES_S
        queues = used_queues(self._wan_name())
        if queues != self._queues and self._queues is not None:
            self._assigner.read_counters()
            self._healer.want(now)
        self._queues = queues

    def _wan_name(self) -> str:
        try:
            return wan_link(self._settings).name
        except (Refused, KernelRefused):
            return ""  # the healer has more to say of it

    def _note_layout(self) -> None:
        """Whether a repair has made another number of trees: classes, marks and tables of ours are
        others then, and the agent begins anew."""
        wanted = with_trees(self._settings, self._state)
        if wanted.trees != self._settings.trees:
            self._journal.tell(events.RELAID, before=self._settings.trees, trees=wanted.trees)
            self.is_relaid = True

    def _watch_flows(self) -> None:
        """Hear the kernel's events of flows; their socket comes and goes with floods."""
        descriptor = self._assigner.fileno()
        if descriptor != self._flow_fd:
            self._flow_fd = descriptor
            if descriptor >= 0:
                self._poll.register(descriptor, select.EPOLLIN)

    def _read_settings(self) -> Settings:
        try:
            return with_trees(load_settings(self._paths), self._state)
        except ConfigError as error:
            kept = kept_settings(self._state)
            if kept is None:
                raise
            self._settings_refused = str(error)
            effect = "the last good settings stay in force"
            self._journal.tell(events.SETTINGS_REFUSED, error=str(error), effect=effect)
            return with_trees(kept, self._state)

    def _keep(self) -> None:
        """Remember what is right for the day when it is not."""
        self._policy_files.keep()
        self._identity_file.keep(self._names)
        try:
            keep_settings(self._state, self._paths)
        except StateError as error:
            self._journal.tell(events.STATE, error=str(error), effect="the settings are not kept")

    def _catch_signals(self) -> int:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda caught, _frame: self._signals.add(caught))
        return reader

    def _turn(self, wake: int) -> None:
        """One round of the loop."""
        now = time.monotonic()
        timeout = 0.0 if self._intake.more else max(0.0, self._next_tick - now)
        heal_due, pool_due = self._healer.due(), self._assigner.pool_due
        for due in (heal_due, pool_due, self._queues_due):
            if due is not None:
                timeout = min(timeout, max(0.0, due - now))
        ready = {descriptor for descriptor, _events in self._poll.poll(timeout)}
        if wake in ready:
            os.read(wake, 512)
            self._next_tick = now
        if not ready.isdisjoint(self._policy_files.descriptors()):
            self._use(self._policy_files.heard())
            # They stand beside it.
            self._use_identities(self._identity_file.look(told=True))
        if self._healer.fileno() in ready or (
            heal_due is not None and heal_due <= time.monotonic()
        ):
            self._heal()
        self._has_moved |= bool(ready)
        if self._intake.has_work(ready):
            self._gather()
            self._read(ready)
        elif self._flow_fd in ready:
            self._assigner.listen()
        elif pool_due is not None and pool_due <= time.monotonic():
            self._assigner.fill_pool()
        if self._queues_due is not None and self._queues_due <= time.monotonic():
            self._look_at_queues(time.monotonic())
        if time.monotonic() >= self._next_tick:
            self._tick()

    def _gather(self) -> None:
        """On a busy log wait a moment, so that one batch takes many lines."""
        now = time.monotonic()
        wait = self._last_round + _ROUND_S - now
        if wait > 0 and not self._intake.more:
            time.sleep(wait)
            now += wait
        self._last_round = now

    def _read(self, ready: Collection[int]) -> None:
        was_behind = not self._intake.has_caught_up
        for number, source, claims in self._intake.read(ready):
            if claims:
                self._assigner.assign(claims, source.window, source.epoch_offset_s, number)
                if any(claim.email for claim in claims):
                    self._vitals.saw_claims(number, self._assigner.flows_born)
            self._assigner.saw_strangers(source.strangers)
        if was_behind and self._intake.has_caught_up:
            # A kill -9 now must not have the next start read all of it again.
            self._save_checkpoint()

    def _finish(self) -> None:
        self._assigner.flush()
        self._save_checkpoint()
        self._fair_use.finish()
        self._assigner.tell_users()
        self._journal.close()
        if not self.is_relaid:
            self._intake.close()

    # -- once a second --------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        self._next_tick = now + _TICK_S
        told = signal.SIGHUP in self._signals
        is_telling = now >= self._next_status
        if not (told or is_telling or self._is_under_way):
            # Nothing was heard since the last tick, and all else can wait for the next report.
            self._has_moved = self._assigner.keep_time()
            self._fair_use.step(now)
            self._assigner.tend_accounts()
            return
        unread = self._intake.tick()
        if unread:
            self._has_moved = True
            self._read(unread)
        # Marks of what was written meanwhile do not wait for dumps of all classes.
        hurry, self._is_new = self._is_new and self._intake.more, False
        if told or is_telling:
            self._use(self._policy_files.look(told))
            self._use_identities(self._identity_file.look(told))
            self._signals.discard(signal.SIGHUP)
        self._assigner.keep_time()
        self._assigner.tell_users()
        self._fair_use.step(now)
        self._assigner.flush()
        self._assigner.tend_flows()
        self._assigner.tend_trees()
        self._watch_flows()
        self._assigner.tend_early()
        self._assigner.tend_statics()
        pool_due = self._assigner.pool_due
        if pool_due is None or pool_due <= now:
            self._assigner.fill_pool()
        # Of a second in which nothing happened there is nothing to count nor to keep.
        if is_telling or self._has_moved or self._intake.more or self._assigner.wants_repair:
            self._has_moved = False
            self._save_checkpoint()
            self._heal()
            if self.is_relaid:
                return
            self._vitals.tick(
                self._intake.readings,
                {**self._assigner.snapshot(), "repairs": self._healer.repairs},
            )
            self._journal.tend()
            notify("WATCHDOG=1")
        if is_telling or self._policy_files.refused != self._told_refused:
            self._next_status = now + (_TICK_S if hurry else WRITE_S)
            self._settle()
            if self._assigner.returned:
                self._take_names_back()
            if not hurry:
                self._vitals.look_at_traffic(self._assigner.counters)
            self._write_report()
        if not hurry:
            self._assigner.change_outdated()
            # Last: what others have read of the counters is booked by now.
            self._assigner.tend_accounts()

    @property
    def _is_under_way(self) -> bool:
        """Whether something goes on from one second to the next."""
        return (
            self._has_moved
            or self._intake.is_waiting
            or self._fair_use.is_looking
            or self._assigner.is_waiting
        )

    def _use(self, policy: Policy | None) -> None:
        """Put a new policy in force, if there is one."""
        if policy is None:
            return
        self._policy = policy
        changed = self._assigner.set_policy(policy)
        self._fair_use.set_policy(policy)
        self._write_report()
        self._journal.tell(events.POLICY, changed=changed)
        self._policy_files.keep()  # open connections have their limits by now

    def _use_identities(self, identities: Identities | None) -> None:
        """Put others in force: a repair makes what they need in the kernel, and then they are
        taken over."""
        if identities is None:
            return
        self._assigner.set_identities(identities)
        self._assigner.wants_repair = True
        self._identity_file.keep(self._names)
        people = len(set(identities.people.values()))
        self._journal.tell(events.IDENTITIES, count=len(identities.keys), users=people)

    def _save_checkpoint(self) -> None:
        if self._clock_place[0] != self._wall_clock.steps:
            self._clock_place = self._wall_clock.steps, self._wall_clock.save(0.0)
        checkpoint = {
            **self._intake.checkpoints(self._assigner.in_free_text),
            _CLOCK: [_CLOCK, self._clock_place[1]],
        }
        if checkpoint == self._saved_checkpoint:
            return
        try:
            self._state.set_value(CHECKPOINTS, checkpoint)
        except StateError as error:
            self._state_failed = str(error)
            effect = "the place in the log is not saved"
            self._journal.tell(events.STATE, error=str(error), effect=effect)
        else:
            self._state_failed = ""
            self._saved_checkpoint = checkpoint

    def _write_report(self) -> None:
        vitals = self._vitals
        report = Report(
            pid=os.getpid(),
            written=time.time(),
            policy=self._policy_files.in_force,
            repairs=self._healer.repairs,
            counts={**self._assigner.snapshot(), "users": self._assigner.users},
            log=vitals.log,
            version=__version__,
            started=vitals.started,
            sources=vitals.sources(self._intake.readings, self._assigner.nobodys),
            repair=self._healer.health,
            traffic=vitals.traffic,
            recent=vitals.recent,
            recent_s=round(vitals.recent_s, 1),
            last={name: round(when, 1) for name, when in vitals.last.items()},
            not_found=[
                end_text(client[:-2], int.from_bytes(client[-2:], "big"))
                for client in self._assigner.not_found
            ],
            void_orders=self._assigner.void_orders,
            policy_refused=self._policy_files.refused,
            settings_refused=self._settings_refused,
            identities=self._identity_file.in_force,
            identities_refused=self._identity_file.refused,
            joined_entries=self._assigner.joined_entries,
            settings=self._settings_stamp,
            state=self._state.trouble or self._state_failed,
            clock_set_s=vitals.clock_set_s,
            clock_set_by_s=vitals.clock_set_by_s,
        )
        self._told_refused = self._policy_files.refused
        try:
            write_report(self._paths.run_dir, report)
            if self._assigner.vouchers.are_news:
                write_last_named(self._paths.run_dir, self._assigner.vouchers.named)
                self._assigner.vouchers.are_news = False
            if self._self_check.look(report):
                self._assigner.compare_soon()
        except OSError as error:
            sentence = f"{self._paths.run_dir}: {os.strerror(error.errno or 0)}"
            effect = "'status' sees old counters"
            self._journal.tell(events.STATE, error=sentence, effect=effect)

    def _settle(self) -> None:
        """Say where the state is, and bring it back when there is room for it."""
        if not self._state.trouble:
            return
        if self._state.settle():
            self._journal.tell(events.STATE_BACK, place=self._state.path)
        else:
            self._journal.tell(events.STATE_MOVED, error=self._state.trouble)

    # -- healing --------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Listen for what others break, and take over what was repaired."""
        now = time.monotonic()
        if self._healer.listen(now):
            self._assigner.set_addresses(local_addresses(self._route))
        wanted, self._assigner.wants_repair = self._assigner.wants_repair, False
        if self._healer.turn(now, wanted) is None:
            return
        self._note_layout()
        if self.is_relaid:
            return
        joins = self._assigner.joins
        if joins:
            self._fair_use.finish(look=True)
        try:
            devices = shaping_devices(self._settings)
            self._healer.set_devices(devices)
            self._assigner.set_devices(devices)
            self._assigner.adopt()
        except (Refused, KernelRefused) as error:
            # Changed again meanwhile; the next repair sees it.
            self._journal.tell(events.KERNEL, error=str(error), effect="repairing again")
            self._assigner.wants_repair = True
        if joins:
            self._fair_use = FairUse(self._policy, self._state, self._assigner, self._journal)


def follow(paths: Paths, journal: Journal) -> int:
    """Run the agent; returns the exit code.  Raises QosError."""
    follower = Follower(paths, journal)
    code = follower.run()
    if follower.is_relaid:
        keep_inherited()
        # The same process, so that nobody waits for systemd: users have no limits meanwhile.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return code

"""What the journal may say: one table of events, from which its catalog and its page are made.

An entry has the fields of its event as ``VFF_QOS_<NAME>``, and its sentence is made of them, so
that nothing is only prose.  MESSAGE_ID: systemd.journal-fields(7); catalog: journalctl(1), ``-x``.

Longer than 400 lines: it is one table.
"""

from __future__ import annotations

from string import Formatter
from typing import NamedTuple

#: Priorities of syslog(3).
ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7
PRIORITIES = {ERROR: "error", WARNING: "warning", NOTICE: "notice", INFO: "info", DEBUG: "debug"}

#: How often an event may be told.  ALWAYS: each time; ONCE: at most once a minute, or once a minute
#: for each user that it is about; MANY: so that a change of ten thousand users is no flood.
ALWAYS, ONCE, MANY = "", "once", "many"

_PREFIX = "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e"

#: What each field holds, after ``VFF_QOS_``.
FIELDS = {
    "EVENT": "the event's name in the table of events",
    "EMAIL": "the user, with `qos_hash_emails` the user's hash; twice where two users are "
    "concerned",
    "MARK": "the user's connection mark, such as `0x5100002a`",
    "CLASS": "the user's class, such as `5100:2a`",
    "FLOW": "the connection: protocol and both ends",
    "ADDRESS": "an address, or an IPv6 network of 64 bits",
    "LIMITS": "upload and download, in the words of `vff-qos explain`",
    "RULE": "what decides about the limits: a user's entry, a pattern, the default, an override",
    "ORDER": "an order or a penalty in one line, of one that has ended whose it was",
    "ORIGIN": "`operator`, or the rule of fair use or quota that has ordered a penalty",
    "WHO": "the person who did it",
    "WHY": "the reason",
    "SINCE": "since when; a local time",
    "FATE": "what becomes of the class of a user who is away",
    "CHANGED": "how many users' classes were changed",
    "ACTIONS": "how many things were done",
    "CHANGES": "what was done, one thing or one on each line",
    "COUNT": "how many",
    "LIMIT": "how many there may be",
    "KIND": "the name of an event",
    "ERROR": "what has failed, in the words of whoever refused it",
    "EFFECT": "what follows from it",
    "SOURCE": "where claims come from: a file, a container, the journal, a webhook",
    "PLACE": "a file or a directory",
    "VERSION": "of the agent",
    "USERS": "how many users",
    "FLOWS": "how many connections",
    "FINDING": "what is wrong, by the name that `vff-qos status --json` has for it: its `kind`",
    "EVIDENCE": "what was seen, one thing on each line",
    "REMEDY": "what to do",
    "LASTED": "for how long",
    "RATE": "connections a second",
    "TREES": "how many trees there are",
    "BEFORE": "how many there were",
    "SECONDS": "for so long",
    "BEGAN_US": "when the work began, in microseconds since the epoch",
    "ENDED_US": "when it was done, likewise",
    "TOOK_MS": "from the start of the command until then",
}


class JournalEvent(NamedTuple):
    """One kind of entry.

    ``sentence`` is filled with the entry's fields, ``more`` names those that it does not show.
    ``means`` and ``remedy`` are for `journalctl -x` and docs/JOURNAL.md; no remedy: nothing is to
    be done.
    """

    number: int
    name: str
    priority: int
    title: str
    sentence: str
    means: str
    remedy: str = ""
    more: tuple[str, ...] = ()
    bound: str = ALWAYS

    @property
    def message_id(self) -> str:
        """As journalctl takes it: MESSAGE_ID=..."""
        return f"{_PREFIX}{self.number:02x}"

    @property
    def shown(self) -> frozenset[str]:
        """The fields that the sentence needs."""
        parts = Formatter().parse(self.sentence)
        return frozenset(name for _text, name, _spec, _conversion in parts if name)

    @property
    def fields(self) -> list[str]:
        """All its fields but EVENT, in the order of `FIELDS`."""
        own = {name.upper() for name in (*self.shown, *self.more)}
        # They name the same thing.
        own |= {"MARK", "CLASS"} if own & {"MARK", "CLASS"} else set()
        return [name for name in FIELDS if name in own]


# -- the agent -----------------------------------------------------------------------------------

STARTED = JournalEvent(
    0x01, "started", INFO, "The agent follows",
    "vff-qos {version} follows {source}: {users} users and {flows} live flows adopted",
    "The agent has started. It has taken over the users' classes and the marks of open "
    "connections, and reads claims from its source from where it had stopped.",
)  # fmt: skip
SOURCE = JournalEvent(
    0x05, "source", WARNING, "The source of claims cannot be read",
    "{error}",
    "The log, container, journal or webhook that says which connection is whose cannot be read. "
    "Open connections keep their limits; new ones pass without.",
    "Run 'vff-qos doctor': it looks for the file, its owner and the proxy's own configuration.",
    bound=ONCE,
)  # fmt: skip
SOURCE_BACK = JournalEvent(
    0x60, "source_back", NOTICE, "A source of claims can be read again",
    "{source}: can be read again, from where reading had stopped",
    "What it says of connections counts again. A source that cannot be read is tried every ten "
    "seconds; the others are read meanwhile.",
)  # fmt: skip
FLOWS = JournalEvent(
    0x15, "flows", WARNING, "Connections are looked up one by one",
    "{error}: flows are looked up one by one, {rate} new ones a second at most{effect}",
    "The kernel tells nothing of new connections, or more than can be followed. Claims still find "
    "their connections, but fewer of them in a second.",
    "Set net.netfilter.nf_conntrack_events to 2. In a flood nothing is to be done: events are "
    "tried again after a minute.",
    bound=ONCE,
)  # fmt: skip
FLOWS_BACK = JournalEvent(
    0x18, "flows_back", NOTICE, "Connections are followed by events again",
    "flows are followed by events again",
    "What had kept the agent from hearing of connections is over.",
)  # fmt: skip
FLOOD = JournalEvent(
    0x16, "flood", WARNING, "New connections of an address are slowed down",
    "{address} has lines written that could forge others: for {seconds} s it may open {rate} "
    "connections a second (qos_flood_guard)",
    "Somebody at this address sends text that the proxy writes into its log, in numbers. Everybody "
    "behind the address opens connections more slowly until it is over; open ones are not touched.",
    "The webhook (qos_identity_source: webhook) cannot be forged. 'qos_flood_guard: false' "
    "switches this guard off.",
    bound=ONCE,
)  # fmt: skip
FLOOD_FREE = JournalEvent(
    0x19, "flood_free", ERROR, "A flood is not slowed down",
    "a flood is not slowed down: {error}",
    "An address floods the log with text that could forge lines, and the kernel has refused to "
    "slow its new connections down.",
    "Run 'vff-qos doctor'. The sets are full when more than a few thousand addresses flood.",
    bound=ONCE,
)  # fmt: skip
STOPPED = JournalEvent(
    0x1A, "stopped", NOTICE, "The agent rests",
    "suspended: nothing is marked until 'vff-qos enable'",
    "The kill switch is on, and so the agent has ended in peace.",
    "'vff-qos enable' brings the limits back, after 'make qos-disable' also 'make qos'.",
)  # fmt: skip

# -- what is wrong ------------------------------------------------------------------------------

DEGRADED = JournalEvent(
    0x30, "degraded", WARNING, "Limits hold only in part",
    "{error}; do: {remedy}",
    "This is what 'vff-qos status' says, too; VFF_QOS_EVIDENCE is what was seen. It is told once, "
    "and 'over' follows when it is so no more. The agent looks every 5 s, and at least every "
    "15 min at the marks of all connections; vff-qos-gc.timer looks at all classes, also while no "
    "agent runs.",
    "What the entry says. 'vff-qos doctor' looks for the cause.",
    more=("finding", "evidence"),
)  # fmt: skip
TROUBLE = JournalEvent(
    0x31, "trouble", ERROR, "Limits do not hold",
    "{error}; do: {remedy}",
    "Nobody is limited. 'vff-qos status' says the same; VFF_QOS_EVIDENCE is what was seen. It is "
    "told once, and 'over' follows when it is so no more.",
    "What the entry says. 'vff-qos doctor' looks for the cause.",
    more=("finding", "evidence"),
)  # fmt: skip
OVER = JournalEvent(
    0x32, "over", NOTICE, "What was wrong is over",
    "over after {lasted}: {error}",
    "What an entry of the same VFF_QOS_FINDING has told is so no more. What comes and goes is told "
    "to be over only when it has kept away for some time.",
    more=("finding",),
)  # fmt: skip

# -- users ---------------------------------------------------------------------------------------

USER_CAME = JournalEvent(
    0x20, "user_came", DEBUG, "{email} has a class",
    "{email} has class {class}: {limits} ({rule})",
    "The user is new, or back after having been away. From now on all their connections share "
    "these limits.",
    bound=MANY,
)  # fmt: skip
LIMITS_CHANGED = JournalEvent(
    0x21, "limits_changed", DEBUG, "The limits of {email} have changed",
    "{email} has {limits} now ({rule})",
    "The policy gives this user something else than before. Their class was changed in place, for "
    "open connections, too.",
    more=("mark",), bound=MANY,
)  # fmt: skip
USER_COLLECTED = JournalEvent(
    0x22, "user_collected", DEBUG, "{email} has gone away",
    "{email} has been idle since {since}: class {class} is {fate}",
    "The user has no connection and has moved nothing for qos_gc_idle_sec. Their class waits for "
    "the next user, or for them to come back.",
    bound=MANY,
)  # fmt: skip
ORDER = JournalEvent(
    0x12, "override", NOTICE, "An order for {email}",
    "{who} ordered for {order}",
    "A person has ordered something else for this user than the policy says. It stands above the "
    "policy and above penalties until its time is over or it is reset.",
    "'vff-qos reset' with the user's name ends it.",
    more=("email", "mark", "origin", "why"),
)  # fmt: skip
ORDER_ENDED = JournalEvent(
    0x13, "override_ended", NOTICE, "The order for {email} is over",
    "{email}: the override by {order} is over: {why}; now {limits}",
    "The policy decides about this user again, or a penalty that is still in force. VFF_QOS_WHO is "
    "who has ended it before its time.",
    more=("mark", "origin", "who"),
)  # fmt: skip
PENALTY = JournalEvent(
    0x23, "penalty", NOTICE, "A penalty for {email}",
    "{order}",
    "The user has used more than a rule of their plan allows (fair_use or quota), and has the "
    "limits that the rule names until the penalty ends. The amount is what their two classes have "
    "moved on the wire.",
    "'vff-qos explain' with the user's name says how far they are with each rule; 'vff-qos reset' "
    "with '--usage' lets them off.",
    more=("email", "mark", "origin", "why"),
)  # fmt: skip
PENALTY_ENDED = JournalEvent(
    0x24, "penalty_ended", NOTICE, "The penalty for {email} is over",
    "{email}: the penalty of {origin} is over: {why}; now {limits}",
    "The user has the limits of the policy again, or those of another penalty.",
    more=("mark",),
)  # fmt: skip
ORDER_VOID = JournalEvent(
    0x25, "order_void", WARNING, "An order cannot be kept",
    "{error}",
    "A temporary limit or a penalty names something that the policy has no more, most often a "
    "plan. It counts for nothing.",
    "Bring the plan back, or end the order with 'vff-qos reset'.",
    bound=ONCE,
)  # fmt: skip
DISTRUST = JournalEvent(
    0x04, "distrust", WARNING, "A connection is restricted",
    "{flow} is claimed within reach of text that a stranger wrote; restricted until a line that "
    "can be trusted",
    "Somebody may have had this line written by the proxy, and so the connection shares a class "
    "with all others in doubt from its address. If VFF_QOS_EMAIL is there, it is who is said to "
    "have the connection.",
    "One of these is harmless. Where they go on, look at 'vff-qos explain' with the address, and "
    "take the webhook as source (qos_identity_source: webhook): it cannot be forged.",
    more=("email",), bound=ONCE,
)  # fmt: skip
CONFLICT = JournalEvent(
    0x03, "conflict", WARNING, "Two users claim one connection",
    "{flow} is claimed by two users; it goes into a restricted class of its address. Somebody "
    "forges log lines, or a port was reused",
    "Both words are equally good, and a connection has one owner. VFF_QOS_EMAIL names both where "
    "both are known.",
    "Look at 'vff-qos explain' with the address. The webhook as source cannot be forged.",
    more=("email",), bound=ONCE,
)  # fmt: skip
FOREIGN = JournalEvent(
    0x11, "foreign", NOTICE, "A connection bears a mark of other software",
    "{flow} bears a mark of other software; left as it is",
    "Another program on this node marks connections. A connection has one mark, and ours never "
    "takes another's place, so that this user is not limited on it.",
    "Run 'vff-qos doctor': it names who sets marks. Tell that program to leave alone what goes to "
    "the service ports.",
    more=("email",), bound=ONCE,
)  # fmt: skip
EXHAUSTED = JournalEvent(
    0x08, "exhausted", ERROR, "No class is left",
    "{error}",
    "Each of the 65,528 classes of this node has a user. Newcomers share one with the default "
    "limits until idle users are collected.",
    "Lower qos_gc_idle_sec, so that users who are away are collected sooner.",
    more=("email",), bound=ONCE,
)  # fmt: skip
UNTOLD = JournalEvent(
    0x26, "untold", INFO, "Entries were left out",
    "{count} more entries of the kind {kind} within a minute were left out",
    "The same thing has happened again and again, or to very many users at once. The journal has "
    "the first entries of each minute; 'vff-qos status' and 'vff-qos explain' know the rest.",
)  # fmt: skip

CONNECTIONS = JournalEvent(
    0x70, "connections", NOTICE, "{email} has too many connections",
    "{email} has more than {limit} connections: {effect}",
    "The user's plan says how many connections they may have (connections), and what becomes of "
    "more (over_connections). It is told once a minute for each of them.",
    "Nothing, if that is what you want. One that is hit again and again may need a higher number: "
    "a browser or a phone has 50 to 150.",
    more=("mark",), bound=ONCE,
)  # fmt: skip

DEVICES = JournalEvent(
    0x71, "devices", NOTICE, "{email} has too many devices",
    "{email} comes from more than {limit} addresses at once: {address} is {effect}",
    "The user's plan says how many devices they may use at once (devices); the address is the last "
    "that has come, an IPv6 network of 64 bits counts as one. It is told once a minute for each "
    "user.",
    "Nothing, if that is what you want. Behind a carrier's NAT one phone may show several "
    "addresses: docs/POLICY.md, 'How many devices'.",
    more=("mark",), bound=ONCE,
)  # fmt: skip

# -- policy and settings -------------------------------------------------------------------------

POLICY = JournalEvent(
    0x0C, "policy", INFO, "A policy is in force",
    "policy in force: {changed} classes changed",
    "The files of the policy were read again, by the agent or by 'vff-qos policy apply', and the "
    "classes of users who are here have the new limits.",
)  # fmt: skip
POLICY_REFUSED = JournalEvent(
    0x27, "policy_refused", ERROR, "The policy holds a mistake",
    "{error}; {effect}",
    "The line names file, line and key. Nothing of the new policy is in force; what was in force "
    "before stays, also over a restart and a reboot.",
    "Mend what it names and look with 'vff-qos check-config'. The agent reads the files by itself.",
)  # fmt: skip
SETTINGS_REFUSED = JournalEvent(
    0x28, "settings_refused", ERROR, "The settings hold a mistake",
    "{error}; {effect}",
    "The line names file, line and key of /etc/vff-qos/settings.yml, which the role writes.",
    "Mend the variable of the role and run 'make qos'; 'vff-qos check-config' looks at the file.",
)  # fmt: skip
IDENTITIES = JournalEvent(
    0x33, "identities", INFO, "Services, networks and people are in force",
    "{count} services and networks and {users} people in force",
    "The file of identities was read again. What they may use, the policy says.",
)  # fmt: skip
IDENTITIES_REFUSED = JournalEvent(
    0x34, "identities_refused", ERROR, "Services, networks or people hold a mistake",
    "{error}; {effect}",
    "The line names line and key of /etc/vff-qos/identities.yml, which the role writes. Nothing of "
    "the new file is in force; what was in force before stays.",
    "Mend qos_services, qos_networks or qos_people of the role and run 'make qos'; "
    "'vff-qos check-config' looks at the file.",
)  # fmt: skip
PEOPLE = JournalEvent(
    0x90, "people", NOTICE, "Identities were joined, or are users of their own again",
    "people: {count} users were joined with others, {flows} open connections moved, {changed} are "
    "users of their own again",
    "The people of /etc/vff-qos/identities.yml (qos_people) are others. What somebody has used and "
    "what was ordered of them is the person's from now on; VFF_QOS_CHANGES has the first 20. Who "
    "was split off begins anew, and an open connection follows when the engine names it again.",
    more=("changes",),
)  # fmt: skip
NAMES = JournalEvent(
    0x29, "names", NOTICE, "How users' names are kept has changed",
    "{effect}",
    "qos_hash_emails was switched on or off, or the key of the hashes was lost. docs/JOURNAL.md "
    "says what that means for users who were there before.",
)  # fmt: skip

# -- the kernel and the state --------------------------------------------------------------------

KERNEL = JournalEvent(
    0x0A, "kernel", ERROR, "The kernel has refused something",
    "{error}; {effect}",
    "The kernel did not do what the agent asked for, most often because somebody has deleted a "
    "class, a qdisc or the IFB device. What is still there stays in force.",
    "Nothing, if 'healed' follows. If not: 'vff-qos doctor'.",
    bound=ONCE,
)  # fmt: skip
REPAIR_FAILED = JournalEvent(
    0x2A, "repair_failed", ERROR, "A repair has failed",
    "repair failed: {error}",
    "Something of ours is broken in the kernel and cannot be put right at the moment. It is tried "
    "again after 2 s, later up to a minute, and whenever something changes.",
    "The line names the reason, most often a root qdisc that somebody else has put on the "
    "interface: docs/TROUBLESHOOTING.md, 'The journal says \"repair failed\"'.",
    bound=ONCE,
)  # fmt: skip
HEALED = JournalEvent(
    0x0B, "healed", WARNING, "What others have broken is whole again",
    "healed: {changes}",
    "Somebody has deleted or changed what limits the users (a restart of a firewall does), and the "
    "agent has put it right.",
    "Nothing, if you restarted a firewall. If it comes again and again, 'vff-qos doctor' names who "
    "does it.",
)  # fmt: skip
STATE = JournalEvent(
    0x09, "state", ERROR, "The state cannot be written",
    "{error}; {effect}",
    "/var/lib/vff-qos is full, read-only or has the wrong owner. Limits hold, and new users get "
    "theirs.",
    "Make room, or mend the owner, before a reboot: it would lose who was new and what was used "
    "meanwhile.",
    bound=ONCE,
)  # fmt: skip
STATE_MOVED = JournalEvent(
    0x2B, "state_moved", ERROR, "The state is in memory",
    "{error}",
    "/var/lib/vff-qos cannot be written, so that the state is in /run/vff-qos until it can. A "
    "reboot empties that.",
    "Make room on the disk; the agent brings the state back by itself.",
    bound=ONCE,
)  # fmt: skip
STATE_BACK = JournalEvent(
    0x2C, "state_back", NOTICE, "The state is back on the disk",
    "the state is in {place} again",
    "There is room again, and nothing was lost.",
)  # fmt: skip
STATE_DAMAGED = JournalEvent(
    0x2D, "state_damaged", ERROR, "The state was damaged",
    "state.db was damaged; it is kept as {place} and built anew from the kernel",
    "The file could not be read as a database. Users get their classes anew with their next "
    "connection; temporary orders and what was used of quotas are lost.",
    "Look at the disk ('dmesg', 'smartctl'). The damaged file may be deleted.",
)  # fmt: skip

RELAID = JournalEvent(
    0x78, "relaid", NOTICE, "The number of trees has changed",
    "there are {trees} trees instead of {before}; the agent begins anew",
    "The WAN device uses another number of transmit queues ('ethtool -l'), or qos_trees has "
    "changed. All trees are made anew, open connections get marks of the new ones, and whose they "
    "are has a class again at once, some tenths of a second after the change. All others have one "
    "when the agent has begun anew.",
)  # fmt: skip

BALANCED = JournalEvent(
    0xA0, "balanced", INFO, "A user is in another tree",
    "{email} has moved from class {before} to {class}, with {flows} connections",
    "What the users of one tree may use had become much more than what those of another may. "
    "Connections go on, in the other tree's transmit queue.",
)  # fmt: skip

# -- engines that ask -----------------------------------------------------------------------------

HOOKS = JournalEvent(
    0x68, "hooks", INFO, "The hooks are answered",
    "hooks are answered at {place}: {effect}",
    "'vff-qos hooks' has started, or the file with users who may log in has changed.",
)  # fmt: skip
HOOK_USERS_REFUSED = JournalEvent(
    0x69, "hook_users_refused", ERROR, "The file with users who may log in is refused",
    "{error}; {effect}",
    "The file of qos_hooks_users_file holds a mistake, is gone, or others may read it. Who could "
    "log in before can do so still; changes since then do not count.",
    "Mend the file: the sentence says what and where. It is looked at again with the next login.",
)  # fmt: skip
HOOK_PANEL_AWAY = JournalEvent(
    0x6A, "hook_panel_away", WARNING, "The panel does not answer logins",
    "the panel at {place} does not answer logins: {error}; whom it let in before is let in for a "
    "while, nobody else is",
    "Logins are passed on to qos_hooks_auth_url, and no answer came that could be understood. It "
    "is asked again every few seconds.",
    "Look whether the panel runs and can be reached from this node, and whether the URL is right.",
    bound=ONCE,
)  # fmt: skip
HOOK_PANEL_BACK = JournalEvent(
    0x6B, "hook_panel_back", NOTICE, "The panel answers logins again",
    "the panel at {place} answers logins again",
    "All logins are the panel's to judge again.",
    bound=ONCE,
)  # fmt: skip
HOOK_AGENT_AWAY = JournalEvent(
    0x6C, "hook_agent_away", WARNING, "The agent does not hear who has logged in",
    "the agent does not answer at {place}: {error}; who logs in is not limited until it does",
    "Engines' users log in as always. What could not be told is told again for a minute, so that "
    "a restart of the agent leaves nobody without a limit.",
    "Look at 'systemctl status vff-qos-follow', and whether 'vff-qos status' has a source 'flows'.",
    bound=ONCE,
)  # fmt: skip
HOOK_AGENT_BACK = JournalEvent(
    0x6D, "hook_agent_back", NOTICE, "The agent hears again who has logged in",
    "the agent answers at {place} again",
    "Who logged in within the last minute has their limit by now.",
    bound=ONCE,
)  # fmt: skip
HOOK_FAILED = JournalEvent(
    0x6E, "hook_failed", WARNING, "A hook has done its work in part",
    "{error}; {effect}",
    "The agent has not taken a user's name, or Hysteria's trafficStats did not answer.",
    "Look at the names that the panel uses, and at qos_hooks_hysteria_stats_url and its secret.",
    bound=ONCE,
)  # fmt: skip
HOOK_KICKED = JournalEvent(
    0x6F, "hook_kicked", INFO, "Connections of users who are cut off were ended by Hysteria",
    "{users} users who are cut off were kicked",
    "Hysteria was told to end what the kernel drops anyway, so that clients give up at once.",
    bound=ONCE,
)  # fmt: skip

# -- what people do ------------------------------------------------------------------------------

COLLECTED = JournalEvent(
    0x0D, "collected", INFO, "Idle users were collected",
    "collected: {actions} actions",
    "vff-qos-gc.timer has parked, released or deleted classes of users who are away; "
    "VFF_QOS_CHANGES has the first 200 of these.",
    more=("changes",),
)  # fmt: skip
SUSPENDED = JournalEvent(
    0x0E, "suspended", NOTICE, "The kill switch was thrown",
    "suspended: {flows} flows are unlimited now, {took_ms} ms after the start of the command",
    "Nobody is limited any more. All else stays as it is, so that it can be undone at once.",
    "'vff-qos enable' brings the limits back, after 'make qos-disable' also 'make qos'.",
    more=("began_us", "ended_us"),
)  # fmt: skip
RESUMED = JournalEvent(
    0x0F, "resumed", NOTICE, "The limits are back",
    "resumed: {flows} flows are limited again, {took_ms} ms after the start of the command",
    "The kill switch is off. Open connections have their users again; what was logged meanwhile is "
    "read now.",
    more=("began_us", "ended_us"),
)  # fmt: skip
DISABLED = JournalEvent(
    0x2E, "disabled", NOTICE, "The node is disabled by hand",
    "{order}",
    "A person has lifted all limits and stopped the units. Neither a reboot nor a play brings them "
    "back.",
    "'vff-qos enable' on the node, or 'make qos' with 'qos_override_disable=true'.",
    more=("who", "why"),
)  # fmt: skip
ENABLED = JournalEvent(
    0x2F, "enabled", NOTICE, "The node is enabled again",
    "enabled by {who}",
    "The units run, and the limits are in force.",
)  # fmt: skip

#: By name.
EVENTS: dict[str, JournalEvent] = {
    event.name: event for event in list(globals().values()) if isinstance(event, JournalEvent)
}

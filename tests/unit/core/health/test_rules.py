"""The rules of health: facts in, findings out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vff_qos.core.health.delivery import Delivery
from vff_qos.core.health.findings import DEGRADED, OK, TROUBLE, Finding, verdict, worst_first
from vff_qos.core.health.report import RepairHealth, Report, SourceHealth, TrafficHealth
from vff_qos.core.health.rules import WITHOUT_FOLLOWER, Facts, judge

NOW = 1_800_000_000.0


def report(**more: Any) -> Report:
    """A follower that is well."""
    counts: dict[str, int | str] = {
        "marked": 100, "kept": 5, "no_flow": 0, "flows_known": 50, "flows_claimed": 50,
        "flows_known_by": "events", "foreign_mark": 0,
    }  # fmt: skip
    counts |= more.pop("counts", {})
    last = {"log.claims": NOW - 1, "log.lines": NOW - 1, "marked": NOW - 1} | more.pop("last", {})
    log = {"lines": 200, "claims": 100, "masked": 0, "error_log": 0, "no_port": 0}
    source = {
        "kind": "file", "origin": "/log", "last_line_s": NOW - 1, "last_claim_s": NOW - 1,
        "log": log, "last": {n[4:]: when for n, when in last.items() if n.startswith("log.")},
    } | more.pop("source", {})  # fmt: skip
    others = more.pop("others", [])
    return Report(
        pid=1, written=NOW - 2, policy=[], repairs=0, counts=counts,
        log=log, started=NOW - 3_600, sources=[SourceHealth(**source), *others], last=last,
        recent_s=60.0, **more,
    )  # fmt: skip


def facts(given: Report | None = None, **more: Any) -> Facts:
    return Facts(
        NOW, given if given is not None else report(), marked_flows=50, conntrack_count=100,
        conntrack_max=1_000, service_ports="443", **more,
    )  # fmt: skip


def kinds(given: Facts) -> list[str]:
    return [finding.kind for finding in judge(given)]


def test_a_healthy_node_has_no_finding() -> None:
    assert judge(facts()) == []
    assert verdict([]) == (OK, "")


def test_reports_that_fail_for_long_are_told_with_the_reason() -> None:
    assert kinds(facts(delivery=Delivery(NOW - 599, "answered 500", 3))) == []
    assert kinds(facts(delivery=Delivery(None, "", 0))) == []
    (finding,) = judge(facts(delivery=Delivery(NOW - 7_200, "https://h/u: answered 500", 3)))
    assert finding.sentence == "usage has not been reported for 2h: https://h/u: answered 500"
    assert finding.evidence == ["3 reports wait"]


MASKED = report(last={"log.masked": NOW - 1, "log.claims": NOW - 60})


@pytest.mark.parametrize(
    ("given", "kind", "level"),
    [
        (facts(report(source={"waiting": "no such log"})), "source_missing", DEGRADED),
        (facts(MASKED), "masked", DEGRADED),
        (facts(report(last={"log.error_log": NOW - 599})), "mixed", DEGRADED),
        (facts(report(source={"lag_s": 10.0})), "lag", DEGRADED),
        (facts(delivery=Delivery(NOW - 600, "answered 500", 3)), "reports", DEGRADED),
        (facts(report(last={"log.no_port": NOW - 5})), "no_port", DEGRADED),
        (facts(report(last={"exhausted": NOW - 5})), "exhausted", DEGRADED),
        (facts(report(last={"conflicts": NOW - 5})), "conflict", DEGRADED),
        (facts(report(last={"foreign_mark": NOW - 5})), "foreign_mark", DEGRADED),
        (facts(report(repair=RepairHealth(failed="no cls_fw"))), "repair_failed", DEGRADED),
        (facts(report(clock_set_s=NOW - 10, clock_set_by_s=3_600.0)), "clock", DEGRADED),
        (facts(report(counts={"flows_known_by": "look-ups"})), "look_ups", DEGRADED),
        (facts(report(state="/state: disk full")), "state", DEGRADED),
        (facts(state="/state: disk full"), "state", DEGRADED),
        (facts(tcp_memory="TCP is short of memory"), "tcp_memory", DEGRADED),
        (facts(policy_problem="policy.yml:3: no"), "policy", DEGRADED),
        (facts(policy_is_current=False), "policy", DEGRADED),
        (facts(settings_problem="settings.yml:3: no"), "settings", DEGRADED),
        (facts(settings_are_current=False), "settings", DEGRADED),
        (facts(report(void_orders=["alice"])), "orders", DEGRADED),
        (facts(report(version="1.0.0"), version="1.0.1"), "version", DEGRADED),
        (facts(busy_without_class=["alice"]), "no_class", DEGRADED),
        (facts(idle_without_class=3), "no_class_idle", OK),
        (facts(suspended=True), "suspended", DEGRADED),
        (facts(suspended=True, disabled="by carol"), "disabled", DEGRADED),
        (facts(not_set_up="no tree"), "not_set_up", TROUBLE),
        (facts(report(traffic=TrafficHealth(NOW - 60, NOW, 9, 0, 5))), "classes_idle", DEGRADED),
    ],
)  # fmt: skip
def test_each_fault_is_one_finding_with_a_remedy(given: Facts, kind: str, level: str) -> None:
    (finding,) = judge(given)
    assert (finding.kind, finding.level) == (kind, level)
    assert finding.sentence and (finding.remedy or level == OK)


def test_without_a_follower_that_is_what_is_told() -> None:
    given = facts(unit="vff-qos-follow.service is failed")
    given.report = None
    (finding,) = judge(given)
    assert (finding.kind, finding.evidence) == ("follower", ["vff-qos-follow.service is failed"])


@pytest.mark.parametrize(
    "given",
    [
        report(last={"log.masked": NOW - 60, "log.claims": NOW - 1}),  # maskAddress is gone
        report(last={"log.error_log": NOW - 601}),
        report(last={"conflicts": NOW - 601}),
        report(clock_set_s=NOW - 601),
        report(recent={"no_flow": 4}),
        report(recent={"no_flow": 10, "marked": 11}, last={"no_flow": NOW}),
        report(recent={"no_flow": 10}, last={"no_flow": NOW - 9}),  # a claim found its flow since
        report(recent={"repairs": 9}, repair=RepairHealth(healed_s=NOW - 31)),
        report(recent={"repairs": 2}, repair=RepairHealth(healed_s=NOW - 1)),
        report(traffic=TrafficHealth(NOW - 60, NOW, 9, 1, 1)),
        # Scanners: no connection stays; few; a claim has just come.
        report(source={"last_claim_s": NOW - 99, "flows_since_claim": 99}),
        report(
            source={"last_claim_s": NOW - 99, "flows_since_claim": 9},
            counts={"flows_known": 60, "flows_claimed": 50},
        ),
        report(source={"flows_since_claim": 99}, counts={"flows_known": 60, "flows_claimed": 50}),
        report(counts={"flows_known": 19, "flows_claimed": 0}),
        # Silent for some seconds: whether it stays so is not known yet.
        report(source={"flows_since_claim": 50}, counts={"flows_known": 60, "flows_claimed": 10}),
        report(counts={"flows_known": 100, "flows_claimed": 50}),
        report(counts={"flows_claimed": 62, "flows_known": 62}),  # a fifth of the marks
    ],
)
def test_what_is_undone_or_usual_is_not_told(given: Report) -> None:
    assert kinds(facts(given)) == []


def test_each_source_has_findings_of_its_own_and_a_quiet_one_beside_others_is_none() -> None:
    gone = SourceHealth("journal", "second", "the journal of x", waiting="no such unit")
    (finding,) = judge(facts(report(source={"name": "first"}, others=[gone])))
    assert finding.kind == "source_missing"
    assert finding.sentence == "nobody new of second is limited: no such unit"
    assert "xray_access_log_path, or path under sources" in finding.remedy
    quiet = SourceHealth("webhook", "hook", "the webhook", flows_since_claim=99)
    busy = {"last_claim_s": NOW - 1, "flows_since_claim": 2}
    counts: dict[str, int | str] = {"flows_known": 60, "flows_claimed": 50}
    assert judge(facts(report(source=busy, others=[quiet], counts=counts))) == []
    both = report(
        source={"last_claim_s": NOW - 99, "flows_since_claim": 99}, others=[quiet], counts=counts
    )
    (finding,) = judge(facts(both))
    assert finding.kind == "source_silent" and finding.sentence.startswith("/log, the webhook: ")


def test_what_all_sources_are_silent_about_is_not_told_of_the_one_that_never_spoke() -> None:
    hook = SourceHealth(
        "flows", "flows", "what is posted", flows_since_claim=99, nobodys_since_claim=12
    )
    counts: dict[str, int | str] = {"flows_known": 12, "flows_claimed": 0}
    for ago_s, told in ((19, []), (21, ["silent while the service ports are busy"])):
        log = {"last_claim_s": NOW - ago_s, "flows_since_claim": 12, "nobodys_since_claim": 12}
        found = judge(facts(report(source=log, others=[hook], counts=counts)))
        assert [f.sentence.partition(": ")[2].partition(":")[0] for f in found] == told


def test_one_of_several_is_silent_on_its_own_ports() -> None:
    busy = {"last_claim_s": NOW - 1, "flows_since_claim": 0}
    counts: dict[str, int | str] = {"flows_known": 60, "flows_claimed": 50}

    def told(**more: Any) -> list[str]:
        given: dict[str, Any] = {
            "last_claim_s": NOW - 30, "flows_since_claim": 10, "nobodys_since_claim": 5, **more,
        }  # fmt: skip
        hook = SourceHealth("webhook", "hook", "the webhook", **given)
        return [f.sentence for f in judge(facts(report(source=busy, others=[hook], counts=counts)))]

    (sentence,) = told()
    assert sentence.startswith("hook (the webhook) is silent while its ports are busy")
    assert told(nobodys_since_claim=4) == told(last_claim_s=NOW - 19) == []
    assert told(flows_since_claim=9) == []
    # What it waits for is told instead.
    (sentence,) = told(waiting="no such socket")
    assert "no such socket" in sentence


def test_a_silent_source_a_wrong_port_a_fight_and_lost_marks() -> None:
    silent = report(
        source={"last_claim_s": NOW - 20, "flows_since_claim": 10},
        counts={"flows_known": 55, "flows_claimed": 50},
    )
    (one,) = judge(facts(silent))
    assert one.kind == "source_silent" and "10 new connections" in one.evidence[0]
    lost = report(recent={"no_flow": 6}, last={"no_flow": NOW}, not_found=["1.2.3.4:5"])
    (one,) = judge(facts(lost, claimed_ports={8443: 5}))
    assert "do not go to the service ports but to 8443" in one.sentence
    assert "service_ports" in one.remedy
    (one,) = judge(facts(lost))
    assert one.evidence[-1] == "the latest come from 1.2.3.4:5"
    (one,) = judge(facts(lost, lost_from_here=["1.2.3.4:5"], claimed_ports={8443: 5}))
    assert one.kind == "front" and "send-proxy-v2" in one.remedy
    idle = report(traffic=TrafficHealth(NOW - 60, NOW, 9, 0, 0))
    (one,) = judge(facts(idle, marked_from_here=26))
    assert one.kind == "front" and one.evidence[-1] == "26 of 50 begin on this node"
    (one,) = judge(facts(idle, marked_from_here=25))
    assert one.kind == "classes_idle"
    fight = report(
        recent={"repairs": 3},
        repair=RepairHealth(healed_s=NOW - 14, changes=["nft table"], culprit="nft", culprit_pid=7),
    )
    (one,) = judge(facts(fight))
    assert one.kind == "contended" and one.sentence.endswith(" by 'nft'")
    given = facts(report(counts={"flows_claimed": 63, "flows_known": 63}))
    (one,) = judge(given)
    assert one.kind == "marks_overwritten" and one.sentence.startswith("13 of 63 connections")


@pytest.mark.parametrize(("count", "told"), [(899, False), (900, True), (1_000, True)])
def test_a_full_conntrack_table(count: int, told: bool) -> None:
    given = dataclasses.replace(facts(), conntrack_count=count)
    assert ("conntrack_full" in kinds(given)) is told


def test_the_worst_comes_first_and_gives_the_verdict() -> None:
    findings = [Finding(OK, "a", "a"), Finding(DEGRADED, "b", "b"), Finding(TROUBLE, "c", "c")]
    assert [f.kind for f in worst_first(findings)] == ["c", "b", "a"]
    assert verdict(findings) == (TROUBLE, "c")
    assert verdict(findings[:1]) == (OK, "")


def test_a_report_survives_json_and_other_versions() -> None:
    whole = report(traffic=TrafficHealth(1.0, 2.0, 3, 4, 5), repair=RepairHealth(failed="x"))
    assert Report.from_json(whole.to_json()) == whole
    old = {"pid": 1, "written": 2.0, "policy": [], "repairs": 0, "log": {}, "marked": 7}
    assert Report.from_json(old).counts == {"marked": 7}
    newer = whole.to_json()
    newer["sources"][0]["later"] = 1
    assert Report.from_json(newer).sources == whole.sources


def test_which_findings_need_no_follower_is_known() -> None:
    bad = Facts(
        NOW, disabled="by hand", policy_problem="p", settings_problem="s", state="full",
        tcp_memory="short", conntrack_count=10, conntrack_max=10, not_set_up="no tree",
        delivery=Delivery(NOW - 7_200, "500", 1),
    )  # fmt: skip
    free = dataclasses.replace(bad, disabled="", busy_without_class=["alice@x"])
    suspended = dataclasses.replace(bad, disabled="", suspended=True)
    found = {kind for given in (bad, free, suspended) for kind in kinds(given)}
    assert found == WITHOUT_FOLLOWER


def test_marks_that_were_overwritten_before_the_table_was_compared_are_told() -> None:
    given = facts(report(counts={"flows_claimed": 5, "flows_robbed": 45}))
    given.marked_flows, given.unmarked_flows = 5, 45
    (finding,) = judge(given)
    assert finding.kind == "marks_overwritten"
    assert finding.sentence.startswith("45 of 50 connections have lost the mark")

"""What ``bench.operator`` measured, as rows beside their aims."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.table import Aim, Figure

if TYPE_CHECKING:
    from bench.operator_run import ColdStart, Restart, Results

MEMORY = Aim(most=250.0)


def figures(results: Results) -> list[Figure]:
    """Return the rows."""
    return [
        *_cold(results),
        *_latency(results.latencies),
        Figure("writes for a first issue", results.cold.writes, "", None, "Secret, status, and the first few Events"),
        Figure(
            "writes for a renewal",
            results.renewal_writes,
            "",
            Aim(most=2),
            f"client credentials, {results.sizes.renewed} renewals",
        ),
        Figure(
            "- with a rotating refresh token",
            results.rotation_writes,
            "",
            Aim(most=4),
            f"claim, commit, Secret, status; {results.sizes.rotated} renewals",
        ),
        Figure(f"resident, {results.sizes.few} identities", results.few.peak, "MB", MEMORY, "the peak of a cold start"),
        Figure(
            f"resident, {results.sizes.count} identities",
            max(results.cold.peak, results.restart.peak),
            "MB",
            MEMORY,
            f"the peak: {results.cold.peak:.0f} MB of a cold start, {results.restart.peak:.0f} MB of a restart;"
            f" {results.restart.resident:.0f} MB at rest after it",
        ),
        *_restart(results.restart),
    ]


def _cold(results: Results) -> list[Figure]:
    cold, plain = results.cold, results.plain
    return [
        Figure("cold start", cold.rate, "identities/s", Aim(least=285.0), _spent(cold)),
        Figure(
            "- beside a plain client's server-side applies of the Secrets",
            cold.rate / plain.applies,
            "x",
            Aim(least=0.5),
            f"which made {plain.applies:.0f}/s",
        ),
        Figure(
            "- beside a plain client that writes Secret and status",
            cold.rate / plain.both,
            "x",
            None,
            f"which made {plain.both:.0f}/s",
        ),
    ]


def _spent(cold: ColdStart) -> str:
    return (
        f"each {cold.operator_cpu:.1f} ms of a core, and {cold.server_cpu:.1f} ms of the API server and etcd;"
        f" {cold.total:.0f} s from the start of the process; {len(cold.troubles)} warnings"
    )


def _latency(latencies: list[float]) -> list[Figure]:
    def quantile(share: float) -> float:
        return latencies[min(int(len(latencies) * share), len(latencies) - 1)] * 1000

    remark = f"idle, {len(latencies)} identities one after the other"
    return [
        Figure("create to Secret, p50", quantile(0.5), "ms", Aim(most=25.0), remark),
        Figure(
            "create to Secret, p99", quantile(0.99), "ms", Aim(most=100.0), f"at most {latencies[-1] * 1000:.0f} ms"
        ),
    ]


def _restart(restart: Restart) -> list[Figure]:
    return [
        Figure("restart: exchanges", restart.exchanges, "", Aim(most=0), ""),
        Figure("restart: writes", restart.writes, "", Aim(most=0), "of Secrets, statuses and Events"),
        Figure(
            "restart: settled after",
            restart.settled,
            "s",
            Aim(most=15.0),
            f"from the start of the process; the schedule was built after {restart.ready:.1f} s;"
            f" {restart.cpu:.1f} s of processor time",
        ),
        Figure("idle", restart.idle, "% of a core", Aim(most=2.0), "user and system time"),
    ]

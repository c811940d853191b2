"""Checks what runs need of machines and storage: one line each, and exit code 1 if any of them fails.

Without a cluster it looks at this machine alone. With --address (or RAY_ADDRESS) it asks every node of that cluster,
by tasks that reserve nothing: versions that agree with the head's, NVIDIA's driver, GPUs that this torch has code for,
disk, shared memory, open files, and clocks. With --storage it also writes, reads, lists and deletes below that URI,
from this machine and from every node; nothing stays there. A cluster of which only the dashboard can be reached is
checked by a job: stgs submit --address http://HOST:8265 doctor --storage URI
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence

from cluster.doctor import Check, collect, judge, this_machine
from cluster.doctor_storage import check_storage, probe_root, share
from jobs.cli import COMPLETE, FAILED, Outcome, UsageError, option, run_command


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorJobConfig:
    """Options of `stgs doctor`."""

    address: str | None = option(
        None, help="Ray cluster to check, auto for the one that runs here (default: RAY_ADDRESS)"
    )
    storage: str | None = option(None, help="storage to try, such as the folder that the runs are in", metavar="URI")
    timeout: float = option(60.0, help="seconds that a node has for each answer")


def run(config: DoctorJobConfig) -> Outcome:
    """Look at the cluster's nodes, or at this machine, and at the storage."""
    if config.timeout <= 0:
        raise UsageError(f"--timeout is {config.timeout:g}, but a node needs some seconds to answer.")
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address is not None and address.startswith(("http://", "https://")):
        raise UsageError(
            f"{'--address' if config.address else 'RAY_ADDRESS'} is {address}, a dashboard, but the doctor joins the "
            f"cluster: give HOST:6379 of its head, or use 'stgs submit --address {address} doctor'."
        )
    if address is None:
        facts = collect(tempfile.gettempdir(), timeout_s=config.timeout)
        checks = judge(facts, this_machine(), facts)
        if config.storage is not None:
            with probe_root(config.storage) as root:
                checks += _from_here(root, config.storage)
    else:
        checks = _cluster(address, config)
    failed = sum(check.level == "FAIL" for check in checks)
    text = "\n".join([*(check.line for check in checks), f"{len(checks)} checks, {failed} failed"])
    payload = {"ok": not failed, "checks": [dataclasses.asdict(check) for check in checks]}
    return Outcome(payload, text, FAILED if failed else COMPLETE)


def _cluster(address: str, config: DoctorJobConfig) -> list[Check]:
    # Late: without a cluster nobody waits for Ray to load.
    from cluster.doctor_nodes import check_nodes, check_storage_on_nodes
    from cluster.session import connect

    with connect(address=address):
        checks = check_nodes(timeout_s=config.timeout)
        if config.storage is not None:
            with probe_root(config.storage) as root:
                own = _from_here(root, config.storage)
                checks += own
                if not any(check.level == "FAIL" and check.subject == "write" for check in own):
                    share(root)
                    checks += check_storage_on_nodes(root, config.storage, timeout_s=config.timeout)
    return checks


def _from_here(root: str, uri: str) -> list[Check]:
    return check_storage(root, f"here  storage {uri}", shared=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `stgs doctor` and `python -m jobs.doctor`."""
    return run_command("doctor", run, argv)


if __name__ == "__main__":
    raise SystemExit(main())

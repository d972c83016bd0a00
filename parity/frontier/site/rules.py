"""Verdicts as a table: a row for each rule, a column for each run."""

from typing import Any


def of_runs(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every rule the statuses by run, None where a run does not have it, and the runs' reasons."""
    verdicts = [{rule: (status, reason) for rule, status, reason in run["verdict"]["rules"]} for run in runs]
    rows = []
    for rule in dict.fromkeys(rule for verdict in verdicts for rule in verdict):
        results = [verdict.get(rule) for verdict in verdicts]
        reasons = [(run["seed"], result[1]) for run, result in zip(runs, results, strict=True) if result and result[1]]
        rows.append(
            {
                "rule": rule,
                "statuses": [result and result[0] for result in results],
                "reasons": reasons,
                "distinct": list(dict.fromkeys(reason for _, reason in reasons)),
            }
        )
    return rows

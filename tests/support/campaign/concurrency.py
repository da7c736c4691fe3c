"""Many CRF calls at once, from threads and from forked processes."""

from __future__ import annotations

import time

from campaign.runner import Advance, Tally


def run_concurrency(seed: int, count: int, advance: Advance) -> Tally:
    """`count` calls, each of which has to give the answer that it gives alone."""
    from crf_concurrency import concurrent_crf_calls

    tally, start = Tally("concurrency", seed), time.perf_counter()
    found = dict(concurrent_crf_calls(count, seed))
    failures = list(found.pop("failures", []))
    tally.cases = count
    tally.failures = [
        {"case": number, "said": "a CRF call among others", "line": "", "wrong": str(failure)}
        for number, failure in enumerate(failures)
    ]
    tally.result = count - len(failures)
    tally.facts = found
    tally.seconds = round(time.perf_counter() - start, 1)
    advance()
    return tally

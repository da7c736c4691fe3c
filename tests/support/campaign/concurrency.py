"""Many CRF calls at once, from threads, forks and new processes, with the bits of serial ones."""

import traceback

from campaign.runner import Tally, world


def run_concurrency(seed: int, count: int) -> Tally:
    """`count` calls; they hold all together or not at all."""
    from crf_concurrency import concurrent_crf_calls

    tally = Tally("concurrency", seed, cases=count)
    with world(tally):
        try:
            tally.facts = concurrent_crf_calls(count, seed)
            tally.result = count
        except Exception:  # a result that differs, or a process that failed or hung
            tally.fail(0, f"{count} CRF calls at once", "", traceback.format_exc()[-3000:])
    return tally

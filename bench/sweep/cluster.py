"""Runs of a sweep on many machines, by Dask distributed (https://distributed.dask.org).

Each machine runs a worker as root that has one resource ``bench``, so that it does one run at a time::

    dask worker tcp://scheduler:8786 --nthreads 1 --no-nanny --resources "bench=1"

A scenario goes there as text, the result directory comes back packed. Files that a scenario names (a topology, an
image) have to be on the workers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from bench.errors import HostError, MachineError
from bench.sweep.plan import Job
from bench.sweep.store import SweepStore
from bench.sweep.work import Done, run_packed

RESOURCE: Final = "bench"
CONNECT_S: Final = 30
RETRIES: Final = 1
"""A run whose worker was lost is tried once more, on another one."""


class Cluster:
    """A Dask cluster's workers that have the resource; a context manager.

    :raises HostError: the scheduler does not answer.
    :raises MachineError: no worker has the resource.
    """

    def __init__(self, address: str) -> None:
        from distributed import Client  # noqa: PLC0415 - a second that only this needs

        try:
            self._client: Any = Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise HostError(
                f"{address}: no Dask scheduler answers: {error}", "start one with `dask scheduler`"
            ) from None
        workers = self._client.scheduler_info(n_workers=-1).get("workers", {})
        able = [name for name, about in workers.items() if about.get("resources", {}).get(RESOURCE)]
        if not able:
            self._client.close()
            raise MachineError(
                f"{address}: none of its {len(workers)} workers has the resource {RESOURCE!r}",
                'start workers as root with `dask worker ADDRESS --nthreads 1 --resources "bench=1"`',
            )
        self.workers = len(able)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            self._client.close()

    def run(self, store: SweepStore, jobs: Iterable[Job]) -> Iterator[tuple[Job, Done]]:
        """See :class:`bench.sweep.run.Executor`."""
        from distributed import as_completed  # noqa: PLC0415

        text = store.plan.scenario.read_text(encoding="utf-8")
        name = store.plan.scenario.stem
        futures = {
            self._client.submit(
                run_packed,
                text,
                name,
                job.settings,
                store.plan.timeout_ns,
                resources={RESOURCE: 1},
                pure=False,
                retries=RETRIES,
                priority=-number,
                key=f"{job.label}-{store.plan.digest[:8]}-{id(store):x}",
            ): job
            for number, job in enumerate(jobs)
        }
        try:
            for future in as_completed(list(futures), loop=self._client.loop):
                job = futures.pop(future)
                error = future.exception()
                if error is not None:
                    yield job, Done(1, f"its worker: {type(error).__name__}: {error}"[:500], "")
                else:
                    yield job, future.result()
                future.release()
        finally:
            self._client.cancel(list(futures))

"""The engine for one machine: processes, each with one thread."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence

from regplug.commands.extras import import_extra
from regplug.commands.run.job import Job
from regplug.commands.run.results import Written
from regplug.commands.run.run import Finished, Said
from regplug.commands.run.units import Unit
from regplug.commands.worker_processes import Died, Failed, Team
from regplug.errors import RegplugError, SpecError, class_name, message_of, one_line

ATTEMPTS = 2  # of a unit whose process dies


def run_locally(job: Job, units: Sequence[Unit], finished: Finished, said: Said, workers: int) -> None:
    """Run units in ``workers`` processes. If one dies, its unit is run once more, by another one."""
    deaths: Counter[str] = Counter()

    def answered(unit: Unit, answer: Written | str | Died | Failed) -> bool:
        if isinstance(answer, Died):
            deaths[unit.name] += 1
            if deaths[unit.name] < ATTEMPTS:
                team.again(unit)
                return True
            answer = f"{answer}, {ATTEMPTS} times"
        return finished(unit, str(answer) if isinstance(answer, Failed) else answer)

    team = Team(units, "regplug.commands.run.local_engine:work", job, answered, said)
    team.run(min(workers, len(units)))


def work(job: Job) -> Callable[[Unit, Said], Written | str]:
    """What a worker does with each unit. One thread: the results' last bits depend on how many there are."""
    # pyarrow's allocator keeps what is freed for the next batch, instead of returning it to the system after 10 ms:
    # a fifth less CPU time. It reads this as pyarrow is imported.
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "-1")
    import torch

    torch.set_num_threads(1)
    import_extra("run", "pyarrow").set_cpu_count(1)
    return lambda unit, said: result_of(job, unit, said)


def result_of(job: Job, unit: Unit, said: Said = lambda rows: None) -> Written | str:
    """A unit's results, or the reason of its failure."""
    from regplug.commands.run.execute import run_unit  # imports torch, which the command itself does not need

    try:
        return run_unit(job, unit, said)
    except RegplugError as error:
        return message_of(error)
    except OSError as error:
        return message_of(SpecError(f"results {job.output / job.file_name(unit.name)}: {error.strerror or error}"))
    except Exception as error:  # plugins and file systems raise anything, and the other units go on
        return f"{class_name(error)}: {one_line(error)}"

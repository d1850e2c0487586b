"""Which processes used the CPU."""

import psutil


class CpuMeter:
    """CPU time of a service's processes, of its database and of this one, from now on."""

    def __init__(self, service_pid: int | None = None, database_pid: int | None = None) -> None:
        processes = [psutil.Process()]
        if service_pid is not None:
            service = psutil.Process(service_pid)
            processes += [service, *service.children(recursive=True)]
        if database_pid is not None:
            processes.append(psutil.Process(database_pid))
        self._before = {process: _seconds(process) for process in processes}

    def milliseconds_each(self, times: int, least: float = 0.05) -> list[tuple[str, float]]:
        """Milliseconds by process, divided by `times`, most first; those below `least` are summed up."""
        used = [
            (_name(process), 1000 * (_seconds(process) - before) / times)
            for process, before in self._before.items()
            if process.is_running()
        ]
        used.sort(key=lambda row: -row[1])
        shown = [row for row in used if row[1] >= least]
        rest = sum(milliseconds for _, milliseconds in used[len(shown) :])
        return [*shown, ("all others", rest), ("together", sum(milliseconds for _, milliseconds in used))]


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _name(process: psutil.Process) -> str:
    if process.pid == psutil.Process().pid:
        return "the benchmark's client"
    command = process.cmdline()
    # Ray writes what a worker is into its command line; the others are known by their program.
    return command[0] if command and command[0].startswith("ray::") else process.name()

"""A contender's process: worker.py MODULE:FUNCTION WORKLOAD.

Reads lines: "build" builds and does the work once, "run N" does it N times; both answer with the
seconds. "memory" answers with peaks in bytes. Ends with its standard input.
"""

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path

from contest import Workload


def main() -> None:
    """Answer line by line, on the standard output that libraries no longer reach."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, function = sys.argv[1].split(":")
    workload = Workload(*json.loads(sys.argv[2]))
    run = None
    for line in sys.stdin:
        word, *count = line.split()
        begin = time.perf_counter()
        if word == "build":
            run = getattr(importlib.import_module(module), function)(workload)
            run(1)
        elif word == "run":
            run(int(count[0]))
        answer = {"seconds": time.perf_counter() - begin}
        if word == "memory":
            answer = {
                "host": host_memory(),
                "device": device_memory(),
            }
        print(json.dumps(answer), file=answers, flush=True)


def host_memory() -> int:
    """Peak resident bytes of this process.

    On Linux getrusage would count the process that started this one as well: it keeps the peak of
    the memory that was there before exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(peak.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def device_memory() -> int | None:
    """Peak bytes on the accelerator, by whichever library this process has used."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        if peak := sys.modules["torch"].cuda.max_memory_allocated():
            return peak
    if "jax" in sys.modules:
        stats = sys.modules["jax"].devices()[0].memory_stats()
        return stats and stats.get("peak_bytes_in_use")
    return None


if __name__ == "__main__":
    main()

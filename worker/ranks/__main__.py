"""`python -m memsup.worker.ranks --run NAME --rank R --ranks N --fd FD`: one life of a rank beside rank 0, which starts it."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import socket
import sys

from memsup.shared.log import FromLibraries, json_lines, log, log_to, to_standard_error
from memsup.shared.messages import Leaving
from memsup.shared.paths import run_paths
from memsup.shared.run_file import read_record
from memsup.worker.imports import quick_scan_of_transformers, without_search_for_garbage
from memsup.worker.ranks.link import RankLink
from memsup.worker.session import Leave

_ENDED_WITHIN_S = 10
"""The time in which rank 0 ends the others where one of them is gone."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m memsup.worker.ranks", description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--parts-fd", type=int)
    for name in ("--rank", "--ranks", "--fd"):
        parser.add_argument(name, required=True, type=int)
    arguments = parser.parse_args()
    log_to(arguments.run, json_lines(to_standard_error))
    logging.basicConfig(level=logging.INFO, handlers=[FromLibraries()])
    logging.captureWarnings(True)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # rank 0 is told as well, saves, and ends this one
    link = RankLink(socket.socket(fileno=arguments.fd), arguments.rank)
    parts = None if arguments.parts_fd is None else socket.socket(fileno=arguments.parts_fd)
    paths = run_paths(arguments.run)
    record = read_record(paths.record)
    assert record is not None, "rank 0 has read it"
    with without_search_for_garbage(), quick_scan_of_transformers():
        from memsup.worker.__main__ import failed
        from memsup.worker.ranks.other import Left, compute
    try:
        compute(record, paths, link, rank=arguments.rank, ranks=arguments.ranks, parts=parts)
    except Leave as leave:
        link.report(Leaving(reason=leave.reason, checkpoint=None))
    except Left as left:
        log.warning("Another rank is gone", rank=arguments.rank, why=str(left.__cause__))
        if parts is not None and isinstance(left.__cause__, Exception):
            signal.sigtimedwait([], _ENDED_WITHIN_S)  # rank 0 ends this one, if that is so
            link.report(failed(left.__cause__, arguments.run))
    except Exception as error:
        log.exception("This rank ends here", rank=arguments.rank)
        link.report(failed(error, arguments.run))
    if parts is not None:  # others may wait for this one within a layer of the model that is shared out
        os._exit(1)
    signal.pause()  # rank 0 says when: what was said has to arrive
    return 0


if __name__ == "__main__":
    sys.exit(main())

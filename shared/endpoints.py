"""Names of the two sockets below a checked folder.

The path goes through `/proc/self/fd`: a Unix socket's path may have 107 bytes only, and a folder deep in a home
directory with a Chinese name has more; and the folder that was checked is the folder that is used, whatever happens to its
name afterwards.
"""

from __future__ import annotations

import os

from memsup.shared.paths import RunPaths, open_private

WORKER_SOCKET = "worker.sock"
CONTROL_SOCKET = "control.sock"


class SocketFolder:
    """The run's runtime folder, held open. Raises `PathError` when it is missing or not the user's alone."""

    def __init__(self, paths: RunPaths) -> None:
        self.fd = open_private(paths.runtime)
        """The descriptor of the folder."""

    def path(self, socket_name: str) -> str:
        """The path of a socket for `bind` and `connect`; valid in this process until `close`."""
        return f"/proc/self/fd/{self.fd}/{socket_name}"

    def endpoint(self, socket_name: str) -> str:
        """The path as libzmq wants it."""
        return f"ipc://{self.path(socket_name)}"

    def close(self) -> None:
        os.close(self.fd)

"""Take the working directory off `sys.path` where ``python -m checkpoint`` put it there.

The promise: from then on nothing is imported from the directory in which a stranger's files may lie; neither a package
that we need nor a module of the standard library. The door imports this room before any other.

Python itself puts the directory first, and imports a few modules of its own before a line of ours runs; and a package
`checkpoint` that lies there is run in the place of this one. Only ``python -P -m checkpoint``, or the command
`checkpoint`, which never looks there, keeps from that.
"""

import sys

__all__: list[str] = []


def _leave_directory() -> None:
    """Before it runs a module, Python puts the working directory there, and "-m" for the name of the program."""
    if sys.flags.safe_path or not sys.path or sys.argv[:1] != ["-m"] or len(sys.argv) > len(sys.orig_argv):
        return
    own = __name__.partition(".")[0]
    module = sys.orig_argv[-len(sys.argv)]  # the arguments of the program are the last of all
    if module.removeprefix("-m").partition(".")[0] != own:
        return
    directory = sys.path[0]
    if not sys.modules[own].__path__[0].startswith(directory):  # else this package lies there itself
        sys.path[:] = [path for path in sys.path if path not in (directory, "")]


_leave_directory()

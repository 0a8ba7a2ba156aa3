"""A user's mistake, and what the shell sees of it."""

import errno
import sys

OS_SENTENCES = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.ENOTDIR: "a folder of that path is a file",
    errno.EFBIG: "the file is larger than this system lets it be",
}


class UserError(Exception):
    """One sentence that says what is wrong, where, and what to do."""


def sentence_for(error: BaseException) -> str | None:
    """The sentence for an error that is the user's or the disk's; None for a bug, which keeps its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in OS_SENTENCES:
        where = f"{error.filename}: " if error.filename else ""
        return (f"{where}{OS_SENTENCES[error.errno]}; nothing half-written was kept: "
                "make room or choose another folder, then run the same command again")
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to go on"
    return None


def exit_with_sentence(error: BaseException) -> None:
    """Print the sentence and leave with status 2 (130 after Ctrl-C), or re-raise a bug."""
    sentence = sentence_for(error)
    if sentence is None:
        raise error
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(130 if isinstance(error, KeyboardInterrupt) else 2)

"""A user's mistake, and what the shell sees of it."""

import contextlib
import errno
import os
import sys

from tqdm import tqdm

OS_SENTENCES = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.ENOTDIR: "a folder of that path is a file",
    errno.EEXIST: "a file of that name is in the way",
    errno.EISDIR: "a folder of that name is in the way",
    errno.ENAMETOOLONG: "the name is longer than this file system takes",
    errno.EIO: "the disk or stream fails",
    errno.EFBIG: "the file is larger than this system lets it be",
}


# the same faults as libraries word them that write files without Python's own open()
LIBRARY_SENTENCES = {
    **{f"(os error {code})": said for code, said in OS_SENTENCES.items()},  # safetensors, tokenizers
    "No space left on device": OS_SENTENCES[errno.ENOSPC], "Read-only file system": OS_SENTENCES[errno.EROFS],
    "Permission denied": OS_SENTENCES[errno.EACCES],
    **dict.fromkeys(("PytorchStreamWriter failed writing", "basic_ios::clear: iostream error", "unexpected pos"),
                    "a file could not be written to its end, most likely for want of space"),  # torch.save
}


class UserError(Exception):
    """One sentence that says what is wrong, where, and what to do."""


def sentence_for(error: BaseException) -> str | None:
    """The sentence for an error that is the user's or the disk's; None for a bug, which keeps its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to go on"
    if isinstance(error, BrokenPipeError):
        return "whatever read this output has ended; run the same command again to go on"
    if isinstance(error, OSError):
        fault = OS_SENTENCES.get(error.errno)
        name = error.filename2 or error.filename  # of a copy or a move, where it goes
        where = f"{name}: " if name else ""
    else:
        fault = next((said for words, said in LIBRARY_SENTENCES.items() if words in str(error)), None)
        where = ""
    if fault is None:
        return None
    return (f"{where}{fault}; nothing half-written was kept: make room or choose another folder, "
            "then run the same command again")


def exit_with_sentence(error: BaseException) -> None:
    """Print the sentence and leave with status 2 (130 after Ctrl-C), or re-raise a bug."""
    sentence = sentence_for(error)
    if sentence is None:
        raise error
    with contextlib.suppress(OSError):  # nobody may read it any more
        if getattr(tqdm, "_instances", ()):
            print(file=sys.stderr)  # an open progress bar: the sentence gets a line of its own
        print(f"error: {sentence}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # what cannot be written any more must not be tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(130 if isinstance(error, KeyboardInterrupt) else 2)

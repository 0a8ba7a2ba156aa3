"""What was measured already: a run that was interrupted goes on from there."""

import json
from pathlib import Path

from lowbit.pipeline.files import write_json


class Memory:
    """Key -> what was measured, in a file that is written anew after each; one of other circumstances is not read."""

    def __init__(self, path: Path, fingerprint: str):
        self.path, self.fingerprint, self.values = path, fingerprint, {}
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["fingerprint"] == fingerprint:
                self.values = held["values"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        self.known = len(self.values)  # from an earlier run

    def get(self, key: str, measure):
        """The value of `key`, by measure() if it is not known yet."""
        if key not in self.values:
            self.values[key] = measure()
            write_json(self.path, {"fingerprint": self.fingerprint, "values": self.values})
        return self.values[key]

    def forget(self) -> None:
        """Delete the file: its figures stand in a stage's own file now."""
        self.path.unlink(missing_ok=True)

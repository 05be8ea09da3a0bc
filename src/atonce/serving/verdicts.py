"""What is known of the versions of a registry's entry, over restarts and on every replica: proved, refused, or to be tried.

It is written into the entry's history. Where the registry cannot be written (mounted read-only, another account's) it is kept
in the state folder, so that replicas that share that folder agree, and each other one at least with itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from atonce.core.errors import AtonceError, StorageError
from atonce.core.files import lock, write_atomic
from atonce.exchange import registry
from atonce.serving.private import FILE, private_folder
from atonce.serving.sources import Source

log = logging.getLogger("atonce.serving")


class Verdicts:
    """The verdicts on the versions of one source; a source that is no entry of a registry has none.

    Args:
        source: What is served.
        state: The state folder.
    """

    def __init__(self, source: Source, state: Path) -> None:
        self.source = source
        self.file = state / "versions" / f"{source.name}.json"
        self._unwritable = False
        self._memory: dict[str, str] = {}  # what could be written nowhere

    def known(self) -> dict[str, str]:
        """``proved``, ``refused`` or ``tried`` of each version of which there is a word, the latest word last.

        Empty where the entry cannot be read.
        """
        if not self.source.entry:
            return {}
        try:
            found = registry.marks(self.source.place)
        except (AtonceError, OSError):
            found = {}
        for version, word in (self._own() | self._memory).items():
            found.pop(version, None)
            found[version] = word
        return found

    def say(self, version: str, word: str, reason: str) -> None:
        """Write a verdict down. Never raises: a server that cannot write goes on serving.

        Args:
            version: A version of the entry; for others nothing is written.
            word: ``proved``, ``refused`` or ``tried``.
            reason: Why.
        """
        if not self.source.entry or self.known().get(version) == word:
            return
        try:
            registry.mark(self.source.place, version, word, reason)
            self._memory.pop(version, None)
            self._keep(version, None)
        except (StorageError, OSError) as problem:
            if not self._unwritable:
                line = "%s: the registry cannot be written, verdicts are kept in %s: %s"
                log.info(line, self.source.name, self.file, problem)
            self._unwritable = True
            try:
                self._keep(version, word)
            except (AtonceError, OSError) as worse:
                self._memory[version] = word
                log.error("%s: that version %s is %s cannot be kept: %s", self.source.name, version, word, worse)
        except AtonceError as problem:
            self._memory[version] = word
            log.info("%s: that version %s is %s is not written: %s", self.source.name, version, word, problem)

    def _own(self) -> dict[str, str]:
        """What is kept in the state folder of this entry."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            if kept["entry"] != self._entry:
                return {}
            return {str(version): str(word) for version, word in kept["versions"]}
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    @property
    def _entry(self) -> str:
        return str(Path(self.source.place).expanduser().absolute())

    def _keep(self, version: str, word: str | None) -> None:
        """Put a verdict into the state folder, or take one out that the registry holds by now."""
        if word is None and version not in self._own():
            return
        private_folder(self.file.parent.parent)
        private_folder(self.file.parent)
        with lock(self.file.parent, wait=True):
            kept = self._own()
            kept.pop(version, None)
            if word is not None:
                kept[version] = word
            text = json.dumps({"entry": self._entry, "versions": list(kept.items())}, indent=2) + "\n"

            def write(path: Path) -> None:
                path.write_text(text, encoding="utf-8")

            write_atomic(self.file, write, mode=FILE)


def order(wanted: str, before: str | None, known: Mapping[str, str], share: float) -> list[str]:
    """Which version of an entry is to serve all callers when a process starts: the first one of these that can be loaded.

    Args:
        wanted: The version that the registry names.
        before: The one that was in use before it.
        known: From :meth:`Verdicts.known`.
        share: Share of callers that get a new version first; 0 for all at once.

    Returns:
        Versions, the best one first. What was taken back comes last, and only where it is the one that the registry names.
    """
    proved = [version for version in reversed(list(known)) if known[version] == "proved" and version != wanted]
    if before is not None and before != wanted and before not in known:
        proved.append(before)  # it served before anybody took notes
    at_once = known.get(wanted) == "proved" or (share == 0 and known.get(wanted) != "refused")
    return [wanted, *proved] if at_once else [*proved, wanted]

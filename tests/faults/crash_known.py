"""In what batches are known to fare worse than ordinary tasks. Delete here what is mended.

A mark that excuses no case of a run is an error of its own.
"""

from dataclasses import dataclass

from faults.crash_cases import Case


@dataclass(frozen=True, slots=True)
class Known:
    """A defect that is known.

    Attributes:
        reason: What it is.
        ways: What is lost when it shows.
        wrongs: What is wrong then.
    """

    reason: str
    ways: tuple[str, ...]
    wrongs: frozenset[str]

    def covers(self, case: Case, wrong: str) -> bool:
        return case.way in self.ways and wrong in self.wrongs


KNOWN: tuple[Known, ...] = ()

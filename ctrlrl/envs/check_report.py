"""What `check_env` found: one row a law, printed as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Outcome(NamedTuple):
    """Of one check."""

    status: str = "passed"  # passed | failed | skipped | noted (it does not hold, and need not)
    what: str = ""  # what is wrong, or why it was not checked
    where: str = ""  # lane and step, where they are known; step 1 is the first after the reset
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.what}{f' ({self.where})' if self.where else ''}"


PASSED = Outcome()


def failed(what: str, where: str = "", mend: str = "") -> Outcome:
    return Outcome("failed", what, where, mend)


def skipped(why: str) -> Outcome:
    return Outcome("skipped", why)


def noted(what: str, where: str = "", mend: str = "") -> Outcome:
    return Outcome("noted", what, where, mend)


@dataclass(frozen=True, repr=False)
class Report:
    """The outcomes by name of check, in the order they ran; `print` shows the table."""

    title: str
    rows: dict[str, Outcome]

    def names(self, status: str) -> list[str]:
        return [name for name, row in self.rows.items() if row.status == status]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; what was skipped is not known to hold."""
        return not self.names("failed")

    def raise_if_failed(self) -> None:
        """ValueError that names each failed check and its mend."""
        bad = self.names("failed")
        if bad:
            lines = [f"{name}: {self.rows[name]}. {self.rows[name].mend}".rstrip() for name in bad]
            raise ValueError("\n  ".join([f"{self.title}: {len(bad)} of {len(self.rows)} checks failed", *lines]))

    def __str__(self) -> str:
        width = max(map(len, self.rows))
        lines = [self.title]
        for name, row in self.rows.items():
            lines.append(f"  {name:<{width}}  {row.status:<7}  {row}".rstrip())
            if row.mend:
                lines.append(f"  {'':<{width}}           mend: {row.mend}")
        counts = [f"{len(self.names(s))} {s}" for s in ("passed", "failed", "noted", "skipped") if self.names(s)]
        return "\n".join([*lines, ", ".join(counts)])

    __repr__ = __str__

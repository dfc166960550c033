"""The job that the checkpoints beside it were written by, with the first algorithm of fingerprints."""

import sys
from typing import Any

from checkpoint import checkpointed

PROMPT = "Summarize: {text}"
DOCS = [{"id": n, "text": f"text {n}"} for n in range(3)]


@checkpointed("summaries", key="id")
def summarize(doc: dict[str, Any]) -> str:
    """Reads a value of the module."""
    print("called", file=sys.stderr)
    return PROMPT.format(**doc)


class Scorer:
    """Is told apart by its attribute."""

    def __init__(self, bonus: int) -> None:
        self.bonus = bonus

    @checkpointed("scores")
    def score(self, n: int) -> int:
        """Reads it."""
        print("called", file=sys.stderr)
        return n + self.bonus


@checkpointed("named", version={"prompt": PROMPT, "model": "small"})
def named(n: int) -> str:
    """Has a version, and records that name no code."""
    print("called", file=sys.stderr)
    return f"{PROMPT}{n}"


def run() -> None:
    """Map all of them."""
    print(list(summarize.map(DOCS, progress=False)))
    print(list(Scorer(5).score.map([1, 2], progress=False)))
    print(list(named.map([1], progress=False)))


if __name__ == "__main__":
    run()

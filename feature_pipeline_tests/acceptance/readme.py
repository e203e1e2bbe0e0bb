"""The README's fenced blocks, for tests that do what it says."""

import re
import textwrap
from typing import Final

from feature_pipeline_tests.acceptance.own_project import ROOT

README: Final = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order; those in lists are indented."""
    matches = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", README, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(text) for _, text in matches]


def one_block(language: str, holding: str) -> str:
    """The only block of a language that has the text `holding` in it."""
    (block,) = [block for block in blocks(language) if holding in block]
    return block

"""How the code blocks of our documents are read."""

from pathlib import Path

import pytest

from tests.documents import Block, MalformedDocument, blocks_of

TREE = Path(__file__).parents[2]

TEXT = """\
# Title

```sh
one
two
```

```json
{}
```

<!-- test: skip, because it needs a GPU -->

```sh
three
```

<!-- test: background until "is ready" -->
```sh
four
```

<!-- test: cut after 3 s -->
```sh
five
```

<!-- test: refused -->
```python
six
```
"""


def read(tmp_path: Path, text: str) -> list[Block]:
    (tmp_path / "x.md").write_text(text)
    return list(blocks_of(tmp_path / "x.md", "x.md"))


def test_blocks_are_found_with_their_lines_and_what_is_to_be_done(tmp_path: Path) -> None:
    assert read(tmp_path, TEXT) == [
        Block(file="x.md", line=4, language="sh", code="one\ntwo"),
        Block(file="x.md", line=15, language="sh", code="three", skipped_because="it needs a GPU"),
        Block(file="x.md", line=20, language="sh", code="four", background_until="is ready"),
        Block(file="x.md", line=25, language="sh", code="five", cut_after=3),
        Block(file="x.md", line=30, language="python", code="six", is_refused=True),
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("```sh\nopen", "x.md:1"),
        ("<!-- test: skip -->\n```sh\n```", "x.md:3"),
        ("<!-- test: skip, because of it -->\nwords\n```sh\n```", "x.md:2"),
    ],
)
def test_what_cannot_be_understood_is_told_with_its_line(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(MalformedDocument, match=place):
        read(tmp_path, text)


def test_few_blocks_of_our_documents_are_not_run() -> None:
    found = [
        block
        for path in (TREE / "README.md", *sorted((TREE / "docs").glob("*.md")))
        for block in blocks_of(path, path.name)
    ]
    skipped = [block.place for block in found if block.skipped_because]
    assert len(skipped) <= len(found) / 3, skipped

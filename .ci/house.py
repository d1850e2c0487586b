"""Count what shows whether the code stays readable: names, layers, files, lines. Generated code is left out.

python .ci/house.py [-v] [FOLDER]      # -v lists what was counted; FOLDER is a checkout, by default this one
"""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

GENERATED = ("grpc_generated/", "client/sync_client.py")
"""The blocking client is generated where there is a generator; `make check` holds it to its source."""
FIELD = ("crop_to_face", "cropToFace", "cut_face", "cutFace")
SMALL_FILE_LINES = 40
DOCSTRING_OPENING = re.compile(r"(See|As|What|Who|Whether)\b")
PARTICIPLE = re.compile(r"\w{2,}(?<!e)ed|\w{3,}ing")
IRREGULAR = re.compile(
    "begun|bound|broken|brought|built|caught|done|drawn|found|given|gone|held|kept|known|laid|lost|made|meant"
    "|met|said|seen|sent|shown|spent|stood|taken|thought|told|torn|worn|written"
)
NO_PARTICIPLE = re.compile("bring|embed|feed|missing|need|ping|ring|seed|setting|shed|speed|string|thing")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Found = list[tuple[str, str]]
"""Where, and what."""


class House:
    """The parsed modules of `avatarforge/`."""

    def __init__(self, root: Path) -> None:
        package = root / "avatarforge"
        has_generator = (root / ".ci" / "generate_client.py").exists()
        generated = GENERATED if has_generator else GENERATED[:1]
        self.files = {
            name: path.read_text()
            for path in sorted(package.rglob("*.py"))
            if not (name := path.relative_to(package).as_posix()).startswith(generated)
        }
        self.trees = {name: ast.parse(text) for name, text in self.files.items()}

    def nodes(self, kind: type | tuple[type, ...]) -> Iterator[tuple[str, ast.AST]]:
        for name, tree in self.trees.items():
            yield from ((name, node) for node in ast.walk(tree) if isinstance(node, kind))

    def functions(self) -> Iterator[tuple[str, Function]]:
        for name, node in self.nodes((ast.FunctionDef, ast.AsyncFunctionDef)):
            assert isinstance(node, Function)
            yield f"{name}:{node.lineno}", node

    def erasures(self) -> Found:
        return [
            (where, node.name)
            for where, node in self.functions()
            if node.name == "erase_customer" and not where.startswith(("client/", "cli/"))
        ]

    def modules_naming_field(self) -> Found:
        return [
            (name, "")
            for name, tree in self.trees.items()
            if any(names_field(node) for node in ast.walk(tree))
        ]

    def protocols(self) -> Found:
        return [
            (f"{name}:{node.lineno}", node.name)
            for name, node in self.nodes(ast.ClassDef)
            if isinstance(node, ast.ClassDef)
            and any("Protocol" in ast.unparse(base).split("[")[0].split(".") for base in node.bases)
        ]

    def constructors(self) -> list[tuple[str, Function]]:
        return [(where, node) for where, node in self.functions() if node.name == "__init__"]

    def constructor_lambdas(self) -> tuple[Found, Found]:
        """All lambdas in constructors' bodies, and those of them that name `self`, bound late."""
        every: Found = []
        late: Found = []
        for where, constructor in self.constructors():
            for statement in constructor.body:
                for node in ast.walk(statement):
                    if isinstance(node, ast.Lambda):
                        every.append((where, ast.unparse(node)))
                        if any(isinstance(part, ast.Name) and part.id == "self" for part in ast.walk(node)):
                            late.append(every[-1])
        return every, late

    def small_files(self) -> Found:
        return [
            (name, str(len(text.splitlines())))
            for name, text in self.files.items()
            if not name.endswith("__init__.py") and len(text.splitlines()) < SMALL_FILE_LINES
        ]

    def docstrings(self) -> Found:
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        return [
            (f"{name}:{getattr(node, 'lineno', 1)}", text.splitlines()[0])
            for name, node in self.nodes(kinds)
            if (text := ast.get_docstring(node)) and DOCSTRING_OPENING.match(text)  # type: ignore[arg-type]
        ]

    def participles(self) -> Found:
        return [
            (where, node.name)
            for where, node in self.functions()
            if is_participle(node.name) and not is_noun(node)
        ]


def names_field(node: ast.AST) -> bool:
    """Tell whether the node is a name, an attribute, a keyword, a parameter or a text that is the field."""
    for attribute in ("id", "attr", "arg", "value", "name"):
        if getattr(node, attribute, None) in FIELD:
            return True
    return False


def is_participle(name: str) -> bool:
    """Tell whether the function's first word looks like a participle; only nearly right."""
    first = name.strip("_").split("_")[0]
    if name.startswith("__") or NO_PARTICIPLE.fullmatch(first):
        return False
    return (IRREGULAR.fullmatch(first) or PARTICIPLE.fullmatch(first)) is not None


def is_noun(node: Function) -> bool:
    """Tell whether it is a property whose name goes on behind the participle, such as `desired_model`."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return "property" in decorators and "_" in node.name.strip("_")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1])
    options = parser.parse_args()
    house = House(options.folder)
    every_lambda, late = house.constructor_lambdas()
    lengths = sorted(
        ((node.end_lineno or 0) - node.lineno + 1, where) for where, node in house.constructors()
    )
    counts: list[tuple[str, Found]] = [
        ("definitions of erase_customer on the server", house.erasures()),
        ("modules that name an upload's field (crop_to_face)", house.modules_naming_field()),
        ("Protocols", house.protocols()),
        ("lambdas in constructors", every_lambda),
        ("  of them bound late (they name self)", late),
        ("files under 40 lines beside __init__", house.small_files()),
        ("docstrings that begin with See, As, What, Who, Whether", house.docstrings()),
        ("functions named by a participle, about", house.participles()),
    ]
    for name, found in counts:
        print(f"{len(found):6}  {name}")
        if options.verbose:
            for where, what in found:
                print(f"          {where}  {what}")
    print(f"{lengths[-1][0]:6}  lines of the longest constructor ({lengths[-1][1]})")
    print(f"{sum(1 for _ in house.functions()):6}  functions")
    print(f"{sum(len(text.splitlines()) for text in house.files.values()):6}  lines of avatarforge/")


if __name__ == "__main__":
    main()

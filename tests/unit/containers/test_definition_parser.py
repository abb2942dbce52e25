"""The parser of definition files: what it reads, and what it refuses where Apptainer would build something else."""

from __future__ import annotations

import contextlib

import pytest
from containers.definition import Copy, DefinitionError, read_arguments, read_definition
from hypothesis import given
from hypothesis import strategies as st

WHOLE = """# about it
Bootstrap: docker
From: {{ BASE }}  # a comment
Stage: build

%arguments
    # the base
    BASE=debian:stable
    WORDS=one two

%files
    here /there
    both
    "a name" /target/

%post -c /bin/bash -e
    echo '{{ WORDS }}'

    # done
Bootstrap: localimage
From: base.sif
Fingerprints: ABCD

%files from build
    /there

%environment
    export A="${A:-b}"
%environment
    export C=d
%RUNSCRIPT
    exec "$@"
%startscript
    exec serve
%test
    true
%labels
    a.b some words
    # none
%help
    Read this.
"""


def test_all_that_a_definition_says_is_read() -> None:
    build, image = read_definition(WHOLE, {"WORDS": "three"}).stages
    assert build.header == {"Bootstrap": "docker", "From": "debian:stable", "Stage": "build"}
    assert build.name == "build"
    assert build.arguments == {"BASE": "debian:stable", "WORDS": "one two"}
    assert build.used == {"BASE", "WORDS"}
    assert build.files == (
        Copy("here", "/there", None),
        Copy("both", "both", None),
        Copy("a name", "/target/", None),
    )
    assert build.post == "    echo 'three'\n\n    # done\n"
    assert build.post_shell == ("/bin/sh", "-ex", "-c", "/bin/bash -e")
    assert (build.environment, build.runscript, build.test, build.labels, build.help) == ("", "", "", {}, "")
    assert image.header == {"Bootstrap": "localimage", "From": "base.sif", "Fingerprints": "ABCD"}
    assert image.files == (Copy("/there", "/there", "build"),)
    assert image.environment == '    export A="${A:-b}"\n    export C=d\n'
    assert (image.runscript, image.startscript, image.test) == ('    exec "$@"\n', "    exec serve\n", "    true\n")
    assert image.labels == {"a.b": "some words"}
    assert image.help == "    Read this."
    assert (image.post, image.post_shell) == ("", ("/bin/sh", "-ex"))
    assert read_definition(WHOLE).image.name == ""


def test_a_stage_is_found_by_its_name() -> None:
    definition = read_definition(WHOLE)
    assert definition.stage("build") is definition.stages[0]
    with pytest.raises(DefinitionError, match="no stage other"):
        definition.stage("other")


HEAD = "Bootstrap: docker\nFrom: x\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no line begins with Bootstrap:"),
        ("From: x\nBootstrap: docker\n", "line 1 stands before"),
        ("Bootstrap: docker\nFrom x\n", "unknown line of a header: From x"),
        ("Bootstrap: docker\nTo: x\n", "unknown line of a header: To: x"),
        ("Bootstrap: docker\nFrom:\n", "From is empty"),
        ("Bootstrap: docker\nFrom: a\nFrom: b\n", "there twice"),
        (f"{HEAD}%setup\n    touch /x\n", "%setup runs on the machine that builds"),
        (f"{HEAD}%pre\n    touch /x\n", "%pre runs on the machine that builds"),
        (f"{HEAD}%apprun foo\n", "unknown section %apprun"),
        (f"{HEAD}%post\n    cat <<END\n    %s\n", "unknown section %s"),
        (f"{HEAD}%post -x\n", "%post takes -c SHELL"),
        (f"{HEAD}%post -c\n", "%post takes -c SHELL"),
        (f"{HEAD}%test -c bash\n", "%test takes no options"),
        (f"{HEAD}%files of build\n    a b\n", "not `%files from STAGE`"),
        (f"{HEAD}%files\n    a b c\n", "not `SOURCE \\[DESTINATION\\]`"),
        (f"{HEAD}%files\n    a 'b\n", "No closing quotation: a 'b"),
        (f"{HEAD}%files from build\n    /a\n", "no stage before this one"),
        (f"{HEAD}{HEAD}", "two stages are called nothing"),
        (f"{HEAD}Stage: a\n%post\n    true\n{HEAD}Stage: a\n", "two stages are called a"),
        (f"{HEAD}%post\n    echo {{{{ NAME }}}}\n", "NAME is neither declared"),
        (f"{HEAD}%arguments\n    NAME=x\n%post\n    true\n", "declared, and not used in this stage: NAME"),
        (f"{HEAD}%arguments\n    NAME=x\n    NAME=y\n%post\n    {{{{ NAME }}}}\n", "NAME is declared twice"),
        (f"{HEAD}%arguments\n    NAME\n", "%arguments is not NAME=VALUE"),
        (f"{HEAD}%arguments\n    NAME=x # why\n", "a comment here would be part of the value"),
        (f"{HEAD}%arguments\n    A=x\n    B={{{{ A }}}}\n", "not every Apptainer fills in one argument by another"),
        (f"{HEAD}%arguments\n    A=x\n%post\n    # {{{{ A }}}}\n", "fill in comments"),
        (f"{HEAD}%labels\n    alone\n", "the label alone has no value"),
    ],
)
def test_what_would_be_built_otherwise_than_it_reads_is_refused(text: str, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        read_definition(text)


def test_arguments_belong_to_their_stage() -> None:
    """As in Apptainer: what the first stage declares is unknown in the second."""
    second = f"{HEAD}%post\n    echo {{{{ A }}}}\n"
    first = f"{HEAD}Stage: build\n%arguments\n    A=x\n%post\n    echo {{{{ A }}}}\n"
    with pytest.raises(DefinitionError, match="A is neither declared in this stage nor given"):
        read_definition(first + second)
    assert [s.post for s in read_definition(first + second, {"A": "y"}).stages] == ["    echo y\n"] * 2


def test_an_argument_that_is_used_nowhere_is_refused() -> None:
    with pytest.raises(DefinitionError, match="given, and used nowhere: A, C"):
        read_definition(f"{HEAD}%post\n    echo {{{{ B }}}}\n", {"A": "1", "B": "2", "C": "3"})


def test_a_line_at_the_margin_begins_a_stage_wherever_it_stands() -> None:
    stages = read_definition(f"{HEAD}Stage: a\n%help\n    Bootstrap: is no header here\nBOOTSTRAP: scratch\n").stages
    assert [stage.header["Bootstrap"] for stage in stages] == ["docker", "scratch"]


def test_an_args_file_is_read_as_apptainer_reads_it() -> None:
    text = "# a comment\n\n  A = b c \nQUOTED='x'\nEMPTY=\nE=a=b\n"
    assert read_arguments(text) == {"A": "b c", "QUOTED": "'x'", "EMPTY": "", "E": "a=b"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("# A=b", "line 1 is not NAME=VALUE: # A=b"),
        ("A", "line 1 is not NAME=VALUE"),
        ("=b", "line 1 is not NAME=VALUE"),
        ("A B=c", "line 1 is not NAME=VALUE"),
        ("A=b # c", "part of the value of A"),
        ("A=b\nA=c", "line 2: A is given twice"),
    ],
)
def test_what_an_args_file_would_say_otherwise_than_it_reads_is_refused(line: str, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        read_arguments(line)


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
values = st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="#{}%"), max_size=20)


@given(st.dictionaries(names, values.map(str.strip), min_size=1))
def test_arguments_arrive_as_they_were_written(arguments: dict[str, str]) -> None:
    text = "".join(f"{name}={value}\n" for name, value in arguments.items())
    assert read_arguments(text) == arguments
    body = "".join(f"    x{{{{ {name} }}}}y\n" for name in arguments)
    filled = "".join(f"    x{value}y\n" for value in arguments.values())
    assert read_definition(f"{HEAD}%post\n{body}", arguments).image.post == filled
    declared = "".join(f"    {line}\n" for line in text.splitlines())
    assert read_definition(f"{HEAD}%arguments\n{declared}%post\n{body}").image.post == filled


pieces = st.sampled_from(
    [*("Bootstrap: docker", "From: x", "Stage: a", "%files", "%files from a", "%post -c sh", "%labels", "%arguments"),
     *("    A=b", "    {{ A }}", "    'a b", "%", "#", "    a b", "%help", "", "  %test", "Stage:", "=")]
)  # fmt: skip


@given(st.lists(pieces | st.text(max_size=12)).map("\n".join), st.dictionaries(names, values, max_size=2))
def test_whatever_is_read_nothing_but_a_definition_error_comes(text: str, arguments: dict[str, str]) -> None:
    with contextlib.suppress(DefinitionError):
        assert read_definition(text, arguments).stages

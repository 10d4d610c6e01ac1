"""How a program is found, and what its identity covers."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from p2pcompute.errors import ProgramError
from p2pcompute.execution._program_files import InstalledProgram, installed_programs, look_up, normalised

from ._program_site import install, install_example, on_path

TEXT = "def step(index, out):\n    out[...] = index\n"


def digest_of(site: Path, patch: pytest.MonkeyPatch) -> bytes:
    with patch.context() as here:
        on_path(here, site)
        return look_up("step").digest


def put(
    site: Path, *, version: str = "1.0", text: str = TEXT, data: str = "7", programs: str = "soft.steps:step"
) -> Path:
    install(
        site, "Soft_Steps", version, {"soft/__init__.py": "", "soft/steps.py": text, "soft/table.txt": data},
        {"step": programs},
    )  # fmt: skip
    return site


def test_it_is_found_by_its_name_and_by_that_of_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(monkeypatch, put(tmp_path))
    found = look_up("step")
    assert found == look_up("soft-steps:step") == look_up("Soft.Steps:step")
    assert (found.distribution, found.version, found.name) == ("soft-steps", "1.0", "step")
    assert (found.module, found.attribute, found.label) == ("soft.steps", "step", "soft-steps:step")
    assert found.site == str(tmp_path.resolve())
    assert found.roots == (found.site,)
    assert found in installed_programs()
    assert "soft" not in sys.modules  # a node does not import programs


def test_the_digest_is_that_of_the_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "Soft_Steps-1.0.dist-info/entry_points.txt": b"[p2pcompute.programs]\nstep = soft.steps:step\n",
        "soft/__init__.py": b"",
        "soft/steps.py": TEXT.encode(),
        "soft/table.txt": b"7",
    }
    due = hashlib.sha256(b"p2pcompute program 1\0")
    for path, content in files.items():
        due.update(len(path).to_bytes(4, "big") + path.encode() + hashlib.sha256(content).digest())
    assert digest_of(put(tmp_path), monkeypatch) == due.digest()


def test_whatever_the_program_could_come_from_is_in_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = digest_of(put(tmp_path / "one"), monkeypatch)
    assert digest_of(put(tmp_path / "same"), monkeypatch) == one  # wherever it is installed
    others = [
        put(tmp_path / "text", text=TEXT + "\n"),
        put(tmp_path / "data", data="8"),
        put(tmp_path / "entry", programs="soft.steps:other"),
    ]
    assert len({digest_of(site, monkeypatch) for site in others} | {one}) == 4


def test_what_is_on_the_disk_counts_and_not_what_record_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of(put(tmp_path), monkeypatch)
    (tmp_path / "soft" / "steps.py").write_text(TEXT.replace("index\n", "index + 1\n"))
    assert digest_of(tmp_path, monkeypatch) != before
    (tmp_path / "soft" / "steps.py").unlink()
    with pytest.raises(ProgramError, match="can't be read"):
        digest_of(tmp_path, monkeypatch)


def test_compiled_files_and_what_the_installer_wrote_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest_of(put(tmp_path), monkeypatch)
    info = tmp_path / "Soft_Steps-1.0.dist-info"
    (info / "INSTALLER").write_text("another\n")
    (tmp_path / "soft" / "__pycache__").mkdir()
    (tmp_path / "soft" / "__pycache__" / "steps.cpython-311.pyc").write_bytes(b"compiled")
    (tmp_path.parent / "script").write_text("#!/somewhere/python\n")
    with (info / "RECORD").open("a") as record:
        record.write("soft/__pycache__/steps.cpython-311.pyc,,\n../script,,\n/etc/hostname,,\n")
    assert digest_of(tmp_path, monkeypatch) == before


def test_what_can_not_be_pinned_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = put(tmp_path / "edited")
    # Installed to be edited in place: the files lie elsewhere, and anybody may change them.
    (site / "Soft_Steps-1.0.dist-info" / "RECORD").write_text("__editable__.soft_steps.pth,,\n")
    with pytest.raises(ProgramError, match=r"does not list the module soft\.steps"):
        digest_of(site, monkeypatch)
    (site / "Soft_Steps-1.0.dist-info" / "RECORD").unlink()
    with pytest.raises(ProgramError, match="no RECORD"):
        digest_of(site, monkeypatch)
    on_path(monkeypatch, site)
    assert any(isinstance(program, ProgramError) for program in installed_programs())


@pytest.mark.parametrize(
    ("programs", "match"),
    [
        ({"step": "soft.steps"}, "and no function"),
        ({"a name with spaces": "soft.steps:step"}, "at most 32 letters"),
        ({"n" * 33: "soft.steps:step"}, "at most 32 letters"),
    ],
)
def test_entry_points_that_are_none_are_said(
    programs: dict[str, str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "soft-steps", "1.0", {"soft/steps.py": TEXT}, programs)
    on_path(monkeypatch, tmp_path)
    with pytest.raises(ProgramError, match=match):
        look_up(next(iter(programs)))


def test_a_distribution_without_a_version_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (put(tmp_path) / "Soft_Steps-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: soft-steps\n")
    (tmp_path / "nameless-1.dist-info").mkdir()
    (tmp_path / "nameless-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")
    on_path(monkeypatch, tmp_path)
    with pytest.raises(ProgramError, match="has no name and version"):
        look_up("step")


def test_who_is_not_there_is_said_and_who_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProgramError, match="no installed distribution has programs"):
        look_up("step")
    install_example(tmp_path)
    on_path(monkeypatch, tmp_path)
    with pytest.raises(ProgramError, match="there are tiny-learner:infer, tiny-learner:local-step"):
        look_up("other:infer")


def test_two_of_one_name_need_their_distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(monkeypatch, put(tmp_path))
    install(tmp_path, "hard-steps", "2", {"hard.py": TEXT}, {"step": "hard:step"})
    with pytest.raises(ProgramError, match="write one of hard-steps:step, soft-steps:step"):
        look_up("step")
    assert look_up("hard-steps:step").module == "hard"


def test_the_first_on_the_path_is_the_one_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(monkeypatch, put(tmp_path / "first"))
    on_path(monkeypatch, put(tmp_path / "second", text=TEXT + "\n", version="2.0"))
    assert look_up("step").version == "1.0"


def test_what_it_requires_is_readable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    install(
        one, "soft-steps", "1.0", {"soft.py": TEXT}, {"step": "soft:step"}, requires=("middle>=1", "gone; extra == 'x'")
    )
    install(two, "middle", "1.0", {"middle.py": ""}, {}, requires=("end (>=2)", "missing", "soft-steps"))
    install(three, "end", "2.0", {"end.py": ""}, {})
    install(tmp_path / "four", "gone", "1", {"gone.py": ""}, {})
    for site in (one, two, three, tmp_path / "four"):
        on_path(monkeypatch, site)
    found = look_up("step")
    assert isinstance(found, InstalledProgram)
    assert set(found.roots) == {str(site.resolve()) for site in (one, two, three)}


def test_names_have_one_spelling() -> None:
    assert {normalised(name) for name in ("Soft_Steps", "soft--steps", "soft.steps", "SOFT-_.steps")} == {"soft-steps"}

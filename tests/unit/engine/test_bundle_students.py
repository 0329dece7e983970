"""Students in ``bundle.json``: format 2, and what is refused of it."""

import json

import pytest

from fewstep.checkpoint import bundle
from fewstep.checkpoint.safetensors import folder_hash
from fewstep.errors import CheckpointError, UsageError


def change(folder, alter):
    file = folder / bundle.FILE_NAME
    raw = json.loads(file.read_text())
    alter(raw)
    file.write_text(json.dumps(raw))


def test_what_is_written_is_read(student_bundle):
    read = bundle.open_bundle(student_bundle, verify=True)
    (student,) = read.students
    assert (student.name, student.part, student.precision) == ("quick", "students/quick", "int8")
    assert student.contract["allowed_steps"] == [2, 4]
    assert read.path(student.part) == student_bundle / "students" / "quick.xml"
    before = (student_bundle / bundle.FILE_NAME).read_bytes()
    assert json.loads(before)["format_version"] == 2
    bundle.write(read)
    assert (student_bundle / bundle.FILE_NAME).read_bytes() == before


def test_a_bundle_without_students_is_written_in_the_old_format(ir_bundle):
    raw = json.loads((ir_bundle / bundle.FILE_NAME).read_text())
    assert raw["format_version"] == 1
    assert "students" not in raw
    assert bundle.open_bundle(ir_bundle).students == ()


def test_the_base_keeps_its_hash_and_the_student_has_its_own(ir_bundle, request):
    before = bundle.open_bundle(ir_bundle)
    after = bundle.open_bundle(request.getfixturevalue("student_bundle"))
    assert after.hash == before.hash == folder_hash(ir_bundle)
    assert after.part_hash("denoiser") == before.part_hash("denoiser")
    assert len({after.part_hash(part) for part in (*bundle.PARTS, "students/quick")}) == 5


@pytest.mark.parametrize("suffix", ["xml", "bin"])
def test_missing_cut_and_damaged_files_of_a_student_are_found(student_bundle, suffix):
    file = student_bundle / "students" / f"quick.{suffix}"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    bundle.open_bundle(student_bundle)
    with pytest.raises(CheckpointError, match="recorded hash"):
        bundle.open_bundle(student_bundle, verify=True)
    file.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="instead of"):
        bundle.open_bundle(student_bundle)
    file.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        bundle.open_bundle(student_bundle)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("name", "../../etc/passwd", "not a name for a student"),
        ("name", "none", "not a name for a student"),
        ("name", "Quick", "not a name for a student"),
        ("name", "", "not a name for a student"),
        ("name", 3, "students is not an object of texts"),
        ("precision", None, "students is not an object of texts"),
        ("contract", [], "'quick', whose contract is not an object"),
        ("surprise", 1, "not {name, contract, precision, source}"),
        ("name", "other", "files does not list exactly"),
    ],
)
def test_a_broken_entry_is_refused(student_bundle, key, value, words):
    change(student_bundle, lambda raw: raw["students"][0].update({key: value}))
    with pytest.raises(CheckpointError, match="fewstep export") as caught:
        bundle.open_bundle(student_bundle)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("students", [None, {}, [3], "quick", [["quick"]]])
def test_a_list_that_is_none_is_refused(student_bundle, students):
    change(student_bundle, lambda raw: raw.update(students=students))
    with pytest.raises(CheckpointError, match="students"):
        bundle.open_bundle(student_bundle)


def test_a_name_twice_and_a_file_too_many_are_refused(student_bundle):
    change(student_bundle, lambda raw: raw["students"].append(raw["students"][0]))
    with pytest.raises(CheckpointError, match="names one twice"):
        bundle.open_bundle(student_bundle)
    change(student_bundle, lambda raw: raw.update(students=[]))
    with pytest.raises(CheckpointError, match="files does not list exactly"):
        bundle.open_bundle(student_bundle)


@pytest.mark.parametrize("name", ["a", "flash-4", "8_steps", "a" * 40])
def test_names_of_students(name):
    assert bundle.student_part(name) == f"students/{name}"


@pytest.mark.parametrize("name", ["", "-a", "a" * 41, "a.b", "a/b", "a\\b", "a b", "é", "a\n"])
def test_what_is_no_name(name):
    with pytest.raises(UsageError, match="not a name for a student"):
        bundle.student_part(name)

"""The faults of `mutants` are up to date, and its machinery tells a fault from none."""

import pytest

from tests.mutants.run import MUTANTS, Mutant, is_caught, text


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_faults_fit_the_code(mutant):
    assert compile(text(mutant), mutant.file, "exec")


def test_there_are_many_faults_with_names_of_their_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


def test_a_fault_is_noticed():
    forgotten = next(m for m in MUTANTS if m.name == "log K is forgotten")
    assert is_caught(forgotten)[0]


def test_a_fault_that_changes_nothing_survives():
    forgotten = next(m for m in MUTANTS if m.name == "log K is forgotten")
    harmless = Mutant("harmless", forgotten.file, forgotten.old, forgotten.old, forgotten.tests)
    assert not is_caught(harmless)[0]


def test_a_fault_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match=r"stands 0 times in objectives/bounds\.py"):
        text(Mutant("gone", "objectives/bounds", "no such text", "", ()))


def test_a_fault_that_crashes_is_an_error():
    forgotten = next(m for m in MUTANTS if m.name == "log K is forgotten")
    broken = Mutant("broken", forgotten.file, forgotten.old, "no_such_name", forgotten.tests)
    with pytest.raises(RuntimeError, match=r"'broken' crashes.*NameError"):
        is_caught(broken)

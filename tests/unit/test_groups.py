"""The one error out of a group, as the caller sees it."""

from __future__ import annotations

import traceback

import pytest
import trio

from p2pcompute._groups import nursery_beside, single_error


def raised(error: Exception) -> Exception:
    """The error as it is where it came up while another one was handled."""
    try:
        try:
            raise KeyError("the cause")
        except KeyError:
            raise error  # noqa: B904  a context is what is tested
    except type(error) as caught:
        return caught


def run_into(*errors: Exception) -> None:
    with single_error(ValueError, ArithmeticError):
        raise ExceptionGroup("a nursery's", [raised(error) for error in errors])


def test_the_first_kind_is_raised_and_its_traceback_shows_no_group() -> None:
    told, beside = ValueError("told"), ZeroDivisionError("beside it")
    with pytest.raises(ValueError, match="told") as caught:
        run_into(beside, told)
    assert caught.value is told
    shown = "".join(traceback.format_exception(caught.value))
    assert "ExceptionGroup" not in shown.replace("raise ExceptionGroup", "")
    assert "beside it" not in shown
    assert "the cause" in shown


def test_what_is_not_expected_passes_as_a_group() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run_into(ValueError("told"), LookupError("a bug"))
    assert [str(error) for error in caught.value.exceptions] == ["a bug"]


def test_what_runs_beside_a_block_ends_with_it_and_the_blocks_error_is_in_no_group() -> None:
    async def beside(ended: trio.Event, task_status: trio.TaskStatus[None]) -> None:
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            ended.set()

    async def refuse(task_status: trio.TaskStatus[None]) -> None:
        raise ZeroDivisionError("it did not start")

    async def main() -> None:
        for fails in (False, True):
            ended = trio.Event()
            try:
                async with nursery_beside() as nursery:
                    await nursery.start(lambda task_status, ended=ended: beside(ended, task_status))
                    if fails:
                        raise KeyError("of the block")
            except KeyError:
                assert fails
            else:
                assert not fails
            assert ended.is_set()
        with pytest.raises(ZeroDivisionError, match="it did not start"):
            async with nursery_beside() as nursery:
                await nursery.start(refuse)

    trio.run(main)

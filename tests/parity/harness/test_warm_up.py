"""What is said of a step that does not fit a device's memory."""

from parity.harness.warm_up import memory_problem


def test_what_fits_needs_no_words():
    assert memory_problem({"arguments": 4, "temporaries": 90, "results": 1}, 95, 64, 1) == ""


def test_the_fewest_microbatches_that_fit_are_named():
    needed = {"arguments": 10 * 10**9, "temporaries": 100 * 10**9, "results": 0}
    assert memory_problem(needed, 40 * 10**9, 48, 1) == (
        "the step needs 110.0 GB of a device's memory with 48 rows at once, found 40.0 GB: --microbatches 4 would fit"
    )
    assert "--microbatches 8 would fit" in memory_problem(needed, 40 * 10**9, 48, 2)  # of what two microbatches take


def test_where_none_fit_it_is_said():
    assert memory_problem({"arguments": 50, "temporaries": 1, "results": 0}, 40, 8, 1).endswith(
        "use more devices or a smaller model"
    )

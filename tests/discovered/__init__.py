"""A project of its own, whose tests Django's test runner runs for `tests.test_test_runner`."""

"""Says at the end how many combinations of objective, gradient and model the laws ran over."""

from collections import Counter
from typing import Any

LAWS = {
    "test_value": "1, 5 value and order",
    "test_closed_forms": "1, 5 value and order",
    "test_gradient": "2, 4, 6, 9 expectations: value, gradient, subsampling, scale, mask, dtype",
    "test_enumeration": "2, 4, 6, 9 expectations: value, gradient, subsampling, scale, mask, dtype",
    "test_vimco": "2 expectation of value and gradient, score function",
    "test_landing": "3 sticks the landing",
    "test_plates": "4, 5 plates and subsampling",
    "test_nested": "5 nested weights",
    "test_autoguides": "2 expectation of the gradient, autoguides",
    "test_contract": "7 contract",
    "test_signal_to_noise": "signal to noise",
}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed = Counter[str]()
    for report in terminalreporter.stats.get("passed", []):
        path = report.nodeid.partition("::")[0]
        module = path.rpartition("/")[2].removesuffix(".py")
        if "tests/objectives/laws/" in path and module in LAWS:
            passed[LAWS[module]] += 1
    if passed:
        terminalreporter.section("laws: combinations that hold")
        for law, number in sorted(passed.items()):
            terminalreporter.write_line(f"{number:5}  {law}")
        terminalreporter.write_line(f"{passed.total():5}  in all")

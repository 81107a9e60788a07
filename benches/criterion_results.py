"""Gathers what `cargo bench` left under target/criterion: prints it as a table, and writes it to benches/results."""

from __future__ import annotations

import json

from contenders import TARGET
from report import machine, table, write_json


def gathered() -> list[dict[str, object]]:
    found = []
    for path in sorted((TARGET / "criterion").glob("*/*/new/benchmark.json")):
        about = json.loads(path.read_text())
        estimates = json.loads(path.with_name("estimates.json").read_text())
        batch, ns = int(about["value_str"]), float(estimates["median"]["point_estimate"])
        found.append({"path": about["group_id"], "batch": batch, "us": ns / 1000, "us_each": ns / 1000 / batch})
    return sorted(found, key=lambda one: (str(one["path"]), one["batch"]))


if __name__ == "__main__":
    paths = gathered()
    titles = ("", "in a batch", "us a batch", "us each", "per second")
    rows = [[one["path"], one["batch"], one["us"], one["us_each"], 1e6 / float(str(one["us_each"]))] for one in paths]
    print(table(titles, rows))
    write_json("hot-paths", {"machine": machine(), "medians": paths})

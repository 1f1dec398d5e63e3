"""The table of races in the documentation says what the recordings say."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "how-to" / "real-kernel.md"


def rows():
    yield "| driver | race | two threads | tries | outcomes of Linux | of the model | verdict |"
    yield "| --- | --- | --- | ---: | ---: | ---: | --- |"
    for path in sorted(ROOT.glob("plugins/*/tests/recorded/*-races.json")):
        document = json.loads(path.read_text())
        for race in document["races"]:
            seen = sum(each["kernel"] > 0 for each in race["outcomes"])
            allowed = sum(each["model"] for each in race["outcomes"])
            what = f"`{race['left']}` and `{race['right']}`"
            yield (
                f"| {document['target']} | `{race['name']}` | {what} | {race['tries']} | {seen} | {allowed} "
                f"| {race['verdict']} |"
            )


def test_the_table_of_races_is_that_of_the_recordings():
    assert "\n".join(rows()) in PAGE.read_text()


def test_both_drivers_have_the_races_that_everybody_asks_for():
    """A fault against a migration, munmap against one, two devices for one range, an eviction against a fault."""
    for path in ROOT.glob("plugins/*/tests/recorded/*-races.json"):
        names = {race["name"] for race in json.loads(path.read_text())["races"]}
        assert names >= {"fault-migrate", "munmap-migrate", "two-devices", "evict-fault"}

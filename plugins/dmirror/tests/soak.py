# ruff: noqa: T201  # a soak prints what it found
"""Walk at random over what processes and dmirror devices do, against the second model, for as long as wanted.

    python plugins/dmirror/tests/soak.py --steps 2000000 --jobs 2 --seed 1

Each walk boots a machine, does some hundred steps and takes everything down; walk k of seed s is the same walk
always. After each step both models are compared; the invariants that always hold are checked in every page-table-lock
section, those of a machine at rest after every eighth step (`--check-every 1`: after each) and at the end. A walk that
fails is made short and printed as steps that `--replay` takes (a file, or - for standard input).
To go on where a soak ended, give `--first` the number of its last walk.
"""

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from pathlib import Path

from dmirror_world import SETTINGS, STEPS, Setting, World

WALK_STEPS = 400


def draw_walk(seed: int, number: int, quirks: str, check_every: int = 1):
    """Draw the setting and the steps of one walk."""
    rng = random.Random(f"{seed}/{number}")
    setting = {name: rng.choice(choices) for name, choices in SETTINGS.items()}
    if quirks == "both":
        setting["quirks"] = "as_written" if number % 4 == 3 else "fixed"
    else:
        setting["quirks"] = quirks
    setting["check_every"] = check_every
    names = list(STEPS)
    weights = [STEPS[name][0] for name in names]
    steps = []
    for name in rng.choices(names, weights, k=WALK_STEPS):
        taken = STEPS[name][1]
        given = {key: rng.randint(*b) if len(b) == 2 else rng.choice(b) for key, b in taken.items()}
        steps.append([name, given])
    return setting, steps


def run_walk(setting, steps):
    """Do the steps; None, or what went wrong and after how many steps."""
    world = World(Setting(**setting))
    try:
        for name, given in steps:
            world.step(name, **given)
        world.finish()
    except Exception as error:  # noqa: BLE001  # whatever goes wrong is a finding
        return f"{type(error).__name__}: {error}".split("\n")[0], world.steps
    return None


def shorten(setting, steps, message):
    """Leave out steps as long as it still fails, in ever smaller pieces."""
    kind = message.split(":")[0]

    def fails(some):
        found = run_walk(setting, some)
        return found is not None and found[0].split(":")[0] == kind

    size = len(steps) // 2
    while size:
        at = 0
        while at < len(steps):
            shorter = steps[:at] + steps[at + size :]
            if fails(shorter):
                steps = shorter
            else:
                at += size
        size //= 2
    return steps


def walk(job):
    number = job[1]
    setting, steps = draw_walk(*job)
    found = run_walk(setting, steps)
    if found is None:
        return number, len(steps), None
    message, done = found
    steps = shorten(setting, steps[:done], message)
    return number, done, {"walk": number, "seed": job[0], "setting": setting, "steps": steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000, help="steps in all (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="walk to begin with, to go on after an interruption")
    parser.add_argument("--quirks", choices=["fixed", "as_written", "both"], default="both")
    parser.add_argument(
        "--check-every", type=int, default=8, help="steps between two checks of the whole machine (default %(default)s)"
    )
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first finding")
    parser.add_argument("--replay", metavar="FILE", help="do the steps of a printed finding, showing each")
    options = parser.parse_args()
    if options.replay:
        return replay(json.loads(sys.stdin.read() if options.replay == "-" else Path(options.replay).read_text()))
    walks = -(-options.steps // WALK_STEPS)
    jobs = ((options.seed, options.first + k, options.quirks, options.check_every) for k in range(walks))
    begin, done, findings = time.perf_counter(), 0, Counter()
    shown = begin
    pool = multiprocessing.Pool(options.jobs) if options.jobs > 1 else None
    results = map(walk, jobs) if pool is None else pool.imap(walk, jobs, chunksize=4)
    for number, steps, finding in results:
        done += steps
        if finding is not None:
            message = run_walk(finding["setting"], finding["steps"])
            message = "does not fail again" if message is None else message[0]
            findings[message] += 1
            print(f"walk {number}: {message}\n{json.dumps(finding)}", flush=True)
            if not options.keep_going:
                break
        now = time.perf_counter()
        if now - shown > 20:
            shown = now
            print(f"{done} steps, {done / (now - begin):.0f}/s, walk {number}, {findings.total()} findings", flush=True)
    if pool is not None:
        pool.terminate()
    spent = time.perf_counter() - begin
    rate = f"{done} steps in {spent:.0f} s, {done / spent:.0f} steps/s"
    print(f"seed {options.seed}: {rate}, {findings.total()} findings")
    return 1 if findings else 0


def replay(finding):
    """Do the steps of a finding, one line each."""
    world = World(Setting(**finding["setting"]))
    print(finding["setting"])
    for name, given in finding["steps"]:
        print(name, " ".join(f"{key}={value}" for key, value in given.items()), flush=True)
        world.step(name, **given)
    world.finish()
    print("no finding")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Fail if a score in a recipe's `all_results.json` is below its floor: `check_floor.py FILE NAME FLOOR`."""

import json
import sys

path, name, floor = sys.argv[1:]
with open(path, encoding="utf-8") as stream:
    value = json.load(stream)[name]
print(f"{name} = {value:.2f}, at least {float(floor):.2f} is expected")
sys.exit(value < float(floor))

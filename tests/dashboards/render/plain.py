"""Writes the dashboards with every variable replaced, for draw.mjs: `plain.py OUT END RANGE RATE`."""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from boards import boards, everything, interpolate, queries

out, end, length, rate = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
found = boards()
for board in found:
    known = everything(board)
    for query in queries(board):
        query.target["expr"] = interpolate(query.target["expr"], known, length, rate)
step = max(length // 240, 5)
settings = {"end": end // step * step, "range": length, "step": step}
pathlib.Path(out).write_text(json.dumps({"settings": settings, "list": found}))
